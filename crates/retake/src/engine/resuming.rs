//! How an execution goes on from its head: what must not be run again unasked, and what a failure leaves behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{Instrument, Span};

use super::held::Held;
use super::run::CounterAction;
use super::secret::{Masks, without_secrets};
use super::trace::{self, RunKind};
use super::{Engine, EngineError, Run, compensation, decision, queueing, undo};
use crate::execution::{
    CompensationStage, ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, NodeExecutionResult,
};
use crate::store::{Cause, Commit, ExecutionRecord, NewOperation, Seq, StoreExt};
use crate::workflow::{Effect, NodeKind, OnError, Workflow};

/// How an execution is resumed.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// Who resumes it, for the operation log.
    pub operation: Option<NewOperation>,
    /// Nodes with an effect outside that were interrupted, or whose compensation was, and are to be run again under the
    /// same idempotency key.
    pub again: Vec<String>,
    /// Nodes whose compensations are left out: their effects stay as they are.
    pub skip_compensation: Vec<String>,
}

/// Who goes on with an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoingOn {
    /// This process, as a person asked.
    Here,
    /// A worker, as a person asked.
    Detached,
    /// A worker, where one that has ended its part left it. Nothing is saved unless something changes.
    AsBefore,
    /// A worker, in the place of one that died.
    InPlaceOfOne,
}

/// An execution that was set running.
pub(super) struct Resumed {
    pub(super) workflow: Arc<Workflow>,
    pub(super) name: Arc<str>,
    pub(super) ctx: ExecutionContext,
    pub(super) head: Seq,
    pub(super) counter_actions: BTreeMap<u64, CounterAction>,
    pub(super) undone_to: Option<Seq>,
}

impl Engine {
    /// Takes the lease on an execution and sets it running. Returns when that is durable; nothing has run then.
    ///
    /// Compensations that are due run before any node does; one that failed is tried again.
    /// Nodes that are done are not run again; those that failed, or were in flight when their process died, are. One
    /// that has completed comes back as it is.
    ///
    /// # Errors
    /// [`NoExecution`](crate::store::StoreError::NoExecution), [`Leased`](crate::store::Conflict::Leased) while another
    /// process advances it, [`EngineError::Cancelled`], and [`EngineError::Interrupted`] where a node with an effect
    /// outside was in flight and [`Resume::again`] does not name it; [`EngineError::InterruptedCompensation`] likewise,
    /// [`EngineError::NothingToCompensateFrom`] and [`EngineError::NothingToCompensate`].
    pub async fn resume(&self, id: ExecutionId, resume: Resume) -> Result<Run, EngineError> {
        let record = self.store.require(id).await?;
        let span = trace::execution(RunKind::Resumed, id, &record.workflow_name);
        let run = self.go_on(id, resume, &span).instrument(span.clone()).await;
        run.inspect_err(|error| trace::refused(&span, error))
    }

    pub(super) async fn go_on(
        &self,
        id: ExecutionId,
        resume: Resume,
        span: &Span,
    ) -> Result<Run, EngineError> {
        let mut held = Held::take(&self.store, &self.clock, id, self.lease_ttl).await?;
        let resumed = match self.set_running(&held, id, resume, GoingOn::Here, span).await {
            // Whoever goes on with it here does so instead of a worker.
            Ok(resumed) => self.dequeue(id).await.map(|()| resumed),
            Err(error) => Err(error),
        };
        match resumed {
            Ok(resumed) => self.run_of(held, resumed, span.clone()),
            Err(error) => {
                held.release().await;
                Err(error)
            }
        }
    }

    pub(super) async fn set_running(
        &self,
        held: &Held,
        id: ExecutionId,
        resume: Resume,
        going_on: GoingOn,
        span: &Span,
    ) -> Result<Resumed, EngineError> {
        let record = self.store.require(id).await?;
        let workflow = self.workflow_of(&record).await?;
        trace::identify(span, &record.name, &workflow);
        self.check_handlers(&workflow)?;
        let saved = self.store.context(id, record.head).await?;
        let mut ctx = saved.clone();
        let mut head = record.head;
        skip_compensations(&record, &mut ctx, &resume.skip_compensation)?;
        let mut counter_actions = BTreeMap::new();
        match &saved.state {
            ExecutionState::Cancelled => return Err(EngineError::Cancelled { name: record.name }),
            ExecutionState::Completed => {}
            ExecutionState::Running | ExecutionState::Paused | ExecutionState::Failed(_) => {
                refuse_unknown(&workflow, &record, &ctx, &resume.again)?;
                refuse_rejected(&workflow, &record, &saved)?;
                refuse_interrupted(&workflow, &saved, &resume.again)?;
                refuse_interrupted_compensation(&ctx, &resume.again)?;
                counter_actions = self.counter_actions(&record, &ctx).await?;
                ctx.state = ExecutionState::Running;
                ctx.completed_at = None;
                forget_failures(&workflow, &mut ctx);
                let is_as_saved = saved.state == ctx.state
                    && saved.completed_at == ctx.completed_at
                    && saved.node_results.len() == ctx.node_results.len();
                if going_on == GoingOn::AsBefore && is_as_saved {
                    let undone_to = undo::undone_to(&self.store.operations(id).await?);
                    let name = record.name.into();
                    return Ok(Resumed { workflow, name, ctx, head, counter_actions, undone_to });
                }
                if going_on == GoingOn::Detached {
                    queueing::let_again(&workflow, &mut ctx, &resume.again, self.clock.now());
                }
                // A start from zero would have paid for what is there once more.
                for result in ctx.node_results.values() {
                    ctx.ledger.spend.reused.add(result.metrics.as_ref());
                }
                let masks = Masks::of(Some(&workflow), &*self.secrets);
                let operation = resume.operation.map(|operation| without_secrets(&masks, operation));
                let mut checkpoint = self.checkpoint_of(&saved, &ctx, Cause::Resume, operation)?;
                checkpoint.answers = match going_on {
                    // What was asked before was asked of a run that is over.
                    GoingOn::Here | GoingOn::Detached => {
                        self.store.requests(id).await?.iter().map(|request| request.id).collect()
                    }
                    // Who asked it of a worker that died asked it of the execution.
                    GoingOn::AsBefore | GoingOn::InPlaceOfOne => Vec::new(),
                };
                checkpoint.compress = workflow.definition().checkpoints.compress;
                let fence = Some(held.fence());
                let commit = Commit { execution_id: id, expected_head: head, fence, checkpoint };
                head = self.store.commit(commit).await?.seq;
            }
        }
        let undone_to = undo::undone_to(&self.store.operations(id).await?);
        Ok(Resumed { workflow, name: record.name.into(), ctx, head, counter_actions, undone_to })
    }
}

/// Refuses to go on where somebody rejected an approval: only taking that back lets it be asked again.
pub(super) fn refuse_rejected(
    workflow: &Workflow,
    record: &ExecutionRecord,
    ctx: &ExecutionContext,
) -> Result<(), EngineError> {
    let graph = workflow.graph();
    let rejected = graph.nodes().find(|node| {
        let definition = workflow.node(*node);
        let result = ctx.get_node_result(&graph.id(*node)).map(|record| &record.result);
        matches!(definition.kind, NodeKind::Approval(_))
            && definition.on_error == OnError::Fail
            && matches!(result, Some(ExecutionResult::Failure(why)) if why.starts_with(decision::REJECTED))
    });
    match rejected {
        Some(node) => {
            Err(EngineError::Rejected { name: record.name.clone(), node: graph.name(node).to_owned() })
        }
        None => Ok(()),
    }
}

/// Looks whether effects or counter-actions may have happened before an execution stopped: somebody is to look outside,
/// and to say what is to become of them, before it goes on.
///
/// # Errors
/// [`EngineError::Interrupted`] and [`EngineError::InterruptedCompensation`] name them.
pub fn check_interrupted(workflow: &Workflow, ctx: &ExecutionContext) -> Result<(), EngineError> {
    refuse_interrupted(workflow, ctx, &[])?;
    refuse_interrupted_compensation(ctx, &[])
}

/// Refuses to go on where a node's effect may have happened already, unless a person said to run it again.
pub(super) fn refuse_interrupted(
    workflow: &Workflow,
    ctx: &ExecutionContext,
    again: &[String],
) -> Result<(), EngineError> {
    let interrupted: Vec<(String, String)> = interrupted(workflow, ctx)
        .filter(|(name, _)| !again.contains(name))
        .map(|(name, record)| (name, record.idempotency_key.clone().unwrap_or_default()))
        .collect();
    if interrupted.is_empty() { Ok(()) } else { Err(EngineError::Interrupted { nodes: interrupted }) }
}

/// Refuses to go on where a counter-action may have happened already, unless a person said to run it again.
pub(super) fn refuse_interrupted_compensation(
    ctx: &ExecutionContext,
    again: &[String],
) -> Result<(), EngineError> {
    let nodes: Vec<(String, String)> = compensation::due(ctx)
        .filter(|(_, due)| due.stage == CompensationStage::Started && !again.contains(&due.node))
        .map(|(_, due)| (due.node.clone(), due.idempotency_key.clone()))
        .collect();
    if nodes.is_empty() { Ok(()) } else { Err(EngineError::InterruptedCompensation { nodes }) }
}

/// Leaves the effects of these nodes as they are.
pub(super) fn skip_compensations(
    record: &ExecutionRecord,
    ctx: &mut ExecutionContext,
    names: &[String],
) -> Result<(), EngineError> {
    for node in names {
        let of_node = compensation::due(ctx).filter(|(_, due)| due.node == *node);
        let turns: Vec<u64> = of_node.map(|(turn, _)| turn).collect();
        if turns.is_empty() {
            return Err(EngineError::NothingToCompensate { name: record.name.clone(), node: node.clone() });
        }
        for turn in turns {
            compensation::reach(ctx, turn, CompensationStage::Skipped);
        }
    }
    Ok(())
}

/// Returns the nodes with an effect outside that had started and not ended.
pub(super) fn interrupted<'c>(
    workflow: &'c Workflow,
    ctx: &'c ExecutionContext,
) -> impl Iterator<Item = (String, &'c NodeExecutionResult)> {
    let graph = workflow.graph();
    graph
        .nodes()
        .filter(|node| workflow.node(*node).effect == Effect::External)
        .filter(|node| !matches!(workflow.node(*node).kind, NodeKind::Approval(_)))
        .filter_map(move |node| Some((graph.name(node).to_owned(), ctx.get_node_result(&graph.id(node))?)))
        // One that rests between two attempts is not in flight.
        .filter(|(_, record)| record.result == ExecutionResult::Pending && record.due_at.is_none())
}

/// Forgets the results of nodes whose failure failed the execution: they run again.
pub(super) fn forget_failures(workflow: &Workflow, ctx: &mut ExecutionContext) {
    let graph = workflow.graph();
    for node in graph.nodes().filter(|node| workflow.node(*node).on_error == OnError::Fail) {
        let id = graph.id(node);
        // What may have happened outside keeps its idempotency key, which stands in its record.
        if workflow.node(node).effect == Effect::External {
            continue;
        }
        if matches!(ctx.get_node_result(&id).map(|record| &record.result), Some(ExecutionResult::Failure(_)))
        {
            ctx.node_results.remove(&id);
        }
    }
}

/// Refuses names of nodes that the workflow does not have.
fn refuse_unknown(
    workflow: &Workflow,
    record: &ExecutionRecord,
    ctx: &ExecutionContext,
    names: &[String],
) -> Result<(), EngineError> {
    // A counter-action may be that of a node that the workflow has no more.
    let is_known = |name: &String| {
        workflow.graph().index_of(name).is_some() || compensation::due(ctx).any(|(_, due)| due.node == *name)
    };
    match names.iter().find(|name| !is_known(name)) {
        Some(node) => Err(EngineError::NoNode { name: record.name.clone(), node: node.clone() }),
        None => Ok(()),
    }
}
