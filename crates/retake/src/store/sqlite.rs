//! The default store: one SQLite file, for one machine.
//!
//! ```text
//! callers --jobs--> writer --commits--> file <--reads-- readers <--reads-- callers
//!                     ^  `--tasks--> keeper --keyframes, log--^
//!                     `-----keyframes--'
//! ```
//!
//! One thread writes, and what waits at the same time shares one transaction; readers have their own connections; the
//! keeper does what no save must wait for. Several processes may have the same file open. Nothing here needs an
//! asynchronous runtime.

mod access;
mod chain;
mod check;
mod commit;
mod db;
mod feed;
mod guard;
mod keeper;
mod lease;
mod link;
mod log;
mod migration;
mod moving;
mod owner;
mod presence;
mod prune;
mod query;
mod reader;
mod repair;
mod row;
mod schema;
mod workflow;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub use schema::FORMAT;

use self::access::Access;
use self::commit::{Encoded, EncodedCommit};
use self::db::Db;
use self::guard::Guard;
use self::keeper::{Keeper, Task};
use self::owner::Owner;
use self::presence::Presence;
use self::schema::Missing;
use self::writer::{Aftermath, Job, Log, Outstanding, Writer};
use super::{
    CheckpointRecord, Commit, ExecutionFilter, ExecutionRecord, Feed, FeedPage, History, HistoryPage, Image,
    Lease, MasterKey, NewCheckpoint, NewExecution, NewOperation, Note, OperationRecord, Repair, RepairMode,
    Report, Request, Seq, Stats, Store, StoreError, body,
};
use crate::checkpoint::CheckpointId;
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionId, WorkflowId};
use crate::telemetry::BATCH_SIZE;

/// How to open a [`SqliteStore`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides when leases end.
    pub clock: Arc<dyn Clock>,
    /// How many reads run at the same time; at least 1.
    pub readers_max: usize,
    /// Master keys of an encrypted store. Without any, a new store is not encrypted. The first seals a new store's own
    /// keys, the others only open.
    pub keys: Vec<MasterKey>,
    /// What to do about a write-ahead log that is damaged in the middle.
    pub damaged_log: DamagedLog,
}

/// What to do about a write-ahead log in the middle of which a piece is not what was written, so that the commits behind
/// it cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DamagedLog {
    /// Do not open the store, and leave its files as they are.
    #[default]
    Refuse,
    /// Go on without these commits: the store is as it was before the first of them.
    Cut,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            readers_max: 2,
            keys: Vec::new(),
            damaged_log: DamagedLog::Refuse,
        }
    }
}

/// Keeps histories in one SQLite file, which the `sqlite3` tool can open as well.
///
/// Dropping it finishes the writes that wait, and lets go of its leases. It takes as many threads as there are readers,
/// and two more.
///
/// ```
/// use retake::store::{ExecutionFilter, SqliteStore, Store};
///
/// # let directory = tempfile::tempdir().unwrap();
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = SqliteStore::open(directory.path().join("retake.db"))?;
/// assert!(store.executions(&ExecutionFilter::default()).await?.is_empty());
/// assert!(store.check().await?.problems.is_empty());
/// # Ok::<(), retake::store::StoreError>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct SqliteStore {
    shared: Arc<Shared>,
    /// Taken only when the store is dropped, as are the other two.
    writes: Option<mpsc::Sender<Job>>,
    reads: Option<mpsc::Sender<reader::Read>>,
    tasks: Option<blocking::SyncSender<Task>>,
    /// The writer and the keeper.
    threads: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
    /// Dropped last, when all threads have closed the file.
    _presence: Presence,
}

/// What the threads of a store share.
#[derive(Debug)]
struct Shared {
    path: Arc<Path>,
    guard: Arc<Guard>,
    access: Access,
    clock: Arc<dyn Clock>,
    owner: Owner,
    outstanding: Outstanding,
    writes: AtomicU64,
    transactions: AtomicU64,
}

impl Shared {
    fn count(&self, writes: usize) {
        self.writes.fetch_add(writes as u64, Ordering::Relaxed);
        self.transactions.fetch_add(1, Ordering::Relaxed);
        BATCH_SIZE.record(writes as f64, [("db.system.name", "sqlite".into())]);
    }
}

impl SqliteStore {
    /// Opens the store in a file, which is created with its directory where there is none.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::NewerFormat`], [`StoreError::Key`] where it is encrypted,
    /// [`StoreError::Corrupt`] where SQLite would drop acknowledged commits of a damaged log, and [`StoreError::Io`] where
    /// the file cannot be read and written. A file that is refused stays as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, Options::default())
    }

    /// Opens the store in a file, as [`open`](Self::open) does, with other options than the defaults.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        Self::start(path.as_ref(), options, Missing::Create)
    }

    /// Opens the store in a file that must be there.
    ///
    /// Where its directory is read-only, a store that was closed can be read, and every write fails. Nobody may write it
    /// by another way then.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and [`StoreError::Io`] where there is no file.
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_existing_with(path, Options::default())
    }

    /// Opens the store in a file that must be there, with other options than the defaults.
    ///
    /// # Errors
    /// Those of [`open_existing`](Self::open_existing).
    pub fn open_existing_with(path: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        Self::start(path.as_ref(), options, Missing::Refuse)
    }

    /// Gives an encrypted store another master key. Returns when that is durable.
    ///
    /// The store's own keys are wrapped anew, and what is written from then on is sealed with a new one; what was written
    /// before stays as it is. The costs are those of a small write. Other processes that have the store open go on, if
    /// they were given the new master key as well, as one of several.
    ///
    /// # Errors
    /// [`StoreError::Key`] where the store is not encrypted.
    pub async fn rotate_key(&self, to: &MasterKey) -> Result<(), StoreError> {
        let key = to.clone();
        self.write(move |db, _, _| guard::rotate(db, &key)).await?;
        let key = to.clone();
        self.read(move |db, _| guard::rotated(db, &key)).await
    }

    /// Tells whether what people wrote is sealed.
    pub fn is_encrypted(&self) -> bool {
        match *self.shared.guard {
            Guard::Checksums => false,
            Guard::Keys(_) => true,
        }
    }

    /// Reads all that can be read of a damaged store and, where that is asked for, puts it into a sound one in its place;
    /// the damaged file stays beside it. A sound store is left as it is.
    ///
    /// An execution keeps its intact points under their numbers. Where its head is lost, a new point
    /// ([`Cause::Repair`](super::Cause::Repair)) has the state of the newest intact one; what ran since runs again. Every
    /// execution that lost something says so in its operation log, under `by`.
    ///
    /// The sound store takes the damaged one's place by one rename, after it has been checked and synced: a crash leaves
    /// one or the other. Meanwhile nobody else can open the store. Costs the store, in time and in space beside it. Blocks.
    ///
    /// # Errors
    /// [`Conflict::InUse`](super::Conflict::InUse) while anybody has it open, [`Conflict::Leased`](super::Conflict::Leased);
    /// [`StoreError::NotAStore`] and [`StoreError::Corrupt`] where not even its tables, or the keyring of an encrypted one,
    /// can be read; [`StoreError::Key`]. Nothing has changed then.
    pub fn repair(
        path: impl AsRef<Path>,
        mode: RepairMode,
        by: &NewOperation,
        options: &Options,
    ) -> Result<Repair, StoreError> {
        let path = path.as_ref();
        // SQLite keeps the log beside the file itself, wherever links to it are.
        let file = std::fs::canonicalize(path).map_err(|error| StoreError::Io {
            location: path.display().to_string(),
            action: "resolving its path",
            source: Arc::new(error),
        })?;
        repair::repair(&file.into(), mode, by, options)
    }

    fn start(path: &Path, options: Options, missing: Missing) -> Result<Self, StoreError> {
        let failed = |action| {
            let location = path.display().to_string();
            move |error: std::io::Error| StoreError::Io { location, action, source: Arc::new(error) }
        };
        let absolute: Arc<Path> = std::path::absolute(path).map_err(failed("resolving its path"))?.into();
        let presence = schema::enter(&absolute, missing, options.damaged_log)?;
        let (db, access) = schema::prepare(&absolute, missing, &options.keys)?;
        let owner = Owner::new(options.clock.new_id(), &absolute);
        let shared = Arc::new(Shared {
            path: absolute,
            guard: Arc::clone(db.guard()),
            access,
            clock: options.clock,
            owner,
            outstanding: Outstanding::default(),
            writes: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
        });
        let (writes, write_queue) = mpsc::channel(writer::QUEUE_MAX);
        let (reads, read_queue) = mpsc::channel(reader::QUEUE_MAX);
        let (tasks, task_queue) = blocking::sync_channel(keeper::TASKS_MAX);
        let keeper = Keeper { shared: Arc::clone(&shared), tasks: task_queue, writer: writes.downgrade() };
        let log = if log::has_frames(&shared.path) { Log::Found } else { Log::Proven };
        let writer =
            Writer { db, log, shared: Arc::clone(&shared), queue: write_queue, keeper: tasks.clone() };
        let read_queue = Arc::new(Mutex::new(read_queue));

        let mut store = Self {
            shared,
            writes: Some(writes),
            reads: Some(reads),
            tasks: Some(tasks),
            threads: Vec::new(),
            readers: Vec::new(),
            _presence: presence,
        };
        let spawned = (|| {
            store.threads.push(spawn("retake-writer", || writer.run())?);
            store.threads.push(spawn("retake-keeper", || keeper.run())?);
            for _ in 0..options.readers_max.max(1) {
                let (shared, queue) = (Arc::clone(&store.shared), Arc::clone(&read_queue));
                store.readers.push(spawn("retake-reader", move || reader::run(&shared, &queue))?);
            }
            Ok(())
        })();
        spawned.map_err(failed("starting its threads"))?;
        Ok(store)
    }

    /// Returns the file that this store is in.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Returns how many writes shared how many transactions.
    pub fn stats(&self) -> Stats {
        Stats {
            writes: self.shared.writes.load(Ordering::Relaxed),
            transactions: self.shared.transactions.load(Ordering::Relaxed),
        }
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db, &Shared, &mut Aftermath) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let (work, result) = writer::job(move |db, after| work(db, &shared, after));
        let queue = self.writes.as_ref().ok_or_else(|| self.closed())?;
        queue.send(Job::Now(work)).await.map_err(|_| self.closed())?;
        result.await.map_err(|_| self.closed())?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db, &Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let (read, result) = reader::read(move |db| work(db, &shared));
        let queue = self.reads.as_ref().ok_or_else(|| self.closed())?;
        queue.send(read).await.map_err(|_| self.closed())?;
        result.await.map_err(|_| self.closed())?
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed { location: self.shared.path.display().to_string() }
    }
}

impl Drop for SqliteStore {
    /// Only the last connection to close moves the log into the file, and two that close at the same time each take
    /// the other for one that stays. So the readers go first, then the writer, and the keeper, which the writer holds
    /// on to, last.
    fn drop(&mut self) {
        self.reads = None;
        finish(&mut self.readers);
        (self.writes, self.tasks) = (None, None);
        finish(&mut self.threads);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

fn finish(threads: &mut Vec<JoinHandle<()>>) {
    for thread in threads.drain(..) {
        // A thread that panicked has said so; the others still end in order.
        drop(thread.join());
    }
}

#[async_trait::async_trait]
impl Store for SqliteStore {
    async fn create(&self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError> {
        let first = Encoded::new(&self.shared.guard, new.id, 1, first)?;
        self.write(move |db, _, after| commit::create(db, &new, &first, after)).await
    }

    async fn commit(&self, commit: Commit) -> Result<CheckpointRecord, StoreError> {
        let Commit { execution_id, expected_head, fence, checkpoint } = commit;
        let seq = expected_head.saturating_add(1);
        let checkpoint = Encoded::new(&self.shared.guard, execution_id, seq, checkpoint)?;
        let encoded = EncodedCommit { execution_id, expected_head, fence, checkpoint };
        self.write(move |db, shared, after| commit::commit(db, shared, &encoded, after)).await
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        self.read(move |db, shared| query::execution(db, shared, id)).await
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        let filter = filter.clone();
        self.read(move |db, shared| query::executions(db, shared, &filter)).await
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(move |db, _| workflow::definition(db, id)).await
    }

    async fn history(&self, id: ExecutionId, page: HistoryPage) -> Result<Vec<CheckpointRecord>, StoreError> {
        self.read(move |db, _| query::history(db, id, page)).await
    }

    async fn feed(&self, page: FeedPage) -> Result<Feed, StoreError> {
        self.read(move |db, _| feed::feed(db, page)).await
    }

    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointRecord>, StoreError> {
        self.read(move |db, _| query::checkpoint(db, id)).await
    }

    async fn state(&self, id: ExecutionId, seq: Seq) -> Result<Image, StoreError> {
        self.read(move |db, _| query::state(db, id, seq)).await
    }

    async fn operations(&self, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError> {
        self.read(move |db, _| query::operations(db, id)).await
    }

    async fn note(&self, id: ExecutionId, note: Note) -> Result<OperationRecord, StoreError> {
        self.write(move |db, _, _| commit::note(db, id, &note)).await
    }

    async fn export(&self, id: ExecutionId) -> Result<History, StoreError> {
        self.read(move |db, _| moving::export(db, id)).await
    }

    async fn import(&self, history: History) -> Result<(), StoreError> {
        let prepared = moving::Prepared::new(&self.shared.guard, history)?;
        self.write(move |db, _, after| moving::import(db, &prepared, after)).await
    }

    async fn prune(&self, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
        self.write(move |db, _, _| prune::prune(db, id, keep)).await
    }

    async fn delete(&self, id: ExecutionId) -> Result<usize, StoreError> {
        self.write(move |db, shared, _| prune::delete(db, shared, id)).await
    }

    async fn lease(&self, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError> {
        self.write(move |db, shared, _| lease::lease(db, shared, id, ttl)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write(move |db, shared, _| lease::renew(db, shared, &lease)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write(move |db, _, _| lease::release(db, &lease)).await
    }

    async fn ask(&self, id: ExecutionId, request: Request) -> Result<(), StoreError> {
        let request = request.checked()?;
        self.write(move |db, _, _| lease::ask(db, id, &request)).await
    }

    async fn requests(&self, id: ExecutionId) -> Result<Vec<Request>, StoreError> {
        self.read(move |db, _| lease::requests(db, id)).await
    }

    async fn withdraw(&self, id: ExecutionId, request: Uuid) -> Result<bool, StoreError> {
        self.write(move |db, _, _| lease::withdraw(db, id, request)).await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.read(|db, _| Ok(check::check(db))).await
    }

    async fn compact(&self) -> Result<(), StoreError> {
        self.write(|db, _, _| prune::compact(db)).await?;
        let (reply, done) = oneshot::channel();
        let tasks = self.tasks.as_ref().ok_or_else(|| self.closed())?;
        match tasks.try_send(Task::CutLog(reply)) {
            Ok(()) => done.await.map_err(|_| self.closed())?,
            // The keeper is busy with as much as it can hold; the log is cut when the store is closed.
            Err(blocking::TrySendError::Full(_)) => Ok(()),
            Err(blocking::TrySendError::Disconnected(_)) => Err(self.closed()),
        }
    }
}
