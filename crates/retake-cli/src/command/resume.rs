//! `retake resume`: a run, from its newest checkpoint.

use std::process::ExitCode;

use clap::Args;
use retake::engine::Resume as Request;
use retake::store::{ExecutionFilter, ExecutionRecord, Store};

use crate::app::App;
use crate::drive::drive;
use crate::failure::{Code, Failure};
use crate::signals::Wishes;

/// How many runs are named where an address fits several.
const CANDIDATES_MAX: usize = 8;

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
        let record = find(&**engine.store(), &self.run).await?;
        let wishes =
            Wishes::listen().map_err(|error| Failure::system("signals cannot be taken over", error))?;
        let request = Request { operation: Some(app.operation()), again: self.again };
        let run = engine.resume(record.id, request).await?;
        drive(app, run, wishes).await
    }
}

/// Finds a run by its name, or by a unique prefix of its id.
async fn find(store: &dyn Store, address: &str) -> Result<ExecutionRecord, Failure> {
    let filter = ExecutionFilter { address: Some(address.to_owned()), ..ExecutionFilter::default() };
    let mut found = if address.is_empty() { Vec::new() } else { store.executions(&filter).await? };
    if let Some(at) = found.iter().position(|record| record.name == address) {
        return Ok(found.swap_remove(at));
    }
    match found.len() {
        0 => Err(Failure::new(Code::NotFound, format!("no run is called `{address}`"))
            .hint("`retake ls` lists the runs")),
        1 => Ok(found.swap_remove(0)),
        many => {
            let shown =
                found.iter().take(CANDIDATES_MAX).map(|record| format!("{} ({})", record.name, record.id));
            let mut shown: Vec<String> = shown.collect();
            if many > CANDIDATES_MAX {
                shown.push("…".to_owned());
            }
            Err(Failure::new(Code::Usage, format!("the ids of {many} runs begin with `{address}`"))
                .hint(format!("one of {}", shown.join(", "))))
        }
    }
}
