//! Reading records.

use tokio_postgres::Row;
use uuid::Uuid;

use super::Shared;
use super::chain::{self, Reader};
use super::execution::{EXECUTION_COLUMNS, ExecutionRow, execution_columns};
use super::row::{self, Operation, Point, checkpoint_columns, damaged, operation_columns};
use crate::checkpoint::CheckpointId;
use crate::execution::{ExecutionId, WorkflowId};
use crate::store::record::ids_beginning;
use crate::store::{
    CheckpointRecord, ExecutionFilter, ExecutionRecord, HistoryPage, Image, OperationRecord, Seq, StoreError,
    link,
};

/// Selects executions, each with the number of its newest point.
macro_rules! executions {
    ($rest:literal) => {
        concat!(
            "SELECT ",
            execution_columns!(),
            ", (SELECT c.seq FROM checkpoints c WHERE c.execution = e.key ORDER BY c.seq DESC LIMIT 1) \
             FROM executions e ",
            $rest
        )
    };
}

pub(super) const BY_ID: &str = executions!("WHERE e.id = $1");

pub(super) const NEWEST: &str = executions!("ORDER BY e.created_at DESC, e.id DESC LIMIT $1");

pub(super) const BY_STATE: &str =
    executions!("WHERE e.state_name = $2::text ORDER BY e.created_at DESC, e.id DESC LIMIT $1");

pub(super) const BY_ORIGIN: &str = executions!(
    "WHERE e.origin_id = $3::uuid AND ($2::text IS NULL OR e.state_name = $2) \
     ORDER BY e.created_at DESC, e.id DESC LIMIT $1"
);

pub(super) const BY_ADDRESS: &str = executions!(
    "WHERE e.key = ANY (ARRAY(SELECT n.key FROM executions n WHERE sha256(n.name) = sha256($4::bytea) UNION \
     SELECT i.key FROM executions i WHERE i.id BETWEEN $5::uuid AND $6::uuid)) \
     AND ($2::text IS NULL OR e.state_name = $2) AND ($3::uuid IS NULL OR e.origin_id = $3) \
     ORDER BY e.created_at DESC, e.id DESC LIMIT $1"
);

const POINT: &str =
    concat!("SELECT ", checkpoint_columns!(), " FROM checkpoints c WHERE c.execution = $1 AND c.seq = $2");

const POINT_OF: &str = concat!(
    "SELECT ",
    checkpoint_columns!(),
    " FROM checkpoints c WHERE c.execution = (SELECT e.key FROM executions e WHERE e.id = $1) AND c.seq = $2"
);

pub(super) const POINTS: &str = concat!(
    "SELECT ",
    checkpoint_columns!(),
    " FROM checkpoints c WHERE c.execution = (SELECT e.key FROM executions e WHERE e.id = $1) AND c.seq < $2 \
     ORDER BY c.seq DESC LIMIT $3"
);

pub(super) const POINT_BY_ID: &str = concat!(
    "SELECT ",
    execution_columns!(),
    ", ",
    checkpoint_columns!(),
    " FROM checkpoints c LEFT JOIN executions e ON e.key = c.execution WHERE c.id = $1"
);

pub(super) const OPERATIONS: &str = concat!(
    "SELECT ",
    operation_columns!(),
    " FROM operations o WHERE o.execution = (SELECT e.key FROM executions e WHERE e.id = $1) ORDER BY o.number DESC"
);

impl ExecutionRow {
    pub(super) async fn by_id(reader: &mut Reader<'_>, id: ExecutionId) -> Result<Option<Self>, StoreError> {
        let sql = concat!("SELECT ", execution_columns!(), " FROM executions e WHERE e.id = $1");
        reader.query(sql, &[&id]).await?.first().map(Self::read).transpose()
    }

    pub(super) async fn require(reader: &mut Reader<'_>, id: ExecutionId) -> Result<Self, StoreError> {
        Self::by_id(reader, id).await?.ok_or(StoreError::NoExecution(id))
    }

    /// Reads an execution whose points stay as long as the transaction runs.
    pub(super) async fn locked(reader: &mut Reader<'_>, id: ExecutionId) -> Result<Self, StoreError> {
        let sql =
            concat!("SELECT ", execution_columns!(), " FROM executions e WHERE e.id = $1 FOR SHARE OF e");
        let found = reader.query(sql, &[&id]).await?;
        Self::read(found.first().ok_or(StoreError::NoExecution(id))?)
    }

    /// Returns a point that must be there.
    pub(super) async fn point(&self, reader: &mut Reader<'_>, seq: Seq) -> Result<Point, StoreError> {
        let Some(stored) = i64::try_from(seq).ok().filter(|_| (1..=self.record.head).contains(&seq)) else {
            return Err(self.no_point(seq));
        };
        let found = reader.query(POINT, &[&self.key, &stored]).await?;
        let row = found.first().ok_or_else(|| self.no_point(seq))?;
        Point::read(row, 0, self.record.id)
    }
}

/// Reads an execution, and looks whether its head is its newest point: rows that came back as they once were are whole
/// by themselves.
fn current(row: &Row) -> Result<ExecutionRow, StoreError> {
    let execution = ExecutionRow::read(row)?;
    let newest: Option<i64> = row::get(row, EXECUTION_COLUMNS).unwrap_or_default();
    let (id, head) = (execution.record.id, execution.record.head);
    if newest.and_then(|newest| u64::try_from(newest).ok()) == Some(head) {
        return Ok(execution);
    }
    let why = match newest {
        Some(newest) => format!("its head is @{head}, and its newest point is @{newest}"),
        None => format!("its head is @{head}, and it has no points"),
    };
    Err(damaged(format!("execution {id}"), why))
}

pub(super) async fn execution(
    shared: &Shared,
    id: ExecutionId,
) -> Result<Option<ExecutionRecord>, StoreError> {
    let found = shared.db.optional("reading", BY_ID, &[&id]).await?;
    Ok(found.as_ref().map(current).transpose()?.map(|execution| execution.record))
}

pub(super) async fn executions(
    shared: &Shared,
    filter: &ExecutionFilter,
) -> Result<Vec<ExecutionRecord>, StoreError> {
    let state = filter.state.as_deref();
    if state.is_some_and(|state| state.contains('\0')) {
        // No text on the server has one.
        return Ok(Vec::new());
    }
    let limit = limit(filter.limit);
    let db = &shared.db;
    let rows = match (&filter.address, filter.origin) {
        (None, None) if state.is_none() => db.query("listing", NEWEST, &[&limit]).await,
        (None, None) => db.query("listing", BY_STATE, &[&limit, &state]).await,
        (None, Some(origin)) => db.query("listing", BY_ORIGIN, &[&limit, &state, &origin]).await,
        (Some(address), origin) => {
            let (least, most) = ids_beginning(address).unzip();
            let (least, most) = (least.map(Uuid::from_bytes), most.map(Uuid::from_bytes));
            let name = address.as_bytes();
            db.query("listing", BY_ADDRESS, &[&limit, &state, &origin, &name, &least, &most]).await
        }
    };
    let records: Vec<ExecutionRecord> =
        rows?.iter().map(|row| Ok(current(row)?.record)).collect::<Result<_, StoreError>>()?;
    // The order comes from an index, which has no checksums: one that names a row twice is found here.
    let order = |record: &ExecutionRecord| (record.created_at, record.id);
    if !records.is_sorted_by(|newer, older| order(newer) > order(older)) {
        let record = "the index of executions by their creation".to_owned();
        return Err(damaged(record, "it is not in order".to_owned()));
    }
    Ok(records)
}

fn limit(most: Option<usize>) -> Option<i64> {
    most.and_then(|most| i64::try_from(most).ok())
}

pub(super) async fn workflow(shared: &Shared, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError> {
    definition(&mut Reader::Db(&shared.db), id).await
}

/// Reads the definition of a workflow: `None` where there is none, or an empty one.
pub(super) async fn definition(
    reader: &mut Reader<'_>,
    id: WorkflowId,
) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT w.id, w.definition, w.checksum FROM workflows w WHERE w.id = $1";
    let found = reader.query(sql, &[&id]).await?;
    let definition = found.first().map(row::workflow).transpose()?.map(|(_, definition)| definition);
    Ok(definition.filter(|definition| !definition.is_empty()))
}

pub(super) async fn history(
    shared: &Shared,
    id: ExecutionId,
    page: HistoryPage,
) -> Result<Vec<CheckpointRecord>, StoreError> {
    let before = page.before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let limit = limit(page.limit);
    let found = shared.db.view("reading", &[(BY_ID, &[&id]), (POINTS, &[&id, &before, &limit])]).await?;
    let [execution, points] = &found[..] else { return Ok(Vec::new()) };
    let Some(execution) = execution.first() else { return Ok(Vec::new()) };
    let execution = current(execution)?;
    let points: Vec<CheckpointRecord> = points
        .iter()
        .map(|row| Point::read(row, 0, id)?.record(&execution))
        .collect::<Result<_, StoreError>>()?;
    match points.windows(2).find(|pair| pair[0].seq <= pair[1].seq) {
        None => Ok(points),
        Some(pair) => Err(damaged(
            format!("the history of execution {id}"),
            format!("@{} stands behind @{}", pair[0].seq, pair[1].seq),
        )),
    }
}

pub(super) async fn checkpoint(
    shared: &Shared,
    id: CheckpointId,
) -> Result<Option<CheckpointRecord>, StoreError> {
    by_id(&mut Reader::Db(&shared.db), id).await
}

/// Reads a point by its id.
pub(super) async fn by_id(
    reader: &mut Reader<'_>,
    id: CheckpointId,
) -> Result<Option<CheckpointRecord>, StoreError> {
    let found = reader.query(POINT_BY_ID, &[&id]).await?;
    let Some(row) = found.first() else { return Ok(None) };
    if row::get::<Option<i64>>(row, 0).is_ok_and(|key| key.is_none()) {
        return Err(damaged(format!("checkpoint {id}"), "its execution is missing".to_owned()));
    }
    let execution = ExecutionRow::read(row)?;
    let point = Point::read(row, EXECUTION_COLUMNS, execution.record.id)?;
    point.record(&execution).map(Some)
}

/// Reads a state in one round trip: the records, and the way from the delta that they name.
pub(super) async fn state(shared: &Shared, id: ExecutionId, seq: Seq) -> Result<Image, StoreError> {
    // A number that is too large for the tables is that of no point.
    let stored = i64::try_from(seq).unwrap_or(-1);
    let found = shared
        .db
        .view(
            "reading",
            &[(BY_ID, &[&id]), (POINT_OF, &[&id, &stored]), (chain::WAY_FROM_POINT, &[&id, &stored])],
        )
        .await?;
    let Ok([execution, point, way]) = <[Vec<Row>; 3]>::try_from(found) else {
        return Err(StoreError::NoExecution(id));
    };
    let execution = current(execution.first().ok_or(StoreError::NoExecution(id))?)?;
    let point = Point::read(point.first().ok_or_else(|| execution.no_point(seq))?, 0, id)?;
    point.record(&execution)?;
    chain::image_of(&mut Reader::Db(&shared.db), point.delta, way).await
}

pub(super) async fn operations(shared: &Shared, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError> {
    let found = shared.db.view("reading", &[(BY_ID, &[&id]), (OPERATIONS, &[&id])]).await?;
    let [execution, rows] = &found[..] else { return Ok(Vec::new()) };
    let Some(execution) = execution.first() else { return Ok(Vec::new()) };
    let execution = current(execution)?;
    log(&execution, rows)
}

/// Reads an operation log, newest first, which must be whole.
pub(super) fn log(execution: &ExecutionRow, rows: &[Row]) -> Result<Vec<OperationRecord>, StoreError> {
    let id = execution.record.id;
    let rows: Vec<Operation> =
        rows.iter().map(|row| Operation::read(row, id)).collect::<Result<_, StoreError>>()?;
    let operations: Vec<OperationRecord> =
        rows.iter().map(|row| row.record(execution)).collect::<Result<_, StoreError>>()?;
    // They are counted from 1, none of them ever goes, and the execution's row knows the last.
    let newest = rows.first().map_or_else(|| link::start(id), |row| row.link);
    let counted = (1_u64..).zip(operations.iter().rev());
    let missing = counted.into_iter().find(|(number, operation)| *number != operation.number);
    let number = match missing {
        None if newest == execution.log.link => return Ok(operations),
        None => operations.len() as u64 + 1,
        Some((number, _)) => number,
    };
    Err(damaged(format!("operation {number} of execution {id}"), "it is missing".to_owned()))
}
