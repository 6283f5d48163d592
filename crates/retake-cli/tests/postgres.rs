//! A store on a PostgreSQL server: the same commands, and nobody is told the password.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use serde_json::{Value, json};

use crate::place::{Done, Place};

const PASSWORD: &str = "hunter2";

const STEPS: &str = r#"
name: steps
vars: { tone: dry }
checkpoints: { frequency: always, max: 100 }
max_parallel: 1
nodes:
  plan: { set: { topic: otters } }
  ok: { approval: "Go on with ${{ vars.topic }}?" }
  draft: { set: { text: "${{ vars.topic }}, ${{ vars.tone }}" }, needs: [ok] }
"#;

/// How often a test looks for what becomes visible in a moment.
const LOOKS_MAX: usize = 300;

/// A place whose commands use a schema of its own on the server.
struct Server {
    place: Place,
    url: String,
}

impl Server {
    fn new(name: &str) -> Self {
        let server = std::env::var("RETAKE_TEST_POSTGRES").expect(
            "RETAKE_TEST_POSTGRES names a PostgreSQL server for tests: `cargo xtask postgres -- cargo test ...` starts one",
        );
        let joint = if server.contains('?') { '&' } else { '?' };
        let place = Place::empty();
        place.write("steps.yaml", STEPS);
        Self { place, url: format!("{server}{joint}schema=cli_{name}_{}", std::process::id()) }
    }

    fn with_steps(name: &str) -> Self {
        let server = Self::new(name);
        assert_eq!(server.retake(&["run", "steps.yaml", "--name", "otter"]).code, 5);
        server
    }

    /// Returns the URL without its password.
    fn shown(&self) -> String {
        let (login, rest) = self.url.split_once('@').unwrap();
        format!("postgres://{}@{rest}", login["postgres://".len()..].split(':').next().unwrap())
    }

    fn retake(&self, arguments: &[&str]) -> Done {
        self.place.retake(&[&["--store", &self.url], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.place.json(&[&["--store", &self.url], arguments].concat())
    }

    fn refused(&self, arguments: &[&str], code: i32, message: &str) -> Value {
        self.place.refused(&[&["--store", &self.url], arguments].concat(), code, message)
    }
}

#[test]
fn a_run_waits_is_approved_goes_on_and_is_taken_back() {
    let server = Server::with_steps("run");
    assert_eq!(server.json(&["ls"])[0]["name"], "otter");
    server.json(&["approve", "otter", "ok"]);
    assert_eq!(server.retake(&["resume", "otter"]).code, 0);
    assert_eq!(server.json(&["show", "otter"])["variables"]["text"], "otters, dry");
    server.json(&["rollback", "otter@node:plan", "--set", "tone=warm", "--yes"]);
    assert_eq!(server.retake(&["resume", "otter"]).code, 5);
    server.json(&["approve", "otter", "ok"]);
    assert_eq!(server.retake(&["resume", "otter"]).code, 0);
    assert_eq!(server.json(&["show", "otter"])["variables"]["text"], "otters, warm");
    assert_eq!(server.json(&["doctor"])["sound"], true);
}

#[test]
fn a_schema_without_a_store_is_no_store_until_a_run_makes_it() {
    let server = Server::new("absent");
    for command in [&["ls"][..], &["worker", "--drain"], &["ls"]] {
        let error = server.refused(command, 3, "no store at postgres://");
        assert_eq!(error["hint"], "`retake run FILE` makes one");
    }
    assert_eq!(server.retake(&["run", "steps.yaml"]).code, 5);
    assert_eq!(server.json(&["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_run_is_copied_from_the_server_to_a_file_and_to_the_server_again() {
    let (from, to) = (Server::with_steps("copied"), Server::new("copied_again"));
    let told = |server: &Server| {
        let log = server.json(&["log", "otter"]);
        let ids: Vec<Value> = log.as_array().unwrap().iter().map(|point| point["id"].clone()).collect();
        json!([ids, server.json(&["show", "otter"]), server.json(&["op", "log", "otter"])])
    };
    from.json(&["copy", "--to", "file.db"]);
    let file = from.place.path().join("file.db").display().to_string();
    let copy = ["copy", "--from", &file, "--to", &to.url];
    to.place.json(&[&copy[..], &["--dry-run"]].concat());
    to.refused(&["ls"], 3, "no store at");
    to.place.json(&copy);
    assert_eq!(told(&from), told(&to));
    assert_eq!(to.json(&["doctor"])["sound"], true);
}

#[test]
fn a_mistyped_url_of_a_server_is_no_file_and_is_not_repeated() {
    let place = Place::with_letter("heron");
    for store in ["postgres:/u:SEKRET@127.0.0.1/x", "postgresql:x:SEKRET@y", "host=h password=SEKRET"] {
        let done = place.retake(&["--store", store, "ls"]);
        assert_eq!(done.code, 2, "{store}: {}", done.stderr);
        assert!(!format!("{}{}", done.stdout, done.stderr).contains("SEKRET"), "{}", done.stderr);
    }
}

#[test]
fn nobody_is_told_the_password() {
    let server = Server::with_steps("password");
    let password = server.url.split_once('@').unwrap().0.rsplit(':').next().unwrap().to_owned();
    assert!(password.len() > 8, "the server of the tests wants a password");
    let mut said = String::new();
    for arguments in [
        &["checkpoint", "otter", "--label", "good"][..],
        &["rollback", "otter@1", "--yes"],
        &["undo", "otter"],
        &["op", "log", "otter"],
        &["--json", "op", "log", "otter"],
        &["show", "otter"],
        &["resume", "otter"],
        &["export", "otter"],
        &["doctor"],
        &["doctor", "--fix"],
        &["copy", "--to", "file.db"],
        &["watch", "--once"],
        &["show", "nobody"],
        &["--key", "env:HOME", "ls"],
        &["--help"],
    ] {
        let done = server.retake(arguments);
        said = format!("{said}\n{} {}", done.stdout, done.stderr);
    }
    let help = server.place.command(&["--help"]).env("RETAKE_STORE", &server.url).output().unwrap();
    said.push_str(&String::from_utf8(help.stdout).unwrap());
    assert!(!said.contains(&password), "{said}");
    // What is to be typed next names the same store, and so does the log.
    assert!(said.contains(&format!("--store '{}'", server.shown())), "{said}");
    assert!(said.contains(&format!("--store {} rollback", server.shown())), "{said}");
}

#[test]
fn a_url_that_cannot_be_used_says_why_and_not_what() {
    let place = Place::empty();
    for (rest, code, why) in [
        ("ann:hunter2@db:port/work", 2, "port"),
        ("ann:a/hunter2@db/work", 2, "`%2F`"),
        ("ann:hunter2@db/work?sslmode=maybe", 2, "`sslmode` is one of"),
        ("ann:hunter2@db/work?color=red", 2, "parameter that is not known, `color`"),
        ("ann:hunter2@db/work?schema=pg_mine", 2, "schema"),
        ("ann:hunter2@127.0.0.1:1/work", 6, "connecting failed"),
    ] {
        let error = place.refused(&["--store", &format!("postgres://{rest}"), "ls"], code, why);
        assert!(!error.to_string().contains(PASSWORD), "{error}");
    }
}

#[test]
fn a_login_that_is_refused_ends_with_the_code_of_the_store() {
    let server = Server::new("login");
    let (login, rest) = server.url.split_once('@').unwrap();
    let (user, _) = login.rsplit_once(':').unwrap();
    let error = server.place.refused(&["--store", &format!("{user}:{PASSWORD}@{rest}"), "ls"], 6, "28P01");
    assert!(!error.to_string().contains(PASSWORD), "{error}");
}

#[test]
fn the_password_may_come_from_the_surroundings() {
    let server = Server::with_steps("surroundings");
    let password = server.url.split_once('@').unwrap().0.rsplit(':').next().unwrap().to_owned();
    let mut command = server.place.command(&["--json", "ls"]);
    let done = command.env("RETAKE_STORE", server.shown()).env("PGPASSWORD", password).output().unwrap();
    let runs: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(runs[0]["name"], "otter");
}

#[test]
fn what_is_of_the_file_store_only_is_refused() {
    let server = Server::with_steps("refused");
    let error = server.refused(&["doctor", "--fix"], 2, "cannot be repaired from outside");
    assert!(error["hint"].as_str().unwrap().contains("restore the database from a backup"), "{error}");
    server.place.write("key", &"0f".repeat(32));
    let error = server.refused(&["--key", "file:key", "ls"], 2, "takes no key");
    assert!(error["hint"].as_str().unwrap().starts_with("leave `--key` out; "), "{error}");
    let mut command = server.place.command(&["--store", &server.url, "ls"]);
    let done = command.env("RETAKE_KEY", "file:key").output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains("unset RETAKE_KEY for this store"), "{said}");
    server.refused(&["key", "rotate", "--to", "file:key"], 2, "has no key");
    assert_eq!(server.json(&["doctor"])["encrypted"], json!(false));
}

/// Returns the lines of an exported run, without what each store decides: how many bytes a point takes, which of two points
/// with the same state another builds on, and so the hash.
fn exported(place: &Place, arguments: &[&str]) -> Vec<Value> {
    let text = place.text(&[&["export", "otter"], arguments].concat());
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.pop().unwrap()["end"], "history");
    for line in &mut lines {
        line.as_object_mut().unwrap().retain(|key, _| !["size_bytes", "base"].contains(&key.as_str()));
    }
    lines
}

#[test]
fn a_run_that_is_copied_to_a_server_and_back_says_the_same() {
    let server = Server::new("copy");
    let place = Place::with_sent_letter("otter");
    place.json(&["checkpoint", "otter", "--label", "good"]);
    let rollback = ["rollback", "otter@node:draft", "--set", "tone=warm", "--skip-effects", "--yes"];
    place.json(&rollback);
    place.json(&["undo", "otter"]);
    let there = ["copy", "--to", &server.url];
    assert_eq!(place.json(&[&there[..], &["--dry-run"]].concat())["copied"], 1);
    server.refused(&["ls"], 3, "no store");
    let copied = place.json(&there);
    assert_eq!(copied["copied"], 1);
    assert_eq!(place.json(&there)["same"], 1);
    let back = place.json(&["copy", "--from", &server.url, "--to", "back.db"]);
    assert_eq!((&back["copied"], &back["runs"][0]["checksum"]), (&json!(1), &copied["runs"][0]["checksum"]));
    let said = exported(&place, &[]);
    assert_eq!(exported(&place, &["--store", &server.url]), said);
    assert_eq!(exported(&place, &["--store", "back.db"]), said);
    assert_eq!(server.json(&["doctor"])["sound"], true);
    // Straight from the server's row to the file's and back nothing changes at all.
    let file = |store: &str| place.text(&["export", "otter", "--store", store]);
    assert_eq!(place.json(&["copy", "--from", "back.db", "--to", "again.db"])["copied"], 1);
    assert_eq!(file("back.db"), file("again.db"));
}

#[test]
fn what_is_encrypted_here_is_not_in_plain_text_on_a_server_unasked() {
    let server = Server::new("sealed");
    server.place.write("key", &"0f".repeat(32));
    assert_eq!(server.place.retake(&["--key", "file:key", "run", "steps.yaml", "--name", "otter"]).code, 5);
    let copy = ["--key", "file:key", "copy", "--to", &server.url];
    let error = server.place.refused(&copy, 2, "all values will be there in plain text");
    assert_eq!(error["hint"], "`--yes` goes ahead without asking");
    let dry = server.place.retake(&[&copy[..], &["--dry-run"]].concat());
    assert!(dry.stderr.contains("all values will be there in plain text"), "{}", dry.stderr);
    server.refused(&["ls"], 3, "no store");
    // The key is the file's, also on the way back.
    assert_eq!(server.place.json(&[&copy[..], &["--yes"]].concat())["copied"], 1);
    let back = ["--key", "file:key", "copy", "--from", &server.url, "--to", "back.db"];
    assert_eq!(server.place.json(&back)["copied"], 1);
    server.place.refused(&["--store", "back.db", "ls"], 6, "it is encrypted");
}

#[test]
fn a_watch_goes_on_from_every_position_on_a_server() {
    let server = Server::with_steps("watch");
    // What others write on the same server at the same time holds back what is shown.
    let watched = |arguments: &[&str], is_all: &dyn Fn(&[Value]) -> bool| -> (Vec<Value>, i32) {
        for _ in 0..LOOKS_MAX {
            let done = server.retake(&[&["--json", "watch", "--once"], arguments].concat());
            let events: Vec<Value> =
                done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if is_all(&events) {
                return (events, done.code);
            }
        }
        panic!("something holds the points back");
    };
    let (events, code) = watched(&[], &|events| events.len() == 4);
    assert_eq!((events[0]["event"].as_str(), code), (Some("watching"), 0));
    assert_eq!(events[1..].iter().map(|event| &event["seq"]).collect::<Vec<_>>(), [1, 2, 3]);
    for (index, event) in events.iter().enumerate() {
        let after = ["otter", "--after", event["position"].as_str().unwrap()];
        let (rest, _) = watched(&after, &|rest| rest.len() == events.len() - index);
        assert_eq!(rest[1..], events[index + 1..]);
    }
    server.json(&["approve", "otter", "ok"]);
    assert_eq!(server.retake(&["resume", "otter"]).code, 0);
    let after = ["otter", "--after", events[3]["position"].as_str().unwrap()];
    let (rest, code) = watched(&after, &|rest| rest.last().unwrap()["status"] == "completed");
    assert_eq!((&rest[1]["seq"], code), (&json!(4), 0));
    let here = Place::with_letter("heron");
    here.refused(
        &["watch", "--after", events[1]["position"].as_str().unwrap()],
        2,
        "one of a PostgreSQL store",
    );
}
