//! `run` and `resume` as a user meets them: exit codes, output, signals, and stores that fail.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory of its own, with the default store in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn with(workflow: &str) -> Self {
        let place = Self::new();
        place.write("w.yaml", workflow);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("retake").unwrap();
        command.args(arguments).current_dir(&self.0).env_remove("RETAKE_STORE").stdin(Stdio::null());
        command
    }

    fn retake(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Makes a pipe: whoever writes to it waits for who reads, and the other way round.
    fn pipe(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn events(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn last_event(output: &Output) -> Value {
    events(output).pop().unwrap_or_else(|| panic!("no event: {}", stderr(output)))
}

/// Checks the exit code, and that nothing panicked.
#[track_caller]
fn expect(output: &Output, expected: i32) {
    assert_eq!(code(output), expected, "stdout: {}\nstderr: {}", stdout(output), stderr(output));
    assert!(!stderr(output).contains("panicked"), "{}", stderr(output));
}

fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Waits until a node writes to a pipe.
fn wait_for(pipe: &Path) -> String {
    fs::read_to_string(pipe).unwrap()
}

/// Lets go of a node that reads a line from a pipe, as long as what is returned is kept.
fn release(pipe: &Path) -> fs::File {
    // Opened for reading, too, so that this never waits for a node that has ended.
    let mut pipe = fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap();
    pipe.write_all(b"go\n").unwrap();
    pipe
}

const TWO: &str = "
name: two
nodes:
  a: { run: echo a >> journal }
  b: { run: echo b >> journal; test -e allowed, needs: a }
";

#[test]
fn a_run_that_completes_exits_with_0_and_prints_its_summary_alone_on_stdout() {
    let place = Place::with(TWO);
    place.write("allowed", "");
    let output = place.retake(&["run", "w.yaml", "--name", "x"]);
    expect(&output, 0);
    assert!(stdout(&output).starts_with("x completed: 2 nodes run, 0 reused, @"), "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
    let told = stderr(&output);
    assert!(
        told.contains("x: 2 nodes") && told.contains("a: done in ") && told.contains("b: done in "),
        "{told}"
    );
    assert!(!told.contains('\u{1b}'), "colours off a terminal: {told:?}");
}

#[test]
fn after_a_failure_resume_runs_what_failed_and_nothing_else() {
    let place = Place::with(TWO);
    let failed = place.retake(&["run", "w.yaml", "--name", "x"]);
    expect(&failed, 1);
    assert!(
        stderr(&failed).contains("error: node `b` failed: the command exited with status 1"),
        "{}",
        stderr(&failed)
    );
    assert!(stderr(&failed).contains("`retake resume x`"), "{}", stderr(&failed));
    place.write("allowed", "");
    let resumed = place.retake(&["resume", "x", "--json"]);
    expect(&resumed, 0);
    assert_eq!(place.read("journal"), "a\nb\nb\n");
    let finished = last_event(&resumed);
    assert_eq!((&finished["nodes_run"], &finished["nodes_reused"]), (&json!(1), &json!(1)));
    let again = place.retake(&["resume", "x"]);
    expect(&again, 0);
    assert_eq!(place.read("journal"), "a\nb\nb\n");
    assert!(stdout(&again).starts_with("x completed: 0 nodes run, 2 reused"), "{}", stdout(&again));
}

#[test]
fn the_stream_of_a_run_ends_with_how_it_finished() {
    let place = Place::with(TWO);
    let output = place.retake(&["run", "w.yaml", "--name", "x", "--json"]);
    expect(&output, 1);
    let events = events(&output);
    assert_eq!(events[0]["event"], "started");
    assert!(events.iter().any(|event| event["event"] == "node_finished" && event["node"] == "a"));
    let finished = events.last().unwrap();
    assert_eq!(finished["event"], "finished");
    assert_eq!(finished["execution"], events[0]["execution"]);
    assert_eq!(finished["name"], "x");
    assert_eq!(finished["status"], "failed");
    assert!(finished["head"].as_u64().unwrap() >= 2);
    assert_eq!(finished["nodes_run"], 2);
    assert_eq!(finished["nodes_reused"], 0);
    assert_eq!(finished["cost_usd"], Value::Null);
    assert_eq!(finished["failures"][0]["node"], "b");
    let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(error["error"]["code"], "run_failed");
}

#[test]
fn a_run_that_waits_for_approval_exits_with_5_and_says_how_to_go_on() {
    let place = Place::with("name: w\nnodes:\n  ok: { approval: Publish? }\n");
    let output = place.retake(&["run", "w.yaml", "--name", "x"]);
    expect(&output, 5);
    assert!(stderr(&output).contains("ok: waits for approval: Publish?"), "{}", stderr(&output));
    assert!(stderr(&output).contains("`retake approve x ok`, then `retake resume x`"), "{}", stderr(&output));
    let resumed = place.retake(&["resume", "x", "--json"]);
    expect(&resumed, 5);
    let finished = last_event(&resumed);
    assert_eq!((&finished["status"], &finished["waiting"]), (&json!("paused"), &json!(["ok"])));
}

#[test]
fn what_is_not_there_exits_with_3() {
    let place = Place::with(TWO);
    let output = place.retake(&["resume", "nobody", "--json"]);
    expect(&output, 3);
    let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(error["error"]["code"], "not_found");
    assert!(!place.path(".retake").exists(), "asking for a run made a store");
    expect(&place.retake(&["run", "missing.yaml"]), 3);
    place.retake(&["run", "w.yaml", "--name", "x"]);
    let output = place.retake(&["resume", "nobody"]);
    expect(&output, 3);
    assert!(stderr(&output).contains("no run is called `nobody`"), "{}", stderr(&output));
}

#[test]
fn an_id_can_be_shortened_as_long_as_it_is_one_run_s() {
    let place = Place::with(TWO);
    let first = last_event(&place.retake(&["run", "w.yaml", "--name", "x", "--json"]));
    place.retake(&["run", "w.yaml", "--name", "y"]);
    let id = first["execution"].as_str().unwrap();
    let resumed = place.retake(&["resume", id, "--json"]);
    assert_eq!(last_event(&resumed)["name"], "x");
    let ambiguous = place.retake(&["resume", &id[..2]]);
    expect(&ambiguous, 2);
    assert!(stderr(&ambiguous).contains("`y`, `x`"), "{}", stderr(&ambiguous));
}

#[test]
fn of_two_that_resume_at_once_one_wins_and_the_other_exits_with_4() {
    let place = Place::with(
        "
name: held
nodes:
  a: { run: \"echo a >> journal; test -e allowed && echo here > here && read held < held\" }
",
    );
    let (here, held) = (place.pipe("here"), place.pipe("held"));
    expect(&place.retake(&["run", "w.yaml", "--name", "x"]), 1);
    place.write("allowed", "");
    let winner = place.spawn(&["resume", "x", "--json"]);
    wait_for(&here);
    let loser = place.retake(&["resume", "x"]);
    expect(&loser, 4);
    let _released = release(&held);
    let won = winner.wait_with_output().unwrap();
    expect(&won, 0);
    assert_eq!(place.read("journal"), "a\na\n");
    let taken = place.retake(&["run", "w.yaml", "--name", "x"]);
    expect(&taken, 4);
    assert!(stderr(&taken).contains("the name `x` is taken"), "{}", stderr(&taken));
}

const HELD: &str = "
name: held
nodes:
  a: { run: \"echo a >> journal; echo here > here; read held < held\" }
  b: { run: echo b >> journal, needs: a }
";

#[test]
fn ctrl_c_lets_the_nodes_that_run_finish_and_resume_goes_on_after_them() {
    let place = Place::with(HELD);
    let (here, held) = (place.pipe("here"), place.pipe("held"));
    let run = place.spawn(&["run", "w.yaml", "--name", "x"]);
    wait_for(&here);
    signal(&run, "INT");
    let told = {
        // What is said about the signal shows that it has arrived.
        let mut run = run;
        let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
        let note = lines.find_map(|line| line.ok().filter(|line| line.contains("Ctrl-C"))).unwrap();
        let _released = release(&held);
        assert_eq!(run.wait().unwrap().code(), Some(130));
        note
    };
    assert_eq!(told, "finishing 1 node; press Ctrl-C again to stop now");
    let resumed = place.retake(&["resume", "x", "--json"]);
    expect(&resumed, 0);
    assert_eq!(place.read("journal"), "a\nb\n");
    assert_eq!(last_event(&resumed)["nodes_reused"], 1);
}

#[test]
fn a_second_ctrl_c_or_a_signal_to_end_stops_at_once_and_resume_runs_the_node_again() {
    for signals in [&["INT", "INT"][..], &["TERM"], &["HUP"]] {
        let place = Place::with(HELD);
        let (here, held) = (place.pipe("here"), place.pipe("held"));
        let mut run = place.spawn(&["run", "w.yaml", "--name", "x"]);
        wait_for(&here);
        let mut told = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
        for (name, is_last) in signals.iter().zip([signals.len() == 1, true]) {
            signal(&run, name);
            if !is_last {
                // Two that come before the first has been heard are one.
                told.find(|line| line.contains("press Ctrl-C again")).unwrap();
            }
        }
        assert_eq!(run.wait().unwrap().code(), Some(130), "{signals:?}");
        assert!(told.any(|line| line.starts_with("interrupted: x stopped at @")), "{signals:?}");
        place.write("w.yaml", "changed: the run keeps its own\n");
        let resumed = place.spawn(&["resume", "x", "--json"]);
        wait_for(&here);
        let _released = release(&held);
        expect(&resumed.wait_with_output().unwrap(), 0);
        assert_eq!(place.read("journal"), "a\na\nb\n", "{signals:?}");
    }
}

#[test]
fn a_run_that_was_told_to_outlive_its_terminal_does() {
    let place = Place::with(HELD);
    let (here, held) = (place.pipe("here"), place.pipe("held"));
    let retake = Command::cargo_bin("retake").unwrap();
    let run = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" run w.yaml"])
        .arg(retake.get_program())
        .current_dir(&place.0)
        .env_remove("RETAKE_STORE")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&here);
    signal(&run, "HUP");
    let _released = release(&held);
    expect(&run.wait_with_output().unwrap(), 0);
    assert_eq!(place.read("journal"), "a\nb\n");
}

#[test]
fn a_node_that_may_have_taken_effect_is_not_run_again_unless_somebody_says_so() {
    let place = Place::with(
        "
name: effect
nodes:
  send: { run: \"echo sent >> journal; echo here > here; read held < held\", effect: external }
",
    );
    let (here, held) = (place.pipe("here"), place.pipe("held"));
    let run = place.spawn(&["run", "w.yaml", "--name", "x"]);
    wait_for(&here);
    signal(&run, "TERM");
    let stopped = run.wait_with_output().unwrap();
    expect(&stopped, 130);
    assert!(stderr(&stopped).contains("interrupted: x stopped at @"), "{}", stderr(&stopped));
    let refused = place.retake(&["resume", "x"]);
    expect(&refused, 7);
    assert!(stderr(&refused).contains("--again send"), "{}", stderr(&refused));
    let again = place.spawn(&["resume", "x", "--again", "send"]);
    wait_for(&here);
    let _released = release(&held);
    expect(&again.wait_with_output().unwrap(), 0);
    assert_eq!(place.read("journal"), "sent\nsent\n");
}

const INPUTS: &str = "
name: inputs
inputs:
  text: { type: string, default: none }
  count: { type: integer, default: 0 }
  list: { type: list, default: [] }
  anything: { default: null }
nodes:
  all: { set: { all: '${{ [inputs.text, inputs.count, inputs.list, inputs.anything] }}' } }
  told: { run: 'printf %s ${{ vars.all | tojson | quote }} > told' }
";

#[test]
fn inputs_are_read_by_their_types() {
    let place = Place::with(INPUTS);
    place.write("long.txt", "from a\nfile");
    place.write("inputs.json", r#"{"text": "lost", "list": [1, "b"]}"#);
    let cases: &[(&[&str], Value)] = &[
        (&["-i", "text=5", "-i", "count=5"], json!(["5", 5, [], null])),
        (&["-i", "text=@long.txt"], json!(["from a\nfile", 0, [], null])),
        (&["-i", "text=@@otter"], json!(["@otter", 0, [], null])),
        (&["-i", "text=a=b", "-i", "anything={\"a\":1}"], json!(["a=b", 0, [], {"a": 1}])),
        (&["--inputs", "inputs.json", "-i", "text=won"], json!(["won", 0, [1, "b"], null])),
        (&["-i", "count=18446744073709551615"], json!(["none", u64::MAX, [], null])),
        (&["-i", "text=98765432109876543210"], json!(["98765432109876543210", 0, [], null])),
    ];
    for (arguments, told) in cases {
        let output = place.retake(&[&["run", "w.yaml"], *arguments].concat());
        expect(&output, 0);
        assert_eq!(serde_json::from_str::<Value>(&place.read("told")).unwrap(), *told, "{arguments:?}");
    }
}

#[test]
fn inputs_that_do_not_fit_exit_with_2_and_start_nothing() {
    let place = Place::with(INPUTS);
    place.write("list.json", "[1]");
    place.write("inexact.json", r#"{"anything": 98765432109876543210}"#);
    // A hole, which takes no room on the disk.
    std::fs::File::create(place.path("large")).unwrap().set_len((64 << 20) + 1).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["-i", "text=@large"], "it has more than 67108864 bytes, which is the most that is read"),
        (&["--inputs", "large"], "it has more than 67108864 bytes, which is the most that is read"),
        (&["-i", "count=five"], "input `count`: it must be an integer"),
        (&["-i", "count=98765432109876543210"], "98765432109876543210 would not be kept exactly"),
        (&["-i", "anything=98765432109876543210"], "98765432109876543210 would not be kept exactly"),
        (&["-i", "list=a,b"], "write it as JSON"),
        (&["-i", "coutn=1"], "did you mean `count`"),
        (&["-i", "count"], "`-i count` gives no value"),
        (&["-i", "count=1", "-i", "count=2"], "given twice"),
        (&["--inputs", "list.json"], "not a JSON object"),
        (&["--inputs", "inexact.json"], "98765432109876543210 would not be kept exactly"),
        (&["--name", "a@b"], "`@` cannot stand in a name"),
        (&["--nmae", "a"], "--nmae"),
    ];
    for (arguments, why) in cases {
        let output = place.retake(&[&["run", "w.yaml"], *arguments].concat());
        expect(&output, 2);
        assert!(stderr(&output).contains(why), "{arguments:?}: {}", stderr(&output));
        let output = place.retake(&[&["run", "w.yaml", "--json"], *arguments].concat());
        expect(&output, 2);
        let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
        assert_eq!(error["error"]["code"], "usage", "{arguments:?}");
    }
    expect(&place.retake(&["run", "w.yaml", "-i", "text=@missing"]), 3);
    let listed = place.retake(&["ls", "--json"]);
    assert!(
        !listed.status.success() || stdout(&listed) == "[]\n",
        "something was started: {}",
        stdout(&listed)
    );
}

#[test]
fn a_store_that_a_process_died_making_is_no_store_yet() {
    let place = Place::with("name: w\nnodes:\n  a: { set: { x: 1 } }\n");
    place.write("store.db", b"");
    for arguments in [&["doctor"][..], &["ls"], &["show", "run"]] {
        let output = place.retake(&[&["--store", "store.db"], arguments].concat());
        expect(&output, 3);
        assert!(stderr(&output).contains("no store at store.db"), "{}", stderr(&output));
    }
    assert_eq!(fs::metadata(place.path("store.db")).unwrap().len(), 0);
    expect(&place.retake(&["--store", "store.db", "run", "w.yaml"]), 0);
    expect(&place.retake(&["--store", "store.db", "doctor"]), 0);
}

#[test]
fn a_node_that_prints_without_end_is_ended_and_fails_with_a_clear_message() {
    let place = Place::with("name: w\nnodes:\n  a: { run: cat /dev/zero }\n");
    let output = place.retake(&["run", "w.yaml", "--name", "x"]);
    expect(&output, 1);
    assert!(stderr(&output).contains("bytes to stdout and was ended"), "{}", stderr(&output));
    assert!(stderr(&output).len() < 5_000);
}

#[test]
fn a_store_that_cannot_be_used_exits_with_6_and_is_left_as_it_is() {
    let place = Place::with(TWO);
    fs::create_dir(place.path("directory")).unwrap();
    place.write("text.db", "this is no database, and stays what it is\n".repeat(10));
    for store in ["directory", "/proc/retake/store.db", "w.yaml/store.db", "text.db", "/dev/null/x.db"] {
        let output = place.retake(&["--store", store, "run", "w.yaml"]);
        expect(&output, 6);
        assert!(stderr(&output).contains(store), "{store}: {}", stderr(&output));
        let output = place.retake(&["--store", store, "run", "w.yaml", "--json"]);
        let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
        assert_eq!(error["error"]["code"], "store");
    }
    assert_eq!(place.read("w.yaml"), TWO);
    assert!(place.read("text.db").starts_with("this is no database, and stays"));
    assert!(!place.path("journal").exists(), "a node ran");
    expect(&place.retake(&["--store", "mysql://x", "run", "w.yaml"]), 2);
    expect(&place.retake(&["--store", "", "run", "w.yaml"]), 2);
}

#[test]
fn a_full_disk_exits_with_6_and_loses_nothing_that_was_recorded() {
    let count = 40;
    let mut workflow =
        "name: large\ncheckpoints: { frequency: always, compress: false }\nmax_parallel: 1\nnodes:\n"
            .to_owned();
    for node in 0..count {
        workflow.push_str(&format!(
            "  n{node}: {{ run: 'echo n{node} >> journal; head -c 15000 /dev/urandom | base64' }}\n"
        ));
    }
    // Each limit ends the run somewhere else; blocks have 512 or 1,024 bytes, as the shell likes.
    for blocks in [8, 150, 400, 700] {
        let place = Place::with(&workflow);
        let retake = Command::cargo_bin("retake").unwrap();
        let script = format!("ulimit -f {blocks}; exec \"$0\" run w.yaml --name x --json");
        let full = Command::new("sh")
            .args(["-c", &script])
            .arg(retake.get_program())
            .current_dir(&place.0)
            .env_remove("RETAKE_STORE")
            .output()
            .unwrap();
        expect(&full, 6);
        let error: Value = serde_json::from_str(stderr(&full).lines().last().unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "store", "{blocks}");
        let recorded = events(&full);
        let recorded = recorded.iter().filter(|event| event["event"] == "checkpoint").count();
        let resumed = place.retake(&["resume", "x", "--json"]);
        if code(&resumed) == 3 {
            assert!(!place.path("journal").exists(), "{blocks}: a node ran in a run that is not there");
            continue;
        }
        expect(&resumed, 0);
        let finished = last_event(&resumed);
        let reused = finished["nodes_reused"].as_u64().unwrap();
        assert!(reused >= recorded as u64, "{blocks}: {recorded} were recorded, {reused} reused");
        assert_eq!(finished["nodes_run"].as_u64().unwrap() + reused, count);
        let ran = place.read("journal").lines().count() as u64;
        assert!(ran <= count + 1, "{blocks}: {ran} runs of {count} nodes");
    }
}

#[test]
fn a_reader_that_leaves_does_not_stop_a_run_and_output_that_is_lost_is_an_error() {
    let place = Place::with(HELD);
    let (here, held) = (place.pipe("here"), place.pipe("held"));
    let mut run = place.spawn(&["run", "w.yaml", "--json"]);
    wait_for(&here);
    drop(run.stdout.take());
    drop(run.stderr.take());
    let _released = release(&held);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert_eq!(place.read("journal"), "a\nb\n");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let lost = place.command(&["schema"]).stdout(full).output().unwrap();
    expect(&lost, 6);
}

#[test]
fn the_schema_and_the_completions_are_data() {
    let place = Place::new();
    let schema: Value = serde_json::from_slice(&place.retake(&["schema"]).stdout).unwrap();
    assert_eq!(schema["title"], "Retake workflow");
    for shell in ["bash", "zsh", "fish"] {
        let output = place.retake(&["completions", shell]);
        expect(&output, 0);
        assert!(stdout(&output).contains("validate"), "{shell}");
    }
    expect(&place.retake(&["completions", "tcsh"]), 2);
}

#[test]
fn a_hint_names_the_store_that_the_run_is_in() {
    let place = Place::with(TWO);
    let output = place.retake(&["--store", "other.db", "run", "w.yaml", "--name", "x"]);
    expect(&output, 1);
    assert!(stderr(&output).contains("`retake --store other.db resume x`"), "{}", stderr(&output));
}
