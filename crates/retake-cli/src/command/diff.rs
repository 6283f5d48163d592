//! `retake diff`: what differs between two points.

use std::process::ExitCode;

use clap::Args;
use owo_colors::{OwoColorize, Style};
use retake::engine::address::{self, Address, Resolved};
use retake::engine::{Diff as Difference, NodeDiff, Pair, Standing, ValueChange, ValueEdit};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::wording;

/// How many characters two values may begin with in common and be shown from their start.
const SAME_CHARS_MAX: usize = 40;

/// How many of the characters that they have in common are shown otherwise.
const CONTEXT_CHARS: usize = 20;

/// Show what differs between two points, of one run or of two.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The point that changes are told from; a run alone is its head
    #[arg(value_name = "RUN[@POINT]")]
    from: String,

    /// The point that changes are told to
    #[arg(value_name = "RUN[@POINT]")]
    to: String,

    /// Only these variables
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    vars: Vec<String>,

    /// Only these nodes
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    nodes: Vec<String>,

    /// Exit with 1 where something differs, and with 0 where nothing does
    #[arg(long)]
    exit_code: bool,
}

impl Diff {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let engine = app.engine().await?;
        let (from, to): (Address, Address) = (self.from.parse()?, self.to.parse()?);
        let from = address::resolve(&**engine.store(), &*app.clock, &from).await?;
        let to = address::resolve(&**engine.store(), &*app.clock, &to).await?;
        let point = |resolved: &Resolved| (resolved.execution.id, resolved.checkpoint.seq);
        let pair = engine.pair(point(&from), point(&to)).await?;
        let mut diff = pair.diff();
        if self.is_narrowed() {
            self.refuse_unknown(&pair)?;
            diff.narrow(&self.vars, &self.nodes);
        }
        match app.output.json {
            true => app.output.document(&document(&from, &to, &pair, &diff)),
            false => print(&app.output, &from, &to, &diff),
        }
        // The code that `diff` and `git diff` have for it, and scripts know.
        Ok(if self.exit_code && !diff.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn is_narrowed(&self) -> bool {
        !self.vars.is_empty() || !self.nodes.is_empty()
    }

    /// Refuses names that neither point knows: "no differences" would be no answer.
    fn refuse_unknown(&self, pair: &Pair) -> Result<(), Failure> {
        let sides = [&pair.before, &pair.after];
        let is_variable = |name: &String| sides.iter().any(|side| side.ctx.variables.contains_key(name));
        let is_node = |name: &String| sides.iter().any(|side| side.side().has_node(name));
        let variable = self.vars.iter().find(|name| !is_variable(name)).map(|name| ("variable", name));
        let node = self.nodes.iter().find(|name| !is_node(name)).map(|name| ("node", name));
        match variable.or(node) {
            Some((what, name)) => {
                let message = format!("neither point has a {what} `{}`", wording::plain(name));
                Err(Failure::new(Code::NotFound, message).hint("`retake show RUN@POINT` lists what there is"))
            }
            None => Ok(()),
        }
    }
}

fn document(from: &Resolved, to: &Resolved, pair: &Pair, diff: &Difference) -> Value {
    let point = |resolved: &Resolved| {
        json!({
            "execution": resolved.execution.id,
            "name": resolved.execution.name,
            "workflow": resolved.execution.workflow_name,
            "seq": resolved.checkpoint.seq,
            "status": resolved.checkpoint.state.name(),
            "created_at": resolved.checkpoint.created_at,
        })
    };
    let mut document = json!({
        "from": point(from),
        "to": point(to),
        "differs": !diff.is_empty(),
        "patch": diff.patch(&pair.after.side()),
    });
    if let (Value::Object(document), Value::Object(parts)) = (&mut document, json!(diff)) {
        document.extend(parts);
    }
    document
}

fn print(output: &Output, from: &Resolved, to: &Resolved, diff: &Difference) {
    let point = |resolved: &Resolved| {
        format!("{}@{}", wording::plain(&resolved.execution.name), resolved.checkpoint.seq)
    };
    let (from, to) = (point(from), point(to));
    if diff.is_empty() {
        return output.line(format!("{from} and {to} do not differ"));
    }
    output.line(format!("{} to {}", from.bold(), to.bold()));
    if let Some(change) = &diff.status {
        section(output, "STATUS");
        let told = |status: &str, error: &Option<String>| match error {
            Some(why) => format!("{status}: {}", wording::plain(why)),
            None => status.to_owned(),
        };
        removed(output, told(change.from.status, &change.from.error));
        added(output, told(change.to.status, &change.to.error));
    }
    for (heading, edits) in [("INPUTS", &diff.inputs), ("VARIABLES", &diff.variables)] {
        if !edits.is_empty() {
            section(output, heading);
        }
        edits.iter().for_each(|(name, edits)| print_edits(output, name, edits));
    }
    if !diff.nodes.is_empty() {
        section(output, "NODES");
    }
    diff.nodes.iter().for_each(|diff| print_node(output, diff));
    if let Some(definition) = &diff.definition {
        section(output, "DEFINITION");
        if definition.nodes.is_empty() && definition.rest.is_empty() {
            removed(output, format!("workflow {}", definition.from));
            added(output, format!("workflow {}", definition.to));
        }
        print_edits(output, "", &definition.rest);
        definition
            .nodes
            .iter()
            .for_each(|(name, edits)| print_edits(output, &format!("nodes/{name}"), edits));
    }
    let (spent, spends) = (&diff.spend.from, &diff.spend.to);
    if spent != spends {
        section(output, "SPEND");
        // Where a sum is not known, or nothing was bought, there is nothing to tell.
        spent.iter().for_each(|usd| removed(output, wording::money(Some(usd))));
        spends.iter().for_each(|usd| added(output, wording::money(Some(usd))));
    }
}

fn print_node(output: &Output, diff: &NodeDiff) {
    let told = |standing: &Standing| {
        let mut text = format!("{} {}", diff.node, standing.status);
        text.extend(standing.cost_usd.iter().map(|cost| format!(", ${cost}")));
        text.extend(standing.error.iter().map(|why| format!(": {}", wording::plain(why))));
        text
    };
    if diff.from != diff.to {
        diff.from.iter().for_each(|standing| removed(output, told(standing)));
        diff.to.iter().for_each(|standing| added(output, told(standing)));
    }
    print_edits(output, &format!("{}/output", diff.node), &diff.output);
}

/// Prints what changed in something that is called `name`.
fn print_edits(output: &Output, name: &str, edits: &[ValueEdit]) {
    for edit in edits {
        let path = format!("{name}{}", edit.path);
        let path = wording::plain(path.strip_prefix('/').filter(|_| name.is_empty()).unwrap_or(&path));
        match &edit.change {
            ValueChange::Added { to } => added(output, format!("{path} = {}", wording::value(to))),
            ValueChange::Removed { from } => removed(output, format!("{path} = {}", wording::value(from))),
            ValueChange::Replaced { lines: Some(lines), .. } => print_hunks(output, &path, lines),
            ValueChange::Replaced { from, to, lines: None } => {
                let (from, to) = told_apart(&from.to_string(), &to.to_string());
                removed(output, format!("{path} = {from}"));
                added(output, format!("{path} = {to}"));
            }
            ValueChange::AppendedItems { start, items } => {
                for (index, item) in items.iter().enumerate() {
                    added(output, format!("{path}/{} = {}", start + index, wording::value(item)));
                }
            }
            ValueChange::AppendedText { text, .. } => {
                output.line(format!("  {path} goes on"));
                text.lines().for_each(|line| added(output, wording::plain(line)));
            }
        }
    }
}

/// Shortens two texts so that what differs in them stays to be seen.
fn told_apart(from: &str, to: &str) -> (String, String) {
    let same = from.chars().zip(to.chars()).take_while(|(from, to)| from == to).count();
    let start = if same > SAME_CHARS_MAX { same - CONTEXT_CHARS } else { 0 };
    let told = |text: &str| {
        let rest: String = text.chars().skip(start).collect();
        let mark = if start > 0 { "…" } else { "" };
        format!("{mark}{}", wording::shortened(&rest, wording::VALUE_CHARS_MAX))
    };
    (told(from), told(to))
}

fn print_hunks(output: &Output, path: &str, lines: &str) {
    output.line(format!("  {path}"));
    for line in lines.lines() {
        let text = wording::plain(line);
        let style = match line.chars().next() {
            Some('-') => Style::new().red(),
            Some('+') => Style::new().green(),
            Some('@') => Style::new().cyan(),
            Some(_) | None => Style::new(),
        };
        output.line(format!("  {}", text.style(style)));
    }
}

fn section(output: &Output, heading: &str) {
    output.line("");
    output.line(heading.dimmed().to_string());
}

fn removed(output: &Output, text: String) {
    output.line(format!("  {}", format!("- {text}").red()));
}

fn added(output: &Output, text: String) {
    output.line(format!("  {}", format!("+ {text}").green()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shown_where_they_differ() {
        let same = "x".repeat(100);
        let (from, to) = told_apart(&format!("{same}old"), &format!("{same}new{same}"));
        assert_eq!(from, format!("…{}old", "x".repeat(20)));
        assert_eq!(to, format!("…{}new{}…", "x".repeat(20), "x".repeat(37)));
        assert_eq!(told_apart("ab", "ac"), ("ab".to_owned(), "ac".to_owned()));
    }
}
