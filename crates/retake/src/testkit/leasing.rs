//! The exclusive right to advance an execution, and what is asked of its holder.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cases;
use super::trial::{Trial, assert_refused, head, operation, set, step};
use crate::clock::Clock;
use crate::store::{Ask, Commit, Conflict, DEPTH_MAX, Lease, Request, StoreError, StoreExt};

const TTL: Duration = Duration::from_secs(30);

cases![
    a_lease_keeps_everybody_else_out_until_it_is_given_back,
    a_lease_whose_time_is_up_can_be_taken_and_its_holder_is_fenced,
    a_renewed_lease_holds_from_then_on,
    a_commit_carries_the_fence_of_the_last_lease,
    fences_grow_with_every_lease,
    a_lease_concerns_one_execution,
    of_many_who_want_a_lease_exactly_one_gets_it,
    an_execution_that_is_advanced_cannot_be_deleted,
    what_is_asked_is_given_to_the_holder_in_order_until_it_is_answered,
    a_refused_commit_answers_nothing,
    a_request_can_be_taken_back_until_it_is_answered,
    a_request_that_could_not_be_read_back_is_refused,
];

fn fenced(trial: &Trial, lease: &Lease, head: u64, text: &str) -> Commit {
    Commit { fence: Some(lease.fence), ..trial.on(lease.execution_id, head, set("step", text)) }
}

fn request(trial: &Trial, ask: Ask) -> Request {
    Request { id: trial.clock.new_id(), ask, operation: operation("asked") }
}

async fn a_lease_keeps_everybody_else_out_until_it_is_given_back(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    assert_eq!(store.require(id).await.expect("the execution").leased_by, None);
    let lease = store.lease(id, TTL).await.expect("a lease");
    assert_eq!((lease.execution_id, lease.ttl), (id, TTL));
    let owner = store.require(id).await.expect("the execution").leased_by.expect("somebody advances it");
    assert_eq!(
        store.executions(&Default::default()).await.expect("a list")[0].leased_by.as_ref(),
        Some(&owner)
    );
    trial.pass(TTL / 2).await;
    for refused in [
        store.lease(id, TTL).await.map(|_| ()),
        store.commit(trial.on(id, 1, set("step", "2"))).await.map(|_| ()),
    ] {
        assert_refused!(
            refused,
            StoreError::Conflict(Conflict::Leased { execution, owner: by, .. }) if *execution == id && *by == owner
        );
    }
    assert_eq!(head(&*store, id).await, 1);
    store.release(&lease).await.expect("given back");
    assert_eq!(store.require(id).await.expect("the execution").leased_by, None);
    store.commit(trial.on(id, 1, set("step", "2"))).await.expect("an unfenced commit");
    store.lease(id, TTL).await.expect("the lease is free");
}

async fn a_lease_whose_time_is_up_can_be_taken_and_its_holder_is_fenced(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let old = store.lease(id, TTL).await.expect("a lease");
    trial.pass(TTL + Duration::from_secs(1)).await;
    assert_eq!(store.require(id).await.expect("the execution").leased_by, None);
    store.commit(trial.on(id, 1, set("step", "2"))).await.expect("nobody holds a lease");
    let new = store.lease(id, TTL).await.expect("its time is up");
    assert!(new.fence > old.fence, "{new:?} after {old:?}");
    for refused in
        [store.commit(fenced(&trial, &old, 2, "late")).await.map(|_| ()), store.renew(&old).await.map(|_| ())]
    {
        assert_refused!(
            refused,
            StoreError::Conflict(Conflict::Fenced { execution, ours, found })
                if *execution == id && *ours == old.fence && *found == new.fence
        );
    }
    store.release(&old).await.expect("a lease that has passed on is left alone");
    assert_refused!(store.lease(id, TTL).await, StoreError::Conflict(Conflict::Leased { .. }));
    store.commit(fenced(&trial, &new, 2, "3")).await.expect("the new holder goes on");
    assert_eq!(step(&*store, id, 3).await.expect("a state"), "3");
}

async fn a_renewed_lease_holds_from_then_on(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    for _ in 0..3 {
        trial.pass(TTL * 2 / 3).await;
        store.renew(&lease).await.expect("renewed");
    }
    trial.pass(TTL * 2 / 3).await;
    assert_refused!(store.lease(id, TTL).await, StoreError::Conflict(Conflict::Leased { .. }));
    trial.pass(TTL * 2 / 3).await;
    store.lease(id, TTL).await.expect("its time is up");
}

async fn a_commit_carries_the_fence_of_the_last_lease(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    store.commit(fenced(&trial, &lease, 1, "2")).await.expect("committed");
    for fence in [lease.fence - 1, lease.fence + 1] {
        let wrong = Lease { fence, ..lease.clone() };
        let refused = store.commit(fenced(&trial, &wrong, 2, "wrong")).await;
        assert_refused!(refused, StoreError::Conflict(Conflict::Fenced { ours, .. }) if *ours == fence);
    }
    let old_head = store.commit(fenced(&trial, &lease, 1, "old")).await;
    assert_refused!(old_head, StoreError::Conflict(Conflict::HeadMoved { expected: 1, found: 2, .. }));
    trial.pass(TTL * 2).await;
    store.commit(fenced(&trial, &lease, 2, "3")).await.expect("late, but nobody else has come");
    let store = trial.store().await;
    assert_eq!(step(&*store, id, 3).await.expect("a state"), "3");
    assert_eq!(head(&*store, id).await, 3);
}

async fn fences_grow_with_every_lease(trial: Trial) {
    let id = trial.begin("a").await;
    let mut before = 0;
    for round in 0..6 {
        let store = trial.store().await;
        let lease = store.lease(id, TTL).await.expect("a lease");
        assert!(lease.fence > before, "fence {} after {before}", lease.fence);
        before = lease.fence;
        if round % 2 == 0 {
            store.release(&lease).await.expect("given back");
        } else {
            trial.pass(TTL * 2).await;
        }
    }
}

async fn a_lease_concerns_one_execution(trial: Trial) {
    let (one, other) = (trial.begin("a").await, trial.begin("b").await);
    let store = trial.store().await;
    let lease = store.lease(one, TTL).await.expect("a lease");
    store.lease(other, TTL).await.expect("another lease");
    store.release(&lease).await.expect("given back");
    assert_eq!(store.require(one).await.expect("the execution").leased_by, None);
    assert!(store.require(other).await.expect("the execution").leased_by.is_some());
    let nobody = trial.clock.new_id();
    assert_refused!(store.lease(nobody, TTL).await, StoreError::NoExecution(id) if *id == nobody);
}

async fn of_many_who_want_a_lease_exactly_one_gets_it(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let takers: Vec<_> = (0..32)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.lease(id, TTL).await })
        })
        .collect();
    let mut taken = 0;
    for taker in takers {
        match taker.await.expect("a taker") {
            Ok(_) => taken += 1,
            Err(error) => {
                assert!(matches!(&error, StoreError::Conflict(Conflict::Leased { .. })), "{error:?}");
            }
        }
    }
    assert_eq!(taken, 1);
}

async fn an_execution_that_is_advanced_cannot_be_deleted(trial: Trial) {
    let id = trial.begin("a").await;
    trial.advance(id, 3).await;
    let store = trial.store().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    assert_refused!(store.delete(id).await, StoreError::Conflict(Conflict::Leased { .. }));
    assert_eq!(head(&*store, id).await, 3);
    assert_eq!(store.prune(id, 1).await.expect("pruning disturbs nobody"), 2);
    store.commit(fenced(&trial, &lease, 3, "4")).await.expect("the holder goes on");
    trial.pass(TTL * 2).await;
    assert_eq!(store.delete(id).await.expect("deleted"), 2);
}

async fn what_is_asked_is_given_to_the_holder_in_order_until_it_is_answered(trial: Trial) {
    let id = trial.begin("a").await;
    let with = json!({"note": "fine \u{1f9a6}", "n": [1, 2.5, null]});
    let asks = [
        Ask::Pause,
        Ask::Approve { node: "send \"it\"".to_owned(), approved: false, with },
        Ask::Checkpoint { label: Some("mine".to_owned()) },
        Ask::Checkpoint { label: None },
        Ask::Cancel,
    ];
    let requests = asks.map(|ask| request(&trial, ask));
    // Ids go the other way: what is oldest is decided by when it was asked.
    let mut ids: Vec<_> = requests.iter().map(|request| request.id).collect();
    ids.reverse();
    let requests: Vec<_> =
        requests.into_iter().zip(ids).map(|(request, id)| Request { id, ..request }).collect();
    for request in &requests {
        trial.store().await.ask(id, request.clone()).await.expect("asked");
    }
    let store = trial.store().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    assert_eq!(store.requests(id).await.expect("a look"), requests);
    assert_eq!(store.requests(id).await.expect("a look"), requests, "reading does not answer");

    let mut commit = fenced(&trial, &lease, 1, "2");
    commit.checkpoint.answers = vec![requests[0].id, requests[2].id, trial.clock.new_id()];
    store.commit(commit).await.expect("committed");
    let left = [requests[1].clone(), requests[3].clone(), requests[4].clone()];
    assert_eq!(trial.store().await.requests(id).await.expect("a look"), left);
    let nobody = trial.clock.new_id();
    let refused = store.ask(nobody, requests[0].clone()).await;
    assert_refused!(refused, StoreError::NoExecution(unknown) if *unknown == nobody);
}

async fn a_refused_commit_answers_nothing(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    let request = request(&trial, Ask::Pause);
    store.ask(id, request.clone()).await.expect("asked");
    let mut commit = fenced(&trial, &lease, 7, "2");
    commit.checkpoint.answers = vec![request.id];
    assert_refused!(store.commit(commit).await, StoreError::Conflict(Conflict::HeadMoved { .. }));
    assert_eq!(store.requests(id).await.expect("a look"), [request]);
}

async fn a_request_can_be_taken_back_until_it_is_answered(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let lease = store.lease(id, TTL).await.expect("a lease");
    let (one, two) = (request(&trial, Ask::Pause), request(&trial, Ask::Cancel));
    store.ask(id, one.clone()).await.expect("asked");
    store.ask(id, two.clone()).await.expect("asked");
    assert!(trial.store().await.withdraw(id, one.id).await.expect("taken back"));
    assert!(!store.withdraw(id, one.id).await.expect("taken back before"));
    assert_eq!(store.requests(id).await.expect("a look"), std::slice::from_ref(&two));
    let mut commit = fenced(&trial, &lease, 1, "2");
    commit.checkpoint.answers = vec![two.id];
    store.commit(commit).await.expect("committed");
    assert!(!store.withdraw(id, two.id).await.expect("answered before"));
}

async fn a_request_that_could_not_be_read_back_is_refused(trial: Trial) {
    let id = trial.begin("a").await;
    let store = trial.store().await;
    let approve = |depth: usize| {
        let with = (0..depth).fold(json!(1), |inner, _| Value::Array(vec![inner]));
        request(&trial, Ask::Approve { node: "send".to_owned(), approved: true, with })
    };
    let deepest = approve(DEPTH_MAX - 1);
    store.ask(id, deepest.clone()).await.expect("asked");
    for depth in [DEPTH_MAX, 200_000] {
        let refused = store.ask(id, approve(depth)).await;
        assert_refused!(refused, StoreError::Unstorable { path, .. } if path.starts_with("nodes.send.output[0]"));
    }
    assert_eq!(trial.store().await.requests(id).await.expect("a look"), [deepest]);
}
