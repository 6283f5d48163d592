//! Why a node stands as it does, and what would make it run again. Pure, from the state at the head.

use std::collections::BTreeMap;

use serde::Serialize;

use super::affected::{Changes, Judge};
use super::lineage::Lineage;
use super::{BY_HAND, Rerun};
use crate::engine::{hash_now, standing};
use crate::execution::{ExecutionContext, ExecutionResult, NodeExecutionResult, Subject};
use crate::store::{Cause, Seq};
use crate::workflow::{NodeKind, Workflow};

/// Why a node stands as it does, and what would make it run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The node.
    pub node: String,
    /// `pending`, `success`, `failure` or `skipped`.
    pub status: &'static str,
    /// The point that recorded its result; `None` where it has none, or where the point was pruned.
    pub recorded: Option<Seq>,
    /// Why it ran, was skipped, was spared, or has not run.
    pub because: String,
    /// What went on from its result since without running it again, oldest first.
    pub reused: Vec<Reuse>,
    /// What would make it run again: everything that it had read, or waits for.
    pub again_if: Vec<Trigger>,
    /// The nodes that would run again with it, and why.
    pub then: Vec<Rerun>,
}

/// An operation that left a result standing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reuse {
    /// The point that it made.
    pub seq: Seq,
    /// What it was.
    pub cause: Cause,
    /// The command, as it was given.
    pub command: String,
}

/// Something that would make a node run again if it were different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trigger {
    /// `variable`, `node`, `input` or `definition`.
    pub kind: &'static str,
    /// Its name; the node's own for `definition`.
    pub name: String,
    /// Whether the node read it, or only waits for it.
    pub was_read: bool,
    /// Whether it is not what the node saw any more. The result stands all the same: what replaced it came later.
    pub has_changed: bool,
}

/// Explains a node. What the history knows of it is filled in by the caller.
pub(in crate::engine) fn explain(workflow: &Workflow, ctx: &ExecutionContext, node: usize) -> Explanation {
    let graph = workflow.graph();
    let name = graph.name(node);
    let result = ctx.get_node_result(&graph.id(node));
    let because = match result {
        Some(record) => why(workflow, ctx, node, record),
        None => why_not_yet(workflow, ctx, node),
    };
    Explanation {
        node: name.to_owned(),
        status: standing(result.map(|record| &record.result)).0,
        recorded: None,
        because,
        reused: Vec::new(),
        again_if: triggers(workflow, ctx, node, result),
        then: result.map_or_else(Vec::new, |_| consequences(workflow, ctx, node)),
    }
}

/// Says why a node has the result that it has.
fn why(workflow: &Workflow, ctx: &ExecutionContext, node: usize, record: &NodeExecutionResult) -> String {
    let graph = workflow.graph();
    match &record.result {
        ExecutionResult::Pending => match &workflow.node(node).kind {
            NodeKind::Approval(_) => "it waits for somebody's approval".to_owned(),
            NodeKind::Run(_)
            | NodeKind::Http(_)
            | NodeKind::Llm(_)
            | NodeKind::Set(_)
            | NodeKind::Wait(_)
            | NodeKind::Call(_) => "it started, and has not ended".to_owned(),
        },
        ExecutionResult::Skipped => {
            let skipped = graph.dependencies(node).iter().find(|dependency| {
                let result = ctx.get_node_result(&graph.id(**dependency));
                result.is_some_and(|record| record.result == ExecutionResult::Skipped)
                    && !graph.consults_status(node, **dependency)
            });
            match (skipped, &workflow.node(node).condition) {
                (Some(skipped), _) => {
                    format!("it was skipped, because `{}` was skipped", graph.name(*skipped))
                }
                (None, Some(condition)) => format!("it was skipped, because `{condition}` was false"),
                (None, None) => "it was skipped".to_owned(),
            }
        }
        ExecutionResult::Success(_) | ExecutionResult::Failure(_) => match &record.because {
            Some(because) if because == BY_HAND || because.starts_with("spared") => because.clone(),
            Some(because) => format!("it ran again: {because}"),
            None if graph.dependencies(node).is_empty() => "it ran, as it waits for no other node".to_owned(),
            None => format!("it ran after {}", names(workflow, graph.dependencies(node))),
        },
    }
}

/// Says why a node has no result.
fn why_not_yet(workflow: &Workflow, ctx: &ExecutionContext, node: usize) -> String {
    let graph = workflow.graph();
    let open: Vec<usize> = graph
        .dependencies(node)
        .iter()
        .copied()
        .filter(|dependency| {
            let result = ctx.get_node_result(&graph.id(*dependency)).map(|record| &record.result);
            result.and_then(|result| super::ending(workflow.node(*dependency), result)).is_none()
        })
        .collect();
    let taken_back = ctx.ledger.taken_back.get(&graph.id(node));
    let began = taken_back.map_or("it has not run".to_owned(), |taken_back| {
        format!("its result was taken back: {}", taken_back.because)
    });
    match open.is_empty() {
        true => format!("{began}; it is ready, and runs when the run goes on"),
        false => format!("{began}; it waits for {}", names(workflow, &open)),
    }
}

fn names(workflow: &Workflow, nodes: &[usize]) -> String {
    nodes.iter().map(|node| format!("`{}`", workflow.graph().name(*node))).collect::<Vec<_>>().join(", ")
}

fn triggers(
    workflow: &Workflow,
    ctx: &ExecutionContext,
    node: usize,
    result: Option<&NodeExecutionResult>,
) -> Vec<Trigger> {
    let graph = workflow.graph();
    let Some(result) = result else { return Vec::new() };
    let mut triggers: Vec<Trigger> = result
        .reads
        .iter()
        .filter_map(|read| {
            let (kind, name) = match &read.subject {
                Subject::Variable(name) => ("variable", name),
                Subject::Node(name) => ("node", name),
                Subject::Input(name) => ("input", name),
                // What it was is not kept, so that nothing follows from it.
                Subject::Secret(_) => return None,
            };
            let has_changed = hash_now(ctx, &read.subject) != read.hash;
            Some(Trigger { kind, name: name.clone(), was_read: true, has_changed })
        })
        .collect();
    for dependency in graph.dependencies(node) {
        let name = graph.name(*dependency);
        if !triggers.iter().any(|trigger| trigger.kind == "node" && trigger.name == name) {
            let name = name.to_owned();
            triggers.push(Trigger { kind: "node", name, was_read: false, has_changed: false });
        }
    }
    let name = graph.name(node).to_owned();
    triggers.push(Trigger { kind: "definition", name, was_read: false, has_changed: false });
    triggers
}

/// Returns the nodes that would run again if this one did.
fn consequences(workflow: &Workflow, ctx: &ExecutionContext, node: usize) -> Vec<Rerun> {
    let graph = workflow.graph();
    let changes = Changes { forced: BTreeMap::from([(node, String::new())]), ..Changes::default() };
    let lineage = Lineage::of(ctx);
    let judge = Judge { workflow, state: ctx, lineage: &lineage, changes: &changes };
    let affected = judge.affected(&BTreeMap::new()).into_iter().filter(|(other, _)| *other != node);
    affected.map(|(node, because)| Rerun { node: graph.name(node).to_owned(), because }).collect()
}
