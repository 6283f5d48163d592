//! The recorder of the library's measurements: sums and buckets in memory, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use retake::telemetry::{INSTRUMENTS, Instrument};

/// How many sets of attributes one instrument keeps apart. What comes after that is not counted, so that names which
/// workflows choose cannot fill the memory.
pub(super) const SERIES_MAX: usize = 1_000;

/// The attributes of a series, in the order of their names.
pub(super) type Attributes = Vec<(String, String)>;

/// The series of each instrument, by its name.
type Families = BTreeMap<&'static str, BTreeMap<Attributes, Arc<Series>>>;

/// Everything that was measured. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Meters {
    families: Arc<Mutex<Families>>,
}

/// What one instrument has measured for one set of attributes.
#[derive(Debug)]
pub(super) struct Series {
    bounds: &'static [f64],
    sums: Mutex<Sums>,
}

/// A sum, and how many measurements are in it: all, and those up to each bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) sum: f64,
    pub(super) count: u64,
    pub(super) up_to: Vec<u64>,
}

impl Meters {
    /// Returns all instruments that have measured something, with what they measured.
    pub(super) fn read(&self) -> Vec<(&'static Instrument, Vec<(Attributes, Sums)>)> {
        let families = self.families();
        let found = |instrument: &'static Instrument| {
            let family = families.get(instrument.name)?;
            let series =
                family.iter().map(|(attributes, series)| (attributes.clone(), series.sums().clone()));
            Some((instrument, series.collect()))
        };
        INSTRUMENTS.iter().filter_map(|instrument| found(instrument)).collect()
    }

    fn series(&self, key: &Key) -> Option<Arc<Series>> {
        // Other crates may measure by the same facade.
        let instrument = INSTRUMENTS.iter().find(|instrument| instrument.name == key.name())?;
        let attribute = |label: &metrics::Label| (label.key().to_owned(), label.value().to_owned());
        let mut attributes: Attributes = key.labels().map(attribute).collect();
        attributes.sort();
        let mut families = self.families();
        let family = families.entry(instrument.name).or_default();
        if let Some(series) = family.get(&attributes) {
            return Some(Arc::clone(series));
        }
        if family.len() >= SERIES_MAX {
            return None;
        }
        let up_to = vec![0; instrument.bounds.len()];
        let sums = Mutex::new(Sums { up_to, ..Sums::default() });
        let series = Arc::new(Series { bounds: instrument.bounds, sums });
        family.insert(attributes, Arc::clone(&series));
        Some(series)
    }

    fn families(&self) -> MutexGuard<'_, Families> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Series {
    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CounterFn for Series {
    fn increment(&self, value: u64) {
        self.sums().sum += value as f64;
    }

    fn absolute(&self, value: u64) {
        let mut sums = self.sums();
        sums.sum = sums.sum.max(value as f64);
    }
}

impl GaugeFn for Series {
    fn increment(&self, value: f64) {
        self.sums().sum += value;
    }

    fn decrement(&self, value: f64) {
        self.sums().sum -= value;
    }

    fn set(&self, value: f64) {
        self.sums().sum = value;
    }
}

impl HistogramFn for Series {
    fn record(&self, value: f64) {
        let mut sums = self.sums();
        sums.sum += value;
        sums.count += 1;
        for (bound, count) in self.bounds.iter().zip(&mut sums.up_to) {
            *count += u64::from(value <= *bound);
        }
    }
}

impl Recorder for Meters {
    // What an instrument is stands in the library's list.
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.series(key).map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.series(key).map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.series(key).map_or_else(Histogram::noop, Histogram::from_arc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(kind: String) -> Key {
        Key::from_parts("retake.nodes", vec![metrics::Label::new("retake.node.kind", kind)])
    }

    #[test]
    fn names_that_workflows_choose_cannot_fill_the_memory() {
        let meters = Meters::default();
        let metadata = Metadata::new("retake", metrics::Level::INFO, None);
        for n in 0..=SERIES_MAX {
            meters.register_counter(&nodes(n.to_string()), &metadata).increment(1);
        }
        meters.register_counter(&nodes("0".to_owned()), &metadata).increment(2);
        let read = meters.read();
        let [(_, series)] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(series.len(), SERIES_MAX);
        assert_eq!(series[0].1.sum, 3.0);
    }

    #[test]
    fn what_is_no_instrument_is_not_kept() {
        let meters = Meters::default();
        let metadata = Metadata::new("other", metrics::Level::INFO, None);
        meters.register_counter(&Key::from_name("other.requests"), &metadata).increment(1);
        assert_eq!(meters.read().len(), 0);
    }
}
