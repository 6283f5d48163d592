//! The synchronous face of everything that keeps checkpoints. Implementations live elsewhere.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{CheckpointError, CheckpointId};
use crate::execution::{ExecutionCheckpoint, ExecutionId, WorkflowId};

/// Keeps the checkpoints of executions.
///
/// Every method blocks until it is done, and can be called from any thread, one inside an async runtime included. The
/// order of an execution's checkpoints is the order in which they were saved, never that of their clocks. An execution
/// that was never saved simply has no checkpoints.
pub trait CheckpointStorage: Send + Sync {
    /// Saves a checkpoint as the newest of an execution and returns its id.
    ///
    /// Atomic: after an error nothing is kept, and once the id is returned the checkpoint is as durable as the storage
    /// ever makes it. Not idempotent: saving the same checkpoint twice keeps two.
    ///
    /// `execution_id` names the history that the checkpoint joins. It may differ from the checkpoint's own
    /// `execution_id`, as when a state is handed on to a new execution; the checkpoint comes back with its own.
    ///
    /// # Errors
    /// [`CheckpointError::SerializationError`] or [`CheckpointError::StorageError`].
    fn save_checkpoint(
        &self,
        execution_id: ExecutionId,
        checkpoint: &ExecutionCheckpoint,
    ) -> Result<CheckpointId, CheckpointError>;

    /// Returns the checkpoint of an execution that was saved last.
    ///
    /// # Errors
    /// As [`load_checkpoint`](Self::load_checkpoint).
    fn load_latest_checkpoint(
        &self,
        execution_id: ExecutionId,
    ) -> Result<Option<ExecutionCheckpoint>, CheckpointError>;

    /// Returns one checkpoint, or `None` where no such checkpoint is kept.
    ///
    /// # Errors
    /// [`CheckpointError::StorageError`], or [`CheckpointError::InvalidData`] and
    /// [`CheckpointError::DecompressionError`] where it is kept and cannot be read.
    fn load_checkpoint(
        &self,
        checkpoint_id: CheckpointId,
    ) -> Result<Option<ExecutionCheckpoint>, CheckpointError>;

    /// Returns what is known of an execution's checkpoints, the one saved last first. Costs that execution's
    /// checkpoints, however many others are kept.
    ///
    /// # Errors
    /// [`CheckpointError::StorageError`].
    fn list_checkpoints(&self, execution_id: ExecutionId)
    -> Result<Vec<CheckpointMetadata>, CheckpointError>;

    /// Removes an execution's checkpoints but for the `keep_count` that were saved last, and returns how many went.
    /// Atomic, and idempotent.
    ///
    /// # Errors
    /// [`CheckpointError::StorageError`]; nothing was removed.
    fn prune_checkpoints(
        &self,
        execution_id: ExecutionId,
        keep_count: usize,
    ) -> Result<usize, CheckpointError>;

    /// Removes all checkpoints of an execution, and returns how many went. Atomic, and idempotent.
    ///
    /// # Errors
    /// [`CheckpointError::StorageError`]; nothing was removed.
    fn delete_checkpoints(&self, execution_id: ExecutionId) -> Result<usize, CheckpointError>;
}

/// What is known of a checkpoint without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckpointMetadata {
    /// The checkpoint.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub id: CheckpointId,
    /// The execution whose history it is in.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub execution_id: ExecutionId,
    /// The workflow that the checkpoint belongs to.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub workflow_id: WorkflowId,
    /// When it was made. Order is decided by the history, never by this.
    pub created_at: DateTime<Utc>,
    /// How many nodes it knows to be done with.
    pub completed_node_count: usize,
    /// Bytes that it takes when encoded.
    pub size_bytes: usize,
    /// Whether it is compressed.
    pub compressed: bool,
}
