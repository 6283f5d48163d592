//! Handing executions out to workers: the [`Queue`] trait, and the records it speaks of.
//!
//! A *ticket* says that an execution is to be advanced by some worker: from when on, how urgently, and by whom it can be.
//! It stays until the execution ends, or somebody takes it back. A worker that *claims* a ticket holds the execution's
//! lease; it *settles* the claim when it has gone as far as it can. One that dies settles nothing: its lease runs out, and
//! the ticket is claimed by another. All times are the store's own: nobody's clock decides who may work.
//!
//! What is promised: a ticket goes to one worker at a time; whoever had it before can write nothing more; a limit is never
//! exceeded; and nothing that is due is forgotten. What is not: that executions of equal priority *start* in the order in
//! which they became due where many workers claim at once; that one of a low priority ever gets its turn while there are
//! always some of a higher; that queues share workers evenly; and that a worker is woken at once.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{CheckpointRecord, Lease, NewCheckpoint, NewExecution, Store, StoreError};
use crate::execution::{ExecutionId, Unstorable};

/// The queue of a ticket that names none.
pub const QUEUE_DEFAULT: &str = "default";

/// How often a ticket is claimed in a row, without being settled and without any progress, before nobody claims it any
/// more: what it asks for ends the workers that try. Progress is two commits under a claim, as one may only say who goes
/// on.
pub const CLAIMS_MAX: u32 = 5;

/// After how long of silence a worker is taken for lost. Workers report every ten seconds.
pub const WORKER_LOST_AFTER: Duration = Duration::from_secs(30);

/// After how long of silence a worker is forgotten.
pub const WORKER_FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Largest name of a queue, of something that a worker must be able to do, or of a limited workflow, in bytes.
pub const QUEUE_NAME_BYTES_MAX: usize = 255;

/// How much a ticket can require.
pub const REQUIRES_MAX: usize = 64;

/// The longest delay, period or time to live: longer ones end then. A hundred years.
pub const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

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

impl Ticket {
    /// Refuses a ticket whose names a store could not keep.
    pub(super) fn checked(&self) -> Result<(), StoreError> {
        check_name("ticket.queue", &self.queue)?;
        if self.requires.len() > REQUIRES_MAX {
            let why = format!("it names {} things, and {REQUIRES_MAX} are the most", self.requires.len());
            return Err(Unstorable { path: "ticket.requires".to_owned(), why }.into());
        }
        self.requires.iter().try_for_each(|name| check_name("ticket.requires", name))
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
    /// It waits for somebody. A commit whose cause is [`Cause::Approve`](super::Cause::Approve) or
    /// [`Cause::Cancel`](super::Cause::Cancel) makes it due, and one that waits for its time too. One without a fence that
    /// comes before this, while the ticket is claimed, has it due after this: whoever settles may not have seen it.
    Held,
}

/// A limit on what is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "limit")]
pub enum Limit {
    /// At most so many executions of a queue are claimed at the same time. With 0 the queue stands still.
    ///
    /// A claim counts until it is settled or its ticket taken away, or a claim finds that its lease has run out.
    Running {
        /// The queue.
        queue: String,
        /// How many.
        most: u32,
    },
    /// At most so many executions of a workflow are claimed in a period whose lease nobody had ever held when they were
    /// enqueued: a bucket that is full at first, holds so many, and fills at that rate. With 0 none begins.
    Starts {
        /// The workflow's name.
        workflow: String,
        /// How many.
        most: u32,
        /// The period.
        per: Duration,
    },
}

impl Limit {
    /// Refuses a limit that a store could not keep, or that limits nothing.
    pub(super) fn checked(&self) -> Result<(), StoreError> {
        match self {
            Self::Running { queue, .. } => check_name("limit.queue", queue),
            Self::Starts { per, .. } if per.is_zero() => {
                let why = "a period takes time".to_owned();
                Err(Unstorable { path: "limit.per".to_owned(), why }.into())
            }
            Self::Starts { workflow, .. } => check_name("limit.workflow", workflow),
        }
    }
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

impl WorkerReport {
    /// Refuses a report that a store could not keep.
    pub(super) fn checked(&self) -> Result<(), StoreError> {
        check_name("worker.name", &self.name)?;
        check_name("worker.version", &self.version)?;
        self.queues.iter().try_for_each(|queue| check_name("worker.queues", queue))
    }
}

fn check_name(path: &str, name: &str) -> Result<(), StoreError> {
    let why = match name.len() {
        0 => "a name has at least one character".to_owned(),
        1..=QUEUE_NAME_BYTES_MAX if name.contains('\0') => "a name has no NUL".to_owned(),
        1..=QUEUE_NAME_BYTES_MAX => return Ok(()),
        bytes => format!("a name has at most {QUEUE_NAME_BYTES_MAX} bytes, and this one {bytes}"),
    };
    Err(Unstorable { path: path.to_owned(), why }.into())
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
    /// How it stands, by the store's time.
    pub stands: WorkerStand,
}

/// How a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerStand {
    /// It says that it lives.
    Alive,
    /// It has said nothing for [`WORKER_LOST_AFTER`]: it died, is stopped, or does not reach the store. Others go on with
    /// what it had when its leases run out.
    Lost,
}

/// How a ticket stands, as the next claim would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TicketStand {
    /// A worker could claim it now, limits aside.
    Due,
    /// It is due later.
    Delayed,
    /// It waits for somebody.
    Held,
    /// A worker has claimed it.
    Claimed,
    /// Nobody claims it any more ([`CLAIMS_MAX`]).
    Stuck,
}

/// What a store knows of a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TicketRecord {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The name of the queue that it waits in.
    pub queue: String,
    /// How urgent it is.
    pub priority: i32,
    /// How it stands.
    pub stands: TicketStand,
    /// When it is due, where that is later.
    pub due_at: Option<DateTime<Utc>>,
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
    /// `key` deduplicates: as long as there is an execution that was submitted with it, there will be no other. It may be any
    /// text. An export leaves it behind.
    ///
    /// # Errors
    /// Those of [`create`](Store::create), and [`StoreError::Unstorable`] for names in the ticket that are empty, longer
    /// than [`QUEUE_NAME_BYTES_MAX`] or have a NUL. Nothing was created then.
    async fn submit(
        &self,
        new: NewExecution,
        first: NewCheckpoint,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submitted, StoreError>;

    /// Gives an execution a ticket, in the place of the one that it may have: an execution never has two. One that is
    /// claimed stays so, and is due again under the new ticket when its claim is settled, whatever the settlement.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`]; [`StoreError::Unstorable`] as in [`submit`](Self::submit).
    async fn enqueue(&self, id: ExecutionId, ticket: Ticket) -> Result<(), StoreError>;

    /// Takes an execution's ticket away; whoever has claimed it keeps the lease, and counts for no limit any more. Returns
    /// false where there is none.
    async fn dequeue(&self, id: ExecutionId) -> Result<bool, StoreError>;

    /// Claims tickets that are due and takes the leases on their executions. Returns those, first those that are to be
    /// advanced first; empty where there is nothing to do. Each ticket goes to one worker only.
    ///
    /// A claim whose lease has run out, or passed to somebody else, is over when this finds it: the ticket is due again, or
    /// stuck, and the lease is taken from whoever held it, who can write and renew no more. An execution that somebody
    /// advances without a claim is left alone for so long.
    ///
    /// What a call claims whose answer is lost is claimed again when the leases run out.
    ///
    /// Costs what is claimed, and a little for each different queue, workflow and set of requirements that has something
    /// due; however much waits, is held back by a limit or has ended.
    async fn claim(&self, claim: &Claim) -> Result<Vec<Claimed>, StoreError>;

    /// Settles a claim and gives its lease back, in one atomic step. Doing it again changes nothing. Where the ticket has been
    /// taken away, it gives the lease back.
    ///
    /// # Errors
    /// [`Conflict::Fenced`](super::Conflict::Fenced) where the lease has passed to somebody else; nothing was changed.
    /// [`StoreError::NoExecution`].
    async fn settle(&self, lease: &Lease, settlement: Settlement) -> Result<(), StoreError>;

    /// Returns when there may be something to claim that the worker's last [`claim`](Self::claim) did not find, or a moment
    /// later than that; after `at_most` in any case. At once where it has not claimed yet, or got as many as it asked for.
    ///
    /// It may return for nothing: whoever waits claims, and waits again. What becomes due in a way that nobody announces,
    /// such as by the death of a process that advanced an execution without a claim, is found by claiming all the same:
    /// keep `at_most` short.
    async fn wait_for_work(&self, claim: &Claim, at_most: Duration) -> Result<(), StoreError>;

    /// Sets a limit, in the place of the one that the queue or the workflow may have. What is claimed already stays claimed.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] for a name as in [`submit`](Self::submit), and for a period of nothing.
    async fn set_limit(&self, limit: Limit) -> Result<(), StoreError>;

    /// Lifts the limit of the queue or the workflow that `limit` names, whatever it is. Returns false where there is none.
    async fn lift_limit(&self, limit: &Limit) -> Result<bool, StoreError>;

    /// Returns all limits: those on queues, then those on workflows, each in the order of their names.
    async fn limits(&self) -> Result<Vec<Limit>, StoreError>;

    /// Returns the tickets of these executions, in the order of their ids. Those that have none are left out. Costs these.
    async fn tickets(&self, of: &[ExecutionId]) -> Result<Vec<TicketRecord>, StoreError>;

    /// Returns how many tickets stand how, by queue, in the order of the names. Costs the tickets.
    async fn depths(&self) -> Result<Vec<QueueDepth>, StoreError>;

    /// Notes that a worker lives, and what it does. Removes what is known of those that are forgotten.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] for its name, its version and its queues as in [`submit`](Self::submit).
    async fn report(&self, worker: &WorkerReport) -> Result<(), StoreError>;

    /// Forgets a worker that has ended. One that is not known is none.
    async fn retire(&self, worker: Uuid) -> Result<(), StoreError>;

    /// Returns the workers that have not retired, newest first. One that died stands as lost, until somebody retires it or
    /// [`WORKER_FORGOTTEN_AFTER`] has passed.
    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError>;

    /// Returns the leases whose time is up and that nobody has taken or given back, those that ran out first at the front.
    async fn stale_leases(&self) -> Result<Vec<StaleLease>, StoreError>;
}
