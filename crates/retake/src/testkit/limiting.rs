//! Limits on what is claimed.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::cases;
use super::queueing::{TTL, assert_nothing_is_due, claim, ids, in_queue, take, ticketed};
use super::trial::{Trial, assert_refused};
use crate::store::{Claim, Limit, Settlement, StoreError, Ticket};

const SECOND: Duration = Duration::from_secs(1);

cases![
    no_more_of_a_limited_queue_are_claimed_at_once,
    a_limit_holds_across_workers_that_claim_at_the_same_time,
    a_claim_whose_lease_ran_out_counts_no_more,
    a_claim_that_is_renewed_goes_on_counting,
    what_is_enqueued_elsewhere_while_it_is_claimed_still_counts,
    a_ticket_that_is_taken_away_counts_no_more,
    a_queue_at_its_limit_keeps_nobody_from_another,
    a_limit_of_none_stops_a_queue,
    a_lower_limit_leaves_what_is_claimed,
    a_lifted_limit_limits_nothing,
    limits_are_listed,
    no_more_of_a_workflow_begin_in_a_period,
    a_start_limit_holds_across_workers_that_claim_at_the_same_time,
    a_start_limit_counts_first_claims_only,
    a_start_limit_of_none_lets_nothing_begin,
    a_start_limit_that_is_set_again_does_not_fill_up,
    a_limit_that_limits_nothing_is_refused,
];

fn running(queue: &str, most: u32) -> Limit {
    Limit::Running { queue: queue.to_owned(), most }
}

/// The workflow of all executions of a case.
fn starts(most: u32, per: Duration) -> Limit {
    Limit::Starts { workflow: "article".to_owned(), most, per }
}

async fn limited(trial: &Trial, limit: Limit, tickets: usize) {
    trial.queue().await.set_limit(limit).await.expect("a limit");
    for number in 0..tickets {
        ticketed(trial, &format!("x{number}"), in_queue("x")).await;
    }
}

/// Claims all that can be claimed, by 16 workers at once. Returns how many that were.
async fn claimed_by_many(trial: &Trial) -> usize {
    let workers: Vec<_> = (0..16)
        .map(|number| {
            let harness = trial.harness();
            tokio::spawn(async move {
                let queue = harness.queue().await.expect("a queue");
                let claim = Claim { worker: Uuid::from_u128(number), ..claim(2) };
                let mut mine = 0;
                loop {
                    match queue.claim(&claim).await.expect("a claim").len() {
                        0 => return mine,
                        more => mine += more,
                    }
                }
            })
        })
        .collect();
    let mut claimed = 0;
    for worker in workers {
        claimed += worker.await.expect("a worker");
    }
    claimed
}

async fn no_more_of_a_limited_queue_are_claimed_at_once(trial: Trial) {
    limited(&trial, running("x", 2), 4).await;
    let queue = trial.queue().await;
    let first = queue.claim(&claim(10)).await.expect("a claim");
    assert_eq!(first.len(), 2);
    assert_nothing_is_due(&trial).await;
    queue.settle(&first[1].lease, Settlement::Held).await.expect("settled");
    take(&trial).await;
    assert_nothing_is_due(&trial).await;
    queue.settle(&first[0].lease, Settlement::Done).await.expect("settled");
    take(&trial).await;
}

async fn a_limit_holds_across_workers_that_claim_at_the_same_time(trial: Trial) {
    limited(&trial, running("x", 7), 30).await;
    for number in 0..5 {
        ticketed(&trial, &number.to_string(), in_queue("free")).await;
    }
    assert_eq!(claimed_by_many(&trial).await, 7 + 5);
    trial.pass(TTL + SECOND).await;
    assert_eq!(claimed_by_many(&trial).await, 7 + 5);
    let depths = trial.queue().await.depths().await.expect("depths");
    assert_eq!((depths[1].queue.as_str(), depths[1].claimed, depths[1].due), ("x", 7, 23));
}

async fn a_claim_whose_lease_ran_out_counts_no_more(trial: Trial) {
    limited(&trial, running("x", 1), 2).await;
    let dead = take(&trial).await;
    // The one that its holder died with cannot be claimed by this worker; its place can.
    let queue = trial.queue().await;
    let more = Ticket { requires: BTreeSet::from(["more".to_owned()]), ..in_queue("x") };
    queue.enqueue(dead.lease.execution_id, more).await.expect("enqueued");
    assert_nothing_is_due(&trial).await;
    trial.pass(TTL + SECOND).await;
    let other = take(&trial).await;
    assert_ne!(other.lease.execution_id, dead.lease.execution_id);
    let refused = queue.renew(&dead.lease).await;
    assert_refused!(refused, StoreError::Conflict(_));
    assert_nothing_is_due(&trial).await;
}

async fn a_claim_that_is_renewed_goes_on_counting(trial: Trial) {
    limited(&trial, running("x", 1), 2).await;
    let claimed = take(&trial).await;
    for _ in 0..4 {
        trial.pass(TTL * 2 / 3).await;
        assert_nothing_is_due(&trial).await;
        trial.queue().await.renew(&claimed.lease).await.expect("renewed");
    }
    assert_nothing_is_due(&trial).await;
}

async fn what_is_enqueued_elsewhere_while_it_is_claimed_still_counts(trial: Trial) {
    limited(&trial, running("x", 1), 2).await;
    let claimed = take(&trial).await;
    let queue = trial.queue().await;
    queue.enqueue(claimed.lease.execution_id, in_queue("y")).await.expect("enqueued");
    assert_nothing_is_due(&trial).await;
    queue.settle(&claimed.lease, Settlement::Done).await.expect("settled");
    assert_eq!(queue.claim(&claim(10)).await.expect("a claim").len(), 2);
}

async fn a_ticket_that_is_taken_away_counts_no_more(trial: Trial) {
    limited(&trial, running("x", 1), 2).await;
    let claimed = take(&trial).await;
    trial.queue().await.dequeue(claimed.lease.execution_id).await.expect("dequeued");
    take(&trial).await;
    assert_nothing_is_due(&trial).await;
}

async fn a_queue_at_its_limit_keeps_nobody_from_another(trial: Trial) {
    limited(&trial, running("x", 1), 5).await;
    let urgent = Ticket { priority: 9, ..in_queue("x") };
    ticketed(&trial, "urgent", urgent).await;
    let other = ticketed(&trial, "other", in_queue("y")).await;
    let queue = trial.queue().await;
    assert_eq!(queue.claim(&claim(1)).await.expect("a claim")[0].queue, "x");
    assert_eq!(ids(&queue.claim(&claim(1)).await.expect("a claim")), [other]);
}

async fn a_limit_of_none_stops_a_queue(trial: Trial) {
    limited(&trial, running("x", 0), 2).await;
    assert_nothing_is_due(&trial).await;
    trial.queue().await.set_limit(running("x", 1)).await.expect("a limit");
    take(&trial).await;
}

async fn a_lower_limit_leaves_what_is_claimed(trial: Trial) {
    limited(&trial, running("x", 3), 4).await;
    let queue = trial.queue().await;
    let claimed = queue.claim(&claim(10)).await.expect("a claim");
    queue.set_limit(running("x", 1)).await.expect("a limit");
    queue.renew(&claimed[0].lease).await.expect("renewed");
    for claimed in &claimed {
        assert_nothing_is_due(&trial).await;
        queue.settle(&claimed.lease, Settlement::Done).await.expect("settled");
    }
    take(&trial).await;
}

async fn a_lifted_limit_limits_nothing(trial: Trial) {
    limited(&trial, running("x", 1), 3).await;
    let queue = trial.queue().await;
    take(&trial).await;
    assert!(queue.lift_limit(&running("x", 77)).await.expect("lifted"));
    assert!(!queue.lift_limit(&running("x", 1)).await.expect("lifted before"));
    assert!(!queue.lift_limit(&starts(1, SECOND)).await.expect("never set"));
    assert_eq!(queue.claim(&claim(10)).await.expect("a claim").len(), 2);
}

async fn limits_are_listed(trial: Trial) {
    let queue = trial.queue().await;
    let odd =
        Limit::Starts { workflow: "\u{1f9a6} '".to_owned(), most: u32::MAX, per: Duration::from_millis(1) };
    for limit in
        [odd.clone(), running("b", 3), starts(4, SECOND * 60), running("Z", 0), running("b", u32::MAX)]
    {
        queue.set_limit(limit).await.expect("a limit");
    }
    let expected = [running("Z", 0), running("b", u32::MAX), starts(4, SECOND * 60), odd];
    assert_eq!(trial.another_queue().await.limits().await.expect("limits"), expected);
}

async fn no_more_of_a_workflow_begin_in_a_period(trial: Trial) {
    limited(&trial, starts(3, SECOND * 60), 9).await;
    let queue = trial.queue().await;
    // Leases that outlast the case, so that nothing is claimed twice.
    let begin = async || {
        let claim = Claim { ttl: SECOND * 100_000, ..claim(10) };
        queue.claim(&claim).await.expect("a claim").len()
    };
    assert_eq!(begin().await, 3);
    for _ in 0..2 {
        trial.pass(SECOND * 19).await;
        assert_eq!(begin().await, 0);
        trial.pass(SECOND).await;
        assert_eq!(begin().await, 1);
    }
    trial.pass(SECOND * 9_000).await;
    assert_eq!(begin().await, 3, "no more than the bucket holds");
}

async fn a_start_limit_holds_across_workers_that_claim_at_the_same_time(trial: Trial) {
    limited(&trial, starts(7, SECOND * 10_000), 30).await;
    assert_eq!(claimed_by_many(&trial).await, 7);
}

async fn a_start_limit_counts_first_claims_only(trial: Trial) {
    limited(&trial, starts(1, SECOND * 10_000), 2).await;
    let queue = trial.queue().await;
    let first = take(&trial).await.lease;
    let again = Settlement::Again { delay: Duration::ZERO };
    queue.settle(&first, again).await.expect("settled");
    assert_eq!(take(&trial).await.lease.execution_id, first.execution_id);
    trial.pass(TTL + SECOND).await;
    assert_eq!(take(&trial).await.lease.execution_id, first.execution_id);
    assert_nothing_is_due(&trial).await;
}

async fn a_start_limit_of_none_lets_nothing_begin(trial: Trial) {
    limited(&trial, starts(0, SECOND), 1).await;
    trial.pass(SECOND * 100).await;
    assert_nothing_is_due(&trial).await;
    trial.queue().await.lift_limit(&starts(0, SECOND)).await.expect("lifted");
    take(&trial).await;
}

async fn a_start_limit_that_is_set_again_does_not_fill_up(trial: Trial) {
    limited(&trial, starts(2, SECOND * 10_000), 6).await;
    let queue = trial.queue().await;
    assert_eq!(queue.claim(&claim(10)).await.expect("a claim").len(), 2);
    queue.set_limit(starts(2, SECOND * 10_000)).await.expect("a limit");
    assert_nothing_is_due(&trial).await;
    queue.set_limit(starts(3, SECOND * 20_000)).await.expect("a limit");
    assert_nothing_is_due(&trial).await;
}

async fn a_limit_that_limits_nothing_is_refused(trial: Trial) {
    let queue = trial.queue().await;
    let refused = queue.set_limit(starts(1, Duration::ZERO)).await;
    assert_refused!(refused, StoreError::Unstorable { path, .. } if path == "limit.per");
    for limit in [running("", 1), running("a\0", 1)] {
        assert_refused!(queue.set_limit(limit).await, StoreError::Unstorable { path, .. } if path == "limit.queue");
    }
    assert_eq!(queue.limits().await.expect("limits"), []);
}
