//! What a run tells of itself: spans below the right ones, measurements that add up, and nothing of what it worked on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use retake::engine::{Engine, FileSecrets, NodeContext, NodeError, Registry, Resume, Start, TraceContext};
use retake::execution::{ExecutionContext, ExecutionState, TokenUsage, WorkflowId};
use retake::store::{
    Cause, Commit, Conflict, MemoryStore, NewCheckpoint, NewExecution, QueueDepth, Store, StoreError,
};
use retake::telemetry::{INSTRUMENTS, Observed, measure, show_depths};
use retake::workflow::{Node, Retry, Workflow};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// What is in every value, prompt, output and failure here, and must be in nothing that is told.
const CANARY: &str = "c4nary";

#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    name: String,
    /// The place of the span above.
    parent: Option<usize>,
    fields: BTreeMap<String, String>,
}

/// Every span and event, as a subscriber sees them.
#[derive(Debug, Clone, Default)]
struct Listener {
    spans: Arc<Mutex<Vec<Told>>>,
    events: Arc<Mutex<Vec<Told>>>,
}

/// Where a span stands among all of them, in the order in which they began.
struct Place(usize);

fn place<'a>(span: &SpanRef<'a, impl LookupSpan<'a>>) -> Option<usize> {
    span.extensions().get::<Place>().map(|place| place.0)
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Listener {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let span = ctx.span(id).unwrap();
        let parent = span.parent().and_then(|parent| place(&parent));
        let mut told = Told { name: attributes.metadata().name().to_owned(), parent, ..Told::default() };
        attributes.record(&mut Fields(&mut told.fields));
        let mut spans = self.spans.lock().unwrap();
        span.extensions_mut().insert(Place(spans.len()));
        spans.push(told);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(place) = ctx.span(id).and_then(|span| place(&span)) {
            values.record(&mut Fields(&mut self.spans.lock().unwrap()[place].fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let parent = ctx.event_span(event).and_then(|span| place(&span));
        let mut told = Told { name: event.metadata().level().to_string(), parent, ..Told::default() };
        event.record(&mut Fields(&mut told.fields));
        self.events.lock().unwrap().push(told);
    }
}

impl Listener {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    fn spans(&self, name: &str) -> Vec<(usize, Told)> {
        let spans = self.spans.lock().unwrap();
        spans.iter().cloned().enumerate().filter(|(_, told)| told.name == name).collect()
    }
}

/// Every measurement, by name and attributes. Of a histogram: how many, and their sum.
#[derive(Debug, Clone, Default)]
struct Meters(Arc<Mutex<BTreeMap<String, (u64, f64)>>>);

struct Meter(String, Meters);

impl Meter {
    fn change(&self, change: impl FnOnce(&mut (u64, f64))) {
        change(self.1.0.lock().unwrap().entry(self.0.clone()).or_default());
    }
}

impl CounterFn for Meter {
    fn increment(&self, value: u64) {
        self.change(|(count, _)| *count += value);
    }

    fn absolute(&self, value: u64) {
        self.change(|(count, _)| *count = value);
    }
}

impl GaugeFn for Meter {
    fn increment(&self, value: f64) {
        self.change(|(count, sum)| (*count, *sum) = (*count + 1, *sum + value));
    }

    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }

    fn set(&self, value: f64) {
        self.change(|(_, sum)| *sum = value);
    }
}

impl HistogramFn for Meter {
    fn record(&self, value: f64) {
        GaugeFn::increment(self, value);
    }
}

impl Recorder for Meters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(self.meter(key)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(self.meter(key)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(self.meter(key)))
    }
}

impl Meters {
    fn meter(&self, key: &Key) -> Meter {
        let instrument = INSTRUMENTS.iter().find(|instrument| instrument.name == key.name()).unwrap();
        let mut name = key.name().to_owned();
        for label in key.labels() {
            assert!(
                instrument.attributes.contains(&label.key()),
                "{name} is not said to have {}",
                label.key()
            );
            name.push_str(&format!(" {}", label.value()));
        }
        Meter(name, self.clone())
    }

    fn count(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).map_or(0, |(count, _)| *count)
    }

    fn sum(&self, name: &str) -> f64 {
        self.0.lock().unwrap()[name].1
    }
}

fn store() -> Arc<dyn Store> {
    Arc::new(Observed::new(Arc::new(MemoryStore::new()), "memory"))
}

/// Three nodes, one after the other: the second fails once, the third asks a model.
fn workflow() -> Workflow {
    let retry = Retry { max: 1, base: Duration::from_millis(1), ..Retry::default() };
    Workflow::builder("otters")
        .var("topic", json!(format!("topic {CANARY}")))
        .node("plan", Node::call("say").into("plan"))
        .node("draft", Node::call("stumble").needs(["plan"]).retry(retry))
        .node("send", Node::call("say").needs(["draft"]))
        .build()
        .unwrap()
}

fn engine(store: Arc<dyn Store>) -> Engine {
    let registry = Registry::new()
        .with("say", async |ctx: NodeContext| {
            ctx.spent(TokenUsage::new(7, 3), None);
            ctx.progress(CANARY);
            Ok::<_, NodeError>(format!("{} {}", CANARY, ctx.secret("TOKEN").unwrap()))
        })
        .with("stumble", async |ctx: NodeContext| match ctx.attempt() {
            1 => Err(NodeError::new(format!("cannot say {CANARY}"))),
            _ => Ok(CANARY),
        });
    let secrets = FileSecrets::parse(&format!("TOKEN=secret-{CANARY}")).unwrap();
    Engine::new(store).with_registry(registry).with_secrets(Arc::new(secrets))
}

/// Whether anybody listens is kept for the whole process: who listens must not begin while others run what is listened to.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_run_is_a_span_above_its_nodes_and_its_commits() {
    let _alone = ALONE.lock().await;
    let (listener, meters) = (Listener::default(), Meters::default());
    let _listening = listener.listen();
    let _measuring = metrics::set_default_local_recorder(&meters);
    measure();
    let engine = engine(store());
    let start = Start { name: Some("brave-otter".to_owned()), ..Start::default() };
    let outcome = engine.start(Arc::new(workflow()), start).await.unwrap().drive().await.unwrap();
    assert_eq!(outcome.state, ExecutionState::Completed);

    let executions = listener.spans("execution");
    let [(run, execution)] = executions.as_slice() else { panic!("{executions:?}") };
    assert_eq!(execution.parent, None);
    for (field, value) in [
        ("otel.name", "execution otters"),
        ("retake.execution.id", outcome.execution.to_string().as_str()),
        ("retake.execution.name", "brave-otter"),
        ("retake.execution.resumed", "false"),
        ("retake.execution.status", "completed"),
        ("retake.execution.nodes_run", "3"),
    ] {
        assert_eq!(execution.fields[field], value, "{field}");
    }
    let nodes = listener.spans("node");
    assert!(nodes.iter().all(|(_, node)| node.parent == Some(*run)), "{nodes:?}");
    let told = |field: &str| nodes.iter().map(|(_, node)| node.fields[field].clone()).collect::<Vec<_>>();
    assert_eq!(told("otel.name"), ["node plan", "node draft", "node send"]);
    assert_eq!(told("retake.node.attempts"), ["1", "2", "1"]);
    assert_eq!(told("retake.node.status"), ["success"; 3]);
    let commits = listener.spans("commit");
    assert!(commits.iter().all(|(_, commit)| commit.parent == Some(*run)), "{commits:?}");
    let seqs: Vec<_> =
        commits.iter().map(|(_, commit)| commit.fields["retake.checkpoint.seq"].clone()).collect();
    assert_eq!(seqs, (1..=outcome.head).map(|seq| seq.to_string()).collect::<Vec<_>>());

    assert_eq!(meters.count("retake.commits memory durable"), outcome.head);
    assert_eq!(meters.count("retake.commit.duration memory"), outcome.head);
    assert_eq!(meters.count("retake.nodes call success"), 3);
    assert_eq!(meters.count("retake.node.duration work call success"), 3);
    assert_eq!(meters.count("retake.node.retries transient call"), 1);
    assert_eq!(meters.count("retake.executions completed"), 1);
    for gauge in ["retake.execution.active", "retake.node.active call"] {
        assert_eq!((meters.count(gauge) > 0, meters.sum(gauge)), (true, 0.0), "{gauge} went up and down");
    }
}

#[tokio::test]
async fn nothing_that_a_run_works_on_is_told() {
    let _alone = ALONE.lock().await;
    let (listener, meters) = (Listener::default(), Meters::default());
    let _listening = listener.listen();
    let _measuring = metrics::set_default_local_recorder(&meters);
    measure();
    let workflow = Workflow::builder("otters")
        .node("plan", Node::call("say").into("plan"))
        .node("fail", Node::call("fail").needs(["plan"]))
        .build()
        .unwrap();
    let engine = engine(store());
    let registry = Registry::new()
        .with("say", async |_: NodeContext| Ok::<_, NodeError>(CANARY))
        .with("fail", async |_: NodeContext| Err::<(), _>(NodeError::permanent(format!("no {CANARY}"))));
    let engine = engine.with_registry(registry);
    let start = Start { inputs: BTreeMap::new(), name: None };
    let outcome = engine.start(Arc::new(workflow), start).await.unwrap().drive().await.unwrap();
    assert!(format!("{:?}", outcome.state).contains(CANARY), "it is there to be found");
    let told = format!("{listener:?} {meters:?}");
    assert!(told.contains("execution otters") && told.contains("retake.nodes call failure"), "{told}");
    assert!(!told.contains(CANARY), "{told}");
    let failed = listener.spans("node").into_iter().find(|(_, node)| node.fields["retake.node.id"] == "fail");
    assert_eq!(failed.unwrap().1.fields["error.type"], "permanent");
    assert_eq!(listener.spans("execution")[0].1.fields["error.type"], "node");
}

#[tokio::test]
async fn what_cannot_be_resumed_is_told_and_a_resumed_run_names_the_same_execution() {
    let _alone = ALONE.lock().await;
    let listener = Listener::default();
    let _listening = listener.listen();
    let store = store();
    let engine = engine(Arc::clone(&store));
    let run = engine.start(Arc::new(workflow()), Start::default()).await.unwrap();
    let id = run.execution_id();
    assert!(engine.resume(id, Resume::default()).await.is_err(), "somebody holds the lease");
    run.drive().await.unwrap();
    engine.resume(id, Resume::default()).await.unwrap().drive().await.unwrap();
    let told: Vec<_> = listener
        .spans("execution")
        .into_iter()
        .map(|(_, span)| {
            let field = |name| span.fields.get(name).cloned().unwrap_or_default();
            (
                field("retake.execution.resumed"),
                field("error.type"),
                field("retake.execution.id") == id.to_string(),
            )
        })
        .collect();
    let said = |resumed: &str, error: &str, is_known| (resumed.to_owned(), error.to_owned(), is_known);
    assert_eq!(told, [said("false", "", true), said("true", "leased", true), said("true", "", true)]);
}

#[tokio::test]
async fn a_lost_lease_is_told_and_counted_once_for_each_write_that_meets_it() {
    let _alone = ALONE.lock().await;
    let (listener, meters) = (Listener::default(), Meters::default());
    let _listening = listener.listen();
    let _measuring = metrics::set_default_local_recorder(&meters);
    measure();
    let store = store();
    let ctx = ExecutionContext::new(WorkflowId::nil());
    let new = NewExecution {
        id: ctx.execution_id,
        name: "otter".to_owned(),
        workflow_id: WorkflowId::nil(),
        workflow_name: "otters".to_owned(),
        definition: Vec::new(),
        origin: None,
    };
    let checkpoint = || {
        let id = uuid::Uuid::from_u128(u128::from(next()));
        NewCheckpoint::new(id, ctx.started_at, ExecutionState::Running, Cause::Start)
    };
    store.create(new, checkpoint()).await.unwrap();
    let old = store.lease(ctx.execution_id, Duration::ZERO).await.unwrap();
    let newer = store.lease(ctx.execution_id, Duration::from_secs(60)).await.unwrap();
    assert!(newer.fence > old.fence);
    let commit = Commit {
        execution_id: ctx.execution_id,
        expected_head: 1,
        fence: Some(old.fence),
        checkpoint: checkpoint(),
    };
    let refused = store.commit(commit).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict(Conflict::Fenced { .. })), "{refused}");
    assert_eq!(meters.count("retake.lease.losses memory"), 1);
    store.renew(&old).await.unwrap_err();
    assert_eq!(meters.count("retake.lease.losses memory"), 2);
    assert_eq!(meters.count("retake.commits memory conflict"), 1);
    let commits = listener.spans("commit");
    assert_eq!(commits[1].1.fields["error.type"], "fenced");
    let events = listener.events.lock().unwrap();
    let events: Vec<&Told> = events.iter().filter(|event| event.name == "WARN").collect();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].parent, Some(commits[1].0));
}

/// Returns another number each time.
fn next() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_queue_that_is_gone_is_shown_as_empty() {
    let meters = Meters::default();
    let mut shown = std::collections::BTreeSet::new();
    measure();
    let depth = QueueDepth { queue: "gpu".to_owned(), due: 3, stuck: 1, ..QueueDepth::default() };
    metrics::with_local_recorder(&meters, || show_depths(&[depth], &mut shown));
    assert_eq!(meters.sum("retake.queue.depth gpu due"), 3.0);
    assert_eq!(meters.sum("retake.queue.depth gpu stuck"), 1.0);
    metrics::with_local_recorder(&meters, || show_depths(&[], &mut shown));
    assert_eq!(meters.sum("retake.queue.depth gpu due"), 0.0);
}

#[derive(Debug)]
struct Fixed;

impl TraceContext for Fixed {
    fn traceparent(&self) -> Option<String> {
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned())
    }
}

#[tokio::test]
async fn a_node_can_hand_on_the_trace_that_it_belongs_to() {
    let _alone = ALONE.lock().await;
    let registry =
        Registry::new().with("say", async |ctx: NodeContext| Ok::<_, NodeError>(ctx.traceparent()));
    let workflow =
        Arc::new(Workflow::builder("otters").node("it", Node::call("say").into("it")).build().unwrap());
    let output = async |engine: Engine| {
        let run = engine.start(Arc::clone(&workflow), Start::default()).await.unwrap();
        let outcome = run.drive().await.unwrap();
        let image = engine.store().state(outcome.execution, outcome.head).await.unwrap();
        let state = retake::store::context(outcome.execution, &image).unwrap();
        state.get_variable("it").cloned().unwrap()
    };
    let engine = Engine::new(store()).with_registry(registry);
    assert_eq!(output(engine.clone()).await, json!(null));
    let traced = engine.with_trace_context(Arc::new(Fixed));
    assert_eq!(output(traced).await, json!(Fixed.traceparent()));
}
