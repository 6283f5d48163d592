//! What a node sees while it runs. Every look is recorded; every write waits until the node has succeeded.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::event::{Event, Events};
use super::secret::{Masks, Secrets};
use super::standing;
use super::trace::TraceContext;
use crate::execution::{
    AppendError, ExecutionContext, ExecutionId, NodeExecutionResult, NodeMetrics, Read, Step, Subject,
    TokenUsage, Unstorable, Write, WriteOp, check_value, dismantle, exact_value, finite_sum, node_id,
};
use crate::store::hash;
use crate::workflow::{ExpressionError, Field, NodeKind, Root, Scope, Template, Workflow, evaluate_json};

/// A node's view of its execution, as it was when the node started, with the node's own writes on top.
///
/// Cloning it gives the same view. What is read through it (variables, inputs, outputs of other nodes) is recorded
/// with the value's hash and becomes part of the node's result; what is written is applied when the node succeeds, in
/// one checkpoint with its output, and thrown away when it fails.
#[derive(Debug, Clone)]
pub struct NodeContext {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    task: Task,
    attempt: u32,
    /// What this attempt has done so far.
    notes: Mutex<Notes>,
}

/// What is the same for every attempt at a node.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) workflow: Arc<Workflow>,
    pub(super) node: usize,
    pub(super) action: Action,
    pub(super) state: ExecutionContext,
    pub(super) execution_name: Arc<str>,
    pub(super) idempotency_key: String,
    pub(super) secrets: Arc<dyn Secrets>,
    pub(super) masks: Arc<Masks>,
    pub(super) events: Events,
    pub(super) trace_context: Option<Arc<dyn TraceContext>>,
}

/// What is to be done for a node.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// Its own work.
    Work,
    /// The counter-action against its effect.
    Compensation {
        /// The key under which the effect is known outside.
        effect: Option<String>,
    },
}

impl Task {
    /// Returns what is to be done.
    pub(super) fn kind(&self) -> &NodeKind {
        let node = self.workflow.node(self.node);
        match (&self.action, &node.compensate) {
            (Action::Compensation { .. }, Some(compensate)) => compensate,
            (Action::Work, _) | (Action::Compensation { .. }, None) => &node.kind,
        }
    }
}

/// What an attempt noted: what it read, wants to write, and cost.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    /// The state with this attempt's writes applied; `None` before the first write.
    written: Option<ExecutionContext>,
    pub(super) writes: Vec<Write>,
    looked_at: BTreeSet<Subject>,
    pub(super) reads: Vec<Read>,
    pub(super) metrics: NodeMetrics,
    /// The first value that the attempt noted and that cannot be stored.
    pub(super) refused: Option<Unstorable>,
}

impl NodeContext {
    /// Returns the context of an attempt, with what was noted for the node before it.
    pub(super) fn new(task: Task, attempt: u32, notes: Notes) -> Self {
        Self { shared: Arc::new(Shared { task, attempt, notes: Mutex::new(notes) }) }
    }

    /// Returns the execution's id.
    pub fn execution_id(&self) -> ExecutionId {
        self.shared.task.state.execution_id
    }

    /// Returns the execution's readable name.
    pub fn execution_name(&self) -> &str {
        &self.shared.task.execution_name
    }

    /// Returns the node's id, as the workflow file writes it.
    pub fn node(&self) -> &str {
        self.shared.task.workflow.graph().name(self.shared.task.node)
    }

    /// Returns what the node is told to do, or its counter-action, with its expressions unevaluated.
    pub fn kind(&self) -> &NodeKind {
        self.shared.task.kind()
    }

    /// Tells whether this is the counter-action against the node's effect and not the node. What it sees is the state
    /// that had the effect, and what it writes is not kept: it is about the effect and not about the state.
    pub fn is_compensation(&self) -> bool {
        matches!(self.shared.task.action, Action::Compensation { .. })
    }

    /// Returns the key under which the effect is known outside that this counter-action undoes.
    pub fn compensated_key(&self) -> Option<&str> {
        match &self.shared.task.action {
            Action::Compensation { effect } => effect.as_deref(),
            Action::Work => None,
        }
    }

    /// Returns the number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.shared.attempt
    }

    /// Returns the key under which the node's effect should be known outside: the same for every attempt and after a
    /// crash, another for a deliberate re-run.
    pub fn idempotency_key(&self) -> &str {
        &self.shared.task.idempotency_key
    }

    /// Returns the trace that this attempt belongs to, as the W3C's Trace Context writes it in `traceparent`, for what the
    /// node calls. `None` where nobody traces.
    pub fn traceparent(&self) -> Option<String> {
        self.shared.task.trace_context.as_ref()?.traceparent()
    }

    /// Returns what a `call` node is given in `with`, evaluated; null for other kinds.
    ///
    /// # Errors
    /// An expression that has no value.
    pub fn parameters(&self) -> Result<Value, ExpressionError> {
        match self.kind() {
            NodeKind::Call(call) => self.evaluate_json(&call.with),
            NodeKind::Run(_)
            | NodeKind::Http(_)
            | NodeKind::Llm(_)
            | NodeKind::Set(_)
            | NodeKind::Approval(_)
            | NodeKind::Wait(_) => Ok(Value::Null),
        }
    }

    /// Returns an input of the execution.
    pub fn input(&self, name: &str) -> Option<Value> {
        self.look(&Subject::Input(name.to_owned()), Field::Output)
    }

    /// Returns a variable, as this node left it.
    pub fn variable(&self, name: &str) -> Option<Value> {
        self.look(&Subject::Variable(name.to_owned()), Field::Output)
    }

    /// Returns the output of another node, or `None` where it has none.
    pub fn output(&self, node: &str) -> Option<Value> {
        self.look(&Subject::Node(node.to_owned()), Field::Output).filter(|output| !output.is_null())
    }

    /// Returns the value of a secret, or `None` where there is none of that name. It is masked in everything that is
    /// said or saved from now on.
    pub fn secret(&self, name: &str) -> Option<String> {
        match self.look(&Subject::Secret(name.to_owned()), Field::Output) {
            Some(Value::String(value)) => Some(value),
            Some(_) | None => None,
        }
    }

    /// Sets a variable, once the node succeeds. It does not succeed where the value cannot be stored.
    pub fn set_variable(&self, name: &str, value: Value) {
        let mut notes = self.notes();
        let Some(value) = notes.storable(|| format!("vars{}", Step::Key(name)), value) else { return };
        notes.state(&self.shared.task).set_variable(name.to_owned(), value.clone());
        notes.write(name, WriteOp::Set(value));
    }

    /// Appends to a list or a text, once the node succeeds; what is not there becomes a list. The node does not succeed
    /// where the value cannot be stored.
    ///
    /// # Errors
    /// [`AppendError`] where the variable takes no such value.
    pub fn append(&self, name: &str, value: Value) -> Result<(), AppendError> {
        let mut notes = self.notes();
        let Some(value) = notes.storable(|| format!("vars{}", Step::Key(name)), value) else { return Ok(()) };
        let appended = notes.state(&self.shared.task).append(name, value.clone());
        match appended {
            Ok(()) => notes.write(name, WriteOp::Append(value)),
            // Another value would have taken it.
            Err(_) => notes.record_below(&self.shared.task, name),
        }
        appended
    }

    /// Removes a variable, once the node succeeds.
    pub fn remove_variable(&self, name: &str) {
        let mut notes = self.notes();
        notes.state(&self.shared.task).variables.remove(name);
        notes.write(name, WriteOp::Remove);
    }

    /// Returns the value of a text that may hold expressions.
    ///
    /// # Errors
    /// An expression that cannot be read or has no value.
    pub fn evaluate(&self, text: &str) -> Result<Value, ExpressionError> {
        Template::parse(text)?.evaluate(&self.scope())
    }

    /// Returns the text that a text with expressions becomes.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_text(&self, text: &str) -> Result<String, ExpressionError> {
        Template::parse(text)?.evaluate_text(&self.scope())
    }

    /// Evaluates every text inside a JSON value.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_json(&self, value: &Value) -> Result<Value, ExpressionError> {
        evaluate_json(value, &self.scope())
    }

    /// Notes tokens and their price in US dollars (`None` where it is not known). Several calls add up. The node does not
    /// succeed where the price is no number.
    pub fn spent(&self, usage: TokenUsage, cost_usd: Option<f64>) {
        let mut notes = self.notes();
        let cost_usd = cost_usd.filter(|cost| {
            notes.keep(exact_value(&format!("nodes.{}.metrics.cost_usd", self.node()), cost)).is_some()
        });
        let first = notes.metrics.token_usage.is_none();
        let sum = notes.metrics.token_usage.take().unwrap_or_default();
        notes.metrics.token_usage = Some(sum.plus(usage));
        // One unknown price makes the sum unknown.
        notes.metrics.cost_usd = match (first, notes.metrics.cost_usd, cost_usd) {
            (true, _, cost) => cost,
            (false, Some(a), Some(b)) => Some(finite_sum(a, b)),
            (false, _, _) => None,
        };
    }

    /// Notes calls of outside services, and bytes sent and received.
    pub fn transferred(&self, calls: u32, bytes: u64) {
        let mut notes = self.notes();
        notes.metrics.api_calls = notes.metrics.api_calls.saturating_add(calls);
        notes.metrics.bytes_transferred = notes.metrics.bytes_transferred.saturating_add(bytes);
    }

    /// Notes a measure of the node's own. The node does not succeed where it cannot be stored.
    pub fn measured(&self, name: &str, value: Value) {
        let mut notes = self.notes();
        let path = || format!("nodes.{}.metrics{}", self.node(), Step::Key(name));
        if let Some(value) = notes.storable(path, value) {
            notes.metrics.custom.insert(name.to_owned(), value);
        }
    }

    /// Tells whoever watches how far the node is: a line of output, a piece of an answer. It is not saved.
    pub fn progress(&self, text: impl Into<String>) {
        let task = &self.shared.task;
        task.events.mention(|| {
            let text = task.masks.text(text.into());
            Event::NodeProgress { node: self.node().to_owned(), text }
        });
    }

    /// Returns the text with every secret that was looked up masked: to be done before a text is cut, which could leave
    /// a part of a secret that nobody knows again.
    #[cfg(feature = "nodes")]
    pub(super) fn masked(&self, text: String) -> String {
        self.shared.task.masks.text(text)
    }

    /// Returns how much of a text that comes in pieces can be said: after that, a secret may have begun.
    #[cfg(feature = "nodes")]
    pub(super) fn settled(&self, text: &str) -> usize {
        self.shared.task.masks.settled(text)
    }

    pub(super) fn scope(&self) -> Arc<dyn Scope> {
        Arc::clone(&self.shared) as Arc<dyn Scope>
    }

    /// Takes what the attempt noted.
    pub(super) fn take_notes(&self) -> Notes {
        std::mem::take(&mut *self.notes())
    }

    fn look(&self, subject: &Subject, field: Field) -> Option<Value> {
        self.shared.look(subject, field)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.shared.notes()
    }
}

impl Notes {
    fn state(&mut self, task: &Task) -> &mut ExecutionContext {
        self.written.get_or_insert_with(|| task.state.clone())
    }

    fn record(&mut self, subject: &Subject, hash: impl FnOnce() -> Option<String>) {
        if self.looked_at.insert(subject.clone()) {
            self.reads.push(Read { subject: subject.clone(), hash: hash() });
        }
    }

    /// Records a look at what a variable was before the node, if any of that is left below what the node wrote.
    fn record_below(&mut self, task: &Task, variable: &str) {
        let is_left = |write: &Write| write.variable != variable || matches!(write.op, WriteOp::Append(_));
        if self.writes.iter().all(is_left) {
            self.record(&Subject::Variable(variable.to_owned()), || {
                task.state.get_variable(variable).map(hash)
            });
        }
    }

    /// Returns a value that can be stored. Of the others the first is remembered, and none is looked at again.
    fn storable(&mut self, path: impl FnOnce() -> String, value: Value) -> Option<Value> {
        match self.keep(check_value(&path(), &value)) {
            Some(_) => Some(value),
            None => {
                dismantle(value);
                None
            }
        }
    }

    fn keep<T>(&mut self, checked: Result<T, Unstorable>) -> Option<T> {
        match checked {
            Ok(kept) => Some(kept),
            Err(refused) => {
                self.refused.get_or_insert(refused);
                None
            }
        }
    }

    fn write(&mut self, variable: &str, op: WriteOp) {
        self.writes.push(Write { variable: variable.to_owned(), op });
    }

    fn wrote(&self, variable: &str) -> bool {
        self.writes.iter().any(|write| write.variable == variable)
    }
}

impl Shared {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scope for Shared {
    fn look(&self, subject: &Subject, field: Field) -> Option<Value> {
        let mut notes = self.notes();
        let state = &self.task.state;
        match subject {
            Subject::Input(name) => {
                let value = state.inputs.get(name);
                notes.record(subject, || value.map(hash));
                value.cloned()
            }
            Subject::Variable(name) => {
                // What the node wrote itself is not something it read; what it appended to is.
                notes.record_below(&self.task, name);
                let state = if notes.wrote(name) { notes.written.as_ref().unwrap_or(state) } else { state };
                state.get_variable(name).cloned()
            }
            Subject::Node(name) => {
                let seen = seen_of_node(state, name);
                notes.record(subject, || Some(hash(&seen)));
                let part = match field {
                    Field::Output => "output",
                    Field::Status => "status",
                    Field::Error => "error",
                };
                Some(seen[part].clone())
            }
            Subject::Secret(name) => {
                let value = self.task.secrets.secret(name);
                // Not even a hash of a secret is written down.
                notes.record(subject, || None);
                value.map(|value| {
                    self.task.masks.remember(name, &value);
                    Value::String(value)
                })
            }
        }
    }

    fn keys(&self, root: Root) -> Vec<String> {
        match root {
            Root::Inputs => self.task.state.inputs.keys().cloned().collect(),
            Root::Variables => {
                let notes = self.notes();
                let state = notes.written.as_ref().unwrap_or(&self.task.state);
                state.variables.keys().cloned().collect()
            }
            Root::Nodes => self.task.workflow.definition().nodes.keys().cloned().collect(),
            Root::Secrets => Vec::new(),
        }
    }

    fn execution_id(&self) -> ExecutionId {
        self.task.state.execution_id
    }

    fn execution_name(&self) -> String {
        self.task.execution_name.to_string()
    }
}

/// Returns what an expression can see of a node: its status, output and error.
pub(super) fn seen_of_node(state: &ExecutionContext, name: &str) -> Value {
    seen_of_result(state.get_node_result(&node_id(name)))
}

/// Returns what an expression can see of a node that gave this.
pub(super) fn seen_of_result(result: Option<&NodeExecutionResult>) -> Value {
    let (status, output, error) = standing(result.map(|record| &record.result));
    json!({"status": status, "output": output, "error": error})
}

/// Returns the hash of what a node sees of a subject now: equal to the recorded one where nothing changed for it.
pub fn hash_now(state: &ExecutionContext, subject: &Subject) -> Option<String> {
    match subject {
        Subject::Input(name) => state.inputs.get(name).map(hash),
        Subject::Variable(name) => state.get_variable(name).map(hash),
        Subject::Node(name) => Some(hash(&seen_of_node(state, name))),
        Subject::Secret(_) => None,
    }
}
