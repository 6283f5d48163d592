//! What a rollback did, and what a manager holds.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::{self, Clock};
use crate::execution::{Change, ExecutionContext};

/// What a rollback, or the undoing of one, did. A failed one changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollbackResult {
    /// Whether it was done.
    pub success: bool,
    /// The snapshot that was applied; none for a failure and for an undo.
    pub applied_snapshot_id: Option<Uuid>,
    /// Nodes that had a result and have none now. Those that came back, or have an older result again, are not among
    /// them.
    pub nodes_removed: usize,
    /// Variables that have another value now, are new, or are gone; each counts once.
    pub variables_changed: usize,
    /// Why it was not done.
    pub error: Option<String>,
    /// When it was done or refused.
    pub rolled_back_at: DateTime<Utc>,
}

impl RollbackResult {
    /// Returns the result of a rollback to a snapshot, done now.
    pub fn success(snapshot_id: Uuid, nodes_removed: usize, variables_changed: usize) -> Self {
        Self {
            success: true,
            applied_snapshot_id: Some(snapshot_id),
            nodes_removed,
            variables_changed,
            error: None,
            rolled_back_at: clock::system().now(),
        }
    }

    /// Returns the result of a rollback that was refused now.
    pub fn failure(error: impl Into<String>) -> Self {
        Self {
            success: false,
            applied_snapshot_id: None,
            nodes_removed: 0,
            variables_changed: 0,
            error: Some(error.into()),
            rolled_back_at: clock::system().now(),
        }
    }

    /// Returns the result of a step from one context to another. Costs as much as the two differ.
    pub(super) fn of_step(
        snapshot_id: Option<Uuid>,
        before: &ExecutionContext,
        after: &ExecutionContext,
    ) -> Self {
        let removed = |change: &Change<'_, _, _>| matches!(change, Change::Removed(..));
        Self {
            success: true,
            applied_snapshot_id: snapshot_id,
            nodes_removed: before.node_results.changes_to(&after.node_results).filter(removed).count(),
            variables_changed: before.variables.changes_to(&after.variables).count(),
            error: None,
            rolled_back_at: clock::system().now(),
        }
    }
}

/// What a manager holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollbackSummary {
    /// How many snapshots it keeps.
    pub total_snapshots: usize,
    /// How many it keeps at most.
    pub max_snapshots: usize,
    /// Whether it makes snapshots by itself.
    pub auto_snapshot_enabled: bool,
    /// Before every how many nodes it makes one; 0 where it makes none.
    pub auto_snapshot_interval: usize,
    /// When the snapshot that was kept first was made.
    pub oldest_snapshot: Option<DateTime<Utc>>,
    /// When the snapshot that was kept last was made.
    pub newest_snapshot: Option<DateTime<Utc>>,
    /// How many nodes it was told of.
    pub nodes_processed: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_names_its_snapshot_and_a_failure_its_reason() {
        let id = Uuid::from_u128(1);
        let done = RollbackResult::success(id, 3, 2);
        assert_eq!(
            (done.success, done.applied_snapshot_id, done.nodes_removed, done.variables_changed, done.error),
            (true, Some(id), 3, 2, None)
        );
        let refused = RollbackResult::failure("there is no snapshot");
        assert_eq!((refused.success, refused.applied_snapshot_id), (false, None));
        assert_eq!(refused.error.as_deref(), Some("there is no snapshot"));
    }
}
