//! Runs that lose their lease: a process that was stopped for longer than the lease holds, and goes on.

use futures_util::FutureExt;
use retake::clock::ManualClock;
use retake::engine::{LEASE_TTL, Secrets};
use retake::store::{Lease, Store};

use super::*;

/// A run on a clock that stands still, and whose nodes wait at a gate.
struct Stopped {
    clock: Arc<ManualClock>,
    engine: Engine,
    entered: Arc<tokio::sync::Notify>,
    leave: Arc<tokio::sync::Notify>,
    began: Arc<Mutex<Vec<String>>>,
    dropped: Arc<AtomicUsize>,
}

/// Counts nodes whose work was ended.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Stopped {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let (entered, leave) = (Arc::<tokio::sync::Notify>::default(), Arc::<tokio::sync::Notify>::default());
        let (began, dropped) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (inside, wait) = (Arc::clone(&entered), Arc::clone(&leave));
        let (seen, ended) = (Arc::clone(&began), Arc::clone(&dropped));
        let registry = Registry::new().with("gate", move |ctx: NodeContext| {
            let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
            let guard = Dropped(Arc::clone(&ended));
            seen.lock().unwrap().push(ctx.node().to_owned());
            async move {
                let _guard = guard;
                inside.notify_one();
                wait.notified().await;
                Ok::<_, NodeError>("through")
            }
        });
        let store = Arc::new(MemoryStore::with_clock(Arc::clone(&clock) as _));
        let engine = Engine::new(store).with_registry(registry).with_clock(Arc::clone(&clock) as _);
        Self { clock, engine, entered, leave, began, dropped }
    }

    /// Starts a run, and lets its lease run out and pass to somebody else while its first nodes are at the gate.
    async fn overtaken(
        &self,
        workflow: Workflow,
    ) -> (Lease, tokio::task::JoinHandle<Result<Outcome, EngineError>>) {
        let run = self.engine.start(Arc::new(workflow), Start::default()).await.unwrap();
        let id = run.execution_id();
        let driven = tokio::spawn(run.drive());
        self.entered.notified().await;
        self.clock.advance(LEASE_TTL * 2);
        (self.engine.store().lease(id, LEASE_TTL).await.unwrap(), driven)
    }

    fn began(&self) -> Vec<String> {
        self.began.lock().unwrap().clone()
    }
}

fn gates(frequency: CheckpointFrequency, effect: Effect) -> Workflow {
    Workflow::builder("gates")
        .checkpoints(every(frequency))
        .node("a", Node::call("gate"))
        .node("b", Node::call("gate").needs(["a"]).effect(effect))
        .build()
        .unwrap()
}

fn assert_fenced(ended: Result<Outcome, EngineError>) {
    let error = ended.unwrap_err();
    let is_fenced = matches!(error, EngineError::Store(StoreError::Conflict(Conflict::Fenced { .. })));
    assert!(is_fenced, "{error}");
}

#[tokio::test]
async fn a_run_whose_lease_has_passed_on_saves_nothing_and_starts_nothing() {
    // What is refused is the save of `a`, the look before `b`, and the mark that `b` has started.
    for (frequency, effect) in [
        (CheckpointFrequency::Always, Effect::Pure),
        (CheckpointFrequency::Manual, Effect::Pure),
        (CheckpointFrequency::Manual, Effect::External),
    ] {
        let stopped = Stopped::new();
        let (lease, driven) = stopped.overtaken(gates(frequency, effect)).await;
        stopped.leave.notify_one();
        assert_fenced(driven.await.unwrap());
        assert_eq!(stopped.began(), ["a"], "what follows must not have been started");
        let record = stopped.engine.store().require(lease.execution_id).await.unwrap();
        assert_eq!(record.head, 1, "nothing was saved");
        assert!(record.leased_by.is_some(), "the new holder keeps its lease");
    }
}

/// Has the lease run out and pass to somebody else when a secret is looked for, once that has been asked for.
#[derive(Debug)]
struct Takeover {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    of: Mutex<Option<retake::ExecutionId>>,
}

impl Secrets for Takeover {
    fn secret(&self, _name: &str) -> Option<String> {
        if let Some(id) = self.of.lock().unwrap().take() {
            self.clock.advance(LEASE_TTL * 2);
            self.store.lease(id, LEASE_TTL).now_or_never().unwrap().unwrap();
        }
        Some("word".to_owned())
    }
}

#[tokio::test]
async fn a_node_does_not_begin_where_the_lease_has_passed_on_while_it_was_planned() {
    let clock = Arc::new(ManualClock::default());
    let store = Arc::new(MemoryStore::with_clock(Arc::clone(&clock) as _));
    let takeover = Takeover { clock: Arc::clone(&clock), store: Arc::clone(&store), of: Mutex::default() };
    let (journal, secrets) = (Journal::default(), Arc::new(takeover));
    let armed = Arc::clone(&secrets);
    let registry = journal.registry().with("arm", move |ctx: NodeContext| {
        *armed.of.lock().unwrap() = Some(ctx.execution_id());
        async { Ok::<_, NodeError>("armed") }
    });
    let engine = Engine::new(store).with_registry(registry).with_clock(clock).with_secrets(secrets);
    let workflow = Workflow::builder("planned")
        .checkpoints(every(CheckpointFrequency::Manual))
        .node("a", Node::call("arm"))
        // Its condition is looked at on the way.
        .node("b", work().needs(["a"]).when("secrets.WORD == 'word'"))
        .build()
        .unwrap();
    let run = engine.start(Arc::new(workflow), Start::default()).await.unwrap();
    assert_fenced(run.drive().await);
    assert_eq!(journal.ran(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_ends_the_nodes_at_once() {
    let stopped = Stopped::new();
    let (_lease, driven) = stopped.overtaken(gates(CheckpointFrequency::Always, Effect::Pure)).await;
    // Nothing but the time of the renewal passes: the node is never let through.
    assert_fenced(driven.await.unwrap());
    assert_eq!(stopped.dropped.load(Ordering::SeqCst), 1, "the node in flight was ended");
}

#[tokio::test]
async fn a_run_that_was_stopped_for_long_goes_on_where_nobody_took_over() {
    let stopped = Stopped::new();
    let run = stopped
        .engine
        .start(Arc::new(gates(CheckpointFrequency::Manual, Effect::Pure)), Start::default())
        .await
        .unwrap();
    let driven = tokio::spawn(run.drive());
    stopped.entered.notified().await;
    stopped.clock.advance(LEASE_TTL * 2);
    stopped.leave.notify_one();
    stopped.entered.notified().await;
    stopped.leave.notify_one();
    assert_eq!(driven.await.unwrap().unwrap().state, ExecutionState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_however_busy_the_nodes_are() {
    let clock = Arc::new(TokioClock::default());
    let store = Arc::new(MemoryStore::with_clock(Arc::clone(&clock) as _));
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let (looked, looking) = (Arc::clone(&seen), Arc::clone(&store));
    let registry = Registry::new().with("step", move |ctx: NodeContext| {
        let (looked, looking) = (Arc::clone(&looked), Arc::clone(&looking));
        async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let record = looking.execution(ctx.execution_id()).await.unwrap().unwrap();
            looked.lock().unwrap().push(record.leased_by.is_some());
            Ok::<_, NodeError>(())
        }
    });
    let engine =
        Engine::new(store).with_registry(registry).with_clock(clock).with_lease_ttl(Duration::from_millis(1));
    let steps = (0..20).fold(Workflow::builder("steps").max_parallel(2), |builder, step| {
        builder.node(format!("n{step}"), Node::call("step"))
    });
    let outcome = run(&engine, steps.build().unwrap()).await;
    assert_eq!(outcome.nodes_run, 20);
    assert_eq!(*seen.lock().unwrap(), [true; 20], "a lease of a second was held for four");
}
