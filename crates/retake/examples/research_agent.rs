//! A research agent of nine nodes, run by the engine: closures as nodes, and a model that counts its calls.
//!
//! Its tone turns out to be wrong, one branch of it is taken back, it is forked with another topic, compared, and the
//! rollback is undone. What each of these costs is planned, then counted. What it says, it asserts.
//!
//! ```sh
//! cargo run --example research_agent -p retake
//! ```

#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{
    Edit, Effects, Engine, EngineError, Extent, Fork, NodeContext, NodeError, Outcome, Plan, Registry,
    Resume, Rollback, Start,
};
use retake::execution::{ExecutionId, ExecutionState, TokenUsage};
use retake::store::{HistoryPage, NewOperation, Seq, SqliteStore, StoreExt};
use retake::workflow::{Effect, Node, Workflow};
use serde_json::{Value, json};

/// What the model takes for an answer, in US dollars.
const PRICE: f64 = 0.02;

/// Three nodes that run at once.
const SEARCHES: [&str; 3] = ["search_coasts", "search_history", "search_rivers"];

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> Fallible {
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path().join("research.db"))?;
    let world = Arc::new(World::default());
    let engine = Engine::new(Arc::new(store)).with_registry(registry(&world));
    let agent = Agent { engine, world };

    let id = agent.research().await?;
    agent.change_the_tone(id).await?;
    agent.take_one_branch_back(id).await?;
    let fork = agent.try_another_topic(id).await?;
    agent.change_its_mind(id).await?;
    agent.settle_accounts(id, fork).await
}

/// The agent: nobody draws its graph. A node waits for those that its expressions mention.
fn workflow() -> Fallible<Workflow> {
    let ask = |prompt: &str| Node::call("model").with(json!(prompt));
    let workflow = Workflow::builder("research")
        .checkpoints(CheckpointConfig {
            frequency: CheckpointFrequency::Always,
            max_checkpoints: 100,
            ..CheckpointConfig::default()
        })
        .var("topic", json!("otters"))
        .var("tone", json!("dry"))
        .node("plan", ask("${{ vars.topic }}"))
        .node("search_rivers", ask("${{ nodes.plan.output }} in rivers"))
        .node("search_coasts", ask("${{ nodes.plan.output }} on coasts"))
        .node("search_history", ask("${{ nodes.plan.output }} long ago"))
        .node(
            "draft",
            ask("${{ vars.tone }} (${{ nodes.search_rivers.output }}; ${{ nodes.search_coasts.output }}; \
                 ${{ nodes.search_history.output }})"),
        )
        .node("critique", ask("is every fact in this right? ${{ nodes.draft.output }}"))
        .node("cite", ask("sources, where ${{ nodes.critique.output }}"))
        .node("polish", ask("${{ nodes.draft.output }}, ${{ nodes.critique.output }}").into("article"))
        .node(
            "publish",
            Node::call("publish")
                .with(json!("${{ vars.article }}, ${{ nodes.cite.output }}"))
                .effect(Effect::External),
        )
        .build()?;
    Ok(workflow)
}

/// What the nodes do. Closures see the state only through their context, so that what they read is known.
fn registry(world: &Arc<World>) -> Registry {
    let (model, press) = (Arc::clone(world), Arc::clone(world));
    Registry::new()
        .with("model", move |ctx: NodeContext| {
            let model = Arc::clone(&model);
            async move {
                let prompt = text(&ctx.parameters()?);
                ctx.spent(TokenUsage::new(90, 10), Some(PRICE));
                Ok::<_, NodeError>(model.answer(ctx.node(), &prompt))
            }
        })
        .with("publish", move |ctx: NodeContext| {
            let press = Arc::clone(&press);
            async move {
                let article = text(&ctx.parameters()?);
                let number = press.publish(ctx.idempotency_key(), &article);
                Ok::<_, NodeError>(json!({"url": format!("https://example.org/{number}")}))
            }
        })
}

struct Agent {
    engine: Engine,
    world: Arc<World>,
}

impl Agent {
    /// Runs it from its start to its end.
    async fn research(&self) -> Fallible<ExecutionId> {
        let start = Start { name: Some("otters".to_owned()), ..Start::default() };
        let outcome = self.engine.start(Arc::new(workflow()?), start).await?.drive().await?;

        assert_eq!((&outcome.state, outcome.nodes_run), (&ExecutionState::Completed, 9));
        assert_eq!(self.world.take_calls().len(), 8);
        assert_eq!(self.world.published().len(), 1);
        assert_eq!(outcome.cost_usd.as_deref(), Some("0.16"));
        println!("a run of 9 nodes asks the model 8 times, for $0.16, and publishes");
        Ok(outcome.execution)
    }

    /// One variable is another: what had read it runs again, and what depends on that as far as it comes out different.
    async fn change_the_tone(&self, id: ExecutionId) -> Fallible {
        let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
        let mut edit = Edit { set, ..Edit::default() };
        let plan = self.engine.plan_edit(id, &edit).await?;
        println!("\nthe tone is wrong; to make it warm");
        show(&plan);
        assert_eq!(sorted(&plan.keep), ["plan", "search_coasts", "search_history", "search_rivers"]);
        assert_eq!(sorted(&reruns(&plan)), ["cite", "critique", "draft", "polish", "publish"]);
        assert_eq!(plan.rerun[0].because, r#"it read `vars.tone`, which changes from "dry" to "warm""#);
        assert_eq!(
            (plan.cost_kept_usd.as_deref(), plan.cost_again_usd.as_deref()),
            (Some("0.08"), Some("0.08"))
        );

        // What was published cannot be called back, so that nobody publishes twice without meaning it.
        assert_eq!(plan.irreversible, ["publish"]);
        let refused = self.engine.apply(plan, by_hand("warm")).await;
        assert!(matches!(refused, Err(EngineError::Irreversible { .. })), "{refused:?}");
        edit.effects = Effects::Again;
        let plan = self.engine.plan_edit(id, &edit).await?;
        self.engine.apply(plan, by_hand("warm, and publish again")).await?;
        let outcome = self.go_on(id).await?;

        assert_eq!(self.world.take_calls(), ["critique", "draft", "polish"]);
        // `critique` saw another draft and found no more fault with it, so that `cite` would see what it saw.
        assert_eq!((outcome.nodes_run, outcome.nodes_spared, outcome.nodes_reused), (4, 1, 4));
        assert_eq!(outcome.cost_usd.as_deref(), Some("0.06"));
        let published = self.world.published();
        assert_eq!(published.len(), 2);
        assert_ne!(published[0].key, published[1].key, "another effect has another idempotency key");
        assert!(published[1].article.contains("warm"), "{}", published[1].article);
        println!("  3 calls were made, for $0.06: `cite` was spared, as the critique came out the same");
        Ok(())
    }

    /// Back to the first search, and to what came of it: the others are on branches of their own, and stay.
    async fn take_one_branch_back(&self, id: ExecutionId) -> Fallible {
        let mut points = Vec::new();
        for search in SEARCHES {
            points.push((self.point_of(id, search).await?, search));
        }
        let (first, search) = points.iter().min().copied().ok_or("nothing was searched")?;
        let linear = Rollback { extent: Extent::Linear, ..Rollback::default() };
        let linear = self.engine.plan_rollback(id, first, &linear).await?;
        // What was published stays, although what it was made from goes.
        let affected = Rollback { effects: Effects::Keep, ..Rollback::default() };
        let plan = self.engine.plan_rollback(id, first, &affected).await?;
        println!("\nback to the point that recorded `{search}`");
        show(&plan);
        for sibling in SEARCHES {
            assert!(plan.keep.iter().any(|kept| kept == sibling), "{sibling} stays: {:?}", plan.keep);
        }
        assert_eq!(sorted(&reruns(&plan)), ["cite", "critique", "draft", "polish"]);
        assert_eq!(plan.irreversible, ["publish"]);
        // What a person set since goes back, too.
        assert_eq!(plan.variables["tone"].to, Some(json!("dry")));
        assert_eq!(plan.cost_again_usd.as_deref(), Some("0.08"));
        assert_eq!(linear.cost_again_usd.as_deref(), Some("0.12"));

        self.engine.apply(plan, by_hand("as far as it came of the first search")).await?;
        let outcome = self.go_on(id).await?;
        assert_eq!(self.world.take_calls(), ["critique", "draft", "polish"]);
        assert_eq!(outcome.nodes_spared, 1);
        assert_eq!(self.world.published().len(), 2);
        println!("  3 calls were made; everything after that point would have been 6");
        Ok(())
    }

    /// A run of its own, which begins where the other had just made its plan.
    async fn try_another_topic(&self, id: ExecutionId) -> Fallible<ExecutionId> {
        let point = self.point_of(id, "plan").await?;
        let set = BTreeMap::from([("topic".to_owned(), json!("beavers"))]);
        let plan = self.engine.plan_fork(id, point, &Fork { set, ..Fork::default() }).await?;
        println!("\na fork of that point, about beavers");
        show(&plan);
        assert_eq!(reruns(&plan), ["plan"]);
        assert_eq!(plan.pending.len(), 8);
        let fork = self.engine.fork(plan, Some("beavers".to_owned()), by_hand("beavers")).await?;
        self.go_on(fork.execution).await?;
        assert_eq!(self.world.take_calls().len(), 8);

        let heads = (self.head(id).await?, self.head(fork.execution).await?);
        let diff = self.engine.diff((id, heads.0), (fork.execution, heads.1)).await?;
        let nodes: Vec<&str> = diff.nodes.iter().map(|node| node.node.as_str()).collect();
        assert_eq!(diff.variables.keys().collect::<Vec<_>>(), ["article", "topic"]);
        // The critique came out the same once more.
        assert!(nodes.contains(&"polish") && !nodes.contains(&"critique"), "{nodes:?}");
        println!("  it differs in {} nodes: {}", nodes.len(), nodes.join(", "));
        Ok(fork.execution)
    }

    /// A rollback is an operation like any other.
    async fn change_its_mind(&self, id: ExecutionId) -> Fallible {
        let before = self.engine.store().context(id, self.head(id).await?).await?;
        assert_eq!(before.variables["tone"], json!("dry"));
        let seq = self.engine.undo(id, Effects::Refuse, by_hand("undo")).await?;
        let after = self.engine.store().context(id, seq).await?;
        assert_eq!(after.variables["tone"], json!("warm"));
        assert_eq!(after.state, ExecutionState::Completed);
        assert_eq!(self.world.take_calls(), [""; 0]);
        println!("\nundone: the warm article is the head again, and nothing had to run for it");
        Ok(())
    }

    /// Money that was spent stays spent, whatever was taken back.
    async fn settle_accounts(&self, id: ExecutionId, fork: ExecutionId) -> Fallible {
        let spend = self.engine.store().require(id).await?.spend;
        assert_eq!(spend.paid.usd().as_deref(), Some("0.28"));
        assert_eq!(spend.reused.usd().as_deref(), Some("0.2"));
        // Three whole runs.
        assert_eq!(spend.from_zero().usd().as_deref(), Some("0.48"));
        let usd = |cost: retake::execution::Cost| cost.usd().unwrap_or_else(|| "unknown".to_owned());
        println!(
            "\notters: ${} paid, ${} not paid again, ${} from zero each time",
            usd(spend.paid),
            usd(spend.reused),
            usd(spend.from_zero())
        );
        let spend = self.engine.store().require(fork).await?.spend;
        // It begins with what had been paid for the plan that it began at.
        assert_eq!(spend.paid.usd().as_deref(), Some("0.18"));
        println!("beavers: ${} paid", usd(spend.paid));
        Ok(())
    }

    async fn go_on(&self, id: ExecutionId) -> Fallible<Outcome> {
        let outcome = self.engine.resume(id, Resume::default()).await?.drive().await?;
        assert_eq!(outcome.state, ExecutionState::Completed);
        Ok(outcome)
    }

    async fn head(&self, id: ExecutionId) -> Fallible<Seq> {
        Ok(self.engine.store().require(id).await?.head)
    }

    /// Returns the newest point that recorded a node.
    async fn point_of(&self, id: ExecutionId, node: &str) -> Fallible<Seq> {
        let history = self.engine.store().history(id, HistoryPage::default()).await?;
        let point = history.iter().find(|point| point.nodes.iter().any(|recorded| recorded == node));
        Ok(point.ok_or("no point recorded it")?.seq)
    }
}

/// Stands in for everything outside: a model, and whoever reads what is published. No state holds what it counts.
#[derive(Debug, Default)]
struct World {
    calls: Mutex<Vec<String>>,
    published: Mutex<Vec<Published>>,
}

#[derive(Debug, Clone)]
struct Published {
    key: String,
    article: String,
}

impl World {
    /// Answers the same to the same prompt. The critique never finds fault.
    fn answer(&self, node: &str, prompt: &str) -> String {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(node.to_owned());
        match node {
            "critique" => "every fact is right".to_owned(),
            _ => format!("{node} of {prompt}"),
        }
    }

    /// Returns the nodes that asked since this was last called, sorted.
    fn take_calls(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        calls.sort_unstable();
        calls
    }

    fn publish(&self, key: &str, article: &str) -> usize {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.push(Published { key: key.to_owned(), article: article.to_owned() });
        published.len()
    }

    fn published(&self) -> Vec<Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Prints what would be done, before anything is.
fn show(plan: &Plan) {
    println!("  keeps {}", if plan.keep.is_empty() { "nothing".to_owned() } else { plan.keep.join(", ") });
    for rerun in &plan.rerun {
        println!("  runs {} again: {}", rerun.node, rerun.because);
    }
    if !plan.irreversible.is_empty() {
        println!("  cannot undo {}", plan.irreversible.join(", "));
    }
    let usd = |cost: &Option<String>| cost.as_ref().map_or("unknown".to_owned(), |cost| format!("${cost}"));
    println!("  kept: {}; last time, the rest cost {}", usd(&plan.cost_kept_usd), usd(&plan.cost_again_usd));
}

fn reruns(plan: &Plan) -> Vec<String> {
    plan.rerun.iter().map(|rerun| rerun.node.clone()).collect()
}

fn sorted(names: &[String]) -> Vec<&str> {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Who does it, for the operation log.
fn by_hand(command: &str) -> NewOperation {
    NewOperation { who: "the author".to_owned(), command: command.to_owned() }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
