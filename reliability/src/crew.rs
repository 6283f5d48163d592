//! Worker processes on one PostgreSQL server, and random executions for them, whose nodes keep a journal outside the store.

mod audit;
mod hand;
mod watched;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::clock::{Clock, SystemClock};
use retake::engine::{Engine, Start, Submission};
use retake::store::{PostgresStore, Seq, Ticket};
use retake::workflow::{Node, Workflow};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) use self::audit::Audit;
pub(crate) use self::hand::{CHILD, child};
use crate::cluster::{self, Cluster};
use crate::{Outcome, child};

/// The nodes of a workflow, how many of the ones before each needs at most, and how long each takes.
const NODES: std::ops::RangeInclusive<usize> = 6..=12;
const NEEDS_MAX: usize = 2;
const NODE_MS: std::ops::Range<u64> = 20..300;

/// More points than an execution gets: none is pruned that was acknowledged.
const POINTS_MAX: usize = 1_000;

/// How long to wait between two looks at what the workers have done.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// How a worker deals with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    Honest,
    /// It says that a point was acknowledged before it commits: a control.
    Hasty,
    /// It takes the newest fence and head for its own, as if leases had no numbers: a control.
    Unfenced,
}

impl Habit {
    const ALL: [(Self, &str); 3] =
        [(Self::Honest, "honest"), (Self::Hasty, "hasty"), (Self::Unfenced, "unfenced")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(habit, _)| *habit == self).map_or("", |(_, name)| name)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(habit, _)| *habit)
    }
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// A point was acknowledged to it.
    Acknowledged {
        execution: Uuid,
        seq: Seq,
        id: Uuid,
    },
    /// It does not advance the execution any further.
    Lost {
        execution: Uuid,
        why: String,
    },
    /// The store did not answer it, which it waited for so long.
    Unanswered {
        after: Duration,
    },
    Other(String),
}

/// Something that a worker said, and when.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) worker: usize,
    pub(crate) at: Duration,
    pub(crate) told: Told,
}

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// What the command begins with, where they live in a network of their own.
    pub(crate) prefix: Vec<String>,
    pub(crate) lease: Duration,
    pub(crate) habit: Habit,
}

/// Workers, and what they are to do. They end with it.
#[derive(Debug)]
pub(crate) struct Crew {
    directory: tempfile::TempDir,
    schema: String,
    url: String,
    terms: Terms,
    runtime: tokio::runtime::Runtime,
    engine: Engine,
    executions: Vec<Uuid>,
    workers: BTreeMap<usize, Child>,
    hired: usize,
    heard: Arc<Mutex<Vec<Heard>>>,
    clock: Arc<SystemClock>,
}

impl Crew {
    /// Returns a crew without workers, on a store of its own.
    pub(crate) fn new(cluster: &Cluster, terms: Terms) -> Outcome<Self> {
        let runtime = cluster::runtime()?;
        let schema = format!("crew_{}", Uuid::from_u128(fastrand::u128(..)).simple());
        let engine = runtime.block_on(async {
            let store = PostgresStore::connect(&cluster.url_beside(&schema)).await?;
            Outcome::Ok(Engine::on_queue(Arc::new(store)))
        })?;
        Ok(Self {
            directory: tempfile::tempdir()?,
            url: cluster.url(&schema),
            schema,
            terms,
            runtime,
            engine,
            executions: Vec::new(),
            workers: BTreeMap::new(),
            hired: 0,
            heard: Arc::default(),
            clock: Arc::default(),
        })
    }

    /// Submits so many executions of random workflows.
    pub(crate) fn submit(&mut self, executions: usize, random: &mut fastrand::Rng) -> Outcome<()> {
        for _ in 0..executions {
            let workflow = Arc::new(workflow(random)?);
            let submit = self.engine.submit(workflow, Start::default(), Ticket::default(), None);
            match self.runtime.block_on(submit)? {
                Submission::Created { execution, .. } => self.executions.push(execution),
                Submission::Duplicate { .. } => return Err("an execution without a key has a double".into()),
            }
        }
        Ok(())
    }

    /// Submits as many executions as are missing until so many have not ended. Returns how many there are in all.
    pub(crate) fn supply(
        &mut self,
        unfinished: usize,
        cluster: &Cluster,
        random: &mut fastrand::Rng,
    ) -> Outcome<usize> {
        let missing = unfinished.saturating_sub(self.unfinished(cluster)?);
        self.submit(missing, random)?;
        Ok(self.executions.len())
    }

    /// Starts a worker. Returns its number.
    pub(crate) fn hire(&mut self) -> Outcome<usize> {
        let number = self.hired;
        self.hired += 1;
        let lease_ms = self.terms.lease.as_millis().to_string();
        let journal = self.journal().display().to_string();
        let label = number.to_string();
        let own = child::command(CHILD, &[&self.url, &lease_ms, &journal, self.terms.habit.name(), &label])?;
        let mut words =
            self.terms.prefix.iter().map(AsRef::as_ref).chain([own.get_program()]).chain(own.get_args());
        let mut process = Command::new(words.next().unwrap_or_default())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().ok_or("the worker says nothing")?;
        let (heard, clock) = (Arc::clone(&self.heard), Arc::clone(&self.clock));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let one = Heard { worker: number, at: clock.elapsed(), told: Told::of(&line) };
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            }
        });
        self.workers.insert(number, process);
        Ok(number)
    }

    /// Kills a worker with SIGKILL.
    pub(crate) fn dismiss(&mut self, worker: usize) -> Outcome<()> {
        let mut process = self.workers.remove(&worker).ok_or("there is no such worker")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    pub(crate) fn workers(&self) -> Vec<usize> {
        self.workers.keys().copied().collect()
    }

    /// Stops a worker with all its threads.
    pub(crate) fn stop(&self, worker: usize) -> Outcome<()> {
        child::stop(self.pid(worker)?)
    }

    /// Lets a worker go on that was stopped.
    pub(crate) fn go_on(&self, worker: usize) -> Outcome<()> {
        Ok(rustix::process::kill_process(self.pid(worker)?, Signal::CONT)?)
    }

    pub(crate) fn pid(&self, worker: usize) -> Outcome<Pid> {
        Ok(Pid::from_child(self.workers.get(&worker).ok_or("there is no such worker")?))
    }

    /// Returns the schema of the store.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    /// Returns the time by which things are heard.
    pub(crate) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many points were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.heard().iter().filter(|heard| matches!(heard.told, Told::Acknowledged { .. })).count()
    }

    /// Waits until something holds. Returns whether it did in time.
    pub(crate) fn wait(
        &self,
        at_most: Duration,
        mut holds: impl FnMut(&Self) -> Outcome<bool>,
    ) -> Outcome<bool> {
        let began = self.now();
        while !holds(self)? {
            if self.now().saturating_sub(began) > at_most {
                return Ok(false);
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        Ok(true)
    }

    /// Returns how many executions have not completed.
    pub(crate) fn unfinished(&self, cluster: &Cluster) -> Outcome<usize> {
        let sql = format!("SELECT count(*) FROM {}.executions WHERE state_name <> 'completed'", self.schema);
        Ok(cluster.query(&sql)?.first().ok_or("the server counts nothing")?.parse()?)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for process in self.workers.values_mut() {
            // It may have ended. One that is stopped dies of this as well.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

impl Told {
    fn of(line: &str) -> Self {
        let other = || Self::Other(line.to_owned());
        if let Some(point) = line.strip_prefix("acknowledged ") {
            let words: Vec<&str> = point.split(' ').collect();
            let [execution, seq, id] = words[..] else { return other() };
            return match (execution.parse(), seq.parse(), id.parse()) {
                (Ok(execution), Ok(seq), Ok(id)) => Self::Acknowledged { execution, seq, id },
                _ => other(),
            };
        }
        if let Some(took) = line.strip_prefix("unanswered ").and_then(|took| took.parse().ok()) {
            return Self::Unanswered { after: Duration::from_millis(took) };
        }
        let Ok(event) = serde_json::from_str::<Value>(line) else { return other() };
        match event["event"].as_str() {
            Some("lost") => {
                let execution = event["execution"].as_str().and_then(|id| id.parse().ok());
                let why = event["why"].as_str().unwrap_or_default().to_owned();
                execution.map_or_else(other, |execution| Self::Lost { execution, why })
            }
            _ => other(),
        }
    }
}

/// Draws a workflow. Its nodes take a while, and each needs some of those before.
fn workflow(random: &mut fastrand::Rng) -> Outcome<Workflow> {
    let checkpoints = CheckpointConfig {
        frequency: CheckpointFrequency::Always,
        max_checkpoints: POINTS_MAX,
        ..CheckpointConfig::default()
    };
    let mut builder = Workflow::builder("crewed").checkpoints(checkpoints).max_parallel(3);
    for place in 0..random.usize(NODES) {
        let needs = (0..random.usize(0..=NEEDS_MAX.min(place))).map(|_| random.usize(0..place));
        let needs: std::collections::BTreeSet<String> = needs.map(node).collect();
        let work = Node::call(hand::WORK).with(json!({"ms": random.u64(NODE_MS)}));
        builder = builder.node(node(place), work.needs(needs));
    }
    Ok(builder.build()?)
}

fn node(place: usize) -> String {
    format!("n{place}")
}
