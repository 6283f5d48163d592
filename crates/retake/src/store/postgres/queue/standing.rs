//! How things stand: depths of queues, workers, and leases that nobody came for.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::Shared;
use super::super::lease::{change, microseconds};
use super::super::row::{damaged, get};
use super::text;
use crate::execution::ExecutionId;
use crate::store::column::Damage;
use crate::store::{
    CLAIMS_MAX, QueueDepth, StaleLease, StoreError, TicketRecord, TicketStand, WORKER_FORGOTTEN_AFTER,
    WORKER_LOST_AFTER, WorkerRecord, WorkerReport, WorkerStand,
};

/// As the next claim would see them. `$1`: [`CLAIMS_MAX`].
const DEPTHS: &str = "
SELECT s.queue, s.stand, count(*) FROM (
    SELECT t.queue, CASE
        WHEN t.stand = 'claimed' AND e.fence = t.claimed_fence AND e.lease_until > moment() THEN 'claimed'
        WHEN t.stand = 'claimed' AND t.again IS NULL AND t.claims >= $1 AND e.head <= t.claimed_head + 1
            THEN 'stuck'
        WHEN t.stand = 'claimed' AND t.again > moment() THEN 'delayed'
        WHEN t.stand = 'delayed' AND t.due > moment() THEN 'delayed'
        WHEN t.stand IN ('held', 'stuck') THEN t.stand
        ELSE 'due' END AS stand
    FROM tickets t LEFT JOIN executions e ON t.stand = 'claimed' AND e.key = t.execution
) s GROUP BY 1, 2 ORDER BY 1";

/// The same for these executions. `$1`: [`CLAIMS_MAX`], `$2`: the executions.
const TICKETS: &str = "
SELECT s.id, s.queue, s.priority, s.stand,
    CASE s.stand WHEN 'delayed' THEN (extract(epoch FROM s.at) * 1000000)::bigint END
FROM (
    SELECT e.id, t.queue, t.priority::bigint AS priority,
        CASE WHEN t.stand = 'claimed' THEN t.again ELSE t.due END AS at, CASE
        WHEN t.stand = 'claimed' AND e.fence = t.claimed_fence AND e.lease_until > moment() THEN 'claimed'
        WHEN t.stand = 'claimed' AND t.again IS NULL AND t.claims >= $1 AND e.head <= t.claimed_head + 1
            THEN 'stuck'
        WHEN t.stand = 'claimed' AND t.again > moment() THEN 'delayed'
        WHEN t.stand = 'delayed' AND t.due > moment() THEN 'delayed'
        WHEN t.stand IN ('held', 'stuck') THEN t.stand
        ELSE 'due' END AS stand
    FROM tickets t JOIN executions e ON e.key = t.execution WHERE e.id = ANY($2)
) s ORDER BY s.id";

/// Nobody waits for another: those that are being forgotten by somebody else are left to that.
const REPORT: &str = "
WITH forgotten AS (
    DELETE FROM workers WHERE id IN (
        SELECT id FROM workers WHERE seen_at < moment() - $7::bigint * interval '1 microsecond' AND id <> $1
        FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO workers AS w (id, name, version, queues, concurrency, running, started_at, seen_at)
VALUES ($1, $2, $3, $4, $5, $6, moment(), moment())
ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version, queues = excluded.queues,
    concurrency = excluded.concurrency, running = excluded.running, seen_at = excluded.seen_at";

const RETIRE: &str = "DELETE FROM workers WHERE id = $1";

/// `$1`: after how many microseconds of silence a worker is lost; `$2`: and forgotten.
const WORKERS: &str = "
SELECT id, name, version, queues, concurrency, running, (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM seen_at) * 1000000)::bigint, seen_at < moment() - $1::bigint * interval '1 microsecond'
FROM workers WHERE seen_at >= moment() - $2::bigint * interval '1 microsecond'
ORDER BY started_at DESC, id DESC";

const STALE: &str = "
SELECT e.id, e.name, e.owner, (extract(epoch FROM e.lease_until) * 1000000)::bigint
FROM executions e WHERE e.lease_until <= moment() ORDER BY e.lease_until, e.id";

pub(super) async fn depths(shared: &Shared) -> Result<Vec<QueueDepth>, StoreError> {
    let claims_max = i32::try_from(CLAIMS_MAX).unwrap_or(i32::MAX);
    let rows = shared.db.query("counting tickets", DEPTHS, &[&claims_max]).await?;
    let mut depths = BTreeMap::<&[u8], QueueDepth>::new();
    for row in &rows {
        count(row, &mut depths).map_err(|why| damaged("a count of tickets".to_owned(), why))?;
    }
    Ok(depths.into_values().collect())
}

pub(super) async fn tickets(shared: &Shared, of: &[ExecutionId]) -> Result<Vec<TicketRecord>, StoreError> {
    let claims_max = i32::try_from(CLAIMS_MAX).unwrap_or(i32::MAX);
    let rows = shared.db.query("reading tickets", TICKETS, &[&claims_max, &of]).await?;
    let tickets = rows.iter().map(ticket).collect::<Result<_, _>>();
    tickets.map_err(|why| damaged("a ticket".to_owned(), why))
}

fn ticket(row: &Row) -> Result<TicketRecord, Damage> {
    Ok(TicketRecord {
        execution_id: get(row, 0)?,
        queue: text(get(row, 1)?),
        priority: i32::try_from(get::<i64>(row, 2)?).unwrap_or_default(),
        stands: stand(get(row, 3)?)?,
        due_at: if get::<Option<i64>>(row, 4)?.is_some() { Some(time(row, 4)?) } else { None },
    })
}

fn stand(stand: &str) -> Result<TicketStand, Damage> {
    Ok(match stand {
        "due" => TicketStand::Due,
        "delayed" => TicketStand::Delayed,
        "held" => TicketStand::Held,
        "claimed" => TicketStand::Claimed,
        "stuck" => TicketStand::Stuck,
        other => return Err(format!("no ticket stands `{other}`")),
    })
}

fn count<'row>(row: &'row Row, depths: &mut BTreeMap<&'row [u8], QueueDepth>) -> Result<(), Damage> {
    let (queue, stand, count) = (get(row, 0)?, get(row, 1)?, get::<i64>(row, 2)?);
    let depth = depths.entry(queue);
    let depth = depth.or_insert_with(|| QueueDepth { queue: text(queue), ..QueueDepth::default() });
    let counted = match self::stand(stand)? {
        TicketStand::Due => &mut depth.due,
        TicketStand::Delayed => &mut depth.delayed,
        TicketStand::Held => &mut depth.held,
        TicketStand::Claimed => &mut depth.claimed,
        TicketStand::Stuck => &mut depth.stuck,
    };
    *counted = u64::try_from(count).unwrap_or(0);
    Ok(())
}

pub(super) async fn report(shared: &Shared, worker: &WorkerReport) -> Result<(), StoreError> {
    worker.checked()?;
    let WorkerReport { id, name, version, queues, concurrency, running } = worker;
    let queues: Vec<&[u8]> = queues.iter().map(String::as_bytes).collect();
    let (concurrency, running) = (i64::from(*concurrency), i64::from(*running));
    let (name, version) = (name.as_bytes(), version.as_bytes());
    let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
        &[id, &name, &version, &queues, &concurrency, &running, &microseconds(WORKER_FORGOTTEN_AFTER)];
    change(shared, "reporting a worker", REPORT, values).await.map(|_| ())
}

pub(super) async fn retire(shared: &Shared, worker: Uuid) -> Result<(), StoreError> {
    shared.bell.note(worker, None);
    change(shared, "retiring a worker", RETIRE, &[&worker]).await.map(|_| ())
}

pub(super) async fn workers(shared: &Shared) -> Result<Vec<WorkerRecord>, StoreError> {
    let (lost, forgotten) = (microseconds(WORKER_LOST_AFTER), microseconds(WORKER_FORGOTTEN_AFTER));
    let rows = shared.db.query("reading workers", WORKERS, &[&lost, &forgotten]).await?;
    let workers = rows.iter().map(worker).collect::<Result<_, _>>();
    workers.map_err(|why| damaged("a worker".to_owned(), why))
}

fn worker(row: &Row) -> Result<WorkerRecord, Damage> {
    let number = |column| Ok::<_, Damage>(u32::try_from(get::<i64>(row, column)?).unwrap_or(u32::MAX));
    let queues: Vec<&[u8]> = get(row, 3)?;
    let report = WorkerReport {
        id: get(row, 0)?,
        name: text(get(row, 1)?),
        version: text(get(row, 2)?),
        queues: queues.into_iter().map(text).collect(),
        concurrency: number(4)?,
        running: number(5)?,
    };
    let stands = if get(row, 8)? { WorkerStand::Lost } else { WorkerStand::Alive };
    Ok(WorkerRecord { report, started_at: time(row, 6)?, seen_at: time(row, 7)?, stands })
}

pub(super) async fn stale_leases(shared: &Shared) -> Result<Vec<StaleLease>, StoreError> {
    let rows = shared.db.query("reading leases", STALE, &[]).await?;
    let stale = |row: &Row| {
        let owner = get::<Option<&[u8]>>(row, 2)?.map(text).unwrap_or_default();
        Ok(StaleLease { execution_id: get(row, 0)?, name: text(get(row, 1)?), owner, until: time(row, 3)? })
    };
    let stale = rows.iter().map(stale).collect::<Result<_, _>>();
    stale.map_err(|why| damaged("a lease".to_owned(), why))
}

fn time(row: &Row, column: usize) -> Result<DateTime<Utc>, Damage> {
    let microseconds: i64 = get(row, column)?;
    DateTime::from_timestamp_micros(microseconds).ok_or_else(|| format!("{microseconds} is no time"))
}
