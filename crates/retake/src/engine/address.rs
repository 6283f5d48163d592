//! Addresses: how people name an execution, and a point of its history.
//!
//! | address | names |
//! | --- | --- |
//! | `RUN` | the head |
//! | `RUN@12` | the point with this number |
//! | `RUN@LABEL` | the newest point with this label, on whichever line of the history |
//! | `RUN@node:ID` | the newest point of the current time line that recorded the node |
//! | `RUN@-1` | the point one step before the head, on the current time line |
//! | `RUN@{5m}` | the point that was the head so long ago |
//!
//! `RUN` is a name or any unique prefix of an id, with or without hyphens; a name goes first. The *current time line* is
//! the head and what precedes it, point by point. After a rollback to `@5` that was appended as `@9`, `@-1` is `@5` and
//! `@-2` is `@4`: what had run in between is on another line, and is found by number or label.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::Clock;
use crate::execution::ExecutionId;
use crate::store::{CheckpointRecord, ExecutionFilter, ExecutionRecord, HistoryPage, Seq, Store, StoreError};
use crate::workflow::{parse_duration, suggestion};

/// How long a label may be, in bytes.
pub const LABEL_BYTES_MAX: usize = 200;

/// How many runs or labels an error lists.
const LISTED_MAX: usize = 10;

/// How many of the newest runs are compared with a name that none has.
const COMPARED_MAX: usize = 1_000;

/// How many points are read at once.
const PAGE: usize = 256;

/// The address of a point in the history of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The execution: its name, or a prefix of its id.
    pub run: String,
    /// The point.
    pub point: Point,
}

/// A point in a history, as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// The newest.
    Head,
    /// The one with a number.
    At(Seq),
    /// The newest with a label.
    Label(String),
    /// The newest of the current time line that recorded a node.
    AfterNode(String),
    /// So many steps before the head, on the current time line.
    Back(u64),
    /// The one that was the head so long ago.
    Ago(Duration),
}

/// What an address names.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The execution.
    pub execution: ExecutionRecord,
    /// The point.
    pub checkpoint: CheckpointRecord,
}

/// Why an address names nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It cannot be read.
    #[error("`{}` is not an address: {why}", address.escape_debug())]
    Syntax {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },

    /// No execution has the name, and no id begins so.
    #[error("no run is called `{}`, and no run's id begins so", run.escape_debug())]
    UnknownRun {
        /// What was asked for.
        run: String,
        /// A name that is much like it.
        near: Option<String>,
    },

    /// Several ids begin so. Write more of the id, or the name.
    #[error("`{run}` is the start of {count} ids: {}", listed(candidates, *count))]
    Ambiguous {
        /// What was asked for.
        run: String,
        /// The names of the newest of them.
        candidates: Vec<String>,
        /// How many there are.
        count: usize,
    },

    /// No point has the label.
    #[error("run `{name}` has no point labelled `{}`", label.escape_debug())]
    NoLabel {
        /// The execution's name.
        name: String,
        /// The label.
        label: String,
        /// The newest labels that there are.
        known: Vec<String>,
    },

    /// No point of the current time line recorded the node.
    #[error("no point on the time line of run `{name}` recorded node `{}`", node.escape_debug())]
    NeverRecorded {
        /// The execution's name.
        name: String,
        /// The node.
        node: String,
    },

    /// The current time line is shorter.
    #[error("run `{name}` has {} before its head, not {steps}", points(*most))]
    TooFarBack {
        /// The execution's name.
        name: String,
        /// How many steps were asked for.
        steps: u64,
        /// How many there are.
        most: u64,
    },

    /// The execution is younger.
    #[error("run `{name}` did not exist {} ago: it began at {created_at}", humantime::format_duration(*ago))]
    NothingThatLongAgo {
        /// The execution's name.
        name: String,
        /// How long ago.
        ago: Duration,
        /// When it began.
        created_at: DateTime<Utc>,
    },

    /// The point is beyond the head or has been pruned, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finds the execution that has a name, or whose id begins so.
///
/// # Errors
/// [`AddressError::UnknownRun`], [`AddressError::Ambiguous`], [`AddressError::Syntax`] where the text names a point.
pub async fn resolve_run(store: &dyn Store, run: &str) -> Result<ExecutionRecord, AddressError> {
    let syntax = |why: &str| AddressError::Syntax { address: run.to_owned(), why: why.to_owned() };
    if run.is_empty() {
        return Err(syntax("it names no run"));
    }
    let mut found = those(store, run).await?;
    // Ids are written in lower case, and pasted in either.
    if found.is_empty() && run.bytes().any(|byte| byte.is_ascii_uppercase()) {
        found = those(store, &run.to_ascii_lowercase()).await?;
        found.retain(|record| record.name != run.to_ascii_lowercase());
    }
    if let Some(named) = found.iter().position(|record| record.name == run) {
        return Ok(found.swap_remove(named));
    }
    match found.len() {
        0 if run.contains('@') => Err(syntax("only a run is wanted here, without a point")),
        0 => Err(unknown(store, run).await?),
        1 => Ok(found.swap_remove(0)),
        count => {
            let candidates = found.into_iter().take(LISTED_MAX).map(|record| record.name).collect();
            Err(AddressError::Ambiguous { run: run.to_owned(), candidates, count })
        }
    }
}

/// Finds the execution and the point that an address names. Costs the points between the head and the one named; a
/// number costs one read.
///
/// # Errors
/// What [`resolve_run`] refuses, and why there is no such point.
pub async fn resolve(
    store: &dyn Store,
    clock: &dyn Clock,
    address: &Address,
) -> Result<Resolved, AddressError> {
    let execution = resolve_run(store, &address.run).await?;
    let checkpoint = match &address.point {
        Point::Head => at(store, &execution, execution.head).await?,
        Point::At(seq) => at(store, &execution, *seq).await?,
        Point::Label(label) => labelled(store, &execution, label).await?,
        Point::AfterNode(node) => after_node(store, &execution, node).await?,
        Point::Back(steps) => back(store, &execution, *steps).await?,
        Point::Ago(ago) => ago_at(store, &execution, *ago, clock.now()).await?,
    };
    Ok(Resolved { execution, checkpoint })
}

/// Tells whether a text can be a label: one that no other form of address, and no terminal, would take for something
/// else.
///
/// # Errors
/// Says what is wrong.
///
/// ```
/// use retake::engine::address::check_label;
/// assert!(check_label("before the rewrite, 2").is_ok());
/// assert!(check_label("12").is_err());
/// ```
pub fn check_label(label: &str) -> Result<(), LabelError> {
    let why = match label {
        "" => "it is empty",
        _ if label.len() > LABEL_BYTES_MAX => "it is longer than 200 bytes",
        _ if label.bytes().all(|byte| byte.is_ascii_digit()) => "`@12` is the point with this number",
        _ if label.starts_with('-') => "`@-1` counts steps before the head",
        _ if label.starts_with('{') => "`@{5m}` is a time ago",
        _ if label.starts_with("node:") => "`@node:ID` is the point that recorded a node",
        _ if label.trim() != label => "it begins or ends with a space",
        _ if label.chars().any(char::is_control) => "it holds a control character",
        _ => return Ok(()),
    };
    Err(LabelError { label: label.to_owned(), why })
}

/// A text that cannot be a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` cannot be a label: {why}", label.escape_debug())]
pub struct LabelError {
    label: String,
    why: &'static str,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let syntax = |why: String| AddressError::Syntax { address: text.to_owned(), why };
        let (run, point) = match text.split_once('@') {
            None => (text, Point::Head),
            Some((_, "")) => return Err(syntax("nothing stands behind the `@`".to_owned())),
            Some((run, point)) => (run, point.parse().map_err(syntax)?),
        };
        if run.is_empty() {
            return Err(syntax("it names no run".to_owned()));
        }
        Ok(Self { run: run.to_owned(), point })
    }
}

impl FromStr for Point {
    type Err = String;

    /// Reads what stands behind the `@`; the error says what is wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| text.parse().map_err(|_| format!("no history has {text} points"));
        if is_number(text) {
            return number(text).map(Self::At);
        }
        if let Some(steps) = text.strip_prefix('-') {
            if !is_number(steps) {
                return Err("steps before the head are written `@-1`".to_owned());
            }
            return number(steps).map(Self::Back);
        }
        if let Some(rest) = text.strip_prefix('{') {
            let Some(ago) = rest.strip_suffix('}') else { return Err("the `{` is never closed".to_owned()) };
            return parse_duration(ago).map(Self::Ago).map_err(|error| error.to_string());
        }
        if let Some(node) = text.strip_prefix("node:") {
            if node.is_empty() {
                return Err("a node's id belongs behind `node:`".to_owned());
            }
            return Ok(Self::AfterNode(node.to_owned()));
        }
        check_label(text).map_err(|error| error.to_string())?;
        Ok(Self::Label(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        match &self.point {
            Point::Head => f.write_str(run),
            Point::At(seq) => write!(f, "{run}@{seq}"),
            Point::Label(label) => write!(f, "{run}@{label}"),
            Point::AfterNode(node) => write!(f, "{run}@node:{node}"),
            Point::Back(steps) => write!(f, "{run}@-{steps}"),
            Point::Ago(ago) => write!(f, "{run}@{{{}}}", humantime::format_duration(*ago)),
        }
    }
}

async fn those(store: &dyn Store, address: &str) -> Result<Vec<ExecutionRecord>, StoreError> {
    let filter = ExecutionFilter { address: Some(address.to_owned()), ..ExecutionFilter::default() };
    store.executions(&filter).await
}

async fn unknown(store: &dyn Store, run: &str) -> Result<AddressError, StoreError> {
    let filter = ExecutionFilter { limit: Some(COMPARED_MAX), ..ExecutionFilter::default() };
    let newest = store.executions(&filter).await?;
    let names: Vec<&str> = newest.iter().map(|record| record.name.as_str()).collect();
    let near = suggestion::nearest(run, &names).map(str::to_owned);
    Ok(AddressError::UnknownRun { run: run.to_owned(), near })
}

async fn at(
    store: &dyn Store,
    execution: &ExecutionRecord,
    seq: Seq,
) -> Result<CheckpointRecord, AddressError> {
    let (id, head) = (execution.id, execution.head);
    if seq == 0 || seq > head {
        return Err(StoreError::NoPoint { execution: id, seq, head }.into());
    }
    let page = HistoryPage { before: seq.checked_add(1), limit: Some(1) };
    match store.history(id, page).await?.pop() {
        Some(point) if point.seq == seq => Ok(point),
        Some(_) | None => Err(StoreError::Pruned { execution: id, seq }.into()),
    }
}

async fn labelled(
    store: &dyn Store,
    execution: &ExecutionRecord,
    label: &str,
) -> Result<CheckpointRecord, AddressError> {
    let mut history = History::new(store, execution.id);
    let mut known: Vec<String> = Vec::new();
    while let Some(point) = history.next().await? {
        match &point.label {
            Some(found) if found == label => return Ok(point),
            Some(found) if known.len() < LISTED_MAX && !known.contains(found) => known.push(found.clone()),
            Some(_) | None => {}
        }
    }
    Err(AddressError::NoLabel { name: execution.name.clone(), label: label.to_owned(), known })
}

async fn after_node(
    store: &dyn Store,
    execution: &ExecutionRecord,
    node: &str,
) -> Result<CheckpointRecord, AddressError> {
    let mut line = TimeLine::new(store, execution);
    while let Some(point) = line.next().await? {
        if point.nodes.iter().any(|recorded| recorded == node) {
            return Ok(point);
        }
    }
    Err(AddressError::NeverRecorded { name: execution.name.clone(), node: node.to_owned() })
}

async fn back(
    store: &dyn Store,
    execution: &ExecutionRecord,
    steps: u64,
) -> Result<CheckpointRecord, AddressError> {
    let mut line = TimeLine::new(store, execution);
    let mut most = 0;
    while let Some(point) = line.next().await? {
        if most == steps {
            return Ok(point);
        }
        most += 1;
    }
    Err(AddressError::TooFarBack { name: execution.name.clone(), steps, most: most.saturating_sub(1) })
}

async fn ago_at(
    store: &dyn Store,
    execution: &ExecutionRecord,
    ago: Duration,
    now: DateTime<Utc>,
) -> Result<CheckpointRecord, AddressError> {
    let then = TimeDelta::from_std(ago).ok().and_then(|ago| now.checked_sub_signed(ago));
    let mut history = History::new(store, execution.id);
    let mut oldest = None;
    while let (Some(then), Some(point)) = (then, history.next().await?) {
        if point.created_at <= then {
            return Ok(point);
        }
        oldest = Some(point.seq);
    }
    match oldest {
        // The run was there, and the points of that time are not any more.
        Some(oldest) if oldest > 1 && then.is_some_and(|then| execution.created_at <= then) => {
            Err(StoreError::Pruned { execution: execution.id, seq: oldest - 1 }.into())
        }
        Some(_) | None => {
            let (name, created_at) = (execution.name.clone(), execution.created_at);
            Err(AddressError::NothingThatLongAgo { name, ago, created_at })
        }
    }
}

/// A history, newest first, read in pages.
struct History<'s> {
    store: &'s dyn Store,
    id: ExecutionId,
    before: Option<Seq>,
    page: std::vec::IntoIter<CheckpointRecord>,
    is_last: bool,
}

impl<'s> History<'s> {
    fn new(store: &'s dyn Store, id: ExecutionId) -> Self {
        Self { store, id, before: None, page: Vec::new().into_iter(), is_last: false }
    }

    async fn next(&mut self) -> Result<Option<CheckpointRecord>, StoreError> {
        if self.page.len() == 0 && !self.is_last {
            let page = HistoryPage { before: self.before, limit: Some(PAGE) };
            let points = self.store.history(self.id, page).await?;
            self.is_last = points.len() < PAGE;
            self.page = points.into_iter();
        }
        let next = self.page.next();
        if let Some(point) = &next {
            self.before = Some(point.seq);
        }
        Ok(next)
    }
}

/// The head and what precedes it, newest first.
struct TimeLine<'s> {
    history: History<'s>,
    next: Option<Seq>,
}

impl<'s> TimeLine<'s> {
    fn new(store: &'s dyn Store, execution: &ExecutionRecord) -> Self {
        Self { history: History::new(store, execution.id), next: Some(execution.head) }
    }

    /// A point precedes only later ones, so one pass over the history meets the whole line.
    ///
    /// # Errors
    /// [`StoreError::Pruned`] where the line goes on, but nobody knows how.
    async fn next(&mut self) -> Result<Option<CheckpointRecord>, StoreError> {
        let Some(seq) = self.next else { return Ok(None) };
        while let Some(point) = self.history.next().await? {
            if point.seq == seq {
                self.next = point.parent;
                return Ok(Some(point));
            }
            if point.seq < seq {
                break;
            }
        }
        Err(StoreError::Pruned { execution: self.history.id, seq })
    }
}

fn listed(names: &[String], count: usize) -> String {
    let names_listed = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match count.saturating_sub(names.len()) {
        0 => names_listed,
        more => format!("{names_listed} and {more} more"),
    }
}

fn points(count: u64) -> String {
    match count {
        0 => "no point".to_owned(),
        1 => "1 point".to_owned(),
        more => format!("{more} points"),
    }
}

#[cfg(test)]
mod tests;
