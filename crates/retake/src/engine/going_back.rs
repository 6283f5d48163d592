//! Going back, changing and forking. Each is worked out first, as a [`Plan`], and then is one commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::address::{self, Address, AddressError};
use super::operation::AtRest;
use super::plan::{
    self, Edit, Effects, Explanation, Known, NewState, Plan, PlannedChange, Point, Redefinition, Reuse,
    Rollback,
};
use super::secret::{Masks, definition_of, refuse_secret, refuse_secrets, without_secrets};
use super::{Engine, EngineError, Names, Redefine};
use crate::execution::{Change, ExecutionContext, ExecutionId, ExecutionState, node_id};
use crate::store::{
    Cause, CheckpointRecord, Conflict, HistoryPage, NewCheckpoint, NewExecution, NewOperation, NewWorkflow,
    Origin, Seq, StoreError, StoreExt, delta,
};
use crate::workflow::{Effect, Node, Workflow};

/// How a fork is made.
#[derive(Debug, Clone, Default)]
pub struct Fork {
    /// The readable name; without it, one is drawn.
    pub name: Option<String>,
    /// Variables to set. Nodes that had read another value, and what depends on them, run again in the fork.
    pub set: BTreeMap<String, Value>,
    /// The workflow that the fork runs; without it, that of the point.
    pub workflow: Option<Workflow>,
    /// What to do about effects outside that would happen in the fork once more.
    pub effects: Effects,
}

/// A fork that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forked {
    /// The new execution.
    pub execution: ExecutionId,
    /// Its readable name.
    pub name: String,
}

impl Engine {
    /// Works out what going back to a point would do. Changes nothing.
    ///
    /// Reads two states and their records, whatever the length of the history.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`], [`StoreError::Pruned`], [`EngineError::NothingThere`], [`EngineError::Misfit`].
    pub async fn plan_rollback(
        &self,
        id: ExecutionId,
        target: Seq,
        request: &Rollback,
    ) -> Result<Plan, EngineError> {
        let head = self.head(id).await?;
        let workflow = self.workflow_with_id(head.point.ctx.workflow_id, &head.name).await?;
        refuse_secrets(&Masks::of(Some(&workflow), &*self.secrets), "variable", &request.set)?;
        let target = self.point(id, target).await?;
        let then = self.workflow_with_id(target.ctx.workflow_id, &head.name).await?;
        // The state of another workflow comes back as a whole, with its workflow.
        let is_same = target.ctx.workflow_id == head.point.ctx.workflow_id;
        let known = Known {
            name: &head.name,
            workflow: &then,
            head_workflow: &workflow,
            head: &head.point,
            target: &target,
            is_on_line: is_same && self.is_on_line(&head.point, target.record.seq).await?,
        };
        let mut plan = plan::rollback(known, request)?;
        plan.change.workflow = (!is_same).then_some(then);
        Ok(plan)
    }

    /// Works out what a change of the state at the head would do. Changes nothing.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`], [`EngineError::NoNode`], [`EngineError::HasOutput`], [`EngineError::HasNoOutput`],
    /// [`EngineError::Misfit`], and [`StoreError::Unstorable`] for an output.
    pub async fn plan_edit(&self, id: ExecutionId, request: &Edit) -> Result<Plan, EngineError> {
        let head = self.head(id).await?;
        refuse_cancelled(&head)?;
        let workflow = self.workflow_with_id(head.point.ctx.workflow_id, &head.name).await?;
        let masks = Masks::of(Some(&workflow), &*self.secrets);
        refuse_secrets(&masks, "variable", &request.set)?;
        refuse_secrets(&masks, "the output of node", &request.outputs)?;
        let (name, point) = (&head.name, &head.point);
        plan::edit(Known::of_head(name, &workflow, point), request)
    }

    /// Works out what going on with another workflow would do: nodes that are the same in both keep their results.
    /// Changes nothing.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`]; [`EngineError::Input`] where the workflow wants an input that the execution does not
    /// have; [`EngineError::Variable`], [`EngineError::NoHandler`], [`EngineError::Misfit`].
    pub async fn plan_redefinition(&self, id: ExecutionId, request: Redefine) -> Result<Plan, EngineError> {
        let head = self.head(id).await?;
        refuse_cancelled(&head)?;
        let workflow = self.workflow_with_id(head.point.ctx.workflow_id, &head.name).await?;
        let (name, point) = (&head.name, &head.point);
        let known = Known::of_head(name, &workflow, point);
        let new = self.redefinition(known, request.workflow)?;
        plan::go_on(known, Cause::Edit, Some(new), &BTreeMap::new(), request.effects)
    }

    /// Works out what of a point's state a fork would keep. Changes nothing.
    ///
    /// # Errors
    /// As [`plan_redefinition`](Self::plan_redefinition), though what was cancelled can be forked; and
    /// [`StoreError::NoPoint`], [`StoreError::Pruned`].
    pub async fn plan_fork(&self, id: ExecutionId, seq: Seq, fork: &Fork) -> Result<Plan, EngineError> {
        let record = self.store.require(id).await?;
        let point = self.point(id, seq).await?;
        let workflow = self.workflow_with_id(point.ctx.workflow_id, &record.name).await?;
        refuse_secrets(&Masks::of(Some(&workflow), &*self.secrets), "variable", &fork.set)?;
        let known = Known::of_head(&record.name, &workflow, &point);
        let new = match &fork.workflow {
            Some(workflow) => Some(self.redefinition(known, workflow.clone())?),
            None => None,
        };
        let cause = Cause::Fork { origin: Origin { execution_id: id, seq } };
        plan::go_on(known, cause, new, &fork.set, fork.effects)
    }

    /// Applies a plan of a rollback, an edit or another workflow: appends one checkpoint and removes none. Returns it.
    ///
    /// An execution that workers were to go on with leaves the queue: whoever applied it says when it goes on, by
    /// [`resume`](Self::resume) or [`enqueue`](Self::enqueue).
    ///
    /// # Errors
    /// [`EngineError::Irreversible`] where effects outside would be forgotten and the request did not say what to do, or
    /// asks to compensate what cannot be; [`EngineError::Compensated`] where effects that were compensated would stand
    /// again;
    /// [`Conflict::HeadMoved`] where the head moved since the plan was made; [`Conflict::Leased`] while another process
    /// advances the execution. Nothing has changed then.
    pub async fn apply(&self, plan: Plan, operation: NewOperation) -> Result<Seq, EngineError> {
        plan.check()?;
        let id = plan.change.execution;
        let rest = self.rest(id).await?;
        let (expected, found) = (plan.head, rest.record.head);
        let done = match expected == found {
            true => self.commit_change(&rest, plan.change, operation).await,
            false => Err(StoreError::from(Conflict::HeadMoved { execution: id, expected, found }).into()),
        };
        rest.end(done).await
    }

    /// Makes a new execution whose history begins at a point of another, as planned by [`plan_fork`](Self::plan_fork).
    /// It shares what is stored with its origin, and outlives it.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`], and [`EngineError::Irreversible`] as for [`apply`](Self::apply).
    pub async fn fork(
        &self,
        plan: Plan,
        name: Option<String>,
        operation: NewOperation,
    ) -> Result<Forked, EngineError> {
        plan.check()?;
        // What the origin did is the origin's to undo.
        if !plan.compensate.is_empty() {
            return Err(EngineError::Irreversible { nodes: plan.compensate });
        }
        let PlannedChange {
            execution: origin,
            cause,
            after: NewState { ctx: mut after, writers },
            workflow,
            ..
        } = plan.change;
        let before = self.store.context(origin, plan.target).await?;
        let workflow = match workflow {
            Some(workflow) => workflow,
            None => self.workflow_with_id(before.workflow_id, &origin.to_string()).await?,
        };
        let masks = Masks::of(Some(&workflow), &*self.secrets);
        let operation = without_secrets(&masks, operation);
        forget_marks(&workflow, &mut after);
        after.execution_id = self.clock.new_id();
        after.started_at = self.clock.now();
        after.ledger.compensations.clear();
        after.ledger.inherited = after.ledger.turn;
        let mut first = self.new_checkpoint(&after, cause);
        first.delta = delta(Some(&before), &after, |name| writers.get(name).copied())?;
        first.operation = Some(operation);
        // So that what it inherits is found by the node's name.
        let inherits = |node: &usize| after.node_results.contains_key(&workflow.graph().id(*node));
        let inherited = workflow.graph().nodes().filter(inherits);
        first.nodes = inherited.map(|node| workflow.graph().name(node).to_owned()).collect();
        let origin = Origin { execution_id: origin, seq: plan.target };
        self.create_fork(after.execution_id, name, origin, &workflow, first).await
    }

    /// Makes a new execution that begins at a point of another and changes nothing. Unless the point was cancelled, or a
    /// node has an effect outside, it reads no state, and costs the same whatever the size of the state.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`], [`StoreError::NoPoint`], [`StoreError::Pruned`]; [`Conflict::NameTaken`].
    pub async fn fork_unchanged(
        &self,
        id: ExecutionId,
        seq: Seq,
        name: Option<String>,
        operation: NewOperation,
    ) -> Result<Forked, EngineError> {
        let execution = self.store.require(id).await?;
        let head = execution.head;
        let point = self.record_of(id, seq).await?.ok_or(match (1..=head).contains(&seq) {
            true => StoreError::Pruned { execution: id, seq },
            false => StoreError::NoPoint { execution: id, seq, head },
        })?;
        let origin = Origin { execution_id: id, seq };
        let workflow = self.workflow_with_id(point.workflow_id, &execution.name).await?;
        let operation = without_secrets(&Masks::of(Some(&workflow), &*self.secrets), operation);
        let reaches_outside = |node: &Node| node.effect == Effect::External;
        // The state itself says so, and must say something else in the fork: that it goes on, or whose effects these are.
        if point.state == ExecutionState::Cancelled
            || workflow.definition().nodes.values().any(reaches_outside)
        {
            let plan = self.plan_fork(id, seq, &Fork::default()).await?;
            return self.fork(plan, name, operation).await;
        }
        // Whoever runs there does not run here.
        let state = match point.state {
            ExecutionState::Running => ExecutionState::Paused,
            state @ (ExecutionState::Completed
            | ExecutionState::Failed(_)
            | ExecutionState::Cancelled
            | ExecutionState::Paused) => state,
        };
        let first = NewCheckpoint {
            completed_node_count: point.completed_node_count,
            spend: point.spend,
            operation: Some(operation),
            ..NewCheckpoint::new(self.clock.new_id(), self.clock.now(), state, Cause::Fork { origin })
        };
        self.create_fork(self.clock.new_id(), name, origin, &workflow, first).await
    }

    async fn create_fork(
        &self,
        id: ExecutionId,
        name: Option<String>,
        origin: Origin,
        workflow: &Workflow,
        mut first: NewCheckpoint,
    ) -> Result<Forked, EngineError> {
        if let Some(name) = &name {
            let masks = Masks::of(Some(workflow), &*self.secrets);
            refuse_secret(&masks, "the name", &serde_json::Value::from(name.as_str()))?;
        }
        first.compress = workflow.definition().checkpoints.compress;
        let mut names = Names::new(name, id);
        loop {
            let name = names.draw();
            let new = NewExecution {
                id,
                name: name.clone(),
                workflow_id: workflow.id(),
                workflow_name: workflow.name().to_owned(),
                definition: workflow.definition().to_json(),
                origin: Some(origin),
            };
            let created = self.store.create(new, first.clone()).await.map(drop);
            if names.takes(created.map_err(EngineError::from))?.is_some() {
                return Ok(Forked { execution: id, name });
            }
        }
    }

    /// Says why a node of the head stands as it does, and what would make it run again.
    ///
    /// Reads the head, the operations, and the history back to the point that recorded the node.
    ///
    /// # Errors
    /// [`EngineError::NoNode`], [`StoreError::NoExecution`].
    pub async fn explain(&self, id: ExecutionId, node: &str) -> Result<Explanation, EngineError> {
        let record = self.store.require(id).await?;
        let workflow = self.workflow_of(&record).await?;
        let Some(index) = workflow.graph().index_of(node) else {
            return Err(EngineError::NoNode { name: record.name, node: node.to_owned() });
        };
        let ctx = self.store.context(id, record.head).await?;
        let mut explanation = plan::explain(&workflow, &ctx, index);
        if ctx.get_node_result(&workflow.graph().id(index)).is_none() {
            return Ok(explanation);
        }
        let point = Address { run: id.to_string(), point: address::Point::AfterNode(node.to_owned()) };
        explanation.recorded = match address::resolve(&*self.store, &*self.clock, &point).await {
            Ok(resolved) => Some(resolved.checkpoint.seq),
            Err(AddressError::Store(error)) => return Err(error.into()),
            // It was pruned.
            Err(_) => None,
        };
        let operations = self.store.operations(id).await?.into_iter().rev();
        let since =
            operations.filter(|operation| explanation.recorded.is_none_or(|seq| operation.after > seq));
        explanation.reused = since
            .filter(|operation| goes_on(&operation.cause))
            .map(|operation| Reuse {
                seq: operation.after,
                cause: operation.cause,
                command: operation.command,
            })
            .collect();
        Ok(explanation)
    }

    /// Commits a change that a person made, and takes the execution out of the queue.
    pub(super) async fn commit_change(
        &self,
        rest: &AtRest,
        change: PlannedChange,
        operation: NewOperation,
    ) -> Result<Seq, EngineError> {
        let PlannedChange { cause, parent, base, after: NewState { ctx, writers }, workflow, .. } = change;
        let id = rest.record.id;
        let nearest = match base == rest.record.head {
            true => rest.ctx.clone(),
            false => self.store.context(id, base).await?,
        };
        let mut checkpoint = self.new_checkpoint(&ctx, cause);
        checkpoint.delta = delta(Some(&nearest), &ctx, |name| writers.get(name).copied())?;
        checkpoint.parent = Some(parent);
        checkpoint.base = Some(base);
        checkpoint.operation = Some(without_secrets(&self.masks_of(&rest.record).await, operation));
        let before = match base == parent {
            true => nearest,
            false => self.store.context(id, parent).await?,
        };
        checkpoint.nodes = match &workflow {
            // It is not stored yet.
            Some(workflow) => recorded_since(workflow, &before, &ctx),
            None => {
                let workflow = self.workflow_with_id(ctx.workflow_id, &rest.record.name).await?;
                recorded_since(&workflow, &before, &ctx)
            }
        };
        checkpoint.workflow = workflow.map(|workflow| new_workflow(&workflow));
        let head = self.commit(rest, checkpoint).await?;
        // Whoever changed what is to become of it says when it goes on.
        self.dequeue(id).await?;
        Ok(head)
    }

    /// Returns the head of an execution that has one, with the execution's name.
    async fn head(&self, id: ExecutionId) -> Result<Head, EngineError> {
        let record = self.store.require(id).await?;
        let point = self.point(id, record.head).await?;
        Ok(Head { name: record.name, point })
    }

    pub(super) async fn point(&self, id: ExecutionId, seq: Seq) -> Result<Point, EngineError> {
        let ctx = self.store.context(id, seq).await?;
        match self.record_of(id, seq).await? {
            Some(record) => Ok(Point { record, ctx }),
            None => Err(StoreError::Pruned { execution: id, seq }.into()),
        }
    }

    async fn record_of(&self, id: ExecutionId, seq: Seq) -> Result<Option<CheckpointRecord>, EngineError> {
        let page = HistoryPage { before: Some(seq + 1), limit: Some(1) };
        Ok(self.store.history(id, page).await?.pop().filter(|record| record.seq == seq))
    }

    /// Tells whether a point precedes another on its time line. Time lines leave the order of the numbers only where an
    /// operation went back, so that only these are looked at.
    async fn is_on_line(&self, head: &Point, target: Seq) -> Result<bool, EngineError> {
        // Whatever goes back leaves its number, so that the log need not be read where nothing went back since.
        if head.ctx.generation <= target {
            return Ok(true);
        }
        let (id, mut at) = (head.record.execution_id, head.record.seq);
        for operation in self.store.operations(id).await? {
            let goes_back =
                matches!(operation.cause, Cause::Rollback { .. } | Cause::Undo { .. } | Cause::Redo { .. });
            if !goes_back || operation.after > at {
                continue;
            }
            if operation.after <= target {
                break;
            }
            // Where the record is gone, nobody can tell what was before it.
            let record = self.record_of(id, operation.after).await?;
            at = record.and_then(|record| record.parent).unwrap_or(0);
        }
        Ok(at >= target)
    }

    /// Returns what another workflow changes for an execution before any node is looked at.
    fn redefinition(&self, known: Known<'_>, workflow: Workflow) -> Result<Redefinition, EngineError> {
        self.check_handlers(&workflow)?;
        let ctx = &known.head.ctx;
        let given = |name: &String| workflow.definition().inputs.contains_key(name);
        let inputs = ctx.inputs.iter().filter(|(name, _)| given(name));
        let inputs = inputs.map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut opening = ctx.clone();
        opening.inputs = workflow.definition().inputs_from(inputs)?.into_iter().collect();
        let old = &known.workflow.definition().vars;
        let changed = |name: &str, value: &Value| old.get(name) != Some(value);
        let masks = Arc::new(Masks::of(Some(&workflow), &*self.secrets));
        refuse_secret(&masks, "the workflow", &definition_of(&workflow))?;
        let variables = self.first_values(&workflow, &opening, known.name, &masks, changed)?;
        let variables = variables.into_iter().map(|(name, value)| (name, Some(value))).collect();
        Ok(Redefinition { workflow, variables, inputs: opening.inputs })
    }
}

/// Tells whether an operation could have made nodes run again.
fn goes_on(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::Resume
            | Cause::Rollback { .. }
            | Cause::Undo { .. }
            | Cause::Redo { .. }
            | Cause::Edit
            | Cause::Fork { .. }
    )
}

/// Forgets the marks of effects that were in flight: they are the origin's, and not this execution's to go on with.
fn forget_marks(workflow: &Workflow, ctx: &mut ExecutionContext) {
    let marked: Vec<String> = super::interrupted(workflow, ctx).map(|(name, _)| name).collect();
    for name in marked {
        ctx.node_results.remove(&node_id(&name));
    }
}

fn new_workflow(workflow: &Workflow) -> NewWorkflow {
    NewWorkflow {
        id: workflow.id(),
        name: workflow.name().to_owned(),
        definition: workflow.definition().to_json(),
    }
}

/// An execution's head.
struct Head {
    name: String,
    point: Point,
}

/// Refuses to change what is over: the change would set it going again, unsaid.
fn refuse_cancelled(head: &Head) -> Result<(), EngineError> {
    match head.point.ctx.state {
        ExecutionState::Cancelled => Err(EngineError::Cancelled { name: head.name.clone() }),
        ExecutionState::Running
        | ExecutionState::Paused
        | ExecutionState::Completed
        | ExecutionState::Failed(_) => Ok(()),
    }
}

/// Returns the nodes whose results a state has and an earlier one has not.
fn recorded_since(workflow: &Workflow, then: &ExecutionContext, now: &ExecutionContext) -> Vec<String> {
    let graph = workflow.graph();
    let changes = then.node_results.changes_to(&now.node_results);
    let ids = changes.filter_map(|change| match change {
        Change::Added(id, _) | Change::Changed { key: id, .. } => Some(id),
        Change::Removed(..) => None,
    });
    let mut nodes: Vec<usize> = ids.filter_map(|id| graph.index_of_id(id)).collect();
    nodes.sort_unstable();
    nodes.into_iter().map(|node| graph.name(node).to_owned()).collect()
}
