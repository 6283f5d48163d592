//! The thread that keeps reading fast and the log short, off the path of every save.

use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::chain;
use super::db::{self, Db};
use super::writer::{self, Job};
use super::{Shared, schema};
use crate::store::StoreError;

/// Tasks that may wait for the keeper; what does not fit is asked for again later.
pub(super) const TASKS_MAX: usize = 64;

/// How long the keeper lets writers wait for it, where the log must be cut.
const BUSY_MAX: Duration = Duration::from_millis(200);

/// Pages of the log past which it is begun anew, though writers wait for the rest of it: 4 MiB of 4 KiB pages.
const LOG_PAGES_MAX: i64 = 1024;

/// What the keeper is asked to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Make a keyframe at the head of an execution.
    Keyframe(i64),
    /// Move the log into the file, as far as nobody is disturbed.
    MoveLog,
    /// Move all of the log into the file, and cut it.
    CutLog(oneshot::Sender<Result<(), StoreError>>),
}

/// The keeper's side of its queue.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) tasks: blocking::Receiver<Task>,
    /// Weak, so that the writer ends when the store is closed.
    pub(super) writer: mpsc::WeakSender<Job>,
}

impl Keeper {
    /// Works until writer and store are gone.
    pub(super) fn run(self) {
        let mut connection = None;
        for task in &self.tasks {
            let db = match connection.take() {
                Some(db) => Ok(db),
                None => schema::connect(&self.shared.path, self.shared.access, BUSY_MAX, &self.shared.guard),
            };
            match (task, db) {
                (Task::Keyframe(execution), Ok(db)) => {
                    self.keyframe(&db, execution);
                    connection = Some(db);
                }
                (Task::MoveLog, Ok(db)) => {
                    if let Err(error) = move_log(&db) {
                        tracing::warn!(%error, "the write-ahead log could not be moved into the store");
                    }
                    connection = Some(db);
                }
                (Task::CutLog(reply), Ok(db)) => {
                    drop(reply.send(cut_log(&db)));
                    connection = Some(db);
                }
                (Task::Keyframe(execution), Err(error)) => {
                    self.shared.outstanding.done(execution);
                    tracing::warn!(%error, "no keyframe could be made");
                }
                (Task::MoveLog, Err(error)) => {
                    tracing::warn!(%error, "the write-ahead log could not be moved into the store");
                }
                (Task::CutLog(reply), Err(error)) => drop(reply.send(Err(error))),
            }
        }
    }

    /// Reads a state, and has the writer put it away with the next batch.
    fn keyframe(&self, db: &Db, execution: i64) {
        // Once the store closes, the writer makes those that are outstanding.
        let Some(writer) = self.writer.upgrade() else { return };
        let keyframe = match db.view(|| chain::due_keyframe(db, execution)) {
            Ok(Some(keyframe)) => keyframe,
            Ok(None) => return self.shared.outstanding.done(execution),
            Err(error) => {
                tracing::warn!(%error, "no keyframe could be made");
                return self.shared.outstanding.done(execution);
            }
        };
        let shared = Arc::clone(&self.shared);
        let (work, _) = writer::job(move |db, _| {
            shared.outstanding.done(execution);
            chain::insert_keyframe(db, execution, &keyframe)
        });
        if writer.blocking_send(Job::Later(work)).is_err() {
            self.shared.outstanding.done(execution);
        }
    }
}

fn move_log(db: &Db) -> Result<(), StoreError> {
    let log_pages = |row: &rusqlite::Row<'_>| db::integer(row, 1);
    let pages =
        db.first("PRAGMA wal_checkpoint(PASSIVE)", [], |_| "the write-ahead log".to_owned(), log_pages)?;
    if pages.is_some_and(|pages| pages > LOG_PAGES_MAX) {
        // Not cut: writing over what is there costs the disk half of what making a file longer does.
        db.renew_log()?;
    }
    Ok(())
}

/// Cuts the log, unless readers or writers of other connections hold it for too long.
fn cut_log(db: &Db) -> Result<(), StoreError> {
    db.script_as("moving the log into it", "PRAGMA wal_checkpoint(TRUNCATE)")
}
