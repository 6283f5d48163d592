//! The rows of the tables but `executions`: what stands in their columns, their checksums, and what they mean.
//!
//! Everything that people wrote is bytes, so that any text can be stored. A row's checksum is over all its values, but for
//! those that others change without knowing the rest: leases, and what pruning counts.

use chrono::DateTime;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use super::execution::ExecutionRow;
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::column::{self, Damage};
use crate::store::hash::{Hash, first_bytes};
use crate::store::link::{self, Gap, Link};
use crate::store::{CheckpointRecord, OperationRecord, Request, StoreError};

/// The columns of a row of `checkpoints`, in the order of its checksum.
macro_rules! checkpoint_columns {
    () => {
        "c.execution, c.seq, c.id, c.parent, c.delta, c.created_at, c.cause, c.label, c.state, c.completed_nodes, \
         c.size_bytes, c.compressed, c.nodes, c.workflow, c.spend, c.link, c.checksum"
    };
}
pub(super) use checkpoint_columns;

/// How many they are.
pub(super) const CHECKPOINT_COLUMNS: usize = 17;

/// The columns of a row of `operations`, in the order of its checksum.
macro_rules! operation_columns {
    () => {
        "o.execution, o.number, o.at, o.who, o.command, o.cause, o.head_before, o.head_after, o.link, o.checksum"
    };
}
pub(super) use operation_columns;

/// A checksum as it is stored.
pub(super) type Checksum = [u8; 8];

/// A row of `checkpoints`.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) execution: i64,
    pub(super) seq: i64,
    pub(super) id: Uuid,
    pub(super) parent: Option<i64>,
    pub(super) delta: i64,
    pub(super) created_at: i64,
    pub(super) cause: Vec<u8>,
    pub(super) label: Option<Vec<u8>>,
    pub(super) state: Vec<u8>,
    pub(super) completed_nodes: i64,
    pub(super) size_bytes: i64,
    pub(super) compressed: bool,
    pub(super) nodes: Vec<u8>,
    pub(super) workflow: Uuid,
    pub(super) spend: Vec<u8>,
    /// Joins it to the point before it.
    pub(super) link: Link,
}

impl Point {
    /// Returns the row of a point that follows the one with the link `before`.
    pub(super) fn new(
        execution: i64,
        delta: i64,
        before: &Link,
        record: &CheckpointRecord,
    ) -> Result<Self, StoreError> {
        let mut point = Self {
            execution,
            seq: column::stored("the point", record.seq)?,
            id: record.id,
            parent: record.parent.map(|seq| column::stored("the parent", seq)).transpose()?,
            delta,
            created_at: column::nanoseconds("the creation", record.created_at)?,
            cause: column::to_json("the cause", &record.cause)?.into_bytes(),
            label: record.label.as_ref().map(|label| label.clone().into_bytes()),
            state: column::to_json("the state", &record.state)?.into_bytes(),
            completed_nodes: column::stored("the count of nodes", record.completed_node_count)?,
            size_bytes: column::stored("the size", record.size_bytes)?,
            compressed: record.compressed,
            nodes: column::to_json("the nodes", &record.nodes)?.into_bytes(),
            workflow: record.workflow_id,
            spend: column::to_packed("the spend", &record.spend)?,
            link: *before,
        };
        point.link = point.link_after(before);
        Ok(point)
    }

    /// Returns the link that the row has if it follows the one with the link `before`. Its delta is not in it: squashing
    /// may put another in its place.
    pub(super) fn link_after(&self, before: &Link) -> Link {
        link::next(before, "checkpoints", |hash| self.feed(hash, None))
    }

    pub(super) fn checksum(&self) -> Checksum {
        let mut hash = Hash::of("checkpoints");
        self.feed(&mut hash, Some(self.delta));
        hash.bytes(&self.link);
        first_bytes(&hash.finish())
    }

    fn feed(&self, hash: &mut Hash, delta: Option<i64>) {
        hash.integer(self.execution);
        hash.integer(self.seq);
        hash.bytes(self.id.as_bytes());
        feed_integer(hash, self.parent);
        feed_integer(hash, delta);
        hash.integer(self.created_at);
        hash.bytes(&self.cause);
        feed_bytes(hash, self.label.as_deref());
        hash.bytes(&self.state);
        hash.integer(self.completed_nodes);
        hash.integer(self.size_bytes);
        hash.integer(i64::from(self.compressed));
        hash.bytes(&self.nodes);
        hash.bytes(self.workflow.as_bytes());
        hash.bytes(&self.spend);
    }

    /// Reads a row of an execution, whose columns begin at `first`.
    pub(super) fn read(row: &Row, first: usize, execution: ExecutionId) -> Result<Self, StoreError> {
        Self::try_read(row, first).map_err(|why| {
            let seq = row.try_get::<_, i64>(first + 1).map_or_else(|_| "?".to_owned(), |seq| seq.to_string());
            damaged(format!("checkpoint @{seq} of execution {execution}"), why)
        })
    }

    fn try_read(row: &Row, first: usize) -> Result<Self, Damage> {
        let at = |column| first + column;
        let point = Self {
            execution: get(row, at(0))?,
            seq: get(row, at(1))?,
            id: get(row, at(2))?,
            parent: get(row, at(3))?,
            delta: get(row, at(4))?,
            created_at: get(row, at(5))?,
            cause: get(row, at(6))?,
            label: get(row, at(7))?,
            state: get(row, at(8))?,
            completed_nodes: get(row, at(9))?,
            size_bytes: get(row, at(10))?,
            compressed: get(row, at(11))?,
            nodes: get(row, at(12))?,
            workflow: get(row, at(13))?,
            spend: get(row, at(14))?,
            link: link(row, at(15))?,
        };
        verify(row, at(16), point.checksum())?;
        Ok(point)
    }

    /// Returns what the row says, where it is one of this execution.
    pub(super) fn record(&self, execution: &ExecutionRow) -> Result<CheckpointRecord, StoreError> {
        let id = execution.record.id;
        let record = || -> Result<CheckpointRecord, Damage> {
            if self.execution != execution.key {
                return Err(OUT_OF_ORDER.to_owned());
            }
            Ok(CheckpointRecord {
                execution_id: id,
                workflow_id: self.workflow,
                seq: count(self.seq, "number")?,
                id: self.id,
                parent: self.parent.map(|parent| count(parent, "parent")).transpose()?,
                created_at: DateTime::from_timestamp_nanos(self.created_at),
                cause: column::json(&self.cause)?,
                nodes: column::json(&self.nodes)?,
                label: self.label.as_deref().map(text).transpose()?,
                state: column::json(&self.state)?,
                completed_node_count: count(self.completed_nodes, "count of nodes")?,
                spend: column::packed(&self.spend)?,
                size_bytes: count(self.size_bytes, "size")?,
                compressed: self.compressed,
            })
        };
        record().map_err(|why| damaged(format!("checkpoint @{} of execution {id}", self.seq), why))
    }
}

/// How it shows that a row is in the wrong place of its table.
const OUT_OF_ORDER: &str = "it stands where another row belongs";

/// A row of `operations`.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) execution: i64,
    pub(super) number: i64,
    pub(super) at: i64,
    pub(super) who: Vec<u8>,
    pub(super) command: Vec<u8>,
    pub(super) cause: Vec<u8>,
    pub(super) before: i64,
    pub(super) after: i64,
    /// Joins it to the one before it.
    pub(super) link: Link,
}

impl Operation {
    /// Returns the row of an operation that follows the one with the link `before`.
    pub(super) fn new(execution: i64, before: &Link, record: &OperationRecord) -> Result<Self, StoreError> {
        let mut operation = Self {
            execution,
            number: column::stored("the operation", record.number)?,
            at: column::nanoseconds("the operation", record.at)?,
            who: record.who.clone().into_bytes(),
            command: record.command.clone().into_bytes(),
            cause: column::to_json("the cause", &record.cause)?.into_bytes(),
            before: column::stored("the head", record.before)?,
            after: column::stored("the head", record.after)?,
            link: *before,
        };
        operation.link = operation.link_after(before);
        Ok(operation)
    }

    pub(super) fn link_after(&self, before: &Link) -> Link {
        link::next(before, "operations", |hash| self.feed(hash))
    }

    pub(super) fn checksum(&self) -> Checksum {
        let mut hash = Hash::of("operations");
        self.feed(&mut hash);
        hash.bytes(&self.link);
        first_bytes(&hash.finish())
    }

    fn feed(&self, hash: &mut Hash) {
        hash.integer(self.execution);
        hash.integer(self.number);
        hash.integer(self.at);
        hash.bytes(&self.who);
        hash.bytes(&self.command);
        hash.bytes(&self.cause);
        hash.integer(self.before);
        hash.integer(self.after);
    }

    pub(super) fn read(row: &Row, execution: ExecutionId) -> Result<Self, StoreError> {
        Self::try_read(row).map_err(|why| {
            let number =
                row.try_get::<_, i64>(1).map_or_else(|_| "?".to_owned(), |number| number.to_string());
            damaged(format!("operation {number} of execution {execution}"), why)
        })
    }

    fn try_read(row: &Row) -> Result<Self, Damage> {
        let operation = Self {
            execution: get(row, 0)?,
            number: get(row, 1)?,
            at: get(row, 2)?,
            who: get(row, 3)?,
            command: get(row, 4)?,
            cause: get(row, 5)?,
            before: get(row, 6)?,
            after: get(row, 7)?,
            link: link(row, 8)?,
        };
        verify(row, 9, operation.checksum())?;
        Ok(operation)
    }

    pub(super) fn record(&self, execution: &ExecutionRow) -> Result<OperationRecord, StoreError> {
        let record = || -> Result<OperationRecord, Damage> {
            if self.execution != execution.key {
                return Err(OUT_OF_ORDER.to_owned());
            }
            Ok(OperationRecord {
                number: count(self.number, "number")?,
                at: DateTime::from_timestamp_nanos(self.at),
                who: text(&self.who)?,
                command: text(&self.command)?,
                cause: column::json(&self.cause)?,
                before: count(self.before, "head")?,
                after: count(self.after, "head")?,
            })
        };
        let name = || format!("operation {} of execution {}", self.number, execution.record.id);
        record().map_err(|why| damaged(name(), why))
    }
}

/// Returns the checksum of a row of `gaps`.
pub(super) fn gap_checksum(execution: i64, first: i64, last: i64, link: &[u8]) -> Checksum {
    let mut hash = Hash::of("gaps");
    for value in [execution, first, last] {
        hash.integer(value);
    }
    hash.bytes(link);
    first_bytes(&hash.finish())
}

/// Reads a row of `gaps`: execution, first, last, link, checksum.
pub(super) fn gap(row: &Row, id: ExecutionId) -> Result<Gap, StoreError> {
    let read = || -> Result<Gap, Damage> {
        let (execution, first, last) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let link = link(row, 3)?;
        verify(row, 4, gap_checksum(execution, first, last, &link))?;
        Ok(Gap { first: count(first, "first point")?, last: count(last, "last point")?, link })
    };
    read().map_err(|why| {
        let first = row.try_get::<_, i64>(1).map_or_else(|_| "?".to_owned(), |first| first.to_string());
        damaged(format!("gap @{first} of execution {id}"), why)
    })
}

/// Returns the checksum of a row of `workflows`.
pub(super) fn workflow_checksum(id: WorkflowId, definition: &[u8]) -> Checksum {
    let mut hash = Hash::of("workflows");
    hash.bytes(id.as_bytes());
    hash.bytes(definition);
    first_bytes(&hash.finish())
}

/// Reads a row of `workflows`: id, definition, checksum.
pub(super) fn workflow(row: &Row) -> Result<(WorkflowId, Vec<u8>), StoreError> {
    let read = || -> Result<(WorkflowId, Vec<u8>), Damage> {
        let (id, definition): (Uuid, Vec<u8>) = (get(row, 0)?, get(row, 1)?);
        verify(row, 2, workflow_checksum(id, &definition))?;
        Ok((id, definition))
    };
    read().map_err(|why| damaged(format!("workflow {}", shown_id(row, 0)), why))
}

/// Returns the checksum of a row of `execution_workflows`.
pub(super) fn execution_workflow_checksum(execution: i64, workflow: WorkflowId) -> Checksum {
    let mut hash = Hash::of("execution_workflows");
    hash.integer(execution);
    hash.bytes(workflow.as_bytes());
    first_bytes(&hash.finish())
}

/// Reads a row of `execution_workflows`: execution, workflow, checksum.
pub(super) fn execution_workflow(row: &Row, id: ExecutionId) -> Result<WorkflowId, StoreError> {
    let read = || -> Result<WorkflowId, Damage> {
        let (execution, workflow) = (get(row, 0)?, get(row, 1)?);
        verify(row, 2, execution_workflow_checksum(execution, workflow))?;
        Ok(workflow)
    };
    read().map_err(|why| damaged(format!("workflow {} of execution {id}", shown_id(row, 1)), why))
}

/// Returns the checksum of a row of `requests`.
pub(super) fn request_checksum(key: i64, execution: i64, id: Uuid, body: &[u8]) -> Checksum {
    let mut hash = Hash::of("requests");
    hash.integer(key);
    hash.integer(execution);
    hash.bytes(id.as_bytes());
    hash.bytes(body);
    first_bytes(&hash.finish())
}

/// Reads a row of `requests`: key, execution, id, body, checksum.
pub(super) fn request(row: &Row) -> Result<Request, StoreError> {
    let read = || -> Result<Request, Damage> {
        let (key, execution, id): (i64, i64, Uuid) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let body: &[u8] = get(row, 3)?;
        verify(row, 4, request_checksum(key, execution, id, body))?;
        column::json(body)
    };
    read().map_err(|why| damaged(format!("request {}", shown_id(row, 2)), why))
}

/// Returns the checksum of a row of `deltas`.
pub(super) fn delta_checksum(key: i64, base: Option<i64>, body: &[u8]) -> Checksum {
    let mut hash = Hash::of("deltas");
    hash.integer(key);
    feed_integer(&mut hash, base);
    hash.bytes(body);
    first_bytes(&hash.finish())
}

/// Returns the checksum of a row of `keyframes`.
pub(super) fn keyframe_checksum(delta: i64, size: i64, body: &[u8]) -> Checksum {
    let mut hash = Hash::of("keyframes");
    hash.integer(delta);
    hash.integer(size);
    hash.bytes(body);
    first_bytes(&hash.finish())
}

/// Reads a column. What the server gives always has the type of the column.
pub(super) fn get<'row, T: FromSql<'row>>(row: &'row Row, column: usize) -> Result<T, Damage> {
    row.try_get(column).map_err(|error| error.to_string())
}

/// Makes sure that a column holds the checksum of the row's other columns.
pub(super) fn verify(row: &Row, column: usize, expected: Checksum) -> Result<(), Damage> {
    match get::<&[u8]>(row, column)? == expected {
        true => Ok(()),
        false => Err("its checksum is wrong".to_owned()),
    }
}

pub(super) fn damaged(record: String, why: Damage) -> StoreError {
    StoreError::Corrupt { record, why }
}

/// Returns an id as it is shown, whatever is in its column.
pub(super) fn shown_id(row: &Row, column: usize) -> String {
    row.try_get::<_, Uuid>(column).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

pub(super) fn link(row: &Row, column: usize) -> Result<Link, Damage> {
    get::<&[u8]>(row, column)?.try_into().map_err(|_| "its link is not 32 bytes long".to_owned())
}

pub(super) fn text(bytes: &[u8]) -> Result<String, Damage> {
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}

/// Reads a number that is never negative.
pub(super) fn count(number: i64, what: &str) -> Result<u64, Damage> {
    u64::try_from(number).map_err(|_| format!("its {what} is negative"))
}

pub(super) fn feed_id(hash: &mut Hash, id: Option<Uuid>) {
    match id {
        Some(id) => hash.bytes(id.as_bytes()),
        None => hash.null(),
    }
}

pub(super) fn feed_integer(hash: &mut Hash, number: Option<i64>) {
    match number {
        Some(number) => hash.integer(number),
        None => hash.null(),
    }
}

pub(super) fn feed_bytes(hash: &mut Hash, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => hash.bytes(bytes),
        None => hash.null(),
    }
}
