//! Waking workers: the bell that rings where there may be something to claim, here and by the server everywhere else.
//!
//! The server is told after what is told of is durable, by a statement of its own: one that announces and writes holds up
//! every other such transaction until its log is flushed. Where that is lost, the workers' own look finds it, later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::super::db::Db;
use super::listening::{Listening, channel};

/// However soon something may be due, workers that wait for it leave the server that much time.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// However long a worker would wait, it looks again after this where nobody listens.
const POLL: Duration = Duration::from_millis(500);

const RING: &str = "SELECT pg_notify($1, '')";

/// What a worker knew when it last claimed all that there was.
#[derive(Debug)]
pub(in super::super) struct Heard {
    /// How often the bell had rung.
    pub(super) rings: u64,
    /// When there may be more by the passing of time.
    pub(super) next: Option<Instant>,
}

/// Wakes the workers that wait.
#[derive(Debug, Default)]
pub(in super::super) struct Bell {
    rings: AtomicU64,
    rung: Notify,
    heard: Mutex<HashMap<Uuid, Heard>>,
    telling: Arc<Mutex<Telling>>,
    listening: Listening,
    /// Whether it is heard here what others announce.
    is_connected: AtomicBool,
}

/// Whether the server is being told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Telling {
    #[default]
    Idle,
    /// It is.
    Busy,
    /// It is, and is to be told again after that.
    Again,
}

impl Bell {
    /// Returns how often the bell has rung.
    pub(super) fn rings(&self) -> u64 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Returns the statement that tells the server, and its value: for those who send it with what it tells of.
    pub(in super::super) fn announcement(&self, db: &Db) -> (&'static str, String) {
        (RING, channel(db.schema()))
    }

    /// Wakes the workers of this store.
    pub(super) fn strike(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.rung.notify_waiters();
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::SeqCst);
    }

    /// Wakes all workers, and returns when the server has been told: for those who may end right after that.
    pub(in super::super) async fn ring(&self, db: &Db) {
        self.strike();
        tell(db).await;
    }

    /// Wakes all workers; the server is told in the background, once for all that ring in the meantime.
    pub(in super::super) fn ring_later(&self, db: &Db) {
        self.strike();
        let mut telling = lock(&self.telling);
        match *telling {
            Telling::Idle => *telling = Telling::Busy,
            Telling::Busy | Telling::Again => {
                *telling = Telling::Again;
                return;
            }
        }
        drop(telling);
        let (telling, db) = (Arc::clone(&self.telling), db.clone());
        tokio::spawn(async move {
            loop {
                tell(&db).await;
                let mut telling = lock(&telling);
                *telling = match *telling {
                    Telling::Again => Telling::Busy,
                    Telling::Busy | Telling::Idle => {
                        *telling = Telling::Idle;
                        return;
                    }
                };
            }
        });
    }

    /// Notes what a worker knows after a claim; `None` where there is more.
    pub(super) fn note(&self, worker: Uuid, heard: Option<Heard>) {
        let mut all = lock(&self.heard);
        match heard {
            Some(heard) => all.insert(worker, heard),
            None => all.remove(&worker),
        };
    }

    /// Returns when there may be something that the worker does not know of, or at the latest after `at_most`.
    pub(super) async fn wait(self: &Arc<Self>, db: &Db, worker: Uuid, at_most: Duration) {
        self.listening.begin(self, db);
        // Before the look, so that nothing is missed between.
        let rung = self.rung.notified();
        let now = Instant::now();
        let next = match lock(&self.heard).get(&worker) {
            Some(heard) if heard.rings == self.rings() => heard.next,
            Some(_) | None => return,
        };
        let until = match self.is_connected.load(Ordering::SeqCst) {
            true => now.checked_add(at_most).unwrap_or(now + POLL),
            false => now + at_most.min(POLL),
        };
        let until = next.map_or(until, |next| until.min(next.max(now + PAUSE_MIN)));
        // Whatever woke it, or nothing: there may be work.
        let _ = timeout_at(until, rung).await;
    }
}

async fn tell(db: &Db) {
    if let Err(error) = db.execute("waking workers", RING, &[&channel(db.schema())]).await {
        tracing::debug!(%error, "workers could not be woken, and look for themselves later");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
