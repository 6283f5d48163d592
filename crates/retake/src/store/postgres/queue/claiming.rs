//! Claiming: what is due is found by indexes, locked where nobody else has locked it, and leased in the same statement.
//!
//! ```text
//! delayed --time--> ready --claim--> claimed --settle--> gone, delayed, ready or held
//!                     ^                 `--lease ran out--> ready or stuck
//!                     `-- enqueue, approval -- held, stuck
//! ```
//!
//! Tickets that are alike for a worker, because they have the same queue and the same requirements, share a *lane*; those
//! whose execution nobody has advanced yet have a lane for each workflow beside that. A claim looks at the first tickets
//! of each lane that has any, which the index gives, and at no others. A lane whose limit leaves no room is passed by,
//! however much waits in it.
//!
//! Limits are exact though nobody waits for a lock. A claim counts by its snapshot, and locks the row of the limit after
//! that: where the row's version is not what the snapshot shows, somebody has claimed in between, and the count is not to
//! be trusted; where the row is locked, somebody is about to. Both leave the lane alone, and the claim is tried again
//! where that left it with nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Row;

use super::super::Shared;
use super::super::lease::microseconds;
use super::super::row::{damaged, get};
use super::bell::Heard;
use crate::store::column::Damage;
use crate::store::{CLAIMS_MAX, Claim, Claimed, Lease, StoreError};

/// How often a claim is tried that got nothing because others were first.
const ROUNDS_MAX: u32 = 16;

/// How much longer each of its pauses is than the one before.
const ROUND_PAUSE: Duration = Duration::from_millis(2);

/// How long a worker leaves tickets alone whose time has come and whose rows somebody else keeps locked.
const LOCKED_PAUSE: Duration = Duration::from_millis(100);

/// The plans do not depend on what the server believes of tables that grow and shrink all the time.
pub(super) const PLAN: &str = "
SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
    set_config('enable_bitmapscan', 'off', true), set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)";

/// Makes tickets ready whose time has come, and ends claims whose lease has run out: their holders are fenced. `$1`:
/// [`CLAIMS_MAX`].
///
/// A claim whose lease was renewed is seen to again when that runs out.
pub(super) const PROMOTE: &str = "
WITH lapsed AS MATERIALIZED (
    SELECT t.execution, t.stand, t.again, t.claims, t.claimed_fence, e.lease_until,
        t.stand = 'claimed' AND e.fence = t.claimed_fence AND coalesce(e.lease_until > moment(), false) AS holds,
        t.stand = 'claimed' AND coalesce(e.head > t.claimed_head + 1, false) AS went_on
    FROM tickets t JOIN executions e ON e.key = t.execution
    WHERE t.stand IN ('delayed', 'claimed') AND t.due <= moment()
    ORDER BY t.due LIMIT 256 FOR UPDATE OF t, e SKIP LOCKED
), fenced AS (
    UPDATE executions e SET fence = e.fence + 1, owner = NULL, owner_id = NULL, lease_until = NULL
    FROM lapsed l
    WHERE e.key = l.execution AND l.stand = 'claimed' AND NOT l.holds AND e.fence = l.claimed_fence
), promoted AS (
    UPDATE tickets t SET
        stand = CASE WHEN l.holds THEN 'claimed' WHEN l.stand = 'delayed' THEN 'ready'
            WHEN l.again > moment() THEN 'delayed'
            WHEN l.again IS NULL AND l.claims >= $1 AND NOT l.went_on THEN 'stuck'
            ELSE 'ready' END,
        due = CASE WHEN l.holds THEN l.lease_until WHEN l.stand = 'delayed' THEN t.due
            ELSE coalesce(l.again, moment()) END,
        again = CASE WHEN l.holds THEN t.again END,
        claims = CASE WHEN l.went_on AND NOT l.holds THEN 1 ELSE t.claims END,
        claimed_queue = CASE WHEN l.holds THEN t.claimed_queue END,
        claimed_fence = CASE WHEN l.holds THEN t.claimed_fence END
    FROM lapsed l WHERE t.execution = l.execution
    RETURNING t.stand
)
SELECT count(*) FILTER (WHERE stand = 'ready') FROM promoted";

/// Claims. `$1`: the queues, empty for all; `$2`: what the worker is able to do; `$3`: how many; `$4` and `$5`: who takes
/// the leases; `$6`: for how many microseconds.
pub(super) const CLAIM: &str = "
WITH RECURSIVE lanes AS (
    (SELECT t.lane, t.queue, t.requires, t.starts FROM tickets t WHERE t.stand = 'ready' ORDER BY t.lane LIMIT 1)
    UNION ALL
    SELECT n.lane, n.queue, n.requires, n.starts FROM lanes l CROSS JOIN LATERAL (
        SELECT t.lane, t.queue, t.requires, t.starts FROM tickets t
        WHERE t.stand = 'ready' AND t.lane > l.lane ORDER BY t.lane LIMIT 1
    ) n
), served AS MATERIALIZED (
    SELECT l.lane, l.queue, l.starts, r.version AS running_version, s.version AS starts_version,
        s.most AS starts_most, s.period, greatest(0, extract(epoch FROM s.full_at - moment())) * 1000000 AS lacking,
        CASE WHEN r.name IS NOT NULL THEN r.most - (
            SELECT count(*) FROM tickets c WHERE c.stand = 'claimed' AND c.claimed_queue = l.queue
        ) END AS room
    FROM lanes l
    LEFT JOIN limits r ON r.kind = 'running' AND r.name = l.queue
    LEFT JOIN limits s ON s.kind = 'starts' AND s.name = l.starts
    WHERE (cardinality($1::bytea[]) = 0 OR l.queue = ANY ($1::bytea[])) AND l.requires <@ $2::bytea[]
), priced AS MATERIALIZED (
    -- What a rounded microsecond lacks is no reason to wait.
    SELECT *, CASE WHEN starts_version IS NOT NULL
        THEN floor(starts_most * (1 - lacking / period) + 0.000001) END AS tokens
    FROM served
), peeked AS (
    SELECT v.*, p.execution, p.priority, p.due FROM priced v CROSS JOIN LATERAL (
        SELECT t.execution, t.priority, t.due FROM tickets t JOIN executions e ON e.key = t.execution
        WHERE t.stand = 'ready' AND t.lane = v.lane AND (e.lease_until IS NULL OR e.lease_until <= moment())
        ORDER BY t.priority DESC, t.due, t.execution LIMIT greatest(0, least($3::bigint, v.room, v.tokens))
    ) p WHERE coalesce(v.room, 1) > 0 AND coalesce(v.tokens, 1) > 0
), begun AS (
    SELECT *, row_number() OVER (PARTITION BY starts ORDER BY priority DESC, due, execution) AS start FROM peeked
), placed AS (
    SELECT *, row_number() OVER (PARTITION BY queue ORDER BY priority DESC, due, execution) AS place
    FROM begun WHERE tokens IS NULL OR start <= tokens
), chosen AS (
    SELECT lane, queue, starts, running_version, starts_version FROM placed WHERE room IS NULL OR place <= room
    ORDER BY priority DESC, due, execution LIMIT $3::bigint
), quotas AS MATERIALIZED (
    SELECT lane, queue, starts, running_version, starts_version, count(*) AS quota FROM chosen GROUP BY 1, 2, 3, 4, 5
), locked AS MATERIALIZED (
    SELECT l.kind, l.name, l.version FROM limits l
    WHERE (l.kind, l.name) IN (
        SELECT 'running', queue FROM quotas WHERE running_version IS NOT NULL
        UNION ALL SELECT 'starts', starts FROM quotas WHERE starts_version IS NOT NULL
    ) FOR UPDATE SKIP LOCKED
), granted AS MATERIALIZED (
    SELECT q.lane, q.quota FROM quotas q
    WHERE (q.running_version IS NULL OR EXISTS (SELECT FROM locked k
            WHERE k.kind = 'running' AND k.name = q.queue AND k.version = q.running_version))
        AND (q.starts_version IS NULL OR EXISTS (SELECT FROM locked k
            WHERE k.kind = 'starts' AND k.name = q.starts AND k.version = q.starts_version))
), taken AS MATERIALIZED (
    SELECT x.* FROM granted g CROSS JOIN LATERAL (
        SELECT t.execution, t.queue, t.starts, t.priority, t.due, t.claims
        FROM tickets t JOIN executions e ON e.key = t.execution
        WHERE t.stand = 'ready' AND t.lane = g.lane AND (e.lease_until IS NULL OR e.lease_until <= moment())
        ORDER BY t.priority DESC, t.due, t.execution LIMIT g.quota FOR UPDATE OF t, e SKIP LOCKED
    ) x
), leased AS (
    UPDATE executions e SET fence = e.fence + 1, owner = $4, owner_id = $5,
        lease_until = moment() + $6::bigint * interval '1 microsecond'
    FROM taken t WHERE e.key = t.execution RETURNING e.key, e.id, e.fence, e.lease_until, e.head
), marked AS (
    UPDATE tickets t SET stand = 'claimed', due = l.lease_until, claims = t.claims + 1, lane = t.later_lane, starts = NULL,
        claimed_queue = t.queue, claimed_fence = l.fence, claimed_head = l.head
    FROM leased l WHERE t.execution = l.key
), counted AS (
    UPDATE limits l SET version = l.version + 1, full_at = CASE WHEN l.kind = 'starts'
        THEN greatest(l.full_at, moment()) + n.started * (l.period / l.most::double precision) * interval '1 microsecond'
        ELSE l.full_at END
    FROM (
        SELECT 'running' AS kind, queue AS name, count(*) AS started FROM taken GROUP BY 2
        UNION ALL SELECT 'starts', starts, count(*) FROM taken WHERE starts IS NOT NULL GROUP BY 2
    ) n WHERE l.kind = n.kind AND l.name = n.name
)
SELECT (SELECT coalesce(sum(quota), 0) FROM quotas)::bigint,
    least(
        (SELECT extract(epoch FROM min(t.due) - moment()) * 1000000 FROM tickets t WHERE t.stand IN ('delayed', 'claimed')),
        (SELECT min(lacking - period * (1 - 1.0 / starts_most)) FROM priced WHERE tokens < 1 AND starts_most > 0)
    )::bigint,
    l.id, l.fence, t.queue, t.claims + 1
FROM (VALUES (1)) one LEFT JOIN (leased l JOIN taken t ON t.execution = l.key) ON true
ORDER BY t.priority DESC, t.due, t.execution";

/// What a claim came to.
struct Found {
    claimed: Vec<Claimed>,
    /// How many there were to be claimed.
    planned: usize,
    /// In how long there may be more, if nothing else happens.
    next: Option<Duration>,
    /// Whether more became ready than was claimed.
    leaves_more: bool,
}

pub(super) async fn claim(shared: &Shared, claim: &Claim) -> Result<Vec<Claimed>, StoreError> {
    for round in 1..=ROUNDS_MAX {
        // Before the look, so that nothing is missed between.
        let rings = shared.bell.rings();
        let began = Instant::now();
        let found = round_of(shared, claim).await?;
        if found.leaves_more {
            shared.bell.ring_later(&shared.db);
        }
        if found.claimed.is_empty() && found.planned > 0 {
            sleep(ROUND_PAUSE * round).await;
            continue;
        }
        let is_all = found.claimed.len() == found.planned && (found.planned < claim.most || claim.most == 0);
        // What it has just claimed may be to be had again when those leases run out.
        let own = (!found.claimed.is_empty()).then_some(claim.ttl);
        // What is due and was passed by has its row locked by somebody else.
        let next = found.next.map(|next| if next.is_zero() { LOCKED_PAUSE } else { next });
        let next = next.into_iter().chain(own).min();
        let heard = is_all.then(|| Heard { rings, next: next.and_then(|next| began.checked_add(next)) });
        shared.bell.note(claim.worker, heard);
        return Ok(found.claimed);
    }
    // Others claim as fast as this one: there is more to be had in a moment.
    shared.bell.note(claim.worker, None);
    Ok(Vec::new())
}

async fn round_of(shared: &Shared, claim: &Claim) -> Result<Found, StoreError> {
    let queues: Vec<&[u8]> = claim.queues.iter().map(String::as_bytes).collect();
    let able: Vec<&[u8]> = claim.able.iter().map(String::as_bytes).collect();
    let most = i64::try_from(claim.most).unwrap_or(i64::MAX);
    let (owner, taking) = (shared.owner.as_bytes(), shared.clock.new_id());
    let answers = shared
        .db
        .pipeline(
            "claiming",
            &[
                (PLAN, &[]),
                (PROMOTE, &[&i32::try_from(CLAIMS_MAX).unwrap_or(i32::MAX)]),
                (CLAIM, &[&queues, &able, &most, &owner, &taking, &microseconds(claim.ttl)]),
            ],
        )
        .await?;
    let [_, promoted, rows] = &answers[..] else { return Err(unread("there are too few".to_owned())) };
    let promoted: i64 = promoted.first().map_or(Ok(0), |row| get(row, 0)).map_err(unread)?;
    read(rows, claim, promoted).map_err(unread)
}

fn read(rows: &[Row], claim: &Claim, promoted: i64) -> Result<Found, Damage> {
    let Some(first) = rows.first() else { return Err("there is none".to_owned()) };
    let planned: i64 = get(first, 0)?;
    let next: Option<i64> = get(first, 1)?;
    let mut claimed = Vec::new();
    for row in rows {
        let Some(execution_id) = get(row, 2)? else { continue };
        let fence: i64 = get(row, 3)?;
        let claims: i32 = get(row, 5)?;
        let lease = Lease { execution_id, fence: u64::try_from(fence).unwrap_or(0), ttl: claim.ttl };
        let claims = u32::try_from(claims).unwrap_or(u32::MAX);
        claimed.push(Claimed { lease, queue: super::text(get(row, 4)?), claims });
    }
    Ok(Found {
        planned: usize::try_from(planned).unwrap_or(usize::MAX),
        next: next.map(|next| Duration::from_micros(u64::try_from(next).unwrap_or(0))),
        leaves_more: usize::try_from(promoted).unwrap_or(0) > claimed.len(),
        claimed,
    })
}

fn unread(why: Damage) -> StoreError {
    damaged("the answer to a claim".to_owned(), why)
}
