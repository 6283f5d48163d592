//! Removing points, and giving back the space of what they alone needed.

use super::Shared;
use crate::execution::ExecutionId;
use crate::store::StoreError;

pub(super) async fn prune(_shared: &Shared, _id: ExecutionId, _keep: usize) -> Result<usize, StoreError> {
    Ok(0)
}

pub(super) async fn delete(_shared: &Shared, _id: ExecutionId) -> Result<usize, StoreError> {
    Ok(0)
}

pub(super) async fn compact(_shared: &Shared) -> Result<(), StoreError> {
    Ok(())
}
