//! Looking at every record, in pages: a look at a large store needs little memory.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;

use super::Shared;
use super::chain::{self, DeltaRow, Reader};
use super::execution::{ExecutionRow, Log, execution_columns};
use super::row::{self, Operation, Point, damaged, get};
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::column::Damage;
use crate::store::link::{Break, Gap, Walk};
use crate::store::{Image, Key, Report, Seq, StoreError, context};

/// Rows that are read at once.
const PAGE: i64 = 500;

/// Bodies that are read at once.
const BODIES: i64 = 32;

/// The look, as far as it has come.
struct Check<'a> {
    shared: &'a Shared,
    report: Report,
}

/// Verifies every row, resolves every state, and decodes those at heads and labels.
///
/// What is written meanwhile is no damage: an execution that moves on is looked at again.
pub(super) async fn check(shared: &Shared) -> Result<Report, StoreError> {
    let mut check = Check { shared, report: Report::default() };
    check.workflows().await?;
    check.executions().await?;
    check.deltas().await?;
    check.strays().await?;
    check.requests().await?;
    Ok(check.report)
}

/// An execution's rows, as they were at one moment.
struct Look {
    execution: ExecutionRow,
    gaps: Vec<Gap>,
    runs: Vec<WorkflowId>,
}

const EXECUTIONS: &str = "SELECT e.key, e.id FROM executions e WHERE e.key > $1 ORDER BY e.key LIMIT $2";

const EXECUTION: &str = concat!("SELECT ", execution_columns!(), " FROM executions e WHERE e.key = $1");

const POINTS: &str = concat!(
    "SELECT ",
    row::checkpoint_columns!(),
    " FROM checkpoints c WHERE c.execution = $1 AND c.seq > $2 ORDER BY c.seq LIMIT $3"
);

const OPERATIONS: &str = concat!(
    "SELECT ",
    row::operation_columns!(),
    " FROM operations o WHERE o.execution = $1 AND o.number > $2 ORDER BY o.number LIMIT $3"
);

const GAPS: &str = "SELECT g.execution, g.first, g.last, g.link, g.checksum FROM gaps g WHERE g.execution = $1 ORDER BY g.first";

const RUNS: &str =
    "SELECT r.execution, r.workflow, r.checksum FROM execution_workflows r WHERE r.execution = $1";

/// Workflows that an execution ran, and that are not there.
const UNDEFINED: &str = "
SELECT r.workflow FROM execution_workflows r WHERE r.execution = $1
    AND NOT EXISTS (SELECT FROM workflows w WHERE w.id = r.workflow)";

/// A point that stands on a delta.
struct Standing {
    seq: Seq,
    delta: i64,
    /// Heads, and what a person gave a name to, are decoded as well.
    is_decoded: bool,
}

impl Check<'_> {
    /// Returns what was read, or takes the problem down. A failure that is no damage ends the look.
    fn found<T>(&mut self, read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(
                error @ (StoreError::Corrupt { .. } | StoreError::Pruned { .. } | StoreError::NoPoint { .. }),
            ) => {
                self.report.problems.push(with_sources(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn problem(&mut self, problem: String) {
        self.report.problems.push(problem);
    }

    async fn workflows(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT w.id, w.definition, w.checksum FROM workflows w WHERE $1::uuid IS NULL OR w.id > $1 \
                   ORDER BY w.id LIMIT $2";
        let mut last: Option<WorkflowId> = None;
        loop {
            let rows = self.shared.db.query("checking", sql, &[&last, &BODIES]).await?;
            for row in &rows {
                last = get(row, 0).ok();
                if let Some((_, definition)) = self.found(row::workflow(row))? {
                    self.report.bytes += definition.len() as u64;
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
        }
    }

    async fn executions(&mut self) -> Result<(), StoreError> {
        let mut last = 0_i64;
        loop {
            let rows = self.shared.db.query("checking", EXECUTIONS, &[&last, &PAGE]).await?;
            for row in &rows {
                let why = |why| damaged("the table of executions".to_owned(), why);
                last = get(row, 0).map_err(why)?;
                let id: ExecutionId = get(row, 1).map_err(why)?;
                self.execution(last, id).await?;
            }
            if rows.is_empty() {
                return Ok(());
            }
        }
    }

    /// Looks at an execution as it is at one moment.
    async fn execution(&mut self, key: i64, id: ExecutionId) -> Result<(), StoreError> {
        let mut transaction = self.shared.db.snapshot("checking").await?;
        let found = transaction
            .query_all(&[(EXECUTION, &[&key]), (GAPS, &[&key]), (RUNS, &[&key]), (UNDEFINED, &[&key])])
            .await?;
        let [execution, gaps, runs, undefined] = &found[..] else { return Ok(()) };
        // It may have been deleted since.
        let Some(execution) = execution.first() else { return Ok(()) };
        self.report.executions += 1;
        let Some(execution) = self.found(ExecutionRow::read(execution))? else { return Ok(()) };
        for row in undefined {
            let workflow: WorkflowId = get(row, 0).map_err(|why| damaged("a workflow".to_owned(), why))?;
            self.problem(format!("workflow {workflow} of execution {id} is missing"));
        }
        let mut look = Look { execution, gaps: Vec::new(), runs: Vec::new() };
        let mut are_gaps_whole = true;
        for row in gaps {
            match self.found(row::gap(row, id))? {
                Some(gap) => look.gaps.push(gap),
                None => are_gaps_whole = false,
            }
        }
        for row in runs {
            if let Some(workflow) = self.found(row::execution_workflow(row, id))? {
                look.runs.push(workflow);
            }
        }
        let running = look.execution.record.workflow_id;
        if !look.runs.contains(&running) {
            self.problem(format!("execution {id} runs workflow {running}, which is not kept for it"));
        }
        let reader = &mut Reader::Transaction(&mut transaction);
        let standing = self.points(reader, &look, are_gaps_whole).await?;
        self.operations(reader, &look.execution).await?;
        self.states(reader, id, standing).await
    }

    async fn points(
        &mut self,
        reader: &mut Reader<'_>,
        look: &Look,
        are_gaps_whole: bool,
    ) -> Result<Vec<Standing>, StoreError> {
        let execution = &look.execution;
        let (id, head) = (execution.record.id, execution.record.head);
        let mut walk = Walk::new(id, look.gaps.clone());
        let mut standing = Vec::new();
        let mut broken: Vec<Break> = Vec::new();
        let (mut last, mut has_head) = (i64::MIN, false);
        loop {
            let rows = reader.query(POINTS, &[&execution.key, &last, &PAGE]).await?;
            for row in &rows {
                self.report.checkpoints += 1;
                last = get(row, 1).map_err(|why| damaged("a checkpoint".to_owned(), why))?;
                let seq = u64::try_from(last).unwrap_or(0);
                has_head |= seq == head;
                let point = self.found(Point::read(row, 0, id))?;
                let link = point.as_ref().map(|point| point.link);
                broken.extend(walk.step(seq, link, |before| {
                    point.as_ref().map_or(*before, |point| point.link_after(before))
                }));
                let Some(point) = point else { continue };
                let Some(record) = self.found(point.record(execution))? else { continue };
                if !look.runs.contains(&record.workflow_id) {
                    self.problem(format!(
                        "checkpoint @{seq} of execution {id} runs a workflow that is not kept for it"
                    ));
                }
                let is_decoded = seq == head || record.label.is_some();
                standing.push(Standing { seq, delta: point.delta, is_decoded });
            }
            if rows.is_empty() {
                break;
            }
        }
        if !has_head {
            self.problem(format!("the head @{head} of execution {id} is missing"));
        }
        broken.extend(walk.end(head, &execution.link));
        // Without a gap that is damaged, all behind it would seem to be missing.
        if are_gaps_whole {
            broken.iter().for_each(|found| self.problem(found.of_points(id)));
        }
        Ok(standing)
    }

    async fn operations(
        &mut self,
        reader: &mut Reader<'_>,
        execution: &ExecutionRow,
    ) -> Result<(), StoreError> {
        let id = execution.record.id;
        let mut walk = Walk::new(id, Vec::new());
        let mut broken: Vec<Break> = Vec::new();
        let (mut last, mut newest) = (i64::MIN, 0);
        loop {
            let rows = reader.query(OPERATIONS, &[&execution.key, &last, &PAGE]).await?;
            for row in &rows {
                last = get(row, 1).map_err(|why| damaged("an operation".to_owned(), why))?;
                newest = u64::try_from(last).unwrap_or(0);
                let operation = self.found(Operation::read(row, id))?;
                let link = operation.as_ref().map(|operation| operation.link);
                broken.extend(walk.step(newest, link, |before| {
                    operation.as_ref().map_or(*before, |operation| operation.link_after(before))
                }));
                if let Some(operation) = operation {
                    self.found(operation.record(execution))?;
                }
            }
            if rows.is_empty() {
                break;
            }
        }
        let Log { last, link } = execution.log;
        let end = walk.end(newest, &link).is_some() || newest != last;
        broken.extend(end.then_some(Break::Missing { first: newest + 1, last: newest }));
        broken.iter().for_each(|found| self.problem(found.of_operations(id)));
        Ok(())
    }

    /// Builds every state that a point of an execution stands on out of the one that it is based on.
    async fn states(
        &mut self,
        reader: &mut Reader<'_>,
        id: ExecutionId,
        standing: Vec<Standing>,
    ) -> Result<(), StoreError> {
        let mut states = States::default();
        for point in standing {
            let state = states.resolve(reader, point.delta).await;
            match self.found(state)? {
                Some((image, is_new)) => {
                    if is_new {
                        self.keyframe(reader, point.delta, &image).await?;
                    }
                    // The states of other libraries have no header.
                    if point.is_decoded && image.get(&Key::Header).is_some() {
                        self.found(context(id, &image))?;
                    }
                }
                None => self.problem(format!(
                    "the state of point @{} of execution {id} cannot be read: delta {}, or one it is based on, is damaged",
                    point.seq, point.delta
                )),
            }
        }
        Ok(())
    }

    async fn keyframe(
        &mut self,
        reader: &mut Reader<'_>,
        delta: i64,
        image: &Image,
    ) -> Result<(), StoreError> {
        let frame = chain::frame(reader, delta).await;
        if let Some(frame) = self.found(frame)?.flatten()
            && frame != image.to_delta()
        {
            self.problem(format!("keyframe {delta} is not the state that its deltas lead to"));
        }
        Ok(())
    }

    /// Looks at every delta by itself, whoever needs it.
    async fn deltas(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT d.key, d.base, d.body, d.checksum, \
                   EXISTS (SELECT FROM deltas b WHERE b.key = d.base) FROM deltas d \
                   WHERE d.key > $1 ORDER BY d.key LIMIT $2";
        let mut last = i64::MIN;
        loop {
            let rows = self.shared.db.query("checking", sql, &[&last, &BODIES]).await?;
            for row in &rows {
                last = get(row, 0).map_err(|why| damaged("a delta".to_owned(), why))?;
                let Some(delta) = self.found(DeltaRow::read(row))? else { continue };
                self.report.bytes += delta.body.len() as u64;
                let has_base = get::<bool>(row, 4).unwrap_or(true);
                if let Some(base) = delta.base.filter(|_| !has_base) {
                    self.problem(with_sources(&chain::missing(base)));
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
        }
    }

    /// Looks for rows that hang on others which are not there.
    async fn strays(&mut self) -> Result<(), StoreError> {
        for (table, of, sql) in STRAYS {
            let rows = self.shared.db.query("checking", sql, &[]).await?;
            let count = rows.first().map(|row| get::<i64>(row, 0)).transpose();
            let count = count.map_err(|why| damaged(format!("the table of {table}"), why))?.unwrap_or(0);
            if count > 0 {
                self.problem(format!("{count} rows of {table} name none of {of}"));
            }
        }
        Ok(())
    }

    async fn requests(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT r.key, r.execution, r.id, r.body, r.checksum FROM requests r WHERE r.key > $1 \
                   ORDER BY r.key LIMIT $2";
        let mut last = i64::MIN;
        loop {
            let rows = self.shared.db.query("checking", sql, &[&last, &PAGE]).await?;
            for row in &rows {
                last = get(row, 0).map_err(|why| damaged("a request".to_owned(), why))?;
                self.found(row::request(row))?;
            }
            if rows.is_empty() {
                return Ok(());
            }
        }
    }
}

/// What hangs on what, and counts those of its rows for which that is not there.
const STRAYS: [(&str, &str, &str); 6] = [
    (
        "keyframes",
        "deltas",
        "SELECT count(*) FROM keyframes r WHERE NOT EXISTS (SELECT FROM deltas d WHERE d.key = r.delta)",
    ),
    (
        "checkpoints",
        "executions",
        "SELECT count(*) FROM checkpoints r WHERE NOT EXISTS (SELECT FROM executions e WHERE e.key = r.execution)",
    ),
    (
        "gaps",
        "executions",
        "SELECT count(*) FROM gaps r WHERE NOT EXISTS (SELECT FROM executions e WHERE e.key = r.execution)",
    ),
    (
        "operations",
        "executions",
        "SELECT count(*) FROM operations r WHERE NOT EXISTS (SELECT FROM executions e WHERE e.key = r.execution)",
    ),
    (
        "requests",
        "executions",
        "SELECT count(*) FROM requests r WHERE NOT EXISTS (SELECT FROM executions e WHERE e.key = r.execution)",
    ),
    (
        "execution_workflows",
        "executions",
        "SELECT count(*) FROM execution_workflows r WHERE NOT EXISTS \
         (SELECT FROM executions e WHERE e.key = r.execution)",
    ),
];

/// States that others may be based on, as they are built.
#[derive(Default)]
struct States {
    images: HashMap<i64, Image>,
    /// How many deltas have not been built yet on each.
    waiting: HashMap<i64, i64>,
    seen: HashSet<i64>,
}

/// The way from a delta down, without keyframes, and how many build on each.
const WAY: &str = "
WITH RECURSIVE way AS (
    SELECT d.key, d.base FROM deltas d WHERE d.key = $1
  UNION ALL
    SELECT d.key, d.base FROM way w CROSS JOIN LATERAL (
        SELECT d.key, d.base FROM deltas d WHERE d.key = w.base LIMIT 1
    ) d WHERE d.key < w.key AND w.key <> ALL ($2)
)
SELECT w.key, w.base, (SELECT count(*) FROM deltas k WHERE k.base = w.key) FROM way w ORDER BY w.key DESC";

impl States {
    /// Returns the state that a delta leads to, and whether this is the first look at it.
    async fn resolve(&mut self, reader: &mut Reader<'_>, delta: i64) -> Result<(Image, bool), StoreError> {
        let is_new = self.seen.insert(delta);
        if let Some(image) = self.images.get(&delta) {
            return Ok((image.clone(), is_new));
        }
        let known: Vec<i64> = self.images.keys().copied().collect();
        let rows = reader.query(WAY, &[&delta, &known]).await?;
        let way: Vec<(i64, Option<i64>, i64)> = rows
            .iter()
            .map(link)
            .collect::<Result<_, Damage>>()
            .map_err(|why| damaged(chain::name(delta), why))?;
        let start = way.iter().position(|(key, _, _)| self.images.contains_key(key)).unwrap_or(way.len());
        let mut image = match way.get(start).and_then(|(key, _, _)| self.images.get(key)) {
            Some(image) => image.clone(),
            None => {
                let (key, base, _) = way.last().copied().ok_or_else(|| chain::missing(delta))?;
                match base {
                    None => Image::default(),
                    Some(base) if base < key => return Err(chain::missing(base)),
                    Some(_) => return Err(damaged(chain::name(key), "it builds on a newer one".to_owned())),
                }
            }
        };
        for (key, base, children) in way[..start].iter().rev() {
            let rows = chain::rows(reader, &[*key]).await?;
            let row = rows.first().ok_or_else(|| chain::missing(*key))?;
            image.apply(&chain::name(*key), &row.decoded()?)?;
            if let Some(base) = base {
                self.built_on(*base);
            }
            if *children > 0 {
                self.waiting.insert(*key, *children);
                self.images.insert(*key, image.clone());
            }
        }
        Ok((image, is_new))
    }

    /// Forgets a state that nothing more builds on.
    fn built_on(&mut self, base: i64) {
        if let Some(left) = self.waiting.get_mut(&base) {
            *left -= 1;
            if *left <= 0 {
                self.waiting.remove(&base);
                self.images.remove(&base);
            }
        }
    }
}

fn link(row: &Row) -> Result<(i64, Option<i64>, i64), Damage> {
    Ok((get(row, 0)?, get(row, 1)?, get(row, 2)?))
}

fn with_sources(error: &StoreError) -> String {
    let sources = std::iter::successors(std::error::Error::source(error), |source| source.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
