//! A disk that forgets what it acknowledged: the control of these trials.

use std::path::PathBuf;

use crate::Outcome;
use crate::workplace::Workplace;

/// What becomes of the store at a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Honest,
    /// It is as it was before the process was started, whatever was acknowledged since.
    Lying,
}

/// The files of a store at some moment, where they are to come back.
pub(super) struct Copy(Option<Vec<(PathBuf, Vec<u8>)>>);

impl Copy {
    /// Keeps what a lying disk will come back to, and nothing of an honest one.
    pub(super) fn for_a(disk: Disk, place: &Workplace) -> Outcome<Self> {
        match disk {
            Disk::Honest => return Ok(Self(None)),
            Disk::Lying => {}
        }
        let mut files = Vec::new();
        for path in store_files(place)? {
            files.push((path.clone(), std::fs::read(path)?));
        }
        Ok(Self(Some(files)))
    }

    /// Makes the store what it was.
    pub(super) fn put_back(self, place: &Workplace) -> Outcome<()> {
        let Some(files) = self.0 else { return Ok(()) };
        for path in store_files(place)? {
            std::fs::remove_file(path)?;
        }
        for (path, bytes) in files {
            std::fs::write(path, bytes)?;
        }
        Ok(())
    }
}

fn store_files(place: &Workplace) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(place.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("store.db") {
            files.push(entry.path());
        }
    }
    Ok(files)
}
