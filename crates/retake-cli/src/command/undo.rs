//! `retake undo`: takes back the last operation.

use std::process::ExitCode;

use clap::Args;
use retake::engine::{Engine, address};
use retake::execution::ExecutionState;
use retake::store::{Cause, ExecutionRecord, Seq, StoreExt};
use serde_json::json;

use crate::app::App;
use crate::change::how_to_go_on;
use crate::command::rollback::EffectFlags;
use crate::failure::Failure;
use crate::wording;

/// Take back a run's last operation: a rollback, an edit, an approval or a cancellation.
#[derive(Debug, Args)]
pub(crate) struct Undo {
    /// The run
    run: String,

    #[command(flatten)]
    effects: EffectFlags,
}

impl Undo {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let head = engine.undo(run.id, self.effects.choice(), app.operation()).await?;
        tell(app, &engine, &run, head, "took back").await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Tells which operation was taken back, or done again, by the point that this made.
pub(crate) async fn tell(
    app: &App,
    engine: &Engine,
    run: &ExecutionRecord,
    head: Seq,
    done: &str,
) -> Result<(), Failure> {
    let log = engine.store().operations(run.id).await?;
    let cause = log.iter().find(|record| record.after == head).map(|record| &record.cause);
    let number = if let Some(Cause::Undo { operation } | Cause::Redo { operation }) = cause {
        Some(*operation)
    } else {
        None
    };
    let operation = log.iter().find(|record| Some(record.number) == number);
    if app.output.json {
        let command = operation.map(|operation| &operation.command);
        app.output.document(&json!({
            "execution": run.id, "name": run.name, "head": head, "operation": number, "command": command,
        }));
    } else {
        let what = operation.map_or_else(String::new, |operation| wording::plain(&operation.command));
        let name = wording::plain(&run.name);
        app.output.line(format!("{done} `{what}`: {name} is at @{head}"));
        // On a machine of its own nobody else would have gone on with it.
        let is_paused = engine.store().require(run.id).await?.state == ExecutionState::Paused;
        if is_paused && app.is_on_a_server()? {
            app.output.note(how_to_go_on(app, &name)?);
        }
    }
    Ok(())
}
