//! Takes times, and makes one number of many.

use std::time::Duration;

use retake::clock::{Clock, SystemClock};

/// Measures from when it was made.
#[derive(Debug)]
pub(crate) struct Stopwatch(SystemClock);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(SystemClock::default())
    }

    pub(crate) fn read(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Returns how long `work` took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let watch = Stopwatch::start();
    let done = work();
    (watch.read(), done)
}

/// Returns the middle one; the upper of the two middle ones of an even number.
///
/// # Panics
/// Where there is none.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Returns how many of `one` make an `other`.
pub(crate) fn ratio(other: Duration, one: Duration) -> f64 {
    other.as_secs_f64() / one.as_secs_f64()
}

/// Returns the time that so many in a hundred do not exceed.
///
/// # Panics
/// Where there is none.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Returns the middle one, as [`median`] does.
///
/// # Panics
/// Where there is none.
pub(crate) fn middle(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
