//! Effects outside that a new state would forget, or would say stand although they were compensated: found, and dealt
//! with as was asked.

use std::collections::BTreeMap;

use super::{Effects, NewState};
use crate::engine::compensation;
use crate::execution::{
    Cell, Compensation, CompensationStage, ExecutionContext, ExecutionResult, NodeExecutionResult, TakenBack,
    node_id,
};
use crate::store::Seq;
use crate::workflow::{Effect, Workflow};

/// What had happened by the head.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Happened<'a> {
    pub(in crate::engine) seq: Seq,
    pub(in crate::engine) workflow: &'a Workflow,
    pub(in crate::engine) ctx: &'a ExecutionContext,
    pub(in crate::engine) dropped: Dropped,
}

/// Who still knows of the effects of nodes that the new workflow does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Dropped {
    /// Nobody: they are as forgotten as those of nodes that go back.
    Forgotten,
    /// The origin of the fork. In the fork they cannot happen again.
    KnownElsewhere,
}

impl Happened<'_> {
    /// Returns the names of the nodes with an effect outside, in either workflow: what happened under the one does not
    /// cease to have happened because the other says less of it.
    fn reaching_outside(self, workflow: &Workflow) -> Vec<String> {
        let reaches = |workflow: &Workflow, name: &str| {
            workflow.definition().nodes.get(name).is_some_and(|node| node.effect == Effect::External)
        };
        let names = |workflow: &Workflow| {
            let graph = workflow.graph();
            graph.nodes().map(|node| graph.name(node).to_owned()).collect::<Vec<_>>()
        };
        let mut found = names(workflow);
        if self.dropped == Dropped::Forgotten {
            let is_dropped = |name: &String| workflow.graph().index_of(name).is_none();
            found.extend(names(self.workflow).into_iter().filter(is_dropped));
        }
        found.retain(|name| reaches(workflow, name) || reaches(self.workflow, name));
        found
    }
}

/// What was found, by name.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Settled {
    /// Nodes whose effect would be forgotten, and which nothing will undo.
    pub(in crate::engine) irreversible: Vec<String>,
    /// Nodes whose result would stand although their effect was compensated.
    pub(in crate::engine) compensated: Vec<String>,
    /// Nodes whose effect will be compensated, in that order.
    pub(in crate::engine) compensate: Vec<String>,
}

/// Finds the effects outside that the new state would forget, or bring back although they were compensated, and does
/// with them what was asked.
pub(in crate::engine) fn settle_effects(
    head: Happened<'_>,
    workflow: &Workflow,
    after: &mut NewState,
    effects: Effects,
) -> Settled {
    let mut settled = Settled::default();
    let mut turns = BTreeMap::new();
    // What was done outside stays done, whatever the state goes back to.
    after.ctx.ledger.compensations = head.ctx.ledger.compensations.clone();
    for name in head.reaching_outside(workflow) {
        let (name, id) = (name.as_str(), node_id(&name));
        let then = after.ctx.get_node_result(&id);
        let Some(now) = head.ctx.get_node_result(&id).filter(|now| may_have_happened(&now.result)) else {
            continue;
        };
        if !is_forgotten(then, now) {
            continue;
        }
        let is_unfinished = then.is_some_and(|then| match then.result {
            ExecutionResult::Pending | ExecutionResult::Skipped => true,
            ExecutionResult::Success(_) | ExecutionResult::Failure(_) => false,
        });
        let known = compensation::of(head.ctx, name, now);
        let is_undone = known.is_some_and(|(_, known)| known.stage == CompensationStage::Done);
        match effects {
            Effects::Keep => {
                after.restore(id, now);
                settled.irreversible.push(name.to_owned());
                continue;
            }
            Effects::Refuse | Effects::Again | Effects::Compensate if is_undone => {}
            Effects::Compensate if is_compensable(head, name, now) => {
                let turn = compensate(head, &mut after.ctx, name, now);
                turns.insert(turn, name.to_owned());
            }
            Effects::Refuse | Effects::Compensate => {
                settled.irreversible.push(name.to_owned());
                continue;
            }
            Effects::Again => {
                settled.irreversible.push(name.to_owned());
                // Nobody asks any more for what was begun.
                known.inspect(|(turn, _)| {
                    compensation::reach(&mut after.ctx, *turn, CompensationStage::Skipped);
                });
            }
        }
        // Without the mark, it runs under a new key.
        if is_unfinished {
            after.ctx.node_results.remove(&id);
        }
    }
    settled.compensate = turns.into_values().rev().collect();
    settled.compensated = compensated(head.ctx, workflow, &after.ctx);
    drop_what_stands(&mut after.ctx);
    settled
}

/// Returns the nodes whose result stands in a state although their effect was compensated, and which the head does not
/// say either.
pub(in crate::engine) fn compensated(
    head: &ExecutionContext,
    workflow: &Workflow,
    after: &ExecutionContext,
) -> Vec<String> {
    let graph = workflow.graph();
    let brings_back = |node: &usize| {
        let (name, id) = (graph.name(*node), graph.id(*node));
        after.get_node_result(&id).is_some_and(|then| {
            compensation::may_be_undone(head, name, then)
                && !head.get_node_result(&id).is_some_and(|now| compensation::is_same_effect(now, then))
        })
    };
    graph.nodes().filter(brings_back).map(|node| graph.name(node).to_owned()).collect()
}

/// Tells whether a state with `then` forgets the effect of `now`.
fn is_forgotten(then: Option<&NodeExecutionResult>, now: &NodeExecutionResult) -> bool {
    let Some(then) = then else { return true };
    match then.result {
        ExecutionResult::Skipped => true,
        // A mark without an end says less than an end.
        ExecutionResult::Pending => now.result != ExecutionResult::Pending,
        ExecutionResult::Success(_) | ExecutionResult::Failure(_) => !compensation::is_same_effect(then, now),
    }
}

/// Tells whether a counter-action can undo an effect: there is one, and the effect is this execution's own.
fn is_compensable(head: Happened<'_>, name: &str, now: &NodeExecutionResult) -> bool {
    let definition = head.workflow.definition().nodes.get(name);
    let is_own = now.result == ExecutionResult::Pending || now.ended > head.ctx.ledger.inherited;
    is_own && definition.is_some_and(|definition| definition.compensate.is_some())
}

/// Notes that an effect is to be compensated. Returns the turn that it is noted under.
fn compensate(
    head: Happened<'_>,
    after: &mut ExecutionContext,
    name: &str,
    now: &NodeExecutionResult,
) -> u64 {
    if let Some((turn, known)) = compensation::of(head.ctx, name, now) {
        // What somebody left as it was is open again.
        let is_left = known.stage == CompensationStage::Skipped;
        let stage = if is_left { CompensationStage::Open } else { known.stage.clone() };
        let again = Compensation { stage, from: head.seq, ..known.clone() };
        after.ledger.compensations.set(turn, Cell::new(again));
        return turn;
    }
    // What has not ended was last.
    let turn = if now.ended == 0 { after.ledger.turn + 1 } else { now.ended };
    after.ledger.turn = after.ledger.turn.max(turn);
    let open = compensation::open(name, turn, now, head.ctx, head.seq);
    after.ledger.compensations.set(turn, Cell::new(open));
    turn
}

/// Drops counter-actions that have not begun and whose effects stand again, and earlier results whose effects do not.
fn drop_what_stands(after: &mut ExecutionContext) {
    for (turn, compensation) in after.ledger.compensations.clone().iter() {
        match compensation.stage {
            CompensationStage::Open if compensation::stands(after, compensation) => {
                after.ledger.compensations.remove(turn);
            }
            CompensationStage::Skipped => {}
            CompensationStage::Open
            | CompensationStage::Started
            | CompensationStage::Done
            | CompensationStage::Failed(_) => {
                let id = node_id(&compensation.node);
                let Some(taken_back) = after.ledger.taken_back.get(&id) else { continue };
                let is_spare = taken_back
                    .spare
                    .as_ref()
                    .is_some_and(|spare| compensation::is_same_effect(&spare.result, &compensation.result));
                if is_spare {
                    let taken_back = TakenBack { spare: None, ..taken_back.clone() };
                    after.ledger.taken_back.set(id, Cell::new(taken_back));
                }
            }
        }
    }
}

/// Tells whether a node with this result may have had its effect: one that failed may have, before it did.
pub(super) fn may_have_happened(result: &ExecutionResult) -> bool {
    match result {
        ExecutionResult::Success(_) | ExecutionResult::Pending | ExecutionResult::Failure(_) => true,
        ExecutionResult::Skipped => false,
    }
}
