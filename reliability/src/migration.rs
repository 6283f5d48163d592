//! Kills a process at every call by which it brings a store of an older format to the newest, and looks at what is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use retake::store::{self, ExecutionFilter, FORMAT, HistoryPage, SqliteStore, Store, StoreExt};
use rusqlite::Connection;

use crate::disk::Disk;
use crate::report::Report;
use crate::{Outcome, Settings, child};

/// The child that opens a store, and so brings it to the newest format.
pub(crate) const CHILD: &str = "open";

/// The child that does part of the same, one statement at a time.
pub(crate) const PIECEMEAL_CHILD: &str = "alter-piecemeal";

/// What the file system is asked to do, one of which is the last.
const CALLS: &str = "pwrite64,pwritev,write,ftruncate,fallocate,fsync,fdatasync,unlink";

/// More calls than any migration of a fixture takes.
const CALLS_MAX: u32 = 2_000;

/// The newest format is no older one.
const FORMATS: std::ops::Range<u32> = 1..FORMAT;

/// What was seen of one format's migration.
#[derive(Debug, Default)]
struct Seen {
    kills: usize,
    cuts: usize,
    /// Kills after which the older format was there, and those after which the newest was.
    older: usize,
    newest: usize,
    problems: Vec<String>,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let mut disk = Disk::new()?;
    for format in FORMATS {
        let seen = kill_at_every_call(&mut disk, &mut random, format, CHILD)?;
        let Seen { kills, cuts, older, newest, problems } = &seen;
        let figure = format!(
            "{kills} kills, {cuts} of them followed by a power cut; left in format {format}: {older}, in format \
             {FORMAT}: {newest}; {} stores with problems {problems:?}",
            problems.len()
        );
        let held = problems.is_empty() && *older > 0 && *newest > 0 && kills == &(older + newest);
        report.promise(format!("format {format} to {FORMAT}"), figure, held);
    }
    let seen = kill_at_every_call(&mut disk, &mut random, 1, PIECEMEAL_CHILD)?;
    let figure = format!("{} kills, {} stores with problems", seen.kills, seen.problems.len());
    report.control("a migration in more than one transaction", figure, !seen.problems.is_empty());
    Ok(report)
}

/// Opens the store at a path, and closes it.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    drop(SqliteStore::open(path_of(arguments)?)?);
    Ok(())
}

/// Adds columns one by one, so that somebody may find a store with some of them.
pub(crate) fn piecemeal_child(arguments: &[String]) -> Outcome<()> {
    let connection = Connection::open(path_of(arguments)?)?;
    for table in ["executions", "checkpoints", "operations"] {
        connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN link BLOB"))?;
    }
    Ok(())
}

fn path_of(arguments: &[String]) -> Outcome<PathBuf> {
    Ok(arguments.first().ok_or("the child is not told which store")?.into())
}

/// Kills a child at its first call, at its second, and so on until it ends by itself.
fn kill_at_every_call(
    disk: &mut Disk,
    random: &mut fastrand::Rng,
    format: u32,
    child: &str,
) -> Outcome<Seen> {
    let mut seen = Seen::default();
    let whole = disk.path().join("whole.db");
    std::fs::copy(fixture(format), &whole)?;
    let truth = content(&whole)?;
    for nth in 1..=CALLS_MAX {
        let directory = disk.path().join("files");
        if directory.exists() {
            std::fs::remove_dir_all(&directory)?;
        }
        std::fs::create_dir(&directory)?;
        let path = directory.join("store.db");
        std::fs::copy(fixture(format), &path)?;
        for file in [&path, &directory, &disk.path()] {
            std::fs::File::open(file)?.sync_all()?;
        }
        if !is_killed(child, &path, nth)? {
            return Ok(seen);
        }
        seen.kills += 1;
        if random.bool() {
            disk.cut()?;
            disk.restart()?;
            seen.cuts += 1;
        }
        look(&path, format, &truth, &mut seen);
    }
    Err(format!("{child} makes more than {CALLS_MAX} calls").into())
}

/// Runs a child that is killed at its n-th call on the store's files. Returns whether it came to that.
fn is_killed(name: &str, path: &Path, nth: u32) -> Outcome<bool> {
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("strace");
    // Not with `--seccomp-bpf`, which sends no signals.
    command.args(["-f", "-qqq", "-o"]).arg(log.path());
    for end in ["", "-wal", "-shm"] {
        command.arg("-P").arg(format!("{}{end}", path.display()));
    }
    command.args(["-e", &format!("trace={CALLS}"), "-e", &format!("inject={CALLS}:signal=KILL:when={nth}")]);
    let opener = child::command(name, &[&path.display().to_string()])?;
    command.arg(opener.get_program()).args(opener.get_args());
    let status = command.status().map_err(|error| format!("strace: {error}"))?;
    let is_injected = std::fs::read_to_string(log.path())?.contains("+++ killed by SIGKILL +++");
    match (status.success(), is_injected) {
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        _ => Err(format!("{name} ended with {status} at call {nth}").into()),
    }
}

fn look(path: &Path, format: u32, truth: &[String], seen: &mut Seen) {
    match format_of(path) {
        Ok(found) if found == format => seen.older += 1,
        Ok(FORMAT) => seen.newest += 1,
        Ok(found) => seen.problems.push(format!("it has format {found}")),
        Err(error) => seen.problems.push(error.to_string()),
    }
    match content(path) {
        Ok(content) if content == truth => {}
        Ok(_) => seen.problems.push("it holds something else".to_owned()),
        Err(error) => seen.problems.push(error.to_string()),
    }
}

/// Returns the format that the next process finds, before it changes anything.
fn format_of(path: &Path) -> Outcome<u32> {
    let connection = Connection::open(path)?;
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Opens a store, which must be sound. Returns all that it tells, states as their hashes.
#[tokio::main(flavor = "current_thread")]
async fn content(path: &Path) -> Outcome<Vec<String>> {
    let opened = SqliteStore::open(path)?;
    let report = opened.check().await?;
    if let Some(problem) = report.problems.first() {
        return Err(problem.as_str().into());
    }
    let mut told = Vec::new();
    for execution in opened.executions(&ExecutionFilter::default()).await? {
        for point in opened.history(execution.id, HistoryPage::default()).await? {
            let state = opened.context(execution.id, point.seq).await?;
            told.push(format!("{point:?} {}", store::hash(&serde_json::to_value(state)?)));
        }
        told.push(format!("{execution:?} {:?}", opened.operations(execution.id).await?));
    }
    Ok(told)
}

/// Returns a store that an older version wrote.
fn fixture(format: u32) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/retake/tests/fixtures");
    fixtures.join(format!("format-{format}.db"))
}
