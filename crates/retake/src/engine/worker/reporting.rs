//! A worker's word that it lives, said again and again whatever else it is busy with; and what that tells of the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use uuid::Uuid;

use super::{ANSWER_WAIT, RENEWED_WAIT, WorkerOptions};
use crate::clock::Clock;
use crate::store::{Queue, WorkerReport};

/// How often a worker says that it lives; more often where its leases are short, so that it hears in time of a store that
/// is away.
const REPORT_EVERY: Duration = Duration::from_secs(10);
const REPORTS_PER_TTL: u32 = 3;
const REPORT_EVERY_MIN: Duration = Duration::from_secs(1);

/// After how long without an answer to a report the store counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// The task that says so. It ends with this.
pub(super) struct Reporter {
    queue: Arc<dyn Queue>,
    clock: Arc<dyn Clock>,
    worker: Uuid,
    running: watch::Sender<usize>,
    pulse: Arc<Mutex<Pulse>>,
    task: JoinHandle<()>,
}

/// How reports do, in elapsed time.
#[derive(Debug, Default)]
struct Pulse {
    /// When the report was made that is not answered yet.
    asked_at: Option<Duration>,
    /// Until when others are to be left time, after one that was answered late or not at all.
    late_until: Option<Duration>,
}

impl Pulse {
    /// Takes note that the report was answered, or given up.
    fn ended(&mut self, answered: Answered, now: Duration) {
        let took = self.asked_at.take().map_or(Duration::ZERO, |asked_at| now.saturating_sub(asked_at));
        if answered == Answered::No || took > AWAY_AFTER {
            self.late_until = Some(now.saturating_add(RENEWED_WAIT));
        }
    }

    fn is_held_up(&self, now: Duration) -> bool {
        self.asked_at.is_some_and(|asked_at| now.saturating_sub(asked_at) > AWAY_AFTER)
            || self.late_until.is_some_and(|until| now < until)
    }
}

/// Whether a report was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Yes,
    No,
}

impl Reporter {
    pub(super) fn begin(
        queue: Arc<dyn Queue>,
        clock: Arc<dyn Clock>,
        worker: Uuid,
        options: &WorkerOptions,
        ttl: Duration,
    ) -> Self {
        let (running, is_running) = watch::channel(0);
        let report = WorkerReport {
            id: worker,
            name: options.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            queues: options.queues.clone(),
            concurrency: small(options.concurrency),
            running: 0,
        };
        let every = (ttl / REPORTS_PER_TTL).clamp(REPORT_EVERY_MIN, REPORT_EVERY);
        let pulse = Arc::default();
        let telling = Telling {
            queue: Arc::clone(&queue),
            clock: Arc::clone(&clock),
            pulse: Arc::clone(&pulse),
            report,
            running: is_running,
        };
        let task = tokio::spawn(telling.tell(every));
        Self { queue, clock, worker, running, pulse, task }
    }

    /// Takes note of how many executions are advanced, to be said the next time.
    pub(super) fn is_running(&self, count: usize) {
        self.running.send_replace(count);
    }

    /// Tells whether the store is away, or was until just now: leases may have run out then whose holders live, and who
    /// claims would take them away.
    pub(super) fn is_held_up(&self) -> bool {
        lock(&self.pulse).is_held_up(self.clock.elapsed())
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

struct Telling {
    queue: Arc<dyn Queue>,
    clock: Arc<dyn Clock>,
    pulse: Arc<Mutex<Pulse>>,
    report: WorkerReport,
    running: watch::Receiver<usize>,
}

impl Telling {
    async fn tell(mut self, every: Duration) {
        let mut due = tokio::time::interval(every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            self.report.running = small(*self.running.borrow());
            lock(&self.pulse).asked_at = Some(self.clock.elapsed());
            let reported = self.queue.report(&self.report).await;
            let answered = if reported.is_ok() { Answered::Yes } else { Answered::No };
            lock(&self.pulse).ended(answered, self.clock.elapsed());
            // That the store does not answer is told by whoever claims.
            if let Err(error) = reported {
                tracing::debug!(%error, "the worker could not be reported");
            }
        }
    }
}

fn lock(pulse: &Mutex<Pulse>) -> MutexGuard<'_, Pulse> {
    pulse.lock().unwrap_or_else(PoisonError::into_inner)
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_report_that_is_answered_at_once_holds_nothing_up() {
        let mut pulse = Pulse { asked_at: Some(SECOND), late_until: None };
        assert!(!pulse.is_held_up(SECOND + AWAY_AFTER));
        pulse.ended(Answered::Yes, SECOND + AWAY_AFTER);
        assert!(!pulse.is_held_up(SECOND + AWAY_AFTER));
    }

    #[test]
    fn a_store_that_was_away_holds_up_until_others_had_time_to_renew_their_leases() {
        for (answered, took) in [(Answered::Yes, AWAY_AFTER + SECOND), (Answered::No, SECOND / 2)] {
            let mut pulse = Pulse { asked_at: Some(SECOND), late_until: None };
            let now = SECOND + took;
            assert_eq!(pulse.is_held_up(now), took > AWAY_AFTER, "{answered:?}");
            pulse.ended(answered, now);
            assert!(pulse.is_held_up(now + RENEWED_WAIT - SECOND), "{answered:?}");
            assert!(!pulse.is_held_up(now + RENEWED_WAIT), "{answered:?}");
        }
    }
}
