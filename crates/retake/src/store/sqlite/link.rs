//! The gaps that pruning leaves in a history's chain, as they lie in the file.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::db::{self, Damage, Db};
use super::row::ExecutionRow;
pub(super) use crate::store::link::{Break, Gap, Link, Walk, across, start};
use crate::store::{Seq, StoreError, link};

/// Returns the link of a row that follows another: over its table's name and `values`, all that is never changed in it.
pub(super) fn next<'a>(before: &Link, table: &str, values: impl IntoIterator<Item = ValueRef<'a>>) -> Link {
    link::next(before, table, |hash| values.into_iter().for_each(|value| db::feed(hash, value)))
}

/// Returns an execution's gaps in order.
pub(super) fn gaps(db: &Db, execution: &ExecutionRow) -> Result<Vec<Gap>, StoreError> {
    db.all(
        "SELECT execution, first, last, link, checksum FROM gaps WHERE execution = ?1 ORDER BY first",
        [execution.key],
        |row| name(execution, row),
        |row| read(db, row),
    )
}

/// Notes points that go, in order, each with its link. Those beside a gap join it.
pub(super) fn prune(db: &Db, execution: &ExecutionRow, gone: &[(Seq, Link)]) -> Result<(), StoreError> {
    Gap::of(gone).into_iter().try_for_each(|gap| note(db, execution, gap))
}

/// Notes a gap, as one with those on either side of it.
pub(super) fn note(db: &Db, execution: &ExecutionRow, mut gap: Gap) -> Result<(), StoreError> {
    let beside = |sql, seq| -> Result<Option<Gap>, StoreError> {
        db.first(
            sql,
            [execution.key, db::stored("the point", seq)?],
            |row| name(execution, row),
            |row| read(db, row),
        )
    };
    let before = "SELECT execution, first, last, link, checksum FROM gaps WHERE execution = ?1 AND last = ?2";
    let after = "SELECT execution, first, last, link, checksum FROM gaps WHERE execution = ?1 AND first = ?2";
    if let Some(before) = beside(before, gap.first - 1)? {
        gap.first = before.first;
    }
    if let Some(after) = beside(after, gap.last + 1)? {
        remove(db, execution, after.first)?;
        (gap.last, gap.link) = (after.last, after.link);
    }
    insert(db, execution.key, gap)
}

/// Writes a gap that stands alone.
pub(super) fn insert(db: &Db, execution: i64, gap: Gap) -> Result<(), StoreError> {
    let values = [
        ValueRef::Integer(execution),
        ValueRef::Integer(db::stored("the point", gap.first)?),
        ValueRef::Integer(db::stored("the point", gap.last)?),
        ValueRef::Blob(&gap.link),
    ];
    let sql =
        "INSERT OR REPLACE INTO gaps (execution, first, last, link, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.put("gaps", sql, &values)
}

fn name(execution: &ExecutionRow, row: &Row<'_>) -> String {
    format!("gap @{} of execution {}", db::shown(row, 1), execution.record.id)
}

fn read(db: &Db, row: &Row<'_>) -> Result<Gap, Damage> {
    db.verify("gaps", row, 4)?;
    Ok(Gap { first: db::count(row, 1)?, last: db::count(row, 2)?, link: db::link(row, 3)? })
}

fn remove(db: &Db, execution: &ExecutionRow, first: Seq) -> Result<(), StoreError> {
    let first = db::stored("the point", first)?;
    db.run("DELETE FROM gaps WHERE execution = ?1 AND first = ?2", [execution.key, first]).map(|_| ())
}
