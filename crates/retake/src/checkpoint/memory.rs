//! The storage that lives and dies with its process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize, Serializer};

use super::{CheckpointError, CheckpointId, CheckpointMetadata, CheckpointStorage, Source};
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionCheckpoint, ExecutionId, check_checkpoint};

/// Keeps checkpoints in memory, for tests and for executions that need not outlive their process.
///
/// A saved checkpoint shares its maps with the context it was made of. A save is one change under one lock: it is there
/// for everybody, or not at all, and a panic elsewhere never closes the storage. Cloning copies what is kept; the copy
/// is a storage of its own.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InMemoryCheckpointStorage {
    /// Every change leaves it whole, so that a poisoned lock can be used on.
    #[serde(serialize_with = "serialize_kept")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Saved>))]
    checkpoints: RwLock<Kept>,
    #[serde(skip, default = "system_clock")]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    clock: Arc<dyn Clock>,
}

/// All checkpoints: each once in its execution's list, oldest first, and once by its id.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Arc<Saved>>", into = "Vec<Arc<Saved>>")]
struct Kept {
    by_execution: HashMap<ExecutionId, VecDeque<Arc<Saved>>>,
    by_id: HashMap<CheckpointId, Arc<Saved>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
struct Saved {
    metadata: CheckpointMetadata,
    checkpoint: ExecutionCheckpoint,
}

impl InMemoryCheckpointStorage {
    /// Returns an empty storage.
    pub fn new() -> Self {
        Self::with_clock(system_clock())
    }

    /// Returns an empty storage that takes its ids from `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { checkpoints: RwLock::default(), clock }
    }

    fn read(&self) -> RwLockReadGuard<'_, Kept> {
        self.checkpoints.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept> {
        self.checkpoints.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for InMemoryCheckpointStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for InMemoryCheckpointStorage {
    fn clone(&self) -> Self {
        Self { checkpoints: RwLock::new(self.read().clone()), clock: Arc::clone(&self.clock) }
    }
}

impl CheckpointStorage for InMemoryCheckpointStorage {
    /// Saves a checkpoint as the newest of an execution and returns its id.
    ///
    /// Costs the whole state once, because `size_bytes` is the length of its JSON; nothing is copied.
    fn save_checkpoint(
        &self,
        execution_id: ExecutionId,
        checkpoint: &ExecutionCheckpoint,
    ) -> Result<CheckpointId, CheckpointError> {
        check_checkpoint(checkpoint)
            .map_err(|error| CheckpointError::SerializationError(Source::new(error)))?;
        let size_bytes = encoded_len(checkpoint)?;
        let checkpoint = checkpoint.clone();
        let mut kept = self.write();
        // Asked for under the lock, so that ids are in the order of the saves.
        let id = self.clock.new_id();
        if kept.by_id.contains_key(&id) {
            return Err(CheckpointError::StorageError(Source::from(format!(
                "the clock gave the id {id} a second time"
            ))));
        }
        let metadata = CheckpointMetadata {
            id,
            execution_id,
            workflow_id: checkpoint.workflow_id,
            created_at: checkpoint.timestamp,
            completed_node_count: checkpoint.completed_nodes.len(),
            size_bytes,
            compressed: false,
        };
        kept.push(Arc::new(Saved { metadata, checkpoint }));
        Ok(id)
    }

    fn load_latest_checkpoint(
        &self,
        execution_id: ExecutionId,
    ) -> Result<Option<ExecutionCheckpoint>, CheckpointError> {
        let kept = self.read();
        let latest = kept.by_execution.get(&execution_id).and_then(VecDeque::back);
        Ok(latest.map(|saved| saved.checkpoint.clone()))
    }

    fn load_checkpoint(
        &self,
        checkpoint_id: CheckpointId,
    ) -> Result<Option<ExecutionCheckpoint>, CheckpointError> {
        Ok(self.read().by_id.get(&checkpoint_id).map(|saved| saved.checkpoint.clone()))
    }

    fn list_checkpoints(
        &self,
        execution_id: ExecutionId,
    ) -> Result<Vec<CheckpointMetadata>, CheckpointError> {
        let kept = self.read();
        let history = kept.by_execution.get(&execution_id).into_iter().flatten();
        Ok(history.rev().map(|saved| saved.metadata.clone()).collect())
    }

    fn prune_checkpoints(
        &self,
        execution_id: ExecutionId,
        keep_count: usize,
    ) -> Result<usize, CheckpointError> {
        Ok(self.write().keep_newest(execution_id, keep_count))
    }

    fn delete_checkpoints(&self, execution_id: ExecutionId) -> Result<usize, CheckpointError> {
        Ok(self.write().keep_newest(execution_id, 0))
    }
}

impl Kept {
    fn push(&mut self, saved: Arc<Saved>) {
        self.by_id.insert(saved.metadata.id, Arc::clone(&saved));
        self.by_execution.entry(saved.metadata.execution_id).or_default().push_back(saved);
    }

    fn keep_newest(&mut self, execution_id: ExecutionId, count: usize) -> usize {
        let Some(history) = self.by_execution.get_mut(&execution_id) else { return 0 };
        let surplus = history.len().saturating_sub(count);
        for saved in history.drain(..surplus) {
            self.by_id.remove(&saved.metadata.id);
        }
        if history.is_empty() {
            self.by_execution.remove(&execution_id);
        }
        surplus
    }
}

impl From<Vec<Arc<Saved>>> for Kept {
    fn from(checkpoints: Vec<Arc<Saved>>) -> Self {
        let mut kept = Self::default();
        for saved in checkpoints {
            kept.push(saved);
        }
        kept
    }
}

impl From<Kept> for Vec<Arc<Saved>> {
    fn from(kept: Kept) -> Self {
        let mut histories: Vec<_> = kept.by_execution.into_iter().collect();
        histories.sort_unstable_by_key(|(execution_id, _)| *execution_id);
        histories.into_iter().flat_map(|(_, history)| history).collect()
    }
}

fn serialize_kept<S: Serializer>(kept: &RwLock<Kept>, serializer: S) -> Result<S::Ok, S::Error> {
    kept.read().unwrap_or_else(PoisonError::into_inner).serialize(serializer)
}

fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

/// Returns how many bytes of JSON a checkpoint takes, without keeping them.
fn encoded_len(checkpoint: &ExecutionCheckpoint) -> Result<usize, CheckpointError> {
    struct Count(usize);

    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let mut count = Count(0);
    serde_json::to_writer(&mut count, checkpoint)
        .map_err(|error| CheckpointError::SerializationError(Source::new(error)))?;
    Ok(count.0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use chrono::{DateTime, Utc};
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::clock::ManualClock;
    use crate::execution::{ExecutionContext, ExecutionResult, NodeExecutionResult};

    fn context(clock: &dyn Clock) -> ExecutionContext {
        ExecutionContext::with_id(clock.new_id(), Uuid::from_u128(7), clock.now())
    }

    /// A clock whose next id panics once, as somebody else's clock may.
    #[derive(Debug, Default)]
    struct Fragile {
        broken: AtomicBool,
        inner: ManualClock,
    }

    impl Clock for Fragile {
        fn now(&self) -> DateTime<Utc> {
            self.inner.now()
        }

        fn elapsed(&self) -> Duration {
            self.inner.elapsed()
        }

        fn new_id(&self) -> Uuid {
            assert!(!self.broken.swap(false, Ordering::Relaxed), "the clock is broken");
            self.inner.new_id()
        }
    }

    /// A clock that gives one id for ever.
    #[derive(Debug)]
    struct Stuck(ManualClock);

    impl Clock for Stuck {
        fn now(&self) -> DateTime<Utc> {
            self.0.now()
        }

        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }

        fn new_id(&self) -> Uuid {
            Uuid::from_u128(1)
        }
    }

    #[test]
    fn the_latest_is_the_last_saved_though_the_clock_stands_still_or_steps_back() {
        let clock = Arc::new(ManualClock::default());
        let storage = InMemoryCheckpointStorage::with_clock(clock.clone());
        let mut ctx = context(&*clock);
        let mut ids = Vec::new();
        for (step, back_s) in [0, 0, 3600].into_iter().enumerate() {
            clock.step_back(Duration::from_secs(back_s));
            ctx.set_variable("step".into(), json!(step));
            ids.push(storage.save_checkpoint(ctx.execution_id, &ctx.checkpoint_at(clock.now())).unwrap());
        }
        let latest = storage.load_latest_checkpoint(ctx.execution_id).unwrap().unwrap();
        assert_eq!(latest.variables["step"], json!(2));
        let listed: Vec<_> =
            storage.list_checkpoints(ctx.execution_id).unwrap().iter().map(|m| m.id).collect();
        ids.reverse();
        assert_eq!(listed, ids);
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }

    #[test]
    fn the_metadata_is_that_of_the_checkpoint() {
        let clock = Arc::new(ManualClock::default());
        let storage = InMemoryCheckpointStorage::with_clock(clock.clone());
        let mut ctx = context(&*clock);
        ctx.record_node_result(
            Uuid::from_u128(1),
            NodeExecutionResult::started(clock.now()).completed(ExecutionResult::Skipped, clock.now()),
        );
        let checkpoint = ctx.checkpoint_at(clock.now());
        let id = storage.save_checkpoint(ctx.execution_id, &checkpoint).unwrap();
        assert_eq!(
            storage.list_checkpoints(ctx.execution_id).unwrap(),
            [CheckpointMetadata {
                id,
                execution_id: ctx.execution_id,
                workflow_id: Uuid::from_u128(7),
                created_at: clock.now(),
                completed_node_count: 1,
                size_bytes: serde_json::to_vec(&checkpoint).unwrap().len(),
                compressed: false,
            }]
        );
    }

    #[test]
    fn a_checkpoint_joins_the_history_that_the_argument_names_and_keeps_its_own_execution() {
        let clock = ManualClock::default();
        let storage = InMemoryCheckpointStorage::new();
        let (ctx, heir) = (context(&clock), clock.new_id());
        storage.save_checkpoint(heir, &ctx.checkpoint_at(clock.now())).unwrap();
        assert_eq!(storage.load_latest_checkpoint(ctx.execution_id).unwrap(), None);
        assert_eq!(
            storage.load_latest_checkpoint(heir).unwrap().map(|c| c.execution_id),
            Some(ctx.execution_id)
        );
        assert_eq!(storage.list_checkpoints(heir).unwrap()[0].execution_id, heir);
    }

    #[test]
    fn pruning_keeps_the_newest_and_leaves_other_executions_alone() {
        let clock = Arc::new(ManualClock::default());
        let storage = InMemoryCheckpointStorage::with_clock(clock.clone());
        let (one, other) = (context(&*clock), context(&*clock));
        let ids: Vec<_> = (0..5)
            .map(|_| storage.save_checkpoint(one.execution_id, &one.checkpoint_at(clock.now())).unwrap())
            .collect();
        storage.save_checkpoint(other.execution_id, &other.checkpoint_at(clock.now())).unwrap();

        assert_eq!(storage.prune_checkpoints(one.execution_id, 2).unwrap(), 3);
        assert_eq!(storage.prune_checkpoints(one.execution_id, 2).unwrap(), 0);
        let left: Vec<_> = storage.list_checkpoints(one.execution_id).unwrap().iter().map(|m| m.id).collect();
        assert_eq!(left, [ids[4], ids[3]]);
        assert_eq!(storage.load_checkpoint(ids[2]).unwrap(), None);
        assert_eq!(storage.delete_checkpoints(one.execution_id).unwrap(), 2);
        assert_eq!(storage.delete_checkpoints(one.execution_id).unwrap(), 0);
        assert_eq!(storage.list_checkpoints(other.execution_id).unwrap().len(), 1);
        assert_eq!(storage.read().by_id.len(), 1);
    }

    #[test]
    fn a_panic_in_the_middle_of_a_save_keeps_nothing_and_closes_nothing() {
        let clock = Arc::new(Fragile::default());
        let storage = InMemoryCheckpointStorage::with_clock(clock.clone());
        let ctx = context(&*clock);
        let checkpoint = ctx.checkpoint_at(clock.now());
        clock.broken.store(true, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let saving = scope.spawn(|| storage.save_checkpoint(ctx.execution_id, &checkpoint));
            assert!(saving.join().is_err());
        });
        assert!(storage.checkpoints.is_poisoned());
        assert_eq!(storage.load_latest_checkpoint(ctx.execution_id).unwrap(), None);
        let id = storage.save_checkpoint(ctx.execution_id, &checkpoint).unwrap();
        assert_eq!(storage.load_checkpoint(id).unwrap(), Some(checkpoint));
        assert_eq!(storage.clone().list_checkpoints(ctx.execution_id).unwrap().len(), 1);
    }

    #[test]
    fn an_id_given_twice_does_not_replace_a_checkpoint() {
        let clock = Arc::new(Stuck(ManualClock::default()));
        let storage = InMemoryCheckpointStorage::with_clock(clock.clone());
        let mut ctx = context(&*clock);
        let id = storage.save_checkpoint(ctx.execution_id, &ctx.checkpoint_at(clock.now())).unwrap();
        ctx.set_variable("a".into(), json!(1));
        let error = storage.save_checkpoint(ctx.execution_id, &ctx.checkpoint_at(clock.now())).unwrap_err();
        assert!(matches!(error, CheckpointError::StorageError(_)));
        assert!(storage.load_checkpoint(id).unwrap().unwrap().variables.is_empty());
        assert_eq!(storage.list_checkpoints(ctx.execution_id).unwrap().len(), 1);
    }

    #[test]
    fn a_storage_survives_json_and_a_copy_goes_its_own_way() {
        let clock = Arc::new(ManualClock::default());
        let storage = InMemoryCheckpointStorage::with_clock(clock.clone());
        let ctx = context(&*clock);
        for _ in 0..3 {
            storage.save_checkpoint(ctx.execution_id, &ctx.checkpoint_at(clock.now())).unwrap();
        }
        let text = serde_json::to_string(&storage).unwrap();
        let read: InMemoryCheckpointStorage = serde_json::from_str(&text).unwrap();
        let listed = storage.list_checkpoints(ctx.execution_id).unwrap();
        assert_eq!(read.list_checkpoints(ctx.execution_id).unwrap(), listed);
        assert_eq!(
            read.load_checkpoint(listed[0].id).unwrap(),
            storage.load_checkpoint(listed[0].id).unwrap()
        );

        let copy = storage.clone();
        assert_eq!(copy.delete_checkpoints(ctx.execution_id).unwrap(), 3);
        assert_eq!(storage.list_checkpoints(ctx.execution_id).unwrap().len(), 3);
    }
}
