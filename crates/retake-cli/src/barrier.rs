//! What holds runs of a queue back, as far as the store tells that cheaply: limits, where they are due, and workers that
//! are lost, where they are claimed.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use retake::store::{ExecutionRecord, Queue, TicketRecord, TicketStand, WorkerRecord, WorkerStand};

use crate::command::queue::{Limits, Rate};
use crate::failure::Failure;
use crate::wording;

/// The limits of a store, how much of each limited queue workers have, and which workers are lost.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    limits: Limits,
    claimed: BTreeMap<String, u64>,
    /// When each was last seen, by its name.
    lost: BTreeMap<String, DateTime<Utc>>,
}

impl Barriers {
    /// Looks at what could hold these back. Costs nothing where none of them is due or claimed; the workers where one is
    /// claimed; the limits where one is due, and the tickets of all queues where that is in a queue that is limited and does
    /// not stand still.
    pub(crate) async fn look<'t>(
        queue: Option<&dyn Queue>,
        tickets: impl Iterator<Item = &'t TicketRecord>,
    ) -> Result<Self, Failure> {
        let Some(queue) = queue else { return Ok(Self::default()) };
        let stands = |stands| move |ticket: &&TicketRecord| ticket.stands == stands;
        let tickets: Vec<&TicketRecord> = tickets.collect();
        let lost = match tickets.iter().any(stands(TicketStand::Claimed)) {
            true => lost(queue.workers().await?),
            false => BTreeMap::new(),
        };
        let due: Vec<&TicketRecord> = tickets.into_iter().filter(stands(TicketStand::Due)).collect();
        if due.is_empty() {
            return Ok(Self { lost, ..Self::default() });
        }
        let limits = Limits::new(queue.limits().await?);
        let is_limited =
            |ticket: &&TicketRecord| limits.running.get(&ticket.queue).is_some_and(|most| *most > 0);
        let depths = match due.iter().any(is_limited) {
            true => queue.depths().await?,
            false => Vec::new(),
        };
        let claimed = depths.into_iter().map(|depth| (depth.queue, depth.claimed)).collect();
        Ok(Self { limits, claimed, lost })
    }

    /// Returns what a run waits for that a worker has claimed, other than its nodes.
    pub(crate) fn behind(&self, now: DateTime<Utc>, run: &ExecutionRecord) -> Option<String> {
        let holder = run.leased_by.as_ref()?;
        let seen = wording::age(now, *self.lost.get(holder)?);
        Some(format!("for the lease of {holder} to end: that worker is lost, last seen {seen}"))
    }

    /// Returns what a run waits for that is due, other than a worker.
    pub(crate) fn before(&self, run: &ExecutionRecord, ticket: &TicketRecord) -> Option<String> {
        let queue = &ticket.queue;
        match self.limits.running.get(queue) {
            Some(0) => return Some(format!("for queue {queue}, which stands still")),
            Some(most) if self.claimed.get(queue).is_some_and(|claimed| *claimed >= u64::from(*most)) => {
                return Some(format!("for queue {queue}, which is at its limit of {most}"));
            }
            Some(_) | None => {}
        }
        // A rate is for runs that nobody has begun: those have no more than their first point.
        let workflow = &run.workflow_name;
        match self.limits.starts.get(workflow).filter(|_| run.head <= 1) {
            Some(Rate { most: 0, .. }) => Some(format!("for the rate of {workflow}, which is 0")),
            Some(rate) => Some(format!("for a worker, and the rate of {workflow}: {rate}")),
            None => None,
        }
    }
}

/// Returns when each worker was last seen that is lost, unless another of its name is not.
fn lost(workers: Vec<WorkerRecord>) -> BTreeMap<String, DateTime<Utc>> {
    let (alive, lost): (Vec<_>, Vec<_>) =
        workers.into_iter().partition(|worker| worker.stands == WorkerStand::Alive);
    let lives = |name: &String| alive.iter().any(|worker| worker.report.name == *name);
    let mut last = BTreeMap::new();
    for WorkerRecord { report, seen_at, .. } in lost.into_iter().filter(|worker| !lives(&worker.report.name))
    {
        let known = last.entry(report.name).or_insert(seen_at);
        *known = seen_at.max(*known);
    }
    last
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use retake::execution::{ExecutionId, ExecutionState, Spend};
    use retake::store::{Limit, WorkerReport};

    use super::*;

    fn run(head: u64) -> ExecutionRecord {
        let at = DateTime::from_timestamp(0, 0).unwrap();
        ExecutionRecord {
            id: ExecutionId::nil(),
            name: "otter".to_owned(),
            workflow_id: ExecutionId::nil(),
            workflow_name: "letter".to_owned(),
            state: ExecutionState::Running,
            head,
            created_at: at,
            updated_at: at,
            spend: Spend::default(),
            origin: None,
            leased_by: None,
        }
    }

    fn before(limits: &[Limit], claimed: u64, head: u64) -> Option<String> {
        let limits = Limits::new(limits.to_vec());
        let claimed = [("mail".to_owned(), claimed)].into();
        let barriers = Barriers { limits, claimed, lost: BTreeMap::new() };
        let ticket = TicketRecord {
            execution_id: ExecutionId::nil(),
            queue: "mail".to_owned(),
            priority: 0,
            stands: TicketStand::Due,
            due_at: None,
        };
        barriers.before(&run(head), &ticket)
    }

    #[test]
    fn a_run_waits_for_the_limit_that_holds_it_back() {
        let running = |most| Limit::Running { queue: "mail".to_owned(), most };
        let starts = |most| Limit::Starts {
            workflow: "letter".to_owned(),
            most,
            per: std::time::Duration::from_secs(60),
        };
        for (limits, claimed, head, told) in [
            (vec![], 9, 1, None),
            (vec![running(4)], 3, 1, None),
            (vec![running(4)], 4, 7, Some("for queue mail, which is at its limit of 4")),
            (vec![running(0)], 0, 7, Some("for queue mail, which stands still")),
            (vec![starts(0)], 0, 1, Some("for the rate of letter, which is 0")),
            (vec![starts(10)], 0, 1, Some("for a worker, and the rate of letter: 10/1m")),
            (vec![starts(0)], 0, 2, None),
            (vec![running(4), starts(0)], 4, 1, Some("for queue mail, which is at its limit of 4")),
        ] {
            assert_eq!(before(&limits, claimed, head).as_deref(), told, "{limits:?} {claimed} {head}");
        }
    }

    fn worker(name: &str, stands: WorkerStand) -> WorkerRecord {
        let seen_at = DateTime::from_timestamp(100, 0).unwrap();
        let report = WorkerReport {
            id: ExecutionId::nil(),
            name: name.to_owned(),
            version: String::new(),
            queues: Vec::new(),
            concurrency: 8,
            running: 1,
        };
        WorkerRecord { report, started_at: seen_at, seen_at, stands }
    }

    #[test]
    fn a_run_of_a_worker_that_is_lost_waits_for_its_lease() {
        let workers = [
            worker("a", WorkerStand::Lost),
            worker("b", WorkerStand::Alive),
            worker("c", WorkerStand::Lost),
            worker("c", WorkerStand::Alive),
            WorkerRecord {
                seen_at: DateTime::from_timestamp(40, 0).unwrap(),
                ..worker("a", WorkerStand::Lost)
            },
        ];
        let barriers = Barriers { lost: lost(workers.into()), ..Barriers::default() };
        let now = DateTime::from_timestamp(100, 0).unwrap() + TimeDelta::seconds(45);
        let told = "for the lease of a to end: that worker is lost, last seen 45s ago";
        for (holder, told) in [(Some("a"), Some(told)), (Some("b"), None), (Some("c"), None), (None, None)] {
            let run = ExecutionRecord { leased_by: holder.map(str::to_owned), ..run(3) };
            assert_eq!(barriers.behind(now, &run).as_deref(), told, "{holder:?}");
        }
    }
}
