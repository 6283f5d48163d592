//! JSON from outside, read without changing it: what would be lost or altered on the way is refused by name.

mod writer;

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

pub use writer::exact_value;

use super::{DEPTH_MAX, Step};

/// Why a text is no JSON value that is kept exactly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExactError {
    /// It is not JSON: where text is welcome, take it as text.
    #[error("this is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// A number would come back as another one.
    #[error("{}the number {number} would not be kept exactly: write it in quotes", at(path))]
    Number {
        /// Leads to it; empty where it is the whole.
        path: String,
        /// The number, as it is written.
        number: String,
    },
    /// An object has two values under one key.
    #[error("`{path}` stands there twice: give it one value")]
    Duplicate {
        /// Leads to the key.
        path: String,
    },
    /// It is nested too deeply to be stored.
    #[error("`{path}` lies deeper than {DEPTH_MAX} levels: flatten it, or write it in quotes")]
    TooDeep {
        /// Leads to the first value that is too deep.
        path: String,
    },
    /// It is JSON by its form, and a text in it, or a key, is not Unicode: half of a surrogate pair, for example.
    #[error("{}a text is not Unicode", at(path))]
    Text {
        /// Leads to the text, or to the object that has the key; empty where it is the whole.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("at `{path}`, ") }
}

/// Returns the value of a JSON text, exactly: no integer becomes a float, and no key is dropped.
///
/// # Errors
/// [`ExactError::NotJson`] for what is not JSON; the others for JSON that would not be kept as it is.
///
/// ```
/// use retake::execution::parse_exact;
///
/// assert_eq!(parse_exact("[18446744073709551615]")?, serde_json::json!([u64::MAX]));
/// assert!(parse_exact("[18446744073709551616]").is_err());
/// # Ok::<(), retake::execution::ExactError>(())
/// ```
pub fn parse_exact(text: &str) -> Result<Value, ExactError> {
    parse_exact_within(text, DEPTH_MAX)
}

/// Returns the value of a JSON text as [`parse_exact`] does, of another depth: where what is stored lies within what is
/// not. `serde_json` reads 127 levels at most.
pub(crate) fn parse_exact_within(text: &str, depth_max: usize) -> Result<Value, ExactError> {
    serde_json::from_str::<IgnoredAny>(text).map_err(ExactError::NotJson)?;
    let changed = numbers(text).position(|number| !is_kept(number));
    let notes = Notes { changed, ..Notes::within(depth_max) };
    let mut reader = serde_json::Deserializer::from_str(text);
    read(&mut reader, &notes).map_err(|source| {
        let path = notes.failed_at.take().unwrap_or_default();
        match notes.refusal.take() {
            Some(Refusal::Number) => {
                let number = numbers(text).nth(notes.numbers.get()).unwrap_or_default().to_owned();
                ExactError::Number { path, number }
            }
            Some(Refusal::Duplicate) => ExactError::Duplicate { path },
            Some(Refusal::TooDeep) => ExactError::TooDeep { path },
            // Too large for any float; what else `serde_json` refuses in a text that is JSON is a text.
            None if notes.changed == Some(notes.numbers.get())
                && source.to_string().contains("out of range") =>
            {
                let number = numbers(text).nth(notes.numbers.get()).unwrap_or_default().to_owned();
                ExactError::Number { path, number }
            }
            None => ExactError::Text { path, source },
        }
    })
}

/// Reads one value of whatever format, exactly. The error says what is wrong with it, and where.
pub(crate) fn read_exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let notes = Notes::within(DEPTH_MAX);
    read(deserializer, &notes).map_err(|source| match notes.failed_at.take() {
        Some(path) if !path.is_empty() => serde::de::Error::custom(format_args!("{source}, at `{path}`")),
        Some(_) | None => source,
    })
}

fn read<'de, D: Deserializer<'de>>(deserializer: D, notes: &Notes) -> Result<Value, D::Error> {
    Reading { place: Place::Root, depth: 1, notes }.deserialize(deserializer)
}

/// Returns the numbers of a text that is known to be JSON.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let mut in_text = false;
        while let Some(byte) = bytes.get(at) {
            match byte {
                // What is escaped cannot end the text.
                b'\\' if in_text => at += 1,
                b'"' => in_text = !in_text,
                b'-' | b'0'..=b'9' if !in_text => {
                    let start = at;
                    while bytes
                        .get(at)
                        .is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
                    {
                        at += 1;
                    }
                    return Some(&text[start..at]);
                }
                _ => {}
            }
            at += 1;
        }
        None
    })
}

fn is_kept(number: &str) -> bool {
    if number.contains(['.', 'e', 'E']) {
        // Nothing but zero may become zero.
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        let is_zero = !mantissa.contains(|digit| matches!(digit, '1'..='9'));
        number.parse::<f64>().is_ok_and(|float| float.is_finite() && (float == 0.0) == is_zero)
    } else {
        number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok()
    }
}

/// What a reading says beside its value: an error of another crate cannot carry it.
struct Notes {
    /// How deeply values may lie in each other.
    depth_max: usize,
    /// How many numbers were read before the one at hand.
    numbers: Cell<usize>,
    /// The first number that would change, counted from 0.
    changed: Option<usize>,
    refusal: Cell<Option<Refusal>>,
    /// Where the reading ended.
    failed_at: Cell<Option<String>>,
}

impl Notes {
    fn within(depth_max: usize) -> Self {
        Self {
            depth_max,
            numbers: Cell::new(0),
            changed: None,
            refusal: Cell::new(None),
            failed_at: Cell::new(None),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Refusal {
    Number,
    Duplicate,
    TooDeep,
}

/// Reads one value, at its place in the whole.
#[derive(Clone, Copy)]
struct Reading<'a> {
    place: Place<'a>,
    /// From 1.
    depth: usize,
    notes: &'a Notes,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl Reading<'_> {
    fn refuse<E: serde::de::Error>(&self, refusal: Refusal, why: &str) -> E {
        self.notes.refusal.set(Some(refusal));
        E::custom(why)
    }

    fn number<E: serde::de::Error>(&self, number: impl Into<Number>) -> Result<Value, E> {
        let count = self.notes.numbers.get();
        if self.notes.changed == Some(count) {
            return Err(self.refuse(Refusal::Number, "a number would change"));
        }
        self.notes.numbers.set(count + 1);
        Ok(Value::Number(number.into()))
    }

    /// Notes where a reading ended, if nothing below did.
    fn failed(&self) {
        let below = self.notes.failed_at.take();
        self.notes.failed_at.set(Some(below.unwrap_or_else(|| self.place.to_string())));
    }
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let read = if self.depth > self.notes.depth_max {
            Err(self.refuse(Refusal::TooDeep, "it is nested too deep"))
        } else {
            deserializer.deserialize_any(self)
        };
        read.inspect_err(|_| self.failed())
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Value, E> {
        self.number(number)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        self.number(number)
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        let number = Number::from_f64(number)
            .ok_or_else(|| E::custom(format_args!("{number} is no number that JSON can hold")))?;
        self.number(number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Reading {
            place: Place::Index(&self.place, items.len()),
            depth: self.depth + 1,
            notes: self.notes,
        })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let inner =
                Reading { place: Place::Key(&self.place, &key), depth: self.depth + 1, notes: self.notes };
            if entries.contains_key(&key) {
                inner.failed();
                return Err(inner.refuse(Refusal::Duplicate, "a key stands there twice"));
            }
            let value = access.next_value_seed(inner)?;
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = Vec::new();
        let mut at = self;
        loop {
            let (parent, step) = match at {
                Self::Root => break,
                Self::Key(parent, key) => (parent, Step::Key(key)),
                Self::Index(parent, index) => (parent, Step::Index(*index)),
            };
            steps.push(step);
            at = parent;
        }
        let path: String = steps.iter().rev().map(ToString::to_string).collect();
        f.write_str(path.strip_prefix('.').unwrap_or(&path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(text: &str) -> String {
        parse_exact(text).unwrap_err().to_string()
    }

    #[test]
    fn what_can_be_kept_is_kept_in_its_order() {
        let text = r#" {"b": [1, -2.5e3, null, true, "\"9\\"], "a": 18446744073709551615, "c": -9223372036854775808} "#;
        let value = parse_exact(text).unwrap();
        assert_eq!(value, json!({"b": [1, -2500.0, null, true, "\"9\\"], "a": u64::MAX, "c": i64::MIN}));
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["b", "a", "c"]);
    }

    #[test]
    fn a_float_is_read_to_its_last_digit() {
        for text in ["-2.3587886288753886e-58", "0.1", "5e-324", "1.7976931348623157e308"] {
            let exact: f64 = text.parse().unwrap();
            assert_eq!(parse_exact(text).unwrap().as_f64().unwrap().to_bits(), exact.to_bits(), "{text}");
        }
    }

    #[test]
    fn a_number_that_would_change_is_refused_by_name_and_digits_in_a_text_are_not() {
        assert_eq!(
            refusal(r#"{"id": "1", "n": 18446744073709551616}"#),
            "at `n`, the number 18446744073709551616 would not be kept exactly: write it in quotes"
        );
        for (text, path, wrong) in [
            ("1e400", "", "1e400"),
            ("1e-400", "", "1e-400"),
            (r#"[1, {"a b": [2.5, -1E-999]}]"#, "[1][\"a b\"][1]", "-1E-999"),
            ("[[0.0, 0e-999, -9223372036854775809]]", "[0][2]", "-9223372036854775809"),
            (r#"{"a": [1e400], "b": "\ud800"}"#, "a[0]", "1e400"),
        ] {
            let error = parse_exact(text).unwrap_err();
            let ExactError::Number { path: found, number } = error else { panic!("{error:?}") };
            assert_eq!((found.as_str(), number.as_str()), (path, wrong), "{text}");
        }
        assert_eq!(parse_exact(r#""\"18446744073709551616""#).unwrap(), json!("\"18446744073709551616"));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_with_its_path() {
        assert_eq!(
            refusal(r#"{"a": [{"b": {"k": 1, "\u006b": 2}}]}"#),
            "`a[0].b.k` stands there twice: give it one value"
        );
    }

    #[test]
    fn nesting_is_refused_where_it_could_not_be_stored() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_exact(&nested(DEPTH_MAX - 1)).is_ok());
        assert!(matches!(parse_exact(&nested(DEPTH_MAX)), Err(ExactError::TooDeep { .. })));
        assert!(matches!(parse_exact(&nested(100_000)), Err(ExactError::TooDeep { .. })));
    }

    #[test]
    fn what_is_not_json_is_told_from_json_that_is_refused() {
        for text in ["", "hello", "{} {}", r#"{"a": 1, "a": 2} and more"#, "007"] {
            assert!(matches!(parse_exact(text), Err(ExactError::NotJson(_))), "{text}");
        }
        assert_eq!(refusal(r#"{"a": [1, "\ud800"]}"#), "at `a[1]`, a text is not Unicode");
        assert_eq!(refusal(r#"{"a": {"\udc00\ud800": 1}, "b": 1e400}"#), "at `a`, a text is not Unicode");
        assert_eq!(refusal(r#""\ud800""#), "a text is not Unicode");
    }
}
