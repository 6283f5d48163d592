//! Stores that write at the same time, and servers that go away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use retake::store::{
    Conflict, NewOperation, Note, PostgresOptions, Queue, StoreError, StoreExt, Submitted, Ticket,
};
use retake::testkit::postgres::PostgresSchema;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_stores_that_commit_on_one_head_exactly_one_wins() {
    let schema = PostgresSchema::new();
    let stores = [Arc::new(schema.store().await), Arc::new(schema.store().await)];
    let id = begin(&stores[0], "a").await;
    for head in 1..40 {
        let racers = stores
            .clone()
            .map(|store| tokio::spawn(async move { store.commit(commit(id, head, set("step", "x"))).await }));
        let mut won = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(record) => {
                    assert_eq!(record.seq, head + 1);
                    won += 1;
                }
                Err(error) => assert!(
                    matches!(error, StoreError::Conflict(Conflict::HeadMoved { found, .. }) if found == head + 1),
                    "{error:?}"
                ),
            }
        }
        assert_eq!(won, 1);
    }
    sound(&stores[1]).await;
}

/// Commits go on while points are removed, forks made and deleted, keyframes written, and all of it looked at.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_on_at_the_same_time_leaves_a_sound_store() {
    const ROUNDS: u64 = 120;
    let schema = PostgresSchema::new();
    let stores = [Arc::new(schema.store().await), Arc::new(schema.store().await)];
    let id = begin(&stores[0], "origin").await;
    let large = "otter ".repeat(400);
    let is_done = Arc::new(AtomicBool::new(false));

    let writer = {
        let (store, is_done) = (Arc::clone(&stores[0]), Arc::clone(&is_done));
        tokio::spawn(async move {
            for head in 1..=ROUNDS {
                let mut commit = commit(id, head, set(&format!("x{}", head % 7), &format!("{head} {large}")));
                if head % 11 == 0 {
                    commit.checkpoint.parent = Some(head - 2);
                }
                if head % 5 == 0 {
                    let operation = NewOperation { who: "ann".into(), command: "edit".into() };
                    commit.checkpoint.operation = Some(operation);
                }
                store.commit(commit).await.unwrap();
            }
            is_done.store(true, Ordering::Relaxed);
        })
    };
    let pruner = {
        let (store, is_done) = (Arc::clone(&stores[1]), Arc::clone(&is_done));
        tokio::spawn(async move {
            while !is_done.load(Ordering::Relaxed) {
                store.prune(id, 6).await.unwrap();
                let operation = NewOperation { who: "ann".into(), command: "prune".into() };
                let (at, cause) = (SystemClock::default().now(), Cause::Prune { removed: 1 });
                store.note(id, Note { at, cause, operation }).await.unwrap();
                store.compact().await.unwrap();
            }
        })
    };
    let forker = {
        let (store, is_done) = (Arc::clone(&stores[1]), Arc::clone(&is_done));
        tokio::spawn(async move {
            let mut forks = Vec::new();
            while !is_done.load(Ordering::Relaxed) || forks.len() < 3 {
                let head = store.require(id).await.unwrap().head;
                let origin =
                    Origin { execution_id: id, seq: head.saturating_sub(forks.len() as u64 % 5).max(1) };
                let new = execution(&format!("fork {}", forks.len()), Some(origin));
                let fork = new.id;
                match store.create(new, checkpoint(set("forked", "yes"))).await {
                    Ok(_) => {
                        store.commit(commit(fork, 1, set("step", "mine"))).await.unwrap();
                        forks.push(fork);
                    }
                    Err(StoreError::Pruned { .. }) => continue,
                    Err(error) => panic!("{error:?}"),
                }
                if forks.len() % 3 == 2 {
                    assert_eq!(store.delete(forks[forks.len() - 2]).await.unwrap(), 2);
                    store.prune(forks[forks.len() - 1], 1).await.unwrap();
                    store.prune(id, 3).await.unwrap();
                }
            }
            forks
        })
    };
    writer.await.unwrap();
    pruner.await.unwrap();
    let forks = forker.await.unwrap();
    sound(&stores[0]).await;
    stores[0].delete(id).await.unwrap();
    stores[0].compact().await.unwrap();
    sound(&stores[1]).await;
    for fork in forks {
        if let Some(record) = stores[0].execution(fork).await.unwrap() {
            stores[0].state(fork, record.head).await.unwrap();
            stores[0].delete(fork).await.unwrap();
        }
    }
    stores[0].compact().await.unwrap();
    assert_eq!(schema.run("SELECT count(*) FROM deltas").await, [Some("0".to_owned())]);
    assert_eq!(schema.run("SELECT count(*) FROM keyframes").await, [Some("0".to_owned())]);
    assert_eq!(schema.run("SELECT count(*) FROM workflows").await, [Some("0".to_owned())]);
}

/// As a restart of the server looks to whoever writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_when_the_server_closes_its_connections() {
    let schema = PostgresSchema::new();
    let store = Arc::new(schema.store().await);
    let ids = [begin(&store, "a").await, begin(&store, "b").await];
    let writers = ids.map(|id| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for head in 1..=100 {
                let mut commit = commit(id, head, set("step", &head.to_string()));
                commit.checkpoint.operation =
                    Some(NewOperation { who: "ann".into(), command: "edit".into() });
                assert_eq!(store.commit(commit).await.unwrap().seq, head + 1);
            }
        })
    });
    let cut = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{}'",
        schema.name()
    );
    let number = async |sql: &str| schema.run(sql).await[0].as_deref().unwrap().parse::<u64>().unwrap();
    let (mut cuts, mut written) = (0, 0);
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let now = number("SELECT sum(head) FROM executions").await;
        if now >= written + 7 {
            cuts += number(&cut).await;
            written = now;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(cuts > 0);
    for id in ids {
        assert_eq!(store.require(id).await.unwrap().head, 101, "{cuts} connections were closed");
        assert_eq!(store.operations(id).await.unwrap().len(), 100);
    }
    sound(&store).await;
}

/// A store takes keys with its first row: here within a transaction, which has the only connection.
#[tokio::test]
async fn one_connection_is_enough_for_what_takes_keys_within_a_transaction() {
    let schema = PostgresSchema::new();
    let second = Duration::from_secs(1);
    let options = || PostgresOptions {
        connections_max: 1,
        call_timeout: 5 * second,
        outage_max: second,
        ..PostgresOptions::default()
    };
    let connect = async || PostgresStore::connect_with(&schema.url(), options()).await.unwrap();
    let (new, first) = (execution("submitted", None), checkpoint(set("step", "1")));
    let submitted = connect().await.submit(new, first, Ticket::default(), None).await.unwrap();
    assert!(matches!(submitted, Submitted::Created(_)), "{submitted:?}");

    let store = connect().await;
    let origin = begin(&store, "origin").await;
    let fork = execution("fork", Some(Origin { execution_id: origin, seq: 1 }));
    connect().await.create(fork, checkpoint(set("step", "2"))).await.unwrap();

    let history = store.export(origin).await.unwrap();
    store.delete(origin).await.unwrap();
    let store = connect().await;
    store.import(history).await.unwrap();
    assert_eq!(store.execution(origin).await.unwrap().unwrap().head, 1);
}
