//! Edits, forks and other definitions: what their plans say, and what they record.

use retake::engine::{Edit, Fork, Redefine, VariableChange};

use super::*;

fn output_of(node: &str, value: Value) -> Edit {
    Edit { outputs: BTreeMap::from([(node.to_owned(), value)]), ..Edit::default() }
}

#[tokio::test]
async fn a_plan_names_the_outputs_that_change_and_those_that_go() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_edit(outcome.execution, &output_of("b", json!("other"))).await.unwrap();
    let change = VariableChange { from: Some(json!("a done dry")), to: Some(json!("other")) };
    assert_eq!(plan.outputs, BTreeMap::from([("b".to_owned(), change)]));
    assert_eq!(plan.forgotten, ["d"]);
    let same = engine.plan_edit(outcome.execution, &output_of("b", json!("a done dry"))).await.unwrap();
    assert_eq!((same.outputs, same.forgotten), (BTreeMap::new(), Vec::new()));
    assert_eq!(same.keep, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn what_failed_has_nothing_to_lose() {
    let journal = Journal::default();
    journal.fail(&["c"]);
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    let mended = Workflow::builder("mended")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .node("a", work())
        .node("c", work().with(json!("mended")))
        .build()
        .unwrap();
    let request = Redefine { workflow: mended, effects: Effects::Refuse };
    let plan = engine.plan_redefinition(outcome.execution, request).await.unwrap();
    let because = "its definition changes".to_owned();
    assert_eq!(plan.rerun, [Rerun { node: "c".into(), because }]);
    assert_eq!((&plan.removed, &plan.forgotten), (&vec!["b".to_owned()], &vec!["b".to_owned()]));
}

#[tokio::test]
async fn the_point_of_an_edit_records_the_nodes_whose_outputs_it_replaces() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_edit(outcome.execution, &output_of("b", json!("other"))).await.unwrap();
    let head = engine.apply(plan, somebody()).await.unwrap();
    let record = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap().remove(0);
    assert_eq!((record.seq, &record.cause, &record.nodes[..]), (head, &Cause::Edit, &["b".to_owned()][..]));
}

#[tokio::test]
async fn an_edit_that_was_planned_before_the_head_moved_is_refused() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_edit(outcome.execution, &output_of("b", json!("other"))).await.unwrap();
    let head = engine.checkpoint(outcome.execution, None, somebody()).await.unwrap();
    let refused = engine.apply(plan, somebody()).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Store(StoreError::Conflict(Conflict::HeadMoved { .. }))),
        "{refused}"
    );
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().head, head);
}

#[tokio::test]
async fn what_was_cancelled_can_be_forked_but_not_changed() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, mail()).await;
    let id = outcome.execution;
    let head = engine.cancel(id, somebody()).await.unwrap();
    let edit = Edit { set: BTreeMap::from([("tone".to_owned(), json!("warm"))]), ..Edit::default() };
    let refused = engine.plan_edit(id, &edit).await.unwrap_err();
    assert!(matches!(refused, EngineError::Cancelled { .. }), "{refused}");
    let request = Redefine { workflow: diamond(), effects: Effects::Refuse };
    let refused = engine.plan_redefinition(id, request).await.unwrap_err();
    assert!(matches!(refused, EngineError::Cancelled { .. }), "{refused}");
    let plan = engine.plan_fork(id, head, &Fork::default()).await.unwrap();
    let fork = engine.fork(plan, None, somebody()).await.unwrap();
    let record = engine.store().require(fork.execution).await.unwrap();
    assert_eq!((record.state, record.head), (ExecutionState::Paused, 1));
}

#[tokio::test]
async fn the_output_of_a_set_node_must_hold_what_it_sets() {
    let engine = engine(&Journal::default());
    let workflow = Workflow::builder("sets")
        .checkpoints(always())
        .node("a", Node::set([("x", json!(1)), ("y", json!(2))]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    for output in [json!(7), json!({"x": 3})] {
        let refused = engine.plan_edit(outcome.execution, &output_of("a", output)).await.unwrap_err();
        assert!(matches!(&refused, EngineError::LacksVariable { node, .. } if node == "a"), "{refused}");
    }
    let plan = engine.plan_edit(outcome.execution, &output_of("a", json!({"x": 3, "y": 2}))).await.unwrap();
    assert_eq!(plan.variables["x"].to, Some(json!(3)));
}

#[tokio::test]
async fn a_fork_does_not_inherit_the_mark_of_an_effect_in_flight() {
    let entered = Arc::new(tokio::sync::Notify::new());
    let inside = Arc::clone(&entered);
    let registry = Registry::new().with("send", move |ctx: NodeContext| {
        let inside = Arc::clone(&inside);
        async move {
            if ctx.execution_name() == "origin" {
                inside.notify_one();
                std::future::pending::<()>().await;
            }
            Ok::<_, NodeError>(ctx.idempotency_key().to_owned())
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("mail")
        .checkpoints(always())
        .node("send", Node::call("send").effect(Effect::External))
        .build()
        .unwrap();
    let start = Start { name: Some("origin".into()), ..Start::default() };
    let origin = engine.start(Arc::new(workflow), start).await.unwrap();
    let id = origin.execution_id();
    let driven = tokio::spawn(origin.drive());
    entered.notified().await;
    let marked = engine.store().context(id, 2).await.unwrap();
    let key = marked.get_node_result(&node_id("send")).unwrap().idempotency_key.clone();
    let fork = engine.fork_unchanged(id, 2, None, somebody()).await.unwrap();
    let outcome = engine.resume(fork.execution, Resume::default()).await.unwrap().drive().await.unwrap();
    assert_eq!(outcome.state, ExecutionState::Completed);
    let own = output(&engine, &outcome, "send").await;
    assert!(own.is_some() && own != key.map(Value::String), "the fork's effect has a key of its own");
    driven.abort();
}

#[tokio::test]
async fn an_operation_can_be_undone_though_more_ran_since_than_a_run_keeps() {
    let engine = engine(&Journal::default());
    let mut builder = Workflow::builder("long").var("tone", json!("dry")).checkpoints(CheckpointConfig {
        frequency: CheckpointFrequency::Always,
        max_checkpoints: 5,
        ..CheckpointConfig::default()
    });
    for n in 0..30 {
        builder = builder.node(format!("n{n:02}"), work().with(json!("${{ vars.tone }}")));
    }
    let outcome = run(&engine, builder.build().unwrap()).await;
    let id = outcome.execution;
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let plan = engine.plan_edit(id, &Edit { set, ..Edit::default() }).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let again = resume(&engine, &outcome).await;
    assert_eq!(again.nodes_run, 30);
    let history = engine.store().history(id, HistoryPage::default()).await.unwrap();
    assert_eq!(
        history.last().unwrap().seq,
        outcome.head,
        "what the undo needs is there, and nothing before it"
    );
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    assert_eq!(output(&engine, &outcome, "n07").await, Some(json!("dry")));
}

#[tokio::test]
async fn what_a_fork_inherits_is_found_by_the_name_of_its_node() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_fork(outcome.execution, 3, &Fork::default()).await.unwrap();
    let fork = engine.fork(plan, None, somebody()).await.unwrap();
    let first = engine.store().history(fork.execution, HistoryPage::default()).await.unwrap().remove(0);
    assert_eq!((first.seq, first.nodes), (1, vec!["a".to_owned(), "b".to_owned()]));
}

#[tokio::test]
async fn an_output_that_was_given_by_hand_is_explained_so() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_edit(outcome.execution, &output_of("b", json!("other"))).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    let b = engine.explain(outcome.execution, "b").await.unwrap();
    assert_eq!(b.because, "its output was given by hand");
}
