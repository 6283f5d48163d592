//! States as they lie in the file: deltas, each on its base, and keyframes that hold a whole state now and then.
//!
//! ```text
//! deltas      1 <- 2 <- 3 <- 4 <- 5        the truth
//!                  ^         ^    `- 7     a rollback to the point of 5, or a fork of it
//!                  `- 6      |
//! keyframes                  4             derived; losing one costs time and nothing else
//! ```
//!
//! A base is always older than what builds on it, so no chain of damaged links can run in circles.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::body::{self, Body};
use super::db::{self, Damage, Db};
use super::guard::{Guard, Spot};
use super::row::ExecutionRow;
use crate::execution::ExecutionId;
pub(super) use crate::store::load::{ADDED_MIN, FLOOR_MIN, ROW_WEIGHT, length};
use crate::store::{Delta, Image, Seq, StoreError};

/// A keyframe is worth its bytes where it spares as much as this part of the state.
pub(super) const SPARED_MIN: i64 = 32;

/// A row of `deltas`.
#[derive(Debug)]
pub(super) struct DeltaRow {
    pub(super) base: Option<i64>,
    pub(super) body: Vec<u8>,
    /// Whether the base has a keyframe.
    is_base_framed: bool,
}

/// What lies between a delta and its nearest keyframe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// Bytes to read.
    pub(super) weight: i64,
    /// How many there may be before another keyframe is due.
    pub(super) floor: i64,
    /// Whether a keyframe was found, and not the root.
    is_framed: bool,
}

/// A state to be kept whole.
#[derive(Debug)]
pub(super) struct Keyframe {
    delta: i64,
    size: i64,
    /// `None` where it would spare next to nothing: what is to be read is hardly more than the state, as where one large
    /// value makes most of both.
    body: Option<Vec<u8>>,
    /// A hash of what it was read from.
    mark: [u8; 32],
}

/// Adds a delta. Returns its key.
pub(super) fn insert(db: &Db, base: Option<i64>, body: &[u8]) -> Result<i64, StoreError> {
    let key = db.number("SELECT coalesce(max(key), 0) + 1 FROM deltas", [])?.unwrap_or(1);
    write(db, "INSERT INTO deltas (key, base, body, checksum) VALUES (?1, ?2, ?3, ?4)", key, base, body)?;
    Ok(key)
}

/// Replaces a delta by one that does what it and those below it did.
pub(super) fn replace(db: &Db, key: i64, base: Option<i64>, body: &[u8]) -> Result<(), StoreError> {
    write(db, "UPDATE deltas SET base = ?2, body = ?3, checksum = ?4 WHERE key = ?1", key, base, body)
}

fn write(db: &Db, sql: &'static str, key: i64, base: Option<i64>, body: &[u8]) -> Result<(), StoreError> {
    let values =
        [ValueRef::Integer(key), base.map_or(ValueRef::Null, ValueRef::Integer), ValueRef::Blob(body)];
    db.put("deltas", sql, &values)
}

/// Removes a delta that nothing builds on, and its keyframe, on behalf of a point.
///
/// The newest leaves an empty one in its place, as the next would have its key otherwise: whoever has read up to the one
/// that goes would take that for seen.
pub(super) fn remove(db: &Db, owner: (ExecutionId, Seq), key: i64) -> Result<(), StoreError> {
    db.run("DELETE FROM keyframes WHERE delta = ?1", [key])?;
    if db.number("SELECT max(key) FROM deltas", [])? == Some(key) {
        let nothing = encoded(db.guard(), owner, &Delta::default(), None)?;
        return replace(db, key, None, &nothing.bytes);
    }
    db.run("DELETE FROM deltas WHERE key = ?1", [key]).map(|_| ())
}

/// Removes what [`remove`] left in the place of deltas that are not the newest any more. Costs a look at all deltas.
pub(super) fn sweep(db: &Db) -> Result<(), StoreError> {
    db.run(
        "DELETE FROM deltas WHERE base IS NULL AND key < (SELECT max(key) FROM deltas) \
         AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE checkpoints.delta = deltas.key) \
         AND NOT EXISTS (SELECT 1 FROM deltas AS above WHERE above.base = deltas.key) \
         AND NOT EXISTS (SELECT 1 FROM keyframes WHERE keyframes.delta = deltas.key)",
        [],
    )
    .map(|_| ())
}

/// Reads a delta's row, which must be there.
pub(super) fn row(db: &Db, key: i64) -> Result<DeltaRow, StoreError> {
    let found = db.first(
        "SELECT key, base, body, checksum, EXISTS (SELECT 1 FROM keyframes WHERE delta = base) FROM deltas \
         WHERE key = ?1",
        [key],
        |_| name(key),
        |row| {
            db.verify("deltas", row, 3)?;
            let base = db::optional_integer(row, 1)?;
            if base.is_some_and(|base| base >= key) {
                return Err("it builds on a newer one".to_owned());
            }
            let is_base_framed = db::integer(row, 4)? != 0;
            Ok(DeltaRow { base, body: db::blob(row, 2)?.to_vec(), is_base_framed })
        },
    )?;
    found.ok_or_else(|| missing(key))
}

/// Returns the delta that a delta builds on, without reading what it does.
pub(super) fn base(db: &Db, key: i64) -> Result<Option<i64>, StoreError> {
    let found = db.first(
        "SELECT base FROM deltas WHERE key = ?1",
        [key],
        |_| name(key),
        |row| match db::optional_integer(row, 0)? {
            Some(base) if base >= key => Err("it builds on a newer one".to_owned()),
            base => Ok(base),
        },
    )?;
    found.ok_or_else(|| missing(key))
}

/// Returns the state that a delta leads to. Costs the state: keyframes keep the way short.
pub(super) fn image(db: &Db, delta: i64) -> Result<Image, StoreError> {
    Ok(resolved(db, delta)?.0)
}

/// Returns the state that a delta leads to, and how many bytes of deltas were read behind a keyframe for it.
fn resolved(db: &Db, delta: i64) -> Result<(Image, i64), StoreError> {
    let mut image = Image::default();
    let mut read: i64 = 0;
    let mut way = Vec::new();
    let mut next = Some(delta);
    let mut may_be_framed = true;
    while let Some(key) = next {
        // A damaged keyframe is passed by: what lies behind it is the truth.
        if may_be_framed && let Ok(Some(keyframe)) = keyframe(db, key) {
            image.apply(&format!("keyframe {key}"), &keyframe)?;
            break;
        }
        let row = row(db, key)?;
        (next, may_be_framed) = (row.base, row.is_base_framed);
        way.push((key, row));
    }
    for (key, row) in way.iter().rev() {
        let raw = unpacked(db, "deltas", &name(*key), &row.body)?;
        read = read.saturating_add(length(&raw)).saturating_add(ROW_WEIGHT);
        image.apply(&name(*key), &Delta::decode(&name(*key), &raw)?)?;
    }
    Ok((image, read))
}

/// Reads the keyframe of a delta, if it has one.
pub(super) fn keyframe(db: &Db, delta: i64) -> Result<Option<Delta>, StoreError> {
    let record = || format!("keyframe {delta}");
    let body = db.first(
        "SELECT delta, size, body, checksum FROM keyframes WHERE delta = ?1",
        [delta],
        |_| record(),
        |row| {
            db.verify("keyframes", row, 3)?;
            Ok(db::blob(row, 2)?.to_vec())
        },
    )?;
    body.map(|body| Delta::decode(&record(), &unpacked(db, "keyframes", &record(), &body)?)).transpose()
}

/// Decodes the body of a delta.
pub(super) fn decoded(db: &Db, key: i64, body: &[u8]) -> Result<Delta, StoreError> {
    Delta::decode(&name(key), &unpacked(db, "deltas", &name(key), body)?)
}

fn unpacked(db: &Db, table: &'static str, record: &str, body: &[u8]) -> Result<Vec<u8>, StoreError> {
    let torn = |why| StoreError::Corrupt { record: record.to_owned(), why };
    body::unpack(record, &db.seen_body(table, body).map_err(torn)?)
}

/// Encodes a delta for a row, on behalf of a point of an execution.
pub(super) fn encoded(
    guard: &Guard,
    (owner, number): (ExecutionId, Seq),
    delta: &Delta,
    level: Option<i32>,
) -> Result<Body, StoreError> {
    // Before the bytes are put together.
    body::check_length(delta.bytes())?;
    let Body { bytes, compressed } = body::pack(delta.encode(), level)?;
    let bytes = guard.hide_body(Spot { table: "deltas", owner, number }, bytes)?;
    Ok(Body { bytes, compressed })
}

/// Measures the way from a delta to its nearest keyframe, or to the root, without reading the bodies on it.
///
/// Looks only at sizes, which stand before the bodies: a checksum stands behind its body, and to find it SQLite walks over
/// all of that.
pub(super) fn reach(db: &Db, delta: i64) -> Result<Reach, StoreError> {
    let size = "SELECT size FROM keyframes WHERE delta = ?1";
    let step = "SELECT base, length(body) FROM deltas WHERE key = ?1";
    walk(db, delta, (size, step), |_, _, _| Ok(()))
}

/// Returns the way from a delta to its nearest keyframe, with a hash of the rows on it: equal where they are the same.
fn marked_reach(db: &Db, delta: i64) -> Result<(Reach, [u8; 32]), StoreError> {
    let mut mark = blake3::Hasher::new();
    let size = "SELECT size, checksum FROM keyframes WHERE delta = ?1";
    let step = "SELECT base, length(body), checksum FROM deltas WHERE key = ?1";
    let reach = walk(db, delta, (size, step), |key, row, column| {
        mark.update(&key.to_le_bytes());
        mark.update(db::blob(row, column)?);
        Ok(())
    })?;
    Ok((reach, mark.finalize().into()))
}

/// Walks from a delta back to its nearest keyframe, by what finds a keyframe's size and what finds a delta's base and
/// length. `look` sees each row, and the column behind these.
fn walk(
    db: &Db,
    delta: i64,
    (size, step): (&'static str, &'static str),
    mut look: impl FnMut(i64, &Row<'_>, usize) -> Result<(), Damage>,
) -> Result<Reach, StoreError> {
    let mut weight = 0;
    let mut floor = FLOOR_MIN;
    let mut next = Some(delta);
    while let Some(key) = next.take() {
        let size = db.first(
            size,
            [key],
            |_| format!("keyframe {key}"),
            |row| {
                look(key, row, 1)?;
                db::integer(row, 0)
            },
        )?;
        if let Some(size) = size {
            return Ok(Reach { weight, floor: size.max(FLOOR_MIN), is_framed: true });
        }
        let (base, length) = db
            .first(
                step,
                [key],
                |_| name(key),
                |row| {
                    look(key, row, 2)?;
                    Ok((db::optional_integer(row, 0)?, db::integer(row, 1)?))
                },
            )?
            .ok_or_else(|| missing(key))?;
        match base.filter(|base| *base < key) {
            Some(base) => {
                weight += length + ROW_WEIGHT;
                next = Some(base);
            }
            // A root is a whole state, as a keyframe is.
            None => floor = length.max(FLOOR_MIN),
        }
    }
    Ok(Reach { weight, floor, is_framed: false })
}

/// Reads the state at the head of an execution as a keyframe, where one is due.
pub(super) fn due_keyframe(db: &Db, execution: i64) -> Result<Option<Keyframe>, StoreError> {
    let Some(execution) = ExecutionRow::by_key(db, execution)? else { return Ok(None) };
    let delta = execution.point(db, execution.record.head)?.delta;
    let (reach, mark) = marked_reach(db, delta)?;
    if reach.weight <= reach.floor {
        return Ok(None);
    }
    let (image, read) = resolved(db, delta)?;
    let raw = image.to_delta().encode();
    let size = length(&raw);
    let framed = if reach.is_framed { reach.floor } else { 0 };
    let spared = read.saturating_add(framed).saturating_sub(size);
    let body = match spared < size / SPARED_MIN {
        true => None,
        false => match body::pack(raw, Some(body::FAST)) {
            Ok(body) => {
                let (owner, number) = (execution.record.id, execution.record.head);
                Some(db.guard().hide_body(Spot { table: "keyframes", owner, number }, body.bytes)?)
            }
            // The state is larger than one row may be: it is read from its deltas.
            Err(StoreError::Unstorable { .. }) => None,
            Err(error) => return Err(error),
        },
    };
    Ok(Some(Keyframe { delta, size, body, mark }))
}

/// Writes a keyframe that is worth it, unless what it was read from has changed since.
pub(super) fn insert_keyframe(db: &Db, execution: i64, keyframe: &Keyframe) -> Result<(), StoreError> {
    let Some(mut execution) = ExecutionRow::by_key(db, execution)? else { return Ok(()) };
    // A key may belong to another delta by now, where the one it was made for has been removed.
    match marked_reach(db, keyframe.delta) {
        Ok((_, mark)) if mark == keyframe.mark => {}
        Ok(_) | Err(StoreError::Corrupt { .. }) => return Ok(()),
        Err(error) => return Err(error),
    }
    let Some(body) = &keyframe.body else {
        execution.floor = execution.weight.saturating_add(FLOOR_MIN.max(keyframe.size / ADDED_MIN));
        return execution.update(db);
    };
    put_keyframe(db, keyframe.delta, keyframe.size, body)?;
    weigh(db, &mut execution)?;
    execution.update(db)
}

/// Adds the whole state at a delta, where there is none yet.
pub(super) fn put_keyframe(db: &Db, delta: i64, size: i64, body: &[u8]) -> Result<(), StoreError> {
    db.put(
        "keyframes",
        "INSERT OR IGNORE INTO keyframes (delta, size, body, checksum) VALUES (?1, ?2, ?3, ?4)",
        &[ValueRef::Integer(delta), ValueRef::Integer(size), ValueRef::Blob(body)],
    )
}

/// Measures the way to the head's nearest keyframe again.
pub(super) fn weigh(db: &Db, execution: &mut ExecutionRow) -> Result<(), StoreError> {
    let reach = reach(db, execution.point(db, execution.record.head)?.delta)?;
    (execution.weight, execution.floor) = (reach.weight, reach.floor);
    Ok(())
}

/// Returns how a delta is called in errors.
pub(super) fn name(key: i64) -> String {
    format!("delta {key}")
}

pub(super) fn missing(key: i64) -> StoreError {
    StoreError::Corrupt { record: name(key), why: "it is missing".to_owned() }
}
