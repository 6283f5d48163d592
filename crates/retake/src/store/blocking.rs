//! The blocking face of a store, which makes a `CheckpointStorage` of it.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::state::{context_as_made, delta_in};
use super::{
    Cause, CheckpointRecord, Commit, Conflict, HistoryPage, NewCheckpoint, NewExecution, NewWorkflow, Store,
    StoreError, StoreExt,
};
use crate::checkpoint::{CheckpointError, CheckpointId, CheckpointMetadata, CheckpointStorage, Source};
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionCheckpoint, ExecutionContext, ExecutionId};

/// How often a save starts again because another process saved first.
const ATTEMPTS_MAX: usize = 16;

/// Executions whose last state is remembered, so that saving the next one need not read it.
const REMEMBERED_MAX: usize = 256;

/// A store for callers that wait: it makes a [`CheckpointStorage`] of any [`Store`].
///
/// Can be called from any thread, one inside an async runtime included: the work is done by a thread of its own, on
/// which the calls of all threads run side by side, so that saves that wait at the same time share a durable write. A
/// store that keeps tasks of its own must not need the caller's runtime for them, which stands still meanwhile.
///
/// The first save creates the execution, named after its id. A save stores what changed since the last one; where
/// somebody else moved the head since, since that. While somebody else holds the lease, saves and deletions fail with
/// [`Conflict::Leased`] as the source. Beyond [`CheckpointStorage`]:
///
/// - A checkpoint comes back with its completed nodes in the order of their ids, as
///   [`create_checkpoint`](ExecutionContext::create_checkpoint) lists them.
/// - `size_bytes` is what was stored for the checkpoint: what changed, not the state.
/// - Pruning keeps checkpoints that have a label, and the head. To keep none is to delete the execution.
///
/// ```
/// use retake::checkpoint::CheckpointStorage;
/// use retake::execution::ExecutionContext;
/// use retake::store::{BlockingStore, MemoryStore};
/// use serde_json::json;
/// use std::sync::Arc;
///
/// let storage = BlockingStore::new(Arc::new(MemoryStore::new()))?;
/// let mut ctx = ExecutionContext::new(uuid::Uuid::new_v4());
/// ctx.append("messages", json!("hello"))?;
/// storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint())?;
/// ctx.append("messages", json!("goodbye"))?;
/// let id = storage.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint())?;
///
/// let checkpoint = storage.load_checkpoint(id)?.expect("it was just saved");
/// assert_eq!(ExecutionContext::resume_from_checkpoint(checkpoint, ctx.workflow_id), ctx);
/// assert_eq!(storage.list_checkpoints(ctx.execution_id)?.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BlockingStore {
    face: Arc<Face>,
    /// The thread ends when this is dropped. Holds at most one job for each thread that waits in a call.
    jobs: UnboundedSender<Job>,
}

/// Starts a task; called on the thread of the runtime.
type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Face {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    remembered: Mutex<Remembered>,
}

/// What was saved last, for the executions that were saved last.
#[derive(Debug, Default)]
struct Remembered {
    executions: HashMap<ExecutionId, (u64, Memory)>,
    uses: u64,
}

/// Whoever holds the lock saves; saves of one execution wait for each other here instead of racing for the head.
type Memory = Arc<tokio::sync::Mutex<Option<Saved>>>;

#[derive(Debug)]
struct Saved {
    record: CheckpointRecord,
    ctx: ExecutionContext,
}

impl BlockingStore {
    /// Returns the blocking face of a store, and starts its thread.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the system has no thread left.
    pub fn new(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        Self::with_clock(store, Arc::new(SystemClock::default()))
    }

    /// Returns the blocking face of a store, which takes the ids of checkpoints from `clock`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let (jobs, received) = unbounded_channel();
        start(received).map_err(|error| StoreError::Io {
            location: "the blocking face of the store".to_owned(),
            action: "starting its thread",
            source: Arc::new(error),
        })?;
        Ok(Self { face: Arc::new(Face { store, clock, remembered: Mutex::default() }), jobs })
    }

    /// Returns the store behind the face.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.face.store
    }

    /// Waits for a future, which runs on the face's own thread.
    ///
    /// # Panics
    /// Where the future does.
    ///
    /// ```
    /// # use retake::store::{BlockingStore, MemoryStore};
    /// # use std::sync::Arc;
    /// let blocking = BlockingStore::new(Arc::new(MemoryStore::new()))?;
    /// let store = Arc::clone(blocking.store());
    /// let report = blocking.block_on(async move { store.check().await })?;
    /// assert_eq!(report.problems, [""; 0]);
    /// # Ok::<(), retake::store::StoreError>(())
    /// ```
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (done, outcome) = mpsc::sync_channel(1);
        let job = move || {
            let task = tokio::spawn(future);
            tokio::spawn(async move { done.send(task.await) });
        };
        if self.jobs.send(Box::new(job)).is_err() {
            unreachable!("the thread lives as long as the face");
        }
        match outcome.recv().expect("every job sends its outcome") {
            Ok(output) => output,
            Err(failure) => resume_unwind(failure.into_panic()),
        }
    }

    fn wait<T, F>(&self, call: impl FnOnce(Arc<Face>) -> F) -> Result<T, CheckpointError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.block_on(call(Arc::clone(&self.face))).map_err(CheckpointError::from)
    }
}

impl CheckpointStorage for BlockingStore {
    fn save_checkpoint(
        &self,
        execution_id: ExecutionId,
        checkpoint: &ExecutionCheckpoint,
    ) -> Result<CheckpointId, CheckpointError> {
        let checkpoint = checkpoint.clone();
        self.wait(|face| async move { face.save(execution_id, checkpoint).await })
    }

    fn load_latest_checkpoint(
        &self,
        execution_id: ExecutionId,
    ) -> Result<Option<ExecutionCheckpoint>, CheckpointError> {
        self.wait(|face| async move {
            let latest = face.head(execution_id).await?;
            Ok(latest.map(|saved| saved.ctx.checkpoint_at(saved.record.created_at)))
        })
    }

    fn load_checkpoint(
        &self,
        checkpoint_id: CheckpointId,
    ) -> Result<Option<ExecutionCheckpoint>, CheckpointError> {
        self.wait(|face| async move {
            let Some(record) = face.store.checkpoint(checkpoint_id).await? else { return Ok(None) };
            match face.read(record).await {
                Ok(saved) => Ok(Some(saved.ctx.checkpoint_at(saved.record.created_at))),
                // It went between the two looks.
                Err(StoreError::NoExecution(_) | StoreError::Pruned { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list_checkpoints(
        &self,
        execution_id: ExecutionId,
    ) -> Result<Vec<CheckpointMetadata>, CheckpointError> {
        let history = self.wait(|face| async move {
            let whole = HistoryPage::default();
            face.store.history(execution_id, whole).await
        })?;
        Ok(history.into_iter().map(CheckpointMetadata::from).collect())
    }

    fn prune_checkpoints(
        &self,
        execution_id: ExecutionId,
        keep_count: usize,
    ) -> Result<usize, CheckpointError> {
        if keep_count == 0 {
            return self.delete_checkpoints(execution_id);
        }
        self.wait(|face| async move { face.store.prune(execution_id, keep_count).await })
    }

    fn delete_checkpoints(&self, execution_id: ExecutionId) -> Result<usize, CheckpointError> {
        self.wait(|face| async move {
            let memory = face.memory(execution_id);
            let mut last = memory.lock().await;
            *last = None;
            face.store.delete(execution_id).await
        })
    }
}

impl Face {
    async fn save(
        &self,
        execution_id: ExecutionId,
        checkpoint: ExecutionCheckpoint,
    ) -> Result<CheckpointId, StoreError> {
        let memory = self.memory(execution_id);
        let mut last = memory.lock().await;
        let mut attempts = 1;
        loop {
            // What is taken is not put back after an error: the outcome may be unknown, and the head is read again.
            let before = match last.take() {
                Some(saved) if self.is_kept(&saved).await? => Some(saved),
                Some(_) | None => self.head(execution_id).await?,
            };
            match self.append(execution_id, before, &checkpoint).await {
                Ok(saved) => return Ok(last.insert(saved).record.id),
                Err(error) if attempts < ATTEMPTS_MAX && came_second(&error) => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends a checkpoint to the last one saved; where there is none, creates the execution.
    async fn append(
        &self,
        execution_id: ExecutionId,
        before: Option<Saved>,
        checkpoint: &ExecutionCheckpoint,
    ) -> Result<Saved, StoreError> {
        let ctx = ExecutionContext::from(checkpoint.clone());
        let state = checkpoint.state.clone();
        let new = NewCheckpoint {
            delta: delta_in(execution_id, before.as_ref().map(|saved| &saved.ctx), &ctx)?,
            completed_node_count: checkpoint.completed_nodes.len() as u64,
            workflow: before.as_ref().and_then(|saved| changed_workflow(&saved.record, checkpoint)),
            ..NewCheckpoint::new(self.clock.new_id(), checkpoint.timestamp, state, Cause::Save)
        };
        let record = match before {
            Some(saved) => {
                let expected_head = saved.record.seq;
                self.store
                    .commit(Commit { execution_id, expected_head, fence: None, checkpoint: new })
                    .await?
            }
            None => {
                let execution = NewExecution {
                    id: execution_id,
                    name: execution_id.to_string(),
                    workflow_id: checkpoint.workflow_id,
                    workflow_name: checkpoint.workflow_id.to_string(),
                    definition: Vec::new(),
                    origin: None,
                };
                self.store.create(execution, new).await?
            }
        };
        Ok(Saved { record, ctx })
    }

    /// Tells whether what was saved is still there: an execution that was deleted and saved anew elsewhere may have its
    /// head at the same number.
    async fn is_kept(&self, saved: &Saved) -> Result<bool, StoreError> {
        Ok(self.store.checkpoint(saved.record.id).await?.is_some())
    }

    /// Returns the newest checkpoint of an execution, if it has any.
    async fn head(&self, execution_id: ExecutionId) -> Result<Option<Saved>, StoreError> {
        let mut attempts = 1;
        loop {
            let Some(record) = self.store.newest(execution_id).await? else { return Ok(None) };
            match self.read(record).await {
                Ok(saved) => return Ok(Some(saved)),
                // It went between the two looks, and another is the newest.
                Err(StoreError::NoExecution(_) | StoreError::Pruned { .. }) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read(&self, record: CheckpointRecord) -> Result<Saved, StoreError> {
        let image = self.store.state(record.execution_id, record.seq).await?;
        let ctx = context_as_made(record.execution_id, &image)?;
        Ok(Saved { record, ctx })
    }

    fn memory(&self, execution_id: ExecutionId) -> Memory {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).of(execution_id)
    }
}

impl Remembered {
    fn of(&mut self, execution_id: ExecutionId) -> Memory {
        self.uses += 1;
        if !self.executions.contains_key(&execution_id) && self.executions.len() >= REMEMBERED_MAX {
            self.forget_one();
        }
        let (last_use, memory) = self.executions.entry(execution_id).or_default();
        *last_use = self.uses;
        Arc::clone(memory)
    }

    /// Forgets the execution that was not saved for longest. Where it is being saved, two saves of it may race for its
    /// head, which costs one of them another attempt.
    fn forget_one(&mut self) {
        let oldest = self.executions.iter().min_by_key(|(_, (last_use, _))| *last_use).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.executions.remove(&id);
        }
    }
}

/// Starts the thread that runs jobs side by side until their sender is dropped.
fn start(mut jobs: UnboundedReceiver<Job>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        runtime.block_on(async {
            while let Some(job) = jobs.recv().await {
                job();
            }
        });
    };
    std::thread::Builder::new().name("retake-store".to_owned()).spawn(run).map(drop)
}

/// Returns the workflow of a checkpoint, where the one saved before it is another's.
fn changed_workflow(before: &CheckpointRecord, checkpoint: &ExecutionCheckpoint) -> Option<NewWorkflow> {
    let id = checkpoint.workflow_id;
    (before.workflow_id != id).then(|| NewWorkflow { id, name: id.to_string(), definition: Vec::new() })
}

/// Tells whether somebody else moved the head, created the execution or deleted it since the last look.
fn came_second(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::NoExecution(_)
            | StoreError::Conflict(
                Conflict::HeadMoved { .. } | Conflict::NameTaken(_) | Conflict::IdTaken(_)
            )
    )
}

impl From<StoreError> for CheckpointError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unstorable { .. } => Self::SerializationError(Source::new(error)),
            StoreError::Corrupt { .. } => Self::InvalidData(Source::new(error)),
            StoreError::NoExecution(_)
            | StoreError::NoPoint { .. }
            | StoreError::Pruned { .. }
            | StoreError::ForeignPosition { .. }
            | StoreError::Conflict(_)
            | StoreError::NewerFormat { .. }
            | StoreError::Key { .. }
            | StoreError::NotAStore { .. }
            | StoreError::Absent { .. }
            | StoreError::Refused { .. }
            | StoreError::Full { .. }
            | StoreError::Io { .. }
            | StoreError::Closed { .. } => Self::StorageError(Source::new(error)),
        }
    }
}

impl From<CheckpointRecord> for CheckpointMetadata {
    fn from(record: CheckpointRecord) -> Self {
        Self {
            id: record.id,
            execution_id: record.execution_id,
            workflow_id: record.workflow_id,
            created_at: record.created_at,
            completed_node_count: usize::try_from(record.completed_node_count).unwrap_or(usize::MAX),
            size_bytes: usize::try_from(record.size_bytes).unwrap_or(usize::MAX),
            compressed: record.compressed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::MemoryStore;

    fn face_of(store: &Arc<MemoryStore>) -> BlockingStore {
        BlockingStore::new(store.clone()).unwrap()
    }

    fn context(step: u64) -> ExecutionContext {
        let clock = ManualClock::default();
        let mut ctx = ExecutionContext::with_id(Uuid::from_u128(5), Uuid::from_u128(7), clock.now());
        ctx.set_variable("step".into(), json!(step));
        ctx.set_variable(format!("only {step}"), json!(true));
        ctx
    }

    fn save(face: &BlockingStore, ctx: &ExecutionContext) -> Result<CheckpointId, CheckpointError> {
        face.save_checkpoint(ctx.execution_id, &ctx.create_checkpoint())
    }

    fn latest(face: &BlockingStore, id: ExecutionId) -> ExecutionContext {
        face.load_latest_checkpoint(id).unwrap().unwrap().into()
    }

    #[test]
    fn calls_of_many_threads_run_side_by_side() {
        const CALLERS: usize = 8;
        let face = face_of(&Arc::default());
        let all_here = Arc::new(tokio::sync::Barrier::new(CALLERS));
        std::thread::scope(|scope| {
            for _ in 0..CALLERS {
                let all_here = Arc::clone(&all_here);
                let face = &face;
                scope.spawn(move || face.block_on(async move { all_here.wait().await.is_leader() }));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_nobody_else() {
        let face = face_of(&Arc::default());
        let failing = AssertUnwindSafe(|| face.block_on(async { panic!("this one") }));
        assert_eq!(catch_unwind(failing).unwrap_err().downcast_ref(), Some(&"this one"));
        assert_eq!(face.block_on(async { 7 }), 7);
    }

    #[test]
    fn a_save_goes_on_where_somebody_else_moved_the_head() {
        let store = Arc::default();
        let (one, other) = (face_of(&store), face_of(&store));
        for step in 0..4 {
            let face = if step % 2 == 0 { &one } else { &other };
            save(face, &context(step)).unwrap();
            assert_eq!(latest(&one, Uuid::from_u128(5)), context(step));
        }
        assert_eq!(one.list_checkpoints(Uuid::from_u128(5)).unwrap().len(), 4);
    }

    #[test]
    fn a_history_that_was_deleted_and_begun_anew_elsewhere_is_not_taken_for_the_old_one() {
        let store = Arc::default();
        let (one, other) = (face_of(&store), face_of(&store));
        save(&one, &context(1)).unwrap();
        other.delete_checkpoints(Uuid::from_u128(5)).unwrap();
        save(&other, &context(2)).unwrap();
        save(&one, &context(3)).unwrap();
        assert_eq!(latest(&other, Uuid::from_u128(5)), context(3));
        assert_eq!(one.list_checkpoints(Uuid::from_u128(5)).unwrap().len(), 2);
    }

    #[test]
    fn a_lease_held_elsewhere_refuses_a_save_and_says_so() {
        let clock = Arc::new(ManualClock::default());
        let store = Arc::new(MemoryStore::with_clock(clock.clone()));
        let face = face_of(&store);
        save(&face, &context(1)).unwrap();
        let ttl = Duration::from_secs(30);
        face.block_on({
            let store = store.clone();
            async move { store.lease(Uuid::from_u128(5), ttl).await }
        })
        .unwrap();
        for refused in
            [save(&face, &context(2)).map(|_| ()), face.delete_checkpoints(Uuid::from_u128(5)).map(|_| ())]
        {
            let Err(CheckpointError::StorageError(source)) = refused else { panic!("{refused:?}") };
            let source = source.error().downcast_ref::<StoreError>();
            assert!(matches!(source, Some(StoreError::Conflict(Conflict::Leased { .. }))), "{source:?}");
        }
        clock.advance(ttl);
        save(&face, &context(2)).unwrap();
        assert_eq!(latest(&face, Uuid::from_u128(5)), context(2));
    }

    #[test]
    fn more_executions_than_are_remembered_can_be_saved_in_turn() {
        let face = face_of(&Arc::default());
        let count = REMEMBERED_MAX as u128 + 5;
        for step in 0..2 {
            for execution in 0..count {
                let ctx = ExecutionContext { execution_id: Uuid::from_u128(execution), ..context(step) };
                save(&face, &ctx).unwrap();
            }
        }
        let remembered = face.face.remembered.lock().unwrap().executions.len();
        assert_eq!(remembered, REMEMBERED_MAX);
        for execution in 0..count {
            let id = Uuid::from_u128(execution);
            assert_eq!(latest(&face, id), ExecutionContext { execution_id: id, ..context(1) });
        }
    }

    #[tokio::test]
    async fn a_face_can_be_made_used_and_dropped_inside_a_runtime() {
        let face = face_of(&Arc::default());
        save(&face, &context(1)).unwrap();
        assert_eq!(latest(&face, Uuid::from_u128(5)), context(1));
        drop(face);
    }
}
