//! Forking a large state, beside copying the file that it is in.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retake::engine::{Engine, NodeContext, NodeError, Registry, Start};
use retake::execution::ExecutionId;
use retake::store::{NewOperation, SqliteStore, StoreExt};
use retake::workflow::{Node, Workflow};
use serde_json::json;

use crate::sample::{self, Draw};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{median, ratio, timed};
use crate::{Effort, Outcome};

/// Bytes of one variable.
const VARIABLE: usize = 1_000_000;

/// Most bytes that a fork may add to the file.
const ADDED_MAX: u64 = 64 * 1024;

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let variables = effort.pick(100, 2);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("retake.db");
    let runtime = sample::single_threaded()?;
    let id = runtime.block_on(populate(&path, variables))?;
    let before = size(&path)?;
    let forks = effort.pick(21, 2);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    {
        let engine = engine(&path)?;
        let head = runtime.block_on(engine.store().require(id))?.head;
        for n in 0..forks {
            let operation = NewOperation { who: "bench".to_owned(), command: "fork".to_owned() };
            let (took, forked) = timed(|| {
                runtime.block_on(engine.fork_unchanged(id, head, Some(format!("fork-{n}")), operation))
            });
            forked?;
            ours.push(took);
        }
    }
    // Closed, so that everything is in the file.
    let added = size(&path)?.saturating_sub(before) / forks as u64;
    for n in 0..effort.pick(5, 1) {
        let (took, copied) = timed(|| std::fs::copy(&path, directory.path().join(format!("copy-{n}"))));
        copied?;
        theirs.push(took);
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let megabytes = variables * VARIABLE / 1_000_000;
    Ok(vec![
        Row {
            what: format!("fork a state of {megabytes} MB"),
            ours: shown(ours),
            theirs: format!("copying the file: {} ({:.0}x)", shown(theirs), ratio(theirs, ours)),
            found: Found::Time(ours),
            goal: Some(Found::Time(Duration::from_millis(10))),
            better: Better::Less,
        },
        Row {
            what: format!("the same: bytes on disk that a fork adds, over {} KB", ADDED_MAX / 1024),
            ours: format!("{added} B"),
            theirs: format!("a copy: {before} B"),
            #[expect(clippy::cast_precision_loss, reason = "a ratio of file sizes needs no more digits")]
            found: Found::Ratio(added as f64 / ADDED_MAX as f64),
            goal: Some(Found::Ratio(1.0)),
            better: Better::Less,
        },
    ])
}

fn engine(path: &Path) -> Outcome<Engine> {
    let registry = Registry::new().with("fill", async |ctx: NodeContext| {
        let mut draw = Draw::new(ctx.node().bytes().map(u64::from).sum());
        let mut noise = String::with_capacity(VARIABLE);
        while noise.len() < VARIABLE {
            noise.push_str(&format!("{:016x}", draw.number()));
        }
        ctx.set_variable(&format!("noise_{}", ctx.node()), json!(noise));
        Ok::<_, NodeError>(())
    });
    Ok(Engine::new(Arc::new(SqliteStore::open(path)?)).with_registry(registry))
}

/// Runs a workflow whose nodes fill a variable each.
async fn populate(path: &Path, variables: usize) -> Outcome<ExecutionId> {
    let engine = engine(path)?;
    let mut builder = Workflow::builder("large");
    for n in 0..variables {
        builder = builder.node(format!("fill_{n:03}"), Node::call("fill"));
    }
    let outcome = engine.start(Arc::new(builder.build()?), Start::default()).await?.drive().await?;
    if outcome.nodes_run == variables { Ok(outcome.execution) } else { Err("not every node ran".into()) }
}

/// Returns the bytes of a store that nobody has open.
fn size(path: &Path) -> Outcome<u64> {
    Ok(std::fs::metadata(path)?.len())
}
