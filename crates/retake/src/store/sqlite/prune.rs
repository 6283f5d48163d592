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

use std::collections::{BTreeSet, HashSet};

use super::Shared;
use super::body;
use super::chain::{self, FLOOR_MIN, ROW_WEIGHT};
use super::db::{self, Db};
use super::link;
use super::row::ExecutionRow;
use super::workflow;
use crate::execution::ExecutionId;
use crate::store::{Delta, Seq, StoreError};

pub(super) fn prune(db: &Db, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
    let Some(mut execution) = ExecutionRow::by_id(db, id)? else { return Ok(0) };
    let before_last_kept = i64::try_from(keep.max(1) - 1).unwrap_or(i64::MAX);
    let oldest_kept = db.number(
        "SELECT seq FROM checkpoints WHERE execution = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2",
        [execution.key, before_last_kept],
    )?;
    let Some(oldest_kept) = oldest_kept else { return Ok(0) };
    let deltas = deltas(
        db,
        "SELECT delta FROM checkpoints WHERE execution = ?1 AND seq < ?2 AND label IS NULL",
        &[execution.key, oldest_kept],
    )?;
    let pruned = db.all(
        "SELECT seq, link FROM checkpoints WHERE execution = ?1 AND seq < ?2 AND label IS NULL ORDER BY seq",
        [execution.key, oldest_kept],
        |_| "the table of checkpoints".to_owned(),
        |row| Ok((db::count(row, 0)?, db::link(row, 1)?)),
    )?;
    link::prune(db, &execution, &pruned)?;
    let sql = "DELETE FROM checkpoints WHERE execution = ?1 AND seq < ?2 AND label IS NULL";
    let gone = db.run(sql, [execution.key, oldest_kept])?;
    if gone == 0 {
        return Ok(0);
    }
    let owner = (execution.record.id, execution.record.head);
    execution.slack = execution.slack.saturating_add(remove_unneeded(db, owner, &deltas)?);
    if execution.slack > execution.slack_max {
        squash(db, &mut execution)?;
    }
    execution.update(db)?;
    Ok(gone)
}

pub(super) fn delete(db: &Db, shared: &Shared, id: ExecutionId) -> Result<usize, StoreError> {
    let Some(execution) = ExecutionRow::by_id(db, id)? else { return Ok(0) };
    shared.check_free(&execution)?;
    let key = execution.key;
    let deltas = deltas(db, "SELECT delta FROM checkpoints WHERE execution = ?1", &[key])?;
    let gone = db.run("DELETE FROM checkpoints WHERE execution = ?1", [key])?;
    db.run("DELETE FROM gaps WHERE execution = ?1", [key])?;
    db.run("DELETE FROM operations WHERE execution = ?1", [key])?;
    db.run("DELETE FROM requests WHERE execution = ?1", [key])?;
    db.run("DELETE FROM execution_workflows WHERE execution = ?1", [key])?;
    db.run("DELETE FROM executions WHERE key = ?1", [key])?;
    remove_unneeded(db, (id, execution.record.head), &deltas)?;
    Ok(gone)
}

/// Squashes all that can be, and removes the definitions that none of the executions ever ran.
pub(super) fn compact(db: &Db) -> Result<(), StoreError> {
    workflow::remove_unneeded(db)?;
    chain::sweep(db)?;
    let keys = db.all(
        "SELECT key FROM executions ORDER BY key",
        [],
        |_| "the table of executions".to_owned(),
        |row| db::integer(row, 0),
    )?;
    for key in keys {
        if let Some(mut execution) = ExecutionRow::by_key(db, key)? {
            squash(db, &mut execution)?;
            execution.update(db)?;
        }
    }
    db.give_back()
}

fn deltas(db: &Db, sql: &'static str, params: &[i64]) -> Result<BTreeSet<i64>, StoreError> {
    let keys = db.all(
        sql,
        rusqlite::params_from_iter(params),
        |_| "the table of checkpoints".to_owned(),
        |row| db::integer(row, 0),
    )?;
    Ok(keys.into_iter().collect())
}

/// Removes those deltas that nothing needs, and those below them. Returns the bytes of those that only other deltas
/// need, roots aside: they hold a whole state, and are not to be gained by squashing.
fn remove_unneeded(db: &Db, owner: (ExecutionId, Seq), deltas: &BTreeSet<i64>) -> Result<i64, StoreError> {
    let mut slack: i64 = 0;
    for key in deltas.iter().rev() {
        let mut next = Some(*key);
        while let Some(leaf) = next {
            let Some(Link { base, length }) = link(db, leaf)? else { break };
            if is_pointed_at(db, leaf)? {
                break;
            }
            if children(db, leaf)? > 0 {
                if leaf == *key && base.is_some() {
                    slack = slack.saturating_add(length + ROW_WEIGHT);
                }
                break;
            }
            chain::remove(db, owner, leaf)?;
            next = base;
        }
    }
    Ok(slack)
}

/// Squashes every run of deltas below the points of an execution that no checkpoint points at.
fn squash(db: &Db, execution: &mut ExecutionRow) -> Result<(), StoreError> {
    let tips = deltas(db, "SELECT delta FROM checkpoints WHERE execution = ?1", &[execution.key])?;
    let mut seen = HashSet::new();
    let mut slack_max = 0;
    let owner = (execution.record.id, execution.record.head);
    for tip in tips {
        let mut next = Some(tip);
        while let Some(kept) = next.filter(|key| seen.insert(*key)) {
            let (run, base) = run_below(db, kept)?;
            if !run.is_empty() {
                slack_max += merge(db, owner, kept, &run, base)?;
            }
            next = base;
        }
    }
    execution.slack = 0;
    execution.slack_max = FLOOR_MIN.max(slack_max);
    chain::weigh(db, execution)
}

/// Returns the deltas below `kept` that only it needs, newest first, and what lies below those.
fn run_below(db: &Db, kept: i64) -> Result<(Vec<i64>, Option<i64>), StoreError> {
    let mut run = Vec::new();
    let mut base = chain::base(db, kept)?;
    while let Some(key) = base {
        if is_pointed_at(db, key)? || children(db, key)? != 1 {
            break;
        }
        run.push(key);
        base = chain::base(db, key)?;
    }
    Ok((run, base))
}

/// Makes `kept` do what the run below it and it did, and removes the run. Returns the bytes that must gather before
/// that is worth doing again. It is done on behalf of a point, the `owner`.
fn merge(
    db: &Db,
    owner: (ExecutionId, Seq),
    kept: i64,
    run: &[i64],
    base: Option<i64>,
) -> Result<i64, StoreError> {
    let merged = match base {
        None => chain::image(db, kept)?.to_delta(),
        Some(_) => {
            let parts = run
                .iter()
                .rev()
                .chain([&kept])
                .map(|key| chain::decoded(db, *key, &chain::row(db, *key)?.body))
                .collect::<Result<Vec<Delta>, _>>()?;
            Delta::compose(&chain::name(kept), &parts)?
        }
    };
    let body = match chain::encoded(db.guard(), owner, &merged, Some(body::FAST)) {
        Ok(body) => body.bytes,
        // Together they are larger than one row may be: they stay as they are.
        Err(StoreError::Unstorable { .. }) => return Ok(0),
        Err(error) => return Err(error),
    };
    chain::replace(db, kept, base, &body)?;
    for key in run {
        chain::remove(db, owner, *key)?;
    }
    let length = i64::try_from(body.len()).unwrap_or(i64::MAX / 2);
    if base.is_none() {
        // A root is a whole state already.
        db.run("DELETE FROM keyframes WHERE delta = ?1", [kept])?;
        Ok(length)
    } else {
        // When `kept` goes one day, its own bytes count as slack.
        Ok(length.saturating_mul(2))
    }
}

struct Link {
    base: Option<i64>,
    length: i64,
}

fn link(db: &Db, key: i64) -> Result<Option<Link>, StoreError> {
    db.first(
        "SELECT base, length(body) FROM deltas WHERE key = ?1",
        [key],
        |_| chain::name(key),
        |row| match db::optional_integer(row, 0)? {
            Some(base) if base >= key => Err("it builds on a newer one".to_owned()),
            base => Ok(Link { base, length: db::integer(row, 1)? }),
        },
    )
}

fn is_pointed_at(db: &Db, key: i64) -> Result<bool, StoreError> {
    Ok(db.number("SELECT 1 FROM checkpoints WHERE delta = ?1 LIMIT 1", [key])?.is_some())
}

/// Returns how many deltas build on this one: 2 stands for more.
fn children(db: &Db, key: i64) -> Result<i64, StoreError> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM deltas WHERE base = ?1 LIMIT 2)";
    Ok(db.number(sql, [key])?.unwrap_or(0))
}
