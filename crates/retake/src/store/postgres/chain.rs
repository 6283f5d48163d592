//! States as they lie in the tables: deltas, each on its base, and keyframes that hold a whole state now and then.
//!
//! ```text
//! deltas      1 <- 2 <- 3 <- 4 <- 5        the truth
//!                  ^         ^    `- 7     a rollback to the point of 5, or a fork of it
//!                  `- 6      |
//! keyframes                  4             derived; losing one costs time and nothing else
//! ```
//!
//! A base is always older than what builds on it, so no chain of damaged links can run in circles. The server follows the
//! links: a state costs one round trip.

use tokio_postgres::Row;

use super::aside::aside;
use super::db::{Db, Transaction, Values};
use super::known::Reach;
use super::row::{self, damaged, delta_checksum, get, keyframe_checksum, verify};
use crate::store::body::{self, Body};
use crate::store::column::Damage;
use crate::store::load::{FLOOR_MIN, ROW_WEIGHT, length};
use crate::store::{Delta, Image, StoreError};

/// Damaged keyframes that are passed by on the way to one state; behind so many, none is looked at.
const PASSED_BY_MAX: usize = 16;

/// How something is read: on its own, or as a transaction sees it.
#[derive(Debug)]
pub(super) enum Reader<'a> {
    /// On its own.
    Db(&'a Db),
    /// As the transaction sees it.
    Transaction(&'a mut Transaction),
}

impl Reader<'_> {
    /// Returns where the store is, as people are told.
    fn location(&self) -> &str {
        match self {
            Self::Db(db) => db.location(),
            Self::Transaction(transaction) => transaction.location(),
        }
    }

    pub(super) async fn query(
        &mut self,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Db(db) => db.query("reading", sql, values).await,
            Self::Transaction(transaction) => transaction.query(sql, values).await,
        }
    }

    /// Runs a statement that changes something, on its own or as part of the transaction. `after` follows it when it is
    /// durable, unless it is part of one.
    pub(super) async fn write(
        &mut self,
        action: &'static str,
        sql: &'static str,
        values: Values<'_>,
        after: Option<(&'static str, Values<'_>)>,
    ) -> Result<Vec<Row>, StoreError> {
        match (self, after) {
            (Self::Db(db), None) => db.write(action, sql, values).await,
            (Self::Db(db), Some(after)) => {
                let rows = db.pipeline_and(action, &[(sql, values)], after).await?;
                Ok(rows.into_iter().next().unwrap_or_default())
            }
            (Self::Transaction(transaction), _) => transaction.query(sql, values).await,
        }
    }
}

/// A row of `deltas`.
#[derive(Debug)]
pub(super) struct DeltaRow {
    pub(super) key: i64,
    pub(super) base: Option<i64>,
    pub(super) body: Vec<u8>,
}

impl DeltaRow {
    /// Reads key, base, body and checksum.
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let read = || -> Result<Self, Damage> {
            let delta = Self { key: get(row, 0)?, base: get(row, 1)?, body: get(row, 2)? };
            verify(row, 3, delta_checksum(delta.key, delta.base, &delta.body))?;
            match delta.base {
                Some(base) if base >= delta.key => Err("it builds on a newer one".to_owned()),
                Some(_) | None => Ok(delta),
            }
        };
        read().map_err(|why| damaged(row.try_get(0).map_or_else(|_| "a delta".to_owned(), name), why))
    }

    pub(super) fn decoded(&self) -> Result<Delta, StoreError> {
        let name = name(self.key);
        Delta::decode(&name, &body::unpack(&name, &self.body)?)
    }
}

/// The way from a delta back to its nearest keyframe: key, base, body, checksum, and the keyframe's size, body and
/// checksum. Steps are lateral and limited, so that each is a look at an index, however the tables have grown since the
/// statement was planned.
macro_rules! way {
    ($delta:literal, $passed:literal) => {
        concat!("
WITH RECURSIVE way AS (
    SELECT d.key, d.base, d.body, d.checksum, k.size, k.body AS frame, k.checksum AS frame_checksum
    FROM deltas d LEFT JOIN LATERAL (
        SELECT k.size, k.body, k.checksum FROM keyframes k WHERE k.delta = d.key AND k.delta <> ALL (", $passed, ") LIMIT 1
    ) k ON true WHERE d.key = ", $delta, "
  UNION ALL
    SELECT d.key, d.base, d.body, d.checksum, k.size, k.body, k.checksum
    FROM way w CROSS JOIN LATERAL (
        SELECT d.key, d.base, d.body, d.checksum FROM deltas d WHERE d.key = w.base LIMIT 1
    ) d LEFT JOIN LATERAL (
        SELECT k.size, k.body, k.checksum FROM keyframes k WHERE k.delta = d.key AND k.delta <> ALL (", $passed, ") LIMIT 1
    ) k ON true
    WHERE w.size IS NULL AND d.key < w.key
)
SELECT key, base, CASE WHEN size IS NULL THEN body ELSE ''::bytea END, checksum, size, frame, frame_checksum
FROM way ORDER BY key DESC")
    };
}

pub(super) const WAY: &str = way!("$1", "$2::bigint[]");

/// The way from the delta of a point, by its execution's id and its number.
pub(super) const WAY_FROM_POINT: &str = way!(
    "(SELECT c.delta FROM executions e JOIN checkpoints c ON c.execution = e.key WHERE e.id = $1 AND c.seq = $2)",
    "'{}'::bigint[]"
);

/// The same way without what lies on it: bytes behind the keyframe, the keyframe's size, and the root's bytes.
macro_rules! reached {
    ($delta:literal) => {
        concat!(
            "way AS (
                SELECT d.key, d.base, octet_length(d.body)::bigint AS length, k.size
                FROM deltas d LEFT JOIN LATERAL (SELECT k.size FROM keyframes k WHERE k.delta = d.key LIMIT 1) k ON true
                WHERE d.key = ",
            $delta,
            "
              UNION ALL
                SELECT d.key, d.base, d.length, k.size
                FROM way w CROSS JOIN LATERAL (
                    SELECT d.key, d.base, octet_length(d.body)::bigint AS length FROM deltas d WHERE d.key = w.base LIMIT 1
                ) d LEFT JOIN LATERAL (SELECT k.size FROM keyframes k WHERE k.delta = d.key LIMIT 1) k ON true
                WHERE w.size IS NULL AND d.key < w.key
            ), reach AS (
                SELECT coalesce(sum(length + 64) FILTER (WHERE size IS NULL AND base IS NOT NULL), 0)::bigint AS weight,
                    max(size) AS size, max(length) FILTER (WHERE size IS NULL AND base IS NULL) AS root
                FROM way
            )"
        )
    };
}
pub(super) use reached;

/// Reads what `reach` selects, from a column on.
pub(super) fn read_reach(row: &Row, first: usize) -> Result<Reach, Damage> {
    let (weight, size, root): (i64, Option<i64>, Option<i64>) =
        (get(row, first)?, get(row, first + 1)?, get(row, first + 2)?);
    Ok(Reach { weight, floor: size.or(root).unwrap_or(0).max(FLOOR_MIN) })
}

/// Measures the way from a delta to its nearest keyframe, or to the root, without reading the bodies on it.
pub(super) async fn reach(reader: &mut Reader<'_>, delta: i64) -> Result<Reach, StoreError> {
    let sql = concat!("WITH RECURSIVE ", reached!("$1"), " SELECT weight, size, root FROM reach");
    let rows = reader.query(sql, &[&delta]).await?;
    let row = rows.first().ok_or_else(|| missing(delta))?;
    read_reach(row, 0).map_err(|why| damaged(name(delta), why))
}

/// A state, and what was read for it.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) image: Image,
    /// Bytes of deltas behind the keyframe, not packed.
    pub(super) read: i64,
    /// Bytes of their rows, as they are stored; the root's do not count.
    pub(super) weight: i64,
    /// Bytes of the keyframe, or of the root.
    pub(super) floor: i64,
    /// Bytes of the keyframe, if there is one.
    pub(super) framed: Option<i64>,
}

/// Returns the state that a delta leads to. Costs the state: keyframes keep the way short.
pub(super) async fn image(reader: &mut Reader<'_>, delta: i64) -> Result<Image, StoreError> {
    Ok(resolved(reader, delta).await?.image)
}

/// Returns the state that a delta leads to, and how much was read for it.
pub(super) async fn resolved(reader: &mut Reader<'_>, delta: i64) -> Result<Resolved, StoreError> {
    // A damaged keyframe is passed by: what lies behind it is the truth.
    let mut passed_by = Vec::new();
    loop {
        let rows = reader.query(WAY, &[&delta, &passed_by]).await?;
        match resolve_aside(reader, delta, rows).await? {
            Way::Resolved(resolved) => return Ok(*resolved),
            Way::DamagedFrame(key) if passed_by.len() < PASSED_BY_MAX => passed_by.push(key),
            Way::DamagedFrame(key) => {
                return Err(damaged(format!("keyframe {key}"), "and so are those before it".to_owned()));
            }
        }
    }
}

/// Returns the state that a delta leads to, where the way from it has been read already.
pub(super) async fn image_of(
    reader: &mut Reader<'_>,
    delta: i64,
    rows: Vec<Row>,
) -> Result<Image, StoreError> {
    match resolve_aside(reader, delta, rows).await? {
        Way::Resolved(resolved) => Ok(resolved.image),
        Way::DamagedFrame(_) => image(reader, delta).await,
    }
}

/// What is at the end of a way.
enum Way {
    Resolved(Box<Resolved>),
    DamagedFrame(i64),
}

async fn resolve_aside(reader: &Reader<'_>, delta: i64, rows: Vec<Row>) -> Result<Way, StoreError> {
    let length = |row: &Row, column| {
        row.try_get::<_, Option<&[u8]>>(column).ok().flatten().map_or(0, body::unpacked_length)
    };
    let lengths = rows.iter().flat_map(|row| [length(row, 2), length(row, 5)]);
    let bytes = lengths.fold(0, u64::saturating_add);
    aside(reader.location(), bytes, move || resolve(delta, &rows)).await
}

/// Builds a state out of the rows on its way, newest first.
fn resolve(delta: i64, rows: &[Row]) -> Result<Way, StoreError> {
    let mut image = Image::default();
    let (mut read, mut weight, mut floor, mut framed) = (0, 0, FLOOR_MIN, None);
    let Some(last) = rows.last() else { return Err(missing(delta)) };
    let corrupt = |why| damaged(name(delta), why);
    let key: i64 = get(last, 0).map_err(corrupt)?;
    let is_framed = get::<Option<i64>>(last, 4).map_err(corrupt)?;
    let mut deltas = rows;
    if let Some(size) = is_framed {
        let Ok(frame) = keyframe(last, key, size) else { return Ok(Way::DamagedFrame(key)) };
        image.apply(&format!("keyframe {key}"), &frame)?;
        (framed, floor) = (Some(size), size.max(FLOOR_MIN));
        deltas = &rows[..rows.len() - 1];
    } else if let Some(base) = get::<Option<i64>>(last, 1).map_err(corrupt)? {
        // The way ends before the root.
        return Err(match base < key {
            true => missing(base),
            false => damaged(name(key), "it builds on a newer one".to_owned()),
        });
    }
    for row in deltas.iter().rev() {
        let delta = DeltaRow::read(row)?;
        let name = name(delta.key);
        let raw = body::unpack(&name, &delta.body)?;
        read += length(&raw) + ROW_WEIGHT;
        match delta.base {
            Some(_) => weight += length(&delta.body) + ROW_WEIGHT,
            None => floor = length(&delta.body).max(FLOOR_MIN),
        }
        image.apply(&name, &Delta::decode(&name, &raw)?)?;
    }
    Ok(Way::Resolved(Box::new(Resolved { image, read, weight, floor, framed })))
}

fn keyframe(row: &Row, key: i64, size: i64) -> Result<Delta, StoreError> {
    let name = format!("keyframe {key}");
    let body: &[u8] = get(row, 5).map_err(|why| damaged(name.clone(), why))?;
    verify(row, 6, keyframe_checksum(key, size, body)).map_err(|why| damaged(name.clone(), why))?;
    Delta::decode(&name, &body::unpack(&name, body)?)
}

/// Reads the keyframe of a delta, if it has one.
pub(super) async fn frame(reader: &mut Reader<'_>, delta: i64) -> Result<Option<Delta>, StoreError> {
    let sql = "SELECT k.delta, NULL::bigint, NULL::bytea, NULL::bytea, k.size, k.body, k.checksum FROM keyframes k \
               WHERE k.delta = $1";
    let rows = reader.query(sql, &[&delta]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let size = get(row, 4).map_err(|why| damaged(format!("keyframe {delta}"), why))?;
    keyframe(row, delta, size).map(Some)
}

/// Reads rows of `deltas`.
pub(super) async fn rows(reader: &mut Reader<'_>, keys: &[i64]) -> Result<Vec<DeltaRow>, StoreError> {
    let sql = "SELECT d.key, d.base, d.body, d.checksum FROM deltas d WHERE d.key = ANY ($1)";
    reader.query(sql, &[&keys]).await?.iter().map(DeltaRow::read).collect()
}

/// Encodes a delta for a row.
pub(super) fn encoded(delta: &Delta, level: Option<i32>) -> Result<Body, StoreError> {
    // Before the bytes are put together.
    body::check_length(delta.bytes())?;
    body::pack(delta.encode(), level)
}

/// Returns how a delta is called in errors.
pub(super) fn name(key: i64) -> String {
    format!("delta {key}")
}

pub(super) fn missing(key: i64) -> StoreError {
    row::damaged(name(key), "it is missing".to_owned())
}
