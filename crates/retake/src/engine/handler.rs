//! What does the work of a node: handlers, and the registry that finds them.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::NodeContext;
use crate::execution::exact_value;
use crate::workflow::{ExpressionError, NodeKind};

/// Does the work of one node, once. The engine retries, times out and records.
///
/// Dropping the future must end the work: that is how timeouts and cancellation reach it.
#[async_trait::async_trait]
pub trait Handler: Send + Sync {
    /// Returns the node's output.
    ///
    /// # Errors
    /// A [`NodeError`], which says whether another attempt may help.
    async fn handle(&self, ctx: NodeContext) -> Result<Value, NodeError>;
}

/// Why an attempt at a node failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    message: String,
    retryable: bool,
    after: Option<Duration>,
    failure: Failure,
}

/// What ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Its handler said so.
    Handler,
    /// Its timeout.
    Timeout,
    /// A panic of its handler.
    Panic,
}

impl NodeError {
    /// Returns an error after which another attempt may succeed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: true, after: None, failure: Failure::Handler }
    }

    /// Returns an error that every further attempt would meet too: no retry is made.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false, after: None, failure: Failure::Handler }
    }

    /// Asks for at least so long a wait before the next attempt.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.after = Some(wait);
        self
    }

    /// Says what else than its handler ended the attempt.
    pub(super) fn by(mut self, failure: Failure) -> Self {
        self.failure = failure;
        self
    }

    /// Returns what kind of failure it is, in a word that says nothing of what the node was doing.
    pub(super) fn class(&self) -> &'static str {
        match (self.failure, self.retryable) {
            (Failure::Timeout, _) => "timeout",
            (Failure::Panic, _) => "panic",
            (Failure::Handler, true) => "transient",
            (Failure::Handler, false) => "permanent",
        }
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Tells whether another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Returns the least wait before the next attempt that the failure asked for.
    pub fn wait(&self) -> Option<Duration> {
        self.after
    }
}

impl From<ExpressionError> for NodeError {
    fn from(error: ExpressionError) -> Self {
        Self::permanent(error.to_string())
    }
}

impl From<crate::execution::AppendError> for NodeError {
    fn from(error: crate::execution::AppendError) -> Self {
        Self::permanent(error.to_string())
    }
}

/// The handlers an engine knows: one for each kind of node, and closures by name.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<dyn Handler>>,
    closures: BTreeMap<String, Arc<dyn Handler>>,
}

impl Registry {
    /// Returns a registry without handlers. `set`, `approval` and `wait` need none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a registry with the handlers of `run`, `http` and `llm`. Where language models are is told by the
    /// environment: see [`LlmDefaults::from_environment`](super::kinds::LlmDefaults::from_environment).
    #[cfg(feature = "nodes")]
    pub fn with_defaults() -> Self {
        Self::with_llm(super::kinds::LlmDefaults::from_environment())
    }

    /// Returns a registry with the handlers of `run`, `http` and `llm`, and what `llm` nodes use that do not say it
    /// themselves. Requests reach public addresses, and the server of language models by default.
    #[cfg(feature = "nodes")]
    pub fn with_llm(defaults: super::kinds::LlmDefaults) -> Self {
        Self::within(super::kinds::Network::public(), defaults)
    }

    /// Returns a registry with the handlers of `run`, `http` and `llm`, where requests reach what this network allows.
    #[cfg(feature = "nodes")]
    pub fn within(network: super::kinds::Network, defaults: super::kinds::LlmDefaults) -> Self {
        use super::kinds::{HttpHandler, LlmHandler, RunHandler};

        Self::new()
            .with_kind("run", RunHandler::new())
            .with_kind("http", HttpHandler::within(network.clone()))
            .with_kind("llm", LlmHandler::within(network, defaults))
    }

    /// Sets the handler of a kind, by its name in a workflow file: `run`, `http` or `llm`.
    pub fn with_kind(mut self, kind: &'static str, handler: impl Handler + 'static) -> Self {
        self.kinds.insert(kind, Arc::new(handler));
        self
    }

    /// Registers a closure under the name that `call` nodes use.
    ///
    /// ```
    /// use retake::engine::{NodeContext, NodeError, Registry};
    ///
    /// let registry = Registry::new().with("greet", async |ctx: NodeContext| {
    ///     let name = ctx.variable("name").ok_or_else(|| NodeError::permanent("`name` is not set"))?;
    ///     Ok::<_, NodeError>(format!("hello {name}"))
    /// });
    /// ```
    pub fn with<F, Fut, T>(mut self, name: impl Into<String>, closure: F) -> Self
    where
        F: Fn(NodeContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, NodeError>> + Send + 'static,
        T: Serialize + 'static,
    {
        self.closures.insert(name.into(), Arc::new(Closure(closure)));
        self
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.keys().copied()
    }

    pub(super) fn closures(&self) -> impl Iterator<Item = &str> {
        self.closures.keys().map(String::as_str)
    }

    /// Returns the handler of a node, or `None` where nobody registered one.
    pub(super) fn find(&self, kind: &NodeKind) -> Option<&Arc<dyn Handler>> {
        match kind {
            NodeKind::Call(call) => self.closures.get(&call.name),
            NodeKind::Run(_)
            | NodeKind::Http(_)
            | NodeKind::Llm(_)
            | NodeKind::Set(_)
            | NodeKind::Approval(_)
            | NodeKind::Wait(_) => self.kinds.get(kind.name()),
        }
    }
}

impl Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("kinds", &self.kinds.keys().collect::<Vec<_>>())
            .field("closures", &self.closures.keys().collect::<Vec<_>>())
            .finish()
    }
}

struct Closure<F>(F);

#[async_trait::async_trait]
impl<F, Fut, T> Handler for Closure<F>
where
    F: Fn(NodeContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, NodeError>> + Send + 'static,
    T: Serialize + 'static,
{
    async fn handle(&self, ctx: NodeContext) -> Result<Value, NodeError> {
        let path = format!("nodes.{}.output", ctx.node());
        let future = (self.0)(ctx);
        let mut output = future.await?;
        // A value is what it is; the engine looks at it. Writing it anew would also leave a copy to be dropped, which
        // no stack is deep enough for where it is nested too deep.
        if let Some(value) = (&mut output as &mut dyn Any).downcast_mut::<Value>() {
            return Ok(value.take());
        }
        exact_value(&path, &output).map_err(|error| NodeError::permanent(error.to_string()))
    }
}
