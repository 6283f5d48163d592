//! What can be watched: the instruments, and a store that is watched from outside.
//!
//! Spans and events are [`tracing`]'s, measurements go to whatever recorder the program has installed for the `metrics`
//! crate, once it has called `measure` (feature `telemetry`). Neither carries a value, a prompt, an output or the text of a node's failure: names, numbers
//! and kinds only. `docs/telemetry.md` lists all of them.

mod instrument;
mod observed;

#[cfg(feature = "telemetry")]
pub use instrument::measure;
pub use instrument::{INSTRUMENTS, Instrument, InstrumentKind, show_depths};
pub use observed::Observed;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use instrument::BATCH_SIZE;
#[cfg(feature = "postgres")]
pub(crate) use instrument::CONNECTION_LOSSES;
#[cfg(feature = "engine")]
pub(crate) use instrument::{
    EXECUTIONS, EXECUTIONS_ACTIVE, NODE_DURATION, NODE_RETRIES, NODES, NODES_ACTIVE, Raised, TOKENS,
};
