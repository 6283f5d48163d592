//! `retake resume`: a run, from its newest checkpoint, maybe by another definition.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::{Effects, Engine, EngineError, Plan, Redefine, Resume as Request, address};
use retake::execution::ExecutionState;
use retake::store::{ExecutionRecord, StoreExt, TicketRecord};
use retake::workflow::Workflow;
use serde_json::json;

use crate::app::App;
use crate::change::{After, refuse_undecided};
use crate::command::validate::warn;
use crate::detach::{self, Detach};
use crate::drive::drive;
use crate::failure::Failure;
use crate::plan::{Shown, named};
use crate::signals::Wishes;
use crate::{inputs, question, wording};

/// Go on with a run from its newest checkpoint.
///
/// What is done is not run again; what failed, or was running when the run stopped, is. The run keeps the definition
/// that it was started with, whatever has become of the file, unless --def names another: then nodes that are the same
/// in both keep their results, and what changed, and what depends on that, runs again.
///
/// With --detach, a run that still has a place in a queue keeps queue and priority, and the time that it waits for, except
/// for what --queue, --priority, --delay and --at name. One that has ended or failed, or was paused or changed, has none any
/// more, and begins anew: `default`, 0, at once.
///
/// Exit codes: those of `run`, 3 no such run, 4 somebody else advances it, 7 a node may have taken effect already.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The run: its name, or a unique prefix of its id
    run: String,

    /// Go on with another definition: print the plan, and ask where results would go
    #[arg(long, value_name = "FILE")]
    def: Option<PathBuf>,

    /// Run a node, or its counter-action, again that may have taken effect before the run stopped, under the same
    /// idempotency key; with --def, also one whose definition or input changes, under a new key
    #[arg(long, value_name = "NODE")]
    again: Vec<String>,

    /// Do not run the counter-action of a node: its effect stays as it is
    #[arg(long, value_name = "NODE")]
    skip_compensation: Vec<String>,

    /// Keep the results of what cannot be undone, so that it does not happen again
    #[arg(long, requires = "def")]
    skip_effects: bool,

    /// Undo what happened by the counter-actions that nodes had so far, before anything else runs
    #[arg(long, requires = "def", conflicts_with = "skip_effects")]
    compensate: bool,

    /// Print the plan, and change nothing
    #[arg(long, requires = "def")]
    dry_run: bool,

    /// Do not ask
    #[arg(short, long, requires = "def")]
    yes: bool,

    #[command(flatten)]
    detach: Detach,
}

/// What becomes of a run before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Leave,
}

impl Resume {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if self.detach.detach {
            app.require_queue("`--detach`")?;
        }
        let definition = self.def.as_deref().map(inputs::workflow).transpose()?;
        let engine = app.engine().await?;
        let run = address::resolve_run(&**engine.store(), &self.run).await?;
        let before = if self.detach.detach { ticket_of(&engine, &run).await? } else { None };
        let mut again = self.again.clone();
        if let Some(workflow) = definition {
            warn(app, &workflow);
            // What the definition has no more was let go, and does not run.
            let is_left = |node: &String| workflow.graph().index_of(node).is_some();
            again.retain(is_left);
            if self.redefine(app, &engine, &run, workflow).await? == Next::Leave {
                return Ok(ExitCode::SUCCESS);
            }
        }
        let request = Request {
            operation: Some(app.operation()),
            again,
            skip_compensation: once(self.skip_compensation.clone()),
        };
        if self.detach.detach {
            return self.enqueue(app, &engine, &run, before, request).await;
        }
        let wishes = Wishes::listen()?;
        let run = engine.resume(run.id, request).await?;
        drive(app, run, wishes).await
    }

    /// Leaves the run to a worker.
    async fn enqueue(
        self,
        app: &App,
        engine: &Engine,
        run: &ExecutionRecord,
        before: Option<TicketRecord>,
        request: Request,
    ) -> Result<ExitCode, Failure> {
        // What another definition makes of it does not wait for what the one before waited for.
        let is_running = engine.store().require(run.id).await?.state == ExecutionState::Running;
        let before =
            before.map(|ticket| TicketRecord { due_at: ticket.due_at.filter(|_| is_running), ..ticket });
        let ticket = self.detach.ticket(app.clock.now(), before)?;
        let (state, head) = engine.enqueue(run.id, ticket.clone(), request).await?;
        if app.output.json {
            app.output.event(&json!({
                "event": "submitted", "execution": run.id, "name": run.name, "status": state.name(),
                "head": head, "queue": ticket.queue,
            }));
            return Ok(ExitCode::SUCCESS);
        }
        let name = wording::plain(&run.name);
        app.output.line(format!("{name} is {} at @{head}", state.name()));
        if state == ExecutionState::Running {
            detach::tell(app, &run.name, &ticket);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Gives the run another definition, as far as somebody agrees.
    async fn redefine(
        &self,
        app: &App,
        engine: &Engine,
        run: &ExecutionRecord,
        workflow: Workflow,
    ) -> Result<Next, Failure> {
        let is_same = workflow.id() == run.workflow_id;
        let (plan, effects) = self.plan(engine, run, workflow).await?;
        if !app.output.json && is_same {
            app.output.line("the workflow is the same");
        } else if !app.output.json {
            let heading = format!("{} at @{}, by another definition", wording::plain(&run.name), plan.head);
            let (heading, unchanged) = (&heading.bold().to_string(), Some("every result stays"));
            Shown { heading, plan: &plan, effects, unchanged }.print(&app.output);
        }
        if self.dry_run {
            if app.output.json {
                app.output.document(&plan);
            }
            return Ok(Next::Leave);
        }
        if is_same {
            return Ok(Next::GoOn);
        }
        self.refuse_irreversible(&plan)?;
        if !self.yes && !plan.forgotten.is_empty() {
            let question = format!("let the results of {} go?", named(&plan.forgotten));
            if !question::confirm(app, &question)? {
                return Ok(Next::Leave);
            }
        }
        let (mut document, before) = (json!(plan), plan.head);
        let head = engine.apply(plan, app.operation()).await?;
        let status = engine.store().require(run.id).await?.state.name();
        if app.output.json {
            document["event"] = json!("redefined");
            app.output.event(&After { run, before, head, status }.document(document));
        }
        Ok(Next::GoOn)
    }

    /// Returns the plan, and what is done about what cannot be undone: it happens again where `--again` names all of it.
    async fn plan(
        &self,
        engine: &Engine,
        run: &ExecutionRecord,
        workflow: Workflow,
    ) -> Result<(Plan, Effects), Failure> {
        let first = match (self.skip_effects, self.compensate) {
            (true, _) => Effects::Keep,
            (false, true) => Effects::Compensate,
            (false, false) => Effects::Refuse,
        };
        let index = |node: &String| workflow.graph().index_of(node);
        let request = Redefine { workflow: workflow.clone(), effects: first };
        let plan = engine.plan_redefinition(run.id, request).await?;
        let is_known = |node: &&String| index(node).is_some() || plan.irreversible.contains(node);
        if let Some(node) = self.again.iter().find(|node| !is_known(node)) {
            return Err(EngineError::NoNode { name: run.name.clone(), node: node.clone() }.into());
        }
        let is_named = plan.irreversible.iter().all(|node| self.again.contains(node));
        if first != Effects::Refuse || plan.irreversible.is_empty() || !is_named {
            return Ok((plan, first));
        }
        let request = Redefine { workflow, effects: Effects::Again };
        Ok((engine.plan_redefinition(run.id, request).await?, Effects::Again))
    }

    fn refuse_irreversible(&self, plan: &Plan) -> Result<(), Failure> {
        let again: Vec<String> = plan.irreversible.iter().map(|node| format!("--again {node}")).collect();
        refuse_undecided("the other definition", plan).map_err(|failure| {
            let again = again.join(" ");
            failure
                .hint(format!(
                    "`--skip-effects` keeps their results, `{again}` lets them go, to happen once more where they \
                     are still to run, `--compensate` runs the counter-actions of those that have one"
                ))
        })
    }
}

/// Returns the ticket that a run has, before another definition takes it out of its queue.
async fn ticket_of(engine: &Engine, run: &ExecutionRecord) -> Result<Option<TicketRecord>, Failure> {
    Ok(engine.queue()?.tickets(&[run.id]).await?.pop())
}

/// Returns names without those that were given before.
fn once(names: Vec<String>) -> Vec<String> {
    BTreeSet::from_iter(names).into_iter().collect()
}
