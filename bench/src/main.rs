//! Prints how far the library is from the numbers it wants to reach: one table, each row ours beside a floor or a peer.
//!
//! Both sides of a row are measured in one run, in turns, on one file system; what is compared are medians. See
//! `docs/benchmarks.md` for what each floor is, and for a run with its machine.

mod floor;
mod growth;
mod listing;
mod machine;
mod overhead;
mod read;
mod sample;
mod save;
mod snapshot;
mod table;
mod timing;

use std::process::ExitCode;

use crate::table::Row;

/// What goes wrong here ends the run: a benchmark has nothing to recover.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// Enough for medians that can be told to others.
    Full,
    /// Only enough to see that everything runs.
    Quick,
}

impl Effort {
    /// Returns how often, or how many, for this effort.
    fn pick(self, full: usize, quick: usize) -> usize {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

fn main() -> ExitCode {
    let mut effort = Effort::Full;
    for argument in std::env::args().skip(1) {
        if argument != "--quick" {
            table::complain(&format!("unknown argument `{argument}`: only --quick is known"));
            return ExitCode::from(2);
        }
        effort = Effort::Quick;
    }
    match measure(effort) {
        Ok(rows) => {
            table::print(&machine::facts(), &rows);
            ExitCode::SUCCESS
        }
        Err(error) => {
            table::complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let parts: [(&str, fn(Effort) -> Outcome<Vec<Row>>); 6] = [
        ("saving", save::rows),
        ("growing", growth::rows),
        ("reading", read::rows),
        ("snapshots", snapshot::rows),
        ("overhead", overhead::rows),
        ("listing", listing::rows),
    ];
    let mut rows = Vec::new();
    for (name, part) in parts {
        table::progress(name);
        rows.extend(part(effort)?);
    }
    Ok(rows)
}
