//! What the SQLite store does beyond the contract: its file, what it refuses, damage, space, and other processes.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "what the helpers of these tests unwrap is what the tests assert")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionId, ExecutionState};
use retake::store::{
    self, Ask, Cause, CheckpointRecord, Commit, Conflict, Delta, Image, Key, KeyChange, MESSAGE_PACK,
    NewCheckpoint, NewExecution, NewOperation, Op, Origin, Piece, Request, Seq, SqliteStore, Store,
    StoreError, StoreExt,
};
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("retake.db");
    (directory, path)
}

fn execution(name: &str, origin: Option<Origin>) -> NewExecution {
    NewExecution {
        id: SystemClock::default().new_id(),
        name: name.to_owned(),
        workflow_id: Uuid::from_u128(7),
        workflow_name: "article".to_owned(),
        definition: b"steps".to_vec(),
        origin,
    }
}

fn checkpoint(delta: Delta) -> NewCheckpoint {
    let clock = SystemClock::default();
    NewCheckpoint {
        id: clock.new_id(),
        created_at: clock.now(),
        parent: None,
        delta,
        state: ExecutionState::Running,
        cause: Cause::Manual,
        label: None,
        nodes: Vec::new(),
        completed_node_count: 0,
        compress: false,
        operation: None,
        answers: Vec::new(),
    }
}

fn commit(execution_id: ExecutionId, expected_head: Seq, delta: Delta) -> Commit {
    Commit { execution_id, expected_head, fence: None, checkpoint: checkpoint(delta) }
}

/// Returns the delta that sets a variable to some text.
fn set(name: &str, text: &str) -> Delta {
    let piece = Piece { codec: MESSAGE_PACK, bytes: Bytes::copy_from_slice(text.as_bytes()) };
    let op = Op::Set { pieces: vec![piece], len: 0 };
    Delta::new(vec![KeyChange { key: Key::Variable(name.to_owned()), writer: None, op }])
}

async fn begin(store: &SqliteStore, name: &str) -> ExecutionId {
    let new = execution(name, None);
    let id = new.id;
    store.create(new, checkpoint(set("step", "1"))).await.unwrap();
    id
}

async fn advance(store: &SqliteStore, id: ExecutionId, from: Seq, to: Seq) {
    for seq in from..=to {
        store.commit(commit(id, seq - 1, set("step", &seq.to_string()))).await.unwrap();
    }
}

fn step(image: &Image) -> String {
    let entry = image.get(&Key::Variable("step".into())).unwrap();
    String::from_utf8(entry.pieces[0].bytes.to_vec()).unwrap()
}

/// Appends `steps` messages of about 1 KB of text each, one checkpoint each. Returns the execution and its last state.
async fn conversation(store: &SqliteStore, steps: u64, compress: bool) -> (ExecutionId, ExecutionContext) {
    let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
    ctx.set_variable("messages".into(), json!([]));
    let mut new = execution("talk", None);
    new.id = ctx.execution_id;
    store.create(new, checkpoint(store::delta(None, &ctx, |_| None).unwrap())).await.unwrap();
    let words = ["otter", "river", "stone", "willow", "current", "morning", "weir", "heron", "reed", "silt"];
    for seq in 1..=steps {
        let mut message = format!("{seq}: ");
        let mut draw = seq;
        while message.len() < 1_000 {
            // A linear congruential generator, so that the text is neither random bytes nor one line repeated.
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            message.push_str(words[(draw >> 40) as usize % words.len()]);
            message.push_str(&format!(" {:x} ", draw >> 52));
        }
        let before = ctx.clone();
        ctx.append("messages", json!(message)).unwrap();
        let mut commit = commit(ctx.execution_id, seq, store::delta(Some(&before), &ctx, |_| None).unwrap());
        commit.checkpoint.compress = compress;
        store.commit(commit).await.unwrap();
    }
    (ctx.execution_id, ctx)
}

fn file_len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

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
async fn a_newer_format_is_refused_and_the_file_stays_as_it_is() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    begin(&store, "brave-otter").await;
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 9, supported: 1, .. }), "{error}");
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
fn a_new_file_can_be_opened_from_many_threads_at_once() {
    let (_directory, path) = place();
    std::thread::scope(|scope| {
        let opened: Vec<_> = (0..8).map(|_| scope.spawn(|| SqliteStore::open(&path).map(drop))).collect();
        for thread in opened {
            thread.join().unwrap().unwrap();
        }
    });
}

#[tokio::test]
async fn a_truncated_file_is_reported_and_not_returned_as_data() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, _) = conversation(&store, 100, false).await;
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for keep in [50, 4_096, whole.len() / 2, whole.len() - 4_096] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let Ok(store) = SqliteStore::open(&path) else { continue };
        let sound = store.check().await.is_ok_and(|report| report.problems.is_empty());
        assert!(!sound, "cut to {keep} of {} bytes", whole.len());
        if let Ok(ctx) = store.context(id, 101).await {
            assert_eq!(ctx.get_variable("messages").unwrap().as_array().unwrap().len(), 100);
        }
    }
}

/// Makes a store with a row in every table, and returns its execution.
async fn furnished(path: &Path) -> ExecutionId {
    let store = SqliteStore::open(path).unwrap();
    let (id, _) = conversation(&store, 60, false).await;
    let mut last = commit(id, 61, Delta::default());
    last.checkpoint.label = Some("good".into());
    last.checkpoint.operation = Some(NewOperation { who: "ada".into(), command: "checkpoint".into() });
    store.commit(last).await.unwrap();
    let operation = NewOperation { who: "ada".into(), command: "pause".into() };
    store.ask(id, Request { id: Uuid::from_u128(5), ask: Ask::Pause, operation }).await.unwrap();
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    id
}

#[tokio::test]
async fn a_flipped_value_in_any_row_of_any_table_is_found_and_named() {
    let (directory, path) = place();
    let id = furnished(&path).await;
    let flips = [
        ("UPDATE executions SET head = 60", format!("execution {id}")),
        ("UPDATE executions SET fence = 9", format!("execution {id}")),
        ("UPDATE executions SET name = 'x'", format!("execution {id}")),
        ("UPDATE workflows SET definition = x'00'", "workflow 00000000-".into()),
        (
            "UPDATE deltas SET body = substr(body, 1, 8) || x'ff' || substr(body, 10) WHERE key = 61",
            "delta 61".into(),
        ),
        ("UPDATE deltas SET base = 3 WHERE key = 61", "delta 61".into()),
        ("UPDATE keyframes SET body = substr(body, 1, 50) || x'ff' || substr(body, 52)", "keyframe ".into()),
        ("UPDATE checkpoints SET delta = 4 WHERE seq = 5", format!("checkpoint @5 of execution {id}")),
        ("UPDATE checkpoints SET label = 'bad' WHERE seq = 62", format!("checkpoint @62 of execution {id}")),
        (
            "UPDATE checkpoints SET state = '\"Completed\"' WHERE seq = 5",
            format!("checkpoint @5 of execution {id}"),
        ),
        ("UPDATE checkpoints SET cause = 7 WHERE seq = 5", format!("checkpoint @5 of execution {id}")),
        ("UPDATE operations SET who = 'eve'", format!("operation 1 of execution {id}")),
        ("UPDATE requests SET body = replace(body, 'pause', 'cancel')", "request 00000000-".into()),
        ("DELETE FROM checkpoints WHERE seq = 62", format!("the head @62 of execution {id} is missing")),
        (
            "DELETE FROM keyframes; DELETE FROM deltas WHERE key = 5",
            format!("the state of point @61 of execution {id}"),
        ),
    ];
    for (sql, named) in flips {
        let copy = directory.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let tamper = Connection::open(&copy).unwrap();
        tamper.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
        assert!(tamper.changes() > 0, "{sql} changed nothing");
        drop(tamper);
        let problems = SqliteStore::open(&copy).unwrap().check().await.unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains(&named)), "{sql}: {problems:?}");
    }
}

#[tokio::test]
async fn rows_that_changed_places_are_found() {
    let (_directory, path) = place();
    let id = furnished(&path).await;
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "PRAGMA foreign_keys = OFF; DELETE FROM keyframes;
             UPDATE deltas SET key = -1 WHERE key = 60; UPDATE deltas SET key = 60 WHERE key = 61;
             UPDATE deltas SET key = 61 WHERE key = -1;",
        )
        .unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let error = store.state(id, 61).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("delta 61 is damaged: "), "{error}");
}

#[tokio::test]
async fn a_damaged_keyframe_costs_time_and_no_data() {
    let (_directory, path) = place();
    let id = furnished(&path).await;
    let whole = SqliteStore::open(&path).unwrap().context(id, 61).await.unwrap();
    Connection::open(&path).unwrap().execute_batch("UPDATE keyframes SET body = x'00'").unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.context(id, 61).await.unwrap(), whole);
    let problems = store.check().await.unwrap().problems;
    assert!(
        !problems.is_empty() && problems.iter().all(|problem| problem.starts_with("keyframe ")),
        "{problems:?}"
    );
}

#[tokio::test]
async fn any_damaged_byte_of_the_file_is_no_panic_and_never_a_wrong_state() {
    let (directory, path) = place();
    let id = furnished(&path).await;
    let store = SqliteStore::open(&path).unwrap();
    let whole = [store.state(id, 61).await.unwrap(), store.state(id, 20).await.unwrap()];
    drop(store);
    let bytes = std::fs::read(&path).unwrap();
    for place in (0..bytes.len()).step_by(1_499) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x55;
        let copy = directory.path().join(format!("copy-{place}.db"));
        std::fs::write(&copy, damaged).unwrap();
        let Ok(store) = SqliteStore::open(&copy) else { continue };
        for (seq, whole) in [61, 20].into_iter().zip(&whole) {
            if let Ok(state) = store.state(id, seq).await {
                assert_eq!(&state, whole, "point @{seq} with byte {place} damaged");
            }
        }
        drop(store.check().await);
    }
}

#[tokio::test]
async fn a_thousand_appended_messages_take_little_more_than_themselves_and_are_read_from_near_the_point() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, ctx) = conversation(&store, 1_000, false).await;
    assert_eq!(store.context(id, 1_001).await.unwrap(), ctx);
    drop(store);
    let final_state = store::encode("state", ctx.get_variable("messages").unwrap()).unwrap().len() as u64;
    assert!(final_state > 1_000_000);
    let file = file_len(&path);
    assert!(file * 10 <= final_state * 25, "{file} bytes for a state of {final_state}");

    let raw = Connection::open(&path).unwrap();
    let number = |sql: &str| raw.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let keyframes = number("SELECT count(*) FROM keyframes");
    assert!((4..=12).contains(&keyframes), "{keyframes} keyframes");
    let (weight, floor) = (number("SELECT weight FROM executions"), number("SELECT floor FROM executions"));
    assert!(weight <= floor && floor <= 1_100_000, "{weight} bytes behind a keyframe of {floor}");
}

#[tokio::test]
async fn compressed_checkpoints_are_smaller_and_say_so() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, ctx) = conversation(&store, 50, true).await;
    let history = store.history(id, store::HistoryPage { before: None, limit: Some(50) }).await.unwrap();
    assert!(history.iter().all(|record| record.compressed && record.size_bytes < 900), "{history:?}");
    assert_eq!(store.context(id, 51).await.unwrap(), ctx);
}

#[tokio::test]
async fn a_checkpoint_that_changes_nothing_shares_its_parents_bytes() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 4).await;
    let mut rollback = commit(id, 4, Delta::default());
    rollback.checkpoint.parent = Some(2);
    rollback.checkpoint.cause = Cause::Rollback { to: 2 };
    let record = store.commit(rollback).await.unwrap();
    assert_eq!((record.seq, record.parent, record.size_bytes), (5, Some(2), 0));
    assert_eq!(step(&store.state(id, 5).await.unwrap()), "2");
    let fork = execution("fork", Some(Origin { execution_id: id, seq: 5 }));
    let fork_id = fork.id;
    assert_eq!(store.create(fork, checkpoint(Delta::default())).await.unwrap().size_bytes, 0);
    assert_eq!(step(&store.state(fork_id, 1).await.unwrap()), "2");
    let raw = Connection::open(&path).unwrap();
    let deltas: i64 = raw.query_row("SELECT count(*) FROM deltas", [], |row| row.get(0)).unwrap();
    assert_eq!(deltas, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_at_the_same_time_share_a_transaction_and_one_refusal_disturbs_nobody() {
    const WRITERS: usize = 64;
    const COMMITS: u64 = 8;
    let (_directory, path) = place();
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let mut ids = Vec::new();
    for n in 0..WRITERS {
        ids.push(begin(&store, &format!("otter-{n}")).await);
    }
    let before = store.stats();
    let writers: Vec<_> = ids
        .iter()
        .map(|id| {
            let (store, id) = (store.clone(), *id);
            tokio::spawn(async move {
                for seq in 2..=COMMITS + 1 {
                    let refused = store.commit(commit(id, seq + 7, set("step", "lost"))).await.unwrap_err();
                    assert!(matches!(refused, StoreError::Conflict(Conflict::HeadMoved { .. })), "{refused}");
                    store.commit(commit(id, seq - 1, set("step", &seq.to_string()))).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let after = store.stats();
    let (writes, transactions) = (after.writes - before.writes, after.transactions - before.transactions);
    assert_eq!(writes, 2 * WRITERS as u64 * COMMITS);
    assert!(transactions * 4 < writes, "{writes} writes took {transactions} transactions");
    for id in ids {
        assert_eq!(step(&store.state(id, COMMITS + 1).await.unwrap()), (COMMITS + 1).to_string());
    }
}

#[tokio::test]
async fn two_stores_on_one_file_see_each_others_commits_and_leases() {
    let (_directory, path) = place();
    let [ours, theirs] = [(); 2].map(|()| SqliteStore::open(&path).unwrap());
    let id = begin(&ours, "brave-otter").await;
    advance(&theirs, id, 2, 2).await;
    let error = ours.commit(commit(id, 1, set("step", "late"))).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Conflict(Conflict::HeadMoved { expected: 1, found: 2, .. })),
        "{error}"
    );

    let lease = ours.lease(id, Duration::from_secs(600)).await.unwrap();
    for store in [&ours, &theirs] {
        let error = store.lease(id, Duration::from_secs(600)).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Leased { .. })), "{error}");
        let error = store.commit(commit(id, 2, set("step", "3"))).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(Conflict::Leased { .. })), "{error}");
        let owner = store.require(id).await.unwrap().leased_by.unwrap();
        assert!(owner.starts_with(&format!("process {}", std::process::id())), "{owner}");
    }
    drop(ours);
    assert_eq!(theirs.require(id).await.unwrap().leased_by, None);
    let next = theirs.lease(id, Duration::from_secs(600)).await.unwrap();
    assert_eq!(next.fence, lease.fence + 1);
    let stale = Commit { fence: Some(lease.fence), ..commit(id, 2, set("step", "3")) };
    let error = theirs.commit(stale).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(Conflict::Fenced { .. })), "{error}");
}

/// Runs in a process of its own, which is then killed: see the test below.
#[tokio::test]
async fn hold_a_lease_until_killed() {
    let Ok(path) = std::env::var("RETAKE_TEST_LEASE") else { return };
    let store = SqliteStore::open(path).unwrap();
    let id = begin(&store, "held").await;
    store.lease(id, Duration::from_secs(600)).await.unwrap();
    std::io::Write::write_all(&mut std::io::stderr(), format!("held {id}\n").as_bytes()).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_lease_of_a_killed_process_can_be_taken_at_once() {
    let (directory, path) = place();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["hold_a_lease_until_killed", "--exact", "--nocapture"])
        .env("RETAKE_TEST_LEASE", &path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let held = lines.map(Result::unwrap).find(|line| line.starts_with("held ")).unwrap();
    let id: Uuid = held["held ".len()..].parse().unwrap();

    let store = SqliteStore::open(&path).unwrap();
    let owner = store.require(id).await.unwrap().leased_by.unwrap();
    assert!(owner.starts_with(&format!("process {}", child.id())), "{owner}");
    assert!(store.lease(id, Duration::from_secs(1)).await.is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.require(id).await.unwrap().leased_by, None);
    assert_eq!(store.lease(id, Duration::from_secs(1)).await.unwrap().fence, 2);
    drop(store);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["retake.db"]);
}

#[tokio::test]
async fn every_kept_point_reads_as_before_after_pruning_compacting_and_the_loss_of_its_origin() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let (id, _) = conversation(&store, 200, false).await;
    let fork = execution("fork", Some(Origin { execution_id: id, seq: 90 }));
    let fork_id = fork.id;
    store.create(fork, checkpoint(Delta::default())).await.unwrap();
    let mut labelled = commit(id, 201, set("step", "202"));
    labelled.checkpoint.label = Some("good".into());
    labelled.checkpoint.parent = Some(50);
    store.commit(labelled).await.unwrap();
    advance(&store, id, 203, 230).await;

    let mut kept = Vec::new();
    for seq in [202, 226, 227, 228, 229, 230] {
        kept.push((id, seq, store.state(id, seq).await.unwrap()));
    }
    kept.push((fork_id, 1, store.state(fork_id, 1).await.unwrap()));
    assert_eq!(store.prune(id, 5).await.unwrap(), 224);
    same(&store, &kept).await;
    let error = store.state(id, 201).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Pruned { seq: 201, .. }), "{error}");
    let raw = Connection::open(&path).unwrap();
    let pages: u32 = raw.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let before = u64::from(pages) * 4_096;
    store.compact().await.unwrap();
    same(&store, &kept).await;
    assert!(file_len(&path) * 2 < before, "{} of {before} bytes", file_len(&path));

    assert_eq!(store.delete(id).await.unwrap(), 6);
    let of_fork = &kept[6..];
    same(&store, of_fork).await;
    store.compact().await.unwrap();
    same(&store, of_fork).await;
    let deltas: i64 = raw.query_row("SELECT count(*) FROM deltas", [], |row| row.get(0)).unwrap();
    assert_eq!(deltas, 1);
}

async fn same(store: &SqliteStore, kept: &[(ExecutionId, Seq, Image)]) {
    for (id, seq, image) in kept {
        assert!(store.state(*id, *seq).await.unwrap() == *image, "point @{seq} changed");
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn pruning_after_every_save_keeps_the_file_small_and_rarely_writes_the_state() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
    ctx.set_variable("large".into(), json!("x".repeat(200_000)));
    let mut new = execution("steady", None);
    new.id = ctx.execution_id;
    store.create(new, checkpoint(store::delta(None, &ctx, |_| None).unwrap())).await.unwrap();
    let id = ctx.execution_id;
    let raw = Connection::open(&path).unwrap();
    let body = || -> i64 {
        raw.query_row("SELECT coalesce(sum(key), 0) FROM deltas WHERE base IS NULL", [], |row| row.get(0))
            .unwrap()
    };
    let mut roots = std::collections::BTreeSet::new();
    for seq in 2..=600 {
        store
            .commit(commit(id, seq - 1, set("step", &format!("{seq} {}", "y".repeat(1_000)))))
            .await
            .unwrap();
        store.prune(id, 10).await.unwrap();
        roots.insert(body());
    }
    // 600 saves of 1 KB pay for a handful of states of 200 KB.
    assert!((3..=30).contains(&roots.len()), "the state was written {} times", roots.len());
    let rows: i64 = raw.query_row("SELECT count(*) FROM deltas", [], |row| row.get(0)).unwrap();
    assert!(rows < 300, "{rows} deltas for 10 points");
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
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

/// Numbers that look drawn at random, and are the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test]
async fn large_random_histories_read_as_their_model_while_they_are_pruned_squashed_forked_and_reopened() {
    for seed in 0..4 {
        let (_directory, path) = place();
        let mut store = SqliteStore::open(&path).unwrap();
        let mut draws = Draws(seed);
        let first = begin(&store, "brave-otter").await;
        let mut heads = vec![(first, 1)];
        let mut kept = std::collections::BTreeMap::from([((first, 1), store.state(first, 1).await.unwrap())]);
        for n in 0..300 {
            let place = draws.below(heads.len() as u64);
            let (id, head) = heads[usize::try_from(place).unwrap()];
            let seqs: Vec<Seq> = kept.keys().filter(|(of, _)| *of == id).map(|(_, seq)| *seq).collect();
            let some = seqs[usize::try_from(draws.below(seqs.len() as u64)).unwrap()];
            match draws.below(20) {
                0 => {
                    let keep = usize::try_from(draws.below(8)).unwrap();
                    store.prune(id, keep).await.unwrap();
                    let left = store.history(id, store::HistoryPage::default()).await.unwrap();
                    kept.retain(|(of, seq), _| *of != id || left.iter().any(|record| record.seq == *seq));
                    assert_eq!(kept.keys().filter(|(of, _)| *of == id).count(), left.len());
                }
                1 if heads.len() < 4 => {
                    let new = execution(&format!("fork-{n}"), Some(Origin { execution_id: id, seq: some }));
                    heads.push((new.id, 1));
                    kept.insert((new.id, 1), kept[&(id, some)].clone());
                    store.create(new, checkpoint(Delta::default())).await.unwrap();
                }
                2 if heads.len() > 2 => {
                    heads.retain(|(of, _)| *of != id);
                    kept.retain(|(of, _), _| *of != id);
                    store.delete(id).await.unwrap();
                }
                3 => {
                    drop(store);
                    store = SqliteStore::open(&path).unwrap();
                }
                4 => store.compact().await.unwrap(),
                act => {
                    let text = format!("{n} {}", "z".repeat(usize::try_from(draws.below(9_000)).unwrap()));
                    let mut next = commit(id, head, set(&format!("v{}", draws.below(6)), &text));
                    let parent = if act < 7 { some } else { head };
                    next.checkpoint.parent = Some(parent);
                    next.checkpoint.compress = draws.below(2) == 0;
                    next.checkpoint.label = (draws.below(12) == 0).then(|| format!("label-{n}"));
                    let mut image = kept[&(id, parent)].clone();
                    image.apply("the model", &next.checkpoint.delta).unwrap();
                    store.commit(next).await.unwrap();
                    kept.insert((id, head + 1), image);
                    heads.iter_mut().find(|(of, _)| *of == id).unwrap().1 += 1;
                }
            }
            if n % 20 == 0 {
                let kept: Vec<_> = kept.iter().map(|((id, seq), image)| (*id, *seq, image.clone())).collect();
                same(&store, &kept).await;
            }
        }
    }
}

/// Commits until it is killed or refused, and says what was acknowledged: see the tests below.
#[tokio::test]
async fn commit_until_killed() {
    let Ok(path) = std::env::var("RETAKE_TEST_COMMITS") else { return };
    let say = |line: String| std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    let store = SqliteStore::open(path).unwrap();
    let filter = store::ExecutionFilter::default();
    let (id, head) = match store.executions(&filter).await.unwrap().first() {
        Some(record) => (record.id, record.head),
        None => (begin(&store, "killed").await, 1),
    };
    for seq in head + 1.. {
        let delta = set("step", &format!("{seq} {}", "x".repeat(2_000)));
        match store.commit(commit(id, seq - 1, delta)).await {
            Ok(_) => say(format!("acknowledged {seq}\n")),
            Err(error) => {
                say(format!("refused {} {error}\n", matches!(error, StoreError::Full { .. })));
                break;
            }
        }
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

fn committer(command: &mut std::process::Command, path: &Path) -> std::process::Child {
    command
        .env("RETAKE_TEST_COMMITS", path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

fn lines(child: &mut std::process::Child) -> impl Iterator<Item = String> + use<> {
    std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap())).map(Result::unwrap)
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_there_and_the_store_is_sound() {
    let (_directory, path) = place();
    let mut head = 1;
    for round in 0..10 {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let command = command.args(["commit_until_killed", "--exact", "--nocapture"]);
        let mut child = committer(command, &path);
        let mut lines = lines(&mut child);
        let mut acknowledged = |line: String| {
            if let Some(seq) = line.strip_prefix("acknowledged ") {
                head = seq.parse().unwrap();
            }
        };
        (&mut lines).take(3 + round * 7).for_each(&mut acknowledged);
        child.kill().unwrap();
        lines.for_each(acknowledged);
        child.wait().unwrap();

        let store = SqliteStore::open(&path).unwrap();
        let record = store.executions(&store::ExecutionFilter::default()).await.unwrap().remove(0);
        assert!((head..=head + 1).contains(&record.head), "{head} acknowledged, {} there", record.head);
        assert!(step(&store.state(record.id, head).await.unwrap()).starts_with(&format!("{head} ")));
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_reached_its_size_limit_is_full_and_everything_acknowledged_stays_readable() {
    let (_directory, path) = place();
    drop(SqliteStore::open(&path).unwrap());
    // In blocks of 512 or 1,024 bytes. The signal is what the command-line program ignores as well.
    let script = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" commit_until_killed --exact --nocapture";
    let mut command = std::process::Command::new("sh");
    let command = command.args(["-c", script]).arg(std::env::current_exe().unwrap());
    let mut child = committer(command, &path);
    let said: Vec<String> = lines(&mut child).collect();
    let refused = said.iter().find(|line| line.starts_with("refused ")).unwrap();
    assert!(refused.starts_with("refused true ") && refused.ends_with(" is full"), "{refused}");
    assert!(child.wait().unwrap().success(), "{said:?}");
    let acknowledged: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("acknowledged ")).collect();
    let head: Seq = acknowledged.last().unwrap().parse().unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let record = store.executions(&store::ExecutionFilter::default()).await.unwrap().remove(0);
    assert_eq!(record.head, head);
    assert!(step(&store.state(record.id, head).await.unwrap()).starts_with(&format!("{head} ")));
    assert_eq!(store.commit(commit(record.id, head, set("step", "more"))).await.unwrap().seq, head + 1);
}
