//! Damaged files: found, named, and never returned as data.

use std::path::Path;

use retake::execution::ExecutionId;
use retake::store::{
    Ask, DamagedLog, Delta, ExecutionFilter, HistoryPage, NewOperation, Options, Request, SqliteStore, Store,
    StoreError, StoreExt,
};
use rusqlite::Connection;
use uuid::Uuid;

use super::*;

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
        ("UPDATE execution_workflows SET checksum = x'00'", "workflow 00000000-".into()),
        ("DELETE FROM workflows", "1 rows of execution_workflows name none of workflows".into()),
        ("DELETE FROM execution_workflows", "62 rows of checkpoints name none of execution_workflows".into()),
        ("DELETE FROM execution_workflows", format!("execution {id} runs workflow 00000000-")),
        (
            "UPDATE checkpoints SET workflow = zeroblob(16) WHERE seq = 5",
            format!("checkpoint @5 of execution {id}"),
        ),
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

/// What the frames of a log begin with, and what stands in front of the first.
const FRAME: usize = 24 + 4_096;
const LOG_HEAD: usize = 32;

/// Copies a store whose log holds ten commits after the second point, as they are while it is open. Returns where to, and
/// the bytes of the log.
async fn at_work(from: &Path, to: &Path) -> (ExecutionId, Vec<u8>) {
    let store = SqliteStore::open(from).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 2).await;
    store.compact().await.unwrap();
    advance(&store, id, 3, 12).await;
    std::fs::copy(from, to).unwrap();
    (id, std::fs::read(from.with_extension("db-wal")).unwrap())
}

/// Returns the frames that end commits.
fn commits(log: &[u8]) -> Vec<usize> {
    let frames = log[LOG_HEAD..].chunks_exact(FRAME).enumerate();
    frames.filter(|(_, frame)| frame[4..8] != [0; 4]).map(|(at, _)| at).collect()
}

#[tokio::test]
async fn a_log_that_is_damaged_in_the_middle_is_refused_and_cut_only_on_request() {
    let (_first, from) = place();
    let (_second, path) = place();
    let (id, log) = at_work(&from, &path).await;
    let ends = commits(&log);
    assert_eq!(ends.len(), 10);
    let beside = path.with_extension("db-wal");
    // In a page of the fourth commit, and in its last frame's checksum.
    let last = LOG_HEAD + ends[3] * FRAME;
    for place in [LOG_HEAD + (ends[2] + 1) * FRAME + 100, last + 20, last + 4_000] {
        let mut damaged = log.clone();
        damaged[place] ^= 4;
        std::fs::write(&beside, &damaged).unwrap();
        let error = SqliteStore::open(&path).unwrap_err();
        assert!(
            matches!(&error, StoreError::Corrupt { record, .. } if record.ends_with("retake.db-wal")),
            "{error}"
        );
        assert!(error.to_string().contains("commits behind it cannot be read without it"), "{error}");
        assert_eq!(std::fs::read(&beside).unwrap(), damaged, "a log that is refused stays as it is");
    }
    let options = Options { damaged_log: DamagedLog::Cut, ..Options::default() };
    let store = SqliteStore::open_with(&path, options).unwrap();
    assert_eq!(store.execution(id).await.unwrap().unwrap().head, 5);
    assert_eq!(step(&store.state(id, 5).await.unwrap()), "5");
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().execution(id).await.unwrap().unwrap().head, 5);
}

#[tokio::test]
async fn a_log_without_its_head_is_refused() {
    let (_first, from) = place();
    let (_second, path) = place();
    let (_, mut log) = at_work(&from, &path).await;
    for place in [0, 9, 17, 30] {
        log[place] ^= 1;
        std::fs::write(path.with_extension("db-wal"), &log).unwrap();
        let error = SqliteStore::open(&path).unwrap_err();
        assert!(error.to_string().contains("its head is not what was written, and 10 commits"), "{error}");
        log[place] ^= 1;
    }
}

#[tokio::test]
async fn a_log_that_ends_as_after_a_power_cut_is_opened_up_to_its_last_whole_commit() {
    let (_first, from) = place();
    let (_second, path) = place();
    let (id, log) = at_work(&from, &path).await;
    let ends = commits(&log);
    let beside = path.with_extension("db-wal");
    let mut torn = log.clone();
    torn[LOG_HEAD + (ends[8] + 1) * FRAME + 100] ^= 4;
    // A commit whose first page is torn, one of which nothing but a part is there, and a log that ends in a commit.
    for (bytes, head) in [
        (&torn[..], 11),
        (&log[..LOG_HEAD + ends[9] * FRAME + 77], 11),
        (&log[..LOG_HEAD + (ends[4] + 1) * FRAME], 7),
    ] {
        let copy = path.with_file_name("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::write(copy.with_extension("db-wal"), bytes).unwrap();
        let store = SqliteStore::open(&copy).unwrap();
        assert_eq!(store.execution(id).await.unwrap().unwrap().head, head);
        assert_eq!(step(&store.state(id, head).await.unwrap()), head.to_string());
    }
    std::fs::write(&beside, &log).unwrap();
    assert_eq!(SqliteStore::open(&path).unwrap().execution(id).await.unwrap().unwrap().head, 12);
}

/// A write that the disk acknowledged and lost leaves a row that is whole, and was true once.
#[tokio::test]
async fn an_execution_as_it_once_was_is_no_answer() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    drop(store);
    let tamper = Connection::open(&path).unwrap();
    tamper.execute_batch("CREATE TEMP TABLE once AS SELECT * FROM executions").unwrap();
    let store = SqliteStore::open(&path).unwrap();
    advance(&store, id, 2, 3).await;
    tamper.execute_batch("INSERT OR REPLACE INTO executions SELECT * FROM once").unwrap();
    let wanted = format!("execution {id} is damaged: its head is @1, and its newest point is @3");
    assert_eq!(store.execution(id).await.unwrap_err().to_string(), wanted);
    assert_eq!(store.executions(&ExecutionFilter::default()).await.unwrap_err().to_string(), wanted);
    assert_eq!(store.state(id, 1).await.map(|_| ()).unwrap_err().to_string(), wanted);
    assert_eq!(store.operations(id).await.unwrap_err().to_string(), wanted);
    assert!(!store.check().await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn an_operation_that_is_missing_in_the_middle_is_named() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    for seq in 2..=4 {
        let mut next = commit(id, seq - 1, Delta::default());
        next.checkpoint.operation = Some(NewOperation { who: "ada".into(), command: "checkpoint".into() });
        store.commit(next).await.unwrap();
    }
    let tamper = Connection::open(&path).unwrap();
    tamper.execute_batch("DELETE FROM operations WHERE number = 2").unwrap();
    let wanted = format!("operation 2 of execution {id} is damaged: it is missing");
    assert_eq!(store.operations(id).await.unwrap_err().to_string(), wanted);
    assert_eq!(store.check().await.unwrap().problems, [format!("operation 2 of execution {id} is missing")]);
}

#[tokio::test]
async fn a_row_that_an_index_does_not_name_is_reported() {
    let (directory, path) = place();
    furnished(&path).await;
    let other = directory.path().join("other.db");
    furnished(&other).await;
    let tamper = Connection::open(&path).unwrap();
    let root = |table: &str| -> i64 {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        tamper.query_row(sql, [table], |row| row.get(0)).unwrap()
    };
    // The page of an index, as it is in a store with another execution.
    let page = usize::try_from(root("sqlite_autoindex_executions_1") - 1).unwrap() * 4_096;
    drop(tamper);
    let (mut bytes, others) = (std::fs::read(&path).unwrap(), std::fs::read(&other).unwrap());
    bytes[page..page + 4_096].copy_from_slice(&others[page..page + 4_096]);
    std::fs::write(&path, bytes).unwrap();
    let problems = SqliteStore::open(&path).unwrap().check().await.unwrap().problems;
    assert!(problems.iter().any(|problem| problem.contains("sqlite_autoindex_executions_1")), "{problems:?}");
}

#[tokio::test]
async fn an_index_that_leads_to_another_row_is_no_answer() {
    let (_directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    let point = store.history(id, HistoryPage::default()).await.unwrap()[0].id;
    drop(store);
    let tamper = Connection::open(&path).unwrap();
    let root = |index: &str| -> i64 {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        tamper.query_row(sql, [index], |row| row.get(0)).unwrap()
    };
    let pages = [root("sqlite_autoindex_executions_1"), root("sqlite_autoindex_checkpoints_1")];
    drop(tamper);
    let mut bytes = std::fs::read(&path).unwrap();
    for (page, id) in pages.into_iter().zip([id, point]) {
        let start = usize::try_from(page - 1).unwrap() * 4_096;
        let page = &mut bytes[start..start + 4_096];
        let place = page.windows(16).position(|at| at == id.as_bytes()).unwrap();
        page[place + 15] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let near = |id: Uuid| Uuid::from_u128(id.as_u128() ^ 1);
    assert!(store.execution(near(id)).await.unwrap_err().to_string().contains(" is damaged: "));
    let error = store.checkpoint(near(point)).await.unwrap_err().to_string();
    let wanted = format!("checkpoint {} is damaged: the index leads to @1 of execution {id}", near(point));
    assert_eq!(error, wanted);
    assert!(!store.check().await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn a_history_with_a_page_twice_is_no_answer() {
    let (directory, path) = place();
    let id = furnished(&path).await;
    let bytes = std::fs::read(&path).unwrap();
    let copy = directory.path().join("copy.db");
    let pages = bytes.len() / 4_096;
    // Leaves of a table without row ids, which hold the points among others.
    let whole = SqliteStore::open(&path).unwrap();
    let mut states = Vec::new();
    for seq in 1..=62 {
        states.push(whole.state(id, seq).await.unwrap());
    }
    drop(whole);
    let leaves: Vec<usize> = (1..pages).filter(|page| bytes[page * 4_096] == 0x0a).collect();
    let mut twice = 0;
    for from in &leaves {
        for to in leaves.iter().filter(|to| *to != from) {
            let mut damaged = bytes.clone();
            damaged.copy_within(from * 4_096..(from + 1) * 4_096, to * 4_096);
            std::fs::write(&copy, damaged).unwrap();
            let store = SqliteStore::open(&copy).unwrap();
            for (seq, whole) in (1..).zip(&states) {
                if let Ok(state) = store.state(id, seq).await {
                    assert_eq!(&state, whole, "@{seq} with {from} over {to}");
                }
            }
            match store.history(id, HistoryPage::default()).await {
                Ok(points) => assert!(points.windows(2).all(|pair| pair[0].seq > pair[1].seq)),
                Err(error) => {
                    twice += usize::from(error.to_string().starts_with("the history of execution "))
                }
            }
        }
    }
    assert!(twice > 0, "{} leaves", leaves.len());
}

#[tokio::test]
async fn a_damaged_list_of_tables_and_a_page_past_the_end_are_damage_and_not_to_be_tried_again() {
    let (directory, path) = place();
    let id = furnished(&path).await;
    let bytes = std::fs::read(&path).unwrap();
    let copy = directory.path().join("copy.db");
    std::fs::write(&copy, &bytes).unwrap();
    let tamper = Connection::open(&copy).unwrap();
    let rename =
        "UPDATE sqlite_schema SET sql = replace(sql, ' fence ', ' gence ') WHERE name = 'executions'";
    tamper.execute_batch(&format!("PRAGMA writable_schema = ON; {rename}")).unwrap();
    assert_eq!(tamper.changes(), 1);
    drop(tamper);
    let error = SqliteStore::open(&copy).unwrap().execution(id).await.unwrap_err();
    assert!(error.to_string().starts_with("the list of tables in "), "{error}");
    assert!(!error.is_retryable());
    std::fs::write(&copy, &bytes[..bytes.len() - 3 * 4_096 - 100]).unwrap();
    let store = SqliteStore::open(&copy);
    let errors = match &store {
        Ok(store) => (1..=62).map(|seq| store.state(id, seq)).collect(),
        Err(_) => Vec::new(),
    };
    for error in errors {
        if let Err(error) = error.await {
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        }
    }
}
