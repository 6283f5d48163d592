//! Compensation from the command line: what a rollback leaves behind outside is undone, once, and a kill in the middle is
//! asked about.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// `a` and `b` write what they do, and how it is undone, into a journal. `gate` is a pipe: while it is there, undoing `b`
/// says so, and waits until somebody reads it.
const WORKFLOW: &str = r#"
name: trip
checkpoints: { frequency: always, max: 100 }
nodes:
  plan: { set: { day: monday } }
  a:
    run: echo a >> journal; echo seat
    effect: external
    needs: [plan]
    compensate: { run: 'echo "undo a ${{ nodes.a.output }} ${{ vars.day }}" >> journal' }
  b:
    run: echo b >> journal; echo room
    effect: external
    needs: [a]
    compensate:
      run: |
        echo "undo $RETAKE_NODE ${{ nodes.b.output }}" >> journal
        echo "$RETAKE_IDEMPOTENCY_KEY $RETAKE_COMPENSATED_KEY" >> keys
        test ! -e broken || { echo "the hotel is closed" >&2; exit 3; }
        if test -p gate; then echo waiting >&2; echo open > gate; fi
  c: { run: echo c, needs: [b] }
"#;

struct Place(TempDir);

impl Place {
    /// Returns a place where the workflow has run to its end.
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        std::fs::write(place.path("trip.yaml"), WORKFLOW).unwrap();
        place.ends(&["run", "trip.yaml", "--name", "trip"], 0);
        assert_eq!(place.journal(), ["a", "b"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retake"));
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null()).env_remove("RETAKE_STORE");
        command
    }

    /// Runs a command to its end, asserts its exit code, and returns its stdout and stderr.
    fn ends(&self, arguments: &[&str], code: i32) -> (String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert_eq!(status.code(), Some(code), "{arguments:?}: {stdout}{stderr}");
        (stdout, stderr)
    }

    fn refused(&self, arguments: &[&str], code: i32) -> Value {
        let (_, stderr) = self.ends(&[&["--json"], arguments].concat(), code);
        serde_json::from_str::<Value>(&stderr).unwrap()["error"].clone()
    }

    fn compensations(&self) -> Value {
        let (stdout, _) = self.ends(&["show", "trip", "--json"], 0);
        serde_json::from_str::<Value>(&stdout).unwrap()["compensations"].clone()
    }

    fn stages(&self) -> Vec<String> {
        let all = self.compensations();
        let line =
            |one: &Value| format!("{} {}", one["node"].as_str().unwrap(), one["stage"].as_str().unwrap());
        all.as_array().unwrap().iter().map(line).collect()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Takes what the journal says.
    fn journal(&self) -> Vec<String> {
        let lines = self.lines("journal");
        let _none_yet = std::fs::remove_file(self.path("journal"));
        lines
    }
}

#[test]
fn a_rollback_compensates_where_it_is_told_to_last_effect_first() {
    let place = Place::new();
    let error = place.refused(&["rollback", "trip@node:plan", "--yes", "--run"], 7);
    assert_eq!(error["message"], "going back would forget what cannot be undone: a, b");
    let (plan, _) = place.ends(&["rollback", "trip@node:plan", "--compensate", "--dry-run"], 0);
    assert!(plan.contains("  < b is compensated\n  < a is compensated\n"), "{plan}");
    let (plan, _) = place.ends(&["rollback", "trip@node:plan", "--compensate", "--dry-run", "--json"], 0);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!((&plan["compensate"], &plan["irreversible"]), (&json!(["b", "a"]), &json!([])));
    assert_eq!(place.journal(), Vec::<String>::new());

    let (_, told) = place.ends(&["rollback", "trip@node:plan", "--compensate", "--yes", "--run"], 0);
    assert!(told.contains("  b: compensated in ") && told.contains("  a: compensated in "), "{told}");
    assert_eq!(place.journal(), ["undo b room", "undo a seat monday", "a", "b"]);
    assert_eq!(place.stages(), ["b done", "a done"]);
    let keys = place.compensations()[0].clone();
    let key = |name: &str| keys[name].as_str().unwrap().to_owned();
    assert_eq!(place.lines("keys"), [format!("{} {}", key("idempotency_key"), key("compensated_key"))]);
    let (log, _) = place.ends(&["log", "trip"], 0);
    assert_eq!(log.matches("compensate b").count(), 2, "{log}");
    let (shown, _) = place.ends(&["show", "trip"], 0);
    assert!(shown.contains("COMPENSATION"), "{shown}");

    let error = place.refused(&["undo", "trip"], 7);
    assert_eq!(error["message"], "going back would forget what cannot be undone: a, b");
    place.ends(&["undo", "trip", "--skip-effects"], 0);
    place.ends(&["resume", "trip"], 0);
    assert_eq!(place.journal(), Vec::<String>::new());
}

#[test]
fn a_node_that_another_definition_has_no_more_is_compensated_by_what_it_had() {
    let place = Place::new();
    let without =
        WORKFLOW[..WORKFLOW.find("  b:").unwrap()].to_owned() + "  c: { run: echo c, needs: [a] }\n";
    std::fs::write(place.path("without.yaml"), without).unwrap();
    let resume = ["resume", "trip", "--def", "without.yaml", "--yes"];
    let error = place.refused(&resume, 7);
    assert_eq!(error["message"], "the other definition would forget what cannot be undone: b");
    place.ends(&[&resume[..], &["--compensate"]].concat(), 0);
    assert_eq!(place.journal(), ["undo b room"]);
    assert_eq!(place.stages(), ["b done"]);
    let error = place.refused(&["undo", "trip"], 7);
    assert_eq!(error["message"], "going back would bring back what was compensated: b");
}

#[test]
fn pruning_leaves_what_a_counter_action_needs_that_is_still_to_run() {
    let place = Place::new();
    place.ends(&["rollback", "trip@node:plan", "--compensate", "--yes"], 0);
    place.ends(&["cancel", "trip"], 0);
    place.ends(&["prune", "trip", "--keep", "1"], 0);
    place.ends(&["undo", "trip"], 0);
    place.ends(&["resume", "trip"], 0);
    assert_eq!(place.journal(), ["undo b room", "undo a seat monday", "a", "b"]);
    let (told, _) = place.ends(&["prune", "trip", "--keep", "1", "--json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["runs"][0]["kept"], 1);
}

#[test]
fn a_counter_action_that_fails_stops_the_run_and_can_be_tried_again_or_left_out() {
    let place = Place::new();
    std::fs::write(place.path("broken"), "").unwrap();
    let rollback = ["rollback", "trip@node:plan", "--compensate", "--yes", "--run"];
    let (_, told) = place.ends(&rollback, 1);
    assert!(told.contains("compensation of `b` failed: the command exited with status 3"), "{told}");
    assert!(told.contains("`retake resume trip --skip-compensation b` leaves the effect as it is"), "{told}");
    assert_eq!(
        (place.journal(), place.stages()),
        (vec!["undo b room".into()], vec!["b failed".into(), "a open".into()])
    );
    let (told, _) = place.ends(&["resume", "trip", "--json"], 1);
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let [before @ .., "checkpoint", "checkpoint", "finished"] = &kinds[..] else { panic!("{kinds:?}") };
    assert_eq!(
        before,
        ["started", "checkpoint", "compensation_started", "node_progress", "compensation_finished"]
    );
    assert_eq!(events.last().unwrap()["uncompensated"], "b");
    assert_eq!(place.refused(&["resume", "trip", "--skip-compensation", "c"], 3)["code"], "not_found");
    place.journal();
    place.ends(&["resume", "trip", "--skip-compensation", "b"], 0);
    assert_eq!(place.journal(), ["undo a seat monday", "a", "b"]);
    assert_eq!(place.stages(), ["b skipped", "a done"]);
}

#[test]
fn a_kill_inside_a_counter_action_is_asked_about_and_nothing_is_compensated_twice() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("gate")).status().unwrap().success());
    let arguments = ["rollback", "trip@node:plan", "--compensate", "--yes", "--run", "--json"];
    let mut child = place.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(child.stdout.take().unwrap()).lines();
    // The counter-action speaks, and waits.
    let spoke =
        told.map(Result::unwrap).any(|line| line.contains("node_progress") && line.contains("waiting"));
    assert!(spoke);
    child.kill().unwrap();
    child.wait().unwrap();
    // The shell that nobody waits for any more goes on.
    drop(OpenOptions::new().read(true).write(true).open(place.path("gate")).unwrap());
    std::fs::remove_file(place.path("gate")).unwrap();
    assert_eq!(place.journal(), ["undo b room"]);

    let error = place.refused(&["resume", "trip"], 7);
    let key = place.compensations()[0]["idempotency_key"].as_str().unwrap().to_owned();
    assert_eq!(
        error["message"],
        format!(
            "the compensation of `b` (idempotency key {key}) may have happened before the execution stopped"
        )
    );
    assert_eq!(place.stages(), ["b started", "a open"]);
    place.ends(&["resume", "trip", "--again", "b"], 0);
    assert_eq!(place.journal(), ["undo b room", "undo a seat monday", "a", "b"]);
    assert_eq!(place.stages(), ["b done", "a done"]);
    assert!(place.lines("keys").iter().all(|line| line.starts_with(&key)), "one key for every attempt");
}
