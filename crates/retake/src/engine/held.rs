//! A lease that is given back, whatever becomes of its holder.

use std::sync::Arc;
use std::time::Duration;

use crate::execution::ExecutionId;
use crate::store::{Lease, Store, StoreError};

/// How long a lease holds unless it is renewed.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(30);

/// How often a lease is renewed in its time to live, so that a renewal may come late or fail.
const RENEWALS_PER_TTL: u32 = 3;

/// The lease on an execution.
#[derive(Debug)]
pub(super) struct Held {
    store: Arc<dyn Store>,
    lease: Option<Lease>,
    fence: u64,
    ttl: Duration,
}

impl Held {
    pub(super) async fn take(store: &Arc<dyn Store>, id: ExecutionId) -> Result<Self, StoreError> {
        let lease = store.lease(id, LEASE_TTL).await?;
        Ok(Self { store: Arc::clone(store), fence: lease.fence, ttl: lease.ttl, lease: Some(lease) })
    }

    pub(super) fn fence(&self) -> u64 {
        self.fence
    }

    pub(super) fn renew_every(&self) -> Duration {
        self.ttl / RENEWALS_PER_TTL
    }

    pub(super) async fn renew(&self) -> Result<(), StoreError> {
        match &self.lease {
            Some(lease) => self.store.renew(lease).await,
            None => Ok(()),
        }
    }

    /// Gives the lease back. Where that fails it runs out by itself.
    pub(super) async fn release(&mut self) {
        if let Some(lease) = self.lease.take() {
            give_back(&*self.store, &lease).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        // Without a runtime nothing can be awaited; the lease then runs out, or ends with the process.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let store = Arc::clone(&self.store);
            runtime.spawn(async move { give_back(&*store, &lease).await });
        }
    }
}

async fn give_back(store: &dyn Store, lease: &Lease) {
    if let Err(error) = store.release(lease).await {
        tracing::warn!(execution = %lease.execution_id, %error, "a lease could not be given back");
    }
}
