//! The store for many machines: tables in a schema of a PostgreSQL database.
//!
//! Everything here is done by tasks of the caller's runtime, which must have tokio's timers and sockets.

mod address;
mod connect;
#[cfg_attr(not(test), allow(dead_code, reason = "the statements of the store come with its tables"))]
mod db;
mod fault;
mod migration;
mod pool;
mod schema;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use self::address::Address;
use self::db::Db;
use self::migration::Missing;
use super::StoreError;
use crate::clock::{Clock, SystemClock};

/// How to connect to a [`PostgresStore`].
///
/// Every wait has its bound here, so that a call ends in time whatever happens to the server or on the way to it.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Makes ids, and says when things happened. Leases go by the server's clock.
    pub clock: Arc<dyn Clock>,
    /// How many connections there are at most; at least 1. One more listens.
    pub connections_max: usize,
    /// How long it may take until a connection is made, from the name of the server to the check of its settings.
    pub connect_timeout: Duration,
    /// How long a call may take: to wait for a connection, to send, and to be answered. The server gives a statement up
    /// after that time as well.
    pub call_timeout: Duration,
    /// How long a statement waits for what another transaction has locked.
    pub lock_timeout: Duration,
    /// After how long of silence within a transaction the server ends it: its process may be stopped.
    pub idle_transaction_timeout: Duration,
    /// After how long a connection is given up on which nothing that was sent arrives.
    pub unacknowledged_timeout: Duration,
    /// After how long of silence a connection is probed, and how often then.
    pub keepalive_interval: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            connections_max: 8,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            idle_transaction_timeout: Duration::from_secs(10),
            unacknowledged_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2),
        }
    }
}

/// Keeps histories on a PostgreSQL server, which many machines may use at once.
#[derive(Debug)]
pub struct PostgresStore {
    db: Db,
}

impl PostgresStore {
    /// Connects to the store at a URL, and makes it where there is none.
    ///
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=SCHEMA`
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the URL, the server or what this user may do there will not do;
    /// [`StoreError::NotAStore`] where the schema holds something else, [`StoreError::NewerFormat`], and
    /// [`StoreError::Io`] where the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_with(url, PostgresOptions::default()).await
    }

    /// Connects to the store at a URL, as [`connect`](Self::connect) does, with other options than the defaults.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub async fn connect_with(url: &str, options: PostgresOptions) -> Result<Self, StoreError> {
        Self::start(url, options, Missing::Create).await
    }

    /// Connects to the store at a URL, which must be there.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), and [`StoreError::Absent`].
    pub async fn connect_existing(url: &str) -> Result<Self, StoreError> {
        Self::connect_existing_with(url, PostgresOptions::default()).await
    }

    /// Connects to the store at a URL, which must be there, with other options than the defaults.
    ///
    /// # Errors
    /// Those of [`connect_existing`](Self::connect_existing).
    pub async fn connect_existing_with(url: &str, options: PostgresOptions) -> Result<Self, StoreError> {
        Self::start(url, options, Missing::Refuse).await
    }

    /// Returns where the store is, as people are told: without the password.
    pub fn location(&self) -> &str {
        self.db.location()
    }

    async fn start(url: &str, options: PostgresOptions, missing: Missing) -> Result<Self, StoreError> {
        let db = Db::new(Address::parse(url)?, options);
        db.greet().await?;
        migration::migrate(&db, schema::MIGRATIONS, missing).await?;
        Ok(Self { db })
    }
}
