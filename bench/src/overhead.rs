//! What the engine adds to each node: closures that do nothing, on the store in memory.

use std::sync::Arc;
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{Engine, NodeContext, NodeError, Registry, Start};
use retake::store::MemoryStore;
use retake::workflow::{Node, Workflow};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;

use crate::table::{Better, Found, Row, shown};
use crate::timing::{Stopwatch, median};
use crate::{Effort, Outcome};

/// What drives the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// A task of the runtime, as in a server.
    Task,
    /// The thread that made the runtime: every node then crosses from one thread to another and back.
    Thread,
}

/// How the nodes hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Each needs the one before.
    Chain,
    /// None needs another.
    Wide,
}

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let nodes = u32::try_from(effort.pick(1_000, 20))?;
    let mut rows = Vec::new();
    for shape in [Shape::Chain, Shape::Wide] {
        for frequency in [CheckpointFrequency::Always, CheckpointFrequency::EveryNNodes(5)] {
            rows.push(row(nodes, shape, frequency, Driver::Task, effort.pick(31, 1))?);
        }
    }
    rows.push(row(nodes, Shape::Chain, CheckpointFrequency::Always, Driver::Thread, effort.pick(11, 1))?);
    Ok(rows)
}

fn row(
    nodes: u32,
    shape: Shape,
    frequency: CheckpointFrequency,
    driver: Driver,
    times: usize,
) -> Outcome<Row> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let policy = format!("{frequency:?}");
    let workflow = Arc::new(workflow(nodes, shape, frequency)?);
    let registry = Registry::new().with("nothing", async |_: NodeContext| Ok::<_, NodeError>(()));
    let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..times {
        ours.push(drive(&runtime, driver, &engine, &workflow)? / nodes);
        theirs.push(spawn(&runtime, driver, nodes, shape)? / nodes);
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let graph = match shape {
        Shape::Chain => "a chain",
        Shape::Wide => "side by side",
    };
    let (from, goal) = match driver {
        Driver::Task => ("", Some(Found::Time(Duration::from_micros(20)))),
        Driver::Thread => (", driven from outside the runtime's threads", None),
    };
    Ok(Row {
        what: format!("engine overhead per node, {nodes} nodes that do nothing, {graph}, {policy}{from}"),
        ours: shown(ours),
        theirs: format!("a spawned task: {}", shown(theirs)),
        found: Found::Time(ours),
        goal,
        better: Better::Less,
    })
}

fn workflow(nodes: u32, shape: Shape, frequency: CheckpointFrequency) -> Outcome<Workflow> {
    let checkpoints = CheckpointConfig { frequency, ..CheckpointConfig::default() };
    let mut builder = Workflow::builder("nothing").checkpoints(checkpoints);
    for n in 0..nodes {
        let needs = match shape {
            Shape::Chain => n.checked_sub(1).map(|before| format!("node_{before:04}")),
            Shape::Wide => None,
        };
        builder = builder.node(format!("node_{n:04}"), Node::call("nothing").needs(needs));
    }
    Ok(builder.build()?)
}

/// Returns how long an execution took from its start to its end.
fn drive(runtime: &Runtime, driver: Driver, engine: &Engine, workflow: &Arc<Workflow>) -> Outcome<Duration> {
    let nodes = workflow.graph().len();
    let (engine, workflow) = (engine.clone(), Arc::clone(workflow));
    let run = async move { engine.start(workflow, Start::default()).await?.drive().await };
    let watch = Stopwatch::start();
    let outcome = by(runtime, driver, run)??;
    let took = watch.read();
    if outcome.nodes_run == nodes { Ok(took) } else { Err("not every node ran".into()) }
}

/// Returns how long as many bare tasks take, one after the other or all at once.
fn spawn(runtime: &Runtime, driver: Driver, tasks: u32, shape: Shape) -> Outcome<Duration> {
    let work = async move {
        match shape {
            Shape::Chain => {
                for _ in 0..tasks {
                    tokio::spawn(async {}).await?;
                }
            }
            Shape::Wide => {
                let handles: Vec<_> = (0..tasks).map(|_| tokio::spawn(async {})).collect();
                for handle in handles {
                    handle.await?;
                }
            }
        }
        Ok::<_, JoinError>(())
    };
    let watch = Stopwatch::start();
    by(runtime, driver, work)??;
    Ok(watch.read())
}

fn by<T: Send + 'static>(
    runtime: &Runtime,
    driver: Driver,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    match driver {
        Driver::Task => runtime.block_on(runtime.spawn(work)),
        Driver::Thread => Ok(runtime.block_on(work)),
    }
}
