//! Reads YAML.

use std::ops::Range;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::Value;

use super::{Assembly, Marked, SourceError, Style, scalar};

pub(super) fn read(text: &str) -> Result<Marked, SourceError> {
    let offsets = Offsets::new(text);
    let mut assembly = Assembly::default();
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| refused(text, &offsets, *error.marker(), error.info()))?;
        let at = offsets.bytes(&span);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(SourceError::new(
                        at,
                        "a second document begins here: a file holds one workflow",
                    ));
                }
            }
            Event::Alias(_) => {
                return Err(SourceError::new(at, "aliases are not supported: repeat the value"));
            }
            Event::Scalar(content, style, anchor, tag) => {
                plain(anchor, tag.is_some(), &at)?;
                let (value, style) = value(&content, style, &at)?;
                assembly.scalar(at, value, style)?;
                assembly.refuse_duplicate(text)?;
            }
            Event::SequenceStart(anchor, tag) => {
                plain(anchor, tag.is_some(), &at)?;
                assembly.open_list(at)?;
            }
            Event::MappingStart(anchor, tag) => {
                plain(anchor, tag.is_some(), &at)?;
                assembly.open_map(at)?;
            }
            Event::SequenceEnd | Event::MappingEnd => assembly.close(at.end)?,
        }
    }
    if documents == 0 {
        return Err(SourceError::new(0..0, "the file is empty: there are only comments in it"));
    }
    assembly.finish(text.len())
}

fn value(content: &str, style: ScalarStyle, at: &Range<usize>) -> Result<(Value, Style), SourceError> {
    let style = match style {
        ScalarStyle::Plain => {
            let value = scalar::resolve(content).map_err(|problem| {
                SourceError::new(at.clone(), problem).help("put it in quotes if it is meant as text")
            })?;
            return Ok((value, Style::Plain));
        }
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
        ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
    };
    Ok((Value::String(content.to_owned()), style))
}

fn plain(anchor: usize, tagged: bool, at: &Range<usize>) -> Result<(), SourceError> {
    if anchor != 0 {
        return Err(SourceError::new(at.clone(), "anchors are not supported: repeat the value"));
    }
    if tagged {
        let error = SourceError::new(at.clone(), "tags are not supported");
        return Err(error.help("write text in quotes, and everything else as it is"));
    }
    Ok(())
}

fn refused(text: &str, offsets: &Offsets, marker: Marker, info: &str) -> SourceError {
    let at = offsets.byte(marker.index());
    // The scanner has a bound of its own, which it meets before it tells of the first bracket.
    if info == "recursion limit exceeded" {
        return SourceError::too_deep(at..at);
    }
    let next = text.get(at..).and_then(|rest| rest.chars().next());
    let error =
        SourceError::new(at..at + next.map_or(0, char::len_utf8), format!("this is not YAML: {info}"));
    if text[..at].ends_with('$') && next == Some('{') {
        return error.help("inside `{ }` and `[ ]`, a text with `${{ … }}` stands in quotes");
    }
    if next == Some('\t') || text[..at].ends_with('\t') {
        return error.help("indent with spaces");
    }
    error
}

/// Where each character stands in bytes: the parser counts characters.
struct Offsets {
    /// Empty for a text in which they are the same.
    bytes: Vec<usize>,
    end: usize,
}

impl Offsets {
    fn new(text: &str) -> Self {
        let bytes =
            if text.is_ascii() { Vec::new() } else { text.char_indices().map(|(at, _)| at).collect() };
        Self { bytes, end: text.len() }
    }

    fn byte(&self, index: usize) -> usize {
        match self.bytes.get(index) {
            Some(&byte) => byte,
            None if self.bytes.is_empty() => index.min(self.end),
            None => self.end,
        }
    }

    fn bytes(&self, span: &Span) -> Range<usize> {
        let start = self.byte(span.start.index());
        start..self.byte(span.end.index()).max(start)
    }
}
