//! Which older point of a history each point builds on, once the history is apart from its store.
//!
//! ```text
//! deltas     1 <- 2 <- [3] <- 4 <- [5]     [n] is pointed at; 1 and 2 may be another execution's
//!                  `- 6 <- [7]
//! history    [3] whole, [5] = 4 and 5 on [3], [7] = what differs from [3]
//! ```

use std::collections::HashMap;

use super::{Seq, StoreError};

/// A look at the points of a history, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unravelling {
    /// The oldest point on each delta that points stand on.
    stands: HashMap<i64, Seq>,
    /// The oldest point above each delta that none stands on, and its delta.
    passed: HashMap<i64, (Seq, i64)>,
}

/// What a point is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Strand {
    /// The deltas on the way down to an older point's, newest first.
    On { base: Seq, way: Vec<i64> },
    /// What differs from an older point, which stands on the delta `from`: a delta below it lies below this one too.
    Between { base: Seq, from: i64 },
    /// All of it.
    Whole,
}

impl Unravelling {
    /// Looks at the next point, which stands on the delta `tip`. `base_of` returns the delta that one builds on.
    pub(super) fn next(
        &mut self,
        seq: Seq,
        tip: i64,
        base_of: impl FnMut(i64) -> Result<Option<i64>, StoreError>,
    ) -> Result<Strand, StoreError> {
        let mut way = Vec::new();
        let end = self.end(tip, &mut way, base_of)?;
        for key in &way {
            self.passed.entry(*key).or_insert((seq, tip));
        }
        self.stands.entry(tip).or_insert(seq);
        Ok(match end {
            Strand::On { base, .. } => Strand::On { base, way },
            end @ (Strand::Between { .. } | Strand::Whole) => end,
        })
    }

    /// Follows the links down, newest first, and says where the way ends.
    fn end(
        &self,
        tip: i64,
        way: &mut Vec<i64>,
        mut base_of: impl FnMut(i64) -> Result<Option<i64>, StoreError>,
    ) -> Result<Strand, StoreError> {
        let mut next = Some(tip);
        while let Some(key) = next {
            if let Some(base) = self.stands.get(&key) {
                return Ok(Strand::On { base: *base, way: Vec::new() });
            }
            if let Some((base, from)) = self.passed.get(&key) {
                return Ok(Strand::Between { base: *base, from: *from });
            }
            way.push(key);
            next = base_of(key)?;
        }
        Ok(Strand::Whole)
    }
}
