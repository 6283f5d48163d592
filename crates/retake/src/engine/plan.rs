//! What going back or changing something would do, worked out before anything changes. Pure: a workflow, states and a
//! request in, a plan out. What a change concerns is in [`affected`], how variables are worked out anew in [`lineage`].

mod affected;
mod effects;
mod explanation;
mod lineage;
mod request;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

pub(super) use effects::{Happened, Settled, compensated, settle_effects};
pub(super) use explanation::explain;
pub use explanation::{Explanation, Reuse, Trigger};
pub use request::{Edit, Effects, Extent, Redefine, Rollback};
pub(super) use upstream::upstream;

use self::affected::{Affected, Changes, Judge, Rebased};
use self::effects::may_have_happened;
use self::lineage::Lineage;
use super::attempt;
use super::planner::ending;
use super::{EngineError, compensation, standing};
use crate::execution::{
    Base, Cell, Change, Cost, ExecutionContext, ExecutionId, ExecutionResult, ExecutionState,
    NodeExecutionResult, NodeId, Spare, Subject, TakenBack, Variable, Variables, Write, WriteOp, node_id,
};
use crate::store::{Cause, CheckpointRecord, Seq, check_value, hash};
use crate::workflow::{Effect, NodeKind, Workflow};

/// What a rollback, an edit, a fork or another workflow would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The point that the new head comes of.
    pub target: Seq,
    /// The head that the plan was made for. Where it has moved, the plan is refused.
    pub head: Seq,
    /// Nodes whose results stay.
    pub keep: Vec<String>,
    /// Nodes that had a result and will run again, in the order in which they can. One of them that turns out to see
    /// what it saw is spared.
    pub rerun: Vec<Rerun>,
    /// Nodes that have not run yet, and will.
    pub pending: Vec<String>,
    /// Nodes with an effect outside, which cannot be undone, whose results would be forgotten.
    pub irreversible: Vec<String>,
    /// Nodes whose counter-actions will run before anything else does, in that order: the last effect first.
    pub compensate: Vec<String>,
    /// Nodes whose results would stand again, although their effects were compensated since.
    pub compensated: Vec<String>,
    /// Nodes whose results stay although what they read changes: only where the extent was narrowed by hand.
    pub inconsistent: Vec<Rerun>,
    /// Nodes that the workflow has no more, and whose results go.
    pub removed: Vec<String>,
    /// Nodes whose outputs go: they run again, or are no more. What failed has nothing to lose.
    pub forgotten: Vec<String>,
    /// Variables that change.
    pub variables: BTreeMap<String, VariableChange>,
    /// Nodes that have another output then, by name.
    pub outputs: BTreeMap<String, VariableChange>,
    /// US dollars that the kept results cost, as a decimal; `None` where not known or where nothing was bought.
    pub cost_kept_usd: Option<String>,
    /// US dollars that the nodes to run again cost last time.
    pub cost_again_usd: Option<String>,
    /// Money, tokens and time of the kept results.
    pub kept: Cost,
    /// Money, tokens and time of the nodes to run again, as of last time.
    pub again: Cost,
    /// What applying it commits.
    #[serde(skip)]
    pub(super) change: PlannedChange,
}

impl Plan {
    /// Tells whether [`apply`](super::Engine::apply) would take the plan.
    ///
    /// # Errors
    /// [`EngineError::Irreversible`] and [`EngineError::Compensated`], where the request did not say what to do.
    pub fn check(&self) -> Result<(), EngineError> {
        refuse(self.change.effects, &self.irreversible, &self.compensated)
    }
}

/// Refuses what nobody decided on.
pub(super) fn refuse(
    effects: Effects,
    irreversible: &[String],
    compensated: &[String],
) -> Result<(), EngineError> {
    match effects {
        Effects::Refuse | Effects::Compensate if !irreversible.is_empty() => {
            Err(EngineError::Irreversible { nodes: irreversible.to_vec() })
        }
        Effects::Refuse if !compensated.is_empty() => {
            Err(EngineError::Compensated { nodes: compensated.to_vec() })
        }
        Effects::Refuse | Effects::Compensate | Effects::Again | Effects::Keep => Ok(()),
    }
}

/// A node, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rerun {
    /// The node.
    pub node: String,
    /// Why.
    pub because: String,
}

/// What a variable or an output changes from and to; `None` where it is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VariableChange {
    /// At the head.
    pub from: Option<Value>,
    /// After the plan is applied.
    pub to: Option<Value>,
}

/// What applying a plan commits.
#[derive(Debug, Clone)]
pub(super) struct PlannedChange {
    pub(super) execution: ExecutionId,
    pub(super) effects: Effects,
    pub(super) cause: Cause,
    /// The point that precedes the new one on the time line.
    pub(super) parent: Seq,
    /// The point whose state the new one is nearest to.
    pub(super) base: Seq,
    /// The state that becomes the head.
    pub(super) after: NewState,
    /// The workflow that the execution runs from now on, if that is another.
    pub(super) workflow: Option<Box<Workflow>>,
}

/// A state, and which node wrote the variables in it that were worked out anew.
#[derive(Debug, Clone)]
pub(super) struct NewState {
    pub(super) ctx: ExecutionContext,
    pub(super) writers: BTreeMap<String, NodeId>,
}

/// A state, and its place in the history.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) record: CheckpointRecord,
    pub(super) ctx: ExecutionContext,
}

/// What a plan is made of, beside the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    /// What the execution is called.
    pub(super) name: &'a str,
    pub(super) workflow: &'a Workflow,
    /// The one that the execution runs at the head, where that is another.
    pub(super) head_workflow: &'a Workflow,
    pub(super) head: &'a Point,
    /// The head itself, where nothing goes back.
    pub(super) target: &'a Point,
    /// Whether the target is on the time line of the head.
    pub(super) is_on_line: bool,
}

impl<'a> Known<'a> {
    /// Returns what a plan is made of that goes back to nowhere.
    pub(super) fn of_head(name: &'a str, workflow: &'a Workflow, head: &'a Point) -> Self {
        Self { name, workflow, head_workflow: workflow, head, target: head, is_on_line: true }
    }
}

/// Works out what going back would do.
pub(super) fn rollback(known: Known<'_>, request: &Rollback) -> Result<Plan, EngineError> {
    let cause = Cause::Rollback { to: known.target.record.seq };
    let mut draft = Draft::new(known, cause, request.effects);
    draft.set(&request.set);
    match &request.extent {
        Extent::Only { variables, nodes } => draft.narrow(variables, nodes)?,
        Extent::Affected if known.is_on_line && draft.follow(request.node.as_deref())? => {}
        Extent::Affected | Extent::Linear => draft.go_back_wholly(),
    }
    draft.finish()
}

/// Works out what a change of the head would do.
pub(super) fn edit(known: Known<'_>, request: &Edit) -> Result<Plan, EngineError> {
    let mut draft = Draft::new(known, Cause::Edit, request.effects);
    draft.set(&request.set);
    for name in request.outputs.keys().chain(&request.done) {
        draft.replace(name, request)?;
    }
    draft.finish()
}

/// Works out what going on from the head would do, with variables set and maybe by another workflow.
pub(super) fn go_on(
    known: Known<'_>,
    cause: Cause,
    new: Option<Redefinition>,
    set: &BTreeMap<String, Value>,
    effects: Effects,
) -> Result<Plan, EngineError> {
    let Some(Redefinition { workflow, variables, inputs }) = new else {
        let mut draft = Draft::new(known, cause, effects);
        draft.set(set);
        return draft.finish();
    };
    let mut draft = Draft::new(Known { workflow: &workflow, ..known }, cause, effects);
    draft.set(set);
    draft.redefine(known.workflow, variables);
    draft.from.inputs = inputs;
    let mut plan = draft.finish()?;
    plan.change.workflow = Some(Box::new(workflow));
    Ok(plan)
}

/// Returns a state without the results whose effects were compensated, and without what depends on them. Returns `None`
/// where there are none.
pub(super) fn without_compensated(
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

/// Another workflow for an execution.
pub(super) struct Redefinition {
    pub(super) workflow: Workflow,
    /// The first values of the variables whose definition is another now.
    pub(super) variables: BTreeMap<String, Option<Value>>,
    /// The inputs, with those that only this workflow has a default for.
    pub(super) inputs: Variables,
}

/// A plan in the making.
struct Draft<'a> {
    known: Known<'a>,
    cause: Cause,
    effects: Effects,
    /// The state that is judged and changed: the head's, or the target's.
    from: ExecutionContext,
    changes: Changes,
    /// The point that precedes the new one on the time line.
    parent: Seq,
    /// The point whose state the new one is nearest to.
    base: Seq,
    /// What was named to go back, where everything else stays.
    named: Option<Changes>,
    /// Why results go that nothing else explains.
    going: String,
    /// Bases of variables at the target, which are theirs again. What is judged had seen others.
    bases: BTreeMap<String, Base>,
    /// Results that nodes had at the target, and that stand again.
    restored: BTreeMap<NodeId, NodeExecutionResult>,
}

impl<'a> Draft<'a> {
    fn new(known: Known<'a>, cause: Cause, effects: Effects) -> Self {
        Self {
            known,
            cause,
            effects,
            from: known.head.ctx.clone(),
            changes: Changes::default(),
            parent: known.head.record.seq,
            base: known.head.record.seq,
            named: None,
            going: format!("its result is newer than @{}", known.target.record.seq),
            bases: BTreeMap::new(),
            restored: BTreeMap::new(),
        }
    }

    fn set(&mut self, set: &BTreeMap<String, Value>) {
        self.changes.set.extend(set.iter().map(|(name, value)| (name.clone(), Some(value.clone()))));
    }

    /// Everything after the target goes.
    fn go_back_wholly(&mut self) {
        let Known { head, target, .. } = self.known;
        self.from = target.ctx.clone();
        self.from.ledger.turn = head.ctx.ledger.turn;
        self.from.ledger.spend = head.ctx.ledger.spend;
        self.parent = target.record.seq;
        self.base = target.record.seq;
    }

    /// What the target recorded stands again, and what depends on it goes. Returns false where the target recorded
    /// nothing to follow.
    fn follow(&mut self, named: Option<&str>) -> Result<bool, EngineError> {
        let Known { workflow, head, target, .. } = self.known;
        let graph = workflow.graph();
        let seq = target.record.seq;
        let (at, before) = match (&target.record.cause, named) {
            (_, Some(name)) => (vec![name], None),
            (Cause::Before { node } | Cause::Started { node }, None) => (Vec::new(), Some(node)),
            // These are states as a whole.
            (
                Cause::Rollback { .. }
                | Cause::Undo { .. }
                | Cause::Redo { .. }
                | Cause::Edit
                | Cause::Fork { .. },
                None,
            ) => return Ok(false),
            (_, None) => (target.record.nodes.iter().map(String::as_str).collect(), None),
        };
        if let Some(node) = before.and_then(|node| graph.index_of(node)) {
            if !self.is_as_at_target(&graph.id(node)) {
                self.changes.forced.insert(node, format!("@{seq} is just before it"));
            }
        } else if at.is_empty() {
            return Ok(false);
        }
        let lineage = Lineage::of(&head.ctx);
        for name in at {
            let Some(node) = graph.index_of(name) else {
                return Err(EngineError::NothingThere { what: "node", name: name.to_owned(), target: seq });
            };
            self.stand_again(node);
            for dependent in graph.nodes() {
                if !self.is_as_at_target(&graph.id(dependent))
                    && (graph.dependencies(dependent).contains(&node)
                        || self.has_read(&lineage, dependent, node))
                {
                    let why = format!("it depends on `{name}`, and its result is newer than @{seq}");
                    self.changes.forced.entry(dependent).or_insert(why);
                }
            }
        }
        self.take_back_what_was_edited_since();
        let replaced = &self.changes.replaced;
        self.changes.forced.retain(|node, _| !replaced.contains_key(&graph.id(*node)));
        self.unset_what_was_set_since();
        self.parent = seq;
        Ok(true)
    }

    /// What a node gave at the target stands again, with what it had been made from.
    fn stand_again(&mut self, node: usize) {
        let Known { workflow, target, .. } = self.known;
        let graph = workflow.graph();
        let lineage = Lineage::of(&target.ctx);
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            let id = graph.id(node);
            let Some(result) = target.ctx.get_node_result(&id) else { continue };
            if self.is_as_at_target(&id) || self.changes.replaced.contains_key(&id) {
                continue;
            }
            self.changes.replaced.insert(id, result.clone());
            left.extend(graph.dependencies(node));
            for read in &result.reads {
                match &read.subject {
                    Subject::Node(name) => left.extend(graph.index_of(name)),
                    Subject::Variable(name) => {
                        let writers = lineage.seen(name, result.began).iter().filter_map(|event| event.node);
                        left.extend(writers.filter_map(|writer| graph.index_of_id(&writer)));
                    }
                    Subject::Input(_) | Subject::Secret(_) => {}
                }
            }
        }
    }

    /// Outputs that a person put in place of others after the target are what they were before that.
    fn take_back_what_was_edited_since(&mut self) {
        let Known { head, target, .. } = self.known;
        for (id, now) in head.ctx.node_results.iter() {
            let then = target.ctx.get_node_result(id).filter(|then| then.ended == now.ended);
            if let Some(then) = then.filter(|then| then.result != now.result) {
                self.changes.replaced.insert(*id, then.clone());
            }
        }
    }

    /// Tells whether a node stands as it did at the target, or has not run.
    fn is_as_at_target(&self, id: &NodeId) -> bool {
        let Known { head, target, .. } = self.known;
        let now = head.ctx.get_node_result(id);
        now.is_none() || now.map(|now| now.ended) == target.ctx.get_node_result(id).map(|then| then.ended)
    }

    /// Tells whether a node had read what another gave or wrote, as far as was recorded.
    fn has_read(&self, lineage: &Lineage, reader: usize, node: usize) -> bool {
        let graph = self.known.workflow.graph();
        let id = graph.id(node);
        let Some(result) = self.from.get_node_result(&graph.id(reader)) else { return false };
        result.reads.iter().any(|read| match &read.subject {
            Subject::Node(name) => {
                name == graph.name(node)
                    && self.from.get_node_result(&id).is_some_and(|record| record.ended <= result.began)
            }
            Subject::Variable(name) => {
                lineage.seen(name, result.began).iter().any(|event| event.node == Some(id))
            }
            Subject::Input(_) | Subject::Secret(_) => false,
        })
    }

    /// Variables that a person set after the target are what they were before that.
    fn unset_what_was_set_since(&mut self) {
        let then = &self.known.target.ctx;
        let since = then.ledger.turn;
        for (name, base) in self.from.ledger.bases.iter().filter(|(_, base)| base.turn > since) {
            let value = then.get_variable(name);
            let before = match then.ledger.bases.get(name) {
                Some(before) => before.clone(),
                None => Base { turn: 0, value: value.cloned() },
            };
            self.bases.insert(name.clone(), before);
            let rebased = Rebased { turn: base.turn, since, then: value.map(hash) };
            self.changes.rebased.insert(name.clone(), rebased);
        }
    }

    /// Only what is named goes back.
    fn narrow(&mut self, variables: &[String], nodes: &[String]) -> Result<(), EngineError> {
        let Known { workflow, head, target, .. } = self.known;
        let nothing = |what, name: &String| EngineError::NothingThere {
            what,
            name: name.clone(),
            target: target.record.seq,
        };
        let mut named = Changes::default();
        self.going = "its result was taken back".to_owned();
        for name in variables {
            let then = target.ctx.get_variable(name);
            if then.is_none() && !head.ctx.variables.contains_key(name) {
                return Err(nothing("variable", name));
            }
            if then != head.ctx.get_variable(name) {
                named.set.insert(name.clone(), then.cloned());
                self.from.set_by_hand(name, then.cloned());
            }
        }
        for name in nodes {
            let Some(node) = workflow.graph().index_of(name) else { return Err(nothing("node", name)) };
            let id = node_id(name);
            match (target.ctx.get_node_result(&id), head.ctx.get_node_result(&id)) {
                (Some(then), _) => {
                    self.from.record_node_result(id, then.clone());
                    named.replaced.insert(id, then.clone());
                }
                (None, Some(_)) => {
                    self.from.node_results.remove(&id);
                    named.forced.insert(node, self.going.clone());
                }
                (None, None) => return Err(nothing("node", name)),
            }
            self.from.ledger.taken_back.remove(&id);
        }
        self.hold_what_was_written(nodes);
        self.named = Some(named);
        Ok(())
    }

    /// Variables stay as they are though they are not what the results that are left make of them.
    fn hold_what_was_written(&mut self, nodes: &[String]) {
        let results = nodes.iter().map(|name| node_id(name)).flat_map(|id| {
            let Known { head, target, .. } = self.known;
            head.ctx.get_node_result(&id).into_iter().chain(target.ctx.get_node_result(&id))
        });
        let written: BTreeSet<&String> =
            results.flat_map(|result| &result.writes).map(|write| &write.variable).collect();
        for name in written {
            self.from.bury(name);
            let mut replayed = self.from.clone();
            let fits = Lineage::of(&self.from).replay(&mut replayed, name).is_ok();
            if !fits || replayed.get_variable(name) != self.from.get_variable(name) {
                let value = self.from.get_variable(name).cloned();
                self.from.set_by_hand(name, value);
            }
        }
    }

    /// Puts another output in place of what a node gave.
    fn replace(&mut self, name: &str, request: &Edit) -> Result<(), EngineError> {
        let Known { workflow, head, .. } = self.known;
        let Some(node) = workflow.graph().index_of(name) else {
            return Err(EngineError::NoNode { name: self.known.name.to_owned(), node: name.to_owned() });
        };
        let id = node_id(name);
        let before = head.ctx.get_node_result(&id);
        let has_output = before.is_some_and(|before| before.output().is_some());
        match (request.done.contains(name), has_output) {
            (true, true) => return Err(EngineError::HasOutput { node: name.to_owned() }),
            (false, false) => {
                let found = standing(before.map(|before| &before.result)).0;
                return Err(EngineError::HasNoOutput { node: name.to_owned(), found });
            }
            (true, false) | (false, true) => {}
        }
        let output = request.outputs.get(name).cloned().unwrap_or_default();
        check_value(&format!("nodes.{name}.output"), &output)?;
        let definition = workflow.node(node);
        let now = before.and_then(|before| before.completed_at).unwrap_or(self.known.head.record.created_at);
        let mut result = before.cloned().unwrap_or_else(|| NodeExecutionResult::started(now));
        result.completed_at = Some(now);
        result.result = ExecutionResult::Success(output);
        if !has_output {
            let mut writes = definition.into.clone().map(attempt::into).into_iter().collect::<Vec<_>>();
            if let NodeKind::Set(variables) = &definition.kind {
                let field = |variable: &String| Write {
                    variable: variable.clone(),
                    op: WriteOp::Field(variable.clone()),
                };
                writes.extend(variables.keys().map(field));
            }
            result.writes = writes;
        }
        self.changes.replaced.insert(id, result);
        Ok(())
    }

    /// Nodes whose definition is another run again, and those that are no more leave.
    fn redefine(&mut self, old: &Workflow, vars: BTreeMap<String, Option<Value>>) {
        let new = self.known.workflow;
        self.changes.waits_anew = true;
        for (name, before) in &old.definition().nodes {
            match (new.definition().nodes.get(name), new.graph().index_of(name)) {
                (Some(after), Some(node)) => {
                    if !before.gives_the_same_as(after) {
                        self.changes.forced.insert(node, "its definition changes".to_owned());
                        self.from.ledger.taken_back.remove(&node_id(name));
                    }
                }
                (None, _) | (_, None) => {
                    self.changes.gone.insert(node_id(name), name.clone());
                    self.from.ledger.taken_back.remove(&node_id(name));
                }
            }
        }
        self.changes.forced.retain(|node, _| self.from.get_node_result(&new.graph().id(*node)).is_some());
        self.changes.gone.retain(|id, _| self.from.get_node_result(id).is_some());
        for (name, value) in vars {
            // What a person set since stays.
            if self.from.ledger.bases.get(&name).is_some_and(|base| base.turn > 0) {
                continue;
            }
            self.from.ledger.bases.set(name.clone(), Cell::new(Base { turn: 0, value }));
            self.changes.rebased.insert(name, Rebased { turn: 0, since: 0, then: None });
        }
        self.from.workflow_id = new.id();
    }

    fn finish(mut self) -> Result<Plan, EngineError> {
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
        let happened = Happened { seq: head.record.seq, workflow: head_workflow, ctx: &head.ctx };
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
                let spare = (!changes.forced.contains_key(&node)).then(|| self.spare(node)).flatten();
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
    fn spare(&self, node: usize) -> Option<Spare> {
        let workflow = self.known.workflow;
        let result = self.from.get_node_result(&workflow.graph().id(node))?;
        result.output()?;
        Some(Spare { result: result.clone(), upstream: upstream(workflow, &self.from, node) })
    }

    fn describe(self, mut after: NewState, settled: Settled, affected: &Affected) -> Plan {
        let Known { workflow, head, target, .. } = self.known;
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
            removed: self.changes.gone.values().cloned().collect(),
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
            let ended = |ctx: &ExecutionContext| {
                ctx.get_node_result(&id).filter(|record| record.result != ExecutionResult::Pending).cloned()
            };
            match (ended(after), ended(&head.ctx).or_else(|| ended(&target.ctx))) {
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
        let gone = self.changes.gone.iter().filter(|(id, _)| output(&head.ctx, **id).is_some());
        plan.forgotten.extend(gone.map(|(_, name)| name.clone()));
        plan.cost_kept_usd = plan.kept.usd();
        plan.cost_again_usd = plan.again.usd();
        plan
    }
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

impl NewState {
    fn replay(&mut self, lineage: &Lineage, name: &str) -> Result<(), NodeId> {
        let writer = lineage.replay(&mut self.ctx, name).map_err(|(node, _)| node)?;
        self.writers.extend(writer.map(|writer| (name.to_owned(), writer)));
        Ok(())
    }

    /// Puts a result that the state lacks into it, with what its node wrote.
    fn restore(&mut self, id: NodeId, result: &NodeExecutionResult) {
        self.ctx.record_node_result(id, result.clone());
        self.ctx.ledger.taken_back.remove(&id);
        let lineage = Lineage::of(&self.ctx);
        for write in &result.writes {
            // What does not fit any more is as good as not written.
            let _as_far_as_it_fits = self.replay(&lineage, &write.variable);
        }
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
