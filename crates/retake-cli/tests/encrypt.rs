//! Encrypted stores on the command line: `--key`, and `retake key`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::process::Command;

use place::{Done, Place};

const WORKFLOW: &str = r#"
name: letter-4711
checkpoints: { frequency: always }
inputs: { to: { type: string } }
nodes:
  write: { set: { text: "dear ${{ inputs.to }}" } }
  send: { run: "echo sent to ${{ inputs.to }}", needs: [write] }
"#;

/// Returns a place with a workflow, and two keys in files.
fn place_with_keys() -> Place {
    let place = Place::empty();
    place.write("workflow.yaml", WORKFLOW);
    for name in ["first.key", "second.key"] {
        place.write(name, &place.text(&["key", "new"]));
    }
    place
}

fn run(mut command: Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn start(place: &Place, name: &str, key: &[&str]) -> Done {
    place.retake(&[key, &["run", "workflow.yaml", "--name", name, "-i", "to=Otter-4711"]].concat())
}

#[test]
fn a_run_in_an_encrypted_store_leaves_nothing_to_read_and_one_without_a_key_does() {
    let place = place_with_keys();
    let sealed = start(&place, "secret-4711", &["--key", "file:first.key"]);
    assert_eq!(sealed.code, 0, "{}", sealed.stderr);
    let bare = start(&place, "secret-4711", &["--store", "bare.db"]);
    assert_eq!(bare.code, 0, "{}", bare.stderr);
    let canaries = |file: &str| {
        let bytes = std::fs::read(place.path().join(file)).unwrap();
        bytes.windows(4).filter(|part| part == b"4711").count()
    };
    assert_eq!(canaries(".retake/store.db"), 0);
    assert!(canaries("bare.db") > 5, "{}", canaries("bare.db"));
    let shown = place.json(&["--key", "file:first.key", "show", "secret-4711"]);
    assert_eq!(shown["variables"]["text"], "dear Otter-4711");
    let report = place.json(&["--key", "file:first.key", "doctor"]);
    assert_eq!((&report["sound"], &report["encrypted"]), (&true.into(), &true.into()));
}

#[test]
fn an_encrypted_store_is_refused_without_its_key_and_with_another() {
    let place = place_with_keys();
    start(&place, "otter", &["--key", "file:first.key"]);
    let error = place.refused(&["ls"], 6, "it is encrypted: give the master key");
    assert_eq!(
        error["hint"],
        "`--key` or RETAKE_KEY names the place of the key; without either there is none"
    );
    place.refused(&["--key", "file:second.key", "ls"], 6, "needs the master key");
    place.refused(
        &["--store", "bare.db", "--key", "file:nothing.key", "run", "workflow.yaml"],
        3,
        "cannot read the key",
    );
    assert!(!place.path().join("bare.db").exists());
}

#[test]
fn a_key_comes_from_the_environment_a_file_or_a_command_and_is_never_repeated() {
    let place = place_with_keys();
    let key = place.text(&["key", "new"]);
    let mut command =
        place.command(&["--key", "env:OUR_KEY", "run", "workflow.yaml", "-i", "to=you", "--name", "otter"]);
    command.env("OUR_KEY", key.trim());
    assert_eq!(run(command).code, 0);
    place.write("our.key", &key);
    for source in ["file:our.key", "command:cat our.key", "file:first.key,file:our.key"] {
        assert_eq!(place.json(&["--key", source, "ls"])[0]["name"], "otter", "{source}");
        let mut command = place.command(&["ls"]);
        command.env("RETAKE_KEY", source);
        assert_eq!(run(command).code, 0, "{source}");
    }
    for source in [key.trim(), "env:HOME", "file:workflow.yaml", "command:echo wrong-4711", "command:exit 3"]
    {
        let error = place.refused(&["--key", source, "ls"], 2, "");
        let text = error.to_string();
        assert!(!text.contains(key.trim()) && !text.contains("wrong-4711"), "{text}");
    }
}

#[test]
fn a_rotated_store_opens_with_the_new_key_only() {
    let place = place_with_keys();
    start(&place, "otter", &["--key", "file:first.key"]);
    place.json(&["--key", "file:first.key", "key", "rotate", "--to", "file:second.key"]);
    place.refused(&["--key", "file:first.key", "ls"], 6, "needs the master key");
    start(&place, "seal", &["--key", "file:second.key"]);
    let runs = place.json(&["--key", "file:second.key", "ls"]);
    assert_eq!((&runs[0]["name"], &runs[1]["name"]), (&"seal".into(), &"otter".into()));
    let rotate = ["--store", "bare.db", "key", "rotate", "--to", "file:second.key"];
    place.refused(&rotate, 3, "no store at bare.db");
    start(&place, "bare", &["--store", "bare.db"]);
    place.refused(&rotate, 6, "it is not encrypted");
}
