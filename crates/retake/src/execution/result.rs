//! What one node gave: its result, its cost, and what it looked at.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cost::finite_sum;
use crate::clock::{self, Clock};

/// What became of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ExecutionResult {
    /// It has started, or waits for somebody, and has not finished.
    Pending,
    /// It finished with this output.
    Success(Value),
    /// It failed with this message.
    Failure(String),
    /// It was not wanted: its condition was false, or what it depends on was skipped.
    Skipped,
}

impl ExecutionResult {
    /// Tells whether the node is done with: it succeeded or was skipped, and resume passes over it.
    pub fn is_completed(&self) -> bool {
        matches!(self, Self::Success(_) | Self::Skipped)
    }
}

/// The record of one node of an execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeExecutionResult {
    /// When its first attempt started.
    pub started_at: DateTime<Utc>,
    /// When it finished.
    pub completed_at: Option<DateTime<Utc>>,
    /// What became of it.
    pub result: ExecutionResult,
    /// Attempts after the first, the one that is due included.
    #[serde(default)]
    pub retry_count: u32,
    /// Time, tokens and money.
    #[serde(default)]
    pub metrics: Option<NodeMetrics>,
    /// Every variable, input and output it looked at, with the value's hash, in the order of first looks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<Read>,
    /// The key under which its effect is known outside: the same for every attempt, another for a deliberate re-run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Why it ran again, or stood again, where an earlier result had been taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// What it wrote, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writes: Vec<Write>,
    /// The turn of the execution ([`Ledger::turn`](super::Ledger::turn)) whose state it saw.
    #[serde(default)]
    pub began: u64,
    /// The turn in which its result was recorded and its writes were applied.
    #[serde(default)]
    pub ended: u64,
    /// Until when it rests: until its wait ends, or the attempt after one that failed is due. It is not in flight as long
    /// as this is said. `None` for a node that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<DateTime<Utc>>,
}

/// One change of a variable that a node made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Write {
    /// The variable.
    pub variable: String,
    /// The change.
    pub op: WriteOp,
}

/// How a variable changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum WriteOp {
    /// It became this value.
    Set(Value),
    /// It became the node's output.
    Output,
    /// It became this field of the node's output.
    Field(String),
    /// This was added at its end.
    Append(Value),
    /// It went.
    Remove,
}

/// One thing that a node looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Read {
    /// What it looked at.
    pub subject: Subject,
    /// The hash of the value it saw (32 hexadecimal digits), or `None` where there was no value.
    pub hash: Option<String>,
}

/// What a node can look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// An input of the execution.
    Input(String),
    /// A variable.
    Variable(String),
    /// What a node gave: its output, or what became of it.
    Node(String),
    /// A secret: only its name is ever recorded.
    Secret(String),
}

/// What a node cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeMetrics {
    /// Milliseconds from start to finish.
    pub duration_ms: Option<u64>,
    /// Tokens that a model took and gave.
    #[serde(default)]
    pub token_usage: Option<TokenUsage>,
    /// US dollars, or `None` where the price is not known.
    #[serde(default)]
    pub cost_usd: Option<f64>,
    /// Calls made to outside services.
    #[serde(default)]
    pub api_calls: u32,
    /// Bytes sent and received.
    #[serde(default)]
    pub bytes_transferred: u64,
    /// Bytes of memory, if measured.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Whatever else a node kind measures.
    #[serde(default)]
    pub custom: BTreeMap<String, Value>,
}

/// Tokens that a model took and gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenUsage {
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Both together.
    pub total_tokens: u32,
    /// Tokens of the prompt that were cached.
    #[serde(default)]
    pub cached_tokens: Option<u32>,
}

impl NodeMetrics {
    /// Returns what this and a later attempt at the same node cost together. One unknown price makes the sum unknown.
    pub fn followed_by(self, later: Self) -> Self {
        let cost_usd = match (&self.token_usage, &later.token_usage) {
            (None, _) => later.cost_usd.or(self.cost_usd),
            (Some(_), None) => self.cost_usd,
            (Some(_), Some(_)) => {
                self.cost_usd.zip(later.cost_usd).map(|(one, other)| finite_sum(one, other))
            }
        };
        let token_usage = match (self.token_usage, later.token_usage) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        };
        let mut custom = self.custom;
        custom.extend(later.custom);
        Self {
            duration_ms: later.duration_ms.or(self.duration_ms),
            token_usage,
            cost_usd,
            api_calls: self.api_calls.saturating_add(later.api_calls),
            bytes_transferred: self.bytes_transferred.saturating_add(later.bytes_transferred),
            memory_bytes: self.memory_bytes.max(later.memory_bytes),
            custom,
        }
    }
}

impl TokenUsage {
    /// Returns both together, or `u32::MAX` where the sum is larger.
    pub fn plus(self, other: Self) -> Self {
        let cached_tokens = match (self.cached_tokens, other.cached_tokens) {
            (None, None) => None,
            (one, other) => Some(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
        };
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
            cached_tokens,
        }
    }

    /// Returns a usage whose total is the sum (or `u32::MAX`, where the sum is larger).
    pub fn new(input_tokens: u32, output_tokens: u32) -> Self {
        let total_tokens = input_tokens.saturating_add(output_tokens);
        Self { input_tokens, output_tokens, total_tokens, cached_tokens: None }
    }
}

impl NodeExecutionResult {
    /// Returns the record of a node that starts now.
    pub fn new() -> Self {
        Self::started(clock::system().now())
    }

    /// Returns the record of a node that started at `started_at`.
    pub fn started(started_at: DateTime<Utc>) -> Self {
        Self {
            started_at,
            completed_at: None,
            result: ExecutionResult::Pending,
            retry_count: 0,
            metrics: None,
            reads: Vec::new(),
            idempotency_key: None,
            because: None,
            writes: Vec::new(),
            began: 0,
            ended: 0,
            due_at: None,
        }
    }

    /// Finishes now, and fills in the duration.
    pub fn complete(self, result: ExecutionResult) -> Self {
        self.completed(result, clock::system().now())
    }

    /// Finishes at `completed_at`, and fills in the duration (0 where the clock stepped back).
    pub fn completed(mut self, result: ExecutionResult, completed_at: DateTime<Utc>) -> Self {
        let elapsed_ms = u64::try_from((completed_at - self.started_at).num_milliseconds()).unwrap_or(0);
        self.metrics.get_or_insert_default().duration_ms = Some(elapsed_ms);
        self.completed_at = Some(completed_at);
        self.due_at = None;
        self.result = result;
        self
    }

    /// Replaces the metrics.
    pub fn with_metrics(mut self, metrics: NodeMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Sets the tokens, keeping the other metrics.
    pub fn with_token_usage(mut self, usage: TokenUsage) -> Self {
        self.metrics.get_or_insert_default().token_usage = Some(usage);
        self
    }

    /// Returns the output of a node that succeeded.
    pub fn output(&self) -> Option<&Value> {
        match &self.result {
            ExecutionResult::Success(output) => Some(output),
            ExecutionResult::Pending | ExecutionResult::Failure(_) | ExecutionResult::Skipped => None,
        }
    }
}

impl Default for NodeExecutionResult {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn completing_a_node_fills_in_its_duration_and_keeps_its_other_metrics() {
        let start = DateTime::from_timestamp(1_000, 0).unwrap();
        let end = DateTime::from_timestamp(1_001, 500_000_000).unwrap();
        let node = NodeExecutionResult::started(start)
            .with_token_usage(TokenUsage::new(3, 4))
            .completed(ExecutionResult::Success(json!("ok")), end);
        let metrics = node.metrics.clone().unwrap();
        assert_eq!(metrics.duration_ms, Some(1_500));
        assert_eq!(metrics.token_usage.unwrap().total_tokens, 7);
        assert_eq!(node.output(), Some(&json!("ok")));
    }

    #[test]
    fn a_clock_that_steps_back_gives_a_duration_of_zero() {
        let start = DateTime::from_timestamp(1_000, 0).unwrap();
        let node = NodeExecutionResult::started(start)
            .completed(ExecutionResult::Skipped, DateTime::from_timestamp(900, 0).unwrap());
        assert_eq!(node.metrics.unwrap().duration_ms, Some(0));
    }

    #[test]
    fn attempts_add_up_and_one_unknown_price_makes_the_sum_unknown() {
        let bought = |cost_usd| NodeMetrics {
            cost_usd,
            token_usage: Some(TokenUsage::new(3, 4)),
            api_calls: 1,
            ..NodeMetrics::default()
        };
        let nothing = NodeMetrics { api_calls: 1, ..NodeMetrics::default() };
        let both = bought(Some(0.25)).followed_by(bought(Some(0.5)));
        assert_eq!((both.cost_usd, both.api_calls), (Some(0.75), 2));
        assert_eq!(both.token_usage.map(|usage| usage.total_tokens), Some(14));
        assert_eq!(bought(Some(0.25)).followed_by(bought(None)).cost_usd, None);
        assert_eq!(bought(Some(0.25)).followed_by(nothing.clone()).cost_usd, Some(0.25));
        assert_eq!(nothing.followed_by(bought(Some(0.25))).cost_usd, Some(0.25));
    }

    #[test]
    fn tokens_do_not_overflow() {
        assert_eq!(TokenUsage::new(u32::MAX, 1).total_tokens, u32::MAX);
    }
}
