//! One execution and its model, taken through the same changes and compared after each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use retake::engine::{
    Edit, Engine, Extent, Fork, NodeContext, NodeError, Plan, Redefine, Registry, Resume, Rollback, Start,
};
use retake::execution::{ExecutionId, ExecutionResult, TokenUsage, node_id};
use retake::store::{Cause, HistoryPage, MemoryStore, NewOperation, Seq, StoreExt};
use serde_json::{Value, json};

use crate::concern::{Concern, concerned};
use crate::flow::{Deed, Flow, NUMBERS, Source, Step, VARIABLES, node, variable};
use crate::model::{Model, Status};

/// What may be changed, with places that stand for whatever there is then.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Variables get these values, and maybe a node another output.
    Edit {
        set: BTreeMap<usize, u64>,
        output: Option<(usize, u64)>,
    },
    Rollback {
        target: usize,
        is_linear: bool,
        set: Option<(usize, u64)>,
    },
    Fork {
        target: usize,
        set: BTreeMap<usize, u64>,
    },
    Redefine(Vec<Redefinition>),
}

#[derive(Debug, Clone)]
pub(crate) enum Redefinition {
    Remove(usize),
    Replace(usize, Step),
    Add(usize, Step),
    Default(usize, u64),
}

pub(crate) struct Trial {
    engine: Engine,
    id: ExecutionId,
    journal: Arc<Mutex<Vec<u16>>>,
    model: Model,
    /// The model as it was at every point.
    points: BTreeMap<Seq, Model>,
    /// Whether nodes can have been sent back that are not to be spared.
    is_exact: bool,
}

/// What a change left to run.
struct Left {
    /// Nodes that may run.
    open: BTreeSet<u16>,
    /// What going back wholly would lead to.
    linear: Option<Model>,
}

pub(crate) fn value(index: usize, number: u64) -> Value {
    if index < NUMBERS { json!(number) } else { json!([number]) }
}

fn values(set: &BTreeMap<usize, u64>) -> BTreeMap<String, Value> {
    set.iter().map(|(index, number)| (variable(*index), value(*index, *number))).collect()
}

fn key(name: &str) -> u16 {
    name.trim_start_matches('n').parse().unwrap()
}

fn keys<'n>(names: impl IntoIterator<Item = &'n String>) -> BTreeSet<u16> {
    names.into_iter().map(|name| key(name)).collect()
}

pub(crate) fn somebody() -> NewOperation {
    NewOperation { who: "tester".into(), command: "test".into() }
}

/// Returns the handler of every node, which notes who ran.
pub(crate) fn registry(journal: &Arc<Mutex<Vec<u16>>>) -> Registry {
    let journal = Arc::clone(journal);
    Registry::new().with("step", move |ctx| take_step(ctx, Arc::clone(&journal)))
}

async fn take_step(ctx: NodeContext, journal: Arc<Mutex<Vec<u16>>>) -> Result<u64, NodeError> {
    journal.lock().unwrap().push(key(ctx.node()));
    let mut with = ctx.parameters()?;
    let step: Step = serde_json::from_value(with["step"].take()).unwrap();
    let mut seen: Vec<Value> = with["seen"].as_array().unwrap().clone();
    seen.extend(step.looks.iter().map(|source| match source {
        Source::Variable(index) => ctx.variable(&variable(*index)).unwrap_or_default(),
        Source::Node(key) => ctx.output(&node(*key)).unwrap_or_default(),
    }));
    ctx.spent(TokenUsage { total_tokens: 1, ..TokenUsage::default() }, Some(0.5));
    let act = step.act(&seen);
    for deed in &step.deeds {
        match deed {
            Deed::Set(index) => ctx.set_variable(&variable(*index), json!(act.value)),
            Deed::Remove => ctx.remove_variable(&variable(NUMBERS - 1)),
            Deed::Append(index) => ctx.append(&variable(*index), json!(act.value))?,
            Deed::Extend(index) => {
                ctx.append(&variable(*index), json!(act.value))?;
                seen.push(ctx.variable(&variable(*index)).unwrap_or_default());
            }
        }
    }
    if act.fails { Err(NodeError::permanent("it read what it fails at")) } else { Ok(step.output(&seen)) }
}

impl Trial {
    pub(crate) async fn start(flow: Flow) -> Result<Self, TestCaseError> {
        let journal = Arc::new(Mutex::new(Vec::new()));
        let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry(&journal));
        let run = engine.start(Arc::new(flow.workflow()), Start::default()).await.unwrap();
        let id = run.execution_id();
        let model = Model::new(flow);
        let points = BTreeMap::from([(1, model.clone())]);
        let mut trial = Self { engine, id, journal, model, points, is_exact: true };
        run.drive().await.unwrap();
        let left = Left { open: trial.model.flow.steps.keys().copied().collect(), linear: None };
        trial.compare(left).await?;
        Ok(trial)
    }

    async fn head(&self) -> Seq {
        self.engine.store().require(self.id).await.unwrap().head
    }

    /// Runs what a change left, and compares.
    async fn resume(&mut self, left: Left) -> Result<(), TestCaseError> {
        self.engine.resume(self.id, Resume::default()).await.unwrap().drive().await.unwrap();
        self.compare(left).await
    }

    async fn compare(&mut self, left: Left) -> Result<(), TestCaseError> {
        let ran = std::mem::take(&mut *self.journal.lock().unwrap());
        prop_assert!(ran.iter().all(|key| left.open.contains(key)), "{:?} ran, of {:?}", ran, left.open);
        let mut growing = self.model.clone();
        let expected = self.model.run();
        if self.is_exact {
            prop_assert_eq!(ran, expected, "nodes ran that others were expected to");
        }
        let ctx = self.engine.store().context(self.id, self.head().await).await.unwrap();
        for key in self.model.flow.steps.keys() {
            let found = ctx.get_node_result(&node_id(&node(*key))).map(|result| match &result.result {
                ExecutionResult::Success(output) => (Status::Success, output.clone()),
                ExecutionResult::Failure(_) => (Status::Failure, Value::Null),
                ExecutionResult::Skipped => (Status::Skipped, Value::Null),
                ExecutionResult::Pending => panic!("nothing here waits"),
            });
            let should = self.model.gave.get(key).map(|gave| (gave.status, gave.output.clone()));
            prop_assert_eq!(found, should, "node {}", key);
        }
        for index in 0..VARIABLES {
            let should = self.model.variable(index, u64::MAX);
            prop_assert_eq!(ctx.get_variable(&variable(index)), should.as_ref(), "variable {}", index);
        }
        prop_assert_eq!(self.model.flaw(), None);
        if let Some(linear) = left.linear {
            for (key, gave) in &linear.gave {
                let found = &self.model.gave[key];
                prop_assert_eq!((found.status, &found.output), (gave.status, &gave.output), "linear {}", key);
            }
        }
        // What every point on the way held.
        let known = *self.points.keys().next_back().unwrap();
        let mut history = self.engine.store().history(self.id, HistoryPage::default()).await.unwrap();
        history.retain(|record| record.seq > known);
        for record in history.iter().rev() {
            if record.cause == Cause::Resume {
                growing.forget_failures();
            }
            for key in keys(&record.nodes) {
                growing.take_over(key, &self.model);
            }
            self.points.insert(record.seq, growing.clone());
        }
        prop_assert_eq!(&growing.gave, &self.model.gave);
        Ok(())
    }

    /// Checks what holds for every plan. Returns the nodes that it keeps, and the others.
    async fn check(&self, plan: &Plan, head: Seq) -> Result<(BTreeSet<u16>, BTreeSet<u16>), TestCaseError> {
        prop_assert_eq!(self.head().await, head, "planning is pure");
        let keep = keys(&plan.keep);
        let mut open = keys(plan.rerun.iter().map(|rerun| &rerun.node));
        prop_assert!(open.is_disjoint(&keys(&plan.pending)));
        open.extend(keys(&plan.pending));
        prop_assert!(keep.is_disjoint(&open));
        Ok((keep, open))
    }

    /// Checks that whoever stays had seen the value that a variable gets, or an earlier one than it has.
    fn check_readers(&self, set: &BTreeMap<usize, u64>, keep: &BTreeSet<u16>) -> Result<(), TestCaseError> {
        for (index, number) in set {
            for key in keep {
                let gave = &self.model.gave[key];
                let Some(seen) = gave.seen.get(&Source::Variable(*index)) else { continue };
                let is_earlier = self.model.last_change(*index) >= gave.at;
                prop_assert!(
                    is_earlier || *seen == value(*index, *number),
                    "{} stays, and saw {} of variable {}",
                    key,
                    seen,
                    index
                );
            }
        }
        Ok(())
    }

    fn set(&mut self, set: &BTreeMap<usize, u64>) {
        for (index, number) in set {
            let value = value(*index, *number);
            if self.model.variable(*index, u64::MAX).as_ref() != Some(&value) {
                self.model.set(*index, value);
            }
        }
    }

    /// Makes a change, and runs what it left unless something else is to change first. Returns false where there is
    /// nothing to change, or nothing to compare with any more.
    pub(crate) async fn change(&mut self, change: &Change, resumes: bool) -> Result<bool, TestCaseError> {
        let left = match change {
            Change::Edit { set, output } => self.edit(set, *output).await?,
            Change::Rollback { target, is_linear, set } => {
                let target = *self.points.keys().nth(target % self.points.len()).unwrap();
                self.rollback(target, *is_linear, *set).await?
            }
            Change::Fork { target, set } => {
                let target = *self.points.keys().nth(target % self.points.len()).unwrap();
                self.fork(target, set).await?
            }
            Change::Redefine(changes) => self.redefine(changes).await?,
        };
        let Some(left) = left else { return Ok(false) };
        self.points.insert(self.head().await, self.model.clone());
        if resumes {
            self.resume(left).await?;
        }
        Ok(true)
    }

    async fn edit(
        &mut self,
        set: &BTreeMap<usize, u64>,
        output: Option<(usize, u64)>,
    ) -> Result<Option<Left>, TestCaseError> {
        let given: Vec<u16> = self.model.successes();
        let output = output.filter(|_| !given.is_empty());
        let output = output.map(|(at, number)| (given[at % given.len()], json!(number)));
        let outputs = output.iter().map(|(key, output)| (node(*key), output.clone())).collect();
        let request = Edit { set: values(set), outputs, ..Edit::default() };
        let head = self.head().await;
        let plan = self.engine.plan_edit(self.id, &request).await.unwrap();
        let again = self.engine.plan_edit(self.id, &request).await.unwrap();
        prop_assert_eq!(json!(plan), json!(again), "planning twice gives the same");
        let (keep, open) = self.check(&plan, head).await?;
        self.check_concerned(&Concern { set: set.clone(), output: output.clone() }, &plan)?;
        let mut unedited = keep.clone();
        unedited.retain(|key| output.as_ref().is_none_or(|(edited, _)| edited != key));
        self.check_readers(set, &unedited)?;
        self.engine.apply(plan, somebody()).await.unwrap();
        self.model.send_back(&open);
        if let Some((key, output)) = output {
            self.model.edit(key, output);
        }
        self.set(set);
        Ok(Some(Left { open, linear: None }))
    }

    /// Checks that exactly those run again whom the change concerns.
    fn check_concerned(&self, concern: &Concern, plan: &Plan) -> Result<(), TestCaseError> {
        // One that failed runs again whatever changes.
        let gave_something = |key: &u16| {
            let gave = self.model.gave.get(key);
            gave.is_some_and(|gave| gave.status != Status::Failure || self.model.flow.steps[key].is_tolerated)
        };
        let mut rerun = keys(plan.rerun.iter().map(|rerun| &rerun.node));
        let mut should = concerned(&self.model, concern);
        rerun.retain(gave_something);
        should.retain(gave_something);
        prop_assert_eq!(rerun, should);
        Ok(())
    }

    async fn rollback(
        &mut self,
        target: Seq,
        is_linear: bool,
        set: Option<(usize, u64)>,
    ) -> Result<Option<Left>, TestCaseError> {
        let set: BTreeMap<usize, u64> = set.into_iter().collect();
        let extent = if is_linear { Extent::Linear } else { Extent::Affected };
        let request = Rollback { set: values(&set), extent, ..Rollback::default() };
        let head = self.head().await;
        let plan = self.engine.plan_rollback(self.id, target, &request).await.unwrap();
        let (keep, open) = self.check(&plan, head).await?;
        let mut then = self.points[&target].clone();
        if !is_linear && self.model.has_edited_since(&then) {
            return Ok(None);
        }
        // An edited output that is sent back may be spared, and is lost otherwise: both are right.
        let is_edited = |key: &u16| then.gave.get(key).is_some_and(|gave| gave.is_edited);
        if !is_linear && open.iter().any(is_edited) {
            return Ok(None);
        }
        then.now = self.model.now;
        let mut linear = then.clone();
        linear.run();
        for key in &keep {
            if let (None, Some(gave)) = (then.gave.get(key), self.model.gave.get(key)) {
                then.gave.insert(*key, gave.clone());
            }
        }
        self.engine.apply(plan, somebody()).await.unwrap();
        self.model = then;
        self.is_exact = false;
        self.check_readers(&set, &keep)?;
        self.model.send_back(&open);
        self.set(&set);
        Ok(Some(Left { open, linear: set.is_empty().then_some(linear) }))
    }

    async fn fork(&mut self, target: Seq, set: &BTreeMap<usize, u64>) -> Result<Option<Left>, TestCaseError> {
        let head = self.head().await;
        let request = Fork { set: values(set), ..Fork::default() };
        let plan = self.engine.plan_fork(self.id, target, &request).await.unwrap();
        self.model = self.points[&target].clone();
        let (keep, open) = self.check(&plan, head).await?;
        self.check_concerned(&Concern { set: set.clone(), output: None }, &plan)?;
        self.check_readers(set, &keep)?;
        self.id = self.engine.fork(plan, None, somebody()).await.unwrap().execution;
        self.points.clear();
        self.model.send_back(&open);
        self.set(set);
        Ok(Some(Left { open, linear: None }))
    }

    async fn redefine(&mut self, changes: &[Redefinition]) -> Result<Option<Left>, TestCaseError> {
        let mut flow = self.model.flow.clone();
        for change in changes {
            let at = |place: usize| flow.steps.keys().nth(place % flow.steps.len().max(1)).copied();
            match change {
                Redefinition::Remove(place) if flow.steps.len() > 1 => {
                    let key = at(*place).unwrap();
                    flow.steps.remove(&key);
                }
                Redefinition::Remove(_) => {}
                Redefinition::Replace(place, step) => {
                    let key = at(*place).unwrap();
                    flow.steps.insert(key, step.clone());
                }
                Redefinition::Add(place, step) => {
                    let key = at(*place).unwrap() + 1;
                    flow.steps.entry(key).or_insert_with(|| step.clone());
                }
                Redefinition::Default(index, number) => flow.first[*index] = value(*index, *number),
            }
        }
        // What is written now may not have been: who reads it must say so.
        flow.steps.values_mut().for_each(|step| step.is_loose = false);
        flow.declare();
        let head = self.head().await;
        let request = Redefine { workflow: flow.workflow(), effects: Default::default() };
        let plan = self.engine.plan_redefinition(self.id, request).await.unwrap();
        let (_, open) = self.check(&plan, head).await?;
        self.engine.apply(plan, somebody()).await.unwrap();
        self.is_exact = false;
        self.model.send_back(&open);
        self.model.redefine(flow);
        Ok(Some(Left { open, linear: None }))
    }
}
