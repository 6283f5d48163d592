//! Handing executions out, in memory: tickets, limits and workers.
//!
//! A claim looks at all tickets. Their times are the clock's elapsed time, as those of leases are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Execution, Kept, MemoryStore};
use crate::execution::ExecutionId;
use crate::store::{
    CLAIMS_MAX, Claim, Claimed, Lease, Limit, NewCheckpoint, NewExecution, Queue, QueueDepth, Seq,
    Settlement, StaleLease, StoreError, Submitted, TIME_MAX, Ticket, TicketRecord, TicketStand,
    WORKER_FORGOTTEN_AFTER, WORKER_LOST_AFTER, WorkerRecord, WorkerReport, WorkerStand, process,
};

/// All that is kept for handing executions out.
#[derive(Debug, Default)]
pub(super) struct Desk {
    slips: HashMap<ExecutionId, Slip>,
    by_key: HashMap<String, ExecutionId>,
    running: BTreeMap<String, u32>,
    starts: BTreeMap<String, Bucket>,
    workers: BTreeMap<Uuid, Known>,
    /// How often the bell was rung.
    rings: u64,
    /// What each worker knew when it last claimed all that it could.
    heard: HashMap<Uuid, Heard>,
    /// How many tickets there ever were.
    numbered: u64,
}

/// A ticket that is kept.
#[derive(Debug)]
struct Slip {
    queue: String,
    priority: i32,
    requires: BTreeSet<String>,
    /// The workflow, until somebody has advanced the execution.
    starts: Option<String>,
    due: Duration,
    /// Decides between those that became due at the same time.
    number: u64,
    claims: u32,
    /// The head when it was last claimed.
    claimed_head: Seq,
    stand: Stand,
}

#[derive(Debug)]
enum Stand {
    Waiting,
    Held,
    Stuck,
    Claimed {
        fence: u64,
        /// That which it was claimed from.
        queue: String,
        after: After,
    },
}

/// What follows a claim.
#[derive(Debug)]
enum After {
    /// What it is settled as.
    Settlement,
    /// Another one: the ticket has been replaced.
    Again,
}

/// What lets executions of a workflow begin at a rate. One costs the period, and time fills it as many times as fast as
/// may begin in one: whole numbers, so that it neither gains nor loses.
#[derive(Debug)]
struct Bucket {
    most: u32,
    per: Duration,
    level: u128,
    at: Duration,
}

/// A worker that has reported.
#[derive(Debug, Clone)]
struct Known {
    report: WorkerReport,
    started_at: DateTime<Utc>,
    seen_at: DateTime<Utc>,
}

fn is_silent(seen_at: DateTime<Utc>, now: DateTime<Utc>, time: Duration) -> bool {
    (now - seen_at).to_std().is_ok_and(|silent| silent > time)
}

#[derive(Debug)]
struct Heard {
    rings: u64,
    at: Duration,
}

impl Bucket {
    fn full(most: u32, per: Duration, now: Duration) -> Self {
        Self { most, per, level: per.as_nanos() * u128::from(most), at: now }
    }

    fn fill(&mut self, now: Duration) {
        let filled = now.saturating_sub(self.at).as_nanos() * u128::from(self.most);
        self.level = (self.level + filled).min(self.per.as_nanos() * u128::from(self.most));
        self.at = now;
    }

    fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let taken = self.level.checked_sub(self.per.as_nanos());
        self.level = taken.unwrap_or(self.level);
        taken.is_some()
    }

    /// Returns when one may begin, if ever.
    fn next(&self) -> Option<Duration> {
        let lacking = self.per.as_nanos().saturating_sub(self.level);
        let nanoseconds = lacking.checked_add(u128::from(self.most.checked_sub(1)?))? / u128::from(self.most);
        Some(self.at + Duration::from_nanos(u64::try_from(nanoseconds).ok()?))
    }
}

impl Desk {
    /// Makes a ticket due that is held or waits for its time, for the sake of what was committed under a fence or none.
    pub(super) fn call(&mut self, id: ExecutionId, fence: Option<u64>, now: Duration) {
        let Some(slip) = self.slips.get_mut(&id) else { return };
        match &mut slip.stand {
            Stand::Held | Stand::Waiting => {
                slip.stand = Stand::Waiting;
                slip.due = slip.due.min(now);
            }
            // Whoever claimed it and has not settled it yet may not have seen this.
            Stand::Claimed { after, .. } if fence.is_none() => {
                slip.due = match after {
                    After::Again => slip.due.min(now),
                    After::Settlement => now,
                };
                *after = After::Again;
            }
            Stand::Stuck | Stand::Claimed { .. } => {}
        }
    }

    /// Tells whether an execution has a ticket.
    pub(super) fn has(&self, id: ExecutionId) -> bool {
        self.slips.contains_key(&id)
    }

    /// Removes all that concerns an execution.
    pub(super) fn forget(&mut self, id: ExecutionId) {
        self.slips.remove(&id);
        self.by_key.retain(|_, kept| *kept != id);
    }

    fn put(&mut self, execution: &Execution, ticket: Ticket, now: Duration) {
        let Ticket { queue, priority, delay, requires } = ticket;
        let id = execution.record.id;
        let starts = (execution.fence == 0).then(|| execution.record.workflow_name.clone());
        self.numbered += 1;
        let stand = match self.slips.remove(&id).map(|before| before.stand) {
            Some(Stand::Claimed { fence, queue, .. }) => Stand::Claimed { fence, queue, after: After::Again },
            Some(Stand::Waiting | Stand::Held | Stand::Stuck) | None => Stand::Waiting,
        };
        let due = now.saturating_add(delay.min(TIME_MAX));
        let slip = Slip {
            queue,
            priority,
            requires,
            starts,
            due,
            number: self.numbered,
            claims: 0,
            claimed_head: 0,
            stand,
        };
        self.slips.insert(id, slip);
    }

    /// Returns how many more each limited queue may have claimed.
    fn room(&self) -> BTreeMap<String, usize> {
        let mut room: BTreeMap<String, usize> =
            self.running.iter().map(|(queue, most)| (queue.clone(), *most as usize)).collect();
        for slip in self.slips.values() {
            if let Stand::Claimed { queue, .. } = &slip.stand
                && let Some(left) = room.get_mut(queue)
            {
                *left = left.saturating_sub(1);
            }
        }
        room
    }
}

impl Slip {
    fn is_for(&self, claim: &Claim) -> bool {
        (claim.queues.is_empty() || claim.queues.contains(&self.queue))
            && self.requires.is_subset(&claim.able)
    }

    /// Tells whether something was done under the last claim, beside taking over.
    fn went_on(&self, execution: &Execution) -> bool {
        execution.record.head > self.claimed_head + 1
    }

    /// Makes the ticket wait again, its claim having come to nothing.
    fn give_up(&mut self, now: Duration) {
        let Stand::Claimed { after, .. } = &self.stand else { return };
        match after {
            After::Again => self.stand = Stand::Waiting,
            After::Settlement if self.claims >= CLAIMS_MAX => self.stand = Stand::Stuck,
            After::Settlement => {
                self.stand = Stand::Waiting;
                self.due = now;
            }
        }
    }

    fn stands(&self, execution: &Execution, now: Duration) -> TicketStand {
        match &self.stand {
            Stand::Claimed { fence, .. } if execution.is_held_by(*fence, now) => TicketStand::Claimed,
            Stand::Claimed { after: After::Settlement, .. }
                if self.claims >= CLAIMS_MAX && !self.went_on(execution) =>
            {
                TicketStand::Stuck
            }
            Stand::Claimed { after: After::Settlement, .. } => TicketStand::Due,
            Stand::Claimed { after: After::Again, .. } | Stand::Waiting if self.due > now => {
                TicketStand::Delayed
            }
            Stand::Claimed { after: After::Again, .. } | Stand::Waiting => TicketStand::Due,
            Stand::Held => TicketStand::Held,
            Stand::Stuck => TicketStand::Stuck,
        }
    }

    fn count(&self, depth: &mut QueueDepth, execution: &Execution, now: Duration) {
        let counted = match self.stands(execution, now) {
            TicketStand::Due => &mut depth.due,
            TicketStand::Delayed => &mut depth.delayed,
            TicketStand::Held => &mut depth.held,
            TicketStand::Claimed => &mut depth.claimed,
            TicketStand::Stuck => &mut depth.stuck,
        };
        *counted += 1;
    }
}

impl Execution {
    fn is_held_by(&self, fence: u64, now: Duration) -> bool {
        self.fence == fence && self.lease_left(now).is_some()
    }
}

impl Kept {
    fn put(&mut self, id: ExecutionId, ticket: Ticket, now: Duration) -> Result<(), StoreError> {
        let Self { executions, desk, .. } = self;
        desk.put(executions.get(&id).ok_or(StoreError::NoExecution(id))?, ticket, now);
        Ok(())
    }

    /// Ends the claims that hold their lease no more, and takes it from them. Returns whether there were any.
    fn end_claims(&mut self, now: Duration) -> bool {
        let mut ended = false;
        for (id, slip) in &mut self.desk.slips {
            let Stand::Claimed { fence, .. } = slip.stand else { continue };
            let Some(execution) = self.executions.get_mut(id).filter(|e| !e.is_held_by(fence, now)) else {
                continue;
            };
            if execution.fence == fence {
                execution.fence += 1;
                execution.leased_until = None;
            }
            if slip.went_on(execution) {
                slip.claims = 1;
            }
            slip.give_up(now);
            ended = true;
        }
        ended
    }

    /// Returns the executions whose ticket the claim may take, limits aside, in the order in which to take them.
    fn due(&self, claim: &Claim, now: Duration) -> Vec<ExecutionId> {
        let is_free = |id| self.executions.get(id).is_some_and(|e: &Execution| e.lease_left(now).is_none());
        let mut due: Vec<_> = self
            .desk
            .slips
            .iter()
            .filter(|(_, slip)| matches!(slip.stand, Stand::Waiting) && slip.due <= now && slip.is_for(claim))
            .filter(|(id, _)| is_free(id))
            .map(|(id, slip)| (Reverse(slip.priority), slip.due, slip.number, *id))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(.., id)| id).collect()
    }

    /// Claims a ticket, where the limits leave room.
    fn take(
        &mut self,
        id: ExecutionId,
        room: &mut BTreeMap<String, usize>,
        ttl: Duration,
        now: Duration,
    ) -> Option<Claimed> {
        let Self { executions, desk, .. } = self;
        let (execution, queue) = (executions.get_mut(&id)?, desk.slips.get(&id)?.queue.clone());
        if room.get(&queue) == Some(&0) {
            return None;
        }
        let slip = desk.slips.get_mut(&id)?;
        let bucket = slip.starts.as_ref().and_then(|workflow| desk.starts.get_mut(workflow));
        if bucket.is_some_and(|bucket| !bucket.take(now)) {
            return None;
        }
        if let Some(left) = room.get_mut(&queue) {
            *left -= 1;
        }
        execution.fence += 1;
        execution.leased_until = Some(now.saturating_add(ttl.min(TIME_MAX)));
        let fence = execution.fence;
        slip.starts = None;
        slip.claims += 1;
        slip.claimed_head = execution.record.head;
        slip.stand = Stand::Claimed { fence, queue: queue.clone(), after: After::Settlement };
        Some(Claimed { lease: Lease { execution_id: id, fence, ttl }, queue, claims: slip.claims })
    }

    /// Returns when there may be something to claim that the worker does not know of, and `None` for now.
    fn next_work(&mut self, worker: Uuid, now: Duration) -> Option<Duration> {
        let heard = self.desk.heard.get(&worker).filter(|heard| heard.rings == self.desk.rings)?;
        let slips = self.desk.slips.iter().filter_map(|(id, slip)| {
            let execution = self.executions.get(id)?;
            match slip.stand {
                Stand::Waiting if slip.due > heard.at => Some(slip.due),
                Stand::Waiting => self.desk.starts.get(slip.starts.as_ref()?)?.next(),
                Stand::Claimed { .. } => execution.leased_until,
                Stand::Held | Stand::Stuck => None,
            }
        });
        let next = slips.filter(|at| *at > heard.at).min().unwrap_or(Duration::MAX);
        next.checked_sub(now).filter(|left| !left.is_zero())
    }
}

impl MemoryStore {
    /// Wakes all that wait for work.
    pub(super) fn ring(&self, kept: &mut Kept) {
        kept.desk.rings += 1;
        self.bell.notify_waiters();
    }
}

#[async_trait::async_trait]
impl Queue for MemoryStore {
    async fn submit(
        &self,
        new: NewExecution,
        first: NewCheckpoint,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submitted, StoreError> {
        ticket.checked()?;
        let mut kept = self.kept();
        if let Some(before) = key.as_ref().and_then(|key| kept.desk.by_key.get(key)) {
            return Ok(Submitted::Duplicate(*before));
        }
        let id = new.id;
        let record = kept.create(new, first)?;
        kept.put(id, ticket, self.clock.elapsed())?;
        if let Some(key) = key {
            kept.desk.by_key.insert(key, id);
        }
        self.ring(&mut kept);
        Ok(Submitted::Created(Box::new(record)))
    }

    async fn enqueue(&self, id: ExecutionId, ticket: Ticket) -> Result<(), StoreError> {
        ticket.checked()?;
        let mut kept = self.kept();
        kept.put(id, ticket, self.clock.elapsed())?;
        self.ring(&mut kept);
        Ok(())
    }

    async fn dequeue(&self, id: ExecutionId) -> Result<bool, StoreError> {
        let mut kept = self.kept();
        let found = kept.desk.slips.remove(&id).is_some();
        // It may have counted for a limit.
        self.ring(&mut kept);
        Ok(found)
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Claimed>, StoreError> {
        let (mut kept, now) = (self.kept(), self.clock.elapsed());
        if kept.end_claims(now) {
            self.ring(&mut kept);
        }
        let (mut room, mut claimed) = (kept.desk.room(), Vec::new());
        for id in kept.due(claim, now) {
            if claimed.len() == claim.most {
                break;
            }
            claimed.extend(kept.take(id, &mut room, claim.ttl, now));
        }
        let rings = kept.desk.rings;
        if claimed.is_empty() || claimed.len() < claim.most {
            kept.desk.heard.insert(claim.worker, Heard { rings, at: now });
        } else {
            kept.desk.heard.remove(&claim.worker);
        }
        Ok(claimed)
    }

    async fn settle(&self, lease: &Lease, settlement: Settlement) -> Result<(), StoreError> {
        let (mut kept, now) = (self.kept(), self.clock.elapsed());
        let execution = kept.require_mut(lease.execution_id)?;
        execution.check_fence(lease.fence)?;
        execution.leased_until = None;
        let slips = &mut kept.desk.slips;
        if let Some(slip) = slips.get_mut(&lease.execution_id)
            && let Stand::Claimed { fence, after, .. } = &slip.stand
            && *fence == lease.fence
        {
            slip.claims = 0;
            match (after, settlement) {
                (After::Again, _) => slip.stand = Stand::Waiting,
                (After::Settlement, Settlement::Again { delay }) => {
                    slip.stand = Stand::Waiting;
                    slip.due = now.saturating_add(delay.min(TIME_MAX));
                }
                (After::Settlement, Settlement::Held) => slip.stand = Stand::Held,
                (After::Settlement, Settlement::Done) => {
                    slips.remove(&lease.execution_id);
                }
            }
        }
        self.ring(&mut kept);
        Ok(())
    }

    async fn wait_for_work(&self, claim: &Claim, at_most: Duration) -> Result<(), StoreError> {
        // Before the look, so that nothing is missed between.
        let rung = self.bell.notified();
        let Some(next) = self.kept().next_work(claim.worker, self.clock.elapsed()) else { return Ok(()) };
        // Whatever woke it, or nothing: there may be work.
        let _ = tokio::time::timeout(next.min(at_most), rung).await;
        Ok(())
    }

    async fn set_limit(&self, limit: Limit) -> Result<(), StoreError> {
        limit.checked()?;
        let (mut kept, now) = (self.kept(), self.clock.elapsed());
        match limit {
            Limit::Running { queue, most } => {
                kept.desk.running.insert(queue, most);
            }
            Limit::Starts { workflow, most, per } => {
                let mut bucket = Bucket::full(most, per.min(TIME_MAX), now);
                if let Some(before) = kept.desk.starts.get_mut(&workflow) {
                    before.fill(now);
                    let left = before.level / before.per.as_nanos();
                    bucket.level = bucket.level.min(left * bucket.per.as_nanos());
                }
                kept.desk.starts.insert(workflow, bucket);
            }
        }
        self.ring(&mut kept);
        Ok(())
    }

    async fn lift_limit(&self, limit: &Limit) -> Result<bool, StoreError> {
        let mut kept = self.kept();
        let found = match limit {
            Limit::Running { queue, .. } => kept.desk.running.remove(queue).is_some(),
            Limit::Starts { workflow, .. } => kept.desk.starts.remove(workflow).is_some(),
        };
        self.ring(&mut kept);
        Ok(found)
    }

    async fn limits(&self) -> Result<Vec<Limit>, StoreError> {
        let kept = self.kept();
        let running = kept.desk.running.iter();
        let running = running.map(|(queue, most)| Limit::Running { queue: queue.clone(), most: *most });
        let starts = kept.desk.starts.iter().map(|(workflow, Bucket { most, per, .. })| Limit::Starts {
            workflow: workflow.clone(),
            most: *most,
            per: *per,
        });
        Ok(running.chain(starts).collect())
    }

    async fn tickets(&self, of: &[ExecutionId]) -> Result<Vec<TicketRecord>, StoreError> {
        let (kept, elapsed, now) = (self.kept(), self.clock.elapsed(), self.clock.now());
        let record = |id: &ExecutionId| {
            let (slip, execution) = (kept.desk.slips.get(id)?, kept.executions.get(id)?);
            let stands = slip.stands(execution, elapsed);
            let due_at = || {
                let left = TimeDelta::from_std(slip.due.saturating_sub(elapsed)).ok()?;
                now.checked_add_signed(left)
            };
            Some(TicketRecord {
                execution_id: *id,
                queue: slip.queue.clone(),
                priority: slip.priority,
                stands,
                due_at: if stands == TicketStand::Delayed { due_at() } else { None },
            })
        };
        Ok(of.iter().collect::<BTreeSet<_>>().into_iter().filter_map(record).collect())
    }

    async fn depths(&self) -> Result<Vec<QueueDepth>, StoreError> {
        let (kept, now) = (self.kept(), self.clock.elapsed());
        let mut depths = BTreeMap::<&str, QueueDepth>::new();
        for (id, slip) in &kept.desk.slips {
            let Some(execution) = kept.executions.get(id) else { continue };
            let empty = || QueueDepth { queue: slip.queue.clone(), ..QueueDepth::default() };
            slip.count(depths.entry(&slip.queue).or_insert_with(empty), execution, now);
        }
        Ok(depths.into_values().collect())
    }

    async fn report(&self, worker: &WorkerReport) -> Result<(), StoreError> {
        worker.checked()?;
        let (mut kept, now) = (self.kept(), self.clock.now());
        let started_at = kept.desk.workers.get(&worker.id).map_or(now, |before| before.started_at);
        kept.desk.workers.retain(|_, known| !is_silent(known.seen_at, now, WORKER_FORGOTTEN_AFTER));
        let known = Known { report: worker.clone(), started_at, seen_at: now };
        kept.desk.workers.insert(worker.id, known);
        Ok(())
    }

    async fn retire(&self, worker: Uuid) -> Result<(), StoreError> {
        let mut kept = self.kept();
        kept.desk.workers.remove(&worker);
        kept.desk.heard.remove(&worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        let now = self.clock.now();
        let record = |known: &Known| {
            let Known { report, started_at, seen_at } = known.clone();
            let is_silent = |time| is_silent(seen_at, now, time);
            let stands = if is_silent(WORKER_LOST_AFTER) { WorkerStand::Lost } else { WorkerStand::Alive };
            (!is_silent(WORKER_FORGOTTEN_AFTER)).then_some(WorkerRecord {
                report,
                started_at,
                seen_at,
                stands,
            })
        };
        let mut workers: Vec<_> = self.kept().desk.workers.values().filter_map(record).collect();
        workers.sort_by_key(|worker| Reverse((worker.started_at, worker.report.id)));
        Ok(workers)
    }

    async fn stale_leases(&self) -> Result<Vec<StaleLease>, StoreError> {
        let (kept, elapsed, now) = (self.kept(), self.clock.elapsed(), self.clock.now());
        let mut stale: Vec<_> = kept
            .executions
            .values()
            .filter_map(|execution| {
                let since = elapsed.checked_sub(execution.leased_until?)?;
                Some(StaleLease {
                    execution_id: execution.record.id,
                    name: execution.record.name.clone(),
                    owner: process::name().to_owned(),
                    until: now - TimeDelta::from_std(since).unwrap_or(TimeDelta::zero()),
                })
            })
            .collect();
        stale.sort_by_key(|lease| (lease.until, lease.execution_id));
        Ok(stale)
    }
}
