//! Tickets: who claims which, and when.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::cases;
use super::trial::{Trial, assert_refused, head, set};
use crate::execution::ExecutionId;
use crate::store::{
    CLAIMS_MAX, Claim, Claimed, Commit, Conflict, QUEUE_DEFAULT, Settlement, StoreError, StoreExt, Submitted,
    Ticket,
};

pub(super) const TTL: Duration = Duration::from_secs(30);

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Longer than any case takes that does not wait for it.
pub(super) const LONG: Duration = Duration::from_secs(60);

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

pub(super) fn after(delay: Duration) -> Ticket {
    Ticket { delay, ..Ticket::default() }
}

pub(super) fn names(names: &[&str]) -> BTreeSet<String> {
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
