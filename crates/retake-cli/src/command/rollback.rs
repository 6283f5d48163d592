//! `retake rollback`: makes the state of an older point the head.

use std::process::ExitCode;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::address::{self, Address, Point};
use retake::engine::{Effects, Extent, Rollback as Request};

use crate::app::App;
use crate::change::{Change, Manner};
use crate::failure::{Code, Failure};
use crate::{assignment, wording};

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

    #[command(flatten)]
    manner: Manner,
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

    /// Undo what happened by the nodes' counter-actions (`compensate:`), before anything else runs
    #[arg(long, conflicts_with_all = ["again", "skip_effects"])]
    compensate: bool,
}

impl EffectFlags {
    /// Returns what was chosen.
    pub(crate) fn choice(self) -> Effects {
        match (self.again, self.skip_effects, self.compensate) {
            (true, _, _) => Effects::Again,
            (false, true, _) => Effects::Keep,
            (false, false, true) => Effects::Compensate,
            (false, false, false) => Effects::Refuse,
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
        let engine = app.engine().await?;
        let point = address::resolve(&**engine.store(), &*app.clock, &address).await?;
        let plan = engine.plan_rollback(point.execution.id, point.checkpoint.seq, &request).await?;
        let name = wording::plain(&point.execution.name);
        let change = Change {
            run: &point.execution,
            heading: format!("{} from @{} back to @{}", name.bold(), plan.head, plan.target),
            unchanged: Some("nothing changes but the point"),
            question: format!("go back to @{}?", plan.target),
            what: "going back",
            plan,
        };
        change.make(app, &engine, self.manner).await
    }

    fn request(&self) -> Result<Request, Failure> {
        let set = assignment::assignments(&self.set)?;
        let extent = match (self.vars.is_empty(), self.nodes.is_empty()) {
            (true, true) if self.linear => Extent::Linear,
            (true, true) => Extent::Affected,
            _ => Extent::Only { variables: self.vars.clone(), nodes: self.nodes.clone() },
        };
        let effects = self.manner.effects.choice();
        let address: Address = self.address.parse()?;
        let node = if let Point::AfterNode(node) = address.point { Some(node) } else { None };
        Ok(Request { extent, node, set, effects })
    }
}
