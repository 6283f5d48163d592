//! A secret that is used in every way is found nowhere: in no byte of any file, and in nothing that is printed.
//!
//! The same is done with a value that is no secret, which is found: so the search sees what it looks for.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use place::Place;

/// It holds what JSON, addresses and shells write otherwise.
const CANARY: &str = "kä\"n/r+y'5f1e9dQZ";

/// A part of the canary that stays as it is in JSON and in addresses.
const CORE: &str = "5f1e9dQZ";

/// The letters of the canary in base64 that do not depend on what stands around it, in each place it may have in a group
/// of three bytes; and in hexadecimal.
const ENCODED: [&str; 4] =
    ["a8OkIm4vcit5JzVmMWU5ZFF", "w6Qibi9yK3knNWYxZTlkUV", "DpCJuL3IreSc1ZjFlOWRR", "6bc3a4226e2f72"];

/// Says everything that it is told, as servers do that want to help.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap())));
    port
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).unwrap() == 0 {
            return;
        }
        head.push_str(&String::from_utf8_lossy(&line));
    }
    let named = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let length = named("content-length: ").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let key = named("x-key: ").or_else(|| named("authorization: Bearer ")).unwrap_or_default();
    let path = head.split(' ').nth(1).unwrap();
    let (status, content_type, said) = if path.starts_with("/v1/") {
        let (half, rest) = key.split_at(9);
        let pieces = ["the key is ", half, rest, " and so is ", half, rest];
        let event = |piece: &str| {
            let delta = serde_json::json!({"model": key, "choices": [{"delta": {"content": piece}}]});
            format!("data: {delta}\n\n")
        };
        let stop = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        ("200 OK", "text/event-stream", pieces.map(event).concat() + stop)
    } else {
        let said = serde_json::json!({"path": path, "key": key, "body": body, (&key): {"in": [&key]}});
        let status = if path.starts_with("/fail") { "400 Bad Request" } else { "200 OK" };
        (status, "application/json", said.to_string())
    };
    let length = said.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}");
    write!(stream, "{head}\r\nconnection: close\r\n\r\n{said}").unwrap();
}

/// Uses a value wherever a workflow can.
const WORKFLOW: &str = r#"
name: canary
inputs: { canary: { type: string, default: none } }
vars: { tone: dry }
checkpoints: { frequency: always, max: 200 }
max_parallel: 1
nodes:
  ask:
    http:
      url: "http://127.0.0.1:PORT/echo/${{ VALUE }}"
      method: POST
      query: { q: "${{ VALUE }}" }
      headers: { X-Key: "${{ VALUE }}" }
      json: { "key": "${{ VALUE }}" }
    into: asked
  refused: { http: { url: "http://127.0.0.1:PORT/fail", headers: { X-Key: "${{ VALUE }}" } }, on_error: continue }
  nowhere: { http: "http://127.0.0.1:1/${{ VALUE }}", retry: { max: 1, base: 1ms }, on_error: continue }
  no_address: { http: "${{ VALUE }}://a", on_error: continue }
  shell:
    run:
      command: printf '%s' "$K" ${{ VALUE | quote }}; printf 'a:%s' "$K" | base64; printf '%s' "$K" | od -An -tx1 | tr -d ' \n'; echo "$K" >&2
      env: { K: "${{ VALUE }}" }
  fails:
    run: { command: 'echo "no entry with $K" >&2; exit 3', env: { K: "${{ VALUE }}" } }
    retry: { max: 1, base: 1ms }
    on_error: continue
  program: { run: { command: "true", shell: "${{ VALUE }}" }, on_error: continue }
  model: { llm: { model: m, system: "${{ VALUE }}", prompt: "Say ${{ VALUE }}", api_key: "${{ VALUE }}" } }
  guarded: { set: { found: yes }, if: "VALUE != '' and nodes.shell.output != ''" }
  copy: { set: { copied: "${{ nodes.ask.output }} ${{ nodes.fails.error }} ${{ nodes.nowhere.error }}" } }
  ok: { approval: "Send ${{ vars.copied }}?" }
  send:
    run: { command: 'echo sent "$K"', env: { K: "${{ VALUE }}" } }
    needs: [ok]
    effect: external
    compensate: { run: { command: 'echo "undone $K" >&2; exit 1', env: { K: "${{ VALUE }}" } } }
  hang: { run: { command: 'echo "$K" >&2; echo ready >&2; sleep 1000', env: { K: "${{ VALUE }}" } }, needs: [send] }
"#;

/// Everything that was printed and written, by where.
struct Found {
    places: BTreeMap<String, Vec<u8>>,
}

impl Found {
    /// Returns the places in which the canary is, in any form.
    fn with_canary(&self) -> BTreeSet<&str> {
        let is_in = |bytes: &[u8], needle: &str| {
            let needle = needle.as_bytes();
            bytes.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
        };
        let holds = |bytes: &[u8]| is_in(bytes, CORE) || ENCODED.iter().any(|form| is_in(bytes, form));
        self.places.iter().filter(|(_, bytes)| holds(bytes)).map(|(place, _)| place.as_str()).collect()
    }
}

/// What the value is to the workflow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    SecretOfEnvironment,
    SecretOfFile,
    /// Nothing that anybody would mask.
    Input,
}

impl Value {
    fn give(self, command: &mut Command) {
        command.env("RUST_LOG", "trace").env_remove("RETAKE_SECRETS").env_remove("CANARY");
        match self {
            Self::SecretOfEnvironment => drop(command.env("CANARY", CANARY)),
            Self::SecretOfFile => drop(command.env("RETAKE_SECRETS", "secrets.env")),
            Self::Input => {}
        }
    }
}

/// Does everything with the value, and collects what comes of it.
fn everything(value: Value) -> Found {
    let place = Place::empty();
    let port = serve();
    let name = if value == Value::Input { "inputs.canary" } else { "secrets.CANARY" };
    place.write("canary.yaml", &WORKFLOW.replace("VALUE", name).replace("PORT", &port.to_string()));
    if value == Value::SecretOfFile {
        place.write("secrets.env", &format!("CANARY={CANARY}\n"));
    }
    let mut places = BTreeMap::new();
    let command = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        value.give(&mut command);
        command.env("RETAKE_ALLOW_NETWORK", "127.0.0.1");
        command.env("OPENAI_BASE_URL", format!("http://127.0.0.1:{port}/v1"));
        command
    };
    let mut done = |name: &str, arguments: &[&str]| {
        let output = command(arguments).output().unwrap();
        places.insert(format!("{name} stdout"), output.stdout);
        places.insert(format!("{name} stderr"), output.stderr);
        output.status.code().unwrap()
    };
    let input = format!("canary={CANARY}");
    let mut run = vec!["run", "canary.yaml", "--name", "bird"];
    if value == Value::Input {
        run.extend(["-i", &input]);
    }
    assert_eq!(done("run", &run), 5);
    let (set, output) = (format!("tone={CANARY}"), format!("ask={CANARY}"));
    let changed = |secret: i32| if value == Value::Input { 0 } else { secret };
    assert_eq!(done("rollback", &["rollback", "bird@node:ask", "--set", &set, "--yes"]), changed(2));
    if value == Value::Input {
        assert_eq!(done("undo", &["undo", "bird"]), 0);
    }
    assert_eq!(done("edit", &["edit", "bird", "--var", &set, "--dry-run"]), changed(2));
    assert_eq!(done("edited", &["edit", "bird", "--output", &output, "--yes", "--json"]), changed(2));
    assert_eq!(done("fork", &["fork", "bird@2", "--set", &set, "--name", "other", "--yes"]), changed(2));
    assert_eq!(done("checkpoint", &["checkpoint", "bird", "--label", LABEL]), 0);
    assert_eq!(done("resume", &["resume", "bird", "--json"]), 5);
    assert_eq!(done("with", &["approve", "bird", "ok", "--with", CANARY]), changed(2));
    if value != Value::Input {
        assert_eq!(done("approve", &["approve", "bird", "ok"]), 0);
    }

    // Killed in the middle of the last node.
    let mut killed = command(&["resume", "bird", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = Vec::new();
    for line in BufReader::new(killed.stdout.take().unwrap()).lines() {
        let line = line.unwrap() + "\n";
        events.extend_from_slice(line.as_bytes());
        if line.contains("ready") {
            break;
        }
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    // What it had open when it died.
    for entry in std::fs::read_dir(place.path().join(".retake")).unwrap() {
        let entry = entry.unwrap();
        let name = format!("killed {}", entry.file_name().to_str().unwrap());
        places.insert(name, std::fs::read(entry.path()).unwrap());
    }
    places.insert("killed stdout".to_owned(), events);

    let mut done = |name: &str, arguments: &[&str]| {
        for json in [false, true] {
            let output =
                command(&[arguments, if json { &["--json"] } else { &[] }].concat()).output().unwrap();
            let name = if json { format!("{name} --json") } else { name.to_owned() };
            places.insert(format!("{name} stdout"), output.stdout);
            places.insert(format!("{name} stderr"), output.stderr);
        }
    };
    done("log", &["log", "bird"]);
    done("show", &["show", "bird"]);
    for node in ["ask", "refused", "nowhere", "shell", "fails", "program", "model", "copy", "ok", "send"] {
        done(&format!("show {node}"), &["show", "bird", node]);
        done(&format!("explain {node}"), &["explain", "bird", node]);
    }
    done("op log", &["op", "log", "bird"]);
    done("diff", &["diff", "bird@1", "bird"]);
    done("plan", &["rollback", "bird@2", "--dry-run", "--again"]);
    done("compensate", &["rollback", "bird@node:ok", "--compensate", "--yes", "--run"]);
    done("compensated", &["show", "bird"]);
    done("ls", &["ls"]);
    done("doctor", &["doctor"]);
    done("validate", &["validate", "canary.yaml"]);

    let mut open = vec![place.path().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if !path.ends_with("secrets.env") {
                places.insert(format!("file {}", path.display()), std::fs::read(&path).unwrap());
            }
        }
    }
    Found { places }
}

/// A label that a person may give.
const LABEL: &str = "before";

#[test]
fn a_secret_of_the_environment_is_found_nowhere() {
    assert_eq!(everything(Value::SecretOfEnvironment).with_canary(), BTreeSet::new());
}

#[test]
fn a_secret_of_a_file_is_found_nowhere() {
    assert_eq!(everything(Value::SecretOfFile).with_canary(), BTreeSet::new());
}

#[test]
fn what_is_no_secret_is_found_where_the_secret_is_looked_for() {
    let found = everything(Value::Input);
    let places = found.with_canary();
    // Which of the two has it is a matter of when one is written into the other.
    assert!(places.contains("killed store.db") || places.contains("killed store.db-wal"), "{places:?}");
    assert!(
        places.iter().any(|place| place.starts_with("file ") && place.ends_with("store.db")),
        "{places:?}"
    );
    for place in [
        "run stderr",
        "killed stdout",
        "resume stdout",
        "compensate stderr",
        "compensate --json stdout",
        "rollback stdout",
        "undo stdout",
        "edit stdout",
        "edited stdout",
        "fork stdout",
        "op log stdout",
        "op log --json stdout",
        "diff stdout",
        "diff --json stdout",
        "plan stdout",
        "plan --json stdout",
        "show stdout",
        "show --json stdout",
        "explain fails stdout",
        "explain model --json stdout",
        "explain nowhere stdout",
        "explain program stdout",
        "explain refused stdout",
        "explain shell stdout",
        "show ask stdout",
        "show copy stdout",
        "show fails --json stdout",
        "show model stdout",
        "show nowhere stdout",
        "show ok stdout",
        "show program stdout",
        "show refused stdout",
        "show send stdout",
        "show shell stdout",
    ] {
        assert!(places.contains(place), "{place} is not among {places:?}");
    }
}
