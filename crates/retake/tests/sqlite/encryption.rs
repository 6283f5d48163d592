//! Encrypted stores: what they hide, what they refuse, and keys that change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use retake::execution::{ExecutionResult, NodeExecutionResult, NodeId};
use retake::store::{
    Ask, ExecutionFilter, HistoryPage, MasterKey, NewOperation, Note, Options, RepairMode, Request,
    SqliteStore, Store, StoreError, StoreExt,
};
use rusqlite::Connection;

use super::*;

/// What must not be found in a file.
const CANARY: &str = "canary-4711";

fn key(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

fn options(keys: &[u8]) -> Options {
    Options { keys: keys.iter().map(|byte| key(*byte)).collect(), ..Options::default() }
}

fn open(path: &Path, keys: &[u8]) -> Result<SqliteStore, StoreError> {
    SqliteStore::open_with(path, options(keys))
}

/// Writes the canary everywhere a person can write something. Returns the execution.
async fn planted(store: &SqliteStore) -> ExecutionId {
    let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
    ctx.state = ExecutionState::Failed(format!("no {CANARY}"));
    ctx.set_variable(format!("{CANARY} name"), json!({ CANARY: [CANARY.repeat(3_000)] }));
    let result = NodeExecutionResult::new().complete(ExecutionResult::Success(json!(CANARY)));
    ctx.record_node_result(NodeId::from_u128(9), result);
    let new = NewExecution {
        id: ctx.execution_id,
        name: format!("run {CANARY}"),
        workflow_name: format!("workflow {CANARY}"),
        definition: format!("definition {CANARY}").into_bytes(),
        ..execution("", None)
    };
    let first = NewCheckpoint {
        state: ctx.state.clone(),
        label: Some(format!("label {CANARY}")),
        nodes: vec![format!("node {CANARY}")],
        ..checkpoint(store::delta(None, &ctx, |_| None).unwrap())
    };
    store.create(new, first).await.unwrap();
    for seq in 1..40 {
        let mut next = ctx.clone();
        next.set_variable("text".into(), json!(format!("{CANARY} {seq} ").repeat(200)));
        let mut commit = commit(ctx.execution_id, seq, store::delta(Some(&ctx), &next, |_| None).unwrap());
        commit.checkpoint.cause = Cause::Before { node: format!("cause {CANARY}") };
        commit.checkpoint.compress = seq % 2 == 0;
        commit.checkpoint.operation = Some(operation());
        store.commit(commit).await.unwrap();
        ctx = next;
    }
    let note =
        Note { at: SystemClock::default().now(), cause: Cause::Prune { removed: 1 }, operation: operation() };
    store.note(ctx.execution_id, note).await.unwrap();
    let ask = Ask::Checkpoint { label: Some(format!("asked {CANARY}")) };
    let request = Request { id: Uuid::from_u128(5), ask, operation: operation() };
    store.ask(ctx.execution_id, request).await.unwrap();
    store.prune(ctx.execution_id, 20).await.unwrap();
    ctx.execution_id
}

fn operation() -> NewOperation {
    NewOperation { who: format!("who {CANARY}"), command: format!("retake {CANARY}") }
}

/// Returns how often the canary stands in the files of a store.
fn canaries(path: &Path) -> usize {
    let directory = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let files = directory.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    files.map(|bytes| bytes.windows(CANARY.len()).filter(|part| *part == CANARY.as_bytes()).count()).sum()
}

#[tokio::test]
async fn nothing_that_people_wrote_can_be_read_in_the_files_of_an_encrypted_store() {
    let (_directory, path) = place();
    let store = open(&path, &[1]).unwrap();
    let id = planted(&store).await;
    assert_eq!(canaries(&path), 0, "with the log");
    let record = store.require(id).await.unwrap();
    assert_eq!((record.name, record.workflow_name), (format!("run {CANARY}"), format!("workflow {CANARY}")));
    assert!(store.is_encrypted());
    store.compact().await.unwrap();
    drop(store);
    assert_eq!(canaries(&path), 0, "without the log");
}

#[tokio::test]
async fn the_same_is_there_to_read_in_a_store_without_keys() {
    let (_directory, path) = place();
    planted(&SqliteStore::open(&path).unwrap()).await;
    // Name, workflow, definition, label, node, causes, operations, variable, its value, the request: all are found.
    assert!(canaries(&path) > 100, "{}", canaries(&path));
}

#[tokio::test]
async fn an_encrypted_store_is_read_with_its_key_and_refused_without() {
    let (_directory, path) = place();
    let store = open(&path, &[1]).unwrap();
    let id = planted(&store).await;
    let head = store.context(id, 40).await.unwrap();
    drop(store);
    let before = std::fs::read(&path).unwrap();
    for (keys, why) in [
        (&[][..], format!("it is encrypted: give the master key {}", key(1).id())),
        (
            &[2][..],
            format!("it is encrypted, and needs the master key {}: given was {}", key(1).id(), key(2).id()),
        ),
    ] {
        let error = open(&path, keys).unwrap_err();
        let text = format!("{} cannot be opened with the keys given: {why}", path.display());
        assert!(matches!(error, StoreError::Key { .. }), "{error:?}");
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let store = open(&path, &[2, 1]).unwrap();
    assert_eq!(store.context(id, 40).await.unwrap(), head);
    let filter = ExecutionFilter { address: Some(format!("run {CANARY}")), ..ExecutionFilter::default() };
    assert_eq!(store.executions(&filter).await.unwrap()[0].id, id);
    let label = store.history(id, HistoryPage::default()).await.unwrap().pop().unwrap().label;
    assert_eq!(label, Some(format!("label {CANARY}")));
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_was_begun_without_a_key_is_not_given_one() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    begin(&store, "brave-otter").await;
    drop(store);
    let error = open(&path, &[1]).unwrap_err();
    assert!(error.to_string().contains("it was made without a key"), "{error}");
}

#[tokio::test]
async fn neither_is_a_store_of_which_all_was_removed_for_what_was_there_may_still_be_read() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    store.delete(id).await.unwrap();
    drop(store);
    let error = open(&path, &[1]).unwrap_err();
    assert!(error.to_string().contains("it was made without a key"), "{error}");
}

#[tokio::test]
async fn a_repair_leaves_a_store_as_sealed_as_it_was_and_to_whom_its_key_belongs() {
    let operation = operation();
    let (_directory, path) = place();
    let store = open(&path, &[1]).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 5).await;
    store.rotate_key(&key(2)).await.unwrap();
    drop(store);
    let damage = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    damage("UPDATE deltas SET body = x'00' WHERE key = 5");
    let repair = |keys: &[u8]| SqliteStore::repair(&path, RepairMode::Replace, &operation, &options(keys));
    assert!(matches!(repair(&[]), Err(StoreError::Key { .. })), "without a key it is not repaired");
    repair(&[1, 2]).unwrap();
    assert!(open(&path, &[1]).is_err(), "the older key does not open it again");
    let store = open(&path, &[2]).unwrap();
    assert_eq!(store.require(id).await.unwrap().head, 6);
    assert_eq!(step(&store.state(id, 6).await.unwrap()), "4");
    drop(store);
    // The key itself is sealed, and is right whatever its checksum says.
    damage(
        "UPDATE keyring SET checksum = x'00', master = 'odd'; UPDATE deltas SET body = x'00' WHERE key = 2",
    );
    let problems = open(&path, &[2]).unwrap().check().await.unwrap().problems;
    assert!(problems[0].contains("delta 2") || problems[0].contains("state of point @2"), "{problems:?}");
}

#[tokio::test]
async fn a_repair_with_a_key_leaves_a_bare_store_alone() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    begin(&store, "brave-otter").await;
    drop(store);
    let damage = "PRAGMA foreign_keys = OFF; DELETE FROM executions; PRAGMA wal_checkpoint(TRUNCATE)";
    Connection::open(&path).unwrap().execute_batch(damage).unwrap();
    let before = std::fs::read(&path).unwrap();
    for mode in [RepairMode::Look, RepairMode::Replace] {
        let error = SqliteStore::repair(&path, mode, &operation(), &options(&[1])).unwrap_err();
        assert!(error.to_string().contains("open it without one"), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_store_opened_before_another_process_encrypted_it_writes_nothing_bare() {
    let (_directory, path) = place();
    let bare = SqliteStore::open(&path).unwrap();
    drop(open(&path, &[1]).unwrap());
    let error = bare.create(execution("brave-otter", None), checkpoint(set("step", "1"))).await.unwrap_err();
    assert!(error.to_string().contains("it has been encrypted since"), "{error}");
}

#[tokio::test]
async fn rows_that_were_swapped_copied_or_made_without_the_key_are_refused() {
    let forgeries = [
        // Two deltas, two checkpoints and two executions change their places, and their numbers with them.
        "UPDATE deltas SET body = (SELECT body FROM deltas AS o WHERE o.key = 3), \
         checksum = (SELECT checksum FROM deltas AS o WHERE o.key = 3) WHERE key = 2",
        "UPDATE checkpoints SET label = (SELECT label FROM checkpoints AS o WHERE o.seq = 3) WHERE seq = 2",
        "UPDATE checkpoints SET cause = (SELECT cause FROM checkpoints AS o WHERE o.seq = 3) WHERE seq = 2",
        "UPDATE executions SET head = 2",
        "UPDATE operations SET command = (SELECT command FROM operations AS o WHERE o.number = 2) WHERE number = 1",
        "UPDATE deltas SET body = x'00' || x'90', checksum = x'0011223344556677' WHERE key = 2",
        "UPDATE deltas SET base = NULL WHERE key = 3",
    ];
    let (directory, path) = place();
    let store = open(&path, &[1]).unwrap();
    let id = begin(&store, "brave-otter").await;
    for seq in 1..4 {
        let mut commit = commit(id, seq, set("step", &seq.to_string()));
        commit.checkpoint.label = Some(format!("label {seq}"));
        commit.checkpoint.operation = Some(operation());
        store.commit(commit).await.unwrap();
    }
    drop(store);
    for sql in forgeries {
        let copy = directory.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let forger = Connection::open(&copy).unwrap();
        forger.execute_batch(sql).unwrap();
        assert!(forger.changes() > 0, "{sql}");
        drop(forger);
        let problems = open(&copy, &[1]).unwrap().check().await.unwrap().problems;
        assert!(!problems.is_empty(), "{sql}");
    }
}

#[tokio::test]
async fn a_body_sealed_for_another_point_does_not_open_though_the_row_was_authenticated() {
    let (_directory, path) = place();
    let store = open(&path, &[1]).unwrap();
    let id = begin(&store, "brave-otter").await;
    drop(store);
    // Bytes 0 to 15 of a body say whose it is: the row's own code would notice first, so it is the store that is asked.
    Connection::open(&path)
        .unwrap()
        .execute_batch("UPDATE deltas SET body = zeroblob(16) || substr(body, 17) WHERE key = 1")
        .unwrap();
    let error = open(&path, &[1]).unwrap().state(id, 1).await.unwrap_err();
    assert!(error.to_string().starts_with("delta 1 is damaged: "), "{error}");
}

#[tokio::test]
async fn after_a_rotation_the_new_key_opens_all_and_the_old_one_nothing() {
    let (_directory, path) = place();
    let store = open(&path, &[1]).unwrap();
    let id = begin(&store, "brave-otter").await;
    store.rotate_key(&key(2)).await.unwrap();
    advance(&store, id, 2, 4).await;
    store.rotate_key(&key(3)).await.unwrap();
    advance(&store, id, 5, 6).await;
    drop(store);
    for old in [1, 2] {
        let error = open(&path, &[old]).unwrap_err();
        assert!(error.to_string().contains(&format!("needs the master key {}", key(3).id())), "{error}");
    }
    let store = open(&path, &[3]).unwrap();
    for seq in 1..=6 {
        assert_eq!(step(&store.state(id, seq).await.unwrap()), seq.to_string());
    }
    let error = store.create(execution("brave-otter", None), checkpoint(set("step", "1"))).await.unwrap_err();
    assert!(error.to_string().contains("is taken"), "names are found across keys: {error}");
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

/// Two opened stores write all the time, as two processes would, while the master key is changed 20 times.
#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_leaves_nothing_unreadable() {
    const ROTATIONS: u8 = 20;
    let (_directory, path) = place();
    let all: Vec<u8> = (1..=ROTATIONS + 1).collect();
    let stores = [open(&path, &all).unwrap(), open(&path, &all).unwrap()].map(Arc::new);
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|number| {
            let (store, done) = (Arc::clone(&stores[number % 2]), Arc::clone(&done));
            tokio::spawn(async move {
                let id = begin(&store, &format!("run {number}")).await;
                let mut head = 1;
                while !done.load(Ordering::Relaxed) {
                    advance(&store, id, head + 1, head + 1).await;
                    head += 1;
                    assert_eq!(step(&store.state(id, head).await.unwrap()), head.to_string());
                }
                (id, head)
            })
        })
        .collect();
    for to in 2..=ROTATIONS + 1 {
        stores[usize::from(to) % 2].rotate_key(&key(to)).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.await.unwrap());
    }
    drop(stores);
    let store = open(&path, &[ROTATIONS + 1]).unwrap();
    for (id, head) in written {
        for seq in 1..=head {
            assert_eq!(step(&store.state(id, seq).await.unwrap()), seq.to_string());
        }
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    let keys: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM keyring", [], |row| row.get(0))
        .unwrap();
    assert_eq!(keys, i64::from(ROTATIONS) + 1);
}

#[tokio::test]
async fn a_row_sealed_under_a_key_that_was_not_given_says_which_one_is_missing() {
    let (_directory, path) = place();
    let (ours, theirs) = (open(&path, &[1]).unwrap(), open(&path, &[1]).unwrap());
    let id = begin(&ours, "brave-otter").await;
    theirs.rotate_key(&key(2)).await.unwrap();
    advance(&theirs, id, 2, 2).await;
    let error = ours.state(id, 2).await.unwrap_err();
    assert!(
        error.to_string().contains(&format!("which only the master key {} opens", key(2).id())),
        "{error}"
    );
}
