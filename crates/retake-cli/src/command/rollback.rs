//! `retake rollback`: makes the state of an older point the head.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::address::{self, Address, Point, Resolved};
use retake::engine::{Effects, Engine, EngineError, Extent, Plan, Resume, Rollback as Request};
use retake::execution::ExecutionId;
use retake::store::{Seq, StoreExt};
use serde_json::{Value, json};

use crate::app::App;
use crate::drive::drive;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::signals::Wishes;
use crate::{assignment, question, wording};

/// Go back to a point of a run: print the plan, ask, and append the state that was there.
///
/// Nothing is lost: what came after stays in the history, and `retake undo` takes the rollback back.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The point
    #[arg(value_name = "RUN@POINT")]
    address: String,

    /// Everything that came after the point goes, other branches too
    #[arg(long, conflicts_with_all = ["vars", "nodes"])]
    linear: bool,

    /// Only these variables go back; all else stays
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    vars: Vec<String>,

    /// Only the results of these nodes go back; all else stays
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    nodes: Vec<String>,

    /// A variable to set then; its value is JSON if it is JSON, else text, or @FILE
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,

    /// Print the plan, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Go on at once
    #[arg(long, conflicts_with = "dry_run")]
    run: bool,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    effects: EffectFlags,
}

/// What to do about effects outside that going back would forget.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct EffectFlags {
    /// Let what cannot be undone happen again, under a new idempotency key
    #[arg(long)]
    again: bool,

    /// Keep the results of what cannot be undone, so that it does not happen again
    #[arg(long, conflicts_with = "again")]
    skip_effects: bool,
}

impl EffectFlags {
    /// Returns what was chosen.
    pub(crate) fn choice(self) -> Effects {
        match (self.again, self.skip_effects) {
            (true, _) => Effects::Again,
            (false, true) => Effects::Keep,
            (false, false) => Effects::Refuse,
        }
    }
}

impl Rollback {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let request = self.request()?;
        let address: Address = self.address.parse()?;
        if address.point == Point::Head
            && matches!(request.extent, Extent::Affected | Extent::Linear)
            && request.set.is_empty()
        {
            return Err(Failure::new(
                Code::Usage,
                format!("`{}` names no point to go back to", self.address),
            )
            .hint("write RUN@POINT: `retake log RUN` lists the points"));
        }
        let engine = app.engine(app.store()?)?;
        let point = address::resolve(&**engine.store(), &*app.clock, &address).await?;
        let plan = engine.plan_rollback(point.execution.id, point.checkpoint.seq, &request).await?;
        if self.dry_run {
            match app.output.json {
                true => app.output.document(&plan),
                false => print(&app.output, &point.execution.name, &plan, request.effects),
            }
            return Ok(ExitCode::SUCCESS);
        }
        self.apply(app, &engine, &point, plan, request.effects).await
    }

    fn request(&self) -> Result<Request, Failure> {
        let mut set = BTreeMap::new();
        for text in &self.set {
            let (name, value) = assignment::assignment(text)?;
            if set.insert(name.clone(), value).is_some() {
                return Err(Failure::new(Code::Usage, format!("`{name}` is set twice")));
            }
        }
        let extent = match (self.vars.is_empty(), self.nodes.is_empty()) {
            (true, true) if self.linear => Extent::Linear,
            (true, true) => Extent::Affected,
            _ => Extent::Only { variables: self.vars.clone(), nodes: self.nodes.clone() },
        };
        let effects = self.effects.choice();
        let address: Address = self.address.parse()?;
        let node = if let Point::AfterNode(node) = address.point { Some(node) } else { None };
        Ok(Request { extent, node, set, effects })
    }

    async fn apply(
        &self,
        app: &App,
        engine: &Engine,
        point: &Resolved,
        plan: Plan,
        effects: Effects,
    ) -> Result<ExitCode, Failure> {
        let (id, name) = (point.execution.id, &point.execution.name);
        if !app.output.json {
            print(&app.output, name, &plan, effects);
        }
        if effects == Effects::Refuse && !plan.irreversible.is_empty() {
            return Err(EngineError::Irreversible { nodes: plan.irreversible }.into());
        }
        if !self.yes && !question::confirm(app, &format!("go back to @{}?", plan.target))? {
            return Ok(ExitCode::SUCCESS);
        }
        let mut document = json!(plan);
        let head: Seq = engine.apply(plan, app.operation()).await?;
        let status = engine.store().require(id).await?.state.name();
        if app.output.json {
            let after =
                [("execution", json!(id)), ("name", json!(name)), ("before", document["head"].take())];
            let after = after.into_iter().chain([("head", json!(head)), ("status", json!(status))]);
            after.for_each(|(key, value)| document[key] = value);
            match self.run {
                true => app.output.event(&document),
                false => app.output.document(&document),
            }
        } else {
            app.output.line(format!("{} is {status} at @{head}", wording::plain(name)));
        }
        if self.run {
            return go_on(app, engine, id).await;
        }
        if !app.output.json && status == "paused" {
            let (resume, undo) =
                (app.command_line(format!("resume {name}")), app.command_line(format!("undo {name}")));
            app.output.note(format!("`{resume}` goes on, `{undo}` takes it back"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a plan for a person: what stays, what runs again and why, and what changes.
fn print(output: &Output, name: &str, plan: &Plan, effects: Effects) {
    let name = wording::plain(name);
    output.line(format!("{} from @{} back to @{}", name.bold(), plan.head, plan.target));
    if !plan.keep.is_empty() {
        output.line(format!("  = keeps {}", plan.keep.join(", ")));
    }
    for again in &plan.rerun {
        output.line(format!("  {} {} runs again: {}", "~".yellow(), again.node, again.because));
    }
    for left in &plan.inconsistent {
        output.line(format!("  {} {} stays, although {}", "?".yellow(), left.node, left.because));
    }
    let fate = match effects {
        Effects::Refuse => "",
        Effects::Again => ", and happens once more",
        Effects::Keep => ", so its result stays",
    };
    for node in &plan.irreversible {
        output.line(format!("  {} {node} cannot be undone{fate}", "!".red()));
    }
    for (variable, change) in &plan.variables {
        let variable = wording::plain(variable);
        let line = |value: &Value| format!("{variable} = {}", wording::value(value));
        if let Some(from) = &change.from {
            output.line(format!("  {}", format!("- {}", line(from)).red()));
        }
        if let Some(to) = &change.to {
            output.line(format!("  {}", format!("+ {}", line(to)).green()));
        }
    }
    if plan.keep.is_empty() && plan.rerun.is_empty() && plan.variables.is_empty() {
        output.line("  nothing changes but the point");
    }
    for (what, cost) in [("keeps", &plan.cost_kept_usd), ("spends again about", &plan.cost_again_usd)] {
        if cost.is_some() {
            output.line(format!("  {what} {}", wording::money(cost.as_deref())));
        }
    }
}

/// Runs what is left to run, until it ends or waits for somebody.
async fn go_on(app: &App, engine: &Engine, id: ExecutionId) -> Result<ExitCode, Failure> {
    let wishes = Wishes::listen().map_err(|error| Failure::system("signals cannot be taken over", error))?;
    let resume = Resume { operation: Some(app.operation()), ..Resume::default() };
    drive(app, engine.resume(id, resume).await?, wishes).await
}
