//! The one place that reads time or makes ids.
//!
//! Everything else is handed a [`Clock`], so that a test or a simulation can decide what time it is. The plain
//! constructors of the public data types (`ExecutionContext::new` and the like) use the machine's own.

use std::fmt::Debug;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// A source of time and of ids.
pub trait Clock: Send + Sync + Debug {
    /// Returns the wall clock. It may step back: never order records by it.
    fn now(&self) -> DateTime<Utc>;

    /// Returns the time since some fixed start. It never steps back.
    fn elapsed(&self) -> Duration;

    /// Returns a new time-ordered id (UUID version 7).
    fn new_id(&self) -> Uuid;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads time")]
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads time")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the place that makes ids")]
    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// Returns the machine's clock, for code that was handed none. It is one clock: its start is read once.
pub(crate) fn system() -> SystemClock {
    static SYSTEM: LazyLock<SystemClock> = LazyLock::new(SystemClock::default);
    *SYSTEM
}

/// A clock that stands still until it is told to move, for tests.
///
/// ```
/// use retake::clock::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::default();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(30));
/// assert_eq!((clock.now() - before).num_seconds(), 30);
/// clock.step_back(Duration::from_secs(60));
/// assert_eq!((clock.now() - before).num_seconds(), -30);
/// assert_eq!(clock.elapsed(), Duration::from_secs(30));
/// ```
#[derive(Debug)]
pub struct ManualClock {
    at: Mutex<Hands>,
}

#[derive(Debug)]
struct Hands {
    wall: DateTime<Utc>,
    elapsed: Duration,
    ids: u64,
}

impl Default for ManualClock {
    /// Starts at 2026-01-01T00:00:00Z.
    fn default() -> Self {
        let wall = DateTime::from_timestamp(1_767_225_600, 0).expect("a date of this century");
        Self { at: Mutex::new(Hands { wall, elapsed: Duration::ZERO, ids: 0 }) }
    }
}

impl ManualClock {
    /// Moves both the wall clock and the elapsed time forward.
    pub fn advance(&self, by: Duration) {
        let mut hands = self.hands();
        hands.elapsed += by;
        hands.wall += TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
    }

    /// Moves the wall clock back, as a clock correction does; the elapsed time stays.
    pub fn step_back(&self, by: Duration) {
        self.hands().wall -= TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
    }

    fn hands(&self) -> std::sync::MutexGuard<'_, Hands> {
        self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        self.hands().wall
    }

    fn elapsed(&self) -> Duration {
        self.hands().elapsed
    }

    /// Returns ids in a fixed order: version 7 of a counter, whatever the wall clock says.
    fn new_id(&self) -> Uuid {
        let mut hands = self.hands();
        hands.ids += 1;
        let counter = hands.ids.to_be_bytes();
        let tail = [
            0, 0, counter[0], counter[1], counter[2], counter[3], counter[4], counter[5], counter[6],
            counter[7],
        ];
        uuid::Builder::from_unix_timestamp_millis(1_767_225_600_000 + hands.ids, &tail).into_uuid()
    }
}
