//! Nodes that rest between two attempts: what of that survives a run that ends meanwhile.

use super::*;
use retake::engine::Event;

/// An engine whose closure `flaky` fails until its third attempt, and spends a cent each time; and what it was called
/// with: when, which attempt, under which key.
type Calls = Arc<Mutex<Vec<(Duration, u32, String)>>>;

fn flaky() -> (Engine, Calls) {
    let clock = Arc::new(TokioClock::default());
    let calls = Calls::default();
    let (seen, now) = (Arc::clone(&calls), Arc::clone(&clock));
    let registry = Registry::new().with("flaky", move |ctx: NodeContext| {
        let (seen, now) = (Arc::clone(&seen), Arc::clone(&now));
        async move {
            use retake::clock::Clock;
            let call = (now.elapsed(), ctx.attempt(), ctx.idempotency_key().to_owned());
            seen.lock().unwrap().push(call);
            ctx.spent(TokenUsage::new(1, 1), Some(0.01));
            if ctx.attempt() < 3 { Err(NodeError::new("not yet")) } else { Ok(ctx.attempt()) }
        }
    });
    let store = Arc::new(MemoryStore::with_clock(Arc::clone(&clock) as _));
    (Engine::new(store).with_registry(registry).with_clock(clock), calls)
}

/// One flaky node, with an hour between attempts.
fn hourly(effect: Effect) -> Workflow {
    let hour = Duration::from_secs(3_600);
    let retry =
        retake::workflow::Retry { max: 5, base: hour, max_delay: hour, jitter: false, ..Default::default() };
    Workflow::builder("hourly")
        .checkpoints(every(CheckpointFrequency::Manual))
        .node("a", Node::call("flaky").retry(retry).effect(effect))
        .build()
        .unwrap()
}

/// Drives a run until a node rests, and pauses it then.
async fn pause_at_rest(mut run: retake::engine::Run) -> Outcome {
    let (control, mut events) = (run.control(), run.watch());
    let driven = tokio::spawn(run.drive());
    while !matches!(events.recv().await.unwrap(), Event::NodeRetry { .. }) {}
    control.pause(None);
    driven.await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_paused_run_keeps_its_attempts_and_what_is_left_of_the_wait() {
    let (engine, calls) = flaky();
    let run = engine.start(Arc::new(hourly(Effect::Pure)), Start::default()).await.unwrap();
    let outcome = pause_at_rest(run).await;
    assert_eq!(outcome.state, ExecutionState::Paused);
    assert_eq!(outcome.spend.paid.usd().as_deref(), Some("0.01"), "what the failed attempt cost was paid");
    let ctx = engine.store().context(outcome.execution, outcome.head).await.unwrap();
    let record = ctx.get_node_result(&node_id("a")).unwrap();
    assert_eq!((&record.result, record.retry_count), (&ExecutionResult::Pending, 1));
    assert_eq!((record.due_at.unwrap() - record.started_at).num_minutes(), 60);

    tokio::time::advance(Duration::from_secs(600)).await;
    let done = resume(&engine, &outcome).await;
    assert_eq!(done.state, ExecutionState::Completed);
    let calls = calls.lock().unwrap().clone();
    let hours = |(at, attempt, _): &(Duration, u32, String)| (at.as_secs() / 3_600, *attempt);
    assert_eq!(calls.iter().map(hours).collect::<Vec<_>>(), [(0, 1), (1, 2), (2, 3)]);
    assert!(calls.iter().all(|(_, _, key)| *key == calls[0].2), "one idempotency key");
    let ctx = engine.store().context(done.execution, done.head).await.unwrap();
    let record = ctx.get_node_result(&node_id("a")).unwrap();
    assert_eq!((record.retry_count, record.due_at), (2, None));
    assert_eq!(record.metrics.as_ref().unwrap().cost_usd, Some(0.03));
    assert_eq!(done.spend.paid.usd().as_deref(), Some("0.03"));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_over_by_the_time_of_the_resume_is_not_waited_for_again() {
    let (engine, calls) = flaky();
    let run = engine.start(Arc::new(hourly(Effect::Pure)), Start::default()).await.unwrap();
    let outcome = pause_at_rest(run).await;
    tokio::time::advance(Duration::from_secs(7_200)).await;
    let before = tokio::time::Instant::now();
    let again = engine.resume(outcome.execution, Resume::default()).await.unwrap();
    pause_at_rest(again).await;
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(calls.lock().unwrap().last().unwrap().1, 2);
}

#[tokio::test(start_paused = true)]
async fn an_effect_is_marked_again_before_the_attempt_after_a_rest_that_was_saved() {
    let (engine, _) = flaky();
    let run = engine.start(Arc::new(hourly(Effect::External)), Start::default()).await.unwrap();
    let outcome = pause_at_rest(run).await;
    // It is known that nothing is in flight: nobody is asked.
    let run = engine.resume(outcome.execution, Resume::default()).await.unwrap();
    let outcome = pause_at_rest(run).await;
    assert_eq!(causes(&engine, &outcome).await, ["start", "started", "pause", "resume", "started", "pause"]);
    let marked = engine.store().context(outcome.execution, outcome.head - 1).await.unwrap();
    let record = marked.get_node_result(&node_id("a")).unwrap();
    assert_eq!((record.due_at, record.retry_count), (None, 1), "the second attempt may have taken effect");
}
