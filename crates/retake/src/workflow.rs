//! Workflows: their definition, graph, file format, builder and expressions.
//!
//! Everything here is pure: nothing reads a file, a clock or the environment.
//!
//! # Expressions
//! `${{ … }}` may stand in every text; inside is one Jinja expression (minijinja) over these names:
//!
//! | name | is |
//! | --- | --- |
//! | `inputs.X` | what the execution was given |
//! | `vars.X` | a variable; some node must write it, or `vars` start with it |
//! | `nodes.ID.output` | what a node gave; null if it failed or was skipped |
//! | `nodes.ID.status` | `success`, `failure`, `skipped` or `pending` |
//! | `nodes.ID.error` | why it failed, or null |
//! | `secrets.X` | a secret; not in `vars`, `set` or `approval`, which are saved |
//! | `execution.id`, `execution.name` | the execution |
//!
//! A text that is one expression keeps the expression's type. In any other text values stand as they are if they are
//! text, and as JSON if not (null is `null`). What is undefined is an error, never a text. `$${{` is a literal `${{`.
//! The filter `quote` makes one word for a shell of anything: `run: grep ${{ inputs.topic | quote }} notes.txt`.
//!
//! # Dependencies
//! A node waits for those it `needs`, for those whose `nodes.ID` it mentions, and for those that write a variable it
//! mentions, by `set` or `into`. A node that reads what it writes sees what was there before. Names that an expression
//! computes (`vars[name]`), and all of `vars` or `nodes` at once, tie nothing: say `needs`.

mod builder;
mod check;
mod definition;
mod duration;
mod error;
mod expression;
mod file;
mod graph;
mod source;
pub(crate) mod suggestion;

pub use builder::Builder;
pub use check::{NAME_BYTES_MAX, NODES_MAX, PROBLEMS_MAX};
pub use definition::{
    Approval, Call, Definition, Effect, Http, InputError, InputSpec, InputType, Llm, MAX_PARALLEL_DEFAULT,
    Method, Node, NodeKind, OnError, Price, Retry, Run, StoredDefinitionError, TypedError, Wait,
};
pub use duration::{DurationError, parse_duration};
pub use error::{Problem, WorkflowError};
pub use expression::{
    EXPRESSION_TOKENS_MAX, ExpressionError, FUEL, Field, Mention, Root, Scope, Template, evaluate_condition,
    evaluate_json,
};
pub use file::schema;
pub use graph::{DEPENDENCIES_MAX, Graph};
pub use source::{DEPTH_MAX, FILE_BYTES_MAX};

use error::{Finding, Path};

use std::collections::BTreeSet;

use serde_json::Value;

use crate::execution::{Subject, WorkflowId};

/// A workflow that was checked: every name in it exists, every expression can be read, and its nodes have an order.
///
/// The only thing that the engine runs.
#[derive(Debug, Clone)]
pub struct Workflow {
    definition: Definition,
    id: WorkflowId,
    graph: Graph,
}

impl Workflow {
    /// Returns a workflow in the making.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// Reads a workflow from YAML or JSON, whichever the text is. `source_name` stands in errors: a file's name.
    ///
    /// # Errors
    /// Everything that is wrong, with line and column.
    ///
    /// ```
    /// use retake::workflow::Workflow;
    ///
    /// let text = "name: research\nnodes:\n  search: { run: ./search.sh }\n  draft: { run: ./draft.sh, needs: serch }\n";
    /// let error = Workflow::parse("research.yaml", text).unwrap_err();
    /// assert_eq!(error.to_string(), "research.yaml:4:36: unknown node `serch` in needs");
    /// ```
    pub fn parse(source_name: &str, text: &str) -> Result<Self, WorkflowError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(too_large(source_name, text.len()));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let tree = source::read(text).map_err(|error| {
            let (finding, place) = error.locate(text);
            WorkflowError::of_file(source_name, text, vec![Problem::new(finding, Some(place))])
        })?;
        let (findings, workflow) = match file::decode(tree.to_value()) {
            Ok(definition) => Self::examine(definition),
            Err(findings) => (findings, None),
        };
        workflow.ok_or_else(|| {
            let locate = |finding: Finding| {
                let place = tree.locate(text, &finding);
                Problem::new(finding, Some(place))
            };
            WorkflowError::of_file(source_name, text, findings.into_iter().map(locate).collect())
        })
    }

    /// Reads a workflow from the bytes of a file, as [`parse`](Self::parse).
    ///
    /// # Errors
    /// Bytes that are not UTF-8, with the place of the first, and what [`parse`](Self::parse) refuses.
    pub fn from_bytes(source_name: &str, bytes: &[u8]) -> Result<Self, WorkflowError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(too_large(source_name, bytes.len()));
        }
        let text = str::from_utf8(bytes).map_err(|error| {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let place = source::place(&before, before.len()..before.len());
            let finding = Finding::new(Path::default(), "the file is not UTF-8 from here on");
            let problem = Problem::new(finding.help("save it as UTF-8"), Some(place));
            WorkflowError::without_text(source_name, vec![problem])
        })?;
        Self::parse(source_name, text)
    }

    /// Checks a definition that comes from a store or was made in Rust.
    ///
    /// # Errors
    /// Everything that is wrong, with its path in the definition.
    pub fn from_definition(definition: Definition) -> Result<Self, WorkflowError> {
        Self::check(definition, Vec::new())
    }

    /// Checks a definition in which something was already found.
    fn check(definition: Definition, mut findings: Vec<Finding>) -> Result<Self, WorkflowError> {
        let name = definition.name.clone();
        let (more, workflow) = Self::examine(definition);
        findings.extend(more);
        match workflow {
            Some(workflow) if findings.is_empty() => Ok(workflow),
            Some(_) | None => {
                let problems = findings.into_iter().map(|finding| Problem::new(finding, None)).collect();
                Err(WorkflowError::without_text(&name, problems))
            }
        }
    }

    /// Returns what is wrong, and the workflow if nothing is.
    fn examine(definition: Definition) -> (Vec<Finding>, Option<Self>) {
        let (mut findings, links) = check::check(&definition);
        match Graph::new(&links) {
            Ok(graph) if findings.is_empty() => {
                let id = definition.id();
                (findings, Some(Self { definition, id, graph }))
            }
            Ok(_) => (findings, None),
            Err(error) => {
                findings.push(check::unordered(&error));
                (findings, None)
            }
        }
    }

    /// Returns the definition.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Returns the id, made from the definition's hash.
    pub fn id(&self) -> WorkflowId {
        self.id
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// Returns which node waits for which.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the names of the secrets that its expressions mention.
    pub fn secrets(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut open = vec![serde_json::to_value(&self.definition).unwrap_or_default()];
        while let Some(value) = open.pop() {
            match value {
                Value::String(text) if text.contains("secrets") => {
                    // A condition is an expression without braces; any other text is none that parses as one.
                    let templates = [Template::parse(&text), Template::condition(&text)];
                    for mention in templates.iter().flatten().flat_map(Template::mentions) {
                        if let Subject::Secret(name) = &mention.subject {
                            names.insert(name.clone());
                        }
                    }
                }
                Value::Array(items) => open.extend(items),
                Value::Object(entries) => open.extend(entries.into_iter().map(|(_, value)| value)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        names
    }

    /// Returns the node with this index of the [`graph`](Self::graph).
    pub fn node(&self, index: usize) -> &Node {
        &self.definition.nodes[self.graph.name(index)]
    }
}

fn too_large(source_name: &str, bytes: usize) -> WorkflowError {
    let message = format!("the file has {bytes} bytes: a workflow has at most {FILE_BYTES_MAX}");
    let finding = Finding::new(Path::default(), message).help("keep data in files that nodes read");
    WorkflowError::without_text(source_name, vec![Problem::new(finding, None)])
}
