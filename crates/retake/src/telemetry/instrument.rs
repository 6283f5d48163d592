//! The instruments: what is counted and measured, under which name, in which unit, apart by what.
//!
//! Names follow the semantic conventions of OpenTelemetry where there are any, units are UCUM's.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::store::QueueDepth;

/// What a measurement is set apart by, and how: `retake.node.kind` and `llm`.
pub(crate) type Attribute = (&'static str, Cow<'static, str>);

/// What an instrument does with a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstrumentKind {
    /// Adds it to a sum that never falls.
    Counter,
    /// Keeps the newest.
    Gauge,
    /// Counts it in a bucket.
    Histogram,
}

/// Something that is counted or measured.
#[derive(Debug)]
pub struct Instrument {
    /// Its name.
    pub name: &'static str,
    /// What it does with a measurement.
    pub kind: InstrumentKind,
    /// Its unit: `s`, or what is counted, in braces.
    pub unit: &'static str,
    /// What it says, in a sentence.
    pub description: &'static str,
    /// The upper bounds of a histogram's buckets, the last of which has none.
    pub bounds: &'static [f64],
    /// What measurements may be set apart by.
    pub attributes: &'static [&'static str],
}

/// From a commit in memory to one that waits for a disk or a network in trouble.
const SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From a node that sets a variable to one that waits for people.
const LONG_SECONDS: &[f64] =
    &[0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// What the semantic conventions advise.
const TOKEN_COUNTS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

const BATCHES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

pub(crate) static COMMITS: Instrument = Instrument {
    name: "retake.commits",
    kind: InstrumentKind::Counter,
    unit: "{commit}",
    description: "Checkpoints offered to the store, by what became of them: durable, conflict or failed.",
    bounds: &[],
    attributes: &["db.system.name", "retake.commit.outcome"],
};

pub(crate) static COMMIT_DURATION: Instrument = Instrument {
    name: "retake.commit.duration",
    kind: InstrumentKind::Histogram,
    unit: "s",
    description: "How long a checkpoint took to become durable.",
    bounds: SECONDS,
    attributes: &["db.system.name"],
};

pub(crate) static BATCH_SIZE: Instrument = Instrument {
    name: "retake.commit.batch.size",
    kind: InstrumentKind::Histogram,
    unit: "{write}",
    description: "How many writes shared one durable write.",
    bounds: BATCHES,
    attributes: &["db.system.name"],
};

pub(crate) static LEASE_LOSSES: Instrument = Instrument {
    name: "retake.lease.losses",
    kind: InstrumentKind::Counter,
    unit: "{lease}",
    description: "Leases that had passed to another process when their holder wrote or renewed.",
    bounds: &[],
    attributes: &["db.system.name"],
};

pub(crate) static CONNECTION_LOSSES: Instrument = Instrument {
    name: "retake.connection.losses",
    kind: InstrumentKind::Counter,
    unit: "{connection}",
    description: "Connections to the store's server that were lost or given up while they were in use.",
    bounds: &[],
    attributes: &["db.system.name"],
};

pub(crate) static CLAIMS: Instrument = Instrument {
    name: "retake.claims",
    kind: InstrumentKind::Counter,
    unit: "{execution}",
    description: "Executions that this process claimed from a queue.",
    bounds: &[],
    attributes: &["retake.queue.name"],
};

pub(crate) static QUEUE_DEPTH: Instrument = Instrument {
    name: "retake.queue.depth",
    kind: InstrumentKind::Gauge,
    unit: "{ticket}",
    description: "Tickets in a queue of the store, by how they stand: due, delayed, held, claimed or stuck.",
    bounds: &[],
    attributes: &["retake.queue.name", "retake.ticket.state"],
};

pub(crate) static EXECUTIONS: Instrument = Instrument {
    name: "retake.executions",
    kind: InstrumentKind::Counter,
    unit: "{execution}",
    description: "Runs of executions that ended in this process, by the state they left: error where none was saved.",
    bounds: &[],
    attributes: &["retake.execution.status"],
};

pub(crate) static EXECUTIONS_ACTIVE: Instrument = Instrument {
    name: "retake.execution.active",
    kind: InstrumentKind::Gauge,
    unit: "{execution}",
    description: "Executions that this process advances now.",
    bounds: &[],
    attributes: &[],
};

pub(crate) static NODES: Instrument = Instrument {
    name: "retake.nodes",
    kind: InstrumentKind::Counter,
    unit: "{node}",
    description: "Nodes that ended in this process, by kind and status: success, failure or skipped.",
    bounds: &[],
    attributes: &["retake.node.kind", "retake.node.status"],
};

pub(crate) static NODE_DURATION: Instrument = Instrument {
    name: "retake.node.duration",
    kind: InstrumentKind::Histogram,
    unit: "s",
    description: "How long a node or a counter-action worked, its attempts and the waits between them together.",
    bounds: LONG_SECONDS,
    attributes: &["retake.node.action", "retake.node.kind", "retake.node.status"],
};

pub(crate) static NODES_ACTIVE: Instrument = Instrument {
    name: "retake.node.active",
    kind: InstrumentKind::Gauge,
    unit: "{node}",
    description: "Nodes and counter-actions that work now in this process.",
    bounds: &[],
    attributes: &["retake.node.kind"],
};

pub(crate) static NODE_RETRIES: Instrument = Instrument {
    name: "retake.node.retries",
    kind: InstrumentKind::Counter,
    unit: "{attempt}",
    description: "Attempts that failed and were followed by another.",
    bounds: &[],
    attributes: &["error.type", "retake.node.kind"],
};

pub(crate) static TOKENS: Instrument = Instrument {
    name: "gen_ai.client.token.usage",
    kind: InstrumentKind::Histogram,
    unit: "{token}",
    description: "Tokens that an `llm` node took.",
    bounds: TOKEN_COUNTS,
    attributes: &[
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.response.model",
        "gen_ai.token.type",
    ],
};

/// All instruments.
pub static INSTRUMENTS: &[&Instrument] = &[
    &COMMITS,
    &COMMIT_DURATION,
    &BATCH_SIZE,
    &LEASE_LOSSES,
    &CONNECTION_LOSSES,
    &CLAIMS,
    &QUEUE_DEPTH,
    &EXECUTIONS,
    &EXECUTIONS_ACTIVE,
    &NODES,
    &NODE_DURATION,
    &NODES_ACTIVE,
    &NODE_RETRIES,
    &TOKENS,
];

/// Shows how many tickets stand how. A queue that was shown before and is not there any more is shown as empty: `shown`
/// remembers the names.
pub fn show_depths(depths: &[QueueDepth], shown: &mut BTreeSet<String>) {
    let gone = shown.iter().filter(|name| depths.iter().all(|depth| depth.queue != **name));
    let gone: Vec<QueueDepth> =
        gone.map(|name| QueueDepth { queue: name.clone(), ..QueueDepth::default() }).collect();
    shown.clear();
    shown.extend(depths.iter().map(|depth| depth.queue.clone()));
    for depth in depths.iter().chain(&gone) {
        let QueueDepth { queue, due, delayed, held, claimed, stuck } = depth;
        for (state, tickets) in
            [("due", due), ("delayed", delayed), ("held", held), ("claimed", claimed), ("stuck", stuck)]
        {
            let attributes =
                [("retake.queue.name", queue.clone().into()), ("retake.ticket.state", state.into())];
            QUEUE_DEPTH.set(*tickets, attributes);
        }
    }
}

/// A gauge that was raised by one, until this is dropped.
#[cfg(feature = "engine")]
#[derive(Debug)]
pub(crate) struct Raised<const N: usize> {
    gauge: &'static Instrument,
    attributes: [Attribute; N],
}

#[cfg(feature = "engine")]
impl<const N: usize> Raised<N> {
    pub(crate) fn new(gauge: &'static Instrument, attributes: [Attribute; N]) -> Self {
        gauge.shift(1.0, attributes.clone());
        Self { gauge, attributes }
    }
}

#[cfg(feature = "engine")]
impl<const N: usize> Drop for Raised<N> {
    fn drop(&mut self) {
        self.gauge.shift(-1.0, self.attributes.clone());
    }
}

/// Tells measurements to the recorder of the `metrics` crate from now on, in the whole process. Until then none is made,
/// so that they cost nothing where nobody wants them.
#[cfg(feature = "telemetry")]
pub fn measure() {
    recording::begin();
}

#[cfg(feature = "telemetry")]
mod recording {
    use std::sync::atomic::{AtomicBool, Ordering};

    use metrics::{Key, Label, Level, Metadata, Recorder, with_recorder};

    use super::{Attribute, Instrument};

    /// Whether anybody listens. The facade does not say so, and to ask it costs an allocation.
    static IS_WANTED: AtomicBool = AtomicBool::new(false);

    pub(super) fn begin() {
        IS_WANTED.store(true, Ordering::Relaxed);
    }

    static METADATA: Metadata<'static> = Metadata::new("retake", Level::INFO, Some("retake::telemetry"));

    impl Instrument {
        pub(crate) fn add<const N: usize>(&self, count: u64, attributes: [Attribute; N]) {
            self.with(attributes, |recorder, key| recorder.register_counter(key, &METADATA).increment(count));
        }

        pub(crate) fn record<const N: usize>(&self, value: f64, attributes: [Attribute; N]) {
            self.with(attributes, |recorder, key| recorder.register_histogram(key, &METADATA).record(value));
        }

        pub(crate) fn set<const N: usize>(&self, value: u64, attributes: [Attribute; N]) {
            self.with(attributes, |recorder, key| recorder.register_gauge(key, &METADATA).set(value as f64));
        }

        #[cfg(feature = "engine")]
        pub(super) fn shift<const N: usize>(&self, by: f64, attributes: [Attribute; N]) {
            self.with(attributes, |recorder, key| recorder.register_gauge(key, &METADATA).increment(by));
        }

        fn with<const N: usize>(&self, attributes: [Attribute; N], tell: impl FnOnce(&dyn Recorder, &Key)) {
            if !IS_WANTED.load(Ordering::Relaxed) {
                return;
            }
            let labels: Vec<Label> =
                attributes.into_iter().map(|(name, value)| Label::new(name, value)).collect();
            with_recorder(|recorder| tell(recorder, &Key::from_parts(self.name, labels)));
        }
    }
}

#[cfg(not(feature = "telemetry"))]
mod recording {
    use super::{Attribute, Instrument};

    /// Without the feature there is nobody to tell.
    impl Instrument {
        pub(crate) fn add<const N: usize>(&self, _: u64, _: [Attribute; N]) {}

        pub(crate) fn record<const N: usize>(&self, _: f64, _: [Attribute; N]) {}

        pub(crate) fn set<const N: usize>(&self, _: u64, _: [Attribute; N]) {}

        #[cfg(feature = "engine")]
        pub(super) fn shift<const N: usize>(&self, _: f64, _: [Attribute; N]) {}
    }
}
