//! Two processes' worth of writers on one execution: the one that lost its lease must not get a single point in.
//! Whether its lease had run out is the clock's to say for SQLite, and the server's for PostgreSQL.

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
use crate::stores::{self, Place};
use crate::{Outcome, Settings};

/// How long a lease holds where time passes when the trial says so.
const LEASE: Duration = Duration::from_secs(30);

/// How long it holds where time passes by itself.
const LEASE_ON_A_SERVER: Duration = Duration::from_millis(1);

/// How often a lease is tried that has not run out yet.
const LEASES_MAX: usize = 10_000;

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

/// Two stores on the same tables, and what lets a lease run out.
struct Pair {
    stores: [Arc<dyn Store>; 2],
    /// `None` where time passes by itself.
    clock: Option<Arc<ManualClock>>,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    for (place, (short, long)) in stores::places()?.into_iter().zip([(1_000, 10_000), (300, 3_000)]) {
        let takeovers = settings.pick(short, long);
        let seen = trial(&place, takeovers, settings.seed, Fence::Own)?;
        let figure = format!(
            "{} leases taken over while the first writer was about to commit; {} commits refused, {} stale writes",
            seen.takeovers, seen.refused, seen.stale_writes
        );
        let held = seen.takeovers == takeovers && seen.refused == takeovers && seen.stale_writes == 0;
        report.promise(format!("a writer that lost its lease, on {}", place.kind()), figure, held);
        let seen = trial(&place, settings.pick(100, 1_000), settings.seed, Fence::Newest)?;
        let figure = format!("{} takeovers, {} stale writes", seen.takeovers, seen.stale_writes);
        report.control("the same without the number of its lease", figure, seen.stale_writes > 0);
    }
    Ok(report)
}

impl Pair {
    async fn open(place: &Place) -> Outcome<Self> {
        let address = place.fresh()?;
        match place {
            Place::Sqlite(_) => {
                let clock = Arc::new(ManualClock::default());
                let open = || -> Outcome<Arc<dyn Store>> {
                    let options = Options { clock: clock.clone(), ..Options::default() };
                    Ok(Arc::new(SqliteStore::open_with(&address, options)?))
                };
                Ok(Self { stores: [open()?, open()?], clock: Some(clock) })
            }
            Place::Postgres(_) => {
                let stores = [stores::open(&address).await?, stores::open(&address).await?];
                Ok(Self { stores, clock: None })
            }
        }
    }

    fn ttl(&self) -> Duration {
        match self.clock {
            Some(_) => LEASE,
            None => LEASE_ON_A_SERVER,
        }
    }

    /// Takes over a lease once it has run out: its holder stands still for longer than it holds, as a stopped process
    /// does.
    async fn take_over(&self, store: usize, id: Uuid) -> Outcome<Lease> {
        if let Some(clock) = &self.clock {
            clock.advance(LEASE * 2);
        }
        for _ in 0..LEASES_MAX {
            match self.stores[store].lease(id, self.ttl()).await {
                Err(StoreError::Conflict(Conflict::Leased { .. })) if self.clock.is_none() => {}
                taken => return Ok(taken?),
            }
        }
        Err("a lease does not run out".into())
    }
}

/// Two opened stores take an execution from each other again and again.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn trial(place: &Place, takeovers: usize, seed: u64, fence: Fence) -> Outcome<Seen> {
    let mut random = fastrand::Rng::with_seed(seed);
    let pair = Pair::open(place).await?;
    let stores = &pair.stores;
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
        let lost: Lease = stores[first].lease(id, pair.ttl()).await?;
        let held = pair.take_over(1 - first, id).await?;
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
