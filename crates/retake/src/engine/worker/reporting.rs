//! A worker's word that it lives, said again and again whatever else it is busy with.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use uuid::Uuid;

use super::{ANSWER_WAIT, WorkerOptions};
use crate::store::{Queue, WorkerReport};

/// How often a worker says that it lives.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The task that says so. It ends with this.
pub(super) struct Reporter {
    queue: Arc<dyn Queue>,
    worker: Uuid,
    running: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Reporter {
    pub(super) fn begin(queue: Arc<dyn Queue>, worker: Uuid, options: &WorkerOptions) -> Self {
        let (running, is_running) = watch::channel(0);
        let report = WorkerReport {
            id: worker,
            name: options.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            queues: options.queues.clone(),
            concurrency: small(options.concurrency),
            running: 0,
        };
        let task = tokio::spawn(tell(Arc::clone(&queue), report, is_running));
        Self { queue, worker, running, task }
    }

    /// Takes note of how many executions are advanced, to be said the next time.
    pub(super) fn is_running(&self, count: usize) {
        self.running.send_replace(count);
    }

    /// Says nothing more, and has the worker forgotten. A store that does not answer forgets it later.
    pub(super) async fn end(mut self) {
        self.task.abort();
        // What was said last may not come after what is said now.
        let _ended = (&mut self.task).await;
        let retiring = timeout(ANSWER_WAIT, self.queue.retire(self.worker));
        if let Ok(Err(error)) = retiring.await {
            tracing::warn!(%error, "the worker could not be retired");
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell(queue: Arc<dyn Queue>, mut report: WorkerReport, running: watch::Receiver<usize>) {
    let mut due = tokio::time::interval(REPORT_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        report.running = small(*running.borrow());
        // That the store does not answer is told by whoever claims.
        if let Err(error) = queue.report(&report).await {
            tracing::debug!(%error, "the worker could not be reported");
        }
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
