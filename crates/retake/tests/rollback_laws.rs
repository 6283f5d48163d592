//! What holds for every snapshot and every rollback, whatever the execution went through.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use proptest::sample::Index;
use retake::execution::{
    ExecutionContext, ExecutionResult, ExecutionState, NodeExecutionResult, NodeId, NodeResults, Variables,
};
use retake::rollback::{ExecutionSnapshot, Pick, RollbackManager, RollbackResult, Selection};
use serde_json::{Value, json};
use uuid::Uuid;

/// One thing that happens to a context.
#[derive(Debug, Clone)]
enum Step {
    Set(u8, i64),
    Append(u8, i64),
    Remove(u8),
    Record(u8, i64),
    Forget(u8),
    State(ExecutionState),
    End(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![
        Just(ExecutionState::Running),
        Just(ExecutionState::Paused),
        Just(ExecutionState::Completed),
        "[a-z]{3}".prop_map(ExecutionState::Failed),
    ];
    prop_oneof![
        (0..8u8, 0..3i64).prop_map(|(key, value)| Step::Set(key, value)),
        (0..8u8, 0..3i64).prop_map(|(key, value)| Step::Append(key, value)),
        (0..8u8).prop_map(Step::Remove),
        (0..6u8, 0..3i64).prop_map(|(node, value)| Step::Record(node, value)),
        (0..6u8).prop_map(Step::Forget),
        state.prop_map(Step::State),
        (0..3i64).prop_map(Step::End),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..24)
}

fn selection() -> impl Strategy<Value = Selection> {
    fn pick<K: Clone + std::fmt::Debug>(of: impl Strategy<Value = K>) -> impl Strategy<Value = Pick<K>> {
        prop_oneof![Just(Pick::None), Just(Pick::All), prop::collection::vec(of, 1..4).prop_map(Pick::Named),]
    }
    (pick((0..8u8).prop_map(name)), pick((0..6u8).prop_map(node)), any::<bool>())
        .prop_map(|(variables, nodes, state)| Selection { variables, nodes, state })
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

fn name(key: u8) -> String {
    format!("v{key}")
}

fn node(number: u8) -> NodeId {
    Uuid::from_u128(u128::from(number) + 1)
}

fn new_context() -> ExecutionContext {
    ExecutionContext::with_id(Uuid::from_u128(100), Uuid::from_u128(7), at(0))
}

fn take(ctx: &mut ExecutionContext, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Set(key, value) => ctx.set_variable(name(*key), json!(value)),
            Step::Append(key, value) => {
                if ctx.append(&name(*key), json!(value)).is_err() {
                    ctx.set_variable(name(*key), json!([value]));
                }
            }
            Step::Remove(key) => drop(ctx.variables.remove(&name(*key))),
            Step::Record(number, value) => {
                let record = NodeExecutionResult::started(at(*value));
                let record = record.completed(ExecutionResult::Success(json!(value)), at(*value));
                ctx.record_node_result(node(*number), record);
            }
            Step::Forget(number) => drop(ctx.node_results.remove(&node(*number))),
            Step::State(state) => ctx.state = state.clone(),
            Step::End(seconds) => ctx.completed_at = Some(at(*seconds)),
        }
    }
}

fn plain(variables: &Variables) -> BTreeMap<String, Value> {
    variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn variables_that_differ(one: &Variables, other: &Variables) -> usize {
    let (one, other) = (plain(one), plain(other));
    let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).count()
}

fn nodes_that_went(before: &NodeResults, after: &NodeResults) -> usize {
    before.keys().filter(|id| !after.contains_key(*id)).count()
}

fn assert_counts(
    result: &RollbackResult,
    before: &ExecutionContext,
    after: &ExecutionContext,
) -> Result<(), TestCaseError> {
    prop_assert!(result.success);
    prop_assert_eq!(result.variables_changed, variables_that_differ(&before.variables, &after.variables));
    prop_assert_eq!(result.nodes_removed, nodes_that_went(&before.node_results, &after.node_results));
    Ok(())
}

proptest! {
    #[test]
    fn applying_a_snapshot_gives_the_context_it_was_made_of(first in steps(), then in steps()) {
        let mut ctx = new_context();
        take(&mut ctx, &first);
        let before = ctx.clone();
        let snapshot = ExecutionSnapshot::from_context(&ctx);
        take(&mut ctx, &then);
        snapshot.apply_to(&mut ctx);
        prop_assert_eq!(ctx.variables.changes_to(&before.variables).count(), 0);
        prop_assert_eq!(ctx.node_results.changes_to(&before.node_results).count(), 0);
        prop_assert_eq!(ctx, before);
    }

    #[test]
    fn a_rollback_counts_exactly_and_undoing_it_is_the_identity(first in steps(), then in steps()) {
        let mut ctx = new_context();
        take(&mut ctx, &first);
        let mut manager = RollbackManager::new(4);
        let id = manager.create_snapshot(&ctx);
        let origin = ctx.clone();
        take(&mut ctx, &then);
        let before = ctx.clone();

        let result = manager.rollback_to(&mut ctx, id);
        prop_assert_eq!(&ctx, &origin);
        prop_assert_eq!(result.applied_snapshot_id, Some(id));
        assert_counts(&result, &before, &origin)?;

        let result = manager.undo_rollback(&mut ctx);
        prop_assert_eq!(&ctx, &before);
        prop_assert_eq!(result.applied_snapshot_id, None);
        assert_counts(&result, &origin, &before)?;
    }

    #[test]
    fn a_selective_rollback_touches_what_it_was_asked_to_and_nothing_else(
        first in steps(),
        then in steps(),
        selection in selection(),
    ) {
        let mut ctx = new_context();
        take(&mut ctx, &first);
        let mut manager = RollbackManager::new(4);
        let id = manager.create_snapshot(&ctx);
        let origin = ctx.clone();
        take(&mut ctx, &then);
        let before = ctx.clone();

        let result = manager.rollback_selected(&mut ctx, id, &selection);
        if !result.success {
            prop_assert!(result.error.is_some());
            prop_assert_eq!(&ctx, &before);
            prop_assert!(!manager.undo_rollback(&mut ctx).success);
            return Ok(());
        }
        for key in (0..8).map(name) {
            let from = if picks(&selection.variables, &key) { &origin } else { &before };
            prop_assert_eq!(ctx.variables.get(&key), from.variables.get(&key));
        }
        for id in (0..6).map(node) {
            let from = if picks(&selection.nodes, &id) { &origin } else { &before };
            prop_assert_eq!(ctx.node_results.get(&id), from.node_results.get(&id));
        }
        let from = if selection.state { &origin } else { &before };
        prop_assert_eq!((&ctx.state, ctx.completed_at), (&from.state, from.completed_at));
        assert_counts(&result, &before, &ctx)?;
        prop_assert!(manager.undo_rollback(&mut ctx).success);
        prop_assert_eq!(ctx, before);
    }

    #[test]
    fn past_the_maximum_the_newest_are_kept(max in 0..6usize, count in 0..12usize) {
        let mut manager = RollbackManager::new(max);
        let ctx = new_context();
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(manager.create_snapshot(&ctx));
            prop_assert!(manager.get_snapshot(ids[ids.len() - 1]).is_some());
        }
        ids.reverse();
        ids.truncate(max.max(1));
        prop_assert_eq!(listed(&manager), ids);
    }

    #[test]
    fn pruning_keeps_what_was_made_at_or_after_the_moment(ages in prop::collection::vec(0..9i64, 0..9), cut in 0..9i64) {
        let mut manager = RollbackManager::new(9);
        let ctx = new_context();
        let mut kept = Vec::new();
        for age in &ages {
            let mut snapshot = ExecutionSnapshot::from_context(&ctx);
            snapshot.created_at = at(*age);
            if *age >= cut {
                kept.push(snapshot.id);
            }
            manager.push_snapshot(snapshot);
        }
        kept.reverse();
        prop_assert_eq!(manager.prune_before(at(cut)), ages.len() - kept.len());
        prop_assert_eq!(listed(&manager), kept.clone());
        let line: Vec<_> = manager.current_timeline().iter().map(|snapshot| snapshot.id).collect();
        prop_assert_eq!(line, kept);
    }
}

fn picks<K: PartialEq>(pick: &Pick<K>, key: &K) -> bool {
    match pick {
        Pick::None => false,
        Pick::All => true,
        Pick::Named(keys) => keys.contains(key),
    }
}

fn listed(manager: &RollbackManager) -> Vec<Uuid> {
    manager.list_snapshots().iter().map(|snapshot| snapshot.id).collect()
}

/// One thing that is asked of a manager.
#[derive(Debug, Clone)]
enum Request {
    Work(Vec<Step>),
    Snapshot,
    PushAgain(Index),
    To(Index),
    Back(usize),
    Selected(Index),
    Undo,
    Prune(Index),
    Clear,
    Reload,
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => prop::collection::vec(step(), 1..4).prop_map(Request::Work),
        6 => Just(Request::Snapshot),
        1 => any::<Index>().prop_map(Request::PushAgain),
        3 => any::<Index>().prop_map(Request::To),
        4 => (0..6usize).prop_map(Request::Back),
        2 => any::<Index>().prop_map(Request::Selected),
        4 => Just(Request::Undo),
        1 => any::<Index>().prop_map(Request::Prune),
        1 => Just(Request::Clear),
        1 => Just(Request::Reload),
    ]
}

/// What the manager is compared with: every time line is written out whole, as a list of ids.
#[derive(Debug, Default)]
struct Model {
    /// All that is kept, oldest first, with the context each was made of.
    kept: Vec<(Uuid, ExecutionContext)>,
    /// The current time line, oldest first.
    line: Vec<Uuid>,
    /// The time line that each snapshot ends.
    lines: BTreeMap<Uuid, Vec<Uuid>>,
    /// The contexts and time lines before each rollback.
    undo: Vec<(ExecutionContext, Vec<Uuid>)>,
}

impl Model {
    fn push(&mut self, id: Uuid, ctx: &ExecutionContext, max: usize) {
        self.remove(id);
        self.kept.push((id, ctx.clone()));
        self.line.push(id);
        self.lines.insert(id, self.line.clone());
        if self.kept.len() > max {
            self.remove(self.kept[0].0);
        }
    }

    fn remove(&mut self, id: Uuid) {
        self.kept.retain(|(kept, _)| *kept != id);
        self.lines.remove(&id);
        let undo = self.undo.iter_mut().map(|(_, line)| line);
        for line in self.lines.values_mut().chain(undo).chain([&mut self.line]) {
            line.retain(|kept| *kept != id);
        }
    }

    fn remember(&mut self, ctx: &ExecutionContext, max: usize) {
        self.undo.push((ctx.clone(), self.line.clone()));
        if self.undo.len() > max {
            self.undo.remove(0);
        }
    }

    fn go_to(&mut self, id: Uuid, ctx: &mut ExecutionContext, max: usize) {
        self.remember(ctx, max);
        let (_, origin) = self.kept.iter().find(|(kept, _)| *kept == id).expect("the model keeps it");
        *ctx = origin.clone();
        self.line = self.lines[&id].clone();
    }

    fn any(&self, index: &Index) -> Option<Uuid> {
        (!self.kept.is_empty()).then(|| self.kept[index.index(self.kept.len())].0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_time_line_is_what_a_plain_model_of_it_says(
        max in 1..7usize,
        requests in prop::collection::vec(request(), 1..40),
    ) {
        let mut manager = RollbackManager::new(max);
        let mut model = Model::default();
        let mut ctx = new_context();
        let mut expected = ctx.clone();
        for request in requests {
            match request {
                Request::Work(steps) => {
                    take(&mut ctx, &steps);
                    take(&mut expected, &steps);
                }
                Request::Snapshot => model.push(manager.create_snapshot(&ctx), &expected, max),
                Request::PushAgain(index) => {
                    if let Some(id) = model.any(&index) {
                        let mut snapshot = ExecutionSnapshot::from_context(&ctx);
                        snapshot.id = id;
                        manager.push_snapshot(snapshot);
                        model.push(id, &expected, max);
                    }
                }
                Request::To(index) => {
                    let Some(id) = model.any(&index) else { continue };
                    prop_assert_eq!(manager.rollback_to(&mut ctx, id).applied_snapshot_id, Some(id));
                    model.go_to(id, &mut expected, max);
                }
                Request::Back(steps) => {
                    let result = manager.rollback_n(&mut ctx, steps);
                    let reached = steps.checked_sub(1).and_then(|older| model.line.iter().rev().nth(older)).copied();
                    prop_assert_eq!(result.applied_snapshot_id, reached);
                    prop_assert_eq!(result.success, reached.is_some());
                    prop_assert_eq!(result.error.is_some(), reached.is_none());
                    if let Some(id) = reached {
                        model.go_to(id, &mut expected, max);
                    }
                }
                Request::Selected(index) => {
                    let Some(id) = model.any(&index) else { continue };
                    let selection = Selection { variables: Pick::All, ..Selection::default() };
                    prop_assert!(manager.rollback_selected(&mut ctx, id, &selection).success);
                    model.remember(&expected, max);
                    let (_, origin) = &model.kept[index.index(model.kept.len())];
                    expected.variables = origin.variables.clone();
                }
                Request::Undo => {
                    let result = manager.undo_rollback(&mut ctx);
                    prop_assert_eq!(result.success, !model.undo.is_empty());
                    if let Some((before, line)) = model.undo.pop() {
                        expected = before;
                        model.line = line;
                    }
                }
                Request::Prune(index) => {
                    // Wall clocks of one test may be equal, so the snapshots that go are asked of the manager.
                    let Some(id) = model.any(&index) else { continue };
                    let moment = manager.get_snapshot(id).expect("the model keeps it").created_at;
                    let gone: Vec<_> = manager
                        .list_snapshots()
                        .iter()
                        .filter(|snapshot| snapshot.created_at < moment)
                        .map(|snapshot| snapshot.id)
                        .collect();
                    prop_assert_eq!(manager.prune_before(moment), gone.len());
                    gone.into_iter().for_each(|id| model.remove(id));
                }
                Request::Clear => {
                    manager.clear();
                    model = Model::default();
                }
                Request::Reload => {
                    let text = serde_json::to_string(&manager).expect("a manager can be written");
                    manager = serde_json::from_str(&text).expect("and read");
                }
            }
            prop_assert_eq!(&ctx, &expected);
            let kept: Vec<_> = model.kept.iter().rev().map(|(id, _)| *id).collect();
            prop_assert_eq!(listed(&manager), kept);
            let line: Vec<_> = manager.current_timeline().iter().rev().map(|snapshot| snapshot.id).collect();
            prop_assert_eq!(&line, &model.line);
            prop_assert_eq!(manager.current_snapshot().map(|snapshot| snapshot.id), model.line.last().copied());
        }
    }
}
