//! What is asked of whoever holds a lease, and what is noted in operation logs.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::Shared;
use super::chain::Reader;
use super::db::Db;
use super::execution::{ExecutionRow, LOCKED, Log};
use super::lease;
use super::outage::Outage;
use super::row::{self, Operation, damaged};
use crate::execution::ExecutionId;
use crate::store::{Conflict, Note, OperationRecord, Request, StoreError, column};

/// Executions that share one look at most.
pub(super) const LOOK_MAX: usize = 256;

pub(super) const LOOK: &str = "
SELECT r.key, r.execution, r.id, r.body, r.checksum, e.id FROM executions e JOIN requests r ON r.execution = e.key
WHERE e.id = ANY ($1) ORDER BY r.key";

const ASK: &str = "
INSERT INTO requests (key, execution, id, body, checksum)
SELECT $1, e.key, $3, $4, $5 FROM executions e WHERE e.key = $2 FOR KEY SHARE OF e";

const WITHDRAW: &str = "
DELETE FROM requests r USING executions e WHERE r.id = $2 AND e.id = $1 AND r.execution = e.key";

/// Runs look for requests several times a second: those that look at the same time share a statement.
#[derive(Debug)]
pub(super) struct Looks {
    db: Db,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    looks: Vec<Look>,
    is_looking: bool,
}

/// Somebody who wants to know what is asked of an execution.
#[derive(Debug)]
struct Look {
    id: ExecutionId,
    reply: oneshot::Sender<Result<Vec<Request>, StoreError>>,
}

impl Looks {
    pub(super) fn new(db: Db) -> Self {
        Self { db, waiting: Mutex::default() }
    }

    pub(super) async fn requests(self: &Arc<Self>, id: ExecutionId) -> Result<Vec<Request>, StoreError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.lock();
            waiting.looks.push(Look { id, reply });
            if !waiting.is_looking {
                waiting.is_looking = true;
                tokio::spawn(Looking { looks: Arc::clone(self), ended: false }.run());
            }
        }
        let closed = || StoreError::Closed { location: self.db.location().to_owned() };
        answer.await.map_err(|_| closed())?
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, looks: Vec<Look>) {
        let ids: HashSet<ExecutionId> = looks.iter().map(|look| look.id).collect();
        let ids: Vec<ExecutionId> = ids.into_iter().collect();
        let found = self.db.query("looking for requests", LOOK, &[&ids]).await;
        let mut answers: HashMap<ExecutionId, Result<Vec<Request>, StoreError>> = HashMap::new();
        for row in found.as_deref().unwrap_or_default() {
            // Of a request that is damaged, only the execution that it is for is told.
            let Ok(id) = row::get::<Uuid>(row, 5) else { continue };
            let answer = answers.entry(id).or_insert_with(|| Ok(Vec::new()));
            match (row::request(row), &mut *answer) {
                (Ok(request), Ok(requests)) => requests.push(request),
                (Err(error), Ok(_)) => *answer = Err(error),
                (_, Err(_)) => {}
            }
        }
        for Look { id, reply } in looks {
            let answer = match &found {
                Ok(_) => answers.get(&id).cloned().unwrap_or_else(|| Ok(Vec::new())),
                Err(error) => Err(error.clone()),
            };
            // Whoever looked may have gone away.
            drop(reply.send(answer));
        }
    }
}

/// A task that looks as long as somebody wants to know.
struct Looking {
    looks: Arc<Looks>,
    ended: bool,
}

impl Looking {
    async fn run(mut self) {
        while let Some(looks) = self.next() {
            self.looks.look(looks).await;
        }
    }

    fn next(&mut self) -> Option<Vec<Look>> {
        let mut waiting = self.looks.lock();
        if waiting.looks.is_empty() {
            waiting.is_looking = false;
            self.ended = true;
            return None;
        }
        let most = waiting.looks.len().min(LOOK_MAX);
        Some(waiting.looks.drain(..most).collect())
    }
}

impl Drop for Looking {
    /// A runtime that stops takes its tasks with it: whoever waits is told.
    fn drop(&mut self) {
        if !self.ended {
            let mut waiting = self.looks.lock();
            waiting.is_looking = false;
            waiting.looks.clear();
        }
    }
}

pub(super) async fn ask(shared: &Shared, id: ExecutionId, request: &Request) -> Result<(), StoreError> {
    let body = column::to_json("the request", request)?.into_bytes();
    let mut outage = Outage::new(shared.db.options());
    loop {
        match attempt_ask(shared, id, request.id, &body).await {
            Ok(()) => return Ok(()),
            Err(error) if super::fault::violated(&error) == Some("requests_by_id") => {
                return match outage.is_any() {
                    true => Ok(()),
                    false => Err(Conflict::IdTaken(request.id).into()),
                };
            }
            Err(error) => outage.wait(error).await?,
        }
    }
}

async fn attempt_ask(shared: &Shared, id: ExecutionId, request: Uuid, body: &[u8]) -> Result<(), StoreError> {
    let sql = "SELECT nextval('request_keys'), e.key FROM executions e WHERE e.id = $1";
    let found = shared.db.optional("asking", sql, &[&id]).await?.ok_or(StoreError::NoExecution(id))?;
    let key = |column| row::get::<i64>(&found, column).map_err(|why| damaged(format!("execution {id}"), why));
    let (key, execution) = (key(0)?, key(1)?);
    let checksum = row::request_checksum(key, execution, request, body);
    let asked =
        shared.db.execute("asking", ASK, &[&key, &execution, &request, &body, &&checksum[..]]).await?;
    if asked == 0 {
        return Err(StoreError::NoExecution(id));
    }
    Ok(())
}

pub(super) async fn withdraw(shared: &Shared, id: ExecutionId, request: Uuid) -> Result<bool, StoreError> {
    Ok(lease::change(shared, "taking a request back", WITHDRAW, &[&id, &request]).await? > 0)
}

const NOTE: &str = "
WITH logged AS (
    UPDATE executions SET log_last = $2, log_link = $9, log_checksum = $11 WHERE key = $1 RETURNING key
)
INSERT INTO operations (execution, number, at, who, command, cause, head_before, head_after, link, checksum)
SELECT key, $2, $3, $4, $5, $6, $7, $8, $9, $10 FROM logged";

/// Writes an operation that makes no checkpoint into the log.
pub(super) async fn note(
    shared: &Shared,
    id: ExecutionId,
    note: &Note,
) -> Result<OperationRecord, StoreError> {
    let mut outage = Outage::new(shared.db.options());
    loop {
        if outage.is_any() {
            match last(shared, id).await {
                Ok(Some(record)) if is_of(&record, note) => return Ok(record),
                Ok(_) => {}
                Err(error) => {
                    outage.wait(error).await?;
                    continue;
                }
            }
        }
        match attempt_note(shared, id, note).await {
            Ok(record) => {
                shared.cache.forget(id);
                return Ok(record);
            }
            Err(error) => outage.wait(error).await?,
        }
    }
}

async fn attempt_note(
    shared: &Shared,
    id: ExecutionId,
    Note { at, cause, operation }: &Note,
) -> Result<OperationRecord, StoreError> {
    let mut transaction = shared.db.transaction("writing into the log").await?;
    let found = transaction.optional(LOCKED, &[&id]).await?.ok_or(StoreError::NoExecution(id))?;
    let execution = ExecutionRow::read(&found)?;
    let head = execution.record.head;
    let record = OperationRecord {
        number: execution.log.last + 1,
        at: *at,
        who: operation.who.clone(),
        command: operation.command.clone(),
        cause: cause.clone(),
        before: head,
        after: head,
    };
    let row = Operation::new(execution.key, &execution.log.link, &record)?;
    let log = Log { last: record.number, link: row.link };
    transaction
        .execute(
            NOTE,
            &[
                &row.execution,
                &row.number,
                &row.at,
                &row.who,
                &row.command,
                &row.cause,
                &row.before,
                &row.after,
                &&row.link[..],
                &&row.checksum()[..],
                &&log.checksum(&execution.fixed)?[..],
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(record)
}

/// Reads the newest entry of a log.
async fn last(shared: &Shared, id: ExecutionId) -> Result<Option<OperationRecord>, StoreError> {
    let sql = concat!(
        "SELECT ",
        row::operation_columns!(),
        " FROM operations o WHERE o.execution = $1 ORDER BY o.number DESC LIMIT 1"
    );
    let execution = ExecutionRow::require(&mut Reader::Db(&shared.db), id).await?;
    let found = shared.db.optional("reading", sql, &[&execution.key]).await?;
    found.map(|row| Operation::read(&row, id)?.record(&execution)).transpose()
}

fn is_of(record: &OperationRecord, note: &Note) -> bool {
    (&record.who, &record.command, &record.cause, record.at)
        == (&note.operation.who, &note.operation.command, &note.cause, note.at)
}
