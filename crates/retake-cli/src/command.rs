//! The commands, one file each.

pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod init;
pub(crate) mod ls;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod validate;

use std::process::ExitCode;

use crate::app::App;
use crate::arguments::Command;
use crate::failure::Failure;

/// Does what the command line says.
pub(crate) async fn execute(app: &App, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(run) => run.execute(app).await,
        Command::Resume(resume) => resume.execute(app).await,
        Command::Validate(validate) => validate.execute(app),
        Command::Schema(schema) => schema.execute(app),
        Command::Init(init) => init.execute(app),
        Command::Demo(demo) => demo.execute(app).await,
        Command::Completions(completions) => completions.execute(app),
        Command::Ls(ls) => ls.execute(app).await,
    }
}
