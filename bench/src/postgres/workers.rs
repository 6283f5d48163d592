//! Workers: executions that do nothing, brought to their end by several processes.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{Engine, NodeContext, NodeError, Registry, Start, Worker, WorkerOptions, WorkerUntil};
use retake::store::{PostgresStore, Queue, Ticket};
use retake::workflow::{Node, Workflow};
use tokio::runtime::Runtime;

use super::server::{Schema, Server};
use crate::sample;
use crate::table::{Better, Found, Row};
use crate::timing::Stopwatch;
use crate::{Effort, Outcome};

/// Makes this program a worker of the store at the address that follows.
pub(crate) const WORK: &str = "--work";

/// How many workers there are at once.
const WORKERS: [usize; 4] = [1, 2, 4, 8];

/// Executions that are submitted at the same time.
const AT_ONCE: usize = 64;

/// How often the ended executions are counted.
const COUNT_EVERY: Duration = Duration::from_millis(50);

/// What runs from a tenth to nine tenths is what is measured: workers begin and end at different moments.
const MEASURED: (f64, f64) = (0.1, 0.9);

/// Counts in a row between which nothing ended, before the run is given up.
const STALLED_MAX: u32 = 600;

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let server = Server::connect()?;
    let mut rows = Vec::new();
    for (nodes, executions) in [(1, effort.pick(4_000, 40)), (10, effort.pick(1_000, 20))] {
        let mut alone = None;
        for workers in &WORKERS[..effort.pick(WORKERS.len(), 2)] {
            let rate = ended_per_second(&server, nodes, executions, *workers)?;
            let alone = *alone.get_or_insert(rate);
            let (what, times) = match nodes {
                1 => ("executions of one node that does nothing, ended per second".to_owned(), 1.0),
                _ => (format!("nodes that do nothing, in chains of {nodes}, ended per second"), 10.0),
            };
            rows.push(Row {
                what: format!("PostgreSQL: {what}, workers: {workers}"),
                ours: format!("{:.0}/s", rate * times),
                theirs: format!("one worker: {:.0}/s", alone * times),
                found: Found::Ratio(rate / alone),
                goal: None,
                better: Better::More,
            });
        }
    }
    Ok(rows)
}

/// Returns how many executions so many workers end in a second.
fn ended_per_second(server: &Server, nodes: usize, executions: usize, workers: usize) -> Outcome<f64> {
    let schema = server.schema(&format!("workers_{nodes}_{workers}"));
    let runtime = sample::single_threaded()?;
    submit(&runtime, &schema, nodes, executions)?;
    schema.vacuum()?;
    let program = std::env::current_exe()?;
    let mut children = (0..workers)
        .map(|_| Command::new(&program).args([WORK, &schema.url()]).stdin(Stdio::null()).spawn())
        .collect::<Result<Vec<Child>, _>>()?;
    let rate = watch(server, &schema, executions);
    for child in &mut children {
        if rate.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        if rate.is_ok() && !status.success() {
            return Err(format!("a worker ended with {status}").into());
        }
    }
    rate
}

fn submit(runtime: &Runtime, schema: &Schema<'_>, nodes: usize, executions: usize) -> Outcome<()> {
    let frequency = CheckpointFrequency::Always;
    let checkpoints = CheckpointConfig { frequency, ..CheckpointConfig::default() };
    let mut builder = Workflow::builder("nothing").checkpoints(checkpoints);
    for n in 0..nodes {
        let needs = n.checked_sub(1).map(|before| format!("node_{before:02}"));
        builder = builder.node(format!("node_{n:02}"), Node::call("nothing").needs(needs));
    }
    let workflow = Arc::new(builder.build()?);
    let engine = runtime.block_on(engine(&schema.url()))?;
    runtime.block_on(async {
        let mut left = executions;
        while left > 0 {
            let now = left.min(AT_ONCE);
            let tasks: Vec<_> = (0..now)
                .map(|_| {
                    let (engine, workflow) = (engine.clone(), Arc::clone(&workflow));
                    tokio::spawn(async move {
                        engine.submit(workflow, Start::default(), Ticket::default(), None).await.map(drop)
                    })
                })
                .collect();
            for task in tasks {
                task.await??;
            }
            left -= now;
        }
        Ok(())
    })
}

/// Counts until all have ended.
fn watch(server: &Server, schema: &Schema<'_>, executions: usize) -> Outcome<f64> {
    let sql = format!("SELECT count(*) FROM {}.executions WHERE state_name = 'completed'", schema.name);
    let all = f64::from(u32::try_from(executions)?);
    let watch = Stopwatch::start();
    let (mut from, mut until, mut last, mut stalled) = (None, None, 0.0, 0);
    while last < all {
        std::thread::sleep(COUNT_EVERY);
        let ended = f64::from(u32::try_from(server.number(&sql)?)?);
        let now = watch.read();
        stalled = if ended > last { 0 } else { stalled + 1 };
        if stalled == STALLED_MAX {
            return Err(format!("{ended} of {executions} executions ended, and then no more").into());
        }
        last = ended;
        if from.is_none() && ended >= MEASURED.0 * all {
            from = Some((now, ended));
        }
        if until.is_none() && ended >= MEASURED.1 * all {
            until = Some((now, ended));
        }
    }
    let ((from, few), (until, many)) = from.zip(until).ok_or("nothing ended")?;
    let took = (until - from).max(COUNT_EVERY);
    Ok((many - few) / took.as_secs_f64())
}

/// Works on the store at an address until nothing is left to be done.
pub(crate) fn work(url: &str) -> Outcome<()> {
    let options = WorkerOptions { until: WorkerUntil::Empty, ..WorkerOptions::default() };
    sample::single_threaded()?.block_on(async {
        Worker::new(engine(url).await?, options)?.work().await?;
        Ok(())
    })
}

async fn engine(url: &str) -> Outcome<Engine> {
    let queue: Arc<dyn Queue> = Arc::new(PostgresStore::connect(url).await?);
    let registry = Registry::new().with("nothing", async |_: NodeContext| Ok::<_, NodeError>(()));
    Ok(Engine::on_queue(queue).with_registry(registry))
}
