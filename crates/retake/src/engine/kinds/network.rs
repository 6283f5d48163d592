//! Which hosts the requests of nodes may reach: the public internet, and what whoever runs Retake allows beside it.
//!
//! A workflow file has no say in this. A name is resolved once for each connection, and the connection goes to the
//! addresses that were checked; every redirect is checked like the first address.

mod address;

use std::fmt::Debug;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Url;

pub use address::AddressKind;
use address::{METADATA_NAMES, Range, embedded};

/// What requests may reach beside the public internet, and the way that they take.
///
/// Without more, addresses that are private, of this machine, of the local link, of a cloud's metadata service, or in
/// any other way not public are refused, however they are written. What is allowed is a matter of whoever runs the
/// engine, never of a workflow.
///
/// ```
/// use retake::engine::kinds::{LlmDefaults, Network};
/// use retake::engine::Registry;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::public().allowing("127.0.0.0/8, build.internal")?;
/// let registry = Registry::within(network, LlmDefaults::from_environment());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Network {
    names: Vec<String>,
    ranges: Vec<Range>,
    /// The host that whoever runs this set as a default: it may be anywhere, and is still reached through the proxy.
    own: Option<String>,
    proxy: Option<Url>,
    resolver: Arc<dyn Resolver>,
}

/// Finds the addresses of hosts.
#[async_trait::async_trait]
pub trait Resolver: Send + Sync + Debug {
    /// Returns the addresses of a host. It is asked once for each connection; what it returns is checked and then used.
    ///
    /// # Errors
    /// Any: the request may be tried again.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// Asks the system, as every other program does.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait::async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Why a request was not sent. Another attempt would meet the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkRefusal {
    /// The host is at an address that is not public, and that nobody allowed.
    #[error(
        "no request is sent to `{host}`: its address {address} is {kind}; whoever runs this may allow it with \
         `--allow-network {allow}` or RETAKE_ALLOW_NETWORK"
    )]
    NotPublic {
        /// The host, as the address names it.
        host: String,
        /// Where it is.
        address: IpAddr,
        /// What is wrong with that.
        kind: AddressKind,
        /// What would allow it.
        allow: String,
    },
    /// A redirect would take the request's body, and what is secret in it, to another host.
    #[error(
        "the body is not sent on from `{from}` to `{to}`, where a redirect points: give the node that address"
    )]
    BodyToAnotherHost {
        /// The host that was asked.
        from: String,
        /// The host that it points to.
        to: String,
    },
}

/// Why a network cannot be what it is said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// An entry is neither a host's name, nor an address, nor a range.
    #[error("`{entry}` is no host name, address or range such as `10.0.0.0/8`")]
    Entry {
        /// The entry.
        entry: String,
    },
    /// A range does not begin where its length says.
    #[error("the range `{entry}` begins within itself: write `{meant}`")]
    Range {
        /// The entry.
        entry: String,
        /// The range that it lies in.
        meant: String,
    },
    /// It is no proxy. The address is not repeated: it may hold a password.
    #[error("the proxy's address cannot be used: write one such as `http://proxy.example.org:3128`")]
    Proxy,
}

impl Default for Network {
    fn default() -> Self {
        Self::public()
    }
}

impl Network {
    /// Returns a network of public addresses, as the system resolves them, without a proxy. The variables `HTTP_PROXY`
    /// and the like are not looked at.
    pub fn public() -> Self {
        Self {
            names: Vec::new(),
            ranges: Vec::new(),
            own: None,
            proxy: None,
            resolver: Arc::new(SystemResolver),
        }
    }

    /// Allows more: host names, addresses and ranges, with commas between them. A name stands for all of its addresses.
    /// Metadata services are only allowed by their own name or address, never by a range around it or by another name.
    ///
    /// # Errors
    /// [`NetworkError::Entry`] and [`NetworkError::Range`].
    pub fn allowing(mut self, list: &str) -> Result<Self, NetworkError> {
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match Range::parse(entry)? {
                Some(range) => self.ranges.push(range),
                None => self.names.push(name(entry)?),
            }
        }
        Ok(self)
    }

    /// Sends everything through a proxy but what is [allowed](Self::allowing), which is reached directly.
    ///
    /// A proxy resolves names by itself, so that only addresses that are written out, and well-known names, are refused
    /// here. Which others it connects to is the proxy's own matter.
    ///
    /// # Errors
    /// [`NetworkError::Proxy`] for anything but an `http` or `https` address.
    pub fn with_proxy(self, url: &str) -> Result<Self, NetworkError> {
        let url = Url::parse(url.trim()).map_err(|_| NetworkError::Proxy)?;
        match url.scheme() {
            "http" | "https" => Ok(Self { proxy: Some(url), ..self }),
            _ => Err(NetworkError::Proxy),
        }
    }

    /// Sets what finds the addresses of names.
    pub fn with_resolver(self, resolver: impl Resolver + 'static) -> Self {
        Self { resolver: Arc::new(resolver), ..self }
    }

    /// Checks what can be said of an address before anything is looked up: numbers, however they are written, and names
    /// that are known.
    ///
    /// # Errors
    /// [`NetworkRefusal::NotPublic`].
    pub fn check(&self, url: &Url) -> Result<(), NetworkRefusal> {
        let Some(host) = url.host_str() else { return Ok(()) };
        let known = match address_in(host) {
            Some(address) => vec![address],
            None => address::known(&bare(host)),
        };
        if known.is_empty() { Ok(()) } else { self.among(host, known).map(|_| ()) }
    }

    /// Resolves a name, once, and returns those of its addresses that may be connected to.
    pub(super) async fn addresses(
        &self,
        host: &str,
    ) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let found = self.resolver.resolve(host).await?;
        if self.is_proxy(host) {
            return Ok(found);
        }
        Ok(self.among(host, found)?)
    }

    /// Returns the proxy that a request to this address goes through.
    pub(super) fn proxy_for(&self, url: &Url) -> Option<Url> {
        let is_direct = url.host_str().is_some_and(|host| match address_in(host) {
            Some(address) => self.is_in_range(address),
            None => self.is_named(&bare(host)),
        });
        if is_direct { None } else { self.proxy.clone() }
    }

    pub(super) fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// Allows the host of an address that whoever runs this named.
    pub(super) fn allowing_host_of(mut self, url: &str) -> Self {
        self.own = Url::parse(url.trim()).ok().and_then(|url| url.host_str().map(bare));
        self
    }

    /// Returns those addresses of a host that may be connected to; where there is none, why.
    fn among(&self, host: &str, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, NetworkRefusal> {
        let first = addresses.first().copied();
        let allowed: Vec<IpAddr> =
            addresses.into_iter().filter(|address| self.allows(host, *address)).collect();
        match first {
            Some(address) if allowed.is_empty() => {
                let kind = AddressKind::of(address);
                let allow = if kind == AddressKind::Metadata { address.to_string() } else { bare(host) };
                Err(NetworkRefusal::NotPublic { host: host.to_owned(), address, kind, allow })
            }
            _ => Ok(allowed),
        }
    }

    fn allows(&self, host: &str, address: IpAddr) -> bool {
        let host = bare(host);
        match AddressKind::of(address) {
            AddressKind::Public => true,
            _any if self.own.as_ref() == Some(&host) => true,
            AddressKind::Metadata => {
                self.ranges.iter().any(|range| range.is(address))
                    || METADATA_NAMES.contains(&host.as_str()) && self.is_named(&host)
            }
            AddressKind::Unspecified
            | AddressKind::Loopback
            | AddressKind::Private
            | AddressKind::LinkLocal
            | AddressKind::Shared
            | AddressKind::Documentation
            | AddressKind::Benchmarking
            | AddressKind::Multicast
            | AddressKind::Reserved => self.is_named(&host) || self.is_in_range(address),
        }
    }

    fn is_named(&self, host: &str) -> bool {
        self.names.iter().any(|name| name == host)
    }

    fn is_in_range(&self, address: IpAddr) -> bool {
        let holds = |address| self.ranges.iter().any(|range| range.holds(address));
        holds(address) || embedded(address).is_some_and(|inner| holds(inner.into()))
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.proxy.as_ref().and_then(Url::host_str).is_some_and(|proxy| bare(proxy) == bare(host))
    }
}

/// Returns the address that a URL's host is, if it is none that has to be looked up.
pub(super) fn address_in(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

/// Reads a host's name, as it stands in a URL: in lower case, with letters of other scripts written in ASCII.
fn name(entry: &str) -> Result<String, NetworkError> {
    let unknown = || NetworkError::Entry { entry: entry.to_owned() };
    let is_whole = !entry.contains(['/', ':', '@', '?', '#', '*', '\\', '%', ' ']);
    let url = Url::parse(&format!("http://{entry}/")).ok().filter(|_| is_whole).ok_or_else(unknown)?;
    url.host_str().map(bare).filter(|name| !name.is_empty()).ok_or_else(unknown)
}

/// Returns a host's name without the dot that says that it is whole.
fn bare(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
