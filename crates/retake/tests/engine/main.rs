//! Runs of the engine on the memory store: what is run, what is recorded, and what is never run again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod changing;
mod compensating;
mod explaining;
mod going_back;
mod keeping_secrets;
mod losing;
mod people;
mod retrying;
mod running;
mod spending;
mod working;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{
    Decision, Effects, Engine, EngineError, Extent, NodeContext, NodeError, Outcome, Registry, Rerun, Resume,
    Rollback, Start,
};
use retake::execution::{ExecutionResult, ExecutionState, Subject, TokenUsage, node_id};
use retake::store::{Cause, Conflict, HistoryPage, MemoryStore, NewOperation, StoreError, StoreExt};
use retake::workflow::{Effect, Node, OnError, Workflow};
use serde_json::{Value, json};

/// Which nodes ran, in order, and what they should do.
#[derive(Clone, Default)]
struct Journal {
    ran: Arc<Mutex<Vec<String>>>,
    fail: Arc<Mutex<Vec<String>>>,
}

impl Journal {
    fn ran(&self) -> Vec<String> {
        std::mem::take(&mut *self.ran.lock().unwrap())
    }

    fn fail(&self, nodes: &[&str]) {
        *self.fail.lock().unwrap() = nodes.iter().map(|node| (*node).to_owned()).collect();
    }

    fn registry(&self) -> Registry {
        let journal = self.clone();
        Registry::new().with("work", move |ctx: NodeContext| {
            let journal = journal.clone();
            async move {
                let node = ctx.node().to_owned();
                journal.ran.lock().unwrap().push(node.clone());
                if journal.fail.lock().unwrap().contains(&node) {
                    return Err(NodeError::permanent("told to fail"));
                }
                let with = ctx.parameters()?;
                Ok(if with.is_null() { json!(format!("{node} done")) } else { with })
            }
        })
    }
}

fn engine(journal: &Journal) -> Engine {
    Engine::new(Arc::new(MemoryStore::new())).with_registry(journal.registry())
}

fn always() -> CheckpointConfig {
    every(CheckpointFrequency::Always)
}

fn every(frequency: CheckpointFrequency) -> CheckpointConfig {
    CheckpointConfig { frequency, max_checkpoints: 1_000, ..CheckpointConfig::default() }
}

fn work() -> Node {
    Node::call("work")
}

/// `a`, then `b` and `c` from it, then `d` from both.
fn diamond() -> Workflow {
    Workflow::builder("diamond")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .max_parallel(1)
        .node("a", work())
        .node("b", work().with(json!("${{ nodes.a.output }} ${{ vars.tone }}")))
        .node("c", work().with(json!("${{ nodes.a.output }}")))
        .node("d", work().with(json!(["${{ nodes.b.output }}", "${{ nodes.c.output }}"])).into("last"))
        .build()
        .unwrap()
}

/// `draft`, then an approval, then `mail` with an effect outside, which also sets `receipt`, then `last`.
fn mail() -> Workflow {
    Workflow::builder("mail")
        .var("tone", json!("dry"))
        .checkpoints(always())
        .node("draft", work().with(json!("${{ vars.tone }}")))
        .node("ok", Node::approval("send?").needs(["draft"]).into("decision"))
        .node("mail", work().needs(["ok"]).effect(Effect::External).into("receipt"))
        .node("last", work().with(json!("${{ vars.receipt }}")))
        .build()
        .unwrap()
}

fn somebody() -> NewOperation {
    NewOperation { who: "tester".into(), command: "test".into() }
}

async fn run(engine: &Engine, workflow: Workflow) -> Outcome {
    engine.start(Arc::new(workflow), Start::default()).await.unwrap().drive().await.unwrap()
}

async fn resume(engine: &Engine, outcome: &Outcome) -> Outcome {
    engine.resume(outcome.execution, Resume::default()).await.unwrap().drive().await.unwrap()
}

async fn causes(engine: &Engine, outcome: &Outcome) -> Vec<&'static str> {
    let history = engine.store().history(outcome.execution, HistoryPage::default()).await.unwrap();
    history.iter().rev().map(|point| point.cause.kind()).collect()
}

async fn output(engine: &Engine, outcome: &Outcome, node: &str) -> Option<Value> {
    let head = engine.store().require(outcome.execution).await.unwrap().head;
    let ctx = engine.store().context(outcome.execution, head).await.unwrap();
    ctx.get_node_result(&node_id(node)).and_then(|record| record.output().cloned())
}

/// A secret `TOKEN`, and no other.
#[derive(Debug)]
struct OneSecret;

impl retake::engine::Secrets for OneSecret {
    fn secret(&self, name: &str) -> Option<String> {
        (name == "TOKEN").then(|| "canary-5f2".to_owned())
    }
}

/// A clock that follows the test runtime's time.
#[derive(Debug)]
struct TokioClock {
    start: tokio::time::Instant,
    ids: retake::clock::ManualClock,
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { start: tokio::time::Instant::now(), ids: retake::clock::ManualClock::default() }
    }
}

impl retake::clock::Clock for TokioClock {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.ids.now() + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn new_id(&self) -> uuid::Uuid {
        self.ids.new_id()
    }
}

/// A lease whose holder was dropped is given back by a task of its own.
async fn wait_until_released(engine: &Engine, id: retake::ExecutionId) {
    for _ in 0..1_000 {
        if engine.store().require(id).await.unwrap().leased_by.is_none() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the lease was not given back");
}
