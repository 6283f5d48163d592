//! What can be wrong with an export file.

use std::io;

use crate::store::StoreError;

/// Why an export file was not read, or not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryFileError {
    /// It is no export file, or its first line is not what one begins with.
    #[error("this is no export file of retake: {why}")]
    NotAHistory {
        /// How it shows.
        why: String,
    },

    /// It was written by a newer version.
    #[error("the file has version {found}, and this version reads up to {supported}: use a newer retake")]
    NewerVersion {
        /// Its version.
        found: u64,
        /// The newest version that is read.
        supported: u32,
    },

    /// A line says what none would.
    #[error("line {line}: {why}")]
    Line {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },

    /// It has no end: it was not written to its end, or not copied whole.
    #[error("the file is cut short in line {line}: export it again, or copy it again")]
    Cut {
        /// The line, from 1, that is not whole or not there.
        line: u64,
    },

    /// Its lines are not those that were written.
    #[error("the {lines} lines of the file are not those that were written: the last line has another hash")]
    Changed {
        /// How many were read.
        lines: u64,
    },

    /// It is larger than is read.
    #[error("line {line}: {what} is longer than {max} bytes, the most that is read and written")]
    TooLarge {
        /// The line, from 1.
        line: u64,
        /// What is too long.
        what: &'static str,
        /// The most, in bytes.
        max: u64,
    },

    /// Its lines make no history that a store could take.
    #[error("the file holds no whole history")]
    NotWhole(#[source] StoreError),

    /// The history cannot be written so that it comes back the same.
    #[error("the history cannot be written to a file")]
    Unwritable(#[source] StoreError),

    /// It could not be read.
    #[error("line {line} cannot be read")]
    Read {
        /// The line, from 1.
        line: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// It could not be written.
    #[error("the file cannot be written")]
    Write(#[source] io::Error),
}
