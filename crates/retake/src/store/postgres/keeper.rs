//! What no save must wait for: keyframes, which keep the way to every state short.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::Shared;
use super::aside::apart;
use super::chain::{self, Reader, Resolved};
use super::known::Reach;
use super::row::{self, Checksum};
use crate::execution::ExecutionId;
use crate::store::body::{self, Body};
use crate::store::load::{ADDED_MIN, FLOOR_MIN, length};
use crate::store::{Image, StoreError};

/// Keyframes that are made at the same time. One that finds no room is made after a later commit.
const FRAMES_MAX: usize = 2;

/// A keyframe is worth its bytes where it spares as much as this part of the state. The server follows the links by
/// itself, so that a state which only grew is read well from its deltas, and keyframes of it would double its room.
pub(super) const SPARED_MIN: i64 = 4;

/// Keeps a state whole as long as its delta is there.
const INSERT: &str = "
INSERT INTO keyframes (delta, size, body, checksum)
SELECT d.key, $2::bigint, $3::bytea, $4::bytea FROM deltas d WHERE d.key = $1 FOR KEY SHARE OF d
ON CONFLICT (delta) DO NOTHING";

/// The executions of which a keyframe is being made.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    making: Mutex<HashSet<ExecutionId>>,
}

#[cfg(test)]
impl Keeper {
    /// Makes no keyframe by itself any more.
    pub(super) fn rest(&self) {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.extend((0..FRAMES_MAX).map(|place| ExecutionId::from_u128(place as u128)));
    }
}

/// An execution of which a keyframe is being made, until this is dropped.
struct Making {
    shared: Arc<Shared>,
    id: ExecutionId,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.shared.keeper.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Shared {
    /// Makes a keyframe of an execution's head, beside whatever goes on.
    pub(super) fn keep(self: &Arc<Self>, id: ExecutionId, delta: i64) {
        {
            let mut making = self.keeper.making.lock().unwrap_or_else(PoisonError::into_inner);
            if making.len() >= FRAMES_MAX || !making.insert(id) {
                return;
            }
        }
        let making = Making { shared: Arc::clone(self), id };
        tokio::spawn(async move {
            // Without it, a state costs more to read: another is due with the next commit.
            if let Err(error) = making.shared.frame(id, delta).await {
                tracing::debug!(execution = %id, %error, "no keyframe was made");
            }
        });
    }

    pub(super) async fn frame(&self, id: ExecutionId, delta: i64) -> Result<(), StoreError> {
        let Resolved { image, read, weight, floor, framed } =
            chain::resolved(&mut Reader::Db(&self.db), delta).await?;
        if weight <= floor {
            // Somebody else made one, or put deltas together.
            self.cache.weigh(id, |reach| {
                *reach = Reach { weight: reach.weight.min(weight), floor: reach.floor.max(floor) };
            });
            return Ok(());
        }
        let framing = apart(self.db.location(), move || Ok(Framing::new(delta, &image, read, framed)));
        let Framing { size, frame } = framing.await?;
        let Some((body, checksum)) = frame else {
            let floor = weight.saturating_add(FLOOR_MIN.max(size / ADDED_MIN));
            self.cache.weigh(id, |reach| reach.floor = floor);
            return Ok(());
        };
        self.db.execute("keeping a state", INSERT, &[&delta, &size, &body.bytes, &&checksum[..]]).await?;
        self.cache.weigh(id, |reach| {
            // Where somebody went back meanwhile, what is left to read is less than what this spares.
            let left = reach.weight.saturating_sub(weight).max(0);
            *reach = Reach { weight: left, floor: size.max(FLOOR_MIN) };
        });
        Ok(())
    }
}

/// What a keyframe of a state would be.
struct Framing {
    /// How many bytes the state has.
    size: i64,
    /// What it would hold and its checksum, if it is worth one.
    frame: Option<(Body, Checksum)>,
}

impl Framing {
    fn new(delta: i64, image: &Image, read: i64, framed: Option<i64>) -> Self {
        let raw = image.to_delta().encode();
        let size = length(&raw);
        let spared = read.saturating_add(framed.unwrap_or(0)).saturating_sub(size);
        let body = match spared < size / SPARED_MIN {
            true => None,
            // A state that is larger than one row may be is read from its deltas.
            false => body::pack(raw, Some(body::FAST)).ok(),
        };
        let sealed = |body: Body| {
            let checksum = row::keyframe_checksum(delta, size, &body.bytes);
            (body, checksum)
        };
        Self { size, frame: body.map(sealed) }
    }
}
