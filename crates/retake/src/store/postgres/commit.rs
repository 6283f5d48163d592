//! Appending to a history: what is to be written, and what a refusal means.

use std::sync::Arc;

use bytes::Bytes;
use tokio_postgres::Row;

use super::Shared;
use super::aside::aside;
use super::batch::Outcome;
use super::chain::{self, Reader};
use super::execution::{EXECUTION_COLUMNS, ExecutionRow, Log, Standing, execution_columns};
use super::known::{Known, Reach};
use super::outage::Outage;
use super::row::{self, Checksum, Operation, Point, damaged};
use super::write::{Adoption, NewDelta, NewOperation, Write};
use crate::execution::ExecutionId;
use crate::store::load::{FLOOR_MIN, ROW_WEIGHT};
use crate::store::record::Place;
use crate::store::{
    CheckpointRecord, Commit, Conflict, NewCheckpoint, OperationRecord, Seq, StoreError, body, column,
};

/// How often a commit looks again where what it found when it looked is not what the server found.
const ATTEMPTS_MAX: usize = 64;

/// A commit whose delta has been encoded.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) execution_id: ExecutionId,
    pub(super) expected_head: Seq,
    pub(super) fence: Option<u64>,
    pub(super) checkpoint: NewCheckpoint,
    /// `None` for an empty delta.
    pub(super) body: Option<Bytes>,
    pub(super) compressed: bool,
}

impl Draft {
    /// Encodes the delta of a commit, on another thread where it is large.
    pub(super) async fn made(shared: &Shared, commit: Commit) -> Result<Self, StoreError> {
        let bytes = commit.checkpoint.delta.bytes();
        aside(shared.db.location(), bytes, || Self::new(commit)).await
    }

    fn new(commit: Commit) -> Result<Self, StoreError> {
        let Commit { execution_id, expected_head, fence, mut checkpoint } = commit;
        let level = checkpoint.compress.then_some(body::SMALL);
        let delta = std::mem::take(&mut checkpoint.delta);
        let body = match delta.is_empty() {
            true => None,
            false => Some(chain::encoded(&delta, level)?),
        };
        Ok(Self {
            execution_id,
            expected_head,
            fence,
            checkpoint,
            compressed: body.as_ref().is_some_and(|body| body.compressed),
            body: body.map(|body| Bytes::from(body.bytes)),
        })
    }

    fn parent(&self) -> Seq {
        self.checkpoint.parent.unwrap_or(self.expected_head)
    }

    fn base(&self) -> Seq {
        self.checkpoint.base.unwrap_or(self.parent())
    }

    /// Tells whether it follows the head, and starts from its state: what is known of the head is enough then.
    fn goes_on(&self) -> bool {
        (self.parent(), self.base()) == (self.expected_head, self.expected_head)
    }
}

/// What a commit builds on.
#[derive(Debug)]
struct Ground {
    known: Known,
    /// The delta that the point starts from, and what is to be read for its state.
    base: (i64, Reach),
    /// How often points had been removed, where it builds on one that might be.
    prunings: Option<i64>,
}

impl Ground {
    fn of_the_head(known: Known) -> Self {
        Self { base: (known.delta, known.reach), prunings: None, known }
    }
}

/// Appends a checkpoint, where the head and the fence are what the writer thinks.
///
/// Where the connection is lost, it finds out by the checkpoint's id whether it was done, and does it if not.
pub(super) async fn commit(shared: &Arc<Shared>, commit: Commit) -> Result<CheckpointRecord, StoreError> {
    let draft = Draft::made(shared, commit).await?;
    let mut outage = Outage::new(shared.db.options());
    for _ in 0..ATTEMPTS_MAX {
        let ground = match shared.cache.get(draft.execution_id) {
            Some(known) if known.head == draft.expected_head && draft.goes_on() && !outage.is_any() => {
                Ground::of_the_head(known)
            }
            Some(_) | None => match ground(shared, &draft, &outage).await {
                Ok(Found::Ground(ground)) => *ground,
                Ok(Found::Done(record)) => return Ok(*record),
                Err(error) => {
                    outage.wait(error).await?;
                    continue;
                }
            },
        };
        let (write, after, record) = prepare(shared, &draft, &ground).await?;
        match shared.batcher.submit(write).await {
            Ok(Outcome::Done) => {
                let delta = after.delta;
                let reach = if draft.goes_on() {
                    shared.cache.advance(draft.execution_id, &ground.known, after)
                } else {
                    let reach = after.reach;
                    shared.cache.put(draft.execution_id, after);
                    reach
                };
                if draft.checkpoint.cause.is_decision() {
                    shared.bell.ring(&shared.db).await;
                }
                if reach.weight > reach.floor {
                    shared.keep(draft.execution_id, delta);
                }
                return Ok(record);
            }
            Ok(Outcome::Refused) => shared.cache.forget(draft.execution_id),
            Err(error) => {
                shared.cache.forget(draft.execution_id);
                if let Some(taken) = taken(shared, &error, &draft) {
                    return Err(taken);
                }
                if !is_of_the_keys(&error) {
                    outage.wait(error).await?;
                }
            }
        }
    }
    // Somebody else writes as fast as this one looks.
    let found = ExecutionRow::require(&mut Reader::Db(&shared.db), draft.execution_id).await?.record.head;
    let (execution, expected) = (draft.execution_id, draft.expected_head);
    Err(Conflict::HeadMoved { execution, expected, found }.into())
}

/// Returns the conflict that a failure stands for, if it does.
fn taken(shared: &Shared, error: &StoreError, draft: &Draft) -> Option<StoreError> {
    match super::fault::violated(error)? {
        "checkpoints_by_id" => Some(Conflict::IdTaken(draft.checkpoint.id).into()),
        "deltas_pkey" => {
            shared.keys.forget();
            None
        }
        _ => None,
    }
}

fn is_of_the_keys(error: &StoreError) -> bool {
    super::fault::violated(error) == Some("deltas_pkey")
}

/// What a look for the ground of a commit found.
enum Found {
    Ground(Box<Ground>),
    /// The commit itself: it was done before the connection was lost.
    Done(Box<CheckpointRecord>),
}

/// An execution, its head's point, and the way from it to the nearest keyframe.
pub(super) const LOOK: &str = concat!(
    "WITH RECURSIVE head AS (
        SELECT c.* FROM executions e JOIN checkpoints c ON c.execution = e.key AND c.seq = e.head WHERE e.id = $1
    ), ",
    chain::reached!("(SELECT h.delta FROM head h)"),
    " SELECT ",
    execution_columns!(),
    ", ",
    row::checkpoint_columns!(),
    ", r.weight, r.size, r.root FROM executions e LEFT JOIN head c ON true CROSS JOIN reach r WHERE e.id = $1"
);

/// Reads what a commit builds on, or says why it cannot be done.
async fn ground(shared: &Shared, draft: &Draft, outage: &Outage) -> Result<Found, StoreError> {
    let id = draft.execution_id;
    let reader = &mut Reader::Db(&shared.db);
    if outage.is_any()
        && let Some(record) = done(reader, draft).await?
    {
        return Ok(Found::Done(Box::new(record)));
    }
    let found = reader.query(LOOK, &[&id]).await?;
    let row = found.first().ok_or(StoreError::NoExecution(id))?;
    let execution = ExecutionRow::read(row)?;
    match draft.fence {
        Some(ours) => execution.check_fence(ours)?,
        None => execution.check_free()?,
    }
    let head = execution.record.head;
    if head != draft.expected_head {
        let expected = draft.expected_head;
        return Err(Conflict::HeadMoved { execution: id, expected, found: head }.into());
    }
    let known = known(&execution, row)?;
    if draft.goes_on() {
        return Ok(Found::Ground(Box::new(Ground::of_the_head(known))));
    }
    execution.point(reader, draft.parent()).await?;
    let base = execution.point(reader, draft.base()).await?.delta;
    let reach = chain::reach(reader, base).await?;
    let prunings = Some(execution.prunings);
    Ok(Found::Ground(Box::new(Ground { known, base: (base, reach), prunings })))
}

fn known(execution: &ExecutionRow, row: &Row) -> Result<Known, StoreError> {
    let (id, head) = (execution.record.id, execution.record.head);
    let first = EXECUTION_COLUMNS;
    if row::get::<Option<i64>>(row, first).is_ok_and(|key| key.is_none()) {
        return Err(execution.no_point(head));
    }
    let point = Point::read(row, first, id)?;
    if point.link != execution.link {
        let why = "it is not the one that the execution ends with".to_owned();
        return Err(damaged(format!("checkpoint @{head} of execution {id}"), why));
    }
    let reach = chain::read_reach(row, first + row::CHECKPOINT_COLUMNS);
    Ok(Known {
        key: execution.key,
        head,
        delta: point.delta,
        fixed: execution.fixed,
        link: execution.link,
        workflow: execution.record.workflow_id,
        workflow_name: execution.record.workflow_name.as_str().into(),
        log: execution.log,
        reach: reach.map_err(|why| damaged(chain::name(point.delta), why))?,
    })
}

/// Looks whether the commit is there: nobody else has its id.
async fn done(reader: &mut Reader<'_>, draft: &Draft) -> Result<Option<CheckpointRecord>, StoreError> {
    let found = super::query::by_id(reader, draft.checkpoint.id).await?;
    Ok(found.filter(|record| {
        (record.execution_id, record.seq) == (draft.execution_id, draft.expected_head.saturating_add(1))
    }))
}

/// Returns the rows of a commit, what will be known after it, and what is to be answered.
async fn prepare(
    shared: &Shared,
    draft: &Draft,
    Ground { known, base: (base, reach), prunings }: &Ground,
) -> Result<(Write, Known, CheckpointRecord), StoreError> {
    let checkpoint = &draft.checkpoint;
    let length = draft.body.as_ref().map_or(0, Bytes::len);
    let (delta, stands, reach) = match &draft.body {
        // Nothing changed: the point is its base's state, and shares its row.
        None => (None, *base, *reach),
        Some(body) => {
            let key = shared.keys.next(&mut Reader::Db(&shared.db), *base).await?;
            let checksum = row::delta_checksum(key, Some(*base), body);
            let delta = NewDelta { key, base: Some(*base), body: body.clone(), checksum };
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            let weight = reach.weight.saturating_add(length).saturating_add(ROW_WEIGHT);
            (Some(delta), key, Reach { weight, ..*reach })
        }
    };
    let record = record(draft, known.head + 1, Some(draft.parent()), known.workflow, length);
    let point = Point::new(known.key, stands, &known.link, &record)?;
    let workflow_name = match &checkpoint.workflow {
        Some(workflow) => workflow.name.as_str().into(),
        None => Arc::clone(&known.workflow_name),
    };
    let (operation, log) = logged(known.key, &known.log, &known.fixed, &record, known.head, checkpoint)?;
    let write = Write {
        point_checksum: point.checksum(),
        before: known.link,
        fence: draft.fence.map(|fence| column::stored("the fence", fence)).transpose()?,
        prunings: *prunings,
        workflow_name: checkpoint.workflow.as_ref().map(|workflow| workflow.name.clone().into_bytes()),
        state_name: record.state.name(),
        checksum: standing(&point, record.state.name(), &workflow_name, &known.fixed),
        delta,
        operation,
        workflow: checkpoint
            .workflow
            .as_ref()
            .map(|workflow| Adoption::new(known.key, workflow.id, workflow.definition.clone())),
        answers: checkpoint.answers.clone(),
        is_decision: checkpoint.cause.is_decision(),
        point,
    };
    let after = Known {
        head: record.seq,
        delta: stands,
        link: write.point.link,
        workflow: record.workflow_id,
        workflow_name,
        log,
        reach,
        ..known.clone()
    };
    Ok((write, after, record))
}

/// Returns the record of a point.
pub(super) fn record(
    draft: &Draft,
    seq: Seq,
    parent: Option<Seq>,
    workflow: uuid::Uuid,
    length: usize,
) -> CheckpointRecord {
    let place = Place { execution_id: draft.execution_id, workflow_id: workflow, seq, parent };
    draft.checkpoint.record(place, length as u64, draft.compressed)
}

/// Returns the checksum of an execution's row whose head is the point.
pub(super) fn standing(
    point: &Point,
    state_name: &str,
    workflow_name: &str,
    fixed: &crate::store::link::Link,
) -> Checksum {
    Standing {
        workflow: point.workflow,
        workflow_name: workflow_name.as_bytes(),
        state: &point.state,
        state_name,
        head: point.seq,
        updated_at: point.created_at,
        spend: &point.spend,
        link: &point.link,
    }
    .checksum(fixed)
}

/// Returns the operation that a checkpoint is, if it is one, and the end of the log after it.
pub(super) fn logged(
    key: i64,
    log: &Log,
    fixed: &crate::store::link::Link,
    record: &CheckpointRecord,
    before: Seq,
    checkpoint: &NewCheckpoint,
) -> Result<(Option<NewOperation>, Log), StoreError> {
    let Some(operation) = &checkpoint.operation else { return Ok((None, *log)) };
    let entry = OperationRecord {
        number: log.last + 1,
        at: record.created_at,
        who: operation.who.clone(),
        command: operation.command.clone(),
        cause: record.cause.clone(),
        before,
        after: record.seq,
    };
    let row = Operation::new(key, &log.link, &entry)?;
    let log = Log { last: entry.number, link: row.link };
    Ok((Some(NewOperation { log_checksum: log.checksum(fixed)?, row }), log))
}

/// What is to be read for a state whose root has so many bytes.
pub(super) fn reach_of_root(length: usize) -> Reach {
    Reach { weight: 0, floor: i64::try_from(length).unwrap_or(i64::MAX).max(FLOOR_MIN) }
}
