//! Lets the n-th write or flush of a process fail, and looks for what it says was acknowledged.

use std::path::Path;

use retake::store::{Seq, SqliteStore};

use crate::child::{self, Running, Task, Told};
use crate::committing::Telling;
use crate::disk::Disk;
use crate::loss::{self, Acknowledged, Loss};
use crate::report::Report;
use crate::{Outcome, Settings};

/// Up to which call of a kind each one fails in turn.
const CALLS_MAX: u64 = 40;

/// Commits to each execution beyond those that lead to the failure.
const COMMITS_AFTER: Seq = 10;

/// Calls that fail, by what they are for.
const KINDS: [(&str, &str); 2] =
    [("writes", "pwrite64,pwritev,write,ftruncate,fallocate"), ("flushes", "fsync,fdatasync")];

const ERRORS: [&str; 2] = ["EIO", "ENOSPC"];

/// Whether the disk is well again after a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Once,
    FromThenOn,
}

/// What the process finds, whose calls then fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// No store: it makes one.
    Empty,
    /// A store that was closed.
    Closed,
    /// A store that was not, with all commits in the log.
    Left,
}

/// Commits to each execution before calls fail, where there is a store.
const COMMITS_BEFORE: Seq = 5;

/// One process, and what fails in it.
#[derive(Debug, Clone, Copy)]
struct Failure {
    calls: &'static str,
    error: &'static str,
    nth: u64,
    lasting: Lasting,
    telling: Telling,
}

/// What was seen beside losses.
#[derive(Debug, Default)]
struct Seen {
    calls_failed: usize,
    refused: usize,
    /// Acknowledgements after the first refusal of a process.
    after_a_refusal: usize,
    cuts: usize,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let mut disk = Disk::new()?;
    for (name, calls) in KINDS {
        for error in ERRORS {
            let (mut found, mut seen) = (Loss::default(), Seen::default());
            for nth in 1..=CALLS_MAX {
                let drawn = if random.bool() { Lasting::Once } else { Lasting::FromThenOn };
                let both = [Lasting::Once, Lasting::FromThenOn];
                for lasting in both.into_iter().take(settings.pick(1, 2)) {
                    let lasting = if settings.pick(1, 2) == 1 { drawn } else { lasting };
                    let failure = Failure { calls, error, nth, lasting, telling: Telling::After };
                    fail(&mut disk, &mut random, failure, &mut found, &mut seen)?;
                }
            }
            let Seen { calls_failed, refused, after_a_refusal, cuts } = seen;
            let figure = format!(
                "{} ({calls_failed} calls failed; {refused} refused, then {after_a_refusal} acknowledged; {cuts} \
                 followed by a power cut)",
                found.figure("processes")
            );
            report.promise(format!("{name} that fail with {error}"), figure, found.is_none() && refused > 0);
        }
    }
    let (mut found, mut seen) = (Loss::default(), Seen::default());
    for nth in (1..=CALLS_MAX).step_by(5) {
        let (_, calls) = KINDS[1];
        let lasting = Lasting::FromThenOn;
        let failure = Failure { calls, error: ERRORS[0], nth, lasting, telling: Telling::Before };
        fail(&mut disk, &mut random, failure, &mut found, &mut seen)?;
    }
    report.control(
        "a writer that tells before the store acknowledged",
        found.figure("processes"),
        found.lost > 0,
    );
    Ok(report)
}

/// Lets a child commit while calls fail, lets half of the machines die with it, and looks at what is there.
fn fail(
    disk: &mut Disk,
    random: &mut fastrand::Rng,
    failure: Failure,
    found: &mut Loss,
    seen: &mut Seen,
) -> Outcome<()> {
    let directory = disk.path().join("files");
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir(&directory)?;
    // The directory itself is not what is tried.
    std::fs::File::open(disk.path())?.sync_all()?;
    let path = directory.join("store.db");
    let place = [Place::Empty, Place::Closed, Place::Closed, Place::Left, Place::Left][random.usize(0..5)];
    let past = prepare(place, &path)?;
    let log = tempfile::NamedTempFile::new()?;
    let Failure { nth, telling, .. } = failure;
    let mut command = child::command_line(Task::Commit { commits: nth + COMMITS_AFTER, telling }, &path)?;
    command.splice(0..0, failing(failure, &path, log.path()));
    let told = Running::start(&command)?.finish()?;
    let calls_failed = std::fs::read_to_string(log.path())?.matches("(INJECTED)").count();
    if random.bool() {
        disk.cut()?;
        disk.restart()?;
        seen.cuts += 1;
    }
    let acknowledged = loss::acknowledged(&told);
    found.injections += usize::from(calls_failed > 0);
    found.acknowledged += loss::count(&acknowledged);
    seen.calls_failed += calls_failed;
    let is_refusal = |told: &Told| matches!(told, Told::Refused { .. });
    let after = told.iter().skip_while(|told| !is_refusal(told));
    let refused = after.clone().filter(|told| is_refusal(told)).count();
    seen.refused += refused;
    seen.after_a_refusal += after.count() - refused;
    loss::look_in_store(&path, &acknowledged, &past, found)
}

/// Makes what the process finds. Returns what was acknowledged by then.
fn prepare(place: Place, path: &Path) -> Outcome<Acknowledged> {
    if place == Place::Empty {
        return Ok(Acknowledged::new());
    }
    let task = Task::Commit { commits: COMMITS_BEFORE, telling: Telling::After };
    let told = Running::start(&child::command_line(task, path)?)?.finish()?;
    if place == Place::Closed {
        drop(SqliteStore::open(path)?);
    }
    Ok(loss::acknowledged(&told))
}

/// Returns what to put before a command, so that calls on the files of the store fail in it.
fn failing(failure: Failure, path: &Path, log: &Path) -> Vec<String> {
    let Failure { calls, error, nth, lasting, .. } = failure;
    let when = match lasting {
        Lasting::Once => format!("{nth}"),
        Lasting::FromThenOn => format!("{nth}+"),
    };
    let mut words: Vec<String> = ["strace", "-f", "--seccomp-bpf", "-qqq", "-o"].map(str::to_owned).into();
    words.push(log.display().to_string());
    for end in ["", "-wal", "-shm"] {
        words.extend(["-P".to_owned(), format!("{}{end}", path.display())]);
    }
    words.extend(["-e".to_owned(), format!("trace={calls}")]);
    words.extend(["-e".to_owned(), format!("inject={calls}:error={error}:when={when}")]);
    words
}
