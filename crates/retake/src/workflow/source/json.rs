//! Finds where the values of a JSON text stand.
//!
//! YAML contains JSON only nearly: a YAML reader refuses tabs and surrogate pairs that JSON writers produce.

use std::ops::Range;

use serde_json::Value;

use super::{Assembly, Marked, SourceError, Style, scalar};

/// Reads a text that `serde_json` accepts, so that only what it lets pass is checked here.
pub(super) fn read(text: &str) -> Result<Marked, SourceError> {
    let bytes = text.as_bytes();
    let mut assembly = Assembly::default();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        at += 1;
        match bytes[start] {
            b'{' => assembly.open_map(start..at)?,
            b'[' => assembly.open_list(start..at)?,
            b'}' | b']' => assembly.close(at)?,
            b'"' => {
                at = string_end(bytes, at);
                let value = string(text, start..at)?;
                assembly.scalar(start..at, value, Style::Quoted)?;
                assembly.refuse_duplicate(text)?;
            }
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => {
                while at < bytes.len() && !b",:]} \t\r\n".contains(&bytes[at]) {
                    at += 1;
                }
                let value = scalar::resolve(&text[start..at])
                    .map_err(|problem| SourceError::new(start..at, problem).help("put it in quotes"))?;
                assembly.scalar(start..at, value, Style::Plain)?;
            }
        }
    }
    assembly.finish(text.len())
}

/// Returns where the string ends whose content begins at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn string(text: &str, at: Range<usize>) -> Result<Value, SourceError> {
    let quoted = text.get(at.clone()).unwrap_or_default();
    serde_json::from_str(quoted)
        .map(Value::String)
        .map_err(|_| SourceError::new(at, "this is no JSON string: an escape in it means nothing"))
}
