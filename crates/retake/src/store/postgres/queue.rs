//! Handing executions out to workers: tickets as rows, by the server's time.
//!
//! A ticket is a row as long as there is something to do, and none after that. Rows here have no checksums: they are no
//! history, and the server itself decides by them.

mod bell;
mod claiming;
mod limits;
mod listening;
mod standing;
#[cfg(test)]
mod tests;

use std::time::Duration;

use uuid::Uuid;

pub(super) use self::bell::Bell;
use super::chain::Reader;
use super::create::{Creation, With, created};
use super::db::Values;
use super::execution::ExecutionRow;
use super::lease::{change, microseconds};
use super::outage::Outage;
use super::row::{damaged, get};
use super::{PostgresStore, Shared};
use crate::execution::ExecutionId;
use crate::store::hash::{Hash, first_bytes};
use crate::store::{
    Claim, Claimed, Conflict, Lease, Limit, NewCheckpoint, NewExecution, Queue, QueueDepth, Settlement,
    StaleLease, StoreError, Submitted, Ticket, TicketRecord, WorkerRecord, WorkerReport, column,
};

/// How often a submission is tried that others are in the way of.
const ATTEMPTS_MAX: usize = 16;

/// Gives an execution a ticket. `$1`: its id; `$2`: the lane; `$3`: the queue; `$4`: the priority; `$5`: what it requires;
/// `$6`: in how many microseconds it is due.
const ENQUEUE: &str = "
INSERT INTO tickets AS t (execution, stand, lane, later_lane, queue, priority, requires, starts, due)
SELECT e.key, CASE WHEN $6::bigint = 0 THEN 'ready' ELSE 'delayed' END,
    CASE WHEN e.fence = 0 THEN substring(sha256($2::bytea || e.workflow_name) FOR 16) ELSE $2::bytea END,
    $2::bytea, $3, $4, $5, CASE WHEN e.fence = 0 THEN e.workflow_name END,
    moment() + $6::bigint * interval '1 microsecond'
FROM executions e WHERE e.id = $1
ON CONFLICT (execution) DO UPDATE SET
    stand = CASE WHEN t.stand = 'claimed' THEN 'claimed' ELSE excluded.stand END,
    lane = excluded.lane, later_lane = excluded.later_lane, queue = excluded.queue, priority = excluded.priority,
    requires = excluded.requires, starts = excluded.starts, claims = 0,
    due = CASE WHEN t.stand = 'claimed' THEN t.due ELSE excluded.due END,
    again = CASE WHEN t.stand = 'claimed' THEN excluded.due END";

const DEQUEUE: &str = "DELETE FROM tickets t USING executions e WHERE e.id = $1 AND t.execution = e.key";

/// Settles the claim with fence `$2`, where it is not over. `$3`: how; `$4`: in how many microseconds it is due again.
/// Returns whether the lease was there, and whether others may have something to claim for that.
const SETTLE: &str = "
WITH released AS (
    UPDATE executions e SET owner = NULL, owner_id = NULL, lease_until = NULL
    WHERE e.id = $1 AND e.fence = $2 RETURNING e.key
), settled AS MATERIALIZED (
    SELECT t.execution, t.claimed_queue, t.again, $3 = 'done' AND t.again IS NULL AS goes
    FROM tickets t JOIN released r ON t.execution = r.key
    WHERE t.stand = 'claimed' AND t.claimed_fence = $2 FOR UPDATE OF t
), gone AS (
    DELETE FROM tickets t USING settled s WHERE t.execution = s.execution AND s.goes
), kept AS (
    UPDATE tickets t SET
        stand = CASE WHEN s.again > moment() THEN 'delayed' WHEN s.again IS NOT NULL THEN 'ready'
            WHEN $3 = 'held' THEN 'held' WHEN $4::bigint = 0 THEN 'ready' ELSE 'delayed' END,
        due = coalesce(s.again, moment() + $4::bigint * interval '1 microsecond'),
        again = NULL, claims = 0, claimed_queue = NULL, claimed_fence = NULL
    FROM settled s WHERE t.execution = s.execution AND NOT s.goes
)
SELECT EXISTS (SELECT FROM released), EXISTS (
    SELECT FROM settled s WHERE s.again IS NOT NULL OR $3 = 'again'
        OR EXISTS (SELECT FROM limits l WHERE l.kind = 'running' AND l.name = s.claimed_queue)
)";

/// Creates an execution with a ticket, unless one was submitted with the key `$46`. `$47`: the lane; `$48`: the queue; `$49`:
/// the priority; `$50`: what it requires; `$51`: in how many microseconds it is due. Returns the key of what was made, and
/// what was submitted with the deduplication key before.
pub(super) const SUBMIT: &str = created!(
    "WHERE $46::bytea IS NULL OR NOT EXISTS (SELECT FROM submissions s WHERE s.key = $46)",
    ", ticketed AS (
        INSERT INTO tickets (execution, stand, lane, later_lane, queue, priority, requires, starts, due)
        SELECT key, CASE WHEN $51::bigint = 0 THEN 'ready' ELSE 'delayed' END,
            substring(sha256($47::bytea || $8::bytea) FOR 16), $47, $48::bytea, $49::integer, $50::bytea[], $8,
            moment() + $51::bigint * interval '1 microsecond'
        FROM made
    ), submitted AS (
        INSERT INTO submissions (key, execution) SELECT $46, key FROM made WHERE $46 IS NOT NULL
    ) SELECT (SELECT key FROM made),
        (SELECT e.id FROM submissions s JOIN executions e ON e.key = s.execution WHERE s.key = $46)"
);

/// Returns the lane of all tickets that are for the same workers, whatever workflow they are of.
fn lane(ticket: &Ticket) -> [u8; 16] {
    let mut hash = Hash::of("lane");
    hash.text(ticket.queue.as_bytes());
    for name in &ticket.requires {
        hash.text(name.as_bytes());
    }
    first_bytes(&hash.finish())
}

/// Returns a deduplication key as it is stored: however long, and whatever is in it.
fn submission(key: &str) -> [u8; 32] {
    let mut hash = Hash::of("submission");
    hash.text(key.as_bytes());
    hash.finish()
}

/// Reads a name, which was a text when it was stored.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The values of [`ENQUEUE`].
struct Slip<'a> {
    lane: [u8; 16],
    queue: &'a [u8],
    priority: i32,
    requires: Vec<&'a [u8]>,
    delay: i64,
}

impl<'a> Slip<'a> {
    fn of(ticket: &'a Ticket) -> Self {
        Self {
            lane: lane(ticket),
            queue: ticket.queue.as_bytes(),
            priority: ticket.priority,
            requires: ticket.requires.iter().map(String::as_bytes).collect(),
            delay: microseconds(ticket.delay),
        }
    }
}

/// Creates an execution with a ticket, unless there is one with the key.
///
/// Where the connection is lost, it finds out by the checkpoint's id whether it was done, and does it if not.
async fn submit(
    shared: &Shared,
    new: NewExecution,
    first: NewCheckpoint,
    ticket: &Ticket,
    key: Option<&str>,
) -> Result<Submitted, StoreError> {
    ticket.checked()?;
    let key = key.map(submission);
    let creation = Creation::made(shared, new, first).await?;
    creation.check_first()?;
    let mut outage = Outage::new(shared.db.options());
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        if outage.is_any() {
            match creation.done(shared).await {
                Ok(Some(record)) => return Ok(Submitted::Created(Box::new(record))),
                Ok(None) => {}
                Err(error) => {
                    outage.wait(error).await?;
                    continue;
                }
            }
        }
        match attempt(shared, &creation, ticket, key.as_ref()).await {
            Ok(submitted) => {
                match creation.is_fork() {
                    // The server has been told by the way.
                    false => shared.bell.strike(),
                    true => shared.bell.ring(&shared.db).await,
                }
                return Ok(submitted);
            }
            Err(error) if super::fault::violated(&error).is_none() => outage.wait(error).await?,
            Err(error) => {
                // Perhaps by one with the same key, which was not there yet when this one looked.
                let taken = creation.taken(shared, &error);
                if let (Some(taken), true) = (&taken, key.is_none() || last.is_some()) {
                    return Err(taken.clone());
                }
                last = Some(taken.unwrap_or(error));
            }
        }
    }
    Err(last.unwrap_or_else(|| StoreError::Closed { location: shared.db.location().to_owned() }))
}

/// Does all of it in one round trip, and has the server wake the workers after that.
async fn attempt(
    shared: &Shared,
    creation: &Creation,
    ticket: &Ticket,
    key: Option<&[u8; 32]>,
) -> Result<Submitted, StoreError> {
    let (key, slip) = (key.map(|key| &key[..]), Slip::of(ticket));
    let values: Values<'_> =
        &[&key, &&slip.lane[..], &slip.queue, &slip.priority, &slip.requires, &slip.delay];
    let (ring, channel) = shared.bell.announcement(&shared.db);
    let announced: Values<'_> = &[&channel];
    let with = Some(With { sql: SUBMIT, values, after: (ring, announced) });
    let (created, rows) = match creation.is_fork() {
        false => creation.insert(shared, &mut Reader::Db(&shared.db), with).await?,
        true => {
            let mut transaction = shared.db.transaction("submitting").await?;
            let done = creation.insert(shared, &mut Reader::Transaction(&mut transaction), with).await?;
            transaction.commit().await?;
            done
        }
    };
    let unread = |why| damaged("the answer to a submission".to_owned(), why);
    let row = rows.first().ok_or_else(|| unread("there is none".to_owned()))?;
    let made: Option<i64> = get(row, 0).map_err(unread)?;
    match (made, get(row, 1).map_err(unread)?) {
        (Some(_), _) => Ok(Submitted::Created(Box::new(created.record))),
        (None, Some(before)) => Ok(Submitted::Duplicate(before)),
        (None, None) => Err(unread("it made nothing".to_owned())),
    }
}

async fn enqueue(shared: &Shared, id: ExecutionId, ticket: &Ticket) -> Result<(), StoreError> {
    ticket.checked()?;
    let slip = Slip::of(ticket);
    let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
        &[&id, &&slip.lane[..], &slip.queue, &slip.priority, &slip.requires, &slip.delay];
    if change(shared, "enqueueing", ENQUEUE, values).await? == 0 {
        return Err(StoreError::NoExecution(id));
    }
    shared.bell.ring(&shared.db).await;
    Ok(())
}

async fn settle(shared: &Shared, lease: &Lease, settlement: Settlement) -> Result<(), StoreError> {
    let (id, fence) = (lease.execution_id, column::stored("the fence", lease.fence)?);
    let (how, delay) = match settlement {
        Settlement::Done => ("done", Duration::ZERO),
        Settlement::Held => ("held", Duration::ZERO),
        Settlement::Again { delay } => ("again", delay),
    };
    let mut outage = Outage::new(shared.db.options());
    let rows = loop {
        match shared.db.write("settling", SETTLE, &[&id, &fence, &how, &microseconds(delay)]).await {
            Ok(rows) => break rows,
            Err(error) => outage.wait(error).await?,
        }
    };
    let unread = |why| damaged("the answer to a settlement".to_owned(), why);
    let row = rows.first().ok_or_else(|| unread("there is none".to_owned()))?;
    if !get::<bool>(row, 0).map_err(unread)? {
        let found = ExecutionRow::require(&mut Reader::Db(&shared.db), id).await?.fence;
        return Err(Conflict::Fenced { execution: id, ours: lease.fence, found }.into());
    }
    if get::<bool>(row, 1).map_err(unread)? {
        shared.bell.ring_later(&shared.db);
    }
    Ok(())
}

#[async_trait::async_trait]
impl Queue for PostgresStore {
    async fn submit(
        &self,
        new: NewExecution,
        first: NewCheckpoint,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submitted, StoreError> {
        submit(&self.shared, new, first, &ticket, key.as_deref()).await
    }

    async fn enqueue(&self, id: ExecutionId, ticket: Ticket) -> Result<(), StoreError> {
        enqueue(&self.shared, id, &ticket).await
    }

    async fn dequeue(&self, id: ExecutionId) -> Result<bool, StoreError> {
        let found = change(&self.shared, "dequeueing", DEQUEUE, &[&id]).await? > 0;
        if found {
            // It may have counted for a limit.
            self.shared.bell.ring(&self.shared.db).await;
        }
        Ok(found)
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Claimed>, StoreError> {
        claiming::claim(&self.shared, claim).await
    }

    async fn settle(&self, lease: &Lease, settlement: Settlement) -> Result<(), StoreError> {
        settle(&self.shared, lease, settlement).await
    }

    async fn wait_for_work(&self, claim: &Claim, at_most: Duration) -> Result<(), StoreError> {
        self.shared.bell.wait(&self.shared.db, claim.worker, at_most).await;
        Ok(())
    }

    async fn set_limit(&self, limit: Limit) -> Result<(), StoreError> {
        limits::set(&self.shared, &limit).await
    }

    async fn lift_limit(&self, limit: &Limit) -> Result<bool, StoreError> {
        limits::lift(&self.shared, limit).await
    }

    async fn limits(&self) -> Result<Vec<Limit>, StoreError> {
        limits::all(&self.shared).await
    }

    async fn tickets(&self, of: &[ExecutionId]) -> Result<Vec<TicketRecord>, StoreError> {
        standing::tickets(&self.shared, of).await
    }

    async fn depths(&self) -> Result<Vec<QueueDepth>, StoreError> {
        standing::depths(&self.shared).await
    }

    async fn report(&self, worker: &WorkerReport) -> Result<(), StoreError> {
        standing::report(&self.shared, worker).await
    }

    async fn retire(&self, worker: Uuid) -> Result<(), StoreError> {
        standing::retire(&self.shared, worker).await
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        standing::workers(&self.shared).await
    }

    async fn stale_leases(&self) -> Result<Vec<StaleLease>, StoreError> {
        standing::stale_leases(&self.shared).await
    }
}
