//! How a run saves its state, and keeps its history within its bound.

use std::sync::Arc;
use std::time::Duration;

use super::Run;
use super::parking::Parking;
use crate::engine::event::Event;
use crate::engine::secret::without_secrets;
use crate::engine::{EngineError, compensation};
use crate::store::{Cause, Commit, Conflict, NewCheckpoint, NewOperation, Seq, StoreError, StoreExt, delta};

/// For how long a worker tries to save what it has where the store is away: longer than anybody leaves one away.
const AWAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long it waits between two tries.
const COMMIT_PAUSE: Duration = Duration::from_millis(500);

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
        self.head = self.commit(commit).await?;
        self.saved = state;
        let seq = self.head;
        self.events.tell(|| Event::Checkpoint { seq, cause: kind, nodes: unsaved.nodes }).await;
        self.prune();
        Ok(())
    }

    /// Commits. A worker does so also where the store is away for longer than any lease holds: what its nodes gave is paid
    /// for, and nobody else goes on with the execution before somebody has taken the lease.
    async fn commit(&mut self, commit: Commit) -> Result<Seq, EngineError> {
        if self.parking == Parking::Never {
            return Ok(self.engine.store.commit(commit).await?.seq);
        }
        let (id, began) = (commit.checkpoint.id, self.engine.clock.elapsed());
        let mut is_first = true;
        loop {
            let error = match self.engine.store.commit(commit.clone()).await {
                Ok(record) => return Ok(record.seq),
                Err(error) => error,
            };
            // An attempt before may have been done, though nobody heard of it.
            let may_be_done =
                matches!(error, StoreError::Conflict(Conflict::HeadMoved { .. } | Conflict::IdTaken(_)));
            if !is_first && may_be_done {
                let head = self.engine.store.newest(commit.execution_id).await?;
                return head.filter(|head| head.id == id).map(|head| head.seq).ok_or(error.into());
            }
            let is_over = self.engine.clock.elapsed().saturating_sub(began) > AWAY_MAX;
            if is_over || !error.is_retryable() {
                return Err(error.into());
            }
            is_first = false;
            tokio::select! {
                lost = self.held.lost() => return Err(lost.into()),
                () = tokio::time::sleep(COMMIT_PAUSE) => {}
            }
        }
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
