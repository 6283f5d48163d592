//! A schema of its own for every test, on the server that `RETAKE_TEST_POSTGRES` names.

use tokio_postgres::NoTls;

use super::PostgresOptions;
use super::address::Address;
use super::db::Db;
use crate::clock::{Clock, SystemClock};

/// A schema that is not there yet, and goes with its test.
#[derive(Debug)]
pub(super) struct Schema {
    name: String,
}

impl Schema {
    pub(super) fn new() -> Self {
        Self { name: format!("test_{}", SystemClock::default().new_id().simple()) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URL of a store in it.
    pub(super) fn url(&self) -> String {
        let server = server();
        let joint = if server.contains('?') { '&' } else { '?' };
        format!("{server}{joint}schema={0}&application_name={0}", self.name)
    }

    /// Returns the URL of a store in it, for a user of its own that is made by `CREATE ROLE` with these properties.
    pub(super) async fn url_as(&self, properties: &str) -> String {
        run(&format!("CREATE ROLE {0} LOGIN PASSWORD '{0}' {properties}", self.name)).await;
        let (_, host) =
            server().split_once('@').map(|(login, host)| (login.to_owned(), host.to_owned())).unwrap();
        let joint = if host.contains('?') { '&' } else { '?' };
        format!("postgres://{0}:{0}@{host}{joint}schema={0}&application_name={0}", self.name)
    }

    /// Runs statements behind the store's back.
    pub(super) async fn run(&self, sql: &str) {
        run(sql).await;
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        // A transaction that was dropped may still be open, for the runtime of the test stands still now.
        let sql = format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = '{0}'; \
             DROP SCHEMA IF EXISTS {0} CASCADE; \
             DO $$ BEGIN DROP OWNED BY {0}; DROP ROLE {0}; EXCEPTION WHEN undefined_object THEN END $$",
            self.name
        );
        // Not on the runtime of the test, which waits for this.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(&sql));
        });
        drop(dropping.join());
    }
}

/// Returns the URL of the server for tests.
pub(super) fn server() -> String {
    std::env::var("RETAKE_TEST_POSTGRES").expect(
        "RETAKE_TEST_POSTGRES names a PostgreSQL server for tests: `cargo xtask postgres -- cargo test ...` starts one",
    )
}

pub(super) fn db(url: &str) -> Db {
    Db::new(Address::parse(url).unwrap(), PostgresOptions::default()).unwrap()
}

async fn run(sql: &str) {
    let (client, connection) = tokio_postgres::connect(&server(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
}
