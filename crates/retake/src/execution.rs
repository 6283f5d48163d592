//! What an execution knows: its context, state, variables and node results.
//!
//! Plain data, persistent maps and nothing else: no I/O, no runtime, no driver. Copying a context, or making a
//! checkpoint of its maps, is a pointer copy whatever the size.

mod context;
mod cost;
mod exact;
mod ledger;
mod map;
mod result;
mod storable;
mod variable;

pub use context::{ExecutionCheckpoint, ExecutionContext, ExecutionState, WrongWorkflow};
#[cfg(feature = "engine")]
pub(crate) use cost::finite_sum;
pub use cost::{Cost, Spend, usd};
#[cfg(feature = "store")]
pub(crate) use exact::parse_exact_within;
pub(crate) use exact::read_exact;
pub use exact::{ExactError, exact_value, parse_exact};
pub use ledger::{Base, Compensation, CompensationStage, Ledger, Spare, TakenBack};
pub use map::{Cell, Change, Map, NodeResults, Shared, Variables};
pub use result::{
    ExecutionResult, NodeExecutionResult, NodeMetrics, Read, Subject, TokenUsage, Write, WriteOp,
};
pub use storable::{DEPTH_MAX, Unstorable, VALUE_BYTES_MAX, check_checkpoint, check_value};
pub(crate) use storable::{Step, copied, dismantle, is_too_deep};
#[cfg(feature = "store")]
pub(crate) use storable::{
    check_appended, check_base, check_compensation, check_result, check_spend, check_taken_back,
};
pub use variable::{Addition, AppendError, Variable};

/// Names one running of one workflow.
pub type ExecutionId = uuid::Uuid;

/// Names a workflow.
pub type WorkflowId = uuid::Uuid;

/// Names a node. A workflow file's node ids become UUIDs by [`node_id`].
pub type NodeId = uuid::Uuid;

/// The name space in which [`node_id`] makes its UUIDs: this project's own, drawn once at random.
const NODES: uuid::Uuid = uuid::uuid!("6b1f4c1e-3f0a-4b52-9d2b-5e0c7a4f8d21");

/// Returns the [`NodeId`] of a node that a workflow file calls `name`.
///
/// The same name gives the same id in every definition, so that results survive an edit of the workflow (UUID version
/// 5, RFC 9562).
///
/// ```
/// use retake::execution::node_id;
/// assert_eq!(node_id("draft"), node_id("draft"));
/// assert_ne!(node_id("draft"), node_id("send"));
/// ```
pub fn node_id(name: &str) -> NodeId {
    uuid::Uuid::new_v5(&NODES, name.as_bytes())
}

/// Reads a value that is there, so that an explicit null is a value and not an absence.
pub(crate) fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<serde_json::Value>, D::Error> {
    <serde_json::Value as serde::Deserialize>::deserialize(deserializer).map(Some)
}
