//! The one place that reads time or makes ids.
//!
//! Everything else is handed a [`Clock`], so that a test or a simulation can decide what time it is. The plain
//! constructors of the public data types (`ExecutionContext::new` and the like) use the machine's own.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
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

    /// Returns the wall clock and a new id, for a record that carries both.
    fn stamp(&self) -> (DateTime<Utc>, Uuid) {
        (self.now(), self.new_id())
    }
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

    fn new_id(&self) -> Uuid {
        id_at(self.now())
    }

    /// Reads the clock once for both.
    fn stamp(&self) -> (DateTime<Utc>, Uuid) {
        let now = self.now();
        (now, id_at(now))
    }
}

/// Bits of an id that count within one millisecond.
const COUNTER_BITS: u32 = 12;

/// Returns a UUID of version 7 that is greater than every one this process made before, though the clock stands still
/// or steps back.
#[expect(clippy::disallowed_methods, reason = "this is the place that makes ids")]
fn id_at(now: DateTime<Utc>) -> Uuid {
    /// The milliseconds and the counter of the newest id.
    static NEWEST: AtomicU64 = AtomicU64::new(0);
    let earliest = u64::try_from(now.timestamp_millis()).unwrap_or(0) << COUNTER_BITS;
    let next = |newest: u64| earliest.max(newest + 1);
    let newest = NEWEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |newest| Some(next(newest)));
    let place = newest.map_or(earliest, next);
    let (_, random) = Uuid::new_v4().as_u64_pair();
    let version = 7 << COUNTER_BITS;
    let counter = place & ((1 << COUNTER_BITS) - 1);
    // The variant is where version 4 has it already.
    Uuid::from_u64_pair((place >> COUNTER_BITS) << 16 | version | counter, random)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_only_grow_though_the_clock_stands_still_or_steps_back() {
        let now = SystemClock::default().now();
        let ids: Vec<Uuid> =
            (0..10_000).map(|n| id_at(if n % 2 == 0 { now } else { now - TimeDelta::seconds(5) })).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
    }

    #[test]
    fn a_stamp_carries_one_moment() {
        // Other tests of this process may have moved the counter on, by a millisecond at most for each 4,096 ids.
        let (at, id) = SystemClock::default().stamp();
        let (seconds, nanoseconds) = id.get_timestamp().unwrap().to_unix();
        let id_ms = i64::try_from(seconds).unwrap() * 1_000 + i64::from(nanoseconds / 1_000_000);
        assert!((0..1_000).contains(&(id_ms - at.timestamp_millis())), "{id_ms} is not {at}");
    }
}
