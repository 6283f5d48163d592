//! The store that is damaged: small, with something of everything in it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::clock::{Clock, ManualClock};
use retake::engine::{Effects, Engine, Extent, NodeContext, NodeError, Registry, Resume, Rollback, Start};
use retake::execution::{ExecutionId, ExecutionState};
use retake::store::{
    Ask, Cause, Commit, Delta, Key, KeyChange, MESSAGE_PACK, NewCheckpoint, NewExecution, NewOperation, Op,
    Piece, Request, SqliteStore, Store, StoreExt, encode,
};
use retake::workflow::{Node, Workflow};
use serde_json::{Value, json};
use uuid::Uuid;

use super::look::{self, Item, Question, Truth};
use crate::Outcome;

/// A store at rest or at work, and what is true of it.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) main: Vec<u8>,
    /// The write-ahead log, of a store at work.
    pub(super) log: Option<Vec<u8>>,
    /// What was true after each commit that is in the log, and before the first.
    pub(super) moments: Vec<Truth>,
}

/// What all cases start from.
#[derive(Debug)]
pub(super) struct Original {
    pub(super) at_rest: Shape,
    pub(super) at_work: Shape,
    /// The main file as it was before.
    pub(super) stale: Vec<u8>,
    pub(super) questions: Vec<Question>,
}

struct Maker {
    store: Arc<SqliteStore>,
    engine: Engine,
    clock: Arc<ManualClock>,
    /// Where the text of values comes from.
    draw: fastrand::Rng,
}

/// Makes the store, the same for the same seed.
pub(super) async fn make(directory: &Path, seed: u64) -> Outcome<Original> {
    let path = directory.join("retake.db");
    let log = directory.join("retake.db-wal");
    let mut maker = Maker::open(&path, fastrand::Rng::with_seed(seed))?;
    let [river, talk] = maker.begin().await?;
    maker = maker.again(&path)?;
    let stale = std::fs::read(&path)?;
    maker.go_on(river, talk).await?;
    maker.store.compact().await?;
    maker = maker.again(&path)?;
    let main = std::fs::read(&path)?;
    // The questions of what is there at any moment, so that what should not be there any more is asked for too.
    let mut known = Known::default();
    let mut pictures = Vec::new();
    maker.work(river, talk, &mut known, &mut pictures).await?;
    let (main_at_work, log) = (std::fs::read(&path)?, std::fs::read(log)?);
    let problems = maker.store.check().await?.problems;
    if main_at_work != main || log.is_empty() || !problems.is_empty() {
        return Err(format!("the store is not what the trial needs: {problems:?}").into());
    }
    let questions: Vec<Question> = known.questions.into_iter().collect();
    // What was not asked at a moment was not there.
    let moments: Vec<Truth> = pictures
        .into_iter()
        .map(|picture| questions.iter().map(|question| answer(&picture, *question)).collect())
        .collect();
    let first = moments[0].clone();
    Ok(Original {
        at_rest: Shape { main: main.clone(), log: None, moments: vec![first] },
        at_work: Shape { main, log: Some(log), moments },
        stale,
        questions,
    })
}

type Picture = Vec<(Question, Vec<Item>)>;

fn answer(picture: &Picture, question: Question) -> Vec<Item> {
    let found = picture.iter().find(|(asked, _)| *asked == question);
    found.map(|(_, answer)| answer.clone()).unwrap_or_default()
}

#[derive(Default)]
struct Known {
    questions: BTreeSet<Question>,
}

impl Known {
    /// Asks everything there is to ask.
    async fn picture(&mut self, store: &SqliteStore) -> Outcome<Picture> {
        let mut picture = Picture::new();
        let mut next = vec![Question::Executions];
        let mut asked = BTreeSet::new();
        while let Some(question) = next.pop() {
            if !asked.insert(question) {
                continue;
            }
            let answer = look::ask(store, question).await?;
            for item in &answer {
                match item {
                    Item::Execution(record) => next.extend([
                        Question::Execution(record.id),
                        Question::History(record.id),
                        Question::Operations(record.id),
                        Question::Requests(record.id),
                        Question::Workflow(record.workflow_id),
                    ]),
                    Item::Point(point) => next.extend([
                        Question::State(point.execution_id, point.seq),
                        Question::Checkpoint(point.id),
                        Question::Workflow(point.workflow_id),
                    ]),
                    Item::State(_) | Item::Operation(_) | Item::Request(_) | Item::Definition(_) => {}
                }
            }
            self.questions.insert(question);
            picture.push((question, answer));
        }
        Ok(picture)
    }
}

impl Maker {
    fn open(path: &Path, draw: fastrand::Rng) -> Outcome<Self> {
        let clock = Arc::new(ManualClock::default());
        Self::with(path, clock, draw)
    }

    fn with(path: &Path, clock: Arc<ManualClock>, draw: fastrand::Rng) -> Outcome<Self> {
        let options = retake::store::Options {
            clock: Arc::<ManualClock>::clone(&clock),
            readers_max: 1,
            ..Default::default()
        };
        let store = Arc::new(SqliteStore::open_with(path, options)?);
        let registry = Registry::new().with("say", async |ctx: NodeContext| {
            let said = format!("{} said by {}", "a word ".repeat(40), ctx.node());
            ctx.append("said", json!(said)).map_err(|error| NodeError::permanent(error.to_string()))?;
            Ok(said)
        });
        let engine = Engine::new(Arc::<SqliteStore>::clone(&store))
            .with_registry(registry)
            .with_clock(Arc::<ManualClock>::clone(&clock));
        Ok(Self { store, engine, clock, draw })
    }

    /// Closes the store, which moves its log into the file, and opens it again.
    fn again(self, path: &Path) -> Outcome<Self> {
        let Self { store, engine, clock, draw } = self;
        drop((store, engine));
        Self::with(path, clock, draw)
    }

    async fn begin(&mut self) -> Outcome<[ExecutionId; 2]> {
        let outcome =
            self.engine.start(workflow()?, Start { name: Some("river".to_owned()), ..Start::default() });
        let river = outcome.await?.drive().await?.execution;
        let talk = self.talk("talk", 5, 5_000, false).await?;
        self.talk("gone", 4, 3_000, true).await?;
        Ok([river, talk])
    }

    async fn go_on(&mut self, river: ExecutionId, talk: ExecutionId) -> Outcome<()> {
        self.roll_back(river, 3).await?;
        self.engine.undo(river, Effects::Refuse, by("undo")).await?;
        self.engine.checkpoint(river, Some("good".to_owned()), by("checkpoint")).await?;
        let fork = self.engine.fork_unchanged(river, 3, Some("stream".to_owned()), by("fork")).await?;
        self.engine.resume(fork.execution, Resume::default()).await?.drive().await?;
        self.say(talk, 4, 5_000, false).await?;
        let small = self.talk("small", 14, 1_500, true).await?;
        self.store.prune(small, 5).await?;
        let gone = self.find("gone").await?;
        self.store.delete(gone).await?;
        self.ask(talk).await
    }

    /// Does what stays in the log, and takes a picture after each commit.
    async fn work(
        &mut self,
        river: ExecutionId,
        talk: ExecutionId,
        known: &mut Known,
        pictures: &mut Vec<Picture>,
    ) -> Outcome<()> {
        let small = self.find("small").await?;
        for step in 0..12 {
            pictures.push(known.picture(&self.store).await?);
            match step {
                0 => self.roll_back(river, 4).await?,
                1 | 5 => self.say(talk, 1, 2_500, false).await?,
                2 => drop(self.engine.checkpoint(river, Some("better".to_owned()), by("checkpoint")).await?),
                3 => drop(self.engine.undo(river, Effects::Refuse, by("undo")).await?),
                4 | 9 => self.say(small, 1, 1_500, true).await?,
                6 => drop(self.store.prune(small, 3).await?),
                7 => drop(self.engine.fork_unchanged(river, 2, Some("brook".to_owned()), by("fork")).await?),
                8 => self.ask(river).await?,
                10 => drop(self.store.delete(self.find("stream").await?).await?),
                _ => self.say(talk, 1, 1_000, false).await?,
            }
        }
        pictures.push(known.picture(&self.store).await?);
        Ok(())
    }

    async fn find(&self, name: &str) -> Outcome<ExecutionId> {
        let filter = retake::store::ExecutionFilter { address: Some(name.to_owned()), ..Default::default() };
        let found = self.store.executions(&filter).await?;
        Ok(found.first().ok_or("an execution is not there")?.id)
    }

    async fn roll_back(&self, id: ExecutionId, to: u64) -> Outcome<()> {
        let request = Rollback { extent: Extent::Linear, ..Rollback::default() };
        let plan = self.engine.plan_rollback(id, to, &request).await?;
        self.engine.apply(plan, by("rollback")).await?;
        Ok(())
    }

    async fn ask(&self, id: ExecutionId) -> Outcome<()> {
        let request = Request { id: self.clock.new_id(), ask: Ask::Pause, operation: by("pause") };
        Ok(self.store.ask(id, request).await?)
    }

    /// Makes an execution that keeps a growing list.
    async fn talk(&mut self, name: &str, steps: usize, bytes: usize, compress: bool) -> Outcome<ExecutionId> {
        let new = NewExecution {
            id: self.clock.new_id(),
            name: name.to_owned(),
            workflow_id: Uuid::from_u128(7),
            workflow_name: "talk".to_owned(),
            definition: b"talking".to_vec(),
            origin: None,
        };
        let id = new.id;
        let op = Op::Set { pieces: vec![piece(&json!([]))?], len: 0 };
        self.store.create(new, self.checkpoint(op, false)).await?;
        self.say(id, steps, bytes, compress).await?;
        Ok(id)
    }

    async fn say(&mut self, id: ExecutionId, steps: usize, bytes: usize, compress: bool) -> Outcome<()> {
        for _ in 0..steps {
            let head = self.store.require(id).await?.head;
            let text: String = (0..bytes / 2).flat_map(|_| [self.draw.alphanumeric(), ' ']).collect();
            let op = Op::Append { start: head - 1, pieces: vec![piece(&json!([text]))?], len: head };
            let checkpoint = self.checkpoint(op, compress);
            let commit = Commit { execution_id: id, expected_head: head, fence: None, checkpoint };
            self.store.commit(commit).await?;
        }
        Ok(())
    }

    fn checkpoint(&self, op: Op, compress: bool) -> NewCheckpoint {
        self.clock.advance(Duration::from_secs(1));
        let change = KeyChange { key: Key::Variable("said".to_owned()), writer: None, op };
        let (id, now) = (self.clock.new_id(), self.clock.now());
        let new = NewCheckpoint::new(id, now, ExecutionState::Running, Cause::Manual);
        NewCheckpoint { delta: Delta::new(vec![change]), compress, ..new }
    }
}

fn piece(value: &Value) -> Outcome<Piece> {
    Ok(Piece { codec: MESSAGE_PACK, bytes: Bytes::from(encode("said", value)?) })
}

fn by(command: &str) -> NewOperation {
    NewOperation { who: "ada".to_owned(), command: command.to_owned() }
}

fn workflow() -> Outcome<Arc<Workflow>> {
    let checkpoints = CheckpointConfig {
        frequency: CheckpointFrequency::Always,
        max_checkpoints: 1_000,
        ..Default::default()
    };
    let mut builder =
        Workflow::builder("river").var("said", json!([])).checkpoints(checkpoints).max_parallel(1);
    for n in 0..4_u32 {
        let before = n.checked_sub(1).map(|before| format!("reach_{before}"));
        builder = builder.node(format!("reach_{n}"), Node::call("say").needs(before));
    }
    Ok(Arc::new(builder.build()?))
}
