//! Waiting for a server that is away, by commands that are started once and are to be there from then on.

use std::time::Duration;

use retake::store::PostgresStore;

use crate::app::App;
use crate::failure::Failure;
use crate::signals::Wishes;

/// How long to leave a server alone that could not be reached.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether a command can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The server answers, whatever it says, or there is none.
    Reached,
    /// Somebody wished that the command stops.
    Stopped,
}

/// Waits until the store's server can be reached. Why it cannot is told once.
pub(crate) async fn reach(
    app: &App,
    wishes: &mut Wishes,
    away: impl FnOnce(String),
) -> Result<Arrival, Failure> {
    let Some(url) = app.server()? else { return Ok(Arrival::Reached) };
    tokio::select! {
        _ = wishes.next() => Ok(Arrival::Stopped),
        () = until_reached(&url, away) => Ok(Arrival::Reached),
    }
}

async fn until_reached(url: &str, away: impl FnOnce(String)) {
    let mut away = Some(away);
    loop {
        match PostgresStore::connect_existing(url).await {
            Err(error) if error.is_retryable() => {
                if let Some(away) = away.take() {
                    away(Failure::from(error).in_a_line());
                }
                tokio::time::sleep(PAUSE).await;
            }
            // Anything else is said when the store is opened.
            Ok(_) | Err(_) => return,
        }
    }
}
