//! Limits, each a row that claims lock.

use std::time::Duration;

use super::super::Shared;
use super::super::lease::{change, microseconds};
use super::super::outage::Outage;
use super::super::row::{damaged, get};
use super::text;
use crate::store::column::Damage;
use crate::store::{Limit, StoreError};

/// Waits for the claims that are under way, which know nothing of a limit that is new.
const LOCK: &str = "LOCK TABLE limits IN EXCLUSIVE MODE";

/// `$4`: the period in microseconds. What a bucket has left stays, as far as the new one holds it.
const SET: &str = "
INSERT INTO limits AS l (kind, name, most, period, full_at, version)
VALUES ($1, $2, $3::bigint, $4::bigint, moment(), 0)
ON CONFLICT (kind, name) DO UPDATE SET most = excluded.most, period = excluded.period, version = l.version + 1,
    full_at = CASE WHEN l.kind = 'starts' AND l.most > 0 AND excluded.most > 0 THEN
        moment() + excluded.period * greatest(0, 1 - floor(0.000001 + l.most
            * (1 - greatest(0, extract(epoch FROM l.full_at - moment())) * 1000000 / l.period))
            / excluded.most)::double precision * interval '1 microsecond'
        ELSE moment() END";

const LIFT: &str = "DELETE FROM limits WHERE kind = $1 AND name = $2";

const ALL: &str = "SELECT name, most, period FROM limits ORDER BY kind, name";

fn named(limit: &Limit) -> (&'static str, &[u8]) {
    match limit {
        Limit::Running { queue, .. } => ("running", queue.as_bytes()),
        Limit::Starts { workflow, .. } => ("starts", workflow.as_bytes()),
    }
}

pub(super) async fn set(shared: &Shared, limit: &Limit) -> Result<(), StoreError> {
    limit.checked()?;
    let (kind, name) = named(limit);
    let (most, period) = match limit {
        Limit::Running { most, .. } => (most, None),
        // A period is at least as long as what the server can measure.
        Limit::Starts { most, per, .. } => (most, Some(microseconds(*per).max(1))),
    };
    let mut outage = Outage::new(shared.db.options());
    let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[&kind, &name, &i64::from(*most), &period];
    while let Err(error) = shared.db.pipeline("setting a limit", &[(LOCK, &[]), (SET, values)]).await {
        outage.wait(error).await?;
    }
    shared.bell.ring(&shared.db).await;
    Ok(())
}

pub(super) async fn lift(shared: &Shared, limit: &Limit) -> Result<bool, StoreError> {
    let (kind, name) = named(limit);
    let found = change(shared, "lifting a limit", LIFT, &[&kind, &name]).await? > 0;
    shared.bell.ring(&shared.db).await;
    Ok(found)
}

pub(super) async fn all(shared: &Shared) -> Result<Vec<Limit>, StoreError> {
    let rows = shared.db.query("reading limits", ALL, &[]).await?;
    let read = |row: &tokio_postgres::Row| -> Result<Limit, Damage> {
        let most: i64 = get(row, 1)?;
        let most = u32::try_from(most).map_err(|_| format!("it allows {most}"))?;
        let name = text(get(row, 0)?);
        Ok(match get::<Option<i64>>(row, 2)? {
            None => Limit::Running { queue: name, most },
            Some(period) => {
                let per = Duration::from_micros(u64::try_from(period).unwrap_or(0));
                Limit::Starts { workflow: name, most, per }
            }
        })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(|why| damaged("a limit".to_owned(), why))
}
