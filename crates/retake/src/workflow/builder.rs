//! Makes a workflow in Rust: the same definition that a file makes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::definition::{
    Approval, Call, Definition, Effect, Http, InputSpec, Llm, MAX_PARALLEL_DEFAULT, Node, NodeKind, OnError,
    Retry, Run, Wait,
};
use super::duration::format_duration;
use super::error::{Finding, Path};
use super::{Workflow, WorkflowError};
use crate::checkpoint::CheckpointConfig;

/// A workflow in the making.
///
/// ```
/// use retake::workflow::{InputSpec, Node, Workflow};
/// use serde_json::json;
///
/// let workflow = Workflow::builder("research")
///     .input("topic", InputSpec::string())
///     .var("tone", json!("dry"))
///     .node("plan", Node::call("plan").with(json!({"topic": "${{ inputs.topic }}"})).retry(3))
///     .node("draft", Node::llm("${{ vars.tone }}: ${{ nodes.plan.output }}").into("draft"))
///     .build()?;
/// assert_eq!(workflow.graph().dependencies(1), [0]);
/// # Ok::<(), retake::workflow::WorkflowError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    definition: Definition,
    twice: Vec<Finding>,
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        let definition = Definition {
            name,
            inputs: BTreeMap::new(),
            vars: BTreeMap::new(),
            checkpoints: CheckpointConfig::default(),
            max_parallel: MAX_PARALLEL_DEFAULT,
            nodes: BTreeMap::new(),
        };
        Self { definition, twice: Vec::new() }
    }

    /// Adds an input.
    pub fn input(mut self, name: impl Into<String>, spec: InputSpec) -> Self {
        let name = name.into();
        self.once("inputs", &name, |definition| definition.inputs.contains_key(&name));
        self.definition.inputs.insert(name, spec);
        self
    }

    /// Adds a variable that an execution starts with.
    pub fn var(mut self, name: impl Into<String>, value: Value) -> Self {
        let name = name.into();
        self.once("vars", &name, |definition| definition.vars.contains_key(&name));
        self.definition.vars.insert(name, value);
        self
    }

    /// Sets when to checkpoint.
    pub fn checkpoints(mut self, checkpoints: CheckpointConfig) -> Self {
        self.definition.checkpoints = checkpoints;
        self
    }

    /// Sets how many nodes run at once.
    pub fn max_parallel(mut self, max_parallel: usize) -> Self {
        self.definition.max_parallel = max_parallel;
        self
    }

    /// Adds a node.
    pub fn node(mut self, id: impl Into<String>, node: Node) -> Self {
        let id = id.into();
        self.once("nodes", &id, |definition| definition.nodes.contains_key(&id));
        self.definition.nodes.insert(id, node);
        self
    }

    /// Checks the workflow.
    ///
    /// # Errors
    /// Everything that a file would be refused for, and a name that was added twice.
    pub fn build(self) -> Result<Workflow, WorkflowError> {
        Workflow::check(self.definition, self.twice)
    }

    fn once(&mut self, section: &str, name: &str, there: impl Fn(&Definition) -> bool) {
        if there(&self.definition) {
            self.twice.push(Finding::new(Path::of([section, name]), format!("`{name}` is added twice")));
        }
    }
}

impl Node {
    /// Returns a node of this kind, with the kind's default effect.
    pub fn new(kind: NodeKind) -> Self {
        let effect = kind.default_effect();
        Self {
            kind,
            needs: Default::default(),
            condition: None,
            into: None,
            retry: Retry::default(),
            timeout: None,
            effect,
            compensate: None,
            on_error: OnError::default(),
        }
    }

    /// Returns a node that calls the closure registered by this name.
    pub fn call(name: impl Into<String>) -> Self {
        Self::new(NodeKind::Call(Call { name: name.into(), with: Value::Null }))
    }

    /// Returns a node that runs a command.
    pub fn run(command: impl Into<String>) -> Self {
        Self::new(NodeKind::Run(Run::new(command)))
    }

    /// Returns a node that sends a `GET` request. For others, see [`Http::new`].
    pub fn http(url: impl Into<String>) -> Self {
        Self::new(NodeKind::Http(Http::new(url)))
    }

    /// Returns a node that asks the default language model. For others, see [`Llm`].
    pub fn llm(prompt: impl Into<String>) -> Self {
        Self::new(NodeKind::Llm(Box::new(Llm { prompt: Some(prompt.into()), ..Llm::default() })))
    }

    /// Returns a node that writes variables.
    pub fn set(variables: impl IntoIterator<Item = (impl Into<String>, Value)>) -> Self {
        Self::new(NodeKind::Set(variables.into_iter().map(|(name, value)| (name.into(), value)).collect()))
    }

    /// Returns a node that waits for somebody's approval.
    pub fn approval(message: impl Into<String>) -> Self {
        Self::new(NodeKind::Approval(Approval { message: message.into() }))
    }

    /// Returns a node that waits for some time.
    pub fn wait(duration: Duration) -> Self {
        Self::new(NodeKind::Wait(Wait::For(format_duration(duration))))
    }

    /// Sets what the closure is given.
    ///
    /// # Panics
    /// Where the node is no [`call`](Self::call).
    pub fn with(mut self, with: Value) -> Self {
        match &mut self.kind {
            NodeKind::Call(call) => call.with = with,
            NodeKind::Run(_)
            | NodeKind::Http(_)
            | NodeKind::Llm(_)
            | NodeKind::Set(_)
            | NodeKind::Approval(_)
            | NodeKind::Wait(_) => {
                panic!("only a `call` node is given a value, not a `{}` node", self.kind.name())
            }
        }
        self
    }

    /// Adds nodes that it waits for, beside those that its expressions mention.
    pub fn needs(mut self, needs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.needs.extend(needs.into_iter().map(Into::into));
        self
    }

    /// Sets the condition without which it is skipped: one expression, with or without `${{ }}`.
    pub fn when(mut self, condition: impl Into<String>) -> Self {
        self.condition = Some(condition.into());
        self
    }

    /// Sets the variable that its output is also written to.
    pub fn into(mut self, variable: impl Into<String>) -> Self {
        self.into = Some(variable.into());
        self
    }

    /// Sets how often and how fast it is tried again: a number of retries, or a [`Retry`].
    pub fn retry(mut self, retry: impl Into<Retry>) -> Self {
        self.retry = retry.into();
        self
    }

    /// Sets how long one attempt may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets what running it does to the world outside.
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    /// Sets its counter-action.
    pub fn compensate(mut self, compensate: NodeKind) -> Self {
        self.compensate = Some(Box::new(compensate));
        self
    }

    /// Sets what its failure means for the execution.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }
}
