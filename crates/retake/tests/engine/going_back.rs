//! Rollback, undo and redo, and what they must not forget.

use super::*;

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
async fn a_linear_rollback_goes_back_wholly_and_runs_what_came_after_again() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    let linear = Rollback { extent: Extent::Linear, ..Rollback::default() };
    let plan = engine.plan_rollback(outcome.execution, 3, &linear).await.unwrap();
    assert_eq!(plan.keep, ["a", "b"]);
    let rerun: Vec<&str> = plan.rerun.iter().map(|rerun| rerun.node.as_str()).collect();
    assert_eq!(rerun, ["c", "d"]);
    assert_eq!(plan.rerun[0].because, "its result is newer than @3");
    let head = engine.apply(plan, somebody()).await.unwrap();
    assert_eq!(head, outcome.head + 1);
    let ctx = engine.store().context(outcome.execution, head).await.unwrap();
    assert_eq!((&ctx.state, ctx.completed_at), (&ExecutionState::Paused, None));
    assert_eq!(ctx.get_variable("last"), None);
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["c", "d"]);
}

#[tokio::test]
async fn a_rollback_keeps_a_branch_that_does_not_depend_on_the_point_though_it_finished_later() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    let plan = engine.plan_rollback(outcome.execution, 3, &Rollback::default()).await.unwrap();
    assert_eq!(plan.keep, ["a", "b", "c"]);
    let because = "it depends on `b`, and its result is newer than @3".to_owned();
    assert_eq!(plan.rerun, [Rerun { node: "d".into(), because }]);
    let head = engine.apply(plan, somebody()).await.unwrap();
    let record = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap().remove(0);
    assert_eq!((record.seq, record.parent, &record.nodes[..]), (head, Some(3), &["c".to_owned()][..]));
    assert!(record.size_bytes < 400, "what stays is not stored again: {} bytes", record.size_bytes);
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["d"]);
    assert_eq!(output(&engine, &outcome, "d").await, Some(json!(["a done dry", "a done"])));
}

#[tokio::test]
async fn a_node_that_gives_the_same_again_does_not_disturb_those_after_it() {
    let journal = Journal::default();
    let engine = engine(&journal);
    let outcome = run(&engine, diamond()).await;
    journal.ran();
    // `b`, `c` and `d` depend on `a`, directly or not.
    let plan = engine.plan_rollback(outcome.execution, 2, &Rollback::default()).await.unwrap();
    let rerun: Vec<&str> = plan.rerun.iter().map(|rerun| rerun.node.as_str()).collect();
    assert_eq!(rerun, ["b", "c", "d"]);
    engine.apply(plan, somebody()).await.unwrap();
    let again = resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["b", "c"]);
    assert_eq!((again.nodes_run, again.nodes_reused, again.nodes_spared), (2, 1, 1));
    let ctx = engine.store().context(outcome.execution, again.head).await.unwrap();
    assert_eq!(ctx.get_variable("last"), Some(&json!(["a done dry", "a done"])));
    assert!(ctx.ledger.taken_back.is_empty());
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
    assert_eq!(
        because,
        [("b", "it read `vars.tone`, which changes from \"dry\" to \"warm\""), ("d", "`b` runs again")]
    );
    assert_eq!(plan.variables["tone"].to, Some(json!("warm")));
    engine.apply(plan, somebody()).await.unwrap();
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
    engine.apply(plan, somebody()).await.unwrap();
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
    assert_eq!(
        because,
        ["it read `vars.tone`, which changes from \"dry\" to \"warm\"", written_again, written_again]
    );
    engine.apply(plan, somebody()).await.unwrap();
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
    let head = engine.apply(plan, somebody()).await.unwrap();
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
    engine.apply(plan, somebody()).await.unwrap();
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
    let refused = engine.apply(plan, somebody()).await.unwrap_err();
    assert!(matches!(&refused, EngineError::Irreversible { nodes } if *nodes == ["mail"]), "{refused}");
    assert_eq!(engine.store().require(id).await.unwrap().head, outcome.head);

    let keep = Rollback { effects: Effects::Keep, ..Rollback::default() };
    let plan = engine.plan_rollback(id, 1, &keep).await.unwrap();
    assert_eq!(plan.keep, ["mail"]);
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["draft"]);

    let again = Rollback { effects: Effects::Again, ..Rollback::default() };
    let plan = engine.plan_rollback(id, 1, &again).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let last = resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["draft", "mail"]);
    let second = key(engine.store().context(id, last.head).await.unwrap());
    assert_ne!(first, second, "a deliberate re-run has a key of its own");
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
    irreversible(engine.apply(plan, somebody()).await);

    let keep = Rollback { effects: Effects::Keep, ..Rollback::default() };
    let plan = engine.plan_rollback(id, mark, &keep).await.unwrap();
    assert_eq!(plan.keep, ["draft", "ok", "mail"]);
    engine.apply(plan, somebody()).await.unwrap();
    journal.ran();
    let again = resume(&engine, &outcome).await;
    assert_eq!(journal.ran(), ["last"]);
    // What the kept node had written was kept with it.
    assert_eq!(output(&engine, &again, "last").await, Some(json!("mail done")));

    let once_more = Rollback { effects: Effects::Again, ..Rollback::default() };
    let plan = engine.plan_rollback(id, mark, &once_more).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    // It gave the same, so that `last` need not run once more.
    assert_eq!(journal.ran(), ["mail"]);
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
    irreversible(engine.apply(plan, somebody()).await);
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
    engine.apply(plan, somebody()).await.unwrap();
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    engine.checkpoint(id, Some("mine".into()), somebody()).await.unwrap();
    assert!(engine.redo(id, Effects::Refuse, somebody()).await.is_ok(), "a label alone loses nothing");
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    let plan = engine.plan_rollback(id, 3, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let refused = engine.redo(id, Effects::Refuse, somebody()).await.unwrap_err();
    assert!(matches!(refused, EngineError::NothingTo { verb: "redo", .. }), "{refused}");

    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    let plan = engine.plan_rollback(id, 2, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert!(engine.redo(id, Effects::Refuse, somebody()).await.is_ok(), "nothing ran: the run was complete");
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
async fn a_plan_for_a_head_that_moved_is_refused() {
    let engine = engine(&Journal::default());
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_rollback(outcome.execution, 2, &Rollback::default()).await.unwrap();
    engine.checkpoint(outcome.execution, Some("mine".into()), somebody()).await.unwrap();
    let refused = engine.apply(plan, somebody()).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Store(StoreError::Conflict(Conflict::HeadMoved { .. }))),
        "{refused}"
    );
}
