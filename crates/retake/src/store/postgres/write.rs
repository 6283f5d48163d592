//! The statement that commits: for as many executions as there are in a batch, each where its head and its fence are what
//! the writer thinks.

use std::collections::HashSet;

use bytes::Bytes;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::alone;
use super::db::Db;
use super::row::{self, Checksum, Operation, Point};
use crate::store::StoreError;
use crate::store::link::Link;

/// A checkpoint as it is written.
#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) point: Point,
    pub(super) point_checksum: Checksum,
    /// The link of the head that the writer built on.
    pub(super) before: Link,
    pub(super) fence: Option<i64>,
    /// How often points had been removed when the writer looked at the ones that it builds on, which might go.
    pub(super) prunings: Option<i64>,
    /// Of the workflow that the execution runs from now on.
    pub(super) workflow_name: Option<Vec<u8>>,
    pub(super) state_name: &'static str,
    /// That of the execution's row.
    pub(super) checksum: Checksum,
    pub(super) delta: Option<NewDelta>,
    pub(super) operation: Option<NewOperation>,
    pub(super) workflow: Option<Adoption>,
    pub(super) answers: Vec<Uuid>,
    /// Whether the execution's ticket is due, if it waits, or after its claim, if there is no fence.
    pub(super) is_decision: bool,
}

/// A delta as it is written.
#[derive(Debug, Clone)]
pub(super) struct NewDelta {
    pub(super) key: i64,
    pub(super) base: Option<i64>,
    pub(super) body: Bytes,
    pub(super) checksum: Checksum,
}

/// An operation as it is written, and what it does to the execution's row.
#[derive(Debug, Clone)]
pub(super) struct NewOperation {
    pub(super) row: Operation,
    /// That of the end of the log in the execution's row.
    pub(super) log_checksum: Checksum,
}

/// A workflow that an execution is to run.
#[derive(Debug, Clone)]
pub(super) struct Adoption {
    pub(super) id: Uuid,
    pub(super) definition: Vec<u8>,
    pub(super) checksum: Checksum,
    /// That of the row which says that the execution ran it.
    pub(super) run_checksum: Checksum,
}

impl Adoption {
    pub(super) fn new(execution: i64, id: Uuid, definition: Vec<u8>) -> Self {
        let checksum = row::workflow_checksum(id, &definition);
        Self { id, definition, checksum, run_checksum: row::execution_workflow_checksum(execution, id) }
    }
}

impl Write {
    pub(super) fn key(&self) -> i64 {
        self.point.execution
    }

    /// Returns how many bytes its delta takes.
    pub(super) fn bytes(&self) -> usize {
        self.delta.as_ref().map_or(0, |delta| delta.body.len())
    }

    fn is_plain(&self) -> bool {
        self.operation.is_none() && self.workflow.is_none() && self.answers.is_empty() && !self.is_decision
    }
}

/// Moves the heads. `$1` names the executions twice: so each is found by the index, however the table has grown since the
/// statement was planned.
macro_rules! moved {
    ($arrays:literal, $columns:literal, $log:literal, $condition:literal) => {
        concat!(
            "WITH moved AS (
                UPDATE executions e SET head = i.seq, workflow = i.workflow,
                    workflow_name = coalesce(i.workflow_name, e.workflow_name), state = i.state,
                    state_name = i.state_name, updated_at = i.at, spend = i.spend, link = i.link, checksum = i.checksum",
            $log,
            " FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::uuid[], $7::bytea[],
                    $8::bytea[], $9::text[], $10::bigint[], $11::bytea[], $12::bytea[], $13::bytea[]",
            $arrays,
            ") AS i (key, seq, before, fence, prunings, workflow, workflow_name, state, state_name, at, spend, link,
                    checksum",
            $columns,
            ") WHERE e.key = ANY ($1::bigint[]) AND e.key = i.key AND e.head = i.seq - 1 AND e.link = i.before
                    AND CASE WHEN i.fence IS NULL THEN e.lease_until IS NULL OR e.lease_until <= moment()
                        ELSE e.fence = i.fence END
                    AND (i.prunings IS NULL OR e.prunings = i.prunings)",
            $condition,
            " RETURNING e.key
            ), points AS (
                INSERT INTO checkpoints (execution, seq, id, parent, delta, created_at, cause, label, state,
                    completed_nodes, size_bytes, compressed, nodes, workflow, spend, link, checksum)
                SELECT execution, seq, id, parent, delta, at, cause, label, state, completed, size, compressed, nodes,
                    workflow, spend, link, checksum
                FROM unnest($1::bigint[], $2::bigint[], $14::uuid[], $15::bigint[], $16::bigint[], $10::bigint[],
                    $17::bytea[], $18::bytea[], $8::bytea[], $19::bigint[], $20::bigint[], $21::boolean[], $22::bytea[],
                    $6::uuid[], $11::bytea[], $12::bytea[], $23::bytea[])
                    AS p (execution, seq, id, parent, delta, at, cause, label, state, completed, size, compressed, nodes,
                    workflow, spend, link, checksum)
                WHERE execution IN (SELECT key FROM moved)
            ), new_deltas AS (
                INSERT INTO deltas (key, base, body, checksum)
                SELECT key, base, body, checksum
                FROM unnest($24::bigint[], $25::bigint[], $26::bigint[], $27::bytea[], $28::bytea[])
                    AS d (execution, key, base, body, checksum)
                WHERE execution IN (SELECT key FROM moved)
            )"
        )
    };
}

/// Keeps definitions that are new, and notes who ran them, from four arrays and one: a workflow that came without a
/// definition takes the first that comes.
macro_rules! adopted {
    ($arrays:literal, $who:literal) => {
        concat!(
            "adoptions AS MATERIALIZED (
                SELECT execution, id, definition, checksum, run_checksum FROM unnest(",
            $arrays,
            ") AS w (execution, id, definition, checksum, run_checksum) WHERE execution IN (SELECT key FROM ",
            $who,
            ")
            ), definitions AS (
                INSERT INTO workflows AS w (id, definition, checksum)
                SELECT DISTINCT ON (id) id, definition, checksum FROM adoptions a WHERE NOT EXISTS (
                    SELECT FROM workflows w WHERE w.id = a.id
                        AND (octet_length(w.definition) > 0 OR octet_length(a.definition) = 0)
                )
                ORDER BY id, octet_length(definition) = 0
                ON CONFLICT (id) DO UPDATE SET definition = excluded.definition, checksum = excluded.checksum
                WHERE octet_length(w.definition) = 0
            ), runs AS (
                INSERT INTO execution_workflows (execution, workflow, checksum)
                SELECT DISTINCT ON (execution, id) execution, id, run_checksum FROM adoptions
                ON CONFLICT (execution, workflow) DO NOTHING
            )"
        )
    };
}
pub(super) use adopted;

pub(super) const PLAIN: &str = concat!(moved!("", "", "", ""), " SELECT key FROM moved");

pub(super) const FULL: &str = concat!(
    moved!(
        ", $29::bigint[], $30::bytea[], $31::bytea[]",
        ", number, log_link, log_checksum",
        ", log_last = coalesce(i.number, e.log_last), log_link = coalesce(i.log_link, e.log_link),
            log_checksum = coalesce(i.log_checksum, e.log_checksum)",
        " AND (i.number IS NULL OR e.log_last = i.number - 1)"
    ),
    ", logged AS (
        INSERT INTO operations (execution, number, at, who, command, cause, head_before, head_after, link, checksum)
        SELECT execution, number, at, who, command, cause, head_before, head_after, link, checksum
        FROM unnest($32::bigint[], $33::bigint[], $34::bigint[], $35::bytea[], $36::bytea[], $37::bytea[], $38::bigint[],
            $39::bigint[], $40::bytea[], $41::bytea[])
            AS o (execution, number, at, who, command, cause, head_before, head_after, link, checksum)
        WHERE execution IN (SELECT key FROM moved)
    ), ",
    adopted!("$42::bigint[], $43::uuid[], $44::bytea[], $45::bytea[], $46::bytea[]", "moved"),
    ", answered AS (
        DELETE FROM requests r USING unnest($47::bigint[], $48::uuid[]) AS a (execution, id)
        WHERE r.id = ANY ($48::uuid[]) AND r.id = a.id AND r.execution = a.execution
            AND a.execution IN (SELECT key FROM moved)
    ), called AS (
        UPDATE tickets t SET stand = CASE WHEN t.stand = 'claimed' THEN 'claimed' ELSE 'ready' END,
            due = CASE WHEN t.stand = 'claimed' THEN t.due ELSE least(t.due, moment()) END,
            again = CASE WHEN t.stand = 'claimed' THEN least(t.again, moment()) END
        FROM unnest($1::bigint[], $4::bigint[]) AS i (key, fence)
        WHERE t.execution = ANY ($49::bigint[]) AND t.execution = i.key AND i.key IN (SELECT key FROM moved)
            -- Whoever claimed it and has not settled it yet may not have seen what was committed without a fence.
            AND (t.stand IN ('held', 'delayed') OR t.stand = 'claimed' AND i.fence IS NULL)
    ) SELECT key FROM moved"
);

/// Commits, at most one write of each execution. Returns the executions whose write went through.
pub(super) async fn commit(db: &Db, writes: &[Write]) -> Result<HashSet<i64>, StoreError> {
    if let [write] = writes
        && write.is_plain()
        && let Some(delta) = &write.delta
    {
        let done = alone::commit(db, write, delta).await?;
        return Ok(done.then(|| write.key()).into_iter().collect());
    }
    let each = |write: fn(&Write) -> i64| writes.iter().map(write).collect::<Vec<_>>();
    let bytes = |write: fn(&Write) -> &[u8]| writes.iter().map(write).collect::<Vec<_>>();
    let optional = |write: fn(&Write) -> Option<i64>| writes.iter().map(write).collect::<Vec<_>>();
    let ids = |write: fn(&Write) -> Uuid| writes.iter().map(write).collect::<Vec<_>>();
    let optional_bytes = |write: fn(&Write) -> Option<&[u8]>| writes.iter().map(write).collect::<Vec<_>>();

    let keys = each(Write::key);
    let seqs = each(|write| write.point.seq);
    let befores = bytes(|write| &write.before);
    let fences = optional(|write| write.fence);
    let prunings = optional(|write| write.prunings);
    let workflows = ids(|write| write.point.workflow);
    let workflow_names = optional_bytes(|write| write.workflow_name.as_deref());
    let states = bytes(|write| &write.point.state);
    let state_names: Vec<&str> = writes.iter().map(|write| write.state_name).collect();
    let times = each(|write| write.point.created_at);
    let spends = bytes(|write| &write.point.spend);
    let links = bytes(|write| &write.point.link);
    let checksums = bytes(|write| &write.checksum);
    let point_ids = ids(|write| write.point.id);
    let parents = optional(|write| write.point.parent);
    let stands = each(|write| write.point.delta);
    let causes = bytes(|write| &write.point.cause);
    let labels = optional_bytes(|write| write.point.label.as_deref());
    let completed = each(|write| write.point.completed_nodes);
    let sizes = each(|write| write.point.size_bytes);
    let compressed: Vec<bool> = writes.iter().map(|write| write.point.compressed).collect();
    let nodes = bytes(|write| &write.point.nodes);
    let point_checksums = bytes(|write| &write.point_checksum);
    let with_delta = || writes.iter().filter_map(|write| Some((write.key(), write.delta.as_ref()?)));
    let delta_owners: Vec<i64> = with_delta().map(|(key, _)| key).collect();
    let deltas: Vec<i64> = with_delta().map(|(_, delta)| delta.key).collect();
    let bases: Vec<Option<i64>> = with_delta().map(|(_, delta)| delta.base).collect();
    let bodies: Vec<&[u8]> = with_delta().map(|(_, delta)| &delta.body[..]).collect();
    let delta_checksums: Vec<&[u8]> = with_delta().map(|(_, delta)| &delta.checksum[..]).collect();
    let plain: [&(dyn ToSql + Sync); 28] = [
        &keys,
        &seqs,
        &befores,
        &fences,
        &prunings,
        &workflows,
        &workflow_names,
        &states,
        &state_names,
        &times,
        &spends,
        &links,
        &checksums,
        &point_ids,
        &parents,
        &stands,
        &causes,
        &labels,
        &completed,
        &sizes,
        &compressed,
        &nodes,
        &point_checksums,
        &delta_owners,
        &deltas,
        &bases,
        &bodies,
        &delta_checksums,
    ];
    let rows = if writes.iter().all(Write::is_plain) {
        db.write("committing", PLAIN, &plain).await?
    } else {
        let extras = Extras::new(writes);
        db.write("committing", FULL, &[&plain[..], &extras.values()].concat()).await?
    };
    let key = |row| row::get(row, 0).map_err(|why| row::damaged("the answer to a commit".to_owned(), why));
    rows.iter().map(key).collect()
}

/// The arrays for what few commits bring.
struct Extras<'a> {
    numbers: Vec<Option<i64>>,
    log_links: Vec<Option<&'a [u8]>>,
    log_checksums: Vec<Option<&'a [u8]>>,
    operations: OperationArrays<'a>,
    adopters: Vec<i64>,
    workflows: Vec<Uuid>,
    definitions: Vec<&'a [u8]>,
    definition_checksums: Vec<&'a [u8]>,
    run_checksums: Vec<&'a [u8]>,
    answerers: Vec<i64>,
    answers: Vec<Uuid>,
    decided: Vec<i64>,
}

impl<'a> Extras<'a> {
    fn new(writes: &'a [Write]) -> Self {
        let adoptions = || writes.iter().filter_map(|write| Some((write.key(), write.workflow.as_ref()?)));
        let answers = || writes.iter().flat_map(|write| write.answers.iter().map(|id| (write.key(), *id)));
        let logged = || writes.iter().map(|write| write.operation.as_ref());
        Self {
            numbers: logged().map(|operation| operation.map(|operation| operation.row.number)).collect(),
            log_links: logged().map(|operation| operation.map(|operation| &operation.row.link[..])).collect(),
            log_checksums: logged()
                .map(|operation| operation.map(|operation| &operation.log_checksum[..]))
                .collect(),
            operations: OperationArrays::new(logged().flatten().map(|operation| &operation.row)),
            adopters: adoptions().map(|(key, _)| key).collect(),
            workflows: adoptions().map(|(_, adoption)| adoption.id).collect(),
            definitions: adoptions().map(|(_, adoption)| &adoption.definition[..]).collect(),
            definition_checksums: adoptions().map(|(_, adoption)| &adoption.checksum[..]).collect(),
            run_checksums: adoptions().map(|(_, adoption)| &adoption.run_checksum[..]).collect(),
            answerers: answers().map(|(key, _)| key).collect(),
            answers: answers().map(|(_, id)| id).collect(),
            decided: writes.iter().filter(|write| write.is_decision).map(Write::key).collect(),
        }
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&self.numbers, &self.log_links, &self.log_checksums];
        values.extend(self.operations.values());
        let adoptions: [&(dyn ToSql + Sync); 5] = [
            &self.adopters,
            &self.workflows,
            &self.definitions,
            &self.definition_checksums,
            &self.run_checksums,
        ];
        values.extend(adoptions);
        values.extend([&self.answerers as &(dyn ToSql + Sync), &self.answers, &self.decided]);
        values
    }
}

/// The columns of operations, each as an array.
pub(super) struct OperationArrays<'a> {
    executions: Vec<i64>,
    numbers: Vec<i64>,
    times: Vec<i64>,
    who: Vec<&'a [u8]>,
    commands: Vec<&'a [u8]>,
    causes: Vec<&'a [u8]>,
    befores: Vec<i64>,
    afters: Vec<i64>,
    links: Vec<&'a [u8]>,
    checksums: Vec<Vec<u8>>,
}

impl<'a> OperationArrays<'a> {
    pub(super) fn new(rows: impl Iterator<Item = &'a Operation>) -> Self {
        let rows: Vec<&Operation> = rows.collect();
        Self {
            executions: rows.iter().map(|row| row.execution).collect(),
            numbers: rows.iter().map(|row| row.number).collect(),
            times: rows.iter().map(|row| row.at).collect(),
            who: rows.iter().map(|row| &row.who[..]).collect(),
            commands: rows.iter().map(|row| &row.command[..]).collect(),
            causes: rows.iter().map(|row| &row.cause[..]).collect(),
            befores: rows.iter().map(|row| row.before).collect(),
            afters: rows.iter().map(|row| row.after).collect(),
            links: rows.iter().map(|row| &row.link[..]).collect(),
            checksums: rows.iter().map(|row| row.checksum().to_vec()).collect(),
        }
    }

    pub(super) fn values(&self) -> [&(dyn ToSql + Sync); 10] {
        [
            &self.executions,
            &self.numbers,
            &self.times,
            &self.who,
            &self.commands,
            &self.causes,
            &self.befores,
            &self.afters,
            &self.links,
            &self.checksums,
        ]
    }
}
