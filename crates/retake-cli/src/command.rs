//! The commands, one file each.

pub(crate) mod ls;

use std::process::ExitCode;

use crate::app::App;
use crate::arguments::Command;
use crate::failure::Failure;

/// Does what the command line says.
pub(crate) async fn execute(app: &App, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Ls(ls) => ls.execute(app).await,
    }
}
