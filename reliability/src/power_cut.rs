//! Cuts the power under a process that commits, and looks for what was acknowledged before.

use std::path::Path;
use std::time::Duration;

use retake::store::Seq;

use crate::child::{self, Running, Task, Told};
use crate::committing::{self, Telling};
use crate::disk::Disk;
use crate::loss::{self, Acknowledged, Loss};
use crate::report::Report;
use crate::{Outcome, Settings};

/// Cuts that a store goes through before another takes its place, so that it has a past, and one with an end.
const CUTS_PER_STORE: usize = 20;

/// The longest time from the first acknowledgement to a cut.
const CUT_AFTER_US_MAX: u64 = 40_000;

/// One in so many cuts is drawn from the moment the process starts, so that some befall it while it opens the store.
const EARLY_ONE_IN: usize = 8;

/// Calls that flush what was written to the disk.
const FLUSHES: &str = "fsync,fdatasync,sync_file_range,msync";

/// Who writes while the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// The default store.
    Store,
    /// The default store, whose flushes do nothing and say that they did.
    StoreUnflushed,
    /// An append and a flush: what every disk must keep.
    Append,
    /// SQLite, told to flush now and then only.
    SqliteUnflushed,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let mut disk = Disk::new()?;
    let controls = settings.pick(10, 50);
    for (writer, cuts) in [
        (Writer::Append, controls),
        (Writer::Store, settings.pick(100, 1_000)),
        (Writer::StoreUnflushed, controls),
        (Writer::SqliteUnflushed, controls),
    ] {
        let found = cut(&mut disk, &mut random, writer, cuts)?;
        match writer {
            Writer::Append => {
                report.promise("an append and fdatasync lose nothing", found.figure("cuts"), found.is_none());
            }
            Writer::Store => {
                report.promise("the store loses nothing acknowledged", found.figure("cuts"), found.is_none());
            }
            Writer::StoreUnflushed => {
                report.control("the store with its fsync taken away", found.figure("cuts"), found.lost > 0);
            }
            Writer::SqliteUnflushed => {
                report.control("SQLite with synchronous=NORMAL", found.figure("cuts"), found.lost > 0);
            }
        }
    }
    Ok(report)
}

/// Cuts the power that often.
fn cut(disk: &mut Disk, random: &mut fastrand::Rng, writer: Writer, cuts: usize) -> Outcome<Loss> {
    let mut found = Loss::default();
    let mut past = Acknowledged::new();
    // What lost its flushes may be damaged, and is of no use after.
    let cuts_per_file = if writer == Writer::StoreUnflushed { 1 } else { CUTS_PER_STORE };
    // Some befall nobody who was told of anything, and do not count.
    for attempt in 0..2 * cuts {
        if found.injections == cuts {
            break;
        }
        let directory = disk.path().join("files");
        if attempt % cuts_per_file == 0 && directory.exists() {
            std::fs::remove_dir_all(&directory)?;
            past.clear();
        }
        std::fs::create_dir_all(&directory)?;
        // The directory itself is not what is tried.
        std::fs::File::open(disk.path())?.sync_all()?;
        let path = directory.join("store.db");
        let acknowledged = write_until_cut(disk, random, writer, &path)?;
        disk.restart()?;
        found.injections += usize::from(!acknowledged.is_empty());
        found.acknowledged += loss::count(&acknowledged);
        match writer {
            Writer::Store | Writer::StoreUnflushed => {
                loss::look_in_store(&path, &acknowledged, &past, &mut found)?;
            }
            Writer::Append => look(&acknowledged, |seq| committing::file_has(&path, seq), &mut found),
            Writer::SqliteUnflushed => {
                look(&acknowledged, |seq| committing::sqlite_has(&path, seq), &mut found);
            }
        }
        past.extend(acknowledged);
    }
    Ok(found)
}

/// Lets a child write, and cuts the power at a moment that is drawn. Returns what had been acknowledged by then.
fn write_until_cut(
    disk: &Disk,
    random: &mut fastrand::Rng,
    writer: Writer,
    path: &Path,
) -> Outcome<Acknowledged> {
    let task = match writer {
        Writer::Store | Writer::StoreUnflushed => Task::Commit { commits: Seq::MAX, telling: Telling::After },
        Writer::Append => Task::Append,
        Writer::SqliteUnflushed => Task::InsertUnflushed,
    };
    let mut command = child::command_line(task, path)?;
    if writer == Writer::StoreUnflushed {
        command.splice(0..0, without_flushes());
    }
    let running = Running::start(&command)?;
    if random.usize(0..EARLY_ONE_IN) > 0 {
        running.wait_for_a_word();
    }
    // The moment of the cut is what the trial draws.
    std::thread::sleep(Duration::from_micros(random.u64(0..CUT_AFTER_US_MAX)));
    running.stop()?;
    disk.cut()?;
    let told = running.kill()?;
    let refusal = told.iter().find_map(|told| match told {
        Told::Acknowledged { .. } => None,
        Told::Refused { why } => Some(why),
    });
    match refusal {
        Some(why) => Err(format!("a write failed before the power did: {why}").into()),
        None => Ok(loss::acknowledged(&told)),
    }
}

/// Returns what to put before a command, so that its flushes do nothing and succeed. The process stays ours.
fn without_flushes() -> Vec<String> {
    let inject = format!("inject={FLUSHES}:retval=0");
    let trace = format!("trace={FLUSHES}");
    ["strace", "-D", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject]
        .map(str::to_owned)
        .into()
}

fn look(acknowledged: &Acknowledged, has: impl Fn(Seq) -> bool, found: &mut Loss) {
    for known in acknowledged.values() {
        let lost = known.clone().filter(|seq| !has(*seq)).count();
        found.lose(lost, || format!("{lost} of {known:?}"));
    }
}
