//! What is done so that no secret is saved with what people give and do.

use std::fmt::Display;

use serde_json::Value;

use super::Masks;
use crate::engine::{Engine, EngineError};
use crate::store::{ExecutionRecord, NewOperation};
use crate::workflow::Workflow;

impl Engine {
    /// Returns the secrets that are to be kept out of what is saved of an execution.
    pub(in crate::engine) async fn masks_of(&self, record: &ExecutionRecord) -> Masks {
        // One that another program keeps here has no workflow that could mention any.
        let workflow = self.workflow_of(record).await.ok();
        Masks::of(workflow.as_deref(), &*self.secrets)
    }
}

/// Refuses a value that a person gave and that would be saved, where it holds a secret. It is not masked: what runs
/// then would silently be given something else.
pub(in crate::engine) fn refuse_secret(
    masks: &Masks,
    what: impl Display,
    value: &Value,
) -> Result<(), EngineError> {
    match masks.secret_in(value) {
        Some(name) => Err(EngineError::Secret { what: what.to_string(), name }),
        None => Ok(()),
    }
}

/// Refuses as [`refuse_secret`], each value by its name.
pub(in crate::engine) fn refuse_secrets<'v>(
    masks: &Masks,
    what: &str,
    values: impl IntoIterator<Item = (&'v String, &'v Value)>,
) -> Result<(), EngineError> {
    values
        .into_iter()
        .try_for_each(|(name, value)| refuse_secret(masks, format_args!("{what} `{name}`"), value))
}

/// Returns what somebody did, as it may be written down.
pub(in crate::engine) fn without_secrets(masks: &Masks, operation: NewOperation) -> NewOperation {
    NewOperation { command: masks.text(operation.command), ..operation }
}

pub(in crate::engine) fn definition_of(workflow: &Workflow) -> Value {
    serde_json::to_value(workflow.definition()).unwrap_or_default()
}
