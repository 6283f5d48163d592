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
