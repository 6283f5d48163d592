//! Leaving a run to workers: how the command line says so, and what is told then.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use retake::store::{QUEUE_DEFAULT, TIME_MAX, Ticket, TicketRecord};
use retake::workflow::parse_duration;

use crate::app::App;
use crate::command::queue;
use crate::failure::{Code, Failure};
use crate::wording;

/// How a run is left to workers.
#[derive(Debug, Clone, Args)]
pub(crate) struct Detach {
    /// Leave the run to a worker (`retake worker`), and return at once; needs a PostgreSQL store
    #[arg(long)]
    pub(crate) detach: bool,

    /// With --detach: the queue to wait in; without it `default`, or the one that a resumed run waits in already
    #[arg(long, requires = "detach", value_name = "QUEUE", value_parser = queue::name)]
    queue: Option<String>,

    /// With --detach: those with a higher number are taken first; without it 0, or that of a resumed run that waits already
    #[arg(long, requires = "detach", value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,

    /// With --detach: begin after this time, as `5m`
    #[arg(long, requires = "detach", value_name = "TIME", value_parser = delay)]
    delay: Option<Duration>,

    /// With --detach: begin at a moment, as `2026-01-31T12:00:00Z`
    #[arg(long, requires = "detach", value_name = "MOMENT", conflicts_with = "delay", value_parser = moment)]
    at: Option<DateTime<Utc>>,
}

impl Detach {
    /// Returns the ticket that was asked for. What was not named stays as the ticket says that the run has, if it has one.
    ///
    /// # Errors
    /// Where it would be due when nobody is there any more.
    pub(crate) fn ticket(&self, now: DateTime<Utc>, before: Option<TicketRecord>) -> Result<Ticket, Failure> {
        let (queue, priority, due_at) = match before {
            Some(TicketRecord { queue, priority, due_at, .. }) => (queue, priority, due_at),
            None => (QUEUE_DEFAULT.to_owned(), 0, None),
        };
        let until = |moment: DateTime<Utc>| (moment - now).to_std().unwrap_or(Duration::ZERO);
        let delay = self.delay.or(self.at.or(due_at).map(until)).unwrap_or(Duration::ZERO);
        Ok(Ticket {
            queue: self.queue.clone().unwrap_or(queue),
            priority: self.priority.unwrap_or(priority),
            delay: at_most_a_lifetime(delay).map_err(|why| Failure::new(Code::Usage, why))?,
            ..Ticket::default()
        })
    }
}

/// Says what happens next to a run that waits for a worker.
pub(crate) fn tell(app: &App, name: &str, ticket: &Ticket) {
    let (name, queue) = (wording::plain(name), wording::plain(&ticket.queue));
    let when = match ticket.delay {
        Duration::ZERO => String::new(),
        delay => format!(" in {}", humantime::format_duration(Duration::from_secs(delay.as_secs()))),
    };
    let show = app.command_line(format_args!("show {name}"));
    app.output.note(format!("a worker of queue {queue} takes it{when}; `{show}` shows how it stands"));
}

/// Reads a time such as `5m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Reads how long a run is to wait.
fn delay(text: &str) -> Result<Duration, String> {
    at_most_a_lifetime(duration(text)?)
}

/// Refuses a time that stores would cut short.
pub(crate) fn at_most_a_lifetime(time: Duration) -> Result<Duration, String> {
    match time <= TIME_MAX {
        true => Ok(time),
        false => Err("100 years are the most".to_owned()),
    }
}

fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let moment = DateTime::parse_from_rfc3339(text);
    moment
        .map(|moment| moment.with_timezone(&Utc))
        .map_err(|error| format!("it is not a moment such as 2026-01-31T12:00:00Z: {error}"))
}
