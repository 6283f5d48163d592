//! Durations as people write them: `500ms`, `60s`, `1h 30m`.
//!
//! The functions of this module and of [`option`] have the names that serde's `with` looks for.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserializer, Serializer};

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a duration: write a number with a unit, such as `500ms`, `60s` or `1h 30m`")]
pub struct DurationError {
    text: String,
}

/// Reads a duration such as `500ms`, `60s` or `1h 30m`. A number alone is refused: it does not say what it counts.
///
/// # Errors
/// [`DurationError`] names the text.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let bare = text.trim().bytes().all(|byte| byte.is_ascii_digit());
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if !bare => Ok(duration),
        Ok(_) | Err(_) => Err(DurationError { text: text.to_owned() }),
    }
}

/// Returns a duration as people write it: one text for each duration.
pub(crate) fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_duration(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_any(Text)
}

/// The same for a duration that may be absent.
pub(crate) mod option {
    use super::{Deserializer, Duration, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}

struct Text;

impl serde::de::Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a duration with its unit, such as `500ms`, `60s` or `1h 30m`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        parse_duration(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units_and_bare_numbers_are_not() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["60", "0", "", " ", "s", "1 parsec", "-1s", "99999999999999999999s", "１s"] {
            assert_eq!(parse_duration(text), Err(DurationError { text: text.to_owned() }), "{text:?}");
        }
    }

    #[test]
    fn a_duration_has_one_text() {
        assert_eq!(format_duration(Duration::from_secs(90)), "1m 30s");
        assert_eq!(
            parse_duration(&format_duration(Duration::from_millis(90_001))),
            Ok(Duration::from_millis(90_001))
        );
    }
}
