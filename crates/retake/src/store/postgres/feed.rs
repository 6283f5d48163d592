//! The points in the order of the transactions that made them durable.
//!
//! A transaction has its number before it ends, and others that began later may end before it. So a point is shown when
//! every transaction with a lower number has ended, on which the server keeps an eye anyway:
//!
//! ```text
//! transactions   7 done   8 done   9 runs   10 done   11 runs
//! shown          ●        ●        ┆        ○ not yet: 9 may still make a point durable, which stands before
//! ```
//!
//! What holds points back is any transaction of the same server that has written something and goes on, of another
//! database as well: whoever watches sees nothing new meanwhile, and then all of it. Nothing is left out.

use tokio_postgres::Row;
use uuid::Uuid;

use super::Shared;
use super::db::Db;
use super::execution::{EXECUTION_COLUMNS, ExecutionRow, execution_columns};
use super::row::{self, Point, checkpoint_columns, damaged};
use crate::store::column::Damage;
use crate::store::feed::StoreKind;
use crate::store::{Feed, FeedPage, FeedPoint, Position, Since, StoreError};

const ACTION: &str = "reading the feed";

/// Looks where the feed ends, which transaction made the newest point, where the point of a position is, whose the key
/// in it is, and which key an execution has.
const LOOK: &str = "\
    SELECT pg_snapshot_xmin(s.now)::text::bigint, pg_snapshot_xmax(s.now)::text::bigint, \
    (SELECT c.xid::text::bigint FROM checkpoints c ORDER BY c.xid DESC LIMIT 1), \
    (SELECT c.xid::text::bigint FROM checkpoints c JOIN executions e ON e.key = c.execution \
     WHERE e.id = $1::uuid AND c.seq = $2::bigint), \
    (SELECT e.id FROM executions e WHERE e.key = $3::bigint), \
    (SELECT e.key FROM executions e WHERE e.id = $4::uuid) \
    FROM (SELECT pg_current_snapshot() AS now) s";

/// Selects points behind a place, with their executions.
macro_rules! points {
    ($rest:literal) => {
        concat!(
            "SELECT ",
            execution_columns!(),
            ", ",
            checkpoint_columns!(),
            ", c.xid::text::bigint FROM checkpoints c LEFT JOIN executions e ON e.key = c.execution \
             WHERE c.xid < pg_snapshot_xmin(pg_current_snapshot()) AND ",
            $rest
        )
    };
}

const ALL: &str = points!(
    "(c.xid, c.execution, c.seq) > ($1::bigint::text::xid8, $2::bigint, $3::bigint) \
     ORDER BY c.xid, c.execution, c.seq LIMIT $4::bigint"
);

/// Those of one execution behind one of its own points.
const OF_ONE: &str =
    points!("c.execution = $1::bigint AND c.seq > $2::bigint ORDER BY c.seq LIMIT $3::bigint");

/// Those of one execution behind any place. Whoever waits for the first one asks often: then it is the head's row alone.
const OF_ONE_BEHIND: &str = points!(
    "c.execution = $1::bigint AND c.xid > $2::bigint::text::xid8 \
     AND (SELECT h.xid FROM checkpoints h WHERE h.execution = $1::bigint ORDER BY h.seq DESC LIMIT 1) \
     > $2::bigint::text::xid8 ORDER BY c.seq LIMIT $3::bigint"
);

/// Gives all points a place before those that are to come, where some have numbers of another server's transactions, as a
/// dump of that brings them: numbers that this one has not given yet. Positions of the other server then are none of this.
const RENUMBER: &str = "UPDATE checkpoints SET xid = '3'::xid8 WHERE xid > '3'::xid8 AND EXISTS \
    (SELECT FROM checkpoints a WHERE a.xid >= pg_snapshot_xmax(pg_current_snapshot()))";

/// What a look found.
struct Look {
    /// No transaction below this one runs any more.
    ended: u64,
    /// No transaction from this one on has begun.
    begun: u64,
    /// Which one made the newest point.
    newest: Option<u64>,
    /// Which one made the point of the position.
    own: Option<u64>,
    /// Whose the key in the position is.
    owner: Option<Uuid>,
    /// The key of the execution that is asked for.
    wanted: Option<i64>,
}

pub(super) async fn feed(shared: &Shared, page: FeedPage) -> Result<Feed, StoreError> {
    let db = &shared.db;
    let mut look = look(db, page).await?;
    if look.newest.is_some_and(|newest| newest >= look.begun) {
        db.execute("putting restored points in order", RENUMBER, &[]).await?;
        look = self::look(db, page).await?;
    }
    let after = match page.since {
        Since::Start => Position::behind(StoreKind::Postgres, 0),
        Since::Now => {
            let now = Position::behind(StoreKind::Postgres, look.ended.saturating_sub(1));
            return Ok(Feed::new(Vec::new(), now));
        }
        Since::After(after) => {
            look.check(after)?;
            after
        }
    };
    let most = i64::try_from(page.most()).unwrap_or(i64::MAX);
    let (place, minor) = (bound(after.place), bound(after.minor));
    let rows = match (page.execution, look.wanted) {
        (None, _) => {
            let (minor, seq) = after.point.map_or((i64::MAX, i64::MAX), |(_, seq)| (minor, bound(seq)));
            db.query(ACTION, ALL, &[&place, &minor, &seq, &most]).await?
        }
        (Some(_), None) => Vec::new(),
        (Some(id), Some(key)) => match after.point {
            Some((of, seq)) if of == id && look.own == Some(after.place) => {
                db.query(ACTION, OF_ONE, &[&key, &bound(seq), &most]).await?
            }
            Some(_) | None => db.query(ACTION, OF_ONE_BEHIND, &[&key, &place, &most]).await?,
        },
    };
    let points = rows.iter().map(point).collect::<Result<Vec<_>, _>>()?;
    Ok(Feed::new(points, after))
}

async fn look(db: &Db, page: FeedPage) -> Result<Look, StoreError> {
    let (id, seq, minor) = match page.since {
        Since::After(Position { point: Some((id, seq)), minor, .. }) => {
            (Some(id), Some(bound(seq)), Some(bound(minor)))
        }
        Since::Start | Since::Now | Since::After(_) => (None, None, None),
    };
    let row = db.optional(ACTION, LOOK, &[&id, &seq, &minor, &page.execution]).await?;
    let row = row.ok_or_else(|| unreadable("there is no row".to_owned()))?;
    let read = || -> Result<Look, Damage> {
        let number = |column| -> Result<Option<u64>, Damage> {
            let number: Option<i64> = row::get(&row, column)?;
            Ok(number.and_then(|number| u64::try_from(number).ok()))
        };
        Ok(Look {
            ended: number(0)?.unwrap_or(0),
            begun: number(1)?.unwrap_or(0),
            newest: number(2)?,
            own: number(3)?,
            owner: row::get(&row, 4)?,
            wanted: row::get(&row, 5)?,
        })
    };
    read().map_err(unreadable)
}

impl Look {
    /// Refuses a position that is not one of this store.
    fn check(&self, position: Position) -> Result<(), StoreError> {
        position.check(StoreKind::Postgres, self.begun.saturating_sub(1))?;
        let Some((id, _)) = position.point else { return Ok(()) };
        // Several points may be of one transaction. A key is given once.
        position.check_point(self.own, self.owner.is_some_and(|owner| owner != id))
    }
}

fn point(row: &Row) -> Result<FeedPoint, StoreError> {
    if row::get::<Option<i64>>(row, 0).is_ok_and(|key| key.is_none()) {
        return Err(unreadable("the execution of a point is missing".to_owned()));
    }
    let execution = ExecutionRow::read(row)?;
    let id = execution.record.id;
    let record = Point::read(row, EXECUTION_COLUMNS, id)?.record(&execution)?;
    let place = row::get::<i64>(row, EXECUTION_COLUMNS + row::CHECKPOINT_COLUMNS).map_err(unreadable)?;
    let position = Position {
        kind: StoreKind::Postgres,
        place: u64::try_from(place).unwrap_or(0),
        minor: u64::try_from(execution.key).unwrap_or(0),
        point: Some((id, record.seq)),
    };
    Ok(FeedPoint { position, name: execution.record.name, record })
}

/// Returns a number of a position as the server has it; a position has none that is larger.
fn bound(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unreadable(why: String) -> StoreError {
    damaged("the feed".to_owned(), why)
}

#[cfg(test)]
mod tests {
    use tokio_postgres::NoTls;

    use super::super::PostgresStore;
    use super::super::testing::{Schema, server};
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::execution::{ExecutionId, ExecutionState};
    use crate::store::{Cause, Delta, NewCheckpoint, NewExecution, Seq, Store};

    /// How often points are looked for that other tests on the server may hold back.
    const LOOKS_MAX: usize = 5_000;

    async fn begin(store: &PostgresStore, name: &str) -> ExecutionId {
        let clock = SystemClock::default();
        let id = clock.new_id();
        let new = NewExecution {
            id,
            name: name.to_owned(),
            workflow_id: Uuid::from_u128(7),
            workflow_name: "article".to_owned(),
            definition: Vec::new(),
            origin: None,
        };
        let first = NewCheckpoint {
            delta: Delta::default(),
            ..NewCheckpoint::new(clock.new_id(), clock.now(), ExecutionState::Running, Cause::Start)
        };
        store.create(new, first).await.unwrap();
        id
    }

    async fn page(store: &PostgresStore, since: Since) -> Feed {
        store.feed(FeedPage { since, execution: None, limit: 10 }).await.unwrap()
    }

    /// Waits until so many points are there.
    async fn points(
        store: &PostgresStore,
        since: Since,
        count: usize,
    ) -> (Vec<(ExecutionId, Seq)>, Position) {
        for _ in 0..LOOKS_MAX {
            let Feed { points, next } = page(store, since).await;
            if points.len() >= count {
                let points = points.iter().map(|point| (point.record.execution_id, point.record.seq));
                return (points.collect(), next);
            }
        }
        panic!("{count} points are not there");
    }

    #[tokio::test]
    async fn a_point_waits_for_transactions_that_began_before_it_and_none_is_left_out() {
        let schema = Schema::new();
        let store = PostgresStore::connect(&schema.url()).await.unwrap();
        let first = begin(&store, "first").await;
        let (_, position) = points(&store, Since::Start, 1).await;

        // Somebody else's transaction, which has written something.
        let (mut client, connection) = tokio_postgres::connect(&server(), NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let long = client.transaction().await.unwrap();
        long.execute("SELECT pg_current_xact_id()", &[]).await.unwrap();
        let second = begin(&store, "second").await;
        let behind = page(&store, Since::After(position)).await;
        assert_eq!((behind.points.len(), behind.next), (0, position));
        let now = page(&store, Since::Now).await.next;

        long.rollback().await.unwrap();
        let third = begin(&store, "third").await;
        let (found, last) = points(&store, Since::After(position), 2).await;
        assert_eq!(found, [(second, 1), (third, 1)]);
        // What was held back then is new then.
        assert_eq!(points(&store, Since::After(now), 2).await.0, [(second, 1), (third, 1)]);
        assert_eq!(points(&store, Since::Start, 3).await.0, [(first, 1), (second, 1), (third, 1)]);
        assert_eq!(page(&store, Since::After(last)).await.points, []);
        drop(client);
        connection.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn points_that_a_dump_brought_from_another_server_stand_before_all_that_are_new() {
        let schema = Schema::new();
        let store = PostgresStore::connect(&schema.url()).await.unwrap();
        let (a, b) = (begin(&store, "a").await, begin(&store, "b").await);
        let (_, position) = points(&store, Since::Start, 2).await;
        // As if the other server had been at work for longer.
        let sql = format!(
            "UPDATE {}.checkpoints SET xid = (xid::text::bigint + 1000000000)::text::xid8",
            schema.name()
        );
        schema.run(&sql).await;
        let ahead = Position { place: position.place + 1_000_000_000, ..position };
        let error = store
            .feed(FeedPage { since: Since::After(ahead), execution: None, limit: 10 })
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::ForeignPosition { .. }), "{error:?}");
        let c = begin(&store, "c").await;
        let (found, last) = points(&store, Since::Start, 3).await;
        assert_eq!(found, [(a, 1), (b, 1), (c, 1)]);
        assert_eq!(page(&store, Since::After(last)).await.points, []);
    }
}
