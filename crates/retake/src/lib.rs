//! Retake checkpoints, resumes and rolls back workflow executions.

pub mod checkpoint;
pub mod clock;
pub mod execution;
#[cfg(feature = "store")]
pub mod store;
