//! The one thread that writes: what waits at the same time shares one transaction, and one flush of the disk.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as blocking};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::chain;
use super::db::{self, Db, Renewed};
use super::keeper::Task;
use super::{Shared, schema};
use crate::store::StoreError;

/// Jobs that may wait for the writer; whoever brings another waits for room.
pub(super) const QUEUE_MAX: usize = 1_024;

/// Jobs that share one transaction at most.
const BATCH_MAX: usize = 512;

/// Jobs without hurry that may wait for a batch to go with.
const LATER_MAX: usize = 8;

/// What a job is assumed to add to the log beside its bodies: a few pages.
const JOB_LOG_BYTES: u64 = 32 * 1024;

/// How much the log may grow before the keeper moves it into the file.
const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How long others may be in the way where the log is to begin anew; they wait meanwhile.
const LOG_BUSY_MAX: Duration = Duration::from_millis(200);

/// What is to be done once a job is durable.
#[derive(Debug, Default)]
pub(super) struct Aftermath {
    /// Executions whose head wants a keyframe.
    pub(super) keyframes: Vec<i64>,
    /// Bytes of bodies that were written.
    pub(super) bytes: u64,
}

/// Work for the writer.
pub(super) enum Job {
    /// Somebody waits for it.
    Now(Work),
    /// It goes with the next batch.
    Later(Work),
}

/// Does the work on the connection, or passes on why there was none.
type Work = Box<dyn FnOnce(Result<&Db, StoreError>, Company) -> Ran + Send>;

/// Whether a job has the transaction to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// Where it fails, the transaction is abandoned.
    Alone,
    /// Where it fails, the others go on: it needs a savepoint.
    Others,
}

/// A job that ran, and whose transaction has yet to be committed.
pub(super) struct Ran {
    outcome: Result<Aftermath, StoreError>,
    /// Tells whoever waits, once it is known whether the transaction is durable.
    reply: Box<dyn FnOnce(Result<(), StoreError>)>,
}

/// Returns a job that does `work`, all of it or nothing, and where its result will arrive once that is durable.
pub(super) fn job<T: Send + 'static>(
    work: impl FnOnce(&Db, &mut Aftermath) -> Result<T, StoreError> + Send + 'static,
) -> (Work, oneshot::Receiver<Result<T, StoreError>>) {
    let (sender, receiver) = oneshot::channel();
    let run = move |db: Result<&Db, StoreError>, company: Company| -> Ran {
        let mut after = Aftermath::default();
        let result = db.and_then(|db| match company {
            Company::Alone => work(db, &mut after),
            Company::Others => db.nested(|| work(db, &mut after)),
        });
        let outcome = match &result {
            Ok(_) => Ok(after),
            Err(error) => Err(error.clone()),
        };
        let reply = move |durable: Result<(), StoreError>| {
            // Whoever waited may have gone.
            drop(sender.send(durable.and(result)));
        };
        Ran { outcome, reply: Box::new(reply) }
    };
    (Box::new(run), receiver)
}

/// Executions whose keyframe is on its way, so that none is made twice.
#[derive(Debug, Default)]
pub(super) struct Outstanding(Mutex<HashSet<i64>>);

impl Outstanding {
    fn set(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn done(&self, execution: i64) {
        self.set().remove(&execution);
    }
}

/// Whether what is committed may follow what the write-ahead log holds.
///
/// Where a flush fails, the system may drop what it could not write and take it for written, so that the next flush
/// succeeds and proves nothing. The commit was refused, but its frames may be in the memory of the machine, whole. Who
/// opens the log later would read them as a commit, and all that is acknowledged behind them is lost with the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// All of it was flushed.
    Proven,
    /// It was there when the store was opened: somebody else has the store open, or did not close it.
    Found,
    /// A write or a flush failed.
    Failed,
}

/// The writer's side of its queue.
pub(super) struct Writer {
    /// Closed before the keeper is let go of, which is thus the last to close.
    pub(super) db: Db,
    pub(super) log: Log,
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::Receiver<Job>,
    pub(super) keeper: blocking::SyncSender<Task>,
}

impl Writer {
    /// Works until the store is closed and the queue is empty.
    pub(super) fn run(mut self) {
        let mut later = Vec::new();
        let mut log_bytes = 0;
        while let Some(first) = self.queue.blocking_recv() {
            let mut now = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Now(work) => now.push(work),
                    Job::Later(work) => later.push(work),
                }
                next = if now.len() < BATCH_MAX { self.queue.try_recv().ok() } else { None };
            }
            if now.is_empty() && later.len() < LATER_MAX {
                continue;
            }
            now.append(&mut later);
            log_bytes += self.batch(now);
            if log_bytes > LOG_BYTES_MAX && self.keeper.try_send(Task::MoveLog).is_ok() {
                log_bytes = 0;
            }
        }
        self.batch(later);
        self.make_outstanding_keyframes();
    }

    /// Runs jobs in one transaction, and answers them. Returns about how many bytes that added to the log.
    fn batch(&mut self, jobs: Vec<Work>) -> u64 {
        if jobs.is_empty() {
            return 0;
        }
        let mut log_bytes = 0;
        let mut keyframes = Vec::new();
        let mut replies = Vec::with_capacity(jobs.len());
        let mut outcome =
            self.prove_log().and_then(|()| self.db.script_as("beginning to write", "BEGIN IMMEDIATE"));
        let company = if jobs.len() == 1 { Company::Alone } else { Company::Others };
        for job in jobs {
            let ran = job(outcome.as_ref().map(|()| &self.db).map_err(Clone::clone), company);
            self.judge_log(ran.outcome.as_ref().err());
            match ran.outcome {
                Ok(after) => {
                    log_bytes += after.bytes + JOB_LOG_BYTES;
                    keyframes.extend(after.keyframes);
                }
                // SQLite ended the transaction, and all jobs of the batch with it.
                Err(error) if outcome.is_ok() && self.db.is_idle() => outcome = Err(error),
                Err(_) if company == Company::Alone => self.db.abandon(),
                Err(_) => {}
            }
            replies.push(ran.reply);
        }
        let outcome = match outcome {
            Ok(()) if !self.db.is_idle() => self.db.script_as("committing", "COMMIT"),
            nothing_to_commit => nothing_to_commit,
        };
        self.judge_log(outcome.as_ref().err());
        self.db.abandon();
        if outcome.is_ok() {
            self.shared.count(replies.len());
            self.ask_for_keyframes(keyframes);
        }
        for reply in replies {
            reply(outcome.clone());
        }
        log_bytes
    }

    /// Makes sure that nothing which is acknowledged from now on follows what may never have reached the disk: what the
    /// log holds is moved into the file, which is flushed, and the log begins anew.
    fn prove_log(&mut self) -> Result<(), StoreError> {
        // SQLite knows more of the log than is on the disk where it failed, and may be stuck within a transaction.
        if self.log == Log::Failed || !self.db.is_idle() {
            self.db =
                schema::connect(&self.shared.path, self.shared.access, schema::BUSY_MAX, &self.shared.guard)?;
        }
        if self.log == Log::Proven {
            return Ok(());
        }
        self.db.busy_timeout(LOG_BUSY_MAX)?;
        let renewed = self.db.renew_log();
        self.db.busy_timeout(schema::BUSY_MAX)?;
        match (renewed?, self.log) {
            // Where others are in the way, they have had the store open, and have not failed.
            (Renewed::Wholly, _) | (Renewed::Busy, Log::Found) => {
                self.log = Log::Proven;
                Ok(())
            }
            (Renewed::Busy, Log::Failed | Log::Proven) => Err(StoreError::Io {
                location: self.db.location(),
                action: "beginning the log anew after a failure",
                source: Arc::new(std::io::Error::other("somebody reads the store for long")),
            }),
        }
    }

    /// Notes what a failure means for what the log holds.
    fn judge_log(&mut self, error: Option<&StoreError>) {
        if error.is_some_and(db::is_of_the_disk) {
            self.log = Log::Failed;
        }
    }

    fn ask_for_keyframes(&self, executions: Vec<i64>) {
        for execution in executions {
            let is_new = self.shared.outstanding.set().insert(execution);
            // Where the keeper is behind, the next commit asks again.
            if is_new && self.keeper.try_send(Task::Keyframe(execution)).is_err() {
                self.shared.outstanding.done(execution);
            }
        }
    }

    /// Makes what the keeper did not get round to, so that short-lived processes leave a store that reads fast.
    fn make_outstanding_keyframes(&mut self) {
        let executions: Vec<i64> = self.shared.outstanding.set().drain().collect();
        let jobs = executions.into_iter().map(|execution| -> Work {
            let (work, _) = job(move |db, _| match chain::due_keyframe(db, execution)? {
                Some(keyframe) => chain::insert_keyframe(db, execution, &keyframe),
                None => Ok(()),
            });
            work
        });
        self.batch(jobs.collect());
    }
}
