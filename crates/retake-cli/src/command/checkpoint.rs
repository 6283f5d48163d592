//! `retake checkpoint`: a checkpoint because somebody wants one.

use std::process::ExitCode;

use clap::Args;
use retake::engine::address;
use serde_json::json;

use crate::app::App;
use crate::asking;
use crate::failure::{Code, Failure};
use crate::wording;

/// Make a checkpoint now, under a label if you like; labelled ones are never pruned.
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    /// The run
    run: String,

    /// A name to find it by, as RUN@LABEL
    #[arg(short, long)]
    label: Option<String>,
}

impl Checkpoint {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if let Some(label) = &self.label {
            address::check_label(label).map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
        }
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let saved = engine.checkpoint(run.id, self.label.clone(), app.operation());
        let head = asking::done(app, &run, saved).await?;
        if app.output.json {
            app.output
                .document(&json!({"execution": run.id, "name": run.name, "head": head, "label": self.label}));
        } else {
            let labelled = self.label.map(|label| format!(", labelled `{label}`")).unwrap_or_default();
            app.output.line(format!("{} is saved at @{head}{labelled}", wording::plain(&run.name)));
        }
        Ok(ExitCode::SUCCESS)
    }
}
