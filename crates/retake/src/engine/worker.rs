//! A worker: claims executions from a queue, advances several at the same time, and hands them over when it ends.

mod advancing;
mod event;
mod looking;
mod reporting;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

pub use self::event::WorkerEvent;

use self::advancing::Bench;
use self::looking::{Look, Seen};
use self::reporting::Reporter;
use super::control::HandOver;
use super::{Engine, EngineError};
use crate::store::{Claim, Limit, Queue, QueueDepth, StoreError, process};

/// How many executions a worker advances at the same time, where nobody says otherwise.
pub const CONCURRENCY_DEFAULT: usize = 8;

/// How long a worker that is to end lets nodes finish, where nobody says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(20);

/// How long a worker waits for word of something to do before it looks by itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The same for one that ends when there is nothing left: what others do gives no word.
const LOOK_EVERY_TO_END: Duration = Duration::from_millis(500);

/// The wait after the store has failed once; it doubles each time.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// The longest wait after the store has failed.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// How often a worker that ends when nothing is left finds something due, and does not get it, before it says so.
const IDLE_LOOKS: u32 = 2;

/// How long a worker whose store was away claims nothing when it is back: leases that ran out meanwhile, its own among them,
/// are renewed first by those who still live.
const RENEWED_WAIT: Duration = Duration::from_secs(3);

/// How long executions may take to be given back once their nodes were ended; after that their leases run out.
const HAND_OVER_WAIT: Duration = Duration::from_secs(5);

/// How long a worker that ends waits for the answer to a call that it has made. What a claim gave whose answer is not
/// waited for goes to others when the leases run out.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How many events may wait for a slow watcher; then the worker waits for it.
const EVENTS_WAITING_MAX: usize = 4_096;

/// When a worker ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkerUntil {
    /// When it is told.
    #[default]
    Told,
    /// When nothing that it could ever claim is left in its queues: nothing due, delayed or claimed. What waits for
    /// somebody, and what is stuck, does not count.
    Empty,
}

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Who it is, for people: process and machine, as a lease names its holder.
    pub name: String,
    /// The queues that it serves. Empty for all.
    pub queues: Vec<String>,
    /// How many executions it advances at the same time; at least one.
    pub concurrency: usize,
    /// How long it lets nodes finish when it is to end.
    pub grace: Duration,
    /// When it ends.
    pub until: WorkerUntil,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            name: process::name().to_owned(),
            queues: Vec::new(),
            concurrency: CONCURRENCY_DEFAULT,
            grace: GRACE_DEFAULT,
            until: WorkerUntil::Told,
        }
    }
}

/// Advances executions for others, until it is told to end.
///
/// ```
/// use std::sync::Arc;
/// use retake::engine::{Engine, NodeContext, NodeError, Registry, Start, Worker, WorkerOptions, WorkerUntil};
/// use retake::store::{MemoryStore, Ticket};
/// use retake::workflow::{Node, Workflow};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::new().with("greet", async |_: NodeContext| Ok::<_, NodeError>("hello"));
/// let engine = Engine::on_queue(Arc::new(MemoryStore::new())).with_registry(registry);
/// let workflow = Arc::new(Workflow::builder("greeting").node("greet", Node::call("greet")).build()?);
/// engine.submit(workflow, Start::default(), Ticket::default(), None).await?;
///
/// let options = WorkerOptions { until: WorkerUntil::Empty, ..WorkerOptions::default() };
/// let worked = Worker::new(engine, options)?.work().await?;
/// assert_eq!(worked.ended, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Worker {
    engine: Engine,
    queue: Arc<dyn Queue>,
    options: WorkerOptions,
    id: Uuid,
    orders: (mpsc::UnboundedSender<HandOver>, mpsc::UnboundedReceiver<HandOver>),
    events: Option<mpsc::Sender<WorkerEvent>>,
}

/// Tells a worker to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkerHandle(mpsc::UnboundedSender<HandOver>);

impl WorkerHandle {
    /// Lets the nodes that run finish, for as long as the worker's grace lasts, saves, and lets others go on.
    pub fn drain(&self) {
        // One that has ended needs no telling.
        let _ended = self.0.send(HandOver::Finish);
    }

    /// Ends the nodes that run, saves what others gave, and lets other workers go on; those nodes run again there.
    pub fn stop(&self) {
        let _ended = self.0.send(HandOver::Now);
    }
}

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worked {
    /// Executions that ended: completed, failed, or stopped by somebody.
    pub ended: u64,
    /// Executions that it could not hand over when it ended: others go on with them when their leases have run out, from
    /// their last checkpoints.
    pub abandoned: u64,
}

impl Worker {
    /// Returns a worker on an engine's store.
    ///
    /// # Errors
    /// [`EngineError::NoQueue`].
    pub fn new(engine: Engine, options: WorkerOptions) -> Result<Self, EngineError> {
        let queue = Arc::clone(engine.queue()?);
        let id = engine.clock.new_id();
        let options = WorkerOptions { concurrency: options.concurrency.max(1), ..options };
        Ok(Self { engine, queue, options, id, orders: mpsc::unbounded_channel(), events: None })
    }

    /// Returns the worker's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Returns a handle to end the worker with.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle(self.orders.0.clone())
    }

    /// Returns where the worker's events come out. A watcher that is slow slows the worker down.
    pub fn watch(&mut self) -> mpsc::Receiver<WorkerEvent> {
        let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
        self.events = Some(events);
        receiver
    }

    /// Works until it is told to end, or nothing is left, as its options say.
    ///
    /// A store that fails does not end it: it tries again, less and less often. Dropping the future ends the nodes that
    /// run; their executions stand at their last checkpoints, and go to others when their leases run out.
    ///
    /// # Errors
    /// [`EngineError::Store`] with what no other try can change, such as a store of a newer format. What it had claimed was
    /// handed over then, as far as possible.
    pub async fn work(self) -> Result<Worked, EngineError> {
        let Self { engine, queue, options, id, orders, events } = self;
        let claim = Claim {
            worker: id,
            queues: options.queues.clone(),
            able: engine.registry.able(),
            most: 0,
            ttl: engine.lease_ttl,
        };
        let (ending, ended) = watch::channel(None);
        let reporter =
            Reporter::begin(Arc::clone(&queue), Arc::clone(&engine.clock), id, &options, engine.lease_ttl);
        let bench =
            Arc::new(Bench { engine, queue: Arc::clone(&queue), events, ended, in_hand: Mutex::default() });
        let shift = Shift {
            queue,
            options,
            claim,
            bench,
            ending,
            tasks: JoinSet::new(),
            look: None,
            is_empty: false,
            trouble: None,
            deadline: None,
            fatal: None,
            worked: Worked::default(),
            idle_looks: BTreeMap::new(),
            reporter,
        };
        shift.work(orders.1).await
    }
}

/// A worker at work.
struct Shift {
    queue: Arc<dyn Queue>,
    options: WorkerOptions,
    claim: Claim,
    bench: Arc<Bench>,
    /// Tells the executions that are advanced to end.
    ending: watch::Sender<Option<HandOver>>,
    tasks: JoinSet<u64>,
    /// What the store is asked for now, beside everything else: however long it takes to answer, orders are heard.
    look: Option<Look>,
    /// Whether nothing is left to do, in a worker that ends for that.
    is_empty: bool,
    /// How long to wait before the store is asked again, where it has failed.
    trouble: Option<Duration>,
    /// When it goes over to the next way of ending.
    deadline: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    fatal: Option<StoreError>,
    worked: Worked,
    /// How often a queue had something due that was not to be had.
    idle_looks: BTreeMap<String, u32>,
    reporter: Reporter,
}

impl Shift {
    async fn work(mut self, mut orders: mpsc::UnboundedReceiver<HandOver>) -> Result<Worked, EngineError> {
        self.bench
            .tell(WorkerEvent::Ready {
                worker: self.claim.worker,
                name: self.options.name.clone(),
                queues: self.options.queues.clone(),
                concurrency: self.options.concurrency,
            })
            .await;
        loop {
            if self.look.is_none() && self.is_taking() {
                let is_in_doubt = self.trouble.is_some() || self.reporter.is_held_up();
                self.look =
                    Some(if is_in_doubt { Look::greeting(Arc::clone(&self.queue)) } else { self.claims() });
            }
            if self.tasks.is_empty() && self.look.is_none() {
                break;
            }
            tokio::select! {
                biased;
                Some(order) = orders.recv() => self.end(order).await,
                Some(()) = at(&mut self.deadline) => {
                    self.deadline = None;
                    let is_over = *self.ending.borrow() == Some(HandOver::Now);
                    if is_over { self.tasks.shutdown().await } else { self.end(HandOver::Now).await }
                }
                Some(done) = self.tasks.join_next() => {
                    match done {
                        Ok(ended) => self.worked.ended += ended,
                        // Its lease was given back with it; it is claimed again, and counted as one that ends workers.
                        Err(error) => tracing::error!(%error, "an execution could not be advanced"),
                    }
                    self.reporter.is_running(self.tasks.len());
                    // There is a place for another.
                    self.look.take_if(|look| look.is_rest());
                }
                seen = looked(&mut self.look) => {
                    self.look = None;
                    self.heed(seen).await;
                }
            }
        }
        let Self { reporter, mut worked, fatal, bench, .. } = self;
        for (execution, name) in bench.abandoned() {
            worked.abandoned += 1;
            bench.tell(WorkerEvent::Abandoned { execution, name }).await;
        }
        reporter.end().await;
        match fatal {
            Some(error) => Err(error.into()),
            None => Ok(worked),
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// Tells whether it takes on more.
    fn is_taking(&self) -> bool {
        !self.is_ending() && !self.is_empty && self.tasks.len() < self.options.concurrency
    }

    /// Begins to claim as much as there are places for.
    fn claims(&self) -> Look {
        let most = self.options.concurrency - self.tasks.len();
        let asked_at = self.bench.engine.clock.elapsed();
        Look::claim(Arc::clone(&self.queue), Claim { most, ..self.claim.clone() }, asked_at)
    }

    /// Does what follows from what the store said.
    async fn heed(&mut self, seen: Seen) {
        match seen {
            Seen::Claimed(claimed, asked_at) => {
                let Some(claimed) = self.heard(claimed).await else { return };
                let is_idle = claimed.is_empty() && self.tasks.is_empty();
                for claimed in claimed {
                    self.tasks.spawn(Arc::clone(&self.bench).advance(claimed, asked_at));
                }
                self.reporter.is_running(self.tasks.len());
                if is_idle && self.options.until == WorkerUntil::Empty {
                    self.look = Some(Look::queues(Arc::clone(&self.queue)));
                } else if self.is_taking() {
                    self.look = Some(self.wait());
                }
            }
            Seen::Queues(queues) => {
                let Some((depths, limits)) = self.heard(queues).await else { return };
                let serves =
                    |queue: &String| self.options.queues.is_empty() || self.options.queues.contains(queue);
                let is_left = |depth: &&QueueDepth| depth.due + depth.delayed + depth.claimed > 0;
                let served = depths.iter().filter(|depth| serves(&depth.queue));
                let left: Vec<&QueueDepth> = served.filter(is_left).collect();
                self.is_empty = left.is_empty();
                self.tell_of_idle(&left, &limits).await;
                if self.is_taking() {
                    self.look = Some(self.wait());
                }
            }
            Seen::Waited(waited) => {
                self.heard(waited).await;
            }
            Seen::Greeted(greeted) => {
                if self.heard(greeted).await.is_some() && self.is_taking() {
                    self.look = Some(Look::rest(RENEWED_WAIT));
                }
            }
            Seen::Rested => {}
        }
    }

    /// Tells once of each queue in which something is due that was not to be had.
    async fn tell_of_idle(&mut self, left: &[&QueueDepth], limits: &[Limit]) {
        for depth in left.iter().filter(|depth| depth.due > 0 && depth.claimed == 0) {
            let limit = limits.iter().find_map(|limit| match limit {
                Limit::Running { queue, most } if *queue == depth.queue => Some(*most),
                Limit::Running { .. } | Limit::Starts { .. } => None,
            });
            let looks = self.idle_looks.entry(depth.queue.clone()).or_default();
            *looks = looks.saturating_add(1);
            // What became due after the look at it is claimed by the next.
            if *looks == IDLE_LOOKS {
                let (queue, due) = (depth.queue.clone(), depth.due);
                self.bench.tell(WorkerEvent::HeldBack { queue, due, limit }).await;
            }
        }
    }

    /// Begins to wait for word of something to do.
    fn wait(&self) -> Look {
        let at_most = match self.options.until {
            WorkerUntil::Told => LOOK_EVERY,
            WorkerUntil::Empty => LOOK_EVERY_TO_END,
        };
        Look::wait(Arc::clone(&self.queue), self.claim.clone(), at_most)
    }

    /// Goes over to a way of ending, unless it ends in a stronger one already.
    async fn end(&mut self, order: HandOver) {
        let before = *self.ending.borrow();
        if before >= Some(order) {
            return;
        }
        let limit = match order {
            HandOver::Finish => self.options.grace,
            HandOver::Now => HAND_OVER_WAIT,
        };
        self.deadline = Some(Box::pin(tokio::time::sleep(limit)));
        self.ending.send_replace(Some(order));
        self.look = match order {
            HandOver::Finish => self.look.take().and_then(|look| look.at_last(ANSWER_WAIT)),
            HandOver::Now => None,
        };
        let running = self.tasks.len();
        if before.is_none() {
            self.bench.tell(WorkerEvent::Draining { running }).await;
        }
    }

    /// Takes note of how the store does, and says so once each time that changes.
    async fn heard<T>(&mut self, done: Result<T, StoreError>) -> Option<T> {
        match done {
            Ok(done) => {
                if self.trouble.take().is_some() {
                    self.bench.tell(WorkerEvent::StoreBack).await;
                }
                Some(done)
            }
            Err(error) if error.is_retryable() => {
                let before = self.trouble;
                let rest = before.map_or(BACK_OFF_FIRST, |before| (before * 2).min(BACK_OFF_MAX));
                self.trouble = Some(rest);
                if self.is_taking() {
                    self.look = Some(Look::rest(rest));
                }
                if before.is_none() {
                    let class = error.class();
                    tracing::warn!(parent: None, error.r#type = class, "the store does not answer, and is asked again");
                    self.bench.tell(WorkerEvent::StoreLost { why: chain(&error) }).await;
                }
                None
            }
            Err(error) => {
                self.fatal.get_or_insert(error);
                self.end(HandOver::Finish).await;
                None
            }
        }
    }
}

/// Returns what the store says, when it says something.
async fn looked(look: &mut Option<Look>) -> Seen {
    match look {
        Some(look) => look.seen().await,
        None => std::future::pending().await,
    }
}

/// Waits for a moment, if there is one.
async fn at(moment: &mut Option<std::pin::Pin<Box<tokio::time::Sleep>>>) -> Option<()> {
    match moment {
        Some(moment) => {
            moment.await;
            Some(())
        }
        None => None,
    }
}

/// Returns an error with what caused it, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
