//! Histories on their way out of the tables and into them.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::Shared;
use super::chain::{self, DeltaRow, Reader};
use super::commit;
use super::db::Transaction;
use super::execution::{ExecutionRow, Fixed, Log};
use super::keeper::SPARED_MIN;
use super::outage::Outage;
use super::prune;
use super::query;
use super::row::{self, Operation, Point, damaged, get};
use super::write::{Adoption, OperationArrays};
use crate::execution::ExecutionId;
use crate::store::body::{self, Body};
use crate::store::history::delta_between;
use crate::store::link::{self, Gap};
use crate::store::load::{FLOOR_MIN, Frame, Load, length};
use crate::store::unravelling::{Strand, Unravelling};
use crate::store::{
    CheckpointRecord, Conflict, Delta, History, HistoryPoint, Image, KeptWorkflow, Seq, StoreError, column,
};

/// Points whose rows are written by one statement.
const PAGE: usize = 500;

/// Bytes of deltas that are read, or written, by one statement, unless one is larger.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How often an export is tried where the connection is lost.
const ATTEMPTS_MAX: usize = 3;

const POINTS: &str = concat!(
    "SELECT ",
    row::checkpoint_columns!(),
    " FROM checkpoints c WHERE c.execution = $1 ORDER BY c.seq"
);

const OPERATIONS: &str = concat!(
    "SELECT ",
    row::operation_columns!(),
    " FROM operations o WHERE o.execution = $1 ORDER BY o.number DESC"
);

const RUNS: &str = "
SELECT r.execution, r.workflow, r.checksum FROM execution_workflows r WHERE r.execution = $1 ORDER BY r.workflow";

/// All deltas below an execution's points, without what they do.
const BASES: &str = "
WITH RECURSIVE below AS (
    SELECT d.key, d.base FROM checkpoints c JOIN deltas d ON d.key = c.delta WHERE c.execution = $1
  UNION
    SELECT d.key, d.base FROM below b CROSS JOIN LATERAL (
        SELECT d.key, d.base FROM deltas d WHERE d.key = b.base LIMIT 1
    ) d WHERE d.key < b.key
)
SELECT key, base FROM below";

/// Reads an execution with its whole history, as it is at one moment.
pub(super) async fn export(shared: &Shared, id: ExecutionId) -> Result<History, StoreError> {
    for _ in 1..ATTEMPTS_MAX {
        match attempt_export(shared, id).await {
            Err(error) if error.is_retryable() => {}
            done => return done,
        }
    }
    attempt_export(shared, id).await
}

async fn attempt_export(shared: &Shared, id: ExecutionId) -> Result<History, StoreError> {
    let mut transaction = shared.db.snapshot("exporting").await?;
    let execution = ExecutionRow::require(&mut Reader::Transaction(&mut transaction), id).await?;
    let key = execution.key;
    let found = transaction
        .query_all(&[(POINTS, &[&key]), (OPERATIONS, &[&key]), (RUNS, &[&key]), (BASES, &[&key])])
        .await?;
    let [points, operations, runs, bases] = &found[..] else { return Err(StoreError::NoExecution(id)) };
    let mut operations = query::log(&execution, operations)?;
    operations.reverse();
    let mut workflows = Vec::new();
    for run in runs {
        let id = row::execution_workflow(run, execution.record.id)?;
        let definition = query::definition(&mut Reader::Transaction(&mut transaction), id).await?;
        workflows.push(KeptWorkflow { id, definition: definition.unwrap_or_default() });
    }
    workflows.sort_unstable_by_key(|workflow| workflow.id);
    let bases = bases.iter().map(base).collect::<Result<HashMap<_, _>, StoreError>>()?;
    let mut unravelling = Unravelling::default();
    let mut strands = Vec::with_capacity(points.len());
    for row in points {
        let point = Point::read(row, 0, id)?;
        let record = point.record(&execution)?;
        let strand = unravelling.next(record.seq, point.delta, |key| {
            bases.get(&key).copied().ok_or_else(|| chain::missing(key))
        })?;
        strands.push((record, point.delta, strand));
    }
    let points = delivered(&mut transaction, strands).await?;
    let mut record = execution.record;
    record.leased_by = None;
    Ok(History { execution: record, workflows, points, operations })
}

fn base(row: &Row) -> Result<(i64, Option<i64>), StoreError> {
    let read = || Ok((get(row, 0)?, get(row, 1)?));
    read().map_err(|why| damaged("a delta".to_owned(), why))
}

/// Reads what each point is made of, many at once.
async fn delivered(
    transaction: &mut Transaction,
    strands: Vec<(CheckpointRecord, i64, Strand)>,
) -> Result<Vec<HistoryPoint>, StoreError> {
    let mut points = Vec::with_capacity(strands.len());
    let mut page: HashMap<i64, DeltaRow> = HashMap::new();
    let ways: Vec<Vec<i64>> = strands
        .iter()
        .map(|(_, _, strand)| match strand {
            Strand::On { way, .. } => way.clone(),
            Strand::Between { .. } | Strand::Whole => Vec::new(),
        })
        .collect();
    for (place, (record, tip, strand)) in strands.into_iter().enumerate() {
        let reader = &mut Reader::Transaction(transaction);
        let (base, delta) = match strand {
            Strand::On { base, way } => {
                if way.iter().any(|key| !page.contains_key(key)) {
                    page = read_page(reader, &ways[place..]).await?;
                }
                (Some(base), composed(&page, &way)?)
            }
            Strand::Between { base, from } => {
                let before = chain::image(reader, from).await?;
                let after = chain::image(reader, tip).await?;
                (Some(base), delta_between(&before, &after))
            }
            Strand::Whole => (None, chain::image(reader, tip).await?.to_delta()),
        };
        points.push(HistoryPoint { record, base, delta });
    }
    Ok(points)
}

/// Reads the deltas on the next ways: at least the first, and as many as make a page.
async fn read_page(reader: &mut Reader<'_>, ways: &[Vec<i64>]) -> Result<HashMap<i64, DeltaRow>, StoreError> {
    let mut keys: Vec<i64> = Vec::new();
    for way in ways {
        if !keys.is_empty() && keys.len() + way.len() > PAGE {
            break;
        }
        keys.extend(way);
    }
    // Large ones are left to the next page: how large they are is known only then.
    let sql = "SELECT d.key, octet_length(d.body)::bigint FROM deltas d WHERE d.key = ANY ($1)";
    let mut sizes = HashMap::new();
    for row in reader.query(sql, &[&keys]).await? {
        let read = || Ok((get(&row, 0)?, get(&row, 1)?));
        let (key, size): (i64, i64) = read().map_err(|why| damaged("a delta".to_owned(), why))?;
        sizes.insert(key, usize::try_from(size).unwrap_or(0));
    }
    let first = ways.first().map_or(0, Vec::len).max(1);
    let mut bytes = 0;
    let mut most = 0;
    for key in &keys {
        bytes += sizes.get(key).copied().unwrap_or(0);
        if most >= first && bytes > PAGE_BYTES {
            break;
        }
        most += 1;
    }
    keys.truncate(most);
    let rows = chain::rows(reader, &keys).await?;
    Ok(rows.into_iter().map(|row| (row.key, row)).collect())
}

/// Returns what the deltas on a way, newest first, do together.
fn composed(page: &HashMap<i64, DeltaRow>, way: &[i64]) -> Result<Delta, StoreError> {
    let read = |key: &i64| page.get(key).ok_or_else(|| chain::missing(*key))?.decoded();
    match way {
        [] => Ok(Delta::default()),
        [key] => read(key),
        [tip, ..] => {
            let parts = way.iter().rev().map(read).collect::<Result<Vec<_>, _>>()?;
            Delta::compose(&chain::name(*tip), &parts)
        }
    }
}

/// A history that has been looked through and encoded.
#[derive(Debug)]
struct Prepared {
    /// Without what changed between its points, and with the sizes that they have here.
    history: History,
    bodies: Vec<Prepacked>,
}

/// What is to be written for the state of one point.
#[derive(Debug)]
struct Prepacked {
    /// `None` where the point's state is its base's.
    body: Option<Body>,
    frame: Option<Frame>,
}

impl Prepared {
    fn new(mut history: History) -> Result<Self, StoreError> {
        let states = history.states()?;
        let mut bodies = Vec::with_capacity(states.len());
        let mut loads: HashMap<Seq, Load> = HashMap::new();
        for (point, state) in history.points.iter().zip(&states) {
            let below = point.base.and_then(|base| loads.get(&base)).copied();
            let (packed, load) = prepack(point, state, below)?;
            bodies.push(packed);
            loads.insert(point.record.seq, load);
        }
        for (HistoryPoint { record, delta, .. }, Prepacked { body, .. }) in
            history.points.iter_mut().zip(&bodies)
        {
            record.size_bytes = body.as_ref().map_or(0, |body| body.bytes.len() as u64);
            record.compressed = body.as_ref().is_some_and(|body| body.compressed);
            // It is encoded.
            *delta = Delta::default();
        }
        Ok(Self { history, bodies })
    }
}

/// Encodes a point, and decides whether its state is worth a keyframe.
fn prepack(
    point: &HistoryPoint,
    state: &Image,
    below: Option<Load>,
) -> Result<(Prepacked, Load), StoreError> {
    let HistoryPoint { record, delta, .. } = point;
    if let Some(below) = below.filter(|_| delta.is_empty()) {
        return Ok((Prepacked { body: None, frame: None }, below));
    }
    let level = record.compressed.then_some(body::SMALL);
    let body = chain::encoded(delta, level)?;
    let (raw, packed) = (i64::try_from(delta.bytes()).unwrap_or(i64::MAX), length(&body.bytes));
    let mut load = match below {
        Some(below) => below.below(raw, packed),
        None => Load::of_root(raw, packed),
    };
    let frame = load.frame(state, SPARED_MIN)?;
    Ok((Prepacked { body: Some(body), frame }, load))
}

/// Adds an execution, for which its name, its id and those of its points must be free.
pub(super) async fn import(shared: &Shared, history: History) -> Result<(), StoreError> {
    let prepared = Prepared::new(history)?;
    let mut outage = Outage::new(shared.db.options());
    loop {
        if outage.is_any() {
            match is_done(shared, &prepared.history).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    outage.wait(error).await?;
                    continue;
                }
            }
        }
        match attempt_import(shared, &prepared).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                if let Some(taken) = taken(shared, &prepared.history, &error).await? {
                    return Err(taken);
                }
                outage.wait(error).await?;
            }
        }
    }
}

/// Looks whether the import is there: nobody else has the id of its head.
async fn is_done(shared: &Shared, history: &History) -> Result<bool, StoreError> {
    let Some(head) = history.points.last() else { return Ok(false) };
    let found = query::by_id(&mut Reader::Db(&shared.db), head.record.id).await?;
    Ok(found.is_some_and(|record| record.execution_id == history.execution.id))
}

/// Returns the conflict that a failure stands for, if it does.
async fn taken(
    shared: &Shared,
    history: &History,
    error: &StoreError,
) -> Result<Option<StoreError>, StoreError> {
    Ok(match super::fault::violated(error) {
        Some("executions_by_id") => Some(Conflict::IdTaken(history.execution.id).into()),
        Some("executions_by_name") => Some(Conflict::NameTaken(history.execution.name.clone()).into()),
        Some("checkpoints_by_id") => {
            let ids: Vec<_> = history.points.iter().map(|point| point.record.id).collect();
            let sql = "SELECT c.id FROM checkpoints c WHERE c.id = ANY ($1) LIMIT 1";
            let found = shared.db.optional("importing", sql, &[&ids]).await?;
            let id = found.and_then(|row| get(&row, 0).ok());
            Some(Conflict::IdTaken(id.unwrap_or_default()).into())
        }
        Some(_) | None => None,
    })
}

async fn attempt_import(shared: &Shared, prepared: &Prepared) -> Result<(), StoreError> {
    let mut transaction = shared.db.transaction("importing").await?;
    let key = insert_execution(shared, &mut transaction, prepared).await?;
    insert_points(shared, &mut transaction, prepared, key).await?;
    transaction.commit().await
}

const INSERT_EXECUTION: &str = "
INSERT INTO executions (key, id, name, created_at, origin_id, origin_seq, workflow, workflow_name, state, state_name, head,
    updated_at, spend, link, checksum, log_last, log_link, log_checksum, slack_max)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)";

const INSERT_OPERATIONS: &str = "
INSERT INTO operations (execution, number, at, who, command, cause, head_before, head_after, link, checksum)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bigint[],
    $8::bigint[], $9::bytea[], $10::bytea[])";

const INSERT_RUNS: &str = concat!(
    "WITH made AS (SELECT unnest($1::bigint[]) AS key), ",
    super::write::adopted!("$1::bigint[], $2::uuid[], $3::bytea[], $4::bytea[], $5::bytea[]", "made"),
    " SELECT"
);

/// Writes the execution's row as it is with its last point, its operations and its workflows. Returns its key.
async fn insert_execution(
    shared: &Shared,
    transaction: &mut Transaction,
    Prepared { history, .. }: &Prepared,
) -> Result<i64, StoreError> {
    let record = &history.execution;
    let key = shared.keys.next(&mut Reader::Transaction(transaction), 0).await?;
    let mut log = Log::start(record.id);
    let mut operations = Vec::with_capacity(history.operations.len());
    for operation in &history.operations {
        let row = Operation::new(key, &log.link, operation)?;
        log = Log { last: operation.number, link: row.link };
        operations.push(row);
    }
    let origin = record.origin.as_ref();
    let origin_id = origin.map(|origin| origin.execution_id);
    let origin_seq = origin.map(|origin| column::stored("the origin", origin.seq)).transpose()?;
    let created_at = column::nanoseconds("the creation", record.created_at)?;
    let fixed = Fixed {
        key,
        id: record.id,
        name: record.name.as_bytes(),
        created_at,
        origin: (origin_id, origin_seq),
    }
    .hash();
    // The same links again, once the points are written: their rows depend on no key that is not known yet but deltas',
    // and those are not in the links.
    let head = linked(history, key, |_| 0)?.pop();
    let Some((head, _)) = head else { return Err(StoreError::NoExecution(record.id)) };
    let state_name = record.state.name();
    let checksum = commit::standing(&head, state_name, &record.workflow_name, &fixed);
    let values: [&(dyn ToSql + Sync); 19] = [
        &key,
        &record.id,
        &record.name.as_bytes(),
        &created_at,
        &origin_id,
        &origin_seq,
        &head.workflow,
        &record.workflow_name.as_bytes(),
        &head.state,
        &state_name,
        &head.seq,
        &head.created_at,
        &head.spend,
        &&head.link[..],
        &&checksum[..],
        &column::stored("the operation", log.last)?,
        &&log.link[..],
        &&log.checksum(&fixed)?[..],
        &FLOOR_MIN,
    ];
    transaction.execute(INSERT_EXECUTION, &values).await?;
    let adoptions: Vec<Adoption> = history
        .workflows
        .iter()
        .map(|workflow| Adoption::new(key, workflow.id, workflow.definition.clone()))
        .collect();
    let keys = vec![key; adoptions.len()];
    let ids: Vec<_> = adoptions.iter().map(|adoption| adoption.id).collect();
    let definitions: Vec<&[u8]> = adoptions.iter().map(|adoption| &adoption.definition[..]).collect();
    let checksums: Vec<&[u8]> = adoptions.iter().map(|adoption| &adoption.checksum[..]).collect();
    let run_checksums: Vec<&[u8]> = adoptions.iter().map(|adoption| &adoption.run_checksum[..]).collect();
    let operations = OperationArrays::new(operations.iter());
    transaction
        .query_all(&[
            (INSERT_RUNS, &[&keys, &ids, &definitions, &checksums, &run_checksums]),
            (INSERT_OPERATIONS, &operations.values()),
        ])
        .await?;
    Ok(key)
}

/// Returns the rows of the points, and the gaps between them. `stands` says which delta each stands on.
fn linked(
    history: &History,
    key: i64,
    stands: impl Fn(usize) -> i64,
) -> Result<Vec<(Point, Option<Gap>)>, StoreError> {
    let mut before = link::start(history.execution.id);
    let mut next = 1;
    let mut rows = Vec::with_capacity(history.points.len());
    for (place, point) in history.points.iter().enumerate() {
        let seq = point.record.seq;
        let gap = match seq > next {
            true => {
                before = link::across(&before, next, seq - 1)?;
                Some(Gap { first: next, last: seq - 1, link: before })
            }
            false => None,
        };
        next = seq + 1;
        let row = Point::new(key, stands(place), &before, &point.record)?;
        before = row.link;
        rows.push((row, gap));
    }
    Ok(rows)
}

const INSERT_DELTAS: &str = "
INSERT INTO deltas (key, base, body, checksum)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[])";

const INSERT_KEYFRAMES: &str = "
INSERT INTO keyframes (delta, size, body, checksum)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[])";

const INSERT_POINTS: &str = "
INSERT INTO checkpoints (execution, seq, id, parent, delta, created_at, cause, label, state, completed_nodes, size_bytes,
    compressed, nodes, workflow, spend, link, checksum)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[],
    $8::bytea[], $9::bytea[], $10::bigint[], $11::bigint[], $12::boolean[], $13::bytea[], $14::uuid[], $15::bytea[],
    $16::bytea[], $17::bytea[])";

/// A point whose delta has its key.
struct Placed<'a> {
    delta: i64,
    base: Option<i64>,
    packed: &'a Prepacked,
}

async fn insert_points(
    shared: &Shared,
    transaction: &mut Transaction,
    Prepared { history, bodies }: &Prepared,
    key: i64,
) -> Result<(), StoreError> {
    let mut placed: Vec<Placed<'_>> = Vec::with_capacity(bodies.len());
    let mut deltas: HashMap<Seq, i64> = HashMap::new();
    for (point, packed) in history.points.iter().zip(bodies) {
        let base = point.base.and_then(|base| deltas.get(&base)).copied();
        let delta = match (&packed.body, base) {
            (None, Some(base)) => base,
            (_, base) => shared.keys.next(&mut Reader::Transaction(transaction), base.unwrap_or(0)).await?,
        };
        deltas.insert(point.record.seq, delta);
        placed.push(Placed { delta, base, packed });
    }
    let rows = linked(history, key, |place| placed[place].delta)?;
    let gaps: Vec<Gap> = rows.iter().filter_map(|(_, gap)| *gap).collect();
    prune::insert_gaps(transaction, key, &gaps).await?;
    let points: Vec<Point> = rows.into_iter().map(|(point, _)| point).collect();
    for page in points.chunks(PAGE) {
        insert_page(transaction, page).await?;
    }
    let mut page: Vec<&Placed<'_>> = Vec::new();
    let mut bytes = 0;
    for point in &placed {
        bytes += point.packed.body.as_ref().map_or(0, |body| body.bytes.len());
        bytes += point.packed.frame.as_ref().map_or(0, |frame| frame.body.len());
        page.push(point);
        if bytes > PAGE_BYTES || page.len() == PAGE {
            insert_deltas(transaction, &page).await?;
            (page, bytes) = (Vec::new(), 0);
        }
    }
    insert_deltas(transaction, &page).await
}

async fn insert_page(transaction: &mut Transaction, points: &[Point]) -> Result<(), StoreError> {
    let checksums: Vec<Vec<u8>> = points.iter().map(|point| point.checksum().to_vec()).collect();
    let values: [&(dyn ToSql + Sync); 17] = [
        &points.iter().map(|point| point.execution).collect::<Vec<_>>(),
        &points.iter().map(|point| point.seq).collect::<Vec<_>>(),
        &points.iter().map(|point| point.id).collect::<Vec<_>>(),
        &points.iter().map(|point| point.parent).collect::<Vec<_>>(),
        &points.iter().map(|point| point.delta).collect::<Vec<_>>(),
        &points.iter().map(|point| point.created_at).collect::<Vec<_>>(),
        &points.iter().map(|point| &point.cause[..]).collect::<Vec<_>>(),
        &points.iter().map(|point| point.label.as_deref()).collect::<Vec<_>>(),
        &points.iter().map(|point| &point.state[..]).collect::<Vec<_>>(),
        &points.iter().map(|point| point.completed_nodes).collect::<Vec<_>>(),
        &points.iter().map(|point| point.size_bytes).collect::<Vec<_>>(),
        &points.iter().map(|point| point.compressed).collect::<Vec<_>>(),
        &points.iter().map(|point| &point.nodes[..]).collect::<Vec<_>>(),
        &points.iter().map(|point| point.workflow).collect::<Vec<_>>(),
        &points.iter().map(|point| &point.spend[..]).collect::<Vec<_>>(),
        &points.iter().map(|point| &point.link[..]).collect::<Vec<_>>(),
        &checksums,
    ];
    transaction.execute(INSERT_POINTS, &values).await.map(|_| ())
}

async fn insert_deltas(transaction: &mut Transaction, page: &[&Placed<'_>]) -> Result<(), StoreError> {
    // A root may have an empty body's row; a point on its base's has none.
    let with_row =
        || page.iter().filter_map(|point| Some((point.delta, point.base, point.packed.body.as_ref()?)));
    let keys: Vec<i64> = with_row().map(|(key, _, _)| key).collect();
    let bases: Vec<Option<i64>> = with_row().map(|(_, base, _)| base).collect();
    let bodies: Vec<&[u8]> = with_row().map(|(_, _, body)| &body.bytes[..]).collect();
    let checksums: Vec<Vec<u8>> =
        with_row().map(|(key, base, body)| row::delta_checksum(key, base, &body.bytes).to_vec()).collect();
    transaction.execute(INSERT_DELTAS, &[&keys, &bases, &bodies, &checksums]).await?;
    let framed = || page.iter().filter_map(|point| Some((point.delta, point.packed.frame.as_ref()?)));
    if framed().next().is_none() {
        return Ok(());
    }
    let keys: Vec<i64> = framed().map(|(key, _)| key).collect();
    let sizes: Vec<i64> = framed().map(|(_, frame)| frame.size).collect();
    let bodies: Vec<&[u8]> = framed().map(|(_, frame)| &frame.body[..]).collect();
    let checksums: Vec<Vec<u8>> =
        framed().map(|(key, frame)| row::keyframe_checksum(key, frame.size, &frame.body).to_vec()).collect();
    transaction.execute(INSERT_KEYFRAMES, &[&keys, &sizes, &bodies, &checksums]).await.map(|_| ())
}
