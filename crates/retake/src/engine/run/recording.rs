//! What nodes gave: how it becomes part of the state, and what it cost.

use std::sync::Arc;

use super::Run;
use super::saving::Extra;
use crate::checkpoint::Due;
use crate::engine::attempt::Ended;
use crate::engine::event::Event;
use crate::engine::planner::ending;
use crate::engine::{EngineError, standing, trace};
use crate::execution::{ExecutionResult, NodeExecutionResult, NodeMetrics, usd};
use crate::store::Cause;
use crate::workflow::Effect;

impl Run {
    /// Records what a node gave, and saves if that is due.
    pub(super) async fn record(&mut self, ended: Ended) -> Result<(), EngineError> {
        match self.note(ended).await {
            Some(cause) => self.save(cause, Extra::default()).await,
            None => Ok(()),
        }
    }

    /// Takes in what a node gave. Returns why a checkpoint is due, if it is.
    pub(super) async fn note(&mut self, ended: Ended) -> Option<Cause> {
        let Ended { node, result, ran, paid } = ended;
        self.running.remove(&node);
        let workflow = Arc::clone(&self.workflow);
        let name = workflow.graph().name(node);
        self.pay(paid.as_ref());
        let result = self.conclude(node, result);
        trace::recorded(&workflow.node(node).kind, &result.result);
        self.tell_end(name, &result).await;
        let ending = ending(workflow.node(node), &result.result);
        if let (None, ExecutionResult::Failure(why)) = (ending, &result.result) {
            self.failures.push((name.to_owned(), why.clone()));
        }
        let was_skipped = result.result == ExecutionResult::Skipped;
        if was_skipped {
            return None;
        }
        self.ran += 1;
        let due = self.policy.node_finished(ran, self.engine.clock.elapsed());
        // The last save of all tells how the run ended, and carries this result too.
        if self.planner.is_finished() && self.tasks.is_empty() {
            return None;
        }
        match due {
            Some(Due::LongNode) => Some(Cause::LongNode { node: name.to_owned() }),
            Some(Due::Interval) => Some(Cause::Interval),
            Some(Due::Nodes | Due::Before) => Some(Cause::Nodes),
            None => (workflow.node(node).effect == Effect::External).then_some(Cause::Nodes),
        }
    }

    /// Counts what a node cost.
    pub(super) fn pay(&mut self, cost: Option<&NodeMetrics>) {
        self.cost.add(cost);
        self.ctx.ledger.spend.paid.add(cost);
    }

    /// Puts a result into the state, with what its node wrote. A write that does not fit fails the node. Returns the
    /// result.
    pub(super) fn conclude(&mut self, node: usize, result: NodeExecutionResult) -> NodeExecutionResult {
        let workflow = Arc::clone(&self.workflow);
        let (name, id) = (workflow.graph().name(node), workflow.graph().id(node));
        let mut result = result;
        let taken_back = self.ctx.ledger.taken_back.get(&id).map(|taken_back| taken_back.because.clone());
        result.because = result.because.or(taken_back);
        if let Err(error) = self.ctx.conclude(id, result.clone()) {
            result.result = ExecutionResult::Failure(self.masks.text(error.to_string()));
            result.writes.clear();
            self.ctx.conclude(id, result.clone()).expect("what wrote nothing fits");
        }
        let written = result.writes.iter().map(|write| (write.variable.clone(), id));
        self.unsaved.writers.extend(written);
        self.completed += u64::from(result.result.is_completed());
        self.unsaved.nodes.push(name.to_owned());
        if let Some(ending) = ending(workflow.node(node), &result.result) {
            self.planner.end(workflow.graph(), node, ending);
        }
        result
    }

    pub(super) async fn tell_end(&self, name: &str, result: &NodeExecutionResult) {
        let metrics = result.metrics.as_ref();
        self.events
            .tell(|| Event::NodeFinished {
                node: name.to_owned(),
                status: standing(Some(&result.result)).0,
                duration_ms: metrics.and_then(|metrics| metrics.duration_ms).unwrap_or(0),
                tokens: metrics.and_then(|metrics| metrics.token_usage.clone()),
                cost_usd: metrics.and_then(|metrics| metrics.cost_usd).map(usd),
                error: match &result.result {
                    ExecutionResult::Failure(why) => Some(why.clone()),
                    ExecutionResult::Pending | ExecutionResult::Success(_) | ExecutionResult::Skipped => None,
                },
            })
            .await;
    }
}
