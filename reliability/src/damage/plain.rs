//! The control: the same tables, read by SQLite alone.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use super::harm;
use super::original::Original;
use crate::{Outcome, Settings};

/// The tables whose rows are data.
const TABLES: [&str; 7] =
    ["executions", "workflows", "execution_workflows", "deltas", "checkpoints", "operations", "requests"];

/// What became of the files.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) read: usize,
    pub(super) wrong: usize,
}

/// Flips one bit of each file, and counts where other rows are read without an error.
pub(super) fn control(original: &Original, settings: Settings, directory: &Path) -> Outcome<Found> {
    let path = super::write(directory, &original.at_rest.main, None)?;
    let truth = rows(&path)?;
    let mut found = Found::default();
    let mut draw = fastrand::Rng::with_seed(settings.seed);
    for _ in 0..1_000 {
        let mut bytes = original.at_rest.main.clone();
        harm::flip(&mut bytes, &mut draw);
        std::fs::write(&path, bytes)?;
        found.read += 1;
        found.wrong += usize::from(rows(&path).is_ok_and(|rows| rows != truth));
    }
    Ok(found)
}

fn rows(path: &Path) -> rusqlite::Result<Vec<Vec<Value>>> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut all = Vec::new();
    for table in TABLES {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}"))?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect())?;
        all.extend(rows.collect::<rusqlite::Result<Vec<Vec<Value>>>>()?);
    }
    Ok(all)
}
