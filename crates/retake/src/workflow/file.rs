//! The shape of a workflow file: what may be written, and the definition that it makes.

mod short;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use short::{Condition, LongNode, OneOrMany, Short};

use super::check::PROBLEMS_MAX;
use super::definition::{
    Approval, Call, Definition, Effect, Http, InputSpec, Llm, MAX_PARALLEL_DEFAULT, Node, NodeKind, OnError,
    Retry, Run, Wait,
};
use super::duration::{self, format_duration, parse_duration};
use super::error::{Finding, Path, Step};
use super::suggestion;
use crate::checkpoint::{CheckpointConfig, CheckpointFrequency};

/// A workflow: a directed acyclic graph of nodes. Texts may hold expressions in `${{ … }}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Retake workflow", inline)]
struct WorkflowFile {
    /// What the workflow is called.
    name: String,
    /// What an execution is given when it starts, by name.
    #[serde(default)]
    inputs: BTreeMap<String, Short<InputSpec>>,
    /// The variables an execution starts with. Expressions in them may mention `inputs` and `execution`.
    #[serde(default)]
    vars: BTreeMap<String, Value>,
    /// When to checkpoint.
    #[serde(default)]
    checkpoints: Option<Short<CheckpointsFile>>,
    /// How many nodes run at once.
    #[serde(default = "max_parallel_default")]
    #[schemars(range(min = 1))]
    max_parallel: usize,
    /// The nodes, by id: a lower-case letter, then lower-case letters, digits and `_`.
    #[schemars(extend("propertyNames" = { "pattern": "^[a-z][a-z0-9_]*$" }))]
    nodes: BTreeMap<String, NodeFile>,
}

/// When to checkpoint, and how much to keep. At most one of `frequency`, `every`, `interval` and `before`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct CheckpointsFile {
    /// After every finished node, or only when a person asks.
    frequency: Option<FrequencyFile>,
    /// After so many finished nodes.
    #[schemars(range(min = 1))]
    every: Option<usize>,
    /// When so much time has passed: whole seconds, such as `30s`.
    #[serde(with = "duration::option")]
    #[schemars(with = "Option<String>")]
    interval: Option<Duration>,
    /// Before a node of one of these kinds starts.
    before: Option<OneOrMany>,
    /// How many an execution keeps, newest first. Labelled ones stay beyond it.
    #[schemars(range(min = 1))]
    max: Option<usize>,
    /// Whether what is stored is compressed.
    compress: Option<bool>,
    /// A node that runs longer is checkpointed at once, whatever the frequency; `false` for none.
    long_node: Option<LongNode>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum FrequencyFile {
    /// After every finished node.
    Always,
    /// Only when a person asks.
    Manual,
}

/// One step: exactly one kind (`run`, `http`, `llm`, `set`, `approval`, `wait`, `call`), and when and how it runs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = exactly_one_kind)]
struct NodeFile {
    /// Runs a command. Its output is the command's stdout: parsed if it is JSON, else text.
    run: Option<Short<Run>>,
    /// Sends an HTTP request. Its output is the body: parsed if it is JSON, else text.
    http: Option<Short<Http>>,
    /// Asks a language model. Its output is the answer's text.
    llm: Option<Short<Llm>>,
    /// Writes variables, by name. Its output is an object of them.
    set: Option<BTreeMap<String, Value>>,
    /// Waits for somebody's approval. Its output is what they gave with it.
    approval: Option<Short<Approval>>,
    /// Waits for some time.
    wait: Option<Short<Wait>>,
    /// Calls a Rust closure that was registered with the engine.
    call: Option<Short<Call>>,
    /// The nodes it waits for, beside those that its expressions mention.
    #[serde(default)]
    needs: Option<OneOrMany>,
    /// The condition without which it is skipped: one expression, with or without `${{ }}`.
    #[serde(rename = "if")]
    condition: Option<Condition>,
    /// The variable that its output is also written to.
    into: Option<String>,
    /// How often it is tried again: a number, or a map that also says how fast.
    retry: Option<Short<Retry>>,
    /// How long one attempt may take, such as `60s`.
    #[serde(default, with = "duration::option")]
    #[schemars(with = "Option<String>")]
    timeout: Option<Duration>,
    /// What running it does to the world outside.
    effect: Option<Effect>,
    /// Its counter-action on the world outside.
    compensate: Option<CompensateFile>,
    /// What its failure means for the execution.
    on_error: Option<OnError>,
}

/// A counter-action: exactly one of `run`, `http` and `call`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["run"] }, { "required": ["http"] }, { "required": ["call"] }]))]
struct CompensateFile {
    /// Runs a command.
    run: Option<Short<Run>>,
    /// Sends an HTTP request.
    http: Option<Short<Http>>,
    /// Calls a Rust closure that was registered with the engine.
    call: Option<Short<Call>>,
}

/// Returns the JSON Schema (draft 2020-12) of workflow files.
pub fn schema() -> Value {
    let schema = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    schema.into_root_schema_for::<WorkflowFile>().to_value()
}

fn exactly_one_kind(schema: &mut schemars::Schema) {
    let kinds = NodeKind::NAMES.map(|kind| serde_json::json!({ "required": [kind] }));
    schema.insert("oneOf".to_owned(), Value::from(kinds.to_vec()));
}

fn max_parallel_default() -> usize {
    MAX_PARALLEL_DEFAULT
}

/// Makes a definition of what was read. A wrong shape ends it at once; what is wrong beyond that is gathered.
pub(super) fn decode(value: Value) -> Result<Definition, Vec<Finding>> {
    if !value.is_object() {
        let finding = Finding::new(Path::default(), "a workflow is a map, with `name` and `nodes` at least");
        return Err(vec![finding]);
    }
    let file: WorkflowFile =
        serde_path_to_error::deserialize(value).map_err(|error| vec![misshapen(&error)])?;
    let mut findings = Vec::new();
    let checkpoints = checkpoints(file.checkpoints.map(|short| short.0).unwrap_or_default(), &mut findings);
    let mut nodes = BTreeMap::new();
    for (id, node) in file.nodes {
        let path = Path::of(["nodes", &id]);
        if let Some(node) = self::node(node, &id, &path, &mut findings) {
            nodes.insert(id, node);
        }
    }
    if !findings.is_empty() {
        findings.truncate(PROBLEMS_MAX);
        return Err(findings);
    }
    Ok(Definition {
        name: file.name,
        inputs: file.inputs.into_iter().map(|(name, input)| (name, input.0)).collect(),
        vars: file.vars,
        checkpoints,
        max_parallel: file.max_parallel,
        nodes,
    })
}

/// How long the description of a wrong value may be: it may quote all of it.
const MESSAGE_CHARS_MAX: usize = 300;

/// Returns what a value of the wrong shape is, and what was expected.
fn misshapen(error: &serde_path_to_error::Error<serde_json::Error>) -> Finding {
    let mut path = Path::default();
    for segment in error.path() {
        match segment {
            serde_path_to_error::Segment::Seq { index } => path = path.step(Step::Index(*index)),
            serde_path_to_error::Segment::Map { key }
            | serde_path_to_error::Segment::Enum { variant: key } => {
                path = path.key(key);
            }
            serde_path_to_error::Segment::Unknown => {}
        }
    }
    let mut message = error.inner().to_string();
    // serde says: unknown field `x`, expected one of `a`, `b`
    let unknown =
        ["unknown field `", "unknown variant `"].iter().find_map(|start| message.strip_prefix(start));
    let Some((word, expected)) = unknown.and_then(|rest| rest.split_once("`, ")) else {
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(end);
            message.push('…');
        }
        return Finding::new(path, message);
    };
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let what = if message.starts_with("unknown field") { "key" } else { "value" };
    let finding = Finding::new(path, format!("unknown {what} `{}`", suggestion::shortened(word)))
        .help(suggestion::among(word, known));
    if what == "key" { finding.at_key() } else { finding }
}

fn checkpoints(file: CheckpointsFile, findings: &mut Vec<Finding>) -> CheckpointConfig {
    let path = Path::of(["checkpoints"]);
    let mut config = CheckpointConfig::default();
    let mut said = Vec::new();
    if let Some(frequency) = file.frequency {
        said.push("frequency");
        config.frequency = match frequency {
            FrequencyFile::Always => CheckpointFrequency::Always,
            FrequencyFile::Manual => CheckpointFrequency::Manual,
        };
    }
    if let Some(every) = file.every {
        said.push("every");
        config.frequency = CheckpointFrequency::EveryNNodes(every);
    }
    if let Some(interval) = file.interval {
        said.push("interval");
        if interval.subsec_nanos() != 0 {
            findings.push(Finding::new(path.key("interval"), "an interval is whole seconds, such as `30s`"));
        }
        config.frequency = CheckpointFrequency::TimeInterval(interval.as_secs());
    }
    if let Some(before) = file.before {
        said.push("before");
        config.frequency = CheckpointFrequency::BeforeNodeTypes(before.0);
    }
    if let [first, second, ..] = said.as_slice() {
        let message = format!("`{first}` and `{second}` both say when to checkpoint: use one");
        findings.push(Finding::new(path.key(second), message).at_key());
    }
    if let Some(max) = file.max {
        config.max_checkpoints = max;
    }
    if let Some(compress) = file.compress {
        config.compress = compress;
    }
    match file.long_node {
        None => {}
        Some(LongNode::Never) => config.auto_checkpoint_threshold_ms = None,
        Some(LongNode::Than(duration)) => match u64::try_from(duration.as_millis()) {
            Ok(ms) => config.auto_checkpoint_threshold_ms = Some(ms),
            Err(_) => {
                findings.push(Finding::new(path.key("long_node"), "no node runs this long: use `false`"))
            }
        },
    }
    config
}

fn node(file: NodeFile, id: &str, path: &Path, findings: &mut Vec<Finding>) -> Option<Node> {
    let kinds = [
        file.run.map(|run| NodeKind::Run(run.0)),
        file.http.map(|http| NodeKind::Http(http.0)),
        file.llm.map(|llm| NodeKind::Llm(Box::new(llm.0))),
        file.set.map(NodeKind::Set),
        file.approval.map(|approval| NodeKind::Approval(approval.0)),
        file.wait.map(|wait| NodeKind::Wait(normal(wait.0))),
        file.call.map(|call| NodeKind::Call(call.0)),
    ];
    let kind = only_kind(kinds, &format!("node `{id}`"), &NodeKind::NAMES, path);
    let compensate = file.compensate.map(|compensate| {
        let kinds = [
            compensate.run.map(|run| NodeKind::Run(run.0)),
            compensate.http.map(|http| NodeKind::Http(http.0)),
            compensate.call.map(|call| NodeKind::Call(call.0)),
        ];
        only_kind(kinds, "a compensation", &["run", "http", "call"], &path.key("compensate")).map(Box::new)
    });
    let (kind, compensate) = match (kind, compensate.transpose()) {
        (Ok(kind), Ok(compensate)) => (kind, compensate),
        (kind, compensate) => {
            findings.extend(kind.err());
            findings.extend(compensate.err());
            return None;
        }
    };
    let effect = file.effect.unwrap_or_else(|| kind.default_effect());
    Some(Node {
        kind,
        needs: file.needs.map(|needs| needs.0.into_iter().collect()).unwrap_or_default(),
        condition: file.condition.map(|condition| condition.0),
        into: file.into,
        retry: file.retry.map(|retry| retry.0).unwrap_or_default(),
        timeout: file.timeout,
        effect,
        compensate,
        on_error: file.on_error.unwrap_or_default(),
    })
}

fn only_kind(
    kinds: impl IntoIterator<Item = Option<NodeKind>>,
    what: &str,
    names: &[&str],
    path: &Path,
) -> Result<NodeKind, Finding> {
    let mut kinds = kinds.into_iter().flatten();
    let Some(kind) = kinds.next() else {
        let finding = Finding::new(path.clone(), format!("{what} has no kind")).at_key();
        return Err(finding.help(format!("give it one of {}", suggestion::list(names))));
    };
    match kinds.next() {
        None => Ok(kind),
        Some(second) => {
            let message = format!("{what} has two kinds: `{}` and `{}`", kind.name(), second.name());
            Err(Finding::new(path.key(second.name()), message).at_key().help("make two nodes of it"))
        }
    }
}

/// Spells a literal duration in the one way, so that `60s` and `1m` are the same definition.
fn normal(wait: Wait) -> Wait {
    match wait {
        Wait::For(text) => Wait::For(parse_duration(&text).map(format_duration).unwrap_or(text)),
        Wait::Until(text) => Wait::Until(text),
    }
}
