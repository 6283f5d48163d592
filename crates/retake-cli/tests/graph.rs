//! `retake log --graph`: time lines and forks, drawn and as a document. There is no command yet that makes a fork, so
//! the library makes them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use assert_cmd::Command;
use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionId, ExecutionState};
use retake::store::{
    Cause, Commit, ExecutionFilter, NewCheckpoint, NewExecution, Origin, Seq, SqliteStore, Store, StoreExt,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory with a store in it.
struct Place {
    directory: TempDir,
    store: SqliteStore,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let store = SqliteStore::open(directory.path().join(".retake/store.db")).unwrap();
        Self { directory, store }
    }

    /// Returns a place with a run `otter` whose head `@6` follows `@2`, with `@3` to `@5` abandoned.
    async fn with_two_lines() -> (Self, ExecutionId) {
        let place = Self::new();
        let otter = place.begin("otter", None).await;
        for head in 1..5 {
            place.commit(otter, head, None, Cause::Nodes).await;
        }
        place.commit(otter, 5, Some(2), Cause::Rollback { to: 2 }).await;
        (place, otter)
    }

    async fn begin(&self, name: &str, origin: Option<Origin>) -> ExecutionId {
        let new = NewExecution {
            id: SystemClock::default().new_id(),
            name: name.to_owned(),
            workflow_id: ExecutionId::from_u128(7),
            workflow_name: "article".to_owned(),
            definition: Vec::new(),
            origin,
        };
        let id = new.id;
        let cause = origin.map_or(Cause::Start, |origin| Cause::Fork { origin });
        self.store.create(new, checkpoint(ExecutionState::Paused, cause)).await.unwrap();
        id
    }

    async fn fork(&self, name: &str, execution_id: ExecutionId, seq: Seq) -> ExecutionId {
        self.begin(name, Some(Origin { execution_id, seq })).await
    }

    async fn commit(&self, execution_id: ExecutionId, expected_head: Seq, parent: Option<Seq>, cause: Cause) {
        let state = if cause == Cause::Finish { ExecutionState::Completed } else { ExecutionState::Paused };
        let checkpoint = NewCheckpoint { parent, ..checkpoint(state, cause) };
        let commit = Commit { execution_id, expected_head, fence: None, checkpoint };
        self.store.commit(commit).await.unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn retake(&self, arguments: &[&str]) -> (String, String) {
        let output = Command::cargo_bin("retake")
            .unwrap()
            .current_dir(self.path())
            .env_remove("RETAKE_STORE")
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        (stdout, stderr)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.retake(&[&["--json"], arguments].concat()).0).unwrap()
    }
}

fn checkpoint(state: ExecutionState, cause: Cause) -> NewCheckpoint {
    let clock = SystemClock::default();
    NewCheckpoint::new(clock.new_id(), clock.now(), state, cause)
}

/// Returns the drawing with the first word beside it, which is the point or the fork's name.
fn drawn(text: &str) -> Vec<String> {
    text.lines()
        .skip(1)
        .map(|line| {
            let words = line.find(|c: char| c.is_ascii_alphanumeric() || c == '@').unwrap_or(line.len());
            let word = line[words..].split_whitespace().next().unwrap_or_default();
            format!("{} {word}", line[..words].trim_end()).trim_end().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn the_graph_shows_the_time_line_what_was_abandoned_and_forks_of_forks() {
    let (place, otter) = Place::with_two_lines().await;
    let heron = place.fork("heron", otter, 4).await;
    place.commit(heron, 1, None, Cause::Finish).await;
    place.fork("crow", heron, 2).await;
    place.fork("swan", otter, 6).await;

    let (text, _) = place.retake(&["log", "otter", "--graph"]);
    assert_eq!(
        drawn(&text),
        [
            "◇ swan",
            "● @6",
            "│ ○ @5",
            "│ │ ◇ crow",
            "│ │ ◇ heron",
            "│ ├─╯",
            "│ ○ @4",
            "│ ○ @3",
            "├─╯",
            "● @2",
            "● @1"
        ],
        "{text}"
    );
    for line in
        ["◇  heron  forked at @4,  completed  at @2", "◇  crow  forked at @2 of heron,  paused  at @1"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (of_heron, _) = place.retake(&["log", "heron", "--graph"]);
    assert_eq!(drawn(&of_heron), ["◇ crow", "● @2", "● @1"], "{of_heron}");
}

#[tokio::test]
async fn the_graph_as_a_document_has_the_points_of_the_log_and_a_tree_of_forks() {
    let (place, otter) = Place::with_two_lines().await;
    let heron = place.fork("heron", otter, 4).await;
    let crow = place.fork("crow", heron, 1).await;
    let graph = place.json(&["log", "otter", "--graph"]);
    assert_eq!(graph["points"], place.json(&["log", "otter"]));
    let facts = |point: &Value| (point["seq"].clone(), point["parent"].clone(), point["current"].clone());
    let points: Vec<_> = graph["points"].as_array().unwrap().iter().map(facts).collect();
    let expected = [
        (6, json!(2), true),
        (5, json!(4), false),
        (4, json!(3), false),
        (3, json!(2), false),
        (2, json!(1), true),
        (1, Value::Null, true),
    ];
    assert_eq!(points, expected.map(|(seq, parent, current)| (json!(seq), parent, json!(current))));

    assert_eq!(graph["more_forks"], false);
    let (fork, inner) = (&graph["forks"][0], &graph["forks"][0]["forks"][0]);
    assert_eq!(
        (&fork["name"], &fork["status"], &fork["head"]),
        (&json!("heron"), &json!("paused"), &json!(1))
    );
    assert_eq!(fork["execution"], json!(heron));
    assert_eq!(fork["origin"], json!({"execution": otter, "seq": 4}));
    assert_eq!((&inner["execution"], &inner["origin"]["execution"]), (&json!(crow), &json!(heron)));
    assert_eq!(inner["forks"], json!([]));
    assert_eq!(graph["forks"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn forks_of_pruned_points_stand_where_those_stood() {
    let (place, otter) = Place::with_two_lines().await;
    place.fork("heron", otter, 4).await;
    place.fork("swan", otter, 1).await;
    place.commit(otter, 6, None, Cause::Nodes).await;
    assert_eq!(place.store.prune(otter, 3).await.unwrap(), 4);
    let (text, _) = place.retake(&["log", "otter", "--graph"]);
    assert_eq!(drawn(&text), ["● @7", "● @6", "~", "○ @5", "~", "◇ heron", "~", "◇ swan", "~"], "{text}");
    let limited = place.retake(&["log", "otter", "--graph", "-n", "1"]).0;
    assert_eq!(drawn(&limited)[..2], ["● @7", "~"], "{limited}");
}

#[tokio::test]
async fn of_a_hundred_and_more_forks_a_hundred_are_shown_and_the_rest_is_mentioned() {
    let (place, otter) = Place::with_two_lines().await;
    for n in 0..103 {
        place.fork(&format!("fork-{n}"), otter, 3).await;
    }
    let last =
        place.store.executions(&ExecutionFilter { limit: Some(1), ..Default::default() }).await.unwrap();
    assert_eq!(place.store.require(last[0].id).await.unwrap().name, "fork-102");
    let (text, note) = place.retake(&["log", "otter", "--graph"]);
    assert_eq!(text.matches('◇').count(), 100);
    assert_eq!(note, "there are more forks; these are the nearest 100\n");
    assert!(text.lines().all(|line| line.chars().count() < 120), "{text}");
    let graph = place.json(&["log", "otter", "--graph"]);
    assert_eq!((graph["forks"].as_array().unwrap().len(), &graph["more_forks"]), (100, &json!(true)));
}

#[tokio::test]
async fn the_log_names_abandoned_points_where_there_are_any() {
    let (place, _) = Place::with_two_lines().await;
    let (text, _) = place.retake(&["log", "otter"]);
    let abandoned: Vec<&str> =
        text.lines().filter(|line| line.contains("abandoned")).map(|line| &line[..2]).collect();
    assert_eq!(abandoned, ["@5", "@4", "@3"], "{text}");
    place.begin("heron", None).await;
    let (text, _) = place.retake(&["log", "heron"]);
    assert!(!text.contains("LINE"), "{text}");
}
