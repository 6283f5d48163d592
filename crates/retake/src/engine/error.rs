//! Why an engine did not do what it was asked.

use chrono::{DateTime, Utc};

use crate::checkpoint::ConfigError;
use crate::store::{Seq, StoreError};
use crate::workflow::{ExpressionError, InputError, StoredDefinitionError, WorkflowError};

/// Why an engine did not do what it was asked. Nothing was changed, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The store hands no executions out to workers.
    #[error("this store has no queue for workers")]
    NoQueue,

    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The stored workflow does not hold together.
    #[error(transparent)]
    Workflow(#[from] WorkflowError),

    /// The stored workflow cannot be read.
    #[error(transparent)]
    StoredDefinition(#[from] StoredDefinitionError),

    /// The workflow's checkpoints cannot be made.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// An input is missing, unknown or of the wrong type.
    #[error(transparent)]
    Input(#[from] InputError),

    /// A variable's first value cannot be computed.
    #[error("variable `{name}` has no first value")]
    Variable {
        /// The variable.
        name: String,
        /// Why.
        #[source]
        source: ExpressionError,
    },

    /// A value that would be saved holds a secret. The secret itself is not repeated.
    #[error("{what} holds the value of the secret `{name}`, and would be saved")]
    Secret {
        /// What was given.
        what: String,
        /// The secret's name.
        name: String,
    },

    /// Nobody can do a node's work here.
    #[error("node `{node}` cannot run: this program has no handler for {missing}")]
    NoHandler {
        /// The node.
        node: String,
        /// What is missing.
        missing: String,
    },

    /// The execution has a history, but no workflow to run: another program keeps its checkpoints here.
    #[error("execution `{name}` has no workflow: another program keeps its checkpoints here")]
    NoDefinition {
        /// The execution's name.
        name: String,
    },

    /// The execution was cancelled. Undo that first.
    #[error("execution `{name}` was cancelled")]
    Cancelled {
        /// The execution's name.
        name: String,
    },

    /// Nodes with an effect outside were in flight when the execution stopped: the effect may have happened. Look
    /// outside, by idempotency key, then say which to run again.
    #[error("{} may have taken effect before the execution stopped", list(nodes))]
    Interrupted {
        /// The nodes, with the idempotency key of each.
        nodes: Vec<(String, String)>,
    },

    /// Nodes with an effect outside would run again, or be forgotten.
    #[error("going back would forget what cannot be undone: {}", nodes.join(", "))]
    Irreversible {
        /// The nodes.
        nodes: Vec<String>,
    },

    /// Results would stand again whose effects were compensated since.
    #[error("going back would bring back what was compensated: {}", nodes.join(", "))]
    Compensated {
        /// The nodes.
        nodes: Vec<String>,
    },

    /// Counter-actions were in flight when the execution stopped: they may have happened. Look outside, by idempotency
    /// key, then say which to run again.
    #[error("the compensation of {} may have happened before the execution stopped", list(nodes))]
    InterruptedCompensation {
        /// The nodes, with the idempotency key of each one's counter-action.
        nodes: Vec<(String, String)>,
    },

    /// A counter-action needs the state that had the effect, and that was pruned.
    #[error("the compensation of `{node}` needs the state at @{seq}, which was pruned")]
    NothingToCompensateFrom {
        /// The node.
        node: String,
        /// The point.
        seq: Seq,
    },

    /// No compensation of the node is to be run, so that none can be left out.
    #[error("execution `{name}` has no compensation of `{node}` to run")]
    NothingToCompensate {
        /// The execution's name.
        name: String,
        /// The node.
        node: String,
    },

    /// A selective rollback names what neither the head nor the point has.
    #[error("nothing to roll back: {what} `{name}` is neither at the head nor at @{target}")]
    NothingThere {
        /// `variable` or `node`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The point.
        target: Seq,
    },

    /// What nodes appended to a variable does not fit what would be left of it.
    #[error(
        "variable `{variable}` cannot be worked out anew: what was appended to it does not fit what is left"
    )]
    Misfit {
        /// The variable.
        variable: String,
    },

    /// A node is to be marked as done that is done.
    #[error("node `{node}` is done already")]
    HasOutput {
        /// The node.
        node: String,
    },

    /// The output of a `set` node is to be replaced by one that lacks a variable which the node sets.
    #[error(
        "the output of node `{node}` sets variables, and lacks `{variable}`: give an object with all of them"
    )]
    LacksVariable {
        /// The node.
        node: String,
        /// The variable.
        variable: String,
    },

    /// A node's output is to be replaced, and it has none.
    #[error("node `{node}` has no output that could be replaced: it is {found}")]
    HasNoOutput {
        /// The node.
        node: String,
        /// How it stands.
        found: &'static str,
    },

    /// The node does not wait for an approval.
    #[error("node `{node}` of execution `{name}` does not wait for an approval: it is {found}")]
    NotWaiting {
        /// The execution's name.
        name: String,
        /// The node.
        node: String,
        /// How it stands.
        found: &'static str,
    },

    /// The workflow has no such node.
    #[error("the workflow of execution `{name}` has no node `{node}`")]
    NoNode {
        /// The execution's name.
        name: String,
        /// The node.
        node: String,
    },

    /// There is nothing to take back, or to do again.
    #[error("execution `{name}` has nothing to {verb}")]
    NothingTo {
        /// The execution's name.
        name: String,
        /// `undo` or `redo`.
        verb: &'static str,
    },

    /// The execution has ended: it cannot be paused or cancelled, and waits for no decision.
    #[error("execution `{name}` has ended: it is {found}")]
    Ended {
        /// The execution's name.
        name: String,
        /// How it stands.
        found: &'static str,
    },

    /// The nodes in flight did not end in time. The execution pauses when they do.
    #[error(
        "execution `{name}` still runs after {waited_s} seconds: it pauses when the nodes in flight have ended"
    )]
    StillRunning {
        /// The execution's name.
        name: String,
        /// How long was waited.
        waited_s: u64,
    },

    /// Somebody rejected an approval. Undo that first.
    #[error("execution `{name}` does not go on: `{node}` was rejected")]
    Rejected {
        /// The execution's name.
        name: String,
        /// The approval.
        node: String,
    },

    /// Whoever holds the lease did not answer in time, and has not renewed it: it may have died. The request was taken
    /// back; when the lease has ended, nobody is asked.
    #[error(
        "the process that advances execution `{name}` did not answer within {waited_s} seconds, and its lease holds until {until}"
    )]
    Silent {
        /// The execution's name.
        name: String,
        /// How long was waited.
        waited_s: u64,
        /// When the lease ends unless it is renewed.
        until: DateTime<Utc>,
    },

    /// Whoever holds the lease did not answer in time. The request was taken back.
    #[error("the process that advances execution `{name}` did not answer within {waited_s} seconds")]
    NoAnswer {
        /// The execution's name.
        name: String,
        /// How long was waited.
        waited_s: u64,
    },
}

fn list(nodes: &[(String, String)]) -> String {
    nodes.iter().map(|(name, key)| format!("`{name}` (idempotency key {key})")).collect::<Vec<_>>().join(", ")
}
