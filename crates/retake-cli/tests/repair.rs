//! `doctor --fix` on stores that were damaged, and killed at any moment.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "how many kills found what is to be seen")]

mod place;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use retake::store::{HistoryPage, SqliteStore, Store};
use serde_json::{Value, json};

use crate::place::Place;

/// How often a repair is killed.
const KILLS: usize = 20;

fn store(place: &Path) -> PathBuf {
    place.join(".retake/store.db")
}

fn tamper(place: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(store(place)).unwrap();
    connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; DELETE FROM keyframes; {sql}")).unwrap();
    assert!(connection.changes() > 0, "{sql} changed nothing");
}

/// Returns a place with a run that sent its letter at `@8`, of which all from `@7` on is damaged.
fn damaged() -> Place {
    let place = Place::with_sent_letter("otter");
    assert_eq!(place.head("otter"), 8);
    tamper(
        place.path(),
        "UPDATE deltas SET body = x'00' WHERE key = (SELECT delta FROM checkpoints WHERE seq = 7)",
    );
    place
}

fn names(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.path().join(".retake")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_damaged_head_falls_back_and_what_may_have_happened_is_named() {
    let place = damaged();
    assert_eq!(place.retake(&["doctor"]).code, 6);
    let hint = place.retake(&["doctor"]).stderr;
    assert!(hint.contains("`retake doctor --fix --dry-run` shows what can be kept"), "{hint}");

    let bytes = std::fs::read(store(place.path())).unwrap();
    let look = place.json(&["doctor", "--fix", "--dry-run"]);
    assert_eq!((&look["fixed"], &look["damaged"]), (&json!(false), &Value::Null));
    assert!(std::fs::read(store(place.path())).unwrap() == bytes);
    let said = place.text(&["doctor", "--fix", "--dry-run"]);
    assert_eq!(
        said,
        "otter falls back from @8 to @6, which is @9 now\n  - lost: @7 to @8\n  ~ runs again: send\n  \
         ! send may have happened outside, and would happen once more: look before you resume\n\
         nothing was written: without `--dry-run` this is done\n"
    );

    let done = place.json(&["doctor", "--fix"]);
    let run = &done["runs"][0];
    assert_eq!(
        (&run["name"], &run["outcome"], &run["rebuilt"]),
        (&json!("otter"), &json!("fell_back"), &json!(false))
    );
    assert_eq!((&run["from"], &run["to"], &run["head"]), (&json!(8), &json!(6), &json!(9)));
    assert_eq!((&run["lost"], &run["rerun"]), (&json!([7, 8]), &json!(["send"])));
    assert_eq!(run["may_have_happened"], json!(["send"]));
    assert!(std::fs::read(done["damaged"].as_str().unwrap()).unwrap() == bytes);

    assert_eq!(place.json(&["doctor"])["sound"], true);
    let log = place.json(&["log", "otter"]);
    assert_eq!(log[0]["cause"], json!({"kind": "repair", "from": 8, "lost": [7, 8]}));
    assert!(place.text(&["log", "otter"]).contains("repair of @8"));
    assert_eq!(place.json(&["op", "log", "otter"])[0]["command"], "retake --json doctor --fix");
    place.resume("otter");
    assert_eq!(place.json(&["show", "otter"])["status"], "completed");
}

#[test]
fn a_sound_store_is_left_alone_and_an_open_one_is_refused() {
    let place = Place::with_letter("otter");
    assert_eq!(place.text(&["doctor", "--fix"]), ".retake/store.db is sound: there is nothing to fix\n");
    assert_eq!(place.json(&["doctor", "--fix"])["runs"], json!([]));
    let engine = place.engine();
    let error = place.refused(&["doctor", "--fix"], 4, "is open in another process");
    assert_eq!(error["hint"], "end the other retake processes, then try again");
    drop(engine);
    place.refused(&["doctor", "--dry-run"], 2, "--fix");
    place.refused(&["--store", "memory:", "doctor", "--fix"], 2, "a store in memory cannot be repaired");
    place.refused(&["--store", "nothing.db", "doctor", "--fix"], 3, "no store at nothing.db");
    place.write("other.db", &"not a store ".repeat(1_000));
    place.refused(&["--store", "other.db", "doctor", "--fix"], 6, "it is not a SQLite file");
}

/// Returns whether a store is sound, and the points of its only run.
#[tokio::main(flavor = "current_thread")]
async fn seen(place: &Path) -> (bool, Vec<u64>) {
    let store = SqliteStore::open_existing(store(place)).unwrap();
    let is_sound = store.check().await.unwrap().problems.is_empty();
    let run = &store.executions(&Default::default()).await.unwrap()[0];
    let history = store.history(run.id, HistoryPage::default()).await.unwrap();
    (is_sound, history.iter().map(|point| point.seq).collect())
}

/// Waits until a file beside the store begins so, or none does any more, or the repair is over.
fn wait_for(repair: &mut Child, place: &Place, beginning: &str, there: bool) {
    while repair.try_wait().unwrap().is_none() {
        if names(place).iter().any(|name| name.starts_with(beginning)) == there {
            return;
        }
    }
}

#[test]
fn a_repair_that_is_killed_leaves_the_old_store_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for kill in 0..KILLS {
        let place = damaged();
        let mut repair = place.command(&["doctor", "--fix"]).stdout(Stdio::null()).spawn().unwrap();
        let stages = [("store.db.repair-", true), ("store.db.damaged-", true), ("store.db.repair-", false)];
        for (beginning, there) in &stages[..kill % (stages.len() + 1)] {
            wait_for(&mut repair, &place, beginning, *there);
        }
        // Between one stage and the next.
        for _ in 0..fastrand::u32(0..400_000) {
            std::hint::spin_loop();
        }
        repair.kill().unwrap();
        repair.wait().unwrap();

        let (is_sound, points) = seen(place.path());
        if is_sound {
            assert_eq!(points, [9, 6, 5, 4, 3, 2, 1], "kill {kill}");
            new += 1;
        } else {
            assert_eq!(points, [8, 7, 6, 5, 4, 3, 2, 1], "kill {kill}");
            old += 1;
        }
        place.json(&["doctor", "--fix"]);
        assert_eq!(seen(place.path()), (true, vec![9, 6, 5, 4, 3, 2, 1]), "kill {kill}");
        let left = names(&place).into_iter().filter(|name| name.contains("repair-")).count();
        assert_eq!(left, 0, "{:?}", names(&place));
    }
    println!("{KILLS} kills: {old} left the old store, {new} the new one");
    assert!(old > KILLS / 5 && new > KILLS / 10, "{old} kills left the old store, {new} the new one");
}
