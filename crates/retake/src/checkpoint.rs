//! When to checkpoint, what a checkpoint's storage must do, and the storage in memory.
//!
//! Deciding is pure: [`CheckpointPolicy`] is told what happened and answers whether a checkpoint is due. Keeping is the
//! business of a [`CheckpointStorage`]. No runtime and no driver is needed for either.
//!
//! ```
//! use retake::checkpoint::{CheckpointStorage, InMemoryCheckpointStorage};
//! use retake::execution::ExecutionContext;
//! use serde_json::json;
//!
//! let storage: Box<dyn CheckpointStorage> = Box::new(InMemoryCheckpointStorage::new());
//! let mut ctx = ExecutionContext::new(uuid::Uuid::new_v4());
//! ctx.set_variable("topic".into(), json!("otters"));
//! let id = storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint())?;
//!
//! let checkpoint = storage.load_latest_checkpoint(ctx.execution_id)?.expect("one was saved");
//! let resumed = ExecutionContext::resume_from_checkpoint(checkpoint, ctx.workflow_id);
//! assert_eq!(resumed, ctx);
//! assert_eq!(storage.list_checkpoints(ctx.execution_id)?[0].id, id);
//! # Ok::<(), retake::checkpoint::CheckpointError>(())
//! ```

mod config;
mod error;
mod memory;
mod policy;
mod storage;

pub use config::{CheckpointConfig, CheckpointFrequency, ConfigError};
pub use error::{CheckpointError, Source};
pub use memory::InMemoryCheckpointStorage;
pub use policy::{CheckpointPolicy, Due};
pub use storage::{CheckpointMetadata, CheckpointStorage};

/// Names a checkpoint: a time-ordered UUID (version 7).
pub type CheckpointId = uuid::Uuid;
