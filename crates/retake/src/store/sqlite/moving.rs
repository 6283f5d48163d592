//! Histories on their way out of a file and into one.

use std::collections::HashMap;

use super::body::{self, Body};
use super::chain;
use super::commit;
use super::db::Db;
use super::guard::{self, Guard, Spot};
use super::link::{self, Gap};
use super::query;
use super::row::{self, CheckpointRow, ExecutionRow, checkpoint_columns};
use super::workflow;
use super::writer::Aftermath;
use crate::execution::ExecutionId;
use crate::store::history::delta_between;
use crate::store::load::{Frame, Load};
use crate::store::unravelling::{Strand, Unravelling};
use crate::store::{
    CheckpointRecord, Conflict, Delta, ExecutionRecord, History, HistoryPoint, Image, KeptWorkflow,
    NewWorkflow, Seq, StoreError,
};

pub(super) fn export(db: &Db, id: ExecutionId) -> Result<History, StoreError> {
    let execution = ExecutionRow::require(db, id)?;
    let mut workflows = workflow::ever_run(db, &execution)?;
    workflows.sort_unstable();
    let workflows = workflows
        .into_iter()
        .map(|id| {
            let definition = workflow::definition(db, id)?.unwrap_or_default();
            Ok(KeptWorkflow { id, definition })
        })
        .collect::<Result<_, StoreError>>()?;
    let rows = db.all(
        concat!("SELECT ", checkpoint_columns!(), " FROM checkpoints WHERE execution = ?1 ORDER BY seq"),
        [execution.key],
        |row| CheckpointRow::name(&execution.record, row),
        |row| CheckpointRow::read(db, &execution.record, row),
    )?;
    let mut unravelling = Unravelling::default();
    let points = rows
        .into_iter()
        .map(|row| unravelled(db, &mut unravelling, row))
        .collect::<Result<_, StoreError>>()?;
    let mut operations = query::operations(db, id)?;
    operations.reverse();
    Ok(History { execution: execution.record, workflows, points, operations })
}

/// Returns a point, with what leads to its state from an older one.
pub(super) fn unravelled(
    db: &Db,
    unravelling: &mut Unravelling,
    row: CheckpointRow,
) -> Result<HistoryPoint, StoreError> {
    let CheckpointRow { delta: tip, record, .. } = row;
    let (base, delta) = match unravelling.next(record.seq, tip, |key| chain::base(db, key))? {
        Strand::On { base, way } => (Some(base), composed(db, &way)?),
        Strand::Between { base, from } => {
            let (before, after) = (chain::image(db, from)?, chain::image(db, tip)?);
            (Some(base), delta_between(&before, &after))
        }
        Strand::Whole => (None, chain::image(db, tip)?.to_delta()),
    };
    Ok(HistoryPoint { record, base, delta })
}

/// Returns what the deltas on a way, newest first, do together.
fn composed(db: &Db, way: &[i64]) -> Result<Delta, StoreError> {
    let read = |key: &i64| chain::decoded(db, *key, &chain::row(db, *key)?.body);
    match way {
        [] => Ok(Delta::default()),
        [key] => read(key),
        [tip, ..] => {
            let parts = way.iter().rev().map(read).collect::<Result<Vec<_>, _>>()?;
            Delta::compose(&chain::name(*tip), &parts)
        }
    }
}

/// A history that has been looked through and encoded, which is not the writer's work.
#[derive(Debug)]
pub(super) struct Prepared {
    history: History,
    bodies: Vec<Prepacked>,
    /// What is to be read for the head.
    head: Option<Load>,
}

/// What is to be written for the state of one point.
#[derive(Debug)]
struct Prepacked {
    body: Body,
    frame: Option<Frame>,
}

impl Prepared {
    pub(super) fn new(guard: &Guard, history: History) -> Result<Self, StoreError> {
        let states = history.states()?;
        let mut bodies = Vec::with_capacity(states.len());
        let mut loads: HashMap<Seq, Load> = HashMap::new();
        let mut head = None;
        for (point, state) in history.points.iter().zip(&states) {
            let below = point.base.and_then(|base| loads.get(&base)).copied();
            let (packed, load) = prepack(guard, point, state, below)?;
            bodies.push(packed);
            loads.insert(point.record.seq, load);
            head = Some(load);
        }
        Ok(Self { history, bodies, head })
    }
}

/// Encodes a point, and decides whether its state is worth a keyframe, as the keeper would.
fn prepack(
    guard: &Guard,
    point: &HistoryPoint,
    state: &Image,
    below: Option<Load>,
) -> Result<(Prepacked, Load), StoreError> {
    let HistoryPoint { record, delta, .. } = point;
    let owner = (record.execution_id, record.seq);
    let level = record.compressed.then_some(body::SMALL);
    let body = chain::encoded(guard, owner, delta, level)?;
    let (raw, packed) = (i64::try_from(delta.bytes()).unwrap_or(i64::MAX), chain::length(&body.bytes));
    let mut load = match below {
        Some(below) => below.below(raw, packed),
        None => Load::of_root(raw, packed),
    };
    let frame = match load.frame(state, chain::SPARED_MIN)? {
        Some(Frame { size, body }) => {
            let spot = Spot { table: "keyframes", owner: owner.0, number: owner.1 };
            Some(Frame { size, body: guard.hide_body(spot, body)? })
        }
        None => None,
    };
    Ok((Prepacked { body, frame }, load))
}

/// Adds an execution, for which its name, its id and those of its points must be free.
pub(super) fn import(db: &Db, prepared: &Prepared, after: &mut Aftermath) -> Result<(), StoreError> {
    let Prepared { history, bodies, head } = prepared;
    let record = &history.execution;
    guard::check_current(db)?;
    if ExecutionRow::by_id(db, record.id)?.is_some() {
        return Err(Conflict::IdTaken(record.id).into());
    }
    if commit::is_named(db, &record.name)? {
        return Err(Conflict::NameTaken(record.name.clone()).into());
    }
    let mut execution = ExecutionRow {
        key: db.number("SELECT coalesce(max(key), 0) + 1 FROM executions", [])?.unwrap_or(1),
        record: ExecutionRecord { leased_by: None, ..record.clone() },
        fence: 0,
        holder: None,
        weight: head.map_or(0, |load| load.weight),
        floor: head.map_or(chain::FLOOR_MIN, |load| load.floor),
        slack: 0,
        slack_max: chain::FLOOR_MIN,
        link: link::start(record.id),
        log_link: link::start(record.id),
    };
    execution.insert(db)?;
    for KeptWorkflow { id, definition } in &history.workflows {
        let name = record.workflow_name.clone();
        let workflow = NewWorkflow { id: *id, name, definition: definition.clone() };
        workflow::adopt(db, &mut execution, &workflow)?;
    }
    // Which of them it runs now, the row in the file says already.
    execution.record.workflow_id = record.workflow_id;
    let mut deltas = HashMap::new();
    let mut next = 1;
    for (point, packed) in history.points.iter().zip(bodies) {
        let seq = point.record.seq;
        if seq > next {
            execution.link = link::across(&execution.link, next, seq - 1)?;
            link::insert(db, execution.key, Gap { first: next, last: seq - 1, link: execution.link })?;
        }
        next = seq + 1;
        let base = point.base.and_then(|base| deltas.get(&base)).copied();
        let (record, delta) = (&point.record, insert_point(db, &mut execution, point, packed, base)?);
        deltas.insert(record.seq, delta);
        after.bytes += packed.body.bytes.len() as u64;
    }
    for operation in &history.operations {
        row::insert_operation(db, &mut execution, operation)?;
    }
    execution.update(db)
}

/// Adds a point on the delta of its base. Returns its own delta.
fn insert_point(
    db: &Db,
    execution: &mut ExecutionRow,
    HistoryPoint { record, delta: changes, .. }: &HistoryPoint,
    Prepacked { body, frame }: &Prepacked,
    base: Option<i64>,
) -> Result<i64, StoreError> {
    if db.number("SELECT seq FROM checkpoints WHERE id = ?1", [record.id.as_bytes()])?.is_some() {
        return Err(Conflict::IdTaken(record.id).into());
    }
    let delta = chain::insert(db, base, &body.bytes)?;
    if let Some(Frame { size, body }) = frame {
        chain::put_keyframe(db, delta, *size, body)?;
    }
    let record = CheckpointRecord {
        size_bytes: if changes.is_empty() { 0 } else { body.bytes.len() as u64 },
        compressed: body.compressed,
        ..record.clone()
    };
    CheckpointRow::insert(db, execution, delta, &record)?;
    Ok(delta)
}
