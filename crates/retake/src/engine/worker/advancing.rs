//! How a worker advances one execution that it claimed, and leaves it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{BACK_OFF_FIRST, BACK_OFF_MAX, WorkerEvent, chain};
use crate::engine::control::HandOver;
use crate::engine::held::Held;
use crate::engine::run::Settled;
use crate::engine::trace::{self, RunKind};
use crate::engine::{Engine, EngineError, GoingOn, Outcome, Resume, Run};
use crate::execution::{ExecutionId, ExecutionResult, ExecutionState};
use crate::store::{Cause, Claimed, Conflict, ExecutionRecord, Queue, Settlement, StoreError, StoreExt};

/// For how long an execution is left to others that this worker cannot advance.
const LEFT_FOR: Duration = Duration::from_secs(30);

/// For how long an execution rests that could not be advanced because the store failed.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// How often it is tried to settle a claim. After that its lease runs out.
const SETTLE_TRIES: u32 = 12;

/// What executions are advanced with.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) engine: Engine,
    pub(super) queue: Arc<dyn Queue>,
    pub(super) events: Option<mpsc::Sender<WorkerEvent>>,
    /// How the worker ends, once it does.
    pub(super) ended: watch::Receiver<Option<HandOver>>,
    /// The executions that it holds, and their names.
    pub(super) in_hand: Mutex<BTreeMap<ExecutionId, String>>,
}

/// How an execution is left.
struct Leaving {
    /// `None` where there is nothing to settle any more.
    settlement: Option<Settlement>,
    event: Option<WorkerEvent>,
}

impl Bench {
    /// Advances an execution that was asked for at that elapsed time as far as that goes, and settles the claim. Returns
    /// how many executions ended by that.
    pub(super) async fn advance(self: Arc<Self>, claimed: Claimed, asked_at: Duration) -> u64 {
        let id = claimed.lease.execution_id;
        self.names().insert(id, id.to_string());
        let (mut held, leaving, ended) = match self.take_up(claimed, asked_at).await {
            Err(left) => {
                let (held, leaving) = *left;
                (held, leaving, 0)
            }
            Ok(run) => {
                let name = run.name().to_owned();
                let (settled, held) = self.drive(*run).await;
                match settled {
                    Ok(settled) => {
                        let ended = u64::from(settled.settlement == Settlement::Done);
                        (held, left(settled), ended)
                    }
                    Err(error) => (held, leaving(id, &name, &error), 0),
                }
            }
        };
        match leaving.settlement {
            // It passes on to whoever is to have it, before anybody hears of it.
            Some(settlement) => {
                if !self.settle(&mut held, settlement).await {
                    let name = self.names().remove(&id).unwrap_or_default();
                    self.tell(WorkerEvent::Abandoned { execution: id, name }).await;
                    return 0;
                }
            }
            None => held.forget(),
        }
        self.names().remove(&id);
        if let Some(event) = leaving.event {
            self.tell(event).await;
        }
        ended
    }

    /// Returns the executions that could neither be settled nor were lost to somebody else, and their names.
    pub(super) fn abandoned(&self) -> BTreeMap<ExecutionId, String> {
        std::mem::take(&mut self.names())
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<ExecutionId, String>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the log, and the watcher, if there is one.
    pub(super) async fn tell(&self, event: WorkerEvent) {
        event.log();
        if let Some(events) = &self.events {
            // A watcher that left is no reason to stop.
            let _left = events.send(event).await;
        }
    }

    /// Sets an execution running that was claimed, or says how to leave it.
    async fn take_up(&self, claimed: Claimed, asked_at: Duration) -> Result<Box<Run>, Box<(Held, Leaving)>> {
        let Claimed { lease, queue, claims } = claimed;
        let id = lease.execution_id;
        let held = Held::of(self.engine.store(), lease, asked_at);
        if self.ended.borrow().is_some() {
            let again = Settlement::Again { delay: Duration::ZERO };
            return Err(Box::new((held, Leaving { settlement: Some(again), event: None })));
        }
        let record = match self.engine.store().require(id).await {
            Ok(record) => record,
            Err(error) => return Err(Box::new((held, leaving(id, &id.to_string(), &error.into())))),
        };
        self.names().insert(id, record.name.clone());
        match self.rests_for(&record).await {
            Ok(None) => {}
            Ok(Some(settlement)) => {
                return Err(Box::new((held, Leaving { settlement: Some(settlement), event: None })));
            }
            Err(error) => return Err(Box::new((held, leaving(id, &record.name, &error)))),
        }
        let span = trace::execution(RunKind::Resumed, id, &record.workflow_name);
        let going_on = if claims > 1 { GoingOn::InPlaceOfOne } else { GoingOn::AsBefore };
        let resumed = match self.engine.set_running(&held, id, Resume::default(), going_on, &span).await {
            Ok(resumed) => resumed,
            Err(error) => return Err(Box::new((held, leaving(id, &record.name, &error)))),
        };
        self.tell(WorkerEvent::Taken {
            execution: id,
            name: record.name.clone(),
            queue,
            head: resumed.head,
            claims,
        })
        .await;
        match self.engine.run_of(held, resumed, span) {
            Ok(run) => Ok(Box::new(run)),
            Err(error) => unreachable!("the configuration of a workflow that was read holds: {error}"),
        }
    }

    /// Returns how to leave an execution that is not to go on by itself: somebody stopped it after it was put into the
    /// queue.
    async fn rests_for(&self, record: &ExecutionRecord) -> Result<Option<Settlement>, EngineError> {
        match record.state {
            ExecutionState::Running => return Ok(None),
            ExecutionState::Paused => {}
            ExecutionState::Completed | ExecutionState::Failed(_) | ExecutionState::Cancelled => {
                return Ok(Some(Settlement::Done));
            }
        }
        let head = self.engine.store().newest(record.id).await?;
        if matches!(head.as_ref().map(|head| &head.cause), Some(Cause::Approve { .. })) {
            return Ok(None);
        }
        let is_somebodys = head.is_some_and(|head| is_a_persons(&head.cause));
        let workflow = self.engine.workflow_of(record).await?;
        let ctx = self.engine.store().context(record.id, record.head).await?;
        let graph = workflow.graph();
        let asks = graph.nodes().any(|node| {
            matches!(workflow.node(node).kind, crate::workflow::NodeKind::Approval(_))
                && ctx
                    .get_node_result(&graph.id(node))
                    .is_some_and(|result| result.result == ExecutionResult::Pending)
        });
        // Where an approval is open, it is what lets it go on; unless somebody is to say so beside that.
        Ok(Some(if asks && !is_somebodys { Settlement::Held } else { Settlement::Done }))
    }

    /// Drives a run, and ends it when the worker ends.
    async fn drive(&self, run: Run) -> (Result<Settled, EngineError>, Held) {
        let control = run.control();
        let mut ended = self.ended.clone();
        let mut driven = std::pin::pin!(run.drive_for_worker());
        let told = |how: Option<HandOver>| how.into_iter().for_each(|how| control.hand_over(how));
        told(*ended.borrow_and_update());
        loop {
            tokio::select! {
                done = &mut driven => return done,
                Ok(()) = ended.changed() => told(*ended.borrow_and_update()),
            }
        }
    }

    /// Settles a claim, however often that takes. Returns false where it fails for long, and the lease runs out.
    async fn settle(&self, held: &mut Held, settlement: Settlement) -> bool {
        let mut wait = BACK_OFF_FIRST;
        for _ in 0..SETTLE_TRIES {
            match held.settle(&*self.queue, settlement).await {
                Ok(()) => return true,
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACK_OFF_MAX);
                }
                // Somebody else has it, or it is gone.
                Err(error) => {
                    tracing::debug!(%error, "a claim could not be settled");
                    held.forget();
                    return true;
                }
            }
        }
        held.forget();
        false
    }
}

/// Tells whether what made a point leaves it to a person to go on.
fn is_a_persons(cause: &Cause) -> bool {
    match cause {
        Cause::Pause
        | Cause::Cancel
        | Cause::Rollback { .. }
        | Cause::Undo { .. }
        | Cause::Redo { .. }
        | Cause::Edit
        | Cause::Fork { .. }
        | Cause::Repair { .. } => true,
        Cause::Start
        | Cause::Nodes
        | Cause::Interval
        | Cause::Before { .. }
        | Cause::LongNode { .. }
        | Cause::Started { .. }
        | Cause::Retry { .. }
        | Cause::Manual
        | Cause::Save
        | Cause::Resume
        | Cause::Finish
        | Cause::Approve { .. }
        | Cause::Compensate { .. }
        | Cause::Prune { .. } => false,
    }
}

/// Returns how to leave an execution that was advanced as far as that went.
fn left(settled: Settled) -> Leaving {
    let Settled { outcome, settlement } = settled;
    let Outcome { execution, name, state, head, .. } = outcome;
    let event = match settlement {
        Settlement::Again { .. } => match outcome.until {
            Some(until) => WorkerEvent::Parked { execution, name, head, until },
            None => WorkerEvent::HandedOver { execution, name, head },
        },
        Settlement::Held => {
            let nodes: Vec<String> = outcome.waiting.iter().map(|node| format!("`{node}`")).collect();
            let why = format!("somebody must approve {}", nodes.join(", "));
            WorkerEvent::Held { execution, name, why }
        }
        Settlement::Done => WorkerEvent::Finished {
            execution,
            name,
            status: state.name(),
            head,
            nodes_run: outcome.nodes_run,
            nodes_reused: outcome.nodes_reused,
            cost_usd: outcome.cost_usd,
            error: if let ExecutionState::Failed(why) = state { Some(why) } else { None },
        },
    };
    Leaving { settlement: Some(settlement), event: Some(event) }
}

/// Returns how to leave an execution that could not be advanced.
fn leaving(execution: ExecutionId, name: &str, error: &EngineError) -> Leaving {
    let (name, why) = (name.to_owned(), chain(error));
    let again = |delay| Some(Settlement::Again { delay });
    let (settlement, event) = match error {
        EngineError::Store(StoreError::Conflict(Conflict::Fenced { .. } | Conflict::HeadMoved { .. })) => {
            let why = "somebody else goes on with it".to_owned();
            (None, WorkerEvent::Lost { execution, name, why })
        }
        EngineError::Store(StoreError::NoExecution(_)) => {
            let why = "it was removed".to_owned();
            (None, WorkerEvent::Lost { execution, name, why })
        }
        EngineError::Store(StoreError::NewerFormat { .. })
        | EngineError::StoredDefinition(_)
        | EngineError::Workflow(_)
        | EngineError::Config(_)
        | EngineError::NoHandler { .. } => (again(LEFT_FOR), WorkerEvent::Left { execution, name, why }),
        EngineError::Store(error) if error.is_retryable() => {
            (again(FAILED_FOR), WorkerEvent::Lost { execution, name, why })
        }
        EngineError::Cancelled { .. } | EngineError::Rejected { .. } => {
            (Some(Settlement::Done), WorkerEvent::Lost { execution, name, why })
        }
        // Only a person can tell what is to become of it.
        EngineError::Interrupted { .. } | EngineError::InterruptedCompensation { .. } | _ => {
            (Some(Settlement::Held), WorkerEvent::Held { execution, name, why })
        }
    };
    Leaving { settlement, event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_left_alone_and_told_in_words() {
        let execution = ExecutionId::from_u128(7);
        for (error, told) in [
            (Conflict::Fenced { execution, ours: 1, found: 2 }.into(), "somebody else goes on with it"),
            (
                Conflict::HeadMoved { execution, expected: 1, found: 2 }.into(),
                "somebody else goes on with it",
            ),
            (StoreError::NoExecution(execution), "it was removed"),
        ] {
            let Leaving { settlement, event } = leaving(execution, "otter", &EngineError::Store(error));
            let expected = WorkerEvent::Lost { execution, name: "otter".into(), why: told.into() };
            assert_eq!((settlement, event), (None, Some(expected)));
        }
    }
}
