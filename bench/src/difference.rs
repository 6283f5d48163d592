//! The difference of two states, beside a comparison of every value of both.

use std::time::Duration;

use retake::engine::{Side, diff};
use retake::execution::ExecutionContext;
use retake::store::{SqliteStore, Store, StoreExt, context, context_sharing};
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use crate::sample::{self, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{median, ratio, timed};
use crate::{Effort, Outcome};

/// How many variables the two states differ in.
const DIFFERENT: usize = 3;

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let variables = effort.pick(100_000, 1_000);
    let directory = tempfile::tempdir()?;
    let runtime = sample::single_threaded()?;
    let store = SqliteStore::open(directory.path().join("retake.db"))?;
    let saved = populate(&runtime, &store, variables)?;

    let (mut together, mut apart) = (Vec::new(), Vec::new());
    let mut pair = load(&runtime, &store, &saved)?;
    for _ in 0..effort.pick(7, 1) {
        let (took, loaded) = timed(|| load(&runtime, &store, &saved));
        pair = loaded?;
        together.push(took);
        let (took, loaded) = timed(|| load_apart(&runtime, &store, &saved));
        if loaded? != pair {
            return Err("a state was read otherwise together than alone".into());
        }
        apart.push(took);
    }

    let (before, after) = &pair;
    let (naive_before, naive_after) = (plain(before), plain(after));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..effort.pick(101, 3) {
        let side = |ctx| Side { ctx, workflow: None };
        let (took, found) = timed(|| diff(&side(before), &side(after)));
        expect(found.variables.len() == DIFFERENT)?;
        ours.push(took);
        let (took, found) = timed(|| naive(&naive_before, &naive_after));
        expect(found == DIFFERENT)?;
        theirs.push(took);
    }
    let row = |what: &str, ours: &[Duration], (theirs, name): (&[Duration], &str), goal| {
        let (ours, theirs) = (median(ours), median(theirs));
        Row {
            what: format!("{what} of {variables} variables that differ in {DIFFERENT}"),
            ours: shown(ours),
            theirs: format!("{name}: {} ({:.1}x)", shown(theirs), ratio(theirs, ours)),
            found: Found::Time(ours),
            goal,
            better: Better::Less,
        }
    };
    let goal = Some(Found::Time(Duration::from_millis(1)));
    Ok(vec![
        row("tell the difference of two loaded states", &ours, (&theirs, "every value compared"), goal),
        row("load two states", &together, (&apart, "each by itself"), None),
    ])
}

/// Saves a state, and as the next checkpoint one that differs from it at its start, in its middle and at its end.
fn populate(runtime: &Runtime, store: &SqliteStore, variables: usize) -> Outcome<Saved> {
    let mut saved = runtime.block_on(Saved::create(store, 0, false))?;
    for n in 0..variables {
        saved.ctx.set_variable(sample::variable(n), Value::String(format!("value {n}")));
    }
    runtime.block_on(saved.save(store))?;
    for n in [0, variables / 2, variables - 1] {
        saved.ctx.set_variable(sample::variable(n), Value::Null);
    }
    runtime.block_on(saved.save(store))?;
    Ok(saved)
}

type States = (ExecutionContext, ExecutionContext);

/// Loads both as the engine does for a difference.
fn load(runtime: &Runtime, store: &SqliteStore, saved: &Saved) -> Outcome<States> {
    let id = saved.id();
    let older = runtime.block_on(store.state(id, saved.head - 1))?;
    let newer = runtime.block_on(store.state(id, saved.head))?;
    let before = context(id, &older)?;
    let after = context_sharing((&before, &older), id, &newer)?;
    Ok((before, after))
}

fn load_apart(runtime: &Runtime, store: &SqliteStore, saved: &Saved) -> Outcome<States> {
    let before = runtime.block_on(store.context(saved.id(), saved.head - 1))?;
    let after = runtime.block_on(store.context(saved.id(), saved.head))?;
    Ok((before, after))
}

/// Returns a state's variables as plain values.
fn plain(ctx: &ExecutionContext) -> Map<String, Value> {
    ctx.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Counts what differs, by a look at every value. (A comparison by `==` would stop at the first.)
fn naive(before: &Map<String, Value>, after: &Map<String, Value>) -> usize {
    let changed = after.iter().filter(|(name, value)| before.get(*name) != Some(value)).count();
    changed + before.keys().filter(|name| !after.contains_key(*name)).count()
}

fn expect(holds: bool) -> Outcome<()> {
    if holds { Ok(()) } else { Err("a difference was not found".into()) }
}
