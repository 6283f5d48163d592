//! Secrets: named in workflows, looked up when a node runs, never written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::workflow::Workflow;

/// Where the values of secrets come from.
pub trait Secrets: Send + Sync + Debug {
    /// Returns the value of a secret, or `None` where there is none of that name.
    fn secret(&self, name: &str) -> Option<String>;

    /// Returns the names of secrets that are known to be secrets whether a workflow mentions them or not.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Secrets from the process's environment: `secrets.NAME` is the variable `NAME`.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnvironmentSecrets;

impl Secrets for EnvironmentSecrets {
    fn secret(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}

/// Secrets from a text of `NAME=value` lines, and from the environment where the text has no such name.
#[derive(Clone)]
pub struct FileSecrets(BTreeMap<String, String>);

impl FileSecrets {
    /// Reads `NAME=value` lines. Empty lines and those that begin with `#` are passed over; a value may stand in
    /// double quotes.
    ///
    /// # Errors
    /// The number of the first line, from 1, that is neither.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut secrets = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or(index + 1)?;
            let value = value.trim();
            let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            secrets.insert(name.trim().to_owned(), unquoted.to_owned());
        }
        Ok(Self(secrets))
    }
}

impl Secrets for FileSecrets {
    fn secret(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned().or_else(|| EnvironmentSecrets.secret(name))
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

impl Debug for FileSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileSecrets").field(&self.0.keys().collect::<Vec<_>>()).finish()
    }
}

/// What stands in the place of a secret.
pub(super) const MASK: &str = "***";

/// Shorter secrets are not masked: they would take ordinary text with them.
const MASKED_BYTES_MIN: usize = 4;

/// The values of secrets that a run has looked up, to be kept out of everything it says and saves.
#[derive(Default)]
pub(super) struct Masks(Mutex<BTreeSet<String>>);

impl Masks {
    /// Remembers a value: the whole, and each of its lines, as tools print them.
    pub(super) fn remember(&self, value: &str) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in std::iter::once(value).chain(value.lines()) {
            if part.len() >= MASKED_BYTES_MIN {
                seen.insert(part.to_owned());
            }
        }
    }

    /// Remembers every secret that a workflow mentions, and those known beforehand: a node may say one that another
    /// node looked up, even in a process before this one.
    pub(super) fn remember_all(&self, workflow: &Workflow, secrets: &dyn Secrets) {
        for name in workflow.secrets().into_iter().chain(secrets.names()) {
            if let Some(value) = secrets.secret(&name) {
                self.remember(&value);
            }
        }
    }

    /// Returns the text with every secret masked.
    pub(super) fn text(&self, text: String) -> String {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The longest first, so that a secret that holds another goes whole.
        let mut secrets: Vec<&String> = seen.iter().filter(|secret| text.contains(secret.as_str())).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.into_iter().fold(text, |text, secret| text.replace(secret.as_str(), MASK))
    }

    /// Returns the value with every secret masked, in keys too.
    pub(super) fn value(&self, value: Value) -> Value {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return value;
        }
        self.masked(value)
    }

    fn masked(&self, value: Value) -> Value {
        match value {
            Value::Null | Value::Bool(_) => value,
            Value::Number(number) => {
                let text = number.to_string();
                let masked = self.text(text.clone());
                if masked == text { Value::Number(number) } else { Value::String(masked) }
            }
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.masked(item)).collect()),
            Value::Object(entries) => Value::Object(
                entries.into_iter().map(|(key, value)| (self.text(key), self.masked(value))).collect(),
            ),
        }
    }
}

impl Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Masks").field("secrets", &seen.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_masked_wherever_it_stands() {
        let masks = Masks::default();
        masks.remember("sk-123456");
        masks.remember("sk-123456-long");
        masks.remember("ab");
        assert_eq!(
            masks.value(json!({"k sk-123456": ["Bearer sk-123456-long", 1, "ab"]})),
            json!({"k ***": ["Bearer ***", 1, "ab"]})
        );
    }

    #[test]
    fn a_secret_of_digits_is_masked_where_it_became_a_number() {
        let masks = Masks::default();
        masks.remember("987654321");
        assert_eq!(masks.value(json!([987_654_321, 98])), json!(["***", 98]));
    }

    #[test]
    fn secrets_are_read_from_lines_and_a_bad_line_is_named() {
        let secrets = FileSecrets::parse("# keys\n\nA=1\nB = \"two words\"\n").unwrap();
        assert_eq!(secrets.secret("A").as_deref(), Some("1"));
        assert_eq!(secrets.secret("B").as_deref(), Some("two words"));
        assert_eq!(FileSecrets::parse("A=1\nnonsense").unwrap_err(), 2);
        assert!(!format!("{secrets:?}").contains("two words"));
    }
}
