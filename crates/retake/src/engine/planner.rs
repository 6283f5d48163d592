//! Which nodes can run now. Pure: it is told what ended, and neither runs nor saves anything.

use std::collections::BTreeSet;

use crate::execution::{ExecutionResult, NodeResults};
use crate::workflow::{Graph, Node, OnError, Workflow};

/// How a node ended, as far as those after it are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It gave an output, or failed where that is tolerated.
    Done,
    /// It was skipped.
    Skipped,
}

/// Follows a run through the graph. Costs each edge once over the whole run.
#[derive(Debug)]
pub(super) struct Planner {
    /// For each node, how many of those it depends on have not ended.
    waits_for: Vec<usize>,
    endings: Vec<Option<Ending>>,
    ready: BTreeSet<usize>,
    open: usize,
}

impl Planner {
    /// Returns the planner of a run whose results so far are these.
    pub(super) fn new(workflow: &Workflow, results: &NodeResults) -> Self {
        let graph = workflow.graph();
        let mut planner = Self {
            waits_for: graph.nodes().map(|node| graph.dependencies(node).len()).collect(),
            endings: vec![None; graph.len()],
            ready: BTreeSet::new(),
            open: graph.len(),
        };
        planner.ready = graph.nodes().filter(|node| planner.waits_for[*node] == 0).collect();
        for node in graph.nodes() {
            let result = results.get(&graph.id(node)).map(|node| &node.result);
            if let Some(ending) = result.and_then(|result| ending(workflow.node(node), result)) {
                planner.end(graph, node, ending);
            }
        }
        planner
    }

    /// Takes the next node that can run: the first in the graph's order.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.ready.pop_first()
    }

    /// Notes that a node ended, which may make others ready.
    pub(super) fn end(&mut self, graph: &Graph, node: usize, ending: Ending) {
        self.ready.remove(&node);
        if self.endings[node].replace(ending).is_some() {
            return;
        }
        self.open -= 1;
        for &dependent in graph.dependents(node) {
            self.waits_for[dependent] -= 1;
            if self.waits_for[dependent] == 0 && self.endings[dependent].is_none() {
                self.ready.insert(dependent);
            }
        }
    }

    /// Returns the skipped node because of which this one is skipped too: one that it depends on, and whose status its
    /// own condition does not look at.
    pub(super) fn skipped_because_of(&self, graph: &Graph, node: usize) -> Option<usize> {
        let skipped = |dependency: &&usize| self.endings[**dependency] == Some(Ending::Skipped);
        let unseen = |dependency: &&usize| !graph.consults_status(node, **dependency);
        graph.dependencies(node).iter().filter(skipped).find(unseen).copied()
    }

    /// Tells whether every node has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.open == 0
    }
}

/// Returns how a node with this result ended, or `None` where it has yet to run, or to run again.
pub(super) fn ending(node: &Node, result: &ExecutionResult) -> Option<Ending> {
    match (result, node.on_error) {
        (ExecutionResult::Success(_), _) | (ExecutionResult::Failure(_), OnError::Continue) => {
            Some(Ending::Done)
        }
        (ExecutionResult::Skipped, _) => Some(Ending::Skipped),
        (ExecutionResult::Pending, _) | (ExecutionResult::Failure(_), OnError::Fail) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::execution::{Cell, NodeExecutionResult, node_id};

    fn workflow() -> Workflow {
        Workflow::builder("test")
            .node("a", Node::call("x"))
            .node("b", Node::call("x").needs(["a"]))
            .node("c", Node::call("x").needs(["a"]).on_error(OnError::Continue))
            .node("d", Node::call("x").needs(["b", "c"]))
            .node("e", Node::call("x").needs(["d"]).when("nodes.d.status == 'skipped'"))
            .build()
            .unwrap()
    }

    fn names(workflow: &Workflow, planner: &mut Planner) -> Vec<String> {
        std::iter::from_fn(|| planner.next()).map(|node| workflow.graph().name(node).to_owned()).collect()
    }

    fn end(workflow: &Workflow, planner: &mut Planner, name: &str, ending: Ending) {
        planner.end(workflow.graph(), workflow.graph().index_of(name).unwrap(), ending);
    }

    #[test]
    fn a_node_is_ready_once_all_that_it_depends_on_has_ended() {
        let workflow = workflow();
        let mut planner = Planner::new(&workflow, &NodeResults::new());
        assert_eq!(names(&workflow, &mut planner), ["a"]);
        end(&workflow, &mut planner, "a", Ending::Done);
        assert_eq!(names(&workflow, &mut planner), ["b", "c"]);
        end(&workflow, &mut planner, "b", Ending::Done);
        assert_eq!(names(&workflow, &mut planner), Vec::<String>::new());
        end(&workflow, &mut planner, "c", Ending::Done);
        assert_eq!(names(&workflow, &mut planner), ["d"]);
        assert!(!planner.is_finished());
    }

    #[test]
    fn a_skip_passes_on_except_to_a_node_that_looks_at_the_status() {
        let workflow = workflow();
        let graph = workflow.graph();
        let at = |name| graph.index_of(name).unwrap();
        let mut planner = Planner::new(&workflow, &NodeResults::new());
        end(&workflow, &mut planner, "a", Ending::Skipped);
        assert_eq!(planner.skipped_because_of(graph, at("b")), Some(at("a")));
        end(&workflow, &mut planner, "d", Ending::Skipped);
        assert_eq!(planner.skipped_because_of(graph, at("e")), None);
    }

    #[test]
    fn a_resumed_run_passes_over_what_is_done_and_runs_what_failed() {
        let workflow = workflow();
        let record =
            |result| <crate::execution::Shared<_> as Cell>::new(NodeExecutionResult::new().complete(result));
        let mut results = NodeResults::new();
        results.set(node_id("a"), record(ExecutionResult::Success(json!(1))));
        results.set(node_id("b"), record(ExecutionResult::Failure("boom".into())));
        results.set(node_id("c"), record(ExecutionResult::Failure("tolerated".into())));
        let mut planner = Planner::new(&workflow, &results);
        assert_eq!(names(&workflow, &mut planner), ["b"]);
    }
}
