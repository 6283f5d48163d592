//! The threads that read, each with its own connection.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::db::Db;
use super::{Shared, schema};
use crate::store::StoreError;

/// Reads that may wait; whoever brings another waits for room.
pub(super) const QUEUE_MAX: usize = 1_024;

/// Does a read on the connection, or passes on why there is none.
pub(super) type Read = Box<dyn FnOnce(Result<&Db, StoreError>) + Send>;

/// Returns a read of one consistent view of the file, and where its result will arrive.
pub(super) fn read<T: Send + 'static>(
    work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
) -> (Read, oneshot::Receiver<Result<T, StoreError>>) {
    let (sender, receiver) = oneshot::channel();
    let run = move |db: Result<&Db, StoreError>| {
        // Whoever waited may have gone.
        drop(sender.send(db.and_then(|db| db.view(|| work(db)))));
    };
    (Box::new(run), receiver)
}

/// Works until the store is closed. All readers share one queue.
pub(super) fn run(shared: &Arc<Shared>, queue: &Arc<Mutex<mpsc::Receiver<Read>>>) {
    let mut connection = None;
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
    while let Some(read) = next() {
        let db = match connection.take() {
            Some(db) => Ok(db),
            None => schema::connect(&shared.path, shared.access, schema::BUSY_MAX, &shared.guard),
        };
        read(db.as_ref().map_err(Clone::clone));
        // A connection that is still within a transaction is of no more use.
        connection = db.ok().filter(Db::is_idle);
    }
}
