//! The statement that commits one write alone: values take the place of the arrays of [`write`](super::write), which the
//! server reads and joins for longer than it takes to write the rows.

use tokio_postgres::types::ToSql;

use super::db::Db;
use super::write::{NewDelta, Write};
use crate::store::StoreError;

/// Moves the head where the execution is as the writer thinks, and only then writes the point and its delta.
const ALONE: &str = "
WITH moved AS (
    UPDATE executions e SET head = $2, workflow = $6, workflow_name = coalesce($7, e.workflow_name), state = $8,
        state_name = $9, updated_at = $10, spend = $11, link = $12, checksum = $13
    WHERE e.key = $1 AND e.head = $2::bigint - 1 AND e.link = $3
        AND CASE WHEN $4::bigint IS NULL THEN e.lease_until IS NULL OR e.lease_until <= moment()
            ELSE e.fence = $4::bigint END
        AND ($5::bigint IS NULL OR e.prunings = $5::bigint)
    RETURNING e.key
), points AS (
    INSERT INTO checkpoints (execution, seq, id, parent, delta, created_at, cause, label, state, completed_nodes,
        size_bytes, compressed, nodes, workflow, spend, link, checksum)
    SELECT key, $2::bigint, $14::uuid, $15::bigint, $16::bigint, $10::bigint, $17::bytea, $18::bytea, $8::bytea,
        $19::bigint, $20::bigint, $21::boolean, $22::bytea, $6::uuid, $11::bytea, $12::bytea, $23::bytea
    FROM moved
), new_deltas AS (
    INSERT INTO deltas (key, base, body, checksum) SELECT $24::bigint, $25::bigint, $26::bytea, $27::bytea FROM moved
) SELECT key FROM moved";

/// Commits a plain write with a delta. Returns whether it went through.
pub(super) async fn commit(db: &Db, write: &Write, delta: &NewDelta) -> Result<bool, StoreError> {
    let point = &write.point;
    let values: [&(dyn ToSql + Sync); 27] = [
        &point.execution,
        &point.seq,
        &&write.before[..],
        &write.fence,
        &write.prunings,
        &point.workflow,
        &write.workflow_name,
        &&point.state[..],
        &write.state_name,
        &point.created_at,
        &&point.spend[..],
        &&point.link[..],
        &&write.checksum[..],
        &point.id,
        &point.parent,
        &point.delta,
        &&point.cause[..],
        &point.label,
        &point.completed_nodes,
        &point.size_bytes,
        &point.compressed,
        &&point.nodes[..],
        &&write.point_checksum[..],
        &delta.key,
        &delta.base,
        &&delta.body[..],
        &&delta.checksum[..],
    ];
    Ok(!db.write("committing", ALONE, &values).await?.is_empty())
}
