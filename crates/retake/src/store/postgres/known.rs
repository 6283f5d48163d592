//! What a store last knew of executions, so that the usual commit needs no read.
//!
//! It may be out of date at any time: every commit is decided by the server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::execution::Log;
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::Seq;
use crate::store::link::Link;

/// How many executions a generation may have. There are two.
const GENERATION_MAX: usize = 2_048;

/// An execution as its next commit has to know it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) key: i64,
    pub(super) head: Seq,
    /// The delta that the head stands on.
    pub(super) delta: i64,
    /// Over what never changes in the execution's row.
    pub(super) fixed: Link,
    /// That of the head.
    pub(super) link: Link,
    pub(super) workflow: WorkflowId,
    pub(super) workflow_name: Arc<str>,
    pub(super) log: Log,
    pub(super) reach: Reach,
}

/// What lies between a delta and its nearest keyframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// Bytes to read.
    pub(super) weight: i64,
    /// How many there may be before another keyframe is due.
    pub(super) floor: i64,
}

/// The executions that were advanced last.
#[derive(Debug, Default)]
pub(super) struct Cache {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<ExecutionId, Known>,
    old: HashMap<ExecutionId, Known>,
}

impl Cache {
    pub(super) fn get(&self, id: ExecutionId) -> Option<Known> {
        let mut generations = self.lock();
        if let Some(known) = generations.young.get(&id) {
            return Some(known.clone());
        }
        let known = generations.old.remove(&id)?;
        generations.put(id, known.clone());
        Some(known)
    }

    /// Keeps what is known, unless more is.
    pub(super) fn put(&self, id: ExecutionId, known: Known) {
        self.lock().keep(id, known);
    }

    /// Keeps what is known after a commit that went on from the head that was known before. A keyframe that was made while
    /// it was on its way counts as made. Returns what is to be read for the new head.
    pub(super) fn advance(&self, id: ExecutionId, before: &Known, mut after: Known) -> Reach {
        let mut generations = self.lock();
        let known = generations.young.get(&id).or_else(|| generations.old.get(&id));
        if let Some(known) = known
            && (known.key, known.head, known.delta) == (before.key, before.head, before.delta)
        {
            let added = after.reach.weight.saturating_sub(before.reach.weight);
            after.reach =
                Reach { weight: known.reach.weight.saturating_add(added), floor: known.reach.floor };
        }
        let reach = after.reach;
        generations.keep(id, after);
        reach
    }

    pub(super) fn forget(&self, id: ExecutionId) {
        let mut generations = self.lock();
        generations.young.remove(&id);
        generations.old.remove(&id);
    }

    /// Changes what is to be read for an execution's head, if it is known.
    pub(super) fn weigh(&self, id: ExecutionId, change: impl FnOnce(&mut Reach)) {
        let mut generations = self.lock();
        let Generations { young, old } = &mut *generations;
        if let Some(known) = young.get_mut(&id).or_else(|| old.get_mut(&id)) {
            change(&mut known.reach);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn keep(&mut self, id: ExecutionId, known: Known) {
        let before = self.young.get(&id).or_else(|| self.old.get(&id));
        if before.is_none_or(|before| before.key != known.key || before.head <= known.head) {
            self.old.remove(&id);
            self.put(id, known);
        }
    }

    fn put(&mut self, id: ExecutionId, known: Known) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, known);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn known(head: Seq) -> Known {
        Known {
            key: 1,
            head,
            delta: 1,
            fixed: [0; 32],
            link: [0; 32],
            workflow: Uuid::nil(),
            workflow_name: "article".into(),
            log: Log::start(Uuid::nil()),
            reach: Reach { weight: 0, floor: 0 },
        }
    }

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let cache = Cache::default();
        for id in 0..5 * GENERATION_MAX as u128 {
            cache.put(Uuid::from_u128(id), known(1));
            assert!(cache.get(Uuid::from_u128(0)).is_some(), "{id}");
        }
        assert!(cache.get(Uuid::from_u128(1)).is_none());
        let generations = cache.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_MAX);
    }

    #[test]
    fn a_keyframe_that_is_made_while_a_commit_is_on_its_way_counts_as_made() {
        let (cache, id) = (Cache::default(), Uuid::from_u128(7));
        let before = Known { reach: Reach { weight: 900, floor: 500 }, ..known(4) };
        cache.put(id, before.clone());
        cache.weigh(id, |reach| *reach = Reach { weight: reach.weight - 900, floor: 700 });
        let after = Known { reach: Reach { weight: 910, floor: 500 }, ..known(5) };
        assert_eq!(cache.advance(id, &before, after), Reach { weight: 10, floor: 700 });
        let kept = cache.get(id).unwrap();
        assert_eq!((kept.head, kept.reach), (5, Reach { weight: 10, floor: 700 }));
    }

    #[test]
    fn what_was_known_of_another_head_says_nothing_of_the_way_to_this_one() {
        let (cache, id) = (Cache::default(), Uuid::from_u128(7));
        let (before, reach) = (known(4), Reach { weight: 910, floor: 500 });
        let after = Known { reach, ..known(5) };
        for other in [known(3), Known { key: 2, ..known(4) }, Known { delta: 2, ..known(4) }] {
            cache.forget(id);
            cache.put(id, Known { reach: Reach { weight: 1, floor: 1 }, ..other });
            assert_eq!(cache.advance(id, &before, after.clone()), reach);
        }
    }

    #[test]
    fn an_older_head_does_not_take_the_place_of_a_newer_one() {
        let (cache, id) = (Cache::default(), Uuid::from_u128(7));
        cache.put(id, known(4));
        cache.put(id, known(3));
        assert_eq!(cache.get(id).map(|known| known.head), Some(4));
        cache.forget(id);
        cache.put(id, known(3));
        assert_eq!(cache.get(id).map(|known| known.head), Some(3));
    }
}
