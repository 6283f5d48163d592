//! What this program does as a child of itself: the processes that faults befall, and what is heard of them.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use retake::store::Seq;
use rustix::process::{Pid, Signal};

use crate::committing::{self, Telling};
use crate::{Outcome, bounds, crew, migration, network, poison, race, report};

/// The first argument of a child.
pub(crate) const ARGUMENT: &str = "child";

/// How long a process may take to say its first word.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often to look whether a process has stopped.
const STOP_LOOKS_MAX: u32 = 30_000;

/// How long to let others run between two such looks.
const STOP_PAUSE: Duration = Duration::from_millis(1);

/// Looks in a row that must find a process stopped: a tracer holds threads for a moment, too.
const STOPPED_LOOKS: u32 = 3;

/// What a child does with its arguments.
type Named = fn(&[String]) -> Outcome<()>;

/// Children of the trials that start and hear theirs in their own way, by name.
const CHILDREN: &[(&str, Named)] = &[
    (bounds::large::CHILD, bounds::large::child),
    (bounds::many::CHILD, bounds::many::child),
    (bounds::memory::CHILD, bounds::memory::child),
    (crew::CHILD, crew::child),
    (migration::CHILD, migration::child),
    (migration::PIECEMEAL_CHILD, migration::piecemeal_child),
    (network::UNBOUNDED_CHILD, network::unbounded_child),
    (poison::CHILD, poison::child),
    (poison::NAIVE, poison::naive),
    (race::CHILD, race::child),
    (race::BLIND_CHILD, race::blind_child),
];

/// What a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Commits to the default store, as often as that for each execution.
    Commit { commits: Seq, telling: Telling },
    /// Appends to a file, and flushes it.
    Append,
    /// Inserts into a SQLite file that is not flushed at each commit.
    InsertUnflushed,
}

/// What a child says, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// A write was acknowledged to it.
    Acknowledged { execution: u64, seq: Seq },
    /// A write or a read failed.
    Refused { why: String },
}

/// Does what the arguments say, as told by the trial that started it.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let named = arguments.split_first().and_then(|(name, rest)| {
        let (_, child) = CHILDREN.iter().find(|(child, _)| child == name)?;
        Some(child(rest))
    });
    if let Some(done) = named {
        return ended(done);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let count = |number: &str| number.parse().unwrap_or(Seq::MAX);
    let done = match arguments[..] {
        ["commit", path, commits] => committing::to_the_store(path.as_ref(), count(commits), Telling::After),
        ["commit-unheard", path, commits] => {
            committing::to_the_store(path.as_ref(), count(commits), Telling::Before)
        }
        ["append", path] => committing::to_a_file(path.as_ref()),
        ["insert-unflushed", path] => committing::to_sqlite_unflushed(path.as_ref()),
        _ => Err(format!("no child is called {arguments:?}").into()),
    };
    ended(done)
}

fn ended(done: Outcome<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&Told::Refused { why: error.to_string() });
            ExitCode::FAILURE
        }
    }
}

/// Returns the command that starts a child of this name.
pub(crate) fn command(name: &str, arguments: &[&str]) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ARGUMENT).arg(name).args(arguments);
    Ok(command)
}

/// Tells whoever started this child. What was told is in the pipe, whatever becomes of the process.
pub(crate) fn tell(told: &Told) {
    report::say(&match told {
        Told::Acknowledged { execution, seq } => format!("acknowledged {execution} {seq}"),
        Told::Refused { why } => format!("refused {}", why.replace('\n', " ")),
    });
}

fn heard(line: &str) -> Option<Told> {
    let (verb, rest) = line.split_once(' ')?;
    match verb {
        "acknowledged" => {
            let (execution, seq) = rest.split_once(' ')?;
            Some(Told::Acknowledged { execution: execution.parse().ok()?, seq: seq.parse().ok()? })
        }
        "refused" => Some(Told::Refused { why: rest.to_owned() }),
        _ => None,
    }
}

/// Returns the command line of a child, to be started as it is or by another program.
pub(crate) fn command_line(task: Task, path: &Path) -> Outcome<Vec<String>> {
    let program = std::env::current_exe()?.display().to_string();
    let path = path.display().to_string();
    let task: &[&str] = match task {
        Task::Commit { commits, telling: Telling::After } => &["commit", &path, &commits.to_string()],
        Task::Commit { commits, telling: Telling::Before } => {
            &["commit-unheard", &path, &commits.to_string()]
        }
        Task::Append => &["append", &path],
        Task::InsertUnflushed => &["insert-unflushed", &path],
    };
    let words = [&program, ARGUMENT].into_iter().chain(task.iter().copied());
    Ok(words.map(str::to_owned).collect())
}

/// A child that runs, and what it says.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    first: mpsc::Receiver<()>,
    reader: Option<JoinHandle<Vec<Told>>>,
}

impl Running {
    /// Starts a command, of which all that it says is kept.
    pub(crate) fn start(command: &[String]) -> Outcome<Self> {
        let [program, arguments @ ..] = command else { return Err("there is no command to start".into()) };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let stdout = child.stdout.take().ok_or("the child has no output")?;
        let (sender, first) = mpsc::sync_channel(1);
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let hear = |line: String| {
                // Only the first word is waited for.
                let _ = sender.try_send(());
                heard(&line)
            };
            lines.filter_map(hear).collect()
        });
        Ok(Self { child, first, reader: Some(reader) })
    }

    /// Waits until it has said something, or has ended.
    pub(crate) fn wait_for_a_word(&self) {
        let _ = self.first.recv_timeout(PATIENCE);
    }

    /// Stops it, with all its threads: from now on it says nothing, and does nothing about what it hears.
    pub(crate) fn stop(&self) -> Outcome<()> {
        stop(Pid::from_child(&self.child))
    }

    /// Kills it. Returns all that it said.
    pub(crate) fn kill(mut self) -> Outcome<Vec<Told>> {
        self.end()?;
        self.finish()
    }

    /// Kills it with all that it started: a tracer that was stopped with it would keep what it says from ending.
    fn end(&mut self) -> Outcome<()> {
        let group = Pid::from_child(&self.child);
        // Nobody may be left in it.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        Ok(self.child.kill()?)
    }

    /// Waits until it ends by itself. Returns all that it said.
    pub(crate) fn finish(mut self) -> Outcome<Vec<Told>> {
        self.child.wait()?;
        let reader = self.reader.take().ok_or("what the child said has been read already")?;
        reader.join().map_err(|_| "what the child said could not be read".into())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.end());
        drop(self.child.wait());
    }
}

/// Stops a process with all its threads, and returns when they stand still.
pub(crate) fn stop(pid: Pid) -> Outcome<()> {
    rustix::process::kill_process(pid, Signal::STOP)?;
    let mut stopped = 0;
    for _ in 0..STOP_LOOKS_MAX {
        stopped = if is_stopped(pid)? { stopped + 1 } else { 0 };
        if stopped == STOPPED_LOOKS {
            return Ok(());
        }
        std::thread::sleep(STOP_PAUSE);
    }
    Err("the child does not stop".into())
}

/// Tells whether all threads of a process are stopped, or it has none any more.
fn is_stopped(pid: Pid) -> Outcome<bool> {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    for task in std::fs::read_dir(tasks)? {
        // A thread may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        // The state follows the name, which is in parentheses and may hold any.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('T' | 't' | 'Z' | 'X')) {
            return Ok(false);
        }
    }
    Ok(true)
}
