//! One connection: how it is made, what the server must be like, and the statements that it has prepared.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt, stream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage, SimpleQueryRow, Statement};

use super::PostgresOptions;
use super::address::Address;
use super::fault::{Fault, Link};
use super::tls::Connector;

/// The oldest PostgreSQL that will do, as `server_version_num` has it.
const VERSION_MIN: u32 = 150_000;

const CONNECTING: &str = "connecting";

/// A connection to the server, whose settings are as they must be.
pub(super) struct Connection {
    pub(super) client: Client,
    statements: Mutex<HashMap<&'static str, Statement>>,
    /// The task that reads and writes the socket.
    task: AbortHandle,
    /// The runtime that the task is on: a connection is of use as long as it runs.
    runtime: runtime::Id,
    end: End,
}

/// What happens to a connection when it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The server is told.
    Gentle,
    /// Nothing is waited for.
    Cut,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, and makes sure that the server keeps what it acknowledges.
    ///
    /// What the server announces is told to `hear`, where that has room, until the connection ends.
    pub(super) async fn open(
        address: &Address,
        connector: &Connector,
        options: &PostgresOptions,
        deadline: Instant,
        hear: Option<mpsc::Sender<()>>,
    ) -> Result<Self, Fault> {
        let deadline = deadline.min(Instant::now() + options.connect_timeout);
        let late = || {
            let what = format!("no answer within {:?}", options.connect_timeout);
            Fault::late(address.location(), CONNECTING, what)
        };
        let config = address.config(options);
        let connected = timeout_at(deadline, config.connect(connector.clone())).await.map_err(|_| late())?;
        let (client, mut connection) =
            connected.map_err(|error| Fault::new(address.location(), CONNECTING, error))?;
        let task = tokio::spawn(async move {
            // Whoever waits for an answer is told.
            let mut messages = stream::poll_fn(|context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let (AsyncMessage::Notification(_), Some(hear)) = (message, &hear) {
                    // Where there is no room, it is told already.
                    let _ = hear.try_send(());
                }
            }
        });
        let mut connection = Self {
            client,
            statements: Mutex::default(),
            task: task.abort_handle(),
            runtime: runtime::Handle::current().id(),
            end: End::Cut,
        };
        timeout_at(deadline, connection.prepare_session(address, options)).await.map_err(|_| late())??;
        connection.end = End::Gentle;
        Ok(connection)
    }

    /// Returns a statement, prepared.
    pub(super) async fn statement(&self, sql: &'static str) -> Result<Statement, tokio_postgres::Error> {
        let known = self.statements.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().unwrap_or_else(PoisonError::into_inner).insert(sql, statement.clone());
        Ok(statement)
    }

    /// Tells whether something can be sent from where this is called.
    pub(super) fn is_usable(&self) -> bool {
        !self.client.is_closed() && self.is_ours()
    }

    /// Tells whether the connection's task runs on the runtime of the caller.
    pub(super) fn is_ours(&self) -> bool {
        runtime::Handle::try_current().is_ok_and(|handle| handle.id() == self.runtime)
    }

    /// Closes the connection without waiting for anything that is on its way.
    pub(super) fn cut(mut self) {
        self.end = End::Cut;
    }

    /// Waits for an answer of the server, and says what a failure means.
    pub(super) async fn answer<T>(
        location: &str,
        action: &'static str,
        deadline: Instant,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Fault> {
        match timeout_at(deadline, call).await {
            Ok(answer) => answer.map_err(|error| Fault::new(location, action, error)),
            Err(_) => Err(Fault::late(location, action, "no answer in time".to_owned())),
        }
    }

    /// Sets what the session needs, and insists on what the server must have, in one round trip.
    async fn prepare_session(&self, address: &Address, options: &PostgresOptions) -> Result<(), Fault> {
        let location = address.location();
        let sql = session(address.schema(), options);
        let messages =
            self.client.simple_query(&sql).await.map_err(|error| Fault::new(location, CONNECTING, error))?;
        let row = first_row(&messages);
        let refused = |why: String| Fault::refused(location, CONNECTING, why);
        let row = row.ok_or_else(|| refused("the server does not say what it is".to_owned()))?;
        let setting = |name: &str| row.try_get(name).ok().flatten().unwrap_or_default();
        unsuitable(setting).map_or(Ok(()), |why| Err(refused(why)))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        match self.end {
            // The task says goodbye when it sees that there is nobody left to ask for anything.
            End::Gentle => {}
            End::Cut => self.task.abort(),
        }
    }
}

/// Returns the statement that sets a session up and reads the settings that matter.
///
/// By `set_config`, and not with the connection's parameters, which poolers refuse.
///
/// Statements are planned once for a connection, and by their indexes: what is the best plan for tables that are nearly
/// empty is the worst for those that have grown since.
fn session(schema: &str, options: &PostgresOptions) -> String {
    let call = options.call_timeout.as_millis();
    let lock = options.lock_wait().as_millis();
    let idle = options.idle_transaction_timeout.as_millis();
    let silence = options.unacknowledged_timeout.as_millis();
    let keepalive = options.keepalive_interval.as_secs().max(1);
    // The last one is set to what it is, so that nobody turns it off for a session that has been checked.
    format!(
        "SELECT set_config('search_path', '\"{schema}\", pg_temp', false), \
         set_config('client_min_messages', 'warning', false), \
         set_config('standard_conforming_strings', 'on', false), \
         set_config('default_transaction_isolation', 'read committed', false), \
         set_config('jit', 'off', false), \
         set_config('plan_cache_mode', 'force_generic_plan', false), \
         set_config('enable_seqscan', 'off', false), \
         set_config('statement_timeout', '{call}ms', false), \
         set_config('lock_timeout', '{lock}ms', false), \
         set_config('idle_in_transaction_session_timeout', '{idle}ms', false), \
         set_config('tcp_user_timeout', '{silence}ms', false), \
         set_config('tcp_keepalives_idle', '{keepalive}s', false), \
         set_config('tcp_keepalives_interval', '{keepalive}s', false), \
         current_setting('server_version_num') AS version_number, \
         current_setting('server_version') AS version, \
         current_setting('server_encoding') AS encoding, \
         current_setting('fsync') AS fsync, \
         current_setting('full_page_writes') AS full_page_writes, \
         set_config('synchronous_commit', current_setting('synchronous_commit'), false) AS synchronous_commit"
    )
}

/// Returns the first row of an answer to statements without values.
pub(super) fn first_row(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages
        .iter()
        .find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
}

/// Returns what about a server does not do, and what to change, if anything.
fn unsuitable<'row>(setting: impl Fn(&str) -> &'row str) -> Option<String> {
    let version = setting("version");
    if setting("version_number").parse::<u32>().unwrap_or(0) < VERSION_MIN {
        let oldest = VERSION_MIN / 10_000;
        return Some(format!("the server is PostgreSQL {version}: use version {oldest} or later"));
    }
    let encoding = setting("encoding");
    if encoding != "UTF8" {
        return Some(format!(
            "the database has the encoding {encoding}: use one made with `createdb --encoding=UTF8 \
             --template=template0`"
        ));
    }
    for name in ["fsync", "full_page_writes"] {
        if setting(name) != "on" {
            return Some(format!("`{name}` is off, so that a crash may lose everything: set it to `on`"));
        }
    }
    match setting("synchronous_commit") {
        "on" | "remote_apply" => None,
        weaker => Some(format!(
            "`synchronous_commit` is `{weaker}`, so that a crash may lose what was acknowledged: set it to `on` for this \
             role and database"
        )),
    }
}

impl Link {
    /// Returns what has become of a connection by which an answer came.
    pub(super) fn after<T>(answer: &Result<T, Fault>) -> Self {
        answer.as_ref().map_or_else(|fault| fault.link, |_| Self::Whole)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn with(name: &'static str, value: &'static str) -> Option<String> {
        let mut settings = BTreeMap::from([
            ("version_number", "150001"),
            ("version", "15.1"),
            ("encoding", "UTF8"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
        ]);
        settings.insert(name, value);
        unsuitable(|name| settings[name])
    }

    #[test]
    fn a_server_that_keeps_what_it_acknowledges_will_do() {
        assert_eq!(with("version_number", "150000"), None);
        assert_eq!(with("synchronous_commit", "remote_apply"), None);
    }

    #[test]
    fn a_server_that_does_not_is_refused_with_what_to_change() {
        for (name, value) in [
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("synchronous_commit", "off"),
            ("synchronous_commit", "local"),
            ("synchronous_commit", "remote_write"),
        ] {
            let why = with(name, value).unwrap();
            assert!(why.contains(name) && why.contains("set it to `on`"), "{why}");
        }
        assert!(with("version_number", "149999").unwrap().contains("version 15 or later"));
        assert!(with("encoding", "LATIN1").unwrap().contains("--encoding=UTF8"));
    }
}
