//! What values say stays what they say: no expression, no command, no path.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::place::Place;

/// What would be something else if anything looked at it a second time.
const HOSTILE: [&str; 8] = [
    "${{ secrets.KEY }}",
    "${{ 7 * 7 }}",
    "{{ 7 * 7 }}",
    "{% raw %}x{% endraw %}",
    "{# none #}$${{",
    "'; touch marked; echo '",
    "$(touch marked)`touch marked`",
    "\"; touch marked #\n&& touch marked",
];

/// A value goes into everything, and from there into everything else.
const EVERYWHERE: &str = r#"
name: everywhere
inputs: { given: string, same: { type: string, default: "x" } }
vars: { first: "${{ inputs.given }}" }
checkpoints: { frequency: always, max: 100 }
max_parallel: 1
nodes:
  said: { run: { command: 'printf %s "$GIVEN"', env: { GIVEN: "${{ vars.first }}" } }, into: said }
  word: { run: "printf %s ${{ nodes.said.output | quote }}", into: word }
  copy: { set: { copy: "${{ vars.said }}", list: ["${{ vars.word }}", { k: "<${{ nodes.word.output }}>" }] } }
  again: { set: { again: "${{ vars.copy }}", inner: "${{ vars.list[0] }}" } }
  held: { set: { held: yes }, if: "vars.again == inputs.given and vars.inner == inputs.given" }
  fails: { run: "printf %s ${{ vars.again | quote }} >&2; exit 1", on_error: continue }
  told: { set: { told: "${{ nodes.fails.error }}" } }
  ok: { approval: "${{ vars.again }}" }
  send:
    run: printf %s ${{ nodes.ok.output.with | quote }}
    effect: external
    compensate: { run: "printf %s ${{ nodes.send.output | quote }} > undone" }
"#;

#[test]
fn what_a_value_says_is_never_evaluated_or_run() {
    for hostile in HOSTILE {
        let place = Place::empty();
        place.write("w.yaml", EVERYWHERE);
        let given = format!("given={hostile}");
        let run = place
            .command(&["run", "w.yaml", "--name", "it", "-i", &given])
            .env("KEY", "key-of-somebody")
            .output();
        assert_eq!(run.unwrap().status.code(), Some(5), "{hostile}");
        let with = json!(hostile).to_string();
        place.json(&["approve", "it", "ok", "--with", &with]);
        place.json(&["checkpoint", "it", "--label", "before"]);
        assert_eq!(place.retake(&["resume", "it"]).code, 0, "{hostile}");
        let state = place.json(&["show", "it"]);
        let variables = &state["variables"];
        for name in ["first", "said", "word", "copy", "again", "inner"] {
            assert_eq!(variables[name], hostile, "{name}");
        }
        assert_eq!(variables["list"], json!([hostile, {"k": format!("<{hostile}>")}]));
        assert_eq!(variables["held"], "yes", "{hostile}");
        let told = variables["told"].as_str().unwrap();
        assert!(told.ends_with(&format!("its stderr ends with:\n{hostile}")), "{told}");
        assert_eq!(state["nodes"]["send"]["output"], hostile);
        assert_eq!(place.retake(&["rollback", "it@before", "--compensate", "--yes"]).code, 0);
        place.retake(&["resume", "it"]);
        assert_eq!(std::fs::read_to_string(place.path().join("undone")).unwrap(), hostile);
        assert!(!place.path().join("marked").exists(), "{hostile}");
    }
}

#[test]
fn a_value_that_is_not_quoted_is_code_for_the_shell_and_is_warned_of() {
    let place = Place::empty();
    place.write(
        "w.yaml",
        "name: w\ninputs: { given: string }\nnodes:\n  \
         a: { run: 'echo ${{ inputs.given }}' }\n  b: { run: 'echo ${{ inputs.given | quote }} ${{ 1 + 1 | int }}' }\n",
    );
    let warning = "node `a` puts `inputs.given` into its command, where the shell runs what it says: write \
                   `${{ inputs.given | quote }}` outside of quotes, or use `env`";
    let document = place.json(&["validate", "w.yaml"]);
    let about_a: Vec<&Value> = document["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|warning| warning.as_str().unwrap().contains("`a`"))
        .collect();
    assert_eq!(about_a, [warning]);
    let done = place.retake(&["run", "w.yaml", "-i", "given=$(touch marked)"]);
    assert!(done.stderr.contains(warning), "{}", done.stderr);
    assert!(place.path().join("marked").exists(), "the test above looks for what nothing would make");
}

#[test]
fn no_name_id_or_label_becomes_a_path() {
    let place = Place::with_letter("otter");
    let names = |directory: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let before = names(place.path());
    for hostile in ["../out", "/tmp/out", "..", "a/../../out", "%2e%2e/out", "C:\\out", "-owner-x/../../out"]
    {
        place.write("w.yaml", "name: w\nnodes: { a: { set: { x: 1 } } }\n");
        assert_eq!(place.retake(&["run", "w.yaml", &format!("--name={hostile}")]).code, 2, "{hostile}");
        place.retake(&["checkpoint", "otter", "--label", hostile]);
        for address in [format!("otter@{hostile}"), format!("{hostile}@1"), hostile.to_owned()] {
            let code = place.retake(&["show", &address]).code;
            assert!(matches!(code, 0 | 2 | 3), "{address}: {code}");
        }
        place.write("w.yaml", &format!("name: {:?}\nnodes: {{ a: {{ set: {{ x: 1 }} }} }}\n", hostile));
        place.retake(&["run", "w.yaml"]);
        place.write("w.yaml", &format!("name: w\nnodes: {{ {hostile:?}: {{ set: {{ x: 1 }} }} }}\n"));
        assert_eq!(place.retake(&["run", "w.yaml"]).code, 2, "{hostile}");
        std::fs::remove_file(place.path().join("w.yaml")).unwrap();
    }
    assert_eq!(names(place.path()), before);
    assert!(!place.path().parent().unwrap().join("out").exists());
    let store = names(&place.path().join(".retake"));
    assert!(store.iter().all(|name| name.starts_with("store.db")), "{store:?}");
}
