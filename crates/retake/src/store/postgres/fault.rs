//! What a failure of the server, or of the way to it, means.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::{Source, StoreError};

/// A failure, and whether the connection that it came by is of any further use.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: StoreError,
    pub(super) link: Link,
}

/// What has become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// The server answered on it, and goes on to.
    Whole,
    /// It is closed, silent, or no longer fits the server's tables. Another may do.
    Lost,
}

impl Fault {
    pub(super) fn new(location: &str, action: &'static str, error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) => of_the_server(location, action, said),
            None => of_the_way(location, action, error),
        }
    }

    /// Returns that something did not happen in time.
    pub(super) fn late(location: &str, action: &'static str, what: String) -> Self {
        let source = Arc::new(io::Error::new(io::ErrorKind::TimedOut, what));
        Self { error: io(location, action, source), link: Link::Lost }
    }

    /// Returns that the server, or what is on it, is not as it must be.
    pub(super) fn refused(location: &str, action: &'static str, why: impl Into<String>) -> Self {
        Self { error: refused(location, action, Arc::new(io::Error::other(why.into()))), link: Link::Lost }
    }
}

/// What the server said, without the row that it may quote.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) code: SqlState,
    /// The rule that was violated, by its name.
    pub(super) constraint: Option<String>,
    message: String,
    hint: Option<String>,
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (SQLSTATE {})", self.message, self.code.code())?;
        match &self.hint {
            Some(hint) => write!(formatter, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Said {}

/// Returns the name of the index in which a value stood already, where a write failed for that.
pub(super) fn violated(error: &StoreError) -> Option<&str> {
    let said = said(error)?;
    (said.code == SqlState::UNIQUE_VIOLATION).then_some(said.constraint.as_deref()).flatten()
}

/// Tells whether a statement failed for one of the rows that it was to write, so that others may go through alone.
pub(super) fn is_of_one(error: &StoreError) -> bool {
    said(error).is_some_and(|said| {
        // 22 a value, 23 a constraint, 54 a limit.
        ["22", "23", "54"].iter().any(|class| said.code.code().starts_with(class))
    })
}

/// Tells whether the server gave a statement up for the sake of another, and did nothing of it.
pub(super) fn is_passing(error: &StoreError) -> bool {
    let codes = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
    said(error).is_some_and(|said| codes.contains(&said.code))
}

/// Tells whether a statement waited in vain for what another session has locked. Nothing of it was done.
pub(super) fn is_locked(error: &StoreError) -> bool {
    said(error).is_some_and(|said| said.code == SqlState::LOCK_NOT_AVAILABLE)
}

/// Returns what the server said, where an error is of it.
pub(super) fn said(error: &StoreError) -> Option<&Said> {
    error.below()?.downcast_ref()
}

/// What there is to do where a lock is held for long. The server does not say by whom.
const WHO_LOCKS: &str = "another session keeps a table or a row of the store locked: `SELECT pid, usename, state, query FROM \
    pg_stat_activity JOIN pg_locks USING (pid) WHERE granted AND relation IS NOT NULL` lists whose; end it, or wait";

fn of_the_server(location: &str, action: &'static str, error: &DbError) -> Fault {
    let code = error.code();
    let hint = match *code {
        SqlState::LOCK_NOT_AVAILABLE => Some(WHO_LOCKS.to_owned()),
        _ => error.hint().map(str::to_owned),
    };
    let said = Arc::new(Said {
        code: code.clone(),
        constraint: error.constraint().map(str::to_owned),
        message: error.message().to_owned(),
        hint,
    });
    let class = code.code().get(..2).unwrap_or_default();
    // The tables have changed under a prepared statement, or something between here and the server has dropped it.
    let is_stale = *code == SqlState::INVALID_SQL_STATEMENT_NAME
        || *code == SqlState::FEATURE_NOT_SUPPORTED && error.message().starts_with("cached plan");
    let link = match error.parsed_severity() {
        Some(Severity::Fatal | Severity::Panic) => Link::Lost,
        _ if is_stale || class == "08" => Link::Lost,
        _ => Link::Whole,
    };
    let error = match *code {
        SqlState::DISK_FULL => StoreError::Full { location: location.to_owned(), source: said },
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => {
            StoreError::Corrupt { record: location.to_owned(), why: said.to_string() }
        }
        // Every statement is written in this program, and fits the tables that it makes.
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN | SqlState::UNDEFINED_FUNCTION => {
            let record = format!("the list of tables in {location}");
            StoreError::Corrupt { record, why: said.to_string() }
        }
        SqlState::DATABASE_DROPPED => refused(location, action, said),
        _ if is_stale => io(location, action, said),
        // 08 the connection, 25P03 silence in a transaction, 40 serialization and deadlock, 53 memory and connections, 55 what
        // is in use, 57 the server stops, starts, or gave up, 58 its system.
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => io(location, action, said),
        _ if ["08", "40", "53", "55", "57", "58"].contains(&class) => io(location, action, said),
        _ => refused(location, action, said),
    };
    Fault { error, link }
}

fn of_the_way(location: &str, action: &'static str, error: tokio_postgres::Error) -> Fault {
    let source = std::error::Error::source(&error);
    let system = source.and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    let passes = match system {
        // Not what a server of this kind would say, or not a server that is to be trusted.
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied) => {
            false
        }
        Some(_) => true,
        None => error.is_closed(),
    };
    let source = Arc::new(error);
    let error = if passes { io(location, action, source) } else { refused(location, action, source) };
    Fault { error, link: Link::Lost }
}

fn io(location: &str, action: &'static str, source: Source) -> StoreError {
    StoreError::Io { location: location.to_owned(), action, source }
}

fn refused(location: &str, action: &'static str, source: Source) -> StoreError {
    StoreError::Refused { location: location.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    /// Has the server fail with a code.
    async fn failure(code: &str) -> StoreError {
        let sql = format!("DO $$ BEGIN RAISE EXCEPTION 'so be it' USING ERRCODE = '{code}'; END $$");
        let db = testing::db(&testing::server());
        db.write("writing", sql.leak(), &[]).await.unwrap_err()
    }

    #[tokio::test]
    async fn what_passes_by_itself_may_be_tried_again() {
        // Deadlock, serialization, too many connections, out of memory, shutting down, starting, a statement that took too
        // long, a failure of the system.
        for code in ["40P01", "40001", "53300", "53200", "57P01", "57P03", "57014", "58030", "08006"] {
            let error = failure(code).await;
            assert!(matches!(error, StoreError::Io { action: "writing", .. }), "{error:?}");
            assert!(error.is_retryable(), "{code}");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(source, format!("so be it (SQLSTATE {code})"));
        }
    }

    #[tokio::test]
    async fn what_somebody_must_change_is_not_tried_again() {
        // Permission, a server that only reads, a password, no such database, a schema that is gone, too large a row.
        for code in ["42501", "25006", "28P01", "3D000", "3F000", "54000", "57P04"] {
            let error = failure(code).await;
            assert!(matches!(error, StoreError::Refused { action: "writing", .. }), "{error:?}");
            assert!(!error.is_retryable(), "{code}");
        }
    }

    #[tokio::test]
    async fn a_full_disk_and_damage_have_errors_of_their_own() {
        let error = failure("53100").await;
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert!(error.is_retryable());
        for code in ["XX001", "XX002", "42P01"] {
            let error = failure(code).await;
            assert!(
                matches!(&error, StoreError::Corrupt { why, .. } if why.starts_with("so be it")),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_row_that_the_server_quotes_is_not_repeated() {
        let db = testing::db(&testing::server());
        let sql = "DO $$ BEGIN RAISE unique_violation USING MESSAGE = 'duplicate', DETAIL = 'Key (name)=(secret)'; END $$";
        let error = db.write("writing", sql, &[]).await.unwrap_err();
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
