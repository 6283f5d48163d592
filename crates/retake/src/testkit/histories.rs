//! Random histories beside a model: a list of whole states for each execution, which no store is.
//!
//! ```
//! use retake::testkit::histories::acts;
//! use proptest::strategy::{Strategy, ValueTree};
//! use proptest::test_runner::TestRunner;
//!
//! let history = acts(20).new_tree(&mut TestRunner::deterministic()).unwrap().current();
//! assert!(history.len() <= 20);
//! // With a harness of the store: run_history(&harness, &history).await
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use serde_json::Value;

use super::Harness;
use super::feed;
use super::trial::{WORKFLOW, history};
use crate::clock::{Clock, ManualClock};
use crate::execution::{
    ExecutionContext, ExecutionId, ExecutionResult, NodeExecutionResult, NodeId, WorkflowId,
};
use crate::store::{
    self, Cause, Commit, Delta, FeedPage, MemoryStore, NewCheckpoint, NewExecution, NewWorkflow, Origin, Seq,
    Since, Store, StoreError, StoreExt,
};

/// How many variables and nodes the acts choose from: few, so that they meet.
const NAMES: usize = 5;

/// How many workflows there are to run.
const WORKFLOWS: usize = 4;

/// One step of a random history. Points are chosen modulo the points there are.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sets a variable in the state that is to be committed.
    Set(usize, Value),
    /// Removes a variable from it.
    Remove(usize),
    /// Appends to a variable, where it can be appended to.
    Append(usize, Value),
    /// Records a node's output.
    Node(usize, Value),
    /// Commits the state.
    Commit {
        /// Whether under a label.
        labelled: bool,
        /// The workflow that the execution runs from then on, where that changes.
        workflow: Option<usize>,
    },
    /// Makes an older point's state the head.
    Rollback {
        /// The point.
        to: usize,
        /// The point that the delta starts from, where it is another.
        base: Option<usize>,
    },
    /// Makes the state that is to be committed follow an older point.
    Replace {
        /// The point.
        after: usize,
        /// The point that the delta starts from, where it is another.
        base: Option<usize>,
    },
    /// Prunes.
    Prune {
        /// How many points to keep.
        keep: usize,
    },
    /// Goes on in a fork; the execution that it comes from stays as it is.
    Fork {
        /// The point.
        at: usize,
    },
    /// Deletes an execution, unless it is the one that is being advanced.
    Delete {
        /// The execution.
        execution: usize,
    },
    /// Takes an execution out of the store and puts it back.
    Move {
        /// The execution.
        execution: usize,
        /// Whether it was in a store in memory meanwhile.
        through_memory: bool,
    },
    /// Opens the store anew.
    Reopen,
    /// Compacts the store.
    Compact,
}

/// Returns random histories of at most `acts_max` acts.
pub fn acts(acts_max: usize) -> impl Strategy<Value = Vec<Act>> {
    let point = 0..40_usize;
    let act = prop_oneof![
        3 => (0..NAMES, value()).prop_map(|(name, value)| Act::Set(name, value)),
        1 => (0..NAMES).prop_map(Act::Remove),
        6 => (0..NAMES, value()).prop_map(|(name, value)| Act::Append(name, value)),
        2 => (0..NAMES, value()).prop_map(|(name, value)| Act::Node(name, value)),
        8 => (any::<u8>(), option::weighted(0.1, 0..WORKFLOWS))
            .prop_map(|(dice, workflow)| Act::Commit { labelled: dice < 32, workflow }),
        3 => (point.clone(), option::of(point.clone())).prop_map(|(to, base)| Act::Rollback { to, base }),
        2 => (point.clone(), option::of(point.clone())).prop_map(|(after, base)| Act::Replace { after, base }),
        1 => (0..8_usize).prop_map(|keep| Act::Prune { keep }),
        1 => point.prop_map(|at| Act::Fork { at }),
        1 => (0..4_usize).prop_map(|execution| Act::Delete { execution }),
        1 => (0..4_usize, any::<bool>())
            .prop_map(|(execution, through_memory)| Act::Move { execution, through_memory }),
        1 => Just(Act::Reopen),
        1 => Just(Act::Compact),
    ];
    vec(act, 0..=acts_max)
}

/// Returns random JSON values, a few levels deep.
pub fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[ -~]{0,300}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Plays a history on an empty store, and compares every point of it with the model.
///
/// # Panics
/// Where they differ.
pub async fn run_history(harness: &dyn Harness, acts: &[Act]) {
    let mut play = Play::begin(harness).await;
    for act in acts {
        play.act(harness, act).await;
    }
    play.store = harness.open().await;
    play.compare().await;
    play.follow().await;
}

/// A store, and what should be in it.
struct Play {
    store: Arc<dyn Store>,
    clock: ManualClock,
    /// The last one is being advanced.
    lines: Vec<Line>,
    /// The state that is to be committed.
    next: ExecutionContext,
    /// Where whoever follows along has read to.
    followed: Since,
    /// What is there and has not been read yet.
    unread: Vec<(ExecutionId, Seq)>,
}

/// The model of one execution.
struct Line {
    id: ExecutionId,
    /// That of point `@n` stands at n - 1.
    points: Vec<Modelled>,
    pruned: BTreeSet<Seq>,
    /// The workflows that it ever ran.
    ever_run: BTreeSet<WorkflowId>,
}

struct Modelled {
    parent: Option<Seq>,
    label: Option<String>,
    workflow: WorkflowId,
    state: ExecutionContext,
}

impl Line {
    fn head(&self) -> Seq {
        self.points.len() as u64
    }

    fn workflow(&self) -> WorkflowId {
        self.points.last().expect("every execution begins with a point").workflow
    }

    fn point(&self, chosen: usize) -> (Seq, &Modelled) {
        let index = chosen % self.points.len();
        (index as u64 + 1, &self.points[index])
    }

    /// Returns the points that are there, newest first.
    fn kept(&self) -> Vec<(Seq, &Modelled)> {
        let numbered = (1..).zip(&self.points).filter(|(seq, _)| !self.pruned.contains(seq));
        let mut kept: Vec<_> = numbered.collect();
        kept.reverse();
        kept
    }
}

impl Play {
    async fn begin(harness: &dyn Harness) -> Self {
        let clock = ManualClock::default();
        let next = ExecutionContext::with_id(clock.new_id(), WORKFLOW, clock.now());
        let mut play = Self {
            store: harness.open().await,
            clock,
            lines: Vec::new(),
            next,
            followed: Since::Start,
            unread: Vec::new(),
        };
        let first = play.checkpoint(None, &play.next);
        play.create(None, WORKFLOW, first).await;
        play
    }

    async fn act(&mut self, harness: &dyn Harness, act: &Act) {
        match act {
            Act::Set(name, value) => self.next.set_variable(variable(*name), value.clone()),
            Act::Remove(name) => {
                self.next.variables.remove(&variable(*name));
            }
            Act::Append(name, value) => {
                // A refused append leaves the state as it was, which the comparison sees.
                self.next.append(&variable(*name), value.clone()).ok();
            }
            Act::Node(name, value) => {
                let result = ExecutionResult::Success(value.clone());
                let node = NodeExecutionResult::started(self.clock.now()).completed(result, self.clock.now());
                self.next.record_node_result(NodeId::from_u128(*name as u128), node);
            }
            Act::Commit { labelled, workflow } => {
                let line = self.line();
                let mut checkpoint =
                    self.checkpoint(line.points.last().map(|point| &point.state), &self.next);
                checkpoint.label = labelled.then(|| format!("label {}", line.head()));
                checkpoint.workflow = workflow.map(new_workflow);
                self.commit(checkpoint, self.next.clone()).await;
            }
            Act::Rollback { to, base } => {
                let state = self.line().point(*to).1.state.clone();
                let checkpoint = self.after(*to, *base, &state);
                assert!(base.is_some() || checkpoint.delta == Delta::default());
                self.commit(checkpoint, state).await;
            }
            Act::Replace { after, base } => {
                let checkpoint = self.after(*after, *base, &self.next);
                self.commit(checkpoint, self.next.clone()).await;
            }
            Act::Prune { keep } => self.prune(*keep).await,
            Act::Fork { at } => self.fork(*at).await,
            Act::Delete { execution } => self.delete(*execution).await,
            Act::Move { execution, through_memory } => {
                self.move_away_and_back(*execution, *through_memory).await
            }
            Act::Reopen => {
                self.store = harness.open().await;
                self.follow().await;
            }
            Act::Compact => {
                self.store.compact().await.expect("compacted");
                self.compare().await;
                self.compare_unneeded_workflows().await;
            }
        }
    }

    /// Returns a checkpoint that follows an older point, with the delta from the base to a state.
    fn after(&self, parent: usize, base: Option<usize>, state: &ExecutionContext) -> NewCheckpoint {
        let (parent_seq, parent) = self.line().point(parent);
        let base = base.map(|base| self.line().point(base));
        let start = base.map_or(parent, |(_, point)| point);
        NewCheckpoint {
            parent: Some(parent_seq),
            base: base.map(|(seq, _)| seq),
            ..self.checkpoint(Some(&start.state), state)
        }
    }

    /// Commits on the head, unless the parent or the base has been pruned.
    async fn commit(&mut self, checkpoint: NewCheckpoint, state: ExecutionContext) {
        let line = self.line();
        let (execution_id, expected_head) = (line.id, line.head());
        let parent = checkpoint.parent.unwrap_or(expected_head);
        let needed = [parent, checkpoint.base.unwrap_or(parent)];
        let gone = needed.into_iter().find(|seq| line.pruned.contains(seq));
        let label = checkpoint.label.clone();
        let workflow = checkpoint.workflow.as_ref().map_or(line.workflow(), |workflow| workflow.id);
        let result = self.store.commit(Commit { execution_id, expected_head, fence: None, checkpoint }).await;
        if let Some(gone) = gone {
            let refused = matches!(result, Err(StoreError::Pruned { seq, .. }) if seq == gone);
            assert!(refused, "needs @{gone}, pruned: {result:?}");
            return;
        }
        assert_eq!(result.expect("committed").seq, expected_head + 1);
        self.next = state.clone();
        self.unread.push((execution_id, expected_head + 1));
        let line = self.line_mut();
        line.ever_run.insert(workflow);
        line.points.push(Modelled { parent: Some(parent), label, workflow, state });
    }

    async fn prune(&mut self, keep: usize) {
        let line = self.line_mut();
        let surplus = line.kept().into_iter().skip(keep.max(1));
        let gone: Vec<_> = surplus.filter(|(_, point)| point.label.is_none()).map(|(seq, _)| seq).collect();
        let (id, expected) = (line.id, gone.len());
        line.pruned.extend(&gone);
        self.unread.retain(|(of, seq)| *of != id || !gone.contains(seq));
        assert_eq!(self.store.prune(id, keep).await.expect("pruned"), expected);
    }

    async fn fork(&mut self, at: usize) {
        let line = self.line();
        let (seq, point) = line.point(at);
        if line.pruned.contains(&seq) {
            return;
        }
        let origin = Origin { execution_id: line.id, seq };
        let (before, workflow) = (point.state.clone(), point.workflow);
        self.next = ExecutionContext { execution_id: self.clock.new_id(), ..before.clone() };
        let first = self.checkpoint(Some(&before), &self.next);
        self.create(Some(origin), workflow, first).await;
    }

    /// Creates an execution of a workflow whose definition the store has, or does without.
    async fn create(&mut self, origin: Option<Origin>, workflow: WorkflowId, first: NewCheckpoint) {
        let id = self.next.execution_id;
        let (name, workflow_name) = (id.to_string(), "article".to_owned());
        let definition = Vec::new();
        let new = NewExecution { id, name, workflow_id: workflow, workflow_name, definition, origin };
        self.store.create(new, first).await.expect("created");
        let first = Modelled { parent: None, label: None, workflow, state: self.next.clone() };
        let ever_run = BTreeSet::from([workflow]);
        self.unread.push((id, 1));
        self.lines.push(Line { id, points: vec![first], pruned: BTreeSet::new(), ever_run });
    }

    async fn delete(&mut self, chosen: usize) {
        let Some(others @ 1..) = self.lines.len().checked_sub(1) else { return };
        if chosen.is_multiple_of(2) {
            // Whoever has read its points has to see what comes in their place.
            self.follow().await;
        }
        let line = self.lines.remove(chosen % others);
        self.unread.retain(|(of, _)| *of != line.id);
        assert_eq!(self.store.delete(line.id).await.expect("deleted"), line.kept().len());
    }

    async fn move_away_and_back(&mut self, chosen: usize, through_memory: bool) {
        let id = self.lines[chosen % self.lines.len()].id;
        let mut moving = self.store.export(id).await.expect("exported");
        if through_memory {
            let elsewhere = MemoryStore::new();
            elsewhere.import(moving).await.expect("imported");
            moving = elsewhere.export(id).await.expect("exported");
        }
        self.store.delete(id).await.expect("deleted");
        self.unread.retain(|(of, _)| *of != id);
        self.unread.extend(moving.points.iter().map(|point| (id, point.record.seq)));
        self.store.import(moving).await.expect("imported");
    }

    fn checkpoint(&self, before: Option<&ExecutionContext>, after: &ExecutionContext) -> NewCheckpoint {
        let (id, now) = (self.clock.new_id(), self.clock.now());
        NewCheckpoint {
            delta: store::delta(before, after, |_| None).expect("a storable state"),
            compress: self.lines.len() % 2 == 1,
            ..NewCheckpoint::new(id, now, after.state.clone(), Cause::Manual)
        }
    }

    async fn compare(&self) {
        for line in &self.lines {
            let found = history(&*self.store, line.id).await;
            let found: Vec<_> =
                found.iter().map(|r| (r.seq, r.parent, r.label.as_ref(), r.workflow_id)).collect();
            let kept = line.kept();
            let expected: Vec<_> = kept
                .iter()
                .map(|(seq, point)| (*seq, point.parent, point.label.as_ref(), point.workflow))
                .collect();
            assert_eq!(found, expected);
            assert_eq!(self.store.require(line.id).await.expect("a look").workflow_id, line.workflow());
            for (seq, point) in kept {
                let found = self.store.context(line.id, seq).await.expect("a state");
                assert_eq!(found, point.state, "@{seq} of {}", line.id);
            }
            for seq in &line.pruned {
                let found = self.store.state(line.id, *seq).await;
                assert!(matches!(found, Err(StoreError::Pruned { .. })), "@{seq}, pruned: {found:?}");
            }
        }
        for id in self.needed_workflows() {
            let definition = (id != WORKFLOW).then(|| id.as_bytes().to_vec());
            assert_eq!(self.store.workflow(id).await.expect("a look"), definition, "workflow {id}");
        }
        assert_eq!(self.store.check().await.expect("a report").problems, Vec::<String>::new());
    }

    /// Reads what has come since it was last read, as one who was told nothing else.
    async fn follow(&mut self) {
        let asked = FeedPage { since: self.followed, execution: None, limit: 3 };
        let (points, next) = feed::read(&*self.store, asked, self.unread.len()).await;
        assert_eq!(feed::places(&points), self.unread);
        self.unread.clear();
        self.followed = Since::After(next);
    }

    async fn compare_unneeded_workflows(&self) {
        let needed = self.needed_workflows();
        for id in (0..WORKFLOWS).map(workflow_id).filter(|id| !needed.contains(id)) {
            assert_eq!(
                self.store.workflow(id).await.expect("a look"),
                None,
                "workflow {id}, which nobody ran"
            );
        }
    }

    /// Returns what any execution ever ran, of those that are there.
    fn needed_workflows(&self) -> BTreeSet<WorkflowId> {
        self.lines.iter().flat_map(|line| &line.ever_run).copied().collect()
    }

    fn line(&self) -> &Line {
        self.lines.last().expect("an execution is created at the beginning")
    }

    fn line_mut(&mut self) -> &mut Line {
        self.lines.last_mut().expect("an execution is created at the beginning")
    }
}

fn workflow_id(chosen: usize) -> WorkflowId {
    WorkflowId::from_u128(1 + chosen as u128)
}

fn new_workflow(chosen: usize) -> NewWorkflow {
    let id = workflow_id(chosen);
    NewWorkflow { id, name: format!("workflow {chosen}"), definition: id.as_bytes().to_vec() }
}

fn variable(name: usize) -> String {
    format!("variable {name}")
}
