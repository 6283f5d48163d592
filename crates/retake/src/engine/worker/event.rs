//! What a worker tells whoever watches it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::execution::ExecutionId;
use crate::store::Seq;

/// One thing that happened to a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerEvent {
    /// It takes on work.
    Ready {
        /// Its id.
        worker: Uuid,
        /// Who it is.
        name: String,
        /// The queues that it serves. Empty for all.
        queues: Vec<String>,
        /// How many executions it advances at the same time.
        concurrency: usize,
    },
    /// It has begun to advance an execution.
    Taken {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// The queue that it was in.
        queue: String,
        /// The newest point.
        head: Seq,
        /// Which try this is since the last that came to an end: from 2 where workers died of it.
        claims: u32,
    },
    /// An execution has ended, or somebody stopped it.
    Finished {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// How it stands: `completed`, `failed`, `cancelled` or `paused`.
        status: &'static str,
        /// The newest point.
        head: Seq,
        /// Nodes that ran to an end this time.
        nodes_run: usize,
        /// Nodes whose results were there already.
        nodes_reused: usize,
        /// US dollars spent this time, as a decimal; `None` where not known or where nothing was bought.
        cost_usd: Option<String>,
        /// Why it failed.
        error: Option<String>,
    },
    /// Nothing is left but waiting: the execution was given back until then.
    Parked {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// The newest point.
        head: Seq,
        /// Until when.
        until: DateTime<Utc>,
    },
    /// The execution waits for somebody.
    Held {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// What for.
        why: String,
    },
    /// The execution was given back for others to go on with at once.
    HandedOver {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// The newest point.
        head: Seq,
    },
    /// The execution was left to others, as this worker cannot advance it.
    Left {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// Why.
        why: String,
    },
    /// The execution could not be advanced further; where it stands, it can be gone on with.
    Lost {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
        /// Why.
        why: String,
    },
    /// What keeps it from ending as nothing is left: executions are due in a queue, and neither it nor, at the moment,
    /// anybody else gets them, for a limit or for what they need. Told once for each queue.
    HeldBack {
        /// The queue.
        queue: String,
        /// How many are due.
        due: u64,
        /// How many of the queue may be advanced at the same time, where that is limited.
        limit: Option<u32>,
    },
    /// The worker has ended, and could not hand the execution over: others go on with it, from its last checkpoint, when its
    /// lease has run out. What its nodes did since runs again.
    Abandoned {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name; its id where the store did not say.
        name: String,
    },
    /// The store does not answer. It is asked again until it does.
    StoreLost {
        /// What it said.
        why: String,
    },
    /// The store answers again.
    StoreBack,
    /// It takes on nothing more, and is about to end.
    Draining {
        /// How many executions it still advances.
        running: usize,
    },
}

impl WorkerEvent {
    /// Tells the log: names, numbers and kinds, and not why, which may quote a value. How an execution ended, and that the
    /// store does not answer, is told where more is known of it.
    pub(super) fn log(&self) {
        let of = |execution: &ExecutionId, name: &str, what: &'static str| {
            tracing::info!(parent: None, retake.execution.id = %execution, retake.execution.name = name, "{what}");
        };
        match self {
            Self::Ready { worker, name, queues, concurrency } => tracing::info!(
                parent: None,
                retake.worker.id = %worker,
                retake.worker.name = name,
                retake.worker.queues = queues.join(","),
                retake.worker.concurrency = concurrency,
                "the worker takes executions"
            ),
            Self::Taken { execution, name, queue, head, claims } => tracing::info!(
                parent: None,
                retake.execution.id = %execution,
                retake.execution.name = name,
                retake.execution.head = head,
                retake.queue.name = queue,
                retake.ticket.claims = claims,
                "an execution was taken"
            ),
            Self::Parked { execution, name, .. } => of(execution, name, "an execution waits for its time"),
            Self::Held { execution, name, .. } => of(execution, name, "an execution waits for somebody"),
            Self::HandedOver { execution, name, .. } => of(execution, name, "an execution was handed over"),
            Self::Left { execution, name, .. } => of(execution, name, "an execution was left to others"),
            Self::Lost { execution, name, .. } => of(execution, name, "an execution was lost"),
            Self::HeldBack { queue, due, .. } => tracing::info!(
                parent: None,
                retake.queue.name = queue,
                retake.queue.depth = due,
                "what is due in a queue is held back"
            ),
            Self::Abandoned { execution, name } => {
                of(execution, name, "an execution could not be handed over")
            }
            Self::StoreBack => tracing::info!(parent: None, "the store answers again"),
            Self::Draining { running } => tracing::info!(
                parent: None,
                retake.worker.running = running,
                "the worker takes nothing more, and is about to end"
            ),
            Self::Finished { .. } | Self::StoreLost { .. } => {}
        }
    }
}
