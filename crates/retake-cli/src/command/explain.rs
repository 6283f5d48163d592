//! `retake explain`: why a node stands as it does, and what would make it run again.

use std::process::ExitCode;

use clap::Args;
use owo_colors::{OwoColorize, Style};
use retake::engine::{Explanation, Trigger, address};
use serde_json::json;

use crate::app::App;
use crate::failure::Failure;
use crate::table::{Cell, Table};
use crate::wording;

/// Say why a node of a run ran, or was reused, and what would make it run again.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The run
    run: String,

    /// The node
    node: String,
}

impl Explain {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let explanation = engine.explain(run.id, &self.node).await?;
        if app.output.json {
            let mut document = json!(explanation);
            document["execution"] = json!(run.id);
            document["name"] = json!(run.name);
            document["head"] = json!(run.head);
            app.output.document(&document);
        } else {
            print(app, &run.name, &explanation);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(app: &App, run: &str, explanation: &Explanation) {
    let Explanation { node, status, recorded, because, reused, again_if, then } = explanation;
    let at = recorded.map_or_else(String::new, |seq| format!(", recorded @{seq}"));
    app.output.line(format!(
        "{} of {} {}{at}",
        node.bold(),
        wording::plain(run),
        status.style(wording::colour(status))
    ));
    app.output.line(wording::plain(because));
    for reuse in reused {
        let what = wording::cause(&reuse.cause);
        app.output.line(format!("reused @{} by {what}: {}", reuse.seq, wording::plain(&reuse.command)));
    }
    if !again_if.is_empty() {
        app.output.line("");
        let mut table = Table::new(["RUNS AGAIN IF", "", "", ""]);
        for trigger in again_if {
            let since = match trigger.has_changed {
                true => Cell::styled("what it saw was replaced later", Style::new().dimmed()),
                false => "".into(),
            };
            table.row([trigger.kind.into(), (&trigger.name).into(), changes(trigger).into(), since]);
        }
        table.print(&app.output);
    }
    if !then.is_empty() {
        app.output.line("");
        let mut table = Table::new(["THEN ALSO", ""]);
        for rerun in then {
            table.row([(&rerun.node).into(), (&rerun.because).into()]);
        }
        table.print(&app.output);
    }
}

fn changes(trigger: &Trigger) -> &'static str {
    match (trigger.kind, trigger.was_read) {
        ("definition", _) => "does something else",
        ("node", true) => "gives something else, which it had read",
        ("node", false) => "runs again and gives something else",
        ("input", _) => "is another, in another run",
        _ => "becomes something else",
    }
}
