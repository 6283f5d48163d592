//! What people give and do is saved too, and holds no secret.

use retake::engine::{Edit, Fork, Redefine};

use super::*;

/// An operation whose command line holds the secret, as it is and as base64.
fn telling() -> NewOperation {
    NewOperation { who: "ann".to_owned(), command: "retake it --key=canary-5f2 Y2FuYXJ5LTVmMg==".to_owned() }
}

fn workflow() -> Workflow {
    Workflow::builder("secret")
        .checkpoints(always())
        .var("tone", json!("dry"))
        .node("a", work().with(json!("${{ secrets.TOKEN }} ${{ vars.tone }}")))
        .node("ok", Node::approval("Go on?").needs(["a"]))
        .build()
        .unwrap()
}

fn engine_with_secret(journal: &Journal) -> Engine {
    engine(journal).with_secrets(Arc::new(OneSecret))
}

fn refused_for_its_secret<T: std::fmt::Debug>(done: Result<T, EngineError>, what: &str) {
    let error = done.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{what} holds the value of the secret `TOKEN`, and would be saved")
    );
}

#[tokio::test]
async fn every_operation_is_written_down_without_the_secrets_in_its_command_line() {
    let journal = Journal::default();
    let engine = engine_with_secret(&journal);
    let outcome = run(&engine, workflow()).await;
    let id = outcome.execution;
    engine.checkpoint(id, None, telling()).await.unwrap();
    let edit = Edit { set: [("tone".to_owned(), json!("warm"))].into(), ..Edit::default() };
    engine.apply(engine.plan_edit(id, &edit).await.unwrap(), telling()).await.unwrap();
    engine.undo(id, Effects::Refuse, telling()).await.unwrap();
    engine.redo(id, Effects::Refuse, telling()).await.unwrap();
    let resume = Resume { operation: Some(telling()), ..Resume::default() };
    engine.resume(id, resume).await.unwrap().drive().await.unwrap();
    engine.approve(id, "ok", Decision { approved: true, with: Value::Null }, telling()).await.unwrap();
    let head = engine.store().require(id).await.unwrap().head;
    let fork = engine.fork_unchanged(id, head, None, telling()).await.unwrap();
    let plan = engine.plan_fork(id, head, &Fork::default()).await.unwrap();
    let other = engine.fork(plan, None, telling()).await.unwrap();
    for (execution, operations) in [(id, 6), (fork.execution, 1), (other.execution, 1)] {
        let log = engine.store().operations(execution).await.unwrap();
        let commands: Vec<&str> = log.iter().map(|operation| operation.command.as_str()).collect();
        assert_eq!(commands, vec!["retake it --key=*** ***=="; operations]);
    }
}

#[tokio::test]
async fn a_value_that_holds_a_secret_is_refused_before_anything_is_saved() {
    let journal = Journal::default();
    let engine = engine_with_secret(&journal);
    let holds = || json!({"list": ["x canary-5f2"]});
    let outcome = run(&engine, workflow()).await;
    let (id, head) = (outcome.execution, engine.store().require(outcome.execution).await.unwrap().head);
    let set = || [("tone".to_owned(), holds())].into();
    let edit = Edit { set: set(), ..Edit::default() };
    refused_for_its_secret(engine.plan_edit(id, &edit).await, "variable `tone`");
    let edit = Edit { outputs: [("a".to_owned(), holds())].into(), ..Edit::default() };
    refused_for_its_secret(engine.plan_edit(id, &edit).await, "the output of node `a`");
    let rollback = Rollback { set: set(), ..Rollback::default() };
    refused_for_its_secret(engine.plan_rollback(id, 2, &rollback).await, "variable `tone`");
    let fork = Fork { set: set(), ..Fork::default() };
    refused_for_its_secret(engine.plan_fork(id, 2, &fork).await, "variable `tone`");
    let label = Some("at canary-5f2".to_owned());
    refused_for_its_secret(engine.checkpoint(id, label, telling()).await, "the label");
    let decision = Decision { approved: true, with: holds() };
    refused_for_its_secret(
        engine.approve(id, "ok", decision, telling()).await,
        "what goes with the approval",
    );
    assert_eq!(engine.store().require(id).await.unwrap().head, head);

    let literal = Workflow::builder("literal")
        .node("a", work().with(json!(["${{ secrets.TOKEN }}", "canary-5f2"])))
        .build()
        .unwrap();
    refused_for_its_secret(engine.start(Arc::new(literal.clone()), Start::default()).await, "the workflow");
    let redefine = Redefine { workflow: literal, effects: Effects::Refuse };
    refused_for_its_secret(engine.plan_redefinition(id, redefine).await, "the workflow");
    let named = Start { name: Some("canary-5f2".to_owned()), ..Start::default() };
    refused_for_its_secret(engine.start(Arc::new(workflow()), named).await, "the name");
    assert_eq!(engine.store().executions(&Default::default()).await.unwrap().len(), 1);
}
