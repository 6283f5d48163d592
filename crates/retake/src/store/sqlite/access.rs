//! Whether a store may be written: one whose directory is read-only can still be read, if it was closed.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use super::{db, log};
use crate::store::StoreError;

/// How connections to a store's file are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// To be read and written.
    Full,
    /// As a file that nobody changes: without locks, and without the files beside it, for which there is no place.
    Frozen,
}

/// Opens a connection to a file that may not be written.
///
/// Refused where there is a log beside the file: only SQLite can read it, and not without writing its index.
pub(super) fn frozen(path: &Path) -> Result<Connection, StoreError> {
    if log::has_frames(path) {
        let why = "its directory is read-only, and commits wait in the log beside it: copy both to where they may be \
                   written";
        return Err(StoreError::Io {
            location: path.display().to_string(),
            action: "opening",
            source: Arc::new(std::io::Error::new(ErrorKind::ReadOnlyFilesystem, why)),
        });
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(url(path), flags).map_err(|error| db::fault(path, "opening", error))
}

/// Tells whether no file may be made beside a store.
pub(super) fn is_read_only_beside(path: &Path) -> bool {
    let mut probe = path.as_os_str().to_owned();
    probe.push(format!("-probe-{}", std::process::id()));
    let probe = PathBuf::from(probe);
    match File::create(&probe) {
        Ok(_) => {
            drop(std::fs::remove_file(&probe));
            false
        }
        Err(error) => matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied),
    }
}

/// Returns how SQLite is told to open a file that nobody changes.
fn url(path: &Path) -> String {
    let mut url = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                url.push(char::from(*byte))
            }
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url.push_str("?immutable=1");
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_path_is_taken_for_a_part_of_the_address() {
        assert_eq!(url(Path::new("/a b/c?d#e%.db")), "file:/a%20b/c%3Fd%23e%25.db?immutable=1");
    }
}
