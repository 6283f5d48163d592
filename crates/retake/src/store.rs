//! Where histories are kept: the [`Store`] trait, and the stores.
//!
//! A history is append-only. A commit appends one checkpoint, and moves the head to it, in one atomic, durable step;
//! it is refused where the head is not where the writer thought, or the writer's lease has passed to somebody else.
//! Rollback, undo, edit and fork are commits too, whose parent is another point than the head. A point's *parent* is
//! what precedes it on the time line, and its *base* what its delta starts from; for most the two are one. Only
//! [`prune`](Store::prune) and [`delete`](Store::delete) remove.

mod blocking;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "testkit"))]
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    expect(dead_code, reason = "only a driver packs")
)]
pub(crate) mod body;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod column;
mod delta;
#[cfg(feature = "sqlite")]
mod encryption;
mod error;
mod feed;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod hash;
mod history;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod link;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod load;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
pub(crate) mod process;
mod queue;
mod record;
mod repair;
mod sharing;
#[cfg(feature = "sqlite")]
mod sqlite;
mod state;
mod transfer;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod unravelling;
mod value;

use std::time::Duration;

use uuid::Uuid;

pub use blocking::BlockingStore;
pub use delta::{Delta, Entry, Image, Key, KeyChange, MESSAGE_PACK, Op, Piece};
#[cfg(feature = "sqlite")]
pub use encryption::{KeyError, MasterKey};
pub use error::{Conflict, Source, StoreError};
pub use feed::{FEED_PAGE_MAX, Feed, FeedPage, FeedPoint, Position, PositionError, Since};
pub use history::{
    HISTORY_FILE_BYTES_MAX, HISTORY_FILE_VERSION, HISTORY_LINE_BYTES_MAX, History, HistoryFileError,
    HistoryPoint, KeptWorkflow,
};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOptions, PostgresStore};
pub use queue::{
    CLAIMS_MAX, Claim, Claimed, Limit, QUEUE_DEFAULT, QUEUE_NAME_BYTES_MAX, Queue, QueueDepth, REQUIRES_MAX,
    Settlement, StaleLease, Submitted, TIME_MAX, Ticket, TicketRecord, TicketStand, WORKER_FORGOTTEN_AFTER,
    WORKER_LOST_AFTER, WorkerRecord, WorkerReport, WorkerStand,
};
pub use record::{
    Ask, Cause, CheckpointRecord, Commit, ExecutionFilter, ExecutionRecord, HistoryPage, Lease,
    NewCheckpoint, NewExecution, NewOperation, NewWorkflow, Note, OperationRecord, Origin, Report, Request,
    Seq, Stats,
};
pub use repair::{HeadFate, RecordFate, Repair, RepairMode, RepairedExecution};
pub use sharing::context_sharing;
#[cfg(feature = "sqlite")]
pub use sqlite::{DamagedLog, FORMAT, Options, SqliteStore};
pub use state::{context, delta};
pub use transfer::{TransferError, TransferFate, TransferMode, Transferred, transfer};
pub use value::{DEPTH_MAX, VALUE_BYTES_MAX, decode, encode, hash};

use crate::checkpoint::CheckpointId;
use crate::execution::{ExecutionContext, ExecutionId, WorkflowId};

/// A place that keeps histories: the minimum that every store must do.
///
/// Every method may be called from many tasks at once. Dropping the future of a write leaves the store as it was or as
/// the write makes it, never between; read the head to learn which. Conveniences live in [`StoreExt`].
#[async_trait::async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Creates an execution with its first checkpoint, `@1`. Returns when both are durable.
    ///
    /// The first checkpoint's delta starts from nothing, or from the origin's point, whose storage it then shares. A fork
    /// names its own workflow, which may be another than its origin's.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`] and [`Conflict::IdTaken`]; [`StoreError::NoExecution`], [`StoreError::NoPoint`] and
    /// [`StoreError::Pruned`] for the origin; [`StoreError::NoPoint`] where the checkpoint names a parent or a base.
    async fn create(&self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError>;

    /// Appends a checkpoint and moves the head to it. Returns when it is durable.
    ///
    /// Where the checkpoint names a workflow, its definition is kept and the execution runs it, in the same step.
    ///
    /// Costs the delta, not the state and not the history. Commits that wait at the same time share one durable write,
    /// and one that is refused does not disturb the others.
    ///
    /// # Errors
    /// [`Conflict::HeadMoved`], [`Conflict::Fenced`], [`Conflict::Leased`] (an unfenced commit while somebody holds the
    /// lease), [`Conflict::IdTaken`]; [`StoreError::NoExecution`], [`StoreError::NoPoint`] and [`StoreError::Pruned`]
    /// for the parent and the base. A delta that does not fit its base may be found here, as [`StoreError::Corrupt`], or
    /// by whoever reads the state.
    async fn commit(&self, commit: Commit) -> Result<CheckpointRecord, StoreError>;

    /// Returns an execution's record, or `None` where there is none.
    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError>;

    /// Returns the executions that pass the filter, newest first (by creation, then by id).
    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError>;

    /// Returns the definition that a workflow came with, at a creation or a commit: the first that was not empty, or
    /// `None` where there is none.
    ///
    /// It stays as long as there is an execution that ever ran the workflow, though that may run another by now, and the
    /// points of the time may be pruned. After that, [`compact`](Store::compact) removes it.
    async fn workflow(&self, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns a page of an execution's history, newest first. Empty for an unknown execution.
    ///
    /// Costs the page, not the history and not the other executions.
    async fn history(&self, id: ExecutionId, page: HistoryPage) -> Result<Vec<CheckpointRecord>, StoreError>;

    /// Returns a page of the points of all executions, or of one, in the order in which they became durable.
    ///
    /// Points of one execution come in the order of their numbers; imported ones come when they were imported. A reader
    /// that goes on behind a position sees every point that became durable later, and none twice. Points that have been
    /// pruned, and those of executions that have been deleted, are not there; their positions can be gone on from.
    ///
    /// Where many write at once, a point may be shown a moment after its commit has returned: when it is certain that none
    /// will stand before it. Costs the page, not the store.
    ///
    /// # Errors
    /// [`StoreError::ForeignPosition`] for a position that is not one of this store.
    async fn feed(&self, page: FeedPage) -> Result<Feed, StoreError>;

    /// Returns a checkpoint's record, or `None` where there is none or it has been pruned.
    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointRecord>, StoreError>;

    /// Returns the whole state at a point. Costs the state, not the history, whatever the point.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`], [`StoreError::NoPoint`], [`StoreError::Pruned`].
    async fn state(&self, id: ExecutionId, seq: Seq) -> Result<Image, StoreError>;

    /// Returns an execution's operation log, newest first. Pruning leaves it whole.
    async fn operations(&self, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError>;

    /// Writes an operation that makes no checkpoint into the log. Returns when it is durable.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`].
    async fn note(&self, id: ExecutionId, note: Note) -> Result<OperationRecord, StoreError>;

    /// Returns an execution with its whole history, as one consistent view, to be put into another store.
    ///
    /// Costs what changed, and the state once: also where the points that others build on have been pruned, or belong to
    /// the origin of a fork.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`].
    async fn export(&self, id: ExecutionId) -> Result<History, StoreError>;

    /// Puts an execution here that was exported elsewhere: its points with their numbers, ids, times, parents and labels,
    /// its operations and its workflows. Nobody holds its lease, and its first one has fence 1. Returns when all of it is
    /// durable; where it fails, there is nothing of it.
    ///
    /// A workflow that is here already keeps its definition.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] where it is no whole history (see [`History::states`]), [`Conflict::IdTaken`] and
    /// [`Conflict::NameTaken`].
    async fn import(&self, history: History) -> Result<(), StoreError>;

    /// Removes all checkpoints but the newest `keep` (at least the head), and those with a label. Returns how many
    /// went; 0 for an unknown execution.
    ///
    /// The states of those that stay can be read as before. Space is given back when it is worth the work; at once with
    /// [`compact`](Store::compact).
    async fn prune(&self, id: ExecutionId, keep: usize) -> Result<usize, StoreError>;

    /// Removes an execution with its whole history. Returns how many checkpoints went; 0 for an unknown execution.
    ///
    /// Forks of it stay whole.
    ///
    /// # Errors
    /// [`Conflict::Leased`] while somebody advances it.
    async fn delete(&self, id: ExecutionId) -> Result<usize, StoreError>;

    /// Takes the exclusive right to advance an execution, for `ttl` unless it is renewed.
    ///
    /// A lease whose time is up can be taken by anybody, and so can one whose process has died, where the store can
    /// tell. Until somebody does, its holder may still commit and renew. The fence is larger than every fence before it.
    ///
    /// # Errors
    /// [`Conflict::Leased`] while somebody else holds it, [`StoreError::NoExecution`].
    async fn lease(&self, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError>;

    /// Makes a lease last for its `ttl` from now on.
    ///
    /// # Errors
    /// [`Conflict::Fenced`] where it has passed to somebody else.
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Gives a lease back. One that has passed to somebody else is left alone.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Asks something of whoever holds the lease; it is answered by a commit that names the request.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`]; [`StoreError::Unstorable`] for what comes with it.
    async fn ask(&self, id: ExecutionId, request: Request) -> Result<(), StoreError>;

    /// Returns what has been asked of whoever holds the lease and not answered yet, oldest first. Only reads.
    async fn requests(&self, id: ExecutionId) -> Result<Vec<Request>, StoreError>;

    /// Takes a request back. Returns false where it has been answered already, or was never asked.
    async fn withdraw(&self, id: ExecutionId, request: Uuid) -> Result<bool, StoreError>;

    /// Reads and verifies every record. Damage is reported, not returned as an error.
    async fn check(&self) -> Result<Report, StoreError>;

    /// Gives back the space of what has been pruned and deleted, and of definitions that nobody needs any more.
    async fn compact(&self) -> Result<(), StoreError>;
}

/// Conveniences over any [`Store`].
#[async_trait::async_trait]
pub trait StoreExt: Store {
    /// Returns an execution's record.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`].
    async fn require(&self, id: ExecutionId) -> Result<ExecutionRecord, StoreError> {
        self.execution(id).await?.ok_or(StoreError::NoExecution(id))
    }

    /// Returns the newest point of an execution's history, if it has any.
    ///
    /// # Errors
    /// Those of [`Store::history`].
    async fn newest(&self, id: ExecutionId) -> Result<Option<CheckpointRecord>, StoreError> {
        Ok(self.history(id, HistoryPage { before: None, limit: Some(1) }).await?.pop())
    }

    /// Returns the context at a point.
    ///
    /// # Errors
    /// Those of [`Store::state`].
    async fn context(&self, id: ExecutionId, seq: Seq) -> Result<ExecutionContext, StoreError> {
        context(id, &self.state(id, seq).await?)
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
