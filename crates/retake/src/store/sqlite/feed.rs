//! The points in the order in which they became durable.
//!
//! That is the order of their deltas: every point brings one, deltas are numbered in the order of the transactions, of
//! which there is one at a time, and no number is given twice. Points of the time before that was so may share the delta
//! of another, and stand with it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::chain;
use super::db::{self, Db};
use super::row::ExecutionRow;
use crate::execution::ExecutionId;
use crate::store::feed::StoreKind;
use crate::store::{Feed, FeedPage, FeedPoint, Position, Since, StoreError};

/// Selects the points of all executions behind a place.
macro_rules! all {
    () => {
        "SELECT delta, execution, seq FROM checkpoints WHERE (delta, execution, seq) > (?1, ?2, ?3) \
         ORDER BY delta, execution, seq LIMIT ?4"
    };
}

/// Where a point stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    delta: i64,
    execution: i64,
    seq: i64,
}

pub(super) fn feed(db: &Db, page: FeedPage) -> Result<Feed, StoreError> {
    let newest = db.number("SELECT coalesce(max(key), 0) FROM deltas", [])?.unwrap_or(0);
    let newest = u64::try_from(newest).unwrap_or(0);
    let most = i64::try_from(page.most()).unwrap_or(i64::MAX);
    let (after, own) = match page.since {
        Since::Start => (Position::behind(StoreKind::Sqlite, 0), None),
        Since::Now => return Ok(Feed::new(Vec::new(), Position::behind(StoreKind::Sqlite, newest))),
        Since::After(after) => (after, checked(db, after, newest)?),
    };
    let places = match page.execution {
        None => behind(db, after, most)?,
        Some(id) => match ExecutionRow::by_id(db, id)? {
            Some(execution) => {
                let own = own.filter(|own| own.execution == execution.key);
                of_one(db, execution.key, after, own, most)?
            }
            None => Vec::new(),
        },
    };
    let mut executions = HashMap::new();
    let points = places.into_iter().map(|place| point(db, &mut executions, place));
    Ok(Feed::new(points.collect::<Result<_, _>>()?, after))
}

/// Refuses a position that is not one of this store. Returns where its point is, if that is still there.
fn checked(db: &Db, position: Position, newest: u64) -> Result<Option<Place>, StoreError> {
    position.check(StoreKind::Sqlite, newest)?;
    let Some((id, seq)) = position.point else { return Ok(None) };
    let own = place_of(db, id, bound(seq))?;
    let place = own.and_then(|own| u64::try_from(own.delta).ok());
    let sql = "SELECT 1 FROM checkpoints WHERE delta = ?1 LIMIT 1";
    let is_taken = db.number(sql, [bound(position.place)])?.is_some();
    position.check_point(place, is_taken)?;
    Ok(own.filter(|own| own.delta == bound(position.place)))
}

fn place_of(db: &Db, id: ExecutionId, seq: i64) -> Result<Option<Place>, StoreError> {
    let key = db.number("SELECT key FROM executions WHERE id = ?1", [id.as_bytes()])?;
    let Some(execution) = key else { return Ok(None) };
    let sql = "SELECT delta FROM checkpoints WHERE execution = ?1 AND seq = ?2";
    let delta = db.number(sql, [execution, seq])?;
    Ok(delta.map(|delta| Place { delta, execution, seq }))
}

/// Returns where the points of all executions behind a position are.
fn behind(db: &Db, after: Position, most: i64) -> Result<Vec<Place>, StoreError> {
    let (execution, seq) = match after.point {
        Some((_, seq)) => (bound(after.minor), bound(seq)),
        None => (i64::MAX, i64::MAX),
    };
    places(db, all!(), [bound(after.place), execution, seq, most])
}

/// Returns where the points of one execution behind a position are. They follow each other by their numbers, so that a
/// point of its own says where to go on; any other place has to be looked for.
fn of_one(
    db: &Db,
    execution: i64,
    after: Position,
    own: Option<Place>,
    most: i64,
) -> Result<Vec<Place>, StoreError> {
    if let Some(own) = own {
        let sql = "SELECT delta, execution, seq FROM checkpoints WHERE execution = ?1 AND seq > ?2 \
                   ORDER BY seq LIMIT ?3";
        return places(db, sql, [execution, own.seq, most]);
    }
    let after = bound(after.place);
    let head = "SELECT delta FROM checkpoints WHERE execution = ?1 ORDER BY seq DESC LIMIT 1";
    // Whoever waits for the first new point asks often.
    if db.number(head, [execution])?.is_none_or(|head| head <= after) {
        return Ok(Vec::new());
    }
    let sql = "SELECT delta, execution, seq FROM checkpoints WHERE execution = ?1 AND delta > ?2 \
               ORDER BY seq LIMIT ?3";
    places(db, sql, [execution, after, most])
}

fn places(db: &Db, sql: &'static str, params: impl rusqlite::Params) -> Result<Vec<Place>, StoreError> {
    db.all(
        sql,
        params,
        |_| "the index of points by their deltas".to_owned(),
        |row| {
            Ok(Place {
                delta: db::integer(row, 0)?,
                execution: db::integer(row, 1)?,
                seq: db::integer(row, 2)?,
            })
        },
    )
}

/// Reads a point. Its execution is read once a page.
fn point(
    db: &Db,
    executions: &mut HashMap<i64, ExecutionRow>,
    place: Place,
) -> Result<FeedPoint, StoreError> {
    let misled = |why: &str| StoreError::Corrupt { record: chain::name(place.delta), why: why.to_owned() };
    let execution = match executions.entry(place.execution) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => {
            let row = ExecutionRow::by_key(db, place.execution)?;
            unknown.insert(row.ok_or_else(|| misled("the execution of a point on it is missing"))?)
        }
    };
    let seq = u64::try_from(place.seq).unwrap_or(0);
    let row = execution.point(db, seq)?;
    // The index has no checksums.
    if row.delta != place.delta {
        return Err(misled("the index names a point for it that stands elsewhere"));
    }
    let position = Position {
        kind: StoreKind::Sqlite,
        place: u64::try_from(place.delta).unwrap_or(0),
        minor: u64::try_from(place.execution).unwrap_or(0),
        point: Some((execution.record.id, seq)),
    };
    Ok(FeedPoint { position, name: execution.record.name.clone(), record: row.record })
}

/// Returns a number of a position as SQLite has it; a position has none that is larger.
fn bound(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn a_page_is_found_without_a_look_at_the_points_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("retake.db").into();
        let (db, _) = schema::prepare(&path, schema::Missing::Create, &[]).unwrap();
        let plan = db.all(
            concat!("EXPLAIN QUERY PLAN ", all!()),
            [1, 2, 3, 4],
            |_| "a step of the plan".to_owned(),
            |row| db::text(row, 3),
        );
        assert_eq!(
            plan.unwrap(),
            ["SEARCH checkpoints USING COVERING INDEX checkpoints_by_delta ((delta,execution,seq)>(?,?,?))"]
        );
    }
}
