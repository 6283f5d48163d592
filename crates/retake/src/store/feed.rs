//! The points of a store in the order in which they became durable, for whoever follows along.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::{CheckpointRecord, Seq, StoreError};
use crate::execution::ExecutionId;

/// Most points that one page of a feed holds, however many are asked for.
pub const FEED_PAGE_MAX: usize = 1_000;

/// A page of a feed that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedPage {
    /// Where it begins.
    pub since: Since,
    /// Only points of this execution; `None` for those of all.
    pub execution: Option<ExecutionId>,
    /// At most so many points: at least 1, and no more than [`FEED_PAGE_MAX`].
    pub limit: usize,
}

/// Where to begin in a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// At the oldest point there is.
    Start,
    /// Behind the newest point there is. The page is empty, and says where that is.
    Now,
    /// Behind this position.
    After(Position),
}

/// A page of a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Feed {
    /// The points, in the order in which they became durable.
    pub points: Vec<FeedPoint>,
    /// Behind the last of them; where there are none, where to look again.
    pub next: Position,
}

/// One point of a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedPoint {
    /// Where it stands.
    pub position: Position,
    /// The name of its execution.
    pub name: String,
    /// What the store knows of it.
    pub record: CheckpointRecord,
}

/// A place in the feed of one store, which can be written down and gone on from, by any process and as long as the store
/// lives.
///
/// It means nothing in another store, nor in the one that a repair put in the place of a damaged one; a store refuses it
/// where it can tell: where the place is still to come, or another point stands in it. It cannot tell where no point
/// stands in that place any more.
///
/// ```
/// use retake::store::Position;
///
/// let position: Position = "s1a.2.0198c5a27bd07c3e8f00112233445566.c".parse().unwrap();
/// assert_eq!(position.to_string(), "s1a.2.0198c5a27bd07c3e8f00112233445566.c");
/// assert!("yesterday".parse::<Position>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    pub(crate) kind: StoreKind,
    /// The place, by the store's own count.
    pub(crate) place: u64,
    /// Tells points in one place apart.
    pub(crate) minor: u64,
    /// The point that stands there. `None`: behind all that do.
    pub(crate) point: Option<(ExecutionId, Seq)>,
}

/// The kinds of stores, whose counts have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StoreKind {
    Memory,
    Postgres,
    Sqlite,
}

impl StoreKind {
    const ALL: [Self; 3] = [Self::Memory, Self::Postgres, Self::Sqlite];

    fn letter(self) -> char {
        match self {
            Self::Memory => 'm',
            Self::Postgres => 'p',
            Self::Sqlite => 's',
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "a store in memory",
            Self::Postgres => "a PostgreSQL store",
            Self::Sqlite => "a SQLite store",
        }
    }
}

impl Position {
    /// Returns the place behind all that stands in `place`.
    pub(super) fn behind(kind: StoreKind, place: u64) -> Self {
        Self { kind, place, minor: 0, point: None }
    }

    /// Returns why this is none of a store, as the error that says so.
    pub(super) fn refused(self, why: impl Into<String>) -> StoreError {
        StoreError::ForeignPosition { position: self, why: why.into() }
    }

    /// Refuses a position of another kind of store, and one that lies behind the newest place.
    pub(super) fn check(self, kind: StoreKind, newest: u64) -> Result<(), StoreError> {
        if self.kind != kind {
            return Err(self.refused(format!("it is one of {}", self.kind.name())));
        }
        if self.place > newest {
            return Err(self.refused("it lies behind the newest point"));
        }
        Ok(())
    }

    /// Refuses a position in whose place another point stands than its own.
    ///
    /// `own` is the place of its point, if that is there; `is_taken` tells whether any point stands in the place.
    pub(super) fn check_point(self, own: Option<u64>, is_taken: bool) -> Result<(), StoreError> {
        match own {
            Some(own) if own == self.place => Ok(()),
            // A point that comes back, as an execution that was deleted and imported does, comes back later.
            Some(own) if own < self.place => Err(self.refused("the point that it names stands elsewhere")),
            Some(_) | None if is_taken => Err(self.refused("another point stands there")),
            Some(_) | None => Ok(()),
        }
    }
}

impl FeedPage {
    /// Returns the most points that the page may have.
    pub(super) fn most(&self) -> usize {
        self.limit.clamp(1, FEED_PAGE_MAX)
    }
}

impl Feed {
    /// Returns a page that ends with its last point, or at `next` where it has none.
    pub(super) fn new(points: Vec<FeedPoint>, next: Position) -> Self {
        let next = points.last().map_or(next, |point| point.position);
        Self { points, next }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:x}", self.kind.letter(), self.place)?;
        match self.point {
            Some((execution, seq)) => write!(f, ".{:x}.{}.{seq:x}", self.minor, execution.simple()),
            None => Ok(()),
        }
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that no store gave as a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a position in a feed")]
pub struct PositionError(String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let position = read(text).filter(|position| position.to_string() == text);
        position.ok_or_else(|| PositionError(text.to_owned()))
    }
}

fn read(text: &str) -> Option<Position> {
    let mut parts = text.split('.');
    let place = parts.next()?;
    let kind = StoreKind::ALL.into_iter().find(|kind| place.starts_with(kind.letter()))?;
    let number =
        |digits: &str| u64::from_str_radix(digits, 16).ok().filter(|number| i64::try_from(*number).is_ok());
    let place = number(place.get(1..)?)?;
    match [parts.next(), parts.next(), parts.next(), parts.next()] {
        [None, ..] => Some(Position::behind(kind, place)),
        [Some(minor), Some(execution), Some(seq), None] => {
            let point = (ExecutionId::try_parse(execution).ok()?, number(seq)?);
            Some(Position { kind, place, minor: number(minor)?, point: Some(point) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_and_nothing_else_is() {
        for kind in StoreKind::ALL {
            let point = Some((Uuid::from_u128(u128::MAX / 3), 12));
            for position in [
                Position::behind(kind, 0),
                Position { kind, place: i64::MAX.unsigned_abs(), minor: 7, point },
            ] {
                assert_eq!(position.to_string().parse(), Ok(position));
            }
        }
        let point = "0198c5a27bd07c3e8f00112233445566";
        for text in [
            "",
            "s",
            "x1",
            "S1",
            "s+1",
            "s01",
            "s8000000000000000",
            "s1.",
            "s1.2",
            &format!("s1.2.{point}"),
            &format!("s1.2.{point}.3.4"),
            &format!("s1.2.{point}.A"),
            &format!("s1.2.{}.3", Uuid::nil()),
            "ñ1",
        ] {
            assert_eq!(text.parse::<Position>(), Err(PositionError(text.to_owned())));
        }
    }
}
