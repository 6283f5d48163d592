//! The store as a worker of a crew sees it: every point that is acknowledged is told at once; and stores that do wrong.

use std::sync::Arc;
use std::time::Duration;

use retake::checkpoint::CheckpointId;
use retake::execution::{ExecutionId, WorkflowId};
use retake::store::{
    CheckpointRecord, Claim, Claimed, Commit, Conflict, ExecutionFilter, ExecutionRecord, Feed, FeedPage,
    History, HistoryPage, Image, Lease, Limit, NewCheckpoint, NewExecution, Note, OperationRecord, Queue,
    QueueDepth, Report, Request, Seq, Settlement, StaleLease, Store, StoreError, Submitted, Ticket,
    TicketRecord, WorkerRecord, WorkerReport,
};
use uuid::Uuid;

use super::Habit;
use crate::report;

/// How often a commit is forced on a store that refuses it.
const FORCED_MAX: usize = 20;

/// A store, and the habit of whoever uses it.
#[derive(Debug)]
pub(super) struct Watched {
    inner: Arc<dyn Queue>,
    habit: Habit,
}

impl Watched {
    pub(super) fn new(inner: Arc<dyn Queue>, habit: Habit) -> Self {
        Self { inner, habit }
    }

    /// Commits as the holder of the newest lease, on the newest head, whoever that is.
    async fn commit_anyhow(&self, mut commit: Commit) -> Result<CheckpointRecord, StoreError> {
        for _ in 0..FORCED_MAX {
            match self.inner.commit(commit.clone()).await {
                Err(StoreError::Conflict(Conflict::Fenced { found, .. })) => commit.fence = Some(found),
                Err(StoreError::Conflict(Conflict::HeadMoved { found, .. })) => commit.expected_head = found,
                done => return done,
            }
        }
        self.inner.commit(commit).await
    }
}

#[async_trait::async_trait]
impl Store for Watched {
    async fn create(&self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError> {
        self.inner.create(new, first).await
    }

    async fn commit(&self, commit: Commit) -> Result<CheckpointRecord, StoreError> {
        let (execution, id, seq) = (commit.execution_id, commit.checkpoint.id, commit.expected_head + 1);
        let tell = |seq| report::say(&format!("acknowledged {execution} {seq} {id}"));
        let done = match self.habit {
            Habit::Honest => self.inner.commit(commit).await,
            Habit::Hasty => {
                tell(seq);
                return self.inner.commit(commit).await;
            }
            Habit::Unfenced => self.commit_anyhow(commit).await,
        };
        if let Ok(record) = &done {
            tell(record.seq);
        }
        done
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
        match (self.inner.renew(lease).await, self.habit) {
            (Err(StoreError::Conflict(_)), Habit::Unfenced) => Ok(()),
            (done, Habit::Honest | Habit::Hasty | Habit::Unfenced) => done,
        }
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

    async fn feed(&self, page: FeedPage) -> Result<Feed, StoreError> {
        self.inner.feed(page).await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.inner.check().await
    }

    async fn compact(&self) -> Result<(), StoreError> {
        self.inner.compact().await
    }
}

#[async_trait::async_trait]
impl Queue for Watched {
    async fn submit(
        &self,
        new: NewExecution,
        first: NewCheckpoint,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submitted, StoreError> {
        self.inner.submit(new, first, ticket, key).await
    }

    async fn enqueue(&self, id: ExecutionId, ticket: Ticket) -> Result<(), StoreError> {
        self.inner.enqueue(id, ticket).await
    }

    async fn dequeue(&self, id: ExecutionId) -> Result<bool, StoreError> {
        self.inner.dequeue(id).await
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Claimed>, StoreError> {
        self.inner.claim(claim).await
    }

    async fn tickets(&self, ids: &[ExecutionId]) -> Result<Vec<TicketRecord>, StoreError> {
        self.inner.tickets(ids).await
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
