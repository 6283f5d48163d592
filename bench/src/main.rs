//! Prints how far the library is from the numbers it wants to reach: one table, each row ours beside a floor or a peer.
//!
//! Both sides of a row are measured in one run, in turns, on one file system; what is compared are medians. See
//! `docs/benchmarks.md` for what each floor is, and for a run with its machine.

mod difference;
mod floor;
mod forking;
mod growth;
mod listing;
mod machine;
mod overhead;
mod planning;
mod postgres;
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

/// The parts, by the name that chooses them.
const PARTS: [(&str, Part); 9] = [
    ("saving", save::rows),
    ("growing", growth::rows),
    ("reading", read::rows),
    ("snapshots", snapshot::rows),
    ("overhead", overhead::rows),
    ("listing", listing::rows),
    ("differences", difference::rows),
    ("planning", planning::rows),
    ("forking", forking::rows),
];

/// The parts that need a server, which are measured when they are asked for.
const ON_POSTGRES: [(&str, Part); 4] = [
    ("postgres-saving", postgres::saving),
    ("postgres-growing", postgres::growing),
    ("postgres-claiming", postgres::claiming),
    ("postgres-workers", postgres::workers),
];

/// What chooses all of [`ON_POSTGRES`].
const POSTGRES: &str = "postgres";

type Part = fn(Effort) -> Outcome<Vec<Row>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [postgres::WORK, url] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return told(postgres::work(url));
    }
    let mut effort = Effort::Full;
    let mut chosen = Vec::new();
    for argument in arguments {
        match PARTS.iter().chain(&ON_POSTGRES).find(|(name, _)| *name == argument) {
            Some(part) => chosen.push(*part),
            None if argument == POSTGRES => chosen.extend(ON_POSTGRES),
            None if argument == "--quick" => effort = Effort::Quick,
            None => {
                let names: Vec<_> = PARTS.iter().chain(&ON_POSTGRES).map(|(name, _)| *name).collect();
                let names = names.join(", ");
                table::complain(&format!("unknown argument `{argument}`: give --quick, or some of {names}"));
                return ExitCode::from(2);
            }
        }
    }
    if chosen.is_empty() {
        chosen.extend(PARTS);
    }
    told(measure(&chosen, effort).map(|rows| table::print(&machine::facts(), &rows)))
}

fn told(done: Outcome<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            table::complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn measure(parts: &[(&str, Part)], effort: Effort) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, part) in parts {
        table::progress(name);
        rows.extend(part(effort)?);
    }
    Ok(rows)
}
