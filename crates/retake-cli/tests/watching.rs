//! `watch`: what happens to runs as a script sees it, in one process and over several.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::place::Place;

/// A watch that goes on while the test does.
struct Watching {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watching {
    /// Starts a watch, and waits until it has begun.
    fn begin(place: &Place, arguments: &[&str]) -> Self {
        let mut command = place.command(&[&["--json", "watch"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut watching = Self { child, lines };
        assert_eq!(watching.next().unwrap()["event"], "watching");
        watching
    }

    fn next(&mut self) -> Option<Value> {
        self.lines.next().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }

    /// Returns the events up to the end, the exit code, and what was said on stderr.
    fn end(mut self) -> (Vec<Value>, Option<i32>, String) {
        let events = std::iter::from_fn(|| self.next()).collect();
        let output = self.child.wait_with_output().unwrap();
        (events, output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// Returns the events of a watch that ends by itself.
fn watched(place: &Place, arguments: &[&str]) -> (Vec<Value>, i32) {
    let done = place.retake(&[&["--json", "watch"], arguments].concat());
    let events = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (events, done.code)
}

fn points(events: &[Value]) -> Vec<(String, u64)> {
    let points = events.iter().filter(|event| event["event"] == "point");
    points.map(|point| (point["name"].as_str().unwrap().to_owned(), point["seq"].as_u64().unwrap())).collect()
}

#[test]
fn all_that_is_there_is_shown_in_order_and_every_position_is_gone_on_from() {
    let place = Place::with_letter("otter");
    place.start("heron");
    place.json(&["checkpoint", "otter", "--label", "good"]);
    let (events, code) = watched(&place, &["--once"]);
    assert_eq!((events[0]["event"].as_str(), code), (Some("watching"), 0));
    let expected = [("otter", 1..5), ("heron", 1..5), ("otter", 5..6)];
    let expected: Vec<_> =
        expected.into_iter().flat_map(|(name, seqs)| seqs.map(move |seq| (name.to_owned(), seq))).collect();
    assert_eq!(points(&events), expected);
    let second = &events[2];
    assert_eq!((second["cause"]["kind"].as_str(), &second["nodes"][0]), (Some("nodes"), &"plan".into()));
    assert_eq!(second["status"], "running");
    assert_eq!(events.last().unwrap()["label"], "good");
    for key in ["execution", "created_at", "id", "parent", "completed_node_count", "spent_usd"] {
        assert!(second.get(key).is_some(), "{key}: {second}");
    }
    for (index, event) in events.iter().enumerate() {
        let (rest, _) = watched(&place, &["--once", "--after", event["position"].as_str().unwrap()]);
        assert_eq!(rest[1..], events[index + 1..]);
    }
    let (of_one, _) = watched(&place, &["heron", "--once"]);
    assert_eq!(points(&of_one), expected[4..8]);

    let text = place.text(&["watch", "--once"]);
    let line = text.lines().nth(1).unwrap();
    let words: Vec<_> = line.split_whitespace().skip(1).collect();
    assert_eq!(words, ["otter", "@2", "nodes", "running", "plan"], "{line}");
    assert!(text.ends_with("[good]\n"), "{text}");
}

#[test]
fn a_watch_of_one_run_shows_what_another_process_does_and_ends_with_it() {
    let place = Place::with_letter("otter");
    place.start("heron");
    let mut watching = Watching::begin(&place, &["otter"]);
    let mut all = Watching::begin(&place, &[]);
    place.json(&["approve", "otter", "ok"]);
    let approved = watching.next().unwrap();
    assert_eq!((approved["seq"].as_u64(), &approved["cause"]["kind"]), (Some(5), &"approve".into()));
    place.resume("otter");
    let (events, code, stderr) = watching.end();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let finished = events.last().unwrap();
    assert_eq!((&finished["event"], &finished["status"]), (&"finished".into(), &"completed".into()));
    let head = place.head("otter");
    assert_eq!(finished["head"], head);
    assert_eq!(points(&events), (6..=head).map(|seq| ("otter".to_owned(), seq)).collect::<Vec<_>>());

    for seq in 5..=head {
        assert_eq!(all.next().unwrap()["seq"], seq);
    }
    let pid = all.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (events, code, stderr) = all.end();
    assert_eq!((events.len(), code), (0, Some(130)));
    let error: Value = serde_json::from_str(&stderr).unwrap();
    let hint = error["error"]["hint"].as_str().unwrap();
    let after = hint.strip_prefix("`retake watch --after ").unwrap().split('`').next().unwrap();
    place.json(&["checkpoint", "heron", "--label", "good"]);
    assert_eq!(points(&watched(&place, &["--once", "--after", after]).0), [("heron".to_owned(), 5)]);
}

#[test]
fn a_run_that_has_ended_otherwise_has_the_exit_code_that_it_ended_with() {
    let place = Place::with_letter("otter");
    place.json(&["cancel", "otter"]);
    let (events, code) = watched(&place, &["otter"]);
    assert_eq!((code, points(&events).len()), (1, 0));
    assert_eq!(events.last().unwrap()["status"], "cancelled");
    let done = place.retake(&["watch", "otter", "--from-start"]);
    assert_eq!((done.code, done.stdout.lines().count()), (1, 5));
    assert!(done.stderr.contains("otter was cancelled"), "{}", done.stderr);
}

#[test]
fn a_run_that_is_removed_ends_its_watch() {
    let place = Place::with_letter("otter");
    let watching = Watching::begin(&place, &["otter"]);
    place.json(&["rm", "otter", "--yes"]);
    let (events, code, stderr) = watching.end();
    assert_eq!((events.len(), code), (0, Some(3)));
    assert!(stderr.contains("the run was removed"), "{stderr}");
}

#[test]
fn a_position_of_another_store_is_refused_with_a_hint() {
    let (here, there) = (Place::with_letter("otter"), Place::with_letter("heron"));
    let (events, _) = watched(&here, &["--once"]);
    let position = events[2]["position"].as_str().unwrap();
    let done = there.retake(&["--json", "watch", "--after", position]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.contains("is not one of this store: another point stands there"), "{}", done.stderr);
    assert!(done.stderr.contains("--from-start"), "{}", done.stderr);
    let done = there.retake(&["watch", "--after", "yesterday"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("`yesterday` is not a position in a feed"), "{}", done.stderr);
    there.refused(&["watch", "otter"], 3, "no run is called `otter`");
}
