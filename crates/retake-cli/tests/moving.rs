//! Runs that move from one store to another in a file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use serde_json::{Value, json};

use crate::place::Place;

/// A value that must be found nowhere.
const CANARY: &str = "canary-b7d1f0";

fn imported(from: &Place, to: &Place, run: &str) {
    let file = from.text(&["export", run]);
    to.write("run.jsonl", &file);
    to.json(&["import", "run.jsonl"]);
}

/// Returns what a store says of a run, without what each store decides.
fn told(place: &Place, run: &str) -> Value {
    let mut log = place.json(&["log", run]);
    for point in log.as_array_mut().unwrap() {
        point.as_object_mut().unwrap().retain(|key, _| key != "size_bytes");
    }
    let show = place.json(&["show", run]);
    json!({"log": log, "show": show, "op": place.json(&["op", "log", run])})
}

#[test]
fn a_run_goes_on_in_another_store_where_it_stopped_in_its_own() {
    let (here, there) = (Place::with_letter("otter"), Place::empty());
    here.json(&["checkpoint", "otter", "--label", "good"]);
    here.json(&["rollback", "otter@node:draft", "--set", "tone=warm", "--yes"]);
    here.json(&["undo", "otter"]);
    imported(&here, &there, "otter");
    assert_eq!(told(&here, "otter"), told(&there, "otter"));

    there.json(&["redo", "otter"]);
    there.retake(&["resume", "otter"]);
    there.json(&["approve", "otter", "ok"]);
    assert_eq!(there.retake(&["resume", "otter"]).code, 0);
    assert_eq!(there.json(&["show", "otter"])["variables"]["text"], "otters, warm");
    assert_eq!(there.json(&["doctor"])["sound"], true);
    assert_eq!(here.head("otter"), 7);
}

#[test]
fn an_export_to_a_file_says_what_it_wrote_and_replaces_what_was_there() {
    let place = Place::with_letter("otter");
    place.write("otter.jsonl", "something else");
    let done = place.json(&["export", "otter", "-o", "otter.jsonl"]);
    let file = std::fs::read_to_string(place.path().join("otter.jsonl")).unwrap();
    assert_eq!(done["bytes"], file.len());
    assert_eq!((&done["head"], &done["checkpoints"], &done["operations"]), (&json!(4), &json!(4), &json!(0)));
    assert_eq!(file, place.text(&["export", "otter"]));
    assert_eq!(file, place.text(&["--json", "export", "otter"]));
    for line in file.lines() {
        assert!(line.starts_with('{') && serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let beside: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
    place.refused(&["export", "nobody"], 3, "no run is called `nobody`");
    place.refused(&["export", "otter", "-o", "no/where.jsonl"], 6, "cannot write no/where.jsonl");
}

#[test]
fn what_is_taken_is_refused_with_a_hint_and_another_name_helps() {
    let place = Place::with_letter("otter");
    place.text(&["export", "otter", "-o", "otter.jsonl"]);
    let error = place.refused(&["import", "otter.jsonl"], 4, "is taken");
    assert!(error["hint"].as_str().unwrap().starts_with("it is here already: retake log "), "{error}");
    let other = Place::with_letter("otter");
    std::fs::copy(place.path().join("otter.jsonl"), other.path().join("otter.jsonl")).unwrap();
    let error = other.refused(&["import", "otter.jsonl"], 4, "the name `otter` is taken");
    assert_eq!(error["hint"], "choose another with `--name`");
    assert_eq!(other.json(&["import", "otter.jsonl", "--name", "heron"])["name"], "heron");
    assert_eq!(other.json(&["ls"]).as_array().unwrap().len(), 2);
    other.refused(&["import", "otter.jsonl", "--name", "a b"], 2, "cannot stand in a name");
}

#[test]
fn a_refused_file_leaves_no_trace() {
    let (here, there) = (Place::with_letter("otter"), Place::empty());
    let file = here.text(&["export", "otter"]);
    there.write("cut.jsonl", &file[..file.len() / 2]);
    there.write("flipped.jsonl", &file.replacen("otters", "utters", 1));
    there.write("newer.jsonl", &file.replacen("\"version\":1", "\"version\":9", 1));
    there.write("other.jsonl", "hello\n");
    there.refused(&["import", "cut.jsonl"], 2, "cut.jsonl: the file is cut short in line");
    there.refused(&["import", "flipped.jsonl"], 2, "are not those that were written");
    there.refused(&["import", "newer.jsonl"], 2, "reads up to 1: use a newer retake");
    there.refused(&["import", "other.jsonl"], 2, "this is no export file of retake");
    there.refused(&["import", "missing.jsonl"], 3, "cannot read missing.jsonl");
    assert!(!there.path().join(".retake").exists());
}

/// Returns the file with these lines, sealed anew, as somebody would who wants more than a copy.
fn forged(file: &str, change: impl Fn(&mut Value)) -> String {
    let mut lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.pop();
    lines.iter_mut().for_each(change);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    format!("{text}{}\n", json!({"end": "history", "lines": lines.len(), "blake3": hash}))
}

#[test]
fn a_definition_that_is_not_its_workflows_and_a_name_that_is_none_are_refused() {
    let (here, there) = (Place::with_letter("otter"), Place::empty());
    let file = here.text(&["export", "otter"]);
    let other = forged(&file, |line| {
        if line.get("definition").is_some() {
            line["definition"]["json"]["nodes"]["draft"] = json!({"run": {"command": "rm -rf /"}});
        }
    });
    there.write("other.jsonl", &other);
    there.refused(&["import", "other.jsonl"], 2, "is not that workflow's");
    let odd = forged(&file, |line| {
        if line.get("execution").is_some() {
            line["execution"]["name"] = json!("\u{1b}[2J@1");
        }
    });
    there.write("odd.jsonl", &odd);
    let error = there.refused(&["import", "odd.jsonl"], 2, "the run in the file is called `\\u{1b}[2J@1`");
    assert_eq!(error["hint"], "choose another with `--name`");
    assert!(!there.path().join(".retake").exists());
    there.json(&["import", "odd.jsonl", "--name", "otter"]);
    assert_eq!(there.head("otter"), 4);
}

#[test]
fn an_export_holds_no_secret() {
    let place = Place::empty();
    place.write(
        "leak.yaml",
        "name: leak\ncheckpoints: always\nnodes:\n  \
         say: { run: 'printf %s \"${{ secrets.TOKEN }}\"', into: said }\n  \
         json: { run: 'printf \"{\\\"a\\\": \\\"%s\\\"}\" \"${{ secrets.TOKEN }}\"' }\n",
    );
    let run = place.command(&["run", "leak.yaml", "--name", "leak"]).env("TOKEN", CANARY).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let file = place.text(&["export", "leak"]);
    assert!(!file.contains(CANARY), "{file}");
    assert!(file.contains("secrets.TOKEN"), "the workflow still says which secret it takes");
    assert!(file.contains("said"));
}

/// Copies runs to a store beside, and returns the document and the exit code.
fn copied(place: &Place, arguments: &[&str]) -> (Value, i32) {
    let done = place.retake(&[&["--json", "copy", "--to", "other.db"], arguments].concat());
    (serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}", done.stderr)), done.code)
}

/// Returns the lines of an exported run, without what each store decides: how many bytes a point takes, and so the hash.
fn exported(place: &Place, arguments: &[&str]) -> Vec<Value> {
    let text = place.text(&[&["export"], arguments].concat());
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.pop().unwrap()["end"], "history");
    lines.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("size_bytes")));
    lines
}

fn outcomes(document: &Value) -> Vec<(&str, &str)> {
    let runs = document["runs"].as_array().unwrap().iter();
    runs.map(|run| (run["name"].as_str().unwrap(), run["outcome"].as_str().unwrap())).collect()
}

#[test]
fn copied_runs_are_the_same_in_the_other_store_and_are_not_copied_twice() {
    let place = Place::with_letter("otter");
    place.json(&["rollback", "otter@node:draft", "--set", "tone=warm", "--yes"]);
    place.json(&["fork", "otter", "--name", "heron", "--yes"]);
    let (looked, code) = copied(&place, &["--dry-run"]);
    assert_eq!((outcomes(&looked), code), (vec![("otter", "copied"), ("heron", "copied")], 0));
    assert_eq!((&looked["dry_run"], place.path().join("other.db").exists()), (&json!(true), false));

    let (done, code) = copied(&place, &[]);
    assert_eq!((&done["runs"], &done["copied"], code), (&looked["runs"], &json!(2), 0));
    let otter = &done["runs"][0];
    assert_eq!(
        (&otter["head"], &otter["checkpoints"], &otter["operations"]),
        (&json!(5), &json!(5), &json!(1))
    );
    assert_eq!(otter["checksum"].as_str().unwrap().len(), 64);
    for run in ["otter", "heron"] {
        assert_eq!(exported(&place, &[run]), exported(&place, &[run, "--store", "other.db"]));
    }
    assert_eq!(place.json(&["--store", "other.db", "doctor"])["sound"], true);

    place.start("swan");
    let (again, code) = copied(&place, &[]);
    assert_eq!(outcomes(&again), [("otter", "same"), ("heron", "same"), ("swan", "copied")]);
    assert_eq!((&again["same"], &again["copied"], code), (&json!(2), &json!(1), 0));
    let text = place.text(&["copy", "--to", "sqlite:third.db", "swan"]);
    assert!(text.starts_with("[1/1] copied    swan "), "{text}");
    assert!(text.contains("@4, 4 checkpoints, 0 operations  "), "{text}");
    assert!(text.ends_with("\n1 copied\n"), "{text}");
}

#[test]
fn what_another_store_has_is_not_touched_and_the_other_runs_are_copied() {
    let place = Place::with_letter("otter");
    copied(&place, &[]);
    place.start("heron");
    place.json(&["checkpoint", "otter", "--label", "good"]);
    let other = Place::with_letter("heron");
    other.text(&["export", "heron", "-o", "heron.jsonl"]);
    let file = other.path().join("heron.jsonl");
    place.json(&["--store", "other.db", "import", file.to_str().unwrap()]);
    place.start("swan");
    let before = place.text(&["--store", "other.db", "export", "otter"]);
    let (done, code) = copied(&place, &[]);
    assert_eq!(outcomes(&done), [("otter", "refused"), ("heron", "refused"), ("swan", "copied")]);
    assert_eq!((code, &done["refused"]), (4, &json!(2)));
    let why = |index: usize| done["runs"][index]["why"].as_str().unwrap();
    assert!(why(0).starts_with("it stands at @4 there: remove it there"), "{}", why(0));
    assert!(why(1).starts_with("a run of that name is there"), "{}", why(1));
    assert_eq!(place.text(&["--store", "other.db", "export", "otter"]), before);
    // The way back: what went on here is not overwritten by what it was.
    let back = place.retake(&["--json", "copy", "--from", "other.db", "--to", ".retake/store.db", "otter"]);
    assert_eq!(back.code, 0, "{}", back.stderr);
    assert_eq!(outcomes(&serde_json::from_str(&back.stdout).unwrap()), [("otter", "ahead")]);
    place.refused(&["copy", "--to", "other.db", "nobody"], 3, "no run is called `nobody`");
    place.refused(&["copy", "--to", "memory:"], 2, "a store in memory ends with this command");
    place.refused(&["copy", "--from", "nowhere.db", "--to", "other.db"], 3, "no store at nowhere.db");
}

#[test]
fn a_run_that_is_being_advanced_is_copied_as_it_stands() {
    let place = Place::with_letter("otter");
    let engine = place.engine();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lease = runtime.block_on(async {
        let run = retake::engine::address::resolve_run(&**engine.store(), "otter").await.unwrap();
        engine.store().lease(run.id, std::time::Duration::from_secs(60)).await.unwrap()
    });
    let (done, code) = copied(&place, &[]);
    assert_eq!((outcomes(&done), code), (vec![("otter", "copied")], 0));
    assert_eq!(done["runs"][0]["why"], "it is being advanced: this is its history up to @4");
    assert!(done["runs"][0]["running_in"].is_string());
    assert_eq!(place.json(&["--store", "other.db", "ls"])[0]["running_in"], Value::Null);
    runtime.block_on(engine.store().release(&lease)).unwrap();
}

#[test]
fn a_copy_that_was_killed_goes_on_when_it_is_started_again() {
    const RUNS: usize = 8;
    let place = Place::with_letter("run-0");
    for run in 1..RUNS {
        place.start(&format!("run-{run}"));
    }
    let mut command = place.command(&["copy", "--to", "other.db"]);
    let mut killed = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(killed.stdout.take().unwrap()));
    // Those that it has spoken of are there; the next one is, or is not, or was being written.
    assert_eq!(lines.take(3).count(), 3);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let (done, code) = copied(&place, &[]);
    let (same, copied) = (done["same"].as_u64().unwrap(), done["copied"].as_u64().unwrap());
    assert!(same >= 3, "{done}");
    assert_eq!((same + copied, code), (RUNS as u64, 0));
    assert_eq!(place.json(&["--store", "other.db", "doctor"])["sound"], true);
    for run in 0..RUNS {
        let run = format!("run-{run}");
        assert_eq!(exported(&place, &[&run]), exported(&place, &[&run, "--store", "other.db"]));
    }
}

#[test]
fn a_store_is_encrypted_or_opened_by_the_keys_of_its_side() {
    let place = Place::with_letter("otter");
    for key in ["one.key", "two.key"] {
        let text = place.text(&["key", "new"]);
        place.write(key, &text);
    }
    let sealed = ["copy", "--to", "sealed.db", "--to-key", "file:one.key"];
    assert_eq!(place.json(&sealed)["copied"], 1);
    place.refused(&["--store", "sealed.db", "ls"], 6, "cannot be opened with the keys given");
    let both = ["--from-key", "file:one.key", "--to-key", "file:two.key"];
    let other = [&["copy", "--from", "sealed.db", "--to", "other.db"][..], &both].concat();
    assert_eq!(place.json(&other)["copied"], 1);
    let open = ["copy", "--from", "other.db", "--to", "open.db", "--from-key", "file:two.key"];
    place.refused(&open, 2, "open.db is not: all values will be there in plain text");
    assert!(!place.path().join("open.db").exists());
    let open = [&open[..], &["--yes"]].concat();
    assert_eq!(place.json(&open)["copied"], 1);
    let said = exported(&place, &["otter"]);
    assert_eq!(exported(&place, &["otter", "--store", "open.db"]), said);
    assert_eq!(exported(&place, &["otter", "--store", "other.db", "--key", "file:two.key"]), said);
    let error = place.refused(&["copy", "--from", "sealed.db", "--to", "open.db"], 6, "keys given");
    assert!(!error.to_string().contains("one.key"), "{error}");
}
