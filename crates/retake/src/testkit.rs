//! What every store must do, as functions that any store can be run against.
//!
//! The contract is a list of [`Case`]s; each is a plain async function that panics where a store does not do what the
//! docs of [`Store`] say. [`run_contract`] runs them all, [`histories`] makes random histories beside a simple model,
//! and [`checkpoint_storage`] does the same for the synchronous face.
//!
//! ```
//! use retake::clock::ManualClock;
//! use retake::store::{MemoryStore, Store};
//! use retake::testkit::{self, Harness};
//! use std::{sync::Arc, time::Duration};
//!
//! struct Memory(Arc<ManualClock>, Arc<MemoryStore>);
//!
//! #[async_trait::async_trait]
//! impl Harness for Memory {
//!     async fn open(&self) -> Arc<dyn Store> {
//!         self.1.clone()
//!     }
//!
//!     async fn pass(&self, time: Duration) {
//!         self.0.advance(time);
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
//! testkit::run_contract(|| {
//!     let clock = Arc::new(ManualClock::default());
//!     Memory(clock.clone(), Arc::new(MemoryStore::with_clock(clock)))
//! })
//! .await;
//! # });
//! ```

pub mod decoders;
pub mod histories;
#[cfg(feature = "postgres")]
pub mod postgres;

mod checkpoint_storage;
mod feed;
mod going_back;
mod leasing;
mod limiting;
mod moving;
mod queueing;
mod reading;
mod removing;
mod settling;
mod standing;
mod trial;
mod waking;
mod workflows;
mod writing;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

pub use checkpoint_storage::checkpoint_storage;

use crate::store::{Queue, Store};
use trial::Trial;

/// Cases at the same time: a store waits for its disk for most of the time.
const CASES_AT_ONCE: usize = 4;

/// How a case gets at the store that it tries.
#[async_trait::async_trait]
pub trait Harness: Send + Sync {
    /// Returns the store, with everything that was ever committed to it through this harness.
    ///
    /// A case calls it between its steps. A store that outlives its process is opened anew each time, so that what
    /// comes back is what was stored.
    async fn open(&self) -> Arc<dyn Store>;

    /// Lets time pass for leases, and for all else that the store measures time for.
    async fn pass(&self, time: Duration);

    /// Returns the store as [`open`](Self::open) does, where it hands executions out to workers.
    async fn queue(&self) -> Option<Arc<dyn Queue>> {
        None
    }
}

/// One thing that a store must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// What it must do, as a sentence in snake case.
    pub name: &'static str,
    run: fn(Trial) -> Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Case {
    /// Tries the store of `harness`, which must be empty.
    ///
    /// # Panics
    /// Where the store does something else.
    pub async fn run(&self, harness: Arc<dyn Harness>) {
        (self.run)(Trial::new(harness)).await;
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// Lists the functions of a file as cases. One that is not listed is dead code, which the compiler reports.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[crate::testkit::Case] = &[$(
            crate::testkit::Case { name: stringify!($name), run: |trial| Box::pin($name(trial)) }
        ),*];
    };
}
use cases;

/// Returns all that a store must do.
pub fn contract() -> Vec<Case> {
    [
        writing::CASES,
        going_back::CASES,
        workflows::CASES,
        reading::CASES,
        leasing::CASES,
        removing::CASES,
        moving::CASES,
        feed::CASES,
    ]
    .concat()
}

/// Returns all that a store must do that hands executions out to workers, beside what every store must do.
pub fn queue_contract() -> Vec<Case> {
    [queueing::CASES, settling::CASES, standing::CASES, waking::CASES, limiting::CASES].concat()
}

/// Runs the whole contract, each case on an empty store of its own, some at the same time. Needs tokio's multi-threaded
/// runtime to be of use: some cases write from many tasks at once.
///
/// # Panics
/// With the names of the cases that failed, after all have run.
pub async fn run_contract<H: Harness + 'static>(empty: impl Fn() -> H) {
    run(contract(), empty).await;
}

/// Runs what a store must do that hands executions out, as [`run_contract`] runs the rest. Needs a runtime with timers.
///
/// # Panics
/// With the names of the cases that failed, after all have run; all of them where the harness has no queue.
pub async fn run_queue_contract<H: Harness + 'static>(empty: impl Fn() -> H) {
    run(queue_contract(), empty).await;
}

async fn run<H: Harness + 'static>(cases: Vec<Case>, empty: impl Fn() -> H) {
    let (mut failed, mut running, mut names) = (Vec::new(), JoinSet::new(), HashMap::new());
    let mut note = |name: &str, failure: JoinError| failed.push(format!("{name}: {}", why(failure)));
    let mut cases = cases.into_iter();
    loop {
        for case in cases.by_ref().take(CASES_AT_ONCE - running.len()) {
            let harness: Arc<dyn Harness> = Arc::new(empty());
            let task = running.spawn(async move { case.run(harness).await });
            names.insert(task.id(), case.name);
        }
        match running.join_next().await {
            Some(Ok(())) => {}
            Some(Err(failure)) => note(names[&failure.id()], failure),
            None => break,
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

fn why(failure: JoinError) -> String {
    let name = failure.to_string();
    let Ok(panic) = failure.try_into_panic() else { return name };
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => name,
    }
}
