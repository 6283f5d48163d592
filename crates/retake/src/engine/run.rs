//! One run: starts nodes as they become ready, records what they give, saves when the policy says so.

mod asked;
mod compensating;
mod parking;
mod recording;
mod retrying;
mod saving;
mod sparing;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use self::asked::passing;
pub(super) use self::compensating::CounterAction;
use self::parking::Parking;
pub(super) use self::parking::Settled;
use self::saving::Extra;
use super::attempt::{self, Attempted, Ended, Start, wanted};
use super::context::{Action, NodeContext, Notes, Task};
use super::control::{Control, HandOver, Outcome, Signal, StopKind};
use super::event::{Event, Events};
use super::held::Held;
use super::planner::{Planner, ending};
use super::secret::Masks;
use super::trace::{self, Driven, NodeSpan};
use super::{Engine, EngineError, compensation};
use crate::checkpoint::CheckpointPolicy;
use crate::execution::{
    Cost, ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, NodeExecutionResult, NodeId,
};
use crate::store::{Cause, NewOperation, Seq};
use crate::workflow::{Effect, NodeKind, Workflow};

/// How often a run looks whether something was asked of it.
const ASKED_EVERY: Duration = Duration::from_millis(250);

/// An execution that this process holds the lease on, ready to be driven.
#[derive(Debug)]
pub struct Run {
    engine: Engine,
    held: Held,
    workflow: Arc<Workflow>,
    name: Arc<str>,
    ctx: ExecutionContext,
    /// The state at the head.
    saved: ExecutionContext,
    head: Seq,
    policy: CheckpointPolicy,
    planner: Planner,
    tasks: JoinSet<Attempted>,
    running: HashMap<usize, tokio::task::AbortHandle>,
    /// Nodes that rest between two attempts, and what ends their rest.
    resting: HashMap<usize, Start>,
    rests: JoinSet<usize>,
    /// Whether the run ends where nothing is left but waiting.
    parking: Parking,
    hand_over: Option<HandOver>,
    /// Whether somebody paused or cancelled it.
    was_stopped: bool,
    masks: Arc<Masks>,
    events: Events,
    signals: (Control, mpsc::UnboundedReceiver<Signal>),
    stop: Option<Stop>,
    unsaved: Unsaved,
    failures: Vec<(String, String)>,
    waiting: Vec<String>,
    /// Counter-actions that are to run, by the turn of the effect.
    counter_actions: BTreeMap<u64, CounterAction>,
    /// The turn of the effect whose counter-action runs.
    compensating: Option<u64>,
    /// The node whose compensation failed, and why.
    uncompensated: Option<(String, String)>,
    /// Nodes of the state that succeeded or were skipped.
    completed: u64,
    reused: usize,
    ran: usize,
    nodes_spared: usize,
    cost: Cost,
    pruning: Option<tokio::task::JoinHandle<()>>,
    /// The head when pruning last began.
    pruned_at: Seq,
    /// The point that an undo would return to, which stays with what came since.
    undone_to: Option<Seq>,
    span: Span,
}

/// What has happened since the head.
#[derive(Debug, Default)]
struct Unsaved {
    nodes: Vec<String>,
    /// An approval that has begun to wait.
    waiting: Option<String>,
    /// A node that has begun to rest between two attempts.
    resting: Option<String>,
    writers: HashMap<String, NodeId>,
}

#[derive(Debug)]
struct Stop {
    kind: StopKind,
    operation: Option<NewOperation>,
    answers: Vec<uuid::Uuid>,
}

/// An execution whose lease was taken and whose head was read.
pub(super) struct Opened {
    pub(super) held: Held,
    pub(super) workflow: Arc<Workflow>,
    pub(super) name: Arc<str>,
    pub(super) ctx: ExecutionContext,
    pub(super) head: Seq,
    pub(super) masks: Arc<Masks>,
    pub(super) counter_actions: BTreeMap<u64, CounterAction>,
    /// The point that an undo would return to.
    pub(super) undone_to: Option<Seq>,
    /// The span of this run.
    pub(super) span: Span,
}

impl Run {
    pub(super) fn new(engine: Engine, opened: Opened) -> Result<Self, EngineError> {
        let Opened { held, workflow, name, ctx, head, masks, counter_actions, undone_to, span } = opened;
        masks.remember_all(Some(&workflow), &*engine.secrets);
        counter_actions
            .values()
            .for_each(|action| masks.remember_all(Some(&action.workflow), &*engine.secrets));
        let mut policy = CheckpointPolicy::new(workflow.definition().checkpoints.clone())?;
        policy.saved(engine.clock.elapsed());
        let planner = Planner::new(&workflow, &ctx.node_results);
        let graph = workflow.graph();
        let is_done = |node: &usize| {
            let result = ctx.get_node_result(&graph.id(*node));
            result.is_some_and(|record| ending(workflow.node(*node), &record.result).is_some())
        };
        let reused = graph.nodes().filter(is_done).count();
        Ok(Self {
            engine,
            held,
            workflow,
            name,
            saved: ctx.clone(),
            completed: ctx.completed_nodes().count() as u64,
            ctx,
            head,
            policy,
            planner,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            resting: HashMap::new(),
            rests: JoinSet::new(),
            parking: Parking::Never,
            hand_over: None,
            was_stopped: false,
            masks,
            events: Events::unwatched(),
            signals: Control::new(),
            stop: None,
            unsaved: Unsaved::default(),
            failures: Vec::new(),
            waiting: Vec::new(),
            counter_actions,
            compensating: None,
            uncompensated: None,
            reused,
            ran: 0,
            nodes_spared: 0,
            cost: Cost::default(),
            pruning: None,
            pruned_at: 0,
            undone_to,
            span,
        })
    }

    /// Returns the execution's id.
    pub fn execution_id(&self) -> ExecutionId {
        self.ctx.execution_id
    }

    /// Returns the execution's readable name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the workflow that it runs.
    pub fn workflow(&self) -> &Workflow {
        &self.workflow
    }

    /// Returns a handle to stop the run with.
    pub fn control(&self) -> Control {
        self.signals.0.clone()
    }

    /// Returns where the run's events come out. A watcher that is slow misses progress, and nothing else.
    pub fn watch(&mut self) -> mpsc::Receiver<Event> {
        let (events, receiver) = Events::watched();
        self.events = events;
        receiver
    }

    /// Runs until every node is done, or until it fails, waits for somebody or is stopped. Gives the lease back.
    ///
    /// Dropping the future ends the nodes that run; the execution then stands at its last checkpoint, as after a crash.
    ///
    /// # Errors
    /// [`EngineError::Store`] where something could not be saved: the nodes are ended, and the execution stands at its
    /// last acknowledged checkpoint. A `Conflict` means that somebody else advances it now.
    pub async fn drive(mut self) -> Result<Outcome, EngineError> {
        trace::begins(self.ctx.execution_id, &self.name, self.head);
        let outcome = self.run_to_end().await;
        self.held.release().await;
        outcome
    }

    async fn run_to_end(&mut self) -> Result<Outcome, EngineError> {
        let span = self.span.clone();
        let driven = Driven::new(span.clone(), self.ctx.execution_id, &self.name);
        let outcome = self.end().instrument(span).await;
        driven.ended(&outcome);
        outcome
    }

    async fn end(&mut self) -> Result<Outcome, EngineError> {
        let outcome = self.advance().await;
        self.tasks.shutdown().await;
        self.rests.shutdown().await;
        self.finish_pruning().await;
        outcome
    }

    async fn advance(&mut self) -> Result<Outcome, EngineError> {
        let head = self.head;
        self.events
            .tell(|| Event::Started {
                execution: self.ctx.execution_id,
                name: self.name.to_string(),
                head,
                nodes: self.workflow.graph().len(),
                reused: self.reused,
            })
            .await;
        let mut asked = tokio::time::interval(ASKED_EVERY);
        asked.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        asked.reset();
        self.held.keep(&self.engine.clock);
        while !self.is_at_rest() {
            self.start_what_is_ready().await?;
            if (self.tasks.is_empty() && self.rests.is_empty()) || self.is_left_waiting() {
                break;
            }
            // Others can decide only what is durable, and the pause that would save it may be far.
            if let Some(node) = self.unsaved.waiting.take() {
                self.save(Cause::Started { node }, Extra::default()).await?;
            }
            let deadline = self.policy.deadline();
            let until_due = deadline.map(|at| at.saturating_sub(self.engine.clock.elapsed()));
            tokio::select! {
                biased;
                lost = self.held.lost() => return Err(lost.into()),
                Some(signal) = self.signals.1.recv() => match signal {
                    Signal::Stop { stop, operation } => self.stop(stop, operation, None),
                    Signal::HandOver(how) => self.hand_over(how),
                },
                Some(attempted) = self.tasks.join_next() => match attempted {
                    Ok(Attempted::Again(again)) => self.rest(*again).await,
                    Ok(Attempted::Ended(ended)) => match self.compensating.take() {
                        Some(turn) => self.compensated(turn, *ended).await?,
                        None => self.record(*ended).await?,
                    },
                    Ok(Attempted::Lost(error)) => return Err(error.into()),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                Some(Ok(node)) = self.rests.join_next() => self.try_again(node).await?,
                _ = asked.tick() => passing(self.answer().await)?,
                () = tokio::time::sleep(until_due.unwrap_or(Duration::MAX)), if until_due.is_some() => {
                    let unsaved = self.is_unsaved();
                    if self.policy.tick(self.engine.clock.elapsed(), unsaved).is_some() {
                        self.save(Cause::Interval, Extra::default()).await?;
                    }
                }
            }
        }
        self.finish().await
    }

    fn is_at_rest(&self) -> bool {
        let ended = match (self.stop.as_ref().map(|stop| stop.kind), self.hand_over) {
            (Some(StopKind::Interrupt | StopKind::Cancel), _) | (_, Some(HandOver::Now)) => true,
            (None, None) => return self.planner.is_finished() && !compensation::is_any_due(&self.ctx),
            (Some(StopKind::Pause), _) | (None, Some(HandOver::Finish)) => false,
        };
        ended || self.tasks.is_empty()
    }

    /// Tells whether nothing more is to begin: somebody asked for that.
    fn is_ending(&self) -> bool {
        self.stop.is_some() || self.hand_over.is_some()
    }

    /// Starts nodes as long as there are any to start and places to run them.
    async fn start_what_is_ready(&mut self) -> Result<(), EngineError> {
        // A node that runs again must not meet what is about to be undone.
        if self.compensate().await? {
            return Ok(());
        }
        while !self.is_ending() && self.failures.is_empty() && self.has_place() {
            let Some(node) = self.planner.next() else { break };
            self.start(node).await?;
        }
        Ok(())
    }

    /// Tells whether another node may run: one that rests between two attempts keeps its place.
    fn has_place(&self) -> bool {
        self.tasks.len() + self.rests.len() < self.workflow.definition().max_parallel
    }

    async fn start(&mut self, node: usize) -> Result<(), EngineError> {
        let workflow = Arc::clone(&self.workflow);
        let (name, id) = (workflow.graph().name(node), workflow.graph().id(node));
        let task = self.task(node);
        if self.planner.skipped_because_of(workflow.graph(), node).is_some() {
            return self.skip(node, Notes::default()).await;
        }
        if let Some(result) = self.spared(node) {
            return self.spare(node, result).await;
        }
        let notes = match wanted(&workflow, &task) {
            (Ok(true), notes) => notes,
            (Ok(false), notes) => return self.skip(node, notes).await,
            (Err(why), notes) => return self.record(self.failed_at_once(node, why, notes)).await,
        };
        let definition = workflow.node(node);
        let mark = self.ctx.get_node_result(&id).filter(|record| record.result == ExecutionResult::Pending);
        let mark = mark.cloned();
        let started_at = mark.as_ref().map_or_else(|| self.engine.clock.now(), |mark| mark.started_at);
        let is_marked = mark.is_some();
        if let NodeKind::Approval(approval) = &definition.kind {
            let ctx = NodeContext::new(task, 1, notes);
            match ctx.evaluate_text(&approval.message) {
                Ok(message) => {
                    let message = self.masks.text(message);
                    let notes = ctx.take_notes();
                    self.wait_for_approval(node, started_at, message, notes, is_marked).await;
                    return Ok(());
                }
                Err(error) => {
                    let failed = self.failed_at_once(node, error.to_string(), ctx.take_notes());
                    return self.record(failed).await;
                }
            }
        }
        if self.policy.before_node(definition.kind.name(), self.is_unsaved()).is_some() {
            self.save(Cause::Before { node: name.to_owned() }, Extra::default()).await?;
        }
        let is_wait = matches!(definition.kind, NodeKind::Wait(_));
        let start = Start {
            handler: self.engine.registry.find(&definition.kind).cloned(),
            until: self.end_of_wait(&task, mark.as_ref(), started_at),
            has_rested: mark.as_ref().is_some_and(|mark| mark.due_at.is_some()),
            attempt: mark.as_ref().map_or(0, |mark| mark.retry_count) + 1,
            earlier: mark.as_ref().and_then(|mark| mark.metrics.clone()).unwrap_or_default(),
            began: self.engine.clock.elapsed(),
            span: NodeSpan::new(&task),
            task,
            started_at,
            notes,
        };
        if let Some(mark) = mark.filter(|_| !is_wait)
            && let Some(due_at) = mark.due_at
        {
            let left = (due_at - self.engine.clock.now()).to_std().unwrap_or(Duration::ZERO);
            self.rest_for(start, left);
            return Ok(());
        }
        // An effect outside must not happen before it is known that it may have; a wait must not begin anew.
        if (definition.effect == Effect::External || is_wait) && !is_marked {
            self.mark(&start).await?;
        }
        self.begin(start);
        Ok(())
    }

    fn begin(&mut self, start: Start) {
        let node = start.task.node;
        let handle = self.tasks.spawn(attempt::once(start, Arc::clone(&self.engine.clock), self.held.hold()));
        self.running.insert(node, handle);
    }

    /// Makes it known, durably, that a node has started.
    async fn mark(&mut self, start: &Start) -> Result<(), EngineError> {
        let workflow = Arc::clone(&self.workflow);
        let (name, id) = (workflow.graph().name(start.task.node), workflow.graph().id(start.task.node));
        let record = NodeExecutionResult { due_at: start.until, ..retrying::record_of(start) };
        self.ctx.record_node_result(id, record);
        self.save(Cause::Started { node: name.to_owned() }, Extra::default()).await
    }

    fn task(&self, node: usize) -> Task {
        let id = self.workflow.graph().id(node);
        let marked = self.ctx.get_node_result(&id).and_then(|record| record.idempotency_key.clone());
        Task {
            workflow: Arc::clone(&self.workflow),
            node,
            action: Action::Work,
            state: self.ctx.clone(),
            execution_name: Arc::clone(&self.name),
            idempotency_key: marked.unwrap_or_else(|| idempotency_key(&self.ctx, id)),
            secrets: Arc::clone(&self.engine.secrets),
            masks: Arc::clone(&self.masks),
            events: self.events.clone(),
            trace_context: self.engine.trace_context.clone(),
        }
    }

    async fn skip(&mut self, node: usize, notes: Notes) -> Result<(), EngineError> {
        let ended = self.ended_at_once(node, ExecutionResult::Skipped, notes);
        self.record(ended).await
    }

    fn failed_at_once(&self, node: usize, why: String, notes: Notes) -> Ended {
        self.ended_at_once(node, ExecutionResult::Failure(self.masks.text(why)), notes)
    }

    fn ended_at_once(&self, node: usize, result: ExecutionResult, notes: Notes) -> Ended {
        let now = self.engine.clock.now();
        let mut record = NodeExecutionResult::started(now).completed(result, now);
        record.reads = notes.reads;
        record.began = self.ctx.ledger.turn;
        Ended { node, paid: record.metrics.clone(), result: record, ran: Duration::ZERO }
    }

    async fn wait_for_approval(
        &mut self,
        node: usize,
        started_at: chrono::DateTime<chrono::Utc>,
        message: String,
        notes: Notes,
        is_marked: bool,
    ) {
        let (name, id) = (self.workflow.graph().name(node).to_owned(), self.workflow.graph().id(node));
        if !is_marked {
            let mut record = NodeExecutionResult::started(started_at);
            record.reads = notes.reads;
            record.began = self.ctx.ledger.turn;
            let mut metrics = notes.metrics;
            metrics.custom.insert("message".to_owned(), Value::String(message.clone()));
            self.ctx.record_node_result(id, record.with_metrics(metrics));
        }
        self.waiting.push(name.clone());
        self.events.tell(|| Event::Waiting { node: name.clone(), message }).await;
        if !is_marked {
            self.unsaved.waiting = Some(name);
        }
    }

    fn is_unsaved(&self) -> bool {
        let Unsaved { nodes, waiting, resting, writers } = &self.unsaved;
        !nodes.is_empty() || !writers.is_empty() || waiting.is_some() || resting.is_some()
    }

    async fn finish(&mut self) -> Result<Outcome, EngineError> {
        let until = self.waits_until();
        self.tasks.abort_all();
        let (state, cause) = match (self.stop.as_ref().map(|stop| stop.kind), self.failures.first()) {
            (Some(StopKind::Cancel), _) => (ExecutionState::Cancelled, Cause::Cancel),
            _ if let Some((node, why)) = &self.uncompensated => {
                (ExecutionState::Failed(format!("compensation of `{node}` failed: {why}")), Cause::Finish)
            }
            _ if self.planner.is_finished() && !compensation::is_any_due(&self.ctx) => {
                (ExecutionState::Completed, Cause::Finish)
            }
            (_, Some((node, why))) => {
                (ExecutionState::Failed(format!("node `{node}` failed: {why}")), Cause::Finish)
            }
            // Others go on with it, or it goes on by itself: it is as before.
            (None, None) if self.hand_over.is_some() || until.is_some() => {
                (ExecutionState::Running, self.cause_of_unsaved())
            }
            (Some(StopKind::Pause | StopKind::Interrupt) | None, None) => {
                (ExecutionState::Paused, Cause::Pause)
            }
        };
        match &state {
            ExecutionState::Running | ExecutionState::Paused => {}
            ExecutionState::Completed | ExecutionState::Failed(_) | ExecutionState::Cancelled => {
                self.ctx.end(self.engine.clock.now());
            }
        }
        self.ctx.state = state;
        let stop = self.stop.take();
        self.was_stopped = stop.is_some();
        let (operation, answers) = stop.map_or((None, Vec::new()), |stop| (stop.operation, stop.answers));
        if self.ctx.state != self.saved.state || self.is_unsaved() {
            self.save(cause, Extra { label: None, operation, answers }).await?;
        }
        Ok(Outcome {
            execution: self.ctx.execution_id,
            name: self.name.to_string(),
            state: self.ctx.state.clone(),
            head: self.head,
            nodes_run: self.ran,
            nodes_reused: self.reused,
            nodes_spared: self.nodes_spared,
            spend: self.ctx.ledger.spend,
            cost_usd: self.cost.usd(),
            until: until.filter(|_| self.ctx.state == ExecutionState::Running),
            waiting: std::mem::take(&mut self.waiting),
            failures: std::mem::take(&mut self.failures),
            uncompensated: self.uncompensated.take(),
        })
    }
}

/// Returns the key of a node's effect: the same for every attempt until an operation sends nodes back to run again.
fn idempotency_key(ctx: &ExecutionContext, node: NodeId) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ctx.execution_id.as_bytes()).update(node.as_bytes()).update(&ctx.generation.to_le_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}
