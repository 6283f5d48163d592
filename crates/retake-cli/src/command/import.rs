//! `retake import`: a run whose history comes out of a file.

use std::fs::File;
use std::io::{BufReader, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use retake::store::{Conflict, History, KeptWorkflow, StoreError};
use retake::workflow::{Definition, Workflow};
use serde_json::json;

use crate::app::App;
use crate::command::run::run_name;
use crate::failure::{Code, Failure};
use crate::wording;

/// Take in a run from a file that `retake export` wrote.
///
/// It comes with its id, its checkpoints under their numbers and labels, and what people did. All of the file is checked
/// before any of it is stored. Whoever wrote the file chose what the run will do: look at its workflow before you resume
/// it.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file; `-` reads it from stdin
    file: PathBuf,

    /// What to call the run here; without it, as it was called
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    name: Option<String>,
}

impl Import {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let mut history = self.read()?;
        match self.name {
            Some(name) => history.execution.name = name,
            None => check_name(&history.execution.name)?,
        }
        history.workflows.iter().try_for_each(check_workflow)?;
        let execution = history.execution.clone();
        let (points, operations) = (history.points.len() as u64, history.operations.len() as u64);
        app.make_store().await?.import(history).await.map_err(|error| refused(error, app))?;
        if app.output.json {
            app.output.document(&json!({
                "execution": execution.id,
                "name": execution.name,
                "workflow": execution.workflow_name,
                "status": execution.state.name(),
                "head": execution.head,
                "checkpoints": points,
                "operations": operations,
            }));
        } else {
            app.output.line(format!(
                "imported {} at @{} with {} and {}",
                wording::plain(&execution.name),
                execution.head,
                wording::count(points, "checkpoint"),
                wording::count(operations, "operation"),
            ));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn read(&self) -> Result<History, Failure> {
        if self.file.as_os_str() == "-" {
            return Ok(History::read_from(stdin().lock())?);
        }
        let name = self.file.display();
        let file = File::open(&self.file).map_err(|error| Failure::unreadable(&name, &error))?;
        History::read_from(BufReader::new(file)).map_err(|error| {
            let mut failure = Failure::from(error);
            failure.message = format!("{name}: {}", failure.message);
            failure
        })
    }
}

/// Refuses a name that no address could name.
fn check_name(name: &str) -> Result<(), Failure> {
    let refused = |why: String| {
        let message = format!("the run in the file is called `{}`: {why}", wording::plain(name));
        Failure::new(Code::Usage, message).hint("choose another with `--name`")
    };
    run_name(name).map(|_| ()).map_err(refused)
}

/// Refuses a definition that is not the one which its id stands for: a store keeps the first that it is given, for every
/// run of that workflow.
fn check_workflow(KeptWorkflow { id, definition }: &KeptWorkflow) -> Result<(), Failure> {
    if definition.is_empty() {
        return Ok(());
    }
    let refused = |why: String| {
        Failure::new(Code::Usage, format!("the definition of workflow {id} is not that workflow's: {why}"))
    };
    let definition = Definition::from_json(definition).map_err(|error| refused(error.to_string()))?;
    match Workflow::from_definition(definition) {
        Ok(workflow) if workflow.id() == *id => Ok(()),
        Ok(workflow) => Err(refused(format!("it is that of {}", workflow.id()))),
        Err(error) => Err(refused(error.to_string())),
    }
}

fn refused(error: StoreError, app: &App) -> Failure {
    let hint = match &error {
        StoreError::Conflict(Conflict::NameTaken(_)) => Some("choose another with `--name`".to_owned()),
        StoreError::Conflict(Conflict::IdTaken(id)) => {
            Some(format!("it is here already: {}", app.command_line(format_args!("log {id}"))))
        }
        StoreError::Conflict(_)
        | StoreError::NoExecution(_)
        | StoreError::NoPoint { .. }
        | StoreError::Pruned { .. }
        | StoreError::Unstorable { .. }
        | StoreError::Corrupt { .. }
        | StoreError::NewerFormat { .. }
        | StoreError::NotAStore { .. }
        | StoreError::Full { .. }
        | StoreError::Io { .. }
        | StoreError::Closed { .. }
        | _ => None,
    };
    let mut failure = Failure::from(error);
    failure.hint = hint.or(failure.hint);
    failure
}
