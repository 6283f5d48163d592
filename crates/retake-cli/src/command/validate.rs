//! `retake validate`: what is wrong with a workflow file, before anything runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use retake::workflow::{Effect, Node, NodeKind, Problem, Template, Workflow, WorkflowError};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::inputs;

/// Check a workflow file.
///
/// Tells everything that is wrong with it, with line and column, and exits with 2; else tells in which order its nodes
/// run.
#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// The workflow, in YAML or JSON; `-` reads it from stdin
    file: PathBuf,
}

impl Validate {
    pub(crate) fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        match inputs::workflow(&self.file) {
            Ok(workflow) if app.output.json => app.output.document(&valid(&workflow)),
            Ok(workflow) => tell(app, &workflow),
            Err(Failure { report: Some(error), .. }) if app.output.json => {
                app.output.document(&invalid(&error));
                return Ok(Code::Usage.exit());
            }
            Err(failure) => return Err(failure),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn tell(app: &App, workflow: &Workflow) {
    let graph = workflow.graph();
    let nodes = if graph.len() == 1 { "node" } else { "nodes" };
    app.output.line(format!("{} is valid: {} {nodes}", workflow.name(), graph.len()));
    for node in graph.nodes() {
        let after: Vec<&str> = graph.dependencies(node).iter().map(|node| graph.name(*node)).collect();
        let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(", ")) };
        app.output.line(format!("  {}: {}{after}", graph.name(node), workflow.node(node).kind.name()));
    }
    for warning in warnings(workflow) {
        app.output.note(format!("warning: {warning}"));
    }
}

fn valid(workflow: &Workflow) -> Value {
    let graph = workflow.graph();
    let node = |node| {
        let after: Vec<&str> = graph.dependencies(node).iter().map(|node| graph.name(*node)).collect();
        json!({"id": graph.name(node), "kind": workflow.node(node).kind.name(), "after": after})
    };
    json!({
        "valid": true,
        "workflow": workflow.name(),
        "hash": workflow.definition().hash(),
        "nodes": graph.nodes().map(node).collect::<Vec<_>>(),
        "warnings": warnings(workflow),
    })
}

fn invalid(error: &WorkflowError) -> Value {
    let problem = |problem: &Problem| {
        json!({
            "line": problem.line(),
            "column": problem.column(),
            "path": problem.path(),
            "message": problem.message(),
            "hint": problem.hint(),
        })
    };
    json!({"valid": false, "problems": error.problems().map(problem).collect::<Vec<_>>()})
}

/// Tells a person what is right in a workflow and will not run here.
pub(crate) fn warn(app: &App, workflow: &Workflow) {
    if !app.output.json {
        warnings(workflow).iter().for_each(|warning| app.output.note(format!("warning: {warning}")));
    }
}

/// Returns what is right in a workflow and will not run here.
fn warnings(workflow: &Workflow) -> Vec<String> {
    let is_unused = |node: &Node| node.compensate.is_some() && node.effect != Effect::External;
    let unused = workflow.definition().nodes.iter().filter(|(_, node)| is_unused(node)).map(|(name, _)| {
        format!("node `{name}` has a `compensate`, which runs only for nodes with `effect: external`")
    });
    let nodes = workflow.definition().nodes.iter();
    let calls = nodes.filter_map(|(name, node)| match &node.kind {
        NodeKind::Call(call) => Some((name, &call.name)),
        NodeKind::Run(_)
        | NodeKind::Http(_)
        | NodeKind::Llm(_)
        | NodeKind::Set(_)
        | NodeKind::Approval(_)
        | NodeKind::Wait(_) => None,
    });
    let warning = |(name, call)| {
        format!(
            "node `{name}` calls the closure `{call}`, which only a Rust program that registers it can run"
        )
    };
    let nodes = workflow.definition().nodes.iter();
    let unquoted = nodes.flat_map(|(name, node)| {
        let kinds = std::iter::once(&node.kind).chain(node.compensate.as_deref());
        kinds.flat_map(move |kind| unquoted(name, kind))
    });
    calls.map(warning).chain(unused).chain(unquoted).collect()
}

/// Returns what a command holds that whoever wrote the value could make another command of.
fn unquoted(name: &str, kind: &NodeKind) -> Vec<String> {
    let NodeKind::Run(run) = kind else { return Vec::new() };
    let Ok(command) = Template::parse(&run.command) else { return Vec::new() };
    let warning = |expression: &str| {
        format!(
            "node `{name}` puts `{expression}` into its command, where the shell runs what it says: write \
             `${{{{ {expression} | quote }}}}` outside of quotes, or use `env`"
        )
    };
    command.unquoted().map(warning).collect()
}
