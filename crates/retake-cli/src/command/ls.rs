//! `retake ls`: the runs of a store.

use std::process::ExitCode;

use clap::Args;
use retake::execution::Cost;
use retake::store::{ExecutionFilter, ExecutionRecord};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::Failure;
use crate::table::{Cell, Table};
use crate::wording;

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
        let filter = ExecutionFilter { state: self.status, limit: self.limit, ..ExecutionFilter::default() };
        let runs = app.store().await?.executions(&filter).await?;
        if app.output.json {
            app.output.document(&runs.iter().map(document).collect::<Vec<_>>());
        } else if runs.is_empty() {
            app.output.note("no runs");
        } else {
            table(app, &runs).print(&app.output);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn document(run: &ExecutionRecord) -> Value {
    let mut document = json!({
        "execution": run.id,
        "name": run.name,
        "workflow": run.workflow_name,
        "status": run.state.name(),
        "head": run.head,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "running_in": run.leased_by,
        "origin": run.origin.map(|origin| json!({"execution": origin.execution_id, "seq": origin.seq})),
    });
    wording::spend_keys(&run.spend).into_iter().for_each(|(key, value)| document[key] = value);
    document
}

fn table(app: &App, runs: &[ExecutionRecord]) -> Table {
    let now = app.clock.now();
    let mut table =
        Table::new(["RUN", "STATUS", "HEAD", "WORKFLOW", "SPENT", "REUSED", "CHANGED", "CREATED"]);
    for run in runs {
        let status = wording::standing(run);
        table.row([
            (&run.name).into(),
            Cell::styled(status, wording::colour(status)),
            format!("@{}", run.head).into(),
            (&run.workflow_name).into(),
            cost(&run.spend.paid).into(),
            cost(&run.spend.reused).into(),
            wording::age(now, run.updated_at).into(),
            wording::age(now, run.created_at).into(),
        ]);
    }
    table
}

/// Returns a sum for a person; nothing where nothing was bought.
fn cost(cost: &Cost) -> String {
    match cost.priced + cost.unpriced {
        0 => String::new(),
        _ => wording::money(cost.usd().as_deref()),
    }
}
