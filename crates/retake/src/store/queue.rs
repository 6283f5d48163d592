//! Handing executions out to workers: the [`Queue`] trait, and the records it speaks of.
//!
//! A *ticket* says that an execution is to be advanced by some worker: from when on, how urgently, and by whom it can be.
//! It stays until the execution ends, or somebody takes it back. A worker that *claims* a ticket holds the execution's
//! lease; it *settles* the claim when it has gone as far as it can. One that dies settles nothing: its lease runs out, and
//! the ticket is claimed by another. All times are the store's own: nobody's clock decides who may work.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{CheckpointRecord, Lease, NewCheckpoint, NewExecution, Store, StoreError};
use crate::execution::ExecutionId;

/// The queue of a ticket that names none.
pub const QUEUE_DEFAULT: &str = "default";

/// How often a ticket is claimed in a row without being settled before nobody claims it any more: what it asks for ends
/// the workers that try.
pub const CLAIMS_MAX: u32 = 5;

/// That an execution is to be advanced by a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ticket {
    /// The name of the queue that it waits in.
    pub queue: String,
    /// Those with a higher number are claimed first, and of equal ones the one that has been due for longest.
    pub priority: i32,
    /// How long after now it is due.
    #[serde(skip)]
    pub delay: Duration,
    /// What a worker must be able to do, as names that mean something to the engine: all of these.
    pub requires: BTreeSet<String>,
}

impl Default for Ticket {
    fn default() -> Self {
        Self {
            queue: QUEUE_DEFAULT.to_owned(),
            priority: 0,
            delay: Duration::ZERO,
            requires: BTreeSet::new(),
        }
    }
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// The execution was created, and its ticket with it.
    Created(Box<CheckpointRecord>),
    /// An execution was submitted with the same deduplication key before. Nothing was created.
    Duplicate(ExecutionId),
}

/// What a worker asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The worker's id, as in its [`WorkerReport`].
    pub worker: Uuid,
    /// The queues that it serves, by name. Empty for all.
    pub queues: Vec<String>,
    /// What it is able to do. It is given tickets that require nothing else.
    pub able: BTreeSet<String>,
    /// At most so many.
    pub most: usize,
    /// How long each lease holds unless it is renewed.
    pub ttl: Duration,
}

/// An execution that was handed to a worker, which holds its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The lease.
    pub lease: Lease,
    /// The queue that it was in.
    pub queue: String,
    /// Which claim in a row this is without any having been settled, from 1.
    pub claims: u32,
}

/// How a worker leaves an execution that it claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It ended, or a person stopped it: the ticket goes.
    Done,
    /// It is to be advanced further, when the time has passed.
    Again {
        /// From now.
        delay: Duration,
    },
    /// It waits for somebody: a commit whose cause is [`Cause::Approve`](super::Cause::Approve) makes it due.
    Held,
}

/// A limit on what is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "limit")]
pub enum Limit {
    /// At most so many executions of a queue are claimed at the same time.
    Running {
        /// The queue.
        queue: String,
        /// How many.
        most: u32,
    },
    /// At most so many executions of a workflow are claimed for the first time in a period: a bucket that holds so many, and
    /// fills at that rate.
    Starts {
        /// The workflow's name.
        workflow: String,
        /// How many.
        most: u32,
        /// The period.
        per: Duration,
    },
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerReport {
    /// Its id, drawn when it began.
    pub id: Uuid,
    /// Who it is: machine and process.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// The queues that it serves. Empty for all.
    pub queues: Vec<String>,
    /// How many executions it advances at the same time.
    pub concurrency: u32,
    /// How many it advances now.
    pub running: u32,
}

/// What a store knows of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerRecord {
    /// What it said last.
    #[serde(flatten)]
    pub report: WorkerReport,
    /// When it first said so.
    pub started_at: DateTime<Utc>,
    /// When it last said so.
    pub seen_at: DateTime<Utc>,
}

/// How many tickets of a queue stand how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QueueDepth {
    /// The queue.
    pub queue: String,
    /// Those that a worker could claim now, limits aside.
    pub due: u64,
    /// Those that are due later.
    pub delayed: u64,
    /// Those that wait for somebody.
    pub held: u64,
    /// Those that a worker has claimed.
    pub claimed: u64,
    /// Those that nobody claims any more ([`CLAIMS_MAX`]).
    pub stuck: u64,
}

/// A lease whose time is up, and that nobody has taken since: its holder died or is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaleLease {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Its name.
    pub name: String,
    /// Who held it.
    pub owner: String,
    /// When it ran out.
    pub until: DateTime<Utc>,
}

/// A store that hands executions out to workers.
///
/// As with [`Store`], every method may be called from many tasks, and from many machines, at once; what changes something
/// returns when that is durable; and dropping the future of a change leaves all of it or nothing.
#[async_trait::async_trait]
pub trait Queue: Store {
    /// Creates an execution, as [`create`](Store::create) does, with a ticket, in one atomic step.
    ///
    /// `key` deduplicates: as long as there is an execution that was submitted with it, there will be no other.
    ///
    /// # Errors
    /// Those of [`create`](Store::create). Nothing was created then.
    async fn submit(
        &self,
        new: NewExecution,
        first: NewCheckpoint,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submitted, StoreError>;

    /// Gives an execution a ticket, in the place of the one that it may have. One that is claimed stays so, and is due
    /// again under the new ticket when its claim is settled, whatever the settlement.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`].
    async fn enqueue(&self, id: ExecutionId, ticket: Ticket) -> Result<(), StoreError>;

    /// Takes an execution's ticket away; whoever has claimed it keeps the lease. Returns false where there is none.
    async fn dequeue(&self, id: ExecutionId) -> Result<bool, StoreError>;

    /// Claims tickets that are due and takes the leases on their executions. Returns those, first those that are to be
    /// advanced first; empty where there is nothing to do. Each ticket goes to one worker only.
    ///
    /// Costs what is claimed, whatever else is in the store.
    async fn claim(&self, claim: &Claim) -> Result<Vec<Claimed>, StoreError>;

    /// Settles a claim and gives its lease back, in one atomic step.
    ///
    /// # Errors
    /// [`Conflict::Fenced`](super::Conflict::Fenced) where the lease has passed to somebody else; nothing was changed.
    async fn settle(&self, lease: &Lease, settlement: Settlement) -> Result<(), StoreError>;

    /// Returns when a ticket may have become due, or a moment later than that; after `at_most` in any case.
    async fn wait_for_work(&self, at_most: Duration) -> Result<(), StoreError>;

    /// Sets a limit, in the place of the one that the queue or the workflow may have.
    async fn set_limit(&self, limit: Limit) -> Result<(), StoreError>;

    /// Lifts the limit of the queue or the workflow that `limit` names, whatever it is. Returns false where there is none.
    async fn lift_limit(&self, limit: &Limit) -> Result<bool, StoreError>;

    /// Returns all limits, in the order of their names.
    async fn limits(&self) -> Result<Vec<Limit>, StoreError>;

    /// Returns how many tickets stand how, by queue, in the order of the names.
    async fn depths(&self) -> Result<Vec<QueueDepth>, StoreError>;

    /// Notes that a worker lives, and what it does.
    async fn report(&self, worker: &WorkerReport) -> Result<(), StoreError>;

    /// Forgets a worker that has ended.
    async fn retire(&self, worker: Uuid) -> Result<(), StoreError>;

    /// Returns the workers that have not retired, newest first. One that died stays until somebody retires it.
    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError>;

    /// Returns the leases whose time is up and that nobody has taken or given back, those that ran out first at the front.
    async fn stale_leases(&self) -> Result<Vec<StaleLease>, StoreError>;
}
