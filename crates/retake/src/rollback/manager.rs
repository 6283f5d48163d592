//! Keeps snapshots, goes back to them, and takes that back.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::timeline::{Sequence, Timeline};
use super::{ExecutionSnapshot, RollbackResult, RollbackSummary, Selection};
use crate::execution::{ExecutionContext, NodeId};

/// How many snapshots a manager keeps unless it is told otherwise.
const MAX_SNAPSHOTS: NonZeroUsize = NonZeroUsize::new(10).expect("ten is not zero");

/// Keeps the snapshots of an execution and takes its context back to them.
///
/// Going back copies pointers, and its exact counts cost as much as the two states differ. A rollback that cannot be
/// done changes nothing: not the context, not the manager.
///
/// **Time lines.** After going back to an older snapshot, that snapshot ends the *current time line*: it is one step
/// back, the one before it two, and new snapshots continue from it. What came after it is abandoned, but stays listed,
/// and is reached by its id, by its label, or by undoing the rollback.
///
/// ```
/// # use retake::execution::ExecutionContext;
/// # use retake::rollback::RollbackManager;
/// let mut ctx = ExecutionContext::new(uuid::Uuid::new_v4());
/// let mut manager = RollbackManager::default();
/// let [a, b, _c] = std::array::from_fn(|_| manager.create_snapshot(&ctx));
/// manager.rollback_to(&mut ctx, b);
/// assert_eq!(manager.rollback_n(&mut ctx, 1).applied_snapshot_id, Some(b));
/// assert_eq!(manager.rollback_n(&mut ctx, 2).applied_snapshot_id, Some(a));
/// assert_eq!(manager.snapshot_count(), 3);
/// ```
///
/// Snapshots share what they have in common in memory, but not when the manager is serialised: each is then written
/// whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollbackManager {
    timeline: Timeline,
    /// The rollbacks that can be taken back, the last one last; as many as snapshots are kept at most.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Undo>))]
    undo: VecDeque<Undo>,
    #[cfg_attr(feature = "openapi", schema(value_type = usize))]
    max_snapshots: NonZeroUsize,
    #[cfg_attr(feature = "openapi", schema(value_type = Option<usize>))]
    auto_snapshot_interval: Option<NonZeroUsize>,
    nodes_processed: usize,
}

/// How things were before a rollback.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
struct Undo {
    ctx: ExecutionContext,
    position: Option<Sequence>,
}

impl Default for RollbackManager {
    /// Keeps 10 snapshots, and makes none by itself.
    fn default() -> Self {
        Self {
            timeline: Timeline::default(),
            undo: VecDeque::new(),
            max_snapshots: MAX_SNAPSHOTS,
            auto_snapshot_interval: None,
            nodes_processed: 0,
        }
    }
}

impl RollbackManager {
    /// Returns a manager that keeps at most `max_snapshots`, and as many undoable rollbacks; the oldest fall out.
    ///
    /// One is the least that can be kept, since the id of a new snapshot must lead to it: 0 keeps one, and
    /// [`summary`](Self::summary) says so.
    pub fn new(max_snapshots: usize) -> Self {
        let max_snapshots = NonZeroUsize::new(max_snapshots).unwrap_or(NonZeroUsize::MIN);
        Self { max_snapshots, ..Self::default() }
    }

    /// Makes a snapshot before every `interval`-th node that [`on_node_execute`](Self::on_node_execute) is told of; 0
    /// makes none.
    pub fn with_auto_snapshot(mut self, interval: usize) -> Self {
        self.auto_snapshot_interval = NonZeroUsize::new(interval);
        self
    }

    /// Keeps a snapshot as the newest, continuing the current time line.
    ///
    /// One that is kept already under the same id is replaced: an id leads to one snapshot, the one pushed last.
    pub fn push_snapshot(&mut self, snapshot: ExecutionSnapshot) {
        self.retain(|kept| kept.id != snapshot.id);
        self.timeline.push(snapshot, self.max_snapshots.get());
    }

    /// Makes a snapshot, keeps it as the newest and returns its id.
    pub fn create_snapshot(&mut self, ctx: &ExecutionContext) -> Uuid {
        self.keep(ExecutionSnapshot::from_context(ctx))
    }

    /// Makes a snapshot with a label, keeps it as the newest and returns its id.
    pub fn create_labeled_snapshot(&mut self, ctx: &ExecutionContext, label: impl Into<String>) -> Uuid {
        self.keep(ExecutionSnapshot::from_context(ctx).with_label(label))
    }

    /// Counts a node that is about to start, and returns the id of the snapshot where one was made before it.
    pub fn on_node_execute(&mut self, ctx: &ExecutionContext, node_id: NodeId) -> Option<Uuid> {
        self.nodes_processed = self.nodes_processed.saturating_add(1);
        let interval = self.auto_snapshot_interval?;
        self.nodes_processed
            .is_multiple_of(interval.get())
            .then(|| self.keep(ExecutionSnapshot::from_context(ctx).with_trigger_node(node_id).as_auto()))
    }

    /// Takes the context back to the newest snapshot of the current time line.
    pub fn rollback(&mut self, ctx: &mut ExecutionContext) -> RollbackResult {
        self.rollback_n(ctx, 1)
    }

    /// Takes the context back to a snapshot, which then ends the current time line.
    pub fn rollback_to(&mut self, ctx: &mut ExecutionContext, snapshot_id: Uuid) -> RollbackResult {
        match self.timeline.find(snapshot_id) {
            Some((position, snapshot)) => {
                let before = ctx.clone();
                snapshot.apply_to(ctx);
                let result = RollbackResult::of_step(Some(snapshot_id), &before, ctx);
                self.moved_to(Some(position), before);
                result
            }
            None => unknown_snapshot(snapshot_id),
        }
    }

    /// Takes the context back to the newest snapshot with a label, which then ends the current time line.
    pub fn rollback_to_label(&mut self, ctx: &mut ExecutionContext, label: &str) -> RollbackResult {
        match self.find_by_label(label).map(|snapshot| snapshot.id) {
            Some(snapshot_id) => self.rollback_to(ctx, snapshot_id),
            None => RollbackResult::failure(format!("no snapshot with the label `{label}` is kept")),
        }
    }

    /// Takes the context so many snapshots back along the current time line; 1 is its newest. The snapshot reached
    /// then ends the time line, so that going one step back again stays there.
    pub fn rollback_n(&mut self, ctx: &mut ExecutionContext, steps: usize) -> RollbackResult {
        let Some(older) = steps.checked_sub(1) else {
            return RollbackResult::failure("0 steps back is where the execution stands: go 1 or more");
        };
        let reached = self.timeline.current().nth(older).map(|(_, snapshot)| snapshot.id);
        match reached {
            Some(snapshot_id) => self.rollback_to(ctx, snapshot_id),
            None => RollbackResult::failure(self.too_far(steps)),
        }
    }

    /// Takes a part of the context back to a snapshot, and leaves the rest as it is.
    ///
    /// The time line goes on where it was, since the context as a whole does. Refused where the selection picks
    /// nothing, or names a variable or node that neither the snapshot nor the context has.
    pub fn rollback_selected(
        &mut self,
        ctx: &mut ExecutionContext,
        snapshot_id: Uuid,
        selection: &Selection,
    ) -> RollbackResult {
        let Some((_, snapshot)) = self.timeline.find(snapshot_id) else {
            return unknown_snapshot(snapshot_id);
        };
        if let Err(reason) = selection.check(snapshot, ctx) {
            return RollbackResult::failure(reason);
        }
        let before = ctx.clone();
        selection.apply(snapshot, ctx);
        let result = RollbackResult::of_step(Some(snapshot_id), &before, ctx);
        self.moved_to(self.timeline.position(), before);
        result
    }

    /// Takes the last rollback back: context and time line become what they were just before it.
    ///
    /// What the context went through since is dropped with it; a snapshot made before the undo keeps it, and stays
    /// listed. Undoing again takes the rollback before that one back. Only the generation never goes back, for the
    /// reason that [`apply_to`](ExecutionSnapshot::apply_to) gives. Refused where there is nothing to undo, or where
    /// the last rollback was that of another execution.
    pub fn undo_rollback(&mut self, ctx: &mut ExecutionContext) -> RollbackResult {
        let Some(last) = self.undo.back() else {
            return RollbackResult::failure("there is no rollback to undo");
        };
        if last.ctx.execution_id != ctx.execution_id {
            let (theirs, ours) = (last.ctx.execution_id, ctx.execution_id);
            return RollbackResult::failure(format!(
                "the last rollback was of execution {theirs}, not of {ours}: undo it in that one's context first"
            ));
        }
        let mut restored = last.ctx.clone();
        restored.generation = restored.generation.max(ctx.generation);
        let result = RollbackResult::of_step(None, ctx, &restored);
        *ctx = restored;
        self.timeline.set_position(last.position);
        self.undo.pop_back();
        result
    }

    /// Returns the snapshot that was kept last, whichever time line it is on.
    pub fn latest_snapshot(&self) -> Option<&ExecutionSnapshot> {
        self.timeline.newest_first().next().map(|(_, snapshot)| snapshot)
    }

    /// Returns the snapshot that ends the current time line: the one that [`rollback`](Self::rollback) goes to.
    pub fn current_snapshot(&self) -> Option<&ExecutionSnapshot> {
        self.timeline.current().next().map(|(_, snapshot)| snapshot)
    }

    /// Returns a snapshot by its id. Costs the number of snapshots.
    pub fn get_snapshot(&self, id: Uuid) -> Option<&ExecutionSnapshot> {
        self.timeline.find(id).map(|(_, snapshot)| snapshot)
    }

    /// Returns the newest snapshot with a label, whichever time line it is on. Costs the number of snapshots.
    pub fn find_by_label(&self, label: &str) -> Option<&ExecutionSnapshot> {
        let mut snapshots = self.timeline.newest_first().map(|(_, snapshot)| snapshot);
        snapshots.find(|snapshot| snapshot.label.as_deref() == Some(label))
    }

    /// Returns all snapshots, those of abandoned time lines included, the one kept last first.
    pub fn list_snapshots(&self) -> Vec<&ExecutionSnapshot> {
        self.timeline.newest_first().map(|(_, snapshot)| snapshot).collect()
    }

    /// Returns the snapshots of the current time line, newest first: the first is one step back.
    pub fn current_timeline(&self) -> Vec<&ExecutionSnapshot> {
        self.timeline.current().map(|(_, snapshot)| snapshot).collect()
    }

    /// Returns how many snapshots are kept.
    pub fn snapshot_count(&self) -> usize {
        self.timeline.len()
    }

    /// Forgets every snapshot, every undoable rollback, and how many nodes it was told of.
    pub fn clear(&mut self) {
        self.timeline = Timeline::default();
        self.undo.clear();
        self.nodes_processed = 0;
    }

    /// Removes the snapshots made before `timestamp`, and returns how many. Undoable rollbacks stay.
    ///
    /// A time line that ran through a removed snapshot runs on to the one before it.
    pub fn prune_before(&mut self, timestamp: DateTime<Utc>) -> usize {
        self.retain(|snapshot| snapshot.created_at >= timestamp)
    }

    /// Returns what the manager holds.
    pub fn summary(&self) -> RollbackSummary {
        let made = |(_, snapshot): (Sequence, &ExecutionSnapshot)| snapshot.created_at;
        RollbackSummary {
            total_snapshots: self.timeline.len(),
            max_snapshots: self.max_snapshots.get(),
            auto_snapshot_enabled: self.auto_snapshot_interval.is_some(),
            auto_snapshot_interval: self.auto_snapshot_interval.map_or(0, NonZeroUsize::get),
            oldest_snapshot: self.timeline.newest_first().next_back().map(made),
            newest_snapshot: self.timeline.newest_first().next().map(made),
            nodes_processed: self.nodes_processed,
        }
    }

    /// Keeps a snapshot whose id is fresh.
    fn keep(&mut self, snapshot: ExecutionSnapshot) -> Uuid {
        let id = snapshot.id;
        self.timeline.push(snapshot, self.max_snapshots.get());
        id
    }

    /// Notes a rollback that took the context from `before` to a new position.
    fn moved_to(&mut self, position: Option<Sequence>, before: ExecutionContext) {
        self.undo.push_back(Undo { ctx: before, position: self.timeline.position() });
        let surplus = self.undo.len().saturating_sub(self.max_snapshots.get());
        self.undo.drain(..surplus);
        self.timeline.set_position(position);
    }

    fn retain(&mut self, keep: impl Fn(&ExecutionSnapshot) -> bool) -> usize {
        let removed = self.timeline.retain(keep);
        for undo in &mut self.undo {
            undo.position = removed.moved(undo.position);
        }
        removed.len()
    }

    fn too_far(&self, steps: usize) -> String {
        let current = self.timeline.current().count();
        let abandoned = self.timeline.len() - current;
        let held = match current {
            0 => "no snapshot".to_owned(),
            1 => "1 snapshot".to_owned(),
            more => format!("{more} snapshots"),
        };
        let elsewhere = match abandoned {
            0 => String::new(),
            more => format!(" (and {more} abandoned, to be reached by id)"),
        };
        format!("cannot go {steps} back: the current time line holds {held}{elsewhere}")
    }
}

fn unknown_snapshot(id: Uuid) -> RollbackResult {
    RollbackResult::failure(format!("no snapshot {id} is kept: it never was, or it fell out"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::execution::{ExecutionState, NodeExecutionResult};

    fn context() -> ExecutionContext {
        ExecutionContext::new(Uuid::from_u128(7))
    }

    /// Returns a context whose variable `step` is 3, and the snapshots made while it was 1, 2 and 3.
    fn three_snapshots(manager: &mut RollbackManager) -> (ExecutionContext, [Uuid; 3]) {
        let mut ctx = context();
        let ids = [1, 2, 3].map(|step| {
            ctx.set_variable("step".into(), json!(step));
            manager.create_snapshot(&ctx)
        });
        (ctx, ids)
    }

    fn reached(result: &RollbackResult) -> Option<Uuid> {
        assert_eq!(result.success, result.error.is_none());
        result.applied_snapshot_id
    }

    fn error(result: RollbackResult) -> String {
        assert!(!result.success);
        result.error.expect("a failure says why")
    }

    #[test]
    fn steps_count_along_the_current_time_line() {
        let mut manager = RollbackManager::new(10);
        let (mut ctx, [a, b, c]) = three_snapshots(&mut manager);
        assert_eq!(reached(&manager.rollback_to(&mut ctx, b)), Some(b));
        assert_eq!(reached(&manager.rollback_n(&mut ctx, 1)), Some(b));
        assert_eq!(reached(&manager.rollback(&mut ctx)), Some(b));

        ctx.set_variable("step".into(), json!(4));
        let d = manager.create_snapshot(&ctx);
        let line: Vec<_> = manager.current_timeline().iter().map(|snapshot| snapshot.id).collect();
        assert_eq!(line, [d, b, a]);
        assert_eq!(reached(&manager.rollback_n(&mut ctx, 3)), Some(a));

        let listed: Vec<_> = manager.list_snapshots().iter().map(|snapshot| snapshot.id).collect();
        assert_eq!(listed, [d, c, b, a]);
        assert_eq!(manager.latest_snapshot().map(|snapshot| snapshot.id), Some(d));
        assert_eq!(manager.current_snapshot().map(|snapshot| snapshot.id), Some(a));
        assert_eq!(reached(&manager.rollback_to(&mut ctx, c)), Some(c));
        assert_eq!(reached(&manager.rollback_n(&mut ctx, 2)), Some(b));
    }

    #[test]
    fn steps_that_lead_nowhere_say_so_and_change_nothing() {
        let mut manager = RollbackManager::new(10);
        let (mut ctx, [a, ..]) = three_snapshots(&mut manager);
        manager.rollback_to(&mut ctx, a);
        let before = ctx.clone();
        assert_eq!(
            error(manager.rollback_n(&mut ctx, 0)),
            "0 steps back is where the execution stands: go 1 or more"
        );
        assert_eq!(
            error(manager.rollback_n(&mut ctx, 2)),
            "cannot go 2 back: the current time line holds 1 snapshot (and 2 abandoned, to be reached by id)"
        );
        assert_eq!(
            error(RollbackManager::default().rollback(&mut ctx)),
            "cannot go 1 back: the current time line holds no snapshot"
        );
        let unknown = Uuid::from_u128(9);
        assert_eq!(
            error(manager.rollback_to(&mut ctx, unknown)),
            format!("no snapshot {unknown} is kept: it never was, or it fell out")
        );
        assert_eq!(ctx, before);
    }

    #[test]
    fn undo_walks_back_through_several_rollbacks_and_their_time_lines() {
        let mut manager = RollbackManager::new(10);
        let (mut ctx, [a, b, c]) = three_snapshots(&mut manager);
        ctx.set_variable("step".into(), json!("unsaved"));
        let present = ctx.clone();
        manager.rollback_to(&mut ctx, b);
        manager.rollback_to(&mut ctx, a);

        assert_eq!(reached(&manager.undo_rollback(&mut ctx)), None);
        assert_eq!(ctx.get_variable("step"), Some(&json!(2)));
        assert_eq!(manager.current_snapshot().map(|snapshot| snapshot.id), Some(b));
        assert_eq!(manager.undo_rollback(&mut ctx).variables_changed, 1);
        assert_eq!(ctx, present);
        assert_eq!(manager.current_snapshot().map(|snapshot| snapshot.id), Some(c));
        assert_eq!(error(manager.undo_rollback(&mut ctx)), "there is no rollback to undo");
    }

    #[test]
    fn undo_drops_what_came_after_the_rollback_but_not_the_snapshots_of_it() {
        let mut manager = RollbackManager::new(10);
        let (mut ctx, [a, ..]) = three_snapshots(&mut manager);
        manager.rollback_to(&mut ctx, a);
        ctx.set_variable("later".into(), json!(true));
        ctx.generation = 5;
        let later = manager.create_snapshot(&ctx);
        assert!(manager.undo_rollback(&mut ctx).success);
        assert_eq!((ctx.get_variable("later"), ctx.generation), (None, 5));
        assert_eq!(reached(&manager.rollback_to(&mut ctx, later)), Some(later));
        assert_eq!(ctx.get_variable("later"), Some(&json!(true)));
    }

    #[test]
    fn no_more_rollbacks_can_be_undone_than_snapshots_are_kept() {
        let mut manager = RollbackManager::new(2);
        let (mut ctx, _) = three_snapshots(&mut manager);
        for _ in 0..5 {
            assert!(manager.rollback(&mut ctx).success);
        }
        assert!(manager.undo_rollback(&mut ctx).success);
        assert!(manager.undo_rollback(&mut ctx).success);
        assert!(!manager.undo_rollback(&mut ctx).success);
    }

    #[test]
    fn the_rollback_of_another_execution_is_not_undone() {
        let mut manager = RollbackManager::new(2);
        let (mut ctx, _) = three_snapshots(&mut manager);
        manager.rollback(&mut ctx);
        let mut other = context();
        let before = other.clone();
        assert!(error(manager.undo_rollback(&mut other)).contains(&ctx.execution_id.to_string()));
        assert_eq!(other, before);
        assert!(manager.undo_rollback(&mut ctx).success);
    }

    #[test]
    fn the_newest_snapshot_with_a_label_is_found() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        manager.create_labeled_snapshot(&ctx, "draft");
        ctx.set_variable("step".into(), json!(2));
        let newer = manager.create_labeled_snapshot(&ctx, "draft".to_owned());
        manager.create_labeled_snapshot(&ctx, "sent");
        ctx.set_variable("step".into(), json!(3));
        assert_eq!(manager.find_by_label("draft").map(|snapshot| snapshot.id), Some(newer));
        assert_eq!(reached(&manager.rollback_to_label(&mut ctx, "draft")), Some(newer));
        assert_eq!(ctx.get_variable("step"), Some(&json!(2)));
        assert_eq!(
            error(manager.rollback_to_label(&mut ctx, "drafts")),
            "no snapshot with the label `drafts` is kept"
        );
    }

    #[test]
    fn a_selection_that_names_what_nobody_knows_changes_nothing() {
        let mut manager = RollbackManager::new(10);
        let (mut ctx, [a, ..]) = three_snapshots(&mut manager);
        let before = ctx.clone();
        let node = Uuid::from_u128(1);
        let selection = Selection::default().with_variables(["step", "stpe"]).with_nodes([node]);
        assert_eq!(
            error(manager.rollback_selected(&mut ctx, a, &selection)),
            format!("neither the snapshot nor the execution has variable `stpe`, node `{node}`")
        );
        assert_eq!(
            error(manager.rollback_selected(&mut ctx, a, &Selection::default())),
            "nothing is selected: pick variables, nodes or the state"
        );
        assert!(!manager.rollback_selected(&mut ctx, node, &Selection::default().with_state()).success);
        assert_eq!(ctx, before);
        assert!(!manager.undo_rollback(&mut ctx).success);
    }

    #[test]
    fn a_selected_part_goes_back_and_the_time_line_goes_on() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        ctx.set_variable("kept".into(), json!(1));
        let a = manager.create_snapshot(&ctx);
        let node = Uuid::from_u128(1);
        ctx.record_node_result(node, NodeExecutionResult::new());
        ctx.set_variable("added".into(), json!(2));
        ctx.set_variable("kept".into(), json!(2));
        ctx.state = ExecutionState::Failed("boom".into());
        let b = manager.create_snapshot(&ctx);

        let selection = Selection::default().with_variables(["added"]).with_nodes([node]);
        let result = manager.rollback_selected(&mut ctx, a, &selection);
        assert_eq!((result.nodes_removed, result.variables_changed), (1, 1));
        assert_eq!((ctx.get_variable("added"), ctx.get_variable("kept")), (None, Some(&json!(2))));
        assert_eq!(ctx.state, ExecutionState::Failed("boom".into()));
        assert_eq!(manager.current_snapshot().map(|snapshot| snapshot.id), Some(b));

        let result = manager.rollback_selected(&mut ctx, a, &Selection::default().with_state());
        assert_eq!((result.nodes_removed, result.variables_changed), (0, 0));
        assert_eq!(ctx.state, ExecutionState::Running);
        assert_eq!(ctx.get_variable("kept"), Some(&json!(2)));
    }

    #[test]
    fn a_snapshot_pushed_again_is_kept_once_as_the_newest() {
        let mut manager = RollbackManager::new(10);
        let (_, [a, b, c]) = three_snapshots(&mut manager);
        let again = manager.get_snapshot(b).expect("it is kept").clone().with_label("again");
        manager.push_snapshot(again);
        let listed: Vec<_> = manager.list_snapshots().iter().map(|snapshot| snapshot.id).collect();
        assert_eq!(listed, [b, c, a]);
        assert_eq!(manager.find_by_label("again").map(|snapshot| snapshot.id), Some(b));
    }

    #[test]
    fn pruning_the_present_snapshot_leaves_the_time_line_at_the_one_before_it() {
        let mut manager = RollbackManager::new(10);
        let mut ctx = context();
        let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a date of this century");
        let ids = [30, 10, 20].map(|seconds| {
            let mut snapshot = ExecutionSnapshot::from_context(&ctx);
            snapshot.created_at = at(seconds);
            manager.push_snapshot(snapshot.clone());
            snapshot.id
        });
        manager.rollback_to(&mut ctx, ids[1]);
        assert_eq!(manager.prune_before(at(20)), 1);
        assert_eq!(reached(&manager.rollback(&mut ctx)), Some(ids[0]));
        assert!(error(manager.rollback_n(&mut ctx, 2)).ends_with("(and 1 abandoned, to be reached by id)"));
    }
}
