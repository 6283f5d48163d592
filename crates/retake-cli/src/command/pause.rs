//! `retake pause`: lets a run stop where it can go on.

use std::process::ExitCode;

use clap::Args;
use retake::engine::address;
use retake::store::StoreExt;
use serde_json::json;

use crate::app::App;
use crate::asking;
use crate::failure::Failure;
use crate::wording;

/// Pause a run: nodes that are in flight finish first.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The run
    run: String,
}

impl Pause {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let head = asking::done(app, &run, engine.pause(run.id, app.operation())).await?;
        let status = engine.store().require(run.id).await?.state.name();
        if app.output.json {
            app.output
                .document(&json!({"execution": run.id, "name": run.name, "status": status, "head": head}));
        } else {
            app.output.line(format!("{} is {status} at @{head}", wording::plain(&run.name)));
        }
        Ok(ExitCode::SUCCESS)
    }
}
