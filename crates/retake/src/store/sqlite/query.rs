//! Reading records.

use rusqlite::types::ToSqlOutput;

use super::Shared;
use super::chain;
use super::db::{self, Db};
use super::link;
use super::row::{
    self, CheckpointRow, ExecutionRow, checkpoint_columns, execution_columns, operation_columns,
};
use crate::checkpoint::CheckpointId;
use crate::execution::ExecutionId;
use crate::store::record::ids_beginning;
use crate::store::{
    CheckpointRecord, ExecutionFilter, ExecutionRecord, HistoryPage, Image, OperationRecord, Seq, StoreError,
};

/// Selects the forks of an execution, newest first. Costs those, not all executions.
macro_rules! forks {
    () => {
        concat!(
            "SELECT ",
            execution_columns!(),
            " FROM executions WHERE origin_id = ?3 AND (?1 IS NULL OR state_name = ?1) \
             ORDER BY created_at DESC, id DESC LIMIT ?2"
        )
    };
}

fn seen(shared: &Shared, execution: ExecutionRow) -> ExecutionRecord {
    let leased_by = shared.holder(&execution).map(|holder| holder.name.clone());
    ExecutionRecord { leased_by, ..execution.record }
}

/// Reads an execution, and looks whether its head is its newest point: rows that came back as they once were are whole
/// by themselves.
fn current(db: &Db, id: ExecutionId) -> Result<Option<ExecutionRow>, StoreError> {
    let execution = ExecutionRow::by_id(db, id)?;
    execution.iter().try_for_each(|execution| check_head(db, execution))?;
    Ok(execution)
}

fn check_head(db: &Db, execution: &ExecutionRow) -> Result<(), StoreError> {
    let (id, head) = (execution.record.id, execution.record.head);
    let newest = db.number(
        "SELECT seq FROM checkpoints WHERE execution = ?1 ORDER BY seq DESC LIMIT 1",
        [execution.key],
    )?;
    if newest.and_then(|newest| u64::try_from(newest).ok()) == Some(head) {
        return Ok(());
    }
    let why = match newest {
        Some(newest) => format!("its head is @{head}, and its newest point is @{newest}"),
        None => format!("its head is @{head}, and it has no points"),
    };
    Err(StoreError::Corrupt { record: format!("execution {id}"), why })
}

pub(super) fn execution(
    db: &Db,
    shared: &Shared,
    id: ExecutionId,
) -> Result<Option<ExecutionRecord>, StoreError> {
    Ok(current(db, id)?.map(|execution| seen(shared, execution)))
}

pub(super) fn executions(
    db: &Db,
    shared: &Shared,
    filter: &ExecutionFilter,
) -> Result<Vec<ExecutionRecord>, StoreError> {
    let state = filter.state.as_deref();
    let limit = limit(filter.limit);
    let origin = filter.origin.as_ref().map(|id| id.as_bytes());
    let rows = match (&filter.address, origin) {
        (None, Some(origin)) => {
            db.all(forks!(), (state, limit, origin), ExecutionRow::name, |row| ExecutionRow::read(db, row))
        }
        (None, None) => db.all(
            concat!(
                "SELECT ",
                execution_columns!(),
                " FROM executions WHERE ?1 IS NULL OR state_name = ?1 ORDER BY created_at DESC, id DESC LIMIT ?2"
            ),
            (state, limit),
            ExecutionRow::name,
            |row| ExecutionRow::read(db, row),
        ),
        (Some(address), _) => {
            let (least, most) = ids_beginning(address).unzip();
            let name = db.guard().name(address)?;
            let name = ToSqlOutput::Borrowed(name.value());
            db.all(
                concat!(
                    "SELECT ",
                    execution_columns!(),
                    " FROM executions WHERE (name = ?3 OR id BETWEEN ?4 AND ?5) AND (?1 IS NULL OR state_name = ?1) \
                     AND (?6 IS NULL OR origin_id = ?6) ORDER BY created_at DESC, id DESC LIMIT ?2"
                ),
                (state, limit, name, least, most, origin),
                ExecutionRow::name,
                |row| ExecutionRow::read(db, row),
            )
        }
    };
    let rows = rows?;
    rows.iter().try_for_each(|execution| check_head(db, execution))?;
    // The order comes from an index, which has no checksums: one that names a row twice is found here.
    let order = |row: &ExecutionRow| (row.record.created_at, row.record.id);
    if !rows.is_sorted_by(|newer, older| order(newer) > order(older)) {
        let record = "the index of executions by their creation".to_owned();
        return Err(StoreError::Corrupt { record, why: "it is not in order".to_owned() });
    }
    Ok(rows.into_iter().map(|execution| seen(shared, execution)).collect())
}

fn limit(most: Option<usize>) -> i64 {
    most.and_then(|most| i64::try_from(most).ok()).unwrap_or(-1)
}

pub(super) fn history(
    db: &Db,
    id: ExecutionId,
    page: HistoryPage,
) -> Result<Vec<CheckpointRecord>, StoreError> {
    let Some(execution) = current(db, id)? else { return Ok(Vec::new()) };
    let before = page.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let points = db.all(
        concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints WHERE execution = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3"
        ),
        [execution.key, before, limit(page.limit)],
        |row| CheckpointRow::name(&execution.record, row),
        |row| {
            db::expect(row, 0, execution.key)?;
            CheckpointRow::read(db, &execution.record, row).map(|point| point.record)
        },
    )?;
    // A page that is there twice holds rows that are whole.
    match points.windows(2).find(|pair| pair[0].seq <= pair[1].seq) {
        None => Ok(points),
        Some(pair) => Err(StoreError::Corrupt {
            record: format!("the history of execution {id}"),
            why: format!("@{} stands behind @{}", pair[0].seq, pair[1].seq),
        }),
    }
}

pub(super) fn checkpoint(db: &Db, id: CheckpointId) -> Result<Option<CheckpointRecord>, StoreError> {
    let place = db.first(
        "SELECT execution, seq FROM checkpoints WHERE id = ?1",
        [id.as_bytes()],
        |_| format!("checkpoint {id}"),
        |row| Ok((db::integer(row, 0)?, db::count(row, 1)?)),
    )?;
    let Some((key, seq)) = place else { return Ok(None) };
    let execution = ExecutionRow::by_key(db, key)?.ok_or_else(|| StoreError::Corrupt {
        record: format!("checkpoint {id}"),
        why: "its execution is missing".to_owned(),
    })?;
    let point = execution.point(db, seq)?.record;
    // The index has no checksums, and SQLite does not compare it with the row that it leads to.
    if point.id != id {
        return Err(StoreError::Corrupt {
            record: format!("checkpoint {id}"),
            why: format!("the index leads to @{seq} of execution {}", point.execution_id),
        });
    }
    Ok(Some(point))
}

pub(super) fn state(db: &Db, id: ExecutionId, seq: Seq) -> Result<Image, StoreError> {
    let execution = current(db, id)?.ok_or(StoreError::NoExecution(id))?;
    chain::image(db, execution.point(db, seq)?.delta)
}

pub(super) fn operations(db: &Db, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError> {
    let Some(execution) = current(db, id)? else { return Ok(Vec::new()) };
    let mut newest = None;
    let operations = db.all(
        concat!(
            "SELECT ",
            operation_columns!(),
            " FROM operations WHERE execution = ?1 ORDER BY number DESC"
        ),
        [execution.key],
        |row| format!("operation {} of execution {id}", db::shown(row, 1)),
        |row| {
            db::expect(row, 0, execution.key)?;
            let operation = row::operation(db, id, row)?;
            newest.get_or_insert(db::link(row, 8)?);
            Ok(operation)
        },
    )?;
    // They are counted from 1, none of them ever goes, and the execution's row knows the last.
    let is_newest = newest.unwrap_or_else(|| link::start(id)) == execution.log_link;
    let counted = (1_u64..).zip(operations.iter().rev());
    let missing = counted.into_iter().find(|(number, operation)| *number != operation.number);
    let number = match missing {
        None if is_newest => return Ok(operations),
        None => operations.len() as u64 + 1,
        Some((number, _)) => number,
    };
    let record = format!("operation {number} of execution {id}");
    Err(StoreError::Corrupt { record, why: "it is missing".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn forks_are_found_in_order_without_a_look_at_other_executions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("retake.db").into();
        let (db, _) = schema::prepare(&path, schema::Missing::Create, &[]).unwrap();
        let plan = db.all(
            concat!("EXPLAIN QUERY PLAN ", forks!()),
            (None::<&str>, -1, [7_u8; 16]),
            |_| "a step of the plan".to_owned(),
            |row| db::text(row, 3),
        );
        assert_eq!(plan.unwrap(), ["SEARCH executions USING INDEX executions_by_origin (origin_id=?)"]);
    }
}
