//! When to checkpoint, and how much to keep.

use serde::{Deserialize, Serialize};

/// When an execution is checkpointed, how many checkpoints it keeps, and whether they are compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct CheckpointConfig {
    /// Whether checkpoints are made by themselves. The start, the end and every operation of a person are recorded
    /// all the same.
    pub enabled: bool,
    /// When they are made.
    pub frequency: CheckpointFrequency,
    /// How many an execution keeps, newest first. Labelled ones stay beyond it.
    pub max_checkpoints: usize,
    /// A checkpoint is made at once after a node that ran longer than this many milliseconds, whatever the frequency.
    pub auto_checkpoint_threshold_ms: Option<u64>,
    /// Whether what is stored is compressed (zstd), where that makes it smaller.
    pub compress: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            frequency: CheckpointFrequency::EveryNNodes(5),
            max_checkpoints: 10,
            auto_checkpoint_threshold_ms: Some(60_000),
            compress: false,
        }
    }
}

/// What makes a checkpoint due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CheckpointFrequency {
    /// So many nodes finished since the last one, counted node by node.
    EveryNNodes(usize),
    /// So many seconds passed since the last one.
    TimeInterval(u64),
    /// A node of one of these kinds is about to start.
    BeforeNodeTypes(Vec<String>),
    /// Only a person's request, and the threshold for long nodes where one is set.
    Manual,
    /// Every finished node.
    Always,
}

/// A configuration that no run can follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `EveryNNodes(0)`.
    #[error("a checkpoint every 0 nodes cannot be made: use 1 or more, or `manual` for none")]
    EveryZeroNodes,
    /// `TimeInterval(0)`.
    #[error("a checkpoint every 0 seconds cannot be made: use 1 or more, or `always` for every node")]
    EveryZeroSeconds,
    /// `BeforeNodeTypes` without a type.
    #[error("a checkpoint before no kind of node is never made: name a kind, or use `manual`")]
    BeforeNothing,
    /// `max_checkpoints` of 0.
    #[error("keeping 0 checkpoints would lose the one just made: keep 1 or more")]
    KeepNone,
}

impl CheckpointConfig {
    /// Says whether a run can follow this configuration. Called where a run is configured.
    ///
    /// # Errors
    /// A [`ConfigError`] that names what cannot be followed and what to write instead.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match &self.frequency {
            CheckpointFrequency::EveryNNodes(0) => Err(ConfigError::EveryZeroNodes),
            CheckpointFrequency::TimeInterval(0) => Err(ConfigError::EveryZeroSeconds),
            CheckpointFrequency::BeforeNodeTypes(types) if types.is_empty() => {
                Err(ConfigError::BeforeNothing)
            }
            CheckpointFrequency::EveryNNodes(_)
            | CheckpointFrequency::TimeInterval(_)
            | CheckpointFrequency::BeforeNodeTypes(_)
            | CheckpointFrequency::Manual
            | CheckpointFrequency::Always => {
                if self.max_checkpoints == 0 {
                    Err(ConfigError::KeepNone)
                } else {
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(frequency: CheckpointFrequency) -> CheckpointConfig {
        CheckpointConfig { frequency, ..CheckpointConfig::default() }
    }

    #[test]
    fn a_frequency_of_zero_is_refused() {
        assert_eq!(with(CheckpointFrequency::EveryNNodes(0)).validate(), Err(ConfigError::EveryZeroNodes));
        assert_eq!(with(CheckpointFrequency::TimeInterval(0)).validate(), Err(ConfigError::EveryZeroSeconds));
        assert_eq!(
            with(CheckpointFrequency::BeforeNodeTypes(vec![])).validate(),
            Err(ConfigError::BeforeNothing)
        );
        assert_eq!(
            CheckpointConfig { max_checkpoints: 0, ..CheckpointConfig::default() }.validate(),
            Err(ConfigError::KeepNone)
        );
        assert_eq!(CheckpointConfig::default().validate(), Ok(()));
    }
}
