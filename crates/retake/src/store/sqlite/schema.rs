//! The tables, and how a file becomes a store of this format.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::DamagedLog;
use super::access::{self, Access};
use super::db::Db;
use super::guard::{self, Guard};
use super::log;
use super::migration::MIGRATIONS;
use super::presence::Presence;
use crate::store::{Conflict, MasterKey, StoreError};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 2;

/// What marks a SQLite file as ours: `RETK`.
const APPLICATION_ID: u32 = 0x5245_544B;

/// The oldest SQLite whose write-ahead log has no known defect that loses data.
const SQLITE_MIN: i32 = 3_051_003;

/// How long a write waits for another process before it gives up.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(10);

/// Largest row: the largest body, and what stands beside it.
const ROW_BYTES_MAX: i32 = 260 * 1024 * 1024;

/// How often a new file is tried where another process makes it into a store at the same moment.
const OPEN_ATTEMPTS_MAX: u32 = 100;

/// How long one such attempt waits for the other process.
pub(super) const OPEN_BUSY: Duration = Duration::from_millis(100);

/// How long to wait between two such attempts: SQLite does not wait at all where that could be a deadlock.
const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What to do where there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Make one, and its directory.
    Create,
    /// Refuse.
    Refuse,
}

/// Opens the file, makes it a store where it is empty, and brings an older format to this one.
///
/// A file that this version must not touch is left byte for byte as it is. One that must be there, and whose directory is
/// read-only, is opened to be read. With master keys, a store without executions becomes an encrypted one.
pub(super) fn prepare(
    path: &Arc<Path>,
    missing: Missing,
    masters: &[MasterKey],
) -> Result<(Db, Access), StoreError> {
    let found = rusqlite::version_number();
    if found < SQLITE_MIN {
        let why = format!("SQLite {found} is linked, and {SQLITE_MIN} is the oldest that is safe");
        return Err(failed(path, "checking the version of SQLite", io::Error::other(why)));
    }
    match settled(path, masters) {
        Ok(db) => Ok((db, Access::Full)),
        Err(_) if missing == Missing::Refuse && access::is_read_only_beside(path) => {
            Ok((frozen(path, masters)?, Access::Frozen))
        }
        Err(error) => Err(error),
    }
}

/// Opens the file, however many others make it into a store at the same moment.
fn settled(path: &Arc<Path>, masters: &[MasterKey]) -> Result<Db, StoreError> {
    for _ in 1..OPEN_ATTEMPTS_MAX {
        match guarded(path, masters) {
            Err(error) if is_busy(&error) => std::thread::sleep(OPEN_PAUSE),
            done => return done,
        }
    }
    guarded(path, masters)
}

fn guarded(path: &Arc<Path>, masters: &[MasterKey]) -> Result<Db, StoreError> {
    let db = migrated(path)?;
    let guard = guard::found_or_made(&db, masters)?;
    Ok(db.guarded(guard))
}

/// Opens a file that cannot be written, where it has this format.
fn frozen(path: &Arc<Path>, masters: &[MasterKey]) -> Result<Db, StoreError> {
    let db = connect(path, Access::Frozen, BUSY_MAX, &Arc::new(Guard::Checksums))?;
    let format = recognised(&db)?;
    if format < FORMAT {
        let why = format!("it has format {format}, and cannot be brought to {FORMAT} where it is read-only");
        return Err(not_a_store(path, &why));
    }
    let guard = guard::find(&db, masters)?;
    Ok(db.guarded(guard))
}

/// Opens a connection to a file that [`prepare`] has seen, with everything set that durability rests on.
pub(super) fn connect(
    path: &Arc<Path>,
    access: Access,
    busy: Duration,
    guard: &Arc<Guard>,
) -> Result<Db, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match access {
        Access::Full => open(path, flags)?,
        Access::Frozen => access::frozen(path)?,
    };
    let db = Db::new(connection, path, Arc::clone(guard));
    set_up(&db, busy)?;
    Ok(db)
}

/// Opens a connection to a file that nobody else has open, and keeps everybody else out for as long as it is open.
/// Reading through it writes nothing, and closing it neither.
pub(super) fn open_alone(path: &Arc<Path>, masters: &[MasterKey]) -> Result<Db, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Db::new(open(path, flags)?, path, Arc::new(Guard::Checksums));
    db.checkpoint_on_close(false)?;
    db.busy_timeout(OPEN_BUSY)?;
    // Before the first look: the index of the log is then kept in memory, and not in a file that others use.
    db.script("PRAGMA locking_mode = EXCLUSIVE; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY;")?;
    match recognised(&db) {
        Ok(FORMAT) => match guard::find(&db, masters) {
            Ok(guard) => Ok(db.guarded(guard)),
            // Nobody says that it is encrypted: if it was not, there was nothing in the keyring. The list of tables, without
            // which nothing can be found, is another matter.
            Err(error @ StoreError::Corrupt { .. }) if masters.is_empty() => match guard::is_sealed(&db)? {
                true => Err(error),
                false => Ok(db),
            },
            Err(error) => Err(error),
        },
        Ok(found) => {
            let why = format!(
                "it has format {found}, and only format {FORMAT} is repaired: any other command brings it up to date, \
                 unless damage is in the way"
            );
            Err(StoreError::Corrupt { record: path.display().to_string(), why })
        }
        Err(error) if is_busy(&error) => Err(Conflict::InUse { location: path.display().to_string() }.into()),
        Err(error) => Err(error),
    }
}

fn open(path: &Arc<Path>, flags: OpenFlags) -> Result<Connection, StoreError> {
    Connection::open_with_flags(path, flags).map_err(|error| super::db::fault(path, "opening", error))
}

fn set_up(db: &Db, busy: Duration) -> Result<(), StoreError> {
    db.busy_timeout(busy)?;
    db.limit_rows(ROW_BYTES_MAX)?;
    db.script(
        "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = -16384; PRAGMA journal_size_limit = 16777216;",
    )?;
    for (pragma, wanted) in [("synchronous", 2), ("foreign_keys", 1), ("wal_autocheckpoint", 0)] {
        let found = db.pragma(pragma)?;
        if found != wanted {
            let why = format!("{pragma} is {found}, and {wanted} was asked for");
            return Err(failed(db.path(), "setting the connection up", io::Error::other(why)));
        }
    }
    Ok(())
}

fn migrated(path: &Arc<Path>) -> Result<Db, StoreError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Db::new(open(path, flags)?, path, Arc::new(Guard::Checksums));
    // Until the format is known, closing must not move the log into the file.
    db.checkpoint_on_close(false)?;
    db.busy_timeout(OPEN_BUSY)?;
    // On one view: another process may be making it into a store.
    let format = db.view(|| recognised(&db))?;
    if format == 0 {
        // Both must come before the first table.
        db.script("PRAGMA auto_vacuum = INCREMENTAL;")?;
    }
    db.write_ahead()?;
    set_up(&db, OPEN_BUSY)?;
    for (version, step) in MIGRATIONS.iter().filter(|(version, _)| *version > format) {
        db.script("BEGIN IMMEDIATE")?;
        let migrate = || -> Result<(), StoreError> {
            // Another process may have been here first.
            if recognised(&db)? < *version {
                step(&db)?;
                db.set_pragma("application_id", APPLICATION_ID)?;
                db.set_pragma("user_version", *version)?;
            }
            db.script("COMMIT")
        };
        if let Err(error) = migrate() {
            db.abandon();
            return Err(error);
        }
    }
    db.checkpoint_on_close(true)?;
    db.busy_timeout(BUSY_MAX)?;
    if format < FORMAT {
        // An older version looks at the file's own header, so that it need not touch the log to refuse it.
        db.script("PRAGMA wal_checkpoint(TRUNCATE)")?;
    }
    Ok(db)
}

/// Returns the format of an open file; 0 for an empty one.
fn recognised(db: &Db) -> Result<u32, StoreError> {
    let application = db.pragma("application_id")?;
    let format = db.pragma("user_version")?;
    let is_empty = application == 0 && format == 0 && db.pragma("schema_version")? == 0;
    if is_empty {
        return Ok(0);
    }
    judge(db.path(), u32::try_from(application).unwrap_or(0), u32::try_from(format).unwrap_or(u32::MAX))
}

fn judge(path: &Path, application: u32, format: u32) -> Result<u32, StoreError> {
    if application != APPLICATION_ID {
        return Err(not_a_store(path, "it is another application's SQLite file"));
    }
    if format > FORMAT {
        let location = path.display().to_string();
        return Err(StoreError::NewerFormat { location, found: format, supported: FORMAT });
    }
    Ok(format)
}

/// Looks at the file before SQLite opens it, and counts it as open: one that is not there is made empty, if that is
/// asked for.
pub(super) fn enter(path: &Path, missing: Missing, log: DamagedLog) -> Result<Presence, StoreError> {
    if missing == Missing::Create {
        create(path)?;
    }
    let looked = Presence::after(path, || {
        look(path, missing).map_err(Refused::Store)?;
        match log {
            DamagedLog::Refuse => log::check(path).map_err(Refused::Store),
            DamagedLog::Cut => Ok(()),
        }
    });
    looked.map_err(|refused| match refused {
        Refused::Store(error) => error,
        Refused::System(error) => failed(path, "opening", error),
    })
}

/// Why a file is not opened.
enum Refused {
    Store(StoreError),
    System(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Makes an empty file, and its directory, where there is none.
fn create(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(|error| failed(path, "creating its directory", error))?;
    let mut options = File::options();
    options.write(true).create_new(true);
    // As SQLite makes its files.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(_) if path.exists() => Ok(()),
        Err(error) => Err(failed(path, "creating", error)),
    }
}

/// Looks at the file's header.
fn look(path: &Path, missing: Missing) -> Result<(), StoreError> {
    if path.is_dir() {
        return Err(not_a_store(path, "it is a directory"));
    }
    let mut file = File::open(path).map_err(|error| failed(path, "opening", error))?;
    let mut header = Vec::new();
    file.by_ref()
        .take(100)
        .read_to_end(&mut header)
        .map_err(|error| failed(path, "reading its header", error))?;
    if header.is_empty() {
        // SQLite would take the file for new, and delete the log unread.
        if log::has_frames(path) {
            return Err(not_a_store(path, "it is empty, and the log beside it is not: it was cut short"));
        }
        return match missing {
            Missing::Create => Ok(()),
            Missing::Refuse => Err(not_a_store(path, "it is empty")),
        };
    }
    if header.len() < 100 || !header.starts_with(MAGIC) {
        return Err(not_a_store(path, "it is not a SQLite file"));
    }
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (format, application, schema) = (number(60), number(68), number(40));
    // An empty database may have its first tables in the log still.
    if (application, format, schema) == (0, 0, 0) {
        return Ok(());
    }
    judge(path, application, format).map(|_| ())
}

/// Tells whether there is a write-ahead log beside the file that holds anything.
fn is_busy(error: &StoreError) -> bool {
    let StoreError::Io { source, .. } = error else { return false };
    let Some(error) = source.downcast_ref::<rusqlite::Error>() else { return false };
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

fn not_a_store(path: &Path, why: &str) -> StoreError {
    StoreError::NotAStore { location: path.display().to_string(), why: why.to_owned() }
}

fn failed(path: &Path, action: &'static str, error: io::Error) -> StoreError {
    StoreError::Io { location: path.display().to_string(), action, source: Arc::new(error) }
}
