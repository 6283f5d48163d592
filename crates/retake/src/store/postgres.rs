//! The store for many machines: tables in a schema of a PostgreSQL database.
//!
//! Everything here is done by tasks of the caller's runtime, which must have tokio's timers and sockets.

mod address;
mod alone;
mod aside;
mod asking;
mod batch;
mod chain;
mod check;
mod commit;
mod connect;
mod create;
mod db;
mod execution;
mod fault;
mod feed;
mod keeper;
mod keys;
mod known;
mod lease;
mod migration;
mod moving;
mod outage;
mod password;
#[cfg(all(test, feature = "testkit"))]
mod plans;
mod pool;
mod prune;
mod query;
mod queue;
mod row;
mod schema;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod write;

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use self::address::Address;
use self::asking::Looks;
use self::batch::Batcher;
use self::db::Db;
use self::keeper::Keeper;
use self::keys::Keys;
use self::known::Cache;
use self::migration::Missing;
use self::queue::Bell;
use super::{
    CheckpointRecord, Commit, ExecutionFilter, ExecutionRecord, Feed, FeedPage, History, HistoryPage, Image,
    Lease, NewCheckpoint, NewExecution, Note, OperationRecord, Report, Request, Seq, Stats, Store,
    StoreError, process,
};
use crate::checkpoint::CheckpointId;
use crate::clock::{Clock, SystemClock};
use crate::execution::{ExecutionId, WorkflowId};

/// How to connect to a [`PostgresStore`].
///
/// Every wait has its bound here, so that a call ends in time whatever happens to the server or on the way to it.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Makes ids, and says when things happened. Leases go by the server's clock.
    pub clock: Arc<dyn Clock>,
    /// How many connections there are at most; at least 1. One more listens.
    pub connections_max: usize,
    /// How long it may take until a connection is made, from the name of the server to the check of its settings, however
    /// often that is tried: after that a server counts as away.
    pub connect_timeout: Duration,
    /// How long a call may take: to wait for a connection, to send, and to be answered. The server gives a statement up
    /// after that time as well.
    pub call_timeout: Duration,
    /// How long a write goes on trying where the connection is lost, after which it finds out whether it was done. Then it
    /// fails, and nobody knows.
    pub outage_max: Duration,
    /// How long a statement waits for what another transaction has locked, and at most half of `call_timeout`. A write tries
    /// again as long as that leaves it within `call_timeout`.
    pub lock_timeout: Duration,
    /// After how long of silence within a transaction the server ends it: its process may be stopped.
    pub idle_transaction_timeout: Duration,
    /// After how long a connection is given up on which nothing that was sent arrives.
    pub unacknowledged_timeout: Duration,
    /// After how long of silence a connection is probed, and how often then.
    pub keepalive_interval: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            connections_max: 8,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            outage_max: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            idle_transaction_timeout: Duration::from_secs(10),
            unacknowledged_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2),
        }
    }
}

impl PostgresOptions {
    /// Returns how long a statement waits for a lock: less than a call may take, so that the server can say what it was.
    fn lock_wait(&self) -> Duration {
        self.lock_timeout.min(self.call_timeout / 2)
    }
}

/// Keeps histories on a PostgreSQL server, which many machines may use at once.
#[derive(Debug)]
pub struct PostgresStore {
    shared: Arc<Shared>,
}

/// What the tasks of a store share.
#[derive(Debug)]
struct Shared {
    db: Db,
    clock: Arc<dyn Clock>,
    /// Who holds the leases that are taken here, as people are told.
    owner: String,
    keys: Keys,
    cache: Cache,
    batcher: Arc<Batcher>,
    looks: Arc<Looks>,
    keeper: Keeper,
    bell: Arc<Bell>,
}

impl Shared {
    fn new(db: Db) -> Self {
        Self {
            clock: Arc::clone(&db.options().clock),
            owner: process::name().to_owned(),
            keys: Keys::new(),
            cache: Cache::default(),
            batcher: Arc::new(Batcher::new(db.clone())),
            bell: Arc::default(),
            looks: Arc::new(Looks::new(db.clone())),
            keeper: Keeper::default(),
            db,
        }
    }
}

impl PostgresStore {
    /// Connects to the store at a URL, and makes it where there is none.
    ///
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=SCHEMA&sslmode=verify-full`; `%40` stands for `@`, and so on. A
    /// password that is not in the URL is looked for in `PGPASSWORD`, and in the password file of PostgreSQL's own programs.
    /// The parameters `connect_timeout`, `call_timeout` (both in seconds) and `connections_max` go before the options;
    /// `sslmode` and `sslrootcert` mean what they mean there, except that whoever names an authority and no mode gets
    /// `verify-full`. The guide's page on many machines has all of them.
    ///
    /// Every connection is checked: PostgreSQL 15 or later, UTF-8, `fsync` and `full_page_writes` on, and
    /// `synchronous_commit` at least `on`, which the session then keeps.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the URL, the server or what this user may do there will not do;
    /// [`StoreError::NotAStore`] where the schema holds something else, [`StoreError::NewerFormat`], and
    /// [`StoreError::Io`] where the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_with(url, PostgresOptions::default()).await
    }

    /// Connects to the store at a URL, as [`connect`](Self::connect) does, with other options than the defaults.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub async fn connect_with(url: &str, options: PostgresOptions) -> Result<Self, StoreError> {
        Self::start(url, options, Missing::Create).await
    }

    /// Connects to the store at a URL, which must be there.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), and [`StoreError::Absent`].
    pub async fn connect_existing(url: &str) -> Result<Self, StoreError> {
        Self::connect_existing_with(url, PostgresOptions::default()).await
    }

    /// Connects to the store at a URL, which must be there, with other options than the defaults.
    ///
    /// # Errors
    /// Those of [`connect_existing`](Self::connect_existing).
    pub async fn connect_existing_with(url: &str, options: PostgresOptions) -> Result<Self, StoreError> {
        Self::start(url, options, Missing::Refuse).await
    }

    /// Returns where the store is, as people are told: without the password.
    pub fn location(&self) -> &str {
        self.shared.db.location()
    }

    /// Returns how many writes shared how many transactions.
    pub fn stats(&self) -> Stats {
        self.shared.batcher.stats()
    }

    /// Returns a URL without the password in it, to be shown or logged.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where [`connect`](Self::connect) would not know what to do with it. Nothing of the URL is in
    /// the error, for a password may be anywhere in one that cannot be read.
    pub fn url_without_password(url: &str) -> Result<String, StoreError> {
        Address::parse(url).map(|_| address::without_password(url))
    }

    async fn start(url: &str, options: PostgresOptions, missing: Missing) -> Result<Self, StoreError> {
        let db = Db::new(Address::parse(url)?, options)?;
        db.greet().await?;
        migration::migrate(&db, schema::MIGRATIONS, missing).await?;
        Ok(Self { shared: Arc::new(Shared::new(db)) })
    }
}

#[async_trait::async_trait]
impl Store for PostgresStore {
    async fn create(&self, new: NewExecution, first: NewCheckpoint) -> Result<CheckpointRecord, StoreError> {
        create::create(&self.shared, new, first).await
    }

    async fn commit(&self, commit: Commit) -> Result<CheckpointRecord, StoreError> {
        commit::commit(&self.shared, commit).await
    }

    async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionRecord>, StoreError> {
        query::execution(&self.shared, id).await
    }

    async fn executions(&self, filter: &ExecutionFilter) -> Result<Vec<ExecutionRecord>, StoreError> {
        query::executions(&self.shared, filter).await
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<Vec<u8>>, StoreError> {
        query::workflow(&self.shared, id).await
    }

    async fn history(&self, id: ExecutionId, page: HistoryPage) -> Result<Vec<CheckpointRecord>, StoreError> {
        query::history(&self.shared, id, page).await
    }

    async fn feed(&self, page: FeedPage) -> Result<Feed, StoreError> {
        feed::feed(&self.shared, page).await
    }

    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointRecord>, StoreError> {
        query::checkpoint(&self.shared, id).await
    }

    async fn state(&self, id: ExecutionId, seq: Seq) -> Result<Image, StoreError> {
        query::state(&self.shared, id, seq).await
    }

    async fn operations(&self, id: ExecutionId) -> Result<Vec<OperationRecord>, StoreError> {
        query::operations(&self.shared, id).await
    }

    async fn note(&self, id: ExecutionId, note: Note) -> Result<OperationRecord, StoreError> {
        asking::note(&self.shared, id, &note).await
    }

    async fn export(&self, id: ExecutionId) -> Result<History, StoreError> {
        moving::export(&self.shared, id).await
    }

    async fn import(&self, history: History) -> Result<(), StoreError> {
        moving::import(&self.shared, history).await
    }

    async fn prune(&self, id: ExecutionId, keep: usize) -> Result<usize, StoreError> {
        prune::prune(&self.shared, id, keep).await
    }

    async fn delete(&self, id: ExecutionId) -> Result<usize, StoreError> {
        prune::delete(&self.shared, id).await
    }

    async fn lease(&self, id: ExecutionId, ttl: Duration) -> Result<Lease, StoreError> {
        lease::lease(&self.shared, id, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        lease::renew(&self.shared, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        lease::release(&self.shared, lease).await
    }

    async fn ask(&self, id: ExecutionId, request: Request) -> Result<(), StoreError> {
        asking::ask(&self.shared, id, &request.checked()?).await
    }

    async fn requests(&self, id: ExecutionId) -> Result<Vec<Request>, StoreError> {
        self.shared.looks.requests(id).await
    }

    async fn withdraw(&self, id: ExecutionId, request: Uuid) -> Result<bool, StoreError> {
        asking::withdraw(&self.shared, id, request).await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        check::check(&self.shared).await
    }

    async fn compact(&self) -> Result<(), StoreError> {
        prune::compact(&self.shared).await
    }
}
