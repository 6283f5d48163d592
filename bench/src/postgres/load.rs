//! Executions that save for as long as they are told to, one of them or many at once.

use std::sync::Arc;
use std::time::Duration;

use retake::store::Store;
use serde_json::Value;

use crate::Outcome;
use crate::sample::{self, Draw, Saved};
use crate::timing::Stopwatch;

/// Variables of 1 KB in the state.
pub(crate) const VARIABLES: usize = 100;

/// What so much saving came to.
#[derive(Debug, Default)]
pub(crate) struct Saving {
    /// How long each save took, from before its change was looked for until it was durable.
    pub(crate) latencies: Vec<Duration>,
    /// How long all of it took.
    pub(crate) took: Duration,
}

impl Saving {
    /// Returns the saves per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count() / self.took.as_secs_f64()
    }

    /// Returns how many saves there were.
    pub(crate) fn count(&self) -> f64 {
        f64::from(u32::try_from(self.latencies.len()).unwrap_or(u32::MAX))
    }
}

/// Saves changes of 1 KB in all these executions at the same time, until the time has passed.
pub(crate) async fn save_for(
    store: &Arc<dyn Store>,
    executions: &mut Vec<Saved>,
    time: Duration,
) -> Outcome<Saving> {
    // Drawn before, as the peer's are; and one more than variables, so that none is set to what it is already.
    let mut draw = Draw::new(7);
    let texts: Arc<[Value]> = (0..=VARIABLES).map(|_| Value::String(sample::prose(&mut draw))).collect();
    let watch = Arc::new(Stopwatch::start());
    let tasks: Vec<_> = executions
        .drain(..)
        .map(|mut saved| {
            let (store, watch) = (Arc::clone(store), Arc::clone(&watch));
            let texts = Arc::clone(&texts);
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while watch.read() < time {
                    let step = usize::try_from(saved.head).unwrap_or(0);
                    let text = texts[step % texts.len()].clone();
                    saved.ctx.set_variable(sample::variable(step % VARIABLES), text);
                    let before = watch.read();
                    saved.save(&*store).await?;
                    latencies.push(watch.read() - before);
                }
                Ok::<_, retake::store::StoreError>((saved, latencies))
            })
        })
        .collect();
    let mut saving = Saving::default();
    for task in tasks {
        let (saved, latencies) = task.await??;
        executions.push(saved);
        saving.latencies.extend(latencies);
    }
    saving.took = watch.read();
    Ok(saving)
}
