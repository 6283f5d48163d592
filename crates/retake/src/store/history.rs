//! The whole of an execution's history, as it moves from one store to another.
//!
//! A history says what was, and not how a store had laid it out: each point with what changed since an older one that is
//! there too. What it holds grows with what changed, not with the state times the points.

mod file;

use std::collections::{BTreeSet, HashMap, HashSet};

pub use file::{HISTORY_FILE_BYTES_MAX, HISTORY_FILE_VERSION, HISTORY_LINE_BYTES_MAX, HistoryFileError};

use super::delta::ImageChange;
use super::{
    CheckpointRecord, Delta, ExecutionRecord, Image, KeyChange, Op, OperationRecord, Seq, StoreError,
};
use crate::execution::WorkflowId;

/// An execution with all its points, apart from any store: what [`Store::export`](super::Store::export) gives and
/// [`Store::import`](super::Store::import) takes.
///
/// It has no lease, no fence and no requests: these are between processes and one store.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// The execution. Nobody holds its lease.
    pub execution: ExecutionRecord,
    /// The workflows that it ever ran, in the order of their ids.
    pub workflows: Vec<KeptWorkflow>,
    /// The points that have not been pruned, oldest first. The last one is the head.
    pub points: Vec<HistoryPoint>,
    /// The operation log, oldest first.
    pub operations: Vec<OperationRecord>,
}

/// A workflow as a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptWorkflow {
    /// Its id.
    pub id: WorkflowId,
    /// Its definition, opaque to the store. Empty where none was given.
    pub definition: Vec<u8>,
}

/// One point of a [`History`].
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryPoint {
    /// What the store knows of it. `compressed` asks the next store to compress as well; how many bytes that takes is
    /// for each store to say.
    pub record: CheckpointRecord,
    /// The older point of the same history that `delta` starts from. `None`: nothing.
    pub base: Option<Seq>,
    /// What changed since the base.
    pub delta: Delta,
}

impl History {
    /// Tells whether a store can take this history, and returns the state of each point.
    ///
    /// Costs what changed. Says nothing of what only a store knows, as whether a name is taken.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] with the path of what cannot be.
    pub fn states(&self) -> Result<Vec<Image>, StoreError> {
        self.check_points()?;
        self.check_head()?;
        self.check_workflows()?;
        self.check_operations()?;
        let mut images: HashMap<Seq, Image> = HashMap::new();
        let mut states = Vec::with_capacity(self.points.len());
        for point in &self.points {
            let seq = point.record.seq;
            let mut image = match point.base {
                None => Image::default(),
                Some(base) => images.get(&base).cloned().ok_or_else(|| {
                    refused(seq, format!("it builds on @{base}, which is not among the points before it"))
                })?,
            };
            if !point.delta.is_in_order() {
                return Err(refused(seq, "its changes are not one a key, in order of the keys"));
            }
            if let Err(error) = image.apply("its delta", &point.delta) {
                let StoreError::Corrupt { why, .. } = error else { return Err(error) };
                return Err(refused(seq, why));
            }
            images.insert(seq, image.clone());
            states.push(image);
        }
        Ok(states)
    }

    fn check_points(&self) -> Result<(), StoreError> {
        let mut before = 0;
        let mut ids = HashSet::new();
        for HistoryPoint { record, .. } in &self.points {
            let seq = record.seq;
            if seq <= before {
                return Err(refused(seq, format!("it comes after @{before}")));
            }
            if record.execution_id != self.execution.id {
                return Err(refused(seq, format!("it is of execution {}", record.execution_id)));
            }
            if let Some(parent) = record.parent.filter(|parent| !(1..seq).contains(parent)) {
                return Err(refused(seq, format!("@{parent} cannot precede it")));
            }
            if !ids.insert(record.id) {
                return Err(refused(seq, format!("its id {} is that of another point", record.id)));
            }
            before = seq;
        }
        Ok(())
    }

    fn check_head(&self) -> Result<(), StoreError> {
        let execution = &self.execution;
        let Some(HistoryPoint { record: head, .. }) = self.points.last() else {
            return Err(unstorable("the points", "there are none, and the head is the least"));
        };
        if head.seq != execution.head {
            let why = format!("it is @{}, and the newest point is @{}", execution.head, head.seq);
            return Err(unstorable("the head", why));
        }
        if (&execution.state, execution.updated_at, execution.spend)
            != (&head.state, head.created_at, head.spend)
            || execution.workflow_id != head.workflow_id
        {
            return Err(unstorable("the execution", "it does not stand as its head says"));
        }
        Ok(())
    }

    fn check_workflows(&self) -> Result<(), StoreError> {
        let mut kept = BTreeSet::new();
        for workflow in &self.workflows {
            if !kept.insert(workflow.id) {
                return Err(unstorable(format!("workflow {}", workflow.id), "it stands there twice"));
            }
        }
        match self.points.iter().find(|point| !kept.contains(&point.record.workflow_id)) {
            Some(HistoryPoint { record, .. }) => {
                Err(refused(record.seq, format!("its workflow {} is missing", record.workflow_id)))
            }
            None => Ok(()),
        }
    }

    fn check_operations(&self) -> Result<(), StoreError> {
        let mut last = 0;
        for OperationRecord { number, before, after, .. } in &self.operations {
            let refused = |why: String| Err(unstorable(format!("operation {number}"), why));
            if *number != last + 1 {
                return refused(format!("it stands where operation {} belongs", last + 1));
            }
            if before > after || *after > self.execution.head {
                return refused(format!(
                    "it leads from @{before} to @{after}, and the head is @{}",
                    self.execution.head
                ));
            }
            last = *number;
        }
        Ok(())
    }
}

/// Returns the delta that leads from one state to another. What goes on where it ended before is an append.
pub(super) fn delta_between(before: &Image, after: &Image) -> Delta {
    let change = |change| match change {
        ImageChange::Removed(key) => KeyChange { key: key.clone(), writer: None, op: Op::Remove },
        ImageChange::Set { key, before, after } => {
            let grown = before.filter(|before| {
                !before.pieces.is_empty()
                    && before.pieces.len() < after.pieces.len()
                    && before.pieces.iter().zip(&after.pieces).all(|(old, new)| old == new)
            });
            let op = match grown {
                Some(before) => Op::Append {
                    start: before.len,
                    pieces: after.pieces.iter().skip(before.pieces.len()).cloned().collect(),
                    len: after.len,
                },
                None => Op::Set { pieces: after.pieces.iter().cloned().collect(), len: after.len },
            };
            KeyChange { key: key.clone(), writer: after.writer, op }
        }
    };
    Delta::new(before.changes_to(after).map(change).collect())
}

fn refused(seq: Seq, why: impl Into<String>) -> StoreError {
    unstorable(format!("point @{seq}"), why)
}

fn unstorable(path: impl Into<String>, why: impl Into<String>) -> StoreError {
    StoreError::Unstorable { path: path.into(), why: why.into() }
}
