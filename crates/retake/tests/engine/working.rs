//! Workers: what they take, where they give it back, and how they leave it to others.

mod changed;

use retake::clock::Clock as _;
use retake::engine::{Submission, Worker, WorkerEvent, WorkerHandle, WorkerOptions, WorkerUntil};
use retake::store::{Claim, Limit, QUEUE_DEFAULT, Queue, Store, Ticket};
use tokio::sync::{Notify, mpsc};

use super::*;

/// A queue, and engines on it, by the test runtime's time.
struct Office {
    store: Arc<MemoryStore>,
    clock: Arc<TokioClock>,
    journal: Journal,
    entered: Arc<Notify>,
    leave: Arc<Notify>,
}

impl Office {
    fn new() -> Self {
        let clock = Arc::new(TokioClock::default());
        let store = Arc::new(MemoryStore::with_clock(Arc::clone(&clock) as _));
        Self { store, clock, journal: Journal::default(), entered: Arc::default(), leave: Arc::default() }
    }

    /// Returns an engine whose nodes `work`, wait at a `gate`, or are `flaky` until their third attempt.
    fn engine(&self) -> Engine {
        let (inside, wait) = (Arc::clone(&self.entered), Arc::clone(&self.leave));
        let (journal, flaky) = (self.journal.clone(), self.journal.clone());
        let registry = self.journal.registry().with("gate", move |ctx: NodeContext| {
            let (inside, wait, journal) = (Arc::clone(&inside), Arc::clone(&wait), journal.clone());
            async move {
                journal.ran.lock().unwrap().push(ctx.idempotency_key().to_owned());
                inside.notify_one();
                wait.notified().await;
                Ok::<_, NodeError>("through")
            }
        });
        let registry = registry.with("flaky", move |ctx: NodeContext| {
            let journal = flaky.clone();
            async move {
                journal.ran.lock().unwrap().push(format!("attempt {}", ctx.attempt()));
                if ctx.attempt() < 3 { Err(NodeError::new("not yet")) } else { Ok(ctx.attempt()) }
            }
        });
        self.engine_with(registry)
    }

    fn engine_with(&self, registry: Registry) -> Engine {
        Engine::on_queue(Arc::clone(&self.store) as _)
            .with_registry(registry)
            .with_clock(Arc::clone(&self.clock) as _)
    }

    async fn submit(&self, workflow: Workflow) -> retake::ExecutionId {
        let start = Start::default();
        match self.engine().submit(Arc::new(workflow), start, Ticket::default(), None).await.unwrap() {
            Submission::Created { execution, .. } => execution,
            Submission::Duplicate { .. } => panic!("it is the first"),
        }
    }

    /// Lets a worker do all that there is. Returns what it told.
    async fn work(&self) -> Vec<WorkerEvent> {
        let options = WorkerOptions { until: WorkerUntil::Empty, ..WorkerOptions::default() };
        let mut worker = Worker::new(self.engine(), options).unwrap();
        let mut events = worker.watch();
        worker.work().await.unwrap();
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push(event);
        }
        told
    }

    /// Starts a worker that works until it is told to end.
    fn hire(&self) -> Hired {
        let mut worker = Worker::new(self.engine(), WorkerOptions::default()).unwrap();
        let (handle, events) = (worker.handle(), worker.watch());
        Hired { handle, events, worked: tokio::spawn(async move { worker.work().await.map(|_| ()) }) }
    }

    /// Claims what is due, and is not heard of again.
    async fn die_with_it(&self, ttl: Duration) {
        let claim = Claim {
            worker: uuid::Uuid::from_u128(9),
            queues: Vec::new(),
            able: ["workflow:1", "closure:work"].map(str::to_owned).into(),
            most: 1,
            ttl,
        };
        assert_eq!(self.store.claim(&claim).await.unwrap().len(), 1);
    }

    async fn state(&self, id: retake::ExecutionId) -> ExecutionState {
        self.store.require(id).await.unwrap().state
    }

    async fn causes(&self, id: retake::ExecutionId) -> Vec<&'static str> {
        let history = self.store.history(id, HistoryPage::default()).await.unwrap();
        history.iter().rev().map(|point| point.cause.kind()).collect()
    }

    /// Returns how many tickets are due, delayed, held and claimed.
    async fn depth(&self) -> (u64, u64, u64, u64) {
        let depths = self.store.depths().await.unwrap();
        depths.first().map_or((0, 0, 0, 0), |depth| (depth.due, depth.delayed, depth.held, depth.claimed))
    }
}

struct Hired {
    handle: WorkerHandle,
    events: mpsc::Receiver<WorkerEvent>,
    worked: tokio::task::JoinHandle<Result<(), EngineError>>,
}

impl Hired {
    async fn until(&mut self, is_it: impl Fn(&WorkerEvent) -> bool) -> WorkerEvent {
        loop {
            let event = self.events.recv().await.unwrap();
            if is_it(&event) {
                return event;
            }
        }
    }

    async fn drained(self) {
        self.handle.drain();
        self.worked.await.unwrap().unwrap();
    }
}

fn finished(events: &[WorkerEvent]) -> Vec<&'static str> {
    let status = |event: &WorkerEvent| {
        if let WorkerEvent::Finished { status, .. } = event { Some(*status) } else { None }
    };
    events.iter().filter_map(status).collect()
}

fn waiting(effect: Duration) -> Workflow {
    Workflow::builder("waits")
        .checkpoints(always())
        .node("before", work())
        .node("w", Node::wait(effect).needs(["before"]))
        .node("after", work().needs(["w"]))
        .build()
        .unwrap()
}

fn gated(effect: Effect) -> Workflow {
    Workflow::builder("gated")
        .checkpoints(every(CheckpointFrequency::Manual))
        .node("first", work())
        .node("gate", Node::call("gate").needs(["first"]).effect(effect))
        .node("last", work().needs(["gate"]))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn workers_share_what_is_submitted_and_each_node_runs_once() {
    let office = Office::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(office.submit(diamond()).await);
    }
    let (one, two) = tokio::join!(office.work(), office.work());
    assert_eq!(finished(&one).len() + finished(&two).len(), 20);
    assert!(!finished(&one).is_empty() && !finished(&two).is_empty(), "both took some");
    assert_eq!(office.journal.ran().len(), 80);
    for id in ids {
        assert_eq!(office.state(id).await, ExecutionState::Completed);
        assert_eq!(office.causes(id).await, ["start", "nodes", "nodes", "nodes", "finish"]);
    }
    assert_eq!(office.depth().await, (0, 0, 0, 0));
    assert_eq!(office.store.workers().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_holds_no_worker_and_costs_no_checkpoint() {
    let office = Office::new();
    let id = office.submit(waiting(Duration::from_secs(3_600))).await;
    let mut worker = office.hire();
    let WorkerEvent::Parked { until, .. } =
        worker.until(|event| matches!(event, WorkerEvent::Parked { .. })).await
    else {
        unreachable!()
    };
    let ctx = office.store.context(id, 3).await.unwrap();
    let record = ctx.get_node_result(&node_id("w")).unwrap();
    assert_eq!(record.due_at, Some(until), "the state says until when it waits");
    assert_eq!((until - record.started_at).num_seconds(), 3_600);
    assert_eq!(office.depth().await, (0, 1, 0, 0));
    let record = office.store.require(id).await.unwrap();
    assert_eq!((record.state, record.leased_by), (ExecutionState::Running, None));
    assert_eq!(office.journal.ran(), ["before"]);
    let began = tokio::time::Instant::now();
    worker.until(|event| matches!(event, WorkerEvent::Finished { .. })).await;
    assert_eq!(began.elapsed().as_secs() / 60, 60);
    assert_eq!(office.journal.ran(), ["after"]);
    assert_eq!(office.causes(id).await, ["start", "nodes", "started", "nodes", "finish"]);
    let ctx = office.store.context(id, 5).await.unwrap();
    let waited = ctx.get_node_result(&node_id("w")).unwrap().metrics.clone().unwrap();
    assert_eq!(waited.duration_ms.unwrap() / 60_000, 60, "a wait took its time, whoever held it");
    worker.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_short_wait_is_waited_out() {
    let office = Office::new();
    office.submit(waiting(Duration::from_millis(900))).await;
    let told = office.work().await;
    assert!(!told.iter().any(|event| matches!(event, WorkerEvent::Parked { .. })), "{told:?}");
    assert_eq!(finished(&told), ["completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_back_off_holds_no_worker_and_keeps_its_attempts() {
    let office = Office::new();
    let hour = Duration::from_secs(3_600);
    let retry =
        retake::workflow::Retry { max: 5, base: hour, max_delay: hour, jitter: false, ..Default::default() };
    let workflow = Workflow::builder("flaky")
        .checkpoints(always())
        .node("a", Node::call("flaky").retry(retry))
        .node("b", work())
        .build()
        .unwrap();
    let id = office.submit(workflow).await;
    let began = tokio::time::Instant::now();
    let told = office.work().await;
    let parked = told.iter().filter(|event| matches!(event, WorkerEvent::Parked { .. })).count();
    assert_eq!((parked, finished(&told)), (2, vec!["completed"]));
    assert_eq!(office.journal.ran(), ["attempt 1", "b", "attempt 2", "attempt 3"]);
    assert_eq!(began.elapsed().as_secs() / 3_600, 2);
    assert_eq!(office.causes(id).await, ["start", "nodes", "retry", "finish"]);
}

#[tokio::test(start_paused = true)]
async fn an_approval_is_held_until_somebody_decides_and_then_goes_on_by_itself() {
    let office = Office::new();
    let id = office.submit(mail()).await;
    let mut worker = office.hire();
    let held = worker.until(|event| matches!(event, WorkerEvent::Held { .. })).await;
    assert!(
        matches!(&held, WorkerEvent::Held { why, .. } if why == "somebody must approve `ok`"),
        "{held:?}"
    );
    assert_eq!((office.state(id).await, office.depth().await), (ExecutionState::Paused, (0, 0, 1, 0)));
    let yes = Decision { approved: true, with: Value::Null };
    office.engine().approve(id, "ok", yes, somebody()).await.unwrap();
    worker.until(|event| matches!(event, WorkerEvent::Finished { status: "completed", .. })).await;
    worker.drained().await;
    assert_eq!(office.journal.ran(), ["draft", "mail", "last"]);
}

#[tokio::test(start_paused = true)]
async fn an_approval_goes_on_though_another_branch_waits_for_long() {
    let office = Office::new();
    let workflow = Workflow::builder("both")
        .node("w", Node::wait(Duration::from_secs(3_600)))
        .node("ok", Node::approval("go?"))
        .node("after", work().needs(["ok"]))
        .build()
        .unwrap();
    let id = office.submit(workflow).await;
    let mut worker = office.hire();
    worker.until(|event| matches!(event, WorkerEvent::Parked { .. })).await;
    let began = tokio::time::Instant::now();
    let yes = Decision { approved: true, with: Value::Null };
    office.engine().approve(id, "ok", yes, somebody()).await.unwrap();
    worker.until(|event| matches!(event, WorkerEvent::Parked { .. })).await;
    assert_eq!(office.journal.ran(), ["after"]);
    assert!(began.elapsed() < Duration::from_secs(10));
    worker.until(|event| matches!(event, WorkerEvent::Finished { status: "completed", .. })).await;
    worker.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_worker_finishes_what_is_in_flight_and_another_goes_on() {
    let office = Office::new();
    let id = office.submit(gated(Effect::External)).await;
    let mut worker = office.hire();
    office.entered.notified().await;
    worker.handle.drain();
    worker.until(|event| matches!(event, WorkerEvent::Draining { running: 1 })).await;
    office.leave.notify_one();
    worker.until(|event| matches!(event, WorkerEvent::HandedOver { .. })).await;
    worker.worked.await.unwrap().unwrap();
    assert_eq!((office.state(id).await, office.depth().await), (ExecutionState::Running, (1, 0, 0, 0)));
    assert_eq!(finished(&office.work().await), ["completed"]);
    assert_eq!(office.journal.ran().len(), 3, "each node once");
    assert_eq!(office.causes(id).await, ["start", "started", "nodes", "finish"]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_finish_in_the_grace_is_ended_and_runs_again_elsewhere() {
    let office = Office::new();
    let id = office.submit(gated(Effect::Pure)).await;
    let mut worker = office.hire();
    office.entered.notified().await;
    worker.handle.drain();
    // Nobody lets the node through.
    worker.until(|event| matches!(event, WorkerEvent::HandedOver { .. })).await;
    worker.worked.await.unwrap().unwrap();
    office.leave.notify_one();
    assert_eq!(finished(&office.work().await), ["completed"]);
    let ran = office.journal.ran();
    assert_eq!((ran[0].as_str(), ran[3].as_str()), ("first", "last"));
    assert_eq!(ran[1], ran[2], "the same node, under one key");
    assert_eq!(office.causes(id).await, ["start", "nodes", "finish"], "what was done was saved");
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_effect_is_held_until_a_person_says_to_run_it_again() {
    let office = Office::new();
    let id = office.submit(gated(Effect::External)).await;
    let worker = office.hire();
    office.entered.notified().await;
    worker.handle.stop();
    worker.worked.await.unwrap().unwrap();
    let told = office.work().await;
    let is_held = |event: &WorkerEvent| {
        matches!(event, WorkerEvent::Held { why, .. }
            if why.starts_with("`gate` (idempotency key") && why.contains("may have taken effect"))
    };
    assert!(told.iter().any(is_held), "{told:?}");
    assert_eq!(office.depth().await, (0, 0, 1, 0));

    let again = Resume { operation: Some(somebody()), again: vec!["gate".into()], ..Resume::default() };
    let refused = office.engine().enqueue(id, Ticket::default(), Resume::default()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Interrupted { .. }), "{refused}");
    office.engine().enqueue(id, Ticket::default(), again).await.unwrap();
    office.leave.notify_one();
    assert_eq!(finished(&office.work().await), ["completed"]);
    let ran = office.journal.ran();
    assert_eq!(ran[1], ran[2], "the same effect, under one key");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_worker_that_died_is_done_when_its_lease_has_ended() {
    let office = Office::new();
    let id = office.submit(diamond()).await;
    office.die_with_it(Duration::from_secs(30)).await;
    let began = tokio::time::Instant::now();
    office.engine().cancel(id, somebody()).await.unwrap();
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(office.state(id).await, ExecutionState::Cancelled);
    assert_eq!(office.depth().await, (0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_wait_for_the_lease_of_a_dead_worker_is_told_when_it_ends() {
    let office = Office::new();
    let id = office.submit(diamond()).await;
    let ends = office.clock.now() + Duration::from_secs(600);
    office.die_with_it(Duration::from_secs(600)).await;
    let began = tokio::time::Instant::now();
    for refused in [office.engine().cancel(id, somebody()).await, office.engine().pause(id, somebody()).await]
    {
        let error = refused.unwrap_err();
        assert!(matches!(error, EngineError::Silent { until, .. } if until == ends), "{error}");
    }
    assert!((40..42).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(office.store.requests(id).await.unwrap(), [], "nothing is done behind anybody's back");
}

#[tokio::test(start_paused = true)]
async fn a_worker_goes_on_in_the_place_of_one_that_died() {
    let office = Office::new();
    let id = office.submit(diamond()).await;
    office.die_with_it(Duration::from_secs(30)).await;
    let began = tokio::time::Instant::now();
    let told = office.work().await;
    let taken = told
        .iter()
        .find_map(|event| if let WorkerEvent::Taken { claims, .. } = event { Some(*claims) } else { None });
    assert_eq!((taken, finished(&told)), (Some(2), vec!["completed"]));
    assert!(began.elapsed() >= Duration::from_secs(30), "the lease was waited for");
    assert_eq!(office.causes(id).await, ["start", "resume", "nodes", "nodes", "nodes", "finish"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_waits_for_an_empty_queue_says_once_that_it_stands_still() {
    let office = Office::new();
    let id = office.submit(diamond()).await;
    let limit = Limit::Running { queue: QUEUE_DEFAULT.to_owned(), most: 0 };
    office.store.set_limit(limit.clone()).await.unwrap();
    let options = WorkerOptions { until: WorkerUntil::Empty, ..WorkerOptions::default() };
    let mut worker = Worker::new(office.engine(), options).unwrap();
    let mut events = worker.watch();
    let worked = tokio::spawn(worker.work());
    let mut told = Vec::new();
    while !told.iter().any(|event| matches!(event, WorkerEvent::HeldBack { .. })) {
        told.push(events.recv().await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    office.store.lift_limit(&limit).await.unwrap();
    assert_eq!(worked.await.unwrap().unwrap().ended, 1);
    assert_eq!(office.state(id).await, ExecutionState::Completed);
    while let Some(event) = events.recv().await {
        told.push(event);
    }
    let held_back: Vec<&WorkerEvent> =
        told.iter().filter(|event| matches!(event, WorkerEvent::HeldBack { .. })).collect();
    let expected = WorkerEvent::HeldBack { queue: QUEUE_DEFAULT.to_owned(), due: 1, limit: Some(0) };
    assert_eq!(held_back, [&expected]);
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_cannot_do_is_left_to_others() {
    let office = Office::new();
    let id = office.submit(diamond()).await;
    let unable = Worker::new(office.engine_with(Registry::new()), WorkerOptions::default()).unwrap();
    let handle = unable.handle();
    let idle = tokio::spawn(unable.work());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(office.store.require(id).await.unwrap().leased_by, None);
    assert_eq!(finished(&office.work().await), ["completed"]);
    handle.drain();
    assert_eq!(idle.await.unwrap().unwrap().ended, 0);
}

#[tokio::test(start_paused = true)]
async fn a_definition_of_a_newer_version_is_given_back_again_and_again() {
    let office = Office::new();
    let mut definition: Value = serde_json::from_slice(&diamond().definition().to_json()).unwrap();
    definition["nodes"]["a"]["kind"] = json!({"levitate": {}});
    let ctx = retake::ExecutionContext::new(uuid::Uuid::from_u128(5));
    let new = retake::store::NewExecution {
        id: ctx.execution_id,
        name: "newer".into(),
        workflow_id: ctx.workflow_id,
        workflow_name: "newer".into(),
        definition: serde_json::to_vec(&definition).unwrap(),
        origin: None,
    };
    let state = ctx.state.clone();
    let first = retake::store::NewCheckpoint {
        delta: retake::store::delta(None, &ctx, |_| None).unwrap(),
        ..retake::store::NewCheckpoint::new(uuid::Uuid::from_u128(6), ctx.started_at, state, Cause::Start)
    };
    office.store.submit(new, first, Ticket::default(), None).await.unwrap();
    let mut worker = office.hire();
    for _ in 0..8 {
        let began = tokio::time::Instant::now();
        worker.until(|event| matches!(event, WorkerEvent::Left { .. })).await;
        worker.until(|event| matches!(event, WorkerEvent::Left { .. })).await;
        assert!(began.elapsed() > Duration::from_secs(20), "it does not come back at once");
    }
    assert_eq!(office.state(ctx.execution_id).await, ExecutionState::Running);
    assert_eq!(office.store.depths().await.unwrap()[0].stuck, 0, "it counts as nobody's failure");
    worker.drained().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_while_it_waits_leaves_the_queue() {
    let office = Office::new();
    let engine = office.engine();
    let (paused, cancelled) = (office.submit(diamond()).await, office.submit(diamond()).await);
    engine.pause(paused, somebody()).await.unwrap();
    engine.cancel(cancelled, somebody()).await.unwrap();
    assert_eq!(office.depth().await, (0, 0, 0, 0));
    assert_eq!(finished(&office.work().await), Vec::<&str>::new());
    engine.enqueue(paused, Ticket::default(), Resume::default()).await.unwrap();
    assert_eq!(finished(&office.work().await), ["completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_pauses_and_cancels_what_it_runs_when_somebody_asks() {
    let office = Office::new();
    for (pause, status) in [(true, "paused"), (false, "cancelled")] {
        let id = office.submit(gated(Effect::Pure)).await;
        let mut worker = office.hire();
        office.entered.notified().await;
        let engine = office.engine();
        let asked = tokio::spawn(async move {
            if pause { engine.pause(id, somebody()).await } else { engine.cancel(id, somebody()).await }
        });
        if pause {
            // The worker has heard of it by then.
            tokio::time::sleep(Duration::from_secs(1)).await;
            office.leave.notify_one();
        }
        asked.await.unwrap().unwrap();
        let event = worker.until(|event| matches!(event, WorkerEvent::Finished { .. })).await;
        assert!(
            matches!(&event, WorkerEvent::Finished { status: found, .. } if *found == status),
            "{event:?}"
        );
        worker.drained().await;
        assert_eq!(office.depth().await, (0, 0, 0, 0), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_resumes_an_execution_himself_takes_it_out_of_the_queue() {
    let office = Office::new();
    let id = office.submit(gated(Effect::Pure)).await;
    let run = office.engine().resume(id, Resume::default()).await.unwrap();
    assert_eq!(office.depth().await, (0, 0, 0, 0));
    let mut worker = office.hire();
    worker.until(|event| matches!(event, WorkerEvent::Ready { .. })).await;
    let driven = tokio::spawn(run.drive());
    office.entered.notified().await;
    office.leave.notify_one();
    assert_eq!(driven.await.unwrap().unwrap().state, ExecutionState::Completed);
    worker.drained().await;
    assert_eq!(office.journal.ran().len(), 3, "each node once");
}

#[tokio::test]
async fn a_second_submission_under_one_key_names_the_first() {
    let office = Office::new();
    let submit = async |name: &str| {
        let start = Start { name: Some(name.to_owned()), ..Start::default() };
        let ticket = Ticket::default();
        office.engine().submit(Arc::new(diamond()), start, ticket, Some("order 7".into())).await.unwrap()
    };
    let Submission::Created { execution, .. } = submit("first").await else { panic!("it is the first") };
    assert_eq!(submit("second").await, Submission::Duplicate { execution, name: "first".into() });
}

#[tokio::test]
async fn a_store_without_a_queue_has_no_workers() {
    let engine = engine(&Journal::default());
    let refused = Worker::new(engine.clone(), WorkerOptions::default()).unwrap_err();
    assert!(matches!(refused, EngineError::NoQueue), "{refused}");
    let refused =
        engine.submit(Arc::new(diamond()), Start::default(), Ticket::default(), None).await.unwrap_err();
    assert!(matches!(refused, EngineError::NoQueue), "{refused}");
}
