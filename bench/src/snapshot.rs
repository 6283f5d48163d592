//! Snapshots and rollbacks in memory, beside those of `oxify-model`, which copies every value.

use std::time::Duration;

use retake::execution::ExecutionContext;
use retake::rollback::RollbackManager;
use serde_json::Value;
use uuid::Uuid;

use crate::sample;
use crate::table::{Better, Found, Row, shown};
use crate::timing::{Stopwatch, median, ratio};
use crate::{Effort, Outcome};

type PeerContext = oxify_model::execution::ExecutionContext;
type PeerManager = oxify_model::rollback::RollbackManager;

/// Operations that are timed together, since reading the clock takes as long as one.
const BATCH: u32 = 64;

/// The number of variables that has a goal.
const LARGE: usize = 100_000;

/// What one snapshot takes, a rollback to a state that differs in one variable, and one to an equal state.
struct Times {
    snapshot: Vec<Duration>,
    changed: Vec<Duration>,
    equal: Vec<Duration>,
}

impl Times {
    fn new() -> Self {
        Self { snapshot: Vec::new(), changed: Vec::new(), equal: Vec::new() }
    }
}

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for variables in [10, 1_000, effort.pick(LARGE, 2_000)] {
        let peer_times = if variables > 1_000 { effort.pick(5, 1) } else { effort.pick(101, 3) };
        rows.extend(measure(variables, effort.pick(20, 1), peer_times)?);
    }
    Ok(rows)
}

fn measure(variables: usize, batches_per_turn: usize, turns: usize) -> Outcome<Vec<Row>> {
    let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
    let mut peer = PeerContext::new(Uuid::from_u128(1));
    for n in 0..variables {
        let value = Value::String(format!("value {n}"));
        ctx.set_variable(sample::variable(n), value.clone());
        peer.variables.insert(sample::variable(n), value);
    }
    let (mut manager, mut peer_manager) = (RollbackManager::default(), PeerManager::new(10));
    let (mut ours, mut theirs) = (Times::new(), Times::new());
    for _ in 0..turns {
        for _ in 0..batches_per_turn {
            our_turn(&mut manager, &ctx, &mut ours)?;
        }
        peer_turn(&mut peer_manager, &mut peer, &mut theirs)?;
    }
    let goal = (variables == LARGE).then_some(Found::Time(Duration::from_nanos(100)));
    let row = |what: &str, ours: &[Duration], theirs: &[Duration], goal| {
        let (ours, theirs) = (median(ours), median(theirs));
        Row {
            what: format!("{what}, {variables} variables"),
            ours: shown(ours),
            theirs: format!("oxify-model: {} ({:.0}x)", shown(theirs), ratio(theirs, ours)),
            found: Found::Time(ours),
            goal,
            better: Better::Less,
        }
    };
    Ok(vec![
        row("snapshot in memory", &ours.snapshot, &theirs.snapshot, goal),
        row("rollback in memory, nothing changed since", &ours.equal, &theirs.equal, goal),
        row("rollback in memory, one variable changed since", &ours.changed, &theirs.changed, goal),
    ])
}

fn our_turn(manager: &mut RollbackManager, ctx: &ExecutionContext, times: &mut Times) -> Outcome<()> {
    let watch = Stopwatch::start();
    for _ in 0..BATCH {
        manager.create_snapshot(ctx);
    }
    times.snapshot.push(watch.read() / BATCH);

    let mut contexts: Vec<ExecutionContext> = (0..BATCH).map(|_| ctx.clone()).collect();
    let watch = Stopwatch::start();
    let restored = contexts.iter_mut().map(|ctx| usize::from(manager.rollback(ctx).success)).sum::<usize>();
    times.equal.push(watch.read() / BATCH);
    expect(restored == contexts.len())?;

    for ctx in &mut contexts {
        ctx.set_variable(sample::variable(0), Value::Null);
    }
    let watch = Stopwatch::start();
    let changed: usize = contexts.iter_mut().map(|ctx| manager.rollback(ctx).variables_changed).sum();
    times.changed.push(watch.read() / BATCH);
    expect(changed == contexts.len())
}

fn peer_turn(manager: &mut PeerManager, ctx: &mut PeerContext, times: &mut Times) -> Outcome<()> {
    let watch = Stopwatch::start();
    manager.create_snapshot(ctx);
    times.snapshot.push(watch.read());

    let watch = Stopwatch::start();
    let restored = manager.rollback(ctx).success;
    times.equal.push(watch.read());
    expect(restored)?;

    ctx.variables.insert(sample::variable(0), Value::Null);
    let watch = Stopwatch::start();
    let changed = manager.rollback(ctx).variables_changed;
    times.changed.push(watch.read());
    expect(changed == 1)
}

fn expect(holds: bool) -> Outcome<()> {
    if holds { Ok(()) } else { Err("a rollback did not do what was asked".into()) }
}
