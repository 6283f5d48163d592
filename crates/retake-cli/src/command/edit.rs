//! `retake edit`: changes the state at the head by hand.

use std::process::ExitCode;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::{Edit as Request, Engine, Plan, address};
use retake::store::ExecutionRecord;
use serde_json::json;

use crate::app::App;
use crate::change::{After, Change, Manner, go_on};
use crate::failure::{Code, Failure};
use crate::plan::changes_nothing;
use crate::{assignment, wording};

/// Change the state of a run by hand: print the plan, ask, and append the changed state.
///
/// What had read something else, and what depends on it, runs again; all else keeps its result. `retake undo` takes the
/// change back.
///
/// A VALUE is JSON if it is JSON, else text; @FILE is what a file holds, and @@ a text's own @.
#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// The run
    #[arg(value_name = "RUN")]
    address: String,

    /// A variable to set
    #[arg(long, visible_alias = "set", value_name = "NAME=VALUE")]
    var: Vec<String>,

    /// An output to put in place of what a node gave
    #[arg(long, value_name = "NODE=VALUE")]
    output: Vec<String>,

    /// A node to mark as done that failed, was skipped or has not run; its output is null, or what --output says
    #[arg(long, value_name = "NODE")]
    done: Vec<String>,

    #[command(flatten)]
    manner: Manner,
}

impl Edit {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let request = self.request()?;
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.address).await?;
        let plan = engine.plan_edit(run.id, &request).await?;
        if changes_nothing(&plan) {
            return self.leave(app, &engine, &run, &plan).await;
        }
        let is_told = !app.output.json;
        for name in request.set.keys().filter(|name| is_told && is_new(&plan, name)) {
            let (run, name) = (wording::plain(&run.name), wording::plain(name));
            app.output.note(format!("{run} had no variable `{name}` until now"));
        }
        let change = Change {
            run: &run,
            heading: format!("{} at @{}, edited", wording::plain(&run.name).bold(), plan.head),
            unchanged: None,
            question: format!("change {}?", run.name),
            what: "the edit",
            plan,
        };
        change.make(app, &engine, self.manner).await
    }

    fn request(&self) -> Result<Request, Failure> {
        if self.var.is_empty() && self.output.is_empty() && self.done.is_empty() {
            return Err(Failure::new(Code::Usage, "nothing is to be changed")
                .hint("say what: `--var NAME=VALUE`, `--output NODE=VALUE`, `--done NODE`"));
        }
        Ok(Request {
            set: assignment::assignments(&self.var)?,
            outputs: assignment::assignments(&self.output)?,
            done: self.done.iter().cloned().collect(),
            effects: self.manner.effects.choice(),
        })
    }

    /// Says that everything is as it should be already, and appends nothing.
    async fn leave(
        &self,
        app: &App,
        engine: &Engine,
        run: &ExecutionRecord,
        plan: &Plan,
    ) -> Result<ExitCode, Failure> {
        let after = After { run, before: plan.head, head: plan.head, status: run.state.name() };
        let Manner { dry_run, run: goes_on, .. } = self.manner;
        match (app.output.json, dry_run, goes_on) {
            (true, true, _) => app.output.document(plan),
            (true, false, false) => app.output.document(&after.document(json!(plan))),
            (true, false, true) => app.output.event(&after.document(json!(plan))),
            (false, ..) => {
                app.output.line(format!("nothing changes: {} is so already", wording::plain(&run.name)));
            }
        }
        if goes_on { go_on(app, engine, run.id).await } else { Ok(ExitCode::SUCCESS) }
    }
}

/// Tells whether a variable is there only after the change: maybe its name was mistyped.
fn is_new(plan: &Plan, name: &str) -> bool {
    plan.variables.get(name).is_some_and(|change| change.from.is_none())
}
