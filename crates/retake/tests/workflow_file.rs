//! Workflow files: what they mean, and how bad ones are refused.
#![cfg(feature = "engine")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::workflow::{
    Definition, Effect, FILE_BYTES_MAX, Http, InputSpec, Llm, Method, Node, NodeKind, OnError, Retry, Run,
    Workflow, WorkflowError, schema,
};
use serde_json::json;

const EXAMPLE: &str = include_str!("../../../examples/research.yaml");

fn parse(text: &str) -> Workflow {
    Workflow::parse("flow.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(text: &str) -> WorkflowError {
    match Workflow::parse("flow.yaml", text) {
        Ok(_) => panic!("this was accepted:\n{text}"),
        Err(error) => error,
    }
}

/// Asserts that a text is refused with this message, and where the text has a `▶`, which is taken out of it.
#[track_caller]
fn refuses(text: &str, message: &str) {
    let (before, after) = text.split_once('▶').expect("the text shows where it is wrong");
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
    let error = refused(&format!("{before}{after}"));
    assert_eq!(error.to_string(), format!("flow.yaml:{line}:{column}: {message}"), "{text}");
    assert_eq!((error.line(), error.column()), (Some(line), Some(column)));
}

/// A workflow of one node.
fn one(node: &str) -> String {
    format!("name: w\nnodes:\n  a: {node}\n")
}

fn names(workflow: &Workflow, nodes: &[usize]) -> Vec<String> {
    nodes.iter().map(|&node| workflow.graph().name(node).to_owned()).collect()
}

fn dependencies(workflow: &Workflow, node: &str) -> Vec<String> {
    let index = workflow.graph().index_of(node).expect("the node is there");
    names(workflow, workflow.graph().dependencies(index))
}

#[test]
fn the_example_is_understood() {
    let workflow = parse(EXAMPLE);
    assert_eq!(workflow.name(), "research");
    let order: Vec<usize> = workflow.graph().nodes().collect();
    assert_eq!(names(&workflow, &order), ["plan", "search", "draft", "ok", "send"]);
    assert_eq!(dependencies(&workflow, "search"), ["plan"]);
    assert_eq!(dependencies(&workflow, "draft"), ["search"]);
    assert_eq!(dependencies(&workflow, "ok"), ["draft"]);
    assert_eq!(dependencies(&workflow, "send"), ["draft", "ok"]);
    let definition = workflow.definition();
    assert_eq!(definition.checkpoints.frequency, CheckpointFrequency::Always);
    assert_eq!(definition.checkpoints.max_checkpoints, 50);
    let plan = &definition.nodes["plan"];
    assert_eq!((plan.retry.max, plan.timeout), (3, Some(Duration::from_secs(60))));
    assert_eq!(plan.effect, Effect::Pure);
    assert_eq!(definition.nodes["send"].effect, Effect::External);
}

#[test]
fn short_forms_and_flow_style_are_understood() {
    let workflow = parse(
        r#"
name: research
inputs: { topic: { type: string } }        # given with -i topic=otters, or a JSON file
vars: { tone: dry }                        # the variables an execution starts with
checkpoints: { interval: 30s }
max_parallel: 4
nodes:
  plan:   { llm: { model: gpt-x, prompt: "Plan ${{ inputs.topic }}" }, retry: 3, timeout: 60s }
  search: { http: { url: "https://example.org/?q=${{ nodes.plan.output }}" } }
  draft:  { llm: { prompt: "${{ vars.tone }}: ${{ nodes.search.output }}" }, into: draft }   # into: also sets vars.draft
  ok:     { approval: "Publish?", if: "${{ vars.draft | length > 200 }}" }
  send:   { run: ./send.sh, needs: [ok], effect: external, compensate: { run: ./retract.sh } }
"#,
    );
    let definition = workflow.definition();
    assert_eq!(definition.checkpoints.frequency, CheckpointFrequency::TimeInterval(30));
    assert_eq!(
        definition.nodes["search"].kind,
        NodeKind::Http(Http::new("https://example.org/?q=${{ nodes.plan.output }}"))
    );
    assert_eq!(dependencies(&workflow, "ok"), ["draft"]);
    assert_eq!(dependencies(&workflow, "send"), ["ok"]);
}

#[test]
fn a_file_and_the_builder_make_the_same_definition() {
    let file = parse(
        "# all of it\n\
         name: w\n\
         inputs: { topic: string, n: { type: integer, default: 3 } }\n\
         vars: { tone: dry }\n\
         checkpoints: { before: [llm], max: 7, compress: true, long_node: false }\n\
         max_parallel: 2\n\
         nodes:\n\
         \x20 plan: { call: { name: plan, with: { topic: '${{ inputs.topic }}' } }, retry: 3 }\n\
         \x20 nap: { wait: 60s, needs: plan }\n\
         \x20 ask: { llm: { model: m, prompt: p }, into: draft, timeout: 1m 30s, retry: { max: 2, base: 2s } }\n\
         \x20 post: { http: { url: u, method: POST, json: ['${{ vars.draft }}'] }, on_error: continue }\n\
         \x20 ok: { approval: 'Publish?', if: true }\n\
         \x20 note: { set: { seen: '${{ nodes.post.output }}' } }\n\
         \x20 send: { run: ./send.sh, needs: [ok, note], effect: external, compensate: { run: ./retract.sh } }\n",
    );
    let built = Workflow::builder("w")
        .input("topic", InputSpec::string())
        .input("n", InputSpec::integer().or(json!(3)))
        .var("tone", json!("dry"))
        .checkpoints(CheckpointConfig {
            frequency: CheckpointFrequency::BeforeNodeTypes(vec!["llm".to_owned()]),
            max_checkpoints: 7,
            compress: true,
            auto_checkpoint_threshold_ms: None,
            ..CheckpointConfig::default()
        })
        .max_parallel(2)
        .node("send", {
            let retract = NodeKind::Run(Run::new("./retract.sh"));
            Node::run("./send.sh").needs(["note", "ok"]).effect(Effect::External).compensate(retract)
        })
        .node("plan", Node::call("plan").with(json!({"topic": "${{ inputs.topic }}"})).retry(3))
        .node("nap", Node::wait(Duration::from_secs(60)).needs(["plan"]))
        .node("ask", {
            let llm = Llm { model: Some("m".to_owned()), prompt: Some("p".to_owned()), ..Llm::default() };
            let retry = Retry { base: Duration::from_secs(2), ..Retry::from(2) };
            Node::new(NodeKind::Llm(Box::new(llm)))
                .into("draft")
                .timeout(Duration::from_secs(90))
                .retry(retry)
        })
        .node("post", {
            let json = Some(json!(["${{ vars.draft }}"]));
            Node::new(NodeKind::Http(Http { method: Method::Post, json, ..Http::new("u") }))
                .on_error(OnError::Continue)
        })
        .node("ok", Node::approval("Publish?").when("true"))
        .node("note", Node::set([("seen", json!("${{ nodes.post.output }}"))]))
        .build()
        .unwrap();
    assert_eq!(file.definition(), built.definition());
    assert_eq!(file.definition().hash(), built.definition().hash());
    assert_eq!(file.id(), built.id());
    assert_eq!(file.id().get_version_num(), 8);
}

#[test]
fn cosmetic_edits_keep_the_hash_and_others_change_it() {
    let hash = |text: &str| parse(text).definition().hash();
    let plain = "name: w\nvars: {b: 1, a: {y: 1, x: 2}}\nnodes:\n  n: {run: ls, timeout: 60s}\n  m: {run: 'true', needs: n}\n";
    let other = "# c\n{\"name\": \"w\", max_parallel: 4, nodes: {m: {needs: [n], run: {command: 'true'}}, \
                 n: {timeout: 1m, run: ls, retry: 0}}, vars: {a: {x: 2, y: 1}, b: 0x1}, checkpoints: {every: 5}}";
    assert_eq!(hash(plain), hash(other));
    assert_ne!(hash(plain), hash(&plain.replace("b: 1", "b: 2")));
    assert_ne!(hash(plain), hash(&plain.replace("needs: n", "into: n")));
}

#[test]
fn the_stored_form_comes_back_the_same_and_unknown_keys_in_it_are_refused() {
    let definition = parse(EXAMPLE).definition().clone();
    let stored = definition.to_json();
    let read = Definition::from_json(&stored).unwrap();
    assert_eq!(read, definition);
    assert_eq!(read.to_json(), stored);
    assert_eq!(Workflow::from_definition(read).unwrap().id(), definition.id());
    let newer = String::from_utf8(stored).unwrap().replacen('{', r#"{"alien":1,"#, 1);
    assert!(Definition::from_json(newer.as_bytes()).is_err());
}

/// The hash names a stored workflow: a change of it makes every stored execution's workflow another one.
#[test]
fn the_hash_of_a_definition_never_changes_between_versions() {
    let definition = parse("name: w\nnodes:\n  a: {run: ls, timeout: 90s}\n").definition().clone();
    assert_eq!(
        String::from_utf8(definition.to_json()).unwrap(),
        r#"{"checkpoints":{"auto_checkpoint_threshold_ms":60000,"compress":false,"enabled":true,"frequency":{"EveryNNodes":5},"max_checkpoints":10},"name":"w","nodes":{"a":{"effect":"idempotent","kind":{"run":{"command":"ls"}},"timeout":"1m 30s"}}}"#
    );
    assert_eq!(definition.hash(), "b8259177e811f6ec2113b59b5c315cac32b8ec580f3bcb27249d1bd67ffae91b");
}

#[test]
fn json_is_read_with_its_tabs_and_surrogate_pairs_and_points_at_lines() {
    let workflow =
        parse("{\n\t\"name\":\t\"w\",\r\n\t\"nodes\": {\"a\": {\"run\": \"echo \\ud83e\\udda6\"}}\n}");
    assert_eq!(workflow.definition().nodes["a"].kind, NodeKind::Run(Run::new("echo 🦦")));
    refuses(
        "{\n\t\"name\": \"w\",\n\t\"nodes\": {\"a\": {\"run\": \"x ${{ ▶vars.y }}\"}}\n}",
        "unknown variable `y`",
    );
    refuses("{\"name\": \"w\", \"nodes\": {}, ▶\"nodes\": {}}", "the key `nodes` stands here twice");
    refuses("{\"name\": ▶12345678901234567890123}", "this integer does not fit into 64 bits");
    refuses("{\"name\": ▶\"\\ud800\"}", "this is no JSON string: an escape in it means nothing");
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    assert_eq!(parse("\u{feff}name: w\nnodes: {a: {run: ls}}").name(), "w");
    let error = refused("\u{feff}nam: w");
    assert_eq!(error.to_string(), "flow.yaml:1:1: unknown key `nam`");
}

#[test]
fn variables_that_nodes_write_tie_their_readers_to_all_writers() {
    let workflow = parse(
        "name: w\nvars: {count: 0}\nnodes:\n\
         \x20 one: {set: {count: '${{ vars.count + 1 }}'}, if: nodes.gate.status != 'skipped'}\n\
         \x20 two: {run: ls, into: count}\n\
         \x20 gate: {run: ls}\n\
         \x20 read: {run: 'echo ${{ vars.count }}'}\n",
    );
    assert_eq!(dependencies(&workflow, "one"), ["gate", "two"]);
    assert_eq!(dependencies(&workflow, "read"), ["two", "one"]);
    let graph = workflow.graph();
    let at = |name| graph.index_of(name).unwrap();
    assert!(graph.consults_status(at("one"), at("gate")));
    assert!(!graph.consults_status(at("one"), at("two")));
    assert_eq!(graph.index_of_id(&retake::execution::node_id("read")), Some(at("read")));
}

#[test]
fn a_cycle_is_refused_and_explained() {
    let text = "name: w\nnodes:\n  c: {run: ls, needs: a}\n  ▶a: {run: 'echo ${{ nodes.b.output }}', into: x}\n  b: {run: 'echo ${{ vars.x }}'}\n";
    refuses(text, "nodes wait for each other: a -> b -> a");
    assert_eq!(
        refused(&text.replace('▶', "")).problems().next().unwrap().hint(),
        Some("`a` mentions `nodes.b`; `b` reads `vars.x`, which `a` writes")
    );
    refuses(&one("{run: ls, needs: a}").replace("a: {", "▶a: {"), "nodes wait for each other: a -> a");
    refuses(
        &one("{run: 'echo ${{ nodes.a.output }}'}").replace("a: {", "▶a: {"),
        "nodes wait for each other: a -> a",
    );
    parse(&one("{run: ls, compensate: {run: 'undo ${{ nodes.a.output }}'}}"));
    parse("name: w\nvars: {n: 1}\nnodes:\n  a: {set: {n: '${{ vars.n + 1 }}'}}\n");
}

#[test]
fn what_does_not_exist_is_refused_where_it_stands() {
    refuses(&one("{run: 'cat ${{ ▶inputs.file }}'}"), "unknown input `file`");
    refuses(
        &one("{run: $▶{{ vars.x | lower }}"),
        "this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'",
    );
    refuses(
        "name: w\nnodes:\n  a:\n    run: |\n      set -e\n      echo ${{ ▶nodes.z.output }}\n",
        "unknown node `z`",
    );
    refuses("name: w\nnodes:\n  a:\n    run: echo ${{ vars.x | ▶uper }}\n", "unknown filter `uper`");
    refuses("name: w\nnodes:\n  a:\n    run: echo ▶${{ vars.x\n", "`${{` is not closed");
    refuses("name: w\nnodes:\n  a:\n    run: >\n      ▶echo\n      ${{ vars.x }}\n", "unknown variable `x`");
    refuses(&one("{run: ls, needs: [▶a1, b]}"), "unknown node `a1` in needs (and 1 more problem)");
    refuses(&one("{run: ls, if: '▶vars.x > 1'}"), "unknown variable `x`");
    refuses(&one("{run: ls, if: '▶${{ 1 }} > 1'}"), "a condition is one expression, with nothing beside it");
    refuses(
        "name: w\nvars: {a: '${{ ▶vars.b }}', b: 1}\nnodes: {a: {run: ls}}",
        "a variable cannot start with this: no node has run yet",
    );
    refuses(
        &one("{set: {k: '${{ ▶secrets.K }}'}}"),
        "a secret cannot stand here: what stands here is saved and shown",
    );
}

#[test]
fn values_that_make_no_sense_are_refused_where_they_stand() {
    refuses(
        &one("{run: ls, timeout: ▶60}"),
        "invalid type: integer `60`, expected a duration with its unit, such as `500ms`, `60s` or `1h 30m`",
    );
    refuses(
        &one("{run: ls, timeout: ▶'60'}"),
        "`60` is not a duration: write a number with a unit, such as `500ms`, `60s` or `1h 30m`",
    );
    refuses(&one("{run: ls, timeout: ▶0s}"), "a timeout of 0 would end the node before it starts");
    refuses(
        &one("{wait: ▶soon}"),
        "`soon` is not a duration: write a number with a unit, such as `500ms`, `60s` or `1h 30m`",
    );
    refuses(&one("{wait: {until: ▶noon}}"), "`noon` is no moment: write one such as `2026-01-31T12:00:00Z`");
    refuses(
        &one("{run: ▶5}"),
        "invalid type: integer `5`, expected a command as text, or a map with `command`",
    );
    refuses(&one("{run: {▶cmd: ls}}"), "unknown key `cmd`");
    refuses(&one("{run: ls, effect: ▶externl}"), "unknown value `externl`");
    refuses(
        &one("{run: ls, retry: ▶-1}"),
        "invalid type: integer `-1`, expected a number of retries, or a map with `max`",
    );
    refuses(&one("{run: ls, ▶retry: {base: 1s}}"), "missing field `max`");
    refuses(&one("{run: ls, into: ▶my-var}"), "`my-var` is no name for a variable");
    refuses(&one("{▶llm: {model: m}}"), "`llm` asks nothing");
    refuses(&one("{http: {url: u, body: x, ▶json: 1}}"), "a request has one body: `body` or `json`");
    refuses(&one("{http: {url: u, method: ▶get}}"), "unknown value `get`");
    refuses(&one("{run: ls, compensate: {▶llm: x}}"), "unknown key `llm`");
    refuses("name: w\nmax_parallel: ▶0\nnodes: {a: {run: ls}}", "with `max_parallel` of 0 nothing would run");
    refuses(
        "name: w\ncheckpoints: {every: ▶0}\nnodes: {a: {run: ls}}",
        "a checkpoint every 0 nodes cannot be made: use 1 or more, or `manual` for none",
    );
    refuses(
        "name: w\ncheckpoints: {every: 2, ▶interval: 3s}\nnodes: {a: {run: ls}}",
        "`every` and `interval` both say when to checkpoint: use one",
    );
    refuses("name: w\ncheckpoints: {before: [▶lm]}\nnodes: {a: {run: ls}}", "unknown kind of node `lm`");
    refuses(
        "name: w\ninputs: {n: {type: integer, default: ▶x}}\nnodes: {a: {run: ls}}",
        "the default of input `n` must be an integer",
    );
    refuses("name: w\n▶nodes: {}", "a workflow has at least one node");
    refuses("name: ▶''\nnodes: {a: {run: ls}}", "a workflow's name is one line of 1 to 100 bytes");
}

#[test]
fn a_node_has_exactly_one_kind_and_a_plain_id() {
    refuses(&one("{needs: []}").replace("a: {", "▶a: {"), "node `a` has no kind");
    refuses(&one("{run: ls, ▶http: u}"), "node `a` has two kinds: `run` and `http`");
    refuses(&one("{run: ls, ▶compensate: {}}"), "a compensation has no kind");
    refuses("name: w\nnodes:\n  ▶My-Node: {run: ls}\n", "`My-Node` is no id of a node");
    refuses(
        "name: w\nnodes:\n  ▶\"ключ🦦\": {run: ls, into: x}\n  b: {run: 'ё ${{ vars.y }}'}",
        "`ключ🦦` is no id of a node (and 1 more problem)",
    );
}

#[test]
fn every_problem_is_reported_in_the_order_of_the_file() {
    let error =
        refused("name: w\nnodes:\n  z: {run: ls, needs: y}\n  a: {run: 'echo ${{ vars.x }}', timeout: 0s}\n");
    let places: Vec<_> = error.problems().map(|problem| (problem.line(), problem.column())).collect();
    assert_eq!(places, [(Some(3), Some(23)), (Some(4), Some(22)), (Some(4), Some(43))]);
    let paths: Vec<_> = error.problems().map(|problem| problem.path().to_owned()).collect();
    assert_eq!(paths, ["nodes.z.needs.y", "nodes.a.run.command", "nodes.a.timeout"]);
}

#[test]
fn texts_that_are_no_workflow_are_refused() {
    refuses("▶", "the file is empty");
    refuses("▶ \n\n", "the file is empty");
    refuses("▶# nothing\n", "the file is empty: there are only comments in it");
    refuses("▶just text", "a workflow is a map, with `name` and `nodes` at least");
    refuses("▶[1]", "a workflow is a map, with `name` and `nodes` at least");
    refuses("▶name: w", "missing field `nodes`");
    refuses("a: b▶: c", "this is not YAML: mapping values are not allowed in this context");
    refuses(
        "name: w\nnodes:\n\t▶a: 1",
        "this is not YAML: tabs disallowed within this context (block indentation)",
    );
    refuses("name: w\n▶name: v", "the key `name` stands here twice");
    refuses("name: w\n▶---\nname: v", "a second document begins here: a file holds one workflow");
    refuses("name: ▶&n w\nnodes: *n", "anchors are not supported: repeat the value");
    refuses("name: ▶!!str w", "tags are not supported");
    refuses("name: w\nvars:\n  n: ▶99999999999999999999", "this integer does not fit into 64 bits");
    refuses("name: w\nvars: {n: ▶.nan}", "infinity and NaN are no numbers that can be stored");
    refuses("name: w\nvars: {▶1: x}", "keys are text");
    refuses("? ▶[a]\n: b", "a list or map cannot be a key: keys are text");
    assert_eq!(
        refused("name: w\nname: v").problems().next().unwrap().hint(),
        Some("it stands first in line 1, column 1")
    );
}

#[test]
fn texts_too_deep_or_too_large_are_refused() {
    let message = "lists and maps are nested more than 100 deep";
    refuses(&format!("a: {}▶{}", "[".repeat(255), "[".repeat(10_000)), message);
    refuses(&format!("a: {}▶{}", "[".repeat(99), "[".repeat(100)), message);
    refuses(&format!("{}▶{}", "- ".repeat(100), "- ".repeat(10_000)), message);
    refuses(&format!("{{\"a\": {}▶{}{}}}", "[".repeat(99), "[".repeat(10_000), "]".repeat(10_099)), message);
    let error = refused(&"a".repeat(10_000_000));
    assert_eq!(
        error.to_string(),
        format!("flow.yaml: the file has 10000000 bytes: a workflow has at most {FILE_BYTES_MAX}")
    );
    assert_eq!(error.line(), None);
    let widest =
        format!("name: w\nnodes: {{a: {{run: ls}}}}\nvars: {{ v: \"{}\" }}", "x".repeat(FILE_BYTES_MAX - 50));
    assert_eq!(parse(&widest).graph().len(), 1);
}

#[test]
fn a_file_of_nothing_but_mistakes_is_refused_soon() {
    let mut text = "name: w\nnodes:\n".to_owned();
    for node in 0..9_000 {
        text.push_str(&format!(
            "  n{node}: {{run: '${{{{ vars.x{node} }}}}', needs: [m{node}, \"{}\"]}}\n",
            "q".repeat(50)
        ));
    }
    assert_eq!(refused(&text).problems().count(), 50);
    let long = "z".repeat(FILE_BYTES_MAX - 100);
    assert!(refused(&one(&format!("{{{long}: ls}}"))).to_string().len() < 200);
    assert!(refused(&one(&format!("{{run: ls, timeout: {long}}}"))).to_string().len() < 500);
}

#[test]
fn a_variable_with_too_many_writers_and_readers_is_refused() {
    let mut text = "name: w\nnodes:\n".to_owned();
    for node in 0..2_000 {
        text.push_str(&format!("  w{node}: {{set: {{x: 1}}}}\n  r{node}: {{run: '${{{{ vars.x }}}}'}}\n"));
    }
    refuses(&text.replace("nodes:", "▶nodes:"), "the nodes have more than 1000000 dependencies");
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_where_they_stand() {
    let error = Workflow::from_bytes("flow.yaml", b"name: w\nvars: {\xc3\xa9: \xff}").unwrap_err();
    assert_eq!(error.to_string(), "flow.yaml:2:11: the file is not UTF-8 from here on");
    assert_eq!(Workflow::from_bytes("f", b"\xef\xbb\xbfname: w\nnodes: {a: {run: ls}}").unwrap().name(), "w");
}

#[test]
fn a_definition_without_a_file_is_refused_with_its_path() {
    let error = Workflow::builder("w")
        .node("a", Node::run("echo ${{ vars.x }}"))
        .node("b", Node::run("ls").needs(["c"]))
        .node("b", Node::run("ls"))
        .build()
        .unwrap_err();
    assert_eq!(error.to_string(), "w: nodes.b: `b` is added twice (and 1 more problem)");
    let paths: Vec<_> = error.problems().map(|problem| problem.path().to_owned()).collect();
    assert_eq!(paths, ["nodes.b", "nodes.a.run.command"]);
    assert_eq!(error.line(), None);
}

#[test]
fn inputs_are_checked_against_the_definition() {
    let workflow = parse(
        "name: w\ninputs: {topic: string, n: {type: integer, default: 3}, x: {default: null}}\nnodes: {a: {run: ls}}",
    );
    let given = |pairs: &[(&str, serde_json::Value)]| {
        let given = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        workflow.definition().inputs_from(given.collect::<BTreeMap<_, _>>())
    };
    let inputs = given(&[("topic", json!("otters"))]).unwrap();
    assert_eq!(json!(inputs), json!({"topic": "otters", "n": 3, "x": null}));
    let message = |result: Result<_, retake::workflow::InputError>| {
        result.map(|_: BTreeMap<_, _>| ()).unwrap_err().to_string()
    };
    assert_eq!(message(given(&[])), "input `topic` is missing: it must be text");
    assert_eq!(message(given(&[("topic", json!(5))])), "input `topic` must be text");
    assert_eq!(message(given(&[("topik", json!("x"))])), "unknown input `topik`: did you mean `topic`?");
}

#[test]
fn the_schema_knows_every_key_that_the_file_does() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let keys = |schema: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&schema), ["checkpoints", "inputs", "max_parallel", "name", "nodes", "vars"]);
    assert_eq!(schema["additionalProperties"], false);
    let node = &schema["$defs"]["NodeFile"];
    assert_eq!(
        keys(node),
        [
            "approval",
            "call",
            "compensate",
            "effect",
            "http",
            "if",
            "into",
            "llm",
            "needs",
            "on_error",
            "retry",
            "run",
            "set",
            "timeout",
            "wait"
        ]
    );
    let kinds: Vec<_> = node["oneOf"].as_array().unwrap().iter().map(|kind| &kind["required"][0]).collect();
    assert_eq!(json!(kinds), json!(NodeKind::NAMES));
    for definition in ["Run", "Http", "Llm", "Call", "Retry", "CheckpointsFile"] {
        for (key, property) in schema["$defs"][definition]["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{definition}.{key} is not described");
        }
    }
    // A key that the schema has and the decoder has not, or the other way, is refused by the decoder with its list.
    let known = refused(&one("{zzzzzzzzzz: 1}"));
    let hint = known.problems().next().unwrap().hint().unwrap().to_owned();
    assert!(hint.contains("and 5 more"), "{hint}");
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
        let _ = Workflow::parse("any", &text);
    }

    #[test]
    fn no_text_of_the_signs_that_matter_makes_the_parser_panic(
        text in r#"([ \n\t\[\]{}:,"'|>&*!%#?~.0-9-]|\$\{\{|\}\}|name|nodes|run|if|vars|é|\\){0,80}"#
    ) {
        let _ = Workflow::parse("any", &text);
    }

    #[test]
    fn no_expression_makes_the_parser_panic(text in r#"([ ()\[\]{}:,"'|.~+*/%<>=!0-9-]|vars|nodes|a|if|else|is|not|é|\\){0,40}"#) {
        let _ = Workflow::parse("any", &format!("name: w\nvars: {{a: 1}}\nnodes:\n  a:\n    run: |\n      ${{{{ {text} }}}}\n"));
        let _ = retake::workflow::Template::condition(&text);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Workflow::from_bytes("any", &bytes);
    }

    #[test]
    fn an_edit_of_the_example_is_read_or_refused(at in 0..EXAMPLE.len(), len in 0..20_usize, new in "[ -~\n]{0,5}") {
        let mut text = EXAMPLE.to_owned();
        let start = text.floor_char_boundary(at);
        let end = text.floor_char_boundary((at + len).min(text.len()));
        text.replace_range(start..end, &new);
        if let Err(error) = Workflow::parse("any", &text) {
            prop_assert!(error.line().is_some() && error.column().is_some(), "{}", error);
        }
    }
}
