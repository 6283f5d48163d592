//! Two points of a store, loaded so that they can be compared at once.

use std::sync::Arc;

use super::{Diff, Side, diff};
use crate::engine::{Engine, EngineError};
use crate::execution::{ExecutionContext, ExecutionId};
use crate::store::{Seq, StoreExt, context, context_sharing};
use crate::workflow::Workflow;

/// Two points whose states share what is the same in both, so that their difference costs as much as they differ.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The one that changes are told from.
    pub before: PairPoint,
    /// The one that changes are told to.
    pub after: PairPoint,
}

/// One of two points.
#[derive(Debug, Clone)]
pub struct PairPoint {
    /// Its state.
    pub ctx: ExecutionContext,
    /// Its workflow; `None` where the execution was not started by an engine.
    pub workflow: Option<Arc<Workflow>>,
}

impl PairPoint {
    /// Returns the point as something to compare.
    pub fn side(&self) -> Side<'_> {
        Side { ctx: &self.ctx, workflow: self.workflow.as_deref() }
    }
}

impl Pair {
    /// Returns what differs. Costs as much as that, and no I/O.
    pub fn diff(&self) -> Diff {
        diff(&self.before.side(), &self.after.side())
    }
}

impl Engine {
    /// Returns what differs between two points, of one execution or of two.
    ///
    /// Costs what reading both states costs.
    ///
    /// # Errors
    /// [`StoreError::NoExecution`](crate::store::StoreError::NoExecution),
    /// [`StoreError::NoPoint`](crate::store::StoreError::NoPoint),
    /// [`StoreError::Pruned`](crate::store::StoreError::Pruned), and what is wrong with a stored workflow.
    pub async fn diff(
        &self,
        before: (ExecutionId, Seq),
        after: (ExecutionId, Seq),
    ) -> Result<Diff, EngineError> {
        Ok(self.pair(before, after).await?.diff())
    }

    /// Loads two points, of one execution or of two.
    ///
    /// Values that are the same in both are decoded once and held once.
    ///
    /// # Errors
    /// Those of [`diff`](Engine::diff).
    pub async fn pair(
        &self,
        before: (ExecutionId, Seq),
        after: (ExecutionId, Seq),
    ) -> Result<Pair, EngineError> {
        let records = (self.store().require(before.0).await?, self.store().require(after.0).await?);
        let older = self.store().state(before.0, before.1).await?;
        let newer = self.store().state(after.0, after.1).await?;
        let ctx = context(before.0, &older)?;
        let ctx_after = context_sharing((&ctx, &older), after.0, &newer)?;
        // An execution may have had another workflow at that point than at its head.
        let workflow = self.workflow_at(&ctx, &records.0.name).await?;
        let workflow_after = match ctx.workflow_id == ctx_after.workflow_id {
            true => workflow.clone(),
            false => self.workflow_at(&ctx_after, &records.1.name).await?,
        };
        Ok(Pair {
            before: PairPoint { ctx, workflow },
            after: PairPoint { ctx: ctx_after, workflow: workflow_after },
        })
    }

    async fn workflow_at(
        &self,
        ctx: &ExecutionContext,
        execution: &str,
    ) -> Result<Option<Arc<Workflow>>, EngineError> {
        match self.workflow_with_id(ctx.workflow_id, execution).await {
            Ok(workflow) => Ok(Some(workflow)),
            Err(EngineError::NoDefinition { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
