//! `retake show`: the state at a point, or one node of it.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use owo_colors::{OwoColorize, Style};
use retake::engine::address::{self, Address, Resolved};
use retake::engine::{Engine, EngineError, check_interrupted, hash_now, standing};
use retake::execution::{
    Compensation, CompensationStage, ExecutionContext, ExecutionResult, ExecutionState, NodeExecutionResult,
    Read, Subject, node_id, usd,
};
use retake::store::{Origin, StoreExt, TicketRecord, TicketStand};
use retake::workflow::{NodeKind, Workflow};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::barrier::Barriers;
use crate::failure::{Code, Failure};
use crate::table::{Cell, Table};
use crate::wording;

/// Show the state of a run at a point, or one node's inputs, output and timing.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The run, or a point of it
    #[arg(value_name = "RUN[@POINT]")]
    address: String,

    /// Only this node
    node: Option<String>,
}

/// Everything there is to show.
struct Shown {
    resolved: Resolved,
    ctx: ExecutionContext,
    /// `None` where the run was not started by an engine.
    workflow: Option<Arc<Workflow>>,
    forked_from: Option<ForkedFrom>,
    ticket: Option<TicketRecord>,
    barriers: Barriers,
}

/// Where a run was forked from.
struct ForkedFrom {
    origin: Origin,
    /// `None` where it is gone.
    name: Option<String>,
}

impl Show {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let address: Address = self.address.parse()?;
        let shown = Shown::read(app, &engine, &address).await?;
        match (&self.node, app.output.json) {
            (None, true) => app.output.document(&shown.document()),
            (None, false) => shown.print(app),
            (Some(node), true) => app.output.document(&shown.node_document(node)?),
            (Some(node), false) => shown.print_node(app, node)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Shown {
    async fn read(app: &App, engine: &Engine, address: &Address) -> Result<Self, Failure> {
        let store = engine.store();
        let resolved = address::resolve(&**store, &*app.clock, address).await?;
        let ctx = store.context(resolved.execution.id, resolved.checkpoint.seq).await?;
        let workflow = match engine.workflow_of(&resolved.execution).await {
            Ok(workflow) => Some(workflow),
            Err(EngineError::NoDefinition { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let forked_from = match resolved.execution.origin {
            Some(origin) => {
                let name = store.execution(origin.execution_id).await?.map(|run| run.name);
                Some(ForkedFrom { origin, name })
            }
            None => None,
        };
        let ticket = match engine.queue() {
            Ok(queue) => queue.tickets(&[resolved.execution.id]).await?.pop(),
            Err(_) => None,
        };
        let queue = engine.queue().ok().map(|queue| &**queue);
        let barriers = Barriers::look(queue, ticket.iter()).await?;
        Ok(Self { resolved, ctx, workflow, forked_from, ticket, barriers })
    }

    /// Returns the nodes of the workflow in the order in which they can run, then what else has a result, by id.
    fn nodes(&self) -> Vec<(String, Option<&NodeExecutionResult>)> {
        let graph = self.workflow.as_deref().map(Workflow::graph);
        let named = graph.into_iter().flat_map(|graph| {
            graph.nodes().map(|node| (graph.name(node).to_owned(), self.ctx.get_node_result(&graph.id(node))))
        });
        let is_named = |id| graph.is_some_and(|graph| graph.index_of_id(id).is_some());
        let others = self.ctx.node_results.iter().filter(|(id, _)| !is_named(id));
        named.chain(others.map(|(id, result)| (id.to_string(), Some(result)))).collect()
    }

    fn node(&self, name: &str) -> Result<Option<&NodeExecutionResult>, Failure> {
        let found = self.nodes().into_iter().find(|(known, _)| known == name);
        found.map(|(_, result)| result).ok_or_else(|| {
            let run = &self.resolved.execution.name;
            let nodes: Vec<String> = self.nodes().into_iter().map(|(name, _)| name).collect();
            Failure::new(Code::NotFound, format!("run `{run}` has no node `{}`", wording::plain(name)))
                .hint(format!("its nodes are {}", nodes.join(", ")))
        })
    }

    /// Tells whether the node's work may be known outside, by its idempotency key.
    fn acts_outside(&self, name: &str) -> bool {
        let nodes = self.workflow.as_ref().map(|workflow| &workflow.definition().nodes);
        match nodes.and_then(|nodes| nodes.get(name)).map(|node| &node.kind) {
            Some(NodeKind::Set(_) | NodeKind::Wait(_) | NodeKind::Approval(_)) => false,
            Some(NodeKind::Run(_) | NodeKind::Http(_) | NodeKind::Llm(_) | NodeKind::Call(_)) | None => true,
        }
    }

    fn document(&self) -> Value {
        let nodes: Map<String, Value> =
            self.nodes().into_iter().map(|(name, result)| (name, node(result))).collect();
        let Resolved { execution, checkpoint } = &self.resolved;
        let error = match &checkpoint.state {
            ExecutionState::Failed(why) => Some(why),
            ExecutionState::Running
            | ExecutionState::Completed
            | ExecutionState::Cancelled
            | ExecutionState::Paused => None,
        };
        let mut document = json!({
            "execution": execution.id,
            "name": execution.name,
            "workflow": execution.workflow_name,
            "status": checkpoint.state.name(),
            "error": error,
            "seq": checkpoint.seq,
            "head": execution.head,
            "id": checkpoint.id,
            "created_at": checkpoint.created_at,
            "cause": checkpoint.cause,
            "label": checkpoint.label,
            "origin": self.forked_from.as_ref().map(ForkedFrom::document),
            "inputs": self.ctx.inputs,
            "variables": self.ctx.variables,
            "nodes": nodes,
            "compensations": self.compensations().map(compensation).collect::<Vec<_>>(),
        });
        document["ticket"] = json!(self.ticket);
        let spend = wording::spend_keys(&self.ctx.ledger.spend);
        spend.into_iter().for_each(|(key, value)| document[key] = value);
        document
    }

    /// Returns the compensations in the order in which they are run.
    fn compensations(&self) -> impl Iterator<Item = &Compensation> {
        self.ctx.ledger.compensations.values().rev()
    }

    fn node_document(&self, name: &str) -> Result<Value, Failure> {
        let result = self.node(name)?;
        let Resolved { execution, checkpoint } = &self.resolved;
        let mut document = node(result);
        let definition = self.workflow.as_ref().and_then(|workflow| workflow.definition().nodes.get(name));
        let inputs = result.map(|result| result.reads.iter().map(|read| self.seen(read)).collect::<Vec<_>>());
        document["execution"] = json!(execution.id);
        document["name"] = json!(execution.name);
        document["seq"] = json!(checkpoint.seq);
        document["node"] = json!(name);
        document["definition"] = json!(definition);
        document["inputs"] = json!(inputs.unwrap_or_default());
        Ok(document)
    }

    /// Returns what a node read, with the value where it is still the one that the node saw.
    fn seen(&self, read: &Read) -> Value {
        let (kind, name) = subject(&read.subject);
        let is_secret = matches!(read.subject, Subject::Secret(_));
        let changed = !is_secret && hash_now(&self.ctx, &read.subject) != read.hash;
        let value = if changed { None } else { self.value(&read.subject) };
        json!({"kind": kind, "name": name, "hash": read.hash, "value": value, "changed": changed})
    }

    fn value(&self, subject: &Subject) -> Option<&Value> {
        match subject {
            Subject::Input(name) => self.ctx.inputs.get(name),
            Subject::Variable(name) => self.ctx.get_variable(name),
            Subject::Node(name) => self.ctx.get_node_result(&node_id(name))?.output(),
            Subject::Secret(_) => None,
        }
    }

    fn print(&self, app: &App) {
        self.print_heading(app);
        for (heading, variables) in [("INPUTS", &self.ctx.inputs), ("VARIABLES", &self.ctx.variables)] {
            let mut table = Table::new([heading, ""]);
            for (name, value) in variables.iter() {
                table.row([name.into(), wording::value(value).into()]);
            }
            spaced(app, !variables.is_empty(), &table);
        }
        let (nodes, now) = (self.nodes(), app.clock.now());
        let mut table = Table::new(["NODE", "STATUS", "TIME", "RETRIES", "TOKENS", "COST", "OUTPUT"]);
        for (name, result) in &nodes {
            let (status, output, error) = standing(result.map(|result| &result.result));
            let metrics = result.and_then(|result| result.metrics.as_ref());
            let question = metrics.and_then(|metrics| metrics.custom.get("message"));
            let said = match (&output, &error) {
                (_, Value::String(why)) => wording::shortened(why, 60),
                (Value::Null, _) => match result.and_then(|result| result.due_at) {
                    Some(at) => format!("until {} ({})", wording::moment(at), wording::until(now, at)),
                    None => question.map(wording::value).unwrap_or_default(),
                },
                (output, _) => wording::value(output),
            };
            let text = |text: Option<String>| Cell::from(text.unwrap_or_default());
            table.row([
                name.into(),
                Cell::styled(status, wording::colour(status)),
                text(metrics.and_then(|metrics| metrics.duration_ms).map(wording::duration)),
                text(result.filter(|result| result.retry_count > 0).map(|r| r.retry_count.to_string())),
                text(
                    metrics.and_then(|m| m.token_usage.as_ref()).map(|usage| usage.total_tokens.to_string()),
                ),
                text(metrics.and_then(|metrics| metrics.cost_usd).map(|cost| format!("${}", usd(cost)))),
                said.into(),
            ]);
        }
        spaced(app, !nodes.is_empty(), &table);
        let mut table = Table::new(["COMPENSATION", "STAGE", "FROM", ""]);
        for Compensation { node, from, stage, .. } in self.compensations() {
            let why = if let CompensationStage::Failed(why) = stage { why } else { "" };
            table.row([
                node.into(),
                Cell::styled(stage.name(), wording::colour(stage.name())),
                format!("@{from}").into(),
                wording::shortened(why, 60).into(),
            ]);
        }
        spaced(app, self.compensations().next().is_some(), &table);
    }

    fn print_heading(&self, app: &App) {
        let Resolved { execution, checkpoint } = &self.resolved;
        let is_head = checkpoint.seq == execution.head;
        let status = match is_head {
            true => wording::standing(execution, self.ticket.as_ref()),
            false => checkpoint.state.name(),
        };
        let place = if is_head { "the head".to_owned() } else { format!("the head is @{}", execution.head) };
        app.output.line(format!(
            "{} @{} {} ({place})",
            wording::plain(&execution.name).bold(),
            checkpoint.seq,
            status.style(wording::colour(status)),
        ));
        let mut about = vec![
            format!("workflow {}", wording::plain(&execution.workflow_name)),
            wording::cause(&checkpoint.cause),
            wording::age(app.clock.now(), checkpoint.created_at),
        ];
        about.extend(wording::spend(&self.ctx.ledger.spend));
        about.extend(checkpoint.label.iter().map(|label| format!("labelled `{}`", wording::plain(label))));
        app.output.line(about.join(", ").style(Style::new().dimmed()).to_string());
        let now = app.clock.now();
        let waits = wording::waits_for(now, execution, self.ticket.as_ref(), &self.barriers);
        if let Some(waits) = waits.filter(|_| is_head) {
            app.output.line(format!("waits {waits}"));
            self.ways_on(app).iter().for_each(|way| app.output.line(format!("  {way}")));
        }
        if let Some(forked_from) = &self.forked_from {
            app.output.line(forked_from.line().style(Style::new().dimmed()).to_string());
        }
        if let ExecutionState::Failed(why) = &checkpoint.state {
            app.output.line(wording::plain(why).red().to_string());
        }
    }

    /// Returns what somebody can do for a run that waits for somebody.
    fn ways_on(&self, app: &App) -> Vec<String> {
        let name = wording::plain(&self.resolved.execution.name);
        let resume = app.command_line(format_args!("resume {name} --detach"));
        match self.ticket.as_ref().map(|ticket| ticket.stands) {
            Some(TicketStand::Held) => {}
            Some(TicketStand::Stuck) => return vec![format!("`{resume}` lets others try again")],
            Some(TicketStand::Due | TicketStand::Delayed | TicketStand::Claimed) | None => return Vec::new(),
        }
        let Some(workflow) = self.workflow.as_deref() else { return Vec::new() };
        let mut ways = Vec::new();
        for (node, result) in self.nodes() {
            let kind = workflow.definition().nodes.get(&node).map(|node| &node.kind);
            if let (Some(NodeKind::Approval(_)), Some(ExecutionResult::Pending)) =
                (kind, result.map(|result| &result.result))
            {
                let approve = app.command_line(format_args!("approve {name} {node}"));
                ways.push(format!("`{approve}`, or with `--reject`, decides what `{node}` asks"));
            }
        }
        match check_interrupted(workflow, &self.ctx) {
            Err(EngineError::Interrupted { nodes }) => ways.extend(nodes.iter().map(|(node, key)| {
                format!(
                    "`{node}` may have taken effect (idempotency key {key}): look outside by that key, and \
                     `{resume} --again {node}` runs it again under the same key"
                )
            })),
            Err(EngineError::InterruptedCompensation { nodes }) => ways.extend(nodes.iter().map(|(node, key)| {
                format!(
                    "the counter-action of `{node}` may have happened (idempotency key {key}): look outside by that \
                     key; `{resume} --again {node}` runs it again under the same key, `--skip-compensation {node}` \
                     leaves the effect as it is"
                )
            })),
            Ok(()) | Err(_) => {}
        }
        if ways.is_empty() {
            ways.push(format!("the worker that had it said why; `{resume}` lets workers try again"));
        }
        ways
    }

    fn print_node(&self, app: &App, name: &str) -> Result<(), Failure> {
        let result = self.node(name)?;
        let (status, output, error) = standing(result.map(|result| &result.result));
        let at = &self.resolved;
        app.output.line(format!(
            "{} of {} @{} {}",
            wording::plain(name).bold(),
            wording::plain(&at.execution.name),
            at.checkpoint.seq,
            status.style(wording::colour(status)),
        ));
        let Some(result) = result else { return Ok(()) };
        let mut times = vec![format!("started {}", wording::age(app.clock.now(), result.started_at))];
        let metrics = result.metrics.as_ref();
        times.extend(metrics.and_then(|m| m.duration_ms).map(|ms| format!("took {}", wording::duration(ms))));
        match result.retry_count {
            0 => {}
            1 => times.push("1 retry".to_owned()),
            retries => times.push(format!("{retries} retries")),
        }
        if let Some(tokens) = metrics.and_then(|metrics| metrics.token_usage.as_ref()) {
            let cost = metrics.and_then(|metrics| metrics.cost_usd).map(usd);
            times.push(wording::count(tokens.total_tokens.into(), "token"));
            times.push(format!("cost {}", wording::money(cost.as_deref())));
        }
        app.output.line(times.join(", ").dimmed().to_string());
        if let Some(key) = result.idempotency_key.as_ref().filter(|_| self.acts_outside(name)) {
            app.output.line(format!("idempotency key {}", wording::plain(key)).dimmed().to_string());
        }
        for Compensation { stage, idempotency_key, .. } in self.compensations().filter(|due| due.node == name)
        {
            let key = wording::plain(idempotency_key);
            app.output
                .line(format!("counter-action {}, idempotency key {key}", stage.name()).dimmed().to_string());
        }
        if let Value::String(why) = &error {
            app.output.line(wording::plain(why).red().to_string());
        }
        let mut table = Table::new(["READ", "", ""]);
        for read in &result.reads {
            let (kind, name) = subject(&read.subject);
            let seen = self.seen(read);
            let value = match (&seen["value"], seen["changed"] == true) {
                (_, true) => Cell::styled("has changed since", Style::new().yellow()),
                (Value::Null, false) => "".into(),
                (value, false) => wording::value(value).into(),
            };
            table.row([kind.into(), name.into(), value]);
        }
        spaced(app, !result.reads.is_empty(), &table);
        if result.output().is_some() {
            app.output.line("");
            let whole = output.as_str().map_or_else(|| format!("{output:#}"), str::to_owned);
            whole.lines().for_each(|line| app.output.line(wording::plain(line)));
        }
        Ok(())
    }
}

impl ForkedFrom {
    fn document(&self) -> Value {
        let Self { origin, name } = self;
        json!({"execution": origin.execution_id, "name": name, "seq": origin.seq})
    }

    fn line(&self) -> String {
        let Origin { execution_id, seq } = self.origin;
        match &self.name {
            Some(name) => format!("forked from {}@{seq}", wording::plain(name)),
            None => format!("forked from {execution_id}@{seq}, which is removed"),
        }
    }
}

fn compensation(compensation: &Compensation) -> Value {
    let Compensation { node, result, from, stage, idempotency_key } = compensation;
    let (_, output, _) = standing(Some(&result.result));
    json!({
        "node": node,
        "stage": stage.name(),
        "error": if let CompensationStage::Failed(why) = stage { Some(why) } else { None },
        "idempotency_key": idempotency_key,
        "from": from,
        "output": output,
        "compensated_key": result.idempotency_key,
    })
}

fn spaced(app: &App, is_there: bool, table: &Table) {
    if is_there {
        app.output.line("");
        table.print(&app.output);
    }
}

/// Returns what is shown of a node. One that was never reached is pending, as is one that has not ended.
fn node(result: Option<&NodeExecutionResult>) -> Value {
    let (status, output, error) = standing(result.map(|result| &result.result));
    let metrics = result.and_then(|result| result.metrics.as_ref());
    let reads: Vec<Value> = result.into_iter().flat_map(|result| &result.reads).map(read).collect();
    json!({
        "status": status,
        "output": output,
        "error": error,
        "message": metrics.and_then(|metrics| metrics.custom.get("message")),
        "started_at": result.map(|result| result.started_at),
        "completed_at": result.and_then(|result| result.completed_at),
        "due_at": result.and_then(|result| result.due_at),
        "duration_ms": metrics.and_then(|metrics| metrics.duration_ms),
        "retries": result.map_or(0, |result| result.retry_count),
        "tokens": metrics.and_then(|metrics| metrics.token_usage.as_ref()),
        "cost_usd": metrics.and_then(|metrics| metrics.cost_usd).map(usd),
        "idempotency_key": result.and_then(|result| result.idempotency_key.as_ref()),
        "reads": reads,
    })
}

fn read(read: &Read) -> Value {
    let (kind, name) = subject(&read.subject);
    json!({"kind": kind, "name": name, "hash": read.hash})
}

fn subject(subject: &Subject) -> (&'static str, &String) {
    match subject {
        Subject::Input(name) => ("input", name),
        Subject::Variable(name) => ("variable", name),
        Subject::Node(name) => ("node", name),
        Subject::Secret(name) => ("secret", name),
    }
}
