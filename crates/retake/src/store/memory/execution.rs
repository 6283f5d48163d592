//! One execution in memory: its points, its operation log, what is asked of it, and its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::execution::WorkflowId;
use crate::store::history::delta_between;
use crate::store::{
    CheckpointRecord, Conflict, ExecutionRecord, HistoryPoint, Image, NewCheckpoint, NewExecution,
    NewOperation, NewWorkflow, Note, OperationRecord, Request, Seq, StoreError,
};

#[derive(Debug)]
pub(super) struct Execution {
    /// Without `leased_by`, which depends on the time of the look.
    pub(super) record: ExecutionRecord,
    /// Those that it ever ran.
    pub(super) workflows: BTreeSet<WorkflowId>,
    pub(super) points: BTreeMap<Seq, Point>,
    pub(super) operations: Vec<OperationRecord>,
    pub(super) requests: Vec<Request>,
    /// That of the last lease; 0 where there was none.
    pub(super) fence: u64,
    /// When the last lease ends, in elapsed time; `None` where it was given back.
    pub(super) leased_until: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Point {
    pub(super) record: CheckpointRecord,
    pub(super) image: Image,
    /// In the feed.
    pub(super) place: u64,
}

impl Execution {
    /// Returns an execution that has no point yet.
    pub(super) fn new(new: &NewExecution, first: &NewCheckpoint) -> Self {
        let record = ExecutionRecord {
            id: new.id,
            name: new.name.clone(),
            workflow_id: new.workflow_id,
            workflow_name: new.workflow_name.clone(),
            state: first.state.clone(),
            head: 0,
            created_at: first.created_at,
            updated_at: first.created_at,
            spend: first.spend,
            origin: new.origin,
            leased_by: None,
        };
        Self {
            record,
            workflows: BTreeSet::from([new.workflow_id]),
            points: BTreeMap::new(),
            operations: Vec::new(),
            requests: Vec::new(),
            fence: 0,
            leased_until: None,
        }
    }

    pub(super) fn point(&self, seq: Seq) -> Result<&Point, StoreError> {
        let (execution, head) = (self.record.id, self.record.head);
        match self.points.get(&seq) {
            Some(point) => Ok(point),
            None if (1..=head).contains(&seq) => Err(StoreError::Pruned { execution, seq }),
            None => Err(StoreError::NoPoint { execution, seq, head }),
        }
    }

    /// Returns the points, each with what changed since the one before it on the time line, or in the history.
    pub(super) fn history(&self) -> Vec<HistoryPoint> {
        let mut before: Option<Seq> = None;
        let point = |(seq, point): (&Seq, &Point)| {
            let parent = point.record.parent.filter(|parent| self.points.contains_key(parent));
            let base = parent.or(before);
            before = Some(*seq);
            let delta = match base.and_then(|base| self.points.get(&base)) {
                Some(base) => delta_between(&base.image, &point.image),
                None => point.image.to_delta(),
            };
            HistoryPoint { record: point.record.clone(), base, delta }
        };
        self.points.iter().map(point).collect()
    }

    /// Returns how long the lease holds from now, if it does.
    pub(super) fn lease_left(&self, elapsed: Duration) -> Option<Duration> {
        self.leased_until.and_then(|until| until.checked_sub(elapsed)).filter(|left| !left.is_zero())
    }

    pub(super) fn check_fence(&self, ours: u64) -> Result<(), Conflict> {
        if ours == self.fence {
            return Ok(());
        }
        Err(Conflict::Fenced { execution: self.record.id, ours, found: self.fence })
    }

    /// Writes an operation into the log that leaves the head at `after`.
    pub(super) fn note(&mut self, note: Note, after: Seq) -> OperationRecord {
        let Note { at, cause, operation: NewOperation { who, command } } = note;
        let number = self.operations.last().map_or(1, |last| last.number + 1);
        let record = OperationRecord { number, at, who, command, cause, before: self.record.head, after };
        self.operations.push(record.clone());
        record
    }

    /// Moves the head to the point, and does all that goes with it. Cannot fail.
    pub(super) fn push(&mut self, point: Point, checkpoint: NewCheckpoint) -> CheckpointRecord {
        let record = point.record.clone();
        if let Some(operation) = checkpoint.operation {
            let note = Note { at: record.created_at, cause: record.cause.clone(), operation };
            self.note(note, record.seq);
        }
        if !checkpoint.answers.is_empty() {
            self.requests.retain(|request| !checkpoint.answers.contains(&request.id));
        }
        if let Some(NewWorkflow { id, name, .. }) = checkpoint.workflow {
            self.workflows.insert(id);
            (self.record.workflow_id, self.record.workflow_name) = (id, name);
        }
        self.record.head = record.seq;
        self.record.state = record.state.clone();
        self.record.updated_at = record.created_at;
        self.record.spend = checkpoint.spend;
        self.points.insert(record.seq, point);
        record
    }
}
