//! Workflow files as a user meets them: those that are read, those that are refused, and the one to begin with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::fs::File;

use serde_json::{Value, json};

use place::{Done, Place};

/// Checks the exit code, and that nothing panicked.
#[track_caller]
fn expect(done: &Done, expected: i32) {
    assert_eq!(done.code, expected, "{done:?}");
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
}

#[test]
fn a_workflow_is_read_from_stdin_and_with_a_byte_order_mark() {
    let place = Place::empty();
    place.write("w.yaml", "\u{feff}name: w\nnodes:\n  a: { set: { x: 1 } }\n");
    expect(&place.retake(&["run", "w.yaml"]), 0);
    let mut command = place.command(&["run", "-"]);
    let output = command.stdin(File::open(place.path().join("w.yaml")).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_bad_workflow_file_exits_with_2_says_where_and_starts_nothing() {
    let deep =
        format!("name: w\nnodes:\n  a: {{ set: {{ x: {}1{} }} }}\n", "[".repeat(10_000), "]".repeat(10_000));
    let deep_json =
        format!("{{\"name\": \"w\", \"nodes\": {}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let deep_blocks: String = (0..10_000).map(|depth| format!("{}a:\n", " ".repeat(depth % 900))).collect();
    let large = format!("name: w\n# {}\nnodes: {{}}\n", "x".repeat(10 << 20));
    let files: &[(&str, &[u8])] = &[
        ("empty", b""),
        ("only spaces", b"  \n\n"),
        ("a text", b"hello"),
        ("a list", b"- a\n- b\n"),
        ("not YAML", b"name: [unclosed\nnodes: }"),
        ("a tab", b"name: w\nnodes:\n\ta: { run: x }\n"),
        ("binary", b"\x00\x01\x02\xff\xfe"),
        ("not UTF-8", b"name: \xff\nnodes: {}\n"),
        ("a cycle", b"name: w\nnodes:\n  a: { run: x, needs: b }\n  b: { run: x, needs: a }\n"),
        ("itself", b"name: w\nnodes:\n  a: { run: x, needs: a }\n"),
        ("two kinds", b"name: w\nnodes:\n  a: { run: x, set: { y: 1 } }\n"),
        ("no kind", b"name: w\nnodes:\n  a: { needs: [] }\n"),
        ("duplicate keys", b"name: w\nnodes:\n  a: { run: x }\n  a: { run: y }\n"),
        ("no nodes", b"name: w\n"),
        ("an unknown key", b"name: w\nnode:\n  a: { run: x }\n"),
        ("an unknown name", b"name: w\nnodes:\n  a: { run: 'echo ${{ vars.nowhere }}' }\n"),
        ("two documents", b"name: w\nnodes:\n  a: { run: x }\n---\nname: v\n"),
        ("an alias bomb", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: w\nnodes: *c\n"),
        ("deep", deep.as_bytes()),
        ("deep JSON", deep_json.as_bytes()),
        ("deep blocks", deep_blocks.as_bytes()),
        ("10 MB", large.as_bytes()),
    ];
    let place = Place::empty();
    for (what, bytes) in files {
        place.write_bytes("bad.yaml", bytes);
        for verb in ["run", "validate"] {
            let output = place.retake(&[verb, "bad.yaml"]);
            expect(&output, 2);
            assert!(output.stderr.contains("bad.yaml"), "{what}: {}", output.stderr);
            assert!(output.stderr.len() < 20_000, "{what}: {} bytes of words", output.stderr.len());
        }
        let output = place.retake(&["run", "bad.yaml", "--json"]);
        expect(&output, 2);
        let error: Value = serde_json::from_str(&output.stderr).unwrap();
        assert_eq!(error["error"]["code"], "usage", "{what}");
        assert!(error["error"].get("line").is_some(), "{what}: {error}");
        let output = place.retake(&["validate", "bad.yaml", "--json"]);
        expect(&output, 2);
        let document: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(document["valid"], false, "{what}");
        assert!(!document["problems"][0]["message"].as_str().unwrap().is_empty(), "{what}");
    }
    assert!(!place.path().join(".retake").exists());
    expect(&place.retake(&["run", "."]), 2);
}

#[test]
fn a_good_file_is_told_with_its_order() {
    let place = Place::empty();
    let nodes = "  a: { run: echo a }\n  b: { run: echo b, needs: a }\n";
    place.write("w.yaml", &format!("name: two\nnodes:\n{nodes}"));
    let output = place.retake(&["validate", "w.yaml"]);
    expect(&output, 0);
    assert_eq!(output.stdout, "two is valid: 2 nodes\n  a: run\n  b: run, after a\n");
    let document: Value =
        serde_json::from_str(&place.retake(&["validate", "w.yaml", "--json"]).stdout).unwrap();
    assert_eq!((&document["valid"], &document["workflow"]), (&json!(true), &json!("two")));
    assert_eq!(document["hash"].as_str().unwrap().len(), 64);
    assert_eq!(document["nodes"][1], json!({"id": "b", "kind": "run", "after": ["a"]}));
    assert!(!place.path().join(".retake").exists());
}

#[test]
fn a_compensation_that_nothing_runs_is_said_to_be_one() {
    let place = Place::empty();
    place.write(
        "w.yaml",
        "name: w\nnodes:\n  a: { run: 'true', compensate: { run: 'false' } }\n  \
         b: { run: 'true', effect: external, compensate: { run: 'false' } }\n",
    );
    let said = "node `a` has a `compensate`, which runs only for nodes with `effect: external`";
    let document: Value =
        serde_json::from_str(&place.retake(&["validate", "w.yaml", "--json"]).stdout).unwrap();
    assert_eq!(document["warnings"], json!([said]));
    let output = place.retake(&["run", "w.yaml"]);
    expect(&output, 0);
    assert!(output.stderr.contains(said), "{}", output.stderr);
}

#[test]
fn a_workflow_to_begin_with_runs_and_is_not_written_over() {
    let place = Place::empty();
    expect(&place.retake(&["init"]), 0);
    expect(&place.retake(&["validate", "workflow.yaml"]), 0);
    let output = place.retake(&["run", "workflow.yaml", "-i", "who=it's me"]);
    expect(&output, 0);
    assert_eq!(place.read("sent.txt"), "Hello, it's me! Your name has 7 letters.\n");
    expect(&place.retake(&["run", "workflow.yaml", "-i", "review=true"]), 5);
    place.write("workflow.yaml", "mine");
    let refused = place.retake(&["init"]);
    expect(&refused, 2);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(place.read("workflow.yaml"), "mine");
    expect(&place.retake(&["init", "--force"]), 0);
    expect(&place.retake(&["validate", "workflow.yaml"]), 0);
}
