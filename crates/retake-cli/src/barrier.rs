//! What holds a run back that is due in its queue: limits, as far as the store tells that cheaply.

use std::collections::BTreeMap;

use retake::store::{ExecutionRecord, Queue, TicketRecord, TicketStand};

use crate::command::queue::{Limits, Rate};
use crate::failure::Failure;

/// The limits of a store, and how much of each limited queue workers have.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    limits: Limits,
    claimed: BTreeMap<String, u64>,
}

impl Barriers {
    /// Looks at what could hold these back. Costs nothing where none of them is due, the limits otherwise, and the tickets
    /// of all queues where one of these is in a queue that is limited and does not stand still.
    pub(crate) async fn look<'t>(
        queue: Option<&dyn Queue>,
        tickets: impl Iterator<Item = &'t TicketRecord>,
    ) -> Result<Self, Failure> {
        let due: Vec<_> = tickets.filter(|ticket| ticket.stands == TicketStand::Due).collect();
        let (Some(queue), false) = (queue, due.is_empty()) else { return Ok(Self::default()) };
        let limits = Limits::new(queue.limits().await?);
        let is_limited =
            |ticket: &&TicketRecord| limits.running.get(&ticket.queue).is_some_and(|most| *most > 0);
        let depths = match due.iter().any(is_limited) {
            true => queue.depths().await?,
            false => Vec::new(),
        };
        let claimed = depths.into_iter().map(|depth| (depth.queue, depth.claimed)).collect();
        Ok(Self { limits, claimed })
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

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use retake::execution::{ExecutionId, ExecutionState, Spend};
    use retake::store::Limit;

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
        let barriers = Barriers { limits, claimed: [("mail".to_owned(), claimed)].into() };
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
}
