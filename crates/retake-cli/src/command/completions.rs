//! `retake completions`: what a shell needs to complete this command.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use crate::app::App;
use crate::arguments::Arguments;
use crate::failure::Failure;

/// Print what a shell needs to complete this command.
///
/// For bash: `source <(retake completions bash)`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "retake", &mut script);
        let script = String::from_utf8_lossy(&script);
        if app.output.json {
            app.output.document(&json!({"shell": self.shell.to_string(), "script": script}));
        } else {
            app.output.line(script.trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}
