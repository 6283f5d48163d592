//! Ten thousand executions at once: in a process of its own, so that its peak memory is theirs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use retake::clock::{Clock, SystemClock};
use retake::engine::{Engine, NodeContext, NodeError, Registry, Start};
use retake::execution::ExecutionState;
use retake::store::{ExecutionFilter, SqliteStore, Store, StoreExt};
use retake::workflow::{InputSpec, Node, Workflow};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::mebibytes;
use crate::report::Report;
use crate::{Outcome, Settings, child};

/// The name of the child.
pub(crate) const CHILD: &str = "many";

/// Nodes of each execution.
const NODES: usize = 4;

/// Executions that the control runs.
const CONTROL_EXECUTIONS: usize = 100;

/// What memory an execution in flight may take, in bytes, beside what the process takes anyway.
const BYTES_EACH_MAX: u64 = 64 * 1024;

/// What the process may take however few executions there are.
const BYTES_ANYWAY_MAX: u64 = 96 * 1024 * 1024;

/// How many times the work a node may be where four times as many executions are in flight. What grows with all of
/// them would be four times.
const GROWTH_MAX: f64 = 2.0;

/// Ticks of a second in what Linux tells of a process.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a child found.
#[derive(Debug)]
struct Found {
    at_once: usize,
    /// Executions that completed, and whose state is what its nodes make of its input.
    right: usize,
    problems: usize,
    seconds: f64,
    /// Seconds of all processors: unlike the time of a clock, they do not depend on what else runs.
    work_seconds: f64,
    peak_bytes: u64,
    transactions: u64,
}

impl Found {
    fn work_ms_each(&self, executions: usize) -> f64 {
        self.work_seconds * 1_000.0 / count(executions)
    }
}

pub(super) fn trial(settings: Settings, report: &mut Report) -> Outcome<()> {
    let many = settings.pick(10_000, 40_000);
    let few = many / 4;
    let of_few = run(few, "true")?;
    let of_many = run(many, "true")?;
    let peak_max = BYTES_ANYWAY_MAX + BYTES_EACH_MAX * many as u64;
    report.promise(
        "executions at once in one process",
        format!(
            "{} of {many} in flight at once, {} complete with the right state, {} problems; {:.1} s: {:.0} executions \
             and {:.0} nodes a second, {} transactions; peak memory {} MiB",
            of_many.at_once,
            of_many.right,
            of_many.problems,
            of_many.seconds,
            count(many) / of_many.seconds,
            count(many * NODES) / of_many.seconds,
            of_many.transactions,
            mebibytes(of_many.peak_bytes),
        ),
        of_many.at_once == many
            && of_many.right == many
            && of_many.problems == 0
            && of_many.peak_bytes <= peak_max,
    );
    let (of_few_ms, of_many_ms) = (of_few.work_ms_each(few), of_many.work_ms_each(many));
    report.promise(
        "the cost of one does not grow with how many there are",
        format!(
            "{of_few_ms:.2} ms of work each and {} MiB with {few} at once, {of_many_ms:.2} ms with {many}",
            mebibytes(of_few.peak_bytes),
        ),
        of_many_ms <= GROWTH_MAX * of_few_ms,
    );
    let wrong = run(CONTROL_EXECUTIONS, "false")?;
    report.control(
        "a node that gives something else",
        format!("{} of {CONTROL_EXECUTIONS} have the right state", wrong.right),
        wrong.right < CONTROL_EXECUTIONS,
    );
    Ok(())
}

fn run(executions: usize, right: &str) -> Outcome<Found> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("retake.db");
    let store = store.to_str().ok_or("the directory for temporary files has a name that is no text")?;
    let output = child::command(CHILD, &[store, &executions.to_string(), right])?.output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| found[name].as_u64().ok_or_else(|| format!("the child said nothing of {name}"));
    let time = |name: &str| found[name].as_f64().ok_or_else(|| format!("the child said nothing of {name}"));
    Ok(Found {
        at_once: usize::try_from(number("at_once")?)?,
        right: usize::try_from(number("right")?)?,
        problems: usize::try_from(number("problems")?)?,
        seconds: time("seconds")?,
        work_seconds: time("work_seconds")?,
        peak_bytes: number("peak_bytes")?,
        transactions: number("transactions")?,
    })
}

/// Runs so many executions, and returns what became of them.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let [store, executions, right] = arguments else { return Err("STORE EXECUTIONS RIGHT".into()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let found = runtime.block_on(drive(Path::new(store), executions.parse()?, right == "true"))?;
    Ok(std::io::stdout().write_all(found.to_string().as_bytes())?)
}

async fn drive(path: &Path, executions: usize, is_right: bool) -> Outcome<Value> {
    let store = Arc::new(SqliteStore::open(path)?);
    let engine = Engine::new(Arc::<SqliteStore>::clone(&store)).with_registry(registry(executions, is_right));
    let workflow = Arc::new(workflow()?);
    let clock = SystemClock::default();
    let runs: Vec<_> = (0..executions)
        .map(|number| {
            let (engine, workflow) = (engine.clone(), Arc::clone(&workflow));
            tokio::spawn(async move {
                let inputs = BTreeMap::from([("number".to_owned(), json!(number))]);
                let run = engine.start(workflow, Start { inputs, name: None }).await?;
                run.drive().await
            })
        })
        .collect();
    let mut outcomes = Vec::with_capacity(executions);
    for run in runs {
        outcomes.push(run.await??);
    }
    let seconds = clock.elapsed().as_secs_f64();
    let work_seconds = work_seconds()?;
    let transactions = store.stats().transactions;
    let peak_bytes = peak_bytes()?;
    let mut right = 0;
    for (number, outcome) in outcomes.iter().enumerate() {
        let ctx = store.context(outcome.execution, outcome.head).await?;
        let sum = ctx.get_variable("sum");
        let is_complete = outcome.nodes_run == NODES && ctx.state == ExecutionState::Completed;
        right += usize::from(is_complete && sum == Some(&json!(number + NODES)));
    }
    let listed = store.executions(&ExecutionFilter::default()).await?.len();
    let problems = store.check().await?.problems.len() + usize::from(listed != executions);
    Ok(json!({
        "at_once": AT_ONCE.load(Ordering::Relaxed),
        "right": right,
        "problems": problems,
        "seconds": seconds,
        "work_seconds": work_seconds,
        "peak_bytes": peak_bytes,
        "transactions": transactions,
    }))
}

/// Executions whose first node has begun, and none of whose first nodes has ended.
static AT_ONCE: AtomicUsize = AtomicUsize::new(0);

/// Returns the one closure that the nodes call. The first nodes wait for each other, so that all executions are in
/// flight at once.
fn registry(executions: usize, is_right: bool) -> Registry {
    let (all, _) = watch::channel(false);
    Registry::new().with("add", move |ctx: NodeContext| {
        let all = all.clone();
        async move {
            if ctx.node() == "node_0" {
                if AT_ONCE.fetch_add(1, Ordering::Relaxed) + 1 == executions {
                    all.send_replace(true);
                }
                let are_here = all.subscribe().wait_for(|are_here| *are_here).await.is_ok();
                if !are_here {
                    return Err(NodeError::permanent("the others have gone"));
                }
            }
            let before = ctx.variable("sum").and_then(|sum| sum.as_u64());
            let before = before.or_else(|| ctx.input("number")?.as_u64()).unwrap_or_default();
            Ok(before + 1 + u64::from(!is_right && before == 7))
        }
    })
}

fn workflow() -> Outcome<Workflow> {
    let mut builder = Workflow::builder("many").input("number", InputSpec::integer());
    for n in 0..NODES {
        let before = n.checked_sub(1).map(|before| format!("node_{before}"));
        builder = builder.node(format!("node_{n}"), Node::call("add").needs(before).into("sum"));
    }
    Ok(builder.build()?)
}

/// For figures, which need not be exact.
#[expect(clippy::cast_precision_loss, reason = "figures are rounded")]
fn count(number: usize) -> f64 {
    number as f64
}

/// Returns the most memory that this process has had so far.
pub(crate) fn peak_bytes() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Ok(peak.ok_or("the system does not tell how much memory there was at the peak")?.parse::<u64>()? * 1024)
}

/// Returns how long processors have worked for this process so far.
fn work_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may hold anything. Of what follows, the eleventh and twelfth are the ticks.
    let (_, fields) = stat.rsplit_once(')').ok_or("the system does not tell how long it has worked")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    Ok(f64::from(ticks.sum::<Result<u32, _>>()?) / TICKS_PER_SECOND)
}
