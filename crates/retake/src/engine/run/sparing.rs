//! Early cut-off: a node whose result was taken back, and that would see what it saw then, is spared.

use super::Run;
use crate::engine::EngineError;
use crate::engine::context::hash_now;
use crate::engine::event::Event;
use crate::engine::plan::{Given, upstream};
use crate::execution::{NodeExecutionResult, Subject};
use crate::store::Cause;

impl Run {
    /// Returns the earlier result of a node that would see what it saw then: the same in everything that it read, and
    /// the same from every node that it waits for.
    pub(super) fn spared(&self, node: usize) -> Option<NodeExecutionResult> {
        let taken_back = self.ctx.ledger.taken_back.get(&self.workflow.graph().id(node))?;
        let spare = taken_back.spare.as_ref()?;
        let is_as_before = spare.result.reads.iter().all(|read| match &read.subject {
            // What a secret was is not known.
            Subject::Secret(_) => true,
            Subject::Input(_) | Subject::Variable(_) | Subject::Node(_) => {
                hash_now(&self.ctx, &read.subject) == read.hash
            }
        });
        let is_spared =
            is_as_before && spare.upstream == upstream(&self.workflow, &self.ctx, node, &mut Given::new());
        is_spared.then(|| NodeExecutionResult {
            because: Some(format!("spared: {}, and it would see what it saw", taken_back.because)),
            ..spare.result.clone()
        })
    }

    /// Lets an earlier result stand again.
    pub(super) async fn spare(
        &mut self,
        node: usize,
        mut result: NodeExecutionResult,
    ) -> Result<(), EngineError> {
        let name = self.workflow.graph().name(node).to_owned();
        result.began = self.ctx.ledger.turn;
        self.ctx.ledger.spend.reused.add(result.metrics.as_ref());
        self.conclude(node, result);
        self.nodes_spared += 1;
        self.events.tell(|| Event::NodeSpared { node: name.clone() }).await;
        let due = self.policy.node_finished(std::time::Duration::ZERO, self.engine.clock.elapsed());
        match due {
            Some(_) if !self.planner.is_finished() => self.save(Cause::Nodes, super::Extra::default()).await,
            Some(_) | None => Ok(()),
        }
    }
}
