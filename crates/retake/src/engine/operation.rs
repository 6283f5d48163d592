//! What people do to executions on their way: save, decide, pause, cancel.
//!
//! Each is one commit, recorded in the operation log. Where another process advances the execution, it is asked to do
//! it.

use std::time::Duration;

use super::decision::{Decision, decided};
use super::held::{Held, LEASE_TTL};
use super::secret::{refuse_secret, without_secrets};
use super::{Engine, EngineError, standing};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::execution::{ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, node_id};
use crate::store::{
    Ask, Cause, Commit, Conflict, ExecutionRecord, NewCheckpoint, NewOperation, Request, Seq, StoreError,
    StoreExt, delta,
};
use crate::workflow::{NodeKind, OnError};

/// How long an operation waits for the process that holds the lease.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// How long it waits beyond that for the lease of a holder to end that says nothing, and renews nothing: one lease of the
/// usual time to live.
const SILENCE_WAIT_MAX: Duration = LEASE_TTL;

/// How often it waits: for the holder that it found, and once its lease has ended.
const ANSWER_ROUNDS: u32 = 2;

/// How often it looks.
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// An execution at rest: its lease is held, and its head was read.
pub(super) struct AtRest {
    held: Held,
    pub(super) record: ExecutionRecord,
    pub(super) ctx: ExecutionContext,
}

impl AtRest {
    /// Gives the lease back, whatever was done with it.
    pub(super) async fn end<T>(mut self, done: Result<T, EngineError>) -> Result<T, EngineError> {
        self.held.release().await;
        done
    }
}

impl Engine {
    /// Saves the state as it is, under a label if one is given. Returns the newest point.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] where another process advances the execution and does not answer; [`EngineError::Silent`]
    /// where it does not renew its lease either, and that holds for long.
    pub async fn checkpoint(
        &self,
        id: ExecutionId,
        label: Option<String>,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        self.do_or_ask(id, Ask::Checkpoint { label }, operation).await
    }

    /// Decides an approval. Returns the newest point; [`resume`](Self::resume) goes on from there.
    ///
    /// # Errors
    /// [`EngineError::NoNode`], [`EngineError::NotWaiting`] and [`EngineError::Ended`].
    pub async fn approve(
        &self,
        id: ExecutionId,
        node: &str,
        decision: Decision,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let record = self.store.require(id).await?;
        let ctx = self.store.context(id, record.head).await?;
        self.require_waiting(&record, &ctx, node).await?;
        let approved = decision.approved;
        let ask = Ask::Approve { node: node.to_owned(), approved, with: decision.with };
        let head = self.do_or_ask(id, ask, operation).await?;
        // Somebody else may have decided first, otherwise.
        let result =
            self.store.context(id, head).await?.get_node_result(&node_id(node)).map(|now| now.result.clone());
        match result {
            Some(ExecutionResult::Success(_)) if approved => Ok(head),
            Some(ExecutionResult::Failure(_)) if !approved => Ok(head),
            result => {
                let found = standing(result.as_ref()).0;
                Err(EngineError::NotWaiting { name: record.name, node: node.to_owned(), found })
            }
        }
    }

    /// Pauses an execution: one that runs finishes the nodes that are in flight first. Returns the newest point.
    ///
    /// # Errors
    /// [`EngineError::Ended`], and [`EngineError::StillRunning`] where the nodes in flight take long: the execution
    /// pauses all the same, later. [`EngineError::Silent`] as in [`checkpoint`](Self::checkpoint).
    pub async fn pause(&self, id: ExecutionId, operation: NewOperation) -> Result<Seq, EngineError> {
        self.do_or_ask(id, Ask::Pause, operation).await
    }

    /// Ends an execution: nodes in flight are ended. Returns the newest point.
    ///
    /// # Errors
    /// [`EngineError::Ended`]; [`EngineError::NoAnswer`] and [`EngineError::Silent`] where another process advances the
    /// execution and does not answer.
    pub async fn cancel(&self, id: ExecutionId, operation: NewOperation) -> Result<Seq, EngineError> {
        self.do_or_ask(id, Ask::Cancel, operation).await
    }

    pub(super) async fn rest(&self, id: ExecutionId) -> Result<AtRest, EngineError> {
        self.store.require(id).await?;
        let held = Held::take(&self.store, &self.clock, id, self.lease_ttl).await?;
        let record = self.store.require(id).await?;
        let ctx = self.store.context(id, record.head).await?;
        Ok(AtRest { held, record, ctx })
    }

    async fn commit_at_rest(
        &self,
        rest: &AtRest,
        after: &ExecutionContext,
        cause: Cause,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        self.commit(rest, self.checkpoint_of(&rest.ctx, after, cause, Some(operation))?).await
    }

    pub(super) async fn commit(&self, rest: &AtRest, checkpoint: NewCheckpoint) -> Result<Seq, EngineError> {
        let commit = Commit {
            execution_id: rest.record.id,
            expected_head: rest.record.head,
            fence: Some(rest.held.fence()),
            checkpoint,
        };
        Ok(self.store.commit(commit).await?.seq)
    }

    /// Does something at once where nobody advances the execution, and asks whoever does otherwise.
    async fn do_or_ask(
        &self,
        id: ExecutionId,
        ask: Ask,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let masks = self.masks_of(&self.store.require(id).await?).await;
        match &ask {
            Ask::Checkpoint { label: Some(label) } => {
                refuse_secret(&masks, "the label", &Value::from(label.as_str()))?;
            }
            Ask::Approve { with, .. } => refuse_secret(&masks, "what goes with the approval", with)?,
            Ask::Checkpoint { label: None } | Ask::Pause | Ask::Cancel => {}
        }
        let operation = without_secrets(&masks, operation);
        let stops = matches!(ask, Ask::Pause | Ask::Cancel);
        let request = Request { id: self.clock.new_id(), ask, operation };
        let until = match self.rest(id).await {
            Ok(rest) => {
                let done = self.do_at_rest(&rest, request.ask, request.operation).await;
                let done = self.without_ticket(id, stops, done).await;
                return rest.end(done).await;
            }
            Err(EngineError::Store(StoreError::Conflict(Conflict::Leased { until, .. }))) => until,
            Err(error) => return Err(error),
        };
        self.store.ask(id, request.clone()).await?;
        let (mut at_most, waited_s) = (ANSWER_WAIT, ANSWER_WAIT.as_secs());
        for _ in 0..ANSWER_ROUNDS {
            if let Some(answered) = self.answered(id, &request, at_most).await? {
                return Ok(answered);
            }
            // A holder that lives has renewed its lease by now. One that has not has died, as far as anybody can tell.
            if self.lease_end(id).await?.is_some_and(|end| end > until) {
                let name = self.store.require(id).await?.name;
                if request.ask == Ask::Pause {
                    return Err(EngineError::StillRunning { name, waited_s });
                }
                self.store.withdraw(id, request.id).await?;
                return Err(EngineError::NoAnswer { name, waited_s });
            }
            let left = (until - self.clock.now()).to_std().unwrap_or_default();
            if left > SILENCE_WAIT_MAX {
                break;
            }
            // A worker may go on with it then, which is asked the same.
            at_most = left + ANSWER_WAIT;
        }
        self.store.withdraw(id, request.id).await?;
        let name = self.store.require(id).await?.name;
        Err(EngineError::Silent { name, waited_s, until })
    }

    /// Waits for the answer of whoever advances an execution, and answers where nobody does any more: its holder may end, or
    /// die, without answering. Returns the newest point then, and `None` where that takes longer than `at_most`.
    async fn answered(
        &self,
        id: ExecutionId,
        request: &Request,
        at_most: Duration,
    ) -> Result<Option<Seq>, EngineError> {
        let asked_at = self.clock.elapsed();
        while self.clock.elapsed().saturating_sub(asked_at) < at_most {
            tokio::time::sleep(ANSWER_POLL).await;
            if !self.store.requests(id).await?.iter().any(|pending| pending.id == request.id) {
                return Ok(Some(self.store.require(id).await?.head));
            }
            if self.store.require(id).await?.leased_by.is_some() {
                continue;
            }
            let rest = match self.rest(id).await {
                // A worker was there first, and is asked.
                Err(EngineError::Store(StoreError::Conflict(Conflict::Leased { .. }))) => continue,
                rest => rest?,
            };
            let done = match self.store.withdraw(id, request.id).await {
                Ok(true) => {
                    let stops = matches!(request.ask, Ask::Pause | Ask::Cancel);
                    let request = request.clone();
                    let done = self.do_at_rest(&rest, request.ask, request.operation).await;
                    self.without_ticket(id, stops, done).await
                }
                Ok(false) => Ok(rest.record.head),
                Err(error) => Err(error.into()),
            };
            return rest.end(done).await.map(Some);
        }
        Ok(None)
    }

    /// Returns when the lease on an execution ends, unless nobody holds one.
    async fn lease_end(&self, id: ExecutionId) -> Result<Option<DateTime<Utc>>, EngineError> {
        match Held::take(&self.store, &self.clock, id, self.lease_ttl).await {
            Ok(mut held) => {
                held.release().await;
                Ok(None)
            }
            Err(StoreError::Conflict(Conflict::Leased { until, .. })) => Ok(Some(until)),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes an execution out of the queue that was stopped: nobody is to go on with it.
    async fn without_ticket(
        &self,
        id: ExecutionId,
        stops: bool,
        done: Result<Seq, EngineError>,
    ) -> Result<Seq, EngineError> {
        if stops && done.is_ok() {
            self.dequeue(id).await?;
        }
        done
    }

    async fn do_at_rest(&self, rest: &AtRest, ask: Ask, operation: NewOperation) -> Result<Seq, EngineError> {
        let mut after = rest.ctx.clone();
        match ask {
            Ask::Checkpoint { label } => {
                let mut checkpoint = self.checkpoint_of(&rest.ctx, &after, Cause::Manual, Some(operation))?;
                checkpoint.label = label;
                self.commit(rest, checkpoint).await
            }
            Ask::Pause => {
                match after.state {
                    ExecutionState::Paused => return Ok(rest.record.head),
                    ExecutionState::Running => after.pause(),
                    ExecutionState::Completed | ExecutionState::Failed(_) | ExecutionState::Cancelled => {
                        return Err(ended(rest));
                    }
                }
                self.commit_at_rest(rest, &after, Cause::Pause, operation).await
            }
            Ask::Cancel => {
                match after.state {
                    ExecutionState::Running | ExecutionState::Paused | ExecutionState::Failed(_) => {}
                    ExecutionState::Completed | ExecutionState::Cancelled => return Err(ended(rest)),
                }
                after.state = ExecutionState::Cancelled;
                after.end(self.clock.now());
                self.commit_at_rest(rest, &after, Cause::Cancel, operation).await
            }
            Ask::Approve { node, approved, with } => {
                self.require_waiting(&rest.record, &rest.ctx, &node).await?;
                self.decide_at_rest(rest, node, Decision { approved, with }, operation).await
            }
        }
    }

    async fn decide_at_rest(
        &self,
        rest: &AtRest,
        node: String,
        decision: Decision,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let mut after = rest.ctx.clone();
        let workflow = self.workflow_of(&rest.record).await?;
        let id = node_id(&node);
        let waiting = after.get_node_result(&id).cloned().unwrap_or_default();
        let Decision { approved, with } = decision;
        let definition = workflow.definition().nodes.get(&node);
        let into = definition.and_then(|definition| definition.into.as_deref());
        let record = decided(waiting, into, Decision { approved, with }, self.clock.now());
        if let (ExecutionResult::Failure(why), Some(OnError::Fail)) =
            (&record.result, definition.map(|definition| definition.on_error))
        {
            after.state = ExecutionState::Failed(format!("node `{node}` failed: {why}"));
            after.end(self.clock.now());
        }
        after.conclude(id, record).expect("an output takes the place of whatever a variable was");
        let mut checkpoint = self.new_checkpoint(&after, Cause::Approve { node: node.clone(), approved });
        checkpoint.delta = delta(Some(&rest.ctx), &after, |_| Some(id))?;
        checkpoint.operation = Some(operation);
        checkpoint.nodes = vec![node];
        self.commit(rest, checkpoint).await
    }

    async fn require_waiting(
        &self,
        record: &ExecutionRecord,
        ctx: &ExecutionContext,
        node: &str,
    ) -> Result<(), EngineError> {
        let workflow = self.workflow_of(record).await?;
        let name = || record.name.clone();
        let Some(definition) = workflow.definition().nodes.get(node) else {
            return Err(EngineError::NoNode { name: name(), node: node.to_owned() });
        };
        let result = ctx.get_node_result(&node_id(node)).map(|record| &record.result);
        let found = match result {
            _ if !matches!(definition.kind, NodeKind::Approval(_)) => "not an approval",
            Some(ExecutionResult::Pending) => {
                return match &ctx.state {
                    ExecutionState::Running | ExecutionState::Paused => Ok(()),
                    // Nothing goes on, whatever is decided.
                    state @ (ExecutionState::Completed
                    | ExecutionState::Failed(_)
                    | ExecutionState::Cancelled) => {
                        Err(EngineError::Ended { name: name(), found: state.name() })
                    }
                };
            }
            None => "not reached",
            Some(_) => standing(result).0,
        };
        Err(EngineError::NotWaiting { name: name(), node: node.to_owned(), found })
    }
}

fn ended(rest: &AtRest) -> EngineError {
    EngineError::Ended { name: rest.record.name.clone(), found: rest.ctx.state.name() }
}
