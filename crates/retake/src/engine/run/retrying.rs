//! How nodes rest between two attempts. How many were made, what they cost and when the next is due is part of the state,
//! so that whoever goes on with the execution goes on with that.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Run;
use crate::engine::EngineError;
use crate::engine::attempt::{BackOff, Start, end_of_wait, retried};
use crate::engine::context::{NodeContext, Notes, Task};
use crate::execution::{ExecutionResult, NodeExecutionResult};
use crate::workflow::{Effect, NodeKind};

impl Run {
    /// Lets a node rest whose attempt failed.
    pub(super) async fn rest(&mut self, again: BackOff) {
        let BackOff { start, delay, error, paid } = again;
        let node = start.task.node;
        self.running.remove(&node);
        self.pay(Some(&paid));
        start.task.events.tell(|| retried(&start.task, start.attempt - 1, error, delay)).await;
        let mut record = record_of(&start);
        // The record of a wait says when that ends.
        record.due_at = match self.workflow.node(node).kind {
            NodeKind::Wait(_) => start.until,
            NodeKind::Run(_)
            | NodeKind::Http(_)
            | NodeKind::Llm(_)
            | NodeKind::Set(_)
            | NodeKind::Approval(_)
            | NodeKind::Call(_) => TimeDelta::from_std(delay)
                .ok()
                .and_then(|delay| self.engine.clock.now().checked_add_signed(delay)),
        };
        self.ctx.record_node_result(self.workflow.graph().id(node), record);
        self.unsaved.resting = Some(self.workflow.graph().name(node).to_owned());
        if !self.is_ending() {
            self.rest_for(start, delay);
        }
    }

    /// Makes the next attempt at a node when a time has passed.
    pub(super) fn rest_for(&mut self, start: Start, delay: Duration) {
        let node = start.task.node;
        self.resting.insert(node, start);
        self.rests.spawn(async move {
            tokio::time::sleep(delay).await;
            node
        });
    }

    /// Makes the next attempt at a node that has rested.
    pub(super) async fn try_again(&mut self, node: usize) -> Result<(), EngineError> {
        let Some(start) = self.resting.remove(&node) else { return Ok(()) };
        // Whoever reads that it rests takes its effect for one that has not happened.
        if self.workflow.node(node).effect == Effect::External {
            let id = self.workflow.graph().id(node);
            let rests = |record: &NodeExecutionResult| record.due_at.is_some();
            if self.saved.get_node_result(&id).is_some_and(rests) {
                self.mark(&start).await?;
            } else {
                self.ctx.record_node_result(id, record_of(&start));
            }
        }
        self.begin(start);
        Ok(())
    }

    /// Returns when a wait ends, if the node is one and that can be told.
    pub(super) fn end_of_wait(
        &self,
        task: &Task,
        mark: Option<&NodeExecutionResult>,
        started_at: DateTime<Utc>,
    ) -> Option<DateTime<Utc>> {
        let NodeKind::Wait(wait) = &self.workflow.node(task.node).kind else { return None };
        match mark.and_then(|mark| mark.due_at) {
            Some(due_at) => Some(due_at),
            None => end_of_wait(&NodeContext::new(task.clone(), 1, Notes::default()), wait, started_at).ok(),
        }
    }
}

/// Returns the record of a node that has started and not ended.
pub(super) fn record_of(start: &Start) -> NodeExecutionResult {
    let mut record = NodeExecutionResult::started(start.started_at);
    debug_assert_eq!(record.result, ExecutionResult::Pending);
    record.idempotency_key = Some(start.task.idempotency_key.clone());
    record.reads.clone_from(&start.notes.reads);
    record.retry_count = start.attempt - 1;
    if start.attempt > 1 {
        record.metrics = Some(start.earlier.clone());
    }
    record
}
