//! Which files this process has open as stores.
//!
//! POSIX takes all locks of a process on a file away when the process closes any handle of it
//! ([sqlite.org/howtocorrupt.html](https://sqlite.org/howtocorrupt.html), 2.2). SQLite holds its own handles back for
//! that reason; a look at the file by hand does not. So the file is looked at before SQLite has it, and not again as long
//! as this process has it open.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A file, whatever its names are: device and number.
type FileId = (u64, u64);

/// How many stores of this process have each file open.
static OPEN: Mutex<BTreeMap<FileId, usize>> = Mutex::new(BTreeMap::new());

/// A file that counts as open until this is dropped, which must be after SQLite has closed it.
#[derive(Debug)]
pub(super) struct Presence(Option<FileId>);

impl Presence {
    /// Counts a file as open, and looks at it before, unless it is open already and so has been looked at.
    ///
    /// # Errors
    /// Those of `look`, and of the system where there is no file; nothing is counted then.
    pub(super) fn after<E: From<io::Error>>(
        path: &Path,
        look: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        // Held while somebody looks: nobody in this process opens the file meanwhile.
        let mut open = files();
        let Some(id) = id(path)? else {
            look()?;
            return Ok(Self(None));
        };
        if !open.contains_key(&id) {
            look()?;
        }
        *open.entry(id).or_default() += 1;
        Ok(Self(Some(id)))
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let Some(id) = self.0 else { return };
        let mut open = files();
        if let Some(count) = open.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                open.remove(&id);
            }
        }
    }
}

fn files() -> MutexGuard<'static, BTreeMap<FileId, usize>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn id(path: &Path) -> io::Result<Option<FileId>> {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(path)?;
    Ok(Some((file.dev(), file.ino())))
}

/// Locks belong to handles there, and not to processes.
#[cfg(not(unix))]
fn id(_: &Path) -> io::Result<Option<FileId>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_looked_at_once_as_long_as_it_is_open_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let (file, name) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&file, "").unwrap();
        std::fs::hard_link(&file, &name).unwrap();
        let mut looks = 0;
        let mut enter = |path: &Path| {
            Presence::after(path, || {
                looks += 1;
                io::Result::Ok(())
            })
            .unwrap()
        };
        let first = enter(&file);
        let second = enter(&name);
        drop(first);
        drop(enter(&file));
        drop(second);
        drop(enter(&name));
        assert_eq!(looks, if cfg!(unix) { 2 } else { 5 });
    }

    #[test]
    fn a_file_that_was_refused_is_looked_at_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        std::fs::write(&file, "").unwrap();
        for _ in 0..2 {
            let refused = Presence::after(&file, || Err(io::Error::other("damaged")));
            assert_eq!(refused.unwrap_err().to_string(), "damaged");
        }
    }
}
