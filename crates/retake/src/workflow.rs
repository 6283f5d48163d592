//! Workflows: their definition, graph, file format, builder and expressions.
//!
//! Everything here is pure: nothing reads a file, a clock or the environment.

mod builder;
mod check;
mod definition;
mod duration;
mod error;
mod expression;
mod graph;
mod suggestion;

pub use builder::Builder;
pub use check::{NAME_BYTES_MAX, NODES_MAX};
pub use definition::{
    Approval, Call, Definition, Effect, Http, InputError, InputSpec, InputType, Llm, MAX_PARALLEL_DEFAULT,
    Method, Node, NodeKind, OnError, Price, Retry, Run, StoredDefinitionError, Wait,
};
pub use duration::{DurationError, parse_duration};
pub use error::{Problem, WorkflowError};
pub use expression::{
    EXPRESSION_TOKENS_MAX, ExpressionError, FUEL, Field, Mention, Root, Scope, Template, evaluate_condition,
    evaluate_json,
};
pub use graph::{DEPENDENCIES_MAX, Graph};

use error::Finding;

use crate::execution::WorkflowId;

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

    /// Returns the node with this index of the [`graph`](Self::graph).
    pub fn node(&self, index: usize) -> &Node {
        &self.definition.nodes[self.graph.name(index)]
    }
}
