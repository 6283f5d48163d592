//! What others ask of a run: to stop, and decisions.

use std::time::Duration;

use serde_json::Value;

use super::saving::Extra;
use super::{Run, Stop};
use crate::engine::EngineError;
use crate::engine::attempt::Ended;
use crate::engine::control::StopKind;
use crate::engine::decision::{Decision, decided};
use crate::store::{Ask, Cause, NewOperation, Request};
use crate::workflow::NodeKind;

impl Run {
    /// Does what was asked through the store.
    pub(super) async fn answer(&mut self) -> Result<(), EngineError> {
        for Request { id, ask, operation } in self.engine.store.requests(self.ctx.execution_id).await? {
            if self.stop.as_ref().is_some_and(|stop| stop.answers.contains(&id)) {
                continue;
            }
            match ask {
                Ask::Pause => self.stop(StopKind::Pause, Some(operation), Some(id)),
                Ask::Cancel => self.stop(StopKind::Cancel, Some(operation), Some(id)),
                Ask::Checkpoint { label } => {
                    let extra = Extra { label, operation: Some(operation), answers: vec![id] };
                    self.save(Cause::Manual, extra).await?;
                }
                Ask::Approve { node, approved, with } => {
                    let extra = Extra { label: None, operation: Some(operation), answers: vec![id] };
                    self.decide(&node, approved, with, extra).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn decide(
        &mut self,
        name: &str,
        approved: bool,
        with: Value,
        extra: Extra,
    ) -> Result<(), EngineError> {
        let at = self.waiting.iter().position(|waiting| waiting == name);
        let (Some(at), Some(node)) = (at, self.workflow.graph().index_of(name)) else {
            // Nobody waits for it any more.
            for request in extra.answers {
                self.engine.store.withdraw(self.ctx.execution_id, request).await?;
            }
            return Ok(());
        };
        self.waiting.remove(at);
        let id = self.workflow.graph().id(node);
        let record = self.ctx.get_node_result(&id).cloned().unwrap_or_default();
        let into = self.workflow.node(node).into.as_deref();
        let result = decided(record, into, Decision { approved, with }, self.engine.clock.now());
        let paid = result.metrics.clone();
        let _due_anyway = self.note(Ended { node, result, ran: Duration::ZERO, paid }).await;
        self.undone_to = Some(self.head);
        self.save(Cause::Approve { node: name.to_owned(), approved }, extra).await
    }

    pub(super) fn stop(
        &mut self,
        kind: StopKind,
        operation: Option<NewOperation>,
        answer: Option<uuid::Uuid>,
    ) {
        let stop = self.stop.get_or_insert(Stop { kind, operation: None, answers: Vec::new() });
        stop.kind = stop.kind.max(kind);
        stop.operation = operation.or(stop.operation.take());
        stop.answers.extend(answer);
        self.end_waits();
    }

    /// Ends what only waits: the start of a wait is durable, and goes on where it was.
    pub(super) fn end_waits(&mut self) {
        for (node, task) in &self.running {
            if matches!(self.workflow.node(*node).kind, NodeKind::Wait(_)) {
                task.abort();
            }
        }
        // So is the time of the next attempt, with what is saved at the end.
        self.rests.abort_all();
    }
}

/// Lets a failure pass that the next try may not meet: a busy store must not end a run that has nothing to save.
pub(super) fn passing(done: Result<(), EngineError>) -> Result<(), EngineError> {
    match done {
        Err(EngineError::Store(error)) if error.is_retryable() => {
            tracing::warn!(%error, "the store did not answer; it is asked again");
            Ok(())
        }
        done => done,
    }
}
