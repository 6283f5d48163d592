//! Putting a sound store in the place of a damaged one, with all that can be read of it.
//!
//! ```text
//! damaged file ──read──▶ histories ──import──▶ fresh file ──check, sync──▶ its place, by one rename
//!      `────────────────────── stays beside, under another name
//! ```
//!
//! Until the rename the damaged store is what everybody sees, and after it the sound one: a crash leaves one or the
//! other. The file is locked against everybody else for all of that time. The log of the damaged store is moved into its
//! file before the rename, as every last one to close it does: a log that stayed beside the new file would be taken for
//! the new file's.

mod points;
mod salvage;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::salvage::Salvage;
use super::check;
use super::db::Db;
use super::guard;
use super::moving::{self, Prepared};
use super::owner::Owner;
use super::schema::{self, Missing};
use super::writer::Aftermath;
use super::{DamagedLog, Options};
use crate::clock::Clock;
use crate::store::{
    Conflict, HeadFate, History, NewOperation, Repair, RepairMode, RepairedExecution, StoreError,
};

/// How many names are tried for the damaged file.
const NAMES_MAX: u32 = 100;

/// Reads all that can be read of a damaged store and, where that is asked for, puts it into a sound one in its place.
pub(super) fn repair(
    path: &Arc<Path>,
    mode: RepairMode,
    by: &NewOperation,
    options: &Options,
) -> Result<Repair, StoreError> {
    let Options { clock, keys, .. } = options;
    // What a damaged log hides is lost; the rest is not.
    let (_presence, log) = match schema::enter(path, Missing::Refuse, DamagedLog::Refuse) {
        Err(error @ StoreError::Corrupt { .. }) => {
            (schema::enter(path, Missing::Refuse, DamagedLog::Cut)?, Some(error))
        }
        entered => (entered?, None),
    };
    let db = schema::open_alone(path, keys)?;
    if mode == RepairMode::Replace {
        sweep(path)?;
    }
    let mut problems = check::check(&db).problems;
    let log_lost = log.map(|error| error.to_string());
    problems.extend(log_lost.clone());
    if problems.is_empty() {
        return Ok(Repair { problems, log_lost, executions: Vec::new(), damaged: None });
    }
    let owner = Owner::new(clock.new_id(), path);
    let salvaged = Salvage::new(&db, by, clock, &owner, log_lost.is_some()).executions()?;
    let (mut executions, histories): (Vec<_>, Vec<_>) = salvaged.into_iter().unzip();
    let damaged = match mode {
        RepairMode::Look => None,
        RepairMode::Replace => {
            let keys = guard::newest_first(&db, keys)?;
            let options = Options { keys, ..options.clone() };
            let fresh = Fresh::make(path, executions.iter_mut().zip(histories), &options)?;
            Some(fresh.take_the_place_of(path, db, clock)?)
        }
    };
    Ok(Repair { problems, log_lost, executions, damaged })
}

/// A sound store beside the damaged one. Removed where it does not take its place.
struct Fresh {
    path: Arc<Path>,
}

impl Fresh {
    fn make<'a>(
        path: &Path,
        salvaged: impl Iterator<Item = (&'a mut RepairedExecution, Option<History>)>,
        options: &Options,
    ) -> Result<Self, StoreError> {
        let end = format!(".repair-{}", options.clock.new_id().simple());
        let fresh = Self { path: beside(path, &end).into() };
        belong_alike(path, &fresh.path).map_err(|error| failed(&fresh.path, "creating", error))?;
        let (db, _) = schema::prepare(&fresh.path, Missing::Create, &options.keys)?;
        for (told, history) in salvaged {
            let Some(history) = history else { continue };
            match put(&db, history) {
                Ok(name) => told.name = name,
                // One that no store takes must not keep the others from being repaired.
                Err(StoreError::Conflict(_) | StoreError::Unstorable { .. }) => told.head = HeadFate::Lost,
                Err(error) => return Err(error),
            }
        }
        if let Some(problem) = check::check(&db).problems.into_iter().next() {
            return Err(StoreError::Corrupt { record: "the repaired store".to_owned(), why: problem });
        }
        db.script("PRAGMA wal_checkpoint(TRUNCATE)")?;
        drop(db);
        let log = beside(&fresh.path, "-wal");
        if log.exists() {
            return Err(failed(&log, "closing", io::Error::other("it is still in use")));
        }
        let synced = File::open(&fresh.path).and_then(|file| file.sync_all());
        synced.map_err(|error| failed(&fresh.path, "syncing", error))?;
        sync_directory(path)?;
        Ok(fresh)
    }

    /// Returns where the damaged file is from now on. Nobody else has `damaged` open.
    fn take_the_place_of(
        self,
        path: &Path,
        damaged: Db,
        clock: &Arc<dyn Clock>,
    ) -> Result<PathBuf, StoreError> {
        let (kept, kept_log) = free_names(path, clock)?;
        let log = beside(path, "-wal");
        // The log as it is, for whoever wants to know what had happened. With the file it says the same as the file.
        if std::fs::metadata(&log).is_ok_and(|file| file.len() > 0) {
            std::fs::copy(&log, &kept_log).map_err(|error| failed(&log, "copying", error))?;
        }
        damaged.script_as("moving the log into it", "PRAGMA wal_checkpoint(TRUNCATE)")?;
        if std::fs::metadata(&log).is_ok_and(|file| file.len() > 0) {
            return Err(failed(&log, "moving it into the store", io::Error::other("it is still in use")));
        }
        let replaced = std::fs::hard_link(path, &kept)
            .map_err(|error| failed(path, "giving it another name", error))
            .and_then(|()| sync_directory(path))
            .and_then(|()| {
                std::fs::rename(&self.path, path).map_err(|error| failed(path, "replacing it", error))
            });
        if let Err(error) = replaced {
            drop(std::fs::remove_file(&kept));
            drop(std::fs::remove_file(&kept_log));
            return Err(error);
        }
        sync_directory(path)?;
        // Whoever was about to open the damaged file waits for its lock, and would go on with the name of the new log. So
        // the lock stays until all of them have given up, and look at the name again.
        std::thread::sleep(schema::OPEN_BUSY * 3);
        drop(damaged);
        Ok(kept)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // It may have another name by now.
        for end in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(beside(&self.path, end)));
        }
    }
}

/// Makes an empty file that belongs to whom another one does, and that nobody else can read; SQLite makes the log like it.
fn belong_alike(model: &Path, path: &Path) -> io::Result<()> {
    let file = File::create_new(path)?;
    let wanted = std::fs::metadata(model)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let found = file.metadata()?;
        if (found.uid(), found.gid()) != (wanted.uid(), wanted.gid()) {
            fchown(&file, Some(wanted.uid()), Some(wanted.gid()))?;
        }
    }
    file.set_permissions(wanted.permissions())
}

/// Imports a history in a transaction of its own. One whose name is taken gets another: two rows can only say the same
/// name where one of them is damaged. Returns the name that it has.
fn put(db: &Db, mut history: History) -> Result<String, StoreError> {
    let name = history.execution.name.clone();
    let mut attempt = 1;
    loop {
        let prepared = Prepared::new(db.guard(), history.clone())?;
        db.script_as("beginning to write", "BEGIN IMMEDIATE")?;
        let imported = moving::import(db, &prepared, &mut Aftermath::default())
            .and_then(|()| db.script_as("committing", "COMMIT"));
        let Err(error) = imported else { return Ok(history.execution.name) };
        db.abandon();
        if !matches!(error, StoreError::Conflict(Conflict::NameTaken(_))) || attempt == NAMES_MAX {
            return Err(error);
        }
        attempt += 1;
        history.execution.name = format!("{name}-{attempt}");
    }
}

/// Removes what a repair left that was killed: fresh files, a second name of the store itself, and a log without its
/// file.
fn sweep(path: &Path) -> Result<(), StoreError> {
    let look = |error| failed(path, "looking at what is beside it", error);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let name = name.to_string_lossy();
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(look)? {
        let entry = entry.map_err(look)?.path();
        let found = entry.file_name().unwrap_or_default().to_string_lossy();
        let Some(end) = found.strip_prefix(&*name) else { continue };
        let is_left = if !end.starts_with(".damaged-") {
            end.starts_with(".repair-")
        } else if let Some(file) = found.strip_suffix("-wal") {
            logs.push((entry.clone(), directory.join(file)));
            false
        } else {
            is_same_file(path, &entry).map_err(look)?
        };
        if is_left {
            std::fs::remove_file(&entry).map_err(look)?;
        }
    }
    for (log, file) in logs {
        if !file.exists() {
            std::fs::remove_file(log).map_err(look)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn is_same_file(one: &Path, other: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (one, other) = (std::fs::metadata(one)?, std::fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

#[cfg(not(unix))]
fn is_same_file(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Returns names for the damaged file and its log that nothing has.
fn free_names(path: &Path, clock: &Arc<dyn Clock>) -> Result<(PathBuf, PathBuf), StoreError> {
    let time = clock.now().format("%Y%m%dT%H%M%SZ");
    for attempt in 1..=NAMES_MAX {
        let end = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        let kept = beside(path, &format!(".damaged-{time}{end}"));
        let log = beside(&kept, "-wal");
        if !kept.exists() && !log.exists() {
            return Ok((kept, log));
        }
    }
    Err(failed(path, "giving it another name", io::ErrorKind::AlreadyExists.into()))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Makes names durable.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        return synced.map_err(|error| failed(directory, "syncing", error));
    }
    let _nothing_to_sync = path;
    Ok(())
}

fn failed(path: &Path, action: &'static str, error: io::Error) -> StoreError {
    StoreError::Io { location: path.display().to_string(), action, source: Arc::new(error) }
}
