//! Histories on their way out of a file and into one.

use std::collections::HashMap;

use super::body::{self, Body};
use super::chain;
use super::commit;
use super::db::Db;
use super::guard::{self, Guard};
use super::link::{self, Gap};
use super::load::{Frame, Load};
use super::query;
use super::row::{self, CheckpointRow, ExecutionRow, checkpoint_columns};
use super::workflow;
use super::writer::Aftermath;
use crate::execution::ExecutionId;
use crate::store::history::delta_between;
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
    let mut unravelling = Unravelling { db, stands: HashMap::new(), passed: HashMap::new() };
    let points = rows.into_iter().map(|row| unravelling.point(row)).collect::<Result<_, StoreError>>()?;
    let mut operations = query::operations(db, id)?;
    operations.reverse();
    Ok(History { execution: execution.record, workflows, points, operations })
}

/// Finds for each point an older one to build on, whatever lies between them in the file.
///
/// ```text
/// deltas     1 <- 2 <- [3] <- 4 <- [5]     [n] is pointed at; 1 and 2 may be another execution's
///                  `- 6 <- [7]
/// history    [3] whole, [5] = 4 and 5 on [3], [7] = what differs from [3]
/// ```
pub(super) struct Unravelling<'db> {
    pub(super) db: &'db Db,
    /// The oldest point on each delta that points stand on.
    pub(super) stands: HashMap<i64, Seq>,
    /// The oldest point above each delta that none stands on, and its delta.
    pub(super) passed: HashMap<i64, (Seq, i64)>,
}

/// Where the way down from a point ends.
enum End {
    /// At a delta that an older point stands on.
    Point(Seq),
    /// At a delta that an older point, which stands on another one, has below it as well.
    Fork(Seq, i64),
    /// At the root.
    Root,
}

impl Unravelling<'_> {
    pub(super) fn point(&mut self, row: CheckpointRow) -> Result<HistoryPoint, StoreError> {
        let CheckpointRow { delta: tip, record, .. } = row;
        let (way, end) = self.way(tip)?;
        let (base, delta) = match end {
            End::Point(base) => (Some(base), self.composed(&way)?),
            End::Fork(base, delta) => {
                let (before, after) = (chain::image(self.db, delta)?, chain::image(self.db, tip)?);
                (Some(base), delta_between(&before, &after))
            }
            End::Root => (None, chain::image(self.db, tip)?.to_delta()),
        };
        for key in way {
            self.passed.entry(key).or_insert((record.seq, tip));
        }
        self.stands.entry(tip).or_insert(record.seq);
        Ok(HistoryPoint { record, base, delta })
    }

    /// Follows the links down, newest first.
    fn way(&self, tip: i64) -> Result<(Vec<i64>, End), StoreError> {
        let mut way = Vec::new();
        let mut next = Some(tip);
        while let Some(key) = next {
            if let Some(seq) = self.stands.get(&key) {
                return Ok((way, End::Point(*seq)));
            }
            if let Some((seq, delta)) = self.passed.get(&key) {
                return Ok((way, End::Fork(*seq, *delta)));
            }
            way.push(key);
            next = chain::base(self.db, key)?;
        }
        Ok((way, End::Root))
    }

    /// Returns what the deltas on a way do together.
    fn composed(&self, way: &[i64]) -> Result<Delta, StoreError> {
        let read = |key: &i64| chain::decoded(self.db, *key, &chain::row(self.db, *key)?.body);
        match way {
            [] => Ok(Delta::default()),
            [key] => read(key),
            [tip, ..] => {
                let parts = way.iter().rev().map(read).collect::<Result<Vec<_>, _>>()?;
                Delta::compose(&chain::name(*tip), &parts)
            }
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
    /// `None` where the point's state is its base's.
    body: Option<Body>,
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
    if let Some(below) = below.filter(|_| delta.is_empty()) {
        return Ok((Prepacked { body: None, frame: None }, below));
    }
    let owner = (record.execution_id, record.seq);
    let level = record.compressed.then_some(body::SMALL);
    let body = chain::encoded(guard, owner, delta, level)?;
    let (raw, packed) = (i64::try_from(delta.bytes()).unwrap_or(i64::MAX), chain::length(&body.bytes));
    let mut load = match below {
        Some(below) => below.below(raw, packed),
        None => Load::of_root(raw, packed),
    };
    let frame = load.frame(guard, owner, state)?;
    Ok((Prepacked { body: Some(body), frame }, load))
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
        after.bytes += packed.body.as_ref().map_or(0, |body| body.bytes.len() as u64);
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
    HistoryPoint { record, .. }: &HistoryPoint,
    Prepacked { body, frame }: &Prepacked,
    base: Option<i64>,
) -> Result<i64, StoreError> {
    if db.number("SELECT seq FROM checkpoints WHERE id = ?1", [record.id.as_bytes()])?.is_some() {
        return Err(Conflict::IdTaken(record.id).into());
    }
    let delta = match (body, base) {
        (None, Some(base)) => base,
        (body, base) => chain::insert(db, base, body.as_ref().map_or(&[][..], |body| &body.bytes))?,
    };
    if let Some(Frame { size, body }) = frame {
        chain::put_keyframe(db, delta, *size, body)?;
    }
    let record = CheckpointRecord {
        size_bytes: body.as_ref().map_or(0, |body| body.bytes.len() as u64),
        compressed: body.as_ref().is_some_and(|body| body.compressed),
        ..record.clone()
    };
    CheckpointRow::insert(db, execution, delta, &record)?;
    Ok(delta)
}
