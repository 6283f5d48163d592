//! When to checkpoint, what a checkpoint's storage must do, and the storage in memory.

mod config;

pub use config::{CheckpointConfig, CheckpointFrequency, ConfigError};

/// Names a checkpoint: a time-ordered UUID (version 7).
pub type CheckpointId = uuid::Uuid;
