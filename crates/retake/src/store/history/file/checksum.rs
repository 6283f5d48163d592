//! What tells whether two stores hold the same history.

use serde::Serialize;

use super::line::{FirstLine, OperationLine, PointLine};
use crate::store::history::delta_between;
use crate::store::{CheckpointRecord, Delta, History, HistoryPoint, Image, StoreError};

/// What the checksums of histories begin with, so that they are none of anything else.
const CONTEXT: &str = "retake 2026-11 history checksum";

impl History {
    /// Returns a hash (BLAKE3) of all that a history says, which is the same for the same history in every store: how a
    /// store had laid it out, what it takes there and whether it is compressed are not in it.
    ///
    /// Costs what changed.
    ///
    /// # Errors
    /// Those of [`states`](Self::states).
    pub fn checksum(&self) -> Result<[u8; 32], StoreError> {
        let states = self.states()?;
        let mut hash = Parts(blake3::Hasher::new_derive_key(CONTEXT));
        hash.json("the execution", &FirstLine::of(&self.execution))?;
        for workflow in &self.workflows {
            hash.bytes(workflow.id.as_bytes());
            hash.bytes(&workflow.definition);
        }
        let nothing = Image::default();
        let mut before = &nothing;
        for (HistoryPoint { record, .. }, state) in self.points.iter().zip(&states) {
            let record = CheckpointRecord { size_bytes: 0, compressed: false, ..record.clone() };
            let point = HistoryPoint { record, base: None, delta: Delta::default() };
            hash.json("a point", &PointLine::of(&point))?;
            // Always since the point before, whatever each store builds on.
            hash.bytes(&delta_between(before, state).encode());
            before = state;
        }
        for operation in &self.operations {
            hash.json("an operation", &OperationLine::of(operation))?;
        }
        Ok(*hash.0.finalize().as_bytes())
    }
}

/// A hash of parts, each with its length, so that none can be taken for two.
struct Parts(blake3::Hasher);

impl Parts {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn json(&mut self, path: &str, part: &impl Serialize) -> Result<(), StoreError> {
        let unstorable = |error: serde_json::Error| StoreError::Unstorable {
            path: path.to_owned(),
            why: error.to_string(),
        };
        self.bytes(&serde_json::to_vec(part).map_err(unstorable)?);
        Ok(())
    }
}
