//! What the cases share: a store to try, and short ways to write checkpoints.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::Harness;
use crate::clock::{Clock, ManualClock};
use crate::execution::{ExecutionId, ExecutionState, WorkflowId};
use crate::store::{
    self, Cause, CheckpointRecord, Commit, Delta, HistoryPage, Image, Key, KeyChange, MESSAGE_PACK,
    NewCheckpoint, NewExecution, NewOperation, Op, Piece, Queue, Seq, Store, StoreError,
};

/// The workflow that all executions of a case belong to.
pub(super) const WORKFLOW: WorkflowId = uuid::uuid!("0190a6c4-0000-7000-8000-00000000f10e");

/// A store to try, and the time and ids of the case that tries it.
pub(super) struct Trial {
    harness: Arc<dyn Harness>,
    queue: OnceCell<Arc<dyn Queue>>,
    pub(super) clock: ManualClock,
}

impl Trial {
    pub(super) fn new(harness: Arc<dyn Harness>) -> Self {
        Self { harness, queue: OnceCell::new(), clock: ManualClock::default() }
    }

    /// Opens the store again.
    pub(super) async fn store(&self) -> Arc<dyn Store> {
        self.harness.open().await
    }

    /// Returns what opens the store, for tasks of their own.
    pub(super) fn harness(&self) -> Arc<dyn Harness> {
        Arc::clone(&self.harness)
    }

    /// Returns the store's queue, which is opened once. Others may open it beside this one.
    pub(super) async fn queue(&self) -> Arc<dyn Queue> {
        Arc::clone(self.queue.get_or_init(|| self.another_queue()).await)
    }

    /// Opens the store again, for its queue.
    pub(super) async fn another_queue(&self) -> Arc<dyn Queue> {
        self.harness.queue().await.expect("a harness whose store has a queue")
    }

    /// Lets time pass, for the case and for leases.
    pub(super) async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.harness.pass(time).await;
    }

    pub(super) fn execution(&self, name: &str) -> NewExecution {
        NewExecution {
            id: self.clock.new_id(),
            name: name.to_owned(),
            workflow_id: WORKFLOW,
            workflow_name: "article".to_owned(),
            definition: Vec::new(),
            origin: None,
        }
    }

    pub(super) fn checkpoint(&self, delta: Delta) -> NewCheckpoint {
        let (id, now) = (self.clock.new_id(), self.clock.now());
        NewCheckpoint { delta, ..NewCheckpoint::new(id, now, ExecutionState::Running, Cause::Manual) }
    }

    /// Creates an execution whose first state has the variable `step`, "1".
    pub(super) async fn begin(&self, name: &str) -> ExecutionId {
        let execution = self.execution(name);
        let id = execution.id;
        self.opened()
            .await
            .create(execution, self.checkpoint(set("step", "1")))
            .await
            .expect("a new execution");
        id
    }

    /// Returns the queue where it is open, and opens the store again otherwise.
    async fn opened(&self) -> Arc<dyn Store> {
        match self.queue.get() {
            Some(queue) => Arc::clone(queue) as Arc<dyn Store>,
            None => self.store().await,
        }
    }

    /// Returns an unfenced commit on top of `head`.
    pub(super) fn on(&self, execution_id: ExecutionId, head: Seq, delta: Delta) -> Commit {
        Commit { execution_id, expected_head: head, fence: None, checkpoint: self.checkpoint(delta) }
    }

    /// Commits points up to `last`, each setting `step` to its number, to an execution that was begun.
    pub(super) async fn advance(&self, execution_id: ExecutionId, last: Seq) {
        let store = self.store().await;
        let head = head(&*store, execution_id).await;
        for seq in head + 1..=last {
            let commit = self.on(execution_id, seq - 1, set("step", &seq.to_string()));
            assert_eq!(store.commit(commit).await.expect("a commit on the head").seq, seq);
        }
    }

    /// Returns an instant that only a store with nanoseconds gives back.
    pub(super) fn odd_instant(&self) -> chrono::DateTime<Utc> {
        self.clock.now() + chrono::TimeDelta::nanoseconds(123_456_789)
    }
}

pub(super) async fn head(store: &dyn Store, id: ExecutionId) -> Seq {
    store.execution(id).await.expect("a look at an execution").expect("the execution").head
}

/// Returns an execution's points, newest first.
pub(super) async fn seqs(store: &dyn Store, id: ExecutionId) -> Vec<Seq> {
    history(store, id).await.iter().map(|record| record.seq).collect()
}

pub(super) async fn history(store: &dyn Store, id: ExecutionId) -> Vec<CheckpointRecord> {
    store.history(id, HistoryPage::default()).await.expect("a history")
}

/// Returns the value of `step` at a point.
pub(super) async fn step(store: &dyn Store, id: ExecutionId, seq: Seq) -> Result<String, StoreError> {
    let image = store.state(id, seq).await?;
    Ok(text(&image, "step").expect("every state has a step"))
}

/// Returns a variable's text, put together from its pieces.
pub(super) fn text(image: &Image, name: &str) -> Option<String> {
    let entry = image.get(&Key::Variable(name.to_owned()))?;
    let part = |piece: &Piece| {
        let value = store::decode(name, &piece.bytes).expect("an encoded value");
        value.as_str().expect("the cases only write text").to_owned()
    };
    Some(entry.pieces.iter().map(part).collect())
}

pub(super) fn operation(command: &str) -> NewOperation {
    NewOperation { who: "ann".to_owned(), command: command.to_owned() }
}

pub(super) fn set(name: &str, text: &str) -> Delta {
    Delta::new(vec![set_change(name, text)])
}

pub(super) fn set_change(name: &str, text: &str) -> KeyChange {
    change(name, Op::Set { pieces: vec![piece(text)], len: text.len() as u64 })
}

pub(super) fn append(name: &str, start: usize, text: &str) -> Delta {
    let (start, len) = (start as u64, (start + text.len()) as u64);
    Delta::new(vec![change(name, Op::Append { start, pieces: vec![piece(text)], len })])
}

pub(super) fn remove(name: &str) -> Delta {
    Delta::new(vec![change(name, Op::Remove)])
}

/// Returns the state that deltas make, one after the other.
pub(super) fn image<'a>(deltas: impl IntoIterator<Item = &'a Delta>) -> Image {
    let mut image = Image::default();
    for delta in deltas {
        image.apply("a model's delta", delta).expect("a delta that fits");
    }
    image
}

fn change(name: &str, op: Op) -> KeyChange {
    KeyChange { key: Key::Variable(name.to_owned()), writer: None, op }
}

fn piece(text: &str) -> Piece {
    let bytes = store::encode("a test", &Value::from(text)).expect("a text can be stored");
    Piece { codec: MESSAGE_PACK, bytes: Bytes::from(bytes) }
}

/// Asserts that a call failed as the pattern says.
macro_rules! assert_refused {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {{
        let result = $result;
        assert!(matches!(&result, Err($pattern) $(if $guard)?), "expected {}, got {result:?}", stringify!($pattern));
    }};
}
pub(super) use assert_refused;
