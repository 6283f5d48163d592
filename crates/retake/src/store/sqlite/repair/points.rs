//! The points of one execution that can be read of a damaged file, and those that cannot.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::history::delta_between;
use crate::store::{Cause, CheckpointRecord, HistoryPoint, Image, Key, Seq, context};

/// The points of an execution.
#[derive(Default)]
pub(super) struct Points {
    /// Those whose row and state are intact.
    pub(super) intact: BTreeMap<Seq, (CheckpointRecord, Image)>,
    /// Those whose row says what they recorded, but whose state is lost.
    pub(super) stateless: Vec<CheckpointRecord>,
    /// Those whose row cannot be read.
    pub(super) unknown: BTreeSet<Seq>,
}

impl Points {
    pub(super) fn is_empty(&self) -> bool {
        self.intact.is_empty() && self.stateless.is_empty() && self.unknown.is_empty()
    }

    /// Returns the newest point whose row is intact.
    pub(super) fn newest(&self) -> Seq {
        let intact = self.intact.last_key_value().map(|(seq, _)| *seq);
        intact.max(self.stateless.iter().map(|record| record.seq).max()).unwrap_or(0)
    }

    /// Forgets what would lie beyond the head: a row with a damaged number.
    pub(super) fn cut_to(&mut self, head: Seq) {
        self.intact.retain(|seq, _| *seq <= head);
        self.stateless.retain(|record| record.seq <= head);
        self.unknown.retain(|seq| *seq <= head);
    }

    /// Gives up points whose state is not what this library writes: the newest until one is, and those with a label.
    pub(super) fn decode(&mut self) {
        let mut may_be_head = true;
        let mut lost = Vec::new();
        for (seq, (record, image)) in self.intact.iter().rev() {
            if may_be_head || record.label.is_some() {
                let is_ours = image.get(&Key::Header).is_some();
                if is_ours && context(record.execution_id, image).is_err() {
                    lost.push(*seq);
                } else {
                    may_be_head = false;
                }
            }
        }
        for seq in lost {
            self.stateless.extend(self.intact.remove(&seq).map(|(record, _)| record));
        }
    }

    pub(super) fn lost(&self) -> Vec<Seq> {
        let stateless = self.stateless.iter().map(|record| record.seq);
        stateless.chain(self.unknown.iter().copied()).collect::<BTreeSet<Seq>>().into_iter().collect()
    }

    pub(super) fn nodes_lost(&self) -> Vec<String> {
        let mut nodes = BTreeSet::new();
        for record in &self.stateless {
            nodes.extend(record.nodes.iter().cloned());
            if let Cause::Started { node } | Cause::Compensate { node } = &record.cause {
                nodes.insert(node.clone());
            }
        }
        nodes.into_iter().collect()
    }

    /// Returns the intact points, each on its parent where that is intact, or on the one before it.
    pub(super) fn told(&self) -> Vec<HistoryPoint> {
        let mut before = None;
        let point = |(seq, (record, image)): (&Seq, &(CheckpointRecord, Image))| {
            let parent = record.parent.filter(|parent| parent < seq && self.intact.contains_key(parent));
            let base = parent.or(before);
            before = Some(*seq);
            let delta = match base.and_then(|base| self.intact.get(&base)) {
                Some((_, base)) => delta_between(base, image),
                None => image.to_delta(),
            };
            HistoryPoint { record: record.clone(), base, delta }
        };
        self.intact.iter().map(point).collect()
    }
}
