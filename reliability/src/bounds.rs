//! Bounds: many executions at once, values that are too large, and memory that comes to an end.

pub(crate) mod cgroup;
pub(crate) mod large;
pub(crate) mod many;
pub(crate) mod memory;

use crate::report::Report;
use crate::{Outcome, Settings};

/// The memory that a process with a bound may take, in bytes.
const MEMORY_MAX: u64 = 256 * 1024 * 1024;

pub(crate) fn trial(settings: Settings) -> Outcome<Report> {
    let mut report = Report::default();
    many::trial(settings, &mut report)?;
    large::trial(&mut report)?;
    memory::trial(settings, &mut report)?;
    Ok(report)
}

fn mebibytes(bytes: u64) -> u64 {
    bytes / (1024 * 1024)
}
