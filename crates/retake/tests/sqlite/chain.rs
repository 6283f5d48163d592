//! Rows of a history that were removed or moved, with checksums that are right.

use rusqlite::Connection;

use retake::store::{NewOperation, Note, SqliteStore, Store};

use super::*;

/// Makes a history of 12 points and 3 operations, pruned to its newest 8 points but for one with a label.
async fn pruned(path: &Path) -> ExecutionId {
    let store = SqliteStore::open(path).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 2).await;
    let mut labelled = commit(id, 2, set("step", "3"));
    labelled.checkpoint.label = Some("kept".into());
    store.commit(labelled).await.unwrap();
    advance(&store, id, 4, 12).await;
    for (keep, command) in [(10, "first"), (9, "second"), (8, "third")] {
        store.prune(id, keep).await.unwrap();
        let operation = NewOperation { who: "ann".into(), command: command.into() };
        let note = Note { at: SystemClock::default().now(), cause: Cause::Prune { removed: 1 }, operation };
        store.note(id, note).await.unwrap();
    }
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
    id
}

/// Changes the file behind the store's back, as `sql` says. Returns what a look at every record finds.
async fn problems_after(path: &Path, sql: &str) -> Vec<String> {
    let tamper = Connection::open(path).unwrap();
    tamper.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
    assert!(tamper.changes() > 0, "{sql} changed nothing");
    drop(tamper);
    SqliteStore::open(path).unwrap().check().await.unwrap().problems
}

#[tokio::test]
async fn what_was_pruned_leaves_gaps_that_grow_together_around_what_has_a_label() {
    let (_directory, path) = place();
    pruned(&path).await;
    let gaps: Vec<(i64, i64)> = {
        let raw = Connection::open(&path).unwrap();
        let mut statement = raw.prepare("SELECT first, last FROM gaps ORDER BY first").unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(gaps, [(1, 2), (4, 4)]);
}

#[tokio::test]
async fn a_removed_checkpoint_is_missed() {
    for (sql, missing) in [
        (
            "DELETE FROM checkpoints WHERE seq = 7",
            "checkpoint @7 of execution ID is missing, and was not pruned",
        ),
        (
            "DELETE FROM checkpoints WHERE seq = 3",
            "checkpoints @1 to @4 of execution ID are missing, and were not all pruned",
        ),
        ("DELETE FROM gaps WHERE first = 4", "checkpoint @4 of execution ID is missing, and was not pruned"),
        (
            "UPDATE gaps SET last = 7 WHERE first = 4; DELETE FROM checkpoints WHERE seq BETWEEN 5 AND 7",
            "gap @4 of execution ID is damaged",
        ),
    ] {
        let (_directory, path) = place();
        let id = pruned(&path).await;
        let problems = problems_after(&path, sql).await;
        let missing = missing.replace("ID", &id.to_string());
        assert!(problems.iter().any(|problem| problem.starts_with(&missing)), "{sql}: {problems:?}");
    }
}

#[tokio::test]
async fn a_history_whose_last_points_were_cut_off_does_not_end_as_its_row_says() {
    let (_directory, path) = place();
    let id = pruned(&path).await;
    let problems = problems_after(&path, "DELETE FROM checkpoints WHERE seq >= 11").await;
    let missing = format!("checkpoints @11 to @12 of execution {id} are missing, and were not all pruned");
    assert!(problems.contains(&missing), "{problems:?}");
}

#[tokio::test]
async fn a_checkpoint_of_another_copy_of_the_store_does_not_join_though_its_checksum_is_right() {
    let (directory, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let id = begin(&store, "brave-otter").await;
    advance(&store, id, 2, 2).await;
    drop(store);
    let copy = directory.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    for path in [&path, &copy] {
        let store = SqliteStore::open(path).unwrap();
        advance(&store, id, 3, 5).await;
    }
    let sql = format!(
        "ATTACH '{}' AS other; DELETE FROM checkpoints WHERE seq = 4;
         INSERT INTO checkpoints SELECT * FROM other.checkpoints WHERE seq = 4",
        copy.display()
    );
    let problems = problems_after(&path, &sql).await;
    assert_eq!(
        problems,
        [4, 5].map(|seq| format!(
            "checkpoint @{seq} of execution {id} is not the one that followed the point before it"
        ))
    );
}

#[tokio::test]
async fn a_removed_operation_is_missed_wherever_it_stood() {
    for (number, missing) in [
        (1, "operation 1 of execution ID is missing"),
        (2, "operation 2 of execution ID is missing"),
        (3, "operations after 2 of execution ID are missing"),
    ] {
        let (_directory, path) = place();
        let id = pruned(&path).await;
        let problems =
            problems_after(&path, &format!("DELETE FROM operations WHERE number = {number}")).await;
        assert_eq!(problems, [missing.replace("ID", &id.to_string())]);
        let error = SqliteStore::open(&path).unwrap().operations(id).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("operation {number} of execution {id} is damaged: it is missing")
        );
    }
}
