//! How a run compensates: the counter-actions that are due, one after the other, each durably marked before it starts
//! and recorded when it has ended, before any node runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::saving::Extra;
use super::{Action, Run};
use crate::engine::attempt::{self, Ended, Start};
use crate::engine::context::{Notes, Task};
use crate::engine::event::Event;
use crate::engine::trace::NodeSpan;
use crate::engine::{Engine, EngineError, compensation, standing};
use crate::execution::{Compensation, CompensationStage, ExecutionContext, ExecutionResult, NodeMetrics};
use crate::store::{Cause, ExecutionRecord, StoreError, StoreExt};
use crate::workflow::Workflow;

/// What a counter-action needs.
#[derive(Debug)]
pub(in crate::engine) struct CounterAction {
    /// The workflow that had the effect.
    pub(super) workflow: Arc<Workflow>,
    /// The node in it.
    node: usize,
    /// The state that had the effect.
    state: ExecutionContext,
}

impl Engine {
    /// Reads what the counter-actions that are due need.
    ///
    /// # Errors
    /// [`EngineError::NothingToCompensateFrom`], [`EngineError::NoHandler`].
    pub(in crate::engine) async fn counter_actions(
        &self,
        record: &ExecutionRecord,
        ctx: &ExecutionContext,
    ) -> Result<BTreeMap<u64, CounterAction>, EngineError> {
        let mut actions = BTreeMap::new();
        for (turn, compensation) in compensation::due(ctx) {
            actions.insert(turn, self.counter_action(record, compensation).await?);
        }
        Ok(actions)
    }

    async fn counter_action(
        &self,
        record: &ExecutionRecord,
        compensation: &Compensation,
    ) -> Result<CounterAction, EngineError> {
        let (node, seq) = (compensation.node.clone(), compensation.from);
        let state = match self.store.context(record.id, seq).await {
            Err(StoreError::Pruned { .. } | StoreError::NoPoint { .. }) => {
                return Err(EngineError::NothingToCompensateFrom { node, seq });
            }
            state => state?,
        };
        let workflow = self.workflow_with_id(state.workflow_id, &record.name).await?;
        let Some(index) = workflow.graph().index_of(&node) else {
            return Err(EngineError::NoNode { name: record.name.clone(), node });
        };
        if let Some(kind) = &workflow.node(index).compensate {
            self.check_handler(&node, kind)?;
        }
        Ok(CounterAction { workflow, node: index, state })
    }
}

impl Run {
    /// Starts the next counter-action, unless one runs. Tells whether nodes have to wait.
    pub(super) async fn compensate(&mut self) -> Result<bool, EngineError> {
        let due = compensation::due(&self.ctx).next();
        let Some((turn, compensation)) = due.map(|(turn, due)| (turn, due.clone())) else { return Ok(false) };
        if self.compensating.is_some() || self.is_ending() || self.uncompensated.is_some() {
            return Ok(true);
        }
        // What is marked already, somebody said to run again.
        if compensation.stage != CompensationStage::Started {
            compensation::reach(&mut self.ctx, turn, CompensationStage::Started);
            self.save(Cause::Compensate { node: compensation.node.clone() }, Extra::default()).await?;
        }
        let action =
            self.counter_actions.remove(&turn).expect("what is due was read when the run was opened");
        let task = Task {
            workflow: action.workflow,
            node: action.node,
            action: Action::Compensation { effect: compensation.result.idempotency_key },
            state: action.state,
            execution_name: Arc::clone(&self.name),
            idempotency_key: compensation.idempotency_key,
            secrets: Arc::clone(&self.engine.secrets),
            masks: Arc::clone(&self.masks),
            events: self.events.clone(),
            trace_context: self.engine.trace_context.clone(),
        };
        let handler = self.engine.registry.find(task.kind()).cloned();
        let started_at = self.engine.clock.now();
        let clock = Arc::clone(&self.engine.clock);
        let start = Start {
            span: NodeSpan::new(&task),
            task,
            handler,
            started_at,
            notes: Notes::default(),
            attempt: 1,
            earlier: NodeMetrics::default(),
            began: clock.elapsed(),
            until: None,
            has_rested: false,
        };
        self.tasks.spawn(attempt::run(start, clock, self.held.hold()));
        self.compensating = Some(turn);
        Ok(true)
    }

    /// Records how a counter-action ended. What it wrote is not kept.
    pub(super) async fn compensated(&mut self, turn: u64, ended: Ended) -> Result<(), EngineError> {
        let Some(compensation) = self.ctx.ledger.compensations.get(&turn) else { return Ok(()) };
        let node = compensation.node.clone();
        let Ended { result, ran, paid, .. } = ended;
        self.pay(paid.as_ref());
        let error = match &result.result {
            ExecutionResult::Failure(why) => Some(why.clone()),
            ExecutionResult::Success(_) | ExecutionResult::Pending | ExecutionResult::Skipped => None,
        };
        let told = Event::CompensationFinished {
            node: node.clone(),
            status: standing(Some(&result.result)).0,
            duration_ms: u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
            error: error.clone(),
        };
        self.events.tell(|| told).await;
        let stage = match error {
            Some(why) => {
                self.uncompensated = Some((node.clone(), why.clone()));
                CompensationStage::Failed(why)
            }
            None => CompensationStage::Done,
        };
        compensation::reach(&mut self.ctx, turn, stage);
        self.save(Cause::Compensate { node }, Extra::default()).await
    }
}
