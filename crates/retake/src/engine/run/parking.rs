//! How a run ends for a worker: where nothing is left but waiting, so that waiting holds no worker, or where others are
//! to go on.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Run;
use crate::engine::control::HandOver;
use crate::engine::held::Held;
use crate::engine::{EngineError, Outcome, compensation};
use crate::execution::ExecutionState;
use crate::store::{Cause, Settlement};
use crate::workflow::NodeKind;

/// The shortest wait for which an execution is given back to the queue; shorter ones are waited out. Giving it back and
/// claiming it again costs some writes and reads.
pub(in crate::engine) const PARKED_FROM: Duration = Duration::from_secs(1);

/// Whether a run ends where nothing is left but waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parking {
    /// It waits.
    Never,
    /// It ends where every wait ends later than [`PARKED_FROM`] from now.
    WhereWaitsAreLong,
}

/// How far a run came for a worker.
#[derive(Debug)]
pub(in crate::engine) struct Settled {
    pub(in crate::engine) outcome: Outcome,
    pub(in crate::engine) settlement: Settlement,
}

impl Run {
    /// Runs as [`drive`](Self::drive) does, and ends also where nothing is left but waiting. Returns the lease, with
    /// which the claim is to be settled.
    pub(in crate::engine) async fn drive_for_worker(mut self) -> (Result<Settled, EngineError>, Held) {
        self.parking = Parking::WhereWaitsAreLong;
        let outcome = self.run_to_end().await;
        let stopped = self.was_stopped;
        let settled = outcome.map(|outcome| {
            let settlement = self.settlement(&outcome, stopped);
            Settled { outcome, settlement }
        });
        (settled, self.held)
    }

    fn settlement(&self, outcome: &Outcome, stopped: bool) -> Settlement {
        match outcome.state {
            ExecutionState::Completed | ExecutionState::Failed(_) | ExecutionState::Cancelled => {
                Settlement::Done
            }
            ExecutionState::Paused if !stopped && !outcome.waiting.is_empty() => Settlement::Held,
            ExecutionState::Paused => Settlement::Done,
            ExecutionState::Running => {
                let left = outcome.until.map(|until| (until - self.engine.clock.now()).to_std());
                Settlement::Again { delay: left.and_then(Result::ok).unwrap_or(Duration::ZERO) }
            }
        }
    }

    /// Lets others go on with the execution.
    pub(super) fn hand_over(&mut self, how: HandOver) {
        self.hand_over = self.hand_over.max(Some(how));
        self.end_waits();
    }

    /// Tells whether nothing is left but waits that are long, in a run that does not wait for those.
    pub(super) fn is_left_waiting(&self) -> bool {
        self.waits_until().is_some()
    }

    /// Returns when the first wait ends, where nothing is left but waits that are long.
    pub(super) fn waits_until(&self) -> Option<DateTime<Utc>> {
        let is_parked = match self.parking {
            Parking::Never => false,
            Parking::WhereWaitsAreLong => !self.is_ending() && !compensation::is_any_due(&self.ctx),
        };
        if !is_parked {
            return None;
        }
        let ends = self.running.keys().chain(self.resting.keys()).map(|node| self.rests_until(*node));
        let first = ends.collect::<Option<Vec<_>>>()?.into_iter().min()?;
        let from = TimeDelta::from_std(PARKED_FROM).unwrap_or(TimeDelta::MAX);
        (first - self.engine.clock.now() > from).then_some(first)
    }

    /// Returns until when a node does nothing but wait, if that is so.
    fn rests_until(&self, node: usize) -> Option<DateTime<Utc>> {
        let definition = self.workflow.node(node);
        if self.running.contains_key(&node) && !matches!(definition.kind, NodeKind::Wait(_)) {
            return None;
        }
        let record = self.ctx.get_node_result(&self.workflow.graph().id(node))?;
        let due_at = record.due_at?;
        // A wait that is going to fail is waited out: each run of it has its own time.
        let fails = self.running.contains_key(&node)
            && definition.timeout.is_some_and(|limit| {
                (due_at - self.engine.clock.now()).to_std().is_ok_and(|left| limit < left)
            });
        (!fails).then_some(due_at)
    }

    /// Returns why a checkpoint is made of what is not saved yet, where the execution stands as before.
    pub(super) fn cause_of_unsaved(&self) -> Cause {
        match (&self.unsaved.waiting, &self.unsaved.resting) {
            (Some(node), _) if self.unsaved.nodes.is_empty() => Cause::Started { node: node.clone() },
            (None, Some(node)) if self.unsaved.nodes.is_empty() => Cause::Retry { node: node.clone() },
            (Some(_) | None, _) => Cause::Nodes,
        }
    }
}
