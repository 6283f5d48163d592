//! The rows of executions and checkpoints, and of what hangs on them.

use rusqlite::Row;
use rusqlite::types::ValueRef;
use uuid::Uuid;

use super::db::{self, Damage, Db};
use super::guard::{Guard, Spot};
use super::link::{self, Link};
use crate::execution::ExecutionId;
use crate::store::{CheckpointRecord, ExecutionRecord, OperationRecord, Origin, Seq, StoreError};

/// The columns of a row of `executions`, in the order of its checksum.
macro_rules! execution_columns {
    () => {
        "key, id, name, workflow, workflow_name, state, state_name, head, created_at, updated_at, origin_id, \
         origin_seq, fence, owner, owner_id, lease_until, weight, floor, slack, slack_max, spend, link, log_link, \
         checksum"
    };
}
pub(super) use execution_columns;

/// The columns of a row of `checkpoints`, in the order of its checksum.
macro_rules! checkpoint_columns {
    () => {
        "execution, seq, id, parent, delta, created_at, cause, label, state, completed_nodes, size_bytes, \
         compressed, nodes, workflow, spend, link, checksum"
    };
}
pub(super) use checkpoint_columns;

/// The columns of a row of `operations`, in the order of its checksum.
macro_rules! operation_columns {
    () => {
        "execution, number, at, who, command, cause, head_before, head_after, link, checksum"
    };
}
pub(super) use operation_columns;

/// A row of `executions`.
#[derive(Debug, Clone)]
pub(super) struct ExecutionRow {
    pub(super) key: i64,
    /// Without `leased_by`, which depends on the moment of the look.
    pub(super) record: ExecutionRecord,
    /// That of the last lease; 0 where there was none.
    pub(super) fence: u64,
    /// The last lease that was not given back.
    pub(super) holder: Option<Holder>,
    /// Bytes to be read behind the head's nearest keyframe.
    pub(super) weight: i64,
    /// How much `weight` may be before another keyframe is due.
    pub(super) floor: i64,
    /// Bytes of deltas that no checkpoint needs by themselves, since they were last squashed.
    pub(super) slack: i64,
    /// How much `slack` may be before squashing is due.
    pub(super) slack_max: i64,
    /// That of the head.
    pub(super) link: Link,
    /// That of the last operation.
    pub(super) log_link: Link,
}

/// Who took a lease, and until when.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    /// As people are told.
    pub(super) name: String,
    /// The opened store that took it.
    pub(super) owner_id: Uuid,
    /// When it ends, in nanoseconds since 1970.
    pub(super) until: i64,
}

/// A row of `checkpoints`.
#[derive(Debug, Clone)]
pub(super) struct CheckpointRow {
    pub(super) delta: i64,
    pub(super) record: CheckpointRecord,
    /// Joins it to the point before it.
    pub(super) link: Link,
}

impl ExecutionRow {
    pub(super) fn by_id(db: &Db, id: ExecutionId) -> Result<Option<Self>, StoreError> {
        db.first(
            concat!("SELECT ", execution_columns!(), " FROM executions WHERE id = ?1"),
            [id.as_bytes()],
            Self::name,
            |row| Self::read(db, row),
        )
    }

    pub(super) fn by_key(db: &Db, key: i64) -> Result<Option<Self>, StoreError> {
        db.first(
            concat!("SELECT ", execution_columns!(), " FROM executions WHERE key = ?1"),
            [key],
            Self::name,
            |row| Self::read(db, row),
        )
    }

    pub(super) fn require(db: &Db, id: ExecutionId) -> Result<Self, StoreError> {
        Self::by_id(db, id)?.ok_or(StoreError::NoExecution(id))
    }

    pub(super) fn name(row: &Row<'_>) -> String {
        format!("execution {}", db::shown(row, 1))
    }

    pub(super) fn read(db: &Db, row: &Row<'_>) -> Result<Self, Damage> {
        db.verify("executions", row, 23)?;
        let id = db::id(row, 1)?;
        let spot = Self::spot(id);
        let origin = match (db::optional_id(row, 10)?, db::optional_integer(row, 11)?) {
            (Some(execution_id), Some(_)) => Some(Origin { execution_id, seq: db::count(row, 11)? }),
            (Some(_) | None, _) => None,
        };
        let holder = match (db.seen_optional_text(spot, "owner", row, 13)?, db::optional_id(row, 14)?) {
            (Some(name), Some(owner_id)) => Some(Holder { name, owner_id, until: db::integer(row, 15)? }),
            (Some(_) | None, _) => None,
        };
        Ok(Self {
            key: db::integer(row, 0)?,
            record: ExecutionRecord {
                id,
                name: db.seen_text(Guard::NAMES, "name", row, 2)?,
                workflow_id: db::id(row, 3)?,
                workflow_name: db.seen_text(spot, "workflow_name", row, 4)?,
                state: db::json(&db.seen(spot, "state", row, 5)?)?,
                head: db::count(row, 7)?,
                created_at: db::time(row, 8)?,
                updated_at: db::time(row, 9)?,
                spend: db::packed(&db.seen(spot, "spend", row, 20)?)?,
                origin,
                leased_by: None,
            },
            fence: db::count(row, 12)?,
            holder,
            weight: db::integer(row, 16)?,
            floor: db::integer(row, 17)?,
            slack: db::integer(row, 18)?,
            slack_max: db::integer(row, 19)?,
            link: db::link(row, 21)?,
            log_link: db::link(row, 22)?,
        })
    }

    pub(super) fn insert(&self, db: &Db) -> Result<(), StoreError> {
        self.put(
            db,
            concat!(
                "INSERT INTO executions (",
                execution_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, \
                 ?20, ?21, ?22, ?23, ?24)"
            ),
        )
    }

    /// Writes what can change, and which workflow it runs.
    pub(super) fn update_with_workflow(&self, db: &Db) -> Result<(), StoreError> {
        self.put(
            db,
            "UPDATE executions SET workflow = ?4, workflow_name = ?5, state = ?6, state_name = ?7, head = ?8, \
             updated_at = ?10, fence = ?13, owner = ?14, owner_id = ?15, lease_until = ?16, weight = ?17, \
             floor = ?18, slack = ?19, slack_max = ?20, spend = ?21, link = ?22, log_link = ?23, checksum = ?24 \
             WHERE key = ?1",
        )
    }

    /// Writes what can change but the workflow.
    pub(super) fn update(&self, db: &Db) -> Result<(), StoreError> {
        self.put(
            db,
            "UPDATE executions SET state = ?6, state_name = ?7, head = ?8, updated_at = ?10, fence = ?13, \
             owner = ?14, owner_id = ?15, lease_until = ?16, weight = ?17, floor = ?18, slack = ?19, \
             slack_max = ?20, spend = ?21, link = ?22, log_link = ?23, checksum = ?24 WHERE key = ?1",
        )
    }

    pub(super) fn spot(id: ExecutionId) -> Spot {
        Spot { table: "executions", owner: id, number: 0 }
    }

    fn put(&self, db: &Db, sql: &'static str) -> Result<(), StoreError> {
        let record = &self.record;
        let state = db::to_json("the state", &record.state)?;
        let spend = db::to_packed("the spend", &record.spend)?;
        let origin = record.origin.as_ref();
        let origin_seq = origin.map(|origin| db::stored("the origin", origin.seq)).transpose()?;
        let holder = self.holder.as_ref();
        let (guard, spot) = (db.guard(), Self::spot(record.id));
        let name = guard.name(&record.name)?;
        let workflow_name = guard.hide_alike(spot, "workflow_name", &record.workflow_name)?;
        let state = guard.hide(spot, "state", state.as_str())?;
        let spend = guard.hide(spot, "spend", &spend[..])?;
        let owner = holder.map_or(ValueRef::Null, |holder| ValueRef::from(holder.name.as_str()));
        let owner = guard.hide(spot, "owner", owner)?;
        let values = [
            ValueRef::Integer(self.key),
            ValueRef::Blob(record.id.as_bytes()),
            name.value(),
            ValueRef::Blob(record.workflow_id.as_bytes()),
            workflow_name.value(),
            state.value(),
            ValueRef::from(record.state.name()),
            ValueRef::Integer(db::stored("the head", record.head)?),
            ValueRef::Integer(db::nanoseconds("the creation", record.created_at)?),
            ValueRef::Integer(db::nanoseconds("the update", record.updated_at)?),
            origin.map_or(ValueRef::Null, |origin| ValueRef::Blob(origin.execution_id.as_bytes())),
            origin_seq.map_or(ValueRef::Null, ValueRef::Integer),
            ValueRef::Integer(db::stored("the fence", self.fence)?),
            owner.value(),
            holder.map_or(ValueRef::Null, |holder| ValueRef::Blob(holder.owner_id.as_bytes())),
            holder.map_or(ValueRef::Null, |holder| ValueRef::Integer(holder.until)),
            ValueRef::Integer(self.weight),
            ValueRef::Integer(self.floor),
            ValueRef::Integer(self.slack),
            ValueRef::Integer(self.slack_max),
            spend.value(),
            ValueRef::Blob(&self.link),
            ValueRef::Blob(&self.log_link),
        ];
        db.put("executions", sql, &values)
    }

    /// Returns a point that must be there.
    pub(super) fn point(&self, db: &Db, seq: Seq) -> Result<CheckpointRow, StoreError> {
        let (execution, head) = (self.record.id, self.record.head);
        let Some(stored) = i64::try_from(seq).ok().filter(|_| (1..=head).contains(&seq)) else {
            return Err(StoreError::NoPoint { execution, seq, head });
        };
        let found = db.first(
            concat!("SELECT ", checkpoint_columns!(), " FROM checkpoints WHERE execution = ?1 AND seq = ?2"),
            [self.key, stored],
            |row| CheckpointRow::name(&self.record, row),
            |row| {
                db::expect(row, 0, self.key)?;
                db::expect(row, 1, stored)?;
                CheckpointRow::read(db, &self.record, row)
            },
        )?;
        match found {
            Some(point) => Ok(point),
            None if seq == head => Err(StoreError::Corrupt {
                record: format!("checkpoint @{seq} of execution {execution}"),
                why: "it is the head, and it is missing".to_owned(),
            }),
            None => Err(StoreError::Pruned { execution, seq }),
        }
    }
}

impl CheckpointRow {
    pub(super) fn name(execution: &ExecutionRecord, row: &Row<'_>) -> String {
        format!("checkpoint @{} of execution {}", db::shown(row, 1), execution.id)
    }

    pub(super) fn read(db: &Db, execution: &ExecutionRecord, row: &Row<'_>) -> Result<Self, Damage> {
        db.verify("checkpoints", row, 16)?;
        let seq = db::count(row, 1)?;
        let spot = Spot { table: "checkpoints", owner: execution.id, number: seq };
        let parent = match db::optional_integer(row, 3)? {
            Some(_) => Some(db::count(row, 3)?),
            None => None,
        };
        let record = CheckpointRecord {
            execution_id: execution.id,
            workflow_id: db::id(row, 13)?,
            seq,
            id: db::id(row, 2)?,
            parent,
            created_at: db::time(row, 5)?,
            cause: db::json(&db.seen(spot, "cause", row, 6)?)?,
            nodes: db::json(&db.seen(spot, "nodes", row, 12)?)?,
            label: db.seen_optional_text(spot, "label", row, 7)?,
            state: db::json(&db.seen(spot, "state", row, 8)?)?,
            completed_node_count: db::count(row, 9)?,
            spend: db::packed(&db.seen(spot, "spend", row, 14)?)?,
            size_bytes: db::count(row, 10)?,
            compressed: db::integer(row, 11)? != 0,
        };
        Ok(Self { delta: db::integer(row, 4)?, record, link: db::link(row, 15)? })
    }

    /// Writes a point that follows the last one of an execution's chain.
    pub(super) fn insert(
        db: &Db,
        execution: &mut ExecutionRow,
        delta: i64,
        record: &CheckpointRecord,
    ) -> Result<(), StoreError> {
        let cause = db::to_json("the cause", &record.cause)?;
        let nodes = db::to_json("the nodes", &record.nodes)?;
        let state = db::to_json("the state", &record.state)?;
        let parent = record.parent.map(|seq| db::stored("the parent", seq)).transpose()?;
        let spend = db::to_packed("the spend", &record.spend)?;
        let guard = db.guard();
        let spot = Spot { table: "checkpoints", owner: record.execution_id, number: record.seq };
        let cause = guard.hide(spot, "cause", cause.as_str())?;
        let label = record.label.as_deref().map_or(ValueRef::Null, ValueRef::from);
        let label = guard.hide(spot, "label", label)?;
        let state = guard.hide(spot, "state", state.as_str())?;
        let nodes = guard.hide(spot, "nodes", nodes.as_str())?;
        let spend = guard.hide(spot, "spend", &spend[..])?;
        let values = [
            ValueRef::Integer(execution.key),
            ValueRef::Integer(db::stored("the point", record.seq)?),
            ValueRef::Blob(record.id.as_bytes()),
            parent.map_or(ValueRef::Null, ValueRef::Integer),
            ValueRef::Integer(delta),
            ValueRef::Integer(db::nanoseconds("the creation", record.created_at)?),
            cause.value(),
            label.value(),
            state.value(),
            ValueRef::Integer(db::stored("the count of nodes", record.completed_node_count)?),
            ValueRef::Integer(db::stored("the size", record.size_bytes)?),
            ValueRef::Integer(i64::from(record.compressed)),
            nodes.value(),
            ValueRef::Blob(record.workflow_id.as_bytes()),
            spend.value(),
        ];
        execution.link = checkpoint_link(&execution.link, &values);
        let values = [&values[..], &[ValueRef::Blob(&execution.link)]].concat();
        db.put(
            "checkpoints",
            concat!(
                "INSERT INTO checkpoints (",
                checkpoint_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"
            ),
            &values,
        )
    }
}

/// Returns the link of a point from its columns. Its delta is not in it: squashing may put another in its place.
pub(super) fn checkpoint_link(before: &Link, columns: &[ValueRef<'_>]) -> Link {
    let kept = columns.iter().enumerate().filter(|(place, _)| *place != 4).map(|(_, value)| *value);
    link::next(before, "checkpoints", kept)
}

/// Reads a row of `operations`: number, at, who, command, cause, before and after from column 1 on.
pub(super) fn operation(db: &Db, execution: ExecutionId, row: &Row<'_>) -> Result<OperationRecord, Damage> {
    db.verify("operations", row, 9)?;
    let number = db::count(row, 1)?;
    let spot = Spot { table: "operations", owner: execution, number };
    Ok(OperationRecord {
        number,
        at: db::time(row, 2)?,
        who: db.seen_text(spot, "who", row, 3)?,
        command: db.seen_text(spot, "command", row, 4)?,
        cause: db::json(&db.seen(spot, "cause", row, 5)?)?,
        before: db::count(row, 6)?,
        after: db::count(row, 7)?,
    })
}

pub(super) fn insert_operation(
    db: &Db,
    execution: &mut ExecutionRow,
    operation: &OperationRecord,
) -> Result<(), StoreError> {
    let cause = db::to_json("the cause", &operation.cause)?;
    let guard = db.guard();
    let spot = Spot { table: "operations", owner: execution.record.id, number: operation.number };
    let who = guard.hide(spot, "who", operation.who.as_str())?;
    let command = guard.hide(spot, "command", operation.command.as_str())?;
    let cause = guard.hide(spot, "cause", cause.as_str())?;
    let values = [
        ValueRef::Integer(execution.key),
        ValueRef::Integer(db::stored("the operation", operation.number)?),
        ValueRef::Integer(db::nanoseconds("the operation", operation.at)?),
        who.value(),
        command.value(),
        cause.value(),
        ValueRef::Integer(db::stored("the head", operation.before)?),
        ValueRef::Integer(db::stored("the head", operation.after)?),
    ];
    execution.log_link = link::next(&execution.log_link, "operations", values);
    let values = [&values[..], &[ValueRef::Blob(&execution.log_link)]].concat();
    db.put(
        "operations",
        concat!(
            "INSERT INTO operations (",
            operation_columns!(),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
        ),
        &values,
    )
}
