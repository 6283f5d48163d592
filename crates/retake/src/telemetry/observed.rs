//! A store that is watched from outside: every store, in the same way, without knowing of it.

use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument as _, Span, field};
use uuid::Uuid;

use super::instrument;
use crate::checkpoint::CheckpointId;
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::{
    Cause, CheckpointRecord, Claim, Claimed, Commit, Conflict, ExecutionFilter, ExecutionRecord, Feed,
    FeedPage, History, HistoryPage, Image, Lease, Limit, NewCheckpoint, NewExecution, Note, OperationRecord,
    Queue, QueueDepth, Report, Request, Seq, Settlement, StaleLease, Store, StoreError, Submitted, Ticket,
    TicketRecord, WorkerRecord, WorkerReport,
};

/// A store that tells of its commits, claims and lost leases, and is otherwise the store that it was made of.
///
/// A commit is a span `commit`, at level `DEBUG`, below the span that is current.
#[derive(Debug)]
pub struct Observed<S: ?Sized> {
    /// The value of `db.system.name`.
    system: &'static str,
    clock: Arc<dyn Clock>,
    inner: Arc<S>,
}

/// What a commit gives.
trait Made {
    /// Returns the checkpoint that was made, if one was.
    fn record(&self) -> Option<&CheckpointRecord>;
}

impl Made for CheckpointRecord {
    fn record(&self) -> Option<&CheckpointRecord> {
        Some(self)
    }
}

impl Made for Submitted {
    fn record(&self) -> Option<&CheckpointRecord> {
        match self {
            Self::Created(record) => Some(record),
            Self::Duplicate(_) => None,
        }
    }
}

impl<S: ?Sized> Clone for Observed<S> {
    fn clone(&self) -> Self {
        Self { system: self.system, clock: Arc::clone(&self.clock), inner: Arc::clone(&self.inner) }
    }
}

impl<S: Store + ?Sized> Observed<S> {
    /// Watches a store. `system` is what the semantic conventions call it: `sqlite`, `postgresql`.
    pub fn new(inner: Arc<S>, system: &'static str) -> Self {
        Self { system, clock: Arc::new(SystemClock::default()), inner }
    }

    fn commit_span(&self, id: ExecutionId, cause: &Cause) -> Span {
        tracing::debug_span!(
            "commit",
            otel.kind = "client",
            db.system.name = self.system,
            db.operation.name = "commit",
            retake.execution.id = %id,
            retake.checkpoint.cause = cause.kind(),
            retake.checkpoint.seq = field::Empty,
            retake.checkpoint.size = field::Empty,
            error.r#type = field::Empty,
            otel.status_code = field::Empty,
        )
    }

    /// Awaits a commit, and tells of it.
    async fn committed<T: Made>(
        &self,
        span: Span,
        id: ExecutionId,
        commit: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = self.clock.elapsed();
        let done = commit.instrument(span.clone()).await;
        let took = self.clock.elapsed().saturating_sub(began);
        let outcome = match &done {
            Ok(made) => {
                let Some(record) = made.record() else { return done };
                span.record("retake.checkpoint.seq", record.seq);
                span.record("retake.checkpoint.size", record.size_bytes);
                // The span says the same to a collector; the log shows events.
                tracing::debug!(
                    parent: None,
                    retake.execution.id = %id,
                    retake.checkpoint.cause = record.cause.kind(),
                    retake.checkpoint.seq = record.seq,
                    retake.checkpoint.size = record.size_bytes,
                    retake.commit.duration = took.as_secs_f64(),
                    "a checkpoint is durable"
                );
                instrument::COMMIT_DURATION
                    .record(took.as_secs_f64(), [("db.system.name", self.system.into())]);
                "durable"
            }
            Err(error) => {
                span.record("error.type", error.class());
                span.record("otel.status_code", "ERROR");
                if let StoreError::Conflict(_) = error { "conflict" } else { "failed" }
            }
        };
        instrument::COMMITS
            .add(1, [("db.system.name", self.system.into()), ("retake.commit.outcome", outcome.into())]);
        span.in_scope(|| self.kept(id, done))
    }

    /// Tells of a lease that was lost.
    fn kept<T>(&self, id: ExecutionId, done: Result<T, StoreError>) -> Result<T, StoreError> {
        match &done {
            Err(StoreError::Conflict(Conflict::Fenced { ours, found, .. })) => {
                tracing::warn!(
                    retake.execution.id = %id,
                    retake.lease.fence = ours,
                    retake.lease.fence.found = found,
                    "the lease has passed to another process"
                );
                instrument::LEASE_LOSSES.add(1, [("db.system.name", self.system.into())]);
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(retake.execution.id = %id, error.r#type = error.class(), "the store did not answer");
            }
            Ok(_) | Err(_) => {}
        }
        done
    }
}

#[async_trait::async_trait]
impl<S: Store + ?Sized> Store for Observed<S> {
    async fn create(&self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError> {
        let span = self.commit_span(new.id, &first.cause);
        self.committed(span, new.id, self.inner.create(new, first)).await
    }

    async fn commit(&self, commit: Commit) -> Result<CheckpointRecord, StoreError> {
        let (id, span) =
            (commit.execution_id, self.commit_span(commit.execution_id, &commit.checkpoint.cause));
        self.committed(span, id, self.inner.commit(commit)).await
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        self.inner.execution(id).await
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        self.inner.executions(filter).await
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.workflow(id).await
    }

    async fn history(&self, id: ExecutionId, page: HistoryPage) -> Result<Vec<CheckpointRecord>, StoreError> {
        self.inner.history(id, page).await
    }

    async fn feed(&self, page: FeedPage) -> Result<Feed, StoreError> {
        self.inner.feed(page).await
    }

    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointRecord>, StoreError> {
        self.inner.checkpoint(id).await
    }

    async fn state(&self, id: ExecutionId, seq: Seq) -> Result<Image, StoreError> {
        self.inner.state(id, seq).await
    }

    async fn operations(&self, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError> {
        self.inner.operations(id).await
    }

    async fn note(&self, id: ExecutionId, note: Note) -> Result<OperationRecord, StoreError> {
        self.inner.note(id, note).await
    }

    async fn export(&self, id: ExecutionId) -> Result<History, StoreError> {
        self.inner.export(id).await
    }

    async fn import(&self, history: History) -> Result<(), StoreError> {
        self.inner.import(history).await
    }

    async fn prune(&self, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
        self.inner.prune(id, keep).await
    }

    async fn delete(&self, id: ExecutionId) -> Result<usize, StoreError> {
        self.inner.delete(id).await
    }

    async fn lease(&self, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError> {
        self.inner.lease(id, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.kept(lease.execution_id, self.inner.renew(lease).await)
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.inner.release(lease).await
    }

    async fn ask(&self, id: ExecutionId, request: Request) -> Result<(), StoreError> {
        self.inner.ask(id, request).await
    }

    async fn requests(&self, id: ExecutionId) -> Result<Vec<Request>, StoreError> {
        self.inner.requests(id).await
    }

    async fn withdraw(&self, id: ExecutionId, request: Uuid) -> Result<bool, StoreError> {
        self.inner.withdraw(id, request).await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.inner.check().await
    }

    async fn compact(&self) -> Result<(), StoreError> {
        self.inner.compact().await
    }
}

#[async_trait::async_trait]
impl<Q: Queue + ?Sized> Queue for Observed<Q> {
    async fn submit(
        &self,
        new: NewExecution,
        first: NewCheckpoint,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submitted, StoreError> {
        let (id, span) = (new.id, self.commit_span(new.id, &first.cause));
        let submitted = self.inner.submit(new, first, ticket, key);
        self.committed(span, id, submitted).await
    }

    async fn enqueue(&self, id: ExecutionId, ticket: Ticket) -> Result<(), StoreError> {
        self.inner.enqueue(id, ticket).await
    }

    async fn dequeue(&self, id: ExecutionId) -> Result<bool, StoreError> {
        self.inner.dequeue(id).await
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Claimed>, StoreError> {
        let claimed = self.inner.claim(claim).await?;
        for Claimed { queue, .. } in &claimed {
            instrument::CLAIMS.add(1, [("retake.queue.name", queue.clone().into())]);
        }
        Ok(claimed)
    }

    async fn settle(&self, lease: &Lease, settlement: Settlement) -> Result<(), StoreError> {
        self.inner.settle(lease, settlement).await
    }

    async fn wait_for_work(&self, claim: &Claim, at_most: Duration) -> Result<(), StoreError> {
        self.inner.wait_for_work(claim, at_most).await
    }

    async fn set_limit(&self, limit: Limit) -> Result<(), StoreError> {
        self.inner.set_limit(limit).await
    }

    async fn lift_limit(&self, limit: &Limit) -> Result<bool, StoreError> {
        self.inner.lift_limit(limit).await
    }

    async fn limits(&self) -> Result<Vec<Limit>, StoreError> {
        self.inner.limits().await
    }

    async fn tickets(&self, of: &[ExecutionId]) -> Result<Vec<TicketRecord>, StoreError> {
        self.inner.tickets(of).await
    }

    async fn depths(&self) -> Result<Vec<QueueDepth>, StoreError> {
        self.inner.depths().await
    }

    async fn report(&self, worker: &WorkerReport) -> Result<(), StoreError> {
        self.inner.report(worker).await
    }

    async fn retire(&self, worker: Uuid) -> Result<(), StoreError> {
        self.inner.retire(worker).await
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        self.inner.workers().await
    }

    async fn stale_leases(&self) -> Result<Vec<StaleLease>, StoreError> {
        self.inner.stale_leases().await
    }
}
