//! Stores of each kind, by their address, and their tables as they are written past the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use retake::store::{PostgresStore, Seq, SqliteStore, Store};
use uuid::Uuid;

use crate::Outcome;
use crate::cluster::{self, Cluster, Site};
use crate::disk::MEMORY;

/// The columns that a point has in every store, but for its execution, number and id.
const COLUMNS: &str = "parent, delta, created_at, cause, label, state, completed_nodes, size_bytes, compressed, nodes, \
                       workflow, spend, link, checksum";

/// How long a statement past the store waits for others.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Where there can be stores of one kind.
#[derive(Debug)]
pub(crate) enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(Cluster),
}

/// Returns a place for each kind of store that several processes may use, in memory where that is possible.
pub(crate) fn places() -> Outcome<Vec<Place>> {
    Ok(vec![
        Place::Sqlite(tempfile::tempdir_in(MEMORY).or_else(|_| tempfile::tempdir())?),
        Place::Postgres(Cluster::new(Site::here())?),
    ])
}

impl Place {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    /// Returns the address of a store that is not there yet.
    pub(crate) fn fresh(&self) -> Outcome<String> {
        let name = Uuid::from_u128(fastrand::u128(..)).simple();
        match self {
            Self::Sqlite(directory) => Ok(directory.path().join(format!("{name}.db")).display().to_string()),
            Self::Postgres(cluster) => Ok(cluster.url(&format!("s{name}"))),
        }
    }
}

/// Opens the store at an address.
pub(crate) async fn open(address: &str) -> Outcome<Arc<dyn Store>> {
    Ok(match is_postgres(address) {
        true => Arc::new(PostgresStore::connect(address).await?),
        false => Arc::new(SqliteStore::open(PathBuf::from(address))?),
    })
}

fn is_postgres(address: &str) -> bool {
    address.starts_with("postgres://")
}

/// The tables of a store, for those who go past it.
pub(crate) enum Tables {
    Sqlite(rusqlite::Connection),
    Postgres(tokio::runtime::Runtime, tokio_postgres::Client),
}

impl Tables {
    pub(crate) fn open(address: &str) -> Outcome<Self> {
        if !is_postgres(address) {
            let connection = rusqlite::Connection::open(address)?;
            connection.busy_timeout(BUSY_MAX)?;
            return Ok(Self::Sqlite(connection));
        }
        let (server, schema) = address.rsplit_once("&schema=").ok_or("the address names no schema")?;
        let runtime = cluster::runtime()?;
        let client = runtime.block_on(async {
            let client = cluster::connect(server).await?;
            client.batch_execute(&format!("SET search_path TO {schema}")).await?;
            Outcome::Ok(client)
        })?;
        Ok(Self::Postgres(runtime, client))
    }

    /// Puts a point in its place, whatever is there, and moves the head to it.
    pub(crate) fn put_point(&mut self, execution: Uuid, seq: Seq, id: Uuid) -> Outcome<()> {
        let (execution, id) = (self.literal(execution), self.literal(id));
        let sql = format!(
            "INSERT INTO checkpoints (execution, seq, id, {COLUMNS}) \
             SELECT c.execution, {seq}, {id}, {COLUMNS} FROM checkpoints c \
             WHERE c.seq = 1 AND c.execution = (SELECT key FROM executions WHERE id = {execution}) \
             ON CONFLICT (execution, seq) DO UPDATE SET id = excluded.id; \
             UPDATE executions SET head = {seq} WHERE id = {execution};"
        );
        match self {
            Self::Sqlite(connection) => {
                connection.execute_batch(&format!("BEGIN IMMEDIATE; {sql} COMMIT;"))?;
            }
            Self::Postgres(runtime, client) => {
                runtime.block_on(client.batch_execute(&format!("BEGIN; {sql} COMMIT;")))?;
            }
        }
        Ok(())
    }

    /// Returns the ids of the points of all executions.
    pub(crate) fn points(&mut self) -> Outcome<Vec<Uuid>> {
        let sql = "SELECT id FROM checkpoints WHERE seq > 1";
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare(sql)?;
                let ids = statement.query_map([], |row| row.get::<_, [u8; 16]>(0))?;
                ids.map(|id| Ok(Uuid::from_bytes(id?))).collect()
            }
            Self::Postgres(runtime, client) => {
                let ids = runtime.block_on(cluster::rows(client, sql))?;
                ids.iter().map(|id| Ok(Uuid::try_parse(id)?)).collect()
            }
        }
    }

    fn literal(&self, id: Uuid) -> String {
        match self {
            Self::Sqlite(_) => format!("x'{}'", id.simple()),
            Self::Postgres(..) => format!("'{id}'"),
        }
    }
}
