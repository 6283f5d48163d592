//! Which nodes a change concerns. Pure, and from one state alone: every result remembers what it read, what it wrote,
//! and when.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::lineage::{Event, Lineage};
use crate::engine::context::seen_of_result;
use crate::engine::planner::ending;
use crate::execution::{ExecutionContext, NodeExecutionResult, NodeId, Read, Subject, WriteOp, node_id};
use crate::store::hash;
use crate::workflow::Workflow;

/// How many characters of a value stand in a reason.
const SHOWN_MAX: usize = 40;

/// What changes in a state, before it is known what that concerns.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    /// Nodes that run again whatever they would see, and why.
    pub(super) forced: BTreeMap<usize, String>,
    /// Nodes that have another result from now on.
    pub(super) replaced: BTreeMap<NodeId, NodeExecutionResult>,
    /// Nodes that the workflow has no more, by name.
    pub(super) gone: BTreeMap<NodeId, String>,
    /// Variables whose base is another from now on.
    pub(super) rebased: BTreeMap<String, Rebased>,
    /// Variables that a person sets now.
    pub(super) set: BTreeMap<String, Option<Value>>,
    /// Whether a node that waits for one without a result runs again: it did not wait for it when it ran.
    pub(super) waits_anew: bool,
    /// Nodes that stay whatever they would see.
    pub(super) pinned: BTreeSet<usize>,
}

/// A base that goes.
#[derive(Debug, Clone)]
pub(super) struct Rebased {
    /// Its turn.
    pub(super) turn: u64,
    /// The turn after which every other base goes too: only the last one is still known.
    pub(super) since: u64,
    /// The hash of what the variable was then.
    pub(super) then: Option<String>,
}

/// A state that is judged.
pub(super) struct Judge<'a> {
    pub(super) workflow: &'a Workflow,
    pub(super) state: &'a ExecutionContext,
    pub(super) lineage: &'a Lineage,
    pub(super) changes: &'a Changes,
}

/// Nodes that run again, and why.
pub(super) type Affected = BTreeMap<usize, String>;

impl Judge<'_> {
    /// Returns the nodes that run again: those that would see something else than they saw, and what depends on them.
    /// `misfits` are nodes whose writes do not fit what would be left below them.
    pub(super) fn affected(&self, misfits: &BTreeMap<NodeId, String>) -> Affected {
        let graph = self.workflow.graph();
        let mut affected: Affected = self.changes.forced.clone();
        for (id, variable) in misfits {
            let why = format!("what it wrote to `vars.{variable}` does not fit what is left of it");
            affected.extend(graph.index_of_id(id).map(|node| (node, why)));
        }
        let with_result: Vec<(usize, &NodeExecutionResult)> = graph
            .nodes()
            .filter(|node| !self.changes.pinned.contains(node))
            .filter(|node| !self.changes.replaced.contains_key(&graph.id(*node)))
            .filter_map(|node| Some((node, self.state.get_node_result(&graph.id(node))?)))
            .collect();
        affected.retain(|node, _| !self.changes.pinned.contains(node));
        // Each round adds a node, or is the last.
        loop {
            let known = affected.len();
            for (node, result) in &with_result {
                if affected.contains_key(node) {
                    continue;
                }
                let why = self.upstream(*node, &affected).or_else(|| self.read(result, &affected));
                affected.extend(why.map(|why| (*node, why)));
            }
            if affected.len() == known {
                return affected;
            }
        }
    }

    /// Returns what changes for a node by what it waits for.
    fn upstream(&self, node: usize, affected: &Affected) -> Option<String> {
        let graph = self.workflow.graph();
        graph.dependencies(node).iter().find_map(|dependency| {
            let (name, id) = (graph.name(*dependency), graph.id(*dependency));
            let result = self.state.get_node_result(&id).map(|record| &record.result);
            if affected.contains_key(dependency) {
                return Some(format!("`{name}` runs again"));
            }
            let definition = self.workflow.node(*dependency);
            let ended = |result| ending(definition, result);
            match self.changes.replaced.get(&id) {
                Some(replaced) if ended(&replaced.result) != result.and_then(ended) => {
                    Some(format!("`{name}` ends otherwise"))
                }
                None if self.changes.waits_anew && result.and_then(ended).is_none() => {
                    Some(format!("it waits for `{name}`, which has not run"))
                }
                Some(_) | None => None,
            }
        })
    }

    /// Returns what changes for a node by what it read.
    pub(super) fn read(&self, result: &NodeExecutionResult, affected: &Affected) -> Option<String> {
        result.reads.iter().find_map(|read| match &read.subject {
            Subject::Variable(name) => self.read_variable(name, read, result.began, affected),
            Subject::Node(name) => self.read_node(name, read, result.began, affected),
            // Inputs never change, and what a secret was is not known.
            Subject::Input(_) | Subject::Secret(_) => None,
        })
    }

    fn read_variable(&self, name: &str, read: &Read, began: u64, affected: &Affected) -> Option<String> {
        if let Some(value) = self.changes.set.get(name)
            && self.lineage.last(name) <= began
            && read.hash != value.as_ref().map(hash)
        {
            let (from, to) = (shown(self.state.get_variable(name)), shown(value.as_ref()));
            return Some(format!("it read `vars.{name}`, which changes from {from} to {to}"));
        }
        let seen = self.lineage.seen(name, began);
        if let (Some(rebased), Some(last)) = (self.changes.rebased.get(name), seen.last())
            && last.turn <= rebased.since
            && rebased.since < began
            && rebased.then != read.hash
        {
            return Some(set_otherwise(name));
        }
        seen.iter().find_map(|event| self.change(name, event, affected))
    }

    /// Says what becomes of a change of a variable, if it does not stay as it was.
    fn change(&self, name: &str, event: &Event, affected: &Affected) -> Option<String> {
        let graph = self.workflow.graph();
        let Some(id) = event.node else {
            let rebased = self.changes.rebased.get(name)?;
            return (rebased.turn == event.turn).then(|| set_otherwise(name));
        };
        if let Some(gone) = self.changes.gone.get(&id) {
            return Some(format!("it read `vars.{name}`, which `{gone}` wrote, and `{gone}` is no more"));
        }
        if let Some(replaced) = self.changes.replaced.get(&id) {
            let before = self.state.get_node_result(&id);
            let is_same =
                before.is_some_and(|before| written(before, event.place) == written(replaced, event.place));
            let writer =
                graph.index_of_id(&id).map_or_else(|| id.to_string(), |node| graph.name(node).to_owned());
            return (!is_same)
                .then(|| format!("it read `vars.{name}`, which `{writer}` wrote, and its output changes"));
        }
        let writer = graph.index_of_id(&id).filter(|writer| affected.contains_key(writer))?;
        Some(format!("it read `vars.{name}`, which `{}` writes again", graph.name(writer)))
    }

    fn read_node(&self, name: &str, read: &Read, began: u64, affected: &Affected) -> Option<String> {
        let id = node_id(name);
        // What was not there yet was not seen.
        if self.state.get_node_result(&id).is_none_or(|record| record.ended > began) {
            return None;
        }
        if self.changes.gone.contains_key(&id) {
            return Some(format!("it read `{name}`, which is no more"));
        }
        if let Some(replaced) = self.changes.replaced.get(&id) {
            let now = hash(&seen_of_result(Some(replaced)));
            return (read.hash.as_ref() != Some(&now))
                .then(|| format!("it read `{name}`, whose output changes"));
        }
        let node = self.workflow.graph().index_of(name)?;
        affected.contains_key(&node).then(|| format!("`{name}` runs again"))
    }
}

fn set_otherwise(variable: &str) -> String {
    format!("it read `vars.{variable}`, which is set otherwise")
}

/// Returns what a write made of its variable, as far as the node's result says.
fn written(result: &NodeExecutionResult, place: usize) -> Option<Value> {
    match &result.writes.get(place)?.op {
        WriteOp::Set(value) | WriteOp::Append(value) => Some(value.clone()),
        WriteOp::Output => Some(result.output().cloned().unwrap_or_default()),
        WriteOp::Field(field) => {
            Some(result.output().and_then(|output| output.get(field)).cloned().unwrap_or_default())
        }
        WriteOp::Remove => None,
    }
}

/// Returns a value for a sentence: JSON, cut short.
fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_owned() };
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
