//! The table of results, and all that is printed.

use std::fmt;
use std::time::Duration;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: String,
    /// The floor or the peer, by name and measure.
    pub(crate) theirs: String,
    /// What is compared with the goal.
    pub(crate) found: Found,
    /// `None` for what is told beside the goals.
    pub(crate) goal: Option<Found>,
    pub(crate) better: Better,
}

/// What was found, or is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    /// Ours over theirs.
    Ratio(f64),
    /// Ours by itself.
    Time(Duration),
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

impl Row {
    fn verdict(&self) -> &'static str {
        let is_met = match (self.found, self.goal) {
            (_, None) => return "-",
            (Found::Ratio(found), Some(Found::Ratio(goal))) => match self.better {
                Better::Less => found <= goal,
                Better::More => found >= goal,
            },
            (Found::Time(found), Some(Found::Time(goal))) => match self.better {
                Better::Less => found <= goal,
                Better::More => found >= goal,
            },
            (Found::Ratio(_) | Found::Time(_), Some(Found::Ratio(_) | Found::Time(_))) => {
                unreachable!("a goal is of the kind of what was found")
            }
        };
        if is_met { "yes" } else { "**no**" }
    }

    fn goal(&self) -> String {
        let sign = match self.better {
            Better::Less => "≤",
            Better::More => "≥",
        };
        self.goal.map_or_else(|| "-".to_owned(), |goal| format!("{sign} {goal}"))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(ratio) if *ratio < 0.01 => write!(f, "{ratio:.6}x"),
            Self::Ratio(ratio) => write!(f, "{ratio:.2}x"),
            Self::Time(time) => f.write_str(&shown(*time)),
        }
    }
}

/// Returns a time with three digits or so.
pub(crate) fn shown(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s if s >= 1e-6 => format!("{:.1} µs", s * 1e6),
        s => format!("{:.0} ns", s * 1e9),
    }
}

/// Prints what the machine is, and the table.
#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
pub(crate) fn print(facts: &[(&str, String)], rows: &[Row]) {
    for (name, fact) in facts {
        println!("- {name}: {fact}");
    }
    println!("\n| what | ours | beside it | found | goal | met |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let Row { what, ours, theirs, found, .. } = row;
        println!("| {what} | {ours} | {theirs} | {found} | {} | {} |", row.goal(), row.verdict());
    }
}

/// Tells what is being measured, for whoever waits.
#[expect(clippy::print_stderr, reason = "whoever waits wants to know for what")]
pub(crate) fn progress(what: &str) {
    eprintln!("measuring: {what}");
}

/// Tells why there is no table.
#[expect(clippy::print_stderr, reason = "an error belongs beside the table, not into it")]
pub(crate) fn complain(why: &str) {
    eprintln!("error: {why}");
}
