//! How a run saves its state, and keeps its history within its bound.

use std::sync::Arc;

use super::Run;
use crate::engine::event::Event;
use crate::engine::secret::without_secrets;
use crate::engine::{EngineError, compensation};
use crate::store::{Cause, Commit, NewCheckpoint, NewOperation, Seq, delta};

/// How many points past its bound a history gets before a run prunes it: a write for each save would double the cost.
const PRUNED_AT_ONCE: u64 = 8;

/// What a checkpoint can carry beside the state.
#[derive(Debug, Default)]
pub(super) struct Extra {
    pub(super) label: Option<String>,
    pub(super) operation: Option<NewOperation>,
    pub(super) answers: Vec<uuid::Uuid>,
}

impl Run {
    /// Commits the state as it is now. Returns when it is durable.
    pub(super) async fn save(&mut self, cause: Cause, extra: Extra) -> Result<(), EngineError> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let state = self.ctx.clone();
        self.policy.saved(self.engine.clock.elapsed());
        let kind = cause.kind();
        let (id, now) = (self.engine.clock.new_id(), self.engine.clock.now());
        let checkpoint = NewCheckpoint {
            delta: delta(Some(&self.saved), &state, |name| unsaved.writers.get(name).copied())?,
            nodes: unsaved.nodes.clone(),
            label: extra.label,
            completed_node_count: self.completed,
            spend: state.ledger.spend,
            compress: self.policy.config().compress,
            operation: extra.operation.map(|operation| without_secrets(&self.masks, operation)),
            answers: extra.answers,
            ..NewCheckpoint::new(id, now, state.state.clone(), cause)
        };
        let commit = Commit {
            execution_id: state.execution_id,
            expected_head: self.head,
            fence: Some(self.held.fence()),
            checkpoint,
        };
        self.head = self.engine.store.commit(commit).await?.seq;
        self.saved = state;
        let seq = self.head;
        self.events.tell(|| Event::Checkpoint { seq, cause: kind, nodes: unsaved.nodes }).await;
        self.prune();
        Ok(())
    }

    /// Returns how many points stay: as many as were asked for, and all that an undo of the last operation needs.
    fn kept(&self) -> u64 {
        let asked = Seq::try_from(self.policy.config().max_checkpoints).unwrap_or(Seq::MAX);
        asked.max(self.undone_to.map_or(0, |point| self.head.saturating_sub(point) + 1))
    }

    /// Returns how many points the history has had past its bound since it was last pruned.
    fn surplus(&self) -> u64 {
        self.head.saturating_sub(self.pruned_at.max(self.kept()))
    }

    /// Keeps the history near its bound, beside the run: a save does not wait for it. Counter-actions that are to run
    /// see states that must not go before.
    fn prune(&mut self) {
        // What an undo needs is counted from a head that stands still: that is left for the end of the run.
        if compensation::is_any_due(&self.ctx) || self.undone_to.is_some() {
            return;
        }
        let is_pruning = self.pruning.as_ref().is_some_and(|pruning| !pruning.is_finished());
        if is_pruning || self.surplus() < PRUNED_AT_ONCE {
            return;
        }
        let (store, id) = (Arc::clone(&self.engine.store), self.ctx.execution_id);
        let keep = usize::try_from(self.kept()).unwrap_or(usize::MAX);
        self.pruned_at = self.head;
        self.pruning = Some(tokio::spawn(async move {
            if let Err(error) = store.prune(id, keep).await {
                tracing::warn!(execution = %id, %error, "older checkpoints could not be pruned");
            }
        }));
    }

    /// Brings the history within its bound.
    pub(super) async fn finish_pruning(&mut self) {
        if let Some(pruning) = self.pruning.take() {
            let _ended = pruning.await;
        }
        if self.surplus() > 0 && !compensation::is_any_due(&self.ctx) {
            let keep = usize::try_from(self.kept()).unwrap_or(usize::MAX);
            if let Err(error) = self.engine.store.prune(self.ctx.execution_id, keep).await {
                tracing::warn!(execution = %self.ctx.execution_id, %error, "older checkpoints could not be pruned");
            }
        }
    }
}
