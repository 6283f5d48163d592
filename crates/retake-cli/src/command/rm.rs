//! `retake rm`: removes a run.

use std::process::ExitCode;

use clap::Args;
use retake::engine::address::{self, AddressError};
use retake::execution::ExecutionId;
use retake::store::StoreError;
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
        let (id, name, question) = match address::resolve_run(&*store, &self.run).await {
            Ok(run) => {
                let name = wording::plain(&run.name);
                let question = format!("remove {name} with its history up to @{}, for good?", run.head);
                (run.id, Some(run.name), question)
            }
            // Whoever knows its id can remove it all the same.
            Err(AddressError::Store(damage @ StoreError::Corrupt { .. })) => {
                let Ok(id) = self.run.parse::<ExecutionId>() else { return Err(damage.into()) };
                (
                    id,
                    None,
                    format!("remove {id}, which is damaged, with what is left of its history, for good?"),
                )
            }
            Err(error) => return Err(error.into()),
        };
        if !self.yes && !question::confirm(app, &question)? {
            return Ok(ExitCode::SUCCESS);
        }
        let removed = store.delete(id).await?;
        if app.output.json {
            app.output.document(&json!({"execution": id, "name": name, "checkpoints_removed": removed}));
        } else {
            let points = wording::count(removed as u64, "checkpoint");
            let name = name.unwrap_or_else(|| id.to_string());
            app.output.line(format!("removed {} with {points}", wording::plain(&name)));
        }
        Ok(ExitCode::SUCCESS)
    }
}
