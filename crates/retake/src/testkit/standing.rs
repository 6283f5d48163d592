//! How things stand: tickets, workers and leases, as they are looked at.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::cases;
use super::queueing::{SECOND, TTL, assert_nothing_is_due, claim, ids, in_queue, names, take, ticketed};
use super::trial::{Trial, assert_refused};
use crate::clock::Clock as _;
use crate::execution::ExecutionId;
use crate::store::{
    Claim, QUEUE_NAME_BYTES_MAX, QueueDepth, REQUIRES_MAX, Settlement, StoreError, Ticket, TicketRecord,
    TicketStand, WORKER_FORGOTTEN_AFTER, WORKER_LOST_AFTER, WorkerReport, WorkerStand,
};

cases![
    depths_say_how_tickets_stand,
    a_ticket_can_be_looked_at,
    names_that_cannot_be_kept_are_refused,
    any_other_name_is_kept,
    workers_are_known_until_they_retire,
    a_worker_that_says_nothing_is_lost_and_in_the_end_forgotten,
    stale_leases_are_known_until_somebody_takes_them,
];

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
