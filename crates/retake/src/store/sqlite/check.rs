//! Looking at every record.

use std::collections::HashMap;

use super::chain;
use super::db::{self, Db};
use super::lease;
use super::link::{self, Break, Walk};
use super::query;
use super::row::{self, CheckpointRow, ExecutionRow, checkpoint_columns, operation_columns};
use super::workflow;
use crate::execution::ExecutionId;
use crate::store::{Image, Key, Report, Seq, StoreError, context};

/// How many problems of the file's structure are listed: SQLite finds one for every page behind the first.
const STRUCTURE_PROBLEMS_MAX: i64 = 20;

/// A point that stands on a delta.
struct Point {
    execution_id: ExecutionId,
    seq: Seq,
    /// Heads, and what a person gave a name to, are decoded as well.
    is_decoded: bool,
}

/// The look, as far as it has come.
struct Check<'db> {
    db: &'db Db,
    report: Report,
    /// The points on each delta.
    points: HashMap<i64, Vec<Point>>,
}

/// Verifies every row, resolves every state, and decodes those at heads and labels.
pub(super) fn check(db: &Db) -> Report {
    let mut check = Check { db, report: Report::default(), points: HashMap::new() };
    check.structure();
    check.workflows();
    check.executions();
    check.states();
    check.requests();
    check.report
}

impl Check<'_> {
    /// Returns what was read, or takes the problem down.
    fn try_read<T>(&mut self, read: Result<T, StoreError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                self.report.problems.push(with_sources(&error));
                None
            }
        }
    }

    fn keys(&mut self, table: &str, sql: &'static str, params: &[i64]) -> Vec<i64> {
        let params = rusqlite::params_from_iter(params);
        let keys = self.db.all(sql, params, |_| format!("a key of {table}"), |row| db::integer(row, 0));
        self.try_read(keys).unwrap_or_default()
    }

    fn structure(&mut self) {
        let found = self.db.all(
            // Not the quick one, which does not look whether the indexes name the rows that there are.
            "SELECT * FROM pragma_integrity_check LIMIT ?1",
            [STRUCTURE_PROBLEMS_MAX],
            |_| "the file".to_owned(),
            |row| db::text(row, 0),
        );
        let problems = self.try_read(found).unwrap_or_default();
        self.report.problems.extend(problems.into_iter().filter(|problem| problem != "ok"));
        let dangling = self.db.all(
            "SELECT \"table\", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2",
            [],
            |_| "the file".to_owned(),
            |row| {
                Ok(format!(
                    "{} rows of {} name none of {}",
                    db::count(row, 2)?,
                    db::text(row, 0)?,
                    db::text(row, 1)?
                ))
            },
        );
        let problems = self.try_read(dangling).unwrap_or_default();
        self.report.problems.extend(problems);
    }

    fn workflows(&mut self) {
        let ids = self.db.all(
            "SELECT id FROM workflows",
            [],
            |row| format!("workflow {}", db::shown(row, 0)),
            |row| db::id(row, 0),
        );
        for id in self.try_read(ids).unwrap_or_default() {
            let definition = workflow::definition(self.db, id);
            if let Some(definition) = self.try_read(definition).flatten() {
                self.report.bytes += definition.len() as u64;
            }
        }
    }

    fn executions(&mut self) {
        for key in self.keys("executions", "SELECT key FROM executions NOT INDEXED ORDER BY key", &[]) {
            self.report.executions += 1;
            let execution = ExecutionRow::by_key(self.db, key);
            if let Some(execution) = self.try_read(execution).flatten() {
                self.workflows_of(&execution);
                self.checkpoints(&execution);
                self.operations(&execution);
                self.joints(&execution);
            }
        }
    }

    /// Looks at what keeps an execution's definitions. That its points run none but these, and that the definitions are
    /// there, is among the references which [`structure`](Self::structure) follows.
    fn workflows_of(&mut self, execution: &ExecutionRow) {
        let ever_run = workflow::ever_run(self.db, execution);
        let Some(ever_run) = self.try_read(ever_run) else { return };
        let running = execution.record.workflow_id;
        if !ever_run.contains(&running) {
            let id = execution.record.id;
            self.report
                .problems
                .push(format!("execution {id} runs workflow {running}, which is not kept for it"));
        }
    }

    fn checkpoints(&mut self, execution: &ExecutionRow) {
        let head = execution.record.head;
        let sql = "SELECT seq FROM checkpoints WHERE execution = ?1 ORDER BY seq";
        let mut has_head = false;
        for seq in self.keys("checkpoints", sql, &[execution.key]) {
            self.report.checkpoints += 1;
            let seq = u64::try_from(seq).unwrap_or(0);
            has_head |= seq == head;
            let point = execution.point(self.db, seq);
            let Some(row) = self.try_read(point) else { continue };
            let is_decoded = seq == head || row.record.label.is_some();
            let point = Point { execution_id: execution.record.id, seq, is_decoded };
            self.points.entry(row.delta).or_default().push(point);
            if !self.is_found_by_id(&row.record) {
                let id = execution.record.id;
                self.report
                    .problems
                    .push(format!("checkpoint @{seq} of execution {id} cannot be found by its id"));
            }
        }
        if !has_head {
            let problem = format!("the head @{head} of execution {} is missing", execution.record.id);
            self.report.problems.push(problem);
        }
    }

    fn is_found_by_id(&self, record: &crate::store::CheckpointRecord) -> bool {
        query::checkpoint(self.db, record.id).is_ok_and(|found| found.as_ref() == Some(record))
    }

    fn operations(&mut self, execution: &ExecutionRow) {
        let sql = "SELECT number FROM operations WHERE execution = ?1 ORDER BY number";
        for number in self.keys("operations", sql, &[execution.key]) {
            let operation = self.db.first(
                concat!(
                    "SELECT ",
                    operation_columns!(),
                    " FROM operations WHERE execution = ?1 AND number = ?2"
                ),
                [execution.key, number],
                |_| format!("operation {number} of execution {}", execution.record.id),
                |row| row::operation(self.db, execution.record.id, row),
            );
            self.try_read(operation);
        }
    }

    /// Looks at whether each point and each operation joins the one before it.
    fn joints(&mut self, execution: &ExecutionRow) {
        let id = execution.record.id;
        let gaps = link::gaps(self.db, execution);
        let Some(gaps) = self.try_read(gaps) else { return };
        let mut points = Walk::new(id, gaps);
        let sql =
            concat!("SELECT ", checkpoint_columns!(), " FROM checkpoints WHERE execution = ?1 ORDER BY seq");
        let broken = self.db.all(
            sql,
            [execution.key],
            |_| format!("the history of execution {id}"),
            |row| {
                let link = CheckpointRow::read(self.db, &execution.record, row).ok().map(|point| point.link);
                let columns = db::columns(row, 15)?;
                Ok(points.step(db::count(row, 1)?, link, |before| row::checkpoint_link(before, &columns)))
            },
        );
        let broken = self.try_read(broken).unwrap_or_default();
        let end = points.end(execution.record.head, &execution.link);
        for found in broken.into_iter().chain([end]).flatten() {
            self.report.problems.push(found.of_points(id));
        }
        self.log_joints(execution);
    }

    fn log_joints(&mut self, execution: &ExecutionRow) {
        let id = execution.record.id;
        let mut operations = Walk::new(id, Vec::new());
        let mut last = 0;
        let sql =
            concat!("SELECT ", operation_columns!(), " FROM operations WHERE execution = ?1 ORDER BY number");
        let broken = self.db.all(
            sql,
            [execution.key],
            |_| format!("the operation log of execution {id}"),
            |row| {
                let link = row::operation(self.db, id, row).and_then(|_| db::link(row, 8)).ok();
                let columns = db::columns(row, 8)?;
                last = db::count(row, 1)?;
                Ok(operations.step(last, link, |before| link::next(before, "operations", columns)))
            },
        );
        let broken = self.try_read(broken).unwrap_or_default();
        // How many there were is not known but by the last link.
        let end = operations.end(last, &execution.log_link).map(|_| Break::Missing { first: last + 1, last });
        for found in broken.into_iter().chain([end]).flatten() {
            self.report.problems.push(found.of_operations(id));
        }
    }

    /// Builds every state out of the one it is based on, oldest first.
    fn states(&mut self) {
        let sql = "SELECT base FROM deltas NOT INDEXED WHERE base IS NOT NULL";
        let mut waiting: HashMap<i64, u64> = HashMap::new();
        for base in self.keys("deltas", sql, &[]) {
            *waiting.entry(base).or_default() += 1;
        }
        let mut images: HashMap<i64, Image> = HashMap::new();
        for key in self.keys("deltas", "SELECT key FROM deltas NOT INDEXED ORDER BY key", &[]) {
            let row = chain::row(self.db, key);
            let Some(row) = self.try_read(row) else {
                self.unreadable(key);
                continue;
            };
            self.report.bytes += row.body.len() as u64;
            let base = match row.base {
                None => Some(Image::default()),
                Some(base) => images.get(&base).cloned(),
            };
            let image = base.map(|image| advanced(self.db, image, key, &row.body));
            match image {
                Some(Ok(image)) => {
                    self.keyframe(key, &image);
                    self.decode(key, &image);
                    if waiting.contains_key(&key) {
                        images.insert(key, image);
                    }
                }
                Some(Err(error)) => {
                    self.report.problems.push(error.to_string());
                    self.unreadable(key);
                }
                // What it is based on has been reported.
                None => self.unreadable(key),
            }
            if let Some(base) = row.base
                && let Some(left) = waiting.get_mut(&base)
            {
                *left -= 1;
                if *left == 0 {
                    images.remove(&base);
                }
            }
        }
        for (key, points) in std::mem::take(&mut self.points) {
            let missing = points.iter().map(|point| {
                format!(
                    "the state of point @{} of execution {} is missing: delta {key}",
                    point.seq, point.execution_id
                )
            });
            self.report.problems.extend(missing);
        }
    }

    fn keyframe(&mut self, key: i64, image: &Image) {
        let keyframe = chain::keyframe(self.db, key);
        if let Some(keyframe) = self.try_read(keyframe).flatten()
            && keyframe != image.to_delta()
        {
            self.report.problems.push(format!("keyframe {key} is not the state that its deltas lead to"));
        }
    }

    /// Decodes a state, unless it is that of another library: those of this one have a header.
    fn decode(&mut self, key: i64, image: &Image) {
        let points = self.points.remove(&key).unwrap_or_default();
        let is_ours = image.get(&Key::Header).is_some();
        for point in points.iter().filter(|point| is_ours && point.is_decoded) {
            let context = context(point.execution_id, image);
            self.try_read(context);
        }
    }

    fn unreadable(&mut self, key: i64) {
        for point in self.points.remove(&key).into_iter().flatten() {
            self.report.problems.push(format!(
                "the state of point @{} of execution {} cannot be read: delta {key}, or one it is based on, is damaged",
                point.seq, point.execution_id
            ));
        }
    }

    fn requests(&mut self) {
        for key in self.keys("requests", "SELECT key FROM requests NOT INDEXED", &[]) {
            let request = self.db.first(
                "SELECT key, execution, id, body, checksum FROM requests WHERE key = ?1",
                [key],
                lease::request_name,
                |row| lease::request(self.db, row),
            );
            self.try_read(request);
        }
    }
}

fn with_sources(error: &StoreError) -> String {
    let sources = std::iter::successors(std::error::Error::source(error), |source| source.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

fn advanced(db: &Db, mut image: Image, key: i64, body: &[u8]) -> Result<Image, StoreError> {
    image.apply(&chain::name(key), &chain::decoded(db, key, body)?)?;
    Ok(image)
}
