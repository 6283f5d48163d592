//! Commits that wait at the same time share one statement, one round trip and one flush of the server's log.
//!
//! ```text
//! callers --write--> waiting ==batch==> server        while a batch is on its way, the next one gathers
//! callers <--outcome------------------- server
//! ```
//!
//! Of each execution there is at most one write on its way. What is refused is left out by the statement itself, and does
//! not disturb the others.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::db::Db;
use super::fault;
use super::write::{self, Write};
use crate::store::{Stats, StoreError};
use crate::telemetry::BATCH_SIZE;

/// Writes that may wait; whoever brings another waits for room.
const QUEUE_MAX: usize = 1_024;

/// Writes that share one statement at most.
const BATCH_MAX: usize = 128;

/// Bytes of bodies behind which a batch takes no more.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Batches that are on their way at the same time, each on its own connection.
const FLIGHTS_MAX: usize = 2;

/// How often a write is tried that the server gave up for others' sake.
const ATTEMPTS_MAX: usize = 5;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is durable.
    Done,
    /// The execution is not as the writer thought. Nothing was written.
    Refused,
}

/// Gathers writes into batches.
#[derive(Debug)]
pub(super) struct Batcher {
    db: Db,
    room: Arc<Semaphore>,
    gathering: Mutex<Gathering>,
    writes: AtomicU64,
    transactions: AtomicU64,
}

#[derive(Debug, Default)]
struct Gathering {
    waiting: VecDeque<Job>,
    /// The executions that have a write on its way.
    busy: HashSet<i64>,
    flights: usize,
}

/// A write that waits, and whoever waits for it.
#[derive(Debug)]
struct Job {
    write: Write,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
    _room: OwnedSemaphorePermit,
}

impl Batcher {
    pub(super) fn new(db: Db) -> Self {
        Self {
            db,
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            gathering: Mutex::default(),
            writes: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
        }
    }

    /// Sends a write with those that wait. Where this fails with [`StoreError::Io`] or [`StoreError::Closed`], nobody
    /// knows whether it was done.
    ///
    /// Where this is dropped, the write is done or not, but never in part.
    pub(super) async fn submit(self: &Arc<Self>, write: Write) -> Result<Outcome, StoreError> {
        let closed = || StoreError::Closed { location: self.db.location().to_owned() };
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        {
            let mut gathering = self.lock();
            gathering.waiting.push_back(Job { write, reply, _room: room });
            if gathering.flights < FLIGHTS_MAX {
                gathering.flights += 1;
                // A task of its own: whoever asks for a write may go away, and others wait for the same batch.
                tokio::spawn(Flight { batcher: Arc::clone(self), busy: Vec::new(), ended: false }.run());
            }
        }
        answer.await.map_err(|_| closed())?
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            writes: self.writes.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }

    /// Counts writes that shared a transaction.
    pub(super) fn count(&self, writes: usize) {
        self.writes.fetch_add(writes as u64, Ordering::Relaxed);
        self.transactions.fetch_add(1, Ordering::Relaxed);
        BATCH_SIZE.record(writes as f64, [("db.system.name", "postgresql".into())]);
    }

    fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends writes as one statement, or one by one where they are in each other's way.
    async fn send(&self, jobs: Vec<Job>) {
        let (writes, replies): (Vec<Write>, Vec<_>) =
            jobs.into_iter().map(|job| (job.write, (job.reply, job._room))).unzip();
        let outcomes = match write::commit(&self.db, &writes).await {
            Ok(done) => {
                self.count(writes.len());
                writes.iter().map(|write| Ok(outcome(write, &done))).collect()
            }
            Err(error) if writes.len() > 1 && fault::is_of_one(&error) => self.one_by_one(&writes).await,
            Err(error) if fault::is_passing(&error) => self.one_by_one(&writes).await,
            Err(error) => vec![Err(error); writes.len()],
        };
        for ((reply, _room), outcome) in replies.into_iter().zip(outcomes) {
            // Whoever asked for it may have gone away.
            drop(reply.send(outcome));
        }
    }

    async fn one_by_one(&self, writes: &[Write]) -> Vec<Result<Outcome, StoreError>> {
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            outcomes.push(self.alone(write).await);
        }
        outcomes
    }

    async fn alone(&self, write: &Write) -> Result<Outcome, StoreError> {
        for _ in 1..ATTEMPTS_MAX {
            match write::commit(&self.db, std::slice::from_ref(write)).await {
                Err(error) if fault::is_passing(&error) => {}
                done => {
                    self.count(1);
                    return done.map(|done| outcome(write, &done));
                }
            }
        }
        write::commit(&self.db, std::slice::from_ref(write)).await.map(|done| outcome(write, &done))
    }
}

fn outcome(write: &Write, done: &HashSet<i64>) -> Outcome {
    match done.contains(&write.key()) {
        true => Outcome::Done,
        false => Outcome::Refused,
    }
}

/// A task that sends batches as long as writes wait.
struct Flight {
    batcher: Arc<Batcher>,
    /// The executions of the batch that is on its way.
    busy: Vec<i64>,
    ended: bool,
}

impl Flight {
    async fn run(mut self) {
        while let Some(jobs) = self.next() {
            self.batcher.send(jobs).await;
        }
    }

    /// Takes the next batch: those that have waited longest, and one of each execution.
    fn next(&mut self) -> Option<Vec<Job>> {
        let mut gathering = self.batcher.lock();
        let Gathering { waiting, busy, flights } = &mut *gathering;
        for key in self.busy.drain(..) {
            busy.remove(&key);
        }
        let mut jobs: Vec<Job> = Vec::new();
        let mut later = VecDeque::new();
        let mut bytes = 0;
        while let Some(job) = waiting.pop_front() {
            if job.reply.is_closed() {
                continue;
            }
            if jobs.len() == BATCH_MAX || bytes >= BATCH_BYTES_MAX {
                later.push_back(job);
                break;
            }
            if busy.insert(job.write.key()) {
                self.busy.push(job.write.key());
                bytes += job.write.bytes();
                jobs.push(job);
            } else {
                later.push_back(job);
            }
        }
        later.append(waiting);
        *waiting = later;
        if jobs.is_empty() {
            *flights -= 1;
            self.ended = true;
            return None;
        }
        // The server locks rows in the order that it is given them.
        jobs.sort_by_key(|job| job.write.key());
        Some(jobs)
    }
}

impl Drop for Flight {
    /// A runtime that stops takes its tasks with it. Whoever waits is told, and tries again where there is another.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut gathering = self.batcher.lock();
        for key in self.busy.drain(..) {
            gathering.busy.remove(&key);
        }
        gathering.flights -= 1;
        gathering.waiting.clear();
    }
}
