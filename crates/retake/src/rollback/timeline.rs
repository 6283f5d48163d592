//! The snapshots that are kept, and the line through them that the present came by.
//!
//! ```text
//! a ── b ── c*            three snapshots; the position `*` is where the current time line ends
//!
//! a ── b*── c             gone back to b: one step back is now b, two are a; c is abandoned but kept
//!
//! a ── b ── c             a new snapshot continues from the position: one step is d, two are b, three a
//!       └── d*
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::iter;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ExecutionSnapshot;

/// Where a snapshot stands in the order in which all were kept.
pub(super) type Sequence = u64;

/// Snapshots in the order in which they were kept, each knowing the one it continued from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub(super) struct Timeline {
    /// Oldest first, so sequences only grow.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Kept>))]
    kept: VecDeque<Kept>,
    position: Option<Sequence>,
    next: Sequence,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
struct Kept {
    sequence: Sequence,
    /// Always an older one. One that fell out takes everything before it along, for it was the oldest.
    parent: Option<Sequence>,
    snapshot: ExecutionSnapshot,
}

/// What each removed snapshot had continued from: the nearest one still kept.
#[derive(Debug, Default)]
pub(super) struct Removed(BTreeMap<Sequence, Option<Sequence>>);

impl Removed {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the position, or where it now is if its snapshot was removed.
    pub(super) fn moved(&self, position: Option<Sequence>) -> Option<Sequence> {
        let position = position?;
        self.0.get(&position).copied().unwrap_or(Some(position))
    }
}

impl Timeline {
    /// Continues the current time line with a snapshot; the oldest of all fall out past `max`.
    pub(super) fn push(&mut self, snapshot: ExecutionSnapshot, max: usize) {
        let sequence = self.next;
        self.next = sequence.saturating_add(1);
        self.kept.push_back(Kept { sequence, parent: self.position, snapshot });
        self.position = Some(sequence);
        let surplus = self.kept.len().saturating_sub(max);
        self.kept.drain(..surplus);
    }

    pub(super) fn position(&self) -> Option<Sequence> {
        self.position
    }

    pub(super) fn set_position(&mut self, position: Option<Sequence>) {
        self.position = position;
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Returns all snapshots, the one kept last first.
    pub(super) fn newest_first(&self) -> impl DoubleEndedIterator<Item = (Sequence, &ExecutionSnapshot)> {
        self.kept.iter().rev().map(|kept| (kept.sequence, &kept.snapshot))
    }

    /// Returns the snapshots of the current time line, newest first.
    pub(super) fn current(&self) -> impl Iterator<Item = (Sequence, &ExecutionSnapshot)> {
        let older = |kept: &&Kept| kept.parent.filter(|parent| *parent < kept.sequence);
        iter::successors(self.at(self.position), move |kept| self.at(older(kept)))
            .map(|kept| (kept.sequence, &kept.snapshot))
    }

    /// Returns a snapshot by its id. Costs the number of snapshots.
    pub(super) fn find(&self, id: Uuid) -> Option<(Sequence, &ExecutionSnapshot)> {
        self.newest_first().find(|(_, snapshot)| snapshot.id == id)
    }

    /// Removes every snapshot that is not to be kept. What continued from it continues from what it continued from.
    pub(super) fn retain(&mut self, keep: impl Fn(&ExecutionSnapshot) -> bool) -> Removed {
        let mut removed = Removed::default();
        self.kept.retain_mut(|kept| {
            kept.parent = removed.moved(kept.parent);
            let stays = keep(&kept.snapshot);
            if !stays {
                removed.0.insert(kept.sequence, kept.parent);
            }
            stays
        });
        self.position = removed.moved(self.position);
        removed
    }

    fn at(&self, position: Option<Sequence>) -> Option<&Kept> {
        let index = self.kept.binary_search_by_key(&position?, |kept| kept.sequence).ok()?;
        self.kept.get(index)
    }
}
