//! Two processes commit on the same head at the same moment: exactly one of them must win, and the other must be told.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionState};
use retake::store::{self, Cause, Commit, Conflict, NewCheckpoint, NewExecution, Seq, StoreError};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use uuid::Uuid;

use crate::cluster;
use crate::report::{self, Report};
use crate::stores::{self, Place};
use crate::{Outcome, Settings, child};

/// The child that commits as any writer does.
pub(crate) const CHILD: &str = "race";

/// The child that writes the same tables without comparing anything.
pub(crate) const BLIND_CHILD: &str = "race-blind";

/// How long after they are told of a race both begin: by then both have heard of it.
const HEAD_START: Duration = Duration::from_micros(300);

/// How often a race is run at most for one in which both were at it at the same time.
const TRIES_PER_RACE_MAX: usize = 4;

/// How long the lease holds under which both commit.
const LEASE: Duration = Duration::from_secs(600);

/// What became of some races.
#[derive(Debug, Default)]
struct Tally {
    /// In which both were at it at the same time.
    races: usize,
    /// In which one had ended before the other began.
    missed: usize,
    conflicts: usize,
    /// Both were told that they had won.
    double: usize,
    /// Nobody was.
    without: usize,
    /// Won, and not in the history.
    overwritten: usize,
    /// The heads of races whose point is not the winner's.
    points: usize,
}

/// What a child says of one race.
struct Told {
    /// The checkpoint that it won with.
    won: Option<Uuid>,
    began: u64,
    ended: u64,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    let (races, blind) = (settings.pick(1_000, 10_000), settings.pick(50, 500));
    for place in stores::places()? {
        let tally = trial(&place, CHILD, races)?;
        let held = tally.races == races
            && tally.conflicts == tally.races + tally.missed
            && tally.double + tally.without + tally.overwritten == 0
            && tally.points == tally.races + tally.missed;
        report.promise(format!("two writers on {}", place.kind()), tally.figure(), held);
        let tally = trial(&place, BLIND_CHILD, blind)?;
        let failed = tally.double > 0 && tally.overwritten > 0;
        report.control(format!("without a comparison, on {}", place.kind()), tally.figure(), failed);
    }
    Ok(report)
}

impl Tally {
    fn figure(&self) -> String {
        let Self { races, missed, conflicts, double, without, overwritten, points } = self;
        format!(
            "{races} races ({missed} more were none), {conflicts} told of a conflict, {double} with two winners, \
             {without} with none, {overwritten} winners overwritten; {points} points"
        )
    }
}

/// Runs so many races for one execution.
fn trial(place: &Place, kind: &str, races: usize) -> Outcome<Tally> {
    let address = place.fresh()?;
    let runtime = cluster::runtime()?;
    let (id, fence) = runtime.block_on(async {
        let store = stores::open(&address).await?;
        let ctx = ExecutionContext::new(Uuid::from_u128(7));
        let new = NewExecution {
            id: ctx.execution_id,
            name: "raced".to_owned(),
            workflow_id: ctx.workflow_id,
            workflow_name: "raced".to_owned(),
            definition: Vec::new(),
            origin: None,
        };
        store.create(new, checkpoint(&ctx, &ctx)?).await?;
        let lease = store.lease(ctx.execution_id, LEASE).await?;
        Outcome::Ok((ctx.execution_id, lease.fence))
    })?;
    let mut racers = [Racer::start(kind, &address, id)?, Racer::start(kind, &address, id)?];
    let mut tally = Tally::default();
    let mut winners = HashSet::new();
    for head in (1..).take(races * TRIES_PER_RACE_MAX) {
        if tally.races == races {
            break;
        }
        let at = now() + u64::try_from(HEAD_START.as_nanos())?;
        for racer in &mut racers {
            racer.go(head, fence, at)?;
        }
        let [first, second] = &mut racers;
        let told = [first.hear()?, second.hear()?];
        match told[0].began < told[1].ended && told[1].began < told[0].ended {
            true => tally.races += 1,
            false => tally.missed += 1,
        }
        let won: Vec<Uuid> = told.iter().filter_map(|told| told.won).collect();
        tally.conflicts += told.len() - won.len();
        match won.len() {
            0 => return Err(format!("nobody wins on @{head}").into()),
            1 => {}
            _ => tally.double += 1,
        }
        winners.extend(won);
    }
    let points: HashSet<Uuid> = stores::Tables::open(&address)?.points()?.into_iter().collect();
    tally.points = points.len();
    tally.overwritten = winners.difference(&points).count();
    tally.without = points.difference(&winners).count();
    Ok(tally)
}

/// A process that commits when it is told to.
struct Racer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Racer {
    fn start(kind: &str, address: &str, id: Uuid) -> Outcome<Self> {
        let mut child = child::command(kind, &[address, &id.to_string()])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().ok_or("the racer hears nothing")?;
        let answers = BufReader::new(child.stdout.take().ok_or("the racer says nothing")?);
        let mut racer = Self { child, orders, answers };
        racer.line()?;
        Ok(racer)
    }

    fn go(&mut self, head: Seq, fence: u64, at: u64) -> Outcome<()> {
        Ok(writeln!(self.orders, "{head} {fence} {at}")?)
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.strip_prefix("refused ") {
            Some(why) => Err(why.trim().into()),
            None if line.is_empty() => Err("a racer has ended".into()),
            None => Ok(line),
        }
    }

    fn hear(&mut self) -> Outcome<Told> {
        let line = self.line()?;
        let [won, began, ended] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("a racer says `{line}`").into());
        };
        Ok(Told { won: Uuid::try_parse(won).ok(), began: began.parse()?, ended: ended.parse()? })
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Commits on the head that it is told, at the moment that it is told.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let (address, id) = told(arguments)?;
    let runtime = cluster::runtime()?;
    let store = runtime.block_on(stores::open(address))?;
    let ctx = ExecutionContext::new(Uuid::from_u128(7));
    // Connections are made and statements prepared before the first race.
    runtime.block_on(store.execution(id))?;
    race(|head, fence, at| {
        let mut next = ctx.clone();
        next.set_variable("race".to_owned(), json!(std::process::id()));
        let checkpoint = checkpoint(&ctx, &next)?;
        let point = checkpoint.id;
        let commit = Commit { execution_id: id, expected_head: head, fence: Some(fence), checkpoint };
        wait_until(at);
        let began = now();
        match runtime.block_on(store.commit(commit)) {
            Ok(_) => Ok((Some(point), began)),
            Err(StoreError::Conflict(Conflict::HeadMoved { .. })) => Ok((None, began)),
            Err(error) => Err(error.into()),
        }
    })
}

/// Writes the tables as a commit does, but for what it compares.
pub(crate) fn blind_child(arguments: &[String]) -> Outcome<()> {
    let (address, id) = told(arguments)?;
    let mut tables = stores::Tables::open(address)?;
    race(|head, _, at| {
        let point = SystemClock::default().new_id();
        wait_until(at);
        let began = now();
        tables.put_point(id, head + 1, point)?;
        Ok((Some(point), began))
    })
}

fn told(arguments: &[String]) -> Outcome<(&str, Uuid)> {
    let [address, id] = arguments else { return Err("a racer wants a store and an execution".into()) };
    Ok((address, Uuid::try_parse(id)?))
}

/// Reads orders, and says how each race ended, and when it began and ended.
fn race(mut run: impl FnMut(Seq, u64, u64) -> Outcome<(Option<Uuid>, u64)>) -> Outcome<()> {
    report::say("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let [head, fence, at] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("`{line}` is no order").into());
        };
        let (won, began) = run(head.parse()?, fence.parse()?, at.parse()?)?;
        let ended = now();
        let won = won.map_or_else(|| "-".to_owned(), |point| point.to_string());
        report::say(&format!("{won} {began} {ended}"));
    }
    Ok(())
}

/// Waits on the processor, so that both begin as close together as two processors can.
fn wait_until(at: u64) {
    while now() < at {
        std::hint::spin_loop();
    }
}

/// Returns the time that all processes of this machine share, in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn checkpoint(before: &ExecutionContext, ctx: &ExecutionContext) -> Outcome<NewCheckpoint> {
    let clock = SystemClock::default();
    let (id, now) = (clock.new_id(), clock.now());
    let before = Some(before).filter(|before| *before != ctx);
    let delta = store::delta(before, ctx, |_| None)?;
    Ok(NewCheckpoint { delta, ..NewCheckpoint::new(id, now, ExecutionState::Running, Cause::Manual) })
}
