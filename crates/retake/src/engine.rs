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
mod resuming;
mod run;
mod secret;
mod starting;
mod trace;
mod undo;
mod watch;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tracing::Span;

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
pub use resuming::{Resume, check_interrupted};
pub use run::Run;
pub use secret::{EnvironmentSecrets, FileSecrets, Secrets};
pub use starting::Start;
pub use trace::TraceContext;
pub use watch::Watch;
pub use worker::{
    CONCURRENCY_DEFAULT, GRACE_DEFAULT, Worked, Worker, WorkerEvent, WorkerHandle, WorkerOptions, WorkerUntil,
};

use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionContext, ExecutionResult, WorkflowId};
use crate::store::{Cause, ExecutionRecord, NewCheckpoint, NewOperation, Queue, Store, delta};
use crate::workflow::{Definition, NodeKind, Workflow};
use held::Held;
use resuming::{GoingOn, Resumed, interrupted};
use run::Opened;
use secret::Masks;
use starting::{Draft, Names};

/// How many workflows an engine keeps ready.
const WORKFLOWS_MAX: usize = 64;

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

    fn run_of(&self, held: Held, resumed: Resumed, span: Span) -> Result<Run, EngineError> {
        let Resumed { workflow, name, ctx, head, counter_actions, undone_to } = resumed;
        let masks = Arc::new(Masks::default());
        let opened = Opened { held, workflow, name, ctx, head, masks, counter_actions, undone_to, span };
        Run::new(self.clone(), opened)
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
