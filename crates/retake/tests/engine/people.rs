//! What people ask of runs: pauses, cancellations and decisions.

use super::*;

#[tokio::test]
async fn an_approval_pauses_the_run_until_somebody_decides() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let workflow = Workflow::builder("asks")
        .checkpoints(always())
        .node("ok", Node::approval("publish?"))
        .node("send", work().with(json!("${{ nodes.ok.output.with }}")).needs(["ok"]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(
        (outcome.state.clone(), outcome.waiting.clone()),
        (ExecutionState::Paused, vec!["ok".to_owned()])
    );
    let still = resume(&engine, &outcome).await;
    assert_eq!(still.waiting, ["ok"]);
    let refused = engine
        .approve(outcome.execution, "send", Decision { approved: true, with: Value::Null }, somebody())
        .await
        .unwrap_err();
    assert!(matches!(refused, EngineError::NotWaiting { .. }), "{refused}");
    engine
        .approve(outcome.execution, "ok", Decision { approved: true, with: json!("go") }, somebody())
        .await
        .unwrap();
    let done = resume(&engine, &outcome).await;
    assert_eq!(done.state, ExecutionState::Completed);
    assert_eq!(output(&engine, &outcome, "send").await, Some(json!("go")));
    assert_eq!(journal.ran(), ["send"]);
}

#[tokio::test]
async fn a_rejected_approval_fails_the_run_and_can_be_taken_back() {
    let engine = engine(&Journal::default());
    let workflow = Workflow::builder("asks").node("ok", Node::approval("publish?")).build().unwrap();
    let outcome = run(&engine, workflow).await;
    let reject = Decision { approved: false, with: Value::Null };
    engine.approve(outcome.execution, "ok", reject, somebody()).await.unwrap();
    let undone = engine.undo(outcome.execution, Effects::Refuse, somebody()).await.unwrap();
    let ctx = engine.store().context(outcome.execution, undone).await.unwrap();
    assert_eq!(ctx.get_node_result(&node_id("ok")).unwrap().result, ExecutionResult::Pending);
}

#[tokio::test]
async fn a_pause_lets_nodes_finish_and_a_resume_goes_on() {
    let (entered, leave) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (inside, wait) = (Arc::clone(&entered), Arc::clone(&leave));
    let registry = Registry::new().with("gate", move |_| {
        let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
        async move {
            inside.notify_one();
            wait.notified().await;
            Ok::<_, NodeError>("through")
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("gates")
        .node("a", Node::call("gate"))
        .node("b", Node::call("gate").needs(["a"]))
        .build()
        .unwrap();
    let run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    let control = run.control();
    let driven = tokio::spawn(run.drive());
    entered.notified().await;
    control.pause(Some(somebody()));
    leave.notify_one();
    let outcome = driven.await.unwrap().unwrap();
    assert_eq!((outcome.state.clone(), outcome.nodes_run), (ExecutionState::Paused, 1));
    let log = engine.store().operations(outcome.execution).await.unwrap();
    assert_eq!(log[0].cause, Cause::Pause);
    leave.notify_one();
    let done = resume(&engine, &outcome).await;
    assert_eq!((done.state, done.nodes_run), (ExecutionState::Completed, 1));
}

#[tokio::test]
async fn only_one_process_advances_an_execution() {
    let engine = engine(&Journal::default());
    let run = engine.start(Arc::new(diamond()), Start::default()).await.unwrap();
    let refused = engine.resume(run.execution_id(), Resume::default()).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Store(StoreError::Conflict(Conflict::Leased { .. }))),
        "{refused}"
    );
    run.drive().await.unwrap();
}

#[tokio::test]
async fn a_rejection_fails_the_run_and_stands_until_it_is_taken_back() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, mail()).await;
    let no = Decision { approved: false, with: json!("too long") };
    engine.approve(outcome.execution, "ok", no, somebody()).await.unwrap();
    let record = engine.store().require(outcome.execution).await.unwrap();
    assert_eq!(
        record.state,
        ExecutionState::Failed("node `ok` failed: it was rejected: \"too long\"".into())
    );
    let refused = engine.resume(outcome.execution, Resume::default()).await.unwrap_err();
    assert!(matches!(&refused, EngineError::Rejected { node, .. } if node == "ok"), "{refused}");
    engine.undo(outcome.execution, Effects::Refuse, somebody()).await.unwrap();
    assert_eq!(resume(&engine, &outcome).await.waiting, ["ok"]);
}

#[tokio::test]
async fn what_was_asked_of_a_run_that_is_over_does_not_stop_the_next() {
    let journal = Journal::default();
    let engine = engine(&journal);
    journal.fail(&["b"]);
    let outcome = run(&engine, diamond()).await;
    journal.fail(&[]);
    let stale = retake::store::Request {
        id: uuid::Uuid::from_u128(1),
        ask: retake::store::Ask::Cancel,
        operation: somebody(),
    };
    engine.store().ask(outcome.execution, stale).await.unwrap();
    assert_eq!(resume(&engine, &outcome).await.state, ExecutionState::Completed);
    assert_eq!(engine.store().requests(outcome.execution).await.unwrap(), []);
}

#[tokio::test]
async fn a_pause_does_not_wait_for_a_wait() {
    let engine = engine(&Journal::default());
    let workflow = Workflow::builder("waits")
        .checkpoints(always())
        .node("w", Node::wait(Duration::from_secs(3_600)))
        .build()
        .unwrap();
    let mut run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    let (control, mut events) = (run.control(), run.watch());
    let driven = tokio::spawn(run.drive());
    while !matches!(events.recv().await, Some(retake::engine::Event::NodeStarted { .. })) {}
    control.pause(None);
    let outcome = driven.await.unwrap().unwrap();
    assert_eq!(outcome.state, ExecutionState::Paused);
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    assert_eq!(ctx.get_node_result(&node_id("w")).unwrap().result, ExecutionResult::Pending);
}

#[tokio::test]
async fn a_secret_is_masked_after_a_resume_though_nobody_looked_it_up_since() {
    let journal = Journal::default();
    let registry = journal.registry().with("says", async |_| Ok::<_, NodeError>("it is canary-5f2"));
    let engine =
        Engine::new(Arc::new(MemoryStore::new())).with_registry(registry).with_secrets(Arc::new(OneSecret));
    let workflow = Workflow::builder("secret")
        .checkpoints(always())
        .node("a", work().with(json!("${{ secrets.TOKEN }}")))
        .node("stop", work().needs(["a"]))
        .node("b", Node::call("says").needs(["stop"]))
        .build()
        .unwrap();
    journal.fail(&["stop"]);
    let outcome = run(&engine, workflow).await;
    journal.fail(&[]);
    resume(&engine, &outcome).await;
    assert_eq!(output(&engine, &outcome, "b").await, Some(json!("it is ***")));
}
