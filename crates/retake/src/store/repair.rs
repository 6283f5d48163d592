//! What a repair of a damaged store found, kept and lost.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{KeptWorkflow, OperationRecord, Seq};
use crate::execution::{ExecutionId, NodeId, WorkflowId};

/// Whether a repair is only looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairMode {
    /// Say what it would do, and write nothing.
    Look,
    /// Put a sound store in the place of the damaged one, which stays beside it.
    Replace,
}

/// What a repair did, or would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Repair {
    /// What was wrong, one sentence each; empty for a sound store, which is left as it is.
    pub problems: Vec<String>,
    /// What is wrong with the log, whose last commits are lost with it; whose they are is not known.
    pub log_lost: Option<String>,
    /// Every execution of which there was a trace.
    pub executions: Vec<RepairedExecution>,
    /// Where the damaged file is now; `None` where it was not replaced.
    pub damaged: Option<PathBuf>,
}

/// What became of one execution.
#[derive(Debug, Clone, PartialEq)]
pub struct RepairedExecution {
    /// Its id; a new one where the old one could not be read.
    pub id: ExecutionId,
    /// Its name; one made of its id where the old one could not be read.
    pub name: String,
    /// Its own row.
    pub record: RecordFate,
    /// Its head.
    pub head: HeadFate,
    /// The points that are lost, oldest first. Where a page of the file is gone, points that had been pruned are among
    /// them.
    pub lost: Vec<Seq>,
    /// Those of the lost points of which it is not known what they recorded.
    pub unknown: Vec<Seq>,
    /// The nodes, by name, that the other lost points recorded or marked as started, in the order of their names.
    pub nodes: Vec<String>,
    /// The nodes that are done with at its head now.
    pub done: BTreeSet<NodeId>,
    /// What people did that went with the lost points, oldest first: it no longer holds.
    pub taken_back: Vec<OperationRecord>,
    /// How many entries of the operation log are lost.
    pub operations_lost: u64,
    /// Workflows that it ran whose definitions are lost.
    pub definitions_lost: Vec<WorkflowId>,
    /// The workflow that it runs.
    pub workflow: Option<KeptWorkflow>,
}

/// What became of what a store knows of an execution beside its points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFate {
    /// It was as it had been written.
    Intact,
    /// It was made again from the newest intact point.
    Rebuilt,
}

/// What became of an execution's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadFate {
    /// It is intact.
    Stands,
    /// It is lost: a new point has the state of the newest intact one.
    FellBack {
        /// The head that is lost.
        from: Seq,
        /// The newest intact point.
        to: Seq,
        /// The new head.
        head: Seq,
    },
    /// No point is intact: the execution is lost.
    Lost,
}

impl RepairedExecution {
    /// Tells whether nothing of it is lost.
    pub fn is_intact(&self) -> bool {
        self.record == RecordFate::Intact
            && self.head == HeadFate::Stands
            && self.lost.is_empty()
            && self.operations_lost == 0
            && self.definitions_lost.is_empty()
    }
}
