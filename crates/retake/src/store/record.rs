//! What stores keep about executions and checkpoints, beside their states.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Delta, StoreError};
use crate::checkpoint::CheckpointId;
use crate::execution::{ExecutionId, ExecutionState, Spend, WorkflowId, check_value, dismantle};

/// The number of a checkpoint in its execution's history: `@1` is the start, and every new one is the next.
pub type Seq = u64;

/// An execution that is to be created.
#[derive(Debug, Clone)]
pub struct NewExecution {
    /// Its id.
    pub id: ExecutionId,
    /// Its readable name, of which a store holds only one.
    pub name: String,
    /// The workflow's id.
    pub workflow_id: WorkflowId,
    /// The workflow's name.
    pub workflow_name: String,
    /// The workflow's definition, opaque to the store and kept once for all executions of it. May be empty.
    pub definition: Vec<u8>,
    /// Where it was forked from.
    pub origin: Option<Origin>,
}

/// The point that a fork began at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The point in its history.
    pub seq: Seq,
}

/// A workflow that an execution is to run from some checkpoint on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWorkflow {
    /// Its id.
    pub id: WorkflowId,
    /// Its name.
    pub name: String,
    /// Its definition, opaque to the store and kept once for all executions of it. May be empty.
    pub definition: Vec<u8>,
}

/// A checkpoint that is to be committed.
#[derive(Debug, Clone)]
pub struct NewCheckpoint {
    /// Its id.
    pub id: CheckpointId,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// The point that precedes this one on the time line. `None`: the head; for the first checkpoint of an execution
    /// there is none.
    pub parent: Option<Seq>,
    /// The point whose state `delta` starts from. `None`: the parent; for the first checkpoint of an execution its
    /// origin's point, or nothing. Another one is of use where that makes the delta smaller: a rollback of one branch
    /// follows the point gone back to, and still shares the head's other branches.
    pub base: Option<Seq>,
    /// What changed since the base.
    pub delta: Delta,
    /// How the execution stands then.
    pub state: ExecutionState,
    /// Why it was made.
    pub cause: Cause,
    /// The nodes whose results it records, by name: those that ended since the parent.
    pub nodes: Vec<String>,
    /// A name to find it by.
    pub label: Option<String>,
    /// How many nodes are done with then.
    pub completed_node_count: u64,
    /// What the execution has cost by then.
    pub spend: Spend,
    /// Whether to compress what is stored.
    pub compress: bool,
    /// The workflow that the execution runs from this point on. `None`: the one that it runs already.
    pub workflow: Option<NewWorkflow>,
    /// The operation of a person that this is, for the operation log.
    pub operation: Option<NewOperation>,
    /// Requests that this answers; they are removed in the same transaction.
    pub answers: Vec<Uuid>,
}

impl NewCheckpoint {
    /// Returns a checkpoint that follows the head and changes nothing, to be filled in.
    pub fn new(id: CheckpointId, created_at: DateTime<Utc>, state: ExecutionState, cause: Cause) -> Self {
        Self {
            id,
            created_at,
            parent: None,
            base: None,
            delta: Delta::default(),
            state,
            cause,
            nodes: Vec::new(),
            label: None,
            completed_node_count: 0,
            spend: Spend::default(),
            compress: false,
            workflow: None,
            operation: None,
            answers: Vec::new(),
        }
    }

    /// Returns what a store that keeps it knows of it: where it stands, and what it takes there.
    pub(super) fn record(&self, place: Place, size_bytes: u64, compressed: bool) -> CheckpointRecord {
        CheckpointRecord {
            execution_id: place.execution_id,
            workflow_id: self.workflow.as_ref().map_or(place.workflow_id, |workflow| workflow.id),
            seq: place.seq,
            id: self.id,
            parent: place.parent,
            created_at: self.created_at,
            cause: self.cause.clone(),
            nodes: self.nodes.clone(),
            label: self.label.clone(),
            state: self.state.clone(),
            completed_node_count: self.completed_node_count,
            spend: self.spend,
            size_bytes,
            compressed,
        }
    }
}

/// Where a checkpoint stands in a store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) execution_id: ExecutionId,
    /// The workflow that the execution runs, unless the checkpoint names another.
    pub(super) workflow_id: WorkflowId,
    pub(super) seq: Seq,
    pub(super) parent: Option<Seq>,
}

/// One checkpoint to append to an execution's history.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The head that the writer built on.
    pub expected_head: Seq,
    /// The writer's fence. `None` writes without a lease, and is refused while somebody holds one.
    pub fence: Option<u64>,
    /// The checkpoint.
    pub checkpoint: NewCheckpoint,
}

/// Why a checkpoint was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The execution began.
    Start,
    /// Nodes finished.
    Nodes,
    /// The interval passed.
    Interval,
    /// A node of a named kind was about to start.
    Before {
        /// Its name.
        node: String,
    },
    /// A node that took long finished.
    LongNode {
        /// Its name.
        node: String,
    },
    /// A node with an effect outside was about to start: the mark that it may have happened.
    Started {
        /// Its name.
        node: String,
    },
    /// An attempt at a node failed, and the next is due later.
    Retry {
        /// Its name.
        node: String,
    },
    /// Somebody asked for it.
    Manual,
    /// A `CheckpointStorage` saved it.
    Save,
    /// The execution was paused, or waits for somebody.
    Pause,
    /// The execution went on.
    Resume,
    /// The execution ended: completed or failed.
    Finish,
    /// The execution was cancelled.
    Cancel,
    /// Somebody decided an approval.
    Approve {
        /// The node.
        node: String,
        /// Whether it was approved.
        approved: bool,
    },
    /// The state of an older point, wholly or in part, became the head.
    Rollback {
        /// The point.
        to: Seq,
    },
    /// An operation was taken back.
    Undo {
        /// Its number in the operation log.
        operation: u64,
    },
    /// An operation that had been taken back was done again.
    Redo {
        /// Its number in the operation log.
        operation: u64,
    },
    /// Somebody changed the state.
    Edit,
    /// The counter-action against a node's effect outside was about to start, succeeded or failed.
    Compensate {
        /// The node that had the effect.
        node: String,
    },
    /// The execution began as a fork.
    Fork {
        /// Where.
        origin: Origin,
    },
    /// The store was damaged and repaired: the newest intact point became the head, or points were lost behind it.
    Repair {
        /// The head that was.
        from: Seq,
        /// The points that were lost, oldest first; the newest 1,000 of them.
        lost: Vec<Seq>,
    },
    /// Somebody removed old checkpoints. It makes no checkpoint.
    Prune {
        /// How many.
        removed: u64,
    },
}

impl Cause {
    /// Tells whether a worker is to look at the execution again: somebody has decided what it waits for.
    pub(super) fn is_decision(&self) -> bool {
        matches!(self, Self::Approve { .. } | Self::Cancel)
    }

    /// Returns the `kind` that the JSON form carries.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Nodes => "nodes",
            Self::Interval => "interval",
            Self::Before { .. } => "before",
            Self::LongNode { .. } => "long_node",
            Self::Started { .. } => "started",
            Self::Retry { .. } => "retry",
            Self::Manual => "manual",
            Self::Save => "save",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Finish => "finish",
            Self::Cancel => "cancel",
            Self::Approve { .. } => "approve",
            Self::Rollback { .. } => "rollback",
            Self::Undo { .. } => "undo",
            Self::Redo { .. } => "redo",
            Self::Edit => "edit",
            Self::Compensate { .. } => "compensate",
            Self::Fork { .. } => "fork",
            Self::Repair { .. } => "repair",
            Self::Prune { .. } => "prune",
        }
    }
}

/// Who did something, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOperation {
    /// Who: the operating system's user, or a token's name.
    pub who: String,
    /// The command, as it was given.
    pub command: String,
}

/// An operation that makes no checkpoint.
#[derive(Debug, Clone)]
pub struct Note {
    /// When it was done.
    pub at: DateTime<Utc>,
    /// What it was.
    pub cause: Cause,
    /// Who did it, and how.
    pub operation: NewOperation,
}

/// One entry of the operation log: something that a person did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its number in the execution's log, from 1.
    pub number: u64,
    /// When it was done.
    pub at: DateTime<Utc>,
    /// Who did it.
    pub who: String,
    /// The command, as it was given.
    pub command: String,
    /// What it was.
    pub cause: Cause,
    /// The head before.
    pub before: Seq,
    /// The head after: the checkpoint that it made, or the same where it made none.
    pub after: Seq,
}

/// What a store knows of an execution.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutionRecord {
    /// Its id.
    pub id: ExecutionId,
    /// Its readable name.
    pub name: String,
    /// The id of the workflow that it runs.
    pub workflow_id: WorkflowId,
    /// That workflow's name.
    pub workflow_name: String,
    /// How it stood at the head.
    pub state: ExecutionState,
    /// The newest point.
    pub head: Seq,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When its head last moved.
    pub updated_at: DateTime<Utc>,
    /// What it has cost so far, as its head says.
    pub spend: Spend,
    /// Where it was forked from.
    pub origin: Option<Origin>,
    /// Who is advancing it now.
    pub leased_by: Option<String>,
}

/// What a store knows of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRecord {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The workflow that the execution ran then.
    pub workflow_id: WorkflowId,
    /// Its number in the history.
    pub seq: Seq,
    /// Its id.
    pub id: CheckpointId,
    /// The point that precedes it on the time line; it may have been pruned since. `None` for the first.
    pub parent: Option<Seq>,
    /// When it was made. Order is decided by `seq`, never by this.
    pub created_at: DateTime<Utc>,
    /// Why it was made.
    pub cause: Cause,
    /// The nodes whose results it records, by name: those that ended since the parent.
    pub nodes: Vec<String>,
    /// A name to find it by.
    pub label: Option<String>,
    /// How the execution stood.
    pub state: ExecutionState,
    /// How many nodes were done with.
    pub completed_node_count: u64,
    /// What the execution had cost by then.
    pub spend: Spend,
    /// Bytes that were stored for it: what changed, encoded and compressed.
    pub size_bytes: u64,
    /// Whether those bytes are compressed.
    pub compressed: bool,
}

/// Which executions to list.
#[derive(Debug, Clone, Default)]
pub struct ExecutionFilter {
    /// Only those that stand so, by [`ExecutionState::name`].
    pub state: Option<String>,
    /// Only the one with this name, or those whose id, written with or without hyphens, begins so.
    pub address: Option<String>,
    /// Only forks of this one, which itself may be gone.
    pub origin: Option<ExecutionId>,
    /// At most so many; `None` for all.
    pub limit: Option<usize>,
}

/// A page of a history, newest first.
#[derive(Debug, Clone, Copy, Default)]
pub struct HistoryPage {
    /// Only points before this one.
    pub before: Option<Seq>,
    /// At most so many; `None` for all.
    pub limit: Option<usize>,
}

/// The exclusive, expiring right to advance an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The number that every write must carry. It grows with every lease.
    pub fence: u64,
    /// How long it holds after it was taken or renewed.
    pub ttl: Duration,
}

/// Something that a person asks of the process that holds the lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: Uuid,
    /// What is asked.
    pub ask: Ask,
    /// Who asks, and how.
    pub operation: NewOperation,
}

impl Request {
    /// Returns the request where what comes with it can be stored.
    pub(super) fn checked(self) -> Result<Self, StoreError> {
        let Ask::Approve { node, with, .. } = &self.ask else { return Ok(self) };
        let Err(refused) = check_value(&format!("nodes.{node}.output"), with) else { return Ok(self) };
        if let Ask::Approve { with, .. } = self.ask {
            dismantle(with);
        }
        Err(refused.into())
    }
}

/// What can be asked of a running execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ask {
    /// Finish the nodes that run, save, and stop.
    Pause,
    /// End the nodes that run, save, and end the execution.
    Cancel,
    /// Save now, under a label.
    Checkpoint {
        /// The label.
        label: Option<String>,
    },
    /// Decide an approval.
    Approve {
        /// The node.
        node: String,
        /// Whether it is approved.
        approved: bool,
        /// What the approver adds; it becomes part of the node's output.
        with: Value,
    },
}

/// What a look at every record of a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Executions looked at.
    pub executions: u64,
    /// Checkpoints looked at.
    pub checkpoints: u64,
    /// Bytes of states and records looked at.
    pub bytes: u64,
    /// What is wrong, one sentence each; empty for a sound store.
    pub problems: Vec<String>,
}

/// How many writes shared how many transactions since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Writes that were answered.
    pub writes: u64,
    /// Transactions that they took, each one flush of the disk.
    pub transactions: u64,
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
/// Where the hyphens of a UUID stand.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

#[cfg(any(feature = "sqlite", feature = "postgres"))]
/// Returns the least and the greatest id that begins so, if one can.
pub(super) fn ids_beginning(address: &str) -> Option<([u8; 16], [u8; 16])> {
    let hyphens: Vec<usize> = address.match_indices('-').map(|(at, _)| at).collect();
    let is_hyphenated = HYPHENS.iter().filter(|at| **at < address.len()).eq(&hyphens);
    let digits = address.replace('-', "");
    let is_hex = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if !(hyphens.is_empty() || is_hyphenated) || !is_hex || digits.len() > 32 {
        return None;
    }
    let filled = |fill: &str| {
        let digits = format!("{digits}{}", fill.repeat(32 - digits.len()));
        u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
    };
    Some((filled("0")?, filled("f")?))
}

#[cfg(all(test, any(feature = "sqlite", feature = "postgres")))]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_is_a_range_of_ids_with_hyphens_or_without() {
        let (least, most) = ids_beginning("0a-").unzip();
        assert_eq!((least, most), (None, None));
        let (least, most) = ids_beginning("0198c5a2-7b").unwrap();
        assert_eq!((least[5], most[5]), (0x00, 0xff));
        assert_eq!((least[4], most[4]), (0x7b, 0x7b));
        assert_eq!(ids_beginning("0198c5a27b"), Some((least, most)));
        assert_eq!(ids_beginning("brave-otter"), None);
        assert_eq!(ids_beginning(&"0".repeat(33)), None);
    }
}
