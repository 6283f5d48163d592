//! The parsed form of a workflow: plain data, immutable, without positions and without anything that runs.

mod input;
mod kind;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use input::{InputError, InputSpec, InputType, TypedError};
pub use kind::{Approval, Call, Http, Llm, Method, NodeKind, Price, Run, Wait};

use super::duration;
use crate::checkpoint::CheckpointConfig;
use crate::execution::WorkflowId;

/// How many nodes run at once where a definition does not say.
pub const MAX_PARALLEL_DEFAULT: usize = 4;

/// A workflow as it is stored. [`Workflow`](super::Workflow) is one that was checked.
///
/// What equals its default is left out of the stored form, so that a field added later changes no hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What the workflow is called.
    pub name: String,
    /// What an execution is given when it starts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, InputSpec>,
    /// The variables an execution starts with. They may hold expressions over `inputs` and `execution`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, Value>,
    /// When to checkpoint.
    #[serde(default)]
    pub checkpoints: CheckpointConfig,
    /// How many nodes run at once.
    #[serde(default = "max_parallel_default", skip_serializing_if = "is_max_parallel_default")]
    pub max_parallel: usize,
    /// The nodes, by id.
    pub nodes: BTreeMap<String, Node>,
}

/// One step of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// What it does.
    pub kind: NodeKind,
    /// The nodes it waits for, beside those that its expressions mention.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub needs: BTreeSet<String>,
    /// The condition without which it is skipped: one expression.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// The variable that its output is also written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// How often and how fast it is tried again.
    #[serde(default, skip_serializing_if = "Retry::is_default")]
    pub retry: Retry,
    /// How long one attempt may take.
    #[serde(default, with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What running it does to the world outside.
    pub effect: Effect,
    /// Its counter-action on the world outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensate: Option<Box<NodeKind>>,
    /// What its failure means for the execution.
    #[serde(default, skip_serializing_if = "OnError::is_default")]
    pub on_error: OnError,
}

impl Node {
    /// Tells whether a result of this node is one of the other too: they do the same, under the same condition, with
    /// what the same nodes give. How often and how long they are tried, and what their effect is called, is no part of
    /// that.
    pub fn gives_the_same_as(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.needs == other.needs
            && self.condition == other.condition
            && self.into == other.into
            && self.on_error == other.on_error
    }
}

/// What running a node does to the world outside, which decides what may be done after a crash.
///
/// A node that does not say is [`Pure`](Effect::Pure) if it is a `set`, `wait`, `approval` or `llm`, or an `http`
/// that only reads (`GET`, `HEAD`, `OPTIONS`); every other is [`Idempotent`](Effect::Idempotent).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing: it can be run again, or its output reused, at will.
    Pure,
    /// Something that may safely happen more than once: after a crash it is run again.
    Idempotent,
    /// Something that must not happen twice: after a crash it is run again only with the same idempotency key, or
    /// after asking.
    External,
}

/// What a node's failure means for the execution.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The execution fails.
    #[default]
    Fail,
    /// The execution goes on; the node's output is null.
    Continue,
}

impl OnError {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How often and how fast a failed node is tried again.
///
/// The wait before retry `n` (from 1) is `base * factor^(n - 1)`, at most `max_delay`; with `jitter`, a random part
/// of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts after the first.
    pub max: u32,
    /// The wait before the first retry: 1 s where it is not said.
    #[serde(with = "duration", default = "retry_default::base")]
    #[schemars(with = "String")]
    pub base: Duration,
    /// The longest wait: 1 minute where it is not said.
    #[serde(with = "duration", default = "retry_default::max_delay")]
    #[schemars(with = "String")]
    pub max_delay: Duration,
    /// By what the wait grows: 2 where it is not said.
    #[serde(default = "retry_default::factor")]
    pub factor: f64,
    /// Whether waits are randomly shortened, so that nodes that failed together do not return together. They are
    /// where it is not said.
    #[serde(default = "retry_default::jitter")]
    pub jitter: bool,
}

mod retry_default {
    use std::time::Duration;

    pub(super) fn base() -> Duration {
        Duration::from_secs(1)
    }

    pub(super) fn max_delay() -> Duration {
        Duration::from_secs(60)
    }

    pub(super) fn factor() -> f64 {
        2.0
    }

    pub(super) fn jitter() -> bool {
        true
    }
}

impl Default for Retry {
    /// Returns no retries; once `max` is set, waits of 1 s, 2 s, 4 s and so on up to 1 minute, with jitter.
    fn default() -> Self {
        Self {
            max: 0,
            base: retry_default::base(),
            max_delay: retry_default::max_delay(),
            factor: retry_default::factor(),
            jitter: retry_default::jitter(),
        }
    }
}

impl From<u32> for Retry {
    /// Returns `max` retries with the usual waits.
    fn from(max: u32) -> Self {
        Self { max, ..Self::default() }
    }
}

impl Retry {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the wait before retry `retry` (from 1), before jitter.
    pub fn delay(&self, retry: u32) -> Duration {
        let grown = self.factor.powf(f64::from(retry.saturating_sub(1))) * self.base.as_secs_f64();
        Duration::try_from_secs_f64(grown).unwrap_or(self.max_delay).min(self.max_delay)
    }
}

/// A stored definition that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the stored workflow cannot be read: it is damaged, or written by a newer retake")]
pub struct StoredDefinitionError {
    #[source]
    source: serde_json::Error,
}

impl Definition {
    /// Returns the id: a UUID (version 8) of the first half of the hash. Equal definitions have equal ids.
    pub fn id(&self) -> WorkflowId {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.digest().as_bytes()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// Returns the hash of the parsed form (64 hexadecimal digits). Comments, order of keys, and short or long
    /// spelling do not change it.
    pub fn hash(&self) -> String {
        self.digest().to_hex().to_string()
    }

    fn digest(&self) -> blake3::Hash {
        blake3::hash(&self.to_json())
    }

    /// Returns the stored form: JSON with sorted keys, the same bytes for equal definitions.
    pub fn to_json(&self) -> Vec<u8> {
        let mut value = serde_json::to_value(self).expect("a definition is plain data with text keys");
        value.sort_all_objects();
        value.to_string().into_bytes()
    }

    /// Reads the stored form. It is not checked again: [`Workflow::from_definition`](super::Workflow::from_definition)
    /// does that.
    ///
    /// # Errors
    /// Anything that [`to_json`](Self::to_json) would not have written, unknown keys included.
    pub fn from_json(stored: &[u8]) -> Result<Self, StoredDefinitionError> {
        serde_json::from_slice(stored).map_err(|source| StoredDefinitionError { source })
    }
}

fn max_parallel_default() -> usize {
    MAX_PARALLEL_DEFAULT
}

fn is_max_parallel_default(max_parallel: &usize) -> bool {
    *max_parallel == MAX_PARALLEL_DEFAULT
}
