//! What is to be read for a state that is about to be written, so that keyframes are made with it and not after it.

use super::{Image, StoreError, body};

/// A keyframe is due when the deltas since the last one outweigh it, or this many bytes, and it spares some of them.
pub(super) const FLOOR_MIN: i64 = 32 * 1024;

/// What reading a row costs beside the bytes of its body, in bytes.
pub(super) const ROW_WEIGHT: i64 = 64;

/// A keyframe that was not worth its bytes is thought of again when as much as this part of the state has been added.
pub(super) const ADDED_MIN: i64 = 8;

/// The way from a delta down to its nearest keyframe, or to the root, before either is in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Bytes of rows behind the keyframe.
    pub(super) weight: i64,
    /// How many there may be before another keyframe is due.
    pub(super) floor: i64,
    /// The same bytes, not packed, and the root's.
    read: i64,
    /// Those of the keyframe; 0 for the root.
    framed: i64,
}

/// A keyframe to be written.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) size: i64,
    pub(super) body: Vec<u8>,
}

impl Load {
    /// Returns that of a delta that builds on nothing, by its bytes before and after they are packed.
    pub(super) fn of_root(raw: i64, packed: i64) -> Self {
        let read = raw.saturating_add(ROW_WEIGHT);
        Self { weight: 0, floor: packed.max(FLOOR_MIN), read, framed: 0 }
    }

    /// Returns that of a delta which builds on this one.
    pub(super) fn below(self, raw: i64, packed: i64) -> Self {
        Self {
            weight: self.weight.saturating_add(packed).saturating_add(ROW_WEIGHT),
            read: self.read.saturating_add(raw).saturating_add(ROW_WEIGHT),
            ..self
        }
    }

    /// Returns a keyframe where one is due and worth its bytes, and counts it: it spares as much as this part of the state.
    pub(super) fn frame(&mut self, state: &Image, spared_min: i64) -> Result<Option<Frame>, StoreError> {
        if self.weight <= self.floor {
            return Ok(None);
        }
        let raw = state.to_delta().encode();
        let size = length(&raw);
        let spared = self.read.saturating_add(self.framed).saturating_sub(size);
        if spared < size / spared_min {
            self.floor = self.weight.saturating_add(FLOOR_MIN.max(size / ADDED_MIN));
            return Ok(None);
        }
        let body = match body::pack(raw, Some(body::FAST)) {
            Ok(body) => body.bytes,
            // The state is larger than one row may be: it is read from its deltas.
            Err(StoreError::Unstorable { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        *self = Self { weight: 0, floor: size.max(FLOOR_MIN), read: 0, framed: size.max(FLOOR_MIN) };
        Ok(Some(Frame { size, body }))
    }
}

pub(super) fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}
