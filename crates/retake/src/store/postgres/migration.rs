//! Making the tables, and taking those of older formats to the newest: once, however many begin at the same time.
//!
//! All of it is one transaction under an advisory lock, so that whoever comes second finds it done, and one that does not
//! come to its end has done nothing.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::connect::first_row;
use super::db::{Db, Transaction};
use super::fault::{Fault, said};
use crate::store::StoreError;

const ACTION: &str = "making its tables";

/// How long the transaction may take, and others wait for it.
const BOUND: Duration = Duration::from_secs(600);

/// How often somebody may come between: who makes a schema without the lock.
const ATTEMPTS_MAX: usize = 3;

/// The table that says which format the others have.
const FORMAT_TABLE: &str =
    "CREATE TABLE format (number integer NOT NULL); INSERT INTO format (number) VALUES (0); ";

/// What is done where there is no store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is made.
    Create,
    /// It is refused.
    Refuse,
}

/// What the schema holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    NoSchema,
    /// A schema that the user may not look into.
    Hidden,
    /// A schema without tables.
    Empty,
    /// Tables, but not a store's.
    Others,
    Format(u32),
}

/// Makes sure that the store's tables are those of the newest of `migrations`, which lead from format to format.
pub(super) async fn migrate(db: &Db, migrations: &[(u32, &str)], missing: Missing) -> Result<(), StoreError> {
    let newest = migrations.last().map_or(0, |(format, _)| *format);
    for _ in 1..ATTEMPTS_MAX {
        match attempt(db, migrations, newest, missing).await {
            Err(error) if is_of_a_race(&error) => {}
            done => return done,
        }
    }
    attempt(db, migrations, newest, missing).await
}

async fn attempt(
    db: &Db,
    migrations: &[(u32, &str)],
    newest: u32,
    missing: Missing,
) -> Result<(), StoreError> {
    // Without the lock: nearly always there is nothing to do.
    let found = look(&mut db.snapshot(ACTION).await?, db.schema()).await?;
    if decide(db, found, newest, missing)? == newest {
        return Ok(());
    }
    let schema = db.schema();
    let bound = BOUND.as_millis();
    let mut transaction = db.transaction(ACTION).await?;
    let lock = format!(
        "SET LOCAL statement_timeout = '{bound}ms'; SET LOCAL lock_timeout = '{bound}ms'; \
         SELECT pg_advisory_xact_lock(hashtext('retake'), hashtext('{schema}'))"
    );
    transaction.batch(&lock, BOUND).await?;
    let found = look(&mut transaction, schema).await?;
    let format = decide(db, found, newest, missing)?;
    let mut sql = String::new();
    match found {
        Found::NoSchema => sql.push_str(&format!("CREATE SCHEMA \"{schema}\"; {FORMAT_TABLE}")),
        Found::Empty => sql.push_str(FORMAT_TABLE),
        Found::Hidden | Found::Others | Found::Format(_) => {}
    }
    for (number, statements) in migrations.iter().filter(|(number, _)| *number > format) {
        sql.push_str(&format!("{statements}; UPDATE format SET number = {number}; "));
    }
    transaction.batch(&sql, BOUND).await?;
    transaction.commit().await
}

/// Finds out what the schema holds.
async fn look(transaction: &mut Transaction, schema: &str) -> Result<Found, StoreError> {
    let tables = format!(
        "SELECT count(DISTINCT n.oid), count(c.oid), count(*) FILTER (WHERE c.relname = 'format'), \
         count(*) FILTER (WHERE NOT has_schema_privilege(n.oid, 'USAGE')) \
         FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
         WHERE n.nspname = '{schema}'"
    );
    let counts = first(&transaction.batch(&tables, BOUND).await?);
    let numbers: Vec<u64> = counts.iter().map(|count| count.parse().unwrap_or(0)).collect();
    match numbers[..] {
        [0, ..] => return Ok(Found::NoSchema),
        // Its tables are there, and for this user they are not.
        [.., hidden] if hidden > 0 => return Ok(Found::Hidden),
        [_, 0, ..] => return Ok(Found::Empty),
        [_, _, 1, _] => {}
        _ => return Ok(Found::Others),
    }
    let format = transaction.batch("SELECT number FROM format", BOUND).await?;
    let format = first(&format).first().and_then(|number| number.parse().ok());
    Ok(format.map_or(Found::Others, Found::Format))
}

/// Returns the format to start from, 0 where there is nothing.
fn decide(db: &Db, found: Found, newest: u32, missing: Missing) -> Result<u32, StoreError> {
    let location = db.location().to_owned();
    match (found, missing) {
        (Found::NoSchema | Found::Empty, Missing::Create) => Ok(0),
        (Found::NoSchema | Found::Empty, Missing::Refuse) => Err(StoreError::Absent { location }),
        (Found::Hidden, Missing::Create | Missing::Refuse) => {
            let why = format!(
                "the user may not use the schema `{0}`: its owner grants that by `GRANT USAGE ON SCHEMA {0}`, and `GRANT \
                 SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0}`",
                db.schema()
            );
            Err(Fault::refused(&location, ACTION, why).error)
        }
        (Found::Others, Missing::Create | Missing::Refuse) => {
            let why = format!("the tables in its schema `{}` are somebody else's", db.schema());
            Err(StoreError::NotAStore { location, why })
        }
        (Found::Format(found), _) if found > newest => {
            Err(StoreError::NewerFormat { location, found, supported: newest })
        }
        (Found::Format(found), Missing::Create | Missing::Refuse) => Ok(found),
    }
}

/// Tells whether somebody made the schema, or a table in it, in the meantime.
fn is_of_a_race(error: &StoreError) -> bool {
    let codes = [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_SCHEMA, SqlState::DUPLICATE_TABLE];
    said(error).is_some_and(|said| codes.contains(&said.code))
}

/// Returns the first row, as text.
fn first(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let columns = |row: &SimpleQueryRow| {
        (0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect()
    };
    first_row(messages).map(columns).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Schema};
    use super::*;

    const TWO: &[(u32, &str)] = &[
        (1, "CREATE TABLE first (id integer)"),
        (2, "CREATE TABLE second (id integer); INSERT INTO second VALUES (7)"),
    ];

    #[tokio::test]
    async fn many_that_begin_at_once_make_one_store() {
        let schema = Schema::new();
        let starts = (0..8).map(|_| {
            let url = schema.url();
            tokio::spawn(async move { migrate(&testing::db(&url), TWO, Missing::Create).await })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap().unwrap();
        }
        let rows = testing::db(&schema.url()).query("reading", "SELECT id FROM second", &[]).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [7]);
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing_behind() {
        let schema = Schema::new();
        let db = testing::db(&schema.url());
        let broken = &[TWO[0], (2, "CREATE TABLE second (id integer); SELECT 1 / 0")];
        let error = migrate(&db, broken, Missing::Create).await.unwrap_err();
        assert!(!error.is_retryable(), "{error:?}");
        let error = migrate(&db, TWO, Missing::Refuse).await.unwrap_err();
        assert!(matches!(error, StoreError::Absent { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn an_older_format_is_taken_to_the_newest_and_keeps_its_rows() {
        let schema = Schema::new();
        let db = testing::db(&schema.url());
        migrate(&db, &TWO[..1], Missing::Create).await.unwrap();
        db.execute("writing", "INSERT INTO first VALUES (1)", &[]).await.unwrap();
        migrate(&db, TWO, Missing::Refuse).await.unwrap();
        let sql = "SELECT first.id + second.id FROM first, second";
        assert_eq!(db.query("reading", sql, &[]).await.unwrap()[0].get::<_, i32>(0), 8);
    }

    #[tokio::test]
    async fn a_newer_format_is_refused_and_left_alone() {
        let schema = Schema::new();
        let db = testing::db(&schema.url());
        migrate(&db, TWO, Missing::Create).await.unwrap();
        let error = migrate(&db, &TWO[..1], Missing::Create).await.unwrap_err();
        assert!(matches!(error, StoreError::NewerFormat { found: 2, supported: 1, .. }), "{error:?}");
        migrate(&db, TWO, Missing::Refuse).await.unwrap();
    }

    #[tokio::test]
    async fn a_schema_that_somebody_makes_meanwhile_is_no_failure() {
        let schema = Schema::new();
        let statement = format!("CREATE SCHEMA {}", schema.name());
        schema.run(&statement).await;
        let error = testing::db(&schema.url()).write("writing", statement.leak(), &[]).await.unwrap_err();
        assert!(is_of_a_race(&error), "{error:?}");
    }

    #[tokio::test]
    async fn a_schema_with_other_tables_is_no_store() {
        let schema = Schema::new();
        schema.run(&format!("CREATE SCHEMA {0}; CREATE TABLE {0}.orders (id integer)", schema.name())).await;
        let error = migrate(&testing::db(&schema.url()), TWO, Missing::Create).await.unwrap_err();
        assert!(matches!(error, StoreError::NotAStore { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_schema_that_was_made_beforehand_is_used() {
        let schema = Schema::new();
        schema.run(&format!("CREATE SCHEMA {}", schema.name())).await;
        let db = testing::db(&schema.url());
        let error = migrate(&db, TWO, Missing::Refuse).await.unwrap_err();
        assert!(matches!(error, StoreError::Absent { .. }), "{error:?}");
        migrate(&db, TWO, Missing::Create).await.unwrap();
    }
}
