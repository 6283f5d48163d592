//! `retake redo`: does again what was taken back.

use std::process::ExitCode;

use clap::Args;
use retake::engine::address;

use crate::app::App;
use crate::command::rollback::EffectFlags;
use crate::command::undo::tell;
use crate::failure::Failure;

/// Do again what `retake undo` took back last.
#[derive(Debug, Args)]
pub(crate) struct Redo {
    /// The run
    run: String,

    #[command(flatten)]
    effects: EffectFlags,
}

impl Redo {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let head = engine.redo(run.id, self.effects.choice(), app.operation()).await?;
        tell(app, &engine, &run, head, "did again").await?;
        Ok(ExitCode::SUCCESS)
    }
}
