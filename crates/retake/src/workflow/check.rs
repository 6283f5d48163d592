//! What a definition must be, beyond its shape: names that exist, expressions that can be read, values that make sense.
//!
//! Finds everything that is wrong, and along the way what ties each node to others.

mod kind;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::definition::{Definition, Node, NodeKind};
use super::error::{Finding, Path};
use super::expression::{ExpressionError, Field, Mention, Template};
use super::graph::{Because, GraphError, Links};
use super::suggestion;
use crate::checkpoint::{CheckpointFrequency, ConfigError};
use crate::execution::Subject;

/// How many nodes a workflow may have.
pub const NODES_MAX: usize = 10_000;

/// How many problems are reported at once.
pub const PROBLEMS_MAX: usize = 50;

/// How long a name may be, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// Returns what is wrong, and what ties the nodes.
pub(super) fn check(definition: &Definition) -> (Vec<Finding>, BTreeMap<String, Links>) {
    let variables = definition.nodes.values().flat_map(written).chain(definition.vars.keys()).collect();
    let mut check = Check { definition, variables, findings: Vec::new() };
    check.head();
    let nodes = definition.nodes.iter().map(|(id, node)| (id.clone(), check.node(id, node)));
    let links = nodes.collect();
    (check.findings, links)
}

/// Returns what to say where there is no order of the nodes.
pub(super) fn unordered(error: &GraphError) -> Finding {
    let cycle = match error {
        GraphError::Cycle(cycle) => cycle,
        GraphError::TooManyDependencies => {
            let message = format!("the nodes have more than {} dependencies", super::DEPENDENCIES_MAX);
            return Finding::new(Path::of(["nodes"]), message).at_key().help(
                "every reader of a variable depends on every node that writes it: use fewer writers, or other variables",
            );
        }
    };
    let names =
        cycle.iter().map(|(name, _)| name.as_str()).chain(cycle.first().map(|(name, _)| name.as_str()));
    let names: Vec<&str> = names.collect();
    let why = cycle.iter().zip(&names[1..]).map(|((name, because), next)| match because {
        Because::Needs => format!("`{name}` needs `{next}`"),
        Because::Mentions => format!("`{name}` mentions `nodes.{next}`"),
        Because::Reads(variable) => format!("`{name}` reads `vars.{variable}`, which `{next}` writes"),
    });
    let help = why.collect::<Vec<_>>().join("; ");
    Finding::new(Path::of(["nodes", names[0]]), format!("nodes wait for each other: {}", names.join(" -> ")))
        .at_key()
        .help(help)
}

/// Returns the variables that a node writes.
fn written(node: &Node) -> impl Iterator<Item = &String> {
    let set = match &node.kind {
        NodeKind::Set(variables) => Some(variables.keys()),
        NodeKind::Run(_)
        | NodeKind::Http(_)
        | NodeKind::Llm(_)
        | NodeKind::Approval(_)
        | NodeKind::Wait(_)
        | NodeKind::Call(_) => None,
    };
    set.into_iter().flatten().chain(&node.into)
}

struct Check<'d> {
    definition: &'d Definition,
    variables: BTreeSet<&'d String>,
    findings: Vec<Finding>,
}

/// What a text may mention, and where its mentions go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A starting value: no node has run.
    Start,
    /// What is written to a variable or asked of somebody, and so is saved and shown.
    Saved,
    /// What a node is told.
    Node,
    /// A node's condition.
    Condition,
}

impl Check<'_> {
    fn report(&mut self, finding: Finding) {
        if !self.is_full() {
            self.findings.push(finding);
        }
    }

    /// Tells whether enough was found, so that a file of nothing but mistakes does not take long.
    fn is_full(&self) -> bool {
        self.findings.len() == PROBLEMS_MAX
    }

    fn head(&mut self) {
        let definition = self.definition;
        let name = &definition.name;
        if name.trim().is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            self.report(Finding::new(
                Path::of(["name"]),
                format!("a workflow's name is one line of 1 to {NAME_BYTES_MAX} bytes"),
            ));
        }
        for (name, input) in &definition.inputs {
            let path = Path::of(["inputs", name]);
            self.variable_name("an input", name, &path, Finding::at_key);
            if let Some(default) = &input.default
                && !input.kind.accepts(default)
            {
                let message = format!("the default of input `{name}` must be {}", input.kind);
                self.report(Finding::new(path.key("default"), message));
            }
        }
        for (name, value) in &definition.vars {
            let path = Path::of(["vars", name]);
            self.variable_name("a variable", name, &path, Finding::at_key);
            self.value(value, &path, Place::Start, &mut Links::default());
        }
        self.checkpoints();
        if definition.max_parallel == 0 {
            let finding =
                Finding::new(Path::of(["max_parallel"]), "with `max_parallel` of 0 nothing would run");
            self.report(finding.help("use 1 or more"));
        }
        match definition.nodes.len() {
            0 => self.report(Finding::new(Path::of(["nodes"]), "a workflow has at least one node")),
            1..=NODES_MAX => {}
            more => self.report(Finding::new(
                Path::of(["nodes"]),
                format!("{more} nodes are too many: a workflow has at most {NODES_MAX}"),
            )),
        }
    }

    fn checkpoints(&mut self) {
        let path = Path::of(["checkpoints"]);
        let checkpoints = &self.definition.checkpoints;
        if let Err(error) = checkpoints.validate() {
            let key = match error {
                ConfigError::EveryZeroNodes => "every",
                ConfigError::EveryZeroSeconds => "interval",
                ConfigError::BeforeNothing => "before",
                ConfigError::KeepNone => "max",
            };
            self.report(Finding::new(path.key(key), error.to_string()));
        }
        match &checkpoints.frequency {
            CheckpointFrequency::BeforeNodeTypes(kinds) => {
                for (at, kind) in kinds.iter().enumerate() {
                    if !NodeKind::NAMES.contains(&kind.as_str()) {
                        let message = format!("unknown kind of node `{kind}`");
                        let finding = Finding::new(path.key("before").index(at), message);
                        self.report(finding.help(suggestion::among(kind, NodeKind::NAMES)));
                    }
                }
            }
            CheckpointFrequency::EveryNNodes(_)
            | CheckpointFrequency::TimeInterval(_)
            | CheckpointFrequency::Manual
            | CheckpointFrequency::Always => {}
        }
    }

    fn node(&mut self, id: &str, node: &Node) -> Links {
        let path = Path::of(["nodes", id]);
        let mut links =
            Links { needs: node.needs.clone(), writes: written(node).cloned().collect(), ..Links::default() };
        if !is_name(id, |first| first.is_ascii_lowercase(), |rest| !rest.is_ascii_uppercase()) {
            let message = format!("`{}` is no id of a node", suggestion::shortened(id));
            let help = "an id is a lower-case letter, then lower-case letters, digits and `_`; 100 at most";
            self.report(Finding::new(path.clone(), message).at_key().help(help));
        }
        self.kind(&node.kind, &path, &mut links);
        self.needs(&node.needs, &path);
        if let Some(condition) = &node.condition {
            self.template(Template::condition(condition), &path.key("if"), Place::Condition, &mut links);
        }
        if let Some(into) = &node.into {
            self.variable_name("a variable", into, &path.key("into"), std::convert::identity);
        }
        if node.timeout.is_some_and(|timeout| timeout.is_zero()) {
            self.report(Finding::new(
                path.key("timeout"),
                "a timeout of 0 would end the node before it starts",
            ));
        }
        if !(node.retry.factor.is_finite() && node.retry.factor >= 1.0) {
            let message = "`factor` is 1 or more: waits grow";
            self.report(Finding::new(path.key("retry").key("factor"), message));
        }
        if let Some(compensate) = &node.compensate {
            self.compensate(id, compensate, &path.key("compensate"), &mut links);
        }
        links
    }

    fn needs(&mut self, needs: &BTreeSet<String>, path: &Path) {
        for needed in needs {
            if !self.is_full() && !self.definition.nodes.contains_key(needed) {
                let message = format!("unknown node `{}` in needs", suggestion::shortened(needed));
                let help = suggestion::among(needed, self.definition.nodes.keys().map(String::as_str));
                let finding = Finding::new(path.key("needs").key(needed), message);
                self.report(finding.help(help));
            }
        }
    }

    fn compensate(&mut self, id: &str, kind: &NodeKind, path: &Path, links: &mut Links) {
        match kind {
            NodeKind::Run(_) | NodeKind::Http(_) | NodeKind::Call(_) => {}
            NodeKind::Llm(_) | NodeKind::Set(_) | NodeKind::Approval(_) | NodeKind::Wait(_) => {
                let message = format!("`{}` changes nothing outside, so it compensates nothing", kind.name());
                self.report(Finding::new(path.clone(), message).help("use `run`, `http` or `call`"));
            }
        }
        let mut mentioned = Links::default();
        self.kind(kind, path, &mut mentioned);
        // It runs after its own node, whose output it may look at.
        mentioned.mentions.remove(id);
        links.mentions.append(&mut mentioned.mentions);
        links.reads.append(&mut mentioned.reads);
    }

    fn value(&mut self, value: &Value, path: &Path, place: Place, links: &mut Links) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => self.text(text, path, place, links),
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.value(item, &path.index(at), place, links);
                }
            }
            Value::Object(entries) => {
                for (key, value) in entries {
                    self.value(value, &path.key(key), place, links);
                }
            }
        }
    }

    fn text(&mut self, text: &str, path: &Path, place: Place, links: &mut Links) {
        self.template(Template::parse(text), path, place, links);
    }

    fn template(
        &mut self,
        template: Result<Template, ExpressionError>,
        path: &Path,
        place: Place,
        links: &mut Links,
    ) {
        match template {
            Ok(template) => {
                for mention in template.mentions() {
                    if self.is_full() {
                        return;
                    }
                    self.mention(mention, path, place, links);
                }
            }
            Err(ExpressionError::Syntax { problem, help, at }) => {
                let mut finding = Finding::new(path.clone(), problem).within(at);
                finding.help = help;
                self.report(finding);
            }
            Err(error) => self.report(Finding::new(path.clone(), error.to_string())),
        }
    }

    fn mention(&mut self, mention: &Mention, path: &Path, place: Place, links: &mut Links) {
        let definition = self.definition;
        let unknown = |what: &str, name: &str, known: Vec<&str>| {
            Some((
                format!("unknown {what} `{}`", suggestion::shortened(name)),
                suggestion::among(name, known),
            ))
        };
        let wrong = match &mention.subject {
            Subject::Input(name) if !definition.inputs.contains_key(name) => {
                unknown("input", name, definition.inputs.keys().map(String::as_str).collect())
            }
            Subject::Variable(_) | Subject::Node(_) if place == Place::Start => Some((
                "a variable cannot start with this: no node has run yet".to_owned(),
                "a starting value may mention `inputs` and `execution`; use a `set` node for the rest"
                    .to_owned(),
            )),
            Subject::Variable(name) if !self.variables.contains(name) => {
                unknown("variable", name, self.variables.iter().map(|name| name.as_str()).collect())
            }
            Subject::Node(name) if !definition.nodes.contains_key(name) => {
                unknown("node", name, definition.nodes.keys().map(String::as_str).collect())
            }
            Subject::Secret(name) if place == Place::Start || place == Place::Saved => Some((
                "a secret cannot stand here: what stands here is saved and shown".to_owned(),
                format!("mention `secrets.{name}` where it is used"),
            )),
            Subject::Input(_) | Subject::Secret(_) => None,
            Subject::Variable(name) => {
                links.reads.insert(name.clone());
                None
            }
            Subject::Node(name) => {
                links.mentions.insert(name.clone());
                if place == Place::Condition && mention.field == Some(Field::Status) {
                    links.consults.insert(name.clone());
                }
                None
            }
        };
        if let Some((message, help)) = wrong {
            self.report(Finding::new(path.clone(), message).help(help).within(mention.at.clone()));
        }
    }

    /// Refuses what is no name: `place` makes the finding point at the key, or at the value.
    fn variable_name(&mut self, what: &str, name: &str, path: &Path, place: fn(Finding) -> Finding) {
        if !is_name(name, |first| first.is_ascii_alphabetic() || first == b'_', |_| true) {
            let message = format!("`{}` is no name for {what}", suggestion::shortened(name));
            let help = "a name is a letter or `_`, then letters, digits and `_` (ASCII); 100 at most";
            self.report(place(Finding::new(path.clone(), message).help(help)));
        }
    }
}

fn is_name(name: &str, first: impl Fn(u8) -> bool, rest: impl Fn(u8) -> bool) -> bool {
    let bytes = name.as_bytes();
    let Some((head, tail)) = bytes.split_first() else { return false };
    let word = |byte: &u8| (byte.is_ascii_alphanumeric() || *byte == b'_') && rest(*byte);
    bytes.len() <= NAME_BYTES_MAX && first(*head) && tail.iter().all(word)
}
