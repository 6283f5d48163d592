//! The text of a workflow as a tree in which every value knows where it stands.
//!
//! Reads YAML 1.2 (core schema, without anchors, tags and further documents) and JSON. Nothing in it recurses over the
//! text, so that no text can exhaust the stack.

mod json;
mod scalar;
mod yaml;

use std::collections::HashMap;
use std::ops::Range;

use serde_json::Value;

use super::error::{Finding, Path, Place, Step};
use super::suggestion;

/// How large a file may be.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// How deeply lists and maps may lie in each other.
pub const DEPTH_MAX: usize = 100;

/// A value, and the bytes where it stands.
#[derive(Debug)]
pub(super) struct Marked {
    at: Range<usize>,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Scalar(Value, Style),
    List(Vec<Marked>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
struct Entry {
    key: String,
    key_at: Range<usize>,
    value: Marked,
}

/// How a scalar is written, which decides where its characters stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Quoted,
    Block,
}

/// What is wrong with a text, and where.
#[derive(Debug)]
pub(super) struct SourceError {
    at: Range<usize>,
    message: String,
    help: Option<String>,
}

impl SourceError {
    fn new(at: Range<usize>, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: None }
    }

    fn too_deep(at: Range<usize>) -> Self {
        Self::new(at, format!("lists and maps are nested more than {DEPTH_MAX} deep"))
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Returns it as a finding, and its place in `text`.
    pub(super) fn locate(self, text: &str) -> (Finding, Place) {
        let mut finding = Finding::new(Path::default(), self.message);
        finding.help = self.help;
        (finding, place(text, self.at))
    }
}

/// Reads a text without a byte order mark: as JSON if it is JSON, else as YAML.
pub(super) fn read(text: &str) -> Result<Marked, SourceError> {
    if text.trim().is_empty() {
        return Err(
            SourceError::new(0..0, "the file is empty").help("`retake init` writes one to begin with")
        );
    }
    let is_json =
        text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    if is_json { json::read(text) } else { yaml::read(text) }
}

/// Returns the place of some bytes of a text.
pub(super) fn place(text: &str, at: Range<usize>) -> Place {
    let start = text.floor_char_boundary(at.start);
    let end = text.floor_char_boundary(at.end).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[..start].bytes().filter(|&byte| byte == b'\n').count() + 1;
    let column = text[line_start..start].chars().count() + 1;
    Place { line, column, at: start..end }
}

impl Marked {
    /// Returns the value alone.
    pub(super) fn to_value(&self) -> Value {
        match &self.shape {
            Shape::Scalar(value, _) => value.clone(),
            Shape::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Shape::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_value())).collect(),
            ),
        }
    }

    /// Returns where a finding stands in `text`, from which this was read: as near as its path leads.
    pub(super) fn locate(&self, text: &str, finding: &Finding) -> Place {
        let mut at = self;
        let mut key_at = None;
        for step in finding.path.steps() {
            match at.child(step) {
                Some((next, next_key_at)) => {
                    at = next;
                    key_at = next_key_at;
                }
                None => break,
            }
        }
        let bytes = match (&at.shape, key_at) {
            (_, Some(key_at)) if finding.key => key_at,
            (Shape::List(_) | Shape::Map(_), Some(key_at)) => key_at,
            (Shape::List(_) | Shape::Map(_), None) => first_line(text, &at.at),
            (Shape::Scalar(value, style), _) => finding
                .within
                .as_ref()
                .and_then(|within| inside(text, &at.at, *style, value.as_str()?, within))
                .unwrap_or_else(|| first_line(text, &at.at)),
        };
        place(text, bytes)
    }

    /// Returns what a step leads to, and where its key stands. A name leads into a list to the item of that text.
    fn child(&self, step: &Step) -> Option<(&Marked, Option<Range<usize>>)> {
        match (&self.shape, step) {
            (Shape::Map(entries), Step::Key(key)) => entries
                .iter()
                .find(|entry| entry.key == *key)
                .map(|entry| (&entry.value, Some(entry.key_at.clone()))),
            (Shape::List(items), Step::Index(index)) => items.get(*index).map(|item| (item, None)),
            (Shape::List(items), Step::Key(text)) => {
                items.iter().find(|item| item.text() == Some(text)).map(|item| (item, None))
            }
            (Shape::Map(_), Step::Index(_)) | (Shape::Scalar(..), _) => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match &self.shape {
            Shape::Scalar(value, _) => value.as_str(),
            Shape::List(_) | Shape::Map(_) => None,
        }
    }
}

fn first_line(text: &str, at: &Range<usize>) -> Range<usize> {
    let whole = text.get(at.clone()).unwrap_or_default();
    at.start..at.start + whole.lines().next().unwrap_or_default().len()
}

/// Returns where the bytes `within` a scalar stand in the file, or `None` where escapes or folding moved them.
fn inside(
    text: &str,
    at: &Range<usize>,
    style: Style,
    content: &str,
    within: &Range<usize>,
) -> Option<Range<usize>> {
    let start = match style {
        Style::Plain => at.start,
        Style::Quoted => at.start + 1,
        Style::Block => return inside_block(text, at, content, within),
    };
    let unchanged = text.get(start..start + content.len()) == Some(content);
    unchanged.then_some(start + within.start..start + within.end)
}

/// A block begins where its first line's content does, and every line has that line's indentation.
fn inside_block(text: &str, at: &Range<usize>, content: &str, within: &Range<usize>) -> Option<Range<usize>> {
    let before = content.get(..within.start)?;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = content[line_start..].lines().next()?;
    let indent = at.start - text[..at.start].rfind('\n').map_or(0, |newline| newline + 1);
    let skipped = before.matches('\n').count();
    let mut start = at.start - indent;
    for _ in 0..skipped {
        start += text[start..].find('\n')? + 1;
    }
    let start = start + indent;
    let unchanged = text.get(start..start + line.len()) == Some(line);
    let (from, to) = (within.start - line_start, within.end.min(line_start + line.len()) - line_start);
    unchanged.then_some(start + from..start + to.max(from))
}

/// Puts a tree together from what a reader meets, one thing after the other.
#[derive(Debug, Default)]
struct Assembly {
    open: Vec<Open>,
    root: Option<Marked>,
}

#[derive(Debug)]
enum Open {
    List(Range<usize>, Vec<Marked>),
    Map(Range<usize>, OpenMap),
}

#[derive(Debug, Default)]
struct OpenMap {
    entries: Vec<Entry>,
    keys: HashMap<String, usize>,
    key: Option<(String, Range<usize>)>,
}

impl Assembly {
    fn open_list(&mut self, at: Range<usize>) -> Result<(), SourceError> {
        self.open(at.clone(), Open::List(at, Vec::new()))
    }

    fn open_map(&mut self, at: Range<usize>) -> Result<(), SourceError> {
        self.open(at.clone(), Open::Map(at, OpenMap::default()))
    }

    fn open(&mut self, at: Range<usize>, open: Open) -> Result<(), SourceError> {
        if self.open.len() == DEPTH_MAX {
            return Err(SourceError::too_deep(at));
        }
        if self.wants_key() {
            return Err(SourceError::new(at, "a list or map cannot be a key: keys are text"));
        }
        self.open.push(open);
        Ok(())
    }

    /// Tells whether the next thing is a key.
    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open::Map(_, map)) if map.key.is_none())
    }

    fn close(&mut self, end: usize) -> Result<(), SourceError> {
        let marked = match self.open.pop() {
            Some(Open::List(at, items)) => {
                Marked { at: at.start..end.max(at.end), shape: Shape::List(items) }
            }
            Some(Open::Map(at, map)) => {
                Marked { at: at.start..end.max(at.end), shape: Shape::Map(map.entries) }
            }
            None => return Err(SourceError::new(end..end, "nothing is open that this could close")),
        };
        self.add(marked)
    }

    fn scalar(&mut self, at: Range<usize>, value: Value, style: Style) -> Result<(), SourceError> {
        let Some(Open::Map(_, map)) = self.open.last_mut() else {
            return self.add(Marked { at, shape: Shape::Scalar(value, style) });
        };
        if map.key.is_some() {
            return self.add(Marked { at, shape: Shape::Scalar(value, style) });
        }
        let Value::String(key) = value else {
            return Err(SourceError::new(at, "keys are text").help("put the key in quotes"));
        };
        map.key = Some((key, at));
        Ok(())
    }

    fn add(&mut self, value: Marked) -> Result<(), SourceError> {
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::List(_, items)) => items.push(value),
            Some(Open::Map(_, map)) => {
                let (key, key_at) = map.key.take().expect("a value follows its key");
                map.keys.insert(key.clone(), map.entries.len());
                map.entries.push(Entry { key, key_at, value });
            }
        }
        Ok(())
    }

    /// Refuses a key that the open map has already. `text` is where they stand.
    fn refuse_duplicate(&self, text: &str) -> Result<(), SourceError> {
        let Some(Open::Map(_, map)) = self.open.last() else { return Ok(()) };
        let Some((key, at)) = &map.key else { return Ok(()) };
        let Some(&first) = map.keys.get(key) else { return Ok(()) };
        let first = place(text, map.entries[first].key_at.clone());
        Err(SourceError::new(
            at.clone(),
            format!("the key `{}` stands here twice", suggestion::shortened(key)),
        )
        .help(format!("it stands first in line {}, column {}", first.line, first.column)))
    }

    fn finish(self, end: usize) -> Result<Marked, SourceError> {
        self.root.ok_or_else(|| SourceError::new(end..end, "the file ends too early"))
    }
}
