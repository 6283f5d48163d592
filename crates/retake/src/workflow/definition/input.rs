//! What a workflow is given when it starts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Definition;
use crate::execution::{ExactError, parse_exact};
use crate::workflow::suggestion;

/// What an input must be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// Its type.
    #[serde(rename = "type", default)]
    pub kind: InputType,
    /// What it is when it is not given. An input without a default must be given.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::execution::present"
    )]
    pub default: Option<Value>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The type of an input.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    /// Text.
    String,
    /// A number.
    Number,
    /// A number without a fraction.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A list.
    List,
    /// A map from text to values.
    Object,
    /// Anything.
    #[default]
    Any,
}

/// Inputs that a workflow does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// It has no such input.
    #[error("unknown input `{name}`: {hint}")]
    Unknown {
        /// What was given.
        name: String,
        /// What may have been meant.
        hint: String,
    },
    /// It was not given, and has no default.
    #[error("input `{name}` is missing: it must be {expected}")]
    Missing {
        /// What is missing.
        name: String,
        /// What it must be.
        expected: InputType,
    },
    /// It is of another type.
    #[error("input `{name}` must be {expected}")]
    Mismatch {
        /// What was given.
        name: String,
        /// What it must be.
        expected: InputType,
    },
}

/// A value that somebody typed and that an input cannot take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TypedError {
    /// It is of another type.
    #[error("it must be {expected}")]
    Mismatch {
        /// What it must be.
        expected: InputType,
    },
    /// It would be changed on the way.
    #[error(transparent)]
    Inexact(ExactError),
}

impl Definition {
    /// Returns every input of an execution: those given, and defaults for the others.
    ///
    /// # Errors
    /// [`InputError`] for one that is unknown, missing, or of another type.
    pub fn inputs_from(
        &self,
        mut given: BTreeMap<String, Value>,
    ) -> Result<BTreeMap<String, Value>, InputError> {
        if let Some(name) = given.keys().find(|name| !self.inputs.contains_key(*name)) {
            let hint = suggestion::among(name, self.inputs.keys().map(String::as_str));
            return Err(InputError::Unknown { name: name.clone(), hint });
        }
        self.inputs
            .iter()
            .map(|(name, spec)| {
                let value = given.remove(name).or_else(|| spec.default.clone());
                match value {
                    None => Err(InputError::Missing { name: name.clone(), expected: spec.kind }),
                    Some(value) if spec.kind.accepts(&value) => Ok((name.clone(), value)),
                    Some(_) => Err(InputError::Mismatch { name: name.clone(), expected: spec.kind }),
                }
            })
            .collect()
    }
}

impl InputSpec {
    /// Returns an input that must be text.
    pub fn string() -> Self {
        InputType::String.into()
    }

    /// Returns an input that must be a number.
    pub fn number() -> Self {
        InputType::Number.into()
    }

    /// Returns an input that must be a number without a fraction.
    pub fn integer() -> Self {
        InputType::Integer.into()
    }

    /// Returns an input that must be `true` or `false`.
    pub fn boolean() -> Self {
        InputType::Boolean.into()
    }

    /// Returns an input that must be a list.
    pub fn list() -> Self {
        InputType::List.into()
    }

    /// Returns an input that must be an object.
    pub fn object() -> Self {
        InputType::Object.into()
    }

    /// Returns an input that may be anything.
    pub fn any() -> Self {
        InputType::Any.into()
    }

    /// Sets what it is when it is not given.
    pub fn or(mut self, default: Value) -> Self {
        self.default = Some(default);
        self
    }

    /// Sets what it is for.
    pub fn describe(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }
}

impl From<InputType> for InputSpec {
    /// Returns an input that must be given.
    fn from(kind: InputType) -> Self {
        Self { kind, ..Self::default() }
    }
}

impl InputType {
    /// Tells whether a value is of this type.
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Number => value.is_number(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Boolean => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
            Self::Any => true,
        }
    }

    /// Returns the value that somebody typed, as on a command line: text stays as it is, every other type is read as
    /// JSON, and `any` is JSON where it can be and else text.
    ///
    /// # Errors
    /// [`TypedError`] for a value of another type, and for JSON that would not be kept exactly.
    pub fn read(self, typed: &str) -> Result<Value, TypedError> {
        let value = match (self, parse_exact(typed)) {
            (Self::String, _) | (Self::Any, Err(ExactError::NotJson(_))) => Value::String(typed.to_owned()),
            (_, Ok(value)) => value,
            (_, Err(ExactError::NotJson(_))) => return Err(TypedError::Mismatch { expected: self }),
            (_, Err(inexact)) => return Err(TypedError::Inexact(inexact)),
        };
        if self.accepts(&value) { Ok(value) } else { Err(TypedError::Mismatch { expected: self }) }
    }
}

impl std::fmt::Display for InputType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::String => "text",
            Self::Number => "a number",
            Self::Integer => "an integer",
            Self::Boolean => "`true` or `false`",
            Self::List => "a list",
            Self::Object => "an object",
            Self::Any => "anything",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_typed_is_read_by_the_input_s_type() {
        assert_eq!(InputType::String.read("5").unwrap(), json!("5"));
        assert_eq!(InputType::Integer.read("5").unwrap(), json!(5));
        assert!(matches!(InputType::Integer.read("5.5"), Err(TypedError::Mismatch { .. })));
        assert_eq!(InputType::List.read("[1]").unwrap(), json!([1]));
        assert!(matches!(InputType::List.read("otters"), Err(TypedError::Mismatch { .. })));
        assert_eq!(InputType::Any.read("otters").unwrap(), json!("otters"));
        assert_eq!(InputType::Any.read("5").unwrap(), json!(5));
    }

    #[test]
    fn a_typed_number_is_kept_exactly_or_refused() {
        assert_eq!(InputType::Integer.read("18446744073709551615").unwrap(), json!(u64::MAX));
        for kind in [InputType::Integer, InputType::Number, InputType::Any] {
            let error = kind.read("98765432109876543210").unwrap_err();
            assert!(matches!(error, TypedError::Inexact(_)), "{kind} gave {error}");
        }
        assert_eq!(InputType::String.read("98765432109876543210").unwrap(), json!("98765432109876543210"));
    }
}
