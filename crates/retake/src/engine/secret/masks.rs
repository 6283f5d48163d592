//! Keeps the values of secrets out of everything that a run says and saves.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use serde_json::Value;

use super::Secrets;
use super::form::forms;
use crate::workflow::Workflow;

/// What stands in the place of a secret.
const MASK: &str = "***";

/// Shorter secrets, and shorter lines of secrets, are not masked: they would take ordinary text with them.
const MASKED_BYTES_MIN: usize = 4;

/// A value that a person gives is only refused for holding a secret of this length: one that is shorter may be a word.
const REFUSED_BYTES_MIN: usize = 8;

/// The secret that nodes use without mentioning it: the key of language models.
const UNMENTIONED: &str = "OPENAI_API_KEY";

/// The values of secrets that are known here, in every form in which they are looked for.
#[derive(Default)]
pub(in crate::engine) struct Masks(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The name of the secret that a form is of, and whether it is long enough to be refused.
    forms: BTreeMap<String, (Arc<str>, bool)>,
    /// Finds them all at once; made anew when there are more.
    search: Option<Arc<AhoCorasick>>,
}

impl Masks {
    /// Returns the masks of what a workflow's executions may hold.
    pub(in crate::engine) fn of(workflow: Option<&Workflow>, secrets: &dyn Secrets) -> Self {
        let masks = Self::default();
        masks.remember_all(workflow, secrets);
        masks
    }

    /// Remembers a value.
    pub(in crate::engine) fn remember(&self, name: &str, value: &str) {
        let mut known = self.known();
        if known.forms.contains_key(value) {
            return;
        }
        let name: Arc<str> = name.into();
        let is_long = value.len() >= REFUSED_BYTES_MIN;
        for form in forms(value).into_iter().filter(|form| form.len() >= MASKED_BYTES_MIN) {
            known.forms.entry(form).or_insert_with(|| (Arc::clone(&name), is_long));
            known.search = None;
        }
    }

    /// Remembers every secret that a workflow mentions, and those known beforehand: a node may say one that another
    /// node looked up, even in a process before this one.
    pub(in crate::engine) fn remember_all(&self, workflow: Option<&Workflow>, secrets: &dyn Secrets) {
        let mentioned = workflow.map(Workflow::secrets).unwrap_or_default();
        for name in mentioned.into_iter().chain(secrets.names()).chain([UNMENTIONED.to_owned()]) {
            if let Some(value) = secrets.secret(&name) {
                self.remember(&name, &value);
            }
        }
    }

    /// Returns the text with every secret masked.
    pub(in crate::engine) fn text(&self, text: String) -> String {
        let found = self.found(&text);
        if found.is_empty() {
            return text;
        }
        let mut masked = String::with_capacity(text.len());
        let mut at = 0;
        for range in found {
            masked.push_str(&text[at..range.start]);
            masked.push_str(MASK);
            at = range.end;
        }
        masked + &text[at..]
    }

    /// Returns the value with every secret masked, in keys and numbers too.
    pub(in crate::engine) fn value(&self, value: Value) -> Value {
        if self.known().forms.is_empty() { value } else { self.masked(value) }
    }

    /// Returns how much of a text that goes on can be told apart from a secret: after that, one may have begun.
    #[cfg(feature = "nodes")]
    pub(in crate::engine) fn settled(&self, text: &str) -> usize {
        use std::ops::Bound;

        let found = self.found(text);
        let known = self.known();
        let longest = known.forms.keys().map(String::len).max().unwrap_or(0);
        let is_begin = |rest: &str| {
            let mut after = known.forms.range::<str, _>((Bound::Excluded(rest), Bound::Unbounded));
            after.next().is_some_and(|(form, _)| form.starts_with(rest))
        };
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        let open = (from..text.len()).find(|at| text.is_char_boundary(*at) && is_begin(&text[*at..]));
        let open = open.unwrap_or(text.len());
        found.into_iter().find(|range| range.contains(&open)).map_or(open, |range| range.start)
    }

    /// Returns the name of a secret that a value holds which a person gave, if it is too long to stand there by chance.
    pub(in crate::engine) fn secret_in(&self, value: &Value) -> Option<String> {
        match value {
            Value::Null | Value::Bool(_) => None,
            Value::Number(number) => self.secret_in_text(&number.to_string()),
            Value::String(text) => self.secret_in_text(text),
            Value::Array(items) => items.iter().find_map(|item| self.secret_in(item)),
            Value::Object(entries) => entries
                .iter()
                .find_map(|(key, value)| self.secret_in_text(key).or_else(|| self.secret_in(value))),
        }
    }

    fn secret_in_text(&self, text: &str) -> Option<String> {
        let search = self.search()?;
        let known = self.known();
        let is_long = |form: &str| known.forms.get(form).filter(|(_, is_long)| *is_long);
        let mut found = search.find_overlapping_iter(text);
        found.find_map(|found| is_long(&text[found.range()])).map(|(name, _)| name.to_string())
    }

    /// Returns where secrets stand, in order. Those that overlap are one.
    fn found(&self, text: &str) -> Vec<Range<usize>> {
        let Some(search) = self.search() else { return Vec::new() };
        let mut found: Vec<Range<usize>> =
            search.find_overlapping_iter(text).map(|one| one.range()).collect();
        found.sort_unstable_by_key(|range| range.start);
        found.dedup_by(|next, before| {
            let is_one = next.start < before.end;
            before.end = if is_one { before.end.max(next.end) } else { before.end };
            is_one
        });
        found
    }

    fn search(&self) -> Option<Arc<AhoCorasick>> {
        let mut known = self.known();
        if known.forms.is_empty() {
            return None;
        }
        if known.search.is_none() {
            let search = AhoCorasick::builder()
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .build(known.forms.keys())
                .expect("what an environment holds is far from the number of states that there may be");
            known.search = Some(Arc::new(search));
        }
        known.search.clone()
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

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masks").field("forms", &self.known().forms.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn masks(secrets: &[&str]) -> Masks {
        let masks = Masks::default();
        secrets.iter().for_each(|secret| masks.remember("NAME", secret));
        masks
    }

    #[test]
    fn a_secret_is_masked_wherever_it_stands() {
        assert_eq!(
            masks(&["sk-123456", "sk-123456-long", "ab"])
                .value(json!({"k sk-123456": ["Bearer sk-123456-long", 1, "ab"]})),
            json!({"k ***": ["Bearer ***", 1, "ab"]})
        );
    }

    #[test]
    fn secrets_that_overlap_leave_no_part_of_either() {
        let masks = masks(&["abcdef", "defghi", "line one\nline two"]);
        assert_eq!(masks.text("<abcdefghi> <defghi>".to_owned()), "<***> <***>");
        assert_eq!(masks.text("line two, line one\nline two".to_owned()), "***, ***");
        assert_eq!(masks.text("bGluZSBvbmUKbGluZSB0d28=".to_owned()), "***=");
    }

    #[test]
    fn a_secret_of_digits_is_masked_where_it_became_a_number() {
        assert_eq!(masks(&["987654321"]).value(json!([987_654_321, 98])), json!(["***", 98]));
    }

    #[test]
    fn a_value_is_refused_for_a_secret_that_is_no_word() {
        let masks = masks(&["sk-123456", "admin"]);
        assert_eq!(masks.secret_in(&json!({"a": ["x sk-123456"]})).as_deref(), Some("NAME"));
        assert_eq!(masks.secret_in(&json!({"c2stMTIzNDU2": 1})).as_deref(), Some("NAME"));
        assert_eq!(masks.secret_in(&json!(["admin", 5, null])), None);
    }

    #[test]
    #[cfg(feature = "nodes")]
    fn what_may_be_the_beginning_of_a_secret_waits_for_its_end() {
        let masks = masks(&["abcd", "abcdefgh", "xyzabc1"]);
        for (text, settled) in [
            ("say", 3),
            ("say a", 4),
            ("say abc", 4),
            ("say abcd", 4),
            ("say abcde.", 10),
            ("xyzabc1", 7),
            ("xyzabc", 0),
        ] {
            assert_eq!(masks.settled(text), settled, "{text}");
        }
    }
}
