//! `retake doctor`: looks at every record of the store, and repairs it where that is asked for.

mod fix;

use std::process::ExitCode;

use clap::Args;
use retake::store::{FORMAT, Store};
use serde_json::json;

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::wording;

/// Read and verify every record of the store.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Put a sound store with all that can be read in the place of a damaged one, which is kept beside it
    ///
    /// A run whose newest checkpoint is damaged falls back to the newest intact one, and what ran since runs again. Nobody
    /// else may have the store open. A sound store is left as it is.
    #[arg(long)]
    fix: bool,

    /// With --fix: show what would be kept and lost, and write nothing
    #[arg(long, requires = "fix")]
    dry_run: bool,
}

impl Doctor {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if self.fix {
            return fix::execute(app, self.dry_run);
        }
        let path = app.store_file()?;
        let bytes = app.stored_bytes()?;
        let (report, is_encrypted) = match &path {
            Some(path) => {
                let store = app.sqlite_store(path)?;
                (store.check().await?, store.is_encrypted())
            }
            None => (app.store().await?.check().await?, false),
        };
        let place = match &path {
            Some(path) => Some(path.display().to_string()),
            None => app.is_on_a_server()?.then(|| app.shown_store()),
        };
        let is_sound = report.problems.is_empty();
        // Opening a store brings it up to date, so its format is the newest.
        let format = path.is_some().then_some(FORMAT);
        if app.output.json {
            app.output.document(&json!({
                "sound": is_sound,
                "store": place,
                "format": format,
                "encrypted": is_encrypted,
                "file_bytes": bytes,
                "executions": report.executions,
                "checkpoints": report.checkpoints,
                "bytes": report.bytes,
                "problems": report.problems,
            }));
        } else {
            if let (Some(path), Some(format), Some(bytes)) = (&path, format, bytes) {
                let encrypted = if is_encrypted { ", encrypted" } else { "" };
                let bytes = wording::bytes(bytes);
                app.output.line(format!("{}: format {format}, {bytes}{encrypted}", path.display()));
            } else if let Some(place) = &place {
                app.output.line(place);
            }
            app.output.line(format!(
                "{}, {} and {} of records were read",
                wording::count(report.executions, "run"),
                wording::count(report.checkpoints, "checkpoint"),
                wording::bytes(report.bytes),
            ));
            report.problems.iter().for_each(|problem| app.output.line(wording::plain(problem)));
            app.output.line(if is_sound { "the store is sound" } else { "the store is damaged" });
            if !is_sound && path.is_some() {
                let look = app.command_line("doctor --fix --dry-run");
                app.output.note(format!("`{look}` shows what can be kept, and without `--dry-run` keeps it"));
            }
        }
        Ok(if is_sound { ExitCode::SUCCESS } else { Code::Store.exit() })
    }
}
