//! Lets the disk of a run become full, or read-only, and goes on when it is well again.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use retake::clock::{Clock, SystemClock};
use serde_json::Value;

use crate::disk::{self, Disk};
use crate::report::Report;
use crate::workplace::{self, Workplace};
use crate::{Outcome, Settings};

/// A disk that is soon full.
const DISK_BYTES: u64 = 12 * 1024 * 1024;

/// What is left of it for a run: enough to begin.
const ROOM_BYTES_MIN: u64 = 200 * 1024;

/// What is left of it for a run at most; a run writes more.
const ROOM_BYTES_MAX: u64 = 900 * 1024;

const NODES: usize = 24;

/// What each node gives: random, so that compressing it saves little.
const OUTPUT_BYTES: usize = 30_000;

/// How long a command on a read-only directory may take to say so.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// What the exit code of a failing store is.
const STORE: i32 = 6;

/// What cannot be done to a store that is read-only.
const WRITING: [&[&str]; 5] = [
    &["run", "workflow.yaml", "--json"],
    &["resume", "first", "--json"],
    &["approve", "first", "ok", "--json"],
    &["fork", "first", "--json"],
    &["prune", "--keep", "1", "--json"],
];

/// What can.
const READING: [&[&str]; 4] =
    [&["ls", "--json"], &["log", "first", "--json"], &["show", "first", "--json"], &["doctor", "--json"]];

/// The figures of the runs.
#[derive(Debug, Default)]
struct Tally {
    full: usize,
    acknowledged: usize,
    /// What must not be, in words.
    wrong: Vec<String>,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let mut tally = Tally::default();
    for _ in 0..settings.pick(10, 100) {
        fill(&mut random, Forgetting::Nothing, &mut tally)?;
    }
    let held = tally.full > 0 && tally.acknowledged > 0 && tally.wrong.is_empty();
    report.promise("a run whose disk becomes full goes on when there is space", tally.figure(), held);
    let mut tally = Tally::default();
    while tally.full == 0 || tally.acknowledged == 0 {
        fill(&mut random, Forgetting::TheStore, &mut tally)?;
    }
    report.control("the same, with the store forgotten", tally.figure(), !tally.wrong.is_empty());
    read_only(&mut report)?;
    Ok(report)
}

/// What is taken away before the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgetting {
    Nothing,
    /// The store, so that all runs again: a control.
    TheStore,
}

/// Lets one run fill the disk, then frees space and resumes it.
fn fill(random: &mut fastrand::Rng, forgetting: Forgetting, tally: &mut Tally) -> Outcome<()> {
    let disk = Disk::with_bytes(DISK_BYTES)?;
    let place = Workplace::new(&workflow(), Some(disk.path().join("store/retake.db")))?;
    let ballast = disk.path().join("ballast");
    std::fs::File::create(&ballast)?;
    let room = random.u64(ROOM_BYTES_MIN..ROOM_BYTES_MAX);
    let free = free_bytes(&disk.path())?;
    disk::succeed(
        Command::new("fallocate").args(["-l", &free.saturating_sub(room).to_string()]).arg(&ballast),
    )?;
    let output = place.retake(&["run", "workflow.yaml", "--name", "full", "--json"])?;
    let events = workplace::events(&output);
    let acknowledged = workplace::acknowledged(&events);
    tally.acknowledged += acknowledged.len();
    if output.status.success() {
        return Ok(());
    }
    tally.full += 1;
    let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
    let message = error["error"]["message"].as_str().unwrap_or_default();
    if output.status.code() != Some(STORE) || !message.contains("is full") {
        tally.wrong.push(workplace::told(&["run"], &output));
    }
    let ran = place.journal();

    std::fs::remove_file(&ballast)?;
    if forgetting == Forgetting::TheStore {
        std::fs::remove_dir_all(disk.path().join("store"))?;
    }
    let known = place.retake(&["show", "full", "--json"])?.status.success();
    let arguments: &[&str] = match known {
        true => &["resume", "full", "--json"],
        false => &["run", "workflow.yaml", "--name", "full", "--json"],
    };
    if !known && !events.is_empty() && !acknowledged.is_empty() {
        tally.wrong.push("the run is gone".to_owned());
    }
    let output = place.retake(arguments)?;
    if !output.status.success() {
        tally.wrong.push(workplace::told(arguments, &output));
        return Ok(());
    }
    let outputs = workplace::succeeded(&place.json(&["show", "full"])?);
    let journal = place.journal();
    for node in &acknowledged {
        let times =
            |lines: &[String]| lines.iter().filter(|line| line.starts_with(&format!("{node} "))).count();
        if times(&journal) != times(&ran) {
            tally.wrong.push(format!("{node} ran again, though it was acknowledged"));
        }
        let output = outputs.get(node).and_then(Value::as_str).unwrap_or_default();
        if !journal
            .iter()
            .any(|line| line.strip_prefix(node.as_str()) == Some(&format!(" {}", digest(output))))
        {
            tally.wrong.push(format!("{node} has an output that it never gave"));
        }
    }
    place.json(&["doctor"])?;
    Ok(())
}

/// Returns what a node's output is known by in the journal: its last bytes.
fn digest(output: &str) -> &str {
    output.get(output.len().saturating_sub(32)..).unwrap_or_default()
}

fn workflow() -> String {
    let mut text =
        "name: full\ncheckpoints: { frequency: always, max: 100 }\nmax_parallel: 2\nnodes:\n".to_owned();
    for node in 0..NODES {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "  n{node}:\n    run: |\n      out=x$(head -c {OUTPUT_BYTES} /dev/urandom | base64 -w0 | tr -d =)\n      \
             echo \"n{node} $(printf %s \"$out\" | tail -c 32)\" >> journal\n      echo \"$out\"\n"
        );
    }
    text
}

/// Starts, resumes and reads on a store whose directory is read-only, for root too.
fn read_only(report: &mut Report) -> Outcome<()> {
    let disk = Disk::with_bytes(DISK_BYTES)?;
    let store = disk.path().join("store/retake.db");
    let place = Workplace::new("name: short\nnodes:\n  ok: { approval: Go? }\n", Some(store))?;
    place.retake(&["run", "workflow.yaml", "--name", "first"])?;
    let directory = disk.path().join("store");
    let mount = ReadOnly::new(directory.clone())?;
    let clock = SystemClock::default();
    let mut slowest = Duration::ZERO;
    let mut refused = 0;
    for arguments in WRITING {
        let begin = clock.now();
        let output = place.retake(arguments)?;
        slowest = slowest.max((clock.now() - begin).to_std().unwrap_or_default());
        refused += usize::from(is_store_error(&output));
    }
    let figure = format!("{refused} of {} commands refused, the slowest after {slowest:.0?}", WRITING.len());
    let held = refused == WRITING.len() && slowest < REFUSED_WITHIN;
    report.promise("to write in a read-only directory is a store error", figure, held);

    let count = |is_good: fn(&Output) -> bool| -> Outcome<usize> {
        let mut good = 0;
        for arguments in READING {
            good += usize::from(is_good(&place.retake(arguments)?));
        }
        Ok(good)
    };
    let done = count(|output| output.status.success())?;
    drop(mount);
    // Never read: that there is a log is enough.
    std::fs::write(directory.join("retake.db-wal"), "a log")?;
    let _mount = ReadOnly::new(directory)?;
    let refused = count(is_store_error)?;
    let all = READING.len();
    let figure = format!("{done} of {all} commands done; beside a log {refused} of {all} refused");
    report.promise(
        "a closed store in a read-only directory can be read",
        figure,
        (done, refused) == (all, all),
    );
    Ok(())
}

fn is_store_error(output: &Output) -> bool {
    let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
    output.status.code() == Some(STORE) && error["error"]["code"] == "store"
}

/// A directory that nobody may write to until this is dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(path: PathBuf) -> Outcome<Self> {
        disk::succeed(Command::new("mount").arg("--bind").args([&path, &path]))?;
        let mounted = Self(path);
        disk::succeed(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&mounted.0))?;
        Ok(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        drop(disk::succeed(Command::new("umount").arg(&self.0)));
    }
}

fn free_bytes(path: &Path) -> Outcome<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail * found.f_frsize)
}

impl Tally {
    fn figure(&self) -> String {
        let Self { full, acknowledged, wrong } = self;
        let mut text = format!(
            "{full} runs met a full disk, {acknowledged} results acknowledged, {} wrong",
            wrong.len()
        );
        if let Some(first) = wrong.first() {
            // Writing to a string cannot fail.
            let _ = write!(text, " (first: {})", first.trim());
        }
        text
    }
}
