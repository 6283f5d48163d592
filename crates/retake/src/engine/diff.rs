//! What differs between two points, of one execution or of two. Pure: two states in, a typed result out.
//!
//! What a result *says* is compared: status, output, error and cost of nodes, values of variables. When and how it was
//! made (times, attempts, reads, keys) is not, so that a node that ran again and gave the same is no difference.

mod edit;
mod pair;
mod patch;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

pub use edit::{ValueChange, ValueEdit};
pub use pair::{Pair, PairPoint};

use super::standing;
use crate::execution::{
    Addition, Cell, Change, Cost, ExecutionContext, ExecutionState, NodeExecutionResult, NodeId, Variable,
    Variables, WorkflowId, node_id, usd,
};
use crate::workflow::{Definition, Workflow};

/// One of two states that are compared.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The state.
    pub ctx: &'a ExecutionContext,
    /// Its workflow; `None` where the execution was not started by an engine.
    pub workflow: Option<&'a Workflow>,
}

/// What differs between two states.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// How the executions stand, where that differs.
    pub status: Option<StatusChange>,
    /// The inputs that differ, by name, each with what changed in it.
    pub inputs: BTreeMap<String, Vec<ValueEdit>>,
    /// The variables that differ, by name, each with what changed in it.
    pub variables: BTreeMap<String, Vec<ValueEdit>>,
    /// The nodes that differ, in the order in which they can run. As JSON an object, by name.
    #[serde(serialize_with = "by_name")]
    pub nodes: Vec<NodeDiff>,
    /// How the workflows differ; `None` where it is the same one.
    pub definition: Option<DefinitionDiff>,
    /// What the results that stand on either side cost together: not what was paid for those that were abandoned.
    pub spend: CostChange,
}

/// How an execution stands on either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusChange {
    /// In the older state.
    pub from: Status,
    /// In the newer state.
    pub to: Status,
}

/// How an execution stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// As one word, see [`ExecutionState::name`].
    pub status: &'static str,
    /// What it failed at.
    pub error: Option<String>,
}

/// How a node differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeDiff {
    /// Its name; its id where no workflow names it.
    #[serde(skip)]
    pub node: String,
    /// How it stood; `None` where the older side has neither the node nor a result of it.
    pub from: Option<Standing>,
    /// How it stands; `None` where the newer side has neither the node nor a result of it.
    pub to: Option<Standing>,
    /// What changed in its output.
    pub output: Vec<ValueEdit>,
}

/// What became of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// As one word, see [`standing`].
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<String>,
    /// US dollars, as a decimal; `None` where not known.
    pub cost_usd: Option<String>,
}

/// How two workflows differ, by their parsed form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DefinitionDiff {
    /// The older side's workflow.
    pub from: WorkflowId,
    /// The newer side's workflow.
    pub to: WorkflowId,
    /// The nodes that differ, by name, each with the fields that changed. Empty, as is `rest`, where a side has no
    /// definition.
    pub nodes: BTreeMap<String, Vec<ValueEdit>>,
    /// What else changed: `/name`, `/inputs/…`, `/vars/…`, `/checkpoints/…`, `/max_parallel`.
    pub rest: Vec<ValueEdit>,
}

/// US dollars that standing results cost together, as decimals; `None` where not known or where nothing was bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CostChange {
    /// On the older side.
    pub from: Option<String>,
    /// On the newer side.
    pub to: Option<String>,
}

/// Returns what differs from one state to another.
///
/// Costs as much as the variables and results differ where one state came from the other, or where both were loaded as
/// a [`Pair`]; else as much as both hold. The workflows and the number of results come on top.
///
/// ```
/// use retake::engine::{Side, ValueChange, diff};
/// use retake::execution::ExecutionContext;
/// use serde_json::json;
///
/// let mut before = ExecutionContext::new(uuid::Uuid::nil());
/// before.set_variable("otter".into(), json!({"name": "Olga", "fish": [1, 2]}));
/// let mut after = before.clone();
/// after.set_variable("otter".into(), json!({"name": "Olga", "fish": [1, 2, 3]}));
/// let side = |ctx| Side { ctx, workflow: None };
/// let diff = diff(&side(&before), &side(&after));
/// let edit = &diff.variables["otter"][0];
/// assert_eq!(edit.path, "/fish");
/// assert_eq!(edit.change, ValueChange::AppendedItems { start: 2, items: vec![json!(3)] });
/// ```
pub fn diff(before: &Side<'_>, after: &Side<'_>) -> Diff {
    let (from, to) = (Status::of(&before.ctx.state), Status::of(&after.ctx.state));
    Diff {
        status: (from != to).then_some(StatusChange { from, to }),
        inputs: variables(&before.ctx.inputs, &after.ctx.inputs),
        variables: variables(&before.ctx.variables, &after.ctx.variables),
        nodes: nodes(before, after),
        definition: definition(before, after),
        spend: CostChange { from: before.spend(), to: after.spend() },
    }
}

impl Diff {
    /// Tells whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Self { status, inputs, variables, nodes, definition, spend: _ } = self;
        status.is_none()
            && inputs.is_empty()
            && variables.is_empty()
            && nodes.is_empty()
            && definition.is_none()
    }

    /// Forgets all but these variables and nodes; what is spent stays that of the whole states.
    pub fn narrow(&mut self, variables: &[String], nodes: &[String]) {
        self.status = None;
        self.definition = None;
        self.inputs.clear();
        self.variables.retain(|name, _| variables.contains(name));
        self.nodes.retain(|diff| nodes.contains(&diff.node));
    }
}

impl<'a> Side<'a> {
    /// Tells whether the workflow has a node with this name, or the state a result of it.
    pub fn has_node(&self, name: &str) -> bool {
        self.rank(name).is_some()
            || name.parse().is_ok_and(|id| self.ctx.node_results.contains_key(&id) && self.name(&id) == name)
    }

    /// Returns the name by which a node is known here: the workflow's, or its id.
    fn name(&self, id: &NodeId) -> String {
        let graph = self.workflow.map(Workflow::graph);
        let named = graph.and_then(|graph| graph.index_of_id(id).map(|node| graph.name(node).to_owned()));
        named.unwrap_or_else(|| id.to_string())
    }

    /// Returns a node's place among the nodes of the workflow.
    fn rank(&self, name: &str) -> Option<usize> {
        self.workflow.and_then(|workflow| workflow.graph().index_of(name))
    }

    /// Returns the nodes of the workflow.
    fn known(&self) -> impl Iterator<Item = NodeId> + use<'a> {
        let graph = self.workflow.map(Workflow::graph);
        graph.into_iter().flat_map(|graph| graph.nodes().map(|node| graph.id(node)))
    }

    /// Returns a node's result; `None` within where it has none yet, and without where there is no such node.
    fn node(&self, id: &NodeId) -> Option<Option<&'a NodeExecutionResult>> {
        match self.ctx.get_node_result(id) {
            Some(result) => Some(Some(result)),
            None => self.workflow.and_then(|workflow| workflow.graph().index_of_id(id)).map(|_| None),
        }
    }

    /// Returns the output of a node by the name that [`name`](Self::name) gives it.
    fn output(&self, name: &str) -> Option<&'a Value> {
        let id = if self.rank(name).is_some() { node_id(name) } else { name.parse().ok()? };
        self.ctx.get_node_result(&id)?.output()
    }

    fn spend(&self) -> Option<String> {
        let mut sum = Cost::default();
        self.ctx.node_results.values().for_each(|result| sum.add(result.metrics.as_ref()));
        sum.usd()
    }
}

impl Status {
    fn of(state: &ExecutionState) -> Self {
        let error = match state {
            ExecutionState::Failed(why) => Some(why.clone()),
            ExecutionState::Running
            | ExecutionState::Completed
            | ExecutionState::Cancelled
            | ExecutionState::Paused => None,
        };
        Self { status: state.name(), error }
    }
}

impl Standing {
    fn of(result: Option<&NodeExecutionResult>) -> Self {
        let (status, _output, error) = standing(result.map(|result| &result.result));
        let cost = result.and_then(|result| result.metrics.as_ref()?.cost_usd);
        Self { status, error: error.as_str().map(str::to_owned), cost_usd: cost.map(usd) }
    }
}

fn variables(before: &Variables, after: &Variables) -> BTreeMap<String, Vec<ValueEdit>> {
    let edits = before.changes_to(after).map(|change| match change {
        Change::Added(name, cell) => (name.clone(), vec![ValueEdit::added(Cell::value(cell).clone())]),
        Change::Removed(name, cell) => (name.clone(), vec![ValueEdit::removed(Cell::value(cell).clone())]),
        Change::Changed { key, before, after } => (key.clone(), variable(before, after)),
    });
    edits.collect()
}

fn variable(before: &Variable, after: &Variable) -> Vec<ValueEdit> {
    // What grew by appends is known without putting it together.
    if let (Some(start), Some(additions)) = (before.len(), after.appended_since(before)) {
        let (mut items, mut text) = (Vec::new(), String::new());
        for addition in additions {
            match addition {
                Addition::Items(more) => items.extend(more),
                Addition::Text(more) => text.push_str(&more),
            }
        }
        let change = match text.is_empty() {
            true => ValueChange::AppendedItems { start, items },
            false => ValueChange::AppendedText { start, text },
        };
        return vec![ValueEdit::at_root(change)];
    }
    edit::compare(before.value(), after.value())
}

fn nodes(before: &Side<'_>, after: &Side<'_>) -> Vec<NodeDiff> {
    let mut ids: BTreeSet<NodeId> = BTreeSet::new();
    for change in before.ctx.node_results.changes_to(&after.ctx.node_results) {
        match change {
            Change::Added(id, _) | Change::Removed(id, _) | Change::Changed { key: id, .. } => {
                ids.insert(*id)
            }
        };
    }
    // Other workflows may have other nodes, which differ although neither has a result.
    if before.workflow.map(Workflow::id) != after.workflow.map(Workflow::id) {
        let (then, now): (BTreeSet<_>, BTreeSet<_>) = (before.known().collect(), after.known().collect());
        ids.extend(then.symmetric_difference(&now));
    }
    let mut found = BTreeMap::new();
    for id in &ids {
        let (was, is) = (before.node(id), after.node(id));
        let (then, now) = (before.name(id), after.name(id));
        if then == now {
            found.insert(now, (was, is));
        } else {
            // Only one side's workflow knows its name, so that to a reader these are two nodes.
            found.extend(was.map(|was| (then, (Some(was), None))));
            found.extend(is.map(|is| (now, (None, Some(is)))));
        }
    }
    let mut nodes: Vec<NodeDiff> =
        found.into_iter().filter_map(|(name, (was, is))| NodeDiff::of(name, was, is)).collect();
    nodes.sort_by_key(|diff| {
        let rank = |side: &Side<'_>| side.rank(&diff.node).unwrap_or(usize::MAX);
        (rank(after), rank(before))
    });
    nodes
}

impl NodeDiff {
    fn of(
        node: String,
        before: Option<Option<&NodeExecutionResult>>,
        after: Option<Option<&NodeExecutionResult>>,
    ) -> Option<Self> {
        let output = |side: Option<Option<&NodeExecutionResult>>| side.flatten()?.output().cloned();
        let output = match (output(before), output(after)) {
            (None, None) => Vec::new(),
            (None, Some(to)) => vec![ValueEdit::added(to)],
            (Some(from), None) => vec![ValueEdit::removed(from)],
            (Some(from), Some(to)) => edit::compare(&from, &to),
        };
        let (from, to) = (before.map(Standing::of), after.map(Standing::of));
        (from != to || !output.is_empty()).then_some(Self { node, from, to, output })
    }
}

fn definition(before: &Side<'_>, after: &Side<'_>) -> Option<DefinitionDiff> {
    let (from, to) = (before.ctx.workflow_id, after.ctx.workflow_id);
    if from == to {
        return None;
    }
    let mut diff = DefinitionDiff { from, to, nodes: BTreeMap::new(), rest: Vec::new() };
    if let (Some(before), Some(after)) = (before.workflow, after.workflow) {
        let ((then, rest_then), (now, rest_now)) = (parts(before.definition()), parts(after.definition()));
        diff.rest = edit::compare(&rest_then, &rest_now);
        let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
        for name in names {
            let edits = match (then.get(name), now.get(name)) {
                (Some(from), Some(to)) => edit::compare(from, to),
                (None, Some(to)) => vec![ValueEdit::added(to.clone())],
                (Some(from), None) => vec![ValueEdit::removed(from.clone())],
                (None, None) => Vec::new(),
            };
            if !edits.is_empty() {
                diff.nodes.insert(name.clone(), edits);
            }
        }
    }
    Some(diff)
}

/// Returns the nodes of a definition as it is stored, and the rest of it.
fn parts(definition: &Definition) -> (Map<String, Value>, Value) {
    let mut stored = serde_json::to_value(definition).expect("a definition is plain data with text keys");
    let nodes = stored.as_object_mut().and_then(|stored| stored.remove("nodes"));
    match nodes {
        Some(Value::Object(nodes)) => (nodes, stored),
        Some(_) | None => (Map::new(), stored),
    }
}

fn by_name<S: Serializer>(nodes: &[NodeDiff], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(nodes.iter().map(|diff| (&diff.node, diff)))
}
