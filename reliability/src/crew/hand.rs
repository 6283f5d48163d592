//! One worker of a crew: what its process does.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retake::clock::{Clock, SystemClock};
use retake::engine::{Engine, NodeContext, NodeError, Registry, Worker, WorkerOptions};
use retake::store::{PostgresStore, Queue, Store};
use uuid::Uuid;

use super::Habit;
use super::watched::Watched;
use crate::{Outcome, report};

/// The child that is a worker.
pub(crate) const CHILD: &str = "worker";

/// The closure that nodes call.
pub(super) const WORK: &str = "work";

/// How many executions a worker advances at the same time.
const CONCURRENCY: usize = 4;

/// How often a worker that begins tries to reach the store, and how long it waits between two tries.
const CONNECTS_MAX: u32 = 200;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How often a worker makes a call beside its work, and says how long that took where it failed.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// Where all workers write down what their nodes do: a line at a time, which the system never tears.
#[derive(Debug)]
struct Journal {
    file: File,
    worker: String,
}

/// A node that runs: how it ends is written down, also where it is ended.
struct Running {
    journal: Arc<Journal>,
    what: String,
    end: &'static str,
}

/// Works until it is killed.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let [url, lease_ms, journal, habit, label] = arguments else {
        return Err("a worker wants a store, a lease, a journal, a habit and a number".into());
    };
    std::thread::spawn(|| {
        // Whoever hired it is gone, however that came about.
        let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let lease = Duration::from_millis(lease_ms.parse()?);
    let habit = Habit::named(habit).ok_or("a worker has an unknown habit")?;
    let journal = Arc::new(Journal::open(journal.as_ref(), label)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store = Arc::new(connect(url).await?);
        tokio::spawn(probe(Arc::clone(&store)));
        let store = Arc::new(Watched::new(store, habit));
        let registry = Registry::new().with(WORK, move |ctx| work(ctx, Arc::clone(&journal)));
        let engine = Engine::on_queue(store as Arc<dyn Queue>).with_registry(registry).with_lease_ttl(lease);
        let options =
            WorkerOptions { name: label.clone(), concurrency: CONCURRENCY, ..WorkerOptions::default() };
        let mut worker = Worker::new(engine, options)?;
        let mut events = worker.watch();
        let telling = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                report::say(&serde_json::to_string(&event).unwrap_or_default());
            }
        });
        worker.work().await?;
        Ok(telling.await?)
    })
}

/// Connects to a server that may be about to come back.
async fn connect(url: &str) -> Outcome<PostgresStore> {
    for _ in 1..CONNECTS_MAX {
        match PostgresStore::connect(url).await {
            Err(error) if error.is_retryable() => tokio::time::sleep(CONNECT_PAUSE).await,
            done => return Ok(done?),
        }
    }
    Ok(PostgresStore::connect(url).await?)
}

/// Asks the store something that costs nothing, again and again.
async fn probe(store: Arc<PostgresStore>) {
    let clock = SystemClock::default();
    loop {
        let began = clock.elapsed();
        let answered = store.execution(Uuid::nil()).await.is_ok();
        let took = clock.elapsed().saturating_sub(began).as_millis();
        if !answered {
            report::say(&format!("unanswered {took}"));
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// Takes as long as it is told, and gives a word that nobody else gives.
async fn work(ctx: NodeContext, journal: Arc<Journal>) -> Result<String, NodeError> {
    let parameters = ctx.parameters().map_err(|error| NodeError::new(error.to_string()))?;
    let takes = Duration::from_millis(parameters["ms"].as_u64().unwrap_or(0));
    let word = SystemClock::default().new_id().to_string();
    let what = format!("{} {} {} {word}", ctx.execution_id(), ctx.node(), journal.worker);
    journal.write("began", &what).map_err(|error| NodeError::new(error.to_string()))?;
    let mut running = Running { journal, what, end: "stopped" };
    tokio::time::sleep(takes).await;
    running.end = "ended";
    Ok(word)
}

impl Journal {
    fn open(path: &Path, worker: &str) -> Outcome<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, worker: worker.to_owned() })
    }

    fn write(&self, happened: &str, what: &str) -> std::io::Result<()> {
        (&self.file).write_all(format!("{happened} {what}\n").as_bytes())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody is there to be told that the journal is full.
        drop(self.journal.write(self.end, &self.what));
    }
}
