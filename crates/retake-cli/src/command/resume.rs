//! `retake resume`: a run, from its newest checkpoint.

use std::process::ExitCode;

use clap::Args;
use retake::engine::{Resume as Request, address};

use crate::app::App;
use crate::drive::drive;
use crate::failure::Failure;
use crate::signals::Wishes;

/// Go on with a run from its newest checkpoint.
///
/// What is done is not run again; what failed, or was running when the run stopped, is.
///
/// Exit codes: those of `run`, 3 no such run, 4 somebody else advances it, 7 a node may have taken effect already.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The run: its name, or a unique prefix of its id
    run: String,

    /// Run a node again that may have taken effect before the run stopped, under the same idempotency key
    #[arg(long, value_name = "NODE")]
    again: Vec<String>,
}

impl Resume {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine(app.store()?)?;
        let record = address::resolve_run(&**engine.store(), &self.run).await?;
        let wishes =
            Wishes::listen().map_err(|error| Failure::system("signals cannot be taken over", error))?;
        let request = Request { operation: Some(app.operation()), again: self.again };
        let run = engine.resume(record.id, request).await?;
        drive(app, run, wishes).await
    }
}
