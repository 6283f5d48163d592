//! What the PostgreSQL store does beyond the contract: batches, damage, many at once, lost connections, and space.
#![cfg(feature = "postgres")]
#![expect(clippy::unwrap_used, reason = "what the helpers of these tests unwrap is what the tests assert")]

mod batches;
mod damage;
mod many;
mod space;

use bytes::Bytes;
use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionId, ExecutionState};
use retake::store::{
    self, Cause, Commit, Delta, Key, KeyChange, MESSAGE_PACK, NewCheckpoint, NewExecution, Op, Origin, Piece,
    PostgresStore, Seq, Store,
};
use serde_json::json;
use uuid::Uuid;

fn execution(name: &str, origin: Option<Origin>) -> NewExecution {
    NewExecution {
        id: SystemClock::default().new_id(),
        name: name.to_owned(),
        workflow_id: Uuid::from_u128(7),
        workflow_name: "article".to_owned(),
        definition: b"steps".to_vec(),
        origin,
    }
}

fn checkpoint(delta: Delta) -> NewCheckpoint {
    let clock = SystemClock::default();
    let (id, now) = (clock.new_id(), clock.now());
    NewCheckpoint { delta, ..NewCheckpoint::new(id, now, ExecutionState::Running, Cause::Manual) }
}

fn commit(execution_id: ExecutionId, expected_head: Seq, delta: Delta) -> Commit {
    Commit { execution_id, expected_head, fence: None, checkpoint: checkpoint(delta) }
}

/// Returns the delta that sets a variable to some text.
fn set(name: &str, text: &str) -> Delta {
    let piece = Piece { codec: MESSAGE_PACK, bytes: Bytes::copy_from_slice(text.as_bytes()) };
    let op = Op::Set { pieces: vec![piece], len: 0 };
    Delta::new(vec![KeyChange { key: Key::Variable(name.to_owned()), writer: None, op }])
}

async fn begin(store: &PostgresStore, name: &str) -> ExecutionId {
    let new = execution(name, None);
    let id = new.id;
    store.create(new, checkpoint(set("step", "1"))).await.unwrap();
    id
}

/// Appends `steps` messages of about 1 KB of text each, one checkpoint each. Returns the execution and its last state.
async fn conversation(store: &PostgresStore, steps: u64, compress: bool) -> (ExecutionId, ExecutionContext) {
    let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
    ctx.set_variable("messages".into(), json!([]));
    let mut new = execution("talk", None);
    new.id = ctx.execution_id;
    store.create(new, checkpoint(store::delta(None, &ctx, |_| None).unwrap())).await.unwrap();
    let words = ["otter", "river", "stone", "willow", "current", "morning", "weir", "heron", "reed", "silt"];
    for seq in 1..=steps {
        let mut message = format!("{seq}: ");
        let mut draw = seq;
        while message.len() < 1_000 {
            // A linear congruential generator, so that the text is neither random bytes nor one line repeated.
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            message.push_str(words[(draw >> 40) as usize % words.len()]);
            message.push_str(&format!(" {:x} ", draw >> 52));
        }
        let before = ctx.clone();
        ctx.append("messages", json!(message)).unwrap();
        let mut commit = commit(ctx.execution_id, seq, store::delta(Some(&before), &ctx, |_| None).unwrap());
        commit.checkpoint.compress = compress;
        store.commit(commit).await.unwrap();
    }
    (ctx.execution_id, ctx)
}

async fn sound(store: &PostgresStore) {
    assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
}
