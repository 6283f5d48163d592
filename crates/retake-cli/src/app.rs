//! What every command needs: the store, an engine on it, and who is asking.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retake::clock::{Clock, SystemClock};
use retake::engine::kinds::{LlmDefaults, Network, NetworkError, Prices};
use retake::engine::{Engine, EnvironmentSecrets, FileSecrets, Registry, Secrets, TraceContext};
use retake::execution::ExecutionId;
use retake::store::{
    MemoryStore, NewOperation, Options, PostgresStore, Queue, SqliteStore, Store, StoreError, TicketRecord,
};
use retake::telemetry::Observed;

use crate::arguments::{Arguments, STORE_DEFAULT};
use crate::failure::{Code, Failure, Matter};
use crate::inputs;
use crate::key_source;
use crate::output::Output;
use crate::wording;

/// The command's surroundings.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) output: Output,
    pub(crate) clock: Arc<dyn Clock>,
    store_url: String,
    secrets: Option<PathBuf>,
    prices: Option<PathBuf>,
    keys: Vec<String>,
    allow_network: Option<String>,
    proxy: Option<String>,
    trace_context: Option<Arc<dyn TraceContext>>,
    is_measured: bool,
}

/// Where a store is.
enum Location {
    Sqlite(PathBuf),
    /// A URL, with what it takes to get in.
    Postgres(String),
    Memory,
}

/// A store that was opened.
pub(crate) enum Opened {
    /// One for this machine.
    Plain(Arc<dyn Store>),
    /// One that hands runs out to workers.
    Queue(Arc<dyn Queue>),
}

impl Opened {
    fn queue(store: PostgresStore) -> Self {
        Self::Queue(Arc::new(Observed::new(Arc::new(store), "postgresql")))
    }

    /// Returns it as any store.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Plain(store) => Arc::clone(store),
            Self::Queue(queue) => Arc::clone(queue) as Arc<dyn Store>,
        }
    }

    /// Returns it as one that hands runs out, if it is.
    pub(crate) fn queue_if_any(&self) -> Option<&dyn Queue> {
        match self {
            Self::Plain(_) => None,
            Self::Queue(queue) => Some(&**queue),
        }
    }

    /// Returns the tickets of runs that wait for a worker, or are in the hands of one.
    pub(crate) async fn tickets(
        &self,
        of: &[ExecutionId],
    ) -> Result<BTreeMap<ExecutionId, TicketRecord>, Failure> {
        let tickets = match self {
            Self::Plain(_) => Vec::new(),
            Self::Queue(queue) => queue.tickets(of).await?,
        };
        Ok(tickets.into_iter().map(|ticket| (ticket.execution_id, ticket)).collect())
    }
}

impl App {
    pub(crate) fn new(
        arguments: &Arguments,
        output: Output,
        trace_context: Option<Arc<dyn TraceContext>>,
    ) -> Self {
        Self {
            output,
            clock: Arc::new(SystemClock::default()),
            store_url: arguments.store.clone(),
            secrets: arguments.secrets.clone(),
            prices: arguments.prices.clone(),
            keys: arguments.key.clone(),
            allow_network: arguments.allow_network.clone(),
            proxy: arguments.proxy.clone(),
            trace_context,
            is_measured: arguments.metrics.as_deref().is_some_and(|address| !address.is_empty()),
        }
    }

    /// Tells whether anybody may ask for metrics.
    pub(crate) fn is_measured(&self) -> bool {
        self.is_measured
    }

    /// Returns the same with another store, and other keys, where they are given.
    pub(crate) fn elsewhere(&self, store_url: Option<String>, keys: Option<Vec<String>>) -> Self {
        let mut app = self.clone();
        app.store_url = store_url.unwrap_or(app.store_url);
        app.keys = keys.unwrap_or(app.keys);
        app
    }

    /// Opens the store; `None` where there is none.
    pub(crate) async fn store_if_any(&self) -> Result<Option<Arc<dyn Store>>, Failure> {
        match self.store().await {
            Ok(store) => Ok(Some(store)),
            Err(failure) if failure.code == Code::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Tells whether the store ends with this command.
    pub(crate) fn is_in_memory(&self) -> Result<bool, Failure> {
        Ok(match self.location()? {
            Location::Sqlite(_) | Location::Postgres(_) => false,
            Location::Memory => true,
        })
    }

    /// Opens the store, making it where there is none: for commands that start something.
    pub(crate) async fn make(&self) -> Result<Opened, Failure> {
        self.tell_log()?;
        Ok(match self.location()? {
            Location::Sqlite(path) => {
                Opened::Plain(observed(SqliteStore::open_with(path, self.options()?)?, "sqlite"))
            }
            Location::Postgres(url) => {
                self.refuse_keys()?;
                Opened::queue(PostgresStore::connect(&url).await?)
            }
            Location::Memory => Opened::Plain(observed(MemoryStore::new(), "memory")),
        })
    }

    /// Opens a store that must be there.
    pub(crate) async fn open(&self) -> Result<Opened, Failure> {
        self.tell_log()?;
        Ok(match self.location()? {
            Location::Sqlite(path) => Opened::Plain(observed(self.sqlite_store(&path)?, "sqlite")),
            Location::Postgres(url) => {
                self.refuse_keys()?;
                Opened::queue(PostgresStore::connect_existing(&url).await?)
            }
            Location::Memory => Opened::Plain(observed(MemoryStore::new(), "memory")),
        })
    }

    /// Tells the log which kind of store is opened.
    fn tell_log(&self) -> Result<(), Failure> {
        let system = match self.location()? {
            Location::Sqlite(_) => "sqlite",
            Location::Postgres(_) => "postgresql",
            Location::Memory => "memory",
        };
        tracing::info!(db.system.name = system, "the store is opened");
        Ok(())
    }

    /// Opens the store, making it where there is none, whatever it can do.
    pub(crate) async fn make_store(&self) -> Result<Arc<dyn Store>, Failure> {
        Ok(self.make().await?.store())
    }

    /// Opens a store that must be there, whatever it can do.
    pub(crate) async fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        Ok(self.open().await?.store())
    }

    /// Refuses what only a store can do that hands runs out to workers.
    pub(crate) fn require_queue(&self, what: &str) -> Result<(), Failure> {
        if self.is_on_a_server()? { Ok(()) } else { Err(not_shared(what)) }
    }

    /// Opens a store that must be there, for what only one can do that hands runs out to workers.
    pub(crate) async fn queue(&self, what: &str) -> Result<Arc<dyn Queue>, Failure> {
        // Before a file is looked for.
        self.require_queue(what)?;
        match self.open().await? {
            Opened::Queue(queue) => Ok(queue),
            Opened::Plain(_) => Err(not_shared(what)),
        }
    }

    /// Opens the store in a file, which must be there.
    pub(crate) fn sqlite_store(&self, path: &Path) -> Result<SqliteStore, Failure> {
        if is_nothing(path) {
            return Err(StoreError::Absent { location: path.display().to_string() }.into());
        }
        Ok(SqliteStore::open_existing_with(path, self.options()?)?)
    }

    /// Returns how to open the store: with the keys that were named.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        // A variable that is set to nothing names nothing.
        let named = self.keys.iter().filter(|source| !source.is_empty());
        let keys = named.map(|source| key_source::read(source)).collect::<Result<_, _>>()?;
        Ok(Options { keys, ..Options::default() })
    }

    /// Returns an engine on a store that must be there.
    pub(crate) async fn engine(&self) -> Result<Engine, Failure> {
        self.engine_on(self.open().await?)
    }

    /// Returns an engine on a store, with every kind of node that this command can run.
    pub(crate) fn engine_on(&self, opened: Opened) -> Result<Engine, Failure> {
        let engine = match opened {
            Opened::Plain(store) => Engine::new(store),
            Opened::Queue(queue) => Engine::on_queue(queue),
        };
        let engine = engine
            .with_clock(Arc::clone(&self.clock))
            .with_registry(Registry::within(self.network()?, self.llm_defaults()?))
            .with_secrets(self.secrets()?);
        Ok(match &self.trace_context {
            Some(trace_context) => engine.with_trace_context(Arc::clone(trace_context)),
            None => engine,
        })
    }

    /// Returns who is asking, and for what, for the operation log.
    pub(crate) fn operation(&self) -> NewOperation {
        let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
        let mut command = arguments.collect::<Vec<_>>().join(" ");
        // Which may hold a password, as the next may. The engine takes out the values of secrets that it knows.
        if self.store_url.contains("://") {
            command = command.replace(&self.store_url, &self.shown_store());
        }
        if let Some(proxy) = self.proxy.as_deref().filter(|proxy| proxy.contains('@')) {
            command = command.replace(proxy, "***");
        }
        self.operation_by(format!("retake {command}"))
    }

    /// Returns who is asking, for something that is no command of its own: a signal.
    pub(crate) fn operation_by(&self, command: impl Into<String>) -> NewOperation {
        let who = whoami::username().unwrap_or_else(|_| "unknown".to_owned());
        NewOperation { who, command: command.into() }
    }

    /// Returns a command line to go on with, on the store that this command uses.
    pub(crate) fn command_line(&self, rest: impl Display) -> String {
        let mut line = "retake".to_owned();
        if self.store_url != STORE_DEFAULT && std::env::var("RETAKE_STORE").as_ref() != Ok(&self.store_url) {
            line = format!("{line} --store {}", quoted(&self.shown_store()));
        }
        let keys = self.keys.join(",");
        if !keys.is_empty() && std::env::var("RETAKE_KEY").as_ref() != Ok(&keys) {
            line = format!("{line} --key {keys}");
        }
        format!("{line} {rest}")
    }

    /// Returns a failure with what can be done about it in this store.
    pub(crate) async fn advise(&self, failure: Failure) -> Failure {
        let on_a_server = self.is_on_a_server().unwrap_or(false);
        let advice = match (failure.matter, on_a_server) {
            (None, _) => return failure,
            (Some(Matter::Damage), _) => self.advice_on_damage(on_a_server),
            (Some(Matter::Lease { run, until }), _) => {
                // Who cannot be asked what it is called knows it by its id.
                let found = match self.store().await {
                    Ok(store) => store.execution(run).await.ok().flatten(),
                    Err(_) => None,
                };
                let name = found.map_or_else(|| run.to_string(), |found| found.name);
                let pause = self.command_line(format_args!("pause {}", wording::plain(&name)));
                match on_a_server {
                    true => format!(
                        "wait until it ends, or ask it to stop by `{pause}`; if it has died, its lease ends {}",
                        wording::until(self.clock.now(), until)
                    ),
                    false => format!("wait until it ends, or stop it with `{pause}`"),
                }
            }
        };
        let rest = failure.hint.as_deref().map(|hint| format!("; then {hint}")).unwrap_or_default();
        Failure { matter: None, ..failure }.hint(format!("{advice}{rest}"))
    }

    /// Returns what can be done where something is damaged.
    pub(crate) fn advice_on_damage(&self, on_a_server: bool) -> String {
        match on_a_server {
            true => format!(
                "`{}` names all that is damaged: {}",
                self.command_line("doctor"),
                self.advice_on_a_damaged_server()
            ),
            false => format!(
                "`{}` says what can be kept and what is lost",
                self.command_line("doctor --fix --dry-run")
            ),
        }
    }

    /// Returns what can be done about what is damaged on a server, which nothing repairs there.
    pub(crate) fn advice_on_a_damaged_server(&self) -> String {
        format!(
            "restore the database from a backup, or give a damaged run up by `{}`",
            self.command_line("rm ID")
        )
    }

    /// Returns what names the store, without the password in it.
    pub(crate) fn shown_store(&self) -> String {
        match self.location() {
            Ok(Location::Postgres(url)) => {
                PostgresStore::url_without_password(&url).unwrap_or_else(|_| "***".to_owned())
            }
            Ok(Location::Sqlite(_) | Location::Memory) => self.store_url.clone(),
            Err(_) => "***".to_owned(),
        }
    }

    /// Tells whether the store is on a server.
    pub(crate) fn is_on_a_server(&self) -> Result<bool, Failure> {
        Ok(self.server()?.is_some())
    }

    /// Returns the URL of the server that the store is on, if it is, with what it takes to get in.
    pub(crate) fn server(&self) -> Result<Option<String>, Failure> {
        Ok(match self.location()? {
            Location::Postgres(url) => Some(url),
            Location::Sqlite(_) | Location::Memory => None,
        })
    }

    /// Refuses keys for a store on a server: whoever gives one expects that nobody can read along there.
    fn refuse_keys(&self) -> Result<(), Failure> {
        if self.keys.iter().all(String::is_empty) {
            return Ok(());
        }
        let message = "a store on a PostgreSQL server takes no key: retake encrypts only stores in files";
        let without = match std::env::var("RETAKE_KEY") == Ok(self.keys.join(",")) {
            true => "unset RETAKE_KEY for this store, as by `RETAKE_KEY= retake ...`",
            false => "leave `--key` out",
        };
        Err(Failure::new(Code::Usage, message).hint(format!(
            "{without}; who may read the database reads all values, so encrypt the server's disk"
        )))
    }

    /// Tells whether what people wrote is sealed in the store, or would be in one that is made.
    pub(crate) fn is_encrypted(&self) -> Result<bool, Failure> {
        Ok(match self.location()? {
            Location::Sqlite(path) if is_nothing(&path) => !self.options()?.keys.is_empty(),
            Location::Sqlite(path) => self.sqlite_store(&path)?.is_encrypted(),
            Location::Postgres(_) | Location::Memory => false,
        })
    }

    /// Returns the file that the store is in, if it is one.
    pub(crate) fn store_file(&self) -> Result<Option<PathBuf>, Failure> {
        Ok(match self.location()? {
            Location::Sqlite(path) => Some(path),
            Location::Postgres(_) | Location::Memory => None,
        })
    }

    /// Returns the bytes that the store takes on disk, its write-ahead log included, if it is a file.
    pub(crate) fn stored_bytes(&self) -> Result<Option<u64>, Failure> {
        let Some(path) = self.store_file()? else { return Ok(None) };
        let size = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len());
        Ok(size(&path).map(|bytes| bytes + size(&log_of(&path)).unwrap_or(0)))
    }

    fn network(&self) -> Result<Network, Failure> {
        let refused = |error: NetworkError| Failure::new(Code::Usage, error.to_string());
        let network = Network::public().allowing(self.allow_network.as_deref().unwrap_or_default());
        let network = network.map_err(refused)?;
        match self.proxy.as_deref().filter(|proxy| !proxy.is_empty()) {
            Some(proxy) => network.with_proxy(proxy).map_err(refused),
            None => Ok(network),
        }
    }

    fn llm_defaults(&self) -> Result<LlmDefaults, Failure> {
        let mut defaults = LlmDefaults::from_environment();
        if let Some(path) = &self.prices {
            let text = inputs::text(path)
                .map_err(|error| Failure::unreadable(format!("prices from {}", path.display()), &error))?;
            let ours = Prices::parse(&text).map_err(|error| {
                let mut failure = Failure::new(Code::Usage, format!("{}: {error}", path.display()));
                failure.causes = std::error::Error::source(&error).iter().map(ToString::to_string).collect();
                failure
            })?;
            defaults.prices = defaults.prices.overridden_by(ours);
        }
        Ok(defaults)
    }

    fn secrets(&self) -> Result<Arc<dyn Secrets>, Failure> {
        let Some(path) = &self.secrets else { return Ok(Arc::new(EnvironmentSecrets)) };
        let text = inputs::text(path)
            .map_err(|error| Failure::unreadable(format!("secrets from {}", path.display()), &error))?;
        let secrets = FileSecrets::parse(&text).map_err(|line| {
            Failure::new(Code::Usage, format!("{}:{line}: not a NAME=value line", path.display()))
        })?;
        Ok(Arc::new(secrets))
    }

    fn location(&self) -> Result<Location, Failure> {
        let url = self.store_url.as_str();
        if url == "memory:" {
            return Ok(Location::Memory);
        }
        if let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
            return Ok(Location::Sqlite(path.into()));
        }
        if url.is_empty() {
            return Err(Failure::new(Code::Usage, "the store has no name")
                .hint("name one by `--store` or RETAKE_STORE, or unset RETAKE_STORE"));
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return match PostgresStore::url_without_password(url) {
                Ok(_) => Ok(Location::Postgres(url.to_owned())),
                Err(error) => {
                    let mut failure = Failure::new(Code::Usage, "the URL of the store cannot be read");
                    failure.causes =
                        std::error::Error::source(&error).iter().map(ToString::to_string).collect();
                    Err(failure)
                }
            };
        }
        // It may hold a password: neither a file is to be called so, nor an error to say it.
        if url.starts_with("postgres:") || url.starts_with("postgresql:") || url.contains("password=") {
            return Err(Failure::new(Code::Usage, "the URL of the store cannot be read")
                .hint("a server is named by `postgres://USER@HOST/DATABASE`"));
        }
        match url.split_once("://") {
            Some((scheme, _)) => Err(Failure::new(Code::Usage, format!("no store is called `{scheme}://`"))
                .hint("use a path, `sqlite:PATH`, `postgres://...` or `memory:`")),
            None => Ok(Location::Sqlite(url.into())),
        }
    }
}

/// Refuses what only a store can do that hands runs out to workers.
fn not_shared(what: &str) -> Failure {
    Failure::new(Code::Usage, format!("{what} needs a store that machines share, and this one is not"))
        .hint("use a PostgreSQL server: `--store postgres://USER@HOST/DATABASE`")
}

/// Returns a word as a shell reads it.
fn quoted(word: &str) -> String {
    match word.contains(['?', '&', '*']) {
        true => format!("'{word}'"),
        false => word.to_owned(),
    }
}

/// Returns a store that tells of what is committed to it.
fn observed(store: impl Store + 'static, system: &'static str) -> Arc<dyn Store> {
    Arc::new(Observed::new(Arc::new(store), system))
}

/// Tells whether there is no store at a path, and never was: a process that died as it began leaves an empty file.
fn is_nothing(path: &Path) -> bool {
    let is_empty = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
    is_empty && !log_of(path).exists() || path.try_exists().is_ok_and(|exists| !exists)
}

/// Returns the write-ahead log of a store's file.
fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use clap::Parser;
    use retake::store::Conflict;

    use super::*;

    async fn advice(store: &str, error: StoreError) -> String {
        let arguments = Arguments::try_parse_from(["retake", "--store", store, "ls"]).unwrap();
        let app = App::new(&arguments, Output::new(true), None);
        app.advise(error.into()).await.hint.unwrap()
    }

    #[tokio::test]
    async fn what_can_be_done_about_damage_depends_on_the_store() {
        let damage =
            || StoreError::Corrupt { record: "delta 7".to_owned(), why: "its checksum is wrong".to_owned() };
        let in_a_file = advice("work.db", damage()).await;
        assert_eq!(
            in_a_file,
            "`retake --store work.db doctor --fix --dry-run` says what can be kept and what is lost"
        );
        let on_a_server = advice("postgres://ann@127.0.0.1:1/work", damage()).await;
        assert!(on_a_server.contains("restore the database from a backup"), "{on_a_server}");
        assert!(!on_a_server.contains("--fix"), "{on_a_server}");
    }

    #[tokio::test]
    async fn who_advances_a_run_is_asked_to_stop_by_its_id_where_its_name_is_not_known() {
        let run = ExecutionId::from_u128(7);
        let leased =
            Conflict::Leased { execution: run, owner: "otter:7".to_owned(), until: DateTime::UNIX_EPOCH };
        let told = advice("nowhere.db", leased.into()).await;
        let pause = format!("`retake --store nowhere.db pause {run}`");
        assert_eq!(told, format!("wait until it ends, or stop it with {pause}"));
    }
}
