//! Creating an execution, and appending to its history.

use rusqlite::types::ToSqlOutput;

use super::Shared;
use super::body::{self, Body};
use super::chain;
use super::db::{self, Db};
use super::guard::{self, Guard};
use super::link;
use super::row::{self, CheckpointRow, ExecutionRow};
use super::workflow;
use super::writer::Aftermath;
use crate::checkpoint::CheckpointId;
use crate::execution::ExecutionId;
use crate::store::record::Place;
use crate::store::{
    CheckpointRecord, Conflict, ExecutionRecord, NewCheckpoint, NewExecution, NewOperation, NewWorkflow,
    Note, OperationRecord, Seq, StoreError,
};

/// A checkpoint whose delta has been encoded, which is not the writer's work.
#[derive(Debug)]
pub(super) struct Encoded {
    /// Without its delta, so that a large one is not held twice.
    checkpoint: NewCheckpoint,
    body: Body,
    /// What the point is said to take: nothing where nothing changed.
    size: usize,
}

impl Encoded {
    /// Encodes a checkpoint that is to be the point `seq` of an execution.
    pub(super) fn new(
        guard: &Guard,
        execution: ExecutionId,
        seq: Seq,
        mut checkpoint: NewCheckpoint,
    ) -> Result<Self, StoreError> {
        let level = checkpoint.compress.then_some(body::SMALL);
        let delta = std::mem::take(&mut checkpoint.delta);
        let body = chain::encoded(guard, (execution, seq), &delta, level)?;
        let size = if delta.is_empty() { 0 } else { body.bytes.len() };
        Ok(Self { checkpoint, body, size })
    }
}

/// Creates an execution with its first checkpoint.
pub(super) fn create(
    db: &Db,
    new: &NewExecution,
    first: &Encoded,
    after: &mut Aftermath,
) -> Result<CheckpointRecord, StoreError> {
    guard::check_current(db)?;
    if ExecutionRow::by_id(db, new.id)?.is_some() {
        return Err(Conflict::IdTaken(new.id).into());
    }
    if is_named(db, &new.name)? {
        return Err(Conflict::NameTaken(new.name.clone()).into());
    }
    if let Some(seq) = first.checkpoint.parent.or(first.checkpoint.base) {
        return Err(StoreError::NoPoint { execution: new.id, seq, head: 0 });
    }
    let base = match new.origin {
        Some(origin) => Some(ExecutionRow::require(db, origin.execution_id)?.point(db, origin.seq)?.delta),
        None => None,
    };
    let mut execution = ExecutionRow {
        key: db.number("SELECT coalesce(max(key), 0) + 1 FROM executions", [])?.unwrap_or(1),
        record: ExecutionRecord {
            id: new.id,
            name: new.name.clone(),
            workflow_id: new.workflow_id,
            workflow_name: new.workflow_name.clone(),
            state: first.checkpoint.state.clone(),
            head: 0,
            created_at: first.checkpoint.created_at,
            updated_at: first.checkpoint.created_at,
            spend: first.checkpoint.spend,
            origin: new.origin,
            leased_by: None,
        },
        fence: 0,
        holder: None,
        weight: 0,
        floor: chain::FLOOR_MIN,
        slack: 0,
        slack_max: chain::FLOOR_MIN,
        link: link::start(new.id),
        log_link: link::start(new.id),
    };
    execution.insert(db)?;
    let workflow = NewWorkflow {
        id: new.workflow_id,
        name: new.workflow_name.clone(),
        definition: new.definition.clone(),
    };
    workflow::adopt(db, &mut execution, &workflow)?;
    if let Some(base) = base {
        let reach = chain::reach(db, base)?;
        (execution.weight, execution.floor) = (reach.weight, reach.floor);
    }
    append(db, &mut execution, None, base, first, after)
}

pub(super) fn is_named(db: &Db, name: &str) -> Result<bool, StoreError> {
    let name = db.guard().name(name)?;
    let sql = "SELECT key FROM executions WHERE name = ?1";
    Ok(db.number(sql, [ToSqlOutput::Borrowed(name.value())])?.is_some())
}

/// A commit whose delta has been encoded.
#[derive(Debug)]
pub(super) struct EncodedCommit {
    pub(super) execution_id: ExecutionId,
    pub(super) expected_head: Seq,
    pub(super) fence: Option<u64>,
    pub(super) checkpoint: Encoded,
}

/// Appends a checkpoint, where the head and the fence are what the writer thinks.
pub(super) fn commit(
    db: &Db,
    shared: &Shared,
    commit: &EncodedCommit,
    after: &mut Aftermath,
) -> Result<CheckpointRecord, StoreError> {
    let mut execution = ExecutionRow::require(db, commit.execution_id)?;
    match commit.fence {
        Some(ours) => execution.check_fence(ours)?,
        None => shared.check_free(&execution)?,
    }
    let head = execution.record.head;
    if head != commit.expected_head {
        let (execution, expected) = (commit.execution_id, commit.expected_head);
        return Err(Conflict::HeadMoved { execution, expected, found: head }.into());
    }
    let checkpoint = &commit.checkpoint.checkpoint;
    let parent = checkpoint.parent.unwrap_or(head);
    let base_seq = checkpoint.base.unwrap_or(parent);
    if base_seq != parent {
        execution.point(db, parent)?;
    }
    let base = execution.point(db, base_seq)?.delta;
    if base_seq != head {
        let reach = chain::reach(db, base)?;
        (execution.weight, execution.floor) = (reach.weight, reach.floor);
    }
    append(db, &mut execution, Some(parent), Some(base), &commit.checkpoint, after)
}

/// Appends a checkpoint on a base whose weight the execution's row carries.
fn append(
    db: &Db,
    execution: &mut ExecutionRow,
    parent: Option<Seq>,
    base: Option<i64>,
    encoded: &Encoded,
    after: &mut Aftermath,
) -> Result<CheckpointRecord, StoreError> {
    let Encoded { checkpoint, body, size } = encoded;
    if is_taken(db, checkpoint.id)? {
        return Err(Conflict::IdTaken(checkpoint.id).into());
    }
    weigh(execution, base, body.bytes.len());
    // One of its own also where nothing changed: its key says when the point became durable.
    let delta = chain::insert(db, base, &body.bytes)?;
    after.bytes += body.bytes.len() as u64;
    if let Some(workflow) = &checkpoint.workflow {
        workflow::adopt(db, execution, workflow)?;
    }
    let before = execution.record.head;
    let ExecutionRecord { id: execution_id, workflow_id, .. } = execution.record;
    let place = Place { execution_id, workflow_id, seq: before + 1, parent };
    let record = checkpoint.record(place, *size as u64, body.compressed);
    CheckpointRow::insert(db, execution, delta, &record)?;
    if let Some(operation) = &checkpoint.operation {
        let (at, cause) = (record.created_at, record.cause.clone());
        log(db, execution, Note { at, cause, operation: operation.clone() }, (before, record.seq))?;
    }
    for request in &checkpoint.answers {
        withdraw(db, execution.key, *request)?;
    }
    execution.record.head = record.seq;
    execution.record.state = record.state.clone();
    execution.record.updated_at = record.created_at;
    execution.record.spend = checkpoint.spend;
    match checkpoint.workflow {
        Some(_) => execution.update_with_workflow(db)?,
        None => execution.update(db)?,
    }
    if execution.weight > execution.floor {
        after.keyframes.push(execution.key);
    }
    Ok(record)
}

/// Counts a delta that is added.
fn weigh(execution: &mut ExecutionRow, base: Option<i64>, length: usize) {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    if base.is_some() {
        execution.weight = execution.weight.saturating_add(length).saturating_add(chain::ROW_WEIGHT);
    } else {
        // A root is a whole state, as a keyframe is.
        (execution.weight, execution.floor) = (0, length.max(chain::FLOOR_MIN));
    }
}

fn is_taken(db: &Db, id: CheckpointId) -> Result<bool, StoreError> {
    Ok(db.number("SELECT seq FROM checkpoints WHERE id = ?1", [id.as_bytes()])?.is_some())
}

/// Writes an operation that makes no checkpoint into the log.
pub(super) fn note(db: &Db, id: ExecutionId, note: &Note) -> Result<OperationRecord, StoreError> {
    let mut execution = ExecutionRow::require(db, id)?;
    let head = execution.record.head;
    let operation = log(db, &mut execution, note.clone(), (head, head))?;
    execution.update(db)?;
    Ok(operation)
}

/// Writes an operation into the log, with the head before and after it. The execution's row is written by the caller.
fn log(
    db: &Db,
    execution: &mut ExecutionRow,
    note: Note,
    (before, after): (Seq, Seq),
) -> Result<OperationRecord, StoreError> {
    let last = db
        .first(
            "SELECT coalesce(max(number), 0) FROM operations WHERE execution = ?1",
            [execution.key],
            |_| "the newest operation".to_owned(),
            |row| db::count(row, 0),
        )?
        .unwrap_or(0);
    let Note { at, cause, operation: NewOperation { who, command } } = note;
    let operation = OperationRecord { number: last + 1, at, who, command, cause, before, after };
    row::insert_operation(db, execution, &operation)?;
    Ok(operation)
}

/// Removes a request. Returns false where there is none.
pub(super) fn withdraw(db: &Db, execution: i64, request: uuid::Uuid) -> Result<bool, StoreError> {
    let sql = "DELETE FROM requests WHERE id = ?1 AND execution = ?2";
    Ok(db.run(sql, (request.as_bytes(), execution))? > 0)
}
