//! What people decide about approvals.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::execution::{ExecutionResult, NodeExecutionResult};

/// How the failure of an approval begins that somebody rejected.
pub(super) const REJECTED: &str = "it was rejected";

/// What somebody decided about an approval.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Whether it is approved.
    pub approved: bool,
    /// What the approver adds; it becomes part of the node's output, or of the reason of its failure. Null for nothing.
    pub with: Value,
}

/// Returns the record of an approval that somebody decided. `into` is the variable that its output also is.
pub(super) fn decided(
    mut record: NodeExecutionResult,
    into: Option<&str>,
    decision: Decision,
    at: DateTime<Utc>,
) -> NodeExecutionResult {
    if decision.approved {
        record.writes = into.map(|variable| super::attempt::into(variable.to_owned())).into_iter().collect();
    }
    let result = match (decision.approved, decision.with) {
        (true, Value::Null) => ExecutionResult::Success(json!({"approved": true})),
        (true, with) => ExecutionResult::Success(json!({"approved": true, "with": with})),
        (false, Value::Null) => ExecutionResult::Failure(REJECTED.to_owned()),
        (false, with) => ExecutionResult::Failure(format!("{REJECTED}: {with}")),
    };
    record.completed(result, at)
}
