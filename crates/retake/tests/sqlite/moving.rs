//! What a moved history costs: what changed, and not the state times the points.

use retake::store::{MemoryStore, SqliteStore, Store, StoreExt};
use rusqlite::Connection;

use super::*;

/// Returns the bytes of all deltas of a history.
async fn exported_bytes(store: &SqliteStore, id: ExecutionId) -> usize {
    let moved = store.export(id).await.unwrap();
    moved.points.iter().map(|point| point.delta.encode().len()).sum()
}

fn count(path: &Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_moved_history_holds_each_change_once_also_where_points_below_were_pruned() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, ctx) = conversation(&store, 200, false).await;
    let state = store.state(id, 201).await.unwrap().to_delta().encode().len();
    let whole = exported_bytes(&store, id).await;
    assert!(whole < state * 11 / 10, "{whole} bytes for a state of {state}");

    store.prune(id, 50).await.unwrap();
    let pruned = exported_bytes(&store, id).await;
    assert!(pruned < state * 11 / 10, "{pruned} bytes for a state of {state}");

    let mut fork = execution("fork", Some(Origin { execution_id: id, seq: 190 }));
    fork.id = SystemClock::default().new_id();
    store.create(fork.clone(), checkpoint(Delta::default())).await.unwrap();
    advance(&store, fork.id, 2, 20).await;
    let forked = exported_bytes(&store, fork.id).await;
    assert!(forked < state * 11 / 10, "{forked} bytes for a fork of a state of {state}");
    assert_eq!(store.context(id, 201).await.unwrap(), ctx);
}

#[tokio::test]
async fn an_imported_history_reads_as_fast_as_one_that_was_made_here() {
    let (directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "a").await;
    let words = "word ".repeat(1_000);
    for seq in 2..=100 {
        store.commit(commit(id, seq - 1, set("log", &format!("{seq} {words}")))).await.unwrap();
    }
    let moved = store.export(id).await.unwrap();
    drop(store);
    let other = directory.path().join("other.db");
    let store = SqliteStore::open(&other).unwrap();
    store.import(moved).await.unwrap();
    let elsewhere = MemoryStore::new();
    elsewhere.import(store.export(id).await.unwrap()).await.unwrap();
    for seq in [1, 50, 100] {
        assert_eq!(store.state(id, seq).await.unwrap(), elsewhere.state(id, seq).await.unwrap());
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    drop(store);
    // 5 kB a point, and 32 KiB before a keyframe is due: one for every seven points.
    let keyframes = count(&other, "SELECT count(*) FROM keyframes");
    assert!((12..=16).contains(&keyframes), "{keyframes} keyframes");
    assert!(count(&other, "SELECT weight FROM executions") <= 40_000);
    assert!(file_len(&other) < file_len(&path) * 12 / 10, "{} bytes", file_len(&other));
}
