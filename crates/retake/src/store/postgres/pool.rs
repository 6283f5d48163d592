//! The connections of a store: at most so many, handed out one at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::PostgresOptions;
use super::address::Address;
use super::connect::Connection;
use super::fault::{Fault, Link};
use super::tls::Connector;
use crate::store::StoreError;
use crate::telemetry::CONNECTION_LOSSES;

/// Pauses between attempts to connect begin with this, and double.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// And they stop to double here.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is done where the server does not take a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It is reported.
    None,
    /// It is tried again until a connection should have been made.
    ForAWhile,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) address: Address,
    pub(super) options: PostgresOptions,
    connector: Connector,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    /// Whether the server was last seen to go away.
    is_away: AtomicBool,
}

/// A connection that is in use. Where it is dropped instead of given back, it is closed, for nobody knows what is still
/// on its way.
#[derive(Debug)]
pub(super) struct Held {
    /// Taken only when it is given back or dropped.
    connection: Option<Connection>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(address: Address, options: PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let refused = |why| Fault::refused(address.location(), "connecting", why).error;
        let connector = address.tls.connector().map_err(refused)?;
        let options = address.options(options);
        let permits = Arc::new(Semaphore::new(options.connections_max.max(1)));
        let (idle, is_away) = (Mutex::default(), AtomicBool::new(false));
        Ok(Arc::new(Self { address, options, connector, permits, idle, is_away }))
    }

    pub(super) fn location(&self) -> &str {
        self.address.location()
    }

    /// Returns a connection, made where none is idle.
    pub(super) async fn take(
        self: &Arc<Self>,
        action: &'static str,
        deadline: Instant,
        patience: Patience,
    ) -> Result<Held, Fault> {
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        let busy = || {
            let what = format!("all {} connections are in use", self.options.connections_max);
            Fault::late(self.location(), action, what)
        };
        // It is never closed.
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let connection = match self.idle() {
            Some(connection) => connection,
            None => self.connect(deadline, patience).await?,
        };
        Ok(Held { connection: Some(connection), pool: Arc::clone(self), _permit: permit })
    }

    async fn connect(&self, deadline: Instant, patience: Patience) -> Result<Connection, Fault> {
        let deadline = deadline.min(Instant::now() + self.options.connect_timeout);
        let mut pause = PAUSE_MIN;
        loop {
            let opening = Connection::open(&self.address, &self.connector, &self.options, deadline, None);
            let fault = match opening.await {
                Ok(connection) => {
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        tracing::info!(parent: None, "the server takes connections again");
                    }
                    return Ok(connection);
                }
                Err(fault) => fault,
            };
            if fault.error.is_retryable() && !self.is_away.swap(true, Ordering::Relaxed) {
                let class = fault.error.class();
                tracing::warn!(parent: None, error.r#type = class, "the server takes no connection");
            }
            let next = Instant::now() + pause;
            if patience == Patience::None || !fault.error.is_retryable() || next >= deadline {
                return Err(fault);
            }
            sleep_until(next).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Makes a connection of its own that listens to a channel, and tells what is announced there.
    pub(super) async fn listen(&self, channel: &str, hear: mpsc::Sender<()>) -> Result<Connection, Fault> {
        let deadline = Instant::now() + self.options.connect_timeout;
        let opening =
            Connection::open(&self.address, &self.connector, &self.options, deadline, Some(hear)).await?;
        let listen = format!("LISTEN \"{channel}\"");
        let answer = opening.client.batch_execute(&listen);
        Connection::answer(self.location(), "listening", deadline, answer).await?;
        Ok(opening)
    }

    /// Takes the connection that was used last, and forgets those that are closed.
    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.client.is_closed());
        let place = idle.iter().rposition(Connection::is_usable)?;
        Some(idle.remove(place))
    }

    /// Closes the idle connections: where one was lost, the others may be as well.
    pub(super) fn distrust(&self) {
        for connection in self.idle.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            connection.cut();
        }
    }

    /// Keeps a connection for the next one who needs it.
    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= self.options.connections_max {
            // Those of other runtimes, which nobody here can use.
            idle.remove(0);
        }
        idle.push(connection);
    }
}

impl Held {
    pub(super) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("it is taken only by what consumes this")
    }

    pub(super) fn location(&self) -> &str {
        self.pool.location()
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.pool.options
    }

    /// Returns until when a call that begins now must be answered.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options().call_timeout
    }

    /// Gives the connection back after an answer, or closes it where it is lost.
    pub(super) fn give_back(mut self, link: Link) {
        let connection = self.connection.take();
        match (link, connection) {
            (Link::Whole, Some(connection)) if !connection.client.is_closed() => self.pool.keep(connection),
            (Link::Whole | Link::Lost, Some(connection)) => {
                tracing::warn!("a connection to the server was lost");
                self.pool.is_away.store(true, Ordering::Relaxed);
                CONNECTION_LOSSES.add(1, [("db.system.name", "postgresql".into())]);
                connection.cut();
            }
            (Link::Whole | Link::Lost, None) => {}
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.cut();
        }
    }
}
