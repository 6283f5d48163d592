//! Plans against oracles: what a plan keeps must be what a run from zero would have given.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cases;
mod concern;
mod flow;
mod histories;
mod laws;
mod model;
mod trial;
