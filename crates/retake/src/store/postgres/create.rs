//! Creating executions, forks among them.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::Shared;
use super::chain::{self, Reader};
use super::commit::{self, Draft};
use super::db::Values;
use super::execution::{ExecutionRow, Fixed, Log};
use super::known::Known;
use super::outage::Outage;
use super::row::{self, Point};
use super::write::{Adoption, NewOperation, OperationArrays};
use crate::store::link;
use crate::store::load::FLOOR_MIN;
use crate::store::{CheckpointRecord, Commit, Conflict, NewCheckpoint, NewExecution, StoreError, column};

/// How often a creation is tried where its keys turn out to be somebody else's.
const ATTEMPTS_MAX: usize = 16;

/// Adds an execution with its first point on a condition, and does the rest of the statement with it.
macro_rules! created {
    ($condition:literal, $rest:literal) => {
        concat!(
    "WITH made AS (
        INSERT INTO executions (key, id, name, created_at, origin_id, origin_seq, workflow, workflow_name, state,
            state_name, head, updated_at, spend, link, checksum, log_last, log_link, log_checksum, slack_max)
        SELECT $1::bigint, $2::uuid, $3::bytea, $4::bigint, $5::uuid, $6::bigint, $7::uuid, $8::bytea, $9::bytea,
            $10::text, $11::bigint, $4, $12::bytea, $13::bytea, $14::bytea, $15::bigint, $16::bytea, $17::bytea,
            $18::bigint ",
    $condition,
    " RETURNING key
    ), points AS (
        INSERT INTO checkpoints (execution, seq, id, parent, delta, created_at, cause, label, state, completed_nodes,
            size_bytes, compressed, nodes, workflow, spend, link, checksum)
        SELECT key, $11, $19::uuid, NULL, $20::bigint, $4, $21::bytea, $22::bytea, $9, $23::bigint, $24::bigint,
            $25::boolean, $26::bytea, $7, $12, $13, $27::bytea
        FROM made
    ), new_deltas AS (
        INSERT INTO deltas (key, base, body, checksum)
        SELECT $20::bigint, $28::bigint, $29::bytea, $30::bytea FROM made WHERE $29::bytea IS NOT NULL
    ), logged AS (
        INSERT INTO operations (execution, number, at, who, command, cause, head_before, head_after, link, checksum)
        SELECT execution, number, at, who, command, cause, head_before, head_after, link, checksum
        FROM unnest($31::bigint[], $32::bigint[], $33::bigint[], $34::bytea[], $35::bytea[], $36::bytea[], $37::bigint[],
            $38::bigint[], $39::bytea[], $40::bytea[])
            AS o (execution, number, at, who, command, cause, head_before, head_after, link, checksum)
        WHERE execution IN (SELECT key FROM made)
    ), ",
    $crate::store::postgres::write::adopted!(
        "$41::bigint[], $42::uuid[], $43::bytea[], $44::bytea[], $45::bytea[]",
        "made"
    ),
    $rest
        )
    };
}
pub(super) use created;

pub(super) const INSERT: &str = created!("", " SELECT key FROM made");

/// An execution that is to be created, with everything in it that the server need not be asked for.
#[derive(Debug)]
pub(super) struct Creation {
    new: NewExecution,
    draft: Draft,
}

/// What is done together with a creation.
#[derive(Debug, Clone, Copy)]
pub(super) struct With<'a> {
    /// The statement, which begins as [`INSERT`] does.
    pub(super) sql: &'static str,
    /// Its values behind those of that.
    pub(super) values: Values<'a>,
    /// What follows it when it is durable, where that is of no consequence.
    pub(super) after: (&'static str, Values<'a>),
}

/// What a creation made.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) record: CheckpointRecord,
    /// What is known of it then; `None` for a fork.
    known: Option<Known>,
}

impl Creation {
    pub(super) async fn made(
        shared: &Shared,
        new: NewExecution,
        first: NewCheckpoint,
    ) -> Result<Self, StoreError> {
        let commit = Commit { execution_id: new.id, expected_head: 0, fence: None, checkpoint: first };
        Ok(Self { new, draft: Draft::made(shared, commit).await? })
    }

    /// Refuses a first checkpoint that names a point before it. What is taken comes first.
    pub(super) fn check_first(&self) -> Result<(), StoreError> {
        let checkpoint = &self.draft.checkpoint;
        match checkpoint.parent.or(checkpoint.base) {
            Some(seq) => Err(StoreError::NoPoint { execution: self.new.id, seq, head: 0 }),
            None => Ok(()),
        }
    }

    /// Tells whether it shares what is stored of another one.
    pub(super) fn is_fork(&self) -> bool {
        self.new.origin.is_some()
    }

    /// Adds the execution, on its own or as part of a transaction. A fork's must be one: its origin's point stays as long
    /// as that runs, and nothing follows then. Returns the rows of the statement, too.
    pub(super) async fn insert(
        &self,
        shared: &Shared,
        reader: &mut Reader<'_>,
        with: Option<With<'_>>,
    ) -> Result<(Created, Vec<Row>), StoreError> {
        let base = match self.new.origin {
            Some(origin) => {
                let execution = ExecutionRow::locked(reader, origin.execution_id).await?;
                Some(execution.point(reader, origin.seq).await?.delta)
            }
            None => None,
        };
        self.insert_on(shared, reader, base, with).await
    }

    async fn insert_on(
        &self,
        shared: &Shared,
        reader: &mut Reader<'_>,
        base: Option<i64>,
        with: Option<With<'_>>,
    ) -> Result<(Created, Vec<Row>), StoreError> {
        let (new, checkpoint) = (&self.new, &self.draft.checkpoint);
        let key = shared.keys.next(reader, 0).await?;
        let empty;
        let body = match (&self.draft.body, base) {
            (Some(body), _) => Some(&body[..]),
            // Nothing changed: the point is its base's state, and shares its row.
            (None, Some(_)) => None,
            (None, None) => {
                empty = chain::encoded(&checkpoint.delta, None)?.bytes;
                Some(&empty[..])
            }
        };
        let delta = match (body, base) {
            (None, Some(base)) => base,
            (_, base) => shared.keys.next(reader, base.unwrap_or(0)).await?,
        };
        let delta_checksum = body.map(|body| row::delta_checksum(delta, base, body).to_vec());
        let length = body.map_or(0, <[u8]>::len);
        let record = commit::record(&self.draft, 1, None, new.workflow_id, length);
        let point = Point::new(key, delta, &link::start(new.id), &record)?;
        let origin_id = new.origin.map(|origin| origin.execution_id);
        let origin_seq = new.origin.map(|origin| column::stored("the origin", origin.seq)).transpose()?;
        let fixed = Fixed {
            key,
            id: new.id,
            name: new.name.as_bytes(),
            created_at: point.created_at,
            origin: (origin_id, origin_seq),
        }
        .hash();
        let workflow_name =
            checkpoint.workflow.as_ref().map_or(&new.workflow_name, |workflow| &workflow.name);
        let state_name = record.state.name();
        let checksum = commit::standing(&point, state_name, workflow_name, &fixed);
        let (operation, log) = commit::logged(key, &Log::start(new.id), &fixed, &record, 0, checkpoint)?;
        let log_last = column::stored("the operation", log.last)?;
        let log_checksum = log.checksum(&fixed)?;
        let operations = OperationArrays::new(operation.iter().map(|NewOperation { row, .. }| row));
        let first = Adoption::new(key, new.workflow_id, new.definition.clone());
        let named = checkpoint.workflow.as_ref();
        let named = named.map(|workflow| Adoption::new(key, workflow.id, workflow.definition.clone()));
        let adoptions: Vec<&Adoption> = std::iter::once(&first).chain(&named).collect();
        let adopters = vec![key; adoptions.len()];
        let workflows: Vec<_> = adoptions.iter().map(|adoption| adoption.id).collect();
        let definitions: Vec<&[u8]> = adoptions.iter().map(|adoption| &adoption.definition[..]).collect();
        let checksums: Vec<&[u8]> = adoptions.iter().map(|adoption| &adoption.checksum[..]).collect();
        let run_checksums: Vec<&[u8]> = adoptions.iter().map(|adoption| &adoption.run_checksum[..]).collect();
        let values: [&(dyn ToSql + Sync); 30] = [
            &key,
            &new.id,
            &new.name.as_bytes(),
            &point.created_at,
            &origin_id,
            &origin_seq,
            &point.workflow,
            &workflow_name.as_bytes(),
            &point.state,
            &state_name,
            &point.seq,
            &point.spend,
            &&point.link[..],
            &&checksum[..],
            &log_last,
            &&log.link[..],
            &&log_checksum[..],
            &FLOOR_MIN,
            &point.id,
            &point.delta,
            &point.cause,
            &point.label,
            &point.completed_nodes,
            &point.size_bytes,
            &point.compressed,
            &point.nodes,
            &&point.checksum()[..],
            &base,
            &body,
            &delta_checksum,
        ];
        let adopted: [&(dyn ToSql + Sync); 5] =
            [&adopters, &workflows, &definitions, &checksums, &run_checksums];
        let more = with.map_or(&[] as Values<'_>, |with| with.values);
        let values = [&values[..], &operations.values(), &adopted, more].concat();
        let sql = with.map_or(INSERT, |with| with.sql);
        let rows = reader.write("creating", sql, &values, with.map(|with| with.after)).await?;
        let known = base.is_none().then(|| Known {
            key,
            head: 1,
            delta,
            fixed,
            link: point.link,
            workflow: record.workflow_id,
            workflow_name: workflow_name.as_str().into(),
            log,
            reach: commit::reach_of_root(length),
        });
        Ok((Created { record, known }, rows))
    }

    /// Returns the conflict that a failure stands for, if it does.
    pub(super) fn taken(&self, shared: &Shared, error: &StoreError) -> Option<StoreError> {
        match super::fault::violated(error)? {
            "executions_by_id" => Some(Conflict::IdTaken(self.new.id).into()),
            "executions_by_name" => Some(Conflict::NameTaken(self.new.name.clone()).into()),
            "checkpoints_by_id" => Some(Conflict::IdTaken(self.draft.checkpoint.id).into()),
            "executions_pkey" | "deltas_pkey" => {
                shared.keys.forget();
                None
            }
            _ => None,
        }
    }

    /// Looks whether it has been created: nobody else has the id of its first point.
    pub(super) async fn done(&self, shared: &Shared) -> Result<Option<CheckpointRecord>, StoreError> {
        let found = super::query::by_id(&mut Reader::Db(&shared.db), self.draft.checkpoint.id).await?;
        Ok(found.filter(|record| (record.execution_id, record.seq) == (self.new.id, 1)))
    }
}

/// Creates an execution with its first checkpoint.
///
/// Where the connection is lost, it finds out by the checkpoint's id whether it was done, and does it if not.
pub(super) async fn create(
    shared: &Arc<Shared>,
    new: NewExecution,
    first: NewCheckpoint,
) -> Result<CheckpointRecord, StoreError> {
    let creation = Creation::made(shared, new, first).await?;
    // Refused before anything is looked at, though a name that is taken would be told first.
    creation.check_first()?;
    let mut outage = Outage::new(shared.db.options());
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        if outage.is_any() {
            match creation.done(shared).await {
                Ok(Some(record)) => return Ok(record),
                Ok(None) => {}
                Err(error) => {
                    outage.wait(error).await?;
                    continue;
                }
            }
        }
        match attempt(shared, &creation).await {
            Ok(Created { record, known }) => {
                shared.batcher.count(1);
                match known {
                    Some(known) => shared.cache.put(record.execution_id, known),
                    None => shared.cache.forget(record.execution_id),
                }
                return Ok(record);
            }
            Err(error) => {
                if let Some(taken) = creation.taken(shared, &error) {
                    return Err(taken);
                }
                if super::fault::violated(&error).is_none() {
                    outage.wait(error).await?;
                } else {
                    last = Some(error);
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| StoreError::Closed { location: shared.db.location().to_owned() }))
}

async fn attempt(shared: &Arc<Shared>, creation: &Creation) -> Result<Created, StoreError> {
    if !creation.is_fork() {
        return Ok(creation.insert(shared, &mut Reader::Db(&shared.db), None).await?.0);
    }
    let mut transaction = shared.db.transaction("creating").await?;
    let (created, _) = creation.insert(shared, &mut Reader::Transaction(&mut transaction), None).await?;
    transaction.commit().await?;
    Ok(created)
}
