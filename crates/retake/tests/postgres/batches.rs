//! Commits that share a statement.

use std::sync::Arc;

use retake::store::{Conflict, NewWorkflow, StoreError, StoreExt};
use retake::testkit::postgres::PostgresSchema;

use super::*;

const WRITERS: u64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_many_executions_share_statements() {
    let schema = PostgresSchema::new();
    let store = Arc::new(schema.store().await);
    let mut ids = Vec::new();
    for writer in 0..WRITERS {
        ids.push(begin(&store, &format!("run {writer}")).await);
    }
    let before = store.stats();
    for head in 1..=4 {
        let writers = ids.iter().map(|&id| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(commit(id, head, set("step", "x"))).await })
        });
        for writer in writers.collect::<Vec<_>>() {
            assert_eq!(writer.await.unwrap().unwrap().seq, head + 1);
        }
    }
    let after = store.stats();
    let (writes, transactions) = (after.writes - before.writes, after.transactions - before.transactions);
    assert_eq!(writes, 4 * WRITERS);
    assert!(transactions <= WRITERS, "{writes} writes took {transactions} transactions");
    sound(&store).await;
}

/// One is refused for its head, one for its fence, one for an id that is taken, which fails the statement as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_refused_does_not_disturb_the_others() {
    let schema = PostgresSchema::new();
    let store = Arc::new(schema.store().await);
    let mut ids = Vec::new();
    for writer in 0..16 {
        ids.push(begin(&store, &format!("run {writer}")).await);
    }
    let taken = store.history(ids[15], Default::default()).await.unwrap()[0].id;
    let mut commits: Vec<Commit> = ids.iter().map(|id| commit(*id, 1, set("step", "2"))).collect();
    commits[3].expected_head = 9;
    commits[5].fence = Some(7);
    commits[8].checkpoint.id = taken;
    commits[8].checkpoint.workflow =
        Some(NewWorkflow { id: Uuid::from_u128(9), name: "other".into(), definition: b"other".to_vec() });
    let commits = commits.into_iter().map(|commit| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.commit(commit).await })
    });
    let mut refused = Vec::new();
    for (place, commit) in commits.collect::<Vec<_>>().into_iter().enumerate() {
        if let Err(error) = commit.await.unwrap() {
            refused.push((place, error));
        }
    }
    assert_eq!(refused.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [3, 5, 8]);
    assert!(matches!(refused[0].1, StoreError::Conflict(Conflict::HeadMoved { expected: 9, found: 1, .. })));
    assert!(matches!(refused[1].1, StoreError::Conflict(Conflict::Fenced { ours: 7, found: 0, .. })));
    assert!(matches!(refused[2].1, StoreError::Conflict(Conflict::IdTaken(id)) if id == taken));
    for (place, id) in ids.iter().enumerate() {
        let head = if [3, 5, 8].contains(&place) { 1 } else { 2 };
        assert_eq!(store.require(*id).await.unwrap().head, head, "run {place}");
    }
    assert_eq!(store.workflow(Uuid::from_u128(9)).await.unwrap(), None);
    sound(&store).await;
}

#[tokio::test]
async fn a_commit_whose_caller_goes_away_is_whole_or_absent() {
    let schema = PostgresSchema::new();
    let store = schema.store().await;
    let id = begin(&store, "a").await;
    let mut heads = std::collections::BTreeSet::new();
    for polls in 0..40 {
        let head = store.require(id).await.unwrap().head;
        let mut waiting = std::pin::pin!(store.commit(commit(id, head, set("step", &polls.to_string()))));
        for _ in 0..polls {
            let waker = std::task::Waker::noop();
            if waiting.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Dropped here, somewhere on its way.
        heads.insert(head);
    }
    let head = store.require(id).await.unwrap().head;
    assert_eq!(store.history(id, Default::default()).await.unwrap().len() as u64, head);
    sound(&store).await;
}
