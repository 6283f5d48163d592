//! Differences between two points: what is told, that a patch of it does what it says, and that a pair loaded from a
//! store differs as its states do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use chrono::DateTime;
use proptest::prelude::*;
use retake::clock::{Clock, SystemClock};
use retake::engine::{
    Diff, Effects, Engine, EngineError, Fork, NodeContext, NodeError, Redefine, Registry, Resume, Side,
    Start, ValueChange, ValueEdit, diff,
};
use retake::execution::{
    ExecutionContext, ExecutionResult, ExecutionState, NodeExecutionResult, NodeMetrics, TokenUsage, node_id,
};
use retake::store::{
    Cause, Commit, MemoryStore, NewCheckpoint, NewExecution, NewOperation, SqliteStore, Store, StoreError,
    delta,
};
use retake::workflow::{Node, Workflow};
use serde_json::{Map, Value, json};
use uuid::Uuid;

fn state() -> ExecutionContext {
    ExecutionContext::with_id(Uuid::from_u128(1), Uuid::from_u128(2), DateTime::UNIX_EPOCH)
}

fn bare(ctx: &ExecutionContext) -> Side<'_> {
    Side { ctx, workflow: None }
}

fn of<'a>(ctx: &'a ExecutionContext, workflow: &'a Workflow) -> Side<'a> {
    Side { ctx, workflow: Some(workflow) }
}

fn result(result: ExecutionResult, cost_usd: Option<f64>) -> NodeExecutionResult {
    let token_usage = Some(TokenUsage::new(1, 1));
    let metrics = NodeMetrics { cost_usd, token_usage, ..NodeMetrics::default() };
    NodeExecutionResult::started(DateTime::UNIX_EPOCH)
        .completed(result, DateTime::UNIX_EPOCH)
        .with_metrics(metrics)
}

fn done(output: Value, cost_usd: Option<f64>) -> NodeExecutionResult {
    result(ExecutionResult::Success(output), cost_usd)
}

fn patched(diff: &Diff, before: &Side<'_>, after: &Side<'_>) -> Value {
    let mut document = before.document();
    json_patch::patch(&mut document, &diff.patch(after)).unwrap();
    document
}

#[test]
fn variables_are_told_by_name_and_path() {
    let mut before = state();
    for (name, value) in [("gone", json!(1)), ("same", json!([1])), ("config", json!({"a": {"b": 1}}))] {
        before.set_variable(name.into(), value);
    }
    let mut after = before.clone();
    after.variables.remove("gone");
    after.set_variable("config".into(), json!({"a": {"b": 2}}));
    after.append("log", json!("first")).unwrap();
    let diff = diff(&bare(&before), &bare(&after));
    assert_eq!(
        json!(diff.variables),
        json!({
            "config": [{"path": "/a/b", "change": "replaced", "from": 1, "to": 2}],
            "gone": [{"path": "", "change": "removed", "from": 1}],
            "log": [{"path": "", "change": "added", "to": ["first"]}],
        })
    );
    assert_eq!(diff.status, None);
    assert!(!diff.is_empty());
    assert!(diff.nodes.is_empty());
}

#[test]
fn an_append_is_told_without_what_was_there_before() {
    let mut before = state();
    before.set_variable("messages".into(), json!(["a", "b"]));
    before.set_variable("text".into(), json!("one\n"));
    let mut after = before.clone();
    after.append("messages", json!({"n": 1})).unwrap();
    after.append("messages", json!({"n": 2})).unwrap();
    after.append("text", json!("two\n")).unwrap();
    let diff = diff(&bare(&before), &bare(&after));
    let change = |name: &str| diff.variables[name].iter().map(|edit| edit.change.clone()).collect::<Vec<_>>();
    let items = vec![json!({"n": 1}), json!({"n": 2})];
    assert_eq!(change("messages"), [ValueChange::AppendedItems { start: 2, items }]);
    assert_eq!(change("text"), [ValueChange::AppendedText { start: 4, text: "two\n".into() }]);
    assert_eq!(patched(&diff, &bare(&before), &bare(&after)), bare(&after).document());
}

#[test]
fn a_node_that_ran_again_and_gave_the_same_is_no_difference() {
    let mut before = state();
    before.record_node_result(node_id("a"), done(json!("x"), Some(0.5)));
    let mut after = before.clone();
    let mut again = done(json!("x"), Some(0.5));
    again.started_at = DateTime::from_timestamp(9, 0).unwrap();
    again.idempotency_key = Some("another".into());
    again.retry_count = 3;
    after.record_node_result(node_id("a"), again);
    assert!(diff(&bare(&before), &bare(&after)).is_empty());
}

#[test]
fn nodes_are_told_with_status_output_error_and_cost_in_the_order_in_which_they_run() {
    let workflow = Workflow::builder("test")
        .node("z", Node::call("work"))
        .node("a", Node::call("work").needs(["z"]))
        .node("m", Node::call("work").needs(["a"]))
        .build()
        .unwrap();
    let mut before = state();
    before.record_node_result(node_id("z"), done(json!({"n": 1}), Some(0.1)));
    before.record_node_result(node_id("a"), done(json!("kept"), Some(0.2)));
    let mut after = before.clone();
    after.record_node_result(node_id("z"), done(json!({"n": 2}), Some(0.3)));
    after.record_node_result(node_id("m"), result(ExecutionResult::Failure("boom".into()), None));
    after.state = ExecutionState::Failed("node m".into());
    let diff = diff(&of(&before, &workflow), &of(&after, &workflow));
    assert_eq!(diff.nodes.iter().map(|diff| diff.node.as_str()).collect::<Vec<_>>(), ["z", "m"]);
    assert_eq!(
        json!(diff)["nodes"],
        json!({
            "z": {
                "from": {"status": "success", "error": null, "cost_usd": "0.1"},
                "to": {"status": "success", "error": null, "cost_usd": "0.3"},
                "output": [{"path": "/n", "change": "replaced", "from": 1, "to": 2}],
            },
            "m": {
                "from": {"status": "pending", "error": null, "cost_usd": null},
                "to": {"status": "failure", "error": "boom", "cost_usd": null},
                "output": [],
            },
        })
    );
    assert_eq!(
        json!(diff.status),
        json!({"from": {"status": "running", "error": null}, "to": {"status": "failed", "error": "node m"}})
    );
    // A price that is not known makes a sum unknown, never smaller.
    assert_eq!(json!(diff.spend), json!({"from": "0.3", "to": null}));
    assert_eq!(
        patched(&diff, &of(&before, &workflow), &of(&after, &workflow)),
        of(&after, &workflow).document()
    );
}

#[test]
fn definitions_are_compared_by_their_parsed_form_and_only_where_they_are_others() {
    let node = |with: &str| Node::call("work").with(json!({"prompt": with}));
    let build = |prompt: &str, extra: &str, tone: &str| {
        Workflow::builder("test")
            .var("tone", json!(tone))
            .node("a", node(prompt))
            .node("b", Node::call("work"))
            .node(extra, Node::call("work"))
            .build()
            .unwrap()
    };
    let (older, newer) = (build("one", "old", "dry"), build("two", "new", "warm"));
    let (mut before, mut after) = (state(), state());
    before.workflow_id = older.id();
    after.workflow_id = newer.id();
    before.record_node_result(node_id("old"), done(json!(1), None));
    let (older_side, newer_side) = (of(&before, &older), of(&after, &newer));
    let found = diff(&older_side, &newer_side);
    let definition = found.definition.as_ref().unwrap();
    assert_eq!((definition.from, definition.to), (older.id(), newer.id()));
    let told: Vec<(&str, &str)> =
        definition.nodes.iter().map(|(name, edits)| (name.as_str(), edits[0].path.as_str())).collect();
    assert_eq!(told, [("a", "/kind/call/with/prompt"), ("new", ""), ("old", "")]);
    let paths: Vec<&str> = definition.rest.iter().map(|edit| edit.path.as_str()).collect();
    assert_eq!(paths, ["/vars/tone"]);
    let presence: Vec<(&str, bool, bool)> =
        found.nodes.iter().map(|diff| (diff.node.as_str(), diff.from.is_some(), diff.to.is_some())).collect();
    assert_eq!(presence, [("new", false, true), ("old", true, false)]);
    assert_eq!(patched(&found, &older_side, &newer_side), newer_side.document());

    after.workflow_id = older.id();
    assert_eq!(diff(&of(&before, &older), &of(&after, &older)).definition, None);
    after.workflow_id = newer.id();
    let unknown = diff(&bare(&before), &bare(&after)).definition.unwrap();
    assert!(unknown.nodes.is_empty() && unknown.rest.is_empty());
}

#[test]
fn a_narrowed_diff_has_only_what_was_named() {
    let mut before = state();
    before.inputs.insert("i".into(), json!(1));
    let mut after = state();
    for name in ["a", "b"] {
        after.set_variable(name.into(), json!(1));
        after.record_node_result(node_id(name), done(json!(1), None));
    }
    after.cancel();
    let mut narrow = diff(&bare(&before), &bare(&after));
    let id = node_id("a").to_string();
    narrow.narrow(&["b".into()], std::slice::from_ref(&id));
    assert_eq!(narrow.variables.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(narrow.nodes.iter().map(|diff| &diff.node).collect::<Vec<_>>(), [&id]);
    assert_eq!((narrow.status.is_none(), narrow.inputs.len()), (true, 0));
    assert!(bare(&after).has_node(&id) && !bare(&before).has_node(&id) && !bare(&after).has_node("a"));
    narrow.narrow(&[], &[]);
    assert!(narrow.is_empty());
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..4_i64).prop_map(Value::from),
        prop_oneof![Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 53)].prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON knows no infinity", |n| n.is_finite()).prop_map(Value::from),
        "[ab~/\n]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Few keys, so that two objects share some; and those that a pointer has to escape.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "b", "0", "-", "~", "/", "~1", "ü\n"]).prop_map(str::to_owned)
}

fn standing_result() -> impl Strategy<Value = NodeExecutionResult> {
    let found = prop_oneof![
        Just(ExecutionResult::Pending),
        Just(ExecutionResult::Skipped),
        "[a-c]{0,2}".prop_map(ExecutionResult::Failure),
        value().prop_map(ExecutionResult::Success),
    ];
    (found, prop::option::of(0..3_u8)).prop_map(|(found, cost)| result(found, cost.map(f64::from)))
}

fn any_state() -> impl Strategy<Value = ExecutionContext> {
    let stands = prop_oneof![
        Just(ExecutionState::Running),
        Just(ExecutionState::Completed),
        "[ab]".prop_map(ExecutionState::Failed)
    ];
    let variables = || prop::collection::vec((key(), value()), 0..6);
    let nodes = prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), standing_result()), 0..4);
    (stands, variables(), variables(), nodes).prop_map(|(stands, inputs, variables, nodes)| {
        let mut ctx = state();
        ctx.state = stands;
        ctx.inputs.extend(inputs);
        ctx.variables.extend(variables);
        for (node, result) in nodes {
            ctx.record_node_result(node_id(node), result);
        }
        ctx
    })
}

/// A state, and another that came of it or that has nothing to do with it.
fn two_states() -> impl Strategy<Value = (ExecutionContext, ExecutionContext)> {
    let appended = prop::collection::vec((key(), value()), 0..6);
    let kin = (any_state(), any_state(), appended).prop_map(|(before, other, appended)| {
        let mut after = before.clone();
        after.state = other.state;
        other.variables.iter().take(2).for_each(|(name, value)| {
            after.set_variable(name.clone(), value.clone());
        });
        for (name, value) in appended {
            // Not everything takes an append.
            let _refused = after.append(&name, value);
        }
        (before, after)
    });
    prop_oneof![(any_state(), any_state()), kin]
}

fn workflow() -> Workflow {
    Workflow::builder("test").node("a", Node::call("w")).node("d", Node::call("w")).build().unwrap()
}

/// Saves two states of one execution, and loads them as a pair.
async fn loaded(store: Arc<dyn Store>, states: [&ExecutionContext; 2]) -> [Diff; 2] {
    let clock = SystemClock::default();
    let id = clock.new_id();
    let new = NewExecution {
        id,
        name: id.to_string(),
        workflow_id: states[0].workflow_id,
        workflow_name: "test".into(),
        definition: Vec::new(),
        origin: None,
    };
    let checkpoint = |before, state: &ExecutionContext| NewCheckpoint {
        delta: delta(before, state, |_| None).unwrap(),
        ..NewCheckpoint::new(clock.new_id(), clock.now(), state.state.clone(), Cause::Save)
    };
    store.create(new, checkpoint(None, states[0])).await.unwrap();
    let checkpoint = checkpoint(Some(states[0]), states[1]);
    store.commit(Commit { execution_id: id, expected_head: 1, fence: None, checkpoint }).await.unwrap();
    let engine = Engine::new(store);
    [engine.diff((id, 1), (id, 2)).await.unwrap(), engine.diff((id, 2), (id, 1)).await.unwrap()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_patch_turns_the_one_document_into_the_other((before, after) in two_states()) {
        let workflow = workflow();
        for (before, after) in [
            (bare(&before), bare(&after)),
            (of(&after, &workflow), of(&before, &workflow)),
            (bare(&before), of(&after, &workflow)),
            (of(&before, &workflow), bare(&after)),
        ] {
            let found = diff(&before, &after);
            prop_assert_eq!(patched(&found, &before, &after), after.document());
            prop_assert!(diff(&after, &after).is_empty());
        }
    }

    #[test]
    fn a_pair_from_a_store_differs_as_its_states_do((before, after) in two_states()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(loaded(Arc::new(MemoryStore::new()), [&before, &after]));
        prop_assert_eq!(&found[0], &diff(&bare(&before), &bare(&after)));
        prop_assert_eq!(&found[1], &diff(&bare(&after), &bare(&before)));
    }
}

#[tokio::test]
async fn a_fork_differs_from_its_origin_by_what_it_was_given_and_did() {
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(
        Registry::new().with("work", async |ctx: NodeContext| {
            Ok::<_, NodeError>(ctx.variable("tone").unwrap_or_default())
        }),
    );
    let workflow =
        Workflow::builder("test").var("tone", json!("dry")).node("a", Node::call("work")).build().unwrap();
    let run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    let origin = run.drive().await.unwrap();
    let point = (origin.execution, origin.head);
    let fork = async |name: &str, set: Option<Value>| {
        let set = set.map(|value| ("tone".to_owned(), value)).into_iter().collect();
        let plan = engine.plan_fork(point.0, point.1, &Fork { set, ..Fork::default() }).await.unwrap();
        let operation = NewOperation { who: "tester".into(), command: "test".into() };
        engine.fork(plan, Some(name.to_owned()), operation).await.unwrap().execution
    };
    let same = fork("same", None).await;
    assert!(engine.diff(point, (same, 1)).await.unwrap().is_empty());

    let other = fork("other", Some(json!("warm"))).await;
    let found = engine.diff(point, (other, 1)).await.unwrap();
    let replaced = json!([{"path": "", "change": "replaced", "from": "dry", "to": "warm"}]);
    assert_eq!(json!(found.variables), json!({"tone": replaced}));
    assert_eq!(found.status.unwrap().to.status, "paused");
    assert_eq!((found.nodes[0].node.as_str(), found.nodes.len()), ("a", 1));
    assert_eq!(found.definition, None);

    let outcome = engine.resume(other, Resume::default()).await.unwrap().drive().await.unwrap();
    let found = engine.diff(point, (other, outcome.head)).await.unwrap();
    assert_eq!(json!(found.nodes[0].output), replaced);
    assert_eq!(found.nodes[0].from, found.nodes[0].to);
    assert_eq!(found.status, None);
}

#[tokio::test]
async fn an_execution_that_was_given_another_workflow_differs_from_its_past_by_it() {
    let engine = Engine::new(Arc::new(MemoryStore::new()))
        .with_registry(Registry::new().with("work", async |_: NodeContext| Ok::<_, NodeError>(json!(1))));
    let build = |name: &str| {
        Workflow::builder("test").node("a", Node::call("work")).node(name, Node::call("work")).build()
    };
    let run = engine.start(Arc::new(build("b").unwrap()), Start::default()).await.unwrap();
    let outcome = run.drive().await.unwrap();
    let redefine = Redefine { workflow: build("c").unwrap(), effects: Effects::default() };
    let plan = engine.plan_redefinition(outcome.execution, redefine).await.unwrap();
    let operation = NewOperation { who: "tester".into(), command: "test".into() };
    let head = engine.apply(plan, operation).await.unwrap();
    let id = outcome.execution;
    let found = engine.diff((id, outcome.head), (id, head)).await.unwrap();
    let definition = found.definition.unwrap();
    assert_eq!(definition.nodes.keys().collect::<Vec<_>>(), ["b", "c"]);
    let presence: Vec<_> =
        found.nodes.iter().map(|diff| (&*diff.node, diff.from.is_some(), diff.to.is_some())).collect();
    assert_eq!(presence, [("c", false, true), ("b", true, false)]);
}

#[tokio::test]
async fn a_pair_from_a_file_differs_as_its_states_do() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(directory.path().join("store.db")).unwrap());
    let mut before = state();
    for n in 0..1_000 {
        before.set_variable(format!("v{n}"), json!({"n": n}));
    }
    before.set_variable("list".into(), json!([0]));
    let mut after = before.clone();
    after.append("list", json!(u64::MAX)).unwrap();
    after.set_variable("v500".into(), json!({"n": 0}));
    after.variables.remove("v999");
    let found = loaded(store.clone(), [&before, &after]).await;
    assert_eq!(found[0], diff(&bare(&before), &bare(&after)));
    assert_eq!(found[1], diff(&bare(&after), &bare(&before)));
    let told: Vec<(&String, &ValueEdit)> =
        found[0].variables.iter().map(|(name, edits)| (name, &edits[0])).collect();
    assert_eq!(told.len(), 3);
    assert_eq!(told[0].1.change, ValueChange::AppendedItems { start: 1, items: vec![json!(u64::MAX)] });

    let nobody = (Uuid::from_u128(77), 1);
    let error = Engine::new(store).diff(nobody, nobody).await.unwrap_err();
    assert!(matches!(error, EngineError::Store(StoreError::NoExecution(id)) if id == nobody.0), "{error}");
}
