//! Every store against the one contract. A case that is added to the kit runs against all of them.

use std::sync::Arc;
use std::time::Duration;

use retake::clock::ManualClock;
use retake::store::{MemoryStore, Store};
use retake::testkit::{self, Harness};

/// A memory store is never reopened: it lives in its process.
struct Memory {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
}

impl Memory {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        Self { store: Arc::new(MemoryStore::with_clock(clock.clone())), clock }
    }
}

#[async_trait::async_trait]
impl Harness for Memory {
    async fn open(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_keeps_the_contract() {
    testkit::run_contract(Memory::new).await;
}
