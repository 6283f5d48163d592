//! Injects faults and counts them: what was injected, what was acknowledged before, and what of that is lost after.
//!
//! Every trial prints its seed, how many injections provably happened, and its figure; and each has a control, the same
//! trial with one protection taken away, which must fail. See `docs/reliability.md` for what each shows.

mod bounds;
mod chaos;
mod child;
mod cluster;
mod committing;
mod crew;
mod damage;
mod disk;
mod encryption;
mod fence;
mod full_disk;
mod history;
mod io_errors;
mod kill;
mod loss;
mod migration;
mod model;
mod network;
mod poison;
mod power_cut;
mod race;
mod report;
mod stores;
mod workplace;
mod zombie;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use crate::report::Report;

/// What goes wrong here ends a trial: it has nothing to recover.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How much is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// As much as every run of the tests can afford.
    Short,
    /// Enough to go looking for what is rare.
    Long,
}

/// What a trial is told.
#[derive(Debug, Clone, Copy)]
struct Settings {
    effort: Effort,
    /// Repeats what a trial drew.
    seed: u64,
}

impl Settings {
    /// Returns how many for this effort.
    fn pick(self, short: usize, long: usize) -> usize {
        match self.effort {
            Effort::Short => short,
            Effort::Long => long,
        }
    }
}

/// One kind of fault, or several that belong together.
struct Trial {
    name: &'static str,
    run: fn(Settings) -> Outcome<Report>,
}

/// How many trials run at once: most of them wait for disks and processes.
const AT_ONCE: usize = 3;

/// All trials, in the order in which they begin: the longest first, so that none is left running alone.
const TRIALS: &[Trial] = &[
    Trial { name: "kill", run: kill::run },
    Trial { name: "damage", run: damage::trial },
    Trial { name: "bounds", run: bounds::trial },
    Trial { name: "poison", run: poison::trial },
    Trial { name: "power-cut", run: power_cut::run },
    Trial { name: "io-errors", run: io_errors::run },
    Trial { name: "zombie", run: zombie::run },
    Trial { name: "network", run: network::run },
    Trial { name: "chaos", run: chaos::run },
    Trial { name: "encryption", run: encryption::run },
    Trial { name: "race", run: race::run },
    Trial { name: "migration", run: migration::run },
    Trial { name: "fence", run: fence::run },
    Trial { name: "full-disk", run: full_disk::run },
    Trial { name: "model", run: model::run },
];

const USAGE: &str = "\
usage: retake-reliability [--long] [--seed N] [TRIAL]...

Runs the named trials, or all of them. They need root: they mount file systems and trace processes.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|argument| argument == child::ARGUMENT).is_some() {
        return child::run(&arguments.collect::<Vec<_>>());
    }
    let mut settings = Settings { effort: Effort::Short, seed: fastrand::u64(..) };
    let mut chosen = Vec::new();
    while let Some(argument) = arguments.next() {
        match TRIALS.iter().find(|trial| trial.name == argument) {
            Some(trial) => chosen.push(trial),
            None if argument == "--long" => settings.effort = Effort::Long,
            None if argument == "--seed" => match arguments.next().and_then(|seed| seed.parse().ok()) {
                Some(seed) => settings.seed = seed,
                None => return misused("--seed wants a number"),
            },
            None => return misused(&format!("unknown argument `{argument}`")),
        }
    }
    if chosen.is_empty() {
        chosen.extend(TRIALS);
    }
    match run(&chosen, settings) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs trials, some at once, and all whatever the others find. Returns whether all is as it must be.
fn run(chosen: &[&Trial], settings: Settings) -> bool {
    let waiting = Mutex::new(chosen.iter().rev().collect::<Vec<_>>());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        let mut held = true;
        while let Some(trial) = next() {
            held &= report::tell(trial.name, settings.seed, || (trial.run)(settings));
        }
        held
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        // One that panics has said so.
        let held: Vec<bool> = workers.into_iter().map(|worker| worker.join().unwrap_or(false)).collect();
        held.into_iter().all(|held| held)
    })
}

fn misused(why: &str) -> ExitCode {
    let names: Vec<&str> = TRIALS.iter().map(|trial| trial.name).collect();
    report::complain(&format!("error: {why}\n{USAGE}\ntrials: {}", names.join(", ")));
    ExitCode::from(2)
}
