//! What can go wrong in a store, by what the caller can do about it.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Position, Seq};
use crate::execution::{ExecutionId, Unstorable};

/// A cause from below: the driver, the operating system.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such execution.
    #[error("no execution {0}")]
    NoExecution(ExecutionId),

    /// The point lies beyond the head, or is not a number any point has.
    #[error("execution {execution} has no point @{seq}: its head is @{head}")]
    NoPoint {
        /// The execution.
        execution: ExecutionId,
        /// The point asked for.
        seq: Seq,
        /// The newest point there is.
        head: Seq,
    },

    /// The point was there and has been pruned.
    #[error("point @{seq} of execution {execution} has been pruned")]
    Pruned {
        /// The execution.
        execution: ExecutionId,
        /// The point asked for.
        seq: Seq,
    },

    /// The position is not one of this store's feed. Begin at its start, or at what is new.
    #[error("position {position} is not one of this store: {why}")]
    ForeignPosition {
        /// The position.
        position: Position,
        /// How it shows.
        why: String,
    },

    /// Somebody else was first. Read the head again, then decide.
    #[error(transparent)]
    Conflict(#[from] Conflict),

    /// The value cannot be stored so that it comes back the same. Nothing was written.
    #[error("cannot store {path}: {why}")]
    Unstorable {
        /// Where the value stands, such as `vars.x[3].y` or `nodes.draft.output`.
        path: String,
        /// What is wrong with it.
        why: String,
    },

    /// A stored record is not what was written. Other records may be whole: `retake doctor` looks at all of them.
    #[error("{record} is damaged: {why}")]
    Corrupt {
        /// The record, by table and key.
        record: String,
        /// How it shows.
        why: String,
    },

    /// The store was written by a newer version.
    #[error("{location} has format {found}, and this version reads up to {supported}: use a newer retake")]
    NewerFormat {
        /// The store.
        location: String,
        /// Its format.
        found: u32,
        /// The newest format this version knows.
        supported: u32,
    },

    /// The store is encrypted, and the keys given do not open it; or it is not, and keys were given.
    #[error("{location} cannot be opened with the keys given: {why}")]
    Key {
        /// The store.
        location: String,
        /// What is wrong with them.
        why: String,
    },

    /// The location holds something that is not a store.
    #[error("{location} is not a retake store: {why}")]
    NotAStore {
        /// What was opened.
        location: String,
        /// How it shows.
        why: String,
    },

    /// There is no store at the location yet.
    #[error("no store at {location}")]
    Absent {
        /// Where it would be.
        location: String,
    },

    /// The server refuses, and will until somebody changes what it says: a permission, a setting, the address.
    #[error("{location}: {action} was refused")]
    Refused {
        /// The store.
        location: String,
        /// What was being done.
        action: &'static str,
        /// What the server said, or what is wrong with it.
        #[source]
        source: Source,
    },

    /// The disk, or the file's size limit, is full. Nothing of the commit was written; free space and try again.
    #[error("{location} is full")]
    Full {
        /// The store.
        location: String,
        /// What the system said.
        #[source]
        source: Source,
    },

    /// The store could not be read or written. The outcome of a save is unknown until it is read again.
    #[error("{location}: {action} failed")]
    Io {
        /// The store.
        location: String,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: Source,
    },

    /// The store has been closed, or its writer has stopped.
    #[error("{location} is closed")]
    Closed {
        /// The store.
        location: String,
    },
}

impl From<Unstorable> for StoreError {
    fn from(Unstorable { path, why }: Unstorable) -> Self {
        Self::Unstorable { path, why }
    }
}

/// Somebody else was first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// The head is not where the writer thought.
    #[error("the head of execution {execution} moved: expected @{expected}, found @{found}")]
    HeadMoved {
        /// The execution.
        execution: ExecutionId,
        /// The head that the writer built on.
        expected: Seq,
        /// The head there is.
        found: Seq,
    },

    /// Another process advances the execution.
    #[error("execution {execution} is being advanced by {owner} until {until}")]
    Leased {
        /// The execution.
        execution: ExecutionId,
        /// Who holds the lease.
        owner: String,
        /// When the lease ends unless it is renewed.
        until: DateTime<Utc>,
    },

    /// The writer's lease has passed to somebody else. Stop its nodes.
    #[error("the lease on execution {execution} was lost: it has fence {found}, ours was {ours}")]
    Fenced {
        /// The execution.
        execution: ExecutionId,
        /// The fence that the writer carried.
        ours: u64,
        /// The fence there is.
        found: u64,
    },

    /// Somebody has the store open, where it must be nobody else.
    #[error("{location} is open in another process")]
    InUse {
        /// The store.
        location: String,
    },

    /// The name belongs to another execution.
    #[error("the name `{0}` is taken")]
    NameTaken(String),

    /// The id belongs to another execution or checkpoint.
    #[error("the id {0} is taken")]
    IdTaken(uuid::Uuid),
}

impl StoreError {
    /// Returns what the driver or the system said, where an error is of theirs.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) fn below(&self) -> Option<&Source> {
        match self {
            Self::Refused { source, .. } | Self::Io { source, .. } | Self::Full { source, .. } => {
                Some(source)
            }
            Self::NoExecution(_)
            | Self::NoPoint { .. }
            | Self::Pruned { .. }
            | Self::ForeignPosition { .. }
            | Self::Conflict(_)
            | Self::Unstorable { .. }
            | Self::Corrupt { .. }
            | Self::NewerFormat { .. }
            | Self::Key { .. }
            | Self::NotAStore { .. }
            | Self::Absent { .. }
            | Self::Closed { .. } => None,
        }
    }

    /// Returns what kind of error it is, in a word that says nothing of what is stored: for telemetry.
    pub fn class(&self) -> &'static str {
        match self {
            Self::NoExecution(_) => "no_execution",
            Self::NoPoint { .. } => "no_point",
            Self::Pruned { .. } => "pruned",
            Self::ForeignPosition { .. } => "foreign_position",
            Self::Conflict(Conflict::HeadMoved { .. }) => "head_moved",
            Self::Conflict(Conflict::Leased { .. }) => "leased",
            Self::Conflict(Conflict::Fenced { .. }) => "fenced",
            Self::Conflict(Conflict::InUse { .. }) => "in_use",
            Self::Conflict(Conflict::NameTaken(_)) => "name_taken",
            Self::Conflict(Conflict::IdTaken(_)) => "id_taken",
            Self::Unstorable { .. } => "unstorable",
            Self::Corrupt { .. } => "corrupt",
            Self::NewerFormat { .. } => "newer_format",
            Self::Key { .. } => "key",
            Self::NotAStore { .. } => "not_a_store",
            Self::Absent { .. } => "absent",
            Self::Refused { .. } => "refused",
            Self::Full { .. } => "full",
            Self::Io { .. } => "io",
            Self::Closed { .. } => "closed",
        }
    }

    /// Tells whether the same call may succeed later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. }
            | Self::Io { .. }
            | Self::Conflict(Conflict::Leased { .. } | Conflict::InUse { .. }) => true,
            Self::NoExecution(_)
            | Self::NoPoint { .. }
            | Self::Pruned { .. }
            | Self::ForeignPosition { .. }
            | Self::Conflict(_)
            | Self::Unstorable { .. }
            | Self::Corrupt { .. }
            | Self::NewerFormat { .. }
            | Self::Key { .. }
            | Self::NotAStore { .. }
            | Self::Absent { .. }
            | Self::Refused { .. }
            | Self::Closed { .. } => false,
        }
    }
}
