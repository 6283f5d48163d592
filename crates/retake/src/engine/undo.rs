//! Taking back operations, and doing them again: which one is next is read from the operation log.

use std::collections::BTreeMap;

use super::operation::AtRest;
use super::plan::{self, Dropped, Effects, Happened, Known, NewState, PlannedChange};
use super::{Engine, EngineError, compensation};
use crate::execution::{ExecutionId, ExecutionState};
use crate::store::{Cause, NewOperation, OperationRecord, Seq, StoreExt};

impl Engine {
    /// Takes back the last operation that was not taken back yet: a rollback, an edit, a decision or a cancellation.
    /// Returns the newest point, whose state is the one before that operation. What ran since stays in the history, and
    /// nobody goes on with it before somebody says so.
    ///
    /// # Errors
    /// [`EngineError::NothingTo`]; [`EngineError::Irreversible`] as for a rollback; `Pruned`, of the
    /// [store](crate::store::StoreError::Pruned), where the state before is gone.
    pub async fn undo(
        &self,
        id: ExecutionId,
        effects: Effects,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let last = |log: &[OperationRecord], _| {
            let last = Log::read(log).done.pop()?;
            Some((Cause::Undo { operation: last.number }, last.before))
        };
        self.turn_back(id, "undo", last, effects, operation).await
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
        let last = |log: &[OperationRecord], head| {
            // What ran since the undo would be lost.
            let is_untouched = log.first().is_some_and(|last| last.after == head);
            let (undone, undo) = Log::read(log).undone.pop().filter(|_| is_untouched)?;
            Some((Cause::Redo { operation: undone.number }, undo.before))
        };
        self.turn_back(id, "redo", last, effects, operation).await
    }

    /// Makes the state of the point that `choose` finds in the operation log the head.
    async fn turn_back(
        &self,
        id: ExecutionId,
        verb: &'static str,
        choose: impl Fn(&[OperationRecord], Seq) -> Option<(Cause, Seq)>,
        effects: Effects,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let rest = self.rest(id).await?;
        let done = match self.store.operations(id).await {
            Ok(log) => match choose(&log, rest.record.head) {
                Some((cause, seq)) => self.return_to(&rest, seq, (cause, effects), operation).await,
                None => Err(EngineError::NothingTo { name: rest.record.name.clone(), verb }),
            },
            Err(error) => Err(error.into()),
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
        let then = self.store.context(id, seq).await?;
        let workflow = self.workflow_with_id(then.workflow_id, &rest.record.name).await?;
        let head_workflow = self.workflow_with_id(rest.ctx.workflow_id, &rest.record.name).await?;
        let mut after = NewState { ctx: then, writers: BTreeMap::new() };
        // Whoever ran then runs no more.
        if after.ctx.state == ExecutionState::Running {
            after.ctx.state = ExecutionState::Paused;
        }
        after.ctx.generation = rest.record.head + 1;
        after.ctx.ledger.turn = rest.ctx.ledger.turn;
        after.ctx.ledger.spend = rest.ctx.ledger.spend;
        match effects {
            Effects::Again | Effects::Compensate => {
                let (head, target) = (self.point(id, rest.record.head).await?, self.point(id, seq).await?);
                let known = Known {
                    name: &rest.record.name,
                    workflow: &workflow,
                    head_workflow: &head_workflow,
                    head: &head,
                    target: &target,
                    is_on_line: false,
                };
                if let Some(without) = plan::without_compensated(known, &after.ctx)? {
                    after = without;
                }
            }
            Effects::Refuse | Effects::Keep => {}
        }
        let happened = Happened {
            seq: rest.record.head,
            workflow: &head_workflow,
            ctx: &rest.ctx,
            dropped: Dropped::Forgotten,
        };
        let settled = plan::settle_effects(happened, &workflow, &mut after, effects);
        plan::refuse(effects, &settled.irreversible, &settled.compensated)?;
        if after.ctx.state == ExecutionState::Completed && compensation::is_any_due(&after.ctx) {
            after.ctx.state = ExecutionState::Paused;
            after.ctx.completed_at = None;
        }
        let workflow = (rest.ctx.workflow_id != workflow.id()).then_some(workflow);
        let change = PlannedChange { execution: id, effects, cause, parent: seq, base: seq, after, workflow };
        self.commit_change(rest, change, operation).await
    }
}

/// Returns the point that an undo would return to.
pub(super) fn undone_to(log: &[OperationRecord]) -> Option<Seq> {
    Log::read(log).done.last().map(|last| last.before)
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
                | Cause::Retry { .. }
                | Cause::Manual
                | Cause::Save
                | Cause::Pause
                | Cause::Finish
                | Cause::Compensate { .. }
                | Cause::Fork { .. }
                | Cause::Repair { .. }
                | Cause::Prune { .. } => {}
            }
        }
        read
    }
}
