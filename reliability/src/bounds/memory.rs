//! Memory that comes to an end: the kernel kills a process that commits, and nothing that it acknowledged is lost.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use retake::clock::{Clock, SystemClock};
use retake::execution::ExecutionState;
use retake::store::{
    Cause, Commit, Delta, Key, KeyChange, MESSAGE_PACK, NewCheckpoint, NewExecution, Op, Piece, SqliteStore,
    Store, encode,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::MEMORY_MAX;
use super::cgroup::{self, Cgroup};
use crate::report::Report;
use crate::{Outcome, Settings, child};

/// The name of the child.
pub(crate) const CHILD: &str = "memory";

/// The execution that a child advances.
const EXECUTION: Uuid = Uuid::from_u128(11);

/// What memory is eaten in, in bytes.
const BITE: usize = 1024 * 1024;

/// Commits that may go before the memory begins to be eaten.
const QUIET_MAX: u64 = 200;

/// Signal 9.
const SIGKILL: i32 = 9;

/// When a child tells that a point is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acknowledge {
    AfterCommit,
    /// Which is a lie.
    BeforeCommit,
}

/// What became of some rounds.
#[derive(Debug, Default)]
struct Found {
    acknowledged: u64,
    lost: u64,
    problems: usize,
}

pub(super) fn trial(settings: Settings, report: &mut Report) -> Outcome<()> {
    let rounds = settings.pick(10, 100);
    let mut draw = fastrand::Rng::with_seed(settings.seed);
    let kept = run(rounds, Acknowledge::AfterCommit, &mut draw)?;
    report.promise(
        "killed for want of memory",
        format!(
            "{rounds} of {rounds} killed by the kernel at {} MiB; {} of {} acknowledged points lost, {} problems found \
             after",
            super::mebibytes(MEMORY_MAX),
            kept.lost,
            kept.acknowledged,
            kept.problems
        ),
        kept.lost == 0 && kept.problems == 0 && kept.acknowledged > 0,
    );
    let lied = run(rounds, Acknowledge::BeforeCommit, &mut draw)?;
    report.control(
        "acknowledged before the commit",
        format!("{} of {} acknowledged points lost", lied.lost, lied.acknowledged),
        lied.lost > 0,
    );
    Ok(())
}

fn run(rounds: usize, acknowledge: Acknowledge, draw: &mut fastrand::Rng) -> Outcome<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut found = Found::default();
    for _ in 0..rounds {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("retake.db");
        let acknowledged = killed(&path, acknowledge, draw.u64(1..=QUIET_MAX))?;
        let (lost, problems) = runtime.block_on(lost(&path, acknowledged))?;
        found.acknowledged += acknowledged;
        found.lost += lost;
        found.problems += problems;
    }
    Ok(found)
}

/// Lets a child commit until the kernel has killed it. Returns the last point that it acknowledged.
fn killed(store: &Path, acknowledge: Acknowledge, quiet: u64) -> Outcome<u64> {
    let group = Cgroup::new(MEMORY_MAX)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("a path is no text");
    let when = match acknowledge {
        Acknowledge::AfterCommit => "after",
        Acknowledge::BeforeCommit => "before",
    };
    let arguments = [&*text(group.path())?, &*text(store)?, when, &*quiet.to_string()];
    let mut eater =
        child::command(CHILD, &arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = eater.stdout.take().ok_or("a child without its stdout")?;
    let mut last = 0;
    for line in BufReader::new(stdout).split(b'\n') {
        // The last line may be cut: what it would have said was not acknowledged.
        last = String::from_utf8(line?)?.parse().unwrap_or(last);
    }
    let output = eater.wait_with_output()?;
    if output.status.signal() != Some(SIGKILL) || group.killed()? != 1 {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("the kernel did not kill the child: {}: {said}", output.status).into());
    }
    Ok(last)
}

/// Returns how many of the points that were acknowledged are lost, and how many problems the store has.
async fn lost(path: &Path, acknowledged: u64) -> Outcome<(u64, usize)> {
    let store = SqliteStore::open_existing(path)?;
    let problems = store.check().await?.problems.len();
    let mut lost = 0;
    for seq in 1..=acknowledged {
        let is_there = match store.state(EXECUTION, seq).await {
            Ok(image) => image
                .get(&Key::Variable("step".to_owned()))
                .is_some_and(|entry| piece(seq).is_ok_and(|wanted| entry.pieces.iter().eq([&wanted]))),
            Err(_) => false,
        };
        lost += u64::from(!is_there);
    }
    Ok((lost, problems))
}

/// Joins a group, and commits while another thread eats the memory.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let [group, store, when, quiet] = arguments else { return Err("GROUP STORE WHEN QUIET".into()) };
    cgroup::join(Path::new(group))?;
    let acknowledge = match when.as_str() {
        "before" => Acknowledge::BeforeCommit,
        _ => Acknowledge::AfterCommit,
    };
    let quiet = quiet.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(commit_for_ever(Path::new(store), acknowledge, quiet))
}

async fn commit_for_ever(path: &Path, acknowledge: Acknowledge, quiet: u64) -> Outcome<()> {
    let store = SqliteStore::open(path)?;
    let mut told = std::io::stdout();
    let mut tell = |seq: u64| writeln!(told, "{seq}").and_then(|()| told.flush());
    for seq in 1_u64.. {
        if acknowledge == Acknowledge::BeforeCommit {
            tell(seq)?;
        }
        let checkpoint = checkpoint(seq)?;
        match seq {
            1 => {
                let new = NewExecution {
                    id: EXECUTION,
                    name: "eater".to_owned(),
                    workflow_id: Uuid::from_u128(7),
                    workflow_name: "eater".to_owned(),
                    definition: b"nothing".to_vec(),
                    origin: None,
                };
                store.create(new, checkpoint).await?;
            }
            _ => {
                let commit =
                    Commit { execution_id: EXECUTION, expected_head: seq - 1, fence: None, checkpoint };
                store.commit(commit).await?;
            }
        }
        if acknowledge == Acknowledge::AfterCommit {
            tell(seq)?;
        }
        if seq == quiet {
            std::thread::spawn(eat);
        }
    }
    Ok(())
}

/// Takes memory until there is no more.
fn eat() {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; BITE]);
    }
}

fn checkpoint(seq: u64) -> Outcome<NewCheckpoint> {
    let clock = SystemClock::default();
    let op = Op::Set { pieces: vec![piece(seq)?], len: 0 };
    let change = KeyChange { key: Key::Variable("step".to_owned()), writer: None, op };
    let new = NewCheckpoint::new(clock.new_id(), clock.now(), ExecutionState::Running, Cause::Manual);
    Ok(NewCheckpoint { delta: Delta::new(vec![change]), ..new })
}

/// Returns the value of a step, which no other step has.
fn piece(seq: u64) -> Outcome<Piece> {
    let value: Value = json!({"step": seq, "text": format!("{seq} ").repeat(1_000)});
    Ok(Piece { codec: MESSAGE_PACK, bytes: Bytes::from(encode("step", &value)?) })
}
