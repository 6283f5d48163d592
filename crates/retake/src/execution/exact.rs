//! JSON from outside, read without changing it: what would be lost or altered on the way is refused by name.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deeply values may lie in each other: as deeply as a store keeps them.
const DEPTH_MAX: usize = 100;

/// Why a text is no JSON value that is kept exactly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExactError {
    /// It is not JSON: where text is welcome, take it as text.
    #[error("this is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// A number would come back as another one.
    #[error("the number {number} would not be kept exactly: write it in quotes")]
    Number {
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
    /// It is JSON by its form, and a text in it is not Unicode.
    #[error("a text in it is not Unicode")]
    Text(#[source] serde_json::Error),
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
    serde_json::from_str::<IgnoredAny>(text).map_err(ExactError::NotJson)?;
    if let Some(number) = numbers(text).find(|number| !is_kept(number)) {
        return Err(ExactError::Number { number: number.to_owned() });
    }
    let refusal = Cell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    Reading { place: Place::Root, depth: 1, refusal: &refusal }
        .deserialize(&mut reader)
        .map_err(|source| refusal.take().unwrap_or(ExactError::Text(source)))
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
        number.parse::<f64>().is_ok_and(f64::is_finite)
    } else {
        number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok()
    }
}

/// Reads one value, at its place in the whole.
struct Reading<'a> {
    place: Place<'a>,
    /// From 1.
    depth: usize,
    /// Why the whole is refused: an error of `serde_json` cannot carry it.
    refusal: &'a Cell<Option<ExactError>>,
}

enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl Reading<'_> {
    fn refuse<E: serde::de::Error>(&self, refusal: ExactError) -> E {
        let error = E::custom(&refusal);
        self.refusal.set(Some(refusal));
        error
    }
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(self.refuse(ExactError::TooDeep { path: self.place.to_string() }));
        }
        deserializer.deserialize_any(self)
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

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("a number without bounds"))
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
            refusal: self.refusal,
        })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let place = Place::Key(&self.place, &key);
            if entries.contains_key(&key) {
                return Err(self.refuse(ExactError::Duplicate { path: place.to_string() }));
            }
            let value =
                access.next_value_seed(Reading { place, depth: self.depth + 1, refusal: self.refusal })?;
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
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
            "the number 18446744073709551616 would not be kept exactly: write it in quotes"
        );
        assert!(matches!(parse_exact("1e400"), Err(ExactError::Number { number }) if number == "1e400"));
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

    #[cfg(feature = "store")]
    #[test]
    fn the_depth_is_the_one_that_stores_keep() {
        assert_eq!(DEPTH_MAX, crate::store::DEPTH_MAX);
    }

    #[test]
    fn what_is_not_json_is_told_from_json_that_is_refused() {
        for text in ["", "hello", "{} {}", r#"{"a": 1, "a": 2} and more"#, "007"] {
            assert!(matches!(parse_exact(text), Err(ExactError::NotJson(_))), "{text}");
        }
        assert!(matches!(parse_exact(r#"["\ud800"]"#), Err(ExactError::Text(_))));
    }
}
