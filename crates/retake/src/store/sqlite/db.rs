//! One connection: statements, checksummed rows, and what SQLite's errors mean.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, Params, Row, params_from_iter};
use uuid::Uuid;

use super::guard::Guard;
pub(super) use crate::store::column::{Damage, json, nanoseconds, packed, stored, to_json, to_packed};
use crate::store::hash::Hash;
use crate::store::{Source, StoreError};

/// How many prepared statements a connection keeps: more than there are.
const STATEMENTS_MAX: usize = 128;

/// Pages that one step of [`Db::give_back`] may free at most.
const FREED_PAGES_MAX: u64 = 1 << 32;

/// A connection to a store's file.
///
/// Every statement is a `&'static str`, so that none can be built of what somebody wrote: values are bound.
#[derive(Debug)]
pub(super) struct Db {
    connection: Connection,
    path: Arc<Path>,
    guard: Arc<Guard>,
}

/// How far the write-ahead log began anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewed {
    /// All that it held is in the file, flushed, and the next commit overwrites it.
    Wholly,
    /// Other connections read or write what it holds.
    Busy,
}

impl Db {
    pub(super) fn new(connection: Connection, path: &Arc<Path>, guard: Arc<Guard>) -> Self {
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Self { connection, path: Arc::clone(path), guard }
    }

    pub(super) fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// Returns the same connection under another guard.
    pub(super) fn guarded(self, guard: Guard) -> Self {
        Self { guard: Arc::new(guard), ..self }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a statement that returns nothing. Returns how many rows it changed.
    pub(super) fn run(&self, sql: &'static str, params: impl Params) -> Result<usize, StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params))
            .map_err(|error| self.fault("writing", error))
    }

    /// Runs a statement that writes a row of `table`: its last parameter is the checksum of the others.
    pub(super) fn put(
        &self,
        table: &str,
        sql: &'static str,
        values: &[ValueRef<'_>],
    ) -> Result<(), StoreError> {
        let checksum = self.guard.checksum(table, values.iter().copied())?;
        let params = values.iter().copied().chain([ValueRef::Blob(&checksum)]).map(ToSqlOutput::Borrowed);
        self.run(sql, params_from_iter(params)).map(|_| ())
    }

    /// Reads the first row, if there is one. `name` names it where it is damaged.
    pub(super) fn first<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        name: impl Fn(&Row<'_>) -> String,
        read: impl FnMut(&Row<'_>) -> Result<T, Damage>,
    ) -> Result<Option<T>, StoreError> {
        let mut found = None;
        self.visit(sql, params, name, read, |row| {
            found = Some(row);
            false
        })?;
        Ok(found)
    }

    /// Reads all rows. `name` names the one that is damaged.
    pub(super) fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        name: impl Fn(&Row<'_>) -> String,
        read: impl FnMut(&Row<'_>) -> Result<T, Damage>,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = Vec::new();
        self.visit(sql, params, name, read, |row| {
            rows.push(row);
            true
        })?;
        Ok(rows)
    }

    /// Reads one whole number, if there is a row.
    pub(super) fn number(&self, sql: &'static str, params: impl Params) -> Result<Option<i64>, StoreError> {
        self.first(sql, params, |_| self.location(), |row| integer(row, 0))
    }

    fn visit<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        name: impl Fn(&Row<'_>) -> String,
        mut read: impl FnMut(&Row<'_>) -> Result<T, Damage>,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<(), StoreError> {
        let failed = |error| self.fault("reading", error);
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let value = read(row).map_err(|why| StoreError::Corrupt { record: name(row), why })?;
            if !take(value) {
                break;
            }
        }
        Ok(())
    }

    /// Runs statements that are written in this program.
    pub(super) fn script(&self, sql: &'static str) -> Result<(), StoreError> {
        self.script_as("writing", sql)
    }

    /// Runs statements under the name of what they are for.
    pub(super) fn script_as(&self, action: &'static str, sql: &'static str) -> Result<(), StoreError> {
        self.connection.execute_batch(sql).map_err(|error| self.fault(action, error))
    }

    /// Does `work` so that all of it happens or nothing, within the transaction that is open.
    pub(super) fn nested<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.run("SAVEPOINT job", [])?;
        match work() {
            Ok(done) => self.run("RELEASE job", []).map(|_| done),
            Err(error) => {
                // Where SQLite has already ended the transaction there is nothing to go back to.
                if !self.is_idle() {
                    self.run("ROLLBACK TO job", [])?;
                    self.run("RELEASE job", [])?;
                }
                Err(error)
            }
        }
    }

    /// Does `work` on one consistent view of the file.
    pub(super) fn view<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.run("BEGIN", [])?;
        let result = work();
        self.abandon();
        result
    }

    /// Ends the transaction, if one is open, as if it had never begun.
    pub(super) fn abandon(&self) {
        if !self.is_idle() {
            // What it could not end here shows in `is_idle`.
            drop(self.run("ROLLBACK", []));
        }
    }

    /// Tells whether no transaction is open.
    pub(super) fn is_idle(&self) -> bool {
        self.connection.is_autocommit()
    }

    pub(super) fn busy_timeout(&self, busy: Duration) -> Result<(), StoreError> {
        self.connection.busy_timeout(busy).map_err(|error| self.fault("opening", error))
    }

    /// Refuses rows that are larger than any that is written, before there is memory for them.
    pub(super) fn limit_rows(&self, bytes_max: i32) -> Result<(), StoreError> {
        self.connection
            .set_limit(Limit::SQLITE_LIMIT_LENGTH, bytes_max)
            .map(|_| ())
            .map_err(|error| self.fault("opening", error))
    }

    pub(super) fn checkpoint_on_close(&self, enabled: bool) -> Result<(), StoreError> {
        self.connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !enabled)
            .map(|_| ())
            .map_err(|error| self.fault("opening", error))
    }

    /// Switches to the write-ahead log, which the file then keeps.
    pub(super) fn write_ahead(&self) -> Result<(), StoreError> {
        let mode: String = self
            .connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
            .map_err(|error| self.fault("switching to the write-ahead log", error))?;
        if mode == "wal" {
            return Ok(());
        }
        let why = format!("this file system offers the journal mode `{mode}` only");
        Err(StoreError::Io {
            location: self.location(),
            action: "switching to the write-ahead log",
            source: Arc::new(std::io::Error::other(why)),
        })
    }

    /// Moves the write-ahead log into the file, and has the next commit begin it anew.
    pub(super) fn renew_log(&self) -> Result<Renewed, StoreError> {
        let failed = |error| self.fault("moving the log into it", error);
        let busy = |row: &Row<'_>| row.get::<_, i64>(0);
        match self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], busy).map_err(failed)? {
            0 => Ok(Renewed::Wholly),
            _ => Ok(Renewed::Busy),
        }
    }

    pub(super) fn pragma(&self, name: &str) -> Result<i64, StoreError> {
        self.connection
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| self.fault("reading its settings", error))
    }

    pub(super) fn set_pragma(&self, name: &str, value: u32) -> Result<(), StoreError> {
        self.connection
            .pragma_update(None, name, value)
            .map_err(|error| self.fault("writing its settings", error))
    }

    /// Cuts unused pages off the end of the file.
    pub(super) fn give_back(&self) -> Result<(), StoreError> {
        let failed = |error| self.fault("giving space back", error);
        let mut statement = self.connection.prepare("PRAGMA incremental_vacuum").map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        // Every step frees one page.
        for _ in 0..FREED_PAGES_MAX {
            if rows.next().map_err(failed)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Returns what a failure of SQLite means.
    pub(super) fn fault(&self, action: &'static str, error: rusqlite::Error) -> StoreError {
        fault(&self.path, action, error)
    }

    pub(super) fn location(&self) -> String {
        self.path.display().to_string()
    }
}

/// Returns what a failure of SQLite means.
pub(super) fn fault(path: &Path, action: &'static str, error: rusqlite::Error) -> StoreError {
    let location = path.display().to_string();
    let code = error.sqlite_error_code();
    // What is written stays within the limits on values, so that only damage makes a row too big, or larger than the 2 GiB
    // that SQLite asks of the system at most. Where the system itself has no memory left, the process does not get here.
    if matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::TooBig | ErrorCode::OutOfMemory)) {
        StoreError::Corrupt { record: location, why: error.to_string() }
    } else if let rusqlite::Error::SqlInputError { msg, .. } = &error {
        // Every statement is written in this program, and fits the tables that it makes.
        StoreError::Corrupt { record: format!("the list of tables in {location}"), why: msg.clone() }
    } else if is_cut_short(&error) {
        StoreError::Corrupt { record: location, why: "it ends before a page that belongs to it".to_owned() }
    } else if code == Some(ErrorCode::NotADatabase) {
        StoreError::NotAStore { location, why: error.to_string() }
    } else if code == Some(ErrorCode::DiskFull)
        || (code == Some(ErrorCode::SystemIoFailure) && no_room_beside(path))
    {
        StoreError::Full { location, source: Arc::new(error) }
    } else {
        StoreError::Io { location, action, source: Arc::new(error) }
    }
}

/// Tells whether the disk failed, and not the caller or somebody else.
pub(super) fn is_of_the_disk(error: &StoreError) -> bool {
    let failed = |source: &Source| {
        let error = source.downcast_ref::<rusqlite::Error>();
        error.and_then(rusqlite::Error::sqlite_error_code) == Some(ErrorCode::SystemIoFailure)
    };
    matches!(error, StoreError::Full { .. }) || error.below().is_some_and(failed)
}

/// Tells whether a page was asked for that lies behind the end of the file.
fn is_cut_short(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_IOERR_SHORT_READ)
}

/// Bytes by which the probe of [`no_room_beside`] goes past the log.
const PROBE_BYTES: u64 = 64 * 1024;

/// Tells whether a file as long as the log, and a little longer, may not be made beside the store.
///
/// SQLite reports a full disk as such, but a file that reached the size limit of the process, or a quota, only as a
/// failed write.
fn no_room_beside(path: &Path) -> bool {
    let beside = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        std::path::PathBuf::from(name)
    };
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let longest = length(path).max(length(&beside("-wal")));
    let probe = beside(&format!("-probe-{}", std::process::id()));
    let made = std::fs::File::create(&probe).and_then(|file| file.set_len(longest + PROBE_BYTES));
    drop(std::fs::remove_file(&probe));
    made.is_err_and(|error| {
        let full = [
            std::io::ErrorKind::FileTooLarge,
            std::io::ErrorKind::StorageFull,
            std::io::ErrorKind::QuotaExceeded,
        ];
        full.contains(&error.kind())
    })
}

/// Adds a value as SQLite keeps it to a hash.
pub(super) fn feed(hash: &mut Hash, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => hash.null(),
        ValueRef::Integer(number) => hash.integer(number),
        ValueRef::Real(number) => hash.real(number),
        ValueRef::Text(text) => hash.text(text),
        ValueRef::Blob(bytes) => hash.bytes(bytes),
    }
}

/// Returns the first columns of a row, as they are.
pub(super) fn columns<'row>(row: &'row Row<'_>, columns: usize) -> Result<Vec<ValueRef<'row>>, Damage> {
    (0..columns).map(|column| row.get_ref(column).map_err(|error| error.to_string())).collect()
}

/// Makes sure that a search by number found what it was for: in a table that is out of order it finds other rows, and
/// these are whole.
pub(super) fn expect(row: &Row<'_>, column: usize, wanted: i64) -> Result<(), Damage> {
    match integer(row, column)? == wanted {
        true => Ok(()),
        false => Err(OUT_OF_ORDER.to_owned()),
    }
}

/// How it shows that a row is in the wrong place of its table.
pub(super) const OUT_OF_ORDER: &str = "it stands where another row belongs";

/// Returns a column as it would be shown, whatever is in it: for the names of damaged rows.
pub(super) fn shown(row: &Row<'_>, column: usize) -> String {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(number)) => number.to_string(),
        Ok(ValueRef::Text(text)) => String::from_utf8_lossy(text).into_owned(),
        Ok(ValueRef::Blob(bytes)) => match Uuid::from_slice(bytes) {
            Ok(id) => id.to_string(),
            Err(_) => format!("{bytes:02x?}"),
        },
        Ok(ValueRef::Null | ValueRef::Real(_)) | Err(_) => "?".to_owned(),
    }
}

pub(super) fn integer(row: &Row<'_>, column: usize) -> Result<i64, Damage> {
    row.get(column).map_err(|error| error.to_string())
}

pub(super) fn optional_integer(row: &Row<'_>, column: usize) -> Result<Option<i64>, Damage> {
    row.get(column).map_err(|error| error.to_string())
}

/// Reads a number that is never negative.
pub(super) fn count(row: &Row<'_>, column: usize) -> Result<u64, Damage> {
    u64::try_from(integer(row, column)?).map_err(|_| format!("its column {column} is negative"))
}

pub(super) fn text(row: &Row<'_>, column: usize) -> Result<String, Damage> {
    row.get(column).map_err(|error| error.to_string())
}

pub(super) fn blob<'row>(row: &'row Row<'_>, column: usize) -> Result<&'row [u8], Damage> {
    let value = row.get_ref(column).map_err(|error| error.to_string())?;
    value.as_blob().map_err(|error| error.to_string())
}

/// Reads the link of a chain.
pub(super) fn link(row: &Row<'_>, column: usize) -> Result<[u8; 32], Damage> {
    blob(row, column)?.try_into().map_err(|_| "its link is not 32 bytes long".to_owned())
}

pub(super) fn id(row: &Row<'_>, column: usize) -> Result<Uuid, Damage> {
    Uuid::from_slice(blob(row, column)?).map_err(|error| error.to_string())
}

pub(super) fn optional_id(row: &Row<'_>, column: usize) -> Result<Option<Uuid>, Damage> {
    match row.get_ref(column).map_err(|error| error.to_string())? {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => {
            id(row, column).map(Some)
        }
    }
}

pub(super) fn time(row: &Row<'_>, column: usize) -> Result<DateTime<Utc>, Damage> {
    Ok(DateTime::from_timestamp_nanos(integer(row, column)?))
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_row_that_claims_more_than_sqlite_allocates_is_damaged() {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_NOMEM), None);
        let fault = fault(Path::new("retake.db"), "reading", error);
        assert!(matches!(&fault, StoreError::Corrupt { record, .. } if record == "retake.db"), "{fault:?}");
    }
}
