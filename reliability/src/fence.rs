//! Two processes' worth of writers on one execution: the one that lost its lease must not get a single point in.

use std::sync::Arc;
use std::time::Duration;

use retake::clock::{Clock, ManualClock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionState};
use retake::store::{
    self, Cause, Commit, Conflict, Lease, NewCheckpoint, NewExecution, Options, Seq, SqliteStore, Store,
    StoreError,
};
use serde_json::json;
use uuid::Uuid;

use crate::report::Report;
use crate::{Outcome, Settings};

/// How long a lease holds; the time passes when the trial says so.
const LEASE: Duration = Duration::from_secs(30);

/// Whether the writer that lost its lease carries the number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Own,
    /// The newest, as if leases had no numbers.
    Newest,
}

/// What became of the writer that lost its lease.
#[derive(Debug, Default)]
struct Seen {
    takeovers: usize,
    refused: usize,
    stale_writes: usize,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    let takeovers = settings.pick(1_000, 10_000);
    let seen = trial(takeovers, settings.seed, Fence::Own)?;
    let figure = format!(
        "{} leases taken over while the first writer was about to commit; {} commits refused, {} stale writes",
        seen.takeovers, seen.refused, seen.stale_writes
    );
    let held = seen.takeovers == takeovers && seen.refused == takeovers && seen.stale_writes == 0;
    report.promise("a writer that lost its lease", figure, held);
    let seen = trial(settings.pick(100, 1_000), settings.seed, Fence::Newest)?;
    let figure = format!("{} takeovers, {} stale writes", seen.takeovers, seen.stale_writes);
    report.control("the same without the number of its lease", figure, seen.stale_writes > 0);
    Ok(report)
}

/// Two opened stores on one file, of one time, take an execution from each other again and again.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn trial(takeovers: usize, seed: u64, fence: Fence) -> Outcome<Seen> {
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir()?;
    let clock = Arc::new(ManualClock::default());
    let open = || {
        let options = Options { clock: clock.clone(), ..Options::default() };
        SqliteStore::open_with(directory.path().join("store.db"), options)
    };
    let stores = [open()?, open()?];
    let ctx = ExecutionContext::new(Uuid::from_u128(7));
    let id = ctx.execution_id;
    let new = NewExecution {
        id,
        name: "contended".to_owned(),
        workflow_id: ctx.workflow_id,
        workflow_name: "contended".to_owned(),
        definition: Vec::new(),
        origin: None,
    };
    stores[0].create(new, checkpoint(None, &ctx)?).await?;
    let mut seen = Seen::default();
    for head in (1..).take(takeovers) {
        let first = random.usize(0..2);
        let lost: Lease = stores[first].lease(id, LEASE).await?;
        // It stood still for longer than its lease holds, as a stopped process does.
        clock.advance(LEASE * 2);
        let held = stores[1 - first].lease(id, LEASE).await?;
        seen.takeovers += 1;
        let number = match fence {
            Fence::Own => lost.fence,
            Fence::Newest => held.fence,
        };
        let mut next = ctx.clone();
        next.set_variable("takeover".to_owned(), json!(head));
        // Both are about to write the next point, and it is not said who is first.
        let (stale, rightful) = tokio::join!(
            stores[first].commit(on(id, head, number, checkpoint(Some(&ctx), &next)?)),
            stores[1 - first].commit(on(id, head, held.fence, checkpoint(Some(&ctx), &next)?)),
        );
        match stale {
            Ok(_) => seen.stale_writes += 1,
            Err(StoreError::Conflict(Conflict::Fenced { .. })) => seen.refused += 1,
            Err(StoreError::Conflict(Conflict::HeadMoved { .. })) if fence == Fence::Newest => {}
            Err(error) => return Err(error.into()),
        }
        match rightful {
            Ok(_) => {}
            Err(StoreError::Conflict(Conflict::HeadMoved { .. })) if fence == Fence::Newest => {}
            Err(error) => return Err(error.into()),
        }
        stores[1 - first].release(&held).await?;
    }
    let report = stores[0].check().await?;
    match report.problems.first() {
        None => Ok(seen),
        Some(problem) => Err(problem.as_str().into()),
    }
}

fn on(id: Uuid, head: Seq, fence: u64, checkpoint: NewCheckpoint) -> Commit {
    Commit { execution_id: id, expected_head: head, fence: Some(fence), checkpoint }
}

fn checkpoint(before: Option<&ExecutionContext>, ctx: &ExecutionContext) -> Outcome<NewCheckpoint> {
    let clock = SystemClock::default();
    let (id, now) = (clock.new_id(), clock.now());
    let delta = store::delta(before, ctx, |_| None)?;
    Ok(NewCheckpoint { delta, ..NewCheckpoint::new(id, now, ExecutionState::Running, Cause::Manual) })
}
