//! Values that were made to be lost, changed or fatal: each is refused with its path, or comes back as it was.

mod value;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use retake::checkpoint::{CheckpointError, CheckpointStorage, InMemoryCheckpointStorage};
use retake::clock::{Clock, SystemClock};
use retake::engine::{Engine, NodeContext, NodeError, Registry, Start};
use retake::execution::{
    ExecutionContext, ExecutionResult, NodeExecutionResult, NodeMetrics, Write, WriteOp, node_id, parse_exact,
};
use retake::store::{BlockingStore, MemoryStore, SqliteStore, StoreExt};
use retake::workflow::{Node, Workflow};
use serde_json::{Value, json};

use crate::bounds::cgroup::{self, Cgroup};
use crate::report::{self, Report};
use crate::{Outcome, Settings, child};
use value::{Hostile, dismantle, hostile, json_text};

/// The child that gives values to the stores.
pub(crate) const CHILD: &str = "poison";

/// The child that gives one to `serde_json` alone.
pub(crate) const NAIVE: &str = "poison-naive";

/// What the child may take.
const MEMORY_MAX: u64 = 256 * 1024 * 1024;

/// How many checkpoints a storage keeps, and how many runs an engine, before it is emptied.
const KEPT_MAX: usize = 50;

/// Every so many values goes through the engine, and every so many is read from a text.
const ENGINE_EVERY: usize = 8;
const TEXT_EVERY: usize = 5;

/// What the child says where all is well.
const NONE_WRONG: &str = ", 0 wrong []";

/// How many wrongs are told.
const TOLD_MAX: usize = 5;

/// What the child found.
#[derive(Debug, Default)]
struct Tally {
    kept: u64,
    refused: u64,
    wrong: Vec<String>,
}

pub(crate) fn trial(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    let count = settings.pick(10_000, 100_000);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("retake.db").display().to_string();
    let group = Cgroup::new(MEMORY_MAX)?;
    let place = group.path().display().to_string();
    let arguments = [&*place, &*path, &*settings.seed.to_string(), &*count.to_string()];
    let output = child::command(CHILD, &arguments)?.stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let figure = said.lines().last().unwrap_or_default().to_owned();
    let cried = String::from_utf8_lossy(&output.stderr);
    let panics = cried.matches("panicked at").count();
    let held = output.status.success() && figure.contains(NONE_WRONG) && panics == 0;
    let ended = if output.status.success() { String::new() } else { format!("; {}: {cried}", output.status) };
    report.promise(
        "refused with its path, or comes back as it was",
        format!("{figure}, {panics} panics{ended}"),
        held,
    );

    let (unreadable, changed) = through_plain_json(settings.seed, count);
    report.control(
        "the same through serde_json alone",
        format!("{unreadable} of {count} cannot be read back, {changed} changed without a word"),
        unreadable > 0 && changed > 0,
    );
    let naive = child::command(NAIVE, &[])?.stderr(Stdio::null()).output()?;
    let signal = naive.status.signal();
    let figure = format!("a value of 200,000 levels ends the process: {}", naive.status);
    report.control("the same dropped as any other", figure, signal.is_some());
    Ok(report)
}

/// Joins a group, and gives values to every store.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let [group, path, seed, count] = arguments else { return Err("GROUP STORE SEED COUNT".into()) };
    cgroup::join(Path::new(group))?;
    let count: usize = count.parse()?;
    let mut draw = fastrand::Rng::with_seed(seed.parse()?);
    let sqlite = Arc::new(SqliteStore::open(path)?);
    let memory = Arc::new(MemoryStore::new());
    let faces: [(&str, Box<dyn CheckpointStorage>); 3] = [
        ("sqlite", Box::new(BlockingStore::new(Arc::clone(&sqlite) as Arc<_>)?)),
        ("memory", Box::new(BlockingStore::new(memory)?)),
        ("storage in memory", Box::new(InMemoryCheckpointStorage::new())),
    ];
    let contexts = faces.each_ref().map(|_| context());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut engine = Workshop::new()?;
    let mut tally = Tally::default();
    for number in 0..count {
        let mut drawn = hostile(&mut draw);
        if number % TEXT_EVERY == 0 {
            let (text, is_kept) = json_text(&mut draw);
            tally.note(number, read(&text, is_kept));
        }
        if number % ENGINE_EVERY == 0 {
            if number % (ENGINE_EVERY * KEPT_MAX) == 0 {
                engine = Workshop::new()?;
            }
            let (outcome, given) = runtime.block_on(engine.give(drawn, &mut draw));
            tally.note(number, outcome);
            drawn = given;
        } else {
            let face = number % faces.len();
            let (name, storage) = &faces[face];
            let outcome = save(&**storage, &contexts[face], &drawn, &mut draw);
            tally.note(number, outcome.map_err(|wrong| format!("{name}: {wrong}")));
            if number % KEPT_MAX == face {
                storage.prune_checkpoints(contexts[face].execution_id, 1)?;
            }
        }
        dismantle(drawn.value);
    }
    let problems = runtime.block_on(retake::store::Store::check(&*sqlite))?.problems;
    tally.wrong.extend(problems.into_iter().map(|problem| format!("doctor: {problem}")));
    let peak = crate::bounds::many::peak_bytes()? >> 20;
    let told: Vec<&str> = tally.wrong.iter().take(TOLD_MAX).map(String::as_str).collect();
    report::say(&format!(
        "{} values: {} kept exactly, {} refused with the path, {} wrong {told:?}; {peak} MiB at the peak, of {} MiB",
        tally.kept + tally.refused + tally.wrong.len() as u64,
        tally.kept,
        tally.refused,
        tally.wrong.len(),
        MEMORY_MAX >> 20,
    ));
    Ok(())
}

/// Drops a value that no stack is deep enough for.
pub(crate) fn naive(_: &[String]) -> Outcome<()> {
    let deep = (0..200_000).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    drop(deep);
    Ok(())
}

/// What became of a value that was treated as it must be.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Refused,
}

impl Tally {
    fn note(&mut self, number: usize, fate: Result<Fate, String>) {
        match fate {
            Ok(Fate::Kept) => self.kept += 1,
            Ok(Fate::Refused) => self.refused += 1,
            Err(wrong) => self.wrong.push(format!("value {number}: {wrong}")),
        }
    }
}

fn context() -> ExecutionContext {
    let clock = SystemClock::default();
    let mut ctx = ExecutionContext::with_id(clock.new_id(), clock.new_id(), clock.now());
    ctx.set_variable("list".into(), json!(["first"]));
    ctx
}

/// Puts a value somewhere into a state, saves it, and loads it.
fn save(
    storage: &dyn CheckpointStorage,
    ctx: &ExecutionContext,
    drawn: &Hostile,
    draw: &mut fastrand::Rng,
) -> Result<Fate, String> {
    let mut ctx = ctx.clone();
    let id = node_id("a");
    let value = || copied(&drawn.value);
    let result = || NodeExecutionResult::started(ctx.started_at);
    let done =
        |node: NodeExecutionResult, value| node.completed(ExecutionResult::Success(value), ctx.started_at);
    // The path, what follows it, and the levels above the value.
    let (path, above) = match draw.u8(..8) {
        0 => {
            ctx.append("list", value()).map_err(|error| error.to_string())?;
            ("vars.list[1]".to_owned(), 1)
        }
        1 => {
            ctx.inputs.insert("x".into(), value());
            ("inputs.x".to_owned(), 0)
        }
        2 => {
            ctx.record_node_result(id, done(result(), value()));
            (format!("nodes.{id}.output"), 0)
        }
        3 => {
            let mut node = done(result(), json!(1));
            node.writes.push(Write { variable: "x".into(), op: WriteOp::Append(value()) });
            ctx.record_node_result(id, node);
            (format!("nodes.{id}.writes.x"), 0)
        }
        4 => {
            let metrics =
                NodeMetrics { custom: BTreeMap::from([("x".into(), value())]), ..NodeMetrics::default() };
            ctx.record_node_result(id, done(result(), json!(1)).with_metrics(metrics));
            (format!("nodes.{id}.metrics.x"), 0)
        }
        5 => {
            ctx.set_variable(value::text(draw), value());
            ("vars".to_owned(), 0)
        }
        _ => {
            ctx.set_variable("x".into(), value());
            ("vars.x".to_owned(), 0)
        }
    };
    let checkpoint = ctx.checkpoint_at(ctx.started_at);
    let outcome = match (storage.save_checkpoint(ctx.execution_id, &checkpoint), drawn.too_deep(above)) {
        (Ok(_), Some(_)) => Err("it was kept though it is too deep".to_owned()),
        (Err(error), None) => Err(format!("it was refused though it can be kept: {}", chain(&error))),
        (Err(CheckpointError::SerializationError(why)), Some(below)) => {
            let why = why.to_string();
            let named = why.starts_with(&format!("cannot store {path}"))
                && why.contains(&format!("{below}: it is nested"));
            if named {
                Ok(Fate::Refused)
            } else {
                Err(format!("it was refused without its path: {why:.200}"))
            }
        }
        (Err(error), Some(_)) => Err(format!("another error: {}", chain(&error))),
        (Ok(saved), None) => match storage.load_checkpoint(saved) {
            Ok(Some(back)) => same(&written(&checkpoint)?, &written(&back)?),
            Ok(None) => Err("it is gone".to_owned()),
            Err(error) => Err(format!("it cannot be loaded: {}", chain(&error))),
        },
    };
    // A result does not take itself apart as a variable does.
    drop(checkpoint);
    ctx.node_results.remove(&id).into_iter().for_each(taken_apart);
    outcome
}

fn taken_apart(node: NodeExecutionResult) {
    if let ExecutionResult::Success(output) = node.result {
        dismantle(output);
    }
    node.metrics.into_iter().flat_map(|metrics| metrics.custom.into_values()).for_each(dismantle);
    for write in node.writes {
        if let WriteOp::Append(value) = write.op {
            dismantle(value);
        }
    }
}

fn written(checkpoint: &retake::execution::ExecutionCheckpoint) -> Result<String, String> {
    serde_json::to_string(checkpoint).map_err(|error| error.to_string())
}

fn same(before: &str, after: &str) -> Result<Fate, String> {
    if before == after {
        Ok(Fate::Kept)
    } else {
        Err(format!("it changed: {before:.200} became {after:.200}"))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Copies a value of any depth.
fn copied(value: &Value) -> Value {
    let mut way = Vec::new();
    let mut at = value;
    // Nothing but the last item of a list and the last entry of an object is nested deep.
    while let Some(inner) = match at {
        Value::Array(items) => items.last(),
        Value::Object(entries) => entries.values().next_back(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    } {
        way.push(at);
        at = inner;
    }
    way.into_iter().rev().fold(at.clone(), |last, outer| match outer {
        Value::Array(items) => {
            let before = items[..items.len() - 1].iter().cloned();
            Value::Array(before.chain([last]).collect())
        }
        Value::Object(entries) => {
            let before =
                entries.iter().take(entries.len() - 1).map(|(key, value)| (key.clone(), value.clone()));
            let key = entries.keys().next_back().cloned().unwrap_or_default();
            Value::Object(before.chain([(key, last)]).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => last,
    })
}

/// Reads a text as everything that comes from outside is read.
fn read(text: &str, is_kept: bool) -> Result<Fate, String> {
    match (parse_exact(text), is_kept) {
        (Ok(value), true) => same(text, &value.to_string()),
        (Ok(value), false) => Err(format!("{text:.200} was taken as {value:.200}")),
        // Where it is wrong stands in backquotes.
        (Err(error), false) if error.to_string().contains("`a") => Ok(Fate::Refused),
        (Err(error), _) => Err(format!("{text:.200} was refused: {error}")),
    }
}

/// An engine whose one node gives what it is handed.
struct Workshop {
    engine: Engine,
    workflow: Arc<Workflow>,
    /// The value, and whether it becomes a variable instead of the output.
    slot: Arc<Mutex<(Value, bool)>>,
}

impl Workshop {
    fn new() -> Outcome<Self> {
        let slot = Arc::new(Mutex::new((Value::Null, false)));
        let handed = Arc::clone(&slot);
        let give = move |ctx: NodeContext| {
            let (value, is_written) =
                std::mem::take(&mut *handed.lock().unwrap_or_else(PoisonError::into_inner));
            async move {
                if !is_written {
                    return Ok::<_, NodeError>(value);
                }
                ctx.set_variable("x", value);
                Ok(Value::Null)
            }
        };
        let engine =
            Engine::new(Arc::new(MemoryStore::new())).with_registry(Registry::new().with("give", give));
        let workflow = Arc::new(Workflow::builder("poison").node("a", Node::call("give")).build()?);
        Ok(Self { engine, workflow, slot })
    }

    /// Hands the value to a node, and returns it with what became of it.
    async fn give(&self, drawn: Hostile, draw: &mut fastrand::Rng) -> (Result<Fate, String>, Hostile) {
        let is_written = draw.bool();
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = (copied(&drawn.value), is_written);
        let fate = self.outcome(&drawn, is_written).await;
        (fate.unwrap_or_else(|error| Err(format!("engine: {error}"))), drawn)
    }

    async fn outcome(&self, drawn: &Hostile, is_written: bool) -> Outcome<Result<Fate, String>> {
        let run = self.engine.start(Arc::clone(&self.workflow), Start::default()).await?;
        let outcome = run.drive().await?;
        let path = if is_written { "vars.x" } else { "nodes.a.output" };
        if let Some(below) = drawn.too_deep(0) {
            let wanted = format!("cannot store {path}{below}: it is nested deeper than 100 levels");
            let is_told = outcome.failures.iter().any(|(node, why)| node == "a" && *why == wanted);
            return Ok(if is_told { Ok(Fate::Refused) } else { Err(format!("{:.300?}", outcome.failures)) });
        }
        let ctx = self.engine.store().context(outcome.execution, outcome.head).await?;
        let back = match is_written {
            true => ctx.get_variable("x"),
            false => ctx.get_node_result(&node_id("a")).and_then(NodeExecutionResult::output),
        };
        Ok(match back {
            Some(back) => same(&drawn.value.to_string(), &back.to_string()),
            None => Err(format!("nothing was kept: {:.300?}", outcome.failures)),
        })
    }
}

/// Gives the same values to `serde_json` alone: returns how many cannot be read back, and how many changed.
fn through_plain_json(seed: u64, count: usize) -> (u64, u64) {
    let mut draw = fastrand::Rng::with_seed(seed);
    let (mut unreadable, mut changed) = (0, 0);
    for _ in 0..count {
        let drawn = hostile(&mut draw);
        // What ends the process is another control's.
        if !drawn.is_bottomless() {
            let text = drawn.value.to_string();
            match serde_json::from_str::<Value>(&text) {
                Ok(back) => changed += u64::from(same(&text, &back.to_string()).is_err()),
                Err(_) => unreadable += 1,
            }
        }
        let (text, is_kept) = json_text(&mut draw);
        if !is_kept && let Ok(back) = serde_json::from_str::<Value>(&text) {
            changed += u64::from(same(&text, &back.to_string()).is_err());
        }
        dismantle(drawn.value);
    }
    (unreadable, changed)
}
