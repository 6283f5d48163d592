//! What a failure of the server, or of the way to it, means.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio_postgres::error::{DbError, SqlState};

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

fn said(error: &StoreError) -> Option<&Said> {
    std::error::Error::source(error)?.downcast_ref::<Said>()
}

fn of_the_server(location: &str, action: &'static str, error: &DbError) -> Fault {
    let said = Arc::new(Said {
        code: error.code().clone(),
        constraint: error.constraint().map(str::to_owned),
        message: error.message().to_owned(),
        hint: error.hint().map(str::to_owned),
    });
    let code = error.code().code();
    let lost = Fault { error: io(location, action, Arc::clone(&said) as Source), link: Link::Lost };
    let passing = Fault { error: io(location, action, Arc::clone(&said) as Source), link: Link::Whole };
    match *error.code() {
        SqlState::DISK_FULL => whole(StoreError::Full { location: location.to_owned(), source: said }),
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => {
            whole(StoreError::Corrupt { record: location.to_owned(), why: said.to_string() })
        }
        // Every statement is written in this program, and fits the tables that it makes.
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN | SqlState::UNDEFINED_FUNCTION => {
            whole(StoreError::Corrupt {
                record: format!("the list of tables in {location}"),
                why: said.to_string(),
            })
        }
        SqlState::DATABASE_DROPPED => Fault { error: refused(location, action, said), link: Link::Lost },
        // The tables have changed under a prepared statement, or something between here and the server has dropped it.
        SqlState::FEATURE_NOT_SUPPORTED if error.message().starts_with("cached plan") => lost,
        SqlState::INVALID_SQL_STATEMENT_NAME => lost,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => lost,
        // Cancelled, or waited for a lock for too long: the server goes on.
        SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE => passing,
        // 08 the connection, 57P the server stops or starts, 58 its system.
        _ if code.starts_with("08") || code.starts_with("57P") || code.starts_with("58") => lost,
        // 40 serialization and deadlock, 53 memory and connections, 55 something is in use.
        _ if code.starts_with("40") || code.starts_with("53") || code.starts_with("55") => passing,
        _ => whole(refused(location, action, said)),
    }
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

fn whole(error: StoreError) -> Fault {
    Fault { error, link: Link::Whole }
}

fn io(location: &str, action: &'static str, source: Source) -> StoreError {
    StoreError::Io { location: location.to_owned(), action, source }
}

fn refused(location: &str, action: &'static str, source: Source) -> StoreError {
    StoreError::Refused { location: location.to_owned(), action, source }
}
