//! What changed from one state to the next, and states as stores see them.
//!
//! A store does not look into values. A state is an ordered map from [`Key`] to [`Entry`]; an entry is a list of pieces
//! that read as one value (several lists, or several texts, one after the other). A [`Delta`] sets, removes and appends.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};

use super::{StoreError, value};
use crate::execution::NodeId;

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// How the execution stands.
    #[serde(rename = "h")]
    Header,
    /// An input.
    #[serde(rename = "i")]
    Input(String),
    /// A variable.
    #[serde(rename = "v")]
    Variable(String),
    /// A node's result.
    #[serde(rename = "n")]
    Node(NodeId),
    /// The turn, and what the execution has cost.
    #[serde(rename = "t")]
    Tally,
    /// What a variable is before nodes write it.
    #[serde(rename = "b")]
    Base(String),
    /// A node whose result was taken back.
    #[serde(rename = "k")]
    TakenBack(NodeId),
    /// A counter-action against an effect outside, by the turn of the effect.
    #[serde(rename = "c")]
    Compensation(u64),
}

impl fmt::Display for Key {
    /// Says where the entry stands, as errors do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "the header"),
            Self::Input(name) => write!(f, "inputs.{name}"),
            Self::Variable(name) => write!(f, "vars.{name}"),
            Self::Node(id) => write!(f, "the result of node {id}"),
            Self::Tally => write!(f, "the tally"),
            Self::Base(name) => write!(f, "the base of vars.{name}"),
            Self::TakenBack(id) => write!(f, "the earlier result of node {id}"),
            Self::Compensation(turn) => write!(f, "the compensation of the effect of turn {turn}"),
        }
    }
}

/// Opaque bytes, with the codec that made them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Which codec; see [`MESSAGE_PACK`].
    pub codec: u8,
    /// The encoded value.
    pub bytes: Bytes,
}

/// The codec of this library: a `serde_json` value as MessagePack.
pub const MESSAGE_PACK: u8 = 1;

/// What happens to one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The value becomes these pieces, whatever it was.
    #[serde(rename = "s")]
    Set {
        /// The value.
        pieces: Vec<Piece>,
        /// Its items or bytes, where it can be appended to; else 0.
        len: u64,
    },
    /// The pieces are added behind those there are.
    #[serde(rename = "a")]
    Append {
        /// Length of the value before.
        start: u64,
        /// What is added.
        pieces: Vec<Piece>,
        /// Length of the value after.
        len: u64,
    },
    /// The key goes.
    #[serde(rename = "r")]
    Remove,
}

/// One key's change, and the node that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// What changed.
    pub key: Key,
    /// The node that wrote it, where a node did.
    pub writer: Option<NodeId>,
    /// How it changed.
    pub op: Op,
}

/// What changed between two states: at most one change a key, in order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    changes: Vec<KeyChange>,
}

/// One key's value in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The pieces that make the value, in order.
    pub pieces: imbl::Vector<Piece>,
    /// Items or bytes, where the value can be appended to; else 0.
    pub len: u64,
    /// The node that wrote it last.
    pub writer: Option<NodeId>,
}

/// A whole state as a store sees it. Cloning it is a pointer copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    entries: imbl::OrdMap<Key, Entry>,
}

/// One difference between two images.
#[derive(Debug)]
pub(super) enum ImageChange<'a> {
    /// The newer one has another entry, or the only one.
    Set {
        /// What it is about.
        key: &'a Key,
        /// The older entry.
        before: Option<&'a Entry>,
        /// The newer entry.
        after: &'a Entry,
    },
    /// Only the older one has an entry.
    Removed(&'a Key),
}

impl Delta {
    /// Returns a delta of these changes, put in order.
    ///
    /// # Panics
    /// Where two changes have the same key: the caller makes one change a key.
    pub fn new(mut changes: Vec<KeyChange>) -> Self {
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        assert!(changes.windows(2).all(|pair| pair[0].key != pair[1].key), "one change a key");
        Self { changes }
    }

    /// Returns the changes in order of their keys.
    pub fn changes(&self) -> &[KeyChange] {
        &self.changes
    }

    /// Tells whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns how many bytes its values take.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) fn bytes(&self) -> u64 {
        let pieces = self.changes.iter().flat_map(|change| match &change.op {
            Op::Set { pieces, .. } | Op::Append { pieces, .. } => pieces.as_slice(),
            Op::Remove => &[],
        });
        pieces.map(|piece| piece.bytes.len() as u64).sum()
    }

    /// Tells whether there is at most one change a key, in order of the keys, as there must be.
    pub(super) fn is_in_order(&self) -> bool {
        self.changes.windows(2).all(|pair| pair[0].key < pair[1].key)
    }

    /// Encodes the delta. The stores put a checksum around it.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("a delta holds nothing that MessagePack cannot")
    }

    /// Decodes what [`encode`](Self::encode) made.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] that names `record`.
    pub fn decode(record: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        value::decode_as(record, bytes)
    }

    /// Returns the one delta that does what these do, one after the other.
    ///
    /// Removals stay: what lies below them is not known here. `record` names the result in an error.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where an append does not continue what was there.
    pub fn compose<'a>(
        record: &str,
        deltas: impl IntoIterator<Item = &'a Delta>,
    ) -> Result<Self, StoreError> {
        let mut merged: BTreeMap<&Key, KeyChange> = BTreeMap::new();
        for change in deltas.into_iter().flat_map(|delta| &delta.changes) {
            match merged.get_mut(&change.key) {
                Some(before) => before.follow(record, change)?,
                None => {
                    merged.insert(&change.key, change.clone());
                }
            }
        }
        Ok(Self { changes: merged.into_values().collect() })
    }
}

impl KeyChange {
    fn follow(&mut self, record: &str, next: &KeyChange) -> Result<(), StoreError> {
        match (&mut self.op, &next.op) {
            (_, Op::Set { .. } | Op::Remove) => self.op = next.op.clone(),
            (
                Op::Set { pieces, len } | Op::Append { pieces, len, .. },
                Op::Append { start, pieces: more, len: after },
            ) if len == start => {
                pieces.extend_from_slice(more);
                *len = *after;
            }
            (Op::Set { .. } | Op::Append { .. } | Op::Remove, Op::Append { .. }) => {
                return Err(torn(record, &next.key));
            }
        }
        self.writer = next.writer;
        Ok(())
    }
}

impl Image {
    /// Returns the entries in order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    /// Returns a key's entry.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns what differs from this image to `newer`, in order of the keys.
    pub(super) fn changes_to<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = ImageChange<'a>> {
        self.entries.diff(&newer.entries).map(|item| match item {
            DiffItem::Add(key, after) => ImageChange::Set { key, before: None, after },
            DiffItem::Update { old: (_, before), new: (key, after) } => {
                ImageChange::Set { key, before: Some(before), after }
            }
            DiffItem::Remove(key, _) => ImageChange::Removed(key),
        })
    }

    /// Applies a delta. `record` names the delta in an error, which leaves the image half changed: throw it away.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where an append does not continue what is there.
    pub fn apply(&mut self, record: &str, delta: &Delta) -> Result<(), StoreError> {
        for KeyChange { key, writer, op } in &delta.changes {
            match op {
                Op::Set { pieces, len } => {
                    let pieces = pieces.iter().cloned().collect();
                    self.entries.insert(key.clone(), Entry { pieces, len: *len, writer: *writer });
                }
                Op::Append { start, pieces, len } => {
                    let entry = self
                        .entries
                        .get_mut(key)
                        .filter(|e| e.len == *start)
                        .ok_or_else(|| torn(record, key))?;
                    entry.pieces.extend(pieces.iter().cloned());
                    entry.len = *len;
                    entry.writer = *writer;
                }
                // A composed delta may remove what one of its parts had set, and nothing below has.
                Op::Remove => {
                    self.entries.remove(key);
                }
            }
        }
        Ok(())
    }

    /// Returns the delta that makes this state out of nothing.
    pub fn to_delta(&self) -> Delta {
        let change = |(key, entry): (&Key, &Entry)| KeyChange {
            key: key.clone(),
            writer: entry.writer,
            op: Op::Set { pieces: entry.pieces.iter().cloned().collect(), len: entry.len },
        };
        Delta { changes: self.entries.iter().map(change).collect() }
    }
}

fn torn(record: &str, key: &Key) -> StoreError {
    let why = format!("its change of {key} does not continue the state before it");
    StoreError::Corrupt { record: record.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str) -> Piece {
        Piece { codec: MESSAGE_PACK, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn change(name: &str, op: Op) -> KeyChange {
        KeyChange { key: Key::Variable(name.into()), writer: None, op }
    }

    fn set(text: &str) -> Op {
        Op::Set { pieces: vec![piece(text)], len: text.len() as u64 }
    }

    fn append(start: u64, text: &str) -> Op {
        Op::Append { start, pieces: vec![piece(text)], len: start + text.len() as u64 }
    }

    #[test]
    fn one_composed_delta_does_what_its_parts_do_one_after_the_other() {
        let deltas = [
            Delta::new(vec![change("a", set("x")), change("b", set("y"))]),
            Delta::new(vec![change("a", append(1, "z")), change("b", Op::Remove)]),
            Delta::new(vec![change("a", append(2, "!")), change("c", set("new"))]),
            Delta::new(vec![change("b", set("again"))]),
        ];
        let mut step_by_step = Image::default();
        for delta in &deltas {
            step_by_step.apply("a test", delta).unwrap();
        }
        let mut at_once = Image::default();
        at_once.apply("a test", &Delta::compose("a test", &deltas).unwrap()).unwrap();
        assert_eq!(at_once, step_by_step);
        let mut from_image = Image::default();
        from_image.apply("a test", &step_by_step.to_delta()).unwrap();
        assert_eq!(from_image, step_by_step);
    }

    #[test]
    fn what_is_set_and_removed_between_two_points_leaves_no_trace() {
        let deltas = [Delta::new(vec![change("a", set("x"))]), Delta::new(vec![change("a", Op::Remove)])];
        let mut image = Image::default();
        image.apply("a test", &Delta::compose("a test", &deltas).unwrap()).unwrap();
        assert_eq!(image, Image::default());
    }

    #[test]
    fn a_delta_survives_its_encoding() {
        let delta = Delta::new(vec![
            change("a", append(3, "tail")),
            change("b", Op::Remove),
            KeyChange {
                key: Key::Node(NodeId::from_u128(9)),
                writer: Some(NodeId::from_u128(9)),
                op: set("r"),
            },
            KeyChange { key: Key::Header, writer: None, op: set("h") },
        ]);
        assert_eq!(Delta::decode("a test", &delta.encode()).unwrap(), delta);
    }

    #[test]
    fn an_append_that_does_not_continue_what_is_there_is_found() {
        let mut image = Image::default();
        image.apply("delta 1", &Delta::new(vec![change("a", set("x"))])).unwrap();
        let error = image.apply("delta 2", &Delta::new(vec![change("a", append(5, "z"))])).unwrap_err();
        assert!(error.to_string().starts_with("delta 2 is damaged"), "{error}");
    }
}
