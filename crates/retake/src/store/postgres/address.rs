//! The URL of a store: where its server is, how to get in, and in which schema the tables are.
//!
//! ```text
//! postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=retake&sslmode=verify-full
//! ```
//!
//! No text of a URL that cannot be read gets into an error: a password may be anywhere in it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use super::PostgresOptions;
use super::password::{self, Login};
use super::tls::{Authorities, Tls};
use crate::store::StoreError;

/// The schema of a URL that names none.
const SCHEMA_DEFAULT: &str = "retake";

/// PostgreSQL cuts longer names.
const SCHEMA_BYTES_MAX: usize = 63;

const PORT_DEFAULT: u16 = 5432;

/// Where a server on this machine has its socket, where the URL names no host.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The parameters that are known.
const PARAMETERS: &str = "schema, host, port, user, password, dbname, application_name, target_session_attrs, \
                          sslmode, sslrootcert, connect_timeout, call_timeout, connections_max";

/// Longer names of parameters are not repeated.
const PARAMETER_BYTES_MAX: usize = 32;

/// The longest time that a URL may name, in seconds: a day.
const SECONDS_MAX: u64 = 86_400;

/// The most connections that a URL may ask for.
const CONNECTIONS_MAX: usize = 10_000;

/// Where a store is.
#[derive(Clone)]
pub(super) struct Address {
    config: Config,
    pub(super) tls: Tls,
    schema: String,
    location: Arc<str>,
    /// Those that the URL sets.
    connect_timeout: Option<Duration>,
    call_timeout: Option<Duration>,
    connections_max: Option<usize>,
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Address").field(&self.location).finish()
    }
}

impl Address {
    /// Reads a URL, and the password from elsewhere where it has none.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let parts = Parts::parse(url).map_err(unusable)?;
        parts.address().map_err(unusable)
    }

    /// Returns the address as people are told of it: without the password.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// Returns the options, with those that the URL sets.
    pub(super) fn options(&self, options: PostgresOptions) -> PostgresOptions {
        PostgresOptions {
            connect_timeout: self.connect_timeout.unwrap_or(options.connect_timeout),
            call_timeout: self.call_timeout.unwrap_or(options.call_timeout),
            connections_max: self.connections_max.unwrap_or(options.connections_max),
            ..options
        }
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
        config
    }
}

/// Returns a URL that can be read, without the password in it.
pub(super) fn without_password(url: &str) -> String {
    let (place, parameters) = url.split_once('?').unwrap_or((url, ""));
    let place = match place.split_once('@') {
        // The first colon is the scheme's.
        Some((login, host)) => {
            format!("{}@{host}", login.splitn(3, ':').take(2).collect::<Vec<_>>().join(":"))
        }
        None => place.to_owned(),
    };
    let is_shown = |parameter: &&str| !parameter.starts_with("password=");
    let parameters: Vec<&str> = parameters.split('&').filter(is_shown).collect();
    let joint = if parameters.concat().is_empty() { "" } else { "?" };
    format!("{place}{joint}{}", parameters.join("&"))
}

/// A URL, taken apart.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    /// Each with its port, where it has one.
    hosts: Vec<(String, Option<u16>)>,
    database: Option<String>,
    parameters: Vec<(String, String)>,
}

impl Parts {
    fn parse(url: &str) -> Result<Self, String> {
        let rest = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or("it does not begin with `postgres://`")?;
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let (login, hosts) = authority.split_once('@').unwrap_or(("", authority));
        if [hosts, database, parameters].iter().any(|part| part.contains('@')) {
            let why = "there is an `@` behind the host: in names and passwords, write `%40` for `@`, `%2F` for `/`, `%3F` \
                       for `?` and `%3A` for `:`";
            return Err(why.to_owned());
        }
        let mut parts = Self::default();
        let (user, password) = login.split_once(':').map_or((login, None), |(user, rest)| (user, Some(rest)));
        parts.user = some(decoded(user)?);
        parts.password = password.map(decoded).transpose()?;
        parts.database = some(decoded(database)?);
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            parts.hosts.push(host_and_port(host)?);
        }
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').ok_or("a parameter has no value")?;
            if parts.parameters.iter().any(|(before, _)| before == name) {
                return Err(format!("it has a parameter twice{}", shown(name)));
            }
            parts.parameters.push((name.to_owned(), decoded(value)?));
        }
        Ok(parts)
    }

    fn address(mut self) -> Result<Address, String> {
        let mut schema = SCHEMA_DEFAULT.to_owned();
        let (mut mode, mut authorities) = (None, None);
        let (mut connect_timeout, mut call_timeout, mut connections_max) = (None, None, None);
        let mut application = "retake".to_owned();
        let mut session = TargetSessionAttrs::Any;
        let mut port = PORT_DEFAULT;
        for (name, value) in std::mem::take(&mut self.parameters) {
            match name.as_str() {
                "schema" => schema = value,
                "host" => self.hosts = value.split(',').map(|host| (host.to_owned(), None)).collect(),
                "port" => port = value.parse().map_err(|_| "`port` is not a port")?,
                "user" => self.user = Some(value),
                "password" => self.password = Some(value),
                "dbname" => self.database = Some(value),
                "application_name" => application = value,
                "sslmode" => mode = Some(value),
                "sslrootcert" => authorities = Some(value),
                "connect_timeout" => connect_timeout = Some(seconds(&name, &value)?),
                "call_timeout" => call_timeout = Some(seconds(&name, &value)?),
                "connections_max" => {
                    let number = value.parse().ok().filter(|number| (1..=CONNECTIONS_MAX).contains(number));
                    let wanted = || format!("`connections_max` is not a number from 1 to {CONNECTIONS_MAX}");
                    connections_max = Some(number.ok_or_else(wanted)?);
                }
                "target_session_attrs" => session = session_of(&value)?,
                name => {
                    let named = shown(name);
                    return Err(format!(
                        "it has a parameter that is not known{named}; known are {PARAMETERS}"
                    ));
                }
            }
        }
        if !is_schema(&schema) {
            return Err("a schema is named by small letters, digits and `_`, and not `pg_...`".to_owned());
        }
        if self.hosts.is_empty() {
            self.hosts.push((socket(port).to_owned(), None));
        }
        let user = match self.user {
            Some(user) => user,
            None => whoami::username().map_err(|_| "it names no user")?,
        };
        let database = self.database.unwrap_or_else(|| user.clone());
        let mut config = Config::new();
        config.user(&user).dbname(&database).application_name(application).target_session_attrs(session);
        let mut is_local = true;
        for (host, its_port) in &self.hosts {
            is_local &= host.starts_with('/');
            config.host(host).port(its_port.unwrap_or(port));
        }
        let (host, its_port) = &self.hosts[0];
        let login = Login { host, port: its_port.unwrap_or(port), database: &database, user: &user };
        if let Some(password) = self.password.or_else(|| password::find(login)) {
            config.password(password);
        }
        let tls = if is_local { Tls::Disable } else { tls(mode.as_deref(), authorities)? };
        config.ssl_mode(match tls {
            Tls::Disable => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require | Tls::VerifyAuthority(_) | Tls::VerifyFull(_) => SslMode::Require,
        });
        let location = location(&user, &self.hosts, &database, &schema).into();
        Ok(Address { config, tls, schema, location, connect_timeout, call_timeout, connections_max })
    }
}

/// Returns how the name of a parameter is repeated, if it may be: a password that was not written as it must be may stand
/// anywhere, but hardly as a word of small letters before a `=`, behind a host without an `@`.
fn shown(name: &str) -> String {
    let is_word = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    match is_word && name.len() <= PARAMETER_BYTES_MAX {
        true => format!(", `{name}`"),
        false => String::new(),
    }
}

/// Returns how to encrypt. Whoever names an authority wants to know whom they talk to.
fn tls(mode: Option<&str>, authorities: Option<String>) -> Result<Tls, String> {
    let named = authorities.is_some();
    let authorities = match authorities.as_deref() {
        None | Some("system") => Authorities::System,
        Some(path) => Authorities::File(PathBuf::from(path)),
    };
    Ok(match (mode, named) {
        (Some("disable"), _) => Tls::Disable,
        (Some("prefer") | None, false) => Tls::Prefer,
        (Some("require"), false) => Tls::Require,
        (Some("require" | "verify-ca"), _) => Tls::VerifyAuthority(authorities),
        (Some("verify-full"), _) | (None, true) => Tls::VerifyFull(authorities),
        (Some("prefer"), true) => {
            return Err("`sslmode=prefer` verifies nothing, so that `sslrootcert` is of no use".to_owned());
        }
        (Some(_), _) => {
            let why = "`sslmode` is one of disable, prefer, require, verify-ca and verify-full";
            return Err(why.to_owned());
        }
    })
}

fn session_of(value: &str) -> Result<TargetSessionAttrs, String> {
    match value {
        "any" => Ok(TargetSessionAttrs::Any),
        "read-write" => Ok(TargetSessionAttrs::ReadWrite),
        "read-only" => Ok(TargetSessionAttrs::ReadOnly),
        _ => Err("`target_session_attrs` is one of any, read-write and read-only".to_owned()),
    }
}

fn seconds(name: &str, value: &str) -> Result<Duration, String> {
    match value.parse() {
        Ok(seconds @ 1..=SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => Err(format!("`{name}` is not a number of seconds from 1 to {SECONDS_MAX}")),
    }
}

/// Returns where the server of this machine has its socket.
fn socket(port: u16) -> &'static str {
    let is_there = |directory: &&str| std::path::Path::new(&format!("{directory}/.s.PGSQL.{port}")).exists();
    SOCKETS.into_iter().find(is_there).unwrap_or(SOCKETS[0])
}

/// Reads `name`, `name:port`, `[address]:port` or a directory, whose `/` is `%2F`.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("a host begins with `[` and has no `]`")?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port.parse().map_err(|_| "the port of a host is not one")?),
        None if port.is_empty() => None,
        None => return Err("a host is followed by something that is not a port".to_owned()),
    };
    Ok((decoded(host)?, port))
}

/// Returns a text whose `%XX` are what they stand for.
fn decoded(text: &str) -> Result<String, String> {
    let wrong = || "a `%` is not followed by two hexadecimal digits, or these do not make a text".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digit = |byte: &u8| char::from(*byte).to_digit(16).ok_or_else(wrong);
        let byte = digits.iter().try_fold(0, |byte, next| Ok::<_, String>(byte * 16 + digit(next)?))?;
        bytes.push(u8::try_from(byte).map_err(|_| wrong())?);
        rest = behind;
    }
    match bytes.contains(&0) {
        true => Err("there is a `%00`, which nothing here can hold".to_owned()),
        false => String::from_utf8(bytes).map_err(|_| wrong()),
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn is_schema(name: &str) -> bool {
    let mut characters = name.chars();
    name.len() <= SCHEMA_BYTES_MAX
        && !name.starts_with("pg_")
        && characters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && characters.all(|next| next.is_ascii_lowercase() || next.is_ascii_digit() || next == '_')
}

fn location(user: &str, hosts: &[(String, Option<u16>)], database: &str, schema: &str) -> String {
    let shown = |(host, port): &(String, Option<u16>)| {
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("{host}{port}")
    };
    let hosts: Vec<String> = hosts.iter().map(shown).collect();
    let schema = if schema == SCHEMA_DEFAULT { String::new() } else { format!("?schema={schema}") };
    format!("postgres://{user}@{}/{database}{schema}", hosts.join(","))
}

fn unusable(why: String) -> StoreError {
    StoreError::Refused {
        location: "the URL of the store".to_owned(),
        action: "reading",
        source: Arc::new(std::io::Error::new(std::io::ErrorKind::InvalidInput, why)),
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    fn address(url: &str) -> Address {
        Address::parse(url).unwrap()
    }

    fn why(url: &str) -> String {
        let error = Address::parse(url).unwrap_err();
        assert!(!error.is_retryable());
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    }

    #[test]
    fn a_url_says_where_who_and_what() {
        let address =
            address("postgresql://ann:p%40ss%2F%3F%3A@db.example:6000/work?schema=runs&sslmode=require");
        assert_eq!(address.config.get_hosts(), [Host::Tcp("db.example".to_owned())]);
        assert_eq!(address.config.get_ports(), [6000]);
        assert_eq!(address.config.get_user(), Some("ann"));
        assert_eq!(address.config.get_password(), Some(b"p@ss/?:".as_slice()));
        assert_eq!(address.config.get_dbname(), Some("work"));
        assert_eq!((address.schema(), &address.tls), ("runs", &Tls::Require));
        assert_eq!(address.location(), "postgres://ann@db.example:6000/work?schema=runs");
    }

    #[test]
    fn what_a_url_leaves_out_has_a_default() {
        let address = address("postgres://ann:x@db");
        assert_eq!(address.config.get_ports(), [5432]);
        assert_eq!(address.config.get_dbname(), Some("ann"));
        assert_eq!(address.config.get_application_name(), Some("retake"));
        assert_eq!((address.schema(), &address.tls), ("retake", &Tls::Prefer));
        assert_eq!(address.location(), "postgres://ann@db/ann");
    }

    #[test]
    fn sockets_and_several_hosts_are_named_as_postgresql_names_them() {
        let socket = [Host::Unix("/run/pg".into())];
        assert_eq!(address("postgres://ann:x@%2Frun%2Fpg/work").config.get_hosts(), socket);
        let in_parameter = address("postgres:///work?host=/run/pg&user=ann&password=x&port=6000");
        assert_eq!(
            (in_parameter.config.get_hosts(), in_parameter.config.get_ports()),
            (&socket[..], &[6000][..])
        );
        assert_eq!(in_parameter.tls, Tls::Disable);
        let several = address("postgres://ann:x@[::1]:6001,b/work");
        let hosts = [Host::Tcp("::1".to_owned()), Host::Tcp("b".to_owned())];
        assert_eq!((several.config.get_hosts(), several.config.get_ports()), (&hosts[..], &[6001, 5432][..]));
        assert_eq!(several.location(), "postgres://ann@[::1]:6001,b/work");
    }

    #[test]
    fn to_name_an_authority_is_to_verify() {
        let file = Authorities::File("/ca.pem".into());
        let of = |parameters: &str| address(&format!("postgres://ann:x@db/work?{parameters}")).tls;
        assert_eq!(of("sslrootcert=/ca.pem"), Tls::VerifyFull(file.clone()));
        assert_eq!(of("sslmode=require&sslrootcert=%2Fca.pem"), Tls::VerifyAuthority(file));
        assert_eq!(of("sslmode=verify-ca"), Tls::VerifyAuthority(Authorities::System));
        assert_eq!(of("sslmode=verify-full"), Tls::VerifyFull(Authorities::System));
        assert!(why("postgres://db/?sslmode=prefer&sslrootcert=/ca.pem").contains("verifies nothing"));
    }

    #[test]
    fn the_url_sets_the_bounds_that_it_names() {
        let address = address("postgres://ann:x@db/work?connect_timeout=2&call_timeout=3&connections_max=4");
        let options = address.options(PostgresOptions::default());
        assert_eq!(options.connect_timeout, Duration::from_secs(2));
        assert_eq!((options.call_timeout, options.connections_max), (Duration::from_secs(3), 4));
        assert_eq!(options.lock_timeout, PostgresOptions::default().lock_timeout);
        assert!(why("postgres://db/?call_timeout=0").contains("call_timeout"));
        for name in ["connect_timeout", "call_timeout", "connections_max"] {
            for number in ["0", "18446744073709551615", "-1", "many"] {
                let why = why(&format!("postgres://db/?{name}={number}"));
                assert!(why.contains(&format!("`{name}` is not a number")), "{why}");
            }
        }
    }

    #[test]
    fn a_password_is_told_to_nobody() {
        // Where it has characters that must be written otherwise, it ends up in every part of the URL.
        for password in [
            "hunter2",
            "a@hunter2",
            "a/hunter2",
            "a?hunter2",
            "a:hunter2",
            "a%hunter2",
            "a#hunter2",
            "[hunter2",
        ] {
            for rest in
                ["@db/work", "@db:port/work", "@db/work?x=y", "@db/work?schema=B", "@db/work?sslmode=x"]
            {
                let url = format!("postgres://ann:{password}{rest}");
                match Address::parse(&url) {
                    Ok(address) => {
                        let shown = format!("{address:?} {}", without_password(&url));
                        assert!(!shown.contains("hunter2"), "{url}: {shown}");
                    }
                    Err(error) => {
                        let source = std::error::Error::source(&error).unwrap();
                        let said = format!("{error} {error:?} {source}");
                        assert!(!said.contains("hunter2"), "{url}: {said}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_url_without_its_password_is_the_same_otherwise() {
        let url = "postgres://ann:x@db:1/work?password=y&schema=runs&sslmode=disable";
        let shown = "postgres://ann@db:1/work?schema=runs&sslmode=disable";
        assert_eq!(without_password(url), shown);
        assert_eq!(without_password(shown), shown);
        assert_eq!(without_password("postgres:///?password=y"), "postgres:///");
    }

    #[test]
    fn a_parameter_that_is_not_known_is_named_if_it_looks_like_one() {
        assert!(
            why("postgres://db/work?statement_timeout=5")
                .contains("not known, `statement_timeout`; known are schema")
        );
        for odd in ["Hunter2", "hunter2", "%68unter"] {
            let why = why(&format!("postgres://db/work?{odd}=5"));
            assert!(why.contains("a parameter that is not known; known are"), "{why}");
        }
    }

    #[test]
    fn what_a_url_says_twice_or_no_name_can_have_is_refused() {
        let twice = why("postgres://db/work?schema=a&sslmode=disable&schema=b");
        assert!(twice.contains("a parameter twice, `schema`"), "{twice}");
        assert!(why("postgres://db/wo%+frk").contains("two hexadecimal digits"));
        for url in ["postgres://ann%00:x@db/work", "postgres://db/wo%00rk", "postgres://db/work?user=a%00"] {
            let nothing = why(url);
            assert!(nothing.contains("there is a `%00`"), "{nothing}");
        }
    }

    #[test]
    fn a_schema_cannot_be_more_than_a_name() {
        for name in ["A", "", "a-b", "a%22b", "1a", "pg_x", "a.b"] {
            assert!(why(&format!("postgres://db/?schema={name}")).contains("schema"), "{name}");
        }
    }
}
