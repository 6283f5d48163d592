//! What going back or changing something would do, worked out before anything changes. Pure: a workflow, states and a
//! request in, a plan out. What a request changes is in [`draft`], what that concerns in [`affected`],
//! what comes of it in [`outcome`], how variables are worked out anew in [`lineage`].

mod affected;
mod draft;
mod effects;
mod explanation;
mod lineage;
mod outcome;
mod request;
mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

pub(super) use effects::{Dropped, Happened, Settled, compensated, settle_effects};
pub(super) use explanation::explain;
pub use explanation::{Explanation, Reuse, Trigger};
pub(super) use outcome::without_compensated;
pub use request::{Edit, Effects, Extent, Redefine, Rollback};
pub(super) use upstream::{Given, upstream};

use self::draft::Draft;
use self::lineage::Lineage;
use super::EngineError;
use super::planner::ending;
use crate::execution::{Cost, ExecutionContext, ExecutionId, NodeExecutionResult, NodeId, Variables};
use crate::store::{Cause, CheckpointRecord, Seq};
use crate::workflow::Workflow;

/// What a rollback, an edit, a fork or another workflow would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The point that the new head comes of.
    pub target: Seq,
    /// The head that the plan was made for. Where it has moved, the plan is refused.
    pub head: Seq,
    /// Nodes whose results stay.
    pub keep: Vec<String>,
    /// Nodes that had a result and will run again, in the order in which they can. One of them that turns out to see
    /// what it saw is spared.
    pub rerun: Vec<Rerun>,
    /// Nodes that have not run yet, and will.
    pub pending: Vec<String>,
    /// Nodes with an effect outside, which cannot be undone, whose results would be forgotten.
    pub irreversible: Vec<String>,
    /// Nodes whose counter-actions will run before anything else does, in that order: the last effect first.
    pub compensate: Vec<String>,
    /// Nodes whose results would stand again, although their effects were compensated since.
    pub compensated: Vec<String>,
    /// Nodes whose results stay although what they read changes: only where the extent was narrowed by hand.
    pub inconsistent: Vec<Rerun>,
    /// Nodes that the workflow has no more, and whose results go.
    pub removed: Vec<String>,
    /// Nodes whose outputs go: they run again, or are no more. What failed has nothing to lose.
    pub forgotten: Vec<String>,
    /// Variables that change.
    pub variables: BTreeMap<String, VariableChange>,
    /// Nodes that have another output then, by name.
    pub outputs: BTreeMap<String, VariableChange>,
    /// US dollars that the kept results cost, as a decimal; `None` where not known or where nothing was bought.
    pub cost_kept_usd: Option<String>,
    /// US dollars that the nodes to run again cost last time.
    pub cost_again_usd: Option<String>,
    /// Money, tokens and time of the kept results.
    pub kept: Cost,
    /// Money, tokens and time of the nodes to run again, as of last time.
    pub again: Cost,
    /// What applying it commits.
    #[serde(skip)]
    pub(super) change: PlannedChange,
}

impl Plan {
    /// Tells whether [`apply`](super::Engine::apply) would take the plan.
    ///
    /// # Errors
    /// [`EngineError::Irreversible`] and [`EngineError::Compensated`], where the request did not say what to do.
    pub fn check(&self) -> Result<(), EngineError> {
        refuse(self.change.effects, &self.irreversible, &self.compensated)
    }
}

/// Refuses what nobody decided on.
pub(super) fn refuse(
    effects: Effects,
    irreversible: &[String],
    compensated: &[String],
) -> Result<(), EngineError> {
    match effects {
        Effects::Refuse | Effects::Compensate if !irreversible.is_empty() => {
            Err(EngineError::Irreversible { nodes: irreversible.to_vec() })
        }
        Effects::Refuse if !compensated.is_empty() => {
            Err(EngineError::Compensated { nodes: compensated.to_vec() })
        }
        Effects::Refuse | Effects::Compensate | Effects::Again | Effects::Keep => Ok(()),
    }
}

/// A node, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rerun {
    /// The node.
    pub node: String,
    /// Why.
    pub because: String,
}

/// What a variable or an output changes from and to; `None` where it is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VariableChange {
    /// At the head.
    pub from: Option<Value>,
    /// After the plan is applied.
    pub to: Option<Value>,
}

/// What applying a plan commits.
#[derive(Debug, Clone)]
pub(super) struct PlannedChange {
    pub(super) execution: ExecutionId,
    pub(super) effects: Effects,
    pub(super) cause: Cause,
    /// The point that precedes the new one on the time line.
    pub(super) parent: Seq,
    /// The point whose state the new one is nearest to.
    pub(super) base: Seq,
    /// The state that becomes the head.
    pub(super) after: NewState,
    /// The workflow that the execution runs from now on, if that is another.
    pub(super) workflow: Option<Arc<Workflow>>,
}

/// A state, and which node wrote the variables in it that were worked out anew.
#[derive(Debug, Clone)]
pub(super) struct NewState {
    pub(super) ctx: ExecutionContext,
    pub(super) writers: BTreeMap<String, NodeId>,
}

/// A state, and its place in the history.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) record: CheckpointRecord,
    pub(super) ctx: ExecutionContext,
}

/// What a plan is made of, beside the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    /// What the execution is called.
    pub(super) name: &'a str,
    pub(super) workflow: &'a Workflow,
    /// The one that the execution runs at the head, where that is another.
    pub(super) head_workflow: &'a Workflow,
    pub(super) head: &'a Point,
    /// The head itself, where nothing goes back.
    pub(super) target: &'a Point,
    /// Whether the target is on the time line of the head.
    pub(super) is_on_line: bool,
}

impl<'a> Known<'a> {
    /// Returns what a plan is made of that goes back to nowhere.
    pub(super) fn of_head(name: &'a str, workflow: &'a Workflow, head: &'a Point) -> Self {
        Self { name, workflow, head_workflow: workflow, head, target: head, is_on_line: true }
    }
}

/// Why a node has an output that a person put in place.
const BY_HAND: &str = "its output was given by hand";

/// Works out what going back would do.
pub(super) fn rollback(known: Known<'_>, request: &Rollback) -> Result<Plan, EngineError> {
    let cause = Cause::Rollback { to: known.target.record.seq };
    let mut draft = Draft::new(known, cause, request.effects);
    draft.set(&request.set);
    match &request.extent {
        Extent::Only { variables, nodes } => draft.narrow(variables, nodes)?,
        Extent::Affected if known.is_on_line && draft.follow(request.node.as_deref())? => {}
        Extent::Affected | Extent::Linear => draft.go_back_wholly(),
    }
    draft.finish()
}

/// Works out what a change of the head would do.
pub(super) fn edit(known: Known<'_>, request: &Edit) -> Result<Plan, EngineError> {
    let mut draft = Draft::new(known, Cause::Edit, request.effects);
    draft.set(&request.set);
    for name in request.outputs.keys().chain(&request.done) {
        draft.replace(name, request)?;
    }
    draft.finish()
}

/// Works out what going on from the head would do, with variables set and maybe by another workflow.
pub(super) fn go_on(
    known: Known<'_>,
    cause: Cause,
    new: Option<Redefinition>,
    set: &BTreeMap<String, Value>,
    effects: Effects,
) -> Result<Plan, EngineError> {
    let Some(Redefinition { workflow, variables, inputs }) = new else {
        let mut draft = Draft::new(known, cause, effects);
        draft.set(set);
        return draft.finish();
    };
    let mut draft = Draft::new(Known { workflow: &workflow, ..known }, cause, effects);
    draft.set(set);
    draft.redefine(known.workflow, variables);
    draft.from.inputs = inputs;
    let mut plan = draft.finish()?;
    plan.change.workflow = Some(Arc::new(workflow));
    Ok(plan)
}

/// Another workflow for an execution.
pub(super) struct Redefinition {
    pub(super) workflow: Workflow,
    /// The first values of the variables whose definition is another now.
    pub(super) variables: BTreeMap<String, Option<Value>>,
    /// The inputs, with those that only this workflow has a default for.
    pub(super) inputs: Variables,
}

impl NewState {
    fn replay(&mut self, lineage: &Lineage, name: &str) -> Result<(), NodeId> {
        let writer = lineage.replay(&mut self.ctx, name).map_err(|(node, _)| node)?;
        self.writers.extend(writer.map(|writer| (name.to_owned(), writer)));
        Ok(())
    }

    /// Puts a result that the state lacks into it, with what its node wrote.
    fn restore(&mut self, id: NodeId, result: &NodeExecutionResult) {
        self.ctx.record_node_result(id, result.clone());
        self.ctx.ledger.taken_back.remove(&id);
        let lineage = Lineage::of(&self.ctx);
        for write in &result.writes {
            // What does not fit any more is as good as not written.
            let _as_far_as_it_fits = self.replay(&lineage, &write.variable);
        }
    }
}
