//! Histories that are taken from one store to another, and what is found there.

use retake::store::{
    Conflict, History, MemoryStore, NewOperation, SqliteStore, Store, StoreError, TransferError,
    TransferFate, TransferMode, transfer,
};
use rusqlite::Connection;

use super::*;

/// Makes a run with labels, an abandoned line, a point that changes nothing, compressed points and pruned ones, and a fork.
async fn furnish(store: &SqliteStore) -> [ExecutionId; 2] {
    let (id, _) = conversation(store, 20, true).await;
    let mut labelled = commit(id, 21, Delta::default());
    labelled.checkpoint.label = Some("good".to_owned());
    store.commit(labelled).await.unwrap();
    let mut back = commit(id, 22, set("tone", "warm"));
    back.checkpoint.parent = Some(9);
    back.checkpoint.cause = Cause::Rollback { to: 9 };
    back.checkpoint.operation = Some(operation());
    store.commit(back).await.unwrap();
    let fork = execution("fork", Some(Origin { execution_id: id, seq: 12 }));
    let fork_id = fork.id;
    store.create(fork, checkpoint(Delta::default())).await.unwrap();
    advance(store, fork_id, 2, 4).await;
    store.prune(id, 8).await.unwrap();
    [id, fork_id]
}

fn operation() -> NewOperation {
    NewOperation { who: "ann".to_owned(), command: "retake rollback".to_owned() }
}

async fn file(store: &dyn Store, id: ExecutionId) -> String {
    let mut file = Vec::new();
    store.export(id).await.unwrap().write_to(&mut file).unwrap();
    String::from_utf8(file).unwrap()
}

async fn fate(from: &dyn Store, to: &dyn Store, id: ExecutionId) -> TransferFate {
    let looked = transfer(from, to, id, TransferMode::Look).await.unwrap();
    let done = transfer(from, to, id, TransferMode::Write).await.unwrap();
    assert_eq!(looked, done, "what a look says is what is done");
    done.fate
}

#[tokio::test]
async fn a_history_says_the_same_in_every_store_and_to_the_byte_where_it_was_only_moved() {
    let (directory, path) = place();
    let first = SqliteStore::open(path).unwrap();
    let [second, third] =
        ["b.db", "c.db"].map(|name| SqliteStore::open(directory.path().join(name)).unwrap());
    let memory = MemoryStore::new();
    for id in furnish(&first).await {
        assert_eq!(fate(&first, &second, id).await, TransferFate::Copied);
        assert_eq!(fate(&second, &third, id).await, TransferFate::Copied);
        let [there, further] = [file(&second, id).await, file(&third, id).await];
        assert!(there == further, "{there}\n{further}");
        // A store in memory keeps states and compresses nothing; what the history says is the same.
        let moved = transfer(&third, &memory, id, TransferMode::Write).await.unwrap();
        assert_eq!(moved.fate, TransferFate::Copied);
        assert_eq!(memory.export(id).await.unwrap().checksum().unwrap(), moved.checksum);
        assert_eq!(fate(&memory, &first, id).await, TransferFate::Same);
        assert_eq!(moved.points, memory.export(id).await.unwrap().points.len() as u64);
    }
    assert_eq!(third.check().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_there_is_left_alone_and_told_by_what_it_is() {
    let (directory, path) = place();
    let from = SqliteStore::open(path).unwrap();
    let to = SqliteStore::open(directory.path().join("other.db")).unwrap();
    let id = begin(&from, "otter").await;
    advance(&from, id, 2, 4).await;
    assert_eq!(fate(&from, &to, id).await, TransferFate::Copied);
    assert_eq!(fate(&from, &to, id).await, TransferFate::Same);

    advance(&to, id, 5, 6).await;
    assert_eq!(fate(&from, &to, id).await, TransferFate::Ahead { head: 6 });
    assert_eq!(fate(&to, &from, id).await, TransferFate::Behind { head: 4 });
    to.prune(id, 3).await.unwrap();
    assert_eq!(fate(&from, &to, id).await, TransferFate::Ahead { head: 6 });
    advance(&from, id, 5, 5).await;
    let before = file(&to, id).await;
    assert_eq!(fate(&from, &to, id).await, TransferFate::Differs { head: 6 });
    assert_eq!(file(&to, id).await, before);

    let other = begin(&from, "heron").await;
    begin(&to, "heron").await;
    let taken = TransferFate::Taken(Conflict::NameTaken("heron".to_owned()));
    assert_eq!(fate(&from, &to, other).await, taken);
    assert_eq!(to.execution(other).await.unwrap(), None);
    let nobody = Uuid::from_u128(4);
    let error = transfer(&from, &to, nobody, TransferMode::Write).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(StoreError::NoExecution(id)) if id == nobody), "{error:?}");
}

#[tokio::test]
async fn a_target_that_loses_something_is_found_at_once() {
    let (directory, path) = place();
    let from = SqliteStore::open(path).unwrap();
    let other = directory.path().join("other.db");
    let to = SqliteStore::open(&other).unwrap();
    let [id, _] = furnish(&from).await;
    let thief = "CREATE TRIGGER thief AFTER INSERT ON operations BEGIN DELETE FROM operations; END";
    Connection::open(&other).unwrap().execute_batch(thief).unwrap();
    let error = transfer(&from, &to, id, TransferMode::Write).await.unwrap_err();
    assert!(matches!(error, TransferError::Target(StoreError::Corrupt { .. })), "{error:?}");
}

#[tokio::test]
async fn all_that_a_history_says_is_in_its_checksum() {
    let (_directory, path) = place();
    let store = SqliteStore::open(path).unwrap();
    let [id, _] = furnish(&store).await;
    let whole = store.export(id).await.unwrap();
    let checksum = whole.checksum().unwrap();
    let changes: [fn(&mut History); 8] = [
        |history| history.execution.name.push('s'),
        |history| history.workflows[0].definition.push(b'!'),
        |history| history.points[0].record.label = Some("bad".to_owned()),
        |history| history.points[0].record.id = Uuid::from_u128(4),
        |history| history.points[1].record.nodes.push("plan".to_owned()),
        |history| history.operations[0].who.push('a'),
        |history| drop(history.operations.pop()),
        |history| history.points.last_mut().unwrap().delta = set("tone", "cold"),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut other = whole.clone();
        change(&mut other);
        assert_ne!(other.checksum().unwrap(), checksum, "change {index}");
    }
    let mut elsewhere = whole.clone();
    elsewhere.points[0].record.size_bytes += 1;
    elsewhere.points[0].record.compressed ^= true;
    elsewhere.execution.leased_by = Some("somebody".to_owned());
    assert_eq!(elsewhere.checksum().unwrap(), checksum);
}
