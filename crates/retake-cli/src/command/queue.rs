//! `retake queue`: how the queues of a store stand, and their limits.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use retake::store::{Limit, QUEUE_NAME_BYTES_MAX, QueueDepth};
use retake::workflow::parse_duration;
use serde_json::{Value, json};

use crate::app::App;
use crate::detach;
use crate::failure::Failure;
use crate::table::Table;
use crate::wording;

/// The shortest period of a rate.
const PERIOD_MIN: Duration = Duration::from_millis(1);

/// Show the queues that workers serve, and limit what they take.
///
/// Limits are kept in the store, and hold for all workers on all machines. What a worker has taken already it keeps.
///
/// Exit codes: 0 done, 2 the store hands out no runs, or a limit that cannot be, 3 no store, 6 the store cannot be used.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// List the queues with how many runs stand how, and all limits
    Ls,
    /// Limit how many runs of a queue workers advance at the same time
    Limit {
        /// The queue's name
        #[arg(value_parser = name)]
        queue: String,
        /// At most so many, or `none`; with 0 the queue stands still
        #[arg(value_name = "N|none")]
        most: Bound<Most>,
    },
    /// Limit how many runs of a workflow workers begin in a period
    ///
    /// A rate of 10/1m lets ten begin at once where none has for a minute, and then one every six seconds. Runs that have
    /// begun go on as they would.
    Rate {
        /// The workflow's name
        #[arg(value_parser = name)]
        workflow: String,
        /// So many in a period, such as `10/1m`, or `none`; with 0 none begins
        #[arg(value_name = "N/PERIOD|none")]
        rate: Bound<Rate>,
    },
}

/// What limits something, if anything does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound<T> {
    At(T),
    None,
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Bound<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            text => text.parse().map(Self::At).map_err(|error: T::Err| error.to_string()),
        }
    }
}

/// So many at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Most(u32);

impl FromStr for Most {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = |_| format!("a limit is a number from 0 to {}, or `none`", u32::MAX);
        text.trim().parse().map(Self).map_err(shape)
    }
}

/// So many in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) most: u32,
    per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || "a rate is a number and a period, such as `10/1m`".to_owned();
        let (most, per) = text.split_once('/').ok_or_else(shape)?;
        let most = most.trim().parse().map_err(|_| shape())?;
        let per = parse_duration(per).map_err(|error| error.to_string())?;
        if per < PERIOD_MIN {
            return Err(format!("a period takes at least {}", humantime::format_duration(PERIOD_MIN)));
        }
        Ok(Self { most, per: detach::at_most_a_lifetime(per)? })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.most, humantime::format_duration(self.per))
    }
}

/// The limits of a store: of queues, and of workflows.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) running: BTreeMap<String, u32>,
    pub(crate) starts: BTreeMap<String, Rate>,
}

impl Limits {
    pub(crate) fn new(limits: Vec<Limit>) -> Self {
        let mut found = Self::default();
        for limit in limits {
            match limit {
                Limit::Running { queue, most } => {
                    found.running.insert(queue, most);
                }
                Limit::Starts { workflow, most, per } => {
                    found.starts.insert(workflow, Rate { most, per });
                }
            }
        }
        found
    }
}

impl Queue {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let store = app.queue("`queue`").await?;
        match self.command {
            QueueCommand::Ls => list(app, store.depths().await?, &Limits::new(store.limits().await?)),
            QueueCommand::Limit { queue, most } => {
                match most {
                    Bound::At(Most(most)) => {
                        store.set_limit(Limit::Running { queue: queue.clone(), most }).await?
                    }
                    Bound::None => {
                        // Whoever lifts what is not there has what was wanted.
                        let _was_there =
                            store.lift_limit(&Limit::Running { queue: queue.clone(), most: 0 }).await?;
                    }
                }
                // What is told is what the store keeps.
                tell_limit(app, &queue, Limits::new(store.limits().await?).running.get(&queue).copied());
            }
            QueueCommand::Rate { workflow, rate } => {
                let limit = |Rate { most, per }| Limit::Starts { workflow: workflow.clone(), most, per };
                match rate {
                    Bound::At(rate) => store.set_limit(limit(rate)).await?,
                    Bound::None => {
                        let any = Rate { most: 0, per: PERIOD_MIN };
                        let _was_there = store.lift_limit(&limit(any)).await?;
                    }
                }
                tell_rate(app, &workflow, Limits::new(store.limits().await?).starts.get(&workflow).copied());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(app: &App, mut depths: Vec<QueueDepth>, limits: &Limits) {
    // A queue that is limited is one, also while nothing is in it.
    for queue in limits.running.keys() {
        if let Err(at) = depths.binary_search_by(|depth| depth.queue.cmp(queue)) {
            depths.insert(at, QueueDepth { queue: queue.clone(), ..QueueDepth::default() });
        }
    }
    if app.output.json {
        let queues = depths.iter().map(|depth| {
            let mut document = json!(depth);
            document["limit"] = json!(limits.running.get(&depth.queue));
            document
        });
        let rates = limits.starts.iter().map(|(workflow, rate)| rate_document(workflow, Some(*rate)));
        app.output.document(&json!({
            "queues": queues.collect::<Vec<_>>(),
            "rates": rates.collect::<Vec<_>>(),
        }));
        return;
    }
    if depths.is_empty() && limits.starts.is_empty() {
        app.output.note("nothing is queued, and nothing limited");
        return;
    }
    let mut table = Table::new(["QUEUE", "QUEUED", "WAITING", "HELD", "RUNNING", "STUCK", "LIMIT"]);
    for QueueDepth { queue, due, delayed, held, claimed, stuck } in &depths {
        let limit = limits.running.get(queue).map(ToString::to_string);
        table.row([
            queue.into(),
            due.to_string().into(),
            delayed.to_string().into(),
            held.to_string().into(),
            claimed.to_string().into(),
            stuck.to_string().into(),
            limit.unwrap_or_default().into(),
        ]);
    }
    table.print(&app.output);
    if !depths.is_empty() && !limits.starts.is_empty() {
        app.output.line("");
    }
    let mut table = Table::new(["WORKFLOW", "RATE"]);
    for (workflow, rate) in &limits.starts {
        table.row([workflow.into(), rate.to_string().into()]);
    }
    table.print(&app.output);
}

fn tell_limit(app: &App, queue: &str, limit: Option<u32>) {
    if app.output.json {
        app.output.document(&json!({ "queue": queue, "limit": limit }));
        return;
    }
    let name = wording::plain(queue);
    app.output.line(match limit {
        Some(0) => format!("queue {name} stands still"),
        Some(most) => format!("of queue {name} at most {} at a time", runs(most)),
        None => format!("queue {name} has no limit"),
    });
}

fn tell_rate(app: &App, workflow: &str, rate: Option<Rate>) {
    if app.output.json {
        app.output.document(&rate_document(workflow, rate));
        return;
    }
    let name = wording::plain(workflow);
    app.output.line(match rate {
        Some(Rate { most: 0, .. }) => format!("no run of {name} begins"),
        Some(Rate { most, per }) => {
            format!("of {name} at most {} in {}", runs(most), humantime::format_duration(per))
        }
        None => format!("{name} has no rate"),
    });
}

fn rate_document(workflow: &str, rate: Option<Rate>) -> Value {
    let rate = rate.map(|Rate { most, per }| json!({ "most": most, "per_ms": per.as_millis() }));
    json!({ "workflow": workflow, "rate": rate })
}

fn runs(most: u32) -> String {
    wording::count(u64::from(most), "run")
}

/// Reads the name of a queue, or of a workflow.
pub(crate) fn name(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("a name has at least one character".to_owned()),
        1..=QUEUE_NAME_BYTES_MAX => Ok(text.to_owned()),
        bytes => Err(format!("a name has at most {QUEUE_NAME_BYTES_MAX} bytes, and this one {bytes}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_as_it_is_shown() {
        for (text, shown, ms) in
            [("10/1m", "10/1m", 60_000), ("0/1h 30m", "0/1h 30m", 5_400_000), (" 3 / 1ms", "3/1ms", 1)]
        {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.to_string().as_str(), rate.per.as_millis()), (shown, ms));
        }
        assert_eq!("none".parse::<Bound<Rate>>(), Ok(Bound::None));
    }

    #[test]
    fn a_rate_that_says_too_little_is_refused_with_what_is_missing() {
        for (text, why) in [
            ("10", "such as `10/1m`"),
            ("-1/1m", "such as `10/1m`"),
            ("ten/1m", "such as `10/1m`"),
            ("4294967296/1m", "such as `10/1m`"),
            ("10/m", "`m` is not a duration"),
            ("10/1", "`1` is not a duration"),
            ("10/0s", "at least 1ms"),
            ("10/101years", "100 years are the most"),
        ] {
            let error = text.parse::<Bound<Rate>>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!("4".parse::<Bound<Most>>(), Ok(Bound::At(Most(4))));
        assert_eq!("none".parse::<Bound<Most>>(), Ok(Bound::None));
        for text in ["x", "-1", "4294967296", ""] {
            let error = text.parse::<Bound<Most>>().unwrap_err();
            assert_eq!(error, "a limit is a number from 0 to 4294967295, or `none`", "{text}");
        }
    }
}
