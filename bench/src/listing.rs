//! Listing one execution's checkpoints, alone and among many others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retake::execution::ExecutionId;
use retake::store::{HistoryPage, SqliteStore, Store};
use tokio::runtime::Runtime;

use crate::sample::{self, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{median, ratio, timed};
use crate::{Effort, Outcome};

/// Executions that are created at the same time, so that they share flushes.
const AT_ONCE: usize = 512;

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let checkpoints = effort.pick(1_000, 20);
    let (few, many) = (10, effort.pick(100_000, 600));
    let directory = tempfile::tempdir()?;
    let runtime = sample::single_threaded()?;
    let (small, in_small) = populate(&runtime, &directory.path().join("small.db"), few, checkpoints)?;
    let (large, in_large) = populate(&runtime, &directory.path().join("large.db"), many, checkpoints)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..effort.pick(101, 3) {
        ours.push(list(&runtime, &large, in_large, checkpoints)?);
        theirs.push(list(&runtime, &small, in_small, checkpoints)?);
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let row = |found, goal| Row {
        what: format!("list {checkpoints} checkpoints of one execution among {many} executions"),
        ours: shown(ours),
        theirs: format!("among {few}: {}", shown(theirs)),
        found,
        goal: Some(goal),
        better: Better::Less,
    };
    Ok(vec![
        row(Found::Time(ours), Found::Time(Duration::from_millis(5))),
        // "The same" leaves room for the levels that a larger tree has, and for noise.
        row(Found::Ratio(ratio(ours, theirs)), Found::Ratio(1.5)),
    ])
}

/// Fills a store with executions of one checkpoint, and one in their middle with more.
fn populate(
    runtime: &Runtime,
    path: &Path,
    executions: usize,
    checkpoints: usize,
) -> Outcome<(SqliteStore, ExecutionId)> {
    let store = Arc::new(SqliteStore::open(path)?);
    create(runtime, &store, executions / 2)?;
    let mut saved = runtime.block_on(Saved::create(&*store, 0, false))?;
    for step in 1..checkpoints {
        saved.ctx.set_variable("step".to_owned(), step.into());
        runtime.block_on(saved.save(&*store))?;
    }
    create(runtime, &store, executions - executions / 2 - 1)?;
    Ok((Arc::into_inner(store).ok_or("somebody still writes")?, saved.id()))
}

fn create(runtime: &Runtime, store: &Arc<SqliteStore>, count: usize) -> Outcome<()> {
    let mut left = count;
    while left > 0 {
        let now = left.min(AT_ONCE);
        let tasks: Vec<_> = (0..now)
            .map(|_| {
                let store = Arc::clone(store);
                runtime.spawn(async move { Saved::create(&*store, 0, false).await.map(drop) })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task)??;
        }
        left -= now;
    }
    Ok(())
}

fn list(runtime: &Runtime, store: &SqliteStore, id: ExecutionId, checkpoints: usize) -> Outcome<Duration> {
    let (took, listed) = timed(|| runtime.block_on(store.history(id, HistoryPage::default())));
    if listed?.len() == checkpoints { Ok(took) } else { Err("not every checkpoint was listed".into()) }
}
