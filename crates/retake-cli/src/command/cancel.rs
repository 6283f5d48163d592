//! `retake cancel`: ends a run.

use std::process::ExitCode;

use clap::Args;
use retake::engine::address;
use retake::store::StoreExt;
use serde_json::json;

use crate::app::App;
use crate::asking;
use crate::failure::Failure;
use crate::wording;

/// End a run, and the nodes that are in flight; `retake undo` takes it back.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The run
    run: String,
}

impl Cancel {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let head = asking::done(app, &run, engine.cancel(run.id, app.operation())).await?;
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
