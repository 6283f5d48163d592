//! What a write does where the connection is lost: it waits for the server, within a bound, and looks whether it was done.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::PostgresOptions;
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
    pause: Duration,
}

impl Outage {
    pub(super) fn new(options: &PostgresOptions) -> Self {
        Self { bound: options.outage_max, until: None, pause: PAUSE_MIN }
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
        let until = *self.until.get_or_insert(now + self.bound);
        if !passes || now + self.pause >= until {
            return Err(error);
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
