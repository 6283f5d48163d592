//! `retake run`: a workflow, from its start.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use retake::engine::{Engine, Start, Submission};
use retake::store::StoreExt;
use retake::workflow::{NAME_BYTES_MAX, Workflow};
use serde_json::json;

use crate::app::App;
use crate::command::validate::warn;
use crate::detach::{self, Detach};
use crate::drive::drive;
use crate::failure::{Code, Failure};
use crate::signals::Wishes;
use crate::{inputs, wording};

/// Run a workflow from its start.
///
/// Ctrl-C lets the nodes that run finish, and a second one stops at once; `retake resume` goes on from there.
///
/// Exit codes: 0 completed, 1 failed, 2 wrong file or inputs, 5 waiting for approval, 6 the store failed, 130 stopped.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The workflow, in YAML or JSON; `-` reads it from stdin
    file: PathBuf,

    /// An input; `k=@FILE` reads it from a file, `k=@@x` is the text `@x`
    #[arg(short, long = "input", value_name = "K=V")]
    input: Vec<String>,

    /// Inputs from a JSON object in a file
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,

    /// What to call the run; without it, a name is drawn
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    name: Option<String>,

    #[command(flatten)]
    detach: Detach,

    /// With --detach: start nothing where a run was submitted under the same text before, and name that one
    #[arg(long, requires = "detach", value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    dedup: Option<String>,
}

impl Run {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if self.detach.detach {
            app.require_queue("`--detach`")?;
        }
        let workflow = inputs::workflow(&self.file)?;
        warn(app, &workflow);
        let inputs = inputs::collect(workflow.definition(), self.inputs.as_deref(), &self.input)?;
        let engine = app.engine_on(app.make().await?)?;
        let start = Start { inputs, name: self.name.clone() };
        if self.detach.detach {
            return self.submit(app, &engine, workflow, start).await;
        }
        let wishes = Wishes::listen()?;
        let run = engine.start(Arc::new(workflow), start).await?;
        drive(app, run, wishes).await
    }

    /// Leaves the run to a worker.
    async fn submit(
        self,
        app: &App,
        engine: &Engine,
        workflow: Workflow,
        start: Start,
    ) -> Result<ExitCode, Failure> {
        let ticket = self.detach.ticket(app.clock.now(), None)?;
        let workflow_name = workflow.definition().name.clone();
        let submitted = engine.submit(Arc::new(workflow), start, ticket.clone(), self.dedup).await?;
        let (execution, name, is_duplicate) = match &submitted {
            Submission::Created { execution, name } => (execution, name, false),
            Submission::Duplicate { execution, name } => (execution, name, true),
        };
        if is_duplicate {
            let of = engine.store().require(*execution).await?.workflow_name;
            if of != workflow_name {
                let (name, of) = (wording::plain(name), wording::plain(&of));
                let why = format!("{name}, a run of {of}, was submitted under this --dedup before");
                return Err(Failure::new(Code::Conflict, why).hint(
                    "keys are shared by all workflows of a store: begin them with the workflow's name",
                ));
            }
        }
        if app.output.json {
            app.output.event(&json!({
                "event": "submitted", "execution": execution, "name": name, "duplicate": is_duplicate,
                "queue": ticket.queue,
            }));
            return Ok(ExitCode::SUCCESS);
        }
        app.output.line(format!("{} {execution}", wording::plain(name)));
        if is_duplicate {
            app.output.note("it was submitted before, and nothing was started");
        } else {
            detach::tell(app, name, &ticket);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Reads a name that can stand in an address, before an `@`, and is not taken for an option or an id.
pub(crate) fn run_name(text: &str) -> Result<String, String> {
    let is_allowed = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if let Some(letter) = text.chars().find(|letter| !is_allowed(*letter)) {
        return Err(format!("`{letter}` cannot stand in a name: use letters, digits, `-`, `_` and `.`"));
    }
    if !text.starts_with(char::is_alphanumeric) {
        return Err("a name begins with a letter or a digit".to_owned());
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("a name has at most {NAME_BYTES_MAX} bytes"));
    }
    if uuid::Uuid::try_parse(text).is_ok() {
        return Err("it looks like the id of another run".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_an_address() {
        for name in ["a", "brave-otter", "v1.2_x", "2026-01-31", "bär"] {
            assert_eq!(run_name(name).as_deref(), Ok(name));
        }
        for name in ["", "a@2", "-x", ".hidden", "a b", "a/b", "a{b", "0199aaaa-0000-7000-8000-000000000000"]
        {
            assert!(run_name(name).is_err(), "{name} was taken");
        }
        assert!(run_name(&"a".repeat(101)).is_err());
    }
}
