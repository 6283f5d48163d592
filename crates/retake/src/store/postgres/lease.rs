//! Leases on executions, by the server's time.

use std::time::Duration;

use super::Shared;
use super::chain::Reader;
use super::execution::ExecutionRow;
use super::outage::Outage;
use super::row::{self, damaged};
use crate::execution::ExecutionId;
use crate::store::{Conflict, Lease, StoreError, column};

/// The longest lease, in microseconds: a hundred years.
const TTL_MAX_US: u128 = 100 * 365 * 24 * 3_600 * 1_000_000;

/// How often a lease is tried that was free when it was looked at.
const ATTEMPTS_MAX: usize = 16;

/// Takes a lease whose time is up, or that the same call took before it lost the connection.
pub(super) const TAKE: &str = "
UPDATE executions e SET fence = e.fence + 1, owner = $2, owner_id = $3,
    lease_until = moment() + $4::bigint * interval '1 microsecond'
WHERE e.id = $1 AND (e.lease_until IS NULL OR e.lease_until <= moment() OR e.owner_id = $3)
RETURNING e.fence";

/// The ticket that was claimed with the lease says when it runs out, so that nobody looks at it before. Only a claimed one
/// has that fence; to ask for its stand as well would let the server walk along all that are claimed.
pub(super) const RENEW: &str = "
WITH renewed AS (
    UPDATE executions e SET owner = $3, lease_until = moment() + $4::bigint * interval '1 microsecond'
    WHERE e.id = $1 AND e.fence = $2 AND e.owner IS NOT NULL RETURNING e.key, e.lease_until
), kept AS (
    UPDATE tickets t SET due = r.lease_until FROM renewed r
    WHERE t.execution = r.key AND t.claimed_fence = $2
)
SELECT key FROM renewed";

/// Returns the tickets that somebody may claim now.
pub(super) const RELEASE: &str = "
WITH released AS (
    UPDATE executions e SET owner = NULL, owner_id = NULL, lease_until = NULL
    WHERE e.id = $1 AND e.fence = $2 AND e.owner IS NOT NULL RETURNING e.key
), ended AS (
    UPDATE tickets t SET due = moment() FROM released r
    WHERE t.execution = r.key AND t.claimed_fence = $2
)
SELECT t.execution FROM tickets t JOIN released r ON t.execution = r.key WHERE t.stand IN ('ready', 'claimed')";

/// Returns a time to live as the statements take it.
pub(super) fn microseconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_micros().min(TTL_MAX_US)).unwrap_or(i64::MAX)
}

pub(super) async fn lease(shared: &Shared, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError> {
    let mut outage = Outage::new(shared.db.options());
    let taking = shared.clock.new_id();
    for _ in 0..ATTEMPTS_MAX {
        let owner = shared.owner.as_bytes();
        let taken =
            shared.db.write("taking a lease", TAKE, &[&id, &owner, &taking, &microseconds(ttl)]).await;
        match taken {
            Ok(rows) => match rows.first() {
                Some(row) => {
                    let fence: i64 =
                        row::get(row, 0).map_err(|why| damaged(format!("execution {id}"), why))?;
                    return Ok(Lease { execution_id: id, fence: u64::try_from(fence).unwrap_or(0), ttl });
                }
                // Otherwise it was given back in this moment.
                None => ExecutionRow::require(&mut Reader::Db(&shared.db), id).await?.check_free()?,
            },
            Err(error) => outage.wait(error).await?,
        }
    }
    Err(StoreError::Closed { location: shared.db.location().to_owned() })
}

pub(super) async fn renew(shared: &Shared, lease: &Lease) -> Result<(), StoreError> {
    let id = lease.execution_id;
    let fence = column::stored("the fence", lease.fence)?;
    let owner = shared.owner.as_bytes();
    let renewed =
        change(shared, "renewing a lease", RENEW, &[&id, &fence, &owner, &microseconds(lease.ttl)]).await?;
    if renewed > 0 {
        return Ok(());
    }
    let execution = ExecutionRow::require(&mut Reader::Db(&shared.db), id).await?;
    let found = execution.fence;
    Err(Conflict::Fenced { execution: id, ours: lease.fence, found }.into())
}

pub(super) async fn release(shared: &Shared, lease: &Lease) -> Result<(), StoreError> {
    let fence = column::stored("the fence", lease.fence)?;
    if change(shared, "giving a lease back", RELEASE, &[&lease.execution_id, &fence]).await? > 0 {
        // Told before this returns: a process that has nothing more to do ends then, and what it would tell later with it.
        shared.bell.ring(&shared.db).await;
    }
    Ok(())
}

/// Runs a statement that does the same when it is run again, until it has been.
pub(super) async fn change(
    shared: &Shared,
    action: &'static str,
    sql: &'static str,
    values: super::db::Values<'_>,
) -> Result<u64, StoreError> {
    let mut outage = Outage::new(shared.db.options());
    loop {
        match shared.db.execute(action, sql, values).await {
            Ok(changed) => return Ok(changed),
            Err(error) => outage.wait(error).await?,
        }
    }
}
