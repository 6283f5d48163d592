//! Values on the command line: `k=v`, JSON, text, `@FILE`.

use std::collections::BTreeMap;
use std::path::Path;

use retake::execution::{ExactError, parse_exact};
use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::inputs;

/// Reads several `NAME=VALUE`, each with a name of its own.
pub(crate) fn assignments(texts: &[String]) -> Result<BTreeMap<String, Value>, Failure> {
    let mut set = BTreeMap::new();
    for text in texts {
        let (name, value) = assignment(text)?;
        if set.insert(name.clone(), value).is_some() {
            return Err(Failure::new(Code::Usage, format!("`{name}` is set twice")));
        }
    }
    Ok(set)
}

/// Reads `NAME=VALUE`.
fn assignment(text: &str) -> Result<(String, Value), Failure> {
    match text.split_once('=') {
        Some((name, given)) if !name.is_empty() => Ok((name.to_owned(), value(given)?)),
        Some(_) | None => Err(Failure::new(Code::Usage, format!("`{text}` is not NAME=VALUE"))),
    }
}

/// Reads a value: JSON if it is JSON, else text; `@FILE` is what the file holds, read in the same
/// way, and `@@` a text's own `@`.
pub(crate) fn value(text: &str) -> Result<Value, Failure> {
    let path = match text.strip_prefix('@') {
        None => return json_or_text(text),
        Some(escaped) if escaped.starts_with('@') => return json_or_text(escaped),
        Some(path) => path,
    };
    let held = inputs::text(Path::new(path)).map_err(|error| {
        let mut failure = Failure::new(Code::Usage, format!("cannot read a value from {path}"));
        failure.causes.push(error.to_string());
        failure
    })?;
    json_or_text(&held)
}

/// JSON that would not be kept exactly is no text either: the text would be another value than the one that was meant.
fn json_or_text(text: &str) -> Result<Value, Failure> {
    match parse_exact(text) {
        Ok(value) => Ok(value),
        Err(ExactError::NotJson(_)) => Ok(Value::String(text.to_owned())),
        Err(inexact) => Err(Failure::new(Code::Usage, format!("cannot take the value: {inexact}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_json_if_it_is_and_text_if_not() {
        for (text, wanted) in [
            ("n=3", json!(3)),
            ("n=true", json!(true)),
            ("n=[1, \"a\"]", json!([1, "a"])),
            ("n=\"3\"", json!("3")),
            ("n=warm and dry", json!("warm and dry")),
            ("n=", json!("")),
            ("n=a=b", json!("a=b")),
            ("n=@@home", json!("@home")),
        ] {
            assert_eq!(assignment(text).unwrap(), ("n".to_owned(), wanted), "{text}");
        }
        for (text, why) in [
            ("n=18446744073709551616", "the number 18446744073709551616 would not be kept exactly"),
            ("n={\"a\": 1, \"a\": 2}", "`a` stands there twice"),
            ("n=[\"\\ud800\"]", "at `[0]`, a text is not Unicode"),
        ] {
            let refused = assignment(text).unwrap_err();
            assert!(refused.message.contains(why), "{text}: {}", refused.message);
        }
        assert!(assignment("n").is_err());
        let directory = tempfile::tempdir().unwrap();
        let large = directory.path().join("large");
        std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
        let refused = assignment(&format!("n=@{}", large.display())).unwrap_err();
        assert_eq!(
            refused.causes,
            ["it has more than 67108864 bytes, which is the most that is read".to_owned()]
        );
        assert!(assignment("=3").is_err());
    }
}
