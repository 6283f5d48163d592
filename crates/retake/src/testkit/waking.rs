//! Waiting for something to claim.

use std::sync::Arc;
use std::time::Duration;

use super::cases;
use super::queueing::{LONG, SECOND, after, assert_nothing_is_due, claim, ids, names, take, ticketed};
use super::settling::{approval, commit_at_rest};
use super::trial::Trial;
use crate::clock::{Clock, SystemClock};
use crate::execution::ExecutionState;
use crate::store::{Claim, Queue, Settlement, Ticket};

cases![
    waiting_ends_when_something_is_enqueued,
    waiting_ends_when_something_was_enqueued_before_it_began,
    waiting_ends_after_its_time,
    waiting_ends_when_a_held_ticket_becomes_due,
];

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
