//! What going back would do, worked out before anything changes. Pure: states and a request in, a plan out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::planner::ending;
use super::{EngineError, hash_now, money};
use crate::execution::{
    Cell, Change, ExecutionContext, ExecutionResult, ExecutionState, NodeExecutionResult, NodeId, Subject,
    Variable, node_id,
};
use crate::store::Seq;
use crate::workflow::{Effect, Workflow};

/// How far to go back, and what to change on the way.
#[derive(Debug, Clone, Default)]
pub struct Rollback {
    /// What goes back.
    pub extent: Extent,
    /// Variables to set then. Nodes that had read another value, and what depends on them, run again.
    pub set: BTreeMap<String, Value>,
    /// What to do about effects outside that would be forgotten.
    pub effects: Effects,
}

/// What of the state goes back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    #[default]
    Whole,
    /// These variables and node results take the values that they had at the point, or go if they were not there.
    /// Everything else stays, even what was made from them: the plan names it.
    Only {
        /// Names of variables.
        variables: Vec<String>,
        /// Names of nodes.
        nodes: Vec<String>,
    },
}

/// What to do about nodes whose effect outside cannot be undone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effects {
    /// Do not go back.
    #[default]
    Refuse,
    /// Let them run again, under a new idempotency key.
    Again,
    /// Keep their results, so that they do not run again.
    Keep,
}

/// What a rollback would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The point.
    pub target: Seq,
    /// The head that the plan was made for. Where it has moved, the plan is refused.
    pub head: Seq,
    /// Nodes whose results stay.
    pub keep: Vec<String>,
    /// Nodes that had a result and will run again, in the order in which they can.
    pub rerun: Vec<Rerun>,
    /// Nodes with an effect outside, which cannot be undone, whose results would be forgotten.
    pub irreversible: Vec<String>,
    /// Nodes whose results stay although what they read changes: only where the extent was narrowed by hand.
    pub inconsistent: Vec<Rerun>,
    /// Variables that change.
    pub variables: BTreeMap<String, VariableChange>,
    /// US dollars that the kept results cost, as a decimal; `None` where not known or where nothing was bought.
    pub cost_kept_usd: Option<String>,
    /// US dollars that the nodes to run again cost last time.
    pub cost_again_usd: Option<String>,
    /// The state that the plan makes the head.
    #[serde(skip)]
    pub(super) after: NewState,
}

/// A node, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rerun {
    /// The node.
    pub node: String,
    /// Why.
    pub because: String,
}

/// What a variable changes from and to; `None` where it is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VariableChange {
    /// At the head.
    pub from: Option<Value>,
    /// After the rollback.
    pub to: Option<Value>,
}

/// A state, its place in the history, and who wrote its variables last.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) seq: Seq,
    pub(super) ctx: ExecutionContext,
    pub(super) writers: BTreeMap<String, NodeId>,
}

/// What setting variables by hand concerns.
#[derive(Debug, Clone, Default)]
pub(super) struct Affected {
    /// Nodes that run again, and why.
    nodes: BTreeMap<usize, String>,
    /// Variables that such a node wrote last: they go back to what they were before it.
    pub(super) variables: BTreeSet<String>,
}

/// What a variable was before the nodes that run again wrote it; `None` where it was not there.
pub(super) type Restored = BTreeMap<String, Option<(Variable, Option<NodeId>)>>;

impl Affected {
    /// Tells whether a node runs again.
    pub(super) fn concerns(&self, workflow: &Workflow, node: &NodeId) -> bool {
        workflow.graph().index_of_id(node).is_some_and(|node| self.nodes.contains_key(&node))
    }
}

impl Rollback {
    /// Returns the state that goes back, before anything is set in it.
    pub(super) fn ground(
        &self,
        workflow: &Workflow,
        head: &Point,
        target: &Point,
    ) -> Result<Point, EngineError> {
        match &self.extent {
            Extent::Whole => Ok(target.clone()),
            Extent::Only { variables, nodes } => narrowed(workflow, head, target, variables, nodes),
        }
    }

    /// Tells whether a variable was named to go back.
    fn names(&self, variable: &String) -> bool {
        matches!(&self.extent, Extent::Only { variables, .. } if variables.contains(variable))
    }
}

/// Works out which nodes a change of variables concerns: those that had read the value that there is now, those that
/// depend on them, and those that had read what they wrote.
pub(super) fn affected(workflow: &Workflow, ground: &Point, request: &Rollback) -> Affected {
    let graph = workflow.graph();
    let mut affected = Affected::default();
    let mut changed: BTreeMap<&str, String> = request
        .set
        .iter()
        .filter(|(name, value)| ground.ctx.get_variable(name) != Some(*value))
        .map(|(name, _)| (name.as_str(), format!("it read `vars.{name}`, which changes")))
        .collect();
    // Each round adds a node or a variable, or is the last.
    loop {
        let known = (affected.nodes.len(), changed.len());
        for node in graph.nodes().filter(|node| !affected.nodes.contains_key(node)).collect::<Vec<_>>() {
            let Some(result) = ground.ctx.get_node_result(&graph.id(node)) else { continue };
            let upstream = graph.dependencies(node).iter().find(|node| affected.nodes.contains_key(*node));
            let reason = match upstream {
                Some(upstream) => Some(format!("`{}` runs again", graph.name(*upstream))),
                None => read_of(&ground.ctx, result, &changed),
            };
            affected.nodes.extend(reason.map(|reason| (node, reason)));
        }
        for (name, writer) in &ground.writers {
            let writer = graph.index_of_id(writer).filter(|writer| affected.nodes.contains_key(writer));
            if let (Some(writer), false) = (writer, changed.contains_key(name.as_str())) {
                let why = format!("it read `vars.{name}`, which `{}` writes again", graph.name(writer));
                changed.insert(name, why);
                affected.variables.insert(name.clone());
            }
        }
        if known == (affected.nodes.len(), changed.len()) {
            // What was named has the value that was asked for.
            affected.variables.retain(|name| !request.names(name));
            return affected;
        }
    }
}

/// Says why a node is concerned by changed variables: it had read the value that there is now, not an earlier one.
fn read_of(
    now: &ExecutionContext,
    result: &NodeExecutionResult,
    changed: &BTreeMap<&str, String>,
) -> Option<String> {
    result.reads.iter().find_map(|read| match &read.subject {
        Subject::Variable(name) if hash_now(now, &read.subject) == read.hash => {
            changed.get(name.as_str()).cloned()
        }
        Subject::Variable(_) | Subject::Node(_) | Subject::Input(_) | Subject::Secret(_) => None,
    })
}

/// Works out what going back would do. `ground` is the state that goes back, by [`Rollback::ground`].
pub(super) fn plan(
    workflow: &Workflow,
    (head, target, ground): (&Point, &Point, Point),
    request: &Rollback,
    affected: &Affected,
    restored: Restored,
) -> Plan {
    let is_whole = request.extent == Extent::Whole;
    let mut after = NewState { ctx: ground.ctx, writers: ground.writers, is_whole };
    after.ctx.generation = head.seq + 1;
    for node in affected.nodes.keys() {
        after.ctx.node_results.remove(&workflow.graph().id(*node));
    }
    for (name, before) in restored {
        after.set(name, before);
    }
    let irreversible = settle_effects(workflow, head, &mut after, request.effects);
    for (name, value) in &request.set {
        after.set(name.clone(), Some((value.clone().into(), None)));
    }
    settle(workflow, &head.ctx, &mut after.ctx);
    describe(workflow, head, target, after, irreversible, affected)
}

/// The state that a plan makes the head.
#[derive(Debug, Clone)]
pub(super) struct NewState {
    pub(super) ctx: ExecutionContext,
    pub(super) writers: BTreeMap<String, NodeId>,
    /// Whether it comes of the target, or of the head.
    pub(super) is_whole: bool,
}

impl NewState {
    /// Sets a variable and who wrote it, or removes it.
    fn set(&mut self, name: String, variable: Option<(Variable, Option<NodeId>)>) {
        self.writers.remove(&name);
        match variable {
            Some((cell, writer)) => {
                self.writers.extend(writer.map(|writer| (name.clone(), writer)));
                self.ctx.variables.set(name, cell);
            }
            None => {
                self.ctx.variables.remove(&name);
            }
        }
    }
}

fn narrowed(
    workflow: &Workflow,
    head: &Point,
    target: &Point,
    variables: &[String],
    nodes: &[String],
) -> Result<Point, EngineError> {
    let mut after = NewState { ctx: head.ctx.clone(), writers: head.writers.clone(), is_whole: false };
    let nothing =
        |what, name: &String| EngineError::NothingThere { what, name: name.clone(), target: target.seq };
    for name in variables {
        let then = target.ctx.variables.cell(name);
        if then.is_none() && !after.ctx.variables.contains_key(name) {
            return Err(nothing("variable", name));
        }
        after.set(name.clone(), then.map(|cell| (cell.clone(), target.writers.get(name).copied())));
    }
    for name in nodes {
        let id = node_id(name);
        match target.ctx.node_results.cell(&id) {
            _ if workflow.graph().index_of(name).is_none() => return Err(nothing("node", name)),
            Some(cell) => after.ctx.node_results.set(id, cell.clone()),
            None if after.ctx.node_results.remove(&id).is_some() => {}
            None => return Err(nothing("node", name)),
        }
    }
    Ok(Point { seq: head.seq, ctx: after.ctx, writers: after.writers })
}

/// Returns what a node had read that is different now.
fn changed_read(now: &ExecutionContext, result: &NodeExecutionResult) -> Option<String> {
    result.reads.iter().find_map(|read| match &read.subject {
        Subject::Variable(name) if hash_now(now, &read.subject) != read.hash => {
            Some(format!("it read `vars.{name}`, which changes"))
        }
        Subject::Node(name) if hash_now(now, &read.subject) != read.hash => {
            Some(format!("it read `{name}`, whose result changes"))
        }
        // Inputs never change, and what a secret was is not known.
        Subject::Variable(_) | Subject::Node(_) | Subject::Input(_) | Subject::Secret(_) => None,
    })
}

/// Finds the nodes whose effect outside the new state would forget, and does with them what was asked. Returns them.
pub(super) fn settle_effects(
    workflow: &Workflow,
    head: &Point,
    after: &mut NewState,
    effects: Effects,
) -> Vec<String> {
    let graph = workflow.graph();
    let mut forgotten = Vec::new();
    for node in graph.nodes().filter(|node| workflow.node(*node).effect == Effect::External) {
        let id = graph.id(node);
        let (then, now) = (after.ctx.get_node_result(&id), head.ctx.get_node_result(&id));
        let Some(now) = now.filter(|now| may_have_happened(&now.result)) else { continue };
        let is_forgotten = match then.map(|then| &then.result) {
            None | Some(ExecutionResult::Skipped) => true,
            // A mark without an end says less than an end.
            Some(ExecutionResult::Pending) => now.result != ExecutionResult::Pending,
            Some(ExecutionResult::Success(_) | ExecutionResult::Failure(_)) => false,
        };
        if !is_forgotten {
            continue;
        }
        forgotten.push(graph.name(node).to_owned());
        match effects {
            Effects::Refuse => {}
            // Without the mark, it runs under a new key.
            Effects::Again => {
                after.ctx.node_results.remove(&id);
            }
            Effects::Keep => {
                if let Some(cell) = head.ctx.node_results.cell(&id) {
                    after.ctx.node_results.set(id, cell.clone());
                }
                let wrote: Vec<&String> =
                    head.writers.iter().filter(|(_, writer)| **writer == id).map(|(name, _)| name).collect();
                for name in wrote {
                    let cell = head.ctx.variables.cell(name).cloned();
                    after.set(name.clone(), cell.map(|cell| (cell, Some(id))));
                }
            }
        }
    }
    forgotten
}

/// Tells whether a node with this result may have had its effect: one that failed may have, before it did.
fn may_have_happened(result: &ExecutionResult) -> bool {
    match result {
        ExecutionResult::Success(_) | ExecutionResult::Pending | ExecutionResult::Failure(_) => true,
        ExecutionResult::Skipped => false,
    }
}

/// Says how the execution stands in the new state.
fn settle(workflow: &Workflow, head: &ExecutionContext, after: &mut ExecutionContext) {
    let graph = workflow.graph();
    let is_done = |node: usize| {
        let result = after.get_node_result(&graph.id(node));
        result.is_some_and(|record| ending(workflow.node(node), &record.result).is_some())
    };
    if graph.nodes().all(is_done) {
        after.state = ExecutionState::Completed;
        after.completed_at = after.completed_at.or(head.completed_at);
    } else {
        after.state = ExecutionState::Paused;
        after.completed_at = None;
    }
}

fn describe(
    workflow: &Workflow,
    head: &Point,
    target: &Point,
    after: NewState,
    irreversible: Vec<String>,
    affected: &Affected,
) -> Plan {
    let is_whole = after.is_whole;
    let graph = workflow.graph();
    let (mut keep, mut rerun, mut inconsistent) = (Vec::new(), Vec::new(), Vec::new());
    let (mut kept, mut again) = (money::Sum::default(), money::Sum::default());
    for node in graph.nodes() {
        let (name, id) = (graph.name(node).to_owned(), graph.id(node));
        let ended = |ctx: &ExecutionContext| {
            ctx.get_node_result(&id).filter(|record| record.result != ExecutionResult::Pending).cloned()
        };
        match (ended(&after.ctx), ended(&head.ctx).or_else(|| ended(&target.ctx))) {
            (Some(record), _) => {
                kept.add(record.metrics.as_ref());
                if let (false, Some(because)) = (is_whole, changed_read(&after.ctx, &record)) {
                    inconsistent.push(Rerun { node: name.clone(), because });
                }
                keep.push(name);
            }
            (None, Some(record)) => {
                again.add(record.metrics.as_ref());
                let newer = || match is_whole {
                    true => format!("its result is newer than @{}", target.seq),
                    false => "its result was taken back".to_owned(),
                };
                let because = affected.nodes.get(&node).cloned().unwrap_or_else(newer);
                rerun.push(Rerun { node: name, because });
            }
            (None, None) => {}
        }
    }
    let variables = head.ctx.variables.changes_to(&after.ctx.variables).map(variable_change).collect();
    Plan {
        target: target.seq,
        head: head.seq,
        keep,
        rerun,
        irreversible,
        inconsistent,
        variables,
        cost_kept_usd: kept.usd(),
        cost_again_usd: again.usd(),
        after,
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
