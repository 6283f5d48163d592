//! The smallest histories in which a plan once kept, forgot or repeated the wrong thing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{
    Edit, Engine, Extent, NodeContext, NodeError, Plan, Redefine, Registry, Resume, Rollback, Start,
};
use retake::execution::{ExecutionContext, ExecutionId, ExecutionResult, node_id};
use retake::store::{MemoryStore, NewOperation, Seq, StoreExt};
use retake::workflow::{Builder, Node, OnError, Workflow};
use serde_json::{Value, json};

/// An execution on a store of its own, with a journal of what ran.
struct Subject {
    engine: Engine,
    id: ExecutionId,
    journal: Arc<Mutex<Vec<String>>>,
}

impl Subject {
    async fn run(builder: Builder) -> Self {
        let journal = Arc::new(Mutex::new(Vec::new()));
        let engine = Engine::new(Arc::new(MemoryStore::new())).with_registry(registry(&journal));
        let run = engine.start(Arc::new(built(builder)), Start::default()).await.unwrap();
        let id = run.execution_id();
        run.drive().await.unwrap();
        let subject = Self { engine, id, journal };
        subject.ran();
        subject
    }

    fn ran(&self) -> Vec<String> {
        std::mem::take(&mut *self.journal.lock().unwrap())
    }

    async fn resume(&self) -> Vec<String> {
        self.engine.resume(self.id, Resume::default()).await.unwrap().drive().await.unwrap();
        self.ran()
    }

    async fn apply(&self, plan: Plan) -> Seq {
        let operation = NewOperation { who: "tester".into(), command: "test".into() };
        self.engine.apply(plan, operation).await.unwrap()
    }

    async fn edit(&self, edit: Edit) -> Plan {
        self.engine.plan_edit(self.id, &edit).await.unwrap()
    }

    async fn rollback(&self, target: Seq, rollback: Rollback) -> Plan {
        self.engine.plan_rollback(self.id, target, &rollback).await.unwrap()
    }

    async fn redefine(&self, builder: Builder) -> Plan {
        let workflow = built(builder);
        let request = Redefine { workflow, effects: Default::default() };
        self.engine.plan_redefinition(self.id, request).await.unwrap()
    }

    async fn state(&self) -> ExecutionContext {
        let head = self.engine.store().require(self.id).await.unwrap().head;
        self.engine.store().context(self.id, head).await.unwrap()
    }

    async fn output(&self, node: &str) -> Option<Value> {
        self.state().await.get_node_result(&node_id(node)).and_then(|result| result.output().cloned())
    }

    async fn variable(&self, name: &str) -> Option<Value> {
        self.state().await.get_variable(name).cloned()
    }
}

fn built(builder: Builder) -> Workflow {
    let checkpoints = CheckpointConfig {
        frequency: CheckpointFrequency::Always,
        max_checkpoints: 1_000,
        ..CheckpointConfig::default()
    };
    builder.checkpoints(checkpoints).max_parallel(1).build().unwrap()
}

fn registry(journal: &Arc<Mutex<Vec<String>>>) -> Registry {
    let note = |journal: &Arc<Mutex<Vec<String>>>, ctx: &NodeContext| {
        journal.lock().unwrap().push(ctx.node().to_owned());
    };
    let (gives, looks, adds, same) = (journal.clone(), journal.clone(), journal.clone(), journal.clone());
    Registry::new()
        .with("give", move |ctx: NodeContext| {
            note(&gives, &ctx);
            async move { Ok::<_, NodeError>(ctx.parameters()?) }
        })
        // Gives the same whatever it is given.
        .with("same", move |ctx: NodeContext| {
            note(&same, &ctx);
            async move { ctx.parameters().map(|_| "same").map_err(NodeError::from) }
        })
        // Gives the variable that it is given the name of, or the output of the node.
        .with("look", move |ctx: NodeContext| {
            note(&looks, &ctx);
            async move {
                let with = ctx.parameters()?;
                let name = |key: &str| with.get(key).and_then(Value::as_str).map(str::to_owned);
                let seen = match name("variable") {
                    Some(variable) => ctx.variable(&variable),
                    None => name("node").and_then(|node| ctx.output(&node)),
                };
                Ok::<_, NodeError>(seen)
            }
        })
        // Appends to `list`, and gives how long it is then.
        .with("add", move |ctx: NodeContext| {
            note(&adds, &ctx);
            async move {
                ctx.append("list", json!(ctx.node()))?;
                Ok::<_, NodeError>(ctx.variable("list").and_then(|list| list.as_array().map(Vec::len)))
            }
        })
}

fn give(value: Value) -> Node {
    Node::call("give").with(value)
}

fn look(variable: &str) -> Node {
    Node::call("look").with(json!({ "variable": variable }))
}

fn set(name: &str, value: Value) -> BTreeMap<String, Value> {
    BTreeMap::from([(name.to_owned(), value)])
}

fn again(plan: &Plan) -> Vec<&str> {
    plan.rerun.iter().map(|rerun| rerun.node.as_str()).collect()
}

#[tokio::test]
async fn a_node_that_was_to_run_again_is_not_spared_once_its_definition_is_another() {
    let flow = |word: &str| {
        Workflow::builder("flow")
            .var("u", json!(1))
            .node("a", Node::call("same").with(json!("${{ vars.u }}")))
            .node("b", give(json!(word)).needs(["a"]))
    };
    let subject = Subject::run(flow("old")).await;
    let plan = subject.edit(Edit { set: set("u", json!(2)), ..Edit::default() }).await;
    assert_eq!(again(&plan), ["a", "b"]);
    subject.apply(plan).await;
    let plan = subject.redefine(flow("new")).await;
    subject.apply(plan).await;
    assert_eq!(subject.resume().await, ["a", "b"]);
    assert_eq!(subject.output("b").await, Some(json!("new")));
}

#[tokio::test]
async fn a_variable_set_on_the_way_back_is_set_though_it_is_that_already_at_the_head() {
    let flow = Workflow::builder("flow")
        .var("v", json!(1))
        .node("a", give(json!("a")))
        .node("b", look("v").needs(["a"]));
    let subject = Subject::run(flow).await;
    let plan = subject.edit(Edit { set: set("v", json!(2)), ..Edit::default() }).await;
    subject.apply(plan).await;
    assert_eq!(subject.resume().await, ["b"]);
    // The edit came after @2, and would go.
    let plan = subject.rollback(2, Rollback { set: set("v", json!(2)), ..Rollback::default() }).await;
    subject.apply(plan).await;
    assert_eq!(subject.variable("v").await, Some(json!(2)));
    subject.resume().await;
    assert_eq!(subject.output("b").await, Some(json!(2)));
}

#[tokio::test]
async fn a_variable_set_on_the_way_back_concerns_what_had_read_it_before_a_node_that_goes_wrote_it() {
    let flow = Workflow::builder("flow")
        .var("v", json!(1))
        .node("a", look("v"))
        .node("b", give(json!(5)).needs(["a"]))
        .node("c", give(json!(6)).needs(["b"]).into("v"));
    let subject = Subject::run(flow).await;
    for extent in [Extent::Linear, Extent::Affected] {
        let request = Rollback { set: set("v", json!(2)), extent, ..Rollback::default() };
        let plan = subject.rollback(3, request).await;
        assert_eq!(again(&plan), ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn going_back_to_before_an_output_was_edited_brings_the_first_one_back() {
    let flow =
        Workflow::builder("flow").node("a", give(json!(1))).node("b", give(json!("${{ nodes.a.output }}")));
    let subject = Subject::run(flow).await;
    let outputs = set("a", json!(2));
    let plan = subject.edit(Edit { outputs, ..Edit::default() }).await;
    subject.apply(plan).await;
    subject.resume().await;
    assert_eq!(subject.output("b").await, Some(json!(2)));
    let plan = subject.rollback(2, Rollback::default()).await;
    subject.apply(plan).await;
    assert_eq!(subject.output("a").await, Some(json!(1)));
    subject.resume().await;
    assert_eq!(subject.output("b").await, Some(json!(1)));
}

#[tokio::test]
async fn going_back_to_a_node_brings_back_the_output_that_it_had_read() {
    let flow = Workflow::builder("flow")
        .node("a", give(json!(1)))
        .node("b", give(json!("${{ nodes.a.output }}")))
        .node("c", give(json!("${{ nodes.b.output }}")));
    let subject = Subject::run(flow).await;
    let plan = subject.edit(Edit { outputs: set("a", json!(2)), ..Edit::default() }).await;
    subject.apply(plan).await;
    subject.resume().await;
    let plan = subject.rollback(3, Rollback::default()).await;
    subject.apply(plan).await;
    subject.resume().await;
    let outputs = (subject.output("a").await, subject.output("b").await, subject.output("c").await);
    assert_eq!(outputs, (Some(json!(1)), Some(json!(1)), Some(json!(1))));
}

#[tokio::test]
async fn what_had_read_a_value_that_is_unset_on_the_way_back_runs_again() {
    let flow = Workflow::builder("flow")
        .var("v", json!(1))
        .node("a", give(json!(2)).into("v"))
        .node("b", give(json!("aside")).needs(["a"]))
        .node("c", look("v").needs(["a"]));
    let subject = Subject::run(flow).await;
    let plan = subject.edit(Edit { set: set("v", json!(9)), ..Edit::default() }).await;
    subject.apply(plan).await;
    assert_eq!(subject.resume().await, ["c"]);
    // @3 recorded `b`, which `c` has nothing to do with.
    let plan = subject.rollback(3, Rollback::default()).await;
    assert_eq!((plan.variables["v"].to.clone(), again(&plan)), (Some(json!(2)), vec!["c"]));
    subject.apply(plan).await;
    subject.resume().await;
    assert_eq!(subject.output("c").await, Some(json!(2)));
}

#[tokio::test]
async fn a_result_that_stands_again_runs_again_where_it_had_read_something_else() {
    let flow = Workflow::builder("flow")
        .var("u", json!(1))
        .node("a", give(json!("${{ vars.u }}")))
        .node("b", give(json!("${{ nodes.a.output }}")))
        .node("c", give(json!("${{ nodes.b.output }}")));
    let subject = Subject::run(flow).await;
    let plan = subject.edit(Edit { set: set("u", json!(2)), ..Edit::default() }).await;
    subject.apply(plan).await;
    subject.resume().await;
    let plan = subject.rollback(3, Rollback { set: set("u", json!(3)), ..Rollback::default() }).await;
    subject.apply(plan).await;
    subject.resume().await;
    let outputs = (subject.output("a").await, subject.output("b").await, subject.output("c").await);
    assert_eq!(outputs, (Some(json!(3)), Some(json!(3)), Some(json!(3))));
}

#[tokio::test]
async fn a_node_that_reads_a_list_after_it_appended_to_it_has_read_it() {
    let flow = Workflow::builder("flow").var("list", json!([])).node("a", Node::call("add"));
    let subject = Subject::run(flow).await;
    assert_eq!(subject.output("a").await, Some(json!(1)));
    let flow = Workflow::builder("flow").var("list", json!(["first"])).node("a", Node::call("add"));
    let plan = subject.redefine(flow).await;
    assert_eq!(again(&plan), ["a"]);
    subject.apply(plan).await;
    subject.resume().await;
    assert_eq!(subject.output("a").await, Some(json!(2)));
}

#[tokio::test]
async fn a_node_that_could_not_append_runs_again_where_the_variable_is_another() {
    let flow = |list: Value| {
        Workflow::builder("flow").var("list", list).node("a", Node::call("add").on_error(OnError::Continue))
    };
    let subject = Subject::run(flow(json!(1))).await;
    let failed = subject.state().await.get_node_result(&node_id("a")).unwrap().result.clone();
    assert!(matches!(failed, ExecutionResult::Failure(_)), "{failed:?}");
    let plan = subject.redefine(flow(json!([]))).await;
    assert_eq!(again(&plan), ["a"]);
}

#[tokio::test]
async fn an_edited_output_does_not_concern_what_had_looked_before_the_node_ran() {
    let flow = Workflow::builder("flow")
        .node("a", Node::call("look").with(json!({"node": "b"})))
        .node("b", give(json!(1)).needs(["a"]));
    let subject = Subject::run(flow).await;
    let plan = subject.edit(Edit { outputs: set("b", json!(2)), ..Edit::default() }).await;
    assert_eq!(again(&plan), Vec::<&str>::new());
}

#[tokio::test]
async fn what_stays_when_a_node_alone_goes_back_stays_after_the_next_change_too() {
    let flow = Workflow::builder("flow")
        .var("u", json!(1))
        .node("a", give(json!(["${{ vars.u }}"])).into("list"))
        .node("b", Node::call("add").needs(["a"]));
    let subject = Subject::run(flow).await;
    let plan = subject.edit(Edit { set: set("u", json!(2)), ..Edit::default() }).await;
    subject.apply(plan).await;
    subject.resume().await;
    assert_eq!(subject.variable("list").await, Some(json!([2, "b"])));
    let extent = Extent::Only { variables: Vec::new(), nodes: vec!["a".to_owned()] };
    let plan = subject.rollback(2, Rollback { extent, ..Rollback::default() }).await;
    assert!(plan.variables.is_empty());
    subject.apply(plan).await;
    assert_eq!(subject.variable("list").await, Some(json!([2, "b"])));
    let done = BTreeSet::new();
    let plan = subject.edit(Edit { outputs: set("b", json!(7)), done, ..Edit::default() }).await;
    assert_eq!(plan.variables, BTreeMap::new());
}

#[tokio::test]
async fn a_variable_that_no_node_wrote_yet_stays_when_a_node_alone_comes_back() {
    let flow = Workflow::builder("flow").var("v", json!(1)).node("a", give(json!(2)).into("v"));
    let subject = Subject::run(flow).await;
    let plan = subject.rollback(1, Rollback { extent: Extent::Linear, ..Rollback::default() }).await;
    subject.apply(plan).await;
    let extent = Extent::Only { variables: Vec::new(), nodes: vec!["a".to_owned()] };
    let plan = subject.rollback(2, Rollback { extent, ..Rollback::default() }).await;
    subject.apply(plan).await;
    assert_eq!(subject.variable("v").await, Some(json!(1)));
    let plan = subject.edit(Edit { outputs: set("a", json!(3)), ..Edit::default() }).await;
    assert_eq!(plan.variables, BTreeMap::new());
}

#[tokio::test]
async fn an_output_that_was_edited_comes_back_with_what_it_had_been_made_from() {
    let flow = Workflow::builder("flow")
        .var("u", json!(1))
        .node("a", give(json!("${{ vars.u }}")))
        .node("b", give(json!("${{ nodes.a.output }}")))
        .node("c", give(json!("aside")));
    let subject = Subject::run(flow).await;
    let edit = Edit { set: set("u", json!(2)), outputs: set("b", json!(7)), ..Edit::default() };
    let plan = subject.edit(edit).await;
    subject.apply(plan).await;
    assert_eq!(subject.resume().await, ["a"]);
    let plan = subject.rollback(3, Rollback::default()).await;
    assert_eq!((again(&plan), plan.keep.len()), (vec![], 3));
    subject.apply(plan).await;
    assert_eq!((subject.output("a").await, subject.output("b").await), (Some(json!(1)), Some(json!(1))));
}

#[tokio::test]
async fn going_back_to_a_node_brings_back_what_it_had_been_made_from_though_that_was_sent_back_since() {
    let flow = Workflow::builder("flow")
        .var("u", json!(1))
        .node("a", give(json!("${{ vars.u }}")))
        .node("b", give(json!("${{ nodes.a.output }}")))
        .node("c", give(json!("aside")));
    let subject = Subject::run(flow).await;
    let edit = Edit { set: set("u", json!(2)), outputs: set("b", json!(1)), ..Edit::default() };
    let plan = subject.edit(edit).await;
    assert_eq!(again(&plan), ["a"]);
    subject.apply(plan).await;
    let plan = subject.rollback(3, Rollback::default()).await;
    assert_eq!(plan.keep, ["a", "b", "c"]);
}
