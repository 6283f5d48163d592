//! Chains of hashes, by which a removed or moved row of a history shows.
//!
//! ```text
//! start ──▶ @1 ──▶ @2 ──▶ (@3 to @6: pruned) ──▶ @7 ──▶ the execution's row
//! ```
//!
//! Every checkpoint holds the hash of itself and of the checkpoint before it; the execution's row holds the last. What
//! has been pruned leaves a *gap*: its first and last number, and the last of its hashes, so that what follows still
//! joins. Operations are chained in the same way, and are never pruned.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::db::{self, Damage, Db, Hash};
use super::row::ExecutionRow;
use crate::execution::ExecutionId;
use crate::store::{Seq, StoreError};

/// What a row is joined to the next one by.
pub(super) type Link = [u8; 32];

/// Points that have been pruned, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) first: Seq,
    pub(super) last: Seq,
    /// That of the last point in it.
    pub(super) link: Link,
}

/// Returns what the first row of a chain is joined to.
pub(super) fn start(execution: ExecutionId) -> Link {
    let mut hash = Hash::of("a chain's start");
    hash.value(ValueRef::Blob(execution.as_bytes()));
    hash.finish()
}

/// Returns the link of a row that follows another: over its table's name and `values`, all that is never changed in it.
pub(super) fn next<'a>(before: &Link, table: &str, values: impl IntoIterator<Item = ValueRef<'a>>) -> Link {
    let mut hash = Hash::of(table);
    hash.value(ValueRef::Blob(before));
    values.into_iter().for_each(|value| hash.value(value));
    hash.finish()
}

/// Returns what joins across points whose own links are not known: they were gone before there were any.
pub(super) fn across(before: &Link, first: Seq, last: Seq) -> Result<Link, StoreError> {
    let ends = [db::stored("the point", first)?, db::stored("the point", last)?];
    Ok(next(before, "gaps", ends.map(ValueRef::Integer)))
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
    let mut run: Option<Gap> = None;
    for (seq, link) in gone {
        match &mut run {
            Some(gap) if gap.last + 1 == *seq => (gap.last, gap.link) = (*seq, *link),
            Some(_) | None => {
                if let Some(gap) = run.replace(Gap { first: *seq, last: *seq, link: *link }) {
                    note(db, execution, gap)?;
                }
            }
        }
    }
    run.map_or(Ok(()), |gap| note(db, execution, gap))
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

/// A look along a chain, from its start.
#[derive(Debug)]
pub(super) struct Walk {
    gaps: Vec<Gap>,
    /// What the next row is joined to; `None` behind a damaged one.
    before: Option<Link>,
    next: u64,
}

/// How a chain shows that rows are missing or were moved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// These are not there, and have not been pruned.
    Missing { first: u64, last: u64 },
    /// This one is there, and is not what followed the one before it.
    Moved(u64),
}

impl Walk {
    pub(super) fn new(execution: ExecutionId, gaps: Vec<Gap>) -> Self {
        Self { gaps, before: Some(start(execution)), next: 1 }
    }

    /// Looks at the next row; `joined` gives its link from that of the one before. `None` stands for a row that is
    /// damaged, which is reported elsewhere.
    pub(super) fn step(
        &mut self,
        number: u64,
        found: Option<Link>,
        joined: impl FnOnce(&Link) -> Link,
    ) -> Option<Break> {
        let missing = (number > self.next).then(|| self.skip(number - 1)).flatten();
        let expected = self.before.as_ref().map(joined);
        self.before = found;
        self.next = self.next.max(number + 1);
        let is_moved = expected.is_some() && found.is_some() && expected != found;
        missing.or_else(|| is_moved.then_some(Break::Moved(number)))
    }

    /// Looks at the end: the number and the link that the last row is said to have.
    pub(super) fn end(mut self, last: u64, link: &Link) -> Option<Break> {
        if self.next <= last {
            return self.skip(last).or(Some(Break::Moved(last)));
        }
        let is_moved = self.next != last + 1 || self.before.is_some_and(|before| before != *link);
        is_moved.then_some(Break::Moved(last))
    }

    fn skip(&mut self, last: u64) -> Option<Break> {
        let first = self.next;
        let gap = self.gaps.iter().find(|gap| (gap.first, gap.last) == (first, last));
        self.before = gap.map(|gap| gap.link);
        self.next = last + 1;
        gap.is_none().then_some(Break::Missing { first, last })
    }
}
