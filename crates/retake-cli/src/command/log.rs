//! `retake log`: the history of a run.

mod graph;

use std::process::ExitCode;

use clap::Args;
use owo_colors::Style;
use retake::engine::address;
use retake::execution::ExecutionId;
use retake::store::{
    CheckpointRecord, ExecutionFilter, ExecutionRecord, HistoryPage, Origin, Seq, Store, StoreError,
};
use serde_json::{Value, json};

use self::graph::Item;
use crate::app::App;
use crate::barrier::Barriers;
use crate::failure::Failure;
use crate::table::{Cell, Table};
use crate::wording;

/// How many forks a graph shows: the nearest, and of those the newest.
const FORKS_MAX: usize = 100;

/// Show a run's history, newest first, and what caused each checkpoint.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The run
    run: String,

    /// At most so many checkpoints
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,

    /// Draw where lines were abandoned and where forks begin
    ///
    /// ● is a point of the current time line, ○ one of a line that was abandoned, ◌ one of which that cannot be told any
    /// more, because what followed it has been pruned. ◇ is a fork. ~ stands for points that are not shown.
    #[arg(long)]
    graph: bool,
}

/// A checkpoint, and how it stands to the current time line.
struct Entry {
    point: CheckpointRecord,
    line: Line,
}

/// How a point stands to the current time line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// It led to the head.
    Current,
    /// A rollback went back before it.
    Abandoned,
    /// It may have led to the head: what followed it has been pruned.
    Unknown,
}

/// A run that began at a point of another, and those that began at its points.
struct Fork {
    run: ExecutionRecord,
    origin: Origin,
    forks: Vec<Fork>,
}

/// All forks of a run, and of those.
struct Forks {
    /// Newest first.
    forks: Vec<Fork>,
    /// Whether there are more than are shown.
    has_more: bool,
}

impl Log {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let opened = app.open().await?;
        let store = opened.store();
        let run = address::resolve_run(&*store, &self.run).await?;
        let history = store.history(run.id, HistoryPage { before: None, limit: self.limit }).await?;
        let entries = entries(history);
        if self.graph {
            let forks = forks(&*store, run.id).await?;
            show_graph(app, &entries, &forks);
        } else if app.output.json {
            app.output.document(&entries.iter().map(document).collect::<Vec<_>>());
        } else {
            table(app, &entries).print(&app.output);
            let tickets = opened.tickets(&[run.id]).await?;
            let barriers = Barriers::look(opened.queue_if_any(), tickets.values()).await?;
            if let Some(waits) = wording::waits_for(app.clock.now(), &run, tickets.get(&run.id), &barriers) {
                app.output.note(format!("it waits {waits}"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Line {
    fn mark(self) -> char {
        match self {
            Self::Current => '●',
            Self::Abandoned => '○',
            Self::Unknown => '◌',
        }
    }

    /// Returns the word for a person, who need not be told of the usual.
    fn word(self) -> &'static str {
        match self {
            Self::Current | Self::Unknown => "",
            Self::Abandoned => "abandoned",
        }
    }

    /// Returns the value for a script: unknown is null.
    fn is_current(self) -> Option<bool> {
        match self {
            Self::Current => Some(true),
            Self::Abandoned => Some(false),
            Self::Unknown => None,
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Current | Self::Unknown => Style::new(),
            // What a rollback went back behind is still there, and steps aside.
            Self::Abandoned => Style::new().dimmed(),
        }
    }
}

fn entries(history: Vec<CheckpointRecord>) -> Vec<Entry> {
    // The point that comes next on the time line; those that are newer than it were abandoned.
    let mut next: Option<Seq> = history.first().map(|head| head.seq);
    let mut is_lost = false;
    let entry = |point: CheckpointRecord| {
        // The next one has been pruned, and with it what it followed.
        is_lost |= next.is_some_and(|next| point.seq < next);
        let line = match next {
            _ if is_lost => Line::Unknown,
            Some(next) if next == point.seq => Line::Current,
            Some(_) | None => Line::Abandoned,
        };
        if line == Line::Current {
            next = point.parent;
        }
        Entry { point, line }
    };
    history.into_iter().map(entry).collect()
}

fn document(entry: &Entry) -> Value {
    let point = &entry.point;
    json!({
        "seq": point.seq,
        "id": point.id,
        "created_at": point.created_at,
        "cause": point.cause,
        "label": point.label,
        "completed_node_count": point.completed_node_count,
        "size_bytes": point.size_bytes,
        "compressed": point.compressed,
        "nodes": point.nodes,
        "status": point.state.name(),
        "parent": point.parent,
        "current": entry.line.is_current(),
    })
}

fn table(app: &App, entries: &[Entry]) -> Table {
    let mut table =
        Table::new(["POINT", "LINE", "MADE", "CAUSE", "NODES", "LABEL", "STATUS", "DONE", "SIZE"]);
    for entry in entries {
        let Entry { point, line } = entry;
        let style = line.style();
        let [seq, made, cause, nodes, label, status] = cells(app, entry);
        let done = Cell::styled(point.completed_node_count.to_string(), style);
        let size = Cell::styled(wording::bytes(point.size_bytes), style);
        table.row([seq, Cell::styled(line.word(), style), made, cause, nodes, label, status, done, size]);
    }
    table
}

/// Returns what every table tells of a point.
fn cells(app: &App, Entry { point, line }: &Entry) -> [Cell; 6] {
    let style = line.style();
    let status = point.state.name();
    let colour = if *line == Line::Abandoned { style } else { wording::colour(status) };
    [
        Cell::styled(format!("@{}", point.seq), style),
        Cell::styled(wording::age(app.clock.now(), point.created_at), style),
        Cell::styled(wording::cause(&point.cause), style),
        Cell::styled(point.nodes.join(", "), style),
        Cell::styled(point.label.as_deref().unwrap_or_default(), style),
        Cell::styled(status, colour),
    ]
}

/// Reads the forks of a run, and theirs, the nearest first and at most [`FORKS_MAX`].
async fn forks(store: &dyn Store, run: ExecutionId) -> Result<Forks, StoreError> {
    let mut found: Vec<(ExecutionRecord, Origin)> = Vec::new();
    let mut has_more = false;
    let mut looked_at = 0;
    let mut next = Some(run);
    while let Some(origin) = next {
        let left = FORKS_MAX - found.len();
        let filter = ExecutionFilter { origin: Some(origin), limit: Some(left + 1), ..Default::default() };
        let runs = store.executions(&filter).await?;
        has_more |= runs.len() > left;
        found.extend(runs.into_iter().take(left).filter_map(|run| run.origin.map(|origin| (run, origin))));
        next = found.get(looked_at).map(|(run, _)| run.id);
        looked_at += 1;
    }
    // Those that were found last hang on those found before.
    let mut forks: Vec<Fork> = Vec::new();
    for (run, origin) in found.into_iter().rev() {
        let (own, others) = forks.into_iter().partition(|fork| fork.origin.execution_id == run.id);
        forks = others;
        forks.insert(0, Fork { run, origin, forks: own });
    }
    Ok(Forks { forks, has_more })
}

fn fork_document(fork: &Fork) -> Value {
    json!({
        "execution": fork.run.id,
        "name": fork.run.name,
        "workflow": fork.run.workflow_name,
        "status": fork.run.state.name(),
        "head": fork.run.head,
        "created_at": fork.run.created_at,
        "origin": { "execution": fork.origin.execution_id, "seq": fork.origin.seq },
        "forks": fork.forks.iter().map(fork_document).collect::<Vec<_>>(),
    })
}

/// What stands on a row of the graph.
enum Shown<'a> {
    Point(&'a Entry),
    Fork(&'a Fork, Option<&'a Fork>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Point(Seq),
    Fork(ExecutionId),
}

fn show_graph(app: &App, entries: &[Entry], Forks { forks, has_more }: &Forks) {
    if app.output.json {
        app.output.document(&json!({
            "points": entries.iter().map(document).collect::<Vec<_>>(),
            "forks": forks.iter().map(fork_document).collect::<Vec<_>>(),
            "more_forks": has_more,
        }));
        return;
    }
    let shown = shown(entries, forks);
    let items: Vec<Item<Key>> = shown.iter().map(Shown::item).collect();
    let mut table = Table::new(["", "POINT", "MADE", "CAUSE", "NODES", "LABEL", "STATUS"]);
    for row in graph::draw(&items) {
        let drawing = Cell::from(row.drawing);
        match row.item.map(|index| &shown[index]) {
            Some(Shown::Point(entry)) => {
                let [seq, made, cause, nodes, label, status] = cells(app, entry);
                table.row([drawing, seq, made, cause, nodes, label, status]);
            }
            Some(Shown::Fork(fork, of)) => {
                let status = wording::standing(&fork.run, None);
                let of = of.map(|of| format!(" of {}", of.run.name)).unwrap_or_default();
                let begin = format!("forked at @{}{of},", fork.origin.seq);
                let head = format!("at @{}", fork.run.head);
                let status = Cell::styled(status, wording::colour(status));
                table.aside([drawing, (&fork.run.name).into(), begin.into(), status, head.into()]);
            }
            None => table.aside([drawing]),
        }
    }
    table.print(&app.output);
    if *has_more {
        app.output.note(format!("there are more forks; these are the nearest {FORKS_MAX}"));
    }
}

/// Returns points and forks from the newest to the oldest: a fork just before the point that it began at.
fn shown<'a>(entries: &'a [Entry], forks: &'a [Fork]) -> Vec<Shown<'a>> {
    let mut shown = Vec::new();
    let mut left: Vec<&Fork> = forks.iter().collect();
    for entry in entries {
        // Those whose own point has been pruned stand where it stood.
        let (here, older) = left.into_iter().partition(|fork| fork.origin.seq >= entry.point.seq);
        left = older;
        push_forks(&mut shown, here);
        shown.push(Shown::Point(entry));
    }
    push_forks(&mut shown, left);
    shown
}

fn push_forks<'a>(shown: &mut Vec<Shown<'a>>, mut forks: Vec<&'a Fork>) {
    forks.sort_by_key(|fork| std::cmp::Reverse(fork.origin.seq));
    forks.into_iter().for_each(|fork| push_fork(shown, fork, None));
}

fn push_fork<'a>(shown: &mut Vec<Shown<'a>>, fork: &'a Fork, of: Option<&'a Fork>) {
    fork.forks.iter().for_each(|inner| push_fork(shown, inner, Some(fork)));
    shown.push(Shown::Fork(fork, of));
}

impl Shown<'_> {
    fn item(&self) -> Item<Key> {
        match self {
            Self::Point(Entry { point, line }) => {
                Item { key: Key::Point(point.seq), parent: point.parent.map(Key::Point), mark: line.mark() }
            }
            Self::Fork(fork, of) => {
                let parent = of.map_or(Key::Point(fork.origin.seq), |of| Key::Fork(of.run.id));
                Item { key: Key::Fork(fork.run.id), parent: Some(parent), mark: '◇' }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use retake::execution::ExecutionState;
    use retake::store::Cause;

    use super::*;

    fn lines(points: &[(Seq, Option<Seq>)]) -> Vec<Option<bool>> {
        let point = |(seq, parent): &(Seq, Option<Seq>)| CheckpointRecord {
            execution_id: ExecutionId::nil(),
            workflow_id: ExecutionId::nil(),
            seq: *seq,
            id: ExecutionId::from_u128(u128::from(*seq)),
            parent: *parent,
            created_at: DateTime::UNIX_EPOCH,
            cause: Cause::Nodes,
            nodes: Vec::new(),
            label: None,
            state: ExecutionState::Running,
            completed_node_count: 0,
            spend: retake::execution::Spend::default(),
            size_bytes: 0,
            compressed: false,
        };
        entries(points.iter().map(point).collect()).iter().map(|entry| entry.line.is_current()).collect()
    }

    #[test]
    fn points_that_a_rollback_went_back_behind_are_abandoned() {
        let history = [(5, Some(2)), (4, Some(3)), (3, Some(2)), (2, Some(1)), (1, None)];
        assert_eq!(lines(&history), [Some(true), Some(false), Some(false), Some(true), Some(true)]);
    }

    #[test]
    fn it_cannot_be_told_what_led_to_a_point_that_was_pruned() {
        let history = [(9, Some(5)), (8, Some(7)), (4, Some(3)), (2, Some(1))];
        assert_eq!(lines(&history), [Some(true), Some(false), None, None]);
    }
}
