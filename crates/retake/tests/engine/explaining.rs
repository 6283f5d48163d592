//! Why nodes ran, were reused or have not run, and what would make them run again.

use super::*;
use retake::engine::{Edit, Explanation, Trigger};

async fn explain(engine: &Engine, outcome: &Outcome, node: &str) -> Explanation {
    engine.explain(outcome.execution, node).await.unwrap()
}

fn trigger(kind: &'static str, name: &str, was_read: bool) -> Trigger {
    Trigger { kind, name: name.into(), was_read, has_changed: false }
}

#[tokio::test]
async fn a_node_is_explained_by_what_it_waited_for_and_what_it_read() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let b = explain(&engine, &outcome, "b").await;
    assert_eq!((b.status, b.recorded, b.because.as_str()), ("success", Some(3), "it ran after `a`"));
    let triggers =
        [trigger("node", "a", true), trigger("variable", "tone", true), trigger("definition", "b", false)];
    assert_eq!(b.again_if, triggers);
    let then: Vec<&str> = b.then.iter().map(|rerun| rerun.node.as_str()).collect();
    assert_eq!(then, ["d"]);
    assert_eq!(explain(&engine, &outcome, "a").await.because, "it ran, as it waits for no other node");
    let unknown = engine.explain(outcome.execution, "x").await.unwrap_err();
    assert!(matches!(&unknown, EngineError::NoNode { node, .. } if node == "x"), "{unknown}");
}

#[tokio::test]
async fn after_an_edit_one_node_ran_again_one_was_reused_and_one_was_spared() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let plan = engine.plan_edit(outcome.execution, &Edit { set, ..Edit::default() }).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let waiting = explain(&engine, &outcome, "b").await;
    let tone = "it read `vars.tone`, which changes from \"dry\" to \"warm\"";
    let taken_back = format!("its result was taken back: {tone}; it is ready, and runs when the run goes on");
    assert_eq!((waiting.status, waiting.recorded, waiting.because), ("pending", None, taken_back));
    let d = explain(&engine, &outcome, "d").await;
    assert_eq!(d.because, "its result was taken back: `b` runs again; it waits for `b`");

    resume(&engine, &outcome).await;
    assert_eq!(explain(&engine, &outcome, "b").await.because, format!("it ran again: {tone}"));
    let c = explain(&engine, &outcome, "c").await;
    assert_eq!((c.recorded, c.because.as_str()), (Some(4), "it ran after `a`"));
    let reused: Vec<&Cause> = c.reused.iter().map(|reuse| &reuse.cause).collect();
    assert_eq!(reused, [&Cause::Edit]);

    // `b` is not `c`'s business, and `a` gives the same again.
    let plan = engine.plan_rollback(outcome.execution, 1, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let outcome = resume(&engine, &outcome).await;
    assert_eq!(outcome.nodes_spared, 0, "the start is gone back to as a whole");
    let plan = engine.plan_rollback(outcome.execution, outcome.head - 2, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    let d = explain(&engine, &outcome, "d").await;
    assert!(d.because.starts_with("it ran again: it depends on "), "{}", d.because);
}

#[tokio::test]
async fn a_spared_and_a_skipped_node_say_why() {
    let engine = engine(&Journal::default());
    let workflow = Workflow::builder("skips")
        .var("publish", json!(false))
        .checkpoints(always())
        .max_parallel(1)
        .node("a", work())
        .node("b", work().with(json!("${{ nodes.a.output }}")))
        .node("c", work().needs(["b"]))
        .node("send", work().needs(["c"]).when("vars.publish"))
        .node("tell", work().needs(["send"]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(
        explain(&engine, &outcome, "send").await.because,
        "it was skipped, because `vars.publish` was false"
    );
    assert_eq!(
        explain(&engine, &outcome, "tell").await.because,
        "it was skipped, because `send` was skipped"
    );
    let plan = engine.plan_rollback(outcome.execution, 2, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let outcome = resume(&engine, &outcome).await;
    assert_eq!((outcome.nodes_run, outcome.nodes_spared), (1, 1));
    assert_eq!(
        explain(&engine, &outcome, "c").await.because,
        "spared: `b` runs again, and it would see what it saw"
    );
}
