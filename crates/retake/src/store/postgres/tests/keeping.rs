//! Keyframes that are made while others commit: what is known of the way to them stays right.

use uuid::Uuid;

use super::super::chain::{self, Reader};
use super::super::known::Reach;
use super::*;
use crate::execution::{ExecutionContext, ExecutionId};
use crate::store::{Cause, Commit, NewCheckpoint, NewExecution, Seq, delta};

/// So much is written by the first commit, and by the others: more than the least that a keyframe is due for.
const BYTES: (usize, usize) = (1_000, 50_000);

/// An execution that makes keyframes only when it is told to.
struct Office {
    store: Arc<PostgresStore>,
    execution: ExecutionId,
    ids: u128,
    schema: Schema,
}

impl Office {
    async fn new() -> Self {
        let schema = Schema::new();
        let store = Arc::new(PostgresStore::connect(&schema.url()).await.unwrap());
        store.shared.keeper.rest();
        let mut office = Self { store, execution: Uuid::from_u128(1 << 70), ids: 0, schema };
        let new = NewExecution {
            id: office.execution,
            name: "otter".into(),
            workflow_id: Uuid::nil(),
            workflow_name: "article".into(),
            definition: b"{}".to_vec(),
            origin: None,
        };
        let first = office.checkpoint();
        office.store.create(new, first).await.unwrap();
        office
    }

    fn checkpoint(&mut self) -> NewCheckpoint {
        self.ids += 1;
        let bytes = if self.ids == 1 { BYTES.0 } else { BYTES.1 };
        let before = ExecutionContext::new(Uuid::nil());
        let mut ctx = before.clone();
        let mut draw = fastrand::Rng::with_seed(u64::try_from(self.ids).unwrap());
        let text: String = std::iter::repeat_with(|| draw.alphanumeric()).take(bytes).collect();
        ctx.set_variable("text".into(), text.into());
        let base = (self.ids > 1).then_some(&before);
        NewCheckpoint {
            delta: delta(base, &ctx, |_| None).unwrap(),
            ..NewCheckpoint::new(Uuid::from_u128(self.ids), ctx.started_at, ctx.state.clone(), Cause::Start)
        }
    }

    /// Returns a commit that follows the head, or goes back to a point.
    fn next(&mut self, expected_head: Seq, back_to: Option<Seq>) -> Commit {
        let checkpoint = NewCheckpoint { parent: back_to, base: back_to, ..self.checkpoint() };
        Commit { execution_id: self.execution, expected_head, fence: None, checkpoint }
    }

    async fn commit(&mut self, heads: std::ops::Range<Seq>) {
        for head in heads {
            let commit = self.next(head, None);
            self.store.commit(commit).await.unwrap();
        }
    }

    fn known(&self) -> (i64, Reach) {
        let known = self.store.shared.cache.get(self.execution).unwrap();
        (known.delta, known.reach)
    }

    /// Makes a keyframe of a delta, if one is worth it.
    async fn frame(&self, delta: i64) {
        self.store.shared.frame(self.execution, delta).await.unwrap();
    }

    /// Asserts that what is known of the way to the head is what the server has of it.
    async fn assert_known(&self) {
        let (delta, reach) = self.known();
        let found = chain::reach(&mut Reader::Db(&self.store.shared.db), delta).await.unwrap();
        assert_eq!(reach, found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_on_its_way_knows_of_the_keyframe_that_was_made_meanwhile() {
    let mut office = Office::new().await;
    office.commit(1..6).await;
    let (delta, reach) = office.known();
    assert!(reach.weight > reach.floor, "one is due: {reach:?}");
    let other = testing::db(&office.schema.url());
    let mut lock = other.transaction("locking").await.unwrap();
    let locked = lock.query("SELECT pg_backend_pid() FROM executions FOR UPDATE", &[]).await.unwrap();
    let holder: i32 = locked[0].get(0);
    let (commit, store) = (office.next(6, None), Arc::clone(&office.store));
    let committing = tokio::spawn(async move { store.commit(commit).await.unwrap() });
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))";
    let is_waiting =
        async { while !other.query("reading", waits, &[&holder]).await.unwrap()[0].get::<_, bool>(0) {} };
    timeout(FAR, is_waiting).await.unwrap();
    office.frame(delta).await;
    drop(lock);
    assert_eq!(committing.await.unwrap().seq, 7);
    office.assert_known().await;
    let (_, reach) = office.known();
    assert!(reach.weight <= reach.floor, "none is due: {reach:?}");
}

#[tokio::test]
async fn who_went_back_while_a_keyframe_was_made_is_due_another_as_soon_as_anybody() {
    let mut office = Office::new().await;
    office.commit(1..6).await;
    let (delta, _) = office.known();
    let commit = office.next(6, Some(1));
    office.store.commit(commit).await.unwrap();
    office.frame(delta).await;
    let (_, reach) = office.known();
    assert!(reach.weight >= 0, "{reach:?}");
    office.commit(7..12).await;
    let (_, reach) = office.known();
    assert!(reach.weight > reach.floor, "{reach:?}");
}

#[tokio::test]
async fn a_keyframe_that_somebody_else_made_counts_with_its_size() {
    let mut office = Office::new().await;
    office.commit(1..6).await;
    let (delta, before) = office.known();
    let other = PostgresStore::connect(&office.schema.url()).await.unwrap();
    other.shared.frame(office.execution, delta).await.unwrap();
    assert_eq!(office.known(), (delta, before), "nobody has told it");
    office.frame(delta).await;
    office.assert_known().await;
}
