//! The export file: a history as lines of JSON that a person can read, and that say whether they are whole.
//!
//! ```text
//! {"retake":"history","version":1,"execution":{…}}     the first line
//! {"workflow":"ID",…}                                  one a workflow
//! {"point":1,…,"changes":[…]}                          one a point, oldest first
//! {"operation":1,…}                                    one an operation, oldest first
//! {"end":"history","lines":N,"blake3":"…"}             over the N lines before
//! ```
//!
//! What reads it takes nobody's word: a line is bounded before it is read, and what a value would lose is refused. The
//! hash finds what was cut or flipped; it does not tell who wrote the file.

mod checksum;
mod error;
mod line;

use std::io::{BufRead, Read, Write};

use serde_json::Value;

pub use error::HistoryFileError;

use self::line::{EndLine, FirstLine, HistoryLine, OperationLine, PointLine, WorkflowLine};
use super::{History, HistoryPoint};
use crate::execution::{ExactError, ExecutionContext, parse_exact_within};
use crate::store::{Image, Key, StoreError, context, context_sharing};

/// The version of export files that this version writes, and the newest that it reads.
pub const HISTORY_FILE_VERSION: u32 = 1;

/// Longest line of an export file, in bytes, its end included: one line holds all that changed at one point.
pub const HISTORY_LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Largest export file, in bytes: a history is put together in memory before any of it is stored.
pub const HISTORY_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// How deeply values lie in each other in a line: [`DEPTH_MAX`](crate::store::DEPTH_MAX) for those that are stored, and
/// what is around them. `serde_json` reads 127 levels.
const LINE_DEPTH_MAX: usize = 120;

/// What every export file begins with.
const BEGINNING: &[u8] = b"{\"retake\":\"history\",";

/// How much may be read and written.
#[derive(Debug, Clone, Copy)]
struct Limits {
    line_bytes: u64,
    file_bytes: u64,
}

const LIMITS: Limits = Limits { line_bytes: HISTORY_LINE_BYTES_MAX, file_bytes: HISTORY_FILE_BYTES_MAX };

impl History {
    /// Writes this history as an export file. Every line is read back before it is written, so that what was exported
    /// can be imported.
    ///
    /// # Errors
    /// [`HistoryFileError::Unwritable`] and [`HistoryFileError::TooLarge`] for what could not be read back,
    /// [`HistoryFileError::Write`]. What has been written by then is no whole file, and reading it says so.
    pub fn write_to(&self, out: impl Write) -> Result<(), HistoryFileError> {
        self.states().map_err(HistoryFileError::Unwritable)?;
        let mut out = Lines::new(out, LIMITS);
        out.put("the execution", FirstLine::of(&self.execution))?;
        for workflow in &self.workflows {
            out.put(&format!("workflow {}", workflow.id), WorkflowLine::of(workflow))?;
        }
        for point in &self.points {
            out.put(&format!("point @{}", point.record.seq), PointLine::of(point))?;
        }
        for operation in &self.operations {
            out.put(&format!("operation {}", operation.number), OperationLine::of(operation))?;
        }
        let end = EndLine::new(out.lines, out.hasher.finalize());
        out.put("the end", end)?;
        out.out.flush().map_err(HistoryFileError::Write)
    }

    /// Reads an export file to its end.
    ///
    /// # Errors
    /// By the line that is not what [`write_to`](Self::write_to) would have written: [`HistoryFileError::Cut`] and
    /// [`HistoryFileError::Changed`] where the file is not whole, [`HistoryFileError::NewerVersion`] for another
    /// version, [`HistoryFileError::NotAHistory`] and [`HistoryFileError::Line`] for what it says,
    /// [`HistoryFileError::TooLarge`], and [`HistoryFileError::Read`].
    ///
    /// ```
    /// use retake::store::{History, HistoryFileError};
    ///
    /// let error = History::read_from(&b"{\"retake\":\"history\",\"version\":7}\n"[..]).unwrap_err();
    /// assert!(matches!(error, HistoryFileError::NewerVersion { found: 7, .. }));
    /// ```
    pub fn read_from(input: impl BufRead) -> Result<Self, HistoryFileError> {
        read(input, LIMITS)
    }
}

/// The lines of a file that is being written.
struct Lines<W> {
    out: W,
    hasher: blake3::Hasher,
    lines: u64,
    bytes: u64,
    limits: Limits,
}

impl<W: Write> Lines<W> {
    fn new(out: W, limits: Limits) -> Self {
        Self { out, hasher: blake3::Hasher::new(), lines: 0, bytes: 0, limits }
    }

    /// Writes a line. `path` names what it says.
    fn put<L: HistoryLine>(&mut self, path: &str, line: L) -> Result<(), HistoryFileError> {
        let unwritable =
            |why: String| HistoryFileError::Unwritable(StoreError::Unstorable { path: path.to_owned(), why });
        let mut text = serde_json::to_string(&line).map_err(|error| unwritable(error.to_string()))?;
        let back: L = parsed(&text).and_then(line::typed).map_err(unwritable)?;
        if back != line {
            return Err(unwritable("JSON cannot say it exactly".to_owned()));
        }
        text.push('\n');
        let length = text.len() as u64;
        self.lines += 1;
        self.bytes += length;
        check_size(self.lines, length, self.bytes, self.limits)?;
        self.hasher.update(text.as_bytes());
        self.out.write_all(text.as_bytes()).map_err(HistoryFileError::Write)
    }
}

fn check_size(line: u64, line_bytes: u64, file_bytes: u64, limits: Limits) -> Result<(), HistoryFileError> {
    if line_bytes > limits.line_bytes {
        return Err(HistoryFileError::TooLarge { line, what: "the line", max: limits.line_bytes });
    }
    if file_bytes > limits.file_bytes {
        return Err(HistoryFileError::TooLarge { line, what: "the file", max: limits.file_bytes });
    }
    Ok(())
}

/// Returns the value of a line, exactly.
fn parsed(text: &str) -> Result<Value, String> {
    parse_exact_within(text, LINE_DEPTH_MAX).map_err(|error| match &error {
        ExactError::NotJson(source) | ExactError::Text { source, .. } => format!("{error}: {source}"),
        ExactError::Number { .. } | ExactError::Duplicate { .. } | ExactError::TooDeep { .. } => {
            error.to_string()
        }
    })
}

/// A file that is being read.
struct Reader<R> {
    input: R,
    hasher: blake3::Hasher,
    /// Lines that were read.
    line: u64,
    bytes: u64,
    limits: Limits,
}

impl<R: BufRead> Reader<R> {
    /// Reads a line into the hash, unless it is the end: that one is for the lines before.
    fn next(&mut self) -> Result<Value, HistoryFileError> {
        let mut text = Vec::new();
        let room = self.limits.line_bytes.min(self.limits.file_bytes - self.bytes);
        (&mut self.input)
            .take(room + 1)
            .read_until(b'\n', &mut text)
            .map_err(|source| HistoryFileError::Read { line: self.line + 1, source })?;
        let length = text.len() as u64;
        check_size(self.line + 1, length, self.bytes + length, self.limits)?;
        if text.last() != Some(&b'\n') {
            let begins = text.iter().zip(BEGINNING).all(|(found, expected)| found == expected);
            if self.line == 0 && !begins {
                return Err(HistoryFileError::NotAHistory { why: line::NOT_OURS.to_owned() });
            }
            return Err(HistoryFileError::Cut { line: self.line + 1 });
        }
        self.line += 1;
        self.bytes += length;
        let value = std::str::from_utf8(&text)
            .map_err(|error| error.to_string())
            .and_then(|text| parsed(text.trim_end_matches('\n')))
            .map_err(|why| self.wrong(why))?;
        if line::tag(&value) != Some("end") {
            self.hasher.update(&text);
        }
        Ok(value)
    }

    fn wrong(&self, why: String) -> HistoryFileError {
        wrong(self.line, why)
    }

    fn typed<L: HistoryLine>(&self, value: Value) -> Result<L, HistoryFileError> {
        line::typed(value).map_err(|why| self.wrong(why))
    }
}

fn wrong(line: u64, why: String) -> HistoryFileError {
    if line == 1 { HistoryFileError::NotAHistory { why } } else { HistoryFileError::Line { line, why } }
}

fn read(input: impl BufRead, limits: Limits) -> Result<History, HistoryFileError> {
    let mut reader = Reader { input, hasher: blake3::Hasher::new(), line: 0, bytes: 0, limits };
    let first = reader.next()?;
    line::check_version(&first)?;
    let first: FirstLine = reader.typed(first)?;
    let mut history = History {
        execution: first.into_execution(),
        workflows: Vec::new(),
        points: Vec::new(),
        operations: Vec::new(),
    };
    // The line that each point stands in, so that an error can name it.
    let mut lines = Vec::new();
    loop {
        let value = reader.next()?;
        match line::tag(&value) {
            Some("workflow") if history.points.is_empty() && history.operations.is_empty() => {
                let workflow: WorkflowLine = reader.typed(value)?;
                history.workflows.push(workflow.into_workflow().map_err(|why| reader.wrong(why))?);
            }
            Some("point") if history.operations.is_empty() => {
                let point: PointLine = reader.typed(value)?;
                let point = point.into_point(history.execution.id).map_err(|why| reader.wrong(why))?;
                history.points.push(point);
                lines.push(reader.line);
            }
            Some("operation") => {
                let operation: OperationLine = reader.typed(value)?;
                history.operations.push(operation.into_operation());
            }
            Some("end") => {
                let end: EndLine = reader.typed(value)?;
                if !end.is_of(reader.line - 1, reader.hasher.finalize()) {
                    return Err(HistoryFileError::Changed { lines: reader.line - 1 });
                }
                break;
            }
            Some("workflow" | "point") => {
                return Err(reader.wrong("workflows come first, then points, then operations".to_owned()));
            }
            Some(_) | None => {
                return Err(reader.wrong("it is no workflow, point, operation or end".to_owned()));
            }
        }
    }
    let mut rest = [0];
    let more = reader
        .input
        .read(&mut rest)
        .map_err(|source| HistoryFileError::Read { line: reader.line, source })?;
    if more > 0 {
        return Err(wrong(reader.line + 1, "the file goes on behind its end".to_owned()));
    }
    let states = history.states().map_err(HistoryFileError::NotWhole)?;
    decode(&history.points, &states, &lines)?;
    Ok(history)
}

/// Decodes every state, unless it is that of another library: those of this one have a header. A value of the wrong kind
/// would else be found by whoever reads it, as damage.
fn decode(points: &[HistoryPoint], states: &[Image], lines: &[u64]) -> Result<(), HistoryFileError> {
    let mut before: Option<(ExecutionContext, &Image)> = None;
    for ((point, state), line) in points.iter().zip(states).zip(lines) {
        if state.get(&Key::Header).is_none() {
            continue;
        }
        let id = point.record.execution_id;
        let ctx = match &before {
            Some((ctx, image)) => context_sharing((ctx, image), id, state),
            None => context(id, state),
        };
        let ctx = ctx.map_err(|error| {
            let why = match error {
                StoreError::Corrupt { record, why } => format!("{record}: {why}"),
                other @ (StoreError::NoExecution(_)
                | StoreError::NoPoint { .. }
                | StoreError::Pruned { .. }
                | StoreError::ForeignPosition { .. }
                | StoreError::Conflict(_)
                | StoreError::Unstorable { .. }
                | StoreError::NewerFormat { .. }
                | StoreError::Key { .. }
                | StoreError::NotAStore { .. }
                | StoreError::Absent { .. }
                | StoreError::Refused { .. }
                | StoreError::Full { .. }
                | StoreError::Io { .. }
                | StoreError::Closed { .. }) => other.to_string(),
            };
            wrong(*line, why)
        })?;
        before = Some((ctx, state));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
