//! Workers whose server is away: what they keep, and how they end.

use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout_at;

use super::*;
use crate::checkpoint::{CheckpointConfig, CheckpointFrequency};
use crate::engine::{
    Engine, EngineError, NodeContext, NodeError, Registry, Start, Submission, Worked, Worker, WorkerEvent,
    WorkerHandle, WorkerOptions,
};
use crate::execution::{ExecutionId, ExecutionState};
use crate::store::{StoreExt, Ticket};
use crate::workflow::{Node, Workflow};

/// Long enough to be renewed in time, and short enough to be waited out.
const LEASE: Duration = Duration::from_secs(3);

/// A worker with one execution of two nodes, of which the first waits until it is let go.
struct Office {
    schema: Schema,
    between: Between,
    execution: ExecutionId,
    runs: Arc<AtomicUsize>,
    leave: Arc<Notify>,
    handle: WorkerHandle,
    events: mpsc::Receiver<WorkerEvent>,
    /// What the worker told that nobody has waited for yet.
    told: Vec<WorkerEvent>,
    working: JoinHandle<Result<Worked, EngineError>>,
}

impl Office {
    /// Returns it when the first node runs.
    async fn new(options: WorkerOptions) -> Self {
        let schema = Schema::new();
        let between = Between::new(&schema).await;
        let short = PostgresOptions { outage_max: Duration::from_millis(300), ..impatient() };
        let store = PostgresStore::connect_with(&between.url, short).await.unwrap();
        let (runs, entered, leave) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (ran, inside, wait) = (Arc::clone(&runs), Arc::clone(&entered), Arc::clone(&leave));
        let registry = Registry::new()
            .with("paid", move |_: NodeContext| {
                ran.fetch_add(1, Ordering::Relaxed);
                let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
                async move {
                    inside.notify_one();
                    wait.notified().await;
                    Ok::<_, NodeError>("an answer")
                }
            })
            .with("free", async |_: NodeContext| Ok::<_, NodeError>(Value::Null));
        let checkpoints =
            CheckpointConfig { frequency: CheckpointFrequency::Always, ..CheckpointConfig::default() };
        let workflow = Workflow::builder("paid")
            .checkpoints(checkpoints)
            .node("paid", Node::call("paid"))
            .node("free", Node::call("free").needs(["paid"]))
            .build()
            .unwrap();
        let engine = Engine::on_queue(Arc::new(store)).with_registry(registry).with_lease_ttl(LEASE);
        let start = Start::default();
        let submitted = engine.submit(Arc::new(workflow), start, Ticket::default(), None).await.unwrap();
        let Submission::Created { execution, .. } = submitted else { unreachable!("it has no key") };
        let mut worker = Worker::new(engine, options).unwrap();
        let (handle, events) = (worker.handle(), worker.watch());
        let working = tokio::spawn(worker.work());
        timeout(FAR, entered.notified()).await.unwrap();
        Self { schema, between, execution, runs, leave, handle, events, told: Vec::new(), working }
    }

    /// Waits for an event of the worker, which may have come before another that was waited for: the worker looks for
    /// its store, and a run saves, beside each other.
    async fn until(&mut self, is_it: impl Fn(&WorkerEvent) -> bool) -> WorkerEvent {
        if let Some(at) = self.told.iter().position(&is_it) {
            return self.told.remove(at);
        }
        let deadline = tokio::time::Instant::now() + FAR;
        loop {
            let event = timeout_at(deadline, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("only {:?} came", self.told)).unwrap();
            assert!(!matches!(event, WorkerEvent::Lost { .. }), "{event:?}");
            if is_it(&event) {
                return event;
            }
            self.told.push(event);
        }
    }

    /// Waits until the lease has run out that the worker holds.
    async fn until_its_lease_is_over(&self) {
        let db = testing::db(&self.schema.url());
        let over = "SELECT lease_until < now() FROM executions";
        let is_over = async { while !db.query("reading", over, &[]).await.unwrap()[0].get::<_, bool>(0) {} };
        timeout(FAR, is_over).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_gave_while_the_server_was_away_for_longer_than_the_lease_is_saved_and_not_computed_again()
 {
    let mut office = Office::new(WorkerOptions::default()).await;
    office.between.silence(true);
    office.leave.notify_one();
    office.until(|event| matches!(event, WorkerEvent::StoreLost { .. })).await;
    office.until_its_lease_is_over().await;
    office.between.silence(false);
    office.between.cut();
    office.until(|event| matches!(event, WorkerEvent::StoreBack)).await;
    let finished = office.until(|event| matches!(event, WorkerEvent::Finished { .. })).await;
    assert!(
        matches!(finished, WorkerEvent::Finished { status: "completed", nodes_run: 2, .. }),
        "{finished:?}"
    );
    assert_eq!(office.runs.load(Ordering::Relaxed), 1);
    let store = PostgresStore::connect(&office.schema.url()).await.unwrap();
    assert_eq!(store.require(office.execution).await.unwrap().state, ExecutionState::Completed);
    office.handle.drain();
    assert_eq!(office.working.await.unwrap().unwrap(), Worked { ended: 1, abandoned: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_where_the_worker_has_no_place_for_another_and_asks_for_none() {
    let mut office = Office::new(WorkerOptions { concurrency: 1, ..WorkerOptions::default() }).await;
    office.between.silence(true);
    office.leave.notify_one();
    office.until_its_lease_is_over().await;
    office.between.silence(false);
    office.between.cut();
    office
        .until(|event| matches!(event, WorkerEvent::Finished { status: "completed", nodes_run: 2, .. }))
        .await;
    assert_eq!(office.runs.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_while_its_server_is_away_says_what_it_could_not_hand_over() {
    let mut office = Office::new(WorkerOptions { grace: Duration::ZERO, ..WorkerOptions::default() }).await;
    office.between.silence(true);
    office.handle.stop();
    let abandoned = office.until(|event| matches!(event, WorkerEvent::Abandoned { .. })).await;
    assert!(matches!(abandoned, WorkerEvent::Abandoned { execution, .. } if execution == office.execution));
    assert_eq!(office.working.await.unwrap().unwrap(), Worked { ended: 0, abandoned: 1 });
}

#[tokio::test]
async fn a_worker_whose_server_falls_silent_ends_when_it_is_told_to() {
    let schema = Schema::new();
    let between = Between::new(&schema).await;
    let options = PostgresOptions { call_timeout: FAR * 2, ..PostgresOptions::default() };
    let store = PostgresStore::connect_with(&between.url, options).await.unwrap();
    let mut worker = Worker::new(Engine::on_queue(Arc::new(store)), WorkerOptions::default()).unwrap();
    let (handle, mut events) = (worker.handle(), worker.watch());
    between.silence(true);
    let working = tokio::spawn(worker.work());
    assert!(matches!(events.recv().await, Some(WorkerEvent::Ready { .. })));
    handle.drain();
    let worked = timeout(FAR, working).await.unwrap().unwrap().unwrap();
    assert_eq!(worked, Worked::default());
}
