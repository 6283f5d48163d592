//! Stores that older versions wrote: each opens, and is what it was.
//!
//! `RETAKE_BLESS=1` writes down what a fixture holds; do that once, with the version that made it.

use std::path::Path;

use retake::store::{ExecutionFilter, FORMAT, FeedPage, HistoryPage, Since, SqliteStore, Store, StoreExt};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::*;

/// The fixtures, by format. The newest format needs none until it is followed by another.
const FORMATS: std::ops::Range<u32> = 1..FORMAT;

fn fixture(format: u32, end: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{format}.{end}"))
}

/// Returns all that a store tells, its states as their hashes.
async fn told(store: &SqliteStore) -> Value {
    let mut executions = Vec::new();
    for execution in store.executions(&ExecutionFilter::default()).await.unwrap() {
        let mut points = Vec::new();
        for point in store.history(execution.id, HistoryPage::default()).await.unwrap() {
            let state = json!(store.context(execution.id, point.seq).await.unwrap());
            let by_id = store.checkpoint(point.id).await.unwrap();
            assert_eq!(by_id.as_ref(), Some(&point));
            points.push(json!({ "record": format!("{point:?}"), "state": store::hash(&state) }));
        }
        let definition = store.workflow(execution.workflow_id).await.unwrap().unwrap();
        executions.push(json!({
            "record": format!("{execution:?}"),
            "definition": String::from_utf8(definition).unwrap(),
            "operations": store.operations(execution.id).await.unwrap(),
            "points": points,
        }));
    }
    Value::Array(executions)
}

#[tokio::test]
async fn a_store_of_every_older_format_opens_and_holds_what_it_held() {
    for format in FORMATS {
        let (_directory, path) = place();
        std::fs::copy(fixture(format, "db"), &path).unwrap();
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new(), "format {format}");
        let told = told(&store).await;
        if std::env::var_os("RETAKE_BLESS").is_some() {
            std::fs::write(fixture(format, "json"), serde_json::to_string_pretty(&told).unwrap()).unwrap();
        }
        let text = std::fs::read_to_string(fixture(format, "json")).unwrap();
        assert_eq!(told, serde_json::from_str::<Value>(&text).unwrap(), "format {format}");
    }
}

#[tokio::test]
async fn a_store_of_an_older_format_goes_on_after_it_was_opened() {
    for format in FORMATS {
        let (_directory, path) = place();
        std::fs::copy(fixture(format, "db"), &path).unwrap();
        let store = SqliteStore::open(&path).unwrap();
        for execution in store.executions(&ExecutionFilter::default()).await.unwrap() {
            advance(&store, execution.id, execution.head + 1, execution.head + 5).await;
            store.prune(execution.id, 3).await.unwrap();
        }
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new(), "format {format}");
    }
}

#[tokio::test]
async fn what_was_damaged_in_an_older_format_is_damaged_in_the_new_one_and_hides_nothing_else() {
    let (_directory, path) = place();
    std::fs::copy(fixture(1, "db"), &path).unwrap();
    let tamper = rusqlite::Connection::open(&path).unwrap();
    tamper
        .execute_batch("UPDATE checkpoints SET completed_nodes = 77 WHERE execution = 1 AND seq = 16")
        .unwrap();
    drop(tamper);
    let store = SqliteStore::open(&path).unwrap();
    let problems = store.check().await.unwrap().problems;
    assert!(problems.len() == 1 && problems[0].starts_with("checkpoint @16 of "), "{problems:?}");
    for execution in store.executions(&ExecutionFilter::default()).await.unwrap() {
        assert!(store.state(execution.id, execution.head).await.is_ok());
    }
}

#[tokio::test]
async fn an_execution_whose_row_was_damaged_before_is_made_again_of_its_points() {
    let (_directory, path) = place();
    std::fs::copy(fixture(1, "db"), &path).unwrap();
    let tamper = rusqlite::Connection::open(&path).unwrap();
    tamper.execute_batch("UPDATE executions SET head = 1 WHERE key = 1").unwrap();
    drop(tamper);
    drop(SqliteStore::open(&path).unwrap());
    let by = retake::store::NewOperation { who: "ada".into(), command: "retake doctor --fix".into() };
    let mode = retake::store::RepairMode::Replace;
    let repair = SqliteStore::repair(&path, mode, &by, &retake::store::Options::default()).unwrap();
    let told = repair.executions.iter().find(|told| told.name == "first").unwrap();
    assert_eq!(told.head, retake::store::HeadFate::Stands);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.require(told.id).await.unwrap().head, 19);
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}

#[test]
fn many_processes_may_bring_one_store_to_the_new_format_at_once() {
    for format in FORMATS {
        let (_directory, path) = place();
        std::fs::copy(fixture(format, "db"), &path).unwrap();
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..8).map(|_| scope.spawn(|| SqliteStore::open(&path).map(drop))).collect();
            for open in opened {
                open.join().unwrap().unwrap();
            }
        });
        let format: u32 = rusqlite::Connection::open(&path)
            .unwrap()
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(format, FORMAT);
    }
}

/// Reads the feed in pages of one point each.
async fn followed(store: &SqliteStore, mut since: Since) -> (Vec<(ExecutionId, Seq)>, Since) {
    let mut points = Vec::new();
    loop {
        let page = store.feed(FeedPage { since, execution: None, limit: 1 }).await.unwrap();
        since = Since::After(page.next);
        match &page.points[..] {
            [point] => points.push((point.record.execution_id, point.record.seq)),
            _ => return (points, since),
        }
    }
}

#[tokio::test]
async fn points_that_share_the_deltas_of_others_are_in_the_feed_once_and_before_what_is_new() {
    let (_directory, path) = place();
    // Of the time before every point had a delta of its own.
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/shared-deltas.db");
    std::fs::copy(shared, &path).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let (found, since) = followed(&store, Since::Start).await;
    let mut expected = Vec::new();
    for execution in store.executions(&ExecutionFilter::default()).await.unwrap() {
        let points = store.history(execution.id, HistoryPage::default()).await.unwrap();
        expected.extend(points.iter().map(|point| (execution.id, point.seq)));
    }
    let mut sorted = found.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    let raw = Connection::open(&path).unwrap();
    let deltas: i64 =
        raw.query_row("SELECT count(DISTINCT delta) FROM checkpoints", [], |row| row.get(0)).unwrap();
    assert_eq!((deltas, found.len()), (6, 8), "two points share the deltas of others");
    let id = begin(&store, "new").await;
    assert_eq!(followed(&store, since).await.0, [(id, 1)]);
}
