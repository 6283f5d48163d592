//! What people can ask for: to go back, to change something, to go on with another workflow.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::workflow::Workflow;

/// How far to go back, and what to change on the way.
#[derive(Debug, Clone, Default)]
pub struct Rollback {
    /// What goes back.
    pub extent: Extent,
    /// The node for whose sake, where the point recorded several: what depends on the others stays.
    pub node: Option<String>,
    /// Variables to set then. Nodes that had read another value, and what depends on them, run again.
    pub set: BTreeMap<String, Value>,
    /// What to do about effects outside that would be forgotten.
    pub effects: Effects,
}

/// What of the state goes back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Extent {
    /// The nodes that the point recorded, with what these had been made from, and what depends on them, as far as it
    /// came later. Other branches keep what they gave, also what they gave later. Variables that people set later go
    /// back, and so do outputs that they edited.
    ///
    /// A point that recorded no node (the start, a pause, a rollback), and one that is not on the time line of the head
    /// any more, is gone back to as by [`Linear`](Self::Linear).
    #[default]
    Affected,
    /// Everything that came after the point.
    Linear,
    /// These variables and node results take the values that they had at the point, or go if they were not there.
    /// Everything else stays, even what was made from them: the plan names it.
    Only {
        /// Names of variables.
        variables: Vec<String>,
        /// Names of nodes.
        nodes: Vec<String>,
    },
}

/// What to do about nodes whose effect outside cannot be undone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effects {
    /// Do not go back.
    #[default]
    Refuse,
    /// Let them run again, under a new idempotency key.
    Again,
    /// Keep their results, so that they do not run again.
    Keep,
    /// Undo them by their nodes' counter-actions, before anything else runs. Effects without one are refused, and so are
    /// those that the origin of a fork had.
    Compensate,
}

/// What to change in the state at the head. What had seen something else, and what depends on it, runs again.
#[derive(Debug, Clone, Default)]
pub struct Edit {
    /// Variables to set.
    pub set: BTreeMap<String, Value>,
    /// Outputs to put in place of what nodes gave.
    pub outputs: BTreeMap<String, Value>,
    /// Nodes to mark as done that failed, were skipped or have not run: with the output in `outputs`, or null.
    pub done: BTreeSet<String>,
    /// What to do about effects outside that would be forgotten.
    pub effects: Effects,
}

/// Another workflow for an execution to go on with.
#[derive(Debug, Clone)]
pub struct Redefine {
    /// The workflow.
    pub workflow: Workflow,
    /// What to do about effects outside that would be forgotten.
    pub effects: Effects,
}
