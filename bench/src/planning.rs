//! Working out what a change would do, beside reading the states that it is worked out from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::engine::{Edit, Engine, NodeContext, NodeError, Plan, Registry, Rollback, Start};
use retake::execution::ExecutionId;
use retake::store::{HistoryPage, NewOperation, SqliteStore, StoreExt};
use retake::workflow::{Node, Workflow};
use serde_json::{Value, json};

use crate::sample;
use crate::table::{Better, Found, Row, shown};
use crate::timing::{median, ratio, timed};
use crate::{Effort, Outcome};

/// Nodes that depend on the same layer before them.
const LAYER: usize = 10;

/// The longest that working out a plan may take.
const GOAL: Duration = Duration::from_millis(10);

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let (nodes, checkpoints) = (effort.pick(1_000, 40), effort.pick(10_000, 60));
    let directory = tempfile::tempdir()?;
    let runtime = sample::single_threaded()?;
    let store = Arc::new(SqliteStore::open(directory.path().join("retake.db"))?);
    let engine = Engine::new(store).with_registry(registry());
    let id = runtime.block_on(populate(&engine, nodes, checkpoints))?;
    let head = runtime.block_on(engine.store().require(id))?.head;
    let middle = nodes as u64 / 2;
    let (mut edits, mut rollbacks, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.pick(51, 2) {
        let (took, plan) = timed(|| runtime.block_on(edit(&engine, id)));
        expect(&plan?, nodes)?;
        edits.push(took);
        let (took, plan) = timed(|| runtime.block_on(engine.plan_rollback(id, middle, &Rollback::default())));
        expect(&plan?, nodes)?;
        rollbacks.push(took);
        let (took, read) = timed(|| runtime.block_on(engine.store().context(id, head)));
        read?;
        reads.push(took);
    }
    let read = median(&reads);
    let row = |what: &str, times: &[Duration]| {
        let ours = median(times);
        Row {
            what: format!("plan {what}, {nodes} nodes, {checkpoints} checkpoints of history"),
            ours: shown(ours),
            theirs: format!("reading the head alone: {} ({:.1}x)", shown(read), ratio(ours, read)),
            found: Found::Time(ours),
            goal: Some(Found::Time(GOAL)),
            better: Better::Less,
        }
    };
    Ok(vec![row("an edit of one variable", &edits), row("a rollback to the middle", &rollbacks)])
}

fn registry() -> Registry {
    Registry::new().with("step", async |ctx: NodeContext| Ok::<_, NodeError>(ctx.parameters()?))
}

/// Layers of nodes that read two nodes of the layer before; the first of the middle layer reads a variable too.
fn workflow(nodes: usize) -> Outcome<Workflow> {
    let config = CheckpointConfig {
        frequency: CheckpointFrequency::Always,
        max_checkpoints: usize::MAX,
        ..CheckpointConfig::default()
    };
    let mut builder = Workflow::builder("layers").var("tone", json!("dry")).checkpoints(config);
    for n in 0..nodes {
        let with = match n.checked_sub(LAYER) {
            _ if n == nodes / 2 => json!("${{ vars.tone }}"),
            None => Value::from(n),
            Some(above) => {
                let beside = above - above % LAYER + (above + 1) % LAYER;
                json!([
                    format!("${{{{ nodes.{}.output | length }}}}", name(above)),
                    format!("${{{{ nodes.{}.status }}}}", name(beside))
                ])
            }
        };
        let with = if n < LAYER { json!([with]) } else { with };
        builder = builder.node(name(n), Node::call("step").with(with));
    }
    Ok(builder.build()?)
}

fn name(n: usize) -> String {
    format!("node_{n:04}")
}

/// Runs the workflow, and saves the state until there are so many checkpoints.
async fn populate(engine: &Engine, nodes: usize, checkpoints: usize) -> Outcome<ExecutionId> {
    let outcome = engine.start(Arc::new(workflow(nodes)?), Start::default()).await?.drive().await?;
    if outcome.nodes_run != nodes {
        return Err(format!("not every node ran: {:?}", outcome.failures.first()).into());
    }
    let id = outcome.execution;
    let operation = NewOperation { who: "bench".to_owned(), command: "checkpoint".to_owned() };
    while engine.store().require(id).await?.head < checkpoints as u64 {
        engine.checkpoint(id, None, operation.clone()).await?;
    }
    let kept = engine.store().history(id, HistoryPage::default()).await?.len();
    if kept < checkpoints { Err(format!("{kept} checkpoints are left").into()) } else { Ok(id) }
}

async fn edit(engine: &Engine, id: ExecutionId) -> Outcome<Plan> {
    let set = BTreeMap::from([("tone".to_owned(), json!("warm"))]);
    Ok(engine.plan_edit(id, &Edit { set, ..Edit::default() }).await?)
}

fn expect(plan: &Plan, nodes: usize) -> Outcome<()> {
    let is_some = !plan.rerun.is_empty() && plan.rerun.len() < nodes;
    if is_some { Ok(()) } else { Err(format!("{} nodes would run again", plan.rerun.len()).into()) }
}
