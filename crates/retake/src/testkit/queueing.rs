//! Tickets: who claims which, and when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::cases;
use super::trial::{Trial, assert_refused, head, set};
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionId, ExecutionState};
use crate::store::{
    CLAIMS_MAX, Cause, Claim, Claimed, Commit, Conflict, Lease, QUEUE_DEFAULT, QUEUE_NAME_BYTES_MAX, Queue,
    QueueDepth, REQUIRES_MAX, Settlement, StoreError, StoreExt, Submitted, Ticket, TicketRecord, TicketStand,
    WORKER_FORGOTTEN_AFTER, WORKER_LOST_AFTER, WorkerReport, WorkerStand,
};

pub(super) const TTL: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);

/// Longer than any case takes that does not wait for it.
const LONG: Duration = Duration::from_secs(60);

cases![
    a_ticket_goes_to_one_worker_only,
    of_many_workers_each_gets_other_tickets,
    a_higher_priority_goes_first_and_then_what_has_been_due_for_longest,
    a_worker_gets_no_more_than_it_asks_for,
    a_worker_is_given_only_what_it_serves_and_is_able_to_do,
    a_delayed_ticket_is_not_claimed_before_its_time,
    a_delay_without_end_is_stored,
    a_submission_creates_the_execution_and_its_ticket,
    a_submission_that_is_refused_leaves_nothing,
    a_deduplication_key_creates_one_execution_until_that_is_deleted,
    of_many_submissions_with_one_key_exactly_one_creates,
    a_claim_holds_the_lease,
    an_execution_that_somebody_else_advances_is_left_alone,
    the_ticket_of_a_dead_worker_is_claimed_by_another_and_the_dead_one_is_fenced,
    renewing_keeps_a_claim,
    a_claim_whose_lease_is_given_back_is_over,
    a_lease_of_no_time_is_over_at_once,
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
    depths_say_how_tickets_stand,
    a_ticket_can_be_looked_at,
    names_that_cannot_be_kept_are_refused,
    any_other_name_is_kept,
    workers_are_known_until_they_retire,
    a_worker_that_says_nothing_is_lost_and_in_the_end_forgotten,
    stale_leases_are_known_until_somebody_takes_them,
    waiting_ends_when_something_is_enqueued,
    waiting_ends_when_something_was_enqueued_before_it_began,
    waiting_ends_after_its_time,
    waiting_ends_when_a_held_ticket_becomes_due,
];

/// Returns what a worker asks for that serves everything.
pub(super) fn claim(most: usize) -> Claim {
    Claim { worker: Uuid::from_u128(1), queues: Vec::new(), able: BTreeSet::new(), most, ttl: TTL }
}

pub(super) fn ids(claimed: &[Claimed]) -> Vec<ExecutionId> {
    claimed.iter().map(|claimed| claimed.lease.execution_id).collect()
}

pub(super) fn in_queue(queue: &str) -> Ticket {
    Ticket { queue: queue.to_owned(), ..Ticket::default() }
}

fn after(delay: Duration) -> Ticket {
    Ticket { delay, ..Ticket::default() }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Creates an execution and gives it a ticket.
pub(super) async fn ticketed(trial: &Trial, name: &str, ticket: Ticket) -> ExecutionId {
    let id = trial.begin(name).await;
    trial.queue().await.enqueue(id, ticket).await.expect("enqueued");
    id
}

/// Claims the one ticket that is due.
pub(super) async fn take(trial: &Trial) -> Claimed {
    let mut claimed = trial.queue().await.claim(&claim(10)).await.expect("a claim");
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    claimed.remove(0)
}

pub(super) async fn assert_nothing_is_due(trial: &Trial) {
    assert_eq!(trial.queue().await.claim(&claim(10)).await.expect("a claim"), []);
}

/// Commits on top of the head, with a lease that somebody took who is no worker.
async fn commit_at_rest(trial: &Trial, id: ExecutionId, cause: Cause, state: ExecutionState) {
    let store = trial.queue().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    let head = head(&*store, id).await;
    let mut commit = Commit { fence: Some(lease.fence), ..trial.on(id, head, set("step", "decided")) };
    (commit.checkpoint.cause, commit.checkpoint.state) = (cause, state);
    store.commit(commit).await.expect("committed");
    store.release(&lease).await.expect("given back");
}

fn approval() -> Cause {
    Cause::Approve { node: "send".to_owned(), approved: true }
}

async fn a_ticket_goes_to_one_worker_only(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let first = queue.claim(&claim(10)).await.expect("a claim");
    assert_eq!(ids(&first), [id]);
    assert_eq!((first[0].queue.as_str(), first[0].claims, first[0].lease.ttl), (QUEUE_DEFAULT, 1, TTL));
    let other = Claim { worker: Uuid::from_u128(2), ..claim(10) };
    assert_eq!(queue.claim(&other).await.expect("a claim"), []);
    assert_eq!(queue.claim(&claim(10)).await.expect("a claim"), [], "not to the same worker either");
}

async fn of_many_workers_each_gets_other_tickets(trial: Trial) {
    let mut all = BTreeSet::new();
    for number in 0..40 {
        all.insert(ticketed(&trial, &number.to_string(), in_queue(["a", "b"][number % 2])).await);
    }
    let workers: Vec<_> = (0..16)
        .map(|number| {
            let harness = trial.harness();
            tokio::spawn(async move {
                let queue = harness.queue().await.expect("a queue");
                let claim = Claim { worker: Uuid::from_u128(number), ..claim(3) };
                let mut mine = Vec::new();
                loop {
                    let claimed = queue.claim(&claim).await.expect("a claim");
                    if claimed.is_empty() {
                        return mine;
                    }
                    assert!(claimed.len() <= 3, "{claimed:?}");
                    mine.extend(ids(&claimed));
                }
            })
        })
        .collect();
    let mut claimed = Vec::new();
    for worker in workers {
        claimed.extend(worker.await.expect("a worker"));
    }
    assert_eq!(claimed.len(), 40);
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), all);
}

async fn a_higher_priority_goes_first_and_then_what_has_been_due_for_longest(trial: Trial) {
    let mut expected = Vec::new();
    for (name, priority, delay) in [
        ("a", 0, 2),
        ("b", 0, 0),
        ("c", 7, 3),
        ("d", -1, 0),
        ("e", i32::MAX, 4),
        ("f", 7, 1),
        ("g", i32::MIN, 0),
    ] {
        let ticket = Ticket { priority, ..after(SECOND * delay) };
        expected.push((std::cmp::Reverse(priority), delay, ticketed(&trial, name, ticket).await));
    }
    expected.sort_unstable();
    trial.pass(SECOND * 10).await;
    let queue = trial.queue().await;
    let mut claimed = ids(&queue.claim(&claim(3)).await.expect("a claim"));
    claimed.extend(ids(&queue.claim(&claim(10)).await.expect("a claim")));
    assert_eq!(claimed, expected.into_iter().map(|(.., id)| id).collect::<Vec<_>>());
}

async fn a_worker_gets_no_more_than_it_asks_for(trial: Trial) {
    for name in ["a", "b", "c"] {
        ticketed(&trial, name, Ticket::default()).await;
    }
    let queue = trial.queue().await;
    assert_eq!(queue.claim(&claim(0)).await.expect("a claim"), []);
    assert_eq!(queue.claim(&claim(2)).await.expect("a claim").len(), 2);
    assert_eq!(queue.claim(&claim(2)).await.expect("a claim").len(), 1);
}

async fn a_worker_is_given_only_what_it_serves_and_is_able_to_do(trial: Trial) {
    let requiring = |queue: &str, requires: &[&str]| Ticket { requires: names(requires), ..in_queue(queue) };
    let plain = ticketed(&trial, "a", requiring("x", &[])).await;
    let one = ticketed(&trial, "b", requiring("x", &["llm"])).await;
    let both = ticketed(&trial, "c", requiring("x", &["llm", "gpu"])).await;
    let other = ticketed(&trial, "d", requiring("y", &["llm"])).await;
    let claimed = async |queues: &[&str], able: &[&str]| {
        let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
        let claim = Claim { queues, able: names(able), ..claim(10) };
        ids(&trial.queue().await.claim(&claim).await.expect("a claim"))
    };
    assert!(claimed(&["z"], &["llm", "gpu"]).await.is_empty());
    assert!(claimed(&["y"], &[]).await.is_empty());
    assert_eq!(claimed(&[], &["gpu"]).await, [plain]);
    assert_eq!(claimed(&["x", "z"], &["llm", "more"]).await, [one]);
    assert_eq!(claimed(&[], &["llm", "gpu"]).await, [both, other]);
}

async fn a_delayed_ticket_is_not_claimed_before_its_time(trial: Trial) {
    let id = ticketed(&trial, "a", after(SECOND * 60)).await;
    assert_nothing_is_due(&trial).await;
    trial.pass(SECOND * 50).await;
    assert_nothing_is_due(&trial).await;
    trial.pass(SECOND * 11).await;
    assert_eq!(take(&trial).await.lease.execution_id, id);
}

async fn a_delay_without_end_is_stored(trial: Trial) {
    ticketed(&trial, "a", after(Duration::MAX)).await;
    let id = ticketed(&trial, "b", Ticket::default()).await;
    let queue = trial.queue().await;
    let claim = Claim { ttl: Duration::MAX, ..claim(10) };
    let claimed = queue.claim(&claim).await.expect("a claim");
    assert_eq!(ids(&claimed), [id]);
    queue.renew(&claimed[0].lease).await.expect("renewed");
    trial.pass(SECOND * 100_000).await;
    assert_nothing_is_due(&trial).await;
    let again = Settlement::Again { delay: Duration::MAX };
    queue.settle(&claimed[0].lease, again).await.expect("settled");
    assert_nothing_is_due(&trial).await;
    assert_eq!(queue.depths().await.expect("depths")[0].delayed, 2);
}

async fn a_submission_creates_the_execution_and_its_ticket(trial: Trial) {
    let (queue, new) = (trial.queue().await, trial.execution("a"));
    let id = new.id;
    let ticket = in_queue("mine");
    let submitted = queue.submit(new, trial.checkpoint(set("step", "1")), ticket, None).await;
    let Ok(Submitted::Created(record)) = submitted else { panic!("{submitted:?}") };
    assert_eq!((record.execution_id, record.seq), (id, 1));
    assert_eq!(trial.queue().await.require(id).await.expect("the execution").name, "a");
    let claimed = take(&trial).await;
    assert_eq!((claimed.lease.execution_id, claimed.queue.as_str()), (id, "mine"));
}

async fn a_submission_that_is_refused_leaves_nothing(trial: Trial) {
    trial.begin("a").await;
    let (queue, new) = (trial.queue().await, trial.execution("a"));
    let id = new.id;
    let key = || Some("once".to_owned());
    let first = || trial.checkpoint(set("step", "1"));
    let refused = queue.submit(new.clone(), first(), Ticket::default(), key()).await;
    assert_refused!(refused, StoreError::Conflict(Conflict::NameTaken(name)) if name == "a");
    let bad = queue.submit(trial.execution("b"), first(), in_queue(""), key()).await;
    assert_refused!(bad, StoreError::Unstorable { .. });
    assert_eq!(queue.execution(id).await.expect("a look"), None);
    assert_nothing_is_due(&trial).await;
    assert_eq!(queue.executions(&Default::default()).await.expect("a list").len(), 1);

    // The same again, once the name is free: neither the id nor the key has been taken.
    let free = crate::store::NewExecution { name: "c".to_owned(), ..new };
    let submitted = queue.submit(free.clone(), first(), Ticket::default(), key()).await;
    assert!(matches!(submitted, Ok(Submitted::Created(_))), "{submitted:?}");
    let again = queue.submit(free.clone(), first(), Ticket::default(), key()).await;
    assert_eq!(again.expect("tried again"), Submitted::Duplicate(id));
    let again = queue.submit(free, first(), Ticket::default(), None).await;
    assert_refused!(again, StoreError::Conflict(Conflict::IdTaken(taken)) if *taken == id);
}

async fn a_deduplication_key_creates_one_execution_until_that_is_deleted(trial: Trial) {
    let key = format!("order \u{1f9a6}\0{}", "x".repeat(10_000));
    let submit = async |name: &str, key: &str| {
        let first = trial.checkpoint(set("step", "1"));
        let queue = trial.queue().await;
        queue.submit(trial.execution(name), first, Ticket::default(), Some(key.to_owned())).await
    };
    let Ok(Submitted::Created(first)) = submit("a", &key).await else { panic!("a first submission") };
    let id = first.execution_id;
    assert_eq!(submit("b", &key).await.expect("submitted"), Submitted::Duplicate(id));
    assert!(matches!(submit("c", &key[1..]).await, Ok(Submitted::Created(_))), "another key");

    let claimed = trial.queue().await.claim(&claim(10)).await.expect("a claim");
    assert_eq!(claimed.len(), 2, "a duplicate makes no ticket");
    for claimed in claimed {
        trial.queue().await.settle(&claimed.lease, Settlement::Done).await.expect("settled");
    }
    assert_eq!(submit("b", &key).await.expect("submitted"), Submitted::Duplicate(id), "though it has ended");
    trial.queue().await.delete(id).await.expect("deleted");
    assert!(matches!(submit("b", &key).await, Ok(Submitted::Created(_))));
}

async fn of_many_submissions_with_one_key_exactly_one_creates(trial: Trial) {
    let submissions: Vec<_> = (0..16)
        .map(|number| {
            let (new, first) = (trial.execution(&number.to_string()), trial.checkpoint(set("step", "1")));
            let harness = trial.harness();
            tokio::spawn(async move {
                let queue = harness.queue().await.expect("a queue");
                queue.submit(new, first, Ticket::default(), Some("once".to_owned())).await.expect("submitted")
            })
        })
        .collect();
    let (mut created, mut duplicates) = (Vec::new(), BTreeSet::new());
    for submission in submissions {
        match submission.await.expect("a submission") {
            Submitted::Created(record) => created.push(record.execution_id),
            Submitted::Duplicate(id) => {
                duplicates.insert(id);
            }
        }
    }
    assert_eq!(created.len(), 1);
    assert_eq!(duplicates, created.iter().copied().collect());
    assert_eq!(trial.queue().await.executions(&Default::default()).await.expect("a list").len(), 1);
    assert_eq!(ids(&trial.queue().await.claim(&claim(10)).await.expect("a claim")), created);
}

async fn a_claim_holds_the_lease(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let claimed = take(&trial).await;
    let store = trial.queue().await;
    assert!(store.require(id).await.expect("the execution").leased_by.is_some());
    assert_refused!(store.lease(id, TTL).await, StoreError::Conflict(Conflict::Leased { .. }));
    let commit = Commit { fence: Some(claimed.lease.fence), ..trial.on(id, 1, set("step", "2")) };
    store.commit(commit).await.expect("its holder commits");
    trial.queue().await.settle(&claimed.lease, Settlement::Done).await.expect("settled");
    assert_eq!(store.require(id).await.expect("the execution").leased_by, None);
    store.lease(id, TTL).await.expect("the lease is free");
}

async fn an_execution_that_somebody_else_advances_is_left_alone(trial: Trial) {
    let (id, other) =
        (ticketed(&trial, "a", Ticket::default()).await, ticketed(&trial, "b", Ticket::default()).await);
    let store = trial.queue().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    let queue = trial.queue().await;
    assert_eq!(
        ids(&queue.claim(&claim(1)).await.expect("a claim")),
        [other],
        "though the first is due longer"
    );
    assert_nothing_is_due(&trial).await;
    store.release(&lease).await.expect("given back");
    let claimed = take(&trial).await;
    assert_eq!(claimed.lease.execution_id, id);
    assert!(claimed.lease.fence > lease.fence);
}

async fn the_ticket_of_a_dead_worker_is_claimed_by_another_and_the_dead_one_is_fenced(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let dead = take(&trial).await;
    trial.pass(TTL - SECOND).await;
    assert_nothing_is_due(&trial).await;
    trial.pass(SECOND * 2).await;
    let queue = trial.queue().await;
    let other = Claim { worker: Uuid::from_u128(2), ..claim(10) };
    let claimed = queue.claim(&other).await.expect("a claim");
    assert_eq!(ids(&claimed), [id]);
    assert_eq!(claimed[0].claims, 2);
    let (old, new) = (dead.lease.fence, claimed[0].lease.fence);
    assert!(new > old, "fence {new} after {old}");

    let late = Commit { fence: Some(old), ..trial.on(id, 1, set("step", "late")) };
    for refused in [
        queue.commit(late).await.map(|_| ()),
        queue.renew(&dead.lease).await,
        queue.settle(&dead.lease, Settlement::Done).await,
    ] {
        assert_refused!(
            refused,
            StoreError::Conflict(Conflict::Fenced { execution, ours, found })
                if *execution == id && *ours == old && *found == new
        );
    }
    assert_eq!(head(&*trial.store().await, id).await, 1);
    assert_refused!(queue.lease(id, TTL).await, StoreError::Conflict(Conflict::Leased { .. }));
    assert_eq!(queue.depths().await.expect("depths")[0].claimed, 1);
}

async fn renewing_keeps_a_claim(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let claimed = take(&trial).await;
    for _ in 0..3 {
        trial.pass(TTL * 2 / 3).await;
        assert_nothing_is_due(&trial).await;
        trial.queue().await.renew(&claimed.lease).await.expect("renewed");
        assert_nothing_is_due(&trial).await;
    }
    trial.pass(TTL + SECOND).await;
    trial.queue().await.renew(&claimed.lease).await.expect("late, but nobody else has come");
    assert_nothing_is_due(&trial).await;
    trial.pass(TTL + SECOND).await;
    assert_eq!(take(&trial).await.lease.execution_id, id);
}

async fn a_claim_whose_lease_is_given_back_is_over(trial: Trial) {
    ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    queue.release(&lease).await.expect("given back");
    assert_eq!(take(&trial).await.claims, 2);
    assert_refused!(queue.renew(&lease).await, StoreError::Conflict(Conflict::Fenced { .. }));
}

async fn a_lease_of_no_time_is_over_at_once(trial: Trial) {
    ticketed(&trial, "a", Ticket::default()).await;
    let brief = Claim { ttl: Duration::ZERO, ..claim(10) };
    let mut fence = 0;
    for claims in 1..=CLAIMS_MAX {
        let claimed = trial.queue().await.claim(&brief).await.expect("a claim");
        assert_eq!((claimed.len(), claimed[0].claims), (1, claims));
        assert!(claimed[0].lease.fence > fence, "fence {} after {fence}", claimed[0].lease.fence);
        fence = claimed[0].lease.fence;
        trial.pass(Duration::from_millis(1)).await;
    }
    assert_eq!(trial.queue().await.claim(&brief).await.expect("a claim"), []);
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

async fn depths_say_how_tickets_stand(trial: Trial) {
    let queue = trial.queue().await;
    assert_eq!(queue.depths().await.expect("depths"), []);
    for (name, settlement) in [("a", None), ("b", Some(Settlement::Held)), ("c", Some(Settlement::Done))] {
        ticketed(&trial, name, in_queue("x")).await;
        let lease = take(&trial).await.lease;
        if let Some(settlement) = settlement {
            queue.settle(&lease, settlement).await.expect("settled");
        }
    }
    for name in ["d", "e", "f"] {
        ticketed(&trial, name, Ticket { delay: SECOND * 10, ..in_queue("x") }).await;
    }
    ticketed(&trial, "g", in_queue("x")).await;
    ticketed(&trial, "h", in_queue("\u{1f9a6}")).await;
    ticketed(&trial, "i", in_queue("Z")).await;
    let x = |due, delayed, claimed| QueueDepth {
        queue: "x".to_owned(),
        due,
        delayed,
        held: 1,
        claimed,
        stuck: 0,
    };
    let one = |queue: &str| QueueDepth { queue: queue.to_owned(), due: 1, ..QueueDepth::default() };
    assert_eq!(queue.depths().await.expect("depths"), [one("Z"), x(1, 3, 1), one("\u{1f9a6}")]);
    trial.pass(SECOND * 11).await;
    assert_eq!(queue.depths().await.expect("depths"), [one("Z"), x(4, 0, 1), one("\u{1f9a6}")]);
    trial.pass(TTL).await;
    assert_eq!(queue.depths().await.expect("depths"), [one("Z"), x(5, 0, 0), one("\u{1f9a6}")]);
}

async fn a_ticket_can_be_looked_at(trial: Trial) {
    let queue = trial.queue().await;
    let none = trial.begin("none").await;
    let held = ticketed(&trial, "held", in_queue("x")).await;
    queue.settle(&take(&trial).await.lease, Settlement::Held).await.expect("settled");
    let claimed = ticketed(&trial, "claimed", in_queue("x")).await;
    take(&trial).await;
    let delayed = ticketed(&trial, "delayed", Ticket { delay: SECOND * 10, ..in_queue("y") }).await;
    let due = ticketed(&trial, "due", Ticket { priority: -3, ..in_queue("x") }).await;
    let all = [none, held, claimed, delayed, due];
    let mut wanted = [
        (held, "x", 0, TicketStand::Held, false),
        (claimed, "x", 0, TicketStand::Claimed, false),
        (delayed, "y", 0, TicketStand::Delayed, true),
        (due, "x", -3, TicketStand::Due, false),
    ];
    wanted.sort_by_key(|(id, ..)| *id);
    let found = queue.tickets(&all).await.expect("tickets");
    let of = |ticket: &TicketRecord| {
        (ticket.execution_id, ticket.priority, ticket.stands, ticket.due_at.is_some())
    };
    let is = |(id, _, priority, stands, later): (ExecutionId, &str, i32, TicketStand, bool)| {
        (id, priority, stands, later)
    };
    assert_eq!(found.iter().map(of).collect::<Vec<_>>(), wanted.map(is));
    let queues: Vec<&str> = found.iter().map(|ticket| ticket.queue.as_str()).collect();
    assert_eq!(queues, wanted.map(|(_, queue, ..)| queue));
    assert_eq!(queue.tickets(&[]).await.expect("tickets"), []);
    trial.pass(SECOND * 11).await;
    let later = queue.tickets(&[delayed]).await.expect("tickets");
    assert_eq!((later[0].stands, later[0].due_at), (TicketStand::Due, None));
    trial.pass(TTL).await;
    assert_eq!(queue.tickets(&[claimed]).await.expect("tickets")[0].stands, TicketStand::Due);
}

async fn names_that_cannot_be_kept_are_refused(trial: Trial) {
    let id = trial.begin("a").await;
    let queue = trial.queue().await;
    for name in ["", "a\0b", &"x".repeat(QUEUE_NAME_BYTES_MAX + 1)] {
        for ticket in [in_queue(name), Ticket { requires: names(&["fine", name]), ..Ticket::default() }] {
            let refused = queue.enqueue(id, ticket).await;
            assert_refused!(refused, StoreError::Unstorable { path, .. } if path.starts_with("ticket."));
        }
        let report = WorkerReport { name: name.to_owned(), ..report(1) };
        let refused = queue.report(&report).await;
        assert_refused!(refused, StoreError::Unstorable { path, .. } if path == "worker.name");
    }
    let requires = (0..=REQUIRES_MAX).map(|number| number.to_string()).collect();
    let refused = queue.enqueue(id, Ticket { requires, ..Ticket::default() }).await;
    assert_refused!(refused, StoreError::Unstorable { path, .. } if path == "ticket.requires");
    assert_nothing_is_due(&trial).await;
    assert_eq!(queue.workers().await.expect("workers"), []);
}

async fn any_other_name_is_kept(trial: Trial) {
    let queue = trial.queue().await;
    let longest = "\u{1f9a6}".repeat(QUEUE_NAME_BYTES_MAX / 4);
    for name in
        [" ", "'; drop table tickets; --", "{\"a\",b\\}", "\u{feff}e\u{301}\u{202e}", "\n\t\u{1}", &longest]
    {
        let requires = names(&[name, "NULL", "a,b"]);
        let ticket = Ticket { requires: requires.clone(), ..in_queue(name) };
        let id = ticketed(&trial, &trial.clock.new_id().to_string(), ticket).await;
        let blind = Claim { queues: vec![name.to_owned()], ..claim(1) };
        assert_eq!(queue.claim(&blind).await.expect("a claim"), [], "{name:?}");
        let claimed = queue.claim(&Claim { able: requires, ..blind }).await.expect("a claim");
        assert_eq!((ids(&claimed), claimed[0].queue.as_str()), (vec![id], name));
        queue.settle(&claimed[0].lease, Settlement::Done).await.expect("settled");
    }
}

fn report(number: u128) -> WorkerReport {
    WorkerReport {
        id: Uuid::from_u128(number),
        name: format!("machine-{number}:77"),
        version: "1.2.3".to_owned(),
        queues: vec!["b".to_owned(), "a".to_owned()],
        concurrency: u32::MAX,
        running: 0,
    }
}

async fn workers_are_known_until_they_retire(trial: Trial) {
    let queue = trial.queue().await;
    for number in [1, 2] {
        queue.report(&report(number)).await.expect("reported");
        trial.pass(SECOND * 5).await;
    }
    let busy = WorkerReport { running: 3, queues: Vec::new(), ..report(1) };
    queue.report(&busy).await.expect("reported");
    let workers = trial.another_queue().await.workers().await.expect("workers");
    assert_eq!(workers.iter().map(|worker| &worker.report).collect::<Vec<_>>(), [&report(2), &busy]);
    let between = |from: DateTime<Utc>, to: DateTime<Utc>| (to - from).to_std().expect("a later time");
    assert!(between(workers[1].started_at, workers[1].seen_at) >= SECOND * 10);
    assert!(between(workers[0].started_at, workers[0].seen_at) < SECOND * 5);
    assert!(workers[0].started_at > workers[1].started_at);
    for _ in 0..2 {
        queue.retire(report(1).id).await.expect("retired");
    }
    let left = queue.workers().await.expect("workers");
    assert_eq!(left.iter().map(|worker| worker.report.id).collect::<Vec<_>>(), [report(2).id]);
}

async fn a_worker_that_says_nothing_is_lost_and_in_the_end_forgotten(trial: Trial) {
    let queue = trial.queue().await;
    let seen = async || {
        let workers = queue.workers().await.expect("workers");
        workers.iter().map(|worker| (worker.report.id, worker.stands)).collect::<Vec<_>>()
    };
    let (silent, other) = (report(1), report(2));
    queue.report(&silent).await.expect("reported");
    assert_eq!(seen().await, [(silent.id, WorkerStand::Alive)]);
    trial.pass(WORKER_LOST_AFTER + SECOND).await;
    queue.report(&other).await.expect("reported");
    assert_eq!(seen().await, [(other.id, WorkerStand::Alive), (silent.id, WorkerStand::Lost)]);
    queue.report(&silent).await.expect("it was stopped, and goes on");
    assert_eq!(seen().await, [(other.id, WorkerStand::Alive), (silent.id, WorkerStand::Alive)]);
    trial.pass(WORKER_FORGOTTEN_AFTER + SECOND).await;
    assert_eq!(seen().await, []);
    queue.report(&other).await.expect("reported");
    let workers = queue.workers().await.expect("workers");
    assert_eq!(workers.iter().map(|worker| worker.report.id).collect::<Vec<_>>(), [other.id]);
}

async fn stale_leases_are_known_until_somebody_takes_them(trial: Trial) {
    let (one, other) = (ticketed(&trial, "a", Ticket::default()).await, trial.begin("b").await);
    let queue = trial.queue().await;
    take(&trial).await;
    trial.pass(SECOND).await;
    let lease = queue.lease(other, TTL).await.expect("a lease");
    assert_eq!(queue.stale_leases().await.expect("stale leases"), []);
    trial.pass(TTL * 2).await;
    let stale = trial.another_queue().await.stale_leases().await.expect("stale leases");
    let seen: Vec<_> = stale.iter().map(|lease| (lease.execution_id, lease.name.as_str())).collect();
    assert_eq!(seen, [(one, "a"), (other, "b")]);
    assert!(stale.iter().all(|lease| !lease.owner.is_empty()), "{stale:?}");
    assert!(stale[0].until < stale[1].until, "{stale:?}");
    take(&trial).await;
    queue.release(&lease).await.expect("given back");
    assert_eq!(queue.stale_leases().await.expect("stale leases"), []);
}

/// Waits for work after having claimed what there is, and returns how long that took, by the machine's clock.
async fn waited(queue: Arc<dyn Queue>, at_most: Duration, meanwhile: impl Future<Output = ()>) -> Duration {
    let clock = SystemClock::default();
    let before = clock.elapsed();
    let claim = claim(10);
    let waiting = tokio::spawn(async move { queue.wait_for_work(&claim, at_most).await });
    meanwhile.await;
    waiting.await.expect("a worker").expect("waited");
    clock.elapsed() - before
}

async fn waiting_ends_when_something_is_enqueued(trial: Trial) {
    let id = trial.begin("a").await;
    assert_nothing_is_due(&trial).await;
    let queue = trial.queue().await;
    queue.claim(&claim(10)).await.expect("a claim");
    let time = waited(Arc::clone(&queue), LONG, async {
        let other = trial.another_queue().await;
        other.enqueue(id, Ticket::default()).await.expect("enqueued");
    });
    assert!(time.await < LONG / 2);
    assert_eq!(take(&trial).await.lease.execution_id, id);
}

async fn waiting_ends_when_something_was_enqueued_before_it_began(trial: Trial) {
    let queue = trial.queue().await;
    assert!(waited(Arc::clone(&queue), LONG, async {}).await < LONG / 2, "it has not claimed yet");
    queue.claim(&claim(10)).await.expect("a claim");
    let id = ticketed(&trial, "a", Ticket::default()).await;
    assert!(waited(Arc::clone(&queue), LONG, async {}).await < LONG / 2);
    let short = Claim { ttl: SECOND, ..claim(10) };
    assert_eq!(ids(&queue.claim(&short).await.expect("a claim")), [id]);
    trial.pass(SECOND * 2).await;
    assert!(waited(Arc::clone(&queue), LONG, async {}).await < LONG / 2, "the claim is over");
}

async fn waiting_ends_after_its_time(trial: Trial) {
    ticketed(&trial, "a", Ticket { requires: names(&["more"]), ..Ticket::default() }).await;
    ticketed(&trial, "b", after(LONG)).await;
    let queue = trial.queue().await;
    queue.claim(&claim(10)).await.expect("a claim");
    let at_most = Duration::from_millis(50);
    let (mut time, mut rounds) = (Duration::ZERO, 0);
    while time < at_most {
        time += waited(Arc::clone(&queue), at_most, async {}).await;
        queue.claim(&claim(10)).await.expect("a claim");
        rounds += 1;
    }
    assert!(time < LONG / 2, "{time:?}, though nothing is due that it can do");
    assert!(rounds <= 5, "it was woken {rounds} times for nothing");
}

async fn waiting_ends_when_a_held_ticket_becomes_due(trial: Trial) {
    let id = ticketed(&trial, "a", Ticket::default()).await;
    let queue = trial.queue().await;
    let lease = take(&trial).await.lease;
    queue.settle(&lease, Settlement::Held).await.expect("settled");
    queue.claim(&claim(10)).await.expect("a claim");
    let approving = commit_at_rest(&trial, id, approval(), ExecutionState::Running);
    assert!(waited(Arc::clone(&queue), LONG, approving).await < LONG / 2);
}
