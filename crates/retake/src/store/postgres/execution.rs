//! The rows of `executions`: what never changes in them, what every commit changes, and the end of the operation log.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{Checksum, count, damaged, feed_id, feed_integer, get, link, shown_id, text, verify};
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::column::{self, Damage};
use crate::store::hash::{Hash, first_bytes};
use crate::store::link::{self, Link};
use crate::store::{Conflict, ExecutionRecord, Origin, Seq, StoreError};

/// The columns of a row of `executions`.
macro_rules! execution_columns {
    () => {
        "e.key, e.id, e.name, e.created_at, e.origin_id, e.origin_seq, e.workflow, e.workflow_name, e.state, e.state_name, \
         e.head, e.updated_at, e.spend, e.link, e.checksum, e.log_last, e.log_link, e.log_checksum, e.prunings, e.slack, \
         e.slack_max, e.fence, e.owner, (extract(epoch FROM e.lease_until) * 1000000)::bigint, \
         coalesce(e.lease_until > moment(), false)"
    };
}
pub(super) use execution_columns;

/// How many they are.
pub(super) const EXECUTION_COLUMNS: usize = 25;

/// Reads an execution that nobody changes as long as the transaction runs.
pub(super) const LOCKED: &str =
    concat!("SELECT ", execution_columns!(), " FROM executions e WHERE e.id = $1 FOR NO KEY UPDATE OF e");

/// A row of `executions`.
#[derive(Debug, Clone)]
pub(super) struct ExecutionRow {
    pub(super) key: i64,
    /// With `leased_by` as of the moment of the look.
    pub(super) record: ExecutionRecord,
    /// Over what never changes in the row.
    pub(super) fixed: Link,
    /// That of the head.
    pub(super) link: Link,
    pub(super) log: Log,
    /// How often points were removed.
    pub(super) prunings: i64,
    /// Bytes of deltas that no checkpoint needs by themselves, since they were last squashed.
    pub(super) slack: i64,
    /// How much `slack` may be before squashing is due.
    pub(super) slack_max: i64,
    /// That of the last lease; 0 where there was none.
    pub(super) fence: u64,
    /// Who took a lease that has not been given back and holds, and until when.
    pub(super) holder: Option<(String, DateTime<Utc>)>,
}

/// The end of an operation log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Log {
    /// How many operations there are.
    pub(super) last: u64,
    /// That of the last one.
    pub(super) link: Link,
}

impl Log {
    pub(super) fn start(execution: ExecutionId) -> Self {
        Self { last: 0, link: link::start(execution) }
    }

    pub(super) fn checksum(&self, fixed: &Link) -> Result<Checksum, StoreError> {
        Ok(self.sum(fixed, column::stored("the operation", self.last)?))
    }

    fn sum(&self, fixed: &Link, last: i64) -> Checksum {
        let mut hash = Hash::of("executions.log");
        hash.bytes(fixed);
        hash.integer(last);
        hash.bytes(&self.link);
        first_bytes(&hash.finish())
    }
}

/// What never changes in an execution's row.
#[derive(Debug)]
pub(super) struct Fixed<'a> {
    pub(super) key: i64,
    pub(super) id: ExecutionId,
    pub(super) name: &'a [u8],
    pub(super) created_at: i64,
    pub(super) origin: (Option<Uuid>, Option<i64>),
}

impl Fixed<'_> {
    pub(super) fn hash(&self) -> Link {
        let mut hash = Hash::of("executions");
        hash.integer(self.key);
        hash.bytes(self.id.as_bytes());
        hash.bytes(self.name);
        hash.integer(self.created_at);
        feed_id(&mut hash, self.origin.0);
        feed_integer(&mut hash, self.origin.1);
        hash.finish()
    }
}

/// What every commit writes into an execution's row.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub(super) workflow: WorkflowId,
    pub(super) workflow_name: &'a [u8],
    pub(super) state: &'a [u8],
    pub(super) state_name: &'a str,
    pub(super) head: i64,
    pub(super) updated_at: i64,
    pub(super) spend: &'a [u8],
    pub(super) link: &'a [u8],
}

impl Standing<'_> {
    pub(super) fn checksum(&self, fixed: &Link) -> Checksum {
        let mut hash = Hash::of("executions");
        hash.bytes(fixed);
        hash.bytes(self.workflow.as_bytes());
        hash.bytes(self.workflow_name);
        hash.bytes(self.state);
        hash.text(self.state_name.as_bytes());
        hash.integer(self.head);
        hash.integer(self.updated_at);
        hash.bytes(self.spend);
        hash.bytes(self.link);
        first_bytes(&hash.finish())
    }
}

impl ExecutionRow {
    /// Reads a row whose columns begin with those of an execution.
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Self::try_read(row).map_err(|why| damaged(format!("execution {}", shown_id(row, 1)), why))
    }

    fn try_read(row: &Row) -> Result<Self, Damage> {
        let (key, id): (i64, Uuid) = (get(row, 0)?, get(row, 1)?);
        let (name, created_at): (&[u8], i64) = (get(row, 2)?, get(row, 3)?);
        let origin = (get(row, 4)?, get(row, 5)?);
        let fixed = Fixed { key, id, name, created_at, origin }.hash();
        let standing = Standing {
            workflow: get(row, 6)?,
            workflow_name: get(row, 7)?,
            state: get(row, 8)?,
            state_name: get(row, 9)?,
            head: get(row, 10)?,
            updated_at: get(row, 11)?,
            spend: get(row, 12)?,
            link: get(row, 13)?,
        };
        verify(row, 14, standing.checksum(&fixed))?;
        let last = get(row, 15)?;
        let log = Log { last: count(last, "number of operations")?, link: link(row, 16)? };
        verify(row, 17, log.sum(&fixed, last))?;
        let origin = match origin {
            (Some(execution_id), Some(seq)) => Some(Origin { execution_id, seq: count(seq, "origin")? }),
            (Some(_) | None, _) => None,
        };
        let holder = match (get::<Option<&[u8]>>(row, 22)?, get(row, 23)?, get(row, 24)?) {
            (Some(owner), Some(until), true) => {
                let until = DateTime::from_timestamp_micros(until).unwrap_or(DateTime::<Utc>::MAX_UTC);
                Some((String::from_utf8_lossy(owner).into_owned(), until))
            }
            (Some(_) | None, _, _) => None,
        };
        Ok(Self {
            key,
            record: ExecutionRecord {
                id,
                name: text(name)?,
                workflow_id: standing.workflow,
                workflow_name: text(standing.workflow_name)?,
                state: column::json(standing.state)?,
                head: count(standing.head, "head")?,
                created_at: DateTime::from_timestamp_nanos(created_at),
                updated_at: DateTime::from_timestamp_nanos(standing.updated_at),
                spend: column::packed(standing.spend)?,
                origin,
                leased_by: holder.as_ref().map(|(owner, _)| owner.clone()),
            },
            fixed,
            link: link(row, 13)?,
            log,
            prunings: get(row, 18)?,
            slack: get(row, 19)?,
            slack_max: get(row, 20)?,
            fence: count(get(row, 21)?, "fence")?,
            holder,
        })
    }

    /// Returns the key of an execution that is to go. That its row is damaged is no reason to keep it, unless somebody
    /// advances it.
    pub(super) fn key_to_go(row: &Row) -> Result<i64, StoreError> {
        let damage = match Self::read(row) {
            Ok(execution) => {
                execution.check_free()?;
                return Ok(execution.key);
            }
            Err(damage) => damage,
        };
        match (get(row, 0), get(row, 24)) {
            (Ok(key), Ok(false)) => Ok(key),
            (_, Ok(true)) | (Err(_), _) | (_, Err(_)) => Err(damage),
        }
    }

    pub(super) fn check_fence(&self, ours: u64) -> Result<(), Conflict> {
        if ours == self.fence {
            return Ok(());
        }
        Err(Conflict::Fenced { execution: self.record.id, ours, found: self.fence })
    }

    /// Refuses where somebody advances the execution.
    pub(super) fn check_free(&self) -> Result<(), Conflict> {
        match &self.holder {
            None => Ok(()),
            Some((owner, until)) => {
                Err(Conflict::Leased { execution: self.record.id, owner: owner.clone(), until: *until })
            }
        }
    }

    /// Says why there is no point of this number, where a look for it found none.
    pub(super) fn no_point(&self, seq: Seq) -> StoreError {
        let (execution, head) = (self.record.id, self.record.head);
        if !(1..=head).contains(&seq) {
            return StoreError::NoPoint { execution, seq, head };
        }
        if seq == head {
            let why = "it is the head, and it is missing".to_owned();
            return damaged(format!("checkpoint @{seq} of execution {execution}"), why);
        }
        StoreError::Pruned { execution, seq }
    }
}
