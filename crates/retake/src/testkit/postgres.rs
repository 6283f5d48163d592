//! Stores on a PostgreSQL server for tests, each in a schema of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::Harness;
use crate::clock::{Clock, SystemClock};
use crate::store::{PostgresStore, Queue, Store};

/// The environment variable with the URL of a server for tests, as a superuser.
pub const RETAKE_TEST_POSTGRES: &str = "RETAKE_TEST_POSTGRES";

/// A schema that is not there yet, and goes when this is dropped, with everything in it.
///
/// As a [`Harness`] it opens the store twice, and gives one and the other in turn: so each finds what it knows of an
/// execution out of date.
#[derive(Debug)]
pub struct PostgresSchema {
    name: String,
    /// How far the time that leases go by is ahead of the server's.
    ahead: Mutex<Duration>,
    /// Those that a harness gives, the next one first.
    opened: Mutex<VecDeque<Arc<PostgresStore>>>,
}

/// Stores that a harness has open.
const OPENED_MAX: usize = 2;

impl PostgresSchema {
    /// Returns a schema on the server that [`RETAKE_TEST_POSTGRES`] names.
    ///
    /// # Panics
    /// Where the variable is not set.
    pub fn new() -> Self {
        server();
        Self {
            name: format!("test_{}", SystemClock::default().new_id().simple()),
            ahead: Mutex::default(),
            opened: Mutex::default(),
        }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URL of a store in it.
    pub fn url(&self) -> String {
        let server = server();
        let joint = if server.contains('?') { '&' } else { '?' };
        format!("{server}{joint}schema={0}&application_name={0}", self.name)
    }

    /// Returns the store in it, opened anew.
    ///
    /// # Panics
    /// Where that fails.
    pub async fn store(&self) -> PostgresStore {
        PostgresStore::connect(&self.url()).await.expect("the store opens")
    }

    /// Runs statements behind the store's back, and returns the first column of the rows that they give.
    ///
    /// # Panics
    /// Where that fails.
    pub async fn run(&self, sql: &str) -> Vec<Option<String>> {
        run(&self.name, sql).await
    }

    /// Moves the time that leases go by ahead.
    ///
    /// # Panics
    /// Where there is no store in the schema.
    pub async fn pass(&self, time: Duration) {
        let ahead = {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            *ahead += time;
            ahead.as_millis()
        };
        let sql = format!(
            "CREATE OR REPLACE FUNCTION moment() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE \
             RETURN now() + interval '{ahead} ms'"
        );
        self.run(&sql).await;
    }
}

impl Default for PostgresSchema {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait::async_trait]
impl Harness for PostgresSchema {
    async fn open(&self) -> Arc<dyn Store> {
        let opened = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let next = {
            let mut opened = opened();
            if opened.len() < OPENED_MAX { None } else { opened.pop_front() }
        };
        let store = match next {
            Some(store) => store,
            None => Arc::new(self.store().await),
        };
        opened().push_back(Arc::clone(&store));
        store
    }

    async fn pass(&self, time: Duration) {
        self.pass(time).await;
    }

    async fn queue(&self) -> Option<Arc<dyn Queue>> {
        Some(Arc::new(self.store().await))
    }
}

impl Drop for PostgresSchema {
    fn drop(&mut self) {
        // A transaction that was dropped may still be open, for the runtime of the test stands still now.
        let sql = format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = '{0}'; \
             DROP SCHEMA IF EXISTS {0} CASCADE",
            self.name
        );
        // Not on the runtime of the test, which waits for this.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(run("public", &sql));
        });
        drop(dropping.join());
    }
}

fn server() -> String {
    std::env::var(RETAKE_TEST_POSTGRES).expect(
        "RETAKE_TEST_POSTGRES names a PostgreSQL server for tests: `cargo xtask postgres -- cargo test ...` starts one",
    )
}

async fn run(schema: &str, sql: &str) -> Vec<Option<String>> {
    let (client, connection) =
        tokio_postgres::connect(&server(), NoTls).await.expect("the server of the tests");
    let connection = tokio::spawn(connection);
    // On its own: some statements must not stand beside others.
    client.batch_execute(&format!("SET search_path TO {schema}")).await.expect("a schema");
    let messages = client.simple_query(sql).await.expect("a statement of a test");
    drop(client);
    drop(connection.await);
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}
