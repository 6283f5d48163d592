//! `retake ls`: the runs of a store, or its workers.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use retake::execution::{Cost, ExecutionId};
use retake::store::{ExecutionFilter, ExecutionRecord, TicketRecord, TicketStand, WorkerRecord, WorkerStand};
use serde_json::{Value, json};

use crate::app::App;
use crate::barrier::Barriers;
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

    /// The workers of the store instead, newest first; needs a PostgreSQL store
    #[arg(long, conflicts_with_all = ["status", "limit"])]
    workers: bool,
}

impl Ls {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if self.workers {
            list_workers(app, &app.queue("`--workers`").await?.workers().await?);
            return Ok(ExitCode::SUCCESS);
        }
        let opened = app.open().await?;
        let filter = ExecutionFilter { state: self.status, limit: self.limit, ..ExecutionFilter::default() };
        let runs = opened.store().executions(&filter).await?;
        let ids: Vec<_> = runs.iter().map(|run| run.id).collect();
        let tickets = opened.tickets(&ids).await?;
        if app.output.json {
            let runs = runs.iter().map(|run| document(run, tickets.get(&run.id)));
            app.output.document(&runs.collect::<Vec<_>>());
        } else if runs.is_empty() {
            app.output.note("no runs");
        } else {
            let barriers = Barriers::look(opened.queue_if_any(), tickets.values()).await?;
            table(app, &runs, &tickets, &barriers).print(&app.output);
            let mut stands = tickets.values().map(|ticket| ticket.stands);
            if stands.any(|stands| matches!(stands, TicketStand::Held | TicketStand::Stuck)) {
                let show = app.command_line("show RUN");
                app.output.note(format!("`{show}` says how a run goes on that waits for somebody"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn document(run: &ExecutionRecord, ticket: Option<&TicketRecord>) -> Value {
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
    document["ticket"] = json!(ticket);
    document
}

fn list_workers(app: &App, workers: &[WorkerRecord]) {
    if app.output.json {
        app.output.document(&workers);
        return;
    }
    if workers.is_empty() {
        app.output.note("no workers");
        return;
    }
    let now = app.clock.now();
    let mut table = Table::new(["WORKER", "STATUS", "VERSION", "QUEUES", "RUNS", "SEEN", "STARTED"]);
    for WorkerRecord { report, started_at, seen_at, stands } in workers {
        let status = match stands {
            WorkerStand::Alive => Cell::from("alive"),
            WorkerStand::Lost => Cell::styled("lost", wording::colour("lost")),
        };
        // What one had that died is with others, or will be.
        let runs = match stands {
            WorkerStand::Alive => format!("{} of {}", report.running, report.concurrency),
            WorkerStand::Lost => String::new(),
        };
        let queues = if report.queues.is_empty() { "all".to_owned() } else { report.queues.join(", ") };
        table.row([
            (&report.name).into(),
            status,
            (&report.version).into(),
            queues.into(),
            runs.into(),
            wording::age(now, *seen_at).into(),
            wording::age(now, *started_at).into(),
        ]);
    }
    table.print(&app.output);
}

fn table(
    app: &App,
    runs: &[ExecutionRecord],
    tickets: &BTreeMap<ExecutionId, TicketRecord>,
    barriers: &Barriers,
) -> Table {
    let now = app.clock.now();
    let mut table =
        Table::new(["RUN", "STATUS", "WAITS", "HEAD", "WORKFLOW", "SPENT", "REUSED", "CHANGED", "CREATED"]);
    for run in runs {
        let ticket = tickets.get(&run.id);
        let status = wording::standing(run, ticket);
        table.row([
            (&run.name).into(),
            Cell::styled(status, wording::colour(status)),
            wording::waits_for(now, run, ticket, barriers).unwrap_or_default().into(),
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
