//! What people do to executions: save, decide, pause, cancel, go back, take back.
//!
//! Each is one commit, recorded in the operation log. Where another process advances the execution, it is asked to do
//! what can be done on the way; going back is refused.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::held::Held;
use super::plan::{self, Affected, Effects, NewState, Plan, Point, Restored, Rollback};
use super::run::decided;
use super::{Engine, EngineError, standing};
use crate::execution::{ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, node_id};
use crate::store::{
    Ask, Cause, Commit, Conflict, ExecutionRecord, HistoryPage, Key, NewCheckpoint, NewOperation,
    OperationRecord, Request, Seq, StoreError, StoreExt, context, delta,
};
use crate::workflow::{NodeKind, Workflow};

/// How long an operation waits for the process that holds the lease.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// How often it looks.
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// An execution at rest: its lease is held, and its head was read.
struct AtRest {
    held: Held,
    record: ExecutionRecord,
    ctx: ExecutionContext,
}

impl Engine {
    /// Saves the state as it is, under a label if one is given. Returns the newest point.
    ///
    /// # Errors
    /// [`EngineError::NoAnswer`] where another process advances the execution and does not answer.
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
    /// [`EngineError::NoNode`] and [`EngineError::NotWaiting`].
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
        let ask = Ask::Approve { node: node.to_owned(), approved: decision.approved, with: decision.with };
        self.do_or_ask(id, ask, operation).await
    }

    /// Pauses an execution: one that runs finishes the nodes that are in flight first. Returns the newest point.
    ///
    /// # Errors
    /// [`EngineError::Ended`], and [`EngineError::NoAnswer`] where the nodes in flight take long: the execution pauses
    /// all the same, later.
    pub async fn pause(&self, id: ExecutionId, operation: NewOperation) -> Result<Seq, EngineError> {
        self.do_or_ask(id, Ask::Pause, operation).await
    }

    /// Ends an execution: nodes in flight are ended. Returns the newest point.
    ///
    /// # Errors
    /// [`EngineError::Ended`].
    pub async fn cancel(&self, id: ExecutionId, operation: NewOperation) -> Result<Seq, EngineError> {
        self.do_or_ask(id, Ask::Cancel, operation).await
    }

    /// Works out what going back to a point would do. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`], [`StoreError::Pruned`], [`EngineError::NothingThere`].
    pub async fn plan_rollback(
        &self,
        id: ExecutionId,
        target: Seq,
        request: &Rollback,
    ) -> Result<Plan, EngineError> {
        let record = self.store.require(id).await?;
        let workflow = self.workflow_of(&record).await?;
        let head = self.point(id, record.head).await?;
        let target = self.point(id, target).await?;
        let ground = request.ground(&head, &target);
        let affected = plan::affected(&workflow, ground, &request.set);
        let restored = self.restored(id, &workflow, ground, &affected).await?;
        plan::plan(&workflow, &head, &target, request, &affected, restored)
    }

    async fn point(&self, id: ExecutionId, seq: Seq) -> Result<Point, EngineError> {
        let image = self.store.state(id, seq).await?;
        let writers = image.entries().filter_map(|(key, entry)| match key {
            Key::Variable(name) => Some((name.clone(), entry.writer?)),
            Key::Header | Key::Input(_) | Key::Node(_) => None,
        });
        let writers = writers.collect();
        Ok(Point { seq, ctx: context(id, &image)?, writers })
    }

    /// Finds what variables were before the nodes that run again wrote them: goes back along the time line to the first
    /// point where another node had written them, or none.
    ///
    /// Costs a state for each point that it goes back; most plans need none.
    async fn restored(
        &self,
        id: ExecutionId,
        workflow: &Workflow,
        ground: &Point,
        affected: &Affected,
    ) -> Result<Restored, EngineError> {
        let mut restored = Restored::new();
        let mut open = affected.variables.clone();
        let mut at = Some(ground.seq);
        while let (Some(seq), false) = (at, open.is_empty()) {
            let point = self.point(id, seq).await?;
            open.retain(|name| {
                let writer = point.writers.get(name).copied();
                let is_affected = writer.is_some_and(|writer| affected.concerns(workflow, &writer));
                if !is_affected {
                    let before = point.ctx.variables.cell(name).map(|cell| (cell.clone(), writer));
                    restored.insert(name.clone(), before);
                }
                is_affected
            });
            let page = HistoryPage { before: Some(seq + 1), limit: Some(1) };
            at = self.store.history(id, page).await?.first().and_then(|record| record.parent);
            if let (Some(parent), Some(variable)) = (at, open.first()) {
                let older = HistoryPage { before: Some(parent + 1), limit: Some(1) };
                if self.store.history(id, older).await?.first().map(|record| record.seq) != Some(parent) {
                    return Err(EngineError::Unrestorable { variable: variable.clone(), pruned: parent });
                }
            }
        }
        Ok(restored)
    }

    /// Makes the state of an older point the head, as planned. Appends one checkpoint and removes none. Returns it.
    ///
    /// # Errors
    /// [`EngineError::Irreversible`] where effects outside would be forgotten and `effects` does not say what to do;
    /// [`Conflict::HeadMoved`] where the head moved since the plan was made; [`Conflict::Leased`] while another process
    /// advances the execution. Nothing has changed then.
    pub async fn rollback(
        &self,
        id: ExecutionId,
        plan: Plan,
        effects: Effects,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        if effects == Effects::Refuse && !plan.irreversible.is_empty() {
            return Err(EngineError::Irreversible { nodes: plan.irreversible });
        }
        let rest = self.rest(id).await?;
        if rest.record.head != plan.head {
            let (expected, found) = (plan.head, rest.record.head);
            return Err(StoreError::from(Conflict::HeadMoved { execution: id, expected, found }).into());
        }
        let NewState { ctx, writers, is_whole } = plan.after;
        let parent = is_whole.then_some(plan.target);
        let before = match parent {
            None => rest.ctx.clone(),
            Some(parent) => self.store.context(id, parent).await?,
        };
        let mut checkpoint = self.new_checkpoint(&ctx, Cause::Rollback { to: plan.target });
        checkpoint.delta = delta(Some(&before), &ctx, |name| writers.get(name).copied())?;
        checkpoint.parent = parent;
        checkpoint.operation = Some(operation);
        self.commit(rest, checkpoint).await
    }

    /// Takes back the last operation that was not taken back yet: a rollback, a decision or a cancellation. Returns the
    /// newest point, whose state is the one before that operation. What ran since stays in the history.
    ///
    /// # Errors
    /// [`EngineError::NothingTo`]; [`StoreError::Pruned`] where the state before is gone.
    pub async fn undo(&self, id: ExecutionId, operation: NewOperation) -> Result<Seq, EngineError> {
        let log = self.store.operations(id).await?;
        let rest = self.rest(id).await?;
        let Some(last) = Log::read(&log).done.pop() else { return Err(nothing_to(&rest, "undo")) };
        let cause = Cause::Undo { operation: last.number };
        self.return_to(rest, last.before, cause, operation).await
    }

    /// Does again what [`undo`](Self::undo) took back last. Returns the newest point, whose state is the one before
    /// that undo.
    ///
    /// # Errors
    /// As [`undo`](Self::undo). A new operation after an undo leaves nothing to redo.
    pub async fn redo(&self, id: ExecutionId, operation: NewOperation) -> Result<Seq, EngineError> {
        let log = self.store.operations(id).await?;
        let rest = self.rest(id).await?;
        let Some((undone, undo)) = Log::read(&log).undone.pop() else {
            return Err(nothing_to(&rest, "redo"));
        };
        let cause = Cause::Redo { operation: undone.number };
        self.return_to(rest, undo.before, cause, operation).await
    }

    async fn return_to(
        &self,
        rest: AtRest,
        seq: Seq,
        cause: Cause,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let mut after = self.store.context(rest.record.id, seq).await?;
        // Whoever ran then runs no more.
        if after.state == ExecutionState::Running {
            after.state = ExecutionState::Paused;
        }
        after.generation = rest.record.head + 1;
        self.commit_at_rest(rest, Some(seq), after, cause, operation).await
    }

    async fn rest(&self, id: ExecutionId) -> Result<AtRest, EngineError> {
        self.store.require(id).await?;
        let held = Held::take(&self.store, id).await?;
        let record = self.store.require(id).await?;
        let ctx = self.store.context(id, record.head).await?;
        Ok(AtRest { held, record, ctx })
    }

    async fn commit_at_rest(
        &self,
        rest: AtRest,
        parent: Option<Seq>,
        after: ExecutionContext,
        cause: Cause,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let before = match parent {
            None => rest.ctx.clone(),
            Some(parent) => self.store.context(rest.record.id, parent).await?,
        };
        let mut checkpoint = self.checkpoint_of(&before, &after, cause, Some(operation))?;
        checkpoint.parent = parent;
        self.commit(rest, checkpoint).await
    }

    async fn commit(&self, mut rest: AtRest, checkpoint: NewCheckpoint) -> Result<Seq, EngineError> {
        let commit = Commit {
            execution_id: rest.record.id,
            expected_head: rest.record.head,
            fence: Some(rest.held.fence()),
            checkpoint,
        };
        let committed = self.store.commit(commit).await;
        rest.held.release().await;
        Ok(committed?.seq)
    }

    /// Does something at once where nobody advances the execution, and asks whoever does otherwise.
    async fn do_or_ask(
        &self,
        id: ExecutionId,
        ask: Ask,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let request = Request { id: self.clock.new_id(), ask, operation };
        match self.rest(id).await {
            Ok(rest) => return self.do_at_rest(rest, request.ask, request.operation).await,
            Err(EngineError::Store(StoreError::Conflict(Conflict::Leased { .. }))) => {}
            Err(error) => return Err(error),
        }
        self.store.ask(id, request.clone()).await?;
        let asked_at = self.clock.elapsed();
        while self.clock.elapsed().saturating_sub(asked_at) < ANSWER_WAIT {
            tokio::time::sleep(ANSWER_POLL).await;
            if !self.store.requests(id).await?.iter().any(|pending| pending.id == request.id) {
                return Ok(self.store.require(id).await?.head);
            }
            // The holder may have ended, or died, without answering.
            if self.store.require(id).await?.leased_by.is_none() {
                let rest = self.rest(id).await?;
                if self.store.withdraw(id, request.id).await? {
                    return self.do_at_rest(rest, request.ask, request.operation).await;
                }
                return Ok(rest.record.head);
            }
        }
        let name = self.store.require(id).await?.name;
        if !matches!(request.ask, Ask::Pause) {
            self.store.withdraw(id, request.id).await?;
        }
        Err(EngineError::NoAnswer { name, waited_s: ANSWER_WAIT.as_secs() })
    }

    async fn do_at_rest(&self, rest: AtRest, ask: Ask, operation: NewOperation) -> Result<Seq, EngineError> {
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
                        return Err(ended(&rest));
                    }
                }
                self.commit_at_rest(rest, None, after, Cause::Pause, operation).await
            }
            Ask::Cancel => {
                match after.state {
                    ExecutionState::Running | ExecutionState::Paused | ExecutionState::Failed(_) => {}
                    ExecutionState::Completed | ExecutionState::Cancelled => return Err(ended(&rest)),
                }
                after.state = ExecutionState::Cancelled;
                after.end(self.clock.now());
                self.commit_at_rest(rest, None, after, Cause::Cancel, operation).await
            }
            Ask::Approve { node, approved, with } => {
                self.require_waiting(&rest.record, &rest.ctx, &node).await?;
                self.decide_at_rest(rest, node, Decision { approved, with }, operation).await
            }
        }
    }

    async fn decide_at_rest(
        &self,
        rest: AtRest,
        node: String,
        decision: Decision,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let mut after = rest.ctx.clone();
        let workflow = Arc::new(self.workflow_of(&rest.record).await?);
        let id = node_id(&node);
        let waiting = after.get_node_result(&id).cloned().unwrap_or_default();
        let Decision { approved, with } = decision;
        let record = decided(waiting, approved, with, self.clock.now());
        let into = workflow.definition().nodes.get(&node).and_then(|node| node.into.clone());
        if let (Some(variable), Some(output)) = (into, record.output()) {
            after.set_variable(variable, output.clone());
        }
        after.record_node_result(id, record);
        let cause = Cause::Approve { node: node.clone(), approved };
        let mut checkpoint = self.checkpoint_of(&rest.ctx, &after, cause, Some(operation))?;
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
            Some(ExecutionResult::Pending) => return Ok(()),
            None if record.leased_by.is_some() => return Ok(()),
            None => "not reached",
            Some(_) => standing(result).0,
        };
        Err(EngineError::NotWaiting { name: name(), node: node.to_owned(), found })
    }
}

/// What somebody decided about an approval.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Whether it is approved.
    pub approved: bool,
    /// What the approver adds; it becomes part of the node's output, or of the reason of its failure. Null for nothing.
    pub with: Value,
}

/// The operations that can be taken back, and those that were and can be done again.
struct Log<'o> {
    done: Vec<&'o OperationRecord>,
    /// With the undo that took it back.
    undone: Vec<(&'o OperationRecord, &'o OperationRecord)>,
}

impl<'o> Log<'o> {
    /// Reads a log, which stands newest first.
    fn read(log: &'o [OperationRecord]) -> Self {
        let mut read = Self { done: Vec::new(), undone: Vec::new() };
        for record in log.iter().rev() {
            match &record.cause {
                Cause::Undo { .. } => {
                    if let Some(undone) = read.done.pop() {
                        read.undone.push((undone, record));
                    }
                }
                Cause::Redo { .. } => {
                    if let Some((redone, _)) = read.undone.pop() {
                        read.done.push(redone);
                    }
                }
                Cause::Rollback { .. } | Cause::Edit | Cause::Approve { .. } | Cause::Cancel => {
                    read.done.push(record);
                    read.undone.clear();
                }
                Cause::Start
                | Cause::Nodes
                | Cause::Interval
                | Cause::Before { .. }
                | Cause::LongNode { .. }
                | Cause::Started { .. }
                | Cause::Manual
                | Cause::Save
                | Cause::Pause
                | Cause::Resume
                | Cause::Finish
                | Cause::Fork { .. } => {}
            }
        }
        read
    }
}

fn nothing_to(rest: &AtRest, verb: &'static str) -> EngineError {
    EngineError::NothingTo { name: rest.record.name.clone(), verb }
}

fn ended(rest: &AtRest) -> EngineError {
    EngineError::Ended { name: rest.record.name.clone(), found: rest.ctx.state.name() }
}
