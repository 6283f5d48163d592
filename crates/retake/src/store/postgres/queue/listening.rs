//! Hearing what others announce: a connection of its own that listens, as long as the store is open.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::super::connect::Connection;
use super::super::db::Db;
use super::bell::Bell;
use crate::store::StoreError;
use crate::store::hash::{Hash, first_bytes};

/// After how long it connects again where that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The task that listens. It ends with this.
#[derive(Debug, Default)]
pub(super) struct Listening {
    task: Mutex<Option<AbortHandle>>,
}

impl Listening {
    /// Makes sure that somebody listens for a bell.
    pub(super) fn begin(&self, bell: &Arc<Bell>, db: &Db) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // It ends with the runtime that it was begun on.
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            *task = Some(tokio::spawn(listen(Arc::downgrade(bell), db.clone())).abort_handle());
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

/// Returns the channel of a schema, whose own name might be too long for one.
pub(super) fn channel(schema: &str) -> String {
    let mut hash = Hash::of("channel");
    hash.text(schema.as_bytes());
    format!("retake_work_{:032x}", u128::from_be_bytes(first_bytes(&hash.finish())))
}

async fn listen(bell: Weak<Bell>, db: Db) {
    loop {
        let (hear, mut heard) = mpsc::channel(1);
        match connected(&db, hear).await {
            Ok(connection) => {
                // It ends when the connection does.
                let mut is_first = true;
                while is_first || heard.recv().await.is_some() {
                    let Some(bell) = bell.upgrade() else { return };
                    bell.set_connected(true);
                    // At first for what was announced before anybody listened.
                    bell.strike();
                    is_first = false;
                }
                drop(connection);
            }
            Err(error) => tracing::debug!(%error, "nobody listens for work: workers look for themselves"),
        }
        let Some(bell) = bell.upgrade() else { return };
        bell.set_connected(false);
        drop(bell);
        sleep(PAUSE).await;
    }
}

async fn connected(db: &Db, hear: mpsc::Sender<()>) -> Result<Connection, StoreError> {
    db.listen(&channel(db.schema()), hear).await
}
