//! Changes of a run: the plan is shown, somebody agrees, one checkpoint is appended, and the run goes on if that is
//! wanted. The same for every command that changes one.

use std::process::ExitCode;

use clap::Args;
use retake::engine::{Engine, EngineError, Plan, Resume};
use retake::execution::ExecutionId;
use retake::store::{ExecutionRecord, Seq, StoreExt};
use serde_json::{Value, json};

use crate::app::App;
use crate::command::rollback::EffectFlags;
use crate::drive::drive;
use crate::failure::Failure;
use crate::plan::Shown;
use crate::signals::Wishes;
use crate::{question, wording};

/// How a change is made.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Manner {
    /// Print the plan, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Go on at once
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) run: bool,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) effects: EffectFlags,
}

/// A change that was planned.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) run: &'a ExecutionRecord,
    pub(crate) plan: Plan,
    /// What the plan is shown under.
    pub(crate) heading: String,
    /// What is said where nothing changes, if that is worth a word.
    pub(crate) unchanged: Option<&'a str>,
    /// What is asked.
    pub(crate) question: String,
    /// What would forget what cannot be undone.
    pub(crate) what: &'a str,
}

impl Change<'_> {
    /// Shows the plan, and makes the change unless only the plan was wanted.
    pub(crate) async fn make(self, app: &App, engine: &Engine, manner: Manner) -> Result<ExitCode, Failure> {
        let Self { run, plan, heading, unchanged, question, what } = self;
        let (id, name) = (run.id, &run.name);
        let effects = manner.effects.choice();
        if !app.output.json {
            Shown { heading: &heading, plan: &plan, effects, unchanged }.print(&app.output);
        }
        if manner.dry_run {
            if app.output.json {
                app.output.document(&plan);
            }
            return Ok(ExitCode::SUCCESS);
        }
        refuse_undecided(what, &plan)?;
        if !manner.yes && !question::confirm(app, &question)? {
            return Ok(ExitCode::SUCCESS);
        }
        let (document, before) = (json!(plan), plan.head);
        let head = engine.apply(plan, app.operation()).await?;
        let status = engine.store().require(id).await?.state.name();
        let after = After { run, before, head, status };
        match (app.output.json, manner.run) {
            (false, _) => app.output.line(after.line()),
            (true, false) => app.output.document(&after.document(document)),
            (true, true) => app.output.event(&after.document(document)),
        }
        if manner.run {
            return go_on(app, engine, id).await;
        }
        if !app.output.json && status == "paused" {
            let undo = app.command_line(format!("undo {name}"));
            app.output.note(format!("{}, `{undo}` takes it back", how_to_go_on(app, name)?));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns by which commands a run goes on that somebody changed: it is in no queue any more.
pub(crate) fn how_to_go_on(app: &App, name: &str) -> Result<String, Failure> {
    let resume = app.command_line(format_args!("resume {name}"));
    Ok(match app.is_on_a_server()? {
        true => format!("`{resume}` goes on, `{resume} --detach` leaves that to a worker"),
        false => format!("`{resume}` goes on"),
    })
}

/// Refuses a plan that would forget what cannot be undone, where nobody said what to do about it.
pub(crate) fn refuse_undecided(what: &str, plan: &Plan) -> Result<(), Failure> {
    plan.check().map_err(|error| {
        let EngineError::Irreversible { nodes } = &error else { return error.into() };
        let message = format!("{what} would forget what cannot be undone: {}", nodes.join(", "));
        Failure { message, ..error.into() }
    })
}

/// How a run stands after a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct After<'a> {
    pub(crate) run: &'a ExecutionRecord,
    pub(crate) before: Seq,
    pub(crate) head: Seq,
    pub(crate) status: &'a str,
}

impl After<'_> {
    pub(crate) fn line(self) -> String {
        format!("{} is {} at @{}", wording::plain(&self.run.name), self.status, self.head)
    }

    /// Returns the document of a plan, with what became of the run.
    pub(crate) fn document(self, mut plan: Value) -> Value {
        plan["execution"] = json!(self.run.id);
        plan["name"] = json!(self.run.name);
        plan["before"] = json!(self.before);
        plan["head"] = json!(self.head);
        plan["status"] = json!(self.status);
        plan
    }
}

/// Runs what is left to run, until it ends or waits for somebody.
pub(crate) async fn go_on(app: &App, engine: &Engine, id: ExecutionId) -> Result<ExitCode, Failure> {
    let wishes = Wishes::listen()?;
    let resume = Resume { operation: Some(app.operation()), ..Resume::default() };
    drive(app, engine.resume(id, resume).await?, wishes).await
}
