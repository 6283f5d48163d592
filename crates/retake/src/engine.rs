//! Runs workflows: plans, runs, records, resumes and goes back.
//!
//! Execution is at-least-once, recording exactly-once: a node whose result was acknowledged is never computed again
//! unless a person said so, and one that was in flight when its process died runs again, under the same idempotency
//! key. A crash costs at most what the checkpoint policy had left unsaved.

pub mod address;
mod attempt;
mod compensation;
mod context;
mod control;
mod decision;
mod diff;
mod error;
mod event;
mod going_back;
mod handler;
mod held;
#[cfg(feature = "nodes")]
pub mod kinds;
mod operation;
mod plan;
mod planner;
mod queueing;
mod run;
mod secret;
mod trace;
mod undo;
mod watch;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tracing::{Instrument, Span};

pub use compensation::needed_to_compensate;
pub use context::{NodeContext, hash_now};
pub use control::{Control, Outcome};
pub use decision::Decision;
pub use diff::{
    CostChange, DefinitionDiff, Diff, NodeDiff, Pair, PairPoint, Side, Standing, Status, StatusChange,
    ValueChange, ValueEdit, diff,
};
pub use error::EngineError;
pub use event::Event;
pub use going_back::{Fork, Forked};
pub use handler::{Handler, NodeError, Registry};
pub use held::{LEASE_TTL, LEASE_TTL_MAX, LEASE_TTL_MIN};
pub use plan::{
    Edit, Effects, Explanation, Extent, Plan, Redefine, Rerun, Reuse, Rollback, Trigger, VariableChange,
};
pub use queueing::Submission;
pub use run::Run;
pub use secret::{EnvironmentSecrets, FileSecrets, Secrets};
pub use trace::TraceContext;
pub use watch::Watch;
pub use worker::{
    CONCURRENCY_DEFAULT, GRACE_DEFAULT, Worked, Worker, WorkerEvent, WorkerHandle, WorkerOptions, WorkerUntil,
};

use crate::clock::{Clock, SystemClock};
use crate::execution::{
    CompensationStage, ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, NodeExecutionResult,
    Subject, WorkflowId,
};
use crate::store::{
    Cause, Commit, Conflict, ExecutionRecord, NewCheckpoint, NewExecution, NewOperation, Queue, Seq, Store,
    StoreError, StoreExt, delta,
};
use crate::workflow::{Definition, Effect, Field, NodeKind, OnError, Root, Scope, Workflow, evaluate_json};
use held::Held;
use run::{CounterAction, Opened};
use secret::{Masks, definition_of, refuse_secret, refuse_secrets, without_secrets};
use trace::RunKind;

/// How many workflows an engine keeps ready.
const WORKFLOWS_MAX: usize = 64;

/// How often a readable name is drawn before an execution is named by its id.
const NAME_DRAWS_MAX: usize = 8;

/// Runs workflows on a store. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use retake::engine::{Engine, NodeContext, NodeError, Registry, Start};
/// use retake::store::MemoryStore;
/// use retake::workflow::{Node, Workflow};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let workflow = Workflow::builder("greeting")
///     .var("name", json!("otter"))
///     .node("greet", Node::call("greet").into("greeting"))
///     .build()?;
/// let registry = Registry::new().with("greet", async |ctx: NodeContext| {
///     let name = ctx.variable("name").unwrap_or_default();
///     Ok::<_, NodeError>(format!("hello {}", name.as_str().unwrap_or("you")))
/// });
/// let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry);
/// let outcome = engine.start(Arc::new(workflow), Start::default()).await?.drive().await?;
/// assert_eq!(outcome.nodes_run, 1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Engine {
    store: Arc<dyn Store>,
    /// The store again, where it hands executions out.
    queue: Option<Arc<dyn Queue>>,
    clock: Arc<dyn Clock>,
    registry: Arc<Registry>,
    secrets: Arc<dyn Secrets>,
    lease_ttl: Duration,
    trace_context: Option<Arc<dyn TraceContext>>,
    workflows: Arc<Mutex<HashMap<WorkflowId, Arc<Workflow>>>>,
}

/// How an execution is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The inputs. Those that the workflow has a default for may be left out.
    pub inputs: BTreeMap<String, Value>,
    /// The readable name; without it, one is drawn.
    pub name: Option<String>,
}

/// How an execution is resumed.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// Who resumes it, for the operation log.
    pub operation: Option<NewOperation>,
    /// Nodes with an effect outside that were interrupted, or whose compensation was, and are to be run again under the
    /// same idempotency key.
    pub again: Vec<String>,
    /// Nodes whose compensations are left out: their effects stay as they are.
    pub skip_compensation: Vec<String>,
}

/// Who goes on with an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GoingOn {
    /// This process, as a person asked.
    Here,
    /// A worker, as a person asked.
    Detached,
    /// A worker, where one that has ended its part left it. Nothing is saved unless something changes.
    AsBefore,
    /// A worker, in the place of one that died.
    InPlaceOfOne,
}

/// What an execution begins with.
struct Draft {
    ctx: ExecutionContext,
    masks: Arc<Masks>,
}

/// An execution that was set running.
struct Resumed {
    workflow: Arc<Workflow>,
    name: Arc<str>,
    ctx: ExecutionContext,
    head: Seq,
    counter_actions: BTreeMap<u64, CounterAction>,
    undone_to: Option<Seq>,
}

impl Engine {
    /// Returns an engine with the machine's clock, the environment's secrets and no handlers.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            queue: None,
            clock: Arc::new(SystemClock::default()),
            registry: Arc::new(Registry::new()),
            secrets: Arc::new(EnvironmentSecrets),
            lease_ttl: LEASE_TTL,
            trace_context: None,
            workflows: Arc::default(),
        }
    }

    /// Sets the handlers.
    pub fn with_registry(self, registry: Registry) -> Self {
        Self { registry: Arc::new(registry), ..self }
    }

    /// Sets the clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Sets where secrets come from.
    pub fn with_secrets(self, secrets: Arc<dyn Secrets>) -> Self {
        Self { secrets, ..self }
    }

    /// Sets how long a lease holds unless it is renewed, brought within [`LEASE_TTL_MIN`] and [`LEASE_TTL_MAX`]. So long an
    /// execution rests whose process has died or is cut off, and so long a process may be stopped without losing what it
    /// advances.
    pub fn with_lease_ttl(self, ttl: Duration) -> Self {
        Self { lease_ttl: ttl.clamp(LEASE_TTL_MIN, LEASE_TTL_MAX), ..self }
    }

    /// Sets what nodes ask for the trace that they belong to, to hand it on to what they call.
    pub fn with_trace_context(self, trace_context: Arc<dyn TraceContext>) -> Self {
        Self { trace_context: Some(trace_context), ..self }
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Creates an execution and takes the lease on it. Returns when its start is durable; nothing has run then.
    ///
    /// # Errors
    /// [`EngineError::Input`], [`EngineError::NoHandler`] and [`EngineError::Secret`], before anything is created;
    /// [`Conflict::NameTaken`].
    pub async fn start(&self, workflow: Arc<Workflow>, start: Start) -> Result<Run, EngineError> {
        self.check_handlers(&workflow)?;
        let id = self.clock.new_id();
        let draft = self.draft(id, &workflow, &start)?;
        let span = trace::execution(RunKind::Started, id, workflow.name());
        let run = self.begin(workflow, draft, start.name, &span).instrument(span.clone()).await;
        run.inspect_err(|error| trace::refused(&span, error))
    }

    async fn begin(
        &self,
        workflow: Arc<Workflow>,
        Draft { mut ctx, masks }: Draft,
        name: Option<String>,
        span: &Span,
    ) -> Result<Run, EngineError> {
        let mut names = Names::new(name, ctx.execution_id);
        let name = loop {
            let name = names.draw();
            let (new, first) = self.first_point(&workflow, &mut ctx, &name, &masks)?;
            let created = self.store.create(new, first).await.map_err(EngineError::from);
            if names.takes(created)?.is_some() {
                break name;
            }
        };
        trace::identify(span, &name, &workflow);
        let held = Held::take(&self.store, &self.clock, ctx.execution_id, self.lease_ttl).await?;
        let name = name.into();
        let counter_actions = BTreeMap::new();
        let (span, undone_to) = (span.clone(), None);
        let opened = Opened { held, workflow, name, ctx, head: 1, masks, counter_actions, undone_to, span };
        Run::new(self.clone(), opened)
    }

    /// Takes the lease on an execution and sets it running. Returns when that is durable; nothing has run then.
    ///
    /// Compensations that are due run before any node does; one that failed is tried again.
    /// Nodes that are done are not run again; those that failed, or were in flight when their process died, are. One
    /// that has completed comes back as it is.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`], [`Conflict::Leased`] while another process advances it,
    /// [`EngineError::Cancelled`], and [`EngineError::Interrupted`] where a node with an effect outside was in flight
    /// and [`Resume::again`] does not name it; [`EngineError::InterruptedCompensation`] likewise,
    /// [`EngineError::NothingToCompensateFrom`] and [`EngineError::NothingToCompensate`].
    pub async fn resume(&self, id: ExecutionId, resume: Resume) -> Result<Run, EngineError> {
        let record = self.store.require(id).await?;
        let span = trace::execution(RunKind::Resumed, id, &record.workflow_name);
        let run = self.go_on(id, resume, &span).instrument(span.clone()).await;
        run.inspect_err(|error| trace::refused(&span, error))
    }

    async fn go_on(&self, id: ExecutionId, resume: Resume, span: &Span) -> Result<Run, EngineError> {
        let mut held = Held::take(&self.store, &self.clock, id, self.lease_ttl).await?;
        let resumed = match self.set_running(&held, id, resume, GoingOn::Here, span).await {
            // Whoever goes on with it here does so instead of a worker.
            Ok(resumed) => self.dequeue(id).await.map(|()| resumed),
            Err(error) => Err(error),
        };
        match resumed {
            Ok(resumed) => self.run_of(held, resumed, span.clone()),
            Err(error) => {
                held.release().await;
                Err(error)
            }
        }
    }

    fn run_of(&self, held: Held, resumed: Resumed, span: Span) -> Result<Run, EngineError> {
        let Resumed { workflow, name, ctx, head, counter_actions, undone_to } = resumed;
        let masks = Arc::new(Masks::default());
        let opened = Opened { held, workflow, name, ctx, head, masks, counter_actions, undone_to, span };
        Run::new(self.clone(), opened)
    }

    async fn set_running(
        &self,
        held: &Held,
        id: ExecutionId,
        resume: Resume,
        going_on: GoingOn,
        span: &Span,
    ) -> Result<Resumed, EngineError> {
        let record = self.store.require(id).await?;
        let workflow = self.workflow_of(&record).await?;
        trace::identify(span, &record.name, &workflow);
        self.check_handlers(&workflow)?;
        let saved = self.store.context(id, record.head).await?;
        let mut ctx = saved.clone();
        let mut head = record.head;
        skip_compensations(&record, &mut ctx, &resume.skip_compensation)?;
        let mut counter_actions = BTreeMap::new();
        match &saved.state {
            ExecutionState::Cancelled => return Err(EngineError::Cancelled { name: record.name }),
            ExecutionState::Completed => {}
            ExecutionState::Running | ExecutionState::Paused | ExecutionState::Failed(_) => {
                refuse_unknown(&workflow, &record, &ctx, &resume.again)?;
                refuse_rejected(&workflow, &record, &saved)?;
                refuse_interrupted(&workflow, &saved, &resume.again)?;
                refuse_interrupted_compensation(&ctx, &resume.again)?;
                counter_actions = self.counter_actions(&record, &ctx).await?;
                ctx.state = ExecutionState::Running;
                ctx.completed_at = None;
                forget_failures(&workflow, &mut ctx);
                let is_as_saved = saved.state == ctx.state
                    && saved.completed_at == ctx.completed_at
                    && saved.node_results.len() == ctx.node_results.len();
                if going_on == GoingOn::AsBefore && is_as_saved {
                    let undone_to = undo::undone_to(&self.store.operations(id).await?);
                    let name = record.name.into();
                    return Ok(Resumed { workflow, name, ctx, head, counter_actions, undone_to });
                }
                if going_on == GoingOn::Detached {
                    queueing::let_again(&workflow, &mut ctx, &resume.again, self.clock.now());
                }
                // A start from zero would have paid for what is there once more.
                for result in ctx.node_results.values() {
                    ctx.ledger.spend.reused.add(result.metrics.as_ref());
                }
                let masks = Masks::of(Some(&workflow), &*self.secrets);
                let operation = resume.operation.map(|operation| without_secrets(&masks, operation));
                let mut checkpoint = self.checkpoint_of(&saved, &ctx, Cause::Resume, operation)?;
                checkpoint.answers = match going_on {
                    // What was asked before was asked of a run that is over.
                    GoingOn::Here | GoingOn::Detached => {
                        self.store.requests(id).await?.iter().map(|request| request.id).collect()
                    }
                    // Who asked it of a worker that died asked it of the execution.
                    GoingOn::AsBefore | GoingOn::InPlaceOfOne => Vec::new(),
                };
                checkpoint.compress = workflow.definition().checkpoints.compress;
                let fence = Some(held.fence());
                let commit = Commit { execution_id: id, expected_head: head, fence, checkpoint };
                head = self.store.commit(commit).await?.seq;
            }
        }
        let undone_to = undo::undone_to(&self.store.operations(id).await?);
        Ok(Resumed { workflow, name: record.name.into(), ctx, head, counter_actions, undone_to })
    }

    /// Returns the workflow that an execution runs.
    ///
    /// # Errors
    /// [`EngineError::NoDefinition`] where the execution was not started by an engine, and what is wrong with a
    /// definition that cannot be read.
    pub async fn workflow_of(&self, record: &ExecutionRecord) -> Result<Arc<Workflow>, EngineError> {
        self.workflow_with_id(record.workflow_id, &record.name).await
    }

    /// Returns a workflow that an execution runs, or ran at an earlier point.
    ///
    /// # Errors
    /// As [`workflow_of`](Self::workflow_of).
    async fn workflow_with_id(&self, id: WorkflowId, execution: &str) -> Result<Arc<Workflow>, EngineError> {
        // A workflow is named by what it says, so that one which was read stays true.
        if let Some(workflow) = self.workflows().get(&id) {
            return Ok(Arc::clone(workflow));
        }
        let stored = self.store.workflow(id).await?.unwrap_or_default();
        if stored.is_empty() {
            return Err(EngineError::NoDefinition { name: execution.to_owned() });
        }
        let workflow = Arc::new(Workflow::from_definition(Definition::from_json(&stored)?)?);
        let mut workflows = self.workflows();
        if workflows.len() >= WORKFLOWS_MAX {
            workflows.clear();
        }
        // What was kept under another id than its own is not what it says.
        if workflow.id() == id {
            workflows.insert(id, Arc::clone(&workflow));
        }
        Ok(workflow)
    }

    fn workflows(&self) -> MutexGuard<'_, HashMap<WorkflowId, Arc<Workflow>>> {
        self.workflows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first values of the variables that are wanted, and what may be said of them: what is secret is
    /// masked.
    fn first_values(
        &self,
        workflow: &Workflow,
        ctx: &ExecutionContext,
        execution: &str,
        masks: &Arc<Masks>,
        wanted: impl Fn(&str, &Value) -> bool,
    ) -> Result<BTreeMap<String, Value>, EngineError> {
        let scope: Arc<dyn Scope> = Arc::new(Opening {
            ctx: ctx.clone(),
            name: execution.to_owned(),
            secrets: Arc::clone(&self.secrets),
            masks: Arc::clone(masks),
        });
        let vars = workflow.definition().vars.iter().filter(|(name, value)| wanted(name, value));
        vars.map(|(name, value)| match evaluate_json(value, &scope) {
            Ok(value) => Ok((name.clone(), masks.value(value))),
            Err(source) => Err(EngineError::Variable { name: name.clone(), source }),
        })
        .collect()
    }

    /// Returns the state that an execution begins with, but for its variables.
    fn draft(&self, id: ExecutionId, workflow: &Workflow, start: &Start) -> Result<Draft, EngineError> {
        let mut ctx = ExecutionContext::with_id(id, workflow.id(), self.clock.now());
        ctx.inputs = workflow.definition().inputs_from(start.inputs.clone())?.into_iter().collect();
        let masks = Arc::new(Masks::of(Some(workflow), &*self.secrets));
        refuse_secret(&masks, "the workflow", &definition_of(workflow))?;
        refuse_secrets(&masks, "input", ctx.inputs.iter())?;
        if let Some(name) = &start.name {
            refuse_secret(&masks, "the name", &Value::from(name.as_str()))?;
        }
        Ok(Draft { ctx, masks })
    }

    fn first_point(
        &self,
        workflow: &Workflow,
        ctx: &mut ExecutionContext,
        name: &str,
        masks: &Arc<Masks>,
    ) -> Result<(NewExecution, NewCheckpoint), EngineError> {
        let definition = workflow.definition();
        for (variable, value) in self.first_values(workflow, ctx, name, masks, |_, _| true)? {
            ctx.set_variable(variable, value);
        }
        let new = NewExecution {
            id: ctx.execution_id,
            name: name.to_owned(),
            workflow_id: workflow.id(),
            workflow_name: workflow.name().to_owned(),
            definition: definition.to_json(),
            origin: None,
        };
        let mut first = self.new_checkpoint(ctx, Cause::Start);
        first.delta = delta(None, ctx, |_| None)?;
        first.compress = definition.checkpoints.compress;
        Ok((new, first))
    }

    /// Returns the checkpoint of an operation that takes an execution from one state to another.
    fn checkpoint_of(
        &self,
        before: &ExecutionContext,
        after: &ExecutionContext,
        cause: Cause,
        operation: Option<NewOperation>,
    ) -> Result<NewCheckpoint, EngineError> {
        let mut checkpoint = self.new_checkpoint(after, cause);
        checkpoint.delta = delta(Some(before), after, |_| None)?;
        checkpoint.operation = operation;
        Ok(checkpoint)
    }

    fn new_checkpoint(&self, ctx: &ExecutionContext, cause: Cause) -> NewCheckpoint {
        NewCheckpoint {
            completed_node_count: ctx.completed_nodes().count() as u64,
            spend: ctx.ledger.spend,
            ..NewCheckpoint::new(self.clock.new_id(), self.clock.now(), ctx.state.clone(), cause)
        }
    }

    fn check_handlers(&self, workflow: &Workflow) -> Result<(), EngineError> {
        for (name, node) in &workflow.definition().nodes {
            self.check_handler(name, &node.kind)?;
            node.compensate.iter().try_for_each(|compensate| self.check_handler(name, compensate))?;
        }
        Ok(())
    }

    fn check_handler(&self, node: &str, kind: &NodeKind) -> Result<(), EngineError> {
        let missing = match kind {
            NodeKind::Set(_) | NodeKind::Wait(_) | NodeKind::Approval(_) => return Ok(()),
            NodeKind::Call(call) => format!("closure `{}`", call.name),
            NodeKind::Run(_) | NodeKind::Http(_) | NodeKind::Llm(_) => format!("`{}` nodes", kind.name()),
        };
        match self.registry.find(kind) {
            Some(_) => Ok(()),
            None => Err(EngineError::NoHandler { node: node.to_owned(), missing }),
        }
    }
}

/// Names for a new execution: the one that is given, or some that are drawn, and its id in the end.
struct Names {
    given: Option<String>,
    id: ExecutionId,
    drawn: usize,
}

impl Names {
    fn new(given: Option<String>, id: ExecutionId) -> Self {
        Self { given, id, drawn: 0 }
    }

    /// Returns a name to try.
    fn draw(&mut self) -> String {
        if let Some(given) = &self.given {
            return given.clone();
        }
        self.drawn += 1;
        let drawn = (self.drawn <= NAME_DRAWS_MAX).then(|| petname::petname(2, "-")).flatten();
        drawn.unwrap_or_else(|| self.id.to_string())
    }

    /// Returns what was made under a name, or `None` where that was taken and there are more to try.
    fn takes<T>(&self, created: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
        match created {
            Err(EngineError::Store(StoreError::Conflict(Conflict::NameTaken(_))))
                if self.given.is_none() && self.drawn <= NAME_DRAWS_MAX =>
            {
                Ok(None)
            }
            created => created.map(Some),
        }
    }
}

/// Refuses names of nodes that the workflow does not have.
fn refuse_unknown(
    workflow: &Workflow,
    record: &ExecutionRecord,
    ctx: &ExecutionContext,
    names: &[String],
) -> Result<(), EngineError> {
    // A counter-action may be that of a node that the workflow has no more.
    let is_known = |name: &String| {
        workflow.graph().index_of(name).is_some() || compensation::due(ctx).any(|(_, due)| due.node == *name)
    };
    match names.iter().find(|name| !is_known(name)) {
        Some(node) => Err(EngineError::NoNode { name: record.name.clone(), node: node.clone() }),
        None => Ok(()),
    }
}

/// Refuses to go on where somebody rejected an approval: only taking that back lets it be asked again.
fn refuse_rejected(
    workflow: &Workflow,
    record: &ExecutionRecord,
    ctx: &ExecutionContext,
) -> Result<(), EngineError> {
    let graph = workflow.graph();
    let rejected = graph.nodes().find(|node| {
        let definition = workflow.node(*node);
        let result = ctx.get_node_result(&graph.id(*node)).map(|record| &record.result);
        matches!(definition.kind, NodeKind::Approval(_))
            && definition.on_error == OnError::Fail
            && matches!(result, Some(ExecutionResult::Failure(why)) if why.starts_with(decision::REJECTED))
    });
    match rejected {
        Some(node) => {
            Err(EngineError::Rejected { name: record.name.clone(), node: graph.name(node).to_owned() })
        }
        None => Ok(()),
    }
}

/// Looks whether effects or counter-actions may have happened before an execution stopped: somebody is to look outside,
/// and to say what is to become of them, before it goes on.
///
/// # Errors
/// [`EngineError::Interrupted`] and [`EngineError::InterruptedCompensation`] name them.
pub fn check_interrupted(workflow: &Workflow, ctx: &ExecutionContext) -> Result<(), EngineError> {
    refuse_interrupted(workflow, ctx, &[])?;
    refuse_interrupted_compensation(ctx, &[])
}

/// Refuses to go on where a node's effect may have happened already, unless a person said to run it again.
fn refuse_interrupted(
    workflow: &Workflow,
    ctx: &ExecutionContext,
    again: &[String],
) -> Result<(), EngineError> {
    let interrupted: Vec<(String, String)> = interrupted(workflow, ctx)
        .filter(|(name, _)| !again.contains(name))
        .map(|(name, record)| (name, record.idempotency_key.clone().unwrap_or_default()))
        .collect();
    if interrupted.is_empty() { Ok(()) } else { Err(EngineError::Interrupted { nodes: interrupted }) }
}

/// Refuses to go on where a counter-action may have happened already, unless a person said to run it again.
fn refuse_interrupted_compensation(ctx: &ExecutionContext, again: &[String]) -> Result<(), EngineError> {
    let nodes: Vec<(String, String)> = compensation::due(ctx)
        .filter(|(_, due)| due.stage == CompensationStage::Started && !again.contains(&due.node))
        .map(|(_, due)| (due.node.clone(), due.idempotency_key.clone()))
        .collect();
    if nodes.is_empty() { Ok(()) } else { Err(EngineError::InterruptedCompensation { nodes }) }
}

/// Leaves the effects of these nodes as they are.
fn skip_compensations(
    record: &ExecutionRecord,
    ctx: &mut ExecutionContext,
    names: &[String],
) -> Result<(), EngineError> {
    for node in names {
        let of_node = compensation::due(ctx).filter(|(_, due)| due.node == *node);
        let turns: Vec<u64> = of_node.map(|(turn, _)| turn).collect();
        if turns.is_empty() {
            return Err(EngineError::NothingToCompensate { name: record.name.clone(), node: node.clone() });
        }
        for turn in turns {
            compensation::reach(ctx, turn, CompensationStage::Skipped);
        }
    }
    Ok(())
}

/// Returns the nodes with an effect outside that had started and not ended.
fn interrupted<'c>(
    workflow: &'c Workflow,
    ctx: &'c ExecutionContext,
) -> impl Iterator<Item = (String, &'c NodeExecutionResult)> {
    let graph = workflow.graph();
    graph
        .nodes()
        .filter(|node| workflow.node(*node).effect == Effect::External)
        .filter(|node| !matches!(workflow.node(*node).kind, NodeKind::Approval(_)))
        .filter_map(move |node| Some((graph.name(node).to_owned(), ctx.get_node_result(&graph.id(node))?)))
        // One that rests between two attempts is not in flight.
        .filter(|(_, record)| record.result == ExecutionResult::Pending && record.due_at.is_none())
}

/// Forgets the results of nodes whose failure failed the execution: they run again.
fn forget_failures(workflow: &Workflow, ctx: &mut ExecutionContext) {
    let graph = workflow.graph();
    for node in graph.nodes().filter(|node| workflow.node(*node).on_error == OnError::Fail) {
        let id = graph.id(node);
        // What may have happened outside keeps its idempotency key, which stands in its record.
        if workflow.node(node).effect == Effect::External {
            continue;
        }
        if matches!(ctx.get_node_result(&id).map(|record| &record.result), Some(ExecutionResult::Failure(_)))
        {
            ctx.node_results.remove(&id);
        }
    }
}

/// Returns what others see of a node: its status as a word, its output and its error; the last two are null where
/// there is none.
pub fn standing(result: Option<&ExecutionResult>) -> (&'static str, Value, Value) {
    match result {
        None | Some(ExecutionResult::Pending) => ("pending", Value::Null, Value::Null),
        Some(ExecutionResult::Success(output)) => ("success", output.clone(), Value::Null),
        Some(ExecutionResult::Failure(why)) => ("failure", Value::Null, Value::String(why.clone())),
        Some(ExecutionResult::Skipped) => ("skipped", Value::Null, Value::Null),
    }
}

/// What the expressions of `vars` see when an execution starts: its inputs, its id and name, and secrets.
#[derive(Debug)]
struct Opening {
    ctx: ExecutionContext,
    name: String,
    secrets: Arc<dyn Secrets>,
    masks: Arc<Masks>,
}

impl Scope for Opening {
    fn look(&self, subject: &Subject, _field: Field) -> Option<Value> {
        match subject {
            Subject::Input(name) => self.ctx.inputs.get(name).cloned(),
            Subject::Secret(name) => self.secrets.secret(name).map(|value| {
                self.masks.remember(name, &value);
                Value::String(value)
            }),
            Subject::Variable(_) | Subject::Node(_) => None,
        }
    }

    fn keys(&self, root: Root) -> Vec<String> {
        match root {
            Root::Inputs => self.ctx.inputs.keys().cloned().collect(),
            Root::Variables | Root::Nodes | Root::Secrets => Vec::new(),
        }
    }

    fn execution_id(&self) -> ExecutionId {
        self.ctx.execution_id
    }

    fn execution_name(&self) -> String {
        self.name.clone()
    }
}
