//! What a store does about a server that is silent, goes away, or is not as it must be.

mod keeping;
mod trips;
mod working;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::address::Address;
use super::db::Db;
use super::testing::{self, Schema};
use super::{PostgresOptions, PostgresStore};
use crate::store::{ExecutionFilter, Lease, Store, StoreError};

/// Longer than any bound that is set here.
const FAR: Duration = Duration::from_secs(20);

/// Returns bounds that are short, and long enough for a machine that has much else to do.
fn impatient() -> PostgresOptions {
    PostgresOptions {
        connect_timeout: Duration::from_millis(2_000),
        call_timeout: Duration::from_millis(2_500),
        ..PostgresOptions::default()
    }
}

fn kind(error: &StoreError) -> Option<io::ErrorKind> {
    let StoreError::Io { source, .. } = error else { return None };
    source.downcast_ref::<io::Error>().map(io::Error::kind)
}

/// Returns all that an error says, to whoever looks.
fn said(error: &StoreError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

async fn refused(url: &str) -> String {
    let error = timeout(FAR, PostgresStore::connect(url)).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    assert!(!error.is_retryable());
    said(&error)
}

/// Returns the URL of the server under another host name and with other parameters.
fn server_at(host: &str, parameters: &str) -> String {
    let server = testing::server();
    let (place, _) = server.split_once('?').unwrap_or((&server, ""));
    format!("{}?{parameters}", place.replace("127.0.0.1", host))
}

fn authority() -> String {
    std::env::var("RETAKE_TEST_POSTGRES_CA").expect("`cargo xtask postgres -- COMMAND` sets it")
}

/// Somebody in between, through whom a store reaches the server.
struct Between {
    way: watch::Sender<Way>,
    trips: Arc<AtomicUsize>,
    url: String,
    task: JoinHandle<()>,
}

/// What somebody in between does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Way {
    /// Connections are taken, and nothing goes through any more.
    silent: bool,
    /// How often all connections were closed.
    cuts: u64,
}

impl Between {
    async fn new(schema: &Schema) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let url = schema.url();
        let start = url.find("127.0.0.1:").unwrap();
        let end = start + url[start..].find('/').unwrap();
        let server: SocketAddr = url[start..end].parse().unwrap();
        let (way, seen) = watch::channel(Way::default());
        let trips = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&trips);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let way = seen.borrow().to_owned();
                tokio::spawn(pass(client, server, seen.clone(), way, Arc::clone(&counted)));
            }
        });
        Self { way, trips, url: format!("{}{here}{}", &url[..start], &url[end..]), task }
    }

    /// Returns how often somebody said something after the server had answered, or at first.
    fn trips(&self) -> usize {
        self.trips.load(Ordering::Relaxed)
    }

    fn db(&self, options: PostgresOptions) -> Db {
        Db::new(Address::parse(&self.url).unwrap(), options).unwrap()
    }

    fn silence(&self, silent: bool) {
        self.way.send_modify(|way| way.silent = silent);
    }

    fn cut(&self) {
        self.way.send_modify(|way| way.cuts += 1);
    }

    /// Takes no connection any more, and closes those that there are.
    fn close(&self) {
        self.task.abort();
        self.cut();
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut client: TcpStream,
    server: SocketAddr,
    mut seen: watch::Receiver<Way>,
    at_first: Way,
    trips: Arc<AtomicUsize>,
) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let is_cut = move |way: &Way| way.cuts > at_first.cuts;
    if !at_first.silent {
        tokio::select! {
            _ended = carry(&mut client, &mut server, &trips) => return,
            _ = seen.wait_for(|way| way.silent || is_cut(way)) => {}
        }
    }
    // What was silent once has lost something, and stays so until it is cut.
    drop(seen.wait_for(is_cut).await);
}

/// Carries what both say, and counts the turns of the client, until one of them ends.
async fn carry(client: &mut TcpStream, server: &mut TcpStream, trips: &AtomicUsize) -> io::Result<()> {
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut is_asking = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let read = read?;
                if read == 0 {
                    return server.shutdown().await;
                }
                if !is_asking {
                    trips.fetch_add(1, Ordering::Relaxed);
                }
                is_asking = true;
                server.write_all(&asked[..read]).await?;
            }
            read = server.read(&mut answered) => {
                let read = read?;
                if read == 0 {
                    return client.shutdown().await;
                }
                is_asking = false;
                client.write_all(&answered[..read]).await?;
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_takes_the_connection_and_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://ann:x@{}/work", listener.local_addr().unwrap());
    let connecting = PostgresStore::connect_with(&url, impatient());
    let error = timeout(FAR, connecting).await.unwrap().unwrap_err();
    assert_eq!(kind(&error), Some(io::ErrorKind::TimedOut), "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://ann:x@{}/work", listener.local_addr().unwrap());
    drop(listener);
    let error = timeout(FAR, PostgresStore::connect(&url)).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Io { action: "connecting", .. }), "{error:?}");
    assert!(said(&error).contains("refused"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_falls_silent_in_a_call_is_given_up_and_found_again() {
    let schema = Schema::new();
    let between = Between::new(&schema).await;
    let db = between.db(impatient());
    db.query("reading", "SELECT 1", &[]).await.unwrap();
    between.silence(true);
    for _ in 0..2 {
        // By a connection that there is, then by one that is to be made.
        let error = timeout(FAR, db.query("reading", "SELECT 1", &[])).await.unwrap().unwrap_err();
        assert_eq!(kind(&error), Some(io::ErrorKind::TimedOut), "{error:?}");
        assert!(error.is_retryable());
    }
    between.silence(false);
    let rows = db.query("reading", "SELECT 1", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 1);
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_long_before_a_call_may_take_so_long() {
    let schema = Schema::new();
    let between = Between::new(&schema).await;
    let db = between.db(PostgresOptions { call_timeout: FAR * 2, ..impatient() });
    db.query("reading", "SELECT 1", &[]).await.unwrap();
    between.close();
    for _ in 0..2 {
        let error = timeout(FAR, db.query("reading", "SELECT 1", &[])).await.unwrap().unwrap_err();
        assert!(said(&error).contains("refused") && error.is_retryable(), "{error:?}");
        let writing = db.write("writing", "SELECT 1", &[]);
        assert!(timeout(FAR, writing).await.unwrap().unwrap_err().is_retryable());
    }
}

#[tokio::test]
async fn a_transaction_whose_server_falls_silent_is_given_up() {
    let schema = Schema::new();
    let between = Between::new(&schema).await;
    let db = between.db(impatient());
    let mut transaction = db.transaction("writing").await.unwrap();
    transaction.execute("SELECT 1", &[]).await.unwrap();
    between.silence(true);
    let error = timeout(FAR, transaction.commit()).await.unwrap().unwrap_err();
    assert_eq!(kind(&error), Some(io::ErrorKind::TimedOut), "{error:?}");
}

#[tokio::test]
async fn a_read_goes_on_where_all_connections_are_cut_meanwhile() {
    let schema = Schema::new();
    let between = Between::new(&schema).await;
    let db = between.db(PostgresOptions::default());
    let reader = db.clone();
    let reading =
        tokio::spawn(async move { reader.query("reading", "SELECT 7 FROM pg_sleep(0.3)", &[]).await });
    // The reader sleeps when the server says so.
    let asleep =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = $1";
    while db.query("reading", asleep, &[&schema.name()]).await.unwrap()[0].get::<_, i64>(0) == 0 {}
    between.cut();
    assert_eq!(reading.await.unwrap().unwrap()[0].get::<_, i32>(0), 7);
}

#[tokio::test]
async fn whoever_waits_for_a_connection_is_told_when_there_is_none_in_time() {
    let schema = Schema::new();
    let options = PostgresOptions { connections_max: 1, ..impatient() };
    let db = Db::new(Address::parse(&schema.url()).unwrap(), options).unwrap();
    let holding = db.transaction("writing").await.unwrap();
    let error = timeout(FAR, db.query("reading", "SELECT 1", &[])).await.unwrap().unwrap_err();
    assert!(error.is_retryable() && said(&error).contains("all 1 connections are in use"), "{error:?}");
    drop(holding);
    db.query("reading", "SELECT 1", &[]).await.unwrap();
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_given_up_on_the_server_as_well() {
    let schema = Schema::new();
    let db = Db::new(Address::parse(&schema.url()).unwrap(), impatient()).unwrap();
    let sleeping = db.write("writing", "SELECT pg_sleep(600)", &[]);
    let error = timeout(FAR, sleeping).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
    let asleep =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = $1";
    let gone = async {
        while db.query("reading", asleep, &[&schema.name()]).await.unwrap()[0].get::<_, i64>(0) > 0 {}
    };
    timeout(FAR, gone).await.unwrap();
}

#[tokio::test]
async fn tables_that_somebody_has_locked_are_told_as_such() {
    let schema = Schema::new();
    let store = PostgresStore::connect_with(&schema.url(), impatient()).await.unwrap();
    let db = testing::db(&schema.url());
    let mut locking = db.transaction("locking").await.unwrap();
    locking.query("LOCK TABLE executions", &[]).await.unwrap();
    let id = store.shared.clock.new_id();
    let read = store.executions(&ExecutionFilter::default()).await.unwrap_err();
    let written = store.release(&Lease { execution_id: id, fence: 1, ttl: FAR }).await.unwrap_err();
    for error in [read, written] {
        assert!(matches!(error, StoreError::Io { .. }) && error.is_retryable(), "{error:?}");
        assert!(said(&error).contains("(SQLSTATE 55P03); another session keeps a table"), "{}", said(&error));
    }
    drop(locking);
    assert_eq!(store.executions(&ExecutionFilter::default()).await.unwrap(), []);
}

#[tokio::test]
async fn a_store_of_another_runtime_connects_anew() {
    let schema = Schema::new();
    let url = schema.url();
    let db = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let db = testing::db(&url);
        runtime.block_on(db.query("reading", "SELECT 1", &[])).unwrap();
        (db, runtime)
    });
    // Its runtime is there, and does nothing.
    let (db, runtime) = db.join().unwrap();
    let reading = timeout(FAR, db.query("reading", "SELECT 2", &[])).await.unwrap().unwrap();
    assert_eq!(reading[0].get::<_, i32>(0), 2);
    std::thread::spawn(move || drop(runtime)).join().unwrap();
}

#[tokio::test]
async fn a_connection_is_encrypted_where_the_server_offers_it() {
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (parameters, expected) in [("", true), ("sslmode=require", true), ("sslmode=disable", false)] {
        let db = testing::db(&server_at("127.0.0.1", parameters));
        let row = db.optional("reading", encrypted, &[]).await.unwrap().unwrap();
        assert_eq!(row.get::<_, bool>(0), expected, "{parameters}");
    }
}

#[tokio::test]
async fn a_server_is_verified_by_who_signed_for_it_and_under_which_name() {
    let authority = authority();
    let somebody_else = authority.replace("ca.pem", "server.pem");
    let connects = async |host, parameters: String| {
        testing::db(&server_at(host, &parameters)).query("reading", "SELECT 1", &[]).await
    };
    connects("localhost", format!("sslrootcert={authority}")).await.unwrap();
    connects("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={authority}")).await.unwrap();

    let name =
        connects("127.0.0.1", format!("sslmode=verify-full&sslrootcert={authority}")).await.unwrap_err();
    assert!(matches!(name, StoreError::Refused { .. }), "{name:?}");
    assert!(said(&name).contains("is for another name"), "{name:?}");

    for mode in ["verify-full", "verify-ca", "require"] {
        let parameters = format!("sslmode={mode}&sslrootcert={somebody_else}");
        let signed = connects("localhost", parameters).await.unwrap_err();
        assert!(matches!(signed, StoreError::Refused { .. }), "{signed:?}");
        assert!(said(&signed).contains("none of the authorities"), "{signed:?}");
    }
}

#[tokio::test]
async fn authorities_that_cannot_be_read_are_refused() {
    for path in ["/nowhere/ca.pem", "/dev/null"] {
        let said = refused(&server_at("localhost", &format!("sslrootcert={path}"))).await;
        assert!(said.contains(path), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_encrypt_is_refused_where_it_must() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://ann:x@{}/work?sslmode=require", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.read_exact(&mut [0; 8]).await.unwrap();
        client.write_all(b"N").await.unwrap();
    });
    assert!(refused(&url).await.contains("does not support TLS"));
    server.await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_repeated() {
    let schema = Schema::new();
    let url = schema.url_as("").await.replace(&format!(":{}@", schema.name()), ":hunter2@");
    let said = refused(&url).await;
    assert!(said.contains("28P01") && !said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_refused() {
    let said = refused(&testing::server().replace("/postgres?", "/nowhere?")).await;
    assert!(said.contains("3D000"), "{said}");
}

#[tokio::test]
async fn a_user_who_may_not_make_the_schema_is_refused() {
    let schema = Schema::new();
    let said = refused(&schema.url_as("").await).await;
    assert!(said.contains("42501"), "{said}");
}

#[tokio::test]
async fn a_user_who_has_been_given_the_schema_needs_nothing_else() {
    let schema = Schema::new();
    let url = schema.url_as("").await;
    schema.run(&format!("CREATE SCHEMA {0} AUTHORIZATION {0}", schema.name())).await;
    PostgresStore::connect(&url).await.unwrap();
    PostgresStore::connect_existing(&url).await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_not_look_into_the_schema_is_told_what_to_grant() {
    let schema = Schema::new();
    PostgresStore::connect(&schema.url()).await.unwrap();
    let url = schema.url_as("").await;
    for connected in [PostgresStore::connect(&url).await, PostgresStore::connect_existing(&url).await] {
        let error = connected.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
        assert!(said(&error).contains(&format!("GRANT USAGE ON SCHEMA {}", schema.name())), "{error:?}");
    }
}

#[tokio::test]
async fn a_user_whose_commits_are_not_durable_is_refused() {
    for setting in ["off", "local"] {
        let schema = Schema::new();
        let url = schema.url_as("SUPERUSER").await;
        schema.run(&format!("ALTER ROLE {} SET synchronous_commit = {setting}", schema.name())).await;
        let said = refused(&url).await;
        assert!(said.contains("`synchronous_commit`") && said.contains("set it to `on`"), "{said}");
    }
}

#[tokio::test]
async fn what_was_checked_stays_so_for_the_session() {
    let schema = Schema::new();
    let db = testing::db(&schema.url());
    let source = "SELECT source FROM pg_settings WHERE name = 'synchronous_commit'";
    let row = db.optional("reading", source, &[]).await.unwrap().unwrap();
    assert_eq!(row.get::<_, &str>(0), "session");
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused() {
    let schema = Schema::new();
    let name = schema.name();
    schema.run(&format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")).await;
    let said = refused(&testing::server().replace("/postgres?", &format!("/{name}?"))).await;
    schema.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
    assert!(said.contains("LATIN1"), "{said}");
}

#[tokio::test]
async fn a_server_that_only_reads_is_read_and_refuses_to_write() {
    let schema = Schema::new();
    PostgresStore::connect(&schema.url()).await.unwrap();
    let url = schema.url_as("SUPERUSER").await;
    schema.run(&format!("ALTER ROLE {} SET default_transaction_read_only = on", schema.name())).await;
    PostgresStore::connect_existing(&url).await.unwrap();
    let error = testing::db(&url).write("writing", "CREATE TABLE more (id integer)", &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { action: "writing", .. }), "{error:?}");
    assert!(said(&error).contains("read-only"), "{error:?}");
}

#[tokio::test]
async fn a_user_with_too_many_connections_may_try_again() {
    let schema = Schema::new();
    let url = schema.url_as("CONNECTION LIMIT 0").await;
    let error = PostgresStore::connect(&url).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }) && error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_schema_without_a_store_is_absent_where_it_must_be_there() {
    let schema = Schema::new();
    let error = PostgresStore::connect_existing(&schema.url()).await.unwrap_err();
    assert!(matches!(error, StoreError::Absent { .. }), "{error:?}");
    PostgresStore::connect(&schema.url()).await.unwrap();
    PostgresStore::connect_existing(&schema.url()).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_connection_behind_that_is_still_busy() {
    let schema = Schema::new();
    let options = PostgresOptions { connections_max: 1, ..PostgresOptions::default() };
    let db = Arc::new(Db::new(Address::parse(&schema.url()).unwrap(), options).unwrap());
    db.query("reading", "SELECT 1", &[]).await.unwrap();
    let sleeping = db.query("reading", "SELECT pg_sleep(20)", &[]);
    timeout(Duration::from_millis(100), sleeping).await.unwrap_err();
    timeout(Duration::from_secs(10), db.query("reading", "SELECT 1", &[])).await.unwrap().unwrap();
}
