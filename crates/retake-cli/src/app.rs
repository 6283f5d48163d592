//! What every command needs: the store, an engine on it, and who is asking.

use std::path::PathBuf;
use std::sync::Arc;

use retake::clock::{Clock, SystemClock};
use retake::engine::{Engine, EnvironmentSecrets, FileSecrets, Registry, Secrets};
use retake::store::{MemoryStore, NewOperation, SqliteStore, Store};

use crate::arguments::Arguments;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// The command's surroundings.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) output: Output,
    pub(crate) clock: Arc<dyn Clock>,
    store_url: String,
    secrets: Option<PathBuf>,
}

/// Where a store is.
enum Location {
    Sqlite(PathBuf),
    Memory,
}

impl App {
    pub(crate) fn new(arguments: &Arguments, output: Output) -> Self {
        Self {
            output,
            clock: Arc::new(SystemClock::default()),
            store_url: arguments.store.clone(),
            secrets: arguments.secrets.clone(),
        }
    }

    /// Opens the store, making it where there is none: for commands that start something.
    pub(crate) fn make_store(&self) -> Result<Arc<dyn Store>, Failure> {
        Ok(match self.location()? {
            Location::Sqlite(path) => Arc::new(SqliteStore::open(path)?),
            Location::Memory => Arc::new(MemoryStore::new()),
        })
    }

    /// Opens a store that must be there.
    pub(crate) fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        Ok(match self.location()? {
            Location::Sqlite(path) => Arc::new(SqliteStore::open_existing(path)?),
            Location::Memory => Arc::new(MemoryStore::new()),
        })
    }

    /// Returns an engine on a store, with every kind of node that this command can run.
    pub(crate) fn engine(&self, store: Arc<dyn Store>) -> Result<Engine, Failure> {
        let engine = Engine::new(store)
            .with_clock(Arc::clone(&self.clock))
            .with_registry(Registry::with_defaults())
            .with_secrets(self.secrets()?);
        Ok(engine)
    }

    /// Returns who is asking, and for what, for the operation log.
    pub(crate) fn operation(&self) -> NewOperation {
        let who = ["USER", "LOGNAME", "USERNAME"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
            .unwrap_or_else(|| "unknown".to_owned());
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        NewOperation { who, command: format!("retake {command}") }
    }

    fn secrets(&self) -> Result<Arc<dyn Secrets>, Failure> {
        let Some(path) = &self.secrets else { return Ok(Arc::new(EnvironmentSecrets)) };
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::system(format!("cannot read secrets from {}", path.display()), error)
        })?;
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
        if let Some(path) = url.strip_prefix("sqlite:") {
            return Ok(Location::Sqlite(path.into()));
        }
        match url.split_once("://") {
            Some((scheme, _)) => Err(Failure::new(Code::Usage, format!("no store is called `{scheme}://`"))
                .hint("use a path, `sqlite:PATH` or `memory:`")),
            None => Ok(Location::Sqlite(url.into())),
        }
    }
}
