//! The URL of a store: where its server is, and how to get in.

use std::fmt;
use std::sync::Arc;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::PostgresOptions;
use crate::store::StoreError;

/// The schema of a URL that names none.
const SCHEMA_DEFAULT: &str = "retake";

/// PostgreSQL cuts longer names.
const SCHEMA_BYTES_MAX: usize = 63;

/// Where a store is.
#[derive(Clone)]
pub(super) struct Address {
    config: Config,
    schema: String,
    location: Arc<str>,
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Address").field(&self.location).finish()
    }
}

impl Address {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let (url, parameters) = url.split_once('?').unwrap_or((url, ""));
        let ours = |parameter: &&str| parameter.starts_with("schema=");
        let schema = parameters.split('&').find(ours).and_then(|parameter| parameter.split_once('='));
        let schema = schema.map_or(SCHEMA_DEFAULT, |(_, name)| name).to_owned();
        if !is_schema(&schema) {
            return Err(unusable("a schema is named by small letters, digits and `_`"));
        }
        let others: Vec<&str> = parameters.split('&').filter(|parameter| !ours(parameter)).collect();
        let config: Config = format!("{url}?{}", others.join("&"))
            .parse()
            .map_err(|error: tokio_postgres::Error| unusable(error.to_string()))?;
        let location = location(&config, &schema).into();
        Ok(Self { config, schema, location })
    }

    /// Returns the address as people are told of it: without the password.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// Returns how to connect.
    pub(super) fn config(&self, options: &PostgresOptions) -> Config {
        let mut config = self.config.clone();
        config
            .connect_timeout(options.connect_timeout)
            .tcp_user_timeout(options.unacknowledged_timeout)
            .keepalives(true)
            .keepalives_idle(options.keepalive_interval)
            .keepalives_interval(options.keepalive_interval);
        if config.get_application_name().is_none() {
            config.application_name("retake");
        }
        config
    }
}

fn is_schema(name: &str) -> bool {
    let mut characters = name.chars();
    name.len() <= SCHEMA_BYTES_MAX
        && !name.starts_with("pg_")
        && characters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && characters.all(|next| next.is_ascii_lowercase() || next.is_ascii_digit() || next == '_')
}

fn location(config: &Config, schema: &str) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    let port = config.get_ports().first().map_or_else(String::new, |port| format!(":{port}"));
    let user = config.get_user().map_or_else(String::new, |user| format!("{user}@"));
    let database = config.get_dbname().unwrap_or_default();
    let schema = if schema == SCHEMA_DEFAULT { String::new() } else { format!("?schema={schema}") };
    format!("postgres://{user}{host}{port}/{database}{schema}")
}

fn unusable(why: impl Into<String>) -> StoreError {
    StoreError::Refused {
        location: "the URL of the store".to_owned(),
        action: "reading",
        source: Arc::new(std::io::Error::new(std::io::ErrorKind::InvalidInput, why.into())),
    }
}
