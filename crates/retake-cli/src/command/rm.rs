//! `retake rm`: removes a run.

use std::process::ExitCode;

use clap::Args;
use retake::engine::address;
use serde_json::json;

use crate::app::App;
use crate::failure::Failure;
use crate::{question, wording};

/// Remove a run with its whole history; forks of it stay.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The run
    run: String,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Rm {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let store = app.store().await?;
        let run = address::resolve_run(&*store, &self.run).await?;
        let question =
            format!("remove {} with its history up to @{}, for good?", wording::plain(&run.name), run.head);
        if !self.yes && !question::confirm(app, &question)? {
            return Ok(ExitCode::SUCCESS);
        }
        let removed = store.delete(run.id).await?;
        if app.output.json {
            app.output
                .document(&json!({"execution": run.id, "name": run.name, "checkpoints_removed": removed}));
        } else {
            let points = wording::count(removed as u64, "checkpoint");
            app.output.line(format!("removed {} with {points}", wording::plain(&run.name)));
        }
        Ok(ExitCode::SUCCESS)
    }
}
