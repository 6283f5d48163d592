//! A lease that is kept while it is needed, and given back, whatever becomes of its holder.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::clock::Clock;
use crate::execution::ExecutionId;
use crate::store::{Lease, Queue, Settlement, Store, StoreError};

/// How long a lease holds unless it is renewed, where nobody says otherwise.
pub const LEASE_TTL: Duration = Duration::from_secs(30);

/// The shortest time that a lease can hold: renewals have to be made within it.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(1);

/// The longest time that a lease can hold: so long an execution rests whose process has died.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(3_600);

/// How often a lease is renewed in its time to live, so that a renewal may come late or fail.
const RENEWALS_PER_TTL: u32 = 3;

/// The longest time between two renewals, however long the lease holds: that it is renewed shows that its holder lives.
const RENEWED_AFTER_MAX: Duration = Duration::from_secs(10);

/// How often a renewal that failed is tried again in the time between two renewals.
const TRIES_PER_RENEWAL: u32 = 4;

/// The lease on an execution.
#[derive(Debug)]
pub(super) struct Held {
    store: Arc<dyn Store>,
    lease: Option<Lease>,
    fence: u64,
    /// When the lease was known to hold first, in elapsed time.
    since: Duration,
    keeper: Option<Keeper>,
}

/// What renews a lease. A task of its own: whatever the run is busy with, the lease is renewed in time.
#[derive(Debug)]
struct Keeper {
    task: AbortHandle,
    lost: watch::Receiver<Option<StoreError>>,
    hold: Hold,
}

/// A lease that is being renewed, for those who begin something under it.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    store: Arc<dyn Store>,
    lease: Lease,
    clock: Arc<dyn Clock>,
    /// When the lease was last known to hold, in elapsed time.
    confirmed: Arc<Mutex<Duration>>,
}

impl Held {
    pub(super) async fn take(
        store: &Arc<dyn Store>,
        clock: &Arc<dyn Clock>,
        id: ExecutionId,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let since = clock.elapsed();
        Ok(Self::of(store, store.lease(id, ttl).await?, since))
    }

    /// Returns what holds a lease that was taken already: by a call that was made at that elapsed time, and not before
    /// it. What happened since is not known, for this process may have been stopped.
    pub(super) fn of(store: &Arc<dyn Store>, lease: Lease, since: Duration) -> Self {
        Self { store: Arc::clone(store), fence: lease.fence, lease: Some(lease), since, keeper: None }
    }

    pub(super) fn fence(&self) -> u64 {
        self.fence
    }

    /// Begins to renew the lease, until it is given back or lost.
    pub(super) fn keep(&mut self, clock: &Arc<dyn Clock>) {
        let Some(lease) = self.lease.clone() else { return };
        let (losing, lost) = watch::channel(None);
        let hold = Hold {
            store: Arc::clone(&self.store),
            lease,
            clock: Arc::clone(clock),
            confirmed: Arc::new(Mutex::new(self.since)),
        };
        let kept = hold.clone();
        let task = tokio::spawn(async move {
            let error = kept.until_lost().await;
            // Whoever held it may be gone.
            let _gone = losing.send(Some(error));
        });
        self.keeper = Some(Keeper { task: task.abort_handle(), lost, hold });
    }

    /// Returns the lease, where it is being renewed.
    pub(super) fn hold(&self) -> Option<Hold> {
        self.keeper.as_ref().map(|keeper| keeper.hold.clone())
    }

    /// Waits until the lease is lost, and says how that shows. Never ends while it holds.
    pub(super) async fn lost(&mut self) -> StoreError {
        let Some(keeper) = &mut self.keeper else { return std::future::pending().await };
        let error = match keeper.lost.wait_for(Option::is_some).await {
            Ok(error) => error.clone(),
            Err(_) => None,
        };
        match error {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Settles the claim that the lease came with, which gives the lease back.
    ///
    /// # Errors
    /// Those of [`Queue::settle`]. The lease is still held then.
    pub(super) async fn settle(
        &mut self,
        queue: &dyn Queue,
        settlement: Settlement,
    ) -> Result<(), StoreError> {
        if let Some(lease) = &self.lease {
            queue.settle(lease, settlement).await?;
        }
        self.forget();
        Ok(())
    }

    /// Gives the lease back. Where that fails it runs out by itself.
    pub(super) async fn release(&mut self) {
        if let Some(lease) = self.end() {
            give_back(&*self.store, &lease).await;
        }
    }

    /// Lets the lease run out, or go to whoever has it already.
    pub(super) fn forget(&mut self) {
        let _nobodys = self.end();
    }

    /// Ends the renewals, and returns the lease.
    fn end(&mut self) -> Option<Lease> {
        if let Some(keeper) = self.keeper.take() {
            keeper.task.abort();
        }
        self.lease.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(lease) = self.end() else { return };
        // Without a runtime nothing can be awaited; the lease then runs out, or ends with the process.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let store = Arc::clone(&self.store);
            runtime.spawn(async move { give_back(&*store, &lease).await });
        }
    }
}

impl Hold {
    /// Makes sure that the lease holds, where it is so long since that was known that somebody else may have it: this
    /// process was stopped, or its machine slept. To be called right before anything new is begun; costs a look at the clock.
    pub(super) async fn confirm(&self) -> Result<(), StoreError> {
        let known_for = self.clock.elapsed().saturating_sub(*lock(&self.confirmed));
        if known_for < self.lease.ttl {
            return Ok(());
        }
        let now = self.clock.elapsed();
        self.store.renew(&self.lease).await?;
        *lock(&self.confirmed) = now;
        Ok(())
    }

    /// Renews the lease in time, until somebody else has it.
    async fn until_lost(self) -> StoreError {
        let every = (self.lease.ttl / RENEWALS_PER_TTL).min(RENEWED_AFTER_MAX);
        let mut next = every;
        loop {
            tokio::time::sleep(next).await;
            // What was true before the call is what its success says.
            let now = self.clock.elapsed();
            next = match self.store.renew(&self.lease).await {
                Ok(()) => {
                    *lock(&self.confirmed) = now;
                    every
                }
                // A store that does not answer lets nobody else take the lease either.
                Err(error) if error.is_retryable() => {
                    tracing::warn!(execution = %self.lease.execution_id, %error, "a lease could not be renewed");
                    every / TRIES_PER_RENEWAL
                }
                Err(error) => return error,
            };
        }
    }
}

fn lock(confirmed: &Mutex<Duration>) -> MutexGuard<'_, Duration> {
    confirmed.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn give_back(store: &dyn Store, lease: &Lease) {
    if let Err(error) = store.release(lease).await {
        tracing::warn!(execution = %lease.execution_id, %error, "a lease could not be given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::execution::{ExecutionContext, ExecutionState};
    use crate::store::{Cause, Conflict, MemoryStore, NewCheckpoint, NewExecution, delta};

    /// Returns a store with an execution, by a clock that stands still.
    async fn store(clock: &Arc<ManualClock>) -> (Arc<dyn Store>, ExecutionId) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::with_clock(Arc::clone(clock) as _));
        let ctx = ExecutionContext::new(uuid::Uuid::from_u128(7));
        let new = NewExecution {
            id: ctx.execution_id,
            name: "held".to_owned(),
            workflow_id: ctx.workflow_id,
            workflow_name: "held".to_owned(),
            definition: Vec::new(),
            origin: None,
        };
        let first = NewCheckpoint {
            delta: delta(None, &ctx, |_| None).unwrap(),
            ..NewCheckpoint::new(clock.new_id(), clock.now(), ExecutionState::Running, Cause::Start)
        };
        store.create(new, first).await.unwrap();
        (store, ctx.execution_id)
    }

    #[tokio::test]
    async fn a_lease_that_passed_on_before_anything_was_begun_is_not_confirmed() {
        let clock = Arc::new(ManualClock::default());
        let shared: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let (store, id) = store(&clock).await;
        let mut held = Held::take(&store, &shared, id, LEASE_TTL).await.unwrap();
        // Its process stands still before it does anything, and somebody takes over.
        clock.advance(LEASE_TTL * 2);
        store.lease(id, LEASE_TTL).await.unwrap();
        held.keep(&shared);
        let error = held.hold().unwrap().confirm().await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Fenced { ours: 1, found: 2, .. })), "{error}");
    }
}
