//! Looks for what was written in the files of an encrypted store, and changes its master key while others write.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use retake::clock::{Clock, SystemClock};
use retake::execution::{ExecutionContext, ExecutionId, ExecutionState};
use retake::store::{
    self, Cause, Commit, MasterKey, NewCheckpoint, NewExecution, Options, Seq, SqliteStore, Store, StoreExt,
};
use rusqlite::Connection;

use crate::history::{self, EXECUTIONS};
use crate::report::Report;
use crate::{Outcome, Settings};

/// What every state holds as text.
const WRITTEN: &[u8] = b" said ";

/// Points that each writer makes at least before the master key is changed again.
const COMMITS_BETWEEN: Seq = 3;

/// About how many points of each execution are read again.
const POINTS_LOOKED_AT: Seq = 60;

/// What the writers were told is durable: each execution, and its newest point.
type Acknowledged = Vec<(u64, ExecutionId, Seq)>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
pub(crate) async fn run(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    let rotations = settings.pick(20, 200);
    let keys = (0..=rotations).map(|_| MasterKey::random()).collect::<Result<Vec<_>, _>>()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("sealed.db");
    let acknowledged = write_and_rotate(&path, &keys).await?;
    let last = &keys[rotations..];
    let points: Seq = acknowledged.iter().map(|(_, _, head)| head).sum();
    let unreadable = unreadable(&path, last, &acknowledged).await?;
    let figure = format!(
        "{rotations} changes of the master key beside {EXECUTIONS} writers of two opened stores; with the last key \
         alone {unreadable} of those looked at among {points} acknowledged points cannot be read"
    );
    report.promise("the master key changes under load", figure, unreadable == 0 && points > 0);
    let found = occurrences(&path)?;
    report.promise("what was written", format!("stands in the files {found} times"), found == 0);

    let bare = directory.path().join("bare.db");
    write_and_rotate(&bare, &[]).await?;
    let found = occurrences(&bare)?;
    report.control("the same without a key", format!("it stands in the files {found} times"), found > 0);
    // Not the first and not the last: what looks up names, and what is newest.
    Connection::open(&path)?.execute("DELETE FROM keyring WHERE number = 2", [])?;
    let lost = self::unreadable(&path, last, &acknowledged).await?;
    let figure = format!("{lost} of {points} points cannot be read");
    report.control("one of the store's own keys taken away", figure, lost > 0);
    Ok(report)
}

/// Lets two opened stores write, and meanwhile goes from each key to the next. Without keys they only write.
async fn write_and_rotate(path: &Path, keys: &[MasterKey]) -> Outcome<Acknowledged> {
    let open = || SqliteStore::open_with(path, Options { keys: keys.to_vec(), ..Options::default() });
    let stores = [Arc::new(open()?), Arc::new(open()?)];
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..EXECUTIONS)
        .map(|execution| {
            let (store, done) = (Arc::clone(&stores[usize::from(execution % 2 == 0)]), Arc::clone(&done));
            tokio::spawn(
                async move { write(&store, execution, &done).await.map_err(|error| error.to_string()) },
            )
        })
        .collect();
    for (number, key) in keys.iter().enumerate().skip(1) {
        let watched = Arc::clone(&stores[number % 2]);
        let before = watched.stats().writes;
        while watched.stats().writes < before + COMMITS_BETWEEN {
            tokio::task::yield_now().await;
        }
        watched.rotate_key(key).await?;
    }
    done.store(true, Ordering::Relaxed);
    let mut acknowledged = Acknowledged::new();
    for writer in writers {
        acknowledged.push(writer.await??);
    }
    Ok(acknowledged)
}

/// Advances an execution until it is told to stop, and at least a few points.
async fn write(store: &SqliteStore, execution: u64, done: &AtomicBool) -> Outcome<(u64, ExecutionId, Seq)> {
    let mut ctx = ExecutionContext::new(uuid::Uuid::from_u128(7));
    history::step(&mut ctx, execution, 1);
    let id = ctx.execution_id;
    let new = NewExecution {
        id,
        name: history::name(execution),
        workflow_id: ctx.workflow_id,
        workflow_name: "what was said is said ".to_owned(),
        definition: b"it is said that".to_vec(),
        origin: None,
    };
    store.create(new, checkpoint(None, &ctx)?).await?;
    let mut head = 1;
    while head < COMMITS_BETWEEN || !done.load(Ordering::Relaxed) {
        let before = ctx.clone();
        history::step(&mut ctx, execution, head + 1);
        let checkpoint = checkpoint(Some(&before), &ctx)?;
        store.commit(Commit { execution_id: id, expected_head: head, fence: None, checkpoint }).await?;
        head += 1;
    }
    Ok((execution, id, head))
}

/// Returns how many points are not what they were, or cannot be read.
async fn unreadable(path: &Path, keys: &[MasterKey], acknowledged: &Acknowledged) -> Outcome<usize> {
    let options = Options { keys: keys.to_vec(), ..Options::default() };
    let store = SqliteStore::open_existing_with(path, options)?;
    let mut unreadable = 0;
    for (execution, id, head) in acknowledged {
        // As many as show whatever key sealed them.
        let step = usize::try_from(*head / POINTS_LOOKED_AT)?.max(1);
        for seq in (1..=*head).rev().step_by(step) {
            let state = store.context(*id, seq).await;
            unreadable += usize::from(!state.is_ok_and(|ctx| history::is_state(&ctx, *execution, seq)));
        }
    }
    Ok(unreadable)
}

/// Returns how often the text stands in a store's file and in what lies beside it.
fn occurrences(path: &Path) -> Outcome<usize> {
    let name = path.file_name().ok_or("a store has a name")?.to_string_lossy().into_owned();
    let mut found = 0;
    for entry in std::fs::read_dir(path.parent().ok_or("a store is in a directory")?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&name) {
            let bytes = std::fs::read(entry.path())?;
            found += bytes.windows(WRITTEN.len()).filter(|part| *part == WRITTEN).count();
        }
    }
    Ok(found)
}

fn checkpoint(before: Option<&ExecutionContext>, ctx: &ExecutionContext) -> Outcome<NewCheckpoint> {
    let clock = SystemClock::default();
    let (id, now) = (clock.new_id(), clock.now());
    let delta = store::delta(before, ctx, |_| None)?;
    Ok(NewCheckpoint { delta, ..NewCheckpoint::new(id, now, ExecutionState::Running, Cause::Manual) })
}
