//! `retake log`: the history of a run.

use std::process::ExitCode;

use clap::Args;
use owo_colors::Style;
use retake::engine::address;
use retake::store::{CheckpointRecord, HistoryPage, Seq};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::Failure;
use crate::table::{Cell, Table};
use crate::wording;

/// Show a run's history, newest first, and what caused each checkpoint.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The run
    run: String,

    /// At most so many checkpoints
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
}

/// A checkpoint, and whether it is on the current time line: no rollback went back before it.
struct Entry {
    point: CheckpointRecord,
    is_current: bool,
}

impl Log {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let store = app.store()?;
        let run = address::resolve_run(&*store, &self.run).await?;
        let history = store.history(run.id, HistoryPage { before: None, limit: self.limit }).await?;
        let entries = entries(history);
        if app.output.json {
            app.output.document(&entries.iter().map(document).collect::<Vec<_>>());
        } else {
            table(app, &entries).print(&app.output);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn entries(history: Vec<CheckpointRecord>) -> Vec<Entry> {
    let mut next: Option<Seq> = history.first().map(|head| head.seq);
    let entry = |point: CheckpointRecord| {
        let is_current = next == Some(point.seq);
        if is_current {
            next = point.parent;
        }
        Entry { point, is_current }
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
        "current": entry.is_current,
    })
}

fn table(app: &App, entries: &[Entry]) -> Table {
    let now = app.clock.now();
    let mut table = Table::new(["POINT", "MADE", "CAUSE", "NODES", "LABEL", "STATUS", "DONE", "SIZE"]);
    for Entry { point, is_current } in entries {
        // What a rollback went back behind is still there, and steps aside.
        let style = if *is_current { Style::new() } else { Style::new().dimmed() };
        let status = point.state.name();
        let colour = if *is_current { wording::colour(status) } else { style };
        table.row([
            Cell::styled(format!("@{}", point.seq), style),
            Cell::styled(wording::age(now, point.created_at), style),
            Cell::styled(wording::cause(&point.cause), style),
            Cell::styled(point.nodes.join(", "), style),
            Cell::styled(point.label.as_deref().unwrap_or_default(), style),
            Cell::styled(status, colour),
            Cell::styled(point.completed_node_count.to_string(), style),
            Cell::styled(wording::bytes(point.size_bytes), style),
        ]);
    }
    table
}
