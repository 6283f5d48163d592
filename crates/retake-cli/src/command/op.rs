//! `retake op`: the operations of people on a run.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use retake::engine::address;
use retake::store::OperationRecord;
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::Failure;
use crate::table::Table;
use crate::wording;

/// Show what people did to a run.
#[derive(Debug, Args)]
pub(crate) struct Op {
    #[command(subcommand)]
    command: OpCommand,
}

#[derive(Debug, Subcommand)]
enum OpCommand {
    /// List the operations on a run, newest first
    Log {
        /// The run
        run: String,
    },
}

impl Op {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let OpCommand::Log { run } = self.command;
        let store = app.store().await?;
        let run = address::resolve_run(&*store, &run).await?;
        let log = store.operations(run.id).await?;
        if app.output.json {
            app.output.document(&log.iter().map(document).collect::<Vec<_>>());
        } else if log.is_empty() {
            app.output.note(format!("nobody did anything to {}", wording::plain(&run.name)));
        } else {
            table(app, &log).print(&app.output);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn document(record: &OperationRecord) -> Value {
    json!({
        "number": record.number,
        "at": record.at,
        "who": record.who,
        "command": record.command,
        "kind": record.cause.kind(),
        "before": record.before,
        "after": record.after,
        "cause": record.cause,
    })
}

fn table(app: &App, log: &[OperationRecord]) -> Table {
    let now = app.clock.now();
    let mut table = Table::new(["OPERATION", "DONE", "BY", "WHAT", "HEAD", "COMMAND"]);
    for record in log {
        table.row([
            record.number.to_string().into(),
            wording::age(now, record.at).into(),
            (&record.who).into(),
            wording::cause(&record.cause).into(),
            format!("@{} to @{}", record.before, record.after).into(),
            (&record.command).into(),
        ]);
    }
    table
}
