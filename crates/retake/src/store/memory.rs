//! The store that lives and dies with its process: for tests, simulations, and runs that need not outlive it.

mod execution;
mod feed;
mod queue;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;
use uuid::Uuid;

use super::record::Place;
use super::{
    CheckpointRecord, Commit, Conflict, Delta, ExecutionFilter, ExecutionRecord, Feed, FeedPage, History,
    HistoryPage, HistoryPoint, Image, KeptWorkflow, Key, Lease, NewCheckpoint, NewExecution, Note, Op,
    OperationRecord, Report, Request, Seq, Store, StoreError, process,
};
use crate::checkpoint::CheckpointId;
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionId, WorkflowId};
use execution::{Execution, Point};
use queue::Desk;

/// Keeps histories in memory.
///
/// A commit costs its delta: every point keeps a whole state, which shares with its base all that did not change.
/// Nothing is compressed, whatever is asked, and `size_bytes` counts the keys and values of what changed. "Durable"
/// means for as long as the process lives. Leases end by the clock's elapsed time, so a wall clock that jumps does not
/// end them.
///
/// ```
/// use retake::execution::ExecutionContext;
/// use retake::store::{self, Cause, MemoryStore, NewCheckpoint, NewExecution, Store, StoreExt};
/// use serde_json::json;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = MemoryStore::new();
/// let mut ctx = ExecutionContext::new(uuid::Uuid::new_v4());
/// ctx.set_variable("topic".into(), json!("otters"));
/// let execution = NewExecution {
///     id: ctx.execution_id,
///     name: "brave-otter".into(),
///     workflow_id: ctx.workflow_id,
///     workflow_name: "article".into(),
///     definition: Vec::new(),
///     origin: None,
/// };
/// let first = NewCheckpoint {
///     delta: store::delta(None, &ctx, |_| None)?,
///     ..NewCheckpoint::new(uuid::Uuid::now_v7(), ctx.started_at, ctx.state.clone(), Cause::Start)
/// };
/// let checkpoint = store.create(execution, first).await?;
/// assert_eq!(checkpoint.seq, 1);
/// assert_eq!(store.context(ctx.execution_id, 1).await?, ctx);
/// # Ok::<(), retake::store::StoreError>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    /// Every change is decided before it is made, so that a poisoned lock guards a whole state.
    kept: Mutex<Kept>,
    clock: Arc<dyn Clock>,
    /// Rung where there may be something to claim.
    bell: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    executions: HashMap<ExecutionId, Execution>,
    by_creation: BTreeSet<(DateTime<Utc>, ExecutionId)>,
    by_name: HashMap<String, ExecutionId>,
    by_checkpoint: HashMap<CheckpointId, (ExecutionId, Seq)>,
    /// Each point in its place, in the order in which they came.
    feed: BTreeMap<u64, (ExecutionId, Seq)>,
    /// How many places were given. None is given twice.
    places: u64,
    definitions: HashMap<WorkflowId, Vec<u8>>,
    desk: Desk,
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock::default()))
    }

    /// Returns an empty store whose leases end by `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { kept: Mutex::default(), clock, bell: Notify::new() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the conflict with whoever holds the lease, if anybody does.
    fn leased(&self, execution: &Execution) -> Result<(), Conflict> {
        match execution.lease_left(self.clock.elapsed()) {
            None => Ok(()),
            Some(left) => {
                let until = self.clock.now() + TimeDelta::from_std(left).unwrap_or(TimeDelta::zero());
                Err(Conflict::Leased {
                    execution: execution.record.id,
                    owner: process::name().to_owned(),
                    until,
                })
            }
        }
    }

    fn seen(&self, execution: &Execution) -> ExecutionRecord {
        let leased_by = execution.lease_left(self.clock.elapsed()).map(|_| process::name().to_owned());
        ExecutionRecord { leased_by, ..execution.record.clone() }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn create(&self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError> {
        self.kept().create(new, first)
    }

    async fn commit(&self, commit: Commit) -> Result<CheckpointRecord, StoreError> {
        let Commit { execution_id, expected_head, fence, checkpoint } = commit;
        let mut kept = self.kept();
        let execution = kept.require(execution_id)?;
        match fence {
            Some(ours) => execution.check_fence(ours)?,
            None => self.leased(execution)?,
        }
        let head = execution.record.head;
        if head != expected_head {
            let moved = Conflict::HeadMoved { execution: execution_id, expected: expected_head, found: head };
            return Err(moved.into());
        }
        let parent = checkpoint.parent.unwrap_or(head);
        execution.point(parent)?;
        let before = execution.point(checkpoint.base.unwrap_or(parent))?.image.clone();
        let mut point = kept.next_point(execution, before, Some(parent), &checkpoint)?;

        if let Some(workflow) = &checkpoint.workflow {
            kept.keep_definition(workflow.id, workflow.definition.clone());
        }
        point.place = kept.publish(checkpoint.id, execution_id, point.record.seq);
        let record = kept.require_mut(execution_id)?.push(point, checkpoint);
        if record.cause.is_decision() {
            kept.desk.call(execution_id, fence, self.clock.elapsed());
            self.ring(&mut kept);
        }
        Ok(record)
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        Ok(self.kept().executions.get(&id).map(|execution| self.seen(execution)))
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        let kept = self.kept();
        let newest_first = kept.by_creation.iter().rev().filter_map(|(_, id)| kept.executions.get(id));
        Ok(newest_first
            .filter(|execution| passes(filter, &execution.record))
            .take(filter.limit.unwrap_or(usize::MAX))
            .map(|execution| self.seen(execution))
            .collect())
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.kept().definitions.get(&id).cloned())
    }

    async fn history(&self, id: ExecutionId, page: HistoryPage) -> Result<Vec<CheckpointRecord>, StoreError> {
        let kept = self.kept();
        let Some(execution) = kept.executions.get(&id) else { return Ok(Vec::new()) };
        let older = execution.points.range(..page.before.unwrap_or(Seq::MAX));
        let limit = page.limit.unwrap_or(usize::MAX);
        Ok(older.rev().take(limit).map(|(_, point)| point.record.clone()).collect())
    }

    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointRecord>, StoreError> {
        let kept = self.kept();
        let point = kept
            .by_checkpoint
            .get(&id)
            .and_then(|(execution_id, seq)| kept.executions.get(execution_id)?.points.get(seq));
        Ok(point.map(|point| point.record.clone()))
    }

    async fn feed(&self, page: FeedPage) -> Result<Feed, StoreError> {
        self.page(page)
    }

    async fn state(&self, id: ExecutionId, seq: Seq) -> Result<Image, StoreError> {
        Ok(self.kept().require(id)?.point(seq)?.image.clone())
    }

    async fn operations(&self, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError> {
        let kept = self.kept();
        let log = kept.executions.get(&id).map(|execution| execution.operations.iter().rev().cloned());
        Ok(log.into_iter().flatten().collect())
    }

    async fn note(&self, id: ExecutionId, note: Note) -> Result<OperationRecord, StoreError> {
        let mut kept = self.kept();
        let execution = kept.require_mut(id)?;
        Ok(execution.note(note, execution.record.head))
    }

    async fn export(&self, id: ExecutionId) -> Result<History, StoreError> {
        let kept = self.kept();
        let execution = kept.require(id)?;
        let workflow = |id: &WorkflowId| {
            let definition = kept.definitions.get(id).cloned().unwrap_or_default();
            KeptWorkflow { id: *id, definition }
        };
        Ok(History {
            execution: execution.record.clone(),
            workflows: execution.workflows.iter().map(workflow).collect(),
            points: execution.history(),
            operations: execution.operations.clone(),
        })
    }

    async fn import(&self, history: History) -> Result<(), StoreError> {
        let images = history.states()?;
        let mut kept = self.kept();
        let id = history.execution.id;
        if kept.executions.contains_key(&id) {
            return Err(Conflict::IdTaken(id).into());
        }
        if kept.by_name.contains_key(&history.execution.name) {
            return Err(Conflict::NameTaken(history.execution.name).into());
        }
        let ids = history.points.iter().map(|point| point.record.id);
        if let Some(taken) = ids.clone().find(|id| kept.by_checkpoint.contains_key(id)) {
            return Err(Conflict::IdTaken(taken).into());
        }

        kept.by_creation.insert((history.execution.created_at, id));
        kept.by_name.insert(history.execution.name.clone(), id);
        let workflows = history.workflows.iter().map(|workflow| workflow.id).collect();
        for KeptWorkflow { id, definition } in history.workflows {
            kept.keep_definition(id, definition);
        }
        let point = |(HistoryPoint { record, delta, .. }, image): (HistoryPoint, Image)| {
            let (size_bytes, compressed) = (size(&delta), false);
            let place = kept.publish(record.id, id, record.seq);
            (
                record.seq,
                Point { record: CheckpointRecord { size_bytes, compressed, ..record }, image, place },
            )
        };
        let points = history.points.into_iter().zip(images).map(point).collect();
        let execution = Execution {
            record: ExecutionRecord { leased_by: None, ..history.execution },
            workflows,
            points,
            operations: history.operations,
            requests: Vec::new(),
            fence: 0,
            leased_until: None,
        };
        kept.executions.insert(id, execution);
        Ok(())
    }

    async fn prune(&self, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
        let mut kept = self.kept();
        let Some(execution) = kept.executions.get_mut(&id) else { return Ok(0) };
        let gone: Vec<(Seq, CheckpointId, u64)> = execution
            .points
            .iter()
            .rev()
            .skip(keep.max(1))
            .filter(|(_, point)| point.record.label.is_none())
            .map(|(seq, point)| (*seq, point.record.id, point.place))
            .collect();
        for (seq, _, _) in &gone {
            execution.points.remove(seq);
        }
        for (_, checkpoint_id, place) in &gone {
            kept.withdraw(*checkpoint_id, *place);
        }
        Ok(gone.len())
    }

    async fn delete(&self, id: ExecutionId) -> Result<usize, StoreError> {
        let mut kept = self.kept();
        let Some(execution) = kept.executions.get(&id) else { return Ok(0) };
        self.leased(execution)?;
        let Some(execution) = kept.executions.remove(&id) else { return Ok(0) };
        kept.by_creation.remove(&(execution.record.created_at, id));
        kept.by_name.remove(&execution.record.name);
        kept.desk.forget(id);
        for point in execution.points.values() {
            kept.withdraw(point.record.id, point.place);
        }
        Ok(execution.points.len())
    }

    async fn lease(&self, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError> {
        let mut kept = self.kept();
        let execution = kept.require_mut(id)?;
        self.leased(execution)?;
        execution.fence += 1;
        execution.leased_until = Some(self.clock.elapsed().saturating_add(ttl));
        Ok(Lease { execution_id: id, fence: execution.fence, ttl })
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let execution = kept.require_mut(lease.execution_id)?;
        execution.check_fence(lease.fence)?;
        // One that was given back stays so, however late somebody renews it.
        if execution.leased_until.is_none() {
            let (ours, found) = (lease.fence, execution.fence);
            return Err(Conflict::Fenced { execution: lease.execution_id, ours, found }.into());
        }
        execution.leased_until = Some(self.clock.elapsed().saturating_add(lease.ttl));
        Ok(())
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let holder = kept.executions.get_mut(&lease.execution_id).filter(|e| e.fence == lease.fence);
        if let Some(execution) = holder {
            execution.leased_until = None;
            if kept.desk.has(lease.execution_id) {
                self.ring(&mut kept);
            }
        }
        Ok(())
    }

    async fn ask(&self, id: ExecutionId, request: Request) -> Result<(), StoreError> {
        let request = request.checked()?;
        self.kept().require_mut(id)?.requests.push(request);
        Ok(())
    }

    async fn requests(&self, id: ExecutionId) -> Result<Vec<Request>, StoreError> {
        let kept = self.kept();
        Ok(kept.executions.get(&id).map(|execution| execution.requests.clone()).unwrap_or_default())
    }

    async fn withdraw(&self, id: ExecutionId, request: Uuid) -> Result<bool, StoreError> {
        let mut kept = self.kept();
        let Some(execution) = kept.executions.get_mut(&id) else { return Ok(false) };
        let before = execution.requests.len();
        execution.requests.retain(|pending| pending.id != request);
        Ok(execution.requests.len() < before)
    }

    async fn check(&self) -> Result<Report, StoreError> {
        let kept = self.kept();
        let mut report = Report::default();
        for execution in kept.executions.values() {
            report.executions += 1;
            if !execution.points.contains_key(&execution.record.head) {
                report.problems.push(format!(
                    "the head @{} of execution {} is missing",
                    execution.record.head, execution.record.id
                ));
            }
            for (seq, point) in &execution.points {
                report.checkpoints += 1;
                report.bytes += point.record.size_bytes;
                if !execution.workflows.contains(&point.record.workflow_id) {
                    report.problems.push(format!(
                        "checkpoint @{seq} of execution {} runs a workflow that is not kept for it",
                        execution.record.id
                    ));
                }
                if kept.by_checkpoint.get(&point.record.id) != Some(&(execution.record.id, *seq)) {
                    report.problems.push(format!(
                        "checkpoint @{seq} of execution {} cannot be found by its id",
                        execution.record.id
                    ));
                }
            }
        }
        Ok(report)
    }

    async fn compact(&self) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let Kept { executions, definitions, .. } = &mut *kept;
        let used: BTreeSet<WorkflowId> = executions.values().flat_map(|e| &e.workflows).copied().collect();
        definitions.retain(|id, _| used.contains(id));
        Ok(())
    }
}

impl Kept {
    fn create(&mut self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError> {
        if self.executions.contains_key(&new.id) {
            return Err(Conflict::IdTaken(new.id).into());
        }
        if self.by_name.contains_key(&new.name) {
            return Err(Conflict::NameTaken(new.name).into());
        }
        if let Some(seq) = first.parent.or(first.base) {
            return Err(StoreError::NoPoint { execution: new.id, seq, head: 0 });
        }
        let before = match new.origin {
            Some(origin) => self.require(origin.execution_id)?.point(origin.seq)?.image.clone(),
            None => Image::default(),
        };
        let mut execution = Execution::new(&new, &first);
        let mut point = self.next_point(&execution, before, None, &first)?;

        self.keep_definition(new.workflow_id, new.definition);
        if let Some(workflow) = &first.workflow {
            self.keep_definition(workflow.id, workflow.definition.clone());
        }
        self.by_creation.insert((execution.record.created_at, new.id));
        self.by_name.insert(new.name, new.id);
        point.place = self.publish(first.id, new.id, 1);
        let record = execution.push(point, first);
        self.executions.insert(new.id, execution);
        Ok(record)
    }

    fn require(&self, id: ExecutionId) -> Result<&Execution, StoreError> {
        self.executions.get(&id).ok_or(StoreError::NoExecution(id))
    }

    fn require_mut(&mut self, id: ExecutionId) -> Result<&mut Execution, StoreError> {
        self.executions.get_mut(&id).ok_or(StoreError::NoExecution(id))
    }

    /// Keeps a workflow's definition, where there is none yet.
    fn keep_definition(&mut self, id: WorkflowId, definition: Vec<u8>) {
        if !definition.is_empty() {
            self.definitions.entry(id).or_insert(definition);
        }
    }

    /// Returns the point that follows an execution's head, without putting it there.
    fn next_point(
        &self,
        execution: &Execution,
        before: Image,
        parent: Option<Seq>,
        checkpoint: &NewCheckpoint,
    ) -> Result<Point, StoreError> {
        if self.by_checkpoint.contains_key(&checkpoint.id) {
            return Err(Conflict::IdTaken(checkpoint.id).into());
        }
        let execution = &execution.record;
        let seq = execution.head + 1;
        let mut image = before;
        image
            .apply(&format!("the delta of point @{seq} of execution {}", execution.id), &checkpoint.delta)?;
        let place = Place { execution_id: execution.id, workflow_id: execution.workflow_id, seq, parent };
        let record = checkpoint.record(place, size(&checkpoint.delta), false);
        Ok(Point { record, image, place: 0 })
    }
}

fn passes(filter: &ExecutionFilter, record: &ExecutionRecord) -> bool {
    let state = filter.state.as_deref().is_none_or(|state| state == record.state.name());
    let address = filter.address.as_deref().is_none_or(|address| {
        record.name == address
            || record.id.hyphenated().to_string().starts_with(address)
            || record.id.simple().to_string().starts_with(address)
    });
    let origin = filter.origin.is_none_or(|id| record.origin.is_some_and(|origin| origin.execution_id == id));
    state && address && origin
}

/// Returns the bytes of keys and values that changed, which is what the point adds to memory.
fn size(delta: &Delta) -> u64 {
    let bytes = delta.changes().iter().map(|change| {
        let key = match &change.key {
            Key::Header | Key::Tally => 0,
            Key::Input(name) | Key::Variable(name) | Key::Base(name) => name.len(),
            Key::Node(id) | Key::TakenBack(id) => id.as_bytes().len(),
            Key::Compensation(turn) => size_of_val(turn),
        };
        let value = match &change.op {
            Op::Set { pieces, .. } | Op::Append { pieces, .. } => pieces.iter().map(|p| p.bytes.len()).sum(),
            Op::Remove => 0,
        };
        key + value
    });
    bytes.sum::<usize>() as u64
}
