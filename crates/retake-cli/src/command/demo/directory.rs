//! Where a demo keeps its files: a directory that a demo made, and that the next one empties.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure};

/// The file that says that a demo made the directory. It is locked while a demo uses it.
const MARK: &str = "made-by-retake-demo";

const WORKFLOW: &str = "research.yaml";

const STORE: &str = "store.db";

/// The directory, for as long as the demo goes on.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the lock.
    _mark: File,
}

impl Directory {
    /// Makes the directory, or empties one that an earlier demo made of that demo's files.
    pub(super) fn prepare(path: PathBuf, workflow: &str) -> Result<Self, Failure> {
        let failed = |error| Failure::system(format!("cannot prepare {}", path.display()), error);
        if !path.join(MARK).exists() && holds_something(&path).map_err(failed)? {
            let message = format!("{} was not made by a demo, so that it is left alone", path.display());
            return Err(Failure::new(Code::Conflict, message).hint("run the demo in another directory"));
        }
        fs::create_dir_all(&path).map_err(failed)?;
        let mark = File::create(path.join(MARK)).map_err(failed)?;
        match mark.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another demo is using {}", path.display());
                return Err(Failure::new(Code::Conflict, message));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        remove_earlier(&path).map_err(failed)?;
        fs::write(path.join(WORKFLOW), workflow).map_err(failed)?;
        Ok(Self { path, _mark: mark })
    }

    pub(super) fn workflow(&self) -> PathBuf {
        self.path.join(WORKFLOW)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }
}

fn holds_something(path: &Path) -> std::io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the files of an earlier demo, and nothing else that may lie there.
fn remove_earlier(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name == WORKFLOW || name.starts_with(STORE));
        if is_ours && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_no_demo_made_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("demo");
        fs::create_dir(&path).unwrap();
        fs::write(path.join(STORE), "precious").unwrap();
        let failure = Directory::prepare(path.clone(), "").unwrap_err();
        assert_eq!(failure.code, Code::Conflict);
        assert_eq!(fs::read_to_string(path.join(STORE)).unwrap(), "precious");
    }

    #[test]
    fn the_next_demo_removes_what_the_last_one_made_and_no_more() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("demo");
        drop(Directory::prepare(path.clone(), "old").unwrap());
        fs::write(path.join("store.db-wal"), "old").unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        let directory = Directory::prepare(path.clone(), "new").unwrap();
        assert_eq!(fs::read_to_string(directory.workflow()).unwrap(), "new");
        assert!(!path.join("store.db-wal").exists());
        assert_eq!(fs::read_to_string(path.join("notes.txt")).unwrap(), "mine");
    }

    #[test]
    fn two_demos_do_not_share_a_directory() {
        let base = tempfile::tempdir().unwrap();
        let first = Directory::prepare(base.path().join("demo"), "first").unwrap();
        let failure = Directory::prepare(base.path().join("demo"), "second").unwrap_err();
        assert_eq!(failure.code, Code::Conflict);
        assert_eq!(fs::read_to_string(first.workflow()).unwrap(), "first");
    }
}
