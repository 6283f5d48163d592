//! The points in the order in which they came.

use super::{Kept, MemoryStore};
use crate::checkpoint::CheckpointId;
use crate::execution::ExecutionId;
use crate::store::feed::StoreKind;
use crate::store::{Feed, FeedPage, FeedPoint, Position, Seq, Since, StoreError};

impl MemoryStore {
    pub(super) fn page(&self, page: FeedPage) -> Result<Feed, StoreError> {
        let kept = self.kept();
        let after = match page.since {
            Since::Start => Position::behind(StoreKind::Memory, 0),
            Since::Now => {
                return Ok(Feed::new(Vec::new(), Position::behind(StoreKind::Memory, kept.places)));
            }
            Since::After(after) => {
                kept.check_position(after)?;
                after
            }
        };
        let newer = kept.feed.range(after.place + 1..).map(|(place, point)| (*place, *point));
        let wanted = newer.filter(|(_, (id, _))| page.execution.is_none_or(|wanted| wanted == *id));
        let points =
            wanted.filter_map(|(place, (id, seq))| kept.feed_point(place, id, seq)).take(page.most());
        Ok(Feed::new(points.collect(), after))
    }
}

impl Kept {
    /// Makes a point known by its id and in the feed. Returns its place there.
    pub(super) fn publish(&mut self, checkpoint: CheckpointId, id: ExecutionId, seq: Seq) -> u64 {
        self.by_checkpoint.insert(checkpoint, (id, seq));
        self.places += 1;
        self.feed.insert(self.places, (id, seq));
        self.places
    }

    /// Forgets a point.
    pub(super) fn withdraw(&mut self, checkpoint: CheckpointId, place: u64) {
        self.by_checkpoint.remove(&checkpoint);
        self.feed.remove(&place);
    }

    fn check_position(&self, position: Position) -> Result<(), StoreError> {
        position.check(StoreKind::Memory, self.places)?;
        let Some((id, seq)) = position.point else { return Ok(()) };
        let own = self.executions.get(&id).and_then(|execution| execution.points.get(&seq));
        position.check_point(own.map(|point| point.place), self.feed.contains_key(&position.place))
    }

    fn feed_point(&self, place: u64, id: ExecutionId, seq: Seq) -> Option<FeedPoint> {
        let execution = self.executions.get(&id)?;
        let record = execution.points.get(&seq)?.record.clone();
        let position = Position { kind: StoreKind::Memory, place, minor: 0, point: Some((id, seq)) };
        Some(FeedPoint { position, name: execution.record.name.clone(), record })
    }
}
