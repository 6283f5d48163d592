//! `retake schema`: the JSON Schema of workflow files, for editors.

use std::process::ExitCode;

use clap::Args;

use crate::app::App;
use crate::failure::Failure;

/// Print the JSON Schema of workflow files.
///
/// An editor that knows it completes and checks while you type. For one file, its first line can name it:
/// `# yaml-language-server: $schema=workflow.schema.json`.
#[derive(Debug, Args)]
pub(crate) struct Schema {}

impl Schema {
    pub(crate) fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let schema = retake::workflow::schema();
        if app.output.json {
            app.output.document(&schema);
        } else {
            // It is kept in a file that people look at.
            app.output.line(format!("{schema:#}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}
