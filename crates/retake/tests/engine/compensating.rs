//! Compensation: the counter-actions against effects that a rollback leaves behind.

use retake::execution::{Compensation, CompensationStage};
use retake::workflow::{Call, NodeKind};
use tokio::sync::Notify;

use super::*;

/// What was done outside, in order, and what counter-actions should do.
#[derive(Clone, Default)]
struct World {
    journal: Journal,
    /// Counter-actions that never end, and that one has been entered.
    stuck: Arc<Mutex<Vec<String>>>,
    entered: Arc<Notify>,
    keys: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn engine(&self) -> Engine {
        let world = self.clone();
        let registry = self.journal.registry().with("retract", move |ctx: NodeContext| {
            let world = world.clone();
            async move {
                let node = ctx.node().to_owned();
                assert!(ctx.is_compensation());
                assert_ne!(ctx.compensated_key(), Some(ctx.idempotency_key()));
                let said = format!("undo {node}: {}", ctx.parameters()?.as_str().unwrap_or_default());
                world.journal.ran.lock().unwrap().push(said);
                world.keys.lock().unwrap().push(ctx.idempotency_key().to_owned());
                ctx.set_variable("lost", json!(true));
                if world.stuck.lock().unwrap().contains(&node) {
                    world.entered.notify_one();
                    std::future::pending::<()>().await;
                }
                match world.journal.fail.lock().unwrap().contains(&format!("undo {node}")) {
                    true => Err(NodeError::permanent("the mail was read already")),
                    false => Ok(()),
                }
            }
        });
        Engine::new(Arc::new(MemoryStore::new())).with_registry(registry)
    }

    fn ran(&self) -> Vec<String> {
        self.journal.ran()
    }

    fn stick(&self, nodes: &[&str]) {
        *self.stuck.lock().unwrap() = nodes.iter().map(|node| (*node).to_owned()).collect();
    }

    fn keys(&self) -> Vec<String> {
        std::mem::take(&mut *self.keys.lock().unwrap())
    }
}

/// A node with an effect outside, which reads `vars.tone`.
fn effect(needs: &str) -> Node {
    let with = json!("${{ nodes.draft.output }} ${{ vars.tone }}");
    let retract = NodeKind::Call(Call { name: "retract".into(), with });
    let work = work().with(json!("${{ vars.tone }} done"));
    work.needs([needs]).effect(Effect::External).compensate(retract)
}

/// `draft`, then `book`, `pay` and `send`, each with an effect outside, then `last`, which is spared where they give the
/// same again.
fn trip() -> Workflow {
    trip_that_keeps(1_000)
}

fn trip_that_keeps(max_checkpoints: usize) -> Workflow {
    Workflow::builder("trip")
        .var("tone", json!("dry"))
        .checkpoints(CheckpointConfig { max_checkpoints, ..always() })
        .node("draft", work())
        .node("book", effect("draft"))
        .node("pay", effect("book"))
        .node("send", effect("pay"))
        .node("last", work().needs(["send"]))
        .build()
        .unwrap()
}

fn compensate() -> Rollback {
    Rollback { effects: Effects::Compensate, ..Rollback::default() }
}

/// Goes back to just after `draft`, and compensates what came later.
async fn go_back(engine: &Engine, outcome: &Outcome) -> u64 {
    let plan = engine.plan_rollback(outcome.execution, 2, &compensate()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap()
}

async fn compensations(engine: &Engine, outcome: &Outcome) -> Vec<Compensation> {
    let head = engine.store().require(outcome.execution).await.unwrap().head;
    let ctx = engine.store().context(outcome.execution, head).await.unwrap();
    ctx.ledger.compensations.values().rev().cloned().collect()
}

async fn stages(engine: &Engine, outcome: &Outcome) -> Vec<String> {
    let all = compensations(engine, outcome).await;
    all.iter().map(|one| format!("{} {}", one.node, one.stage.name())).collect()
}

async fn refused(engine: &Engine, outcome: &Outcome, resume: Resume) -> EngineError {
    engine.resume(outcome.execution, resume).await.map(drop).unwrap_err()
}

fn again(nodes: &[&str]) -> Resume {
    Resume { again: nodes.iter().map(|node| (*node).to_owned()).collect(), ..Resume::default() }
}

fn skip(nodes: &[&str]) -> Resume {
    Resume { skip_compensation: nodes.iter().map(|node| (*node).to_owned()).collect(), ..Resume::default() }
}

async fn resume_with(engine: &Engine, outcome: &Outcome, resume: Resume) -> Outcome {
    engine.resume(outcome.execution, resume).await.unwrap().drive().await.unwrap()
}

/// Resumes, and drops the run while a counter-action waits.
async fn crash_inside(world: &World, engine: &Engine, outcome: &Outcome, resume: Resume) {
    let run = engine.resume(outcome.execution, resume).await.unwrap();
    tokio::select! {
        ended = run.drive() => panic!("it was to be stuck: {ended:?}"),
        () = world.entered.notified() => {}
    }
    wait_until_released(engine, outcome.execution).await;
}

#[tokio::test]
async fn effects_are_undone_last_first_before_any_node_runs_and_see_the_state_that_had_them() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    world.ran();
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let plan = engine.plan_rollback(outcome.execution, 2, &Rollback { set, ..compensate() }).await.unwrap();
    assert_eq!(plan.compensate, ["send", "pay", "book"]);
    assert_eq!((plan.irreversible.len(), plan.keep.clone()), (0, vec!["draft".to_owned()]));
    let head = engine.apply(plan, somebody()).await.unwrap();
    assert_eq!(world.ran(), Vec::<String>::new(), "a rollback is about state alone");
    assert_eq!(stages(&engine, &outcome).await, ["send open", "pay open", "book open"]);
    let again = resume(&engine, &outcome).await;
    assert_eq!(again.state, ExecutionState::Completed);
    let undone = |node: &str| format!("undo {node}: draft done dry");
    assert_eq!(
        world.ran(),
        [&undone("send"), &undone("pay"), &undone("book"), "book", "pay", "send", "last"]
    );
    assert_eq!(stages(&engine, &outcome).await, ["send done", "pay done", "book done"]);
    let ctx = engine.store().context(outcome.execution, again.head).await.unwrap();
    assert_eq!((ctx.get_variable("tone"), ctx.get_variable("lost")), (Some(&json!("warm")), None));
    let since = causes(&engine, &outcome).await.split_off(usize::try_from(head).unwrap());
    assert_eq!(since[..7], ["resume"].into_iter().chain(["compensate"; 6]).collect::<Vec<_>>()[..]);
}

#[tokio::test]
async fn a_crash_in_the_middle_goes_on_with_exactly_the_rest_once_somebody_looked() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    go_back(&engine, &outcome).await;
    world.stick(&["pay"]);
    world.ran();
    crash_inside(&world, &engine, &outcome, Resume::default()).await;
    assert_eq!(world.ran(), ["undo send: draft done dry", "undo pay: draft done dry"]);
    assert_eq!(stages(&engine, &outcome).await, ["send done", "pay started", "book open"]);
    let keys = world.keys();

    let error = refused(&engine, &outcome, Resume::default()).await;
    let EngineError::InterruptedCompensation { nodes } = &error else { panic!("{error}") };
    assert_eq!(*nodes, [("pay".to_owned(), keys[1].clone())]);
    // Also where it crashes once more.
    crash_inside(&world, &engine, &outcome, again(&["pay"])).await;
    let error = refused(&engine, &outcome, Resume::default()).await;
    assert!(matches!(error, EngineError::InterruptedCompensation { .. }), "{error}");

    world.stick(&[]);
    world.ran();
    let end = resume_with(&engine, &outcome, again(&["pay"])).await;
    assert_eq!(end.state, ExecutionState::Completed);
    assert_eq!(world.ran()[..3], ["undo pay: draft done dry", "undo book: draft done dry", "book"]);
    let later = world.keys();
    assert_eq!((&later[0], &later[1]), (&keys[1], &keys[1]), "every attempt has the same key");
    assert_eq!(stages(&engine, &outcome).await, ["send done", "pay done", "book done"]);
}

#[tokio::test]
async fn what_may_have_been_compensated_can_be_left_at_that() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    go_back(&engine, &outcome).await;
    world.stick(&["send"]);
    crash_inside(&world, &engine, &outcome, Resume::default()).await;
    world.ran();
    resume_with(&engine, &outcome, skip(&["send"])).await;
    assert_eq!(world.ran()[..2], ["undo pay: draft done dry", "undo book: draft done dry"]);
    assert_eq!(stages(&engine, &outcome).await, ["send skipped", "pay done", "book done"]);
}

#[tokio::test]
async fn a_compensation_that_fails_stops_the_run_and_is_tried_again() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    go_back(&engine, &outcome).await;
    world.ran();
    world.journal.fail(&["undo pay"]);
    let failed = resume(&engine, &outcome).await;
    let why = "the mail was read already".to_owned();
    assert_eq!(
        failed.state,
        ExecutionState::Failed("compensation of `pay` failed: the mail was read already".into())
    );
    assert_eq!((failed.nodes_run, failed.uncompensated), (0, Some(("pay".to_owned(), why.clone()))));
    assert_eq!(world.ran(), ["undo send: draft done dry", "undo pay: draft done dry"]);
    assert_eq!(compensations(&engine, &outcome).await[1].stage, CompensationStage::Failed(why));
    world.journal.fail(&[]);
    let keys = world.keys();
    let end = resume(&engine, &outcome).await;
    assert_eq!(end.state, ExecutionState::Completed);
    assert_eq!(world.ran()[..3], ["undo pay: draft done dry", "undo book: draft done dry", "book"]);
    assert_eq!(world.keys()[0], keys[1]);
}

#[tokio::test]
async fn a_compensation_can_be_left_out_and_only_one_that_is_due() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    let error = refused(&engine, &outcome, skip(&["pay"])).await;
    assert!(matches!(error, EngineError::NothingToCompensate { .. }), "{error}");
    go_back(&engine, &outcome).await;
    world.journal.fail(&["undo pay"]);
    resume(&engine, &outcome).await;
    world.ran();
    let end = resume_with(&engine, &outcome, skip(&["pay"])).await;
    assert_eq!(end.state, ExecutionState::Completed);
    assert_eq!(world.ran(), ["undo book: draft done dry", "book", "pay", "send"]);
    assert_eq!(stages(&engine, &outcome).await, ["send done", "pay skipped", "book done"]);
}

#[tokio::test]
async fn a_pause_between_counter_actions_leaves_the_rest_for_later() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    go_back(&engine, &outcome).await;
    world.ran();
    let run = engine.resume(outcome.execution, Resume::default()).await.unwrap();
    run.control().pause(None);
    assert_eq!(run.drive().await.unwrap().state, ExecutionState::Paused);
    assert_eq!(stages(&engine, &outcome).await, ["send done", "pay open", "book open"]);
    resume(&engine, &outcome).await;
    assert_eq!(world.ran().len(), 6);
}

#[tokio::test]
async fn an_execution_whose_nodes_are_all_done_is_not_complete_before_it_has_compensated() {
    let world = World::default();
    let engine = world.engine();
    let workflow = Workflow::builder("alone").var("tone", json!("dry")).checkpoints(always());
    let workflow = workflow.node("draft", work()).node("send", effect("draft")).build().unwrap();
    let outcome = run(&engine, workflow).await;
    let id = outcome.execution;
    let extent = Extent::Only { variables: vec![], nodes: vec!["send".into()] };
    let plan = engine.plan_rollback(id, 2, &Rollback { extent, ..compensate() }).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let by_hand = retake::engine::Edit { done: ["send".to_owned()].into(), ..Default::default() };
    let plan = engine.plan_edit(id, &by_hand).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    assert_eq!(engine.store().require(id).await.unwrap().state, ExecutionState::Paused);
    world.ran();
    let end = resume(&engine, &outcome).await;
    assert_eq!(
        (end.state, world.ran()),
        (ExecutionState::Completed, vec!["undo send: draft done dry".into()])
    );
}

#[tokio::test]
async fn nothing_is_compensated_twice_after_an_undo_and_another_rollback() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    let id = outcome.execution;
    go_back(&engine, &outcome).await;
    world.journal.fail(&["undo book"]);
    resume(&engine, &outcome).await;
    world.journal.fail(&[]);
    world.ran();

    // The state before says that all three stand.
    let error = engine.undo(id, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Compensated { nodes } if *nodes == ["book", "pay", "send"]),
        "{error}"
    );
    engine.undo(id, Effects::Keep, somebody()).await.unwrap();
    assert_eq!(output(&engine, &outcome, "send").await, Some(json!("dry done")));
    assert_eq!(stages(&engine, &outcome).await, ["send done", "pay done", "book failed"]);
    let end = resume(&engine, &outcome).await;
    assert_eq!((end.state.clone(), world.ran()), (ExecutionState::Completed, vec![]));

    // What is compensated is nothing that cannot be undone.
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    assert_eq!(plan.irreversible, ["book"]);
    let plan = engine.plan_rollback(id, 2, &compensate()).await.unwrap();
    assert_eq!(plan.compensate, ["book"]);
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert_eq!(world.ran(), ["undo book: draft done dry", "book", "pay", "send"]);

    // What ran again had effects of its own.
    let plan = engine.plan_rollback(id, 2, &compensate()).await.unwrap();
    assert_eq!(plan.compensate, ["send", "pay", "book"]);
    engine.apply(plan, somebody()).await.unwrap();
    let before = world.keys();
    resume(&engine, &outcome).await;
    assert!(world.keys().iter().all(|key| !before.contains(key)), "another effect, another key");
    let done = stages(&engine, &outcome).await;
    assert_eq!(done, ["send done", "pay done", "book done", "send done", "pay done", "book done"]);
}

#[tokio::test]
async fn an_undo_over_compensations_can_run_their_nodes_again_and_what_depends_on_them() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    let plan = engine.plan_rollback(outcome.execution, 6, &compensate()).await.unwrap();
    assert_eq!(plan.compensate, ["send"]);
    engine.apply(plan, somebody()).await.unwrap();
    world.stick(&["send"]);
    crash_inside(&world, &engine, &outcome, Resume::default()).await;
    world.stick(&[]);
    world.ran();
    engine.undo(outcome.execution, Effects::Again, somebody()).await.unwrap();
    let head = engine.store().require(outcome.execution).await.unwrap();
    assert_eq!(head.state, ExecutionState::Paused);
    // Whether it was compensated is still not known.
    let error = refused(&engine, &outcome, Resume::default()).await;
    assert!(matches!(error, EngineError::InterruptedCompensation { .. }), "{error}");
    let end = resume_with(&engine, &outcome, again(&["send"])).await;
    assert_eq!(end.state, ExecutionState::Completed);
    assert_eq!(world.ran(), ["undo send: draft done dry", "send"]);
}

#[tokio::test]
async fn an_undo_before_anything_was_compensated_drops_what_was_to_be() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    let id = outcome.execution;
    go_back(&engine, &outcome).await;
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    assert_eq!(stages(&engine, &outcome).await, Vec::<String>::new());
    world.ran();
    resume(&engine, &outcome).await;
    assert_eq!(world.ran(), Vec::<String>::new());
    let error = engine.redo(id, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(matches!(error, EngineError::Irreversible { .. }), "{error}");
    engine.redo(id, Effects::Compensate, somebody()).await.unwrap();
    assert_eq!(stages(&engine, &outcome).await, ["send open", "pay open", "book open"]);
}

#[tokio::test]
async fn another_operation_meanwhile_loses_no_compensation() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    let id = outcome.execution;
    go_back(&engine, &outcome).await;
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let plan = engine.plan_edit(id, &retake::engine::Edit { set, ..Default::default() }).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    let plan = engine.plan_rollback(id, 1, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    assert_eq!(stages(&engine, &outcome).await, ["send open", "pay open", "book open"]);
    world.ran();
    resume(&engine, &outcome).await;
    assert_eq!(
        world.ran()[..4],
        ["send", "pay", "book", "draft"].map(|node| match node {
            "draft" => node.to_owned(),
            _ => format!("undo {node}: draft done dry"),
        })
    );
}

#[tokio::test]
async fn an_older_point_whose_effects_were_compensated_does_not_simply_come_back() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    let id = outcome.execution;
    go_back(&engine, &outcome).await;
    resume(&engine, &outcome).await;
    world.ran();
    let old = outcome.head;
    let plan = engine.plan_rollback(id, old, &Rollback::default()).await.unwrap();
    assert_eq!(plan.compensated, ["book", "pay", "send"]);
    // Those that ran since stand outside, and that state does not know them.
    assert_eq!(plan.irreversible, ["book", "pay", "send"]);
    assert!(engine.apply(plan, somebody()).await.is_err());
    let plan = engine.plan_rollback(id, old, &compensate()).await.unwrap();
    assert_eq!((plan.compensate.len(), plan.compensated.len()), (3, 0));
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    let ran = world.ran();
    assert_eq!(ran.iter().filter(|line| line.starts_with("undo")).count(), 3);
    assert_eq!(ran[3..6], ["book", "pay", "send"]);
}

#[tokio::test]
async fn going_back_over_effects_without_a_counter_action_is_refused() {
    let world = World::default();
    let engine = world.engine();
    let workflow = Workflow::builder("mixed")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .node("draft", work())
        .node("book", effect("draft"))
        .node("mail", work().needs(["book"]).effect(Effect::External))
        .build()
        .unwrap();
    let outcome = run(&engine, workflow).await;
    for (effects, expected) in
        [(Effects::Refuse, &["book", "mail"][..]), (Effects::Compensate, &["mail"][..])]
    {
        let request = Rollback { effects, ..Rollback::default() };
        let plan = engine.plan_rollback(outcome.execution, 2, &request).await.unwrap();
        assert_eq!(plan.irreversible, expected);
        let error = engine.apply(plan, somebody()).await.unwrap_err();
        assert!(matches!(&error, EngineError::Irreversible { nodes } if nodes == expected), "{error}");
    }
    assert_eq!(engine.store().require(outcome.execution).await.unwrap().head, outcome.head);
}

#[tokio::test]
async fn an_effect_that_was_in_flight_or_failed_may_have_happened_and_is_compensated_too() {
    let world = World::default();
    let engine = world.engine();
    world.journal.fail(&["pay"]);
    let outcome = run(&engine, trip()).await;
    assert_eq!(outcome.state.name(), "failed");
    go_back(&engine, &outcome).await;
    assert_eq!(stages(&engine, &outcome).await, ["pay open", "book open"]);
    world.journal.fail(&[]);
    world.ran();
    resume(&engine, &outcome).await;
    assert_eq!(world.ran()[..2], ["undo pay: draft done dry", "undo book: draft done dry"]);

    let history = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap();
    let mark = history.iter().find(|point| point.cause == Cause::Started { node: "send".into() }).unwrap();
    let keep = Rollback { effects: Effects::Again, ..Rollback::default() };
    let plan = engine.plan_rollback(outcome.execution, mark.seq, &keep).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    assert_eq!(output(&engine, &outcome, "send").await, None);
}

#[tokio::test]
async fn a_fork_compensates_nothing_that_its_origin_did() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip()).await;
    go_back(&engine, &outcome).await;
    let fork = async |seq| {
        let plan = engine.plan_fork(outcome.execution, seq, &Default::default()).await.unwrap();
        let forked = engine.fork(plan, None, somebody()).await.unwrap();
        Outcome { execution: forked.execution, ..outcome.clone() }
    };
    let late = fork(outcome.head + 1).await;
    assert_eq!(stages(&engine, &late).await, Vec::<String>::new());
    // `book` and `pay` are the origin's, `send` is its own.
    let early = fork(6).await;
    resume(&engine, &early).await;
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let request = Rollback { set, ..compensate() };
    let head = engine.store().require(early.execution).await.unwrap().head;
    let plan = engine.plan_rollback(early.execution, head, &request).await.unwrap();
    assert_eq!(
        (&plan.compensate[..], &plan.irreversible[..]),
        (&["send".into()][..], &["book".into(), "pay".into()][..])
    );
    assert!(engine.apply(plan, somebody()).await.is_err());
}

#[tokio::test]
async fn a_run_does_not_prune_what_its_counter_actions_have_to_see() {
    let world = World::default();
    let engine = world.engine();
    let outcome = run(&engine, trip_that_keeps(10)).await;
    let id = outcome.execution;
    let plan = engine.plan_rollback(id, 4, &compensate()).await.unwrap();
    assert_eq!(plan.compensate, ["send", "pay"]);
    engine.apply(plan, somebody()).await.unwrap();
    world.journal.fail(&["undo send"]);
    for _ in 0..10 {
        resume(&engine, &outcome).await;
    }
    assert!(engine.store().context(id, outcome.head).await.is_ok());
    engine.store().prune(id, 1).await.unwrap();
    world.journal.fail(&[]);
    let error = refused(&engine, &outcome, Resume::default()).await;
    assert_eq!(
        error.to_string(),
        format!("the compensation of `send` needs the state at @{}, which was pruned", outcome.head)
    );
    world.ran();
    let end = resume_with(&engine, &outcome, skip(&["send", "pay"])).await;
    assert_eq!(
        (end.state, world.ran()),
        (ExecutionState::Completed, ["pay", "send"].map(String::from).to_vec())
    );
}

#[tokio::test]
async fn a_program_without_the_counter_action_does_not_start_the_workflow() {
    let engine = engine(&Journal::default());
    let error = engine.start(Arc::new(trip()), Start::default()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("no handler for closure `retract`"), "{error}");
}
