//! Damaged stores: whatever is wrong with the files, what is read is what was written, or an error that says what is
//! damaged.

mod harm;
mod look;
mod original;
mod plain;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use self::harm::{Harm, Victim};
use self::look::Verdict;
use self::original::{Original, Shape};
use crate::report::Report;
use crate::{Outcome, Settings};

/// How long a damaged store may take to be read.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many cases that fail are told of, and how many are kept.
const TOLD_MAX: usize = 5;

/// Of how many stores one may have a log that looks unfinished.
const UNFINISHED_SHARE_MIN: usize = 20;

/// Of how many stores one may lose what nothing tells.
const OUTDATED_SHARE_MIN: usize = 100;

/// Panics of any thread, the store's own among them.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// One store, what was done to it, and what came of it.
#[derive(Debug)]
struct Case {
    number: usize,
    harms: Vec<(Victim, Harm)>,
    verdict: Result<Verdict, &'static str>,
}

/// What became of all cases.
#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    found: usize,
    unharmed: usize,
    /// Older, as their log was cut off.
    cut: usize,
    /// Older, as damage made the last commit of their log look unfinished.
    unfinished: usize,
    /// How many commits each of those has lost at most.
    unfinished_commits_max: usize,
    /// Without entries of operation logs or requests, as a page is what it once was.
    outdated: usize,
    wrong: usize,
    silent: usize,
    unnamed: usize,
    hung: usize,
    told: Vec<String>,
}

pub(crate) fn trial(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    let directory = tempfile::tempdir_in(fast_directory())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let original = runtime.block_on(original::make(directory.path(), settings.seed))?;
    let original = Arc::new(original);
    for (shape, name) in [(&original.at_rest, "at rest"), (&original.at_work, "at work")] {
        let path = write(directory.path(), &shape.main, shape.log.as_deref())?;
        let verdict = examine(&original, shape, &path).map_err(|error| error.to_string())?;
        if verdict != Verdict::Unharmed {
            return Err(format!("the store {name} without damage: {verdict:?}").into());
        }
    }
    std::panic::set_hook(Box::new(|info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        crate::report::complain(&info.to_string());
    }));
    let cases = settings.pick(5_000, 50_000);
    let tally = run_all(&original, settings.seed, cases, directory.path())?;
    drop(std::panic::take_hook());
    let panics = PANICS.load(Ordering::Relaxed);
    report.promise(
        "damaged stores",
        format!(
            "{cases} of {} and {} KB: {} said something wrong, {} lost something and did not say so, {panics} panics, {} \
             hung, {} errors without a name; {} refused when opened, {} read with errors that name what is damaged, {} \
             unharmed{}",
            original.at_rest.main.len() / 1024,
            original.at_work.log.as_ref().map_or(0, Vec::len) / 1024,
            tally.wrong,
            tally.silent,
            tally.hung,
            tally.unnamed,
            tally.refused,
            tally.found,
            tally.unharmed,
            tally.told.iter().map(|line| format!("\n    {line}")).collect::<String>(),
        ),
        tally.wrong + tally.silent + panics + tally.hung + tally.unnamed == 0,
    );
    report.promise(
        "what cannot be told from a power cut",
        format!(
            "{} whose log was cut off, and {} where the last commits in it were damaged, lost commits and are otherwise \
             whole: at most {} of the latter",
            tally.cut, tally.unfinished, tally.unfinished_commits_max,
        ),
        tally.unfinished * UNFINISHED_SHARE_MIN <= cases,
    );
    report.promise(
        "what nothing tells",
        format!("{} with a page as it once was lost entries of an operation log or requests", tally.outdated),
        tally.outdated * OUTDATED_SHARE_MIN <= cases,
    );
    let plain = plain::control(&original, settings, directory.path())?;
    report.control(
        "the same tables, read without their checksums",
        format!("{} of {} files with one flipped bit gave wrong data and no error", plain.wrong, plain.read),
        plain.wrong > 0,
    );
    Ok(report)
}

/// What is damaged need not be durable.
fn fast_directory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Puts a store's files into a directory of their own.
fn write(directory: &Path, main: &[u8], log: Option<&[u8]>) -> Outcome<PathBuf> {
    let place = tempfile::tempdir_in(directory)?.keep();
    let path = place.join("retake.db");
    std::fs::write(&path, main)?;
    if let Some(log) = log {
        std::fs::write(place.join("retake.db-wal"), log)?;
    }
    Ok(path)
}

/// Runs all cases, some at a time.
fn run_all(original: &Arc<Original>, seed: u64, cases: usize, directory: &Path) -> Outcome<Tally> {
    let next = Arc::new(AtomicUsize::new(0));
    let (done, results) = mpsc::channel();
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        let (original, next, done, directory) =
            (Arc::clone(original), Arc::clone(&next), done.clone(), directory.to_owned());
        std::thread::spawn(move || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= cases || done.send(case(&original, seed, number, &directory)).is_err() {
                    return;
                }
            }
        });
    }
    drop(done);
    let mut tally = Tally::default();
    for case in results {
        tally.count(case?, seed);
    }
    Ok(tally)
}

/// Damages a store, and looks at it in a thread that may hang.
fn case(original: &Arc<Original>, seed: u64, number: usize, directory: &Path) -> Result<Case, String> {
    // Seeds that follow each other must not have cases in common.
    let first = fastrand::Rng::with_seed(seed).u64(..);
    let mut draw = fastrand::Rng::with_seed(first.wrapping_add(number as u64));
    let shape = if draw.u8(..3) == 0 { &original.at_rest } else { &original.at_work };
    let (mut main, mut log) = (shape.main.clone(), shape.log.clone());
    let victims: &[Victim] = match (&log, draw.u8(..3)) {
        (None, _) | (Some(_), 0) => &[Victim::Main],
        (Some(_), 1) => &[Victim::Log],
        (Some(_), _) => &[Victim::Main, Victim::Log],
    };
    let mut harms = Vec::new();
    for victim in victims {
        let harm: Harm = harm::any(&mut draw);
        let file = match (victim, &mut log) {
            (Victim::Log, Some(log)) => log,
            (Victim::Main | Victim::Log, _) => &mut main,
        };
        harm::harm(file, harm, *victim, &original.stale, &mut draw);
        harms.push((*victim, harm));
    }
    let path = write(directory, &main, log.as_deref()).map_err(|error| error.to_string())?;
    let (sender, verdict) = mpsc::channel();
    let (shared, is_at_rest) = (Arc::clone(original), shape.log.is_none());
    let place = path.clone();
    std::thread::spawn(move || {
        let shape = if is_at_rest { &shared.at_rest } else { &shared.at_work };
        let verdict = examine(&shared, shape, &place);
        drop(sender.send(verdict.map_err(|error| error.to_string())));
    });
    let verdict = match verdict.recv_timeout(PATIENCE) {
        Ok(verdict) => Ok(verdict?),
        Err(mpsc::RecvTimeoutError::Timeout) => Err("it hung"),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("it panicked"),
    };
    let case = Case { number, harms, verdict };
    let place = path.parent().unwrap_or(&path);
    if !case.is_good() {
        keep(seed, number, &main, log.as_deref()).map_err(|error| error.to_string())?;
    }
    std::fs::remove_dir_all(place).map_err(|error| error.to_string())?;
    Ok(case)
}

/// Keeps the files of a case that failed, so that they can be looked at.
fn keep(seed: u64, number: usize, main: &[u8], log: Option<&[u8]>) -> std::io::Result<()> {
    let place = std::env::temp_dir().join(format!("retake-damage-{seed}-{number}"));
    std::fs::create_dir_all(&place)?;
    std::fs::write(place.join("retake.db"), main)?;
    log.map_or(Ok(()), |log| std::fs::write(place.join("retake.db-wal"), log))
}

/// Opens a store, asks it everything, and judges what it says.
fn examine(original: &Original, shape: &Shape, path: &Path) -> Outcome<Verdict> {
    let store = match look::open(path) {
        Ok(store) => store,
        Err(error) if look::is_named(&error) => return Ok(Verdict::Refused),
        Err(error) => return Ok(Verdict::Unnamed(format!("opening: {error:?}"))),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let reading = runtime.block_on(look::read(&store, &original.questions));
    Ok(reading.verdict(&original.questions, &shape.moments))
}

impl Case {
    fn has(&self, victim: Victim, is: impl Fn(Harm) -> bool) -> bool {
        self.harms.iter().any(|(harmed, harm)| *harmed == victim && is(*harm))
    }

    /// Tells whether a page of the file is what it once was: each row in it is whole, and was true.
    fn is_outdated(&self) -> bool {
        self.has(Victim::Main, |harm| harm == Harm::StalePage)
    }

    fn is_good(&self) -> bool {
        match &self.verdict {
            Ok(Verdict::Refused | Verdict::Unharmed | Verdict::Found) => true,
            Ok(Verdict::Older(_)) => self.has(Victim::Log, |_| true),
            Ok(Verdict::LogSilent) => self.is_outdated(),
            Ok(Verdict::Wrong(_) | Verdict::Silent(_) | Verdict::Unnamed(_)) | Err(_) => false,
        }
    }
}

impl Tally {
    fn count(&mut self, case: Case, seed: u64) {
        if !case.is_good() && self.told.len() < TOLD_MAX {
            self.told
                .push(format!("case {} of seed {seed}, {:?}: {:?}", case.number, case.harms, case.verdict));
        }
        match case.verdict {
            Ok(Verdict::Refused) => self.refused += 1,
            Ok(Verdict::Found) => self.found += 1,
            Ok(Verdict::Unharmed) => self.unharmed += 1,
            Ok(Verdict::Older(_))
                if case.has(Victim::Log, |harm| matches!(harm, Harm::Cut | Harm::CutAtPage)) =>
            {
                self.cut += 1;
            }
            Ok(Verdict::Older(commits)) if case.has(Victim::Log, |_| true) => {
                self.unfinished += 1;
                self.unfinished_commits_max = self.unfinished_commits_max.max(commits);
            }
            Ok(Verdict::LogSilent) if case.is_outdated() => self.outdated += 1,
            Ok(Verdict::Wrong(_)) => self.wrong += 1,
            Ok(Verdict::Older(_) | Verdict::LogSilent | Verdict::Silent(_)) => self.silent += 1,
            Ok(Verdict::Unnamed(_)) => self.unnamed += 1,
            Err("it hung") => self.hung += 1,
            // Counted where it happens.
            Err(_) => {}
        }
    }
}
