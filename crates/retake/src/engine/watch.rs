//! Following a store: its points as they become durable, wherever they are made.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;

use crate::execution::ExecutionId;
use crate::store::{FEED_PAGE_MAX, FeedPage, FeedPoint, Since, Store, StoreError};

/// How long to wait before looking again where there was nothing new. No store announces its commits: on PostgreSQL,
/// transactions that announce something are flushed one after the other, which costs all of them more than looks do.
const INTERVAL_DEFAULT: Duration = Duration::from_millis(250);

/// Somebody who follows the points of a store, of all executions or of one.
///
/// It sees every point once, in the order in which they became durable. What it saw last it can go on from: by itself,
/// after a store failed it, and in another process by the [`Position`](crate::store::Position) that each point carries.
///
/// ```
/// use std::sync::Arc;
/// use retake::engine::{Engine, Start, Watch};
/// use retake::store::{MemoryStore, Since};
/// use retake::workflow::{Node, Workflow};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::new(Arc::new(MemoryStore::new()));
/// let mut watch = Watch::new(engine.store().clone(), Since::Start);
/// let workflow = Workflow::builder("greeting").node("greet", Node::set([("greeting", json!("hello"))])).build()?;
/// engine.start(Arc::new(workflow), Start::default()).await?.drive().await?;
///
/// let first = watch.next().await?;
/// assert_eq!((first.record.seq, first.record.cause.kind()), (1, "start"));
/// let mut elsewhere = Watch::new(engine.store().clone(), Since::After(first.position));
/// assert_eq!(elsewhere.next().await?, watch.next().await?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Watch {
    store: Arc<dyn Store>,
    execution: Option<ExecutionId>,
    /// Behind what has been read.
    since: Since,
    /// Read, and not given yet.
    waiting: VecDeque<FeedPoint>,
    interval: Duration,
}

impl Watch {
    /// Returns one that follows all executions of a store.
    pub fn new(store: Arc<dyn Store>, since: Since) -> Self {
        Self { store, execution: None, since, waiting: VecDeque::new(), interval: INTERVAL_DEFAULT }
    }

    /// Follows one execution only.
    #[must_use]
    pub fn of(self, execution: ExecutionId) -> Self {
        Self { execution: Some(execution), ..self }
    }

    /// Looks again after this time where there was nothing new, instead of a quarter of a second.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Waits for the next point. Dropping the future loses none.
    ///
    /// # Errors
    /// Those of [`Store::feed`]. After one that [is retryable](StoreError::is_retryable), the next call goes on as if
    /// nothing had been.
    pub async fn next(&mut self) -> Result<FeedPoint, StoreError> {
        loop {
            if let Some(point) = self.next_now().await? {
                return Ok(point);
            }
            self.pause().await;
        }
    }

    /// Returns the next point, or `None` where there is nothing new now. Dropping the future loses none.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn next_now(&mut self) -> Result<Option<FeedPoint>, StoreError> {
        if self.waiting.is_empty() {
            let page = FeedPage { since: self.since, execution: self.execution, limit: FEED_PAGE_MAX };
            let read = self.store.feed(page).await?;
            self.since = Since::After(read.next);
            self.waiting = read.points.into();
        }
        Ok(self.waiting.pop_front())
    }

    /// Returns when it is time to look again.
    pub async fn pause(&self) {
        tokio::time::sleep(self.interval).await;
    }

    /// Returns the points as they come, and what kept them from being read; it ends never.
    pub fn into_stream(self) -> impl Stream<Item = Result<FeedPoint, StoreError>> + Send {
        futures_util::stream::unfold(self, async |mut watch| Some((watch.next().await, watch)))
    }
}
