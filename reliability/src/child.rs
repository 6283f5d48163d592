//! What this program does as a child of itself: the processes that faults befall.

use std::process::ExitCode;

use crate::report;

/// The first argument of a child.
pub(crate) const ARGUMENT: &str = "child";

/// Does what the arguments say, as told by the trial that started it.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    report::complain(&format!("error: no child is called {arguments:?}"));
    ExitCode::from(2)
}
