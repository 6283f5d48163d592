//! The commands that change what a run knows, or begin another from it: what is kept, what runs again, and what that
//! leaves as it was. Every node writes its name to a journal when it runs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use serde_json::{Value, json};

use crate::place::Place;

const REPORT: &str = r#"
name: report
vars: { tone: dry, unit: km }
checkpoints: { frequency: always, max: 100 }
max_parallel: 1
nodes:
  facts: { run: "echo facts >> ran; echo 3" }
  draft: { run: "echo draft >> ran; echo so ${{ vars.tone }}: ${{ nodes.facts.output }}", into: draft }
  length: { run: "echo length >> ran; echo ${{ nodes.facts.output }}${{ vars.unit }}" }
  report: { run: "echo report >> ran; echo ${{ vars.draft }}, ${{ nodes.length.output }}" }
"#;

/// Returns a place with a completed run of [`REPORT`], and an empty journal: `@1` start, `@2` facts, `@3` draft,
/// `@4` length, `@5` report.
fn with_report(name: &str) -> Place {
    let place = Place::empty();
    place.write("report.yaml", REPORT);
    assert_eq!(place.retake(&["run", "report.yaml", "--name", name]).code, 0);
    assert_eq!(ran(&place), ["facts", "draft", "length", "report"]);
    assert_eq!(output(&place, name, "report"), "so dry: 3, 3km");
    place
}

/// Returns which nodes ran since this was asked last.
fn ran(place: &Place) -> Vec<String> {
    let file = place.path().join("ran");
    let journal = std::fs::read_to_string(&file).unwrap_or_default();
    place.write("ran", "");
    journal.lines().map(str::to_owned).collect()
}

fn output(place: &Place, address: &str, node: &str) -> Value {
    place.json(&["show", address])["nodes"][node]["output"].clone()
}

/// Runs a command that goes on with a run. Returns the documents that it prints.
fn goes_on(place: &Place, arguments: &[&str]) -> Vec<Value> {
    let done = place.retake(&[&["--json"], arguments].concat());
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
    done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_edited_variable_runs_again_only_what_had_read_it() {
    let place = with_report("otter");
    let plan = place.json(&["edit", "otter", "--var", "tone=warm", "--dry-run"]);
    assert_eq!(plan["keep"], json!(["facts", "length"]));
    assert_eq!(plan["variables"]["tone"], json!({"from": "dry", "to": "warm"}));
    assert_eq!(plan["forgotten"], json!(["draft", "report"]));
    assert_eq!(place.json(&["ls"])[0]["head"], plan["head"]);

    let edited = place.json(&["edit", "otter", "--var", "tone=warm", "--yes"]);
    let before = plan["head"].as_u64().unwrap();
    assert_eq!((&edited["before"], &edited["head"]), (&json!(before), &json!(before + 1)));
    assert_eq!((&edited["name"], &edited["status"]), (&json!("otter"), &json!("paused")));
    assert_eq!(edited["rerun"], plan["rerun"]);
    assert_eq!(place.json(&["log", "otter"])[0]["cause"]["kind"], "edit");
    assert_eq!(ran(&place), [""; 0]);

    assert_eq!(place.retake(&["resume", "otter"]).code, 0);
    assert_eq!(ran(&place), ["draft", "report"]);
    assert_eq!(output(&place, "otter", "report"), "so warm: 3, 3km");
}

#[test]
fn an_edit_may_go_on_at_once_and_tells_the_plan_first() {
    let place = with_report("otter");
    let events = goes_on(&place, &["edit", "otter", "--set", "unit=mi", "--yes", "--run"]);
    assert_eq!(events[0]["keep"], json!(["facts", "draft"]));
    assert_eq!(events.last().unwrap()["status"], "completed");
    assert_eq!(ran(&place), ["length", "report"]);
    // What was so already changes nothing, and there is nothing left to run.
    let events = goes_on(&place, &["edit", "otter", "--set", "unit=mi", "--run"]);
    assert_eq!((events.len(), &events[0]["before"]), (3, &events[0]["head"]));
    assert_eq!(ran(&place), [""; 0]);
}

#[test]
fn an_edited_output_runs_again_what_depends_on_it() {
    let place = with_report("otter");
    place.write("length.json", "{\"m\": 3000}");
    let edit = ["edit", "otter", "--output", "length=@length.json", "--yes"];
    let text = place.text(&[&edit[..], &["--dry-run"]].concat());
    assert!(
        text.starts_with("otter at @5, edited\n  = keeps facts, draft, length\n  ~ report runs again"),
        "{text}"
    );
    assert!(
        text.contains("\n  - nodes.length.output = \"3km\"\n  + nodes.length.output = {\"m\":3000}\n"),
        "{text}"
    );
    let plan = place.json(&edit);
    assert_eq!(plan["outputs"], json!({"length": {"from": "3km", "to": {"m": 3000}}}));
    goes_on(&place, &["resume", "otter"]);
    assert_eq!(ran(&place), ["report"]);

    // What a node put into a variable goes with its output.
    goes_on(&place, &["edit", "otter", "--output", "draft=by hand", "--yes", "--run"]);
    assert_eq!(place.json(&["show", "otter"])["variables"]["draft"], "by hand");
    assert_eq!(ran(&place), ["report"]);
}

#[test]
fn a_node_that_failed_and_is_marked_done_lets_the_run_complete() {
    let place = Place::empty();
    let workflow = REPORT.replace("echo draft >> ran;", "exit 3;");
    place.write("report.yaml", &workflow);
    assert_eq!(place.retake(&["run", "report.yaml", "--name", "otter"]).code, 1);
    ran(&place);
    let error =
        place.refused(&["edit", "otter", "--output", "draft=mine"], 4, "no output that could be replaced");
    assert_eq!(error["hint"], "`--done draft` marks it as done, with that output");
    let error = place.refused(&["edit", "otter", "--done", "facts"], 4, "node `facts` is done already");
    assert_eq!(error["hint"], "leave `--done facts` out: `--output facts=VALUE` replaces its output");
    goes_on(&place, &["edit", "otter", "--done", "draft", "--output", "draft=mine", "--yes", "--run"]);
    assert_eq!(ran(&place), ["length", "report"]);
    assert_eq!(output(&place, "otter", "report"), "mine, 3km");
}

#[test]
fn a_node_that_has_not_run_or_was_skipped_can_be_marked_done_without_an_output() {
    let place = Place::with_letter("otter");
    let edited = place.json(&["edit", "otter", "--done", "ok", "--done", "send", "--yes"]);
    assert_eq!((&edited["status"], &edited["pending"]), (&json!("completed"), &json!([])));
    assert_eq!(edited["outputs"]["send"], json!({"from": null, "to": null}));
    assert_eq!(place.json(&["show", "otter"])["nodes"]["send"]["status"], "success");

    place.write("skip.yaml", "name: skip\nnodes: { a: { set: { x: 1 }, if: \"${{ false }}\" } }\n");
    goes_on(&place, &["run", "skip.yaml", "--name", "beaver"]);
    assert_eq!(place.json(&["show", "beaver"])["nodes"]["a"]["status"], "skipped");
    place.json(&["edit", "beaver", "--done", "a", "--output", "a={\"x\": 2}", "--yes"]);
    assert_eq!(place.json(&["show", "beaver"])["variables"]["x"], 2);
}

#[test]
fn an_edit_is_taken_back_by_undo() {
    let place = with_report("otter");
    let before = place.json(&["show", "otter"]);
    place.json(&["edit", "otter", "--var", "tone=warm", "--output", "facts=4", "--yes"]);
    assert_eq!(place.json(&["show", "otter"])["variables"]["tone"], "warm");
    place.json(&["undo", "otter"]);
    let after = place.json(&["show", "otter"]);
    for key in ["variables", "nodes", "status"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(ran(&place), [""; 0]);
}

#[test]
fn an_edit_that_changes_nothing_says_so_and_appends_nothing() {
    let place = with_report("otter");
    let head = place.head("otter");
    let edit = ["edit", "otter", "--var", "tone=dry", "--output", "facts=3"];
    assert_eq!(place.text(&edit), "nothing changes: otter is so already\n");
    let left = place.json(&edit);
    assert_eq!((&left["before"], &left["head"]), (&json!(head), &json!(head)));
    assert_eq!((&left["keep"][0], &left["status"]), (&json!("facts"), &json!("completed")));
    assert_eq!(place.head("otter"), head);
    let error = place.refused(&["edit", "otter"], 2, "nothing is to be changed");
    assert_eq!(error["hint"], "say what: `--var NAME=VALUE`, `--output NODE=VALUE`, `--done NODE`");
    place.refused(&["edit", "otter", "--var", "tone=a", "--var", "tone=b"], 2, "`tone` is set twice");
    place.refused(&["edit", "otter", "--output", "nobody=1"], 3, "has no node `nobody`");
    place.refused(&["edit", "otter@2", "--var", "tone=a"], 2, "only a run is wanted here");
    place.refused(&["edit", "otter", "--var", "tone=a"], 2, "nobody can be asked here");
    assert_eq!(place.head("otter"), head);
}

#[test]
fn an_edit_that_makes_a_variable_says_so_as_its_name_may_be_mistyped() {
    let place = Place::with_letter("otter");
    let told = place.retake(&["edit", "otter", "--var", "tnoe=warm", "--dry-run"]);
    assert_eq!((told.code, told.stderr.as_str()), (0, "otter had no variable `tnoe` until now\n"));
    let told = place.retake(&["edit", "otter", "--var", "tone=warm", "--dry-run"]);
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
}

#[test]
fn an_edit_does_not_forget_unasked_what_cannot_be_undone() {
    let place = Place::with_sent_letter("otter");
    let edit = ["edit", "otter", "--var", "tone=warm", "--yes"];
    let error = place.refused(&edit, 7, "the edit would forget what cannot be undone: send");
    assert_eq!(
        error["hint"],
        "`--skip-effects` keeps their results, `--again` lets them happen once more, `--compensate` runs the \
         counter-actions of those that have one"
    );
    let kept = place.json(&[&edit[..], &["--skip-effects"]].concat());
    assert_eq!(kept["keep"], json!(["plan", "send"]));
    assert_eq!(output(&place, "otter", "send"), "sent");
}

#[test]
fn what_was_cancelled_is_neither_edited_nor_given_another_definition() {
    let place = Place::with_letter("otter");
    place.json(&["cancel", "otter"]);
    place.write("other.yaml", "name: letter\nnodes: { plan: { set: { topic: beavers } } }\n");
    for change in [&["edit", "otter", "--var", "tone=warm"][..], &["resume", "otter", "--def", "other.yaml"]]
    {
        let error = place.refused(&[change, &["--yes"]].concat(), 4, "was cancelled");
        assert_eq!(error["hint"], "`retake undo RUN` takes the cancellation back");
    }
    assert_eq!(place.json(&["fork", "otter"])["status"], "paused");
    assert_eq!(place.json(&["show", "otter"])["status"], "cancelled");
}

#[test]
fn a_fork_leaves_its_origin_as_it_was_and_outlives_it() {
    let place = with_report("otter");
    let before = [place.text(&["--json", "show", "otter"]), place.text(&["--json", "log", "otter"])];
    let otter = place.json(&["ls"])[0]["execution"].clone();
    let fork = place.json(&["fork", "otter@5", "--set", "tone=warm", "--name", "beaver"]);
    assert_eq!(fork["origin"], json!({"execution": otter, "name": "otter", "seq": 5}));
    assert_eq!((&fork["name"], &fork["head"]), (&json!("beaver"), &json!(1)));
    assert_eq!((&fork["status"], &fork["target"]), (&json!("paused"), &json!(5)));
    assert_eq!(fork["keep"], json!(["facts", "length"]));
    assert_eq!(before, [place.text(&["--json", "show", "otter"]), place.text(&["--json", "log", "otter"])]);

    let runs = place.json(&["ls"]);
    assert_eq!(runs[0]["origin"], json!({"execution": otter, "seq": 5}));
    assert_eq!(runs[1]["origin"], Value::Null);
    let log = place.json(&["log", "beaver"]);
    assert_eq!(log[0]["cause"], json!({"kind": "fork", "origin": {"execution_id": otter, "seq": 5}}));
    assert_eq!(place.json(&["show", "beaver"])["origin"], fork["origin"]);
    assert_eq!(place.json(&["show", "otter"])["origin"], Value::Null);
    assert!(place.text(&["show", "beaver"]).contains("\nforked from otter@5\n"));

    place.json(&["rm", "otter", "--yes"]);
    let removed = format!("\nforked from {}@5, which is removed\n", otter.as_str().unwrap());
    assert!(place.text(&["show", "beaver"]).contains(&removed));
    assert_eq!(place.json(&["show", "beaver"])["origin"]["name"], Value::Null);
    goes_on(&place, &["resume", "beaver"]);
    assert_eq!(ran(&place), ["draft", "report"]);
    assert_eq!(output(&place, "beaver", "report"), "so warm: 3, 3km");
    assert_eq!(place.json(&["doctor"])["sound"], true);
}

#[test]
fn a_fork_may_go_on_at_once_from_any_point_and_by_another_definition() {
    let place = with_report("otter");
    let events = goes_on(&place, &["fork", "otter@node:facts", "--run"]);
    assert_eq!(events[0]["keep"], json!(["facts"]));
    assert_eq!(events[0]["pending"], json!(["draft", "length", "report"]));
    assert_eq!(events.last().unwrap()["name"], events[0]["name"]);
    assert_ne!(events[0]["name"], "otter");
    assert_eq!(ran(&place), ["draft", "length", "report"]);

    place.write("other.yaml", &REPORT.replace("echo so", "echo thus"));
    let text = place.text(&["fork", "otter", "--def", "other.yaml", "--name", "beaver", "--dry-run"]);
    let first =
        "fork of otter at @5\n  = keeps facts, length\n  ~ draft runs again: its definition changes\n";
    assert!(text.starts_with(first), "{text}");
    place.refused(&["show", "beaver"], 3, "no run is called `beaver`");
    goes_on(&place, &["fork", "otter", "--def", "other.yaml", "--name", "beaver", "--run"]);
    assert_eq!(ran(&place), ["draft", "report"]);
    assert_eq!(output(&place, "beaver", "report"), "thus dry: 3, 3km");
    assert_eq!(output(&place, "otter", "report"), "so dry: 3, 3km");
}

#[test]
fn a_fork_under_a_name_that_is_taken_is_refused() {
    let place = Place::with_letter("otter");
    let error = place.refused(&["fork", "otter@2", "--name", "otter"], 4, "the name `otter` is taken");
    assert_eq!(error["hint"], "choose another with `--name`, or go on with that run: `retake resume RUN`");
    place.refused(&["fork", "otter@2", "--name", "a@b"], 2, "`@` cannot stand in a name");
    place.refused(&["fork", "otter@9"], 3, "its head is @4");
    assert_eq!(place.json(&["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_fork_asks_only_where_it_would_reach_outside_once_more() {
    let place = Place::with_sent_letter("otter");
    let fork = ["fork", "otter", "--set", "tone=warm", "--name", "beaver"];
    let with = |flags: &[&'static str]| [&fork[..], flags].concat();
    place.refused(&fork, 7, "the fork would forget what cannot be undone: send");
    place.refused(&with(&["--again"]), 2, "nobody can be asked here");
    assert_eq!(place.json(&["ls"]).as_array().unwrap().len(), 1);
    let kept = place.json(&with(&["--skip-effects"]));
    assert_eq!(kept["keep"], json!(["plan", "send"]));
    place.json(&["rm", "beaver", "--yes"]);
    place.json(&with(&["--again", "--yes"]));
    assert_eq!(place.json(&["show", "beaver"])["nodes"]["send"]["status"], "pending");
    assert_eq!(output(&place, "otter", "send"), "sent");
}

#[test]
fn a_run_keeps_its_definition_until_it_is_given_another() {
    let place = Place::empty();
    place.write("report.yaml", &REPORT.replace("echo draft >> ran;", "exit 3;"));
    assert_eq!(place.retake(&["run", "report.yaml", "--name", "otter"]).code, 1);
    ran(&place);
    place.write("report.yaml", REPORT);
    assert_eq!(place.retake(&["resume", "otter"]).code, 1, "the file is not looked at");
    // No result would go, so that nobody is asked.
    let events = goes_on(&place, &["resume", "otter", "--def", "report.yaml"]);
    assert_eq!(events[0]["event"], "redefined");
    assert_eq!(events[0]["forgotten"], json!([]));
    assert_eq!(events[0]["rerun"], json!([{"node": "draft", "because": "its definition changes"}]));
    assert_eq!(ran(&place), ["draft", "length", "report"]);
    assert_eq!(events.last().unwrap()["status"], "completed");
}

#[test]
fn another_definition_keeps_what_is_the_same_and_runs_again_what_changed_and_what_that_affects() {
    let place = with_report("otter");
    place.write("other.yaml", &REPORT.replace("echo so", "echo thus"));
    let resume = ["resume", "otter", "--def", "other.yaml"];
    let plan = place.json(&[&resume[..], &["--dry-run"]].concat());
    assert_eq!(plan["keep"], json!(["facts", "length"]));
    assert_eq!(plan["rerun"][0], json!({"node": "draft", "because": "its definition changes"}));
    assert_eq!(plan["forgotten"], json!(["draft", "report"]));
    place.refused(&resume, 2, "nobody can be asked here");
    assert_eq!(plan["head"], place.head("otter"));

    goes_on(&place, &[&resume[..], &["--yes"]].concat());
    assert_eq!(ran(&place), ["draft", "report"]);
    assert_eq!(output(&place, "otter", "report"), "thus dry: 3, 3km");
    place.json(&["undo", "otter"]);
    assert_eq!(output(&place, "otter", "report"), "so dry: 3, 3km");
}

#[test]
fn a_definition_that_differs_in_comments_only_runs_nothing_again() {
    let place = with_report("otter");
    let head = place.head("otter");
    place.write("other.yaml", &format!("# a comment\n{REPORT}\n"));
    let text = place.text(&["resume", "otter", "--def", "other.yaml"]);
    assert!(text.starts_with("the workflow is the same\n"), "{text}");
    assert_eq!((ran(&place), place.head("otter")), (Vec::new(), head));

    // One that gives the same otherwise is taken over, and every result stays.
    place.write("other.yaml", &REPORT.replace("echo 3\"", "echo 3\", timeout: 60s, retry: 2"));
    let text = place.text(&["resume", "otter", "--def", "other.yaml"]);
    let first =
        "otter at @5, by another definition\n  = keeps facts, draft, length, report\n  every result stays\n";
    assert!(text.starts_with(first), "{text}");
    assert_eq!((ran(&place), place.head("otter")), (Vec::new(), head + 1));
    assert_eq!(place.json(&["show", "otter", "facts"])["definition"]["timeout"], "1m");
}

#[test]
fn a_node_that_another_definition_has_no_more_leaves() {
    let place = with_report("otter");
    let without = |node: &str, text: &str| {
        let stays = |line: &&str| !line.trim_start().starts_with(&format!("{node}:"));
        text.lines().filter(stays).collect::<Vec<_>>().join("\n")
    };
    let other = without("length", REPORT).replace(", ${{ nodes.length.output }}", "");
    place.write("other.yaml", &other);
    let events = goes_on(&place, &["resume", "otter", "--def", "other.yaml", "--yes"]);
    assert_eq!(events[0]["removed"], json!(["length"]));
    assert_eq!(events[0]["forgotten"], json!(["report", "length"]));
    assert_eq!(ran(&place), ["report"]);
    let nodes = &place.json(&["show", "otter"])["nodes"];
    assert_eq!(nodes.as_object().unwrap().keys().collect::<Vec<_>>(), ["facts", "draft", "report"]);

    // The last node depends on no other, so that only its result goes, and that is asked about, too.
    place.write("other.yaml", &without("report", &other));
    let resume = ["resume", "otter", "--def", "other.yaml"];
    place.refused(&resume, 2, "nobody can be asked here");
    let text = place.text(&[&resume[..], &["--dry-run"]].concat());
    assert!(text.contains("\n  x drops report, which the workflow has no more\n"), "{text}");
}

#[test]
fn another_definition_does_not_forget_unasked_what_cannot_be_undone() {
    let place = Place::with_sent_letter("otter");
    place.write(
        "other.yaml",
        "name: letter\nvars: { tone: dry }\nnodes: { send: { run: \"echo sent twice\", effect: external } }\n",
    );
    let resume = ["resume", "otter", "--def", "other.yaml", "--yes"];
    let with = |flags: &[&'static str]| [&resume[..], flags].concat();
    let error = place.refused(&resume, 7, "the other definition would forget what cannot be undone: send");
    assert_eq!(
        error["hint"],
        "`--skip-effects` keeps their results, `--again send` lets them go, to happen once more where they are still \
         to run, `--compensate` runs the counter-actions of those that have one"
    );
    place.refused(&with(&["--again", "plan"]), 3, "has no node `plan`");
    let key = place.json(&["show", "otter", "send"])["idempotency_key"].clone();
    goes_on(&place, &with(&["--skip-effects"]));
    assert_eq!(output(&place, "otter", "send"), "sent");
    place.json(&["undo", "otter"]);
    goes_on(&place, &with(&["--again", "send"]));
    assert_eq!(output(&place, "otter", "send"), "sent twice");
    assert_ne!(place.json(&["show", "otter", "send"])["idempotency_key"], key);
}

#[test]
fn an_effect_is_not_forgotten_because_a_definition_says_less_of_its_node() {
    let place = Place::empty();
    let begin = "name: post\nnodes:\n  plan: { set: { day: monday } }\n";
    let send = "  send: { run: \"echo send >> ran\", needs: [plan], effect: external }\n";
    let pure = "  send: { run: \"echo again >> ran\", needs: [plan], effect: pure }\n";
    place.write("without.yaml", begin);
    place.write("with.yaml", &format!("{begin}{send}"));
    place.write("pure.yaml", &format!("{begin}{pure}"));
    goes_on(&place, &["run", "without.yaml", "--name", "otter"]);
    goes_on(&place, &["resume", "otter", "--def", "with.yaml"]);
    assert_eq!(ran(&place), ["send"]);

    for change in [
        &["undo", "otter"][..],
        &["rollback", "otter@2", "--yes"],
        &["resume", "otter", "--def", "without.yaml", "--yes"],
        &["resume", "otter", "--def", "pure.yaml", "--yes"],
        &["fork", "otter", "--def", "pure.yaml"],
    ] {
        place.refused(change, 7, "would forget what cannot be undone: send");
    }
    assert_eq!(ran(&place), Vec::<String>::new());

    // In a fork that has no such node, it cannot happen.
    goes_on(&place, &["fork", "otter", "--def", "without.yaml", "--name", "beaver"]);
    let kept = goes_on(&place, &["resume", "otter", "--def", "without.yaml", "--yes", "--skip-effects"]);
    assert_eq!((&kept[0]["irreversible"], &kept[0]["removed"]), (&json!(["send"]), &json!([])));
    let plan = place.json(&["resume", "otter", "--def", "with.yaml", "--dry-run"]);
    assert_eq!(plan["irreversible"], json!(["send"]));
    place.refused(
        &["resume", "otter", "--def", "without.yaml", "--again", "nothing"],
        3,
        "has no node `nothing`",
    );
    place.json(&["undo", "otter"]);
    let dropped = goes_on(&place, &["resume", "otter", "--def", "without.yaml", "--yes", "--again", "send"]);
    assert_eq!(dropped[0]["removed"], json!(["send"]));
    assert_eq!(ran(&place), Vec::<String>::new());
}

#[test]
fn the_flags_that_change_a_definition_want_one() {
    let place = Place::with_letter("otter");
    for flag in ["--dry-run", "--yes", "--skip-effects", "--compensate"] {
        place.refused(&["resume", "otter", flag], 2, "--def <FILE>");
    }
    place.refused(&["resume", "otter", "--def", "nothing.yaml"], 3, "cannot read nothing.yaml");
}

#[test]
fn a_linear_rollback_runs_again_everything_that_came_later() {
    let place = with_report("otter");
    let events = goes_on(&place, &["rollback", "otter@node:draft", "--linear", "--yes", "--run"]);
    assert_eq!(events[0]["keep"], json!(["facts", "draft"]));
    assert_eq!(ran(&place), ["length", "report"]);
    goes_on(&place, &["rollback", "otter@node:draft", "--yes", "--run"]);
    assert_eq!(ran(&place), ["report"]);
}

#[test]
fn a_plan_of_many_nodes_stays_readable() {
    let place = Place::empty();
    let nodes: String = (1..=200)
        .map(|n| {
            format!(
                "  n{n:03}: {{ set: {{ v{n:03}: \"${{{{ vars.{} }}}}\" }} }}\n",
                if n % 2 == 0 { "a" } else { "b" }
            )
        })
        .collect();
    place
        .write("many.yaml", &format!("name: many\nvars: {{ a: 1, b: 1 }}\nmax_parallel: 1\nnodes:\n{nodes}"));
    goes_on(&place, &["run", "many.yaml", "--name", "otter"]);
    let text = place.text(&["edit", "otter", "--var", "a=2", "--dry-run"]);
    assert!(text.lines().count() < 60, "{text}");
    assert!(
        text.contains(
            "  = keeps n001, n003, n005, n007, n009, n011, n013, n015, n017, n019, n021, n023 and 88 more\n"
        ),
        "{text}"
    );
    assert!(text.contains("\n  … and 88 more run again\n"), "{text}");
    assert!(text.contains("\n  … and 89 more variables change\n"), "{text}");
    place.json(&["edit", "otter", "--var", "a=2", "--yes"]);
    let text = place.text(&["edit", "otter", "--var", "b=2", "--dry-run"]);
    assert!(text.contains("\n  > then runs n002, n004, n006,"), "{text}");
}
