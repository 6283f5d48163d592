//! What can be read of a damaged file. Every row is looked for by its key, so that one which is damaged, or lies on a
//! damaged page, does not hide the others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::super::chain;
use super::super::db::{self, Db};
use super::super::guard::Guard;
use super::super::link::{self, Link};
use super::super::owner::Owner;
use super::super::row::{self, CheckpointRow, ExecutionRow, checkpoint_columns, operation_columns};
use super::super::workflow;
use super::points::Points;
use crate::clock::Clock;
use crate::execution::{ExecutionId, ExecutionState, NodeId, Spend, WorkflowId};
use crate::store::{
    Cause, CheckpointRecord, Conflict, Delta, ExecutionRecord, HeadFate, History, HistoryPoint, Image,
    KeptWorkflow, NewOperation, OperationRecord, Origin, RecordFate, RepairedExecution, Seq, StoreError,
    context,
};

/// How many keys are tried one by one where rows cannot be walked along.
const PROBES_MAX: usize = 65_536;

/// How many lost points the history names: the newest.
const LOST_NAMED_MAX: usize = 1_000;

/// How far a damaged row's head may lie beyond the newest row that is there.
const HEAD_AHEAD_MAX: Seq = 1_000;

/// How to walk along the keys of a table, up and down from `?1`. `?2` is the execution.
struct Walk {
    up: &'static str,
    down: &'static str,
}

macro_rules! walk {
    ($table:literal, $column:literal, $among:literal) => {
        Walk {
            up: concat!(
                "SELECT ",
                $column,
                " FROM ",
                $table,
                " NOT INDEXED WHERE ",
                $column,
                " > ?1 AND ",
                $among,
                " ORDER BY ",
                $column,
                " LIMIT 1"
            ),
            down: concat!(
                "SELECT ",
                $column,
                " FROM ",
                $table,
                " NOT INDEXED WHERE ",
                $column,
                " < ?1 AND ",
                $among,
                " ORDER BY ",
                $column,
                " DESC LIMIT 1"
            ),
        }
    };
}

const EXECUTIONS: Walk = walk!("executions", "key", "?2 = 0");
const WITH_POINTS: Walk = walk!("checkpoints", "execution", "?2 = 0");
const WITH_OPERATIONS: Walk = walk!("operations", "execution", "?2 = 0");
const POINTS: Walk = walk!("checkpoints", "seq", "execution = ?2");
const OPERATIONS: Walk = walk!("operations", "number", "execution = ?2");

/// Reads a damaged file.
pub(super) struct Salvage<'a> {
    db: &'a Db,
    by: &'a NewOperation,
    clock: &'a Arc<dyn Clock>,
    owner: &'a Owner,
    /// Whether commits are lost of which it is not known whose they were.
    is_log_lost: bool,
    /// The state at each delta that a point stands on, where it can be read.
    images: HashMap<i64, Image>,
}

/// What a damaged row of `executions` still says, none of which can be relied on.
#[derive(Default)]
struct Hints {
    id: Option<ExecutionId>,
    name: Option<String>,
    workflow_name: Option<String>,
    head: Option<Seq>,
    created_at: Option<DateTime<Utc>>,
    origin: Option<Origin>,
}

impl<'a> Salvage<'a> {
    pub(super) fn new(
        db: &'a Db,
        by: &'a NewOperation,
        clock: &'a Arc<dyn Clock>,
        owner: &'a Owner,
        is_log_lost: bool,
    ) -> Self {
        Self { db, by, clock, owner, is_log_lost, images: HashMap::new() }
    }

    /// Returns all executions of which there is a trace, each with its history where that can go on.
    ///
    /// # Errors
    /// [`Conflict::Leased`] where somebody advances one.
    pub(super) fn executions(mut self) -> Result<Vec<(RepairedExecution, Option<History>)>, StoreError> {
        let mut keys = BTreeSet::new();
        for walk in [&EXECUTIONS, &WITH_POINTS, &WITH_OPERATIONS] {
            let newest = keys.last().copied().unwrap_or(0);
            keys.extend(self.keys(walk, 0, newest));
        }
        let mut found = Vec::new();
        for key in keys {
            found.extend(self.execution(key)?);
        }
        Ok(found)
    }

    /// Returns the keys of rows that are there, and those that may be on pages that cannot be walked along. `newest` is
    /// the largest that is known of.
    fn keys(&self, walk: &Walk, execution: i64, newest: i64) -> BTreeSet<i64> {
        let mut found = BTreeSet::new();
        let mut low = 0;
        loop {
            match self.db.number(walk.up, [low, execution]) {
                Ok(Some(key)) if key > low => {
                    found.insert(key);
                    low = key;
                }
                Ok(None) => return found,
                Ok(Some(_)) | Err(_) => break,
            }
        }
        let mut high = i64::MAX;
        while let Ok(Some(key)) = self.db.number(walk.down, [high, execution]) {
            if key <= low || key >= high {
                break;
            }
            found.insert(key);
            high = key;
        }
        let end = if high == i64::MAX { newest.saturating_add(1) } else { high };
        found.extend((low.saturating_add(1)..end).take(PROBES_MAX));
        found
    }

    /// Returns `None` where there is no trace of an execution with this key.
    fn execution(&mut self, key: i64) -> Result<Option<(RepairedExecution, Option<History>)>, StoreError> {
        let row = ExecutionRow::by_key(self.db, key);
        let hints = match &row {
            Ok(Some(row)) => {
                self.check_free(row)?;
                Hints::default()
            }
            Ok(None) | Err(_) => self.hints(key),
        };
        let record = row.as_ref().ok().and_then(Option::as_ref).map(|row| row.record.clone());
        let id = record.as_ref().map(|record| record.id).or(hints.id);
        let has_id = id.is_some();
        let id = id.unwrap_or_else(|| self.clock.new_id());
        let (operations, mut operations_lost) = self.operations(key, id);
        if let Ok(Some(row)) = &row
            && operations_lost == 0
            && self.last_link(key, id) != Some(row.log_link)
        {
            // How many followed is not known.
            operations_lost = 1;
        }
        let head = record.as_ref().map(|record| record.head).or(hints.head).unwrap_or(0);
        let mut points = self.points(key, id, head);
        if !has_id && points.is_empty() && matches!(row, Ok(None)) {
            return Ok(None);
        }
        let newest = points.newest().max(operations.last().map_or(0, |operation| operation.after));
        let head = match &record {
            Some(record) => record.head,
            None => {
                let ahead = newest.saturating_add(HEAD_AHEAD_MAX);
                let unknown = points.unknown.range(..=ahead).next_back().copied();
                let told = hints.head.filter(|head| *head <= ahead);
                newest.max(unknown.unwrap_or(0)).max(told.unwrap_or(0))
            }
        };
        points.cut_to(head);
        if let Ok(Some(row)) = &row {
            self.miss(row, &mut points);
        }
        if !points.intact.contains_key(&head)
            && points.stateless.iter().all(|record| record.seq != head)
            && head > 0
        {
            points.unknown.insert(head);
        }
        points.decode();
        let name = record.as_ref().map(|record| record.name.clone()).or(hints.name.clone());
        let name = name.unwrap_or_else(|| format!("recovered-{}", &id.simple().to_string()[24..]));
        let mut told = RepairedExecution {
            id,
            name,
            record: if record.is_some() { RecordFate::Intact } else { RecordFate::Rebuilt },
            head: HeadFate::Lost,
            lost: points.lost(),
            unknown: points.unknown.iter().copied().collect(),
            nodes: points.nodes_lost(),
            done: BTreeSet::new(),
            taken_back: Vec::new(),
            operations_lost,
            definitions_lost: Vec::new(),
            workflow: None,
        };
        let Some((to, (newest, image))) = points.intact.last_key_value() else {
            return Ok(Some((told, None)));
        };
        let (to, newest) = (*to, newest.clone());
        told.done = done(id, image);
        let (workflows, definitions_lost) = self.workflows(key, &points);
        told.workflow = workflows.iter().find(|workflow| workflow.id == newest.workflow_id).cloned();
        told.definitions_lost = definitions_lost;
        let execution = record.unwrap_or_else(|| hints.record(id, &told, &points));
        let mut history = History { execution, workflows, points: points.told(), operations };
        told.head =
            if to == head { HeadFate::Stands } else { HeadFate::FellBack { from: head, to, head: head + 1 } };
        let is_taken_back =
            |operation: &&OperationRecord| operation.after > to && operation.after > operation.before;
        told.taken_back = history.operations.iter().filter(is_taken_back).cloned().collect();
        self.finish(&mut history, &told, newest);
        Ok(Some((told, Some(history))))
    }

    /// Notes points whose rows are not there, and which nobody pruned.
    fn miss(&self, row: &ExecutionRow, points: &mut Points) {
        let Ok(gaps) = link::gaps(self.db, row) else { return };
        let is_known = |seq: &Seq| {
            points.intact.contains_key(seq)
                || points.unknown.contains(seq)
                || points.stateless.iter().any(|record| record.seq == *seq)
                || gaps.iter().any(|gap| (gap.first..=gap.last).contains(seq))
        };
        let missing: Vec<Seq> = (1..=row.record.head).filter(|seq| !is_known(seq)).collect();
        points.unknown.extend(missing);
    }

    /// Returns the link of the last operation that is there.
    fn last_link(&self, key: i64, id: ExecutionId) -> Option<Link> {
        let last = self.db.first(
            "SELECT link FROM operations WHERE execution = ?1 ORDER BY number DESC LIMIT 1",
            [key],
            |_| "the newest operation".to_owned(),
            |row| db::link(row, 0),
        );
        last.ok().map(|last| last.unwrap_or_else(|| link::start(id)))
    }

    /// Refuses while somebody advances an execution.
    fn check_free(&self, row: &ExecutionRow) -> Result<(), StoreError> {
        let Some(holder) = &row.holder else { return Ok(()) };
        let until = DateTime::from_timestamp_nanos(holder.until);
        if until <= self.clock.now() || !self.owner.is_open(holder.owner_id) {
            return Ok(());
        }
        let (execution, owner) = (row.record.id, holder.name.clone());
        Err(Conflict::Leased { execution, owner, until }.into())
    }

    /// Appends what the repair did, where it did something: a point where the head fell back, and an operation.
    fn finish(&self, history: &mut History, told: &RepairedExecution, newest: CheckpointRecord) {
        let now = self.clock.now();
        let before = match told.head {
            HeadFate::FellBack { from, .. } => from,
            HeadFate::Stands | HeadFate::Lost => newest.seq,
        };
        let surplus = told.lost.len().saturating_sub(LOST_NAMED_MAX);
        let cause = Cause::Repair { from: before, lost: told.lost[surplus..].to_vec() };
        let mut head = newest;
        if let HeadFate::FellBack { to, head: seq, .. } = told.head {
            head = CheckpointRecord {
                seq,
                id: self.clock.new_id(),
                parent: Some(to),
                created_at: now,
                cause: cause.clone(),
                nodes: Vec::new(),
                label: None,
                size_bytes: 0,
                compressed: false,
                ..head
            };
            let point = HistoryPoint { record: head.clone(), base: Some(to), delta: Delta::default() };
            history.points.push(point);
        }
        if !told.is_intact() || self.is_log_lost {
            let NewOperation { who, command } = self.by.clone();
            let number = history.operations.last().map_or(1, |last| last.number + 1);
            let after = head.seq;
            history.operations.push(OperationRecord { number, at: now, who, command, cause, before, after });
        }
        history.execution.head = head.seq;
        history.execution.state = head.state;
        history.execution.updated_at = head.created_at;
        history.execution.spend = head.spend;
        history.execution.workflow_id = head.workflow_id;
        history.execution.leased_by = None;
    }

    fn points(&mut self, key: i64, id: ExecutionId, head: Seq) -> Points {
        let stub = stub(id);
        let mut points = Points::default();
        let mut ids = BTreeSet::new();
        for seq in self.keys(&POINTS, key, i64::try_from(head).unwrap_or(0)) {
            let row = self.db.first(
                concat!(
                    "SELECT ",
                    checkpoint_columns!(),
                    " FROM checkpoints WHERE execution = ?1 AND seq = ?2"
                ),
                [key, seq],
                |row| CheckpointRow::name(&stub, row),
                |row| CheckpointRow::read(self.db, &stub, row),
            );
            let number = Seq::try_from(seq).unwrap_or(0);
            match row {
                // Two rows have one id only where one of them is damaged, and found where it does not belong.
                Ok(Some(row)) if row.record.seq == number && ids.insert(row.record.id) => {
                    match self.image(row.delta) {
                        Ok(image) => drop(points.intact.insert(number, (row.record, image))),
                        Err(_) => points.stateless.push(row.record),
                    }
                }
                // It has been pruned.
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => drop(points.unknown.insert(number)),
            }
        }
        points
    }

    /// Returns the state at a delta: from the root or a state that is known, or else from the lowest keyframe that can be
    /// read.
    fn image(&mut self, delta: i64) -> Result<Image, StoreError> {
        let mut way = Vec::new();
        let mut next = Some(delta);
        let mut start = Ok(Image::default());
        while let Some(key) = next {
            if let Some(image) = self.images.get(&key) {
                start = Ok(image.clone());
                break;
            }
            match self.delta(key) {
                Ok((base, delta)) => {
                    way.push((key, delta));
                    next = base;
                }
                Err(error) => {
                    start = self.keyframe(key).ok_or(error);
                    break;
                }
            }
        }
        while let (Err(error), Some((key, _))) = (&start, way.last()) {
            start = self.keyframe(*key).ok_or_else(|| error.clone());
            way.pop();
        }
        let mut image = start?;
        for (key, delta) in way.iter().rev() {
            image.apply(&chain::name(*key), delta)?;
        }
        self.images.insert(delta, image.clone());
        Ok(image)
    }

    fn keyframe(&self, key: i64) -> Option<Image> {
        let frame = chain::keyframe(self.db, key).ok().flatten()?;
        let mut image = Image::default();
        image.apply("a keyframe", &frame).ok()?;
        Some(image)
    }

    /// Reads a delta without a look at any other table.
    fn delta(&self, key: i64) -> Result<(Option<i64>, Delta), StoreError> {
        let found = self.db.first(
            "SELECT key, base, body, checksum FROM deltas WHERE key = ?1",
            [key],
            |_| chain::name(key),
            |row| {
                self.db.verify("deltas", row, 3)?;
                let base = db::optional_integer(row, 1)?;
                if base.is_some_and(|base| base >= key) {
                    return Err("it builds on a newer one".to_owned());
                }
                Ok((base, db::blob(row, 2)?.to_vec()))
            },
        )?;
        let (base, body) = found.ok_or_else(|| chain::missing(key))?;
        Ok((base, chain::decoded(self.db, key, &body)?))
    }

    /// Returns the operations that can be read, oldest first, and how many cannot.
    fn operations(&self, key: i64, id: ExecutionId) -> (Vec<OperationRecord>, u64) {
        let mut operations: Vec<OperationRecord> = Vec::new();
        let mut lost = 0;
        for number in self.keys(&OPERATIONS, key, 0) {
            let operation = self.db.first(
                concat!(
                    "SELECT ",
                    operation_columns!(),
                    " FROM operations WHERE execution = ?1 AND number = ?2"
                ),
                [key, number],
                |_| format!("operation {number}"),
                |row| row::operation(self.db, id, row),
            );
            match operation {
                Ok(Some(operation)) => operations.push(operation),
                Ok(None) => {}
                Err(_) => lost += 1,
            }
        }
        let there = operations.len();
        let operations = numbered(operations);
        let lost = lost.max(operations.len().abs_diff(there) as u64);
        (operations, lost)
    }

    /// Returns the workflows that an execution is known to have run, and those whose definitions cannot be read.
    fn workflows(&self, key: i64, points: &Points) -> (Vec<KeptWorkflow>, Vec<WorkflowId>) {
        let kept = self.db.all(
            "SELECT execution, workflow, checksum FROM execution_workflows WHERE execution = ?1",
            [key],
            |_| "a workflow of an execution".to_owned(),
            |row| {
                let is_whole = self.db.verify("execution_workflows", row, 2).is_ok();
                Ok(db::id(row, 1).ok().filter(|_| is_whole))
            },
        );
        let mut ids: BTreeSet<WorkflowId> = kept.unwrap_or_default().into_iter().flatten().collect();
        ids.extend(points.intact.values().map(|(record, _)| record.workflow_id));
        let mut lost = Vec::new();
        let workflow = |id| {
            let definition = workflow::definition(self.db, id);
            let is_there = self.db.number("SELECT 1 FROM workflows WHERE id = ?1", [id.as_bytes()]);
            if definition.is_err() || !matches!(is_there, Ok(Some(_))) {
                lost.push(id);
            }
            let definition = definition.unwrap_or_default();
            KeptWorkflow { id, definition: definition.unwrap_or_default() }
        };
        (ids.into_iter().map(workflow).collect(), lost)
    }

    /// Returns what a damaged row says, and what the indexes over its table say of it.
    fn hints(&self, key: i64) -> Hints {
        let read = self.db.first(
            "SELECT id, name, workflow_name, head, created_at, origin_id, origin_seq FROM executions NOT INDEXED \
             WHERE key = ?1",
            [key],
            |_| "an execution".to_owned(),
            |row| {
                let origin = db::id(row, 5).ok().zip(db::count(row, 6).ok());
                let id = db::id(row, 0).ok();
                let name = self.db.seen_text(Guard::NAMES, "name", row, 1).ok();
                let workflow_name = |id| {
                    self.db.seen_text(ExecutionRow::spot(id), "workflow_name", row, 2).ok()
                };
                Ok(Hints {
                    id,
                    name: name.filter(|name| is_plain(name)),
                    workflow_name: id.and_then(workflow_name),
                    head: db::count(row, 3).ok(),
                    created_at: db::time(row, 4).ok(),
                    origin: origin.map(|(execution_id, seq)| Origin { execution_id, seq }),
                })
            },
        );
        let mut hints = read.ok().flatten().unwrap_or_default();
        let named = |_: &rusqlite::Row<'_>| "an index of executions".to_owned();
        let id = self.db.first(
            "SELECT id FROM executions INDEXED BY sqlite_autoindex_executions_1 WHERE +key = ?1",
            [key],
            named,
            |row| db::id(row, 0),
        );
        let name = self.db.first(
            "SELECT name FROM executions INDEXED BY sqlite_autoindex_executions_2 WHERE +key = ?1",
            [key],
            named,
            |row| self.db.seen_text(Guard::NAMES, "name", row, 0),
        );
        // The row is known to be damaged, and an index is not.
        hints.id = id.ok().flatten().or(hints.id);
        hints.name = name.ok().flatten().filter(|name| is_plain(name)).or(hints.name);
        hints
    }
}

impl Hints {
    /// Returns a row made again from the points.
    fn record(&self, id: ExecutionId, told: &RepairedExecution, points: &Points) -> ExecutionRecord {
        let first = points.intact.first_key_value().map(|(_, (record, _))| record);
        let forked = first.and_then(|first| {
            let Cause::Fork { origin } = &first.cause else { return None };
            Some(*origin)
        });
        ExecutionRecord {
            name: told.name.clone(),
            workflow_name: self.workflow_name.clone().unwrap_or_else(|| "recovered".to_owned()),
            created_at: self.created_at.or(first.map(|first| first.created_at)).unwrap_or_default(),
            origin: self.origin.or(forked),
            ..stub(id)
        }
    }
}

/// Puts an entry in the place of each that is lost: others name them by their numbers.
fn numbered(found: Vec<OperationRecord>) -> Vec<OperationRecord> {
    let mut operations: Vec<OperationRecord> = Vec::with_capacity(found.len());
    for operation in found {
        if operation.number > operations.len() as u64 + PROBES_MAX as u64 {
            break;
        }
        for number in operations.len() as u64 + 1..operation.number {
            let cause = Cause::Repair { from: operation.before, lost: Vec::new() };
            let (who, command) = ("unknown".to_owned(), "lost".to_owned());
            let (before, after, at) = (operation.before, operation.before, operation.at);
            operations.push(OperationRecord { number, at, who, command, cause, before, after });
        }
        operations.push(operation);
    }
    operations
}

/// Returns the nodes that a state is done with, where it is one of this library's.
fn done(id: ExecutionId, image: &Image) -> BTreeSet<NodeId> {
    let Ok(ctx) = context(id, image) else { return BTreeSet::new() };
    ctx.node_results.iter().filter(|(_, node)| node.result.is_completed()).map(|(id, _)| *id).collect()
}

/// Tells whether a name is one that somebody may have given: a flipped bit seldom leaves one.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(char::is_control)
}

fn stub(id: ExecutionId) -> ExecutionRecord {
    ExecutionRecord {
        id,
        name: String::new(),
        workflow_id: Uuid::nil(),
        workflow_name: String::new(),
        state: ExecutionState::Running,
        head: 0,
        created_at: DateTime::default(),
        updated_at: DateTime::default(),
        spend: Spend::default(),
        origin: None,
        leased_by: None,
    }
}
