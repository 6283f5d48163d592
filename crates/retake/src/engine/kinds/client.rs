//! The HTTP client that `http` and `llm` nodes share the making of, and what its failures mean for a node.

mod redirect;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use reqwest::{Proxy, Request, Response, StatusCode, Url};
use serde_json::Value;

use super::beginning;
use super::network::{Network, NetworkRefusal};
use crate::engine::{NodeContext, NodeError};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may say nothing: as long as a slow model thinks. A node's own timeout is usually shorter.
const SILENCE_MAX: Duration = Duration::from_secs(10 * 60);

/// How many redirects are followed.
const REDIRECTS_MAX: u32 = 10;

/// The longest wait that a server may ask for with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// How much of the body of a refusal is read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// How much of the body of a refusal an error shows.
const REFUSAL_BYTES_SHOWN: usize = 500;

/// An HTTP client that is made when it is first needed: making it reads the system's certificates.
#[derive(Debug, Clone, Default)]
pub(super) struct Client {
    network: Network,
    made: Arc<OnceLock<Made>>,
}

#[derive(Debug)]
struct Made {
    client: Result<reqwest::Client, String>,
    /// Why `https` cannot be used, on a system without certificates.
    https: Result<(), String>,
}

impl Client {
    /// Returns a client that reaches what this network allows.
    pub(super) fn within(network: Network) -> Self {
        Self { network, made: Arc::default() }
    }

    /// Sends a request, follows redirects, and returns the answer's head. It may be a refusal.
    pub(super) async fn send(&self, ctx: &NodeContext, mut request: Request) -> Result<Response, NodeError> {
        let first = shown(request.url());
        for _ in 0..=REDIRECTS_MAX {
            let sent = request.try_clone();
            let response = self.send_once(ctx, request).await?;
            request = match sent.map(|sent| redirect::next(sent, &response)).transpose()?.flatten() {
                Some(next) => next,
                None => return Ok(response),
            };
        }
        Err(NodeError::permanent(format!("no answer from {first}: too many redirects")))
    }

    async fn send_once(&self, ctx: &NodeContext, request: Request) -> Result<Response, NodeError> {
        let shown = shown(request.url());
        self.network.check(request.url())?;
        let made = self.made.get_or_init(|| Made::new(&self.network));
        let client = made.client.as_ref().map_err(|why| {
            NodeError::permanent(format!("no HTTP client can be made on this system: {why}"))
        })?;
        if let ("https", Err(why)) = (request.url().scheme(), &made.https) {
            return Err(NodeError::permanent(format!("no certificates to check {shown} by: {why}")));
        }
        let sent = request.body().and_then(|body| body.as_bytes()).map_or(0, <[u8]>::len);
        ctx.transferred(1, bytes(sent));
        client.execute(request).await.map_err(|error| {
            if let Some(refusal) = refusal_in(&error) {
                return refusal.clone().into();
            }
            let hopeless = error.is_builder();
            let message = format!("no answer from {shown}: {}", reason(error));
            if hopeless { NodeError::permanent(message) } else { NodeError::new(message) }
        })
    }
}

impl Made {
    fn new(network: &Network) -> Self {
        // Fails where the program has installed a provider itself, which is then used.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("retake/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(SILENCE_MAX)
                // Each is looked at here, where it can be checked and what is secret taken off.
                .redirect(Policy::none())
                // A proxy that the environment happens to name would resolve names by itself.
                .no_proxy()
                .dns_resolver(Checked(network.clone()));
            if !network.has_proxy() {
                return builder;
            }
            let network = network.clone();
            builder.proxy(Proxy::custom(move |url| network.proxy_for(url)))
        };
        match builder().build() {
            Ok(client) => Self { client: Ok(client), https: Ok(()) },
            Err(error) => {
                let client = builder().tls_certs_only([]).build().map_err(reason);
                Self { client, https: Err(reason(error)) }
            }
        }
    }
}

/// Hands out addresses that were checked, so that what is connected to is what was checked.
struct Checked(Network);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let network = self.0.clone();
        Box::pin(async move {
            let addresses = network.addresses(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// Returns the refusal that a failure goes back to.
fn refusal_in(error: &reqwest::Error) -> Option<&NetworkRefusal> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(refusal) = error.downcast_ref() {
            return Some(refusal);
        }
        source = error.source();
    }
    None
}

impl From<NetworkRefusal> for NodeError {
    fn from(refusal: NetworkRefusal) -> Self {
        Self::permanent(refusal.to_string())
    }
}

/// Reads an address. Errors do not repeat it: it may hold a secret.
pub(super) fn address(text: &str) -> Result<Url, NodeError> {
    let url = Url::parse(text.trim()).map_err(|error| {
        NodeError::permanent(format!(
            "the address cannot be read: {error}; write one such as `https://example.org/`"
        ))
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme();
        return Err(NodeError::permanent(format!(
            "`{scheme}` addresses are not supported: use http or https"
        )));
    }
    Ok(url)
}

/// Returns what messages show of an address: neither its user nor its query, which may be secret.
pub(super) fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// Reads a body, at most `bytes_max` of it. The flag tells whether that was all.
pub(super) async fn read_body(
    ctx: &NodeContext,
    response: &mut Response,
    bytes_max: usize,
) -> Result<(Vec<u8>, bool), NodeError> {
    let mut body = Vec::new();
    while let Some(chunk) = next_chunk(ctx, response).await? {
        let room = bytes_max - body.len();
        if chunk.len() > room {
            body.extend_from_slice(&chunk[..room]);
            return Ok((body, false));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, true))
}

/// Reads what comes next of a body.
pub(super) async fn next_chunk(
    ctx: &NodeContext,
    response: &mut Response,
) -> Result<Option<impl std::ops::Deref<Target = [u8]> + use<>>, NodeError> {
    let chunk = response.chunk().await.map_err(|error| {
        NodeError::new(format!("the answer from {} broke off: {}", shown(response.url()), reason(error)))
    })?;
    ctx.transferred(0, bytes(chunk.as_ref().map_or(0, |chunk| chunk.len())));
    Ok(chunk)
}

/// Returns the error of an answer whose status is not the wanted one, with what its body says, and `advice`.
pub(super) async fn refused(ctx: &NodeContext, mut response: Response, advice: &str) -> NodeError {
    let status = response.status();
    let wait = retry_after(&response);
    // What the server says more is welcome; the status is known without it.
    let body =
        read_body(ctx, &mut response, REFUSAL_BYTES_MAX).await.map(|(body, _)| body).unwrap_or_default();
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = message_in(&document).unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    let said = beginning(&ctx.masked(said), REFUSAL_BYTES_SHOWN);
    let mut message = format!("{} answered {status}", shown(response.url()));
    for more in [said.as_str(), advice] {
        if !more.is_empty() {
            message.push_str(": ");
            message.push_str(more);
        }
    }
    if !may_pass(status) || is_final(&document) {
        return NodeError::permanent(message);
    }
    let error = NodeError::new(message);
    match wait {
        Some(wait) => error.retry_after(wait),
        None => error,
    }
}

/// Tells whether the same request may be answered otherwise later.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// Tells whether an API that answers 429 means that the money is used up: waiting does not help.
fn is_final(document: &Value) -> bool {
    document["error"]["code"] == "insufficient_quota"
}

/// Returns the message that an API's error carries, in the shapes that are common.
pub(super) fn message_in(document: &Value) -> Option<String> {
    [&document["error"]["message"], &document["error"], &document["message"], &document["detail"]]
        .into_iter()
        .find_map(|message| message.as_str().map(str::to_owned))
}

/// Returns the wait that `Retry-After` asks for in seconds. Its other form, a date, needs the server's clock and is
/// left to the node's own rule.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Returns why a request failed, without its address.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason.push_str(": ");
        reason.push_str(&error.to_string());
        source = error.source();
    }
    reason
}

fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
