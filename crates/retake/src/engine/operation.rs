//! What people do to executions: save, decide, pause, cancel, go back, take back.
//!
//! Each is one commit, recorded in the operation log. Where another process advances the execution, it is asked to do
//! what can be done on the way; going back is refused.

use std::time::Duration;

use super::decision::{Decision, decided};
use super::held::Held;
use super::plan::{self, Affected, Effects, NewState, Plan, Point, Restored, Rollback};
use super::{Engine, EngineError, standing};
use crate::execution::{ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, node_id};
use crate::store::{
    Ask, Cause, Commit, Conflict, ExecutionRecord, HistoryPage, Key, NewCheckpoint, NewOperation,
    OperationRecord, Request, Seq, StoreError, StoreExt, context, delta,
};
use crate::workflow::{NodeKind, OnError, Workflow};

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

impl AtRest {
    /// Gives the lease back, whatever was done with it.
    async fn end<T>(mut self, done: Result<T, EngineError>) -> Result<T, EngineError> {
        self.held.release().await;
        done
    }
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
    /// pauses all the same, later.
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
        let ground = request.ground(&workflow, &head, &target)?;
        let affected = plan::affected(&workflow, &ground, request);
        let restored = self.restored(id, &workflow, &ground, &affected).await?;
        Ok(plan::plan(&workflow, (&head, &target, ground), request, &affected, restored))
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
        let (expected, found) = (plan.head, rest.record.head);
        let done = match expected == found {
            true => {
                let cause = Cause::Rollback { to: plan.target };
                self.commit_state(&rest, plan.target, plan.after, cause, operation).await
            }
            false => Err(StoreError::from(Conflict::HeadMoved { execution: id, expected, found }).into()),
        };
        rest.end(done).await
    }

    /// Makes a state that goes back to `target` the head.
    async fn commit_state(
        &self,
        rest: &AtRest,
        target: Seq,
        after: NewState,
        cause: Cause,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let NewState { ctx, writers, is_whole } = after;
        let parent = is_whole.then_some(target);
        let before = match parent {
            None => rest.ctx.clone(),
            Some(parent) => self.store.context(rest.record.id, parent).await?,
        };
        let mut checkpoint = self.new_checkpoint(&ctx, cause);
        checkpoint.delta = delta(Some(&before), &ctx, |name| writers.get(name).copied())?;
        checkpoint.parent = parent;
        checkpoint.operation = Some(operation);
        self.commit(rest, checkpoint).await
    }

    /// Takes back the last operation that was not taken back yet: a rollback, a decision or a cancellation. Returns the
    /// newest point, whose state is the one before that operation. What ran since stays in the history.
    ///
    /// # Errors
    /// [`EngineError::NothingTo`]; [`EngineError::Irreversible`] as for a rollback; [`StoreError::Pruned`] where the
    /// state before is gone.
    pub async fn undo(
        &self,
        id: ExecutionId,
        effects: Effects,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let log = self.store.operations(id).await?;
        let rest = self.rest(id).await?;
        let done = match Log::read(&log).done.pop() {
            Some(last) => {
                let cause = Cause::Undo { operation: last.number };
                self.return_to(&rest, last.before, (cause, effects), operation).await
            }
            None => Err(nothing_to(&rest, "undo")),
        };
        rest.end(done).await
    }

    /// Does again what [`undo`](Self::undo) took back last. Returns the newest point, whose state is the one before
    /// that undo.
    ///
    /// # Errors
    /// As [`undo`](Self::undo). Once anything else was done after an undo, there is nothing to redo: it would be lost.
    pub async fn redo(
        &self,
        id: ExecutionId,
        effects: Effects,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let log = self.store.operations(id).await?;
        let rest = self.rest(id).await?;
        // What ran since the undo would be lost.
        let is_untouched = log.first().is_some_and(|last| last.after == rest.record.head);
        let done = match Log::read(&log).undone.pop().filter(|_| is_untouched) {
            Some((undone, undo)) => {
                let cause = Cause::Redo { operation: undone.number };
                self.return_to(&rest, undo.before, (cause, effects), operation).await
            }
            None => Err(nothing_to(&rest, "redo")),
        };
        rest.end(done).await
    }

    async fn return_to(
        &self,
        rest: &AtRest,
        seq: Seq,
        (cause, effects): (Cause, Effects),
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let id = rest.record.id;
        let (head, then) = (self.point(id, rest.record.head).await?, self.point(id, seq).await?);
        let workflow = self.workflow_of(&rest.record).await?;
        let mut after = NewState { ctx: then.ctx, writers: then.writers, is_whole: true };
        // Whoever ran then runs no more.
        if after.ctx.state == ExecutionState::Running {
            after.ctx.state = ExecutionState::Paused;
        }
        after.ctx.generation = rest.record.head + 1;
        let irreversible = plan::settle_effects(&workflow, &head, &mut after, effects);
        if effects == Effects::Refuse && !irreversible.is_empty() {
            return Err(EngineError::Irreversible { nodes: irreversible });
        }
        self.commit_state(rest, seq, after, cause, operation).await
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
        rest: &AtRest,
        after: &ExecutionContext,
        cause: Cause,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        self.commit(rest, self.checkpoint_of(&rest.ctx, after, cause, Some(operation))?).await
    }

    async fn commit(&self, rest: &AtRest, checkpoint: NewCheckpoint) -> Result<Seq, EngineError> {
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
        let request = Request { id: self.clock.new_id(), ask, operation };
        match self.rest(id).await {
            Ok(rest) => {
                let done = self.do_at_rest(&rest, request.ask, request.operation).await;
                return rest.end(done).await;
            }
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
                let done = match self.store.withdraw(id, request.id).await {
                    Ok(true) => self.do_at_rest(&rest, request.ask, request.operation).await,
                    Ok(false) => Ok(rest.record.head),
                    Err(error) => Err(error.into()),
                };
                return rest.end(done).await;
            }
        }
        let name = self.store.require(id).await?.name;
        let waited_s = ANSWER_WAIT.as_secs();
        if request.ask == Ask::Pause {
            return Err(EngineError::StillRunning { name, waited_s });
        }
        self.store.withdraw(id, request.id).await?;
        Err(EngineError::NoAnswer { name, waited_s })
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
        let record = decided(waiting, approved, with, self.clock.now());
        let definition = workflow.definition().nodes.get(&node);
        let into = definition.and_then(|definition| definition.into.clone());
        if let (Some(variable), Some(output)) = (into, record.output()) {
            after.set_variable(variable, output.clone());
        }
        if let (ExecutionResult::Failure(why), Some(OnError::Fail)) =
            (&record.result, definition.map(|definition| definition.on_error))
        {
            after.state = ExecutionState::Failed(format!("node `{node}` failed: {why}"));
            after.end(self.clock.now());
        }
        after.record_node_result(id, record);
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
            Some(ExecutionResult::Pending) => return Ok(()),
            None => "not reached",
            Some(_) => standing(result).0,
        };
        Err(EngineError::NotWaiting { name: name(), node: node.to_owned(), found })
    }
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
                // What ran from here on would be lost by a redo.
                Cause::Resume => read.undone.clear(),
                Cause::Start
                | Cause::Nodes
                | Cause::Interval
                | Cause::Before { .. }
                | Cause::LongNode { .. }
                | Cause::Started { .. }
                | Cause::Manual
                | Cause::Save
                | Cause::Pause
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
