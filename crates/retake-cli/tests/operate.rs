//! The commands that look at runs and change them, each as a script uses it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use serde_json::{Value, json};

use crate::place::Place;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn kinds(log: &Value) -> Vec<&str> {
    log.as_array().unwrap().iter().map(|entry| entry["cause"]["kind"].as_str().unwrap()).collect()
}

#[test]
fn ls_lists_the_runs_newest_first_and_filters_them() {
    let place = Place::with_sent_letter("first");
    place.start("second");
    let runs = place.json(&["ls"]);
    assert_eq!(runs[0]["name"], "second");
    assert_eq!(runs[1]["name"], "first");
    let fixed = [
        "execution",
        "name",
        "workflow",
        "status",
        "head",
        "created_at",
        "updated_at",
        "running_in",
        "origin",
    ];
    assert_eq!(keys(&runs[0])[..9], fixed);
    // Nothing was bought, which is not the same as a price of 0.
    for key in ["spent_usd", "reused_usd", "from_zero_usd"] {
        assert_eq!(runs[0][key], Value::Null, "{key}");
    }
    let paused = place.json(&["ls", "--status", "paused"]);
    assert_eq!(paused.as_array().unwrap().len(), 1);
    assert_eq!(paused[0]["status"], "paused");
    assert_eq!(place.json(&["ls", "-n", "1"]).as_array().unwrap().len(), 1);
    let text = place.text(&["ls"]);
    assert!(text.starts_with("RUN     STATUS     HEAD  WORKFLOW"), "{text}");
    assert_eq!(place.json(&["ls", "--status", "failed"]), json!([]));
}

#[test]
fn log_shows_the_history_newest_first_with_its_causes() {
    let place = Place::with_letter("otter");
    let log = place.json(&["log", "otter"]);
    assert_eq!(kinds(&log), ["pause", "nodes", "nodes", "start"]);
    assert_eq!(log[1]["seq"], 3);
    assert_eq!(log[1]["nodes"], json!(["draft"]));
    assert_eq!(log[1]["completed_node_count"], 2);
    for key in ["id", "created_at", "label", "size_bytes", "compressed"] {
        assert!(log[0].get(key).is_some(), "{key}");
    }
    assert_eq!(place.json(&["log", "otter", "-n", "2"]).as_array().unwrap().len(), 2);
    let text = place.text(&["log", "otter"]);
    let first: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(first[0], "@4");
}

#[test]
fn show_gives_the_state_at_every_form_of_address() {
    let place = Place::with_letter("otter");
    place.json(&["checkpoint", "otter", "--label", "before, ünder"]);
    let id = place.json(&["ls"])[0]["execution"].as_str().unwrap().to_owned();
    let unhyphenated = id.replace('-', "");
    for (address, seq) in [
        ("otter", 5),
        ("otter@1", 1),
        ("otter@-1", 4),
        ("otter@before, ünder", 5),
        ("otter@node:plan", 2),
        ("otter@{0s}", 5),
        (&format!("{id}@3"), 3),
        (&format!("{}@3", &id[..13]), 3),
        (&format!("{}@3", &unhyphenated[..20]), 3),
    ] {
        assert_eq!(place.json(&["show", address])["seq"], seq, "{address}");
    }
    let first = place.json(&["show", "otter@1"]);
    assert_eq!(first["variables"], json!({"tone": "dry"}));
    let nodes = first["nodes"].as_object().unwrap();
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["plan", "draft", "ok", "send"]);
    assert!(nodes.values().all(|node| node["status"] == "pending"));
    let third = place.json(&["show", "otter@3"]);
    assert_eq!(third["variables"]["text"], "otters, dry");
    assert_eq!(third["nodes"]["draft"]["status"], "success");
    assert_eq!(third["nodes"]["draft"]["cost_usd"], Value::Null);
    let reads = third["nodes"]["draft"]["reads"].as_array().unwrap();
    let names: Vec<&Value> = reads.iter().map(|read| &read["name"]).collect();
    assert_eq!(names, [&json!("topic"), &json!("tone")]);
    assert_eq!(keys(&reads[0]), ["kind", "name", "hash"]);
    let text = place.text(&["show", "otter@3"]);
    assert!(text.starts_with("otter @3 running (the head is @5)"), "{text}");
    assert!(text.contains("text       \"otters, dry\"\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "colours went into a pipe");
}

#[test]
fn show_of_a_node_says_what_it_read_and_whether_that_has_changed() {
    let place = Place::with_letter("otter");
    let draft = place.json(&["show", "otter", "draft"]);
    assert_eq!(draft["node"], "draft");
    assert_eq!(draft["status"], "success");
    assert_eq!(draft["definition"]["kind"]["set"], json!({"text": "${{ vars.topic }}, ${{ vars.tone }}"}));
    assert_eq!(draft["inputs"][1]["value"], "dry");
    assert_eq!(draft["inputs"][1]["changed"], false);
    assert_eq!(place.json(&["show", "otter", "ok"])["message"], "Send otters, dry?");
    assert!(place.text(&["show", "otter", "draft"]).contains("variable  tone   \"dry\""));
    let error = place.refused(&["show", "otter", "drfat"], 3, "run `otter` has no node `drfat`");
    assert_eq!(error["hint"], "its nodes are plan, draft, ok, send");
    place.json(&["rollback", "otter@1", "--vars", "topic", "--yes"]);
    let draft = place.json(&["show", "otter", "draft"]);
    assert_eq!((&draft["inputs"][0]["value"], &draft["inputs"][0]["changed"]), (&Value::Null, &json!(true)));
    assert!(place.text(&["show", "otter", "draft"]).contains("variable  topic  has changed since"));
}

#[test]
fn show_of_a_node_names_the_key_under_which_its_work_is_known_outside() {
    let place = Place::with_sent_letter("otter");
    let key = place.json(&["show", "otter", "send"])["idempotency_key"].as_str().unwrap().to_owned();
    let shown = place.text(&["show", "otter", "send"]);
    assert!(shown.contains(&format!("\nidempotency key {key}\n")), "{shown}");
    // Nobody outside has heard of what only sets variables.
    assert!(!place.text(&["show", "otter", "draft"]).contains("idempotency key"));
}

#[test]
fn what_is_not_there_is_refused_with_a_hint() {
    let place = Place::with_letter("otter");
    place.start("beaver");
    let near = place.refused(&["show", "oter"], 3, "no run is called `oter`");
    assert_eq!(near["hint"], "did you mean `otter`? `retake ls` lists the runs");
    place.refused(&["show", "0"], 2, "is the start of 2 ids");
    place.refused(&["log", "otter@2"], 2, "only a run is wanted here");
    place.refused(&["show", "otter@"], 2, "nothing stands behind the `@`");
    place.refused(&["show", "otter@9"], 3, "its head is @4");
    place.refused(&["show", "otter@-9"], 3, "run `otter` has 3 points before its head, not 9");
    place.refused(&["show", "otter@{9d}"], 3, "run `otter` did not exist 9days ago");
    place.refused(&["show", "otter@node:send"], 3, "recorded node `send`");
    place.refused(&["show", "otter@x"], 3, "run `otter` has no point labelled `x`");
    place.json(&["checkpoint", "otter", "--label", "good"]);
    let labels = place.refused(&["show", "otter@x"], 3, "run `otter` has no point labelled `x`");
    assert_eq!(labels["hint"], "its labels are `good`");
    place.json(&["prune", "otter", "--keep", "1"]);
    let pruned = place.refused(&["show", "otter@2"], 3, "has been pruned");
    assert_eq!(pruned["hint"], "`retake log RUN` lists the points that are there");
    for command in ["undo", "redo", "pause", "cancel", "log", "rm", "prune", "checkpoint"] {
        let arguments = [command, "nobody", "--yes", "--keep=1"];
        let arguments = match command {
            "rm" => &arguments[..3],
            "prune" => &["prune", "nobody", "--keep=1"][..],
            _ => &arguments[..2],
        };
        place.refused(arguments, 3, "no run is called `nobody`");
    }
}

#[test]
fn a_label_that_looks_like_another_address_is_refused() {
    let place = Place::with_letter("otter");
    for label in ["12", "node:x", "{5m}", ""] {
        place.refused(&["checkpoint", "otter", "--label", label], 2, "cannot be a label");
    }
    assert_eq!(place.head("otter"), 4);
    let made = place.json(&["checkpoint", "otter", "--label", "v2"]);
    assert_eq!(made["head"], 5);
    assert_eq!(place.json(&["log", "otter"])[0]["label"], "v2");
}

#[test]
fn a_dry_run_gives_the_plan_and_changes_nothing() {
    let place = Place::with_sent_letter("otter");
    let before = place.text(&["--json", "log", "otter"]);
    let plan = place.json(&["rollback", "otter@2", "--set", "tone=warm", "--dry-run"]);
    assert_eq!(plan["target"], 2);
    assert_eq!(plan["keep"], json!(["plan"]));
    assert_eq!(
        plan["rerun"][0],
        json!({"node": "draft", "because": "it depends on `plan`, and its result is newer than @2"})
    );
    assert_eq!(plan["irreversible"], json!(["send"]));
    assert_eq!(plan["variables"]["tone"], json!({"from": "dry", "to": "warm"}));
    assert_eq!(plan["variables"]["text"], json!({"from": "otters, dry", "to": null}));
    for key in ["cost_kept_usd", "cost_again_usd"] {
        assert_eq!(plan[key], Value::Null);
    }
    let text = place.text(&["rollback", "otter@2", "--dry-run"]);
    let draft = "draft runs again: it depends on `plan`, and its result is newer than @2";
    assert!(text.contains(&format!("  = keeps plan\n  ~ {draft}\n")), "{text}");
    let linear = place.text(&["rollback", "otter@2", "--linear", "--dry-run"]);
    assert!(linear.contains("  ~ draft runs again: its result is newer than @2\n"), "{linear}");
    assert!(text.contains("  ! send cannot be undone, and needs a choice: "), "{text}");
    assert!(text.contains("  - text = \"otters, dry\"\n"), "{text}");
    assert_eq!(place.text(&["--json", "log", "otter"]), before);
}

#[test]
fn a_rollback_appends_and_is_undone_and_redone() {
    let place = Place::with_letter("otter");
    let back = place.json(&["rollback", "otter@2", "--yes"]);
    assert_eq!((&back["before"], &back["head"], &back["status"]), (&json!(4), &json!(5), &json!("paused")));
    let log = place.json(&["log", "otter"]);
    assert_eq!(log[0]["cause"], json!({"kind": "rollback", "to": 2}));
    let current: Vec<bool> =
        log.as_array().unwrap().iter().map(|entry| entry["current"].as_bool().unwrap()).collect();
    assert_eq!(current, [true, false, false, true, true]);
    assert_eq!(place.json(&["show", "otter"])["variables"].get("text"), None);
    assert_eq!(place.json(&["show", "otter@-1"])["seq"], 2);

    let undone = place.json(&["undo", "otter"]);
    assert_eq!(undone["head"], 6);
    assert_eq!(undone["command"], "retake --json rollback otter@2 --yes");
    assert_eq!(place.json(&["show", "otter"])["variables"]["text"], "otters, dry");
    assert_eq!(place.json(&["redo", "otter"])["head"], 7);
    assert_eq!(place.json(&["show", "otter"])["variables"].get("text"), None);
    place.refused(&["redo", "otter"], 4, "has nothing to redo");

    let operations = place.json(&["op", "log", "otter"]);
    let kinds: Vec<&str> =
        operations.as_array().unwrap().iter().map(|operation| operation["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["redo", "undo", "rollback"]);
    assert_eq!(operations[2]["number"], 1);
    assert_eq!(operations[2]["who"].as_str(), whoami::username().ok().as_deref());
    assert_eq!((&operations[2]["before"], &operations[2]["after"]), (&json!(4), &json!(5)));
    assert!(place.text(&["op", "log", "otter"]).contains("rollback to @2"));
    assert_eq!(
        place.text(&["undo", "otter"]),
        "took back `retake --json rollback otter@2 --yes`: otter is at @8\n"
    );
}

#[test]
fn a_rollback_finds_its_point_by_label_by_node_and_by_steps() {
    let place = Place::with_letter("otter");
    place.json(&["checkpoint", "otter", "--label", "tag"]);
    for (address, target) in [("otter@tag", 5), ("otter@node:draft", 3), ("otter@-1", 4), ("otter@2", 2)] {
        assert_eq!(place.json(&["rollback", address, "--dry-run"])["target"], target, "{address}");
    }
    let head = place.refused(&["rollback", "otter", "--yes"], 2, "`otter` names no point to go back to");
    assert_eq!(head["hint"], "write RUN@POINT: `retake log RUN` lists the points");
}

#[test]
fn a_rollback_may_take_back_only_what_is_named() {
    let place = Place::with_letter("otter");
    let odd = "it's \"odd\".水";
    place.json(&[
        "rollback",
        "otter@4",
        "--yes",
        "--set",
        &format!("{odd}=[2, \"a=b\"]"),
        "--set",
        "tone=@@x",
    ]);
    let variables = &place.json(&["show", "otter"])["variables"];
    assert_eq!((&variables[odd], &variables["tone"]), (&json!([2, "a=b"]), &json!("@x")));
    assert_eq!(place.json(&["show", "otter"])["nodes"]["draft"]["status"], "pending");
    let plan = place.json(&["rollback", "otter@1", "--vars", &format!("tone,{odd}"), "--yes"]);
    assert_eq!(
        plan["variables"],
        json!({"tone": {"from": "@x", "to": "dry"}, odd: {"from": [2, "a=b"], "to": null}})
    );
    assert_eq!(plan["keep"], json!(["plan"]));
    place.json(&["rollback", "otter@3", "--nodes", "draft", "--yes"]);
    assert_eq!(place.json(&["show", "otter"])["nodes"]["draft"]["status"], "success");
    place.refused(
        &["rollback", "otter@3", "--vars", "nothing", "--yes"],
        3,
        "nothing to roll back: variable",
    );
    place.refused(&["rollback", "otter@3", "--set", "x", "--yes"], 2, "`x` is not NAME=VALUE");
    place.refused(&["rollback", "otter@3", "--set", "x=1", "--set", "x=2"], 2, "`x` is set twice");
    std::fs::write(place.path().join("value"), "{\"a\": 1}").unwrap();
    place.json(&["rollback", "otter", "--set", "x=@value", "--yes"]);
    assert_eq!(place.json(&["show", "otter"])["variables"]["x"], json!({"a": 1}));
}

#[test]
fn nobody_is_asked_where_nobody_can_answer() {
    let place = Place::with_letter("otter");
    for arguments in [&["rollback", "otter@2"][..], &["rm", "otter"]] {
        let error = place.refused(arguments, 2, "nobody can be asked here");
        assert_eq!(error["hint"], "`--yes` goes ahead without asking");
        assert_eq!(place.retake(arguments).code, 2);
    }
    assert_eq!(place.head("otter"), 4);
}

#[test]
fn what_cannot_be_undone_is_not_forgotten_unasked() {
    let place = Place::with_sent_letter("otter");
    let head = place.head("otter");
    let error =
        place.refused(&["rollback", "otter@4", "--yes"], 7, "would forget what cannot be undone: send");
    assert_eq!(
        error["hint"],
        "`--skip-effects` keeps their results, `--again` lets them happen once more, `--compensate` runs the \
         counter-actions of those that have one"
    );
    assert_eq!(place.head("otter"), head);
    place.json(&["rollback", "otter@4", "--yes", "--skip-effects"]);
    assert_eq!(place.json(&["show", "otter"])["nodes"]["send"]["output"], "sent");
    place.json(&["rollback", "otter@4", "--yes", "--again"]);
    assert_eq!(place.json(&["show", "otter"])["nodes"]["send"]["status"], "pending");
}

#[test]
fn a_rollback_may_go_on_at_once() {
    let place = Place::with_sent_letter("otter");
    let key = place.json(&["show", "otter", "send"])["idempotency_key"].clone();
    let done = place.retake(&["rollback", "otter@node:ok", "--yes", "--again", "--run"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let send = place.json(&["show", "otter", "send"]);
    assert_eq!(send["status"], "success");
    assert_ne!(send["idempotency_key"], key);
    assert_eq!(place.json(&["show", "otter"])["status"], "completed");
}

#[test]
fn an_approval_is_decided_once_and_can_be_taken_back() {
    let place = Place::with_letter("otter");
    place.refused(&["approve", "otter", "draft"], 4, "does not wait for an approval: it is not an approval");
    place.refused(&["approve", "otter", "nothing"], 3, "has no node `nothing`");
    let approved = place.json(&["approve", "otter", "ok", "--with", "{\"by\": \"mail\"}"]);
    assert_eq!((&approved["approved"], &approved["head"]), (&json!(true), &json!(5)));
    let output = &place.json(&["show", "otter"])["nodes"]["ok"]["output"];
    assert_eq!(*output, json!({"approved": true, "with": {"by": "mail"}}));
    place.refused(&["approve", "otter", "ok"], 4, "does not wait for an approval: it is success");
    place.json(&["undo", "otter"]);
    let rejected = place.json(&["approve", "otter", "ok", "--reject", "--with", "too long"]);
    assert_eq!(rejected["approved"], false);
    let error = &place.json(&["show", "otter"])["nodes"]["ok"]["error"];
    assert_eq!(*error, "it was rejected: \"too long\"");
}

#[test]
fn nothing_is_decided_of_a_run_that_has_ended() {
    let place = Place::with_letter("otter");
    place.json(&["cancel", "otter"]);
    for decision in [&["approve", "otter", "ok"][..], &["approve", "otter", "ok", "--reject"]] {
        let error = place.refused(decision, 4, "has ended: it is cancelled");
        assert_eq!(error["hint"], "`retake undo otter` takes the cancellation back");
    }
    assert_eq!(place.head("otter"), 5);
    place.json(&["undo", "otter"]);
    place.json(&["approve", "otter", "ok"]);
}

#[test]
fn a_decision_comes_too_late_for_a_run_that_has_failed() {
    let place = Place::empty();
    let workflow = "name: w\nnodes:\n  ok: { approval: go? }\n  bad: { run: test -e there }\n";
    place.write("w.yaml", workflow);
    assert_eq!(place.retake(&["run", "w.yaml", "--name", "otter"]).code, 1);
    let error = place.refused(&["approve", "otter", "ok"], 4, "has ended: it is failed");
    assert_eq!(error["hint"], "`retake resume otter` runs what failed again");
}

#[test]
fn pause_and_cancel_say_how_the_run_stands() {
    let place = Place::with_letter("otter");
    assert_eq!(place.json(&["pause", "otter"])["status"], "paused");
    let cancelled = place.json(&["cancel", "otter"]);
    assert_eq!((&cancelled["status"], &cancelled["head"]), (&json!("cancelled"), &json!(5)));
    place.refused(&["pause", "otter"], 4, "has ended: it is cancelled");
    place.json(&["undo", "otter"]);
    assert_eq!(place.json(&["show", "otter"])["status"], "paused");
}

#[test]
fn prune_removes_what_is_old_and_leaves_what_has_a_label() {
    let place = Place::with_letter("otter");
    place.json(&["checkpoint", "otter", "--label", "kept"]);
    for _ in 0..5 {
        place.json(&["checkpoint", "otter"]);
    }
    place.refused(&["prune", "otter"], 2, "required");
    let would = place.json(&["prune", "--keep", "2", "--dry-run"]);
    assert_eq!((&would["removed"], &would["dry_run"]), (&json!(7), &json!(true)));
    assert_eq!(place.json(&["log", "otter"]).as_array().unwrap().len(), 10);
    assert_eq!(place.json(&["prune", "otter", "--older-than", "1h"])["removed"], 0);
    let went = place.json(&["prune", "otter", "--keep", "2"]);
    assert_eq!((&went["removed"], &went["runs"][0]["kept"]), (&json!(7), &json!(3)));
    assert!(went["bytes_after"].as_u64() <= went["bytes_before"].as_u64(), "{went}");
    let log = place.json(&["log", "otter"]);
    let seqs: Vec<&Value> = log.as_array().unwrap().iter().map(|entry| &entry["seq"]).collect();
    assert_eq!(seqs, [10, 9, 5]);
    assert_eq!(place.json(&["show", "otter@kept"])["variables"]["text"], "otters, dry");
    let pruned = &place.json(&["op", "log", "otter"])[0];
    assert_eq!(pruned["cause"], json!({"kind": "prune", "removed": 7}));
    assert_eq!((&pruned["before"], &pruned["after"]), (&json!(10), &json!(10)));
    assert_eq!(pruned["command"], "retake --json prune otter --keep 2");
    assert_eq!(place.json(&["prune", "--older-than", "0s"])["removed"], 1);
    assert_eq!(place.json(&["doctor"])["sound"], true);
}

#[test]
fn a_list_of_prices_that_is_none_is_refused_before_anything_runs() {
    let place = Place::with_letter("otter");
    std::fs::write(
        place.path().join("prices.json"),
        r#"{"as_of": "2026-11", "models": {"m": {"input": "cheap", "output": "1"}}}"#,
    )
    .unwrap();
    place.refused(
        &["--prices", "prices.json", "resume", "otter"],
        2,
        "the price of model `m` cannot be used",
    );
    place.refused(&["--prices", "nowhere.json", "resume", "otter"], 3, "prices from nowhere.json");
    assert_eq!(place.head("otter"), 4);
}

#[test]
fn rm_removes_a_run_and_leaves_the_others() {
    let place = Place::with_letter("otter");
    place.start("beaver");
    assert_eq!(place.json(&["rm", "otter", "--yes"])["checkpoints_removed"], 4);
    place.refused(&["show", "otter"], 3, "no run is called `otter`");
    assert_eq!(place.text(&["rm", "beaver", "--yes"]), "removed beaver with 4 checkpoints\n");
    assert_eq!(place.json(&["ls"]), json!([]));
}

#[test]
fn doctor_tells_a_sound_store_from_a_damaged_one() {
    let place = Place::with_letter("otter");
    let report = place.json(&["doctor"]);
    assert_eq!((&report["sound"], &report["executions"]), (&json!(true), &json!(1)));
    assert_eq!((&report["checkpoints"], &report["problems"]), (&json!(4), &json!([])));
    assert!(place.text(&["doctor"]).ends_with("the store is sound\n"));

    let path = place.path().join(".retake/store.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).rposition(|window| window == b"draft").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let done = place.retake(&["--json", "doctor"]);
    assert_eq!(done.code, 6, "{}", done.stderr);
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["sound"], false);
    assert_ne!(report["problems"], json!([]));
}

#[test]
fn a_run_that_is_being_advanced_is_neither_removed_nor_taken_back() {
    let place = Place::with_letter("otter");
    let engine = place.engine();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _lease = runtime.block_on(async {
        let run = retake::engine::address::resolve_run(&**engine.store(), "otter").await.unwrap();
        engine.store().lease(run.id, std::time::Duration::from_secs(600)).await.unwrap()
    });
    place.refused(&["rm", "otter", "--yes"], 4, "is being advanced by");
    place.refused(&["rollback", "otter@2", "--yes"], 4, "is being advanced by");
    place.refused(&["undo", "otter"], 4, "is being advanced by");
    assert_eq!(place.json(&["ls"])[0]["head"], 4);
}

#[test]
fn a_node_is_explained_by_why_it_ran_and_what_would_make_it_run_again() {
    let place = Place::with_letter("otter");
    place.json(&["rollback", "otter", "--set", "tone=warm", "--yes"]);
    let text = place.text(&["explain", "otter", "draft"]);
    assert!(text.starts_with("draft of otter pending\n"), "{text}");
    assert!(
        text.contains("taken back: it read `vars.tone`, which changes from \"dry\" to \"warm\""),
        "{text}"
    );
    place.resume("otter");
    let explanation = place.json(&["explain", "otter", "draft"]);
    assert_eq!(explanation["node"], "draft");
    assert_eq!(
        explanation["because"],
        "it ran again: it read `vars.tone`, which changes from \"dry\" to \"warm\""
    );
    let tone = json!({"kind": "variable", "name": "tone", "was_read": true, "has_changed": false});
    assert!(explanation["again_if"].as_array().unwrap().contains(&tone), "{explanation}");
    assert_eq!(explanation["then"][0], json!({"node": "ok", "because": "`draft` runs again"}));
    let plan = place.json(&["explain", "otter", "plan"]);
    assert_eq!(plan["reused"][0]["cause"]["kind"], "rollback");
    place.refused(&["explain", "otter", "nobody"], 3, "has no node `nobody`");
}
