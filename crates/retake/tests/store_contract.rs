//! Every store against the one contract. A case that is added to the kit runs against all of them.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::TestRunner;
use retake::checkpoint::InMemoryCheckpointStorage;
use retake::clock::ManualClock;
use retake::store::{BlockingStore, MemoryStore, Queue, Store};
#[cfg(feature = "sqlite")]
use retake::store::{MasterKey, Options, SqliteStore};
use retake::testkit::{self, Harness, histories};

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

    async fn queue(&self) -> Option<Arc<dyn Queue>> {
        Some(self.store.clone())
    }
}

/// A SQLite store is opened anew each time; those opened before stay open, and so do their leases.
#[cfg(feature = "sqlite")]
struct Sqlite {
    clock: Arc<ManualClock>,
    directory: tempfile::TempDir,
    keys: Vec<MasterKey>,
    opened: std::sync::Mutex<Vec<Arc<SqliteStore>>>,
}

#[cfg(feature = "sqlite")]
impl Sqlite {
    fn new() -> Self {
        Self::with_keys(Vec::new())
    }

    fn encrypted() -> Self {
        Self::with_keys(vec![MasterKey::random().expect("a key")])
    }

    fn with_keys(keys: Vec<MasterKey>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { clock: Arc::default(), directory, keys, opened: std::sync::Mutex::default() }
    }
}

#[cfg(feature = "sqlite")]
#[async_trait::async_trait]
impl Harness for Sqlite {
    async fn open(&self) -> Arc<dyn Store> {
        let options = Options { clock: self.clock.clone(), keys: self.keys.clone(), ..Options::default() };
        let store = SqliteStore::open_with(self.directory.path().join("retake.db"), options);
        let store = Arc::new(store.expect("the store opens"));
        self.opened.lock().expect("no case panics here").push(store.clone());
        store
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

/// Runs the contract, random histories, and the contract of the blocking face against one store.
macro_rules! every_test {
    ($store:ident, $empty:expr) => {
        mod $store {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn keeps_the_contract() {
                testkit::run_contract($empty).await;
            }

            #[test]
            fn random_histories_read_as_their_model() {
                run_histories($empty);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn its_blocking_face_is_a_checkpoint_storage() {
                let harness = $empty();
                let storage = BlockingStore::new(harness.open().await).unwrap();
                testkit::checkpoint_storage(&storage);
            }
        }
    };
}

every_test!(memory_store, Memory::new);
#[cfg(feature = "sqlite")]
every_test!(sqlite_store, Sqlite::new);
#[cfg(feature = "sqlite")]
every_test!(encrypted_sqlite_store, Sqlite::encrypted);
#[cfg(feature = "postgres")]
every_test!(postgres_store, testkit::postgres::PostgresSchema::new);

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_keeps_the_contract_of_queues() {
    testkit::run_queue_contract(Memory::new).await;
}

/// Histories at the same time: a store waits for its disk for most of the time.
const HISTORIES_AT_ONCE: u32 = 4;

fn run_histories<H: Harness>(empty: impl Fn() -> H + Sync) {
    std::thread::scope(|scope| {
        (0..HISTORIES_AT_ONCE).for_each(|_| drop(scope.spawn(|| run_some_histories(&empty))));
    });
}

fn run_some_histories<H: Harness>(empty: impl Fn() -> H) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let cases = 64 / HISTORIES_AT_ONCE;
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&histories::acts(60), |acts| {
        runtime.block_on(histories::run_history(&empty(), &acts));
        Ok(())
    });
    outcome.expect("every history reads as its model");
}

#[test]
fn the_storage_in_memory_is_a_checkpoint_storage() {
    testkit::checkpoint_storage(&InMemoryCheckpointStorage::new());
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn postgres_store_keeps_the_contract_of_queues() {
    testkit::run_queue_contract(testkit::postgres::PostgresSchema::new).await;
}
