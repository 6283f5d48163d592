//! What an engine tells of its work as spans, events and measurements: names, numbers and kinds, and never a value, a
//! prompt, an output, or the text of a failure, which may quote any of them. Events that say no more than a span does are
//! for the log alone, and belong to none.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Span, field};

use super::context::{Action, Task};
use super::{EngineError, NodeError, Outcome, standing};
use crate::execution::{ExecutionId, ExecutionResult, ExecutionState, NodeExecutionResult};
use crate::store::Seq;
use crate::telemetry::{
    EXECUTIONS, EXECUTIONS_ACTIVE, NODE_DURATION, NODE_RETRIES, NODES, NODES_ACTIVE, Raised, TOKENS,
};
use crate::workflow::{NodeKind, Workflow};

/// Knows the trace that the work at hand belongs to, so that what it calls can join it.
pub trait TraceContext: Send + Sync + Debug {
    /// Returns the current span as a `traceparent` of the W3C's Trace Context, or `None` where there is none.
    fn traceparent(&self) -> Option<String>;
}

/// Returns the span of one run of an execution: from its start, or from where it is resumed, to where it stops.
pub(super) fn execution(kind: RunKind, id: ExecutionId, workflow: &str) -> Span {
    tracing::info_span!(
        "execution",
        // A name that comes later would not be taken.
        otel.name = format!("execution {workflow}"),
        retake.execution.id = %id,
        retake.execution.name = field::Empty,
        retake.execution.resumed = (kind == RunKind::Resumed),
        retake.execution.status = field::Empty,
        retake.execution.head = field::Empty,
        retake.execution.nodes_run = field::Empty,
        retake.execution.nodes_reused = field::Empty,
        retake.workflow.name = workflow,
        retake.workflow.id = field::Empty,
        error.r#type = field::Empty,
        otel.status_code = field::Empty,
    )
}

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    Started,
    Resumed,
}

/// Notes what the execution that a span is about is called, and which definition it runs.
pub(super) fn identify(span: &Span, name: &str, workflow: &Workflow) {
    if span.is_disabled() {
        return;
    }
    span.record("retake.execution.name", name);
    span.record("retake.workflow.id", field::display(workflow.id()));
}

/// Tells the log that a run begins, of an execution that is at this point.
pub(super) fn begins(id: ExecutionId, name: &str, head: Seq) {
    tracing::info!(
        parent: None,
        retake.execution.id = %id,
        retake.execution.name = name,
        retake.execution.head = head,
        "an execution begins or goes on"
    );
}

/// A run that is being driven.
#[derive(Debug)]
pub(super) struct Driven {
    span: Span,
    id: ExecutionId,
    name: Arc<str>,
    _active: Raised<0>,
}

impl Driven {
    pub(super) fn new(span: Span, id: ExecutionId, name: &Arc<str>) -> Self {
        Self { span, id, name: Arc::clone(name), _active: Raised::new(&EXECUTIONS_ACTIVE, []) }
    }

    /// Tells the log how it ended; the span says the same to a collector.
    fn tell_log(&self, outcome: &Result<Outcome, EngineError>) {
        match outcome {
            Ok(Outcome { state, head, nodes_run, nodes_reused, .. }) => tracing::info!(
                parent: None,
                retake.execution.id = %self.id,
                retake.execution.name = &*self.name,
                retake.execution.status = state.name(),
                retake.execution.head = head,
                retake.execution.nodes_run = nodes_run,
                retake.execution.nodes_reused = nodes_reused,
                "an execution stands still"
            ),
            Err(error) => tracing::warn!(
                parent: None,
                retake.execution.id = %self.id,
                retake.execution.name = &*self.name,
                error.r#type = class(error),
                "an execution could not go on"
            ),
        }
    }

    /// Tells how it ended.
    pub(super) fn ended(self, outcome: &Result<Outcome, EngineError>) {
        self.tell_log(outcome);
        let status = match outcome {
            Ok(outcome) => {
                self.span.record("retake.execution.head", outcome.head);
                self.span.record("retake.execution.nodes_run", outcome.nodes_run);
                self.span.record("retake.execution.nodes_reused", outcome.nodes_reused);
                if let ExecutionState::Failed(_) = outcome.state {
                    let class = if outcome.uncompensated.is_some() { "compensation" } else { "node" };
                    failed(&self.span, class);
                }
                outcome.state.name()
            }
            Err(error) => {
                failed(&self.span, class(error));
                "error"
            }
        };
        self.span.record("retake.execution.status", status);
        EXECUTIONS.add(1, [("retake.execution.status", status.into())]);
    }
}

/// Tells that a run could not begin.
pub(super) fn refused(span: &Span, error: &EngineError) {
    failed(span, class(error));
}

fn failed(span: &Span, class: &str) {
    span.record("error.type", class);
    span.record("otel.status_code", "ERROR");
}

fn class(error: &EngineError) -> &'static str {
    if let EngineError::Store(error) = error { error.class() } else { "refused" }
}

/// The span of a node, or of the counter-action against its effect, with all its attempts.
#[derive(Debug)]
pub(super) struct NodeSpan {
    span: Span,
    kind: &'static str,
    action: &'static str,
    _active: Raised<1>,
}

impl NodeSpan {
    pub(super) fn new(task: &Task) -> Self {
        let node = task.workflow.graph().name(task.node);
        let kind = task.kind().name();
        let action = match task.action {
            Action::Work => "work",
            Action::Compensation { .. } => "compensation",
        };
        let span = tracing::info_span!(
            "node",
            otel.name = format!("node {node}"),
            retake.execution.id = %task.state.execution_id,
            retake.node.id = node,
            retake.node.kind = kind,
            retake.node.action = action,
            retake.node.attempts = field::Empty,
            retake.node.status = field::Empty,
            error.r#type = field::Empty,
            otel.status_code = field::Empty,
            gen_ai.operation.name = field::Empty,
            gen_ai.provider.name = field::Empty,
            gen_ai.response.model = field::Empty,
            gen_ai.usage.input_tokens = field::Empty,
            gen_ai.usage.output_tokens = field::Empty,
        );
        Self { span, kind, action, _active: Raised::new(&NODES_ACTIVE, [("retake.node.kind", kind.into())]) }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Tells how the node ended. `class` says how its last attempt failed, if it did.
    pub(super) fn ended(self, result: &NodeExecutionResult, class: Option<&'static str>, ran: Duration) {
        let status = standing(Some(&result.result)).0;
        self.span.record("retake.node.attempts", result.retry_count + 1);
        self.span.record("retake.node.status", status);
        if let ExecutionResult::Failure(_) = result.result {
            // An attempt that gave what cannot be stored did not fail by itself.
            failed(&self.span, class.unwrap_or("unstorable"));
        }
        NODE_DURATION.record(
            ran.as_secs_f64(),
            [
                ("retake.node.action", self.action.into()),
                ("retake.node.kind", self.kind.into()),
                ("retake.node.status", status.into()),
            ],
        );
        if self.kind == "llm" {
            self.asked(result);
        }
    }

    /// Tells what a language model took.
    fn asked(&self, result: &NodeExecutionResult) {
        let Some(metrics) = &result.metrics else { return };
        let Some(usage) = &metrics.token_usage else { return };
        // As the server said it, with what is secret masked.
        let model = metrics.custom.get("model").and_then(|model| model.as_str()).unwrap_or_default();
        self.span.record("gen_ai.operation.name", "chat");
        self.span.record("gen_ai.provider.name", "openai");
        self.span.record("gen_ai.response.model", model);
        self.span.record("gen_ai.usage.input_tokens", usage.input_tokens);
        self.span.record("gen_ai.usage.output_tokens", usage.output_tokens);
        for (direction, tokens) in [("input", usage.input_tokens), ("output", usage.output_tokens)] {
            TOKENS.record(
                tokens as f64,
                [
                    ("gen_ai.operation.name", "chat".into()),
                    ("gen_ai.provider.name", "openai".into()),
                    ("gen_ai.response.model", model.to_owned().into()),
                    ("gen_ai.token.type", direction.into()),
                ],
            );
        }
    }
}

/// Counts a node whose end was recorded.
pub(super) fn recorded(kind: &NodeKind, result: &ExecutionResult) {
    let status = standing(Some(result)).0;
    NODES.add(1, [("retake.node.kind", kind.name().into()), ("retake.node.status", status.into())]);
}

/// Tells that another attempt follows.
pub(super) fn retry(task: &Task, attempt: u32, error: &NodeError, delay: Duration) {
    let class = error.class();
    tracing::info!(
        retake.node.attempt = attempt,
        error.r#type = class,
        retake.node.delay = delay.as_secs_f64(),
        "an attempt failed, and another follows"
    );
    NODE_RETRIES.add(1, [("error.type", class.into()), ("retake.node.kind", task.kind().name().into())]);
}
