//! What a worker asks the store for, one call at a time, while it does everything else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::store::{Claim, Claimed, Limit, Queue, QueueDepth, StoreError};

/// A call that is under way.
pub(super) struct Look {
    kind: Kind,
    answer: Pin<Box<dyn Future<Output = Seen> + Send>>,
}

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It takes leases, and is not given up lightly.
    Claim,
    /// It only reads, or waits for something to do.
    Rest,
    /// It lets time pass that is to pass, whatever else happens.
    Pause,
}

/// What came of a call.
pub(super) enum Seen {
    /// What was claimed, by a call that was made at that elapsed time.
    Claimed(Result<Vec<Claimed>, StoreError>, Duration),
    /// How the queues stand, and what is limited.
    Queues(Result<(Vec<QueueDepth>, Vec<Limit>), StoreError>),
    /// There may be something to do.
    Waited(Result<(), StoreError>),
    /// Whether the store answers.
    Greeted(Result<(), StoreError>),
    /// The rest after a failure is over.
    Rested,
}

impl Look {
    pub(super) fn claim(queue: Arc<dyn Queue>, claim: Claim, asked_at: Duration) -> Self {
        Self::new(Kind::Claim, async move { Seen::Claimed(queue.claim(&claim).await, asked_at) })
    }

    pub(super) fn queues(queue: Arc<dyn Queue>) -> Self {
        Self::new(Kind::Rest, async move { Seen::Queues(queues(&*queue).await) })
    }

    /// Asks for what costs nothing, to hear whether the store is back.
    pub(super) fn greeting(queue: Arc<dyn Queue>) -> Self {
        Self::new(Kind::Rest, async move { Seen::Greeted(queue.limits().await.map(drop)) })
    }

    pub(super) fn wait(queue: Arc<dyn Queue>, claim: Claim, at_most: Duration) -> Self {
        Self::new(Kind::Rest, async move { Seen::Waited(queue.wait_for_work(&claim, at_most).await) })
    }

    pub(super) fn rest(time: Duration) -> Self {
        Self::new(Kind::Pause, async move {
            tokio::time::sleep(time).await;
            Seen::Rested
        })
    }

    fn new(kind: Kind, answer: impl Future<Output = Seen> + Send + 'static) -> Self {
        Self { kind, answer: Box::pin(answer) }
    }

    /// Tells whether nothing is lost by not waiting for it.
    pub(super) fn is_rest(&self) -> bool {
        self.kind == Kind::Rest
    }

    /// Returns what is still to be waited for by a worker that takes on nothing more: what it may have claimed, but not
    /// for longer than `at_most`.
    pub(super) fn at_last(self, at_most: Duration) -> Option<Self> {
        match self.kind {
            Kind::Rest | Kind::Pause => None,
            Kind::Claim => Some(Self::new(Kind::Claim, async move {
                tokio::time::timeout(at_most, self.answer).await.unwrap_or(Seen::Rested)
            })),
        }
    }

    /// Waits for the answer. May be dropped and called again until it has returned one.
    pub(super) async fn seen(&mut self) -> Seen {
        self.answer.as_mut().await
    }
}

async fn queues(queue: &dyn Queue) -> Result<(Vec<QueueDepth>, Vec<Limit>), StoreError> {
    Ok((queue.depths().await?, queue.limits().await?))
}
