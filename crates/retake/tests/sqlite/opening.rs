//! What becomes a store, what is refused, and how a store ends.

use std::sync::Arc;

use retake::store::{self, CheckpointRecord, FORMAT, SqliteStore, Store, StoreError, StoreExt};
use rusqlite::Connection;

use super::*;

#[tokio::test]
async fn what_was_committed_is_there_after_reopening_and_the_log_is_in_the_file() {
    let (directory, path) = place();
    let nested = directory.path().join("a/b/retake.db");
    let store = SqliteStore::open(&nested).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 5).await;
    let record = store.require(id).await.unwrap();
    drop(store);
    let left: Vec<_> =
        std::fs::read_dir(nested.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["retake.db"]);
    let store = SqliteStore::open_existing(&nested).unwrap();
    assert_eq!(store.require(id).await.unwrap(), record);
    assert_eq!(step(&store.state(id, 5).await.unwrap()), "5");
    assert!(SqliteStore::open_existing(&path).is_err() && !path.exists());
}

#[tokio::test]
async fn however_often_a_store_is_closed_after_reads_the_log_ends_up_in_the_file() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    drop(store);
    for seq in 2..=200 {
        let store = SqliteStore::open(&path).unwrap();
        advance(&store, id, seq, seq).await;
        let (one, other) = tokio::join!(store.execution(id), store.execution(id));
        assert_eq!(one.unwrap(), other.unwrap());
        drop(store);
        assert!(!path.with_extension("db-wal").exists(), "at @{seq}");
    }
}

/// A log that somebody left may hold commits that only the memory of the machine has. What follows them there would be
/// lost with them.
#[tokio::test]
async fn nothing_is_acknowledged_behind_a_log_that_somebody_left() {
    let (_first, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 5).await;
    // What a process leaves that dies now.
    let (_second, left) = place();
    let log = left.with_extension("db-wal");
    std::fs::copy(&path, &left).unwrap();
    std::fs::copy(path.with_extension("db-wal"), &log).unwrap();
    let generation = |log: &Path| std::fs::read(log).unwrap()[12..16].to_vec();
    let before = generation(&log);

    let store = SqliteStore::open(&left).unwrap();
    assert_eq!(step(&store.state(id, 5).await.unwrap()), "5");
    assert_eq!(generation(&log), before, "reading does not touch the log");
    advance(&store, id, 6, 6).await;
    assert_ne!(generation(&log), before, "the log that was left is in the file, and another begins");
    let begun = generation(&log);
    advance(&store, id, 7, 8).await;
    assert_eq!(generation(&log), begun);
    assert_eq!(step(&store.state(id, 8).await.unwrap()), "8");
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_newer_format_is_refused_and_the_file_stays_as_it_is() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    begin(&store, "brave-otter").await;
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 9, supported: FORMAT, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_format_that_lies_in_the_log_still_is_refused_and_file_and_log_stay_as_they_are() {
    let (_directory, path) = place();
    drop(SqliteStore::open(&path).unwrap());
    let newer = Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 9).unwrap();
    let log = path.with_extension("db-wal");
    let before = (std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap());
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 9, .. }), "{error}");
    assert_eq!((std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap()), before);
}

#[test]
fn what_is_not_a_store_is_refused_by_name_and_stays_as_it_is() {
    let (directory, path) = place();
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(error.to_string().ends_with("is not a retake store: it is a directory"), "{error}");

    for text in ["not a database", &"not a database".repeat(1_000)] {
        std::fs::write(&path, text).unwrap();
        let error = SqliteStore::open(&path).unwrap_err();
        assert!(error.to_string().ends_with("is not a retake store: it is not a SQLite file"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), text.as_bytes());
    }

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(error.to_string().ends_with("it is another application's SQLite file"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn an_empty_file_becomes_a_store() {
    let (_directory, path) = place();
    std::fs::write(&path, "").unwrap();
    drop(SqliteStore::open(&path).unwrap());
    let version: u32 =
        Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, store::FORMAT);
}

#[test]
fn an_empty_file_beside_a_log_is_refused_and_the_log_stays() {
    let (_directory, path) = place();
    let log = path.with_extension("db-wal");
    std::fs::write(&path, "").unwrap();
    std::fs::write(&log, "all that there is").unwrap();
    for error in [SqliteStore::open(&path).unwrap_err(), SqliteStore::open_existing(&path).unwrap_err()] {
        assert!(error.to_string().ends_with("it was cut short"), "{error}");
    }
    assert_eq!(std::fs::read(&log).unwrap(), b"all that there is");
}

#[test]
fn a_new_file_can_be_opened_from_many_threads_at_once() {
    let (_directory, path) = place();
    std::thread::scope(|scope| {
        let opened: Vec<_> = (0..8).map(|_| scope.spawn(|| SqliteStore::open(&path).map(drop))).collect();
        for thread in opened {
            thread.join().unwrap().unwrap();
        }
    });
}

#[test]
fn the_store_needs_no_runtime_and_finishes_what_waits_when_it_is_dropped() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = poll(begin(&store, "brave-otter"));
    {
        let mut commit = std::pin::pin!(store.commit(commit(id, 1, set("step", "2"))));
        let waker = std::task::Waker::noop();
        // It is in the queue after one poll, and whoever waited goes away.
        drop(commit.as_mut().poll(&mut std::task::Context::from_waker(waker)));
    }
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(step(&poll(store.state(id, 2)).unwrap()), "2");
}

/// Waits for a future on this thread, as a caller without a runtime does.
fn poll<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(done) => return done,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[tokio::test]
async fn an_unstorable_time_is_refused_and_changes_nothing() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    let mut late = commit(id, 1, set("step", "2"));
    late.checkpoint.created_at = chrono::DateTime::from_timestamp(32_503_680_000, 0).unwrap();
    let error = store.commit(late).await.unwrap_err();
    assert!(matches!(error, StoreError::Unstorable { .. }), "{error}");
    assert_eq!(store.require(id).await.unwrap().head, 1);
    let records: Vec<CheckpointRecord> = store.history(id, store::HistoryPage::default()).await.unwrap();
    assert_eq!(records.len(), 1);
}
