//! Executions for workers: submitting them, putting them back into the queue, and what a worker must be able to do to
//! advance them.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tracing::Span;

use super::held::Held;
use super::{
    Draft, Engine, EngineError, GoingOn, Names, Registry, Resume, Resumed, Start, compensation, interrupted,
};
use crate::execution::{
    Cell, CompensationStage, ExecutionContext, ExecutionId, ExecutionState, NodeExecutionResult, node_id,
};
use crate::store::{QUEUE_NAME_BYTES_MAX, Queue, REQUIRES_MAX, Seq, StoreExt, Submitted, Ticket};
use crate::workflow::{NodeKind, Workflow};

/// How much of what workflows can say this version understands. It grows with each thing that older versions would run
/// otherwise than it was meant; a workflow requires the level of what it says.
const WORKFLOW_LEVEL: u32 = 1;

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submission {
    /// The execution was created, and waits for a worker.
    Created {
        /// The execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
    },
    /// An execution was submitted under the same deduplication key before. Nothing was created.
    Duplicate {
        /// That execution.
        execution: ExecutionId,
        /// Its readable name.
        name: String,
    },
}

impl Engine {
    /// Returns an engine on a store that hands executions out to workers.
    pub fn on_queue(queue: Arc<dyn Queue>) -> Self {
        Self { queue: Some(Arc::clone(&queue)), ..Self::new(queue) }
    }

    /// Returns the store as one that hands executions out.
    ///
    /// # Errors
    /// [`EngineError::NoQueue`] where it does not.
    pub fn queue(&self) -> Result<&Arc<dyn Queue>, EngineError> {
        self.queue.as_ref().ok_or(EngineError::NoQueue)
    }

    /// Creates an execution for workers to run, in one atomic step. Returns when it is durable; nothing has run then, and
    /// this program needs no handlers for its nodes.
    ///
    /// What a worker must be able to do is added to the ticket. `key` deduplicates: where there is an execution that was
    /// submitted with it, nothing is created.
    ///
    /// # Errors
    /// Those of [`start`](Self::start) but for [`EngineError::NoHandler`]; [`EngineError::NoQueue`].
    pub async fn submit(
        &self,
        workflow: Arc<Workflow>,
        start: Start,
        ticket: Ticket,
        key: Option<String>,
    ) -> Result<Submission, EngineError> {
        let queue = self.queue()?;
        let Draft { mut ctx, masks } = self.draft(self.clock.new_id(), &workflow, &start)?;
        let ticket = for_workflow(ticket, &workflow);
        let id = ctx.execution_id;
        let mut names = Names::new(start.name, id);
        loop {
            let name = names.draw();
            let (new, first) = self.first_point(&workflow, &mut ctx, &name, &masks)?;
            let submitted = queue.submit(new, first, ticket.clone(), key.clone()).await;
            match names.takes(submitted.map_err(EngineError::from))? {
                Some(Submitted::Created(_)) => return Ok(Submission::Created { execution: id, name }),
                Some(Submitted::Duplicate(execution)) => {
                    let name = self.store.require(execution).await?.name;
                    return Ok(Submission::Duplicate { execution, name });
                }
                None => {}
            }
        }
    }

    /// Lets workers go on with an execution, as [`resume`](Self::resume) would. Returns how it stands, and its newest
    /// point, when that is durable. One that has completed is left as it is.
    ///
    /// The ticket takes the place of the one that the execution may have.
    ///
    /// # Errors
    /// Those of [`resume`](Self::resume); [`EngineError::NoQueue`].
    pub async fn enqueue(
        &self,
        id: ExecutionId,
        ticket: Ticket,
        resume: Resume,
    ) -> Result<(ExecutionState, Seq), EngineError> {
        let queue = self.queue()?;
        self.store.require(id).await?;
        let mut held = Held::take(&self.store, &self.clock, id, self.lease_ttl).await?;
        let resumed = self.set_running(&held, id, resume, GoingOn::Detached, &Span::none()).await;
        let enqueued = match resumed {
            Ok(Resumed { ctx, head, .. }) if ctx.state == ExecutionState::Completed => Ok((ctx.state, head)),
            // Nobody claims it before the lease is given back.
            Ok(Resumed { workflow, ctx, head, .. }) => {
                let ticket = for_workflow(ticket, &workflow);
                queue.enqueue(id, ticket).await.map(|()| (ctx.state, head)).map_err(EngineError::from)
            }
            Err(error) => Err(error),
        };
        held.release().await;
        enqueued
    }

    /// Takes away the ticket of an execution that somebody stopped or changed, or goes on with by himself. Where that is
    /// not done any more, whoever claims it finds out.
    pub(super) async fn dequeue(&self, id: ExecutionId) -> Result<(), EngineError> {
        if let Some(queue) = &self.queue {
            queue.dequeue(id).await?;
        }
        Ok(())
    }
}

/// Notes in the state that nodes, or their counter-actions, are to be run again though they may have taken effect.
pub(super) fn let_again(
    workflow: &Workflow,
    ctx: &mut ExecutionContext,
    again: &[String],
    now: DateTime<Utc>,
) {
    let rests: Vec<(String, NodeExecutionResult)> = interrupted(workflow, ctx)
        .filter(|(name, _)| again.contains(name))
        .map(|(name, record)| (name, NodeExecutionResult { due_at: Some(now), ..record.clone() }))
        .collect();
    for (name, record) in rests {
        ctx.node_results.set(node_id(&name), Cell::new(record));
    }
    let turns: Vec<u64> = compensation::due(ctx)
        .filter(|(_, due)| due.stage == CompensationStage::Started && again.contains(&due.node))
        .map(|(turn, _)| turn)
        .collect();
    for turn in turns {
        compensation::reach(ctx, turn, CompensationStage::Open);
    }
}

/// Returns a ticket with what a worker must be able to do to run a workflow.
fn for_workflow(ticket: Ticket, workflow: &Workflow) -> Ticket {
    let mut requires = ticket.requires;
    requires.insert(level(WORKFLOW_LEVEL));
    for node in workflow.definition().nodes.values() {
        requires.extend(capability(&node.kind));
        requires.extend(node.compensate.as_deref().and_then(capability));
    }
    // What a ticket cannot say is found when it is claimed: who cannot do it leaves it to others.
    requires.retain(|name| name.len() <= QUEUE_NAME_BYTES_MAX && !name.contains('\0'));
    let requires = requires.into_iter().take(REQUIRES_MAX).collect();
    Ticket { requires, ..ticket }
}

impl Registry {
    /// Returns what a worker with these handlers is able to do, as tickets name it.
    pub(super) fn able(&self) -> BTreeSet<String> {
        let levels = (1..=WORKFLOW_LEVEL).map(level);
        let kinds = self.kinds().map(|kind| format!("kind:{kind}"));
        levels.chain(kinds).chain(self.closures().map(|name| format!("closure:{name}"))).collect()
    }
}

fn level(level: u32) -> String {
    format!("workflow:{level}")
}

/// Returns what it takes to do the work of a kind; nothing for what the engine does itself.
fn capability(kind: &NodeKind) -> Option<String> {
    match kind {
        NodeKind::Set(_) | NodeKind::Wait(_) | NodeKind::Approval(_) => None,
        NodeKind::Call(call) => Some(format!("closure:{}", call.name)),
        NodeKind::Run(_) | NodeKind::Http(_) | NodeKind::Llm(_) => Some(format!("kind:{}", kind.name())),
    }
}
