//! What is wrong with a workflow, and where.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// A workflow that is refused. It names every problem that was found, not only the first.
///
/// Shown plainly it is one line, `research.yaml:7:12: unknown node …`; as a [`miette::Diagnostic`] it shows the lines of the
/// file.
#[derive(Debug, Clone)]
pub struct WorkflowError(Box<Report>);

#[derive(Debug, Clone)]
struct Report {
    source: Option<NamedSource<Arc<str>>>,
    source_name: String,
    first: Problem,
    others: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    message: String,
    help: Option<String>,
    path: String,
    place: Option<Place>,
}

/// Where in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// In bytes.
    pub(super) at: Range<usize>,
}

impl WorkflowError {
    /// Returns the error of a file. Problems stand in the order of the file.
    pub(super) fn of_file(source_name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.place.as_ref().map_or(0, |place| place.at.start));
        let source = NamedSource::new(source_name, Arc::from(text)).with_language("yaml");
        Self::new(source_name, Some(source), problems)
    }

    /// Returns the error of something without lines: a definition, or bytes that are not text.
    pub(super) fn without_text(source_name: &str, problems: Vec<Problem>) -> Self {
        Self::new(source_name, None, problems)
    }

    fn new(source_name: &str, source: Option<NamedSource<Arc<str>>>, mut problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "an error has a problem");
        let first = problems.remove(0);
        Self(Box::new(Report { source, source_name: source_name.to_owned(), first, others: problems }))
    }

    /// Returns every problem, in the order of the file.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        std::iter::once(&self.0.first).chain(&self.0.others)
    }

    /// Returns the line of the first problem, from 1.
    pub fn line(&self) -> Option<usize> {
        self.0.first.line()
    }

    /// Returns the column of the first problem in characters, from 1.
    pub fn column(&self) -> Option<usize> {
        self.0.first.column()
    }
}

impl fmt::Display for WorkflowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { source_name, first, others, .. } = &*self.0;
        match &first.place {
            Some(place) => write!(f, "{source_name}:{}:{}: {}", place.line, place.column, first.message)?,
            None if first.path.is_empty() => write!(f, "{source_name}: {}", first.message)?,
            None => write!(f, "{source_name}: {}: {}", first.path, first.message)?,
        }
        match others.len() {
            0 => Ok(()),
            1 => f.write_str(" (and 1 more problem)"),
            more => write!(f, " (and {more} more problems)"),
        }
    }
}

impl std::error::Error for WorkflowError {}

impl Diagnostic for WorkflowError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.first.help()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.0.first.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.0.others.is_empty() {
            return None;
        }
        Some(Box::new(self.0.others.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}

impl Problem {
    pub(super) fn new(finding: Finding, place: Option<Place>) -> Self {
        Self { message: finding.message, help: finding.help, path: finding.path.to_string(), place }
    }

    /// Returns what is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns what to write instead.
    pub fn hint(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Returns where in the definition: `nodes.plan.needs[0]`, or nothing for all of it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the line, from 1.
    pub fn line(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.line)
    }

    /// Returns the column in characters, from 1.
    pub fn column(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new(
            Some("here".to_owned()),
            place.at.start,
            place.at.len(),
        ))))
    }
}

/// A problem that has a path and no lines yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) path: Path,
    /// Whether the key is meant, and not what stands behind it.
    pub(super) key: bool,
    /// Which part of the text there is meant, in bytes.
    pub(super) within: Option<Range<usize>>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Finding {
    pub(super) fn new(path: Path, message: impl Into<String>) -> Self {
        Self { path, key: false, within: None, message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn within(mut self, within: Range<usize>) -> Self {
        self.within = Some(within);
        self
    }

    pub(super) fn at_key(mut self) -> Self {
        self.key = true;
        self
    }
}

/// Leads from the whole definition to one value in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    pub(super) fn of<const N: usize>(keys: [&str; N]) -> Self {
        Self(keys.into_iter().map(|key| Step::Key(key.to_owned())).collect())
    }

    pub(super) fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    pub(super) fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
