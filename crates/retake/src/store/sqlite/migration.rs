//! What leads from each format to the next.
//!
//! Each step runs in one transaction, so that a process which dies in the middle leaves the older format. A row that is
//! damaged stays so: its checksum is not made anew.

use rusqlite::types::{Value, ValueRef};

use super::db::{self, Db};
use super::link::{self, Gap, Link};
use super::row;
use crate::execution::ExecutionId;
use crate::store::{Seq, StoreError};

/// A format, and what makes it of the one before.
type Step = (u32, fn(&Db) -> Result<(), StoreError>);

/// All steps, in order.
pub(super) const MIGRATIONS: &[Step] = &[(1, |db| db.script(FORMAT_1)), (2, chain_histories)];

const FORMAT_1: &str = "
CREATE TABLE executions (
    key           INTEGER PRIMARY KEY,
    id            BLOB NOT NULL UNIQUE,
    name          TEXT NOT NULL UNIQUE,
    workflow      BLOB NOT NULL,
    workflow_name TEXT NOT NULL,
    state         TEXT NOT NULL,
    state_name    TEXT NOT NULL,
    head          INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    origin_id     BLOB,
    origin_seq    INTEGER,
    fence         INTEGER NOT NULL,
    owner         TEXT,
    owner_id      BLOB,
    lease_until   INTEGER,
    weight        INTEGER NOT NULL,
    floor         INTEGER NOT NULL,
    slack         INTEGER NOT NULL,
    slack_max     INTEGER NOT NULL,
    spend         BLOB NOT NULL,
    checksum      BLOB NOT NULL
);
CREATE INDEX executions_by_creation ON executions (created_at, id);
CREATE INDEX executions_by_origin ON executions (origin_id, created_at, id) WHERE origin_id IS NOT NULL;

CREATE TABLE workflows (
    id            BLOB PRIMARY KEY,
    definition    BLOB NOT NULL,
    checksum      BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE execution_workflows (
    execution     INTEGER NOT NULL REFERENCES executions,
    workflow      BLOB NOT NULL REFERENCES workflows,
    checksum      BLOB NOT NULL,
    PRIMARY KEY (execution, workflow)
) WITHOUT ROWID;
CREATE INDEX execution_workflows_by_workflow ON execution_workflows (workflow);

CREATE TABLE deltas (
    key           INTEGER PRIMARY KEY,
    base          INTEGER REFERENCES deltas,
    body          BLOB NOT NULL,
    checksum      BLOB NOT NULL
);
CREATE INDEX deltas_by_base ON deltas (base) WHERE base IS NOT NULL;

CREATE TABLE keyframes (
    delta         INTEGER PRIMARY KEY REFERENCES deltas,
    size          INTEGER NOT NULL,
    body          BLOB NOT NULL,
    checksum      BLOB NOT NULL
);

CREATE TABLE checkpoints (
    execution       INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    id              BLOB NOT NULL UNIQUE,
    parent          INTEGER,
    delta           INTEGER NOT NULL REFERENCES deltas,
    created_at      INTEGER NOT NULL,
    cause           TEXT NOT NULL,
    label           TEXT,
    state           TEXT NOT NULL,
    completed_nodes INTEGER NOT NULL,
    size_bytes      INTEGER NOT NULL,
    compressed      INTEGER NOT NULL,
    nodes           TEXT NOT NULL,
    workflow        BLOB NOT NULL,
    spend           BLOB NOT NULL,
    checksum        BLOB NOT NULL,
    PRIMARY KEY (execution, seq),
    FOREIGN KEY (execution, workflow) REFERENCES execution_workflows
) WITHOUT ROWID;
CREATE INDEX checkpoints_by_delta ON checkpoints (delta);
CREATE INDEX checkpoints_by_label ON checkpoints (execution, label) WHERE label IS NOT NULL;

CREATE TABLE operations (
    execution     INTEGER NOT NULL REFERENCES executions,
    number        INTEGER NOT NULL,
    at            INTEGER NOT NULL,
    who           TEXT NOT NULL,
    command       TEXT NOT NULL,
    cause         TEXT NOT NULL,
    head_before   INTEGER NOT NULL,
    head_after    INTEGER NOT NULL,
    checksum      BLOB NOT NULL,
    PRIMARY KEY (execution, number)
) WITHOUT ROWID;

CREATE TABLE requests (
    key           INTEGER PRIMARY KEY,
    execution     INTEGER NOT NULL REFERENCES executions,
    id            BLOB NOT NULL UNIQUE,
    body          TEXT NOT NULL,
    checksum      BLOB NOT NULL
);
CREATE INDEX requests_by_execution ON requests (execution);
";

const FORMAT_2: &str = "
ALTER TABLE executions ADD COLUMN link BLOB NOT NULL DEFAULT x'';
ALTER TABLE executions ADD COLUMN log_link BLOB NOT NULL DEFAULT x'';
ALTER TABLE checkpoints ADD COLUMN link BLOB NOT NULL DEFAULT x'';
ALTER TABLE operations ADD COLUMN link BLOB NOT NULL DEFAULT x'';

CREATE TABLE gaps (
    execution     INTEGER NOT NULL REFERENCES executions,
    first         INTEGER NOT NULL,
    last          INTEGER NOT NULL,
    link          BLOB NOT NULL,
    checksum      BLOB NOT NULL,
    PRIMARY KEY (execution, first)
) WITHOUT ROWID;
CREATE INDEX gaps_by_last ON gaps (execution, last);

CREATE TABLE keyring (
    number        INTEGER PRIMARY KEY,
    tenant        BLOB NOT NULL,
    master        TEXT NOT NULL,
    wrapped       BLOB NOT NULL,
    checksum      BLOB NOT NULL
);
";

/// A row as it was, without its checksum.
type Columns = Vec<Value>;

/// Joins the points and the operations of every history, and notes what has been pruned.
fn chain_histories(db: &Db) -> Result<(), StoreError> {
    db.script(FORMAT_2)?;
    let executions = intact(
        db,
        "executions",
        "SELECT key, id, name, workflow, workflow_name, state, state_name, head, created_at, updated_at, \
         origin_id, origin_seq, fence, owner, owner_id, lease_until, weight, floor, slack, slack_max, spend, \
         checksum FROM executions WHERE ?1 IS NULL ORDER BY key",
        None,
        21,
    )?;
    // Points of an execution whose own row is damaged are whole by themselves, and are what it can be made of again.
    let damaged = db.all(
        "SELECT key, id FROM executions ORDER BY key",
        [],
        |_| "the table of executions".to_owned(),
        |row| Ok((db::integer(row, 0)?, db::id(row, 1).unwrap_or_default())),
    )?;
    for (key, id) in damaged {
        if !executions.iter().any(|intact| intact[0] == Value::Integer(key)) {
            chain_points(db, key, id)?;
            chain_operations(db, key, id)?;
        }
    }
    for execution in executions {
        let [Value::Integer(key), Value::Blob(id), ..] = &execution[..] else { continue };
        let Ok(id) = ExecutionId::from_slice(id) else { continue };
        let link = chain_points(db, *key, id)?;
        let log_link = chain_operations(db, *key, id)?;
        let links = [Value::Blob(link.to_vec()), Value::Blob(log_link.to_vec())];
        // The key is the first column already.
        let sql = "UPDATE executions SET link = ?22, log_link = ?23, checksum = ?24 WHERE key = ?1";
        db.put("executions", sql, &borrowed(execution.iter().chain(&links)))?;
    }
    Ok(())
}

/// Joins the points of a history. Returns the link of the last.
fn chain_points(db: &Db, key: i64, id: ExecutionId) -> Result<Link, StoreError> {
    let points = intact(
        db,
        "checkpoints",
        "SELECT execution, seq, id, parent, delta, created_at, cause, label, state, completed_nodes, size_bytes, \
         compressed, nodes, workflow, spend, checksum FROM checkpoints WHERE execution = ?1 ORDER BY seq",
        Some(key),
        15,
    )?;
    let mut link = link::start(id);
    let mut next: Seq = 1;
    for point in points {
        let Value::Integer(seq) = point[1] else { continue };
        let seq = Seq::try_from(seq).unwrap_or(0);
        if seq > next {
            link = link::across(&link, next, seq - 1)?;
            link::insert(db, key, Gap { first: next, last: seq - 1, link })?;
        }
        next = seq + 1;
        let columns = borrowed(&point);
        link = row::checkpoint_link(&link, &columns);
        let columns = [&columns[..], &[ValueRef::Blob(&link)]].concat();
        let sql = "UPDATE checkpoints SET link = ?16, checksum = ?17 WHERE execution = ?1 AND seq = ?2";
        db.put("checkpoints", sql, &columns)?;
    }
    Ok(link)
}

/// Joins the operations of a history. Returns the link of the last.
fn chain_operations(db: &Db, key: i64, id: ExecutionId) -> Result<Link, StoreError> {
    let operations = intact(
        db,
        "operations",
        "SELECT execution, number, at, who, command, cause, head_before, head_after, checksum FROM operations \
         WHERE execution = ?1 ORDER BY number",
        Some(key),
        8,
    )?;
    let mut link = link::start(id);
    for operation in operations {
        let columns = borrowed(&operation);
        link = link::next(&link, "operations", columns.iter().copied());
        let columns = [&columns[..], &[ValueRef::Blob(&link)]].concat();
        let sql = "UPDATE operations SET link = ?9, checksum = ?10 WHERE execution = ?1 AND number = ?2";
        db.put("operations", sql, &columns)?;
    }
    Ok(link)
}

/// Reads the rows whose checksum, behind so many `columns`, is right.
fn intact(
    db: &Db,
    table: &'static str,
    sql: &'static str,
    key: Option<i64>,
    columns: usize,
) -> Result<Vec<Columns>, StoreError> {
    let rows = db.all(
        sql,
        [key],
        |_| format!("the table of {table}"),
        |row| {
            if db.verify(table, row, columns).is_err() {
                return Ok(None);
            }
            let values = (0..columns).map(|column| row.get(column)).collect::<Result<Columns, _>>();
            values.map(Some).map_err(|error| error.to_string())
        },
    )?;
    Ok(rows.into_iter().flatten().collect())
}

fn borrowed<'a>(values: impl IntoIterator<Item = &'a Value>) -> Vec<ValueRef<'a>> {
    values.into_iter().map(ValueRef::from).collect()
}
