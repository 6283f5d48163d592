//! The server is killed with SIGKILL while workers run executions on it, and with some of the workers: nothing that was
//! acknowledged may be lost or run again, and all executions must end.

use std::time::Duration;

use crate::cluster::{Cluster, Site, Victim};
use crate::crew::{Audit, Crew, Habit, Terms};
use crate::report::Report;
use crate::{Outcome, Settings};

const WORKERS: usize = 3;

/// How many executions there are to be done before each fault: more than are done until it comes.
const EXECUTIONS_AT_ONCE: usize = 60;

/// Short, so that leases run out while the server is away.
const LEASE: Duration = Duration::from_secs(3);

/// How long the server works between two faults at most, and how long it stays away beside the time that its start takes.
const UP_MS: std::ops::Range<u64> = 200..1_200;
const DOWN_MS: std::ops::Range<u64> = 0..1_500;

/// How long the workers may take until something new is acknowledged.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long all executions may take to end after the last fault.
const ENDED_MAX: Duration = Duration::from_secs(60);

/// How many faults a control goes through at most.
const CONTROL_FAULTS_MAX: usize = 6;

/// What was done, and what became of it.
struct Seen {
    faults: usize,
    executions: usize,
    workers_killed: usize,
    /// How long the server was away, all in all.
    away: Duration,
    ended_after: Option<Duration>,
    audit: Audit,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let mut cluster = Cluster::new(Site::here())?;
    let faults = settings.pick(8, 60);
    let seen = trial(&mut cluster, faults, Habit::Honest, &mut random)?;
    let held = seen.faults == faults && seen.ended_after.is_some() && seen.audit.is_clean();
    report.promise("the server is killed", seen.figure(), held);
    let seen = trial(&mut cluster, CONTROL_FAULTS_MAX, Habit::Hasty, &mut random)?;
    report.control("told before the commit", seen.figure(), seen.audit.lost > 0);
    Ok(report)
}

impl Seen {
    fn figure(&self) -> String {
        let Self { faults, executions, workers_killed, away, ended_after, audit } = self;
        let ended = ended_after.map_or_else(
            || "not all ended".to_owned(),
            |after| format!("all ended {:.0} s after the last", after.as_secs_f64()),
        );
        format!(
            "{faults} kills of the server ({:.0} s away) and {workers_killed} of workers, {executions} executions, {ended}; {}",
            away.as_secs_f64(),
            audit.figure()
        )
    }
}

fn trial(cluster: &mut Cluster, faults: usize, habit: Habit, random: &mut fastrand::Rng) -> Outcome<Seen> {
    let terms = Terms { prefix: Vec::new(), lease: LEASE, habit };
    let mut crew = Crew::new(cluster, terms)?;
    for _ in 0..WORKERS {
        crew.hire()?;
    }
    let (mut workers_killed, mut away, mut executions) = (0, Duration::ZERO, 0);
    let mut told = 0;
    for fault in 0..faults {
        executions = crew.supply(EXECUTIONS_AT_ONCE, cluster, random)?;
        // A fault counts where something was acknowledged since the one before.
        if !crew.wait(PATIENCE, |crew| Ok(crew.acknowledged() > told))? {
            return Err("nothing is acknowledged any more".into());
        }
        std::thread::sleep(Duration::from_millis(random.u64(UP_MS)));
        told = crew.acknowledged();
        let began = crew.now();
        cluster.kill(if fault % 2 == 0 { Victim::Postmaster } else { Victim::Everything })?;
        // Of every two faults, one befalls a worker as well; and in a control each, and all of them.
        let dismissed = match habit {
            Habit::Honest | Habit::Unfenced if random.bool() => {
                vec![random.choice(crew.workers()).unwrap_or(0)]
            }
            Habit::Honest | Habit::Unfenced => Vec::new(),
            Habit::Hasty => crew.workers(),
        };
        workers_killed += dismissed.len();
        for worker in &dismissed {
            crew.dismiss(*worker)?;
        }
        std::thread::sleep(Duration::from_millis(random.u64(DOWN_MS)));
        cluster.start()?;
        away += crew.now().saturating_sub(began);
        for _ in dismissed {
            crew.hire()?;
        }
    }
    let last = crew.now();
    let patience = match habit {
        Habit::Honest | Habit::Unfenced => ENDED_MAX,
        // What is lost is lost.
        Habit::Hasty => Duration::ZERO,
    };
    let ended = crew.wait(patience, |crew| Ok(crew.unfinished(cluster)? == 0))?;
    let ended_after = ended.then(|| crew.now().saturating_sub(last));
    for worker in crew.workers() {
        crew.dismiss(worker)?;
    }
    Ok(Seen { faults, executions, workers_killed, away, ended_after, audit: crew.audit()? })
}
