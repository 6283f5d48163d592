//! Retake checkpoints, resumes and rolls back workflow executions.

pub mod checkpoint;
pub mod clock;
#[cfg(feature = "engine")]
pub mod engine;
pub mod execution;
pub mod rollback;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "store")]
pub mod telemetry;
#[cfg(feature = "testkit")]
pub mod testkit;
#[cfg(feature = "engine")]
pub mod workflow;

pub use checkpoint::{
    CheckpointConfig, CheckpointError, CheckpointFrequency, CheckpointId, CheckpointMetadata,
    CheckpointStorage, InMemoryCheckpointStorage,
};
pub use execution::{
    ExecutionCheckpoint, ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, NodeExecutionResult,
    NodeId, NodeMetrics, TokenUsage, WorkflowId,
};
pub use rollback::{ExecutionSnapshot, RollbackManager, RollbackResult, RollbackSummary, SnapshotMetadata};
