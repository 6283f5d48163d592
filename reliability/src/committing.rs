//! Children that write, and tell of everything that was acknowledged to them, as soon as it was.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionState};
use retake::store::{
    self, Cause, Commit, ExecutionFilter, NewCheckpoint, NewExecution, Seq, SqliteStore, Store, StoreExt,
};
use uuid::Uuid;

use crate::Outcome;
use crate::child::{Told, tell};
use crate::history::{self, EXECUTIONS};

/// How often a child that is refused tries again, for each execution.
const REFUSALS_MAX: usize = 4;

/// When a child tells of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    /// Once the store has acknowledged it.
    After,
    /// Before the store has even seen it, as no store may: a control.
    Before,
}

/// Commits to the default store, for some executions at the same time, `commits` to each. The store is not closed.
pub(crate) fn to_the_store(path: &Path, commits: Seq, telling: Telling) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    runtime.block_on(async {
        let store = Arc::new(SqliteStore::open(path)?);
        let tasks: Vec<_> = (0..EXECUTIONS)
            .map(|execution| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { advance(&store, execution, commits, telling).await })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        // It ends as a process ends that is killed: what is to follow a commit has not happened.
        std::mem::forget(store);
        Ok(())
    })
}

/// Advances one execution until it was refused too often.
async fn advance(store: &SqliteStore, execution: u64, commits: Seq, telling: Telling) {
    let mut refusals = 0;
    let mut before = None;
    let mut left = commits;
    while left > 0 && refusals <= REFUSALS_MAX {
        let head = match before.take() {
            Some(head) => Ok(head),
            None => head(store, execution).await,
        };
        let attempt = match head {
            Ok(Some((ctx, head))) => append(store, execution, ctx, head, telling).await,
            Ok(None) => create(store, execution, telling).await,
            Err(error) => Err(error),
        };
        match attempt {
            Ok((ctx, seq)) => {
                if telling == Telling::After {
                    tell(&Told::Acknowledged { execution, seq });
                }
                before = Some(Some((ctx, seq)));
                left -= 1;
            }
            Err(error) => {
                tell(&Told::Refused { why: error.to_string() });
                refusals += 1;
            }
        }
    }
}

/// Reads where an execution is, if it is there.
async fn head(store: &SqliteStore, execution: u64) -> Outcome<Option<(ExecutionContext, Seq)>> {
    let filter = ExecutionFilter { address: Some(history::name(execution)), ..ExecutionFilter::default() };
    let Some(record) = store.executions(&filter).await?.into_iter().next() else { return Ok(None) };
    Ok(Some((store.context(record.id, record.head).await?, record.head)))
}

async fn create(store: &SqliteStore, execution: u64, telling: Telling) -> Outcome<(ExecutionContext, Seq)> {
    let mut ctx = ExecutionContext::new(Uuid::from_u128(7));
    history::step(&mut ctx, execution, 1);
    let new = NewExecution {
        id: ctx.execution_id,
        name: history::name(execution),
        workflow_id: ctx.workflow_id,
        workflow_name: "steps".to_owned(),
        definition: Vec::new(),
        origin: None,
    };
    let first = checkpoint(None, &ctx)?;
    if telling == Telling::Before {
        tell(&Told::Acknowledged { execution, seq: 1 });
    }
    store.create(new, first).await?;
    Ok((ctx, 1))
}

async fn append(
    store: &SqliteStore,
    execution: u64,
    before: ExecutionContext,
    head: Seq,
    telling: Telling,
) -> Outcome<(ExecutionContext, Seq)> {
    let seq = head + 1;
    let mut ctx = before.clone();
    history::step(&mut ctx, execution, seq);
    let checkpoint = checkpoint(Some(&before), &ctx)?;
    if telling == Telling::Before {
        tell(&Told::Acknowledged { execution, seq });
    }
    let commit = Commit { execution_id: ctx.execution_id, expected_head: head, fence: None, checkpoint };
    store.commit(commit).await?;
    Ok((ctx, seq))
}

fn checkpoint(before: Option<&ExecutionContext>, ctx: &ExecutionContext) -> Outcome<NewCheckpoint> {
    let clock = SystemClock::default();
    let new = NewCheckpoint::new(clock.new_id(), clock.now(), ExecutionState::Running, Cause::Manual);
    Ok(NewCheckpoint { delta: store::delta(before, ctx, |_| None)?, ..new })
}

/// The length of a line that [`to_a_file`] appends.
const LINE_BYTES: u64 = 64;

/// Appends lines to a file, each flushed to the disk by `fdatasync`: what every disk must keep.
pub(crate) fn to_a_file(path: &Path) -> Outcome<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut seq = file.metadata()?.len() / LINE_BYTES;
    // A line that was torn is none.
    file.set_len(seq * LINE_BYTES)?;
    loop {
        seq += 1;
        file.write_all(line(seq).as_bytes())?;
        file.sync_data()?;
        tell(&Told::Acknowledged { execution: 0, seq });
    }
}

/// Tells whether a file has a line of [`to_a_file`].
pub(crate) fn file_has(path: &Path, seq: Seq) -> bool {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start((seq - 1) * LINE_BYTES))?;
        let mut found = String::new();
        file.take(LINE_BYTES).read_to_string(&mut found)?;
        Ok(found)
    };
    read().is_ok_and(|found| found == line(seq))
}

fn line(seq: Seq) -> String {
    format!("{seq:0>63}\n")
}

/// Inserts rows into a SQLite file that flushes the disk now and then only: `synchronous=NORMAL`.
pub(crate) fn to_sqlite_unflushed(path: &Path) -> Outcome<()> {
    let connection = rusqlite::Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS steps (seq INTEGER PRIMARY KEY, line TEXT)")?;
    let last: Option<i64> = connection.query_row("SELECT max(seq) FROM steps", [], |row| row.get(0))?;
    for seq in last.unwrap_or(0) + 1.. {
        let text = line(seq.unsigned_abs());
        connection.execute("INSERT INTO steps VALUES (?1, ?2)", (seq, text))?;
        tell(&Told::Acknowledged { execution: 0, seq: seq.unsigned_abs() });
    }
    Ok(())
}

/// Tells whether a file has a row of [`to_sqlite_unflushed`].
pub(crate) fn sqlite_has(path: &Path, seq: Seq) -> bool {
    let read = || -> Outcome<String> {
        let connection = rusqlite::Connection::open(path)?;
        let seq = i64::try_from(seq)?;
        Ok(connection.query_row("SELECT line FROM steps WHERE seq = ?1", [seq], |row| row.get(0))?)
    };
    read().is_ok_and(|found| found == line(seq))
}
