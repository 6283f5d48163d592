//! Claims that end: how they are settled, and what is enqueued, taken away or decided meanwhile.

use std::time::Duration;

use super::cases;
use super::queueing::{LONG, SECOND, TTL, after, assert_nothing_is_due, in_queue, take, ticketed};
use super::trial::{Trial, assert_refused, head, set};
use crate::clock::Clock;
use crate::execution::{ExecutionId, ExecutionState};
use crate::store::{
    CLAIMS_MAX, Cause, Commit, Conflict, Lease, QUEUE_DEFAULT, QueueDepth, Settlement, StoreError, StoreExt,
    Ticket,
};

cases![
    a_settled_ticket_is_gone_or_due_later_or_held,
    settling_twice_changes_nothing,
    settling_a_lost_lease_changes_nothing,
    a_held_ticket_becomes_due_when_its_approval_is_committed_and_by_nothing_else,
    an_approval_that_comes_before_its_ticket_is_held_makes_it_due,
    an_approval_by_whoever_claimed_the_ticket_lets_it_be_held,
    an_approval_ends_a_delay,
    a_cancelled_execution_is_given_to_a_worker_once_more,
    an_execution_has_one_ticket_however_often_it_is_enqueued,
    what_is_enqueued_while_it_is_claimed_is_due_again_after_that,
    what_is_enqueued_while_its_worker_dies_is_due_as_it_was_enqueued,
    a_ticket_can_be_taken_away,
    a_deleted_execution_has_no_ticket,
    a_ticket_that_ends_its_workers_becomes_stuck_until_it_is_enqueued,
    a_ticket_that_goes_on_under_each_of_its_claims_never_becomes_stuck,
    a_settled_claim_is_none_in_a_row,
    a_settled_claim_is_none_in_a_row_however_far_it_went,
];

/// Commits on top of the head, with a lease that somebody took who is no worker.
pub(super) async fn commit_at_rest(trial: &Trial, id: ExecutionId, cause: Cause, state: ExecutionState) {
    let store = trial.queue().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    let head = head(&*store, id).await;
    let mut commit = Commit { fence: Some(lease.fence), ..trial.on(id, head, set("step", "decided")) };
    (commit.checkpoint.cause, commit.checkpoint.state) = (cause, state);
    store.commit(commit).await.expect("committed");
    store.release(&lease).await.expect("given back");
}

pub(super) fn approval() -> Cause {
    Cause::Approve { node: "send".to_owned(), approved: true }
}

async fn a_settled_ticket_is_gone_or_due_later_or_held(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Again { delay: Duration::ZERO }).await.expect("settled");
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Again { delay: SECOND * 60 }).await.expect("settled");
    assert_nothing_is_due(&trial).await;
    trial.pass(SECOND * 61).await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Held).await.expect("settled");
    trial.pass(LONG).await;
    assert_nothing_is_due(&trial).await;
    queue.enqueue(id, Ticket::default()).await.expect("enqueued");
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Done).await.expect("settled");
    trial.pass(LONG).await;
    assert_nothing_is_due(&trial).await;
    assert_eq!(queue.depths().await.expect("depths"), []);
}

async fn settling_twice_changes_nothing(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Held).await.expect("settled");
    queue.settle(&lease, Settlement::Again { delay: Duration::ZERO }).await.expect("settled before");
    queue.settle(&lease, Settlement::Done).await.expect("settled before");
    assert_nothing_is_due(&trial).await;
    assert_eq!(queue.depths().await.expect("depths")[0].held, 1);
    let nobody = Lease { execution_id: trial.clock.new_id(), ..lease };
    let refused = queue.settle(&nobody, Settlement::Done).await;
    assert_refused!(refused, StoreError::NoExecution(unknown) if *unknown == nobody.execution_id);
    commit_at_rest(&trial, id, approval(), ExecutionState::Running).await;
    assert_eq!(take(&trial).await.lease.execution_id, id);
}

async fn settling_a_lost_lease_changes_nothing(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lost = take(&trial).await.lease;
    trial.pass(TTL + SECOND).await;
    let taken = trial.queue().await.lease(id, TTL).await.expect("its time is up");
    for settlement in [Settlement::Done, Settlement::Held, Settlement::Again { delay: LONG }] {
        let refused = queue.settle(&lost, settlement).await;
        assert_refused!(refused, StoreError::Conflict(Conflict::Fenced { .. }));
    }
    assert_nothing_is_due(&trial).await;
    queue.renew(&taken).await.expect("whoever took it still has it");
    queue.release(&taken).await.expect("given back");
    assert_eq!(take(&trial).await.claims, 2, "the ticket is where it was");
}

async fn a_held_ticket_becomes_due_when_its_approval_is_committed_and_by_nothing_else(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Held).await.expect("settled");
    for cause in [Cause::Manual, Cause::Pause, Cause::Edit, Cause::Rollback { to: 1 }] {
        commit_at_rest(&trial, id, cause, ExecutionState::Paused).await;
        assert_nothing_is_due(&trial).await;
    }
    let mut refused = trial.on(id, 1, set("step", "late"));
    refused.checkpoint.cause = approval();
    assert_refused!(queue.commit(refused).await, StoreError::Conflict(Conflict::HeadMoved { .. }));
    assert_nothing_is_due(&trial).await;
    commit_at_rest(&trial, id, approval(), ExecutionState::Running).await;
    assert_eq!(take(&trial).await.lease.execution_id, id);
}

async fn an_approval_that_comes_before_its_ticket_is_held_makes_it_due(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    // Its worker is late; whoever approves finds nobody at it.
    trial.pass(TTL + SECOND).await;
    let mut commit = trial.on(id, 1, set("step", "decided"));
    commit.checkpoint.cause = approval();
    queue.commit(commit).await.expect("committed");
    queue.settle(&lease, Settlement::Held).await.expect("settled by who has not seen it");
    let claimed = take(&trial).await;
    assert_eq!((claimed.lease.execution_id, claimed.claims), (id, 1));
    queue.settle(&claimed.lease, Settlement::Held).await.expect("settled");
    assert_nothing_is_due(&trial).await;
}

async fn an_approval_by_whoever_claimed_the_ticket_lets_it_be_held(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    let mut commit = Commit { fence: Some(lease.fence), ..trial.on(id, 1, set("step", "decided")) };
    commit.checkpoint.cause = approval();
    queue.commit(commit).await.expect("committed");
    queue.settle(&lease, Settlement::Held).await.expect("settled");
    assert_nothing_is_due(&trial).await;
}

async fn an_approval_ends_a_delay(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let lease = take(&trial).await.lease;
    trial.queue().await.settle(&lease, Settlement::Again { delay: LONG }).await.expect("settled");
    commit_at_rest(&trial, id, approval(), ExecutionState::Running).await;
    assert_eq!(take(&trial).await.lease.execution_id, id);
}

async fn a_cancelled_execution_is_given_to_a_worker_once_more(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Held).await.expect("settled");
    commit_at_rest(&trial, id, Cause::Cancel, ExecutionState::Cancelled).await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Done).await.expect("settled");
    assert_eq!(queue.depths().await.expect("depths"), []);
}

async fn an_execution_has_one_ticket_however_often_it_is_enqueued(trial: Trial) {
    let id = trial.begin("a").await;
    let queue = trial.queue().await;
    for round in 0..100 {
        queue.enqueue(id, Ticket { priority: round, ..after(LONG) }).await.expect("enqueued");
    }
    queue.enqueue(id, in_queue("last")).await.expect("enqueued");
    let last = QueueDepth { queue: "last".to_owned(), due: 1, ..QueueDepth::default() };
    assert_eq!(queue.depths().await.expect("depths"), [last]);
    assert_eq!(take(&trial).await.queue, "last");
    let nobody = trial.clock.new_id();
    let refused = queue.enqueue(nobody, Ticket::default()).await;
    assert_refused!(refused, StoreError::NoExecution(unknown) if *unknown == nobody);
}

async fn what_is_enqueued_while_it_is_claimed_is_due_again_after_that(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    for settlement in [Settlement::Done, Settlement::Held, Settlement::Again { delay: LONG }] {
        let lease = take(&trial).await.lease;
        queue.enqueue(id, in_queue("next")).await.expect("enqueued");
        assert_nothing_is_due(&trial).await;
        queue.renew(&lease).await.expect("the claim goes on");
        assert_nothing_is_due(&trial).await;
        queue.settle(&lease, settlement).await.expect("settled");
    }
    let claimed = take(&trial).await;
    assert_eq!((claimed.queue.as_str(), claimed.claims), ("next", 1));
    queue.enqueue(id, after(SECOND * 60)).await.expect("enqueued");
    queue.settle(&claimed.lease, Settlement::Done).await.expect("settled");
    assert_nothing_is_due(&trial).await;
    trial.pass(SECOND * 61).await;
    let claimed = take(&trial).await;
    assert_eq!(claimed.queue, QUEUE_DEFAULT);
    queue.settle(&claimed.lease, Settlement::Done).await.expect("settled");
    assert_eq!(queue.depths().await.expect("depths"), []);
}

async fn what_is_enqueued_while_its_worker_dies_is_due_as_it_was_enqueued(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    take(&trial).await;
    trial.queue().await.enqueue(id, Ticket { delay: LONG, ..in_queue("next") }).await.expect("enqueued");
    trial.pass(TTL + SECOND).await;
    assert_nothing_is_due(&trial).await;
    trial.pass(LONG).await;
    let claimed = take(&trial).await;
    assert_eq!((claimed.queue.as_str(), claimed.claims), ("next", 1));
}

async fn a_ticket_can_be_taken_away(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    assert!(queue.dequeue(id).await.expect("dequeued"));
    assert!(!queue.dequeue(id).await.expect("dequeued before"));
    assert!(!queue.dequeue(trial.clock.new_id()).await.expect("nobody's"));
    assert_nothing_is_due(&trial).await;

    queue.enqueue(id, Ticket::default()).await.expect("enqueued");
    let lease = take(&trial).await.lease;
    assert!(queue.dequeue(id).await.expect("dequeued"));
    let commit = Commit { fence: Some(lease.fence), ..trial.on(id, 1, set("step", "2")) };
    queue.commit(commit).await.expect("whoever has claimed it keeps the lease");
    queue.renew(&lease).await.expect("renewed");
    queue.settle(&lease, Settlement::Again { delay: Duration::ZERO }).await.expect("settled");
    assert_eq!(queue.require(id).await.expect("the execution").leased_by, None);
    trial.pass(LONG).await;
    assert_nothing_is_due(&trial).await;
}

async fn a_deleted_execution_has_no_ticket(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    queue.delete(id).await.expect("deleted");
    assert_nothing_is_due(&trial).await;
    assert_eq!(queue.depths().await.expect("depths"), []);
    let id = ticketed(&trial, "a", Ticket::default()).await;
    take(&trial).await;
    assert_refused!(queue.delete(id).await, StoreError::Conflict(Conflict::Leased { .. }));
    trial.pass(TTL + SECOND).await;
    queue.delete(id).await.expect("its lease is over");
    assert_eq!(queue.depths().await.expect("depths"), []);
    assert_nothing_is_due(&trial).await;
}

async fn a_ticket_that_ends_its_workers_becomes_stuck_until_it_is_enqueued(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    for claims in 1..=CLAIMS_MAX {
        assert_eq!(take(&trial).await.claims, claims);
        trial.pass(TTL + SECOND).await;
    }
    let queue = trial.queue().await;
    let stuck = QueueDepth { queue: QUEUE_DEFAULT.to_owned(), stuck: 1, ..QueueDepth::default() };
    assert_eq!(queue.depths().await.expect("depths"), std::slice::from_ref(&stuck));
    for _ in 0..3 {
        assert_nothing_is_due(&trial).await;
        trial.pass(LONG).await;
    }
    assert_eq!(queue.depths().await.expect("depths"), [stuck]);
    queue.enqueue(id, Ticket::default()).await.expect("enqueued");
    assert_eq!(take(&trial).await.claims, 1);
}

async fn a_ticket_that_goes_on_under_each_of_its_claims_never_becomes_stuck(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    for claims in 1..CLAIMS_MAX * 2 {
        let claimed = take(&trial).await;
        assert_eq!(claimed.claims, claims.min(2));
        for step in ["1", "2"] {
            let head = trial.queue().await.require(id).await.expect("an execution").head;
            let fence = Some(claimed.lease.fence);
            let commit = Commit { fence, ..trial.on(id, head, set("step", step)) };
            trial.queue().await.commit(commit).await.expect("committed");
        }
        trial.pass(TTL + SECOND).await;
    }
}

async fn a_settled_claim_is_none_in_a_row(trial: Trial) {
    ticketed(&trial, "a", Ticket::default()).await;
    take(&trial).await;
    trial.pass(TTL + SECOND).await;
    for _ in 0..CLAIMS_MAX + 1 {
        let lease = take(&trial).await.lease;
        let again = Settlement::Again { delay: Duration::ZERO };
        trial.queue().await.settle(&lease, again).await.expect("settled");
    }
    assert_eq!(take(&trial).await.claims, 1);
}

async fn a_settled_claim_is_none_in_a_row_however_far_it_went(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let lease = take(&trial).await.lease;
    for step in ["1", "2", "3"] {
        let head = trial.queue().await.require(id).await.expect("an execution").head;
        let commit = Commit { fence: Some(lease.fence), ..trial.on(id, head, set("step", step)) };
        trial.queue().await.commit(commit).await.expect("committed");
    }
    trial.queue().await.settle(&lease, Settlement::Again { delay: SECOND }).await.expect("settled");
    trial.pass(SECOND * 2).await;
    assert_eq!(take(&trial).await.claims, 1);
}
