//! How a run is stopped from outside, and how it says that it ended.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::execution::{ExecutionId, ExecutionState, Spend};
use crate::store::{NewOperation, Seq};

/// Asks a run to stop. Cheap to copy and to send.
#[derive(Debug, Clone)]
pub struct Control(mpsc::UnboundedSender<Signal>);

/// What a [`Control`] sends.
#[derive(Debug)]
pub(super) enum Signal {
    Stop { stop: StopKind, operation: Option<NewOperation> },
    HandOver(HandOver),
}

/// How a run is given up for others to go on with; a later one is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HandOver {
    /// Let the nodes that run finish.
    Finish,
    /// End the nodes that run; they will run again.
    Now,
}

/// How a run is to stop; a later one is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StopKind {
    /// Let the nodes that run finish.
    Pause,
    /// End the nodes that run; they will run again.
    Interrupt,
    /// End the nodes that run, and the execution.
    Cancel,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The execution.
    pub execution: ExecutionId,
    /// Its readable name.
    pub name: String,
    /// How it stands now.
    pub state: ExecutionState,
    /// The newest point.
    pub head: Seq,
    /// Nodes that ran to an end this time.
    pub nodes_run: usize,
    /// Nodes whose results were there already.
    pub nodes_reused: usize,
    /// Nodes that were to run again, and whose earlier results stand because they would have seen what they saw then.
    pub nodes_spared: usize,
    /// What the execution has cost so far, and what was not paid again.
    pub spend: Spend,
    /// US dollars spent this time, as a decimal; `None` where not known or where nothing was bought.
    pub cost_usd: Option<String>,
    /// When it goes on by itself, where nothing was left but waiting and a worker gave it back to the queue.
    pub until: Option<DateTime<Utc>>,
    /// Nodes that wait for somebody's approval.
    pub waiting: Vec<String>,
    /// Nodes that failed, and why.
    pub failures: Vec<(String, String)>,
    /// The node whose compensation failed, and why. Nothing has run after that.
    pub uncompensated: Option<(String, String)>,
}

impl Control {
    /// Returns a handle, and where its signals come out.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Signal>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Lets the nodes that run finish, saves, and stops.
    pub fn pause(&self, operation: Option<NewOperation>) {
        self.send(StopKind::Pause, operation);
    }

    /// Ends the nodes that run, saves what others gave, and stops. They run again on resume.
    pub fn interrupt(&self, operation: Option<NewOperation>) {
        self.send(StopKind::Interrupt, operation);
    }

    /// Ends the nodes that run, and the execution.
    pub fn cancel(&self, operation: Option<NewOperation>) {
        self.send(StopKind::Cancel, operation);
    }

    /// Lets others go on with the execution, which stands as it does: it is nobody's wish that it stops.
    pub(super) fn hand_over(&self, how: HandOver) {
        let _ended = self.0.send(Signal::HandOver(how));
    }

    fn send(&self, stop: StopKind, operation: Option<NewOperation>) {
        // A run that has ended needs no stopping.
        let _ended = self.0.send(Signal::Stop { stop, operation });
    }
}
