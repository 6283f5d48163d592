//! Workflows: their definition, graph, file format, builder and expressions.
//!
//! Everything here is pure: nothing reads a file, a clock or the environment.

mod definition;
mod duration;
mod expression;
mod graph;
mod suggestion;

pub use definition::*;
pub use duration::{DurationError, parse_duration};
pub use expression::*;
pub use graph::{DEPENDENCIES_MAX, Graph};
