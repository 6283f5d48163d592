//! Secrets: named in workflows, looked up when a node runs, never written down.

mod form;
mod keeping;
mod masks;

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

pub(super) use keeping::{definition_of, refuse_secret, refuse_secrets, without_secrets};
pub(super) use masks::Masks;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_from_lines_and_a_bad_line_is_named() {
        let secrets = FileSecrets::parse("# keys\n\nA=1\nB = \"two words\"\n").unwrap();
        assert_eq!(secrets.secret("A").as_deref(), Some("1"));
        assert_eq!(secrets.secret("B").as_deref(), Some("two words"));
        assert_eq!(FileSecrets::parse("A=1\nnonsense").unwrap_err(), 2);
        assert!(!format!("{secrets:?}").contains("two words"));
    }
}
