//! Definitions of workflows, and which executions ever ran them.
//!
//! A definition stays as long as any execution is there that ever ran it: older points, and forks of them, need the one
//! that they were made with, though the execution may run another by now and the points may have been pruned.

use rusqlite::types::ValueRef;

use super::db::{self, Db};
use super::guard::{Cell, Spot};
use super::row::ExecutionRow;
use crate::execution::WorkflowId;
use crate::store::{NewWorkflow, StoreError};

/// Keeps a definition, where there is none yet for its workflow.
fn keep(db: &Db, workflow: &NewWorkflow) -> Result<(), StoreError> {
    let definition = match workflow.definition.is_empty() {
        // One that is missing shows, so that another may take its place.
        true => Cell::Bare(ValueRef::Blob(&[])),
        false => db.guard().hide(spot(workflow.id), "definition", &workflow.definition[..])?,
    };
    let values = [ValueRef::Blob(workflow.id.as_bytes()), definition.value()];
    db.put(
        "workflows",
        "INSERT INTO workflows (id, definition, checksum) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE \
         SET definition = excluded.definition, checksum = excluded.checksum WHERE length(definition) = 0",
        &values,
    )
}

fn spot(id: WorkflowId) -> Spot {
    Spot { table: "workflows", owner: id, number: 0 }
}

/// Makes an execution run a workflow from now on. Its row, which must be there, is written by the caller.
pub(super) fn adopt(db: &Db, execution: &mut ExecutionRow, workflow: &NewWorkflow) -> Result<(), StoreError> {
    keep(db, workflow)?;
    let values = [ValueRef::Integer(execution.key), ValueRef::Blob(workflow.id.as_bytes())];
    db.put(
        "execution_workflows",
        "INSERT OR IGNORE INTO execution_workflows (execution, workflow, checksum) VALUES (?1, ?2, ?3)",
        &values,
    )?;
    execution.record.workflow_id = workflow.id;
    execution.record.workflow_name.clone_from(&workflow.name);
    Ok(())
}

/// Reads the definition of a workflow: `None` where there is none, or an empty one.
pub(super) fn definition(db: &Db, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError> {
    let definition = db.first(
        "SELECT id, definition, checksum FROM workflows WHERE id = ?1",
        [id.as_bytes()],
        |row| format!("workflow {}", db::shown(row, 0)),
        |row| {
            db.verify("workflows", row, 2)?;
            if db::id(row, 0)? != id {
                return Err(db::OUT_OF_ORDER.to_owned());
            }
            match db::blob(row, 1)? {
                [] => Ok(Vec::new()),
                _ => db.seen(spot(id), "definition", row, 1),
            }
        },
    )?;
    Ok(definition.filter(|definition| !definition.is_empty()))
}

/// Reads the workflows that an execution ever ran.
pub(super) fn ever_run(db: &Db, execution: &ExecutionRow) -> Result<Vec<WorkflowId>, StoreError> {
    db.all(
        "SELECT execution, workflow, checksum FROM execution_workflows WHERE execution = ?1",
        [execution.key],
        |row| format!("workflow {} of execution {}", db::shown(row, 1), execution.record.id),
        |row| {
            db.verify("execution_workflows", row, 2)?;
            db::id(row, 1)
        },
    )
}

/// Removes the definitions that none of the executions which are there ever ran.
pub(super) fn remove_unneeded(db: &Db) -> Result<(), StoreError> {
    db.run("DELETE FROM workflows WHERE id NOT IN (SELECT workflow FROM execution_workflows)", []).map(|_| ())
}
