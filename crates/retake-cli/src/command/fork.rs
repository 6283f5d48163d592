//! `retake fork`: a new run that begins at a point of another.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::address::{self, Address, Resolved};
use retake::engine::{Effects, Engine, Fork as Request, Forked, Plan};
use retake::store::StoreExt;
use serde_json::json;

use crate::app::App;
use crate::change::{Manner, go_on, refuse_undecided};
use crate::command::run::run_name;
use crate::command::validate::warn;
use crate::failure::{Code, Failure};
use crate::plan::{Shown, named};
use crate::{assignment, inputs, question, wording};

/// Begin a new run at a point of another: print what it keeps and what it will run, and make it.
///
/// The other run stays as it is, and may be removed later. What the new one keeps is not stored twice.
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// The run, or a point of it
    #[arg(value_name = "RUN[@POINT]")]
    address: String,

    /// A variable to set; its value is JSON if it is JSON, else text, or @FILE
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,

    /// What to call the new run; without it, a name is drawn
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    name: Option<String>,

    /// Another definition for the new run: nodes that are the same in both keep their results
    #[arg(long, value_name = "FILE")]
    def: Option<PathBuf>,

    #[command(flatten)]
    manner: Manner,
}

impl Fork {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let request = self.request(app)?;
        let address: Address = self.address.parse()?;
        let engine = app.engine().await?;
        let point = address::resolve(&**engine.store(), &*app.clock, &address).await?;
        let plan = engine.plan_fork(point.execution.id, point.checkpoint.seq, &request).await?;
        if !app.output.json {
            let heading = format!("fork of {} at @{}", wording::plain(&point.execution.name), plan.target);
            let (heading, effects) = (&heading.bold().to_string(), request.effects);
            Shown { heading, plan: &plan, effects, unchanged: None }.print(&app.output);
        }
        if self.manner.dry_run {
            if app.output.json {
                app.output.document(&plan);
            }
            return Ok(ExitCode::SUCCESS);
        }
        refuse_undecided("the fork", &plan).map_err(|failure| {
            failure.hint(
                "`--skip-effects` keeps their results, `--again` lets them happen once more, in the fork",
            )
        })?;
        if !self.is_agreed(app, &plan)? {
            return Ok(ExitCode::SUCCESS);
        }
        self.make(app, &engine, &point, plan).await
    }

    fn request(&self, app: &App) -> Result<Request, Failure> {
        if self.manner.effects.choice() == Effects::Compensate {
            let message =
                "a fork compensates nothing: what happened outside belongs to the run that it is made from";
            return Err(
                Failure::new(Code::Usage, message).hint("`--skip-effects` keeps the results in the fork")
            );
        }
        let workflow = self.def.as_deref().map(inputs::workflow).transpose()?;
        workflow.iter().for_each(|workflow| warn(app, workflow));
        Ok(Request {
            name: self.name.clone(),
            set: assignment::assignments(&self.set)?,
            workflow,
            effects: self.manner.effects.choice(),
        })
    }

    /// A fork changes nothing that is there, so that nobody is asked about it, unless it reaches outside once more.
    fn is_agreed(&self, app: &App, plan: &Plan) -> Result<bool, Failure> {
        match self.manner.effects.choice() {
            Effects::Again if !plan.irreversible.is_empty() && !self.manner.yes => {
                let nodes = named(&plan.irreversible);
                question::confirm(app, &format!("let {nodes} happen once more, in a fork?"))
            }
            Effects::Again | Effects::Keep | Effects::Refuse | Effects::Compensate => Ok(true),
        }
    }

    async fn make(
        self,
        app: &App,
        engine: &Engine,
        point: &Resolved,
        plan: Plan,
    ) -> Result<ExitCode, Failure> {
        let (mut document, target, origin) = (json!(plan), plan.target, &point.execution);
        let Forked { execution, name } = engine.fork(plan, self.name, app.operation()).await?;
        let fork = engine.store().require(execution).await?;
        let status = fork.state.name();
        if app.output.json {
            document["execution"] = json!(execution);
            document["name"] = json!(name);
            document["origin"] = json!({"execution": origin.id, "name": origin.name, "seq": target});
            document["head"] = json!(fork.head);
            document["status"] = json!(status);
            match self.manner.run {
                true => app.output.event(&document),
                false => app.output.document(&document),
            }
        } else {
            let origin = wording::plain(&origin.name);
            app.output.line(format!("{name} is {status} at @{}, forked from {origin}@{target}", fork.head));
        }
        if self.manner.run {
            return go_on(app, engine, execution).await;
        }
        if !app.output.json && status == "paused" {
            app.output.note(format!("`{}` goes on", app.command_line(format!("resume {name}"))));
        }
        Ok(ExitCode::SUCCESS)
    }
}
