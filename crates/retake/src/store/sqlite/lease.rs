//! Leases on executions, and what is asked of their holders.

use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use rusqlite::types::ValueRef;
use uuid::Uuid;

use super::Shared;
use super::commit;
use super::db::{self, Db};
use super::guard::Spot;
use super::row::{ExecutionRow, Holder};
use crate::execution::ExecutionId;
use crate::store::{Conflict, Lease, Request, StoreError};

impl ExecutionRow {
    pub(super) fn check_fence(&self, ours: u64) -> Result<(), Conflict> {
        if ours == self.fence {
            return Ok(());
        }
        Err(Conflict::Fenced { execution: self.record.id, ours, found: self.fence })
    }
}

impl Shared {
    /// Returns the holder of a lease that has not ended and whose process lives.
    pub(super) fn holder<'a>(&self, execution: &'a ExecutionRow) -> Option<&'a Holder> {
        let now = self.clock.now().timestamp_nanos_opt()?;
        execution.holder.as_ref().filter(|holder| holder.until > now && self.owner.is_open(holder.owner_id))
    }

    /// Refuses where somebody advances the execution.
    pub(super) fn check_free(&self, execution: &ExecutionRow) -> Result<(), Conflict> {
        match self.holder(execution) {
            None => Ok(()),
            Some(holder) => Err(Conflict::Leased {
                execution: execution.record.id,
                owner: holder.name.clone(),
                until: DateTime::from_timestamp_nanos(holder.until),
            }),
        }
    }

    fn end_of(&self, ttl: Duration) -> i64 {
        let until = TimeDelta::from_std(ttl).ok().and_then(|ttl| self.clock.now().checked_add_signed(ttl));
        until.and_then(|until| until.timestamp_nanos_opt()).unwrap_or(i64::MAX)
    }
}

pub(super) fn lease(db: &Db, shared: &Shared, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError> {
    let mut execution = ExecutionRow::require(db, id)?;
    shared.check_free(&execution)?;
    shared.owner.show()?;
    let owner = &shared.owner;
    let holder = Holder { name: owner.name().to_owned(), owner_id: owner.id(), until: shared.end_of(ttl) };
    if let Some(before) = execution.holder.replace(holder)
        && before.owner_id != owner.id()
    {
        owner.sweep(before.owner_id);
    }
    execution.fence += 1;
    execution.update(db)?;
    Ok(Lease { execution_id: id, fence: execution.fence, ttl })
}

pub(super) fn renew(db: &Db, shared: &Shared, lease: &Lease) -> Result<(), StoreError> {
    let mut execution = ExecutionRow::require(db, lease.execution_id)?;
    execution.check_fence(lease.fence)?;
    // One that was given back stays so, however late somebody renews it.
    if execution.holder.is_none() {
        let (ours, found) = (lease.fence, execution.fence);
        return Err(Conflict::Fenced { execution: lease.execution_id, ours, found }.into());
    }
    shared.owner.show()?;
    execution.holder = Some(Holder {
        name: shared.owner.name().to_owned(),
        owner_id: shared.owner.id(),
        until: shared.end_of(lease.ttl),
    });
    execution.update(db)
}

pub(super) fn requests(db: &Db, id: ExecutionId) -> Result<Vec<Request>, StoreError> {
    let Some(execution) = ExecutionRow::by_id(db, id)? else { return Ok(Vec::new()) };
    db.all(
        "SELECT key, execution, id, body, checksum FROM requests WHERE execution = ?1 ORDER BY key",
        [execution.key],
        request_name,
        |row| request(db, row),
    )
}

pub(super) fn release(db: &Db, lease: &Lease) -> Result<(), StoreError> {
    match ExecutionRow::by_id(db, lease.execution_id)? {
        Some(mut execution) if execution.fence == lease.fence && execution.holder.is_some() => {
            execution.holder = None;
            execution.update(db)
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn ask(db: &Db, id: ExecutionId, request: &Request) -> Result<(), StoreError> {
    let execution = ExecutionRow::require(db, id)?;
    if db.number("SELECT key FROM requests WHERE id = ?1", [request.id.as_bytes()])?.is_some() {
        return Err(Conflict::IdTaken(request.id).into());
    }
    let body = db::to_json("the request", request)?;
    let body = db.guard().hide(spot(request.id), "body", body.as_str())?;
    let values = [
        ValueRef::Integer(db.number("SELECT coalesce(max(key), 0) + 1 FROM requests", [])?.unwrap_or(1)),
        ValueRef::Integer(execution.key),
        ValueRef::Blob(request.id.as_bytes()),
        body.value(),
    ];
    let sql = "INSERT INTO requests (key, execution, id, body, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.put("requests", sql, &values)
}

pub(super) fn withdraw(db: &Db, id: ExecutionId, request: Uuid) -> Result<bool, StoreError> {
    match ExecutionRow::by_id(db, id)? {
        Some(execution) => commit::withdraw(db, execution.key, request),
        None => Ok(false),
    }
}

pub(super) fn request_name(row: &rusqlite::Row<'_>) -> String {
    format!("request {}", db::shown(row, 2))
}

pub(super) fn request(db: &Db, row: &rusqlite::Row<'_>) -> Result<Request, db::Damage> {
    db.verify("requests", row, 4)?;
    db::json(&db.seen(spot(db::id(row, 2)?), "body", row, 3)?)
}

fn spot(request: Uuid) -> Spot {
    Spot { table: "requests", owner: request, number: 0 }
}
