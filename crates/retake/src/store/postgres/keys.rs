//! Keys of executions and deltas, which a store takes from the server many at once.
//!
//! So that a row's checksum and what refers to it can be made before the row is there. A delta's key is greater than that
//! of its base, whoever made either: the server counts up, and keys that have been passed by are left out.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::chain::Reader;
use super::row;
use crate::store::StoreError;

/// How many the server counts on for one question: as its sequence says.
const BLOCK: i64 = 1_024;

/// How often the server may give keys that are too small, or others take them all, before that is an error.
const ATTEMPTS_MAX: usize = 16;

/// The keys that a store may still use.
#[derive(Debug)]
pub(super) struct Keys {
    block: Mutex<Range<i64>>,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { block: Mutex::new(0..0) }
    }

    /// Returns a key that nobody else has, greater than `below`.
    ///
    /// Within a transaction, `reader` is that transaction: where all connections are in transactions that wait for keys,
    /// there is none left to ask by.
    pub(super) async fn next(&self, reader: &mut Reader<'_>, below: i64) -> Result<i64, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(key) = self.take(below) {
                return Ok(key);
            }
            let rows = reader.query("SELECT nextval('keys')", &[]).await?;
            let first = match rows.first() {
                Some(row) => {
                    row::get::<i64>(row, 0).map_err(|why| row::damaged("the keys".to_owned(), why))?
                }
                None => break,
            };
            let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
            // Somebody else may have asked at the same time: the later keys serve both.
            if block.is_empty() || block.start < first {
                *block = first..first.saturating_add(BLOCK);
            }
        }
        Err(row::damaged("the keys".to_owned(), format!("none of them is greater than {below}")))
    }

    /// Forgets the keys, where it has shown that somebody else has them too.
    pub(super) fn forget(&self) {
        *self.block.lock().unwrap_or_else(PoisonError::into_inner) = 0..0;
    }

    fn take(&self, below: i64) -> Option<i64> {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if block.start <= below {
            return None;
        }
        block.next()
    }
}
