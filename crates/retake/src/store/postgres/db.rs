//! The server as everything here sees it: statements by name of what they are for, each with its bound in time, and
//! failures as [`StoreError`]s.
//!
//! A statement is prepared when a connection meets it first, and costs one round trip from then on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::{join, try_join_all};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, SimpleQueryMessage, Statement};

use super::PostgresOptions;
use super::address::Address;
use super::connect::Connection;
use super::fault::{Fault, Link};
use super::pool::{Held, Patience, Pool};
use crate::store::StoreError;

/// How often a read begins whose connection is lost.
const READS_MAX: usize = 4;

/// Begins a transaction that only reads, and sees the store as it is at its first statement.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The values of a statement's parameters.
pub(super) type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Statements with their values.
pub(super) type Statements<'a> = &'a [(&'static str, Values<'a>)];

/// The connections of a store. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Db {
    pool: Arc<Pool>,
}

impl Db {
    /// Returns the server at an address; the first connection is made by the first call.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the authorities that are to be trusted cannot be read.
    pub(super) fn new(address: Address, options: PostgresOptions) -> Result<Self, StoreError> {
        Ok(Self { pool: Pool::new(address, options)? })
    }

    /// Returns where the store is, as people are told: without the password.
    pub(super) fn location(&self) -> &str {
        self.pool.location()
    }

    /// Returns the schema that holds the tables.
    pub(super) fn schema(&self) -> &str {
        self.pool.address.schema()
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.pool.options
    }

    /// Makes a connection, so that a server that is not there, or not as it must be, is told at once.
    pub(super) async fn greet(&self) -> Result<(), StoreError> {
        let held = self.pool.take("connecting", self.deadline(), Patience::None).await;
        held.map_err(|fault| fault.error)?.give_back(Link::Whole);
        Ok(())
    }

    /// Makes a connection of its own that listens to a channel, and tells what is announced there until it ends.
    pub(super) async fn listen(
        &self,
        channel: &str,
        hear: mpsc::Sender<()>,
    ) -> Result<Connection, StoreError> {
        self.pool.listen(channel, hear).await.map_err(|fault| fault.error)
    }

    /// Reads. Where the connection is lost soon, reads by another one: the statement must change nothing.
    pub(super) async fn query(
        &self,
        action: &'static str,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let (deadline, mut attempts) = (self.deadline(), self.attempts());
        loop {
            match self.once(action, sql, values, deadline).await {
                Ok(answer) => return Ok(answer.rows),
                Err(fault) => attempts.another(fault)?,
            }
        }
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts { left: READS_MAX, until: Instant::now() + self.options().connect_timeout, pool: &self.pool }
    }

    /// Reads at most one row, as [`query`](Self::query) does.
    pub(super) async fn optional(
        &self,
        action: &'static str,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(action, sql, values).await?.into_iter().next())
    }

    /// Runs one statement that changes something, in a transaction of its own, and returns its rows.
    ///
    /// It is sent once: where the connection is lost then, nobody knows whether it was done.
    pub(super) async fn write(
        &self,
        action: &'static str,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let answer = self.once(action, sql, values, self.deadline()).await;
        answer.map(|answer| answer.rows).map_err(|fault| fault.error)
    }

    /// Runs one statement that changes something, as [`write`](Self::write) does, and returns how many rows it changed.
    pub(super) async fn execute(
        &self,
        action: &'static str,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<u64, StoreError> {
        let answer = self.once(action, sql, values, self.deadline()).await;
        answer.map(|answer| answer.changed).map_err(|fault| fault.error)
    }

    /// Runs several statements in one transaction and one round trip, and returns the rows of each.
    ///
    /// All of them are sent before the first is answered: what one says cannot decide about the next. Where one fails,
    /// nothing is done; otherwise as [`write`](Self::write).
    pub(super) async fn pipeline(
        &self,
        action: &'static str,
        statements: Statements<'_>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let deadline = self.deadline();
        self.together(action, "BEGIN", statements, None, deadline).await.map_err(|fault| fault.error)
    }

    /// Runs several statements as [`pipeline`](Self::pipeline) does, and one more that follows when they are durable, in the
    /// same round trip. Whether that fails is of no consequence; it is also run where the others have failed.
    pub(super) async fn pipeline_and(
        &self,
        action: &'static str,
        statements: Statements<'_>,
        after: (&'static str, Values<'_>),
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let deadline = self.deadline();
        let done = self.together(action, "BEGIN", statements, Some(after), deadline).await;
        done.map_err(|fault| fault.error)
    }

    /// Reads by several statements, which all see the store at one moment, in one round trip, as [`query`](Self::query)
    /// does.
    pub(super) async fn view(
        &self,
        action: &'static str,
        statements: Statements<'_>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let (deadline, mut attempts) = (self.deadline(), self.attempts());
        loop {
            match self.together(action, SNAPSHOT, statements, None, deadline).await {
                Ok(rows) => return Ok(rows),
                Err(fault) => attempts.another(fault)?,
            }
        }
    }

    async fn together(
        &self,
        action: &'static str,
        begin: &'static str,
        statements: Statements<'_>,
        after: Option<(&'static str, Values<'_>)>,
        deadline: Instant,
    ) -> Result<Vec<Vec<Row>>, Fault> {
        let held = self.pool.take(action, deadline, Patience::ForAWhile).await?;
        let answer = Connection::answer(self.location(), action, deadline, async {
            let connection = held.connection();
            let prepared = prepared(connection, statements).await?;
            let follows = match after {
                Some((sql, values)) => Some((connection.statement(sql).await?, values)),
                None => None,
            };
            // Futures are polled in their order, and each sends when it is polled first.
            let begin = connection.client.batch_execute(begin);
            let all = run_all(&connection.client, &prepared, statements);
            let commit = connection.client.batch_execute("COMMIT");
            let follow = async {
                if let Some((statement, values)) = &follows
                    && let Err(error) = run(&connection.client, statement, values).await
                {
                    tracing::debug!(%error, "what was to follow {action} failed");
                }
            };
            let (begun, (rows, (committed, ()))) = join(begin, join(all, join(commit, follow))).await;
            begun?;
            let rows = rows?;
            committed.map(|()| rows)
        })
        .await;
        held.give_back(Link::after(&answer));
        answer.map(rows)
    }

    /// Begins a transaction, at the isolation `READ COMMITTED`. Where it is dropped, it is rolled back.
    pub(super) async fn transaction(&self, action: &'static str) -> Result<Transaction, StoreError> {
        self.begin(action, "BEGIN").await
    }

    /// Begins a transaction that only reads, and sees the store as it is at its first statement.
    pub(super) async fn snapshot(&self, action: &'static str) -> Result<Transaction, StoreError> {
        self.begin(action, SNAPSHOT).await
    }

    async fn begin(&self, action: &'static str, begin: &'static str) -> Result<Transaction, StoreError> {
        let deadline = self.deadline();
        let held = self.pool.take(action, deadline, Patience::ForAWhile).await.map_err(|f| f.error)?;
        Ok(Transaction { held: Some(held), action, begin: Some(begin), link: Link::Whole })
    }

    async fn once(
        &self,
        action: &'static str,
        sql: &'static str,
        values: Values<'_>,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let held = self.pool.take(action, deadline, Patience::ForAWhile).await?;
        let answer = Connection::answer(self.location(), action, deadline, async {
            let connection = held.connection();
            let statement = connection.statement(sql).await?;
            run(&connection.client, &statement, values).await
        })
        .await;
        held.give_back(Link::after(&answer));
        answer
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.options().call_timeout
    }
}

/// The attempts at a read. It is made again by another connection where one is lost, as one that was idle for long may be;
/// that a server cannot be reached is told soon, for whoever reads can ask again.
struct Attempts<'a> {
    left: usize,
    until: Instant,
    pool: &'a Pool,
}

impl Attempts<'_> {
    /// Returns where there is to be another attempt after that fault.
    fn another(&mut self, fault: Fault) -> Result<(), StoreError> {
        self.left -= 1;
        let passes = fault.link == Link::Lost && fault.error.is_retryable();
        if !passes || self.left == 0 || Instant::now() >= self.until {
            return Err(fault.error);
        }
        self.pool.distrust();
        Ok(())
    }
}

/// A transaction. Nothing of it is done before [`commit`](Self::commit) returns; where it is dropped, it is rolled back.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Taken only when the transaction ends.
    held: Option<Held>,
    action: &'static str,
    /// What begins the transaction: sent together with the first statement.
    begin: Option<&'static str>,
    link: Link,
}

impl Transaction {
    /// Runs one statement and returns its rows.
    pub(super) async fn query(
        &mut self,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.query_all(&[(sql, values)]).await?.pop().unwrap_or_default())
    }

    /// Runs one statement and returns its row, if there is one.
    pub(super) async fn optional(
        &mut self,
        sql: &'static str,
        values: Values<'_>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, values).await?.into_iter().next())
    }

    /// Runs one statement and returns how many rows it changed.
    pub(super) async fn execute(&mut self, sql: &'static str, values: Values<'_>) -> Result<u64, StoreError> {
        Ok(self.all(&[(sql, values)]).await?.first().map_or(0, |answer| answer.changed))
    }

    /// Runs several statements in one round trip, and returns the rows of each. All of them are sent before the first is
    /// answered.
    pub(super) async fn query_all(
        &mut self,
        statements: Statements<'_>,
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        self.all(statements).await.map(rows)
    }

    /// Runs statements that have no values, as many as there are in a text, all of them within `bound`.
    pub(super) async fn batch(
        &mut self,
        sql: &str,
        bound: Duration,
    ) -> Result<Vec<SimpleQueryMessage>, StoreError> {
        let begin = self.enter();
        let held = self.held();
        let answer = Connection::answer(held.location(), self.action, Instant::now() + bound, async {
            let client = &held.connection().client;
            let (begun, answer) = join(start(client, begin), client.simple_query(sql)).await;
            begun.and(answer)
        })
        .await;
        self.leave(answer)
    }

    /// Makes durable what was done. Where it fails because the connection is lost, nobody knows whether it is.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        if self.begin.take().is_none() {
            self.enter();
            let held = self.held();
            let call = held.connection().client.batch_execute("COMMIT");
            let answer = Connection::answer(held.location(), self.action, held.deadline(), call).await;
            self.leave(answer)?;
        }
        self.end();
        Ok(())
    }

    async fn all(&mut self, statements: &[(&'static str, Values<'_>)]) -> Result<Vec<Answer>, StoreError> {
        let begin = self.enter();
        let held = self.held();
        let answer = Connection::answer(held.location(), self.action, held.deadline(), async {
            let connection = held.connection();
            let prepared = prepared(connection, statements).await?;
            let all = run_all(&connection.client, &prepared, statements);
            let (begun, answers) = join(start(&connection.client, begin), all).await;
            begun.and(answers)
        })
        .await;
        self.leave(answer)
    }

    /// Returns what is to be sent first. Whatever is on its way when the caller's future is dropped, the connection is
    /// not to be trusted then.
    fn enter(&mut self) -> Option<&'static str> {
        self.link = Link::Lost;
        self.begin.take()
    }

    fn leave<T>(&mut self, answer: Result<T, Fault>) -> Result<T, StoreError> {
        self.link = Link::after(&answer);
        answer.map_err(|fault| fault.error)
    }

    /// Returns where the store is, as people are told.
    pub(super) fn location(&self) -> &str {
        self.held().location()
    }

    fn held(&self) -> &Held {
        self.held.as_ref().expect("it is taken only by what ends the transaction")
    }

    /// Gives the connection back, on which no transaction is open any more.
    fn end(&mut self) {
        if let Some(held) = self.held.take() {
            held.give_back(self.link);
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.begin.is_some() {
            self.end();
        }
        let Some(held) = self.held.take() else { return };
        // What it has locked is free at once: also where the connection is closed instead.
        if let (Link::Whole, Ok(runtime)) = (self.link, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let bound = held.options().connect_timeout;
                let rolled_back = timeout(bound, held.connection().client.batch_execute("ROLLBACK")).await;
                held.give_back(match rolled_back {
                    Ok(Ok(())) => Link::Whole,
                    Ok(Err(_)) | Err(_) => Link::Lost,
                });
            });
        }
    }
}

/// What a statement did.
struct Answer {
    rows: Vec<Row>,
    changed: u64,
}

fn rows(answers: Vec<Answer>) -> Vec<Vec<Row>> {
    answers.into_iter().map(|answer| answer.rows).collect()
}

async fn run(
    client: &Client,
    statement: &Statement,
    values: Values<'_>,
) -> Result<Answer, tokio_postgres::Error> {
    let mut stream = pin!(client.query_raw(statement, values.iter().copied()).await?);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await? {
        rows.push(row);
    }
    Ok(Answer { rows, changed: stream.rows_affected().unwrap_or(0) })
}

async fn start(client: &Client, begin: Option<&'static str>) -> Result<(), tokio_postgres::Error> {
    match begin {
        Some(begin) => client.batch_execute(begin).await,
        None => Ok(()),
    }
}

async fn prepared(
    connection: &Connection,
    statements: Statements<'_>,
) -> Result<Vec<Statement>, tokio_postgres::Error> {
    try_join_all(statements.iter().map(|(sql, _)| connection.statement(sql))).await
}

/// Sends all statements, then waits for their answers. The failure is that of the first statement that failed.
async fn run_all(
    client: &Client,
    prepared: &[Statement],
    statements: Statements<'_>,
) -> Result<Vec<Answer>, tokio_postgres::Error> {
    let calls =
        prepared.iter().zip(statements).map(|(statement, (_, values))| run(client, statement, values));
    try_join_all(calls).await
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Schema};
    use super::*;

    async fn numbers(schema: &Schema) -> Db {
        schema.run(&format!("CREATE SCHEMA {0}; CREATE TABLE {0}.numbers (n integer)", schema.name())).await;
        testing::db(&schema.url())
    }

    async fn all(db: &Db) -> Vec<i32> {
        let rows = db.query("reading", "SELECT n FROM numbers ORDER BY n", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    const INSERT: &str = "INSERT INTO numbers VALUES ($1)";

    #[tokio::test]
    async fn a_pipeline_is_done_as_a_whole_or_not_at_all() {
        let schema = Schema::new();
        let db = numbers(&schema).await;
        // On another thread, so that all of it can move there.
        let task = tokio::spawn(async move {
            let rows = db
                .pipeline("writing", &[(INSERT, &[&1]), (INSERT, &[&2]), ("SELECT sum(n) FROM numbers", &[])])
                .await
                .unwrap();
            assert_eq!(rows[2][0].get::<_, i64>(0), 3);
            let error = db
                .pipeline("writing", &[(INSERT, &[&3]), ("SELECT 1 / 0", &[]), (INSERT, &[&4])])
                .await
                .unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.starts_with("division by zero"), "{source}");
            assert_eq!(all(&db).await, [1, 2]);
        });
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_follows_a_transaction_is_run_after_it_and_its_failure_is_of_no_consequence() {
        let schema = Schema::new();
        let db = numbers(&schema).await;
        let task = tokio::spawn(async move {
            db.pipeline_and("writing", &[(INSERT, &[&1])], (INSERT, &[&2])).await.unwrap();
            db.pipeline_and("writing", &[(INSERT, &[&3])], ("SELECT 1 / 0", &[])).await.unwrap();
            assert_eq!(all(&db).await, [1, 2, 3]);
            let failing: Statements<'_> = &[(INSERT, &[&4]), ("SELECT 1 / 0", &[])];
            let error = db.pipeline_and("writing", failing, ("SELECT 1", &[])).await.unwrap_err();
            assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
            assert_eq!(all(&db).await, [1, 2, 3]);
        });
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_transaction_is_done_when_it_is_committed_and_undone_when_it_is_dropped() {
        let schema = Schema::new();
        let db = numbers(&schema).await;
        let other = db.clone();
        let task = tokio::spawn(async move {
            let mut transaction = db.transaction("writing").await.unwrap();
            assert_eq!(transaction.execute(INSERT, &[&1]).await.unwrap(), 1);
            transaction.query_all(&[(INSERT, &[&2]), (INSERT, &[&3])]).await.unwrap();
            assert_eq!(all(&db).await, [0_i32; 0]);
            transaction.commit().await.unwrap();
            let mut transaction = db.transaction("writing").await.unwrap();
            transaction.execute("DELETE FROM numbers", &[]).await.unwrap();
            drop(transaction);
            // Waits for the locks of the dropped one.
            db.execute("writing", "LOCK TABLE numbers", &[]).await.unwrap_err();
            db.pipeline("writing", &[("LOCK TABLE numbers", &[])]).await.unwrap();
        });
        task.await.unwrap();
        assert_eq!(all(&other).await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_snapshot_sees_one_state_and_writes_nothing() {
        let schema = Schema::new();
        let db = numbers(&schema).await;
        let mut snapshot = db.snapshot("reading").await.unwrap();
        let count = "SELECT count(*) FROM numbers";
        assert_eq!(snapshot.optional(count, &[]).await.unwrap().unwrap().get::<_, i64>(0), 0);
        db.execute("writing", INSERT, &[&1]).await.unwrap();
        assert_eq!(snapshot.optional(count, &[]).await.unwrap().unwrap().get::<_, i64>(0), 0);
        snapshot.execute(INSERT, &[&2]).await.unwrap_err();
        drop(snapshot);
        assert_eq!(all(&db).await, [1]);
    }

    #[tokio::test]
    async fn a_read_goes_on_by_another_connection_where_its_own_is_closed() {
        let schema = Schema::new();
        let db = numbers(&schema).await;
        db.write("writing", INSERT, &[&1]).await.unwrap();
        let process = db.optional("reading", "SELECT pg_backend_pid()", &[]).await.unwrap().unwrap();
        let process: i32 = process.get(0);
        schema.run(&format!("SELECT pg_terminate_backend({process})")).await;
        assert_eq!(all(&db).await, [1]);
    }

    #[tokio::test]
    async fn a_write_whose_connection_is_closed_meanwhile_is_reported_and_may_be_tried_again() {
        let schema = Schema::new();
        let db = numbers(&schema).await;
        let suicide =
            "WITH written AS (INSERT INTO numbers VALUES (1)) SELECT pg_terminate_backend(pg_backend_pid())";
        let error = db.write("writing", suicide, &[]).await.unwrap_err();
        assert!(matches!(error, StoreError::Io { action: "writing", .. }), "{error:?}");
        assert!(error.is_retryable());
        assert_eq!(all(&db).await, [0_i32; 0]);
    }
}
