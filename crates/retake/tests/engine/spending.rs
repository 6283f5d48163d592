//! What an execution has cost only grows, whatever is taken back.

use retake::engine::{Edit, Fork};
use retake::execution::{Spend, TokenUsage};

use super::*;

/// Every node asks a model for a tenth of a dollar; `free` asks one whose price nobody knows.
fn paying() -> Engine {
    let registry = Registry::new().with("work", async |ctx: NodeContext| {
        let cost = (ctx.node() != "free").then_some(0.1);
        ctx.spent(TokenUsage::new(7, 3), cost);
        Ok::<_, NodeError>(ctx.parameters()?)
    });
    Engine::new(Arc::new(MemoryStore::new())).with_registry(registry)
}

async fn spend(engine: &Engine, id: retake::ExecutionId) -> (Option<String>, Option<String>, Option<String>) {
    let record = engine.store().require(id).await.unwrap();
    let Spend { paid, reused } = record.spend;
    let ctx = engine.store().context(id, record.head).await.unwrap();
    assert_eq!(ctx.ledger.spend, record.spend, "the record says what the head says");
    (paid.usd(), reused.usd(), record.spend.from_zero().usd())
}

fn usd(
    paid: &str,
    reused: Option<&str>,
    from_zero: &str,
) -> (Option<String>, Option<String>, Option<String>) {
    (Some(paid.into()), reused.map(str::to_owned), Some(from_zero.into()))
}

#[tokio::test]
async fn spend_grows_over_rollback_undo_and_resume_and_tells_what_was_not_paid_again() {
    let engine = paying();
    let outcome = run(&engine, diamond()).await;
    let id = outcome.execution;
    assert_eq!(spend(&engine, id).await, usd("0.4", None, "0.4"));

    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    let plan = engine.plan_edit(id, &Edit { set, ..Edit::default() }).await.unwrap();
    assert_eq!((plan.cost_kept_usd.as_deref(), plan.cost_again_usd.as_deref()), (Some("0.2"), Some("0.2")));
    assert_eq!((plan.kept.tokens, plan.again.tokens), (20, 20));
    engine.apply(plan, somebody()).await.unwrap();
    let again = resume(&engine, &outcome).await;
    assert_eq!(again.cost_usd.as_deref(), Some("0.2"));
    assert_eq!(spend(&engine, id).await, usd("0.6", Some("0.2"), "0.8"));

    engine.undo(id, Effects::Refuse, somebody()).await.unwrap();
    assert_eq!(spend(&engine, id).await, usd("0.6", Some("0.2"), "0.8"));
    let linear = Rollback { extent: Extent::Linear, ..Rollback::default() };
    let plan = engine.plan_rollback(id, 2, &linear).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    resume(&engine, &outcome).await;
    assert_eq!(spend(&engine, id).await, usd("0.9", Some("0.3"), "1.2"));
}

#[tokio::test]
async fn a_fork_begins_with_what_its_origin_had_spent_by_then() {
    let engine = paying();
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_fork(outcome.execution, 3, &Fork::default()).await.unwrap();
    let fork = engine.fork(plan, Some("fork".into()), somebody()).await.unwrap();
    assert_eq!(spend(&engine, fork.execution).await, usd("0.2", None, "0.2"));
    engine.resume(fork.execution, Resume::default()).await.unwrap().drive().await.unwrap();
    assert_eq!(spend(&engine, fork.execution).await, usd("0.4", Some("0.2"), "0.6"));
    assert_eq!(spend(&engine, outcome.execution).await, usd("0.4", None, "0.4"));
}

#[tokio::test]
async fn a_fork_that_changes_nothing_is_the_point_that_it_began_at() {
    let engine = paying();
    let outcome = run(&engine, diamond()).await;
    let fork = engine.fork_unchanged(outcome.execution, 3, None, somebody()).await.unwrap();
    assert_eq!(spend(&engine, fork.execution).await, usd("0.2", None, "0.2"));
    let record = engine.store().require(fork.execution).await.unwrap();
    assert_eq!((record.head, record.state), (1, ExecutionState::Paused));
    let goes_on = engine.resume(fork.execution, Resume::default()).await.unwrap().drive().await.unwrap();
    assert_eq!((goes_on.nodes_run, goes_on.nodes_reused), (2, 2));
    assert_eq!(goes_on.state, ExecutionState::Completed);
    let whole = engine.fork_unchanged(outcome.execution, outcome.head, None, somebody()).await.unwrap();
    let record = engine.store().require(whole.execution).await.unwrap();
    assert_eq!(record.state, ExecutionState::Completed);
    let missing = engine.fork_unchanged(outcome.execution, 99, None, somebody()).await.unwrap_err();
    assert!(matches!(missing, EngineError::Store(StoreError::NoPoint { seq: 99, .. })), "{missing}");
}

#[tokio::test]
async fn one_unknown_price_makes_the_spend_unknown_and_not_zero() {
    let engine = paying();
    let workflow = Workflow::builder("w").node("a", work()).node("free", work()).build().unwrap();
    let outcome = run(&engine, workflow).await;
    assert_eq!(spend(&engine, outcome.execution).await, (None, None, None));
    let record = engine.store().require(outcome.execution).await.unwrap();
    assert_eq!((record.spend.paid.tokens, record.spend.paid.unpriced), (20, 1));
}

#[tokio::test]
async fn what_is_spared_was_reused_and_not_paid_again() {
    let engine = paying();
    let outcome = run(&engine, diamond()).await;
    let plan = engine.plan_rollback(outcome.execution, 2, &Rollback::default()).await.unwrap();
    engine.apply(plan, somebody()).await.unwrap();
    let again = resume(&engine, &outcome).await;
    assert_eq!((again.nodes_run, again.nodes_spared), (2, 1));
    assert_eq!(spend(&engine, outcome.execution).await, usd("0.6", Some("0.2"), "0.8"));
}
