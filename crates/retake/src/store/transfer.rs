//! Taking executions from one store to another, whole.
//!
//! ```text
//! source ──export──▶ history ──import, one transaction──▶ target ──export──▶ history: the same?
//! ```
//!
//! What is there already and is the same is left alone, so that a transfer which died goes on when it is tried again. A
//! history that is there and is another is never touched.

use std::collections::HashMap;

use super::{Conflict, ExecutionRecord, History, Seq, Store, StoreError};
use crate::execution::ExecutionId;

/// Whether a transfer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMode {
    /// Say what it would do.
    Look,
    /// Do it.
    Write,
}

/// What became of an execution that was to be taken to another store.
#[derive(Debug, Clone, PartialEq)]
pub struct Transferred {
    /// The execution, as it was taken out of the source. Nobody holds its lease in the target.
    pub execution: ExecutionRecord,
    /// How many points it has.
    pub points: u64,
    /// How many operations it has.
    pub operations: u64,
    /// What the source's history has for [`History::checksum`].
    pub checksum: [u8; 32],
    /// What became of it.
    pub fate: TransferFate,
}

/// What became of an execution that was to be taken to another store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferFate {
    /// It was not in the target, and now is, or would be. What was read back is what was taken out.
    Copied,
    /// The same is in the target.
    Same,
    /// It has gone on in the target from where it is in the source.
    Ahead {
        /// Its head there.
        head: Seq,
    },
    /// The target has an older part of it, and keeps that.
    Behind {
        /// Its head there.
        head: Seq,
    },
    /// The target has a history under its id that is another, and keeps that.
    Differs {
        /// Its head there.
        head: Seq,
    },
    /// In the target its name, or an id of it, belongs to something else.
    Taken(Conflict),
}

/// Why an execution was not taken to another store.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// It could not be read out of the source.
    #[error("it cannot be taken out of its store")]
    Source(#[source] StoreError),

    /// The target could not be read or written. It may be there, whole, or not.
    #[error("it cannot be put into the other store")]
    Target(#[source] StoreError),

    /// What was read back from the target is not what was written there. It is left there, to be looked at.
    #[error("what was read back from the other store is not what was put there")]
    NotTheSame {
        /// What the source's history has for [`History::checksum`].
        source_checksum: [u8; 32],
        /// What the target's has.
        target_checksum: [u8; 32],
    },
}

/// Takes an execution from one store to another, with its whole history, and reads it back to be sure.
///
/// It is taken out as one consistent view, also while somebody advances it, and put there in one step. Trying again after
/// any error is safe. Holds one history in memory, twice where it is compared.
///
/// # Errors
/// [`TransferError`].
pub async fn transfer(
    from: &dyn Store,
    to: &dyn Store,
    id: ExecutionId,
    mode: TransferMode,
) -> Result<Transferred, TransferError> {
    let history = from.export(id).await.map_err(TransferError::Source)?;
    let checksum = history.checksum().map_err(TransferError::Source)?;
    let (points, operations) = (history.points.len() as u64, history.operations.len() as u64);
    let execution = history.execution.clone();
    let told = |fate| Transferred { execution, points, operations, checksum, fate };
    if let Some(there) = to.execution(id).await.map_err(TransferError::Target)? {
        let found = exported(to, id, &history).await?;
        let fate = if found.checksum().map_err(TransferError::Target)? == checksum {
            TransferFate::Same
        } else if is_part(&history, &found) {
            TransferFate::Ahead { head: there.head }
        } else if is_part(&found, &history) {
            TransferFate::Behind { head: there.head }
        } else {
            TransferFate::Differs { head: there.head }
        };
        return Ok(told(fate));
    }
    if mode == TransferMode::Look {
        let taken = taken(to, &history).await.map_err(TransferError::Target)?;
        return Ok(told(taken.map_or(TransferFate::Copied, TransferFate::Taken)));
    }
    let blank = definitions_not_given(&history);
    match to.import(history).await {
        Ok(()) => {}
        Err(StoreError::Conflict(conflict @ (Conflict::NameTaken(_) | Conflict::IdTaken(_)))) => {
            return Ok(told(TransferFate::Taken(conflict)));
        }
        Err(error) => return Err(TransferError::Target(error)),
    }
    let mut back = to.export(id).await.map_err(TransferError::Target)?;
    blank.apply(&mut back);
    let target_checksum = back.checksum().map_err(TransferError::Target)?;
    if target_checksum != checksum {
        return Err(TransferError::NotTheSame { source_checksum: checksum, target_checksum });
    }
    Ok(told(TransferFate::Copied))
}

/// Reads a history out of the target to be compared with the source's.
async fn exported(to: &dyn Store, id: ExecutionId, source: &History) -> Result<History, TransferError> {
    let mut found = to.export(id).await.map_err(TransferError::Target)?;
    definitions_not_given(source).apply(&mut found);
    Ok(found)
}

/// Workflows that came without a definition: a target may have one from elsewhere, and keeps it.
struct NotGiven(Vec<crate::execution::WorkflowId>);

fn definitions_not_given(history: &History) -> NotGiven {
    let blank = history.workflows.iter().filter(|workflow| workflow.definition.is_empty());
    NotGiven(blank.map(|workflow| workflow.id).collect())
}

impl NotGiven {
    fn apply(&self, history: &mut History) {
        let blank = history.workflows.iter_mut().filter(|workflow| self.0.contains(&workflow.id));
        blank.for_each(|workflow| workflow.definition.clear());
    }
}

/// Tells whether a history went on to become another one: what it has beyond the other's points was pruned there, and
/// what it did stands in the other's log.
fn is_part(older: &History, newer: &History) -> bool {
    let points: HashMap<Seq, _> =
        newer.points.iter().map(|point| (point.record.seq, &point.record)).collect();
    let is_kept = |record: &super::CheckpointRecord| match points.get(&record.seq) {
        Some(there) => there.id == record.id,
        None => record.seq < newer.execution.head,
    };
    let has_common = older.points.iter().any(|point| points.contains_key(&point.record.seq));
    older.execution.head <= newer.execution.head
        && has_common
        && older.points.iter().all(|point| is_kept(&point.record))
        && newer.operations.starts_with(&older.operations)
}

/// Tells what an import would be refused for.
async fn taken(to: &dyn Store, history: &History) -> Result<Option<Conflict>, StoreError> {
    let name = &history.execution.name;
    let filter = super::ExecutionFilter { address: Some(name.clone()), ..super::ExecutionFilter::default() };
    if to.executions(&filter).await?.iter().any(|there| there.name == *name) {
        return Ok(Some(Conflict::NameTaken(name.clone())));
    }
    for point in &history.points {
        if to.checkpoint(point.record.id).await?.is_some() {
            return Ok(Some(Conflict::IdTaken(point.record.id)));
        }
    }
    Ok(None)
}
