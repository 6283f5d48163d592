//! Kills `retake` with SIGKILL at random moments, goes on, and checks every acknowledged result against a journal that
//! the nodes themselves keep outside the store.

mod going_back;
mod lying;
mod running;

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use self::lying::Disk;
use crate::report::Report;
use crate::workplace::{self, Workplace};
use crate::{Outcome, Settings};

/// One in so many kills befalls runs under each checkpoint policy; the others befall operations.
const RUNNING_ONE_IN: usize = 3;

/// How often to try until a kill befalls an operation that was acknowledged, on a disk that forgets it.
const LIES_MAX: usize = 100;

/// The figures of the kills.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    executions: usize,
    /// Results that were durable at a kill.
    durable: usize,
    /// Results that were in flight at a kill, and ran again.
    again: usize,
    /// Kills by what they befell: those before it was durable, and those after.
    operations: BTreeMap<&'static str, (usize, usize)>,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let kills = settings.pick(300, 1_500);
    let running = kills / RUNNING_ONE_IN;
    let (mut runs, mut operations) = (Tally::default(), Tally::default());
    let (mut first, mut second) = (random.fork(), random.fork());
    // At the same time, as both wait for most of it.
    let (runs_done, operations_done) = std::thread::scope(|scope| {
        let other = scope.spawn(|| running::kill(&mut first, running, &mut runs));
        let operations_done = going_back::kill(&mut second, kills - running, Disk::Honest, &mut operations);
        (other.join(), operations_done)
    });
    let runs_done = runs_done.map_err(|_| "the kills of runs ended in a panic")?;
    report.promise("runs and resumes", runs.figure(&runs_done), runs_done.is_ok());
    report.promise("operations", operations.figure(&operations_done), operations_done.is_ok());

    let mut tally = Tally::default();
    let done = running::lie(&mut random, &mut tally);
    report.control("runs on a disk that lies", tally.figure(&done), done.is_err());
    let mut tally = Tally::default();
    let done = going_back::kill(&mut random, LIES_MAX, Disk::Lying, &mut tally);
    report.control("operations on a disk that lies", tally.figure(&done), done.is_err());
    Ok(report)
}

impl Tally {
    fn figure(&self, done: &Outcome<()>) -> String {
        let Self { kills, executions, durable, again, operations } = self;
        let mut text =
            format!("{kills} kills in {executions} executions, {durable} results durable at a kill");
        if let Err(wrong) = done {
            return format!("{text}; wrong: {wrong}");
        }
        text.push_str(&format!(", 0 of them lost, 0 run again ({again} in flight ran again)"));
        if !operations.is_empty() {
            let each = operations.iter().map(|(name, (before, after))| format!("{name} {before}+{after}"));
            text.push_str(&format!(
                "; before and after it was durable: {}",
                each.collect::<Vec<_>>().join(", ")
            ));
        }
        text
    }
}

/// Says what is wrong where something is.
fn ensure(holds: bool, wrong: impl FnOnce() -> String) -> Outcome<()> {
    if holds { Ok(()) } else { Err(wrong().into()) }
}

/// Runs a command and kills it after a while, if it is still there. Returns how it ended.
fn kill_after(place: &Workplace, arguments: &[&str], wait: Duration) -> Outcome<Output> {
    let mut child = place.start(arguments)?;
    // The moment of the kill is what the trial draws.
    std::thread::sleep(wait);
    child.kill()?;
    Ok(child.wait_with_output()?)
}

/// Tells whether a command was killed; else it had ended by itself.
fn was_killed(output: &Output) -> bool {
    output.status.code().is_none()
}

/// Checks every record of the store, if there is one.
fn ensure_sound(place: &Workplace) -> Outcome<()> {
    let output = place.retake(&["doctor", "--json"])?;
    let is_without_store = output.status.code() == Some(3);
    ensure(output.status.success() || is_without_store, || workplace::told(&["doctor"], &output))
}

/// Returns what `show` says of a run, or `None` where there is no such run.
fn state(place: &Workplace, address: &str) -> Outcome<Option<Value>> {
    let arguments = ["show", address, "--json"];
    let output = place.retake(&arguments)?;
    match output.status.code() {
        Some(0) => Ok(Some(serde_json::from_slice(&output.stdout)?)),
        Some(3) => Ok(None),
        _ => Err(workplace::told(&arguments, &output).into()),
    }
}
