//! `retake ls`: the runs of a store.

use std::process::ExitCode;

use clap::Args;
use retake::store::{ExecutionFilter, ExecutionRecord};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::Failure;

/// List runs, newest first.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only those that stand so: running, completed, failed, cancelled or paused
    #[arg(long, value_name = "STATUS", value_parser = ["running", "completed", "failed", "cancelled", "paused"])]
    status: Option<String>,

    /// At most so many
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
}

impl Ls {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let filter = ExecutionFilter { state: self.status, address: None, limit: self.limit };
        let runs = app.store()?.executions(&filter).await?;
        if app.output.json {
            app.output.document(&runs.iter().map(document).collect::<Vec<_>>());
        } else {
            for run in &runs {
                app.output.line(format!("{}  {}  @{}", run.name, run.state.name(), run.head));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn document(run: &ExecutionRecord) -> Value {
    json!({
        "execution": run.id,
        "name": run.name,
        "workflow": run.workflow_name,
        "status": run.state.name(),
        "head": run.head,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "running_in": run.leased_by,
    })
}
