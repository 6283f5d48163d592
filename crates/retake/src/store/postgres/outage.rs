//! What a write does where the connection is lost: it waits for the server, within a bound, and looks whether it was done.
//! Where somebody else has locked the tables, it waits for that as well, within the bound of a call.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{PostgresOptions, fault};
use crate::store::StoreError;

/// Pauses begin with this, and double.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// And they stop to double here.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A time in which the server could not be asked.
#[derive(Debug)]
pub(super) struct Outage {
    bound: Duration,
    /// When it is given up; `None` where all has been well.
    until: Option<Instant>,
    /// After this no other try waits for what somebody else has locked.
    locked_until: Instant,
    pause: Duration,
}

impl Outage {
    pub(super) fn new(options: &PostgresOptions) -> Self {
        let patience = options.call_timeout.saturating_sub(options.lock_wait());
        let locked_until = Instant::now() + patience;
        Self { bound: options.outage_max, until: None, locked_until, pause: PAUSE_MIN }
    }

    /// Tells whether an answer was lost, so that nobody knows what was done.
    pub(super) fn is_any(&self) -> bool {
        self.until.is_some()
    }

    /// Waits a moment after a failure that passes. Any other is returned, and so is one that lasts for too long.
    pub(super) async fn wait(&mut self, error: StoreError) -> Result<(), StoreError> {
        let passes = match &error {
            StoreError::Io { .. } | StoreError::Closed { .. } => true,
            StoreError::NoExecution(_)
            | StoreError::NoPoint { .. }
            | StoreError::Pruned { .. }
            | StoreError::ForeignPosition { .. }
            | StoreError::Conflict(_)
            | StoreError::Unstorable { .. }
            | StoreError::Corrupt { .. }
            | StoreError::NewerFormat { .. }
            | StoreError::Key { .. }
            | StoreError::NotAStore { .. }
            | StoreError::Absent { .. }
            | StoreError::Refused { .. }
            | StoreError::Full { .. } => false,
        };
        let now = Instant::now();
        // Each try has waited already; and the server did nothing, and said so.
        if fault::is_locked(&error) {
            if now >= self.locked_until {
                return Err(error);
            }
            sleep(PAUSE_MIN).await;
            return Ok(());
        }
        let until = *self.until.get_or_insert(now + self.bound);
        if !passes || now + self.pause >= until {
            return Err(error);
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
