//! `retake diff`, as a person and as a script use it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use assert_cmd::Command;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const LETTER: &str = r#"
name: letter
inputs: { who: { type: string, default: Ann } }
vars: { tone: dry, list: [1, 2, 3], large: 18446744073709551615, odd: { "a/b~": [true] } }
checkpoints: { frequency: always, max: 100 }
max_parallel: 1
nodes:
  plan: { set: { topic: otters } }
  draft: { set: { text: "${{ vars.topic }}, ${{ vars.tone }}, ${{ inputs.who }}" } }
  send: { run: "printf 'to %s\\n\\n\\033[31mred\\n' ${{ inputs.who }}", needs: [draft] }
"#;

const TWICE_CHANGED: &str = r#"otter@5 to otter@6

STATUS
  - completed
  + paused

VARIABLES
  notes
  @@ -1,3 +1,3 @@
  -one
  +1
   two\u{1b}[2J
   three
  - text = "otters, dry, Ann"
  - tone = "dry"
  + tone = "\u001bc"

NODES
  - draft success
  + draft pending
  - draft/output = {"text":"otters, dry, Ann"}
  - send success
  + send pending
  - send/output = "to Ann\n\n\u001b[31mred"
"#;

/// A directory with a store in it, with the run `otter` at @4.
struct Place(TempDir);

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        place.run("otter", LETTER, &[]);
        place
    }

    /// Returns the same, with a run of another workflow.
    fn with_other_workflow() -> Self {
        let place = Self::new();
        let other = LETTER.replace("topic: otters", "topic: beavers").replace("send:", "mail:");
        place.run("beaver", &other, &["-i", "who=Bob"]);
        place
    }

    fn run(&self, name: &str, workflow: &str, arguments: &[&str]) {
        std::fs::write(self.0.path().join("letter.yaml"), workflow).unwrap();
        self.json(&[&["run", "letter.yaml", "--name", name], arguments].concat());
    }

    fn retake(&self, arguments: &[&str]) -> Done {
        let mut command = Command::cargo_bin("retake").unwrap();
        let output =
            command.current_dir(self.0.path()).env_remove("RETAKE_STORE").args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Done { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Returns the last document that a command prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let done = self.retake(&[&["--json"], arguments].concat());
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        serde_json::from_str(done.stdout.lines().last().unwrap()).unwrap()
    }

    fn diff(&self, from: &str, to: &str) -> Value {
        self.json(&["diff", from, to])
    }

    fn text(&self, arguments: &[&str]) -> String {
        let done = self.retake(&[&["diff"], arguments].concat());
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{arguments:?}");
        done.stdout
    }

    fn refused(&self, arguments: &[&str], code: i32, message: &str) -> Value {
        let done = self.retake(&[&["--json", "diff"], arguments].concat());
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{arguments:?}: {}", done.stderr);
        let error = serde_json::from_str::<Value>(&done.stderr).unwrap()["error"].take();
        assert!(error["message"].as_str().unwrap().contains(message), "{arguments:?}: {error}");
        error
    }

    /// Returns what a patch is about, of what `show` gives.
    fn shown(&self, address: &str) -> Value {
        let shown = self.json(&["show", address]);
        let picked = |from: &Value, keys: &[&str]| -> Value {
            Value::Object(keys.iter().map(|key| ((*key).to_owned(), from[key].clone())).collect())
        };
        let mut document = picked(&shown, &["status", "error", "inputs", "variables"]);
        let nodes = shown["nodes"].as_object().unwrap().iter();
        let nodes: Map<String, Value> =
            nodes.map(|(name, node)| (name.clone(), picked(node, &["status", "output", "error"]))).collect();
        document["nodes"] = Value::Object(nodes);
        document
    }
}

#[test]
fn a_patch_turns_what_show_gives_of_one_point_into_that_of_the_other() {
    let place = Place::with_other_workflow();
    place.json(&[
        "rollback",
        "otter@2",
        "--yes",
        "--set",
        "list=[0,1,3,{\"n\":18446744073709551614}]",
        "--set",
        "odd={\"a/b~\":[false]}",
    ]);
    for (from, to) in [
        ("otter@1", "otter@4"),
        ("otter@4", "otter@1"),
        ("otter@4", "otter@5"),
        ("otter@5", "otter@4"),
        ("otter@4", "beaver"),
        ("beaver@2", "otter"),
        ("otter", "otter"),
    ] {
        let patch: json_patch::Patch = serde_json::from_value(place.diff(from, to)["patch"].take()).unwrap();
        let mut document = place.shown(from);
        json_patch::patch(&mut document, &patch).unwrap();
        assert_eq!(document, place.shown(to), "{from} {to}");
    }
}

#[test]
fn a_document_tells_what_differs_by_path() {
    let place = Place::new();
    place.json(&["rollback", "otter@3", "--yes", "--set", "list=[1,2,3,4]", "--set", "odd={\"a/b~\":[]}"]);
    let diff = place.diff("otter@3", "otter");
    assert_eq!((&diff["from"]["name"], &diff["from"]["seq"]), (&json!("otter"), &json!(3)));
    assert_eq!((&diff["to"]["status"], &diff["to"]["seq"]), (&json!("paused"), &json!(5)));
    assert_eq!(
        diff["variables"],
        json!({
            "list": [{"path": "", "change": "appended_items", "start": 3, "items": [4]}],
            "odd": [{"path": "/a~1b~0/0", "change": "removed", "from": true}],
        })
    );
    assert_eq!(
        diff["patch"],
        json!([
            {"op": "replace", "path": "/status", "value": "paused"},
            {"op": "replace", "path": "/error", "value": null},
            {"op": "add", "path": "/variables/list/-", "value": 4},
            {"op": "remove", "path": "/variables/odd/a~1b~0/0"},
        ])
    );
    let nothing = json!({});
    assert_eq!((&diff["nodes"], &diff["inputs"], &diff["definition"]), (&nothing, &nothing, &Value::Null));
    assert_eq!(diff["spend"], json!({"from": null, "to": null}));
    let nodes = place.diff("otter@1", "otter@2")["nodes"].take();
    assert_eq!(nodes["plan"]["from"]["status"], "pending");
    assert_eq!(nodes["plan"]["to"]["status"], "success");
    assert_eq!(nodes["plan"]["output"], json!([{"path": "", "change": "added", "to": {"topic": "otters"}}]));
}

#[test]
fn a_person_sees_signs_and_lines_and_nothing_steers_the_terminal() {
    let place = Place::with_other_workflow();
    let notes = "one\ntwo\u{1b}[2J\nthree\n";
    place.json(&["rollback", "otter", "--yes", "--set", &format!("notes={notes}")]);
    let other = notes.replace("one", "1");
    place.json(&["rollback", "otter", "--yes", "--set", &format!("notes={other}"), "--set", "tone=\u{1b}c"]);
    assert_eq!(place.text(&["otter@-1", "otter"]), TWICE_CHANGED);
    let text = place.text(&["otter@4", "beaver"]);
    for line in [
        "INPUTS\n  - who = \"Ann\"\n  + who = \"Bob\"\n",
        "  - plan/output/topic = \"otters\"\n  + plan/output/topic = \"beavers\"\n",
        "  + mail success\n  + mail/output = \"to Bob",
        "  - send success\n",
        "DEFINITION\n",
        "  - nodes/plan/kind/set/topic = \"otters\"\n  + nodes/plan/kind/set/topic = \"beavers\"\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    let coloured = Command::cargo_bin("retake")
        .unwrap()
        .current_dir(place.0.path())
        .env("CLICOLOR_FORCE", "1")
        .args(["diff", "otter@4", "beaver", "--vars", "topic"])
        .output()
        .unwrap();
    let coloured = String::from_utf8(coloured.stdout).unwrap();
    assert!(coloured.contains("\u{1b}[31m- topic = \"otters\""), "{coloured}");
    assert!(coloured.contains("\u{1b}[32m+ topic = \"beavers\""), "{coloured}");
}

#[test]
fn an_exit_code_tells_a_script_whether_something_differs_where_it_asks_for_one() {
    let place = Place::new();
    for (arguments, code) in [
        (&["diff", "otter@1", "otter"][..], 0),
        (&["diff", "otter@1", "otter", "--exit-code"], 1),
        (&["--json", "diff", "otter@1", "otter", "--exit-code"], 1),
        (&["diff", "otter@4", "otter", "--exit-code"], 0),
        (&["diff", "otter@1", "otter", "--exit-code", "--vars", "tone,list"], 0),
        (&["diff", "otter@1", "otter", "--exit-code", "--vars", "tone,text"], 1),
        (&["diff", "otter@1", "otter@2", "--exit-code", "--nodes", "draft"], 0),
        (&["diff", "otter@1", "otter@3", "--exit-code", "--nodes", "draft"], 1),
    ] {
        assert_eq!(place.retake(arguments).code, code, "{arguments:?}");
    }
    assert_eq!(place.text(&["otter@4", "otter"]), "otter@4 and otter@4 do not differ\n");
    assert_eq!(place.diff("otter@4", "otter")["differs"], false);
}

#[test]
fn only_what_is_named_is_compared_and_what_is_not_there_is_refused() {
    let place = Place::new();
    let diff = place.json(&["diff", "otter@1", "otter", "--vars", "text", "--nodes", "plan,send"]);
    let keys = |part: &str| diff[part].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        (keys("variables"), keys("nodes")),
        (vec!["text".to_owned()], vec!["plan".into(), "send".into()])
    );
    assert_eq!(diff["status"], Value::Null);
    let unknown = place.refused(&["otter", "oter"], 3, "no run is called `oter`");
    assert_eq!(unknown["hint"], "did you mean `otter`? `retake ls` lists the runs");
    place.refused(&["otter@9", "otter"], 3, "its head is @4");
    place.refused(&["otter", "otter@"], 2, "nothing stands behind the `@`");
    place.refused(&["otter"], 2, "required arguments were not provided");
    place.refused(&["otter@1", "otter", "--vars", "text,txet"], 3, "neither point has a variable `txet`");
    place.refused(&["otter@1", "otter", "--nodes", "nothing"], 3, "neither point has a node `nothing`");
}
