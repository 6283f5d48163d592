//! Random histories: runs, crashes and everything that people do to executions, against a list of what every point held.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use retake::engine::{Edit, Effects, Engine, EngineError, Extent, Fork, Resume, Rollback, Start};
use retake::execution::{ExecutionContext, ExecutionId, ExecutionResult, ExecutionState, Spend, node_id};
use retake::store::{Conflict, HistoryPage, MemoryStore, Seq, Store, StoreError, StoreExt};
use serde_json::json;

use crate::flow::{self, Flow, VARIABLES, node, variable};
use crate::laws::config;
use crate::trial::{self, somebody, value};

/// How often a resume is tried while the lease of a run that was dropped is given back.
const TRIES_MAX: usize = 100_000;

/// How long the lease lasts that is taken after a crash.
const LEASE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
enum Action {
    /// Goes on to the end, or until a crash after so many events.
    Run {
        crash: Option<usize>,
    },
    /// To a point that may not be there.
    Rollback {
        target: u8,
        extent: Back,
        set: Option<(usize, u64)>,
    },
    Edit {
        set: BTreeMap<usize, u64>,
        output: Option<(u8, u64)>,
        done: Option<u8>,
    },
    Undo,
    Redo,
    Fork {
        target: u8,
        then: Then,
    },
    Prune {
        keep: usize,
    },
    /// Closes the store and opens it again.
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Back {
    Affected,
    Linear,
    Only { variable: usize, node: Option<u8> },
}

/// What becomes of a fork.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// It goes its own way beside its origin.
    Aside,
    /// Its origin is deleted, and the history goes on with the fork.
    Instead,
}

fn action() -> impl Strategy<Value = Action> {
    let set = || (0..VARIABLES, 0..4u64);
    let only = (0..VARIABLES, prop::option::of(any::<u8>()));
    let back = prop_oneof![
        3 => Just(Back::Affected),
        1 => Just(Back::Linear),
        2 => only.prop_map(|(variable, node)| Back::Only { variable, node }),
    ];
    prop_oneof![
        4 => prop::option::weighted(0.6, 0..30usize).prop_map(|crash| Action::Run { crash }),
        3 => (any::<u8>(), back, prop::option::weighted(0.2, set()))
            .prop_map(|(target, extent, set)| Action::Rollback { target, extent, set }),
        2 => (
            prop::collection::btree_map(0..VARIABLES, 0..4u64, 0..2),
            prop::option::weighted(0.4, (any::<u8>(), 0..4u64)),
            prop::option::weighted(0.2, any::<u8>()),
        )
            .prop_map(|(set, output, done)| Action::Edit { set, output, done }),
        3 => Just(Action::Undo),
        2 => Just(Action::Redo),
        1 => (any::<u8>(), prop_oneof![Just(Then::Aside), Just(Then::Instead)])
            .prop_map(|(target, then)| Action::Fork { target, then }),
        1 => (1..12usize).prop_map(|keep| Action::Prune { keep }),
        1 => Just(Action::Reopen),
    ]
}

/// What an execution is known to have been.
#[derive(Debug, Default)]
struct Known {
    /// The state of every point that was not pruned, as a text.
    points: BTreeMap<Seq, String>,
    head: Seq,
    spend: Spend,
    /// The points before the operations that can be taken back.
    done: Vec<Seq>,
    /// For each operation that was taken back, the point before it and the one before the undo.
    undone: Vec<(Seq, Seq)>,
    /// The head that the last operation left.
    operated: Seq,
}

struct History {
    engine: Engine,
    /// The file of the store, if it has one.
    path: Option<PathBuf>,
    id: ExecutionId,
    flow: Flow,
    known: Known,
}

/// What of a state goes back and stands again.
fn state_of(ctx: &ExecutionContext) -> String {
    let ledger = &ctx.ledger;
    format!("{:?} {:?} {:?} {:?}", ctx.variables, ctx.node_results, ledger.bases, ledger.taken_back)
}

fn engine(path: Option<&Path>) -> Engine {
    let store: Arc<dyn Store> = match path {
        None => Arc::new(MemoryStore::new()),
        #[cfg(feature = "sqlite")]
        Some(path) => Arc::new(retake::store::SqliteStore::open(path).unwrap()),
        #[cfg(not(feature = "sqlite"))]
        Some(path) => panic!("there is no store for {}", path.display()),
    };
    Engine::new(store).with_registry(trial::registry(&Arc::default()))
}

fn is_leased<T>(result: &Result<T, EngineError>) -> bool {
    matches!(result, Err(EngineError::Store(StoreError::Conflict(Conflict::Leased { .. }))))
}

fn is_pruned<T>(result: &Result<T, EngineError>) -> bool {
    matches!(result, Err(EngineError::Store(StoreError::Pruned { .. })))
}

fn is_nothing<T>(result: &Result<T, EngineError>) -> bool {
    matches!(result, Err(EngineError::NothingTo { .. }))
}

/// Tries again while the lease of a dropped run is on its way back.
macro_rules! at_rest {
    ($try:expr) => {{
        let mut result = $try;
        let mut tries = 0;
        while is_leased(&result) && tries < TRIES_MAX {
            tokio::task::yield_now().await;
            tries += 1;
            result = $try;
        }
        result
    }};
}

impl History {
    async fn start(flow: Flow, path: Option<&Path>) -> Result<Self, TestCaseError> {
        let engine = engine(path);
        let run = engine.start(Arc::new(flow.workflow()), Start::default()).await.unwrap();
        let id = run.execution_id();
        run.drive().await.unwrap();
        let path = path.map(Path::to_owned);
        let mut history = Self { engine, path, id, flow, known: Known::default() };
        history.take_note().await?;
        Ok(history)
    }

    async fn context(&self, seq: Seq) -> ExecutionContext {
        self.engine.store().context(self.id, seq).await.unwrap()
    }

    /// Notes what the new points hold, and checks what holds for every head.
    async fn take_note(&mut self) -> Result<(), TestCaseError> {
        let head = self.engine.store().require(self.id).await.unwrap().head;
        for seq in self.known.head + 1..=head {
            self.known.points.insert(seq, state_of(&self.context(seq).await));
        }
        self.known.head = head;
        let ctx = self.context(head).await;
        let (spend, before) = (ctx.ledger.spend, self.known.spend);
        prop_assert!(
            spend.paid.tokens >= before.paid.tokens && spend.reused.tokens >= before.reused.tokens,
            "the spend dropped from {:?} to {:?}",
            before,
            spend
        );
        self.known.spend = spend;
        // To give what was given is no change, though every variable that the node wrote is worked out anew.
        for key in self.flow.steps.keys() {
            let result = ctx.get_node_result(&node_id(&node(*key)));
            let Some(output) = result.and_then(|result| result.output()) else { continue };
            let request = Edit { outputs: BTreeMap::from([(node(*key), output.clone())]), ..Edit::default() };
            let plan = self.engine.plan_edit(self.id, &request).await.unwrap();
            // Where only a part went back, a node may have read what is not there any more.
            if plan.rerun.iter().any(|rerun| rerun.because != "it failed") {
                continue;
            }
            prop_assert!(plan.variables.is_empty(), "{:?} are not what was written", plan.variables);
        }
        Ok(())
    }

    /// Checks that a refused operation changed nothing.
    async fn is_untouched(&self) -> Result<(), TestCaseError> {
        let head = self.engine.store().require(self.id).await.unwrap().head;
        prop_assert_eq!(head, self.known.head);
        prop_assert_eq!(&state_of(&self.context(head).await), &self.known.points[&head]);
        Ok(())
    }

    async fn all_points_stand(&self) -> Result<(), TestCaseError> {
        for (seq, state) in &self.known.points {
            prop_assert_eq!(&state_of(&self.context(*seq).await), state, "point {} changed", seq);
        }
        for seq in (1..=self.known.head).filter(|seq| !self.known.points.contains_key(seq)) {
            let gone = self.engine.store().context(self.id, seq).await;
            let is_named = matches!(gone, Err(StoreError::Pruned { .. }));
            prop_assert!(is_named, "{:?}", gone.map(drop));
        }
        Ok(())
    }

    async fn take(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match action {
            Action::Run { crash } => self.run(*crash).await?,
            Action::Rollback { target, extent, set } => self.rollback(*target, *extent, *set).await?,
            Action::Edit { set, output, done } => self.edit(set, *output, *done).await?,
            Action::Undo => self.undo().await?,
            Action::Redo => self.redo().await?,
            Action::Fork { target, then } => self.fork(*target, *then).await?,
            Action::Prune { keep } => {
                self.engine.store().prune(self.id, *keep).await.unwrap();
                let keep = Seq::try_from(*keep).unwrap();
                let head = self.known.head;
                self.known.points.retain(|seq, _| seq + keep > head);
            }
            Action::Reopen => self.reopen(),
        }
        self.take_note().await
    }

    fn reopen(&mut self) {
        if let Some(path) = self.path.clone() {
            self.engine = engine(None);
            self.engine = engine(Some(&path));
        }
    }

    async fn run(&mut self, crash: Option<usize>) -> Result<(), TestCaseError> {
        let resumed = at_rest!(self.engine.resume(self.id, Resume::default()).await);
        let mut run = resumed.unwrap();
        let Some(crash) = crash else {
            run.drive().await.unwrap();
            return Ok(());
        };
        let mut events = run.watch();
        let seen = async move {
            for _ in 0..crash {
                if events.recv().await.is_none() {
                    break;
                }
            }
        };
        tokio::select! {
            biased;
            () = seen => {}
            outcome = run.drive() => drop(outcome.unwrap()),
        }
        // What was on its way to the disk may still arrive there, before the lease comes back.
        let store = self.engine.store();
        let lease = at_rest!(store.lease(self.id, LEASE).await.map_err(EngineError::from)).unwrap();
        store.release(&lease).await.unwrap();
        Ok(())
    }

    /// Returns a point from before the first to after the head.
    fn place(&self, target: u8) -> Seq {
        Seq::from(target) % (self.known.head + 3)
    }

    async fn rollback(
        &mut self,
        target: u8,
        extent: Back,
        set: Option<(usize, u64)>,
    ) -> Result<(), TestCaseError> {
        let target = self.place(target);
        let keys: Vec<u16> = self.flow.steps.keys().copied().collect();
        let extent = match extent {
            Back::Affected => Extent::Affected,
            Back::Linear => Extent::Linear,
            Back::Only { variable: index, node: place } => Extent::Only {
                variables: vec![variable(index)],
                nodes: place.map(|place| node(keys[usize::from(place) % keys.len()])).into_iter().collect(),
            },
        };
        let set = set.into_iter().map(|(index, number)| (variable(index), value(index, number))).collect();
        let request = Rollback { extent, set, ..Rollback::default() };
        let planned = self.engine.plan_rollback(self.id, target, &request).await;
        let is_there = self.known.points.contains_key(&target);
        match planned {
            Ok(plan) => {
                prop_assert!(is_there);
                self.is_untouched().await?;
                let before = self.known.head;
                at_rest!(self.engine.apply(plan.clone(), somebody()).await).unwrap();
                self.operated(before);
            }
            Err(EngineError::NothingThere { .. }) => {
                let is_narrow = matches!(request.extent, Extent::Only { .. });
                prop_assert!(is_there && is_narrow);
                self.is_untouched().await?;
            }
            Err(error) => {
                prop_assert!(!is_there, "{}", error);
                let is_absent = matches!(&error, EngineError::Store(StoreError::NoPoint { .. }));
                let is_named = is_absent || (target <= self.known.head && is_pruned(&Err::<(), _>(error)));
                prop_assert!(is_named);
                self.is_untouched().await?;
            }
        }
        Ok(())
    }

    /// Notes that an operation was done that can be taken back.
    fn operated(&mut self, before: Seq) {
        self.known.done.push(before);
        self.known.undone.clear();
        self.known.operated = before + 1;
    }

    async fn edit(
        &mut self,
        set: &BTreeMap<usize, u64>,
        output: Option<(u8, u64)>,
        done: Option<u8>,
    ) -> Result<(), TestCaseError> {
        let ctx = self.context(self.known.head).await;
        let keys: Vec<u16> = self.flow.steps.keys().copied().collect();
        let named = |place: u8| node(keys[usize::from(place) % keys.len()]);
        let has_output = |name: &String| {
            let result = ctx.get_node_result(&node_id(name)).map(|result| &result.result);
            matches!(result, Some(ExecutionResult::Success(_)))
        };
        let set = set.iter().map(|(index, number)| (variable(*index), value(*index, *number))).collect();
        let mut request = Edit { set, ..Edit::default() };
        if let Some((place, number)) = output {
            request.outputs.extend(Some(named(place)).filter(has_output).map(|name| (name, json!(number))));
        }
        request.done.extend(done.map(named).filter(|name| !has_output(name)));
        let plan = self.engine.plan_edit(self.id, &request).await.unwrap();
        self.is_untouched().await?;
        let before = self.known.head;
        at_rest!(self.engine.apply(plan.clone(), somebody()).await).unwrap();
        self.operated(before);
        Ok(())
    }

    async fn undo(&mut self) -> Result<(), TestCaseError> {
        let undone = at_rest!(self.engine.undo(self.id, Effects::Refuse, somebody()).await);
        let Some(before) = self.known.done.last().copied() else {
            prop_assert!(is_nothing(&undone));
            return self.is_untouched().await;
        };
        let Some(state) = self.known.points.get(&before).cloned() else {
            prop_assert!(is_pruned(&undone));
            return self.is_untouched().await;
        };
        let head = undone.unwrap();
        prop_assert_eq!(state_of(&self.context(head).await), state, "an undo brings back what was before");
        self.known.done.pop();
        self.known.undone.push((before, self.known.head));
        self.known.operated = head;
        Ok(())
    }

    async fn redo(&mut self) -> Result<(), TestCaseError> {
        let redone = at_rest!(self.engine.redo(self.id, Effects::Refuse, somebody()).await);
        let last = self.known.undone.last().copied();
        let Some((before, taken_back)) = last.filter(|_| self.known.operated == self.known.head) else {
            prop_assert!(is_nothing(&redone));
            return self.is_untouched().await;
        };
        let Some(state) = self.known.points.get(&taken_back).cloned() else {
            prop_assert!(is_pruned(&redone));
            return self.is_untouched().await;
        };
        let head = redone.unwrap();
        prop_assert_eq!(state_of(&self.context(head).await), state, "a redo brings back what was undone");
        self.known.undone.pop();
        self.known.done.push(before);
        self.known.operated = head;
        Ok(())
    }

    async fn fork(&mut self, target: u8, then: Then) -> Result<(), TestCaseError> {
        let target = self.place(target);
        let planned = self.engine.plan_fork(self.id, target, &Fork::default()).await;
        let Some(state) = self.known.points.get(&target).cloned() else {
            prop_assert!(planned.is_err());
            return self.is_untouched().await;
        };
        let fork = self.engine.fork(planned.unwrap(), None, somebody()).await.unwrap().execution;
        let first = self.engine.store().context(fork, 1).await.unwrap();
        prop_assert_eq!(&state_of(&first), &state, "a fork begins as its origin was");
        prop_assert_ne!(first.state, ExecutionState::Running);
        let driven = self.engine.resume(fork, Resume::default()).await.unwrap();
        driven.drive().await.unwrap();
        self.is_untouched().await?;
        let history = self.engine.store().history(fork, HistoryPage::default()).await.unwrap();
        match then {
            Then::Aside => {
                self.engine.store().delete(fork).await.unwrap();
                self.is_untouched().await?;
            }
            Then::Instead => {
                let mut known = Known::default();
                for record in &history {
                    let ctx = self.engine.store().context(fork, record.seq).await.unwrap();
                    known.points.insert(record.seq, state_of(&ctx));
                }
                known.head = history[0].seq;
                // The lease of a run that crashed may be on its way back.
                let _deleted = at_rest!(self.engine.store().delete(self.id).await.map_err(EngineError::from));
                (self.id, self.known) = (fork, known);
                self.all_points_stand().await?;
            }
        }
        Ok(())
    }
}

fn live_through(flow: Flow, actions: &[Action], path: Option<&Path>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut history = History::start(flow, path).await?;
        for action in actions {
            history.take(action).await?;
        }
        history.all_points_stand().await
    })
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn whatever_was_done_is_found_again_and_can_be_taken_back(
        flow in flow::small(),
        actions in prop::collection::vec(action(), 1..12),
    ) {
        live_through(flow, &actions, None)?;
    }
}

#[cfg(feature = "sqlite")]
proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn whatever_was_done_is_found_again_in_a_file_that_is_closed_and_opened(
        flow in flow::small(),
        actions in prop::collection::vec(action(), 1..12),
    ) {
        let directory = tempfile::tempdir().unwrap();
        live_through(flow, &actions, Some(&directory.path().join("retake.db")))?;
    }
}
