//! Growing histories: 1,000 steps that each append 1 KB to one list.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{Engine, NodeContext, NodeError, Registry, Start};
use retake::store::{SqliteStore, Store, encode};
use retake::workflow::{Node, Workflow};
use tokio::runtime::Runtime;

use crate::sample::{self, Content, Draw, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{Stopwatch, median, ratio, timed};
use crate::{Effort, Outcome};

/// The variable that grows.
const MESSAGES: &str = "messages";

/// Where the early window ends: step 10 is in its middle.
pub(crate) const EARLY: usize = 20;

/// Steps in the late window.
pub(crate) const LATE: usize = 50;

/// What a history of appends cost.
#[derive(Debug)]
pub(crate) struct Grown {
    /// Of the last state, as MessagePack.
    pub(crate) state_bytes: u64,
    /// Of each durable step.
    pub(crate) steps: Vec<Duration>,
    /// Of what each step costs before it reaches the store.
    computed: Vec<Duration>,
}

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let steps = effort.pick(1_000, 60);
    let mut rows = Vec::new();
    for (content, compress, goal) in [
        (Content::Prose, true, 1.5),
        (Content::Prose, false, 2.5),
        (Content::Noise, true, 2.5),
        (Content::Noise, false, 2.5),
    ] {
        rows.push(size(steps, content, compress, goal)?);
    }
    rows.extend(cost(steps, effort.pick(7, 1))?);
    rows.push(cost_in_engine(steps, effort.pick(5, 1))?);
    Ok(rows)
}

fn size(steps: usize, content: Content, compress: bool, goal: f64) -> Outcome<Row> {
    let (grown, file_bytes) = grow(steps, content, compress)?;
    Ok(Row {
        what: format!("{}: bytes on disk", described(steps, content, compress)),
        ours: kilobytes(file_bytes),
        theirs: format!("the final state: {}", kilobytes(grown.state_bytes)),
        found: Found::Ratio(quotient(file_bytes, grown.state_bytes)),
        goal: Some(Found::Ratio(goal)),
        better: Better::Less,
    })
}

/// Says what is appended.
pub(crate) fn described(steps: usize, content: Content, compress: bool) -> String {
    let text = match content {
        Content::Prose => "prose",
        Content::Noise => "noise",
    };
    let setting = if compress { "compressed" } else { "not compressed" };
    format!("{steps} steps that each append 1 KB ({text}, {setting})")
}

/// Compares late steps with early ones of the same histories.
fn cost(steps: usize, histories: usize) -> Outcome<Vec<Row>> {
    let mut durable = Windows::default();
    let mut computed = Windows::default();
    for _ in 0..histories {
        let (grown, _) = grow(steps, Content::Prose, false)?;
        durable.add(&grown.steps);
        computed.add(&grown.computed);
    }
    Ok(vec![
        durable.row(format!("the same: durable step {steps} over step 10"), Some(Found::Ratio(1.2))),
        computed.row(format!("the same: append and delta alone, step {steps} over step 10"), None),
    ])
}

/// Compares late nodes with early ones of a chain that the engine runs on the default store.
fn cost_in_engine(steps: usize, histories: usize) -> Outcome<Row> {
    let mut windows = Windows::default();
    for _ in 0..histories {
        let directory = tempfile::tempdir()?;
        let store = Arc::new(SqliteStore::open(directory.path().join("retake.db"))?);
        windows.add(&run_chain(&sample::single_threaded()?, store, steps)?);
    }
    Ok(windows.row(
        format!("the same through the engine, a chain of {steps} nodes: node {steps} over node 10"),
        Some(Found::Ratio(1.2)),
    ))
}

/// Early and late steps of several histories.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    early: Vec<Duration>,
    late: Vec<Duration>,
}

impl Windows {
    fn add(&mut self, steps: &[Duration]) {
        self.early.extend_from_slice(&steps[1..EARLY]);
        self.late.extend_from_slice(&steps[steps.len().saturating_sub(LATE)..]);
    }

    /// Adds an early step of one history and a late one of another, made one after the other.
    pub(crate) fn add_pair(&mut self, early: Duration, late: Duration) {
        self.early.push(early);
        self.late.push(late);
    }

    pub(crate) fn row(&self, what: String, goal: Option<Found>) -> Row {
        let (early, late) = (median(&self.early), median(&self.late));
        Row {
            what,
            ours: shown(late),
            theirs: format!("around step 10: {}", shown(early)),
            found: Found::Ratio(ratio(late, early)),
            goal,
            better: Better::Less,
        }
    }
}

/// Returns what a history cost, and the bytes of its file, once that is closed.
fn grow(steps: usize, content: Content, compress: bool) -> Outcome<(Grown, u64)> {
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path().join("retake.db"))?;
    let grown = append(&sample::single_threaded()?, &store, steps, content, compress)?;
    drop(store);
    Ok((grown, bytes_in(directory.path())?))
}

/// Appends a message a step, each step durable before the next.
pub(crate) fn append(
    runtime: &Runtime,
    store: &dyn Store,
    steps: usize,
    content: Content,
    compress: bool,
) -> Outcome<Grown> {
    let mut growing = Growing::create(runtime, store, content, compress)?;
    let mut grown = Grown { state_bytes: 0, steps: Vec::new(), computed: Vec::new() };
    for _ in 0..steps {
        let (step, computed) = growing.step(runtime, store)?;
        grown.steps.push(step);
        grown.computed.push(computed);
    }
    let messages = growing.saved.ctx.get_variable(MESSAGES).ok_or("nothing was appended")?;
    grown.state_bytes = encode(MESSAGES, messages)?.len() as u64;
    Ok(grown)
}

/// A history that grows.
#[derive(Debug)]
pub(crate) struct Growing {
    saved: Saved,
    draw: Draw,
    content: Content,
}

impl Growing {
    pub(crate) fn create(
        runtime: &Runtime,
        store: &dyn Store,
        content: Content,
        compress: bool,
    ) -> Outcome<Self> {
        let saved = runtime.block_on(Saved::create(store, 0, compress))?;
        Ok(Self { saved, draw: Draw::new(4), content })
    }

    /// Appends a message. Returns how long that took until it was durable, and how long before it reached the store.
    pub(crate) fn step(&mut self, runtime: &Runtime, store: &dyn Store) -> Outcome<(Duration, Duration)> {
        let message = sample::message(&mut self.draw, self.content);
        let watch = Stopwatch::start();
        self.saved.ctx.append(MESSAGES, message)?;
        let (computed, checkpoint) = timed(|| self.saved.checkpoint());
        runtime.block_on(self.saved.commit(store, checkpoint?))?;
        Ok((watch.read(), computed))
    }
}

/// Returns how long each node of a chain took, with all that was done to record the one before.
fn run_chain(runtime: &Runtime, store: Arc<dyn Store>, nodes: usize) -> Outcome<Vec<Duration>> {
    let starts = Arc::new(Mutex::new(Vec::new()));
    let watch = Arc::new(Stopwatch::start());
    let draw = Arc::new(Mutex::new(Draw::new(5)));
    let registry = Registry::new().with("say", {
        let starts = Arc::clone(&starts);
        move |ctx: NodeContext| {
            let message = draw
                .lock()
                .map(|mut draw| sample::message(&mut draw, Content::Prose))
                .map_err(|_| NodeError::permanent("another node panicked"));
            if let Ok(mut starts) = starts.lock() {
                starts.push(watch.read());
            }
            async move {
                ctx.append(MESSAGES, message?)?;
                Ok::<_, NodeError>(())
            }
        }
    });
    let frequency = CheckpointFrequency::Always;
    let checkpoints =
        CheckpointConfig { frequency, max_checkpoints: nodes + 10, ..CheckpointConfig::default() };
    let mut builder = Workflow::builder("chain").checkpoints(checkpoints);
    for n in 0..nodes {
        let needs = n.checked_sub(1).map(|before| format!("node_{before:04}"));
        builder = builder.node(format!("node_{n:04}"), Node::call("say").needs(needs));
    }
    let workflow = Arc::new(builder.build()?);
    let engine = Engine::new(store).with_registry(registry);
    runtime.block_on(async { engine.start(workflow, Start::default()).await?.drive().await })?;
    let starts = starts.lock().map_err(|_| "a node panicked")?;
    Ok(starts.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

fn bytes_in(directory: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

pub(crate) fn quotient(a: u64, b: u64) -> f64 {
    let number = |bytes: u64| f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
    number(a) / number(b)
}

pub(crate) fn kilobytes(bytes: u64) -> String {
    format!("{} KB", bytes / 1_000)
}
