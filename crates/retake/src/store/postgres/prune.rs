//! Removing points, and giving back the space of what they alone needed.
//!
//! A delta that no checkpoint points at any more goes at once where nothing builds on it. Where something does, it is
//! in the middle of a chain, and is squashed into what builds on it: not at once, but when as much has gathered as
//! squashing will write, so that pruning after every save costs what was saved and not the state.
//!
//! ```text
//! before    [1] <- 2 <- 3 <- [4] <- 5 <- [6]      [n] is pointed at
//! after     [1] <----------- [4] <------ [6]      4 does what 2, 3 and 4 did
//! ```
//!
//! Where such a run begins at the root, what builds on it becomes the root, and holds a whole state.
//!
//! Whoever removes points of an execution holds its row. A delta that nobody points at is never pointed at again, and what
//! builds on it only becomes less: what is true of it when it is looked at stays true. Two executions that lose at the same
//! moment what they share each leave it to the other; compacting finds what both have left.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tokio_postgres::Row;

use super::Shared;
use super::aside::aside;
use super::chain::{self, DeltaRow, Reader};
use super::db::Transaction;
use super::execution::{ExecutionRow, LOCKED, execution_columns};
use super::outage::Outage;
use super::row::{self, damaged, delta_checksum, gap_checksum, get};
use crate::execution::ExecutionId;
use crate::store::column::{self, Damage};
use crate::store::link::{Gap, Link};
use crate::store::load::{FLOOR_MIN, ROW_WEIGHT, length};
use crate::store::{Delta, Seq, StoreError, body};

/// Executions, or deltas, that compacting looks at in one step.
const PAGE: i64 = 1_000;

/// What removing loses with the machine's power comes back, and is removed again: nobody need wait for the disk.
const LAZILY: &str = "SELECT set_config('synchronous_commit', 'off', true)";

const LOCKED_TO_GO: &str =
    concat!("SELECT ", execution_columns!(), " FROM executions e WHERE e.id = $1 FOR UPDATE OF e");

/// The points that go, and the gaps that are there.
const DOOMED: &str = "
SELECT c.seq, c.link, c.delta FROM executions e JOIN checkpoints c ON c.execution = e.key
WHERE e.id = $1 AND c.label IS NULL AND c.seq < (
    SELECT n.seq FROM checkpoints n WHERE n.execution = e.key ORDER BY n.seq DESC LIMIT 1 OFFSET $2
) ORDER BY c.seq";

const GAPS: &str =
    "SELECT g.execution, g.first, g.last, g.link, g.checksum FROM gaps g WHERE g.execution = $1";

const DELETE_POINTS: &str = "DELETE FROM checkpoints WHERE execution = $1 AND seq = ANY ($2)";

const DELETE_GAPS: &str = "DELETE FROM gaps WHERE execution = $1 AND first = ANY ($2)";

const INSERT_GAPS: &str = "
INSERT INTO gaps (execution, first, last, link, checksum)
SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[])";

const PRUNED: &str =
    "UPDATE executions SET prunings = prunings + 1, slack = $2, slack_max = $3 WHERE key = $1";

/// Deltas, and who needs them.
macro_rules! needed {
    () => {
        "SELECT d.key, d.base, octet_length(d.body)::bigint,
            EXISTS (SELECT FROM checkpoints c WHERE c.delta = d.key),
            (SELECT count(*) FROM deltas k WHERE k.base = d.key)
        FROM deltas d WHERE d.key = ANY "
    };
}

const LINKS: &str = concat!(needed!(), "($1)");

/// The same of those below, as far as nobody points at them.
const LINKS_BELOW: &str = concat!(
    "WITH RECURSIVE below AS (
        SELECT d.key, d.base FROM deltas d WHERE d.key = ANY ($1)
      UNION
        SELECT d.key, d.base FROM below b CROSS JOIN LATERAL (
            SELECT d.key, d.base FROM deltas d WHERE d.key = b.base LIMIT 1
        ) d WHERE d.key < b.key AND NOT EXISTS (SELECT FROM checkpoints c WHERE c.delta = b.key)
    ) ",
    needed!(),
    "(ARRAY(SELECT key FROM below))"
);

/// The same of all below an execution's points, as far as not only others point at them.
const LINKS_OF: &str = concat!(
    "WITH RECURSIVE below AS (
        SELECT d.key, d.base FROM checkpoints c JOIN deltas d ON d.key = c.delta WHERE c.execution = $1
      UNION
        SELECT d.key, d.base FROM below b CROSS JOIN LATERAL (
            SELECT d.key, d.base FROM deltas d WHERE d.key = b.base LIMIT 1
        ) d WHERE d.key < b.key
            AND (EXISTS (SELECT FROM checkpoints c WHERE c.delta = b.key AND c.execution = $1)
                OR NOT EXISTS (SELECT FROM checkpoints c WHERE c.delta = b.key))
    ) ",
    needed!(),
    "(ARRAY(SELECT key FROM below))"
);

const DELETE_DELTAS: &str = "DELETE FROM deltas WHERE key = ANY ($1)";

/// Deltas that nobody changes as long as the transaction runs.
const LOCKED_DELTAS: &str = "
SELECT d.key, d.base, d.body, d.checksum FROM deltas d WHERE d.key = ANY ($1) ORDER BY d.key FOR UPDATE";

const REPLACE: &str = "UPDATE deltas SET base = $2, body = $3, checksum = $4 WHERE key = $1";

/// A delta, and who needs it.
#[derive(Debug, Clone, Copy)]
struct Needed {
    base: Option<i64>,
    length: i64,
    is_pointed_at: bool,
    children: i64,
}

/// Deltas by their keys.
type Links = BTreeMap<i64, Needed>;

pub(super) async fn prune(shared: &Shared, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
    let mut outage = Outage::new(shared.db.options());
    loop {
        match attempt_prune(shared, id, keep).await {
            Ok(gone) => return Ok(gone),
            Err(error) => outage.wait(error).await?,
        }
    }
}

async fn attempt_prune(shared: &Shared, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
    let before_last_kept = i64::try_from(keep.max(1) - 1).unwrap_or(i64::MAX);
    let mut transaction = shared.db.transaction("pruning").await?;
    // The lock is there before the next statement looks.
    let found = transaction
        .query_all(&[(LAZILY, &[]), (LOCKED, &[&id]), (DOOMED, &[&id, &before_last_kept])])
        .await?;
    let [_, execution, doomed] = &found[..] else { return Ok(0) };
    let Some(execution) = execution.first() else { return Ok(0) };
    let mut execution = ExecutionRow::read(execution)?;
    if doomed.is_empty() {
        return Ok(0);
    }
    let doomed: Vec<(Seq, Link, i64)> = doomed
        .iter()
        .map(point)
        .collect::<Result<_, Damage>>()
        .map_err(|why| damaged(format!("the history of execution {id}"), why))?;
    let links: Vec<(Seq, Link)> = doomed.iter().map(|(seq, link, _)| (*seq, *link)).collect();
    let deltas: BTreeSet<i64> = doomed.iter().map(|(_, _, delta)| *delta).collect();
    let seqs = stored(links.iter().map(|(seq, _)| *seq))?;
    let keys: Vec<i64> = deltas.iter().copied().collect();
    let key = execution.key;
    let found =
        transaction.query_all(&[(DELETE_POINTS, &[&key, &seqs]), (GAPS, &[&key]), (LINKS, &[&keys])]).await?;
    let [_, gaps, links_of_doomed] = &found[..] else { return Ok(0) };
    let gaps: Vec<Gap> = gaps.iter().map(|row| row::gap(row, id)).collect::<Result<_, StoreError>>()?;
    note(&mut transaction, key, &gaps, &Gap::of(&links)).await?;
    let slack = remove_unneeded(&mut transaction, &deltas, read_links(links_of_doomed)?).await?;
    execution.slack = execution.slack.saturating_add(slack);
    let is_squashed = execution.slack > execution.slack_max;
    if is_squashed {
        squash(&mut transaction, &mut execution).await?;
    }
    transaction.execute(PRUNED, &[&key, &execution.slack, &execution.slack_max]).await?;
    transaction.commit().await?;
    if is_squashed {
        // The way to the head is another.
        shared.cache.forget(id);
    }
    Ok(doomed.len())
}

fn point(row: &Row) -> Result<(Seq, Link, i64), Damage> {
    let seq: i64 = get(row, 0)?;
    let seq = u64::try_from(seq).map_err(|_| "a number is negative".to_owned())?;
    Ok((seq, row::link(row, 1)?, get(row, 2)?))
}

fn stored(seqs: impl Iterator<Item = Seq>) -> Result<Vec<i64>, StoreError> {
    seqs.map(|seq| column::stored("the point", seq)).collect()
}

/// Notes gaps, each as one with those that are there on either side of it.
async fn note(
    transaction: &mut Transaction,
    execution: i64,
    before: &[Gap],
    new: &[Gap],
) -> Result<(), StoreError> {
    let mut all: Vec<Gap> = before.iter().chain(new).copied().collect();
    all.sort_by_key(|gap| gap.first);
    let mut joined: Vec<Gap> = Vec::new();
    for gap in all {
        match joined.last_mut() {
            Some(last) if last.last + 1 == gap.first => (last.last, last.link) = (gap.last, gap.link),
            Some(_) | None => joined.push(gap),
        }
    }
    let gone = stored(before.iter().filter(|gap| !joined.contains(gap)).map(|gap| gap.first))?;
    joined.retain(|gap| !before.contains(gap));
    transaction.execute(DELETE_GAPS, &[&execution, &gone]).await?;
    insert_gaps(transaction, execution, &joined).await
}

/// Writes gaps that stand alone.
pub(super) async fn insert_gaps(
    transaction: &mut Transaction,
    execution: i64,
    gaps: &[Gap],
) -> Result<(), StoreError> {
    let firsts = stored(gaps.iter().map(|gap| gap.first))?;
    let lasts = stored(gaps.iter().map(|gap| gap.last))?;
    let links: Vec<&[u8]> = gaps.iter().map(|gap| &gap.link[..]).collect();
    let ends = firsts.iter().zip(&lasts).zip(&links);
    let checksums: Vec<Vec<u8>> =
        ends.map(|((first, last), link)| gap_checksum(execution, *first, *last, link).to_vec()).collect();
    transaction.execute(INSERT_GAPS, &[&execution, &firsts, &lasts, &links, &checksums]).await.map(|_| ())
}

fn read_links(rows: &[Row]) -> Result<Links, StoreError> {
    let read = |row: &Row| -> Result<(i64, Needed), Damage> {
        let key = get(row, 0)?;
        let base: Option<i64> = get(row, 1)?;
        if base.is_some_and(|base| base >= key) {
            return Err("it builds on a newer one".to_owned());
        }
        let (length, is_pointed_at, children) = (get(row, 2)?, get(row, 3)?, get(row, 4)?);
        Ok((key, Needed { base, length, is_pointed_at, children }))
    };
    rows.iter()
        .map(|row| {
            read(row).map_err(|why| {
                damaged(row.try_get(0).map_or_else(|_| "a delta".to_owned(), chain::name), why)
            })
        })
        .collect()
}

/// Removes those deltas that nothing needs, and those below them. Returns the bytes of those that only other deltas
/// need, roots aside: they hold a whole state, and are not to be gained by squashing.
async fn remove_unneeded(
    transaction: &mut Transaction,
    deltas: &BTreeSet<i64>,
    mut links: Links,
) -> Result<i64, StoreError> {
    let (mut gone, mut below) = unneeded(deltas, &links);
    if !below.is_empty() {
        let rows = transaction.query(LINKS_BELOW, &[&below]).await?;
        for (key, link) in read_links(&rows)? {
            links.entry(key).or_insert(link);
        }
        (gone, below) = unneeded(deltas, &links);
    }
    // What is missing below is damage, and found by whoever reads.
    drop(below);
    let slack = deltas
        .iter()
        .filter_map(|key| Some((key, links.get(key)?)))
        .filter(|(key, link)| !gone.contains(key) && !link.is_pointed_at && link.base.is_some())
        .map(|(_, link)| link.length.saturating_add(ROW_WEIGHT))
        .fold(0, i64::saturating_add);
    if !gone.is_empty() {
        let gone: Vec<i64> = gone.into_iter().collect();
        transaction.execute(DELETE_DELTAS, &[&gone]).await?;
    }
    Ok(slack)
}

/// Returns the deltas that go, and those below them of which nothing is known.
fn unneeded(deltas: &BTreeSet<i64>, links: &Links) -> (BTreeSet<i64>, Vec<i64>) {
    let mut gone = BTreeSet::new();
    let mut unknown = Vec::new();
    let mut children: BTreeMap<i64, i64> = BTreeMap::new();
    for key in deltas.iter().rev() {
        let mut next = Some(*key).filter(|key| !gone.contains(key));
        while let Some(leaf) = next {
            let Some(link) = links.get(&leaf) else {
                if leaf != *key {
                    unknown.push(leaf);
                }
                break;
            };
            if link.is_pointed_at || link.children > children.get(&leaf).copied().unwrap_or(0) {
                break;
            }
            gone.insert(leaf);
            if let Some(base) = link.base {
                *children.entry(base).or_default() += 1;
            }
            next = link.base;
        }
    }
    (gone, unknown)
}

/// Squashes every run of deltas below the points of an execution that no checkpoint points at. The execution's row is
/// written by the caller.
async fn squash(transaction: &mut Transaction, execution: &mut ExecutionRow) -> Result<(), StoreError> {
    let rows = transaction.query(LINKS_OF, &[&execution.key]).await?;
    let links = read_links(&rows)?;
    let mut seen = HashSet::new();
    let mut slack_max: i64 = 0;
    for tip in links.keys().rev() {
        let mut next = Some(*tip).filter(|tip| links[tip].is_pointed_at);
        while let Some(kept) = next.filter(|key| links.contains_key(key) && seen.insert(*key)) {
            let (run, base) = run_below(&links, kept);
            if !run.is_empty() {
                slack_max = slack_max.saturating_add(merge(transaction, kept, &run, base).await?);
            }
            next = base;
        }
    }
    execution.slack = 0;
    execution.slack_max = FLOOR_MIN.max(slack_max);
    Ok(())
}

/// Returns the deltas below `kept` that only it needs, newest first, and what lies below those.
fn run_below(links: &Links, kept: i64) -> (Vec<i64>, Option<i64>) {
    let mut run = Vec::new();
    let mut base = links.get(&kept).and_then(|link| link.base);
    while let Some(key) = base {
        let Some(link) = links.get(&key).filter(|link| !link.is_pointed_at && link.children == 1) else {
            break;
        };
        run.push(key);
        base = link.base;
    }
    (run, base)
}

/// Makes `kept` do what the run below it and it did, and removes the run. Returns the bytes that must gather before
/// that is worth doing again.
async fn merge(
    transaction: &mut Transaction,
    kept: i64,
    run: &[i64],
    base: Option<i64>,
) -> Result<i64, StoreError> {
    let keys: Vec<i64> = run.iter().chain([&kept]).copied().collect();
    let rows = transaction.query(LOCKED_DELTAS, &[&keys]).await?;
    let parts: Vec<DeltaRow> = rows.iter().map(DeltaRow::read).collect::<Result<_, StoreError>>()?;
    if parts.len() != keys.len() || parts.first().is_none_or(|lowest| lowest.base != base) {
        // Another execution that shares them was faster.
        return Ok(0);
    }
    let whole = match base {
        None => Some(chain::image(&mut Reader::Transaction(transaction), kept).await?),
        Some(_) => None,
    };
    let bytes = parts.iter().map(|part| body::unpacked_length(&part.body)).fold(0, u64::saturating_add);
    let merging = aside(transaction.location(), bytes, move || {
        let merged = match whole {
            Some(image) => image.to_delta(),
            None => {
                let parts = parts.iter().map(DeltaRow::decoded).collect::<Result<Vec<Delta>, _>>()?;
                Delta::compose(&chain::name(kept), &parts)?
            }
        };
        let body = chain::encoded(&merged, Some(body::FAST))?.bytes;
        let checksum = delta_checksum(kept, base, &body);
        Ok((body, checksum))
    });
    let (body, checksum) = match merging.await {
        Ok(merged) => merged,
        // Together they are larger than one row may be: they stay as they are.
        Err(StoreError::Unstorable { .. }) => return Ok(0),
        Err(error) => return Err(error),
    };
    transaction
        .query_all(&[(REPLACE, &[&kept, &base, &body, &&checksum[..]]), (DELETE_DELTAS, &[&run])])
        .await?;
    let length = length(&body);
    if base.is_none() {
        // A root is a whole state already.
        transaction.execute("DELETE FROM keyframes WHERE delta = $1", &[&kept]).await?;
        Ok(length)
    } else {
        // When `kept` goes one day, its own bytes count as slack.
        Ok(length.saturating_mul(2))
    }
}

pub(super) async fn delete(shared: &Shared, id: ExecutionId) -> Result<usize, StoreError> {
    let mut outage = Outage::new(shared.db.options());
    loop {
        match attempt_delete(shared, id).await {
            Ok(gone) => {
                shared.cache.forget(id);
                return Ok(gone);
            }
            Err(error) => outage.wait(error).await?,
        }
    }
}

async fn attempt_delete(shared: &Shared, id: ExecutionId) -> Result<usize, StoreError> {
    let mut transaction = shared.db.transaction("deleting").await?;
    let Some(found) = transaction.optional(LOCKED_TO_GO, &[&id]).await? else { return Ok(0) };
    let key = ExecutionRow::key_to_go(&found)?;
    let gone = transaction
        .query_all(&[
            ("DELETE FROM checkpoints WHERE execution = $1 RETURNING delta", &[&key]),
            ("DELETE FROM gaps WHERE execution = $1", &[&key]),
            ("DELETE FROM operations WHERE execution = $1", &[&key]),
            ("DELETE FROM requests WHERE execution = $1", &[&key]),
            ("DELETE FROM execution_workflows WHERE execution = $1", &[&key]),
            ("DELETE FROM executions WHERE key = $1", &[&key]),
        ])
        .await?;
    let points = gone.first().map(Vec::as_slice).unwrap_or_default();
    let deltas: BTreeSet<i64> = points
        .iter()
        .map(|row| get(row, 0))
        .collect::<Result<_, Damage>>()
        .map_err(|why| damaged(format!("the history of execution {id}"), why))?;
    let keys: Vec<i64> = deltas.iter().copied().collect();
    let links = read_links(&transaction.query(LINKS, &[&keys]).await?)?;
    remove_unneeded(&mut transaction, &deltas, links).await?;
    transaction.commit().await?;
    Ok(points.len())
}

/// Squashes all that can be, and removes what nothing needs: definitions that none of the executions ever ran, and deltas.
/// What is left of them, the server gives back.
pub(super) async fn compact(shared: &Shared) -> Result<(), StoreError> {
    remove_definitions(shared).await?;
    let mut last = 0_i64;
    loop {
        // A fork whose origin has gone may have below it what only the origin's points stood on.
        let sql = "SELECT e.key, e.id FROM executions e WHERE e.key > $1 AND (e.slack > 0 OR (e.origin_id IS NOT NULL \
                   AND NOT EXISTS (SELECT FROM executions o WHERE o.id = e.origin_id))) ORDER BY e.key LIMIT $2";
        let page = shared.db.query("compacting", sql, &[&last, &PAGE]).await?;
        for row in &page {
            let why = |why| damaged("the table of executions".to_owned(), why);
            last = get(row, 0).map_err(why)?;
            let id = get(row, 1).map_err(why)?;
            squash_alone(shared, id).await?;
            shared.cache.forget(id);
        }
        if page.is_empty() {
            break;
        }
    }
    remove_left_over(shared).await?;
    vacuum(shared).await
}

/// Pages below which a table is left to the server, which vacuums by itself.
const VACUUMED_MIN: i64 = 128;

/// What gives the room of rows that are gone back to their tables, and what tells how many pages those have.
const VACUUM: [(&str, &str); 7] = [
    ("VACUUM checkpoints", "SELECT pg_relation_size('checkpoints') / 8192"),
    ("VACUUM deltas", "SELECT pg_relation_size('deltas') / 8192"),
    ("VACUUM keyframes", "SELECT pg_total_relation_size('keyframes') / 8192"),
    ("VACUUM gaps", "SELECT pg_relation_size('gaps') / 8192"),
    ("VACUUM operations", "SELECT pg_relation_size('operations') / 8192"),
    ("VACUUM requests", "SELECT pg_relation_size('requests') / 8192"),
    ("VACUUM executions", "SELECT pg_relation_size('executions') / 8192"),
];

async fn vacuum(shared: &Shared) -> Result<(), StoreError> {
    for (vacuum, pages) in VACUUM {
        let found = shared.db.optional("compacting", pages, &[]).await?;
        let pages = found.map(|row| get::<i64>(&row, 0)).transpose();
        if pages.map_err(|why| damaged("the size of a table".to_owned(), why))?.unwrap_or(0) >= VACUUMED_MIN {
            shared.db.execute("compacting", vacuum, &[]).await?;
        }
    }
    Ok(())
}

async fn squash_alone(shared: &Shared, id: ExecutionId) -> Result<(), StoreError> {
    let mut transaction = shared.db.transaction("compacting").await?;
    let Some(found) = transaction.optional(LOCKED, &[&id]).await? else { return Ok(()) };
    let mut execution = ExecutionRow::read(&found)?;
    squash(&mut transaction, &mut execution).await?;
    transaction.execute(PRUNED, &[&execution.key, &execution.slack, &execution.slack_max]).await?;
    transaction.commit().await
}

/// Nobody may begin to run a workflow while it is decided that nobody does.
async fn remove_definitions(shared: &Shared) -> Result<(), StoreError> {
    let unneeded = "SELECT FROM workflows w WHERE NOT EXISTS \
                    (SELECT FROM execution_workflows r WHERE r.workflow = w.id) LIMIT 1";
    if shared.db.query("compacting", unneeded, &[]).await?.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM workflows w WHERE NOT EXISTS \
               (SELECT FROM execution_workflows r WHERE r.workflow = w.id)";
    let lock = "LOCK TABLE execution_workflows IN SHARE MODE";
    shared.db.pipeline("compacting", &[(lock, &[]), (sql, &[])]).await.map(|_| ())
}

/// Removes deltas that nothing needs, and that nobody removed when they were last needed.
async fn remove_left_over(shared: &Shared) -> Result<(), StoreError> {
    let sql = concat!(
        "SELECT * FROM (",
        needed!(),
        "(ARRAY(SELECT n.key FROM deltas n WHERE n.key < $1 ORDER BY n.key DESC LIMIT $2))) AS d ORDER BY d.key DESC"
    );
    let mut below: i64 = i64::MAX;
    loop {
        let rows = shared.db.query("compacting", sql, &[&below, &PAGE]).await?;
        let links = read_links(&rows)?;
        let Some(first) = links.keys().next().copied() else { return Ok(()) };
        below = first;
        let is_left_over = |(_, link): &(&i64, &Needed)| !link.is_pointed_at && link.children == 0;
        let left_over: BTreeSet<i64> = links.iter().filter(is_left_over).map(|(key, _)| *key).collect();
        if !left_over.is_empty() {
            let mut transaction = shared.db.transaction("compacting").await?;
            remove_unneeded(&mut transaction, &left_over, links).await?;
            transaction.commit().await?;
        }
    }
}
