//! Chains of hashes, by which a removed or moved row of a history shows.
//!
//! ```text
//! start ──▶ @1 ──▶ @2 ──▶ (@3 to @6: pruned) ──▶ @7 ──▶ the execution's row
//! ```
//!
//! Every checkpoint holds the hash of itself and of the checkpoint before it; the execution's row holds the last. What
//! has been pruned leaves a *gap*: its first and last number, and the last of its hashes, so that what follows still
//! joins. Operations are chained in the same way, and are never pruned.

use super::hash::Hash;
use super::{Seq, StoreError, column};
use crate::execution::ExecutionId;

/// What a row is joined to the next one by.
pub(super) type Link = [u8; 32];

/// Points that have been pruned, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) first: Seq,
    pub(super) last: Seq,
    /// That of the last point in it.
    pub(super) link: Link,
}

impl Gap {
    /// Returns the gaps that points leave which go, in order, each with its link.
    pub(super) fn of(gone: &[(Seq, Link)]) -> Vec<Self> {
        let mut gaps: Vec<Self> = Vec::new();
        for (seq, link) in gone {
            match gaps.last_mut() {
                Some(gap) if gap.last + 1 == *seq => (gap.last, gap.link) = (*seq, *link),
                Some(_) | None => gaps.push(Self { first: *seq, last: *seq, link: *link }),
            }
        }
        gaps
    }
}

/// Returns what the first row of a chain is joined to.
pub(super) fn start(execution: ExecutionId) -> Link {
    let mut hash = Hash::of("a chain's start");
    hash.bytes(execution.as_bytes());
    hash.finish()
}

/// Returns the link of a row that follows another: over its table's name and, as `values` adds them, all that is never
/// changed in it.
pub(super) fn next(before: &Link, table: &str, values: impl FnOnce(&mut Hash)) -> Link {
    let mut hash = Hash::of(table);
    hash.bytes(before);
    values(&mut hash);
    hash.finish()
}

/// Returns what joins across points whose own links are not known: they were gone before there were any.
pub(super) fn across(before: &Link, first: Seq, last: Seq) -> Result<Link, StoreError> {
    let ends = [column::stored("the point", first)?, column::stored("the point", last)?];
    Ok(next(before, "gaps", |hash| ends.iter().for_each(|end| hash.integer(*end))))
}

/// A look along a chain, from its start.
#[derive(Debug)]
pub(super) struct Walk {
    gaps: Vec<Gap>,
    /// What the next row is joined to; `None` behind a damaged one.
    before: Option<Link>,
    next: u64,
}

/// How a chain shows that rows are missing or were moved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// These are not there, and have not been pruned.
    Missing { first: u64, last: u64 },
    /// This one is there, and is not what followed the one before it.
    Moved(u64),
}

impl Walk {
    pub(super) fn new(execution: ExecutionId, gaps: Vec<Gap>) -> Self {
        Self { gaps, before: Some(start(execution)), next: 1 }
    }

    /// Looks at the next row; `joined` gives its link from that of the one before. `None` stands for a row that is
    /// damaged, which is reported elsewhere.
    pub(super) fn step(
        &mut self,
        number: u64,
        found: Option<Link>,
        joined: impl FnOnce(&Link) -> Link,
    ) -> Option<Break> {
        let missing = (number > self.next).then(|| self.skip(number - 1)).flatten();
        let expected = self.before.as_ref().map(joined);
        self.before = found;
        self.next = self.next.max(number + 1);
        let is_moved = expected.is_some() && found.is_some() && expected != found;
        missing.or_else(|| is_moved.then_some(Break::Moved(number)))
    }

    /// Looks at the end: the number and the link that the last row is said to have.
    pub(super) fn end(mut self, last: u64, link: &Link) -> Option<Break> {
        if self.next <= last {
            return self.skip(last).or(Some(Break::Moved(last)));
        }
        let is_moved = self.next != last + 1 || self.before.is_some_and(|before| before != *link);
        is_moved.then_some(Break::Moved(last))
    }

    fn skip(&mut self, last: u64) -> Option<Break> {
        let first = self.next;
        let gap = self.gaps.iter().find(|gap| (gap.first, gap.last) == (first, last));
        self.before = gap.map(|gap| gap.link);
        self.next = last + 1;
        gap.is_none().then_some(Break::Missing { first, last })
    }
}

impl Break {
    /// Says what is wrong with an execution's history.
    pub(super) fn of_points(&self, id: ExecutionId) -> String {
        match self {
            Self::Missing { first, last } if first == last => {
                format!("checkpoint @{first} of execution {id} is missing, and was not pruned")
            }
            Self::Missing { first, last } => {
                format!(
                    "checkpoints @{first} to @{last} of execution {id} are missing, and were not all pruned"
                )
            }
            Self::Moved(seq) => {
                format!(
                    "checkpoint @{seq} of execution {id} is not the one that followed the point before it"
                )
            }
        }
    }

    /// Says what is wrong with an execution's operation log. What is missing at its end has a `first` past its `last`.
    pub(super) fn of_operations(&self, id: ExecutionId) -> String {
        match self {
            Self::Missing { first, last } if first > last => {
                format!("operations after {last} of execution {id} are missing")
            }
            Self::Missing { first, last } if first == last => {
                format!("operation {first} of execution {id} is missing")
            }
            Self::Missing { first, last } => {
                format!("operations {first} to {last} of execution {id} are missing")
            }
            Self::Moved(number) => {
                format!("operation {number} of execution {id} is not the one that followed the one before it")
            }
        }
    }
}
