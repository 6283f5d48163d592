//! Runs of the engine on the memory store: what is run, what is recorded, and what is never run again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{
    Decision, Effects, Engine, EngineError, Extent, NodeContext, NodeError, Outcome, Registry, Resume,
    Rollback, Start,
};
use retake::execution::{ExecutionResult, ExecutionState, Subject, node_id};
use retake::store::{Cause, Conflict, HistoryPage, MemoryStore, NewOperation, StoreError, StoreExt};
use retake::workflow::{Effect, Node, OnError, Workflow};
use serde_json::{Value, json};

/// Which nodes ran, in order, and what they should do.
#[derive(Clone, Default)]
struct Journal {
    ran: Arc<Mutex<Vec<String>>>,
    fail: Arc<Mutex<Vec<String>>>,
}

impl Journal {
    fn ran(&self) -> Vec<String> {
        std::mem::take(&mut *self.ran.lock().unwrap())
    }

    fn fail(&self, nodes: &[&str]) {
        *self.fail.lock().unwrap() = nodes.iter().map(|node| (*node).to_owned()).collect();
    }

    fn registry(&self) -> Registry {
        let journal = self.clone();
        Registry::new().with("work", move |ctx: NodeContext| {
            let journal = journal.clone();
            async move {
                let node = ctx.node().to_owned();
                journal.ran.lock().unwrap().push(node.clone());
                if journal.fail.lock().unwrap().contains(&node) {
                    return Err(NodeError::permanent("told to fail"));
                }
                let with = ctx.parameters()?;
                Ok(if with.is_null() { json!(format!("{node} done")) } else { with })
            }
        })
    }
}

fn engine(journal: &Journal) -> Engine {
    Engine::new(Arc::new(MemoryStore::new())).with_registry(journal.registry())
}

fn always() -> CheckpointConfig {
    every(CheckpointFrequency::Always)
}

fn every(frequency: CheckpointFrequency) -> CheckpointConfig {
    CheckpointConfig { frequency, max_checkpoints: 1_000, ..CheckpointConfig::default() }
}

fn work() -> Node {
    Node::call("work")
}

/// `a`, then `b` and `c` from it, then `d` from both.
fn diamond() -> Workflow {
    Workflow::builder("diamond")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .max_parallel(1)
        .node("a", work())
        .node("b", work().with(json!("${{ nodes.a.output }} ${{ vars.tone }}")))
        .node("c", work().with(json!("${{ nodes.a.output }}")))
        .node("d", work().with(json!(["${{ nodes.b.output }}", "${{ nodes.c.output }}"])).into("last"))
        .build()
        .unwrap()
}

fn somebody() -> NewOperation {
    NewOperation { who: "tester".into(), command: "test".into() }
}

async fn run(engine: &Engine, workflow: Workflow) -> Outcome {
    engine.start(Arc::new(workflow), Start::default()).await.unwrap().drive().await.unwrap()
}

async fn resume(engine: &Engine, outcome: &Outcome) -> Outcome {
    engine.resume(outcome.execution, Resume::default()).await.unwrap().drive().await.unwrap()
}

async fn causes(engine: &Engine, outcome: &Outcome) -> Vec<&'static str> {
    let history = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap();
    history.iter().rev().map(|point| point.cause.kind()).collect()
}

async fn output(engine: &Engine, outcome: &Outcome, node: &str) -> Option<Value> {
    let head = engine.store().require(outcome.execution).await.unwrap().head;
    let ctx = engine.store().context(outcome.execution, head).await.unwrap();
    ctx.get_node_result(&node_id(node)).and_then(|record| record.output().cloned())
}

#[tokio::test]
async fn a_run_gives_every_output_and_ends_completed() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!((outcome.nodes_run, outcome.nodes_reused), (4, 0));
    assert_eq!(journal.ran(), ["a", "b", "c", "d"]);
    assert_eq!(output(&engine, &outcome, "d").await, Some(json!(["a done dry", "a done"])));
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    assert_eq!(ctx.get_variable("last"), Some(&json!(["a done dry", "a done"])));
    assert!(ctx.completed_at.is_some());
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().leased_by, None);
}

#[tokio::test]
async fn every_read_of_a_node_is_recorded() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    let reads = &ctx.get_node_result(&node_id("b")).unwrap().reads;
    let subjects: Vec<&Subject> = reads.iter().map(|read| &read.subject).collect();
    assert_eq!(subjects, [&Subject::Node("a".into()), &Subject::Variable("tone".into())]);
    assert!(reads.iter().all(|read| read.hash == retake::engine::hash_now(&ctx, &read.subject)));
}

#[tokio::test]
async fn a_failed_run_resumes_at_the_failed_node() {
    let journal = Journal::default();
    let engine = engine(&journal);
    journal.fail(&["c"]);
    let outcome = run(&engine, diamond()).await;
    assert_eq!(outcome.state, ExecutionState::Failed("node `c` failed: told to fail".into()));
    assert_eq!(outcome.failures, [("c".to_owned(), "told to fail".to_owned())]);
    assert_eq!(journal.ran(), ["a", "b", "c"]);
    journal.fail(&[]);
    let again = resume(&engine, &outcome).await;
    assert_eq!(again.state, ExecutionState::Completed);
    assert_eq!(journal.ran(), ["c", "d"]);
    assert_eq!((again.nodes_run, again.nodes_reused), (2, 2));
    assert_eq!(again.execution, outcome.execution);
}

#[tokio::test]
async fn a_completed_run_resumes_to_nothing_and_writes_nothing() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    let again = resume(&engine, &outcome).await;
    assert_eq!(
        (again.state, again.head, again.nodes_run, again.nodes_reused),
        (outcome.state, outcome.head, 0, 4)
    );
    assert_eq!(journal.ran(), Vec::<String>::new());
}

#[tokio::test]
async fn every_n_nodes_are_counted_node_by_node_across_levels() {
    // Levels of 1, 4, 4, 4, 4 and 1 nodes.
    let engine = engine(&Journal::default());
    let mut builder = Workflow::builder("levels").checkpoints(every(CheckpointFrequency::EveryNNodes(4)));
    builder = builder.node("start", work());
    for level in 0..4 {
        for place in 0..4 {
            let before = if level == 0 { "start".to_owned() } else { format!("n{}_{place}", level - 1) };
            builder = builder.node(format!("n{level}_{place}"), work().needs([before]));
        }
    }
    let last = (0..4).map(|place| format!("n3_{place}"));
    let outcome = run(&engine, builder.node("stop", work().needs(last)).build().unwrap()).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "nodes", "nodes", "nodes", "nodes", "finish"]);
}

#[tokio::test]
async fn each_frequency_decides_when_a_run_is_saved() {
    for (frequency, expected) in [
        (CheckpointFrequency::Always, vec!["start", "nodes", "nodes", "nodes", "finish"]),
        (CheckpointFrequency::Manual, vec!["start", "finish"]),
        (CheckpointFrequency::EveryNNodes(3), vec!["start", "nodes", "finish"]),
        (CheckpointFrequency::TimeInterval(3_600), vec!["start", "finish"]),
        (CheckpointFrequency::BeforeNodeTypes(vec!["set".into()]), vec!["start", "finish"]),
        (
            CheckpointFrequency::BeforeNodeTypes(vec!["call".into()]),
            vec!["start", "before", "before", "before", "finish"],
        ),
    ] {
        let engine = engine(&Journal::default());
        let mut definition = diamond().definition().clone();
        definition.checkpoints = every(frequency.clone());
        let outcome = run(&engine, Workflow::from_definition(definition).unwrap()).await;
        assert_eq!(causes(&engine, &outcome).await, expected, "{frequency:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_saves_while_nodes_still_run() {
    let registry = Registry::new().with("slow", async |ctx: NodeContext| {
        tokio::time::sleep(Duration::from_secs(if ctx.node() == "a" { 1 } else { 5 })).await;
        Ok::<_, NodeError>(())
    });
    let clock = Arc::new(TokioClock::default());
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry).with_clock(clock);
    let workflow = Workflow::builder("slow")
        .checkpoints(every(CheckpointFrequency::TimeInterval(2)))
        .node("a", Node::call("slow"))
        .node("b", Node::call("slow"))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "interval", "finish"]);
    let at_interval = engine.store().context(outcome.execution, 2).await.unwrap();
    assert_eq!(at_interval.completed_nodes().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ran_long_is_saved_at_once() {
    let registry = Registry::new().with("slow", async |_| {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok::<_, NodeError>(())
    });
    let clock = Arc::new(TokioClock::default());
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry).with_clock(clock);
    let checkpoints =
        CheckpointConfig { auto_checkpoint_threshold_ms: Some(1_000), ..every(CheckpointFrequency::Manual) };
    let workflow = Workflow::builder("long")
        .checkpoints(checkpoints)
        .node("a", Node::call("slow"))
        .node("b", Node::call("slow").needs(["a"]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "long_node", "finish"]);
}

#[tokio::test]
async fn a_run_keeps_no_more_checkpoints_than_it_was_told() {
    let engine = engine(&Journal::default());
    let mut builder = Workflow::builder("chain")
        .checkpoints(CheckpointConfig { max_checkpoints: 3, ..always() })
        .node("n0", work());
    for n in 1..20 {
        builder = builder.node(format!("n{n}"), work().needs([format!("n{}", n - 1)]));
    }
    let outcome = run(&engine, builder.build().unwrap()).await;
    let history = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap();
    let seqs: Vec<u64> = history.iter().map(|point| point.seq).collect();
    assert_eq!(seqs, [outcome.head, outcome.head - 1, outcome.head - 2]);
}

#[tokio::test]
async fn a_false_condition_skips_the_node_and_what_depends_on_it() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let workflow = Workflow::builder("branches")
        .var("go", json!(false))
        .checkpoints(always())
        .node("yes", work().when("vars.go"))
        .node("after_yes", work().needs(["yes"]))
        .node("no", work().when("${{ not vars.go }}"))
        .node(
            "join",
            work().needs(["yes", "no"]).when("nodes.yes.status == 'success' or nodes.no.status == 'success'"),
        )
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!(journal.ran(), ["no", "join"]);
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    for node in ["yes", "after_yes"] {
        assert_eq!(ctx.get_node_result(&node_id(node)).unwrap().result, ExecutionResult::Skipped, "{node}");
    }
    assert_eq!(
        ctx.get_node_result(&node_id("yes")).unwrap().reads[0].subject,
        Subject::Variable("go".into())
    );
}

#[tokio::test]
async fn a_tolerated_failure_lets_the_run_go_on() {
    let journal = Journal::default();
    let engine = engine(&journal);
    journal.fail(&["a"]);
    let workflow = Workflow::builder("tolerant")
        .node("a", work().on_error(OnError::Continue))
        .node(
            "b",
            work().with(json!(["${{ nodes.a.status }}", "${{ nodes.a.output }}", "${{ nodes.a.error }}"])),
        )
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!(output(&engine, &outcome, "b").await, Some(json!(["failure", null, "told to fail"])));
}

#[tokio::test(start_paused = true)]
async fn a_node_is_tried_again_with_growing_waits_under_one_idempotency_key() {
    let tries: Arc<Mutex<Vec<(u32, String)>>> = Arc::default();
    let seen = Arc::clone(&tries);
    let registry = Registry::new().with("flaky", move |ctx: NodeContext| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().push((ctx.attempt(), ctx.idempotency_key().to_owned()));
            if ctx.attempt() < 3 { Err(NodeError::new("not yet")) } else { Ok(ctx.attempt()) }
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("flaky").node("a", Node::call("flaky").retry(5)).build().unwrap();
    let outcome = run(&engine, workflow).await;
    let tries = tries.lock().unwrap().clone();
    assert_eq!(tries.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(tries.iter().all(|(_, key)| *key == tries[0].1));
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    assert_eq!(ctx.get_node_result(&node_id("a")).unwrap().retry_count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_the_work_and_fails_the_node() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ended);
    let registry = Registry::new().with("endless", move |_| {
        let guard = Dropped(Arc::clone(&count));
        async move {
            let _guard = guard;
            std::future::pending::<()>().await;
            Ok::<_, NodeError>(())
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let node = Node::call("endless").timeout(Duration::from_secs(3));
    let outcome = run(&engine, Workflow::builder("endless").node("a", node).build().unwrap()).await;
    assert_eq!(outcome.failures, [("a".to_owned(), "it took longer than its timeout of 3s".to_owned())]);
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_node_and_nothing_else() {
    let registry =
        Registry::new().with("panics", async |_| -> Result<(), NodeError> { panic!("at the disco") });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let outcome = run(&engine, Workflow::builder("p").node("a", Node::call("panics")).build().unwrap()).await;
    assert_eq!(outcome.failures, [("a".to_owned(), "its handler panicked: at the disco".to_owned())]);
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().state.name(), "failed");
}

#[tokio::test]
async fn an_output_that_cannot_be_stored_fails_its_node() {
    let registry = Registry::new()
        .with("deep", async |_| Ok::<_, NodeError>((0..200).fold(json!(1), |inner, _| json!([inner]))));
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let outcome =
        run(&engine, Workflow::builder("deep").node("a", Node::call("deep")).build().unwrap()).await;
    let (_, why) = &outcome.failures[0];
    assert_eq!(why, "cannot store nodes.a.output: it is nested deeper than 100 levels");
}

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
async fn a_cancelled_run_ends_its_nodes_and_does_not_resume_until_that_is_undone() {
    let entered = Arc::new(tokio::sync::Notify::new());
    let inside = Arc::clone(&entered);
    let registry = Registry::new().with("endless", move |_| {
        let inside = Arc::clone(&inside);
        async move {
            inside.notify_one();
            std::future::pending::<()>().await;
            Ok::<_, NodeError>(())
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("endless").node("a", Node::call("endless")).build().unwrap();
    let run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    let id = run.execution_id();
    let driven = tokio::spawn(run.drive());
    entered.notified().await;
    engine.cancel(id, somebody()).await.unwrap();
    let outcome = driven.await.unwrap().unwrap();
    assert_eq!(outcome.state, ExecutionState::Cancelled);
    let refused = engine.resume(id, Resume::default()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Cancelled { .. }), "{refused}");
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    assert!(engine.resume(id, Resume::default()).await.is_ok());
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
async fn an_external_node_is_marked_before_it_runs_and_is_not_blindly_run_again() {
    let entered = Arc::new(tokio::sync::Notify::new());
    let inside = Arc::clone(&entered);
    let keys: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&keys);
    let registry = Registry::new().with("send", move |ctx: NodeContext| {
        let (inside, seen) = (Arc::clone(&inside), Arc::clone(&seen));
        async move {
            seen.lock().unwrap().push(ctx.idempotency_key().to_owned());
            inside.notify_one();
            if seen.lock().unwrap().len() == 1 {
                std::future::pending::<()>().await;
            }
            Ok::<_, NodeError>("sent")
        }
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let node = Node::call("send").effect(Effect::External);
    let workflow = Workflow::builder("mail")
        .checkpoints(every(CheckpointFrequency::Manual))
        .node("mail", node)
        .build()
        .unwrap();
    let run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    let id = run.execution_id();
    let driven = tokio::spawn(run.drive());
    entered.notified().await;
    // The process dies.
    driven.abort();
    assert!(driven.await.unwrap_err().is_cancelled());
    let marked = engine.store().history(id, HistoryPage::default()).await.unwrap();
    assert_eq!(marked[0].cause, Cause::Started { node: "mail".into() });
    wait_until_released(&engine, id).await;
    let refused = engine.resume(id, Resume::default()).await.unwrap_err();
    let key = keys.lock().unwrap()[0].clone();
    assert!(
        matches!(&refused, EngineError::Interrupted { nodes } if *nodes == [("mail".to_owned(), key.clone())]),
        "{refused}"
    );
    wait_until_released(&engine, id).await;
    let again = Resume { again: vec!["mail".into()], ..Resume::default() };
    let outcome = engine.resume(id, again).await.unwrap().drive().await.unwrap();
    assert_eq!(outcome.state, ExecutionState::Completed);
    assert_eq!(*keys.lock().unwrap(), [key.clone(), key]);
}

#[tokio::test]
async fn a_rollback_goes_back_wholly_and_runs_what_came_after_again() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    let plan = engine.plan_rollback(outcome.execution, 3, &Rollback::default()).await.unwrap();
    assert_eq!(plan.keep, ["a", "b"]);
    let rerun: Vec<&str> = plan.rerun.iter().map(|rerun| rerun.node.as_str()).collect();
    assert_eq!(rerun, ["c", "d"]);
    assert_eq!(plan.rerun[0].because, "its result is newer than @3");
    let head = engine.rollback(outcome.execution, plan, Effects::Refuse, somebody()).await.unwrap();
    assert_eq!(head, outcome.head + 1);
    let ctx = engine.store().context(outcome.execution, head).await.unwrap();
    assert_eq!((&ctx.state, ctx.completed_at), (&ExecutionState::Paused, None));
    assert_eq!(ctx.get_variable("last"), None);
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["c", "d"]);
}

#[tokio::test]
async fn a_variable_set_on_the_way_back_runs_again_what_read_it_and_nothing_else() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let request = Rollback { set, ..Rollback::default() };
    let plan = engine.plan_rollback(outcome.execution, outcome.head, &request).await.unwrap();
    assert_eq!(plan.keep, ["a", "c"]);
    let because: Vec<(&str, &str)> =
        plan.rerun.iter().map(|rerun| (rerun.node.as_str(), rerun.because.as_str())).collect();
    assert_eq!(because, [("b", "it read `vars.tone`, which changes"), ("d", "`b` runs again")]);
    assert_eq!(plan.variables["tone"].to, Some(json!("warm")));
    engine.rollback(outcome.execution, plan, Effects::Refuse, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["b", "d"]);
    assert_eq!(output(&engine, &outcome, "d").await, Some(json!(["a done warm", "a done"])));
}

#[tokio::test]
async fn going_back_leaves_alone_what_had_read_an_earlier_value_of_a_variable() {
    let registry = Registry::new().with("say", async |ctx: NodeContext| {
        let so_far = ctx.variable("messages").and_then(|list| list.as_array().map(Vec::len)).unwrap_or(0);
        ctx.append(
            "messages",
            json!(format!("{} after {so_far}, {}", ctx.node(), ctx.variable("tone").unwrap_or_default())),
        )?;
        Ok::<_, NodeError>(so_far)
    });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("talk")
        .var("tone", json!("dry"))
        .var("messages", json!([]))
        .checkpoints(always())
        .node("a", Node::call("say"))
        .node("b", Node::call("say").needs(["a"]))
        .node("c", Node::call("say").needs(["b"]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    let id = outcome.execution;
    // `a` had read an empty list, and there is one item at @2.
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    assert_eq!(plan.keep, ["a"]);
    engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap();
    let outcome = resume(&engine, &outcome).await;
    let messages = |ctx: retake::ExecutionContext| ctx.get_variable("messages").cloned().unwrap_or_default();
    let all = messages(engine.store().context(id, outcome.head).await.unwrap());
    assert_eq!(all, json!(["a after 0, \"dry\"", "b after 1, \"dry\"", "c after 2, \"dry\""]));
}

#[tokio::test]
async fn what_runs_again_finds_variables_as_they_were_before_it_ran() {
    let registry = Registry::new()
        .with("say", async |ctx: NodeContext| {
            let tone = if ctx.node() == "a" { Value::Null } else { ctx.variable("tone").unwrap_or_default() };
            ctx.append("messages", json!([ctx.node(), tone]))?;
            Ok::<_, NodeError>(())
        })
        .with("count", async |ctx: NodeContext| {
            Ok::<_, NodeError>(ctx.variable("messages").and_then(|list| list.as_array().map(Vec::len)))
        });
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let workflow = Workflow::builder("talk")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .node("a", Node::call("say"))
        .node("b", Node::call("say").needs(["a"]))
        .node("c", Node::call("count").needs(["a"]))
        .node("d", Node::call("count").needs(["a"]))
        .max_parallel(1)
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    let id = outcome.execution;
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let request = Rollback { set, ..Rollback::default() };
    let plan = engine.plan_rollback(id, outcome.head, &request).await.unwrap();
    assert_eq!(plan.keep, ["a"]);
    let because: Vec<&str> = plan.rerun.iter().map(|rerun| rerun.because.as_str()).collect();
    let written_again = "it read `vars.messages`, which `b` writes again";
    assert_eq!(because, ["it read `vars.tone`, which changes", written_again, written_again]);
    engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap();
    let again = resume(&engine, &outcome).await;
    let ctx = engine.store().context(id, again.head).await.unwrap();
    assert_eq!(ctx.get_variable("messages"), Some(&json!([["a", null], ["b", "warm"]])));
    assert_eq!(output(&engine, &outcome, "c").await, Some(json!(2)));
}

#[tokio::test]
async fn a_selective_rollback_touches_what_it_names_and_says_what_no_longer_fits() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let only = |variables: &[&str], nodes: &[&str]| Rollback {
        extent: Extent::Only {
            variables: variables.iter().map(|name| (*name).to_owned()).collect(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
        },
        ..Rollback::default()
    };
    let before = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    let plan = engine.plan_rollback(outcome.execution, 1, &only(&["last"], &["b"])).await.unwrap();
    assert_eq!(plan.keep, ["a", "c", "d"]);
    assert_eq!(plan.rerun.len(), 1);
    assert_eq!(plan.inconsistent[0].node, "d");
    let head = engine.rollback(outcome.execution, plan, Effects::Refuse, somebody()).await.unwrap();
    let after = engine.store().context(outcome.execution, head).await.unwrap();
    assert_eq!(after.get_variable("last"), None);
    assert_eq!(after.get_variable("tone"), before.get_variable("tone"));
    assert!(after.get_node_result(&node_id("b")).is_none());
    assert_eq!(after.get_node_result(&node_id("d")), before.get_node_result(&node_id("d")));
    let refused = engine.plan_rollback(outcome.execution, 1, &only(&["nothing"], &[])).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "nothing to roll back: variable `nothing` is neither at the head nor at @1"
    );
}

#[tokio::test]
async fn undo_takes_back_a_rollback_and_redo_does_it_again() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    let id = outcome.execution;
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap();
    let rerun = resume(&engine, &outcome).await;
    journal.ran();
    let undone = engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    let (before, after) = (
        engine.store().context(id, outcome.head).await.unwrap(),
        engine.store().context(id, undone).await.unwrap(),
    );
    assert_eq!(after.node_results, before.node_results);
    assert_eq!((after.state, after.variables), (before.state, before.variables));
    let redone = engine.redo(id, Effects::Refuse, somebody()).await.unwrap();
    let (newest, again) = (
        engine.store().context(id, rerun.head).await.unwrap(),
        engine.store().context(id, redone).await.unwrap(),
    );
    assert_eq!(again.node_results, newest.node_results);
    let refused = engine.redo(id, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(matches!(refused, EngineError::NothingTo { verb: "redo", .. }), "{refused}");
    let kinds: Vec<&str> =
        engine.store().operations(id).await.unwrap().iter().map(|record| record.cause.kind()).collect();
    assert_eq!(kinds, ["redo", "undo", "rollback"]);
}

#[tokio::test]
async fn going_back_over_an_effect_is_refused_unless_a_person_decides() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let workflow = Workflow::builder("mail")
        .checkpoints(always())
        .node("draft", work())
        .node("mail", work().needs(["draft"]).effect(Effect::External))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    let id = outcome.execution;
    let key = |ctx: retake::ExecutionContext| {
        ctx.get_node_result(&node_id("mail")).unwrap().idempotency_key.clone()
    };
    let first = key(engine.store().context(id, outcome.head).await.unwrap());
    journal.ran();
    let plan = engine.plan_rollback(id, 1, &Rollback::default()).await.unwrap();
    assert_eq!(plan.irreversible, ["mail"]);
    let refused = engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(matches!(&refused, EngineError::Irreversible { nodes } if *nodes == ["mail"]), "{refused}");
    assert_eq!(engine.store().require(id).await.unwrap().head, outcome.head);

    let keep = Rollback { effects: Effects::Keep, ..Rollback::default() };
    let plan = engine.plan_rollback(id, 1, &keep).await.unwrap();
    assert_eq!(plan.keep, ["mail"]);
    engine.rollback(id, plan, Effects::Keep, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["draft"]);

    let plan = engine.plan_rollback(id, 1, &Rollback::default()).await.unwrap();
    engine.rollback(id, plan, Effects::Again, somebody()).await.unwrap();
    let last = resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["draft", "mail"]);
    let second = key(engine.store().context(id, last.head).await.unwrap());
    assert_ne!(first, second, "a deliberate re-run has a key of its own");
}

/// `draft`, then an approval, then `mail` with an effect outside, which also sets `receipt`, then `last`.
fn mail() -> Workflow {
    Workflow::builder("mail")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .node("draft", work().with(json!("${{ vars.tone }}")))
        .node("ok", Node::approval("send?").needs(["draft"]).into("decision"))
        .node("mail", work().needs(["ok"]).effect(Effect::External).into("receipt"))
        .node("last", work().with(json!("${{ vars.receipt }}")))
        .build()
        .unwrap()
}

async fn run_mail(engine: &Engine) -> Outcome {
    let outcome = run(engine, mail()).await;
    let yes = Decision { approved: true, with: Value::Null };
    engine.approve(outcome.execution, "ok", yes, somebody()).await.unwrap();
    resume(engine, &outcome).await
}

fn irreversible<T: std::fmt::Debug>(refused: Result<T, EngineError>) {
    let error = refused.unwrap_err();
    assert!(matches!(&error, EngineError::Irreversible { nodes } if *nodes == ["mail"]), "{error}");
}

#[tokio::test]
async fn an_undo_over_an_effect_is_refused_too_unless_a_person_decides() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run_mail(&engine).await;
    journal.ran();
    // The approval came before the mail.
    irreversible(engine.undo(outcome.execution, Effects::Refuse, somebody()).await);
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().head, outcome.head);
    let kept = engine.undo(outcome.execution, Effects::Keep, somebody()).await.unwrap();
    let ctx = engine.store().context(outcome.execution, kept).await.unwrap();
    assert_eq!(ctx.get_node_result(&node_id("ok")).unwrap().result, ExecutionResult::Pending);
    assert_eq!(ctx.get_node_result(&node_id("mail")).unwrap().output(), Some(&json!("mail done")));
}

#[tokio::test]
async fn going_back_to_the_mark_of_an_effect_does_not_forget_that_it_happened() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run_mail(&engine).await;
    let id = outcome.execution;
    let history = engine.store().history(id, HistoryPage::default()).await.unwrap();
    let mark =
        history.iter().find(|point| point.cause == Cause::Started { node: "mail".into() }).unwrap().seq;
    let plan = engine.plan_rollback(id, mark, &Rollback::default()).await.unwrap();
    irreversible(engine.rollback(id, plan, Effects::Refuse, somebody()).await);

    let keep = Rollback { effects: Effects::Keep, ..Rollback::default() };
    let plan = engine.plan_rollback(id, mark, &keep).await.unwrap();
    assert_eq!(plan.keep, ["draft", "ok", "mail"]);
    engine.rollback(id, plan, Effects::Keep, somebody()).await.unwrap();
    journal.ran();
    let again = resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["last"]);
    // What the kept node had written was kept with it.
    assert_eq!(output(&engine, &again, "last").await, Some(json!("mail done")));

    let once_more = Rollback { effects: Effects::Again, ..Rollback::default() };
    let plan = engine.plan_rollback(id, mark, &once_more).await.unwrap();
    engine.rollback(id, plan, Effects::Again, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["mail", "last"]);
}

#[tokio::test]
async fn an_effect_that_failed_may_have_happened_and_keeps_its_key_on_resume() {
    let journal = Journal::default();
    let engine = engine(&journal);
    journal.fail(&["mail"]);
    let outcome = run_mail(&engine).await;
    assert_eq!(outcome.state.name(), "failed");
    let id = outcome.execution;
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    irreversible(engine.rollback(id, plan, Effects::Refuse, somebody()).await);
    let key = |ctx: retake::ExecutionContext| {
        ctx.get_node_result(&node_id("mail")).unwrap().idempotency_key.clone()
    };
    let first = key(engine.store().context(id, outcome.head).await.unwrap());
    journal.fail(&[]);
    let again = resume(&engine, &outcome).await;
    assert_eq!(again.state, ExecutionState::Completed);
    assert_eq!(key(engine.store().context(id, again.head).await.unwrap()), first);
}

#[tokio::test]
async fn a_redo_is_refused_once_something_ran_after_the_undo() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let id = outcome.execution;
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap();
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    engine.checkpoint(id, Some("mine".into()), somebody()).await.unwrap();
    assert!(engine.redo(id, Effects::Refuse, somebody()).await.is_ok(), "a label alone loses nothing");
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    let plan = engine.plan_rollback(id, 3, &Rollback::default()).await.unwrap();
    engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap();
    let refused = engine.redo(id, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(matches!(refused, EngineError::NothingTo { verb: "redo", .. }), "{refused}");

    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    engine.rollback(id, plan, Effects::Refuse, somebody()).await.unwrap();
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert!(engine.redo(id, Effects::Refuse, somebody()).await.is_ok(), "nothing ran: the run was complete");
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
async fn an_approval_that_goes_back_takes_its_variable_with_it() {
    let engine = engine(&Journal::default());
    let workflow = Workflow::builder("asks")
        .var("x", json!(1))
        .checkpoints(always())
        .node("ok", Node::approval("go with ${{ vars.x }}?").into("decision"))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    let yes = Decision { approved: true, with: Value::Null };
    engine.approve(outcome.execution, "ok", yes, somebody()).await.unwrap();
    let outcome = resume(&engine, &outcome).await;
    let set = BTreeMap::from([("x".to_owned(), json!(2))]);
    let plan = engine
        .plan_rollback(outcome.execution, outcome.head, &Rollback { set, ..Rollback::default() })
        .await
        .unwrap();
    assert_eq!(plan.variables["decision"].to, None);
}

#[tokio::test]
async fn a_variable_that_was_named_goes_back_whatever_else_is_set() {
    let engine = engine(&Journal::default());
    let workflow = Workflow::builder("named")
        .var("x", json!(0))
        .var("s", json!(1))
        .checkpoints(always())
        .node("a", Node::set([("x", json!(10))]))
        .node("b", Node::set([("x", json!("${{ 20 + vars.s }}"))]).needs(["a"]))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    let extent = Extent::Only { variables: vec!["x".into()], nodes: vec![] };
    let set = BTreeMap::from([("s".to_owned(), json!(7))]);
    let request = Rollback { extent, set, ..Rollback::default() };
    let plan = engine.plan_rollback(outcome.execution, 1, &request).await.unwrap();
    assert_eq!(plan.variables["x"].to, Some(json!(0)));
    assert_eq!(plan.rerun[0].node, "b");
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
    #[derive(Debug)]
    struct One;
    impl retake::engine::Secrets for One {
        fn secret(&self, name: &str) -> Option<String> {
            (name == "TOKEN").then(|| "canary-5f2".to_owned())
        }
    }
    let journal = Journal::default();
    let registry = journal.registry().with("says", async |_| Ok::<_, NodeError>("it is canary-5f2"));
    let engine =
        Engine::new(Arc::new(MemoryStore::new())).with_registry(registry).with_secrets(Arc::new(One));
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

#[tokio::test]
async fn a_plan_for_a_head_that_moved_is_refused() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_rollback(outcome.execution, 2, &Rollback::default()).await.unwrap();
    engine.checkpoint(outcome.execution, Some("mine".into()), somebody()).await.unwrap();
    let refused = engine.rollback(outcome.execution, plan, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Store(StoreError::Conflict(Conflict::HeadMoved { .. }))),
        "{refused}"
    );
}

#[tokio::test]
async fn secrets_are_found_nowhere_in_the_store() {
    #[derive(Debug)]
    struct One;
    impl retake::engine::Secrets for One {
        fn secret(&self, name: &str) -> Option<String> {
            (name == "TOKEN").then(|| "canary-5f2".to_owned())
        }
    }
    let journal = Journal::default();
    let engine = engine(&journal).with_secrets(Arc::new(One));
    let workflow = Workflow::builder("secret")
        .checkpoints(always())
        .node("a", work().with(json!({"seen": "Bearer ${{ secrets.TOKEN }}"})).into("seen"))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(output(&engine, &outcome, "a").await, Some(json!({"seen": "Bearer ***"})));
    for seq in 1..=outcome.head {
        let image = engine.store().state(outcome.execution, seq).await.unwrap();
        assert!(!String::from_utf8_lossy(&image.to_delta().encode()).contains("canary"), "@{seq}");
    }
}

#[tokio::test]
async fn a_workflow_that_nobody_can_run_is_refused_before_anything_is_created() {
    let engine = Engine::new(Arc::new(MemoryStore::new()));
    let refused = engine.start(Arc::new(diamond()), Start::default()).await.unwrap_err();
    assert_eq!(refused.to_string(), "node `a` cannot run: this program has no handler for closure `work`");
    assert!(engine.store().executions(&retake::store::ExecutionFilter::default()).await.unwrap().is_empty());
}

/// A clock that follows the test runtime's time.
#[derive(Debug)]
struct TokioClock {
    start: tokio::time::Instant,
    ids: retake::clock::ManualClock,
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { start: tokio::time::Instant::now(), ids: retake::clock::ManualClock::default() }
    }
}

impl retake::clock::Clock for TokioClock {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.ids.now() + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn new_id(&self) -> uuid::Uuid {
        self.ids.new_id()
    }
}

/// A lease whose holder was dropped is given back by a task of its own.
async fn wait_until_released(engine: &Engine, id: retake::ExecutionId) {
    for _ in 0..1_000 {
        if engine.store().require(id).await.unwrap().leased_by.is_none() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the lease was not given back");
}
