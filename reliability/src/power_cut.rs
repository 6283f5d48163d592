//! Cuts the power under a process that commits, and looks for what was acknowledged before.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use retake::execution::ExecutionId;
use retake::store::{ExecutionFilter, HistoryPage, Seq, SqliteStore, Store, StoreExt};

use crate::child::{self, Running, Task, Told};
use crate::committing::{self, Telling};
use crate::disk::Disk;
use crate::report::Report;
use crate::{Outcome, Settings, history};

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

/// The figures of many cuts.
#[derive(Debug, Default)]
struct Tally {
    /// Cuts with an acknowledgement since the cut before.
    cuts: usize,
    acknowledged: usize,
    lost: usize,
    /// Stores that could not be opened, or were not sound.
    damaged: usize,
    /// What was found first.
    example: Option<String>,
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
        let tally = cut(&mut disk, &mut random, writer, cuts)?;
        match writer {
            Writer::Append => {
                report.promise("an append and fdatasync lose nothing", tally.figure(), tally.is_whole());
            }
            Writer::Store => {
                report.promise("the store loses nothing acknowledged", tally.figure(), tally.is_whole());
            }
            Writer::StoreUnflushed => {
                report.control("the store with its fsync taken away", tally.figure(), tally.lost > 0);
            }
            Writer::SqliteUnflushed => {
                report.control("SQLite with synchronous=NORMAL", tally.figure(), tally.lost > 0);
            }
        }
    }
    Ok(report)
}

/// Cuts the power that often.
fn cut(disk: &mut Disk, random: &mut fastrand::Rng, writer: Writer, cuts: usize) -> Outcome<Tally> {
    let mut tally = Tally::default();
    let mut past = Acknowledged::new();
    // What lost its flushes may be damaged, and is of no use after.
    let cuts_per_file = if writer == Writer::StoreUnflushed { 1 } else { CUTS_PER_STORE };
    // Some befall nobody who was told of anything, and do not count.
    for attempt in 0..2 * cuts {
        if tally.cuts == cuts {
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
        tally.cuts += usize::from(!acknowledged.is_empty());
        tally.acknowledged += count(&acknowledged);
        match writer {
            Writer::Store | Writer::StoreUnflushed => {
                look_in_store(&path, &acknowledged, &past, &mut tally)?;
            }
            Writer::Append => look(&acknowledged, |seq| committing::file_has(&path, seq), &mut tally),
            Writer::SqliteUnflushed => {
                look(&acknowledged, |seq| committing::sqlite_has(&path, seq), &mut tally);
            }
        }
        past.extend(acknowledged);
    }
    Ok(tally)
}

/// What was acknowledged, of each execution.
type Acknowledged = BTreeMap<u64, RangeInclusive<Seq>>;

fn count(acknowledged: &Acknowledged) -> usize {
    acknowledged.values().cloned().map(Iterator::count).sum()
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
    let mut acknowledged = Acknowledged::new();
    for told in running.kill()? {
        match told {
            Told::Acknowledged { execution, seq } => {
                let known = acknowledged.entry(execution).or_insert(seq..=seq);
                *known = *known.start()..=seq;
            }
            Told::Refused { why } => return Err(format!("a write failed before the power did: {why}").into()),
        }
    }
    Ok(acknowledged)
}

/// Returns what to put before a command, so that its flushes do nothing and succeed. The process stays ours.
fn without_flushes() -> Vec<String> {
    let inject = format!("inject={FLUSHES}:retval=0");
    let trace = format!("trace={FLUSHES}");
    ["strace", "-D", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject]
        .map(str::to_owned)
        .into()
}

fn look(acknowledged: &Acknowledged, has: impl Fn(Seq) -> bool, tally: &mut Tally) {
    for known in acknowledged.values() {
        let lost = known.clone().filter(|seq| !has(*seq)).count();
        tally.lose(lost, || format!("{lost} of {known:?}"));
    }
}

/// Looks for every acknowledged point in a store, with its state where it is new, and at every record.
fn look_in_store(
    path: &Path,
    acknowledged: &Acknowledged,
    past: &Acknowledged,
    tally: &mut Tally,
) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let store = match SqliteStore::open(path) {
            Ok(store) => store,
            Err(error) => {
                tally.damage(error.to_string());
                tally.lose(count(acknowledged), || error.to_string());
                return Ok(());
            }
        };
        match store.check().await {
            Ok(found) if found.problems.is_empty() => {}
            Ok(found) => tally.damage(found.problems.join(", ")),
            Err(error) => tally.damage(error.to_string()),
        }
        for (execution, known) in past {
            let there = match find(&store, *execution).await {
                Ok(id) => store.history(id, HistoryPage::default()).await.unwrap_or_default(),
                Err(_) => Vec::new(),
            };
            let there: BTreeSet<Seq> = there.into_iter().map(|point| point.seq).collect();
            let lost = known.clone().filter(|seq| !there.contains(seq)).count();
            tally.lose(lost, || {
                format!("{lost} of {known:?} of {}, at a later cut", history::name(*execution))
            });
        }
        for (execution, known) in acknowledged {
            let mut lost = known.clone().count();
            if let Ok(id) = find(&store, *execution).await {
                for seq in known.clone() {
                    let found = store.context(id, seq).await;
                    let is_there = found.is_ok_and(|ctx| history::is_state(&ctx, *execution, seq));
                    lost -= usize::from(is_there);
                }
            }
            tally.lose(lost, || format!("{lost} of {known:?} of {}", history::name(*execution)));
        }
        Ok(())
    })
}

async fn find(store: &SqliteStore, execution: u64) -> Outcome<ExecutionId> {
    let filter = ExecutionFilter { address: Some(history::name(execution)), ..ExecutionFilter::default() };
    let found = store.executions(&filter).await?;
    Ok(found.first().ok_or("it is not there")?.id)
}

impl Tally {
    fn lose(&mut self, lost: usize, example: impl FnOnce() -> String) {
        self.lost += lost;
        if lost > 0 {
            self.example.get_or_insert_with(example);
        }
    }

    fn damage(&mut self, example: String) {
        self.damaged += 1;
        self.example.get_or_insert(example);
    }

    fn is_whole(&self) -> bool {
        self.cuts > 0 && self.lost == 0 && self.damaged == 0
    }

    fn figure(&self) -> String {
        let Self { cuts, acknowledged, lost, damaged, example } = self;
        let mut text = format!("{cuts} cuts, {lost} of {acknowledged} acknowledged lost, {damaged} damaged");
        if let Some(example) = example {
            text.push_str(&format!(" (first: {example})"));
        }
        text
    }
}
