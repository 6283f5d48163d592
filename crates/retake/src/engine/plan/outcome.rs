//! From what changes to what comes of it: the nodes that run again, the state without them, and the plan that tells it.

use std::collections::{BTreeMap, BTreeSet};

use super::affected::{Affected, Changes, Judge};
use super::draft::Draft;
use super::effects::may_have_happened;
use super::lineage::Lineage;
use super::upstream::Given;
use super::{
    Dropped, Effects, Happened, Known, NewState, Plan, PlannedChange, Rerun, Settled, VariableChange,
    compensated, settle_effects, upstream,
};
use crate::engine::planner::ending;
use crate::engine::{EngineError, compensation};
use crate::execution::{
    Cell, Change, Cost, ExecutionContext, ExecutionResult, ExecutionState, NodeExecutionResult, NodeId,
    Spare, TakenBack, Variable, node_id,
};
use crate::store::Cause;
use crate::workflow::{Effect, Workflow};

/// Returns a state without the results whose effects were compensated, and without what depends on them. Returns `None`
/// where there are none.
pub(in crate::engine) fn without_compensated(
    known: Known<'_>,
    state: &ExecutionContext,
) -> Result<Option<NewState>, EngineError> {
    let mut draft = Draft::new(known, Cause::Edit, Effects::Again);
    draft.from = state.clone();
    draft.force_compensated();
    if draft.changes.forced.is_empty() {
        return Ok(None);
    }
    let (_, mut after) = draft.work_out()?;
    settle(known.workflow, &known.head.ctx, &mut after.ctx);
    Ok(Some(after))
}

impl Draft<'_> {
    pub(super) fn finish(mut self) -> Result<Plan, EngineError> {
        let Known { workflow, head_workflow, head, .. } = self.known;
        let kept = match self.effects {
            Effects::Keep => self.pin_effects(),
            Effects::Again | Effects::Compensate => {
                self.force_compensated();
                Vec::new()
            }
            Effects::Refuse => Vec::new(),
        };
        // What a person sets on the way back is judged by what is left once the rest went back.
        let set =
            if self.parent == self.base { BTreeMap::new() } else { std::mem::take(&mut self.changes.set) };
        let (mut affected, mut after) = self.work_out()?;
        if !set.is_empty() {
            self.from = after.ctx;
            self.changes = Changes { set, pinned: self.changes.pinned, ..Changes::default() };
            self.bases.clear();
            self.restored.clear();
            let (more, then) = self.work_out()?;
            after.writers.retain(|name, _| self.from.get_variable(name) == then.ctx.get_variable(name));
            after.ctx = then.ctx;
            after.writers.extend(then.writers);
            affected.extend(more);
        }
        let dropped = if matches!(self.cause, Cause::Fork { .. }) {
            Dropped::KnownElsewhere
        } else {
            Dropped::Forgotten
        };
        let happened = Happened { seq: head.record.seq, workflow: head_workflow, ctx: &head.ctx, dropped };
        let mut settled = settle_effects(happened, workflow, &mut after, self.effects);
        settled.irreversible.extend(kept);
        after.ctx.generation = head.record.seq + 1;
        settle(workflow, &head.ctx, &mut after.ctx);
        Ok(self.describe(after, settled, &affected))
    }

    /// Returns the nodes that run again, and the state without them.
    fn work_out(&self) -> Result<(Affected, NewState), EngineError> {
        let workflow = self.known.workflow;
        let lineage = Lineage::of(&self.from);
        let judge = Judge { workflow, state: &self.from, lineage: &lineage, changes: &self.changes };
        let mut misfits = BTreeMap::new();
        // Each round finds one node more whose writes do not fit, or is the last.
        loop {
            let affected = judge.affected(&misfits);
            match self.apply(&affected) {
                Ok(after) => return Ok((affected, after)),
                Err((node, variable)) => {
                    if misfits.insert(node, variable.clone()).is_some() {
                        return Err(EngineError::Misfit { variable });
                    }
                }
            }
        }
    }

    /// Nodes whose effect was compensated run again, with what depends on them.
    fn force_compensated(&mut self) {
        let Known { workflow, head, .. } = self.known;
        let mut state = self.from.clone();
        for (id, result) in &self.changes.replaced {
            state.record_node_result(*id, result.clone());
        }
        for name in compensated(&head.ctx, workflow, &state) {
            let Some(node) = workflow.graph().index_of(&name) else { continue };
            self.changes.replaced.remove(&node_id(&name));
            self.changes.forced.insert(node, "its effect was compensated".to_owned());
        }
    }

    /// Nodes whose effect may have happened stay, with what they wrote. Returns those that would have gone otherwise.
    fn pin_effects(&mut self) -> Vec<String> {
        let Known { workflow, head, .. } = self.known;
        let graph = workflow.graph();
        let lineage = Lineage::of(&self.from);
        let judge = Judge { workflow, state: &self.from, lineage: &lineage, changes: &self.changes };
        let affected = judge.affected(&BTreeMap::new());
        let mut kept = Vec::new();
        for node in graph.nodes().filter(|node| workflow.node(*node).effect == Effect::External) {
            let id = graph.id(node);
            let Some(now) = head.ctx.get_node_result(&id).filter(|now| may_have_happened(&now.result)) else {
                continue;
            };
            self.changes.pinned.insert(node);
            if self.changes.forced.remove(&node).is_some() {
                // It stays, and what was to follow it runs again all the same.
                for dependent in graph.dependents(node) {
                    if !self.is_as_at_target(&graph.id(*dependent)) {
                        let why = format!("it depends on `{}`, which was to run again", graph.name(node));
                        self.changes.forced.entry(*dependent).or_insert(why);
                    }
                }
            }
            self.changes.replaced.remove(&id);
            let is_lost = self.from.get_node_result(&id).map(|then| then.ended) != Some(now.ended);
            if is_lost {
                self.restored.insert(id, now.clone());
            }
            if is_lost || affected.contains_key(&node) {
                kept.push(graph.name(node).to_owned());
            }
        }
        kept
    }

    /// Returns the state without the nodes that run again.
    fn apply(&self, affected: &Affected) -> Result<NewState, (NodeId, String)> {
        let graph = self.known.workflow.graph();
        let changes = &self.changes;
        let mut given = Given::new();
        let mut ctx = self.from.clone();
        for (name, base) in &self.bases {
            ctx.ledger.bases.set(name.clone(), Cell::new(base.clone()));
        }
        let mut touched: BTreeSet<String> = changes.rebased.keys().cloned().collect();
        let mut touch = |result: Option<&NodeExecutionResult>| {
            touched
                .extend(result.into_iter().flat_map(|r| r.writes.iter().map(|write| write.variable.clone())));
        };
        let leaving = affected.keys().map(|node| (graph.id(*node), Some(*node)));
        for (id, node) in leaving.chain(changes.gone.keys().map(|id| (*id, None))) {
            touch(self.from.get_node_result(&id));
            ctx.node_results.remove(&id);
            ctx.ledger.taken_back.remove(&id);
            if let Some((node, because)) = node.and_then(|node| Some((node, affected.get(&node)?))) {
                let spare =
                    (!changes.forced.contains_key(&node)).then(|| self.spare(node, &mut given)).flatten();
                ctx.ledger.taken_back.set(id, Cell::new(TakenBack { because: because.clone(), spare }));
            }
        }
        for (id, result) in changes.replaced.iter().chain(&self.restored) {
            touch(self.from.get_node_result(id));
            touch(Some(result));
            let mut result = result.clone();
            if result.ended == 0 {
                ctx.ledger.turn += 1;
                (result.began, result.ended) = (ctx.ledger.turn, ctx.ledger.turn);
            }
            ctx.record_node_result(*id, result);
            ctx.ledger.taken_back.remove(id);
        }
        // A node that had never run has no base below what it writes.
        touched.iter().for_each(|name| ctx.bury(name));
        let mut after = NewState { ctx, writers: BTreeMap::new() };
        let lineage = Lineage::of(&after.ctx);
        for name in &touched {
            after.replay(&lineage, name).map_err(|node| (node, name.clone()))?;
        }
        for (name, value) in &changes.set {
            if after.ctx.get_variable(name) == value.as_ref() {
                continue;
            }
            after.writers.remove(name);
            after.ctx.set_by_hand(name, value.clone());
        }
        Ok(after)
    }

    /// Returns a result that may turn out to stand.
    fn spare(&self, node: usize, given: &mut Given) -> Option<Spare> {
        let workflow = self.known.workflow;
        let result = self.from.get_node_result(&workflow.graph().id(node))?;
        result.output()?;
        Some(Spare { result: result.clone(), upstream: upstream(workflow, &self.from, node, given) })
    }

    fn describe(self, mut after: NewState, settled: Settled, affected: &Affected) -> Plan {
        let Known { workflow, head_workflow, head, target, .. } = self.known;
        let graph = workflow.graph();
        for node in graph.nodes() {
            let id = graph.id(node);
            let has_gone =
                head.ctx.node_results.contains_key(&id) && !after.ctx.node_results.contains_key(&id);
            if has_gone && !after.ctx.ledger.taken_back.contains_key(&id) {
                let taken_back = TakenBack { because: self.going.clone(), spare: None };
                after.ctx.ledger.taken_back.set(id, Cell::new(taken_back));
            }
        }
        let mut plan = Plan {
            target: target.record.seq,
            head: head.record.seq,
            keep: Vec::new(),
            rerun: Vec::new(),
            pending: Vec::new(),
            irreversible: settled.irreversible,
            compensate: settled.compensate,
            compensated: settled.compensated,
            inconsistent: Vec::new(),
            removed: removed(head_workflow, workflow, &head.ctx, &after.ctx),
            forgotten: Vec::new(),
            outputs: BTreeMap::new(),
            variables: head.ctx.variables.changes_to(&after.ctx.variables).map(variable_change).collect(),
            cost_kept_usd: None,
            cost_again_usd: None,
            kept: Cost::default(),
            again: Cost::default(),
            change: PlannedChange {
                execution: head.record.execution_id,
                effects: self.effects,
                cause: self.cause.clone(),
                parent: self.parent,
                base: self.base,
                after,
                workflow: None,
            },
        };
        plan.inconsistent = self.inconsistent(&plan.change.after.ctx);
        let after = &plan.change.after.ctx;
        let output = |ctx: &ExecutionContext, id: NodeId| ctx.get_node_result(&id)?.output().cloned();
        for node in graph.nodes() {
            let (name, id) = (graph.name(node).to_owned(), graph.id(node));
            match (output(&head.ctx, id), output(after, id)) {
                (Some(_), None) => plan.forgotten.push(name.clone()),
                (from, to @ Some(_)) if from != to => {
                    plan.outputs.insert(name.clone(), VariableChange { from, to });
                }
                (Some(_) | None, Some(_)) | (None, None) => {}
            }
            match (ended(after, &id), ended(&head.ctx, &id).or_else(|| ended(&target.ctx, &id))) {
                (Some(record), _) if ending(workflow.node(node), &record.result).is_none() => {
                    plan.again.add(record.metrics.as_ref());
                    plan.rerun.push(Rerun { node: name, because: "it failed".to_owned() });
                }
                (Some(record), _) => {
                    plan.kept.add(record.metrics.as_ref());
                    plan.keep.push(name);
                }
                (None, Some(record)) => {
                    plan.again.add(record.metrics.as_ref());
                    let because = affected.get(&node).cloned().unwrap_or_else(|| self.going.clone());
                    plan.rerun.push(Rerun { node: name, because });
                }
                (None, None) => plan.pending.push(name),
            }
        }
        let gone = plan.removed.iter().filter(|name| output(&head.ctx, node_id(name)).is_some()).cloned();
        plan.forgotten.extend(gone.collect::<Vec<_>>());
        plan.cost_kept_usd = plan.kept.usd();
        plan.cost_again_usd = plan.again.usd();
        plan
    }
}

/// Returns what a node gave, where it has ended.
fn ended<'c>(ctx: &'c ExecutionContext, id: &NodeId) -> Option<&'c NodeExecutionResult> {
    ctx.get_node_result(id).filter(|record| record.result != ExecutionResult::Pending)
}

impl Draft<'_> {
    /// Returns the nodes that stay although what they had read was named to go back.
    fn inconsistent(&self, after: &ExecutionContext) -> Vec<Rerun> {
        let Some(named) = &self.named else { return Vec::new() };
        let Known { workflow, head, .. } = self.known;
        let graph = workflow.graph();
        let lineage = Lineage::of(&head.ctx);
        let judge = Judge { workflow, state: &head.ctx, lineage: &lineage, changes: named };
        let stay = graph.nodes().filter(|node| !named.replaced.contains_key(&graph.id(*node)));
        stay.filter_map(|node| {
            let because = judge.read(after.get_node_result(&graph.id(node))?, &named.forced)?;
            Some(Rerun { node: graph.name(node).to_owned(), because })
        })
        .collect()
    }
}

/// Says how the execution stands in the new state.
fn settle(workflow: &Workflow, head: &ExecutionContext, after: &mut ExecutionContext) {
    let graph = workflow.graph();
    let is_done = |node: usize| {
        let result = after.get_node_result(&graph.id(node));
        result.is_some_and(|record| ending(workflow.node(node), &record.result).is_some())
    };
    if graph.nodes().all(is_done) && !compensation::is_any_due(after) {
        after.state = ExecutionState::Completed;
        after.completed_at = after.completed_at.or(head.completed_at);
    } else {
        after.state = ExecutionState::Paused;
        after.completed_at = None;
    }
}

/// Returns the nodes that the new workflow does not have, and whose results go.
fn removed(old: &Workflow, new: &Workflow, head: &ExecutionContext, after: &ExecutionContext) -> Vec<String> {
    let has_gone = |name: &&String| {
        let id = node_id(name);
        head.node_results.contains_key(&id) && !after.node_results.contains_key(&id)
    };
    let is_dropped = |name: &&String| !new.definition().nodes.contains_key(*name);
    old.definition().nodes.keys().filter(is_dropped).filter(has_gone).cloned().collect()
}

fn variable_change(change: Change<'_, String, Variable>) -> (String, VariableChange) {
    let value = |cell: &Variable| Some(Cell::value(cell).clone());
    match change {
        Change::Added(name, cell) => (name.clone(), VariableChange { from: None, to: value(cell) }),
        Change::Removed(name, cell) => (name.clone(), VariableChange { from: value(cell), to: None }),
        Change::Changed { key, before, after } => {
            (key.clone(), VariableChange { from: value(before), to: value(after) })
        }
    }
}
