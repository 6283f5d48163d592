//! Runs one node: its attempts, its waits between them, its time limit.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use serde_json::{Map, Value};
use tracing::Instrument;

use super::context::{Action, NodeContext, Notes, Task};
use super::event::Event;
use super::handler::Failure;
use super::held::Hold;
use super::trace::{self, NodeSpan};
use super::{Handler, NodeError};
use crate::clock::Clock;
use crate::execution::{
    ExecutionResult, NodeExecutionResult, NodeMetrics, Unstorable, Write, WriteOp, check_value, dismantle,
};
use crate::store::StoreError;
use crate::workflow::{NodeKind, Retry, Template, Wait, Workflow, parse_duration};

/// How an attempt at a node ended.
#[derive(Debug)]
pub(super) enum Attempted {
    /// The node has ended.
    Ended(Box<Ended>),
    /// It failed, and another attempt follows.
    Again(Box<BackOff>),
    /// It did not begin: nobody knows whether the lease holds, or somebody else has it.
    Lost(StoreError),
}

/// A node that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) node: usize,
    pub(super) result: NodeExecutionResult,
    /// How long it ran, by a clock that never steps back.
    pub(super) ran: Duration,
    /// What the last attempt cost.
    pub(super) paid: Option<NodeMetrics>,
}

/// A node that rests between two attempts.
#[derive(Debug)]
pub(super) struct BackOff {
    /// The next attempt.
    pub(super) start: Start,
    pub(super) delay: Duration,
    /// Why the last one failed.
    pub(super) error: String,
    /// What the last one cost.
    pub(super) paid: NodeMetrics,
}

/// An attempt at a node that is about to begin.
pub(super) struct Start {
    pub(super) task: Task,
    /// `None` for the kinds that the engine does itself.
    pub(super) handler: Option<Arc<dyn Handler>>,
    /// When the node first started: before a crash, where it is marked so.
    pub(super) started_at: DateTime<Utc>,
    /// What its condition read.
    pub(super) notes: Notes,
    /// The number of the attempt, from 1.
    pub(super) attempt: u32,
    /// What earlier attempts cost together.
    pub(super) earlier: NodeMetrics,
    /// When the node began to run in this process, in elapsed time.
    pub(super) began: Duration,
    /// When its wait ends, where that is known already.
    pub(super) until: Option<DateTime<Utc>>,
    /// Whether the node has rested where nobody advanced its execution: then it took the time since it first started.
    pub(super) has_rested: bool,
    /// What is told of the node, with all its attempts.
    pub(super) span: NodeSpan,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start")
            .field("task", &self.task)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Says whether a node's condition holds, with what was read to tell.
pub(super) fn wanted(workflow: &Workflow, task: &Task) -> (Result<bool, String>, Notes) {
    let Some(condition) = &workflow.node(task.node).condition else { return (Ok(true), Notes::default()) };
    let ctx = NodeContext::new(task.clone(), 1, Notes::default());
    let holds = Template::condition(condition).and_then(|condition| condition.holds(&ctx.scope()));
    (holds.map_err(|error| format!("its condition: {error}")), ctx.take_notes())
}

/// Runs a counter-action to its end. Dropping the future ends the work.
pub(super) async fn run(start: Start, clock: Arc<dyn Clock>, hold: Option<Hold>) -> Attempted {
    let mut start = start;
    let mut paid = NodeMetrics::default();
    loop {
        match once(start, Arc::clone(&clock), hold.clone()).await {
            Attempted::Again(again) => {
                let BackOff { start: next, delay, error, paid: cost } = *again;
                paid = paid.followed_by(cost);
                let failed = next.attempt - 1;
                next.task.events.tell(|| retried(&next.task, failed, error, delay)).await;
                tokio::time::sleep(delay).await;
                start = next;
            }
            Attempted::Ended(ended) => {
                let paid = Some(paid.followed_by(ended.paid.clone().unwrap_or_default()));
                return Attempted::Ended(Box::new(Ended { paid, ..*ended }));
            }
            Attempted::Lost(error) => return Attempted::Lost(error),
        }
    }
}

/// Makes one attempt at a node under a lease, in the node's span. Dropping the future ends the work.
pub(super) fn once(
    start: Start,
    clock: Arc<dyn Clock>,
    hold: Option<Hold>,
) -> impl Future<Output = Attempted> + use<> {
    let within = start.span.span().clone();
    attempt(start, clock, hold).instrument(within)
}

async fn attempt(start: Start, clock: Arc<dyn Clock>, hold: Option<Hold>) -> Attempted {
    let node = start.task.workflow.node(start.task.node);
    let (attempt, started_at) = (start.attempt, start.started_at);
    start.task.events.tell(|| started(&start.task, attempt)).await;
    let ctx = NodeContext::new(start.task.clone(), attempt, start.notes.clone());
    // As late as can be: this process may have been stopped since the attempt was planned.
    if let Some(hold) = hold
        && let Err(error) = hold.confirm().await
    {
        return Attempted::Lost(error);
    }
    let work = async {
        match &start.handler {
            Some(handler) => handler.handle(ctx.clone()).await,
            None => by_the_engine(&ctx, &start, &*clock).await,
        }
    };
    let outcome = within(node.timeout, work).await;
    let Notes { writes, refused, reads, metrics: mut paid, .. } = ctx.take_notes();
    // A server may put anything into what it says of its answer.
    paid.custom.values_mut().for_each(|value| *value = start.task.masks.value(value.take()));
    if let Err(error) = &outcome
        && error.is_retryable()
        && attempt <= node.retry.max
    {
        let delay = wait_before(&node.retry, attempt, error);
        trace::retry(&start.task, attempt, error, delay);
        let error = start.task.masks.text(error.message().to_owned());
        // What failed attempts cost was spent all the same.
        let earlier = start.earlier.clone().followed_by(paid.clone());
        let start = Start { attempt: attempt + 1, earlier, ..start };
        return Attempted::Again(Box::new(BackOff { start, delay, error, paid }));
    }
    let Start { task, earlier, began, has_rested, span, .. } = start;
    let ran = clock.elapsed().saturating_sub(began);
    let class = outcome.as_ref().err().map(NodeError::class);
    let (outcome, writes) = settle(&task, outcome, writes, refused);
    let mut result = NodeExecutionResult::started(started_at).with_metrics(earlier.followed_by(paid.clone()));
    result.writes = writes;
    result.began = task.state.ledger.turn;
    result.reads = reads;
    result.retry_count = attempt - 1;
    result.idempotency_key = Some(task.idempotency_key.clone());
    let mut result = result.completed(outcome, clock.now());
    if let Some(metrics) = &mut result.metrics {
        if !has_rested {
            metrics.duration_ms = Some(u64::try_from(ran.as_millis()).unwrap_or(u64::MAX));
        }
        paid.duration_ms = metrics.duration_ms;
    }
    span.ended(&result, class, ran);
    Attempted::Ended(Box::new(Ended { node: task.node, result, ran, paid: Some(paid) }))
}

fn started(task: &Task, attempt: u32) -> Event {
    let node = task.workflow.graph().name(task.node).to_owned();
    match task.action {
        Action::Work => Event::NodeStarted { node, attempt },
        Action::Compensation { .. } => Event::CompensationStarted { node, attempt },
    }
}

/// Returns what is told of an attempt that failed, where another follows.
pub(super) fn retried(task: &Task, attempt: u32, error: String, delay: Duration) -> Event {
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    let node = task.workflow.graph().name(task.node).to_owned();
    match task.action {
        Action::Work => Event::NodeRetry { node, attempt, error, delay_ms },
        Action::Compensation { .. } => Event::CompensationRetry { node, attempt, error, delay_ms },
    }
}

/// Masks what the node gave, and makes sure that it can be stored: `refused` is what it noted that cannot.
fn settle(
    task: &Task,
    outcome: Result<Value, NodeError>,
    writes: Vec<Write>,
    refused: Option<Unstorable>,
) -> (ExecutionResult, Vec<Write>) {
    let failed = |why: String| (ExecutionResult::Failure(task.masks.text(why)), Vec::new());
    let output = match (outcome, refused) {
        (Err(error), _) => return failed(error.message().to_owned()),
        (Ok(output), Some(refused)) => {
            dismantle(output);
            return failed(refused.to_string());
        }
        (Ok(output), None) => output,
    };
    // Before anything else looks at it: what follows recurses.
    let name = task.workflow.graph().name(task.node);
    if let Err(error) = check_value(&format!("nodes.{name}.output"), &output) {
        dismantle(output);
        return failed(error.to_string());
    }
    let output = task.masks.value(output);
    let mut writes: Vec<Write> = writes.into_iter().map(|write| masked(task, write, &output)).collect();
    writes.extend(task.workflow.node(task.node).into.clone().map(into));
    (ExecutionResult::Success(output), writes)
}

/// Returns the write by which a node's output becomes a variable.
pub(super) fn into(variable: String) -> Write {
    Write { variable, op: WriteOp::Output }
}

/// Masks what a node wrote. What is in its output already is not kept a second time.
fn masked(task: &Task, write: Write, output: &Value) -> Write {
    let Write { variable, op } = write;
    let op = match op {
        WriteOp::Set(value) => match task.masks.value(value) {
            value if value == *output => WriteOp::Output,
            value if output.get(&variable) == Some(&value) => WriteOp::Field(variable.clone()),
            value => WriteOp::Set(value),
        },
        WriteOp::Append(value) => WriteOp::Append(task.masks.value(value)),
        op @ (WriteOp::Output | WriteOp::Field(_) | WriteOp::Remove) => op,
    };
    Write { variable, op }
}

/// Does the work, and ends it where it takes too long.
async fn within(
    timeout: Option<Duration>,
    work: impl Future<Output = Result<Value, NodeError>>,
) -> Result<Value, NodeError> {
    // A handler that panics fails its node; what it held is dropped with it.
    let work = AssertUnwindSafe(work).catch_unwind();
    let caught = match timeout {
        None => work.await,
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(caught) => caught,
            Err(_) => {
                let limit = humantime::format_duration(limit);
                let error = NodeError::new(format!("it took longer than its timeout of {limit}"));
                return Err(error.by(Failure::Timeout));
            }
        },
    };
    caught.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(NodeError::permanent(format!("its handler panicked: {message}")).by(Failure::Panic))
    })
}

async fn by_the_engine(ctx: &NodeContext, start: &Start, clock: &dyn Clock) -> Result<Value, NodeError> {
    match ctx.kind() {
        NodeKind::Set(variables) => {
            let mut output = Map::new();
            for (name, value) in variables {
                let value = ctx.evaluate_json(value)?;
                ctx.set_variable(name, value.clone());
                output.insert(name.clone(), value);
            }
            Ok(Value::Object(output))
        }
        NodeKind::Wait(wait) => {
            let until = match start.until {
                Some(until) => until,
                None => end_of_wait(ctx, wait, start.started_at)?,
            };
            let left = (until - clock.now()).to_std().unwrap_or(Duration::ZERO);
            tokio::time::sleep(left).await;
            Ok(Value::Null)
        }
        NodeKind::Run(_)
        | NodeKind::Http(_)
        | NodeKind::Llm(_)
        | NodeKind::Approval(_)
        | NodeKind::Call(_) => {
            unreachable!("a run starts only where these have a handler, and approvals are decided by people")
        }
    }
}

/// Returns when a wait ends that began at a moment.
pub(super) fn end_of_wait(
    ctx: &NodeContext,
    wait: &Wait,
    started_at: DateTime<Utc>,
) -> Result<DateTime<Utc>, NodeError> {
    match wait {
        Wait::For(text) => {
            let text = ctx.evaluate_text(text)?;
            let duration = parse_duration(&text).map_err(|error| NodeError::permanent(error.to_string()))?;
            TimeDelta::from_std(duration)
                .ok()
                .and_then(|duration| started_at.checked_add_signed(duration))
                .ok_or_else(|| NodeError::permanent(format!("`{text}` is too long a wait")))
        }
        Wait::Until(text) => {
            let text = ctx.evaluate_text(text)?;
            let until = DateTime::parse_from_rfc3339(&text).map_err(|error| {
                NodeError::permanent(format!(
                    "`{text}` is not a moment such as 2026-01-31T12:00:00Z: {error}"
                ))
            })?;
            Ok(until.with_timezone(&Utc))
        }
    }
}

/// Returns the wait before the retry after `attempt`: what the definition says, and at least what the failure asks for.
fn wait_before(retry: &Retry, attempt: u32, error: &NodeError) -> Duration {
    let delay = retry.delay(attempt);
    let delay = if retry.jitter { delay.mul_f64(0.5 + fastrand::f64() / 2.0) } else { delay };
    delay.max(error.wait().unwrap_or(Duration::ZERO))
}
