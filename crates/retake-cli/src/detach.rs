//! Leaving a run to workers: how the command line says so, and what is told then.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use retake::store::{QUEUE_DEFAULT, Ticket};
use retake::workflow::parse_duration;

use crate::app::App;
use crate::wording;

/// How a run is left to workers.
#[derive(Debug, Clone, Args)]
pub(crate) struct Detach {
    /// Leave the run to a worker (`retake worker`), and return at once; needs a PostgreSQL store
    #[arg(long)]
    pub(crate) detach: bool,

    /// With --detach: the queue to wait in
    #[arg(long, requires = "detach", value_name = "QUEUE")]
    queue: Option<String>,

    /// With --detach: those with a higher number are taken first
    #[arg(long, requires = "detach", value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,

    /// With --detach: begin after this time, as `5m`
    #[arg(long, requires = "detach", value_name = "TIME", value_parser = duration)]
    delay: Option<Duration>,

    /// With --detach: begin at a moment, as `2026-01-31T12:00:00Z`
    #[arg(long, requires = "detach", value_name = "MOMENT", conflicts_with = "delay", value_parser = moment)]
    at: Option<DateTime<Utc>>,
}

impl Detach {
    /// Returns the ticket that was asked for.
    pub(crate) fn ticket(&self, now: DateTime<Utc>) -> Ticket {
        let until_then = self.at.and_then(|at| (at - now).to_std().ok());
        Ticket {
            queue: self.queue.clone().unwrap_or_else(|| QUEUE_DEFAULT.to_owned()),
            priority: self.priority.unwrap_or_default(),
            delay: self.delay.or(until_then).unwrap_or(Duration::ZERO),
            ..Ticket::default()
        }
    }
}

/// Says what happens next to a run that waits for a worker.
pub(crate) fn tell(app: &App, name: &str, ticket: &Ticket) {
    let name = wording::plain(name);
    let when = match ticket.delay {
        Duration::ZERO => String::new(),
        delay => format!(" in {}", humantime::format_duration(Duration::from_secs(delay.as_secs()))),
    };
    let show = app.command_line(format_args!("show {name}"));
    app.output.note(format!("a worker takes it{when}; `{show}` shows how it stands"));
}

/// Reads a time such as `5m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let moment = DateTime::parse_from_rfc3339(text);
    moment
        .map(|moment| moment.with_timezone(&Utc))
        .map_err(|error| format!("it is not a moment such as 2026-01-31T12:00:00Z: {error}"))
}
