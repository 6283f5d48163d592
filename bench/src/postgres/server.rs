//! The server beside its stores: schemas to measure in, and what the server says of its log, its tables and its time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

use crate::Outcome;

/// Where the address of a superuser on a server is found.
pub(crate) const VARIABLE: &str = "RETAKE_TEST_POSTGRES";

/// What the system counts the time of processes in, on every Linux: a hundredth of a second.
const TICK: Duration = Duration::from_millis(10);

/// A connection beside those that are measured.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Runtime,
    client: Client,
    url: String,
    /// The process that all others of the server descend from.
    postmaster: u32,
}

/// How far the server has got, to be compared with a later moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// Of the write-ahead log.
    log_bytes: i64,
    /// That have written anything.
    transactions: i64,
    /// Of all processes of the server.
    processor: Duration,
}

/// What happened between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) log_bytes: f64,
    pub(crate) transactions: f64,
    pub(crate) processor: Duration,
}

impl Server {
    pub(crate) fn connect() -> Outcome<Self> {
        let url = std::env::var(VARIABLE)
            .map_err(|_| format!("{VARIABLE} is not set: `cargo xtask bench postgres` starts a server"))?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (client, connection) = runtime.block_on(tokio_postgres::connect(&url, NoTls))?;
        runtime.spawn(connection);
        let row = runtime.block_on(client.query_one("SELECT pg_backend_pid()", &[]))?;
        let backend = u32::try_from(row.get::<_, i32>(0))?;
        let postmaster =
            process(backend).map_err(|error| format!("the server is not on this machine: {error}"))?;
        Ok(Self { runtime, client, url, postmaster: postmaster.parent })
    }

    /// Returns a schema that whoever uses it makes, and that goes in the end.
    pub(crate) fn schema(&self, name: &str) -> Schema<'_> {
        Schema { server: self, name: format!("bench_{}_{name}", std::process::id()) }
    }

    /// Returns the address, with which schema `name` is chosen.
    fn url(&self, name: &str) -> String {
        let joint = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{joint}schema={name}", self.url)
    }

    /// Returns the address of the database.
    pub(crate) fn database(&self) -> &str {
        &self.url
    }

    /// Runs statements, each for itself.
    pub(crate) fn run(&self, sql: &str) -> Outcome<()> {
        Ok(self.runtime.block_on(self.client.batch_execute(sql))?)
    }

    /// Returns the number that a statement gives.
    pub(crate) fn number(&self, sql: &str) -> Outcome<i64> {
        Ok(self.runtime.block_on(self.client.query_one(sql, &[]))?.try_get(0)?)
    }

    /// Returns the text that a statement gives.
    pub(crate) fn text(&self, sql: &str) -> Outcome<String> {
        Ok(self.runtime.block_on(self.client.query_one(sql, &[]))?.try_get(0)?)
    }

    pub(crate) fn mark(&self) -> Outcome<Mark> {
        Ok(Mark {
            log_bytes: self.number("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")?,
            // The next transaction that writes gets this number: asking takes none.
            transactions: self.number("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")?,
            processor: self.processor()?,
        })
    }

    pub(crate) fn since(&self, mark: Mark) -> Outcome<Spent> {
        let now = self.mark()?;
        let number = |many: i64| f64::from(u32::try_from(many).unwrap_or(u32::MAX));
        Ok(Spent {
            log_bytes: number(now.log_bytes - mark.log_bytes),
            transactions: number(now.transactions - mark.transactions),
            processor: now.processor.saturating_sub(mark.processor),
        })
    }

    /// Returns the time that the processes of the server have run, with those that have ended.
    fn processor(&self) -> Outcome<Duration> {
        let mut ticks = process(self.postmaster)?.ticks_with_ended;
        for entry in std::fs::read_dir("/proc")? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended since is counted by whoever it descends from.
            if let Ok(process) = process(id)
                && process.parent == self.postmaster
            {
                ticks += process.ticks_with_ended;
            }
        }
        Ok(TICK * ticks)
    }
}

/// Where tables are that go with it.
#[derive(Debug)]
pub(crate) struct Schema<'a> {
    server: &'a Server,
    pub(crate) name: String,
}

impl Schema<'_> {
    /// Returns the address of a store in it.
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Returns how many bytes its tables have, with their indexes and what is kept beside them.
    pub(crate) fn bytes(&self) -> Outcome<u64> {
        let sql = format!(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{}' AND c.relkind = 'r'",
            self.name
        );
        Ok(u64::try_from(self.server.number(&sql)?)?)
    }

    /// Does to every table what a server does by itself after a while.
    pub(crate) fn vacuum(&self) -> Outcome<()> {
        let sql = format!(
            "SELECT coalesce(string_agg(format('%I.%I', schemaname, tablename), ', '), '') FROM pg_tables \
             WHERE schemaname = '{}'",
            self.name
        );
        let tables = self.server.text(&sql)?;
        if tables.is_empty() { Ok(()) } else { self.server.run(&format!("VACUUM ANALYZE {tables}")) }
    }
}

impl Drop for Schema<'_> {
    fn drop(&mut self) {
        // The server ends with the run, or somebody else cleans it.
        let _left = self.server.run(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.name));
    }
}

/// What the system says of a process.
#[derive(Debug, Clone, Copy)]
struct Process {
    parent: u32,
    /// Of it, and of those that descended from it and have ended.
    ticks_with_ended: u32,
}

fn process(id: u32) -> Outcome<Process> {
    let path: PathBuf = Path::new("/proc").join(id.to_string()).join("stat");
    let text = std::fs::read_to_string(path)?;
    // The second field is a name in brackets, which may have blanks and brackets in it.
    let (_, rest) = text.rsplit_once(") ").ok_or("a process without a name")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| -> Outcome<u32> { Ok(fields.get(at).ok_or("too few fields")?.parse()?) };
    Ok(Process {
        parent: number(1)?,
        ticks_with_ended: number(11)? + number(12)? + number(13)? + number(14)?,
    })
}

/// Returns the time that this process has run.
pub(crate) fn own_processor() -> Outcome<Duration> {
    Ok(TICK * process(std::process::id())?.ticks_with_ended)
}
