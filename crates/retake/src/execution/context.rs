//! The context of a running execution, and the checkpoint that carries all of it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    AppendError, ExecutionId, Ledger, NodeExecutionResult, NodeId, NodeResults, Variable, Variables,
    WorkflowId,
};
use crate::clock::{self, Clock};

/// How an execution stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ExecutionState {
    /// It is being advanced, or was when its process died.
    Running,
    /// Every node is done.
    Completed,
    /// It stopped at a failure, which it names.
    Failed(String),
    /// Somebody ended it.
    Cancelled,
    /// It waits to be resumed, or for somebody's approval.
    Paused,
}

impl ExecutionState {
    /// Returns the state as one word: `running`, `completed`, `failed`, `cancelled` or `paused`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::Paused => "paused",
        }
    }
}

/// What an execution knows at one moment. Cloning it costs the same at any size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecutionContext {
    /// This execution.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub execution_id: ExecutionId,
    /// The workflow that it runs.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub workflow_id: WorkflowId,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// How it stands.
    pub state: ExecutionState,
    /// What each node gave.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, NodeExecutionResult>))]
    pub node_results: NodeResults,
    /// The variables.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, Value>))]
    pub variables: Variables,
    /// The inputs it was started with. They never change.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, Value>))]
    pub inputs: Variables,
    /// The sequence number of the operation that last sent nodes back to run again; 0 for none. Idempotency keys are
    /// made from it.
    #[serde(default)]
    pub generation: u64,
    /// What it remembers so that a part of it can be taken back, and what it cost.
    #[serde(default)]
    pub ledger: Ledger,
}

impl ExecutionContext {
    /// Returns the context of a new execution: running, with a fresh id and nothing in it.
    pub fn new(workflow_id: WorkflowId) -> Self {
        let clock = clock::system();
        Self::with_id(clock.new_id(), workflow_id, clock.now())
    }

    /// Returns the context of a new execution with a given id and start.
    pub fn with_id(execution_id: ExecutionId, workflow_id: WorkflowId, started_at: DateTime<Utc>) -> Self {
        Self {
            execution_id,
            workflow_id,
            started_at,
            completed_at: None,
            state: ExecutionState::Running,
            node_results: NodeResults::new(),
            variables: Variables::new(),
            inputs: Variables::new(),
            generation: 0,
            ledger: Ledger::default(),
        }
    }

    /// Sets a variable.
    pub fn set_variable(&mut self, key: String, value: Value) {
        self.variables.set(key, value.into());
    }

    /// Returns a variable.
    pub fn get_variable(&self, key: &str) -> Option<&Value> {
        self.variables.get(key)
    }

    /// Adds `value` at the end of a variable: any value to a list, a text to a text. A variable that does not exist
    /// becomes a list of one.
    ///
    /// Costs the added value, in memory and when it is saved, however long the list.
    ///
    /// # Errors
    /// [`AppendError`] where the variable is neither; it stays as it was.
    ///
    /// ```
    /// # use retake::execution::ExecutionContext;
    /// # use serde_json::json;
    /// let mut ctx = ExecutionContext::new(uuid::Uuid::new_v4());
    /// ctx.append("messages", json!({"role": "user", "content": "hello"}))?;
    /// ctx.append("messages", json!({"role": "assistant", "content": "hi"}))?;
    /// assert_eq!(ctx.get_variable("messages").unwrap()[1]["content"], "hi");
    /// # Ok::<(), retake::execution::AppendError>(())
    /// ```
    pub fn append(&mut self, key: &str, value: Value) -> Result<(), AppendError> {
        match self.variables.cell_mut(key) {
            Some(cell) => cell.append(value).map_err(|found| AppendError { name: key.to_owned(), found }),
            None => {
                self.variables.set(key.to_owned(), Variable::from(Value::Array(vec![value])));
                Ok(())
            }
        }
    }

    /// Records what a node gave, in place of what it gave before.
    pub fn record_node_result(&mut self, node_id: NodeId, result: NodeExecutionResult) {
        self.node_results.set(node_id, super::Cell::new(result));
    }

    /// Returns what a node gave.
    pub fn get_node_result(&self, node_id: &NodeId) -> Option<&NodeExecutionResult> {
        self.node_results.get(node_id)
    }

    /// Returns the nodes that are done with: those that succeeded or were skipped. A failed node is not.
    pub fn completed_nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.node_results.iter().filter(|(_, node)| node.result.is_completed()).map(|(id, _)| id)
    }

    /// Returns a checkpoint of everything. Costs the list of completed nodes; the maps are shared.
    pub fn create_checkpoint(&self) -> ExecutionCheckpoint {
        self.checkpoint_at(clock::system().now())
    }

    /// Returns a checkpoint of everything, made at `timestamp`.
    pub fn checkpoint_at(&self, timestamp: DateTime<Utc>) -> ExecutionCheckpoint {
        ExecutionCheckpoint {
            timestamp,
            completed_nodes: self.completed_nodes().copied().collect(),
            variables: self.variables.clone(),
            state: self.state.clone(),
            node_results: self.node_results.clone(),
            execution_id: self.execution_id,
            workflow_id: self.workflow_id,
            started_at: self.started_at,
            completed_at: self.completed_at,
            inputs: self.inputs.clone(),
            generation: self.generation,
            ledger: self.ledger.clone(),
        }
    }

    /// Returns the context that a checkpoint was made of, ready to go on: same execution id, same start, every output.
    ///
    /// A checkpoint of another workflow is refused: the context that comes back is `Failed`, with a message that names
    /// both workflows, still holds what the checkpoint held, and cannot be resumed.
    /// [`try_resume_from_checkpoint`](Self::try_resume_from_checkpoint) says so as an error.
    pub fn resume_from_checkpoint(checkpoint: ExecutionCheckpoint, workflow_id: WorkflowId) -> Self {
        let refusal = WrongWorkflow::check(&checkpoint, workflow_id).err();
        let mut ctx = Self::from(checkpoint);
        if let Some(refusal) = refusal {
            ctx.state = ExecutionState::Failed(refusal.to_string());
        }
        ctx
    }

    /// Returns the context that a checkpoint was made of, or says that it belongs to another workflow.
    ///
    /// # Errors
    /// [`WrongWorkflow`] where the checkpoint was made by an execution of another workflow.
    pub fn try_resume_from_checkpoint(
        checkpoint: ExecutionCheckpoint,
        workflow_id: WorkflowId,
    ) -> Result<Self, WrongWorkflow> {
        WrongWorkflow::check(&checkpoint, workflow_id)?;
        Ok(Self::from(checkpoint))
    }

    /// Tells whether [`resume`](Self::resume) would set it running: it is paused.
    pub fn can_resume(&self) -> bool {
        self.state == ExecutionState::Paused
    }

    /// Pauses a running execution. One that has ended stays as it is.
    pub fn pause(&mut self) {
        if self.state == ExecutionState::Running {
            self.state = ExecutionState::Paused;
        }
    }

    /// Sets a paused execution running again.
    pub fn resume(&mut self) {
        if self.can_resume() {
            self.state = ExecutionState::Running;
        }
    }

    /// Ends the execution as cancelled, now.
    pub fn cancel(&mut self) {
        self.state = ExecutionState::Cancelled;
        self.end(clock::system().now());
    }

    /// Ends the execution, now: a running or paused one has then completed; a failed or cancelled one stays so.
    pub fn mark_completed(&mut self) {
        if matches!(self.state, ExecutionState::Running | ExecutionState::Paused) {
            self.state = ExecutionState::Completed;
        }
        self.end(clock::system().now());
    }

    /// Notes when the execution ended, unless it is noted already.
    pub fn end(&mut self, at: DateTime<Utc>) {
        self.completed_at.get_or_insert(at);
    }
}

/// A checkpoint that was made by an execution of another workflow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint belongs to workflow {found}, not to workflow {wanted}")]
pub struct WrongWorkflow {
    /// The workflow that the checkpoint belongs to.
    pub found: WorkflowId,
    /// The workflow that was to be resumed.
    pub wanted: WorkflowId,
}

impl WrongWorkflow {
    fn check(checkpoint: &ExecutionCheckpoint, wanted: WorkflowId) -> Result<(), Self> {
        if checkpoint.workflow_id == wanted {
            return Ok(());
        }
        Err(Self { found: checkpoint.workflow_id, wanted })
    }
}

/// A whole state at one moment, as it is saved and as an execution resumes from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecutionCheckpoint {
    /// When it was made. Order is decided by the history, never by this.
    pub timestamp: DateTime<Utc>,
    /// The nodes that are done with.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<uuid::Uuid>))]
    pub completed_nodes: Vec<NodeId>,
    /// The variables.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, Value>))]
    pub variables: Variables,
    /// How the execution stood.
    pub state: ExecutionState,
    /// What each node gave.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, NodeExecutionResult>))]
    pub node_results: NodeResults,
    /// The execution.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub execution_id: ExecutionId,
    /// Its workflow.
    #[cfg_attr(feature = "openapi", schema(value_type = uuid::Uuid))]
    pub workflow_id: WorkflowId,
    /// When the execution started.
    pub started_at: DateTime<Utc>,
    /// When the execution ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// The inputs it was started with.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, Value>))]
    pub inputs: Variables,
    /// As in [`ExecutionContext::generation`].
    #[serde(default)]
    pub generation: u64,
    /// As in [`ExecutionContext::ledger`].
    #[serde(default)]
    pub ledger: Ledger,
}

impl From<ExecutionCheckpoint> for ExecutionContext {
    fn from(checkpoint: ExecutionCheckpoint) -> Self {
        Self {
            execution_id: checkpoint.execution_id,
            workflow_id: checkpoint.workflow_id,
            started_at: checkpoint.started_at,
            completed_at: checkpoint.completed_at,
            state: checkpoint.state,
            node_results: checkpoint.node_results,
            variables: checkpoint.variables,
            inputs: checkpoint.inputs,
            generation: checkpoint.generation,
            ledger: checkpoint.ledger,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::execution::ExecutionResult;

    fn context() -> ExecutionContext {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
        ctx.set_variable("topic".into(), json!("otters"));
        ctx.record_node_result(
            Uuid::from_u128(1),
            NodeExecutionResult::new().complete(ExecutionResult::Success(json!({"text": "plan"}))),
        );
        ctx.record_node_result(
            Uuid::from_u128(2),
            NodeExecutionResult::new().complete(ExecutionResult::Failure("boom".into())),
        );
        ctx
    }

    #[test]
    fn a_resumed_context_is_the_one_that_was_saved() {
        let mut ctx = context();
        ctx.pause();
        let resumed = ExecutionContext::resume_from_checkpoint(ctx.create_checkpoint(), ctx.workflow_id);
        assert_eq!(resumed, ctx);
        assert!(resumed.can_resume());
    }

    #[test]
    fn a_failed_node_is_not_among_the_completed() {
        assert_eq!(context().create_checkpoint().completed_nodes, [Uuid::from_u128(1)]);
    }

    #[test]
    fn a_checkpoint_of_another_workflow_is_refused() {
        let mut ctx = context();
        ctx.pause();
        let other = Uuid::from_u128(8);
        let resumed = ExecutionContext::resume_from_checkpoint(ctx.create_checkpoint(), other);
        assert!(matches!(&resumed.state, ExecutionState::Failed(why) if why.contains(&other.to_string())));
        assert!(!resumed.can_resume());
        assert_eq!(resumed.workflow_id, ctx.workflow_id);
        assert_eq!(
            ExecutionContext::try_resume_from_checkpoint(ctx.create_checkpoint(), other),
            Err(WrongWorkflow { found: ctx.workflow_id, wanted: other })
        );
    }

    #[test]
    fn pause_and_resume_leave_an_ended_execution_alone() {
        let mut ctx = context();
        ctx.cancel();
        let ended = ctx.clone();
        ctx.pause();
        ctx.resume();
        ctx.mark_completed();
        assert_eq!(ctx, ended);
        assert_eq!(ctx.state, ExecutionState::Cancelled);
        assert!(ctx.completed_at.is_some());
    }

    #[test]
    fn marking_a_run_completed_ends_it() {
        let mut ctx = context();
        ctx.mark_completed();
        assert_eq!(ctx.state, ExecutionState::Completed);
        assert!(ctx.completed_at.is_some());
    }

    #[test]
    fn an_append_names_the_variable_that_cannot_take_it() {
        let mut ctx = context();
        ctx.set_variable("count".into(), json!(1));
        let error = ctx.append("count", json!(2)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot append to `count`: it is a number, and only a list takes any value and a text takes text"
        );
        assert_eq!(ctx.get_variable("count"), Some(&json!(1)));
    }

    #[test]
    fn a_checkpoint_survives_json() {
        let checkpoint = context().create_checkpoint();
        let text = serde_json::to_string(&checkpoint).unwrap();
        assert_eq!(serde_json::from_str::<ExecutionCheckpoint>(&text).unwrap(), checkpoint);
    }
}
