//! Workers are stopped for longer than their leases hold, and then go on: another has taken over what they advanced, and
//! nothing of what they still do may get into the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use retake::store::CLAIMS_MAX;
use uuid::Uuid;

use crate::cluster::{Cluster, Site};
use crate::crew::{Audit, Crew, Habit, Terms, Told};
use crate::report::Report;
use crate::{Outcome, Settings};

const WORKERS: usize = 3;

/// How many executions are kept waiting or running.
const EXECUTIONS_AT_ONCE: usize = 12;

/// The shortest that there is: so long a worker must be stopped.
const LEASE: Duration = Duration::from_secs(1);

/// No more than one takeover in so many may find its worker between its look at the lease and what the node does first,
/// which nobody can prevent: the node then begins though another has recorded it. These are some microseconds.
const LATE_ONE_IN: usize = 50;

/// How long it may take until something happens that must.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait between two looks for a worker to stop.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// How long a worker that goes on may take to say that it lost what it had.
const WORD_MAX: Duration = Duration::from_secs(5);

/// An execution that a worker holds the lease of.
#[derive(Debug)]
struct Held {
    fence: u64,
    /// Which claim in a row it is that nobody has settled.
    claims: u32,
}

/// An execution that was taken over while its worker was stopped.
#[derive(Debug)]
struct Takeover {
    worker: usize,
    execution: Uuid,
    /// What was recorded when the worker went on.
    recorded: BTreeSet<String>,
    /// How many lines the journal had then.
    lines: usize,
}

/// What was done, and what became of it.
#[derive(Debug, Default)]
struct Seen {
    stops: usize,
    takeovers: Vec<Takeover>,
    /// Of the takeovers, those that the stopped worker said it had lost.
    told: usize,
    executions: usize,
    /// Results of stopped workers that were recorded after they had gone on.
    stale: usize,
    /// Nodes that a stopped worker began when it went on, though another had recorded them.
    late: usize,
    audit: Audit,
    completed: bool,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let cluster = Cluster::new(Site::here())?;
    let stops = settings.pick(30, 200);
    let seen = trial(&cluster, stops, Habit::Honest, &mut random)?;
    let held = seen.stops == stops
        && seen.told == seen.takeovers.len()
        && seen.stale == 0
        && seen.completed
        && seen.audit.is_whole()
        && seen.late == seen.audit.again.len()
        && seen.late * LATE_ONE_IN <= seen.takeovers.len();
    report.promise("a worker that was stopped past its lease", seen.figure(), held);
    let seen = trial(&cluster, settings.pick(3, 10), Habit::Unfenced, &mut random)?;
    report.control("the same without fences", seen.figure(), seen.stale > 0);
    Ok(report)
}

impl Seen {
    fn figure(&self) -> String {
        let Self { stops, takeovers, told, executions, stale, late, audit, completed } = self;
        let completed = if *completed { "all ended" } else { "not all ended" };
        format!(
            "{stops} stops, {} executions taken over, of which the stopped worker told {told}, {stale} stale writes, \
             {late} nodes begun at the moment of going on; {executions} executions, {completed}; {}",
            takeovers.len(),
            audit.figure()
        )
    }
}

fn trial(cluster: &Cluster, stops: usize, habit: Habit, random: &mut fastrand::Rng) -> Outcome<Seen> {
    let mut crew = Crew::new(cluster, Terms { prefix: Vec::new(), lease: LEASE, habit })?;
    for _ in 0..WORKERS {
        crew.hire()?;
    }
    let mut seen = Seen::default();
    while seen.stops < stops {
        let worker = busy_worker(&mut crew, cluster, &mut seen, random)?;
        crew.stop(worker)?;
        // What it had finished by then is none of this.
        let held = held_by(&crew, cluster, worker)?;
        // What it had given back on its way is no takeover.
        let taken = |crew: &Crew| Ok(held_by(crew, cluster, worker)?.is_empty());
        if !crew.wait(PATIENCE, taken)? {
            return Err("nobody takes over what a stopped worker had".into());
        }
        let begin = seen.takeovers.len();
        let lines = crew.lines().len();
        for execution in taken_over(&crew, cluster, &held)? {
            let recorded = crew.recorded(execution)?.into_values().collect();
            seen.takeovers.push(Takeover { worker, execution, recorded, lines });
        }
        let went_on = crew.now();
        crew.go_on(worker)?;
        seen.stops += usize::from(seen.takeovers.len() > begin);
        let mut told = 0;
        let has_told = |crew: &Crew| {
            told = seen.takeovers[begin..].iter().filter(|takeover| is_told(crew, takeover, went_on)).count();
            Ok(told == seen.takeovers.len() - begin)
        };
        let patience = if habit == Habit::Honest { WORD_MAX } else { Duration::ZERO };
        crew.wait(patience, has_told)?;
        seen.told += told;
    }
    seen.completed = crew.wait(PATIENCE, |crew| Ok(crew.unfinished(cluster)? == 0))?;
    for worker in crew.workers() {
        crew.dismiss(worker)?;
    }
    seen.audit = crew.audit()?;
    let is_late = |(execution, worker, place): &&(Uuid, usize, usize)| {
        let mut takeovers = seen.takeovers.iter();
        takeovers.any(|takeover| {
            (takeover.execution, takeover.worker) == (*execution, *worker) && *place >= takeover.lines
        })
    };
    seen.late = seen.audit.again.iter().filter(is_late).count();
    let lines = crew.lines();
    for takeover in &seen.takeovers {
        let of_the_stopped = lines[..takeover.lines].iter().filter(|line| {
            line.happened == "began" && line.worker == takeover.worker && line.execution == takeover.execution
        });
        let recorded = seen.audit.words.get(&takeover.execution);
        for line in of_the_stopped.filter(|line| !takeover.recorded.contains(&line.word)) {
            let is_recorded = recorded.is_some_and(|words| words.contains(&line.word));
            seen.stale += usize::from(is_recorded);
        }
    }
    Ok(seen)
}

/// Returns a worker that advances several executions, of which there are always enough.
fn busy_worker(
    crew: &mut Crew,
    cluster: &Cluster,
    seen: &mut Seen,
    random: &mut fastrand::Rng,
) -> Outcome<usize> {
    let began = crew.now();
    while crew.now().saturating_sub(began) < PATIENCE {
        seen.executions = crew.supply(EXECUTIONS_AT_ONCE, cluster, random)?;
        let worker = random.usize(0..WORKERS);
        let held = held_by(crew, cluster, worker)?;
        // One that was taken over too often in a row is nobody's any more.
        let may_pass_on = held.values().all(|held| held.claims < CLAIMS_MAX - 1);
        if held.len() > 1 && may_pass_on {
            return Ok(worker);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Err("no worker has anything to do".into())
}

/// Returns the executions whose lease a worker holds and that have not ended.
fn held_by(crew: &Crew, cluster: &Cluster, worker: usize) -> Outcome<BTreeMap<Uuid, Held>> {
    let pid = crew.pid(worker)?.as_raw_nonzero();
    let sql = format!(
        "SELECT e.id || ' ' || e.fence || ' ' || t.claims FROM {0}.executions e \
         JOIN {0}.tickets t ON t.execution = e.key \
         WHERE convert_from(e.owner, 'UTF8') LIKE 'process {pid} %' AND e.state_name <> 'completed'",
        crew.schema()
    );
    let held = |row: &String| {
        let [id, fence, claims] = row.split(' ').collect::<Vec<_>>()[..] else { return None };
        Some((id.parse().ok()?, Held { fence: fence.parse().ok()?, claims: claims.parse().ok()? }))
    };
    Ok(cluster.query(&sql)?.iter().filter_map(held).collect())
}

/// Returns those executions that somebody else holds by now, or has held.
fn taken_over(crew: &Crew, cluster: &Cluster, held: &BTreeMap<Uuid, Held>) -> Outcome<Vec<Uuid>> {
    let sql = format!("SELECT id || ' ' || fence FROM {}.executions", crew.schema());
    let is_taken = |row: &String| {
        let (id, fence) = row.split_once(' ')?;
        let (id, fence): (Uuid, u64) = (id.parse().ok()?, fence.parse().ok()?);
        held.get(&id).filter(|before| fence > before.fence).map(|_| id)
    };
    Ok(cluster.query(&sql)?.iter().filter_map(is_taken).collect())
}

fn is_told(crew: &Crew, takeover: &Takeover, since: Duration) -> bool {
    crew.heard().iter().any(|heard| {
        let is_lost = matches!(&heard.told, Told::Lost { execution, .. } if *execution == takeover.execution);
        is_lost && heard.worker == takeover.worker && heard.at >= since
    })
}
