//! What an engine tells whoever watches a run.

use serde::Serialize;
use tokio::sync::mpsc;

use crate::execution::{ExecutionId, TokenUsage};
use crate::store::Seq;

/// One thing that happened in a run, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run began, or went on.
    Started {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// The newest point.
        head: Seq,
        /// Nodes of the workflow.
        nodes: usize,
        /// Nodes whose results are there already.
        reused: usize,
    },
    /// An attempt at a node began.
    NodeStarted {
        /// The node.
        node: String,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// A node says how far it is.
    NodeProgress {
        /// The node.
        node: String,
        /// What it says.
        text: String,
    },
    /// An attempt failed, and another follows.
    NodeRetry {
        /// The node.
        node: String,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// Why.
        error: String,
        /// Milliseconds until the next.
        delay_ms: u64,
    },
    /// A node ended.
    NodeFinished {
        /// The node.
        node: String,
        /// `success`, `failure` or `skipped`.
        status: &'static str,
        /// Milliseconds from start to end.
        duration_ms: u64,
        /// Tokens that it took, where it took any.
        tokens: Option<TokenUsage>,
        /// US dollars, as a decimal; `None` where not known or where nothing was bought.
        cost_usd: Option<String>,
        /// Why it failed.
        error: Option<String>,
    },
    /// A node that was to run again would have seen what it saw before: its earlier result stands.
    NodeSpared {
        /// The node.
        node: String,
    },
    /// A node waits for somebody's approval.
    Waiting {
        /// The node.
        node: String,
        /// What is asked.
        message: String,
    },
    /// An attempt at the counter-action against a node's effect began.
    CompensationStarted {
        /// The node.
        node: String,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// An attempt at a counter-action failed, and another follows.
    CompensationRetry {
        /// The node.
        node: String,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// Why.
        error: String,
        /// Milliseconds until the next.
        delay_ms: u64,
    },
    /// A counter-action ended.
    CompensationFinished {
        /// The node.
        node: String,
        /// `success` or `failure`.
        status: &'static str,
        /// Milliseconds from start to end.
        duration_ms: u64,
        /// Why it failed.
        error: Option<String>,
    },
    /// A checkpoint is durable.
    Checkpoint {
        /// Its number.
        seq: Seq,
        /// Its cause's kind.
        cause: &'static str,
        /// The nodes whose results it records.
        nodes: Vec<String>,
    },
}

/// How many events may wait for a slow watcher. Progress is then left out; the rest waits for the watcher.
const EVENTS_WAITING_MAX: usize = 4_096;

/// Where events go.
#[derive(Debug, Clone)]
pub(super) struct Events(Option<mpsc::Sender<Event>>);

impl Events {
    /// Returns a pair: where events go in, and where they come out.
    pub(super) fn watched() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
        (Self(Some(sender)), receiver)
    }

    /// Returns a place where events vanish.
    pub(super) fn unwatched() -> Self {
        Self(None)
    }

    /// Tells the watcher, waiting for one that is slow. `event` is not made where nobody watches.
    pub(super) async fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(sender) = &self.0 {
            // A watcher that left is no reason to stop a run.
            let _left = sender.send(event()).await;
        }
    }

    /// Tells the watcher unless it is slow.
    pub(super) fn mention(&self, event: impl FnOnce() -> Event) {
        if let Some(sender) = &self.0 {
            let _missed = sender.try_send(event());
        }
    }
}
