//! `retake approve`: decides what a run waits for.

use std::process::ExitCode;

use clap::Args;
use retake::engine::{Decision, address};
use retake::store::StoreExt;
use serde_json::{Value, json};

use crate::app::App;
use crate::asking;
use crate::assignment;
use crate::failure::Failure;
use crate::wording;

/// Approve or reject what a run waits for.
#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// The run
    run: String,

    /// The approval's node
    node: String,

    /// Reject it
    #[arg(long)]
    reject: bool,

    /// What to add, as JSON, as text, or as @FILE; it becomes part of the node's output
    #[arg(long, value_name = "JSON")]
    with: Option<String>,
}

impl Approve {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let with = self.with.as_deref().map(assignment::value).transpose()?.unwrap_or(Value::Null);
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let approved = !self.reject;
        let decided = engine.approve(run.id, &self.node, Decision { approved, with }, app.operation());
        let head = asking::done(app, &run, decided).await?;
        if app.output.json {
            app.output.document(&json!({
                "execution": run.id, "name": run.name, "node": self.node, "approved": approved, "head": head,
            }));
            return Ok(ExitCode::SUCCESS);
        }
        let decided = if approved { "approved" } else { "rejected" };
        app.output.line(format!("{decided} {} of {} at @{head}", self.node, wording::plain(&run.name)));
        let has_ticket = match engine.queue() {
            Ok(queue) => !queue.tickets(&[run.id]).await?.is_empty(),
            Err(_) => false,
        };
        if has_ticket && approved {
            app.output.note("a worker goes on with it");
        } else if engine.store().require(run.id).await?.leased_by.is_none() {
            let (command, does) =
                if approved { ("resume", "goes on") } else { ("undo", "takes the rejection back") };
            app.output.note(format!(
                "`{}` {does}",
                app.command_line(format!("{command} {}", wording::plain(&run.name)))
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
