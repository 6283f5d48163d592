//! Runs workflows: plans, runs, records, resumes and goes back.

mod context;
mod event;
mod handler;
mod secret;

pub use context::{NodeContext, hash_now};
pub use event::Event;
pub use handler::{Handler, NodeError, Registry};
pub use secret::{EnvironmentSecrets, FileSecrets, Secrets};

use serde_json::Value;

use crate::execution::ExecutionResult;

/// Returns what others see of a node: its status as a word, its output and its error; the last two are null where
/// there is none.
pub(crate) fn standing(result: Option<&ExecutionResult>) -> (&'static str, Value, Value) {
    match result {
        None | Some(ExecutionResult::Pending) => ("pending", Value::Null, Value::Null),
        Some(ExecutionResult::Success(output)) => ("success", output.clone(), Value::Null),
        Some(ExecutionResult::Failure(why)) => ("failure", Value::Null, Value::String(why.clone())),
        Some(ExecutionResult::Skipped) => ("skipped", Value::Null, Value::Null),
    }
}
