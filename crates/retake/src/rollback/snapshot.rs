//! One point of an execution, in memory.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::clock::{self, Clock};
use crate::execution::{ExecutionContext, ExecutionState, NodeId, NodeResults, Variables};

/// What an execution knew at one moment. Making, copying and applying it cost the same at any size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecutionSnapshot {
    /// This snapshot.
    pub id: Uuid,
    /// When it was made. Order is decided by the manager that keeps it, never by this.
    pub created_at: DateTime<Utc>,
    /// What somebody called it.
    #[serde(default)]
    pub label: Option<String>,
    /// The node that was about to start.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<uuid::Uuid>))]
    pub trigger_node: Option<NodeId>,
    /// How the execution stood.
    pub state: ExecutionState,
    /// The variables.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, Value>))]
    pub variables: Variables,
    /// What each node gave.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, crate::execution::NodeExecutionResult>))]
    pub node_results: NodeResults,
    /// When the execution ended, if it had.
    #[serde(default)]
    pub completed_at: Option<DateTime<Utc>>,
    /// Why it was made, and by whom.
    #[serde(default)]
    pub metadata: SnapshotMetadata,
}

/// Why a snapshot was made, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct SnapshotMetadata {
    /// Why it was made.
    pub reason: Option<String>,
    /// Who made it.
    pub created_by: Option<String>,
    /// Whether it was made by itself.
    pub is_auto: bool,
    /// Whatever else its maker notes.
    pub custom: BTreeMap<String, Value>,
}

impl ExecutionSnapshot {
    /// Returns a snapshot of a context, made now, with a fresh id.
    pub fn from_context(ctx: &ExecutionContext) -> Self {
        let (created_at, id) = clock::system().stamp();
        Self {
            id,
            created_at,
            label: None,
            trigger_node: None,
            state: ctx.state.clone(),
            variables: ctx.variables.clone(),
            node_results: ctx.node_results.clone(),
            completed_at: ctx.completed_at,
            metadata: SnapshotMetadata::default(),
        }
    }

    /// Names it.
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Notes the node that is about to start.
    pub fn with_trigger_node(mut self, node_id: NodeId) -> Self {
        self.trigger_node = Some(node_id);
        self
    }

    /// Notes why it was made.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.metadata.reason = Some(reason.into());
        self
    }

    /// Notes that it was made by itself.
    pub fn as_auto(mut self) -> Self {
        self.metadata.is_auto = true;
        self
    }

    /// Makes a context's state, end, variables and node results those of the snapshot.
    ///
    /// The context stays the same execution: its ids, start and inputs are left alone, and so is its generation, for
    /// one that went back would give a re-run the idempotency keys of the run before.
    pub fn apply_to(&self, ctx: &mut ExecutionContext) {
        self.apply_state_to(ctx);
        ctx.variables = self.variables.clone();
        ctx.node_results = self.node_results.clone();
    }

    /// Makes a context's state, and when it ended, those of the snapshot.
    pub(super) fn apply_state_to(&self, ctx: &mut ExecutionContext) {
        ctx.state = self.state.clone();
        ctx.completed_at = self.completed_at;
    }

    /// Returns how many nodes were done with: those that succeeded or were skipped. Costs the number of node results.
    pub fn completed_node_count(&self) -> usize {
        self.node_results.values().filter(|node| node.result.is_completed()).count()
    }

    /// Returns how many variables there were.
    pub fn variable_count(&self) -> usize {
        self.variables.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::execution::{ExecutionResult, NodeExecutionResult};

    fn context() -> ExecutionContext {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
        ctx.set_variable("topic".into(), json!("otters"));
        ctx.record_node_result(
            Uuid::from_u128(1),
            NodeExecutionResult::new().complete(ExecutionResult::Success(json!(1))),
        );
        ctx
    }

    #[test]
    fn applying_a_snapshot_also_takes_back_that_the_execution_ended() {
        let mut ctx = context();
        let before = ctx.clone();
        let snapshot = ExecutionSnapshot::from_context(&ctx);
        ctx.set_variable("topic".into(), json!("bears"));
        ctx.mark_completed();
        snapshot.apply_to(&mut ctx);
        assert_eq!(ctx, before);
        assert_eq!(ctx.completed_at, None);
    }

    #[test]
    fn applying_a_snapshot_leaves_the_execution_the_one_it_is() {
        let snapshot = ExecutionSnapshot::from_context(&context());
        let mut other = ExecutionContext::new(Uuid::from_u128(8));
        other.inputs.insert("a".into(), json!(1));
        other.generation = 3;
        let before = other.clone();
        snapshot.apply_to(&mut other);
        assert_eq!(
            (other.execution_id, other.workflow_id, other.started_at, other.generation, &other.inputs),
            (before.execution_id, before.workflow_id, before.started_at, 3, &before.inputs)
        );
        assert_eq!(other.variables["topic"], json!("otters"));
    }

    #[test]
    fn only_nodes_that_are_done_with_count_as_completed() {
        let mut ctx = context();
        ctx.record_node_result(Uuid::from_u128(2), NodeExecutionResult::new());
        ctx.record_node_result(
            Uuid::from_u128(3),
            NodeExecutionResult::new().complete(ExecutionResult::Failure("boom".into())),
        );
        let snapshot = ExecutionSnapshot::from_context(&ctx);
        assert_eq!((snapshot.completed_node_count(), snapshot.variable_count()), (1, 1));
    }

    #[test]
    fn a_snapshot_carries_what_its_maker_said() {
        let node = Uuid::from_u128(9);
        let snapshot = ExecutionSnapshot::from_context(&context())
            .with_label("before the call")
            .with_trigger_node(node)
            .with_reason("it is dear")
            .as_auto();
        assert_eq!(snapshot.label.as_deref(), Some("before the call"));
        assert_eq!(snapshot.trigger_node, Some(node));
        assert_eq!(snapshot.metadata.reason.as_deref(), Some("it is dear"));
        assert!(snapshot.metadata.is_auto);
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<ExecutionSnapshot>(&text).unwrap(), snapshot);
    }
}
