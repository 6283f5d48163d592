//! Values that are too large: refused before there is memory for them, by processes that have little of it.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use retake::clock::{Clock, SystemClock};
use retake::execution::ExecutionContext;
use retake::store::{
    Cause, NewCheckpoint, NewExecution, SqliteStore, Store, StoreExt, VALUE_BYTES_MAX, delta,
};
use serde_json::Value;
use uuid::Uuid;

use super::MEMORY_MAX;
use super::cgroup::{self, Cgroup};
use crate::report::Report;
use crate::{Outcome, child};

/// The name of the child.
pub(crate) const CHILD: &str = "large";

/// What is too large, in bytes.
const LARGE: u64 = 1024 * 1024 * 1024;

/// Signal 9.
const SIGKILL: i32 = 9;

/// What MessagePack takes in front of a long text, in bytes.
const TEXT_HEAD: usize = 5;

const WORKFLOW: &str = "\
name: large
inputs: { text: { type: string, default: '' } }
nodes:
  print: { run: head -c 1073741824 /dev/zero }
";

/// What is tried, with what arguments of `retake`, its exit code, and what it must say.
const CASES: &[(&str, &[&str], i32, &str)] = &[
    ("an input from a file", &["run", "w.yaml", "-i", "text=@large"], 2, "more than 67108864 bytes"),
    ("a file of inputs", &["run", "w.yaml", "--inputs", "large"], 2, "more than 67108864 bytes"),
    ("a workflow", &["run", "large"], 2, "more than 67108864 bytes"),
    ("a command's output", &["run", "w.yaml"], 1, "more than 16777216 bytes"),
];

pub(super) fn trial(report: &mut Report) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    File::create(directory.path().join("large"))?.set_len(LARGE)?;
    fs::write(directory.path().join("w.yaml"), WORKFLOW)?;
    let retake = std::env::current_exe()?.with_file_name("retake");
    let retake = retake.to_str().ok_or("the program is in a place that is no text")?;
    let mut refused = Vec::new();
    for (what, arguments, code, why) in CASES {
        let output = bounded(directory.path(), &[&["run", retake], *arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(*code) || !said.contains(why) {
            return Err(format!("{what} of {LARGE} bytes: {}: {said}", output.status).into());
        }
        refused.push(*what);
    }
    report.promise(
        "a value of 1 GiB, in a process of 256 MiB",
        format!("refused with the limit: {} of {}: {}", refused.len(), CASES.len(), refused.join(", ")),
        refused.len() == CASES.len(),
    );
    let largest = bounded(directory.path(), &["save"])?;
    report.promise(
        "the largest value, in a process of 256 MiB",
        match largest.status.success() {
            true => format!("{VALUE_BYTES_MAX} bytes were saved and loaded, and one more was refused"),
            false => format!("{}: {}", largest.status, String::from_utf8_lossy(&largest.stderr)),
        },
        largest.status.success(),
    );
    let read = bounded(directory.path(), &["read"])?;
    report.control(
        "a file of 1 GiB that is read without a limit",
        format!("{}", read.status),
        read.status.signal() == Some(SIGKILL),
    );
    Ok(())
}

/// Runs a child with little memory.
fn bounded(directory: &Path, arguments: &[&str]) -> Outcome<Output> {
    let group = Cgroup::new(MEMORY_MAX)?;
    let path = group.path().to_str().ok_or("the group has a name that is no text")?;
    Ok(child::command(CHILD, &[&[path], arguments].concat())?.current_dir(directory).output()?)
}

/// Joins a group, and does something large.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let [group, what, rest @ ..] = arguments else { return Err("GROUP WHAT [ARGUMENT]...".into()) };
    cgroup::join(Path::new(group))?;
    match (what.as_str(), rest) {
        ("run", [program, rest @ ..]) => {
            let status = Command::new(program).args(rest).status()?;
            std::process::exit(status.code().unwrap_or(SIGKILL))
        }
        ("save", []) => tokio::runtime::Builder::new_current_thread().build()?.block_on(save_the_largest()),
        ("read", []) => Ok(fs::read("large").map(drop)?),
        _ => Err("nothing that is known".into()),
    }
}

async fn save_the_largest() -> Outcome<()> {
    let store = SqliteStore::open("retake.db")?;
    let clock = SystemClock::default();
    let mut ctx = ExecutionContext::with_id(clock.new_id(), Uuid::from_u128(7), clock.now());
    ctx.set_variable("text".to_owned(), Value::String("x".repeat(VALUE_BYTES_MAX - TEXT_HEAD)));
    let new = NewExecution {
        id: ctx.execution_id,
        name: "large".to_owned(),
        workflow_id: ctx.workflow_id,
        workflow_name: "large".to_owned(),
        definition: b"nothing".to_vec(),
        origin: None,
    };
    let first = NewCheckpoint::new(clock.new_id(), clock.now(), ctx.state.clone(), Cause::Start);
    let first = NewCheckpoint { delta: delta(None, &ctx, |_| None)?, ..first };
    let id = ctx.execution_id;
    drop(ctx);
    store.create(new, first).await?;
    let mut ctx = store.context(id, 1).await?;
    let text = ctx.get_variable("text").and_then(Value::as_str).map(str::len);
    if text != Some(VALUE_BYTES_MAX - TEXT_HEAD) {
        return Err(format!("{text:?} bytes of text came back").into());
    }
    ctx.set_variable("text".to_owned(), Value::String("x".repeat(VALUE_BYTES_MAX - TEXT_HEAD + 1)));
    match delta(None, &ctx, |_| None) {
        Err(error) if error.to_string().ends_with("it takes more than 67108864 bytes") => Ok(()),
        other => Err(format!("one byte more: {:?}", other.map(|_| "taken")).into()),
    }
}
