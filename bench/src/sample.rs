//! Values and executions to measure with. Everything is drawn from fixed seeds.

use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionId};
use retake::store::{Cause, Commit, NewCheckpoint, NewExecution, Seq, Store, StoreError, delta};
use serde_json::{Value, json};

/// Bytes of text in one message.
const MESSAGE_BYTES: usize = 1_000;

/// Words of a technical answer, the common ones first, as prose has them.
const WORDS: &str = "the of and to a in is that it for on with as are this be by or from at an not have which can if \
    will when has was then one its but each all may other there use their more state must only so into system value \
    first time between where some two these should them they new while no same does data after before result any how \
    such number write read process change return error function message request response model input output order \
    because however example without point every call given step node list file name part type key long set using work \
    case until line since whole record both less never again found later server client network memory version checkpoint \
    history rollback execution workflow variable tool answer question user assistant language sentence paragraph \
    translation summary document research source draft review publish plan budget estimate otter river bank stone \
    morning evening weather market price customer product quality measure compare consider describe explain suggest \
    improve reduce increase remain continue require provide support include exclude possible different important \
    several following previous current available necessary similar general specific complete partial careful";

/// A small generator of numbers: the same ones in every run.
#[derive(Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number below `end`, small ones more often.
    fn low(&mut self, end: usize) -> usize {
        let mut below = |end: usize| usize::try_from(self.number() % end as u64).unwrap_or(0);
        let bound = below(end) + 1;
        below(bound)
    }
}

/// What a message is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Words, as in an answer of a language model.
    Prose,
    /// Random numbers, which nothing compresses.
    Noise,
}

/// Returns about 1 KB.
pub(crate) fn message(draw: &mut Draw, content: Content) -> Value {
    match content {
        Content::Prose => json!({"role": "assistant", "content": prose(draw)}),
        Content::Noise => {
            json!({"role": "tool", "content": (0..MESSAGE_BYTES / 9).map(|_| draw.number()).collect::<Vec<_>>()})
        }
    }
}

/// Returns 1 KB of text.
pub(crate) fn prose(draw: &mut Draw) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::new();
    while text.len() < MESSAGE_BYTES {
        text.push_str(words[draw.low(words.len())]);
        text.push_str(if draw.number().is_multiple_of(9) { ". " } else { " " });
    }
    text.truncate(MESSAGE_BYTES);
    text
}

/// Returns the name of the n-th variable.
pub(crate) fn variable(n: usize) -> String {
    format!("variable_{n:06}")
}

/// An execution in a store, saved step by step as an engine does it.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) ctx: ExecutionContext,
    pub(crate) head: Seq,
    before: ExecutionContext,
    clock: SystemClock,
    compress: bool,
}

impl Saved {
    /// Creates an execution with so many variables of 1 KB.
    pub(crate) async fn create(
        store: &dyn Store,
        variables: usize,
        compress: bool,
    ) -> Result<Self, StoreError> {
        let (saved, new, first) = Self::begin(variables, compress)?;
        store.create(new, first).await?;
        Ok(saved)
    }

    /// Returns an execution with so many variables of 1 KB, and what creates it.
    pub(crate) fn begin(
        variables: usize,
        compress: bool,
    ) -> Result<(Self, NewExecution, NewCheckpoint), StoreError> {
        let clock = SystemClock::default();
        let mut ctx = ExecutionContext::with_id(clock.new_id(), uuid::Uuid::from_u128(1), clock.now());
        let mut draw = Draw::new(1);
        for n in 0..variables {
            ctx.set_variable(variable(n), Value::String(prose(&mut draw)));
        }
        let new = NewExecution {
            id: ctx.execution_id,
            name: ctx.execution_id.to_string(),
            workflow_id: ctx.workflow_id,
            workflow_name: "benchmark".to_owned(),
            definition: Vec::new(),
            origin: None,
        };
        let saved = Self { before: ctx.clone(), ctx, head: 1, clock, compress };
        let mut first = saved.checkpoint()?;
        first.delta = delta(None, &saved.ctx, |_| None)?;
        first.cause = Cause::Start;
        Ok((saved, new, first))
    }

    pub(crate) fn id(&self) -> ExecutionId {
        self.ctx.execution_id
    }

    /// Saves what changed since the last save. Returns when it is durable.
    pub(crate) async fn save(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let checkpoint = self.checkpoint()?;
        self.commit(store, checkpoint).await
    }

    /// Commits what [`checkpoint`](Self::checkpoint) gave. Returns when it is durable.
    pub(crate) async fn commit(
        &mut self,
        store: &dyn Store,
        checkpoint: NewCheckpoint,
    ) -> Result<(), StoreError> {
        let commit = Commit { execution_id: self.id(), expected_head: self.head, fence: None, checkpoint };
        self.head = store.commit(commit).await?.seq;
        self.before = self.ctx.clone();
        Ok(())
    }

    /// Returns the checkpoint of what changed since the last save.
    pub(crate) fn checkpoint(&self) -> Result<NewCheckpoint, StoreError> {
        Ok(NewCheckpoint {
            delta: delta(Some(&self.before), &self.ctx, |_| None)?,
            nodes: vec!["answer".to_owned()],
            completed_node_count: self.head,
            compress: self.compress,
            ..NewCheckpoint::new(self.clock.new_id(), self.clock.now(), self.ctx.state.clone(), Cause::Nodes)
        })
    }
}

/// Returns a runtime that runs everything on the thread that waits.
pub(crate) fn single_threaded() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
