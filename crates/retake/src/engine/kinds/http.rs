//! `http`: one request, and its answer's body.

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Request, Response};
use serde_json::Value;

use super::client::{self, Client};
use super::network::Network;
use super::{OUTPUT_BYTES_MAX, not_for, output_of};
use crate::engine::{Handler, NodeContext, NodeError};
use crate::workflow::{Http, Method, NodeKind};

/// The header under which a server knows a request that it has seen before.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header by which a server joins a trace.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Sends the requests of `http` nodes.
///
/// The output is the body, at most [`OUTPUT_BYTES_MAX`]: parsed if it is JSON, else the text. `POST`, `PUT`, `PATCH` and
/// `DELETE` carry the node's `Idempotency-Key`, unless the node sets that header itself. A failed connection, a status of
/// 5xx, 408, 425 and 429 may be tried again, after as many seconds as `Retry-After` asks for. Where the run is traced,
/// requests carry `traceparent`, unless the node sets that header itself.
#[derive(Debug, Clone, Default)]
pub struct HttpHandler {
    client: Client,
}

impl HttpHandler {
    /// Returns a handler that reaches public addresses only. Its clones share their connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a handler that reaches what this network allows.
    pub fn within(network: Network) -> Self {
        Self { client: Client::within(network) }
    }
}

#[async_trait::async_trait]
impl Handler for HttpHandler {
    async fn handle(&self, ctx: NodeContext) -> Result<Value, NodeError> {
        let NodeKind::Http(http) = ctx.kind() else { return Err(not_for("http", ctx.kind())) };
        let response = self.client.send(&ctx, request(http, &ctx)?).await?;
        let status = response.status();
        ctx.measured("status", status.as_u16().into());
        let expected =
            if http.expect.is_empty() { status.is_success() } else { http.expect.contains(&status.as_u16()) };
        if expected { output(&ctx, response).await } else { Err(client::refused(&ctx, response, "").await) }
    }
}

fn request(http: &Http, ctx: &NodeContext) -> Result<Request, NodeError> {
    let mut url = client::address(&ctx.evaluate_text(&http.url)?)?;
    for (name, value) in &http.query {
        url.query_pairs_mut().append_pair(name, &ctx.evaluate_text(value)?);
    }
    let mut request = Request::new(method(http.method), url);
    *request.headers_mut() = headers(http, ctx)?;
    if let Some(body) = &http.body {
        *request.body_mut() = Some(ctx.evaluate_text(body)?.into());
    } else if let Some(json) = &http.json {
        *request.body_mut() = Some(ctx.evaluate_json(json)?.to_string().into());
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().entry(CONTENT_TYPE).or_insert(json);
    }
    Ok(request)
}

fn headers(http: &Http, ctx: &NodeContext) -> Result<HeaderMap, NodeError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &http.headers {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| NodeError::permanent(format!("`{name}` is no name of a header")))?;
        headers.insert(header, header_value(name, &ctx.evaluate_text(value)?)?);
    }
    if let Some(traceparent) = ctx.traceparent() {
        headers.entry(TRACEPARENT).or_insert(header_value("traceparent", &traceparent)?);
    }
    match http.method {
        Method::Get | Method::Head | Method::Options => {}
        Method::Post | Method::Put | Method::Patch | Method::Delete => {
            let key = header_value("Idempotency-Key", ctx.idempotency_key())?;
            headers.entry(IDEMPOTENCY_KEY).or_insert(key);
        }
    }
    Ok(headers)
}

/// Returns a header's value. Errors do not repeat it: it may be a secret.
pub(super) fn header_value(name: &str, value: &str) -> Result<HeaderValue, NodeError> {
    let mut value = HeaderValue::from_bytes(value.trim().as_bytes()).map_err(|_| {
        NodeError::permanent(format!(
            "the value of the header `{name}` holds a line break or a control character"
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn method(method: Method) -> reqwest::Method {
    match method {
        Method::Get => reqwest::Method::GET,
        Method::Head => reqwest::Method::HEAD,
        Method::Options => reqwest::Method::OPTIONS,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Patch => reqwest::Method::PATCH,
        Method::Delete => reqwest::Method::DELETE,
    }
}

async fn output(ctx: &NodeContext, mut response: Response) -> Result<Value, NodeError> {
    let source = format!("the body from {}", client::shown(response.url()));
    let content_type = content_type(&response);
    let (body, whole) = client::read_body(ctx, &mut response, OUTPUT_BYTES_MAX).await?;
    if !whole {
        let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        return Err(NodeError::permanent(format!(
            "{source} is larger than {OUTPUT_BYTES_MAX} bytes{}: load it into a file with a `run` node",
            length.map(|length| format!(" ({length})")).unwrap_or_default()
        )));
    }
    // Before it is parsed: a secret of digits could become a number that is written otherwise.
    let text = ctx.masked(text(&body, &content_type, &source)?);
    match output_of(&text, &source)? {
        Some(value) => Ok(value),
        None if says_json(&content_type) && !text.trim().is_empty() => {
            Err(NodeError::permanent(format!("{source} is said to be JSON, and is not")))
        }
        None => Ok(Value::String(text)),
    }
}

/// Returns the type that the answer's body is said to have, in lower case, or nothing.
pub(super) fn content_type(response: &Response) -> String {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.unwrap_or_default().to_ascii_lowercase()
}

/// Tells whether a content type is one of JSON.
pub(super) fn says_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence == "application/json" || essence.ends_with("+json")
}

/// Decodes a body in the character set that it is said to have, UTF-8 unless told otherwise.
fn text(body: &[u8], content_type: &str, source: &str) -> Result<String, NodeError> {
    let label = content_type
        .split(';')
        .skip(1)
        .find_map(|parameter| parameter.trim().strip_prefix("charset="))
        .map_or("utf-8", |label| label.trim_matches('"'));
    let unreadable = || {
        let message = format!("{source} is not text in `{label}`: load it into a file with a `run` node");
        NodeError::permanent(message)
    };
    let encoding = encoding_rs::Encoding::for_label(label.as_bytes()).ok_or_else(unreadable)?;
    let (text, _, malformed) = encoding.decode(body);
    if malformed { Err(unreadable()) } else { Ok(text.into_owned()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::stand_in::{Attempt, Server, answer, local};
    use super::*;
    use crate::workflow::Node;

    async fn send(http: Http) -> Result<Value, NodeError> {
        Attempt::new(Node::new(NodeKind::Http(http))).make(HttpHandler::within(local())).await
    }

    /// Returns what a `GET` of this answer becomes.
    async fn get(answer: Vec<u8>) -> Result<Value, NodeError> {
        let server = Server::answering([answer]).await;
        send(Http::new(&server.url)).await
    }

    #[tokio::test]
    async fn a_body_is_json_where_it_is_json_and_text_where_it_is_not() {
        let json = answer("200 OK\r\ncontent-type: application/json", r#"{"a": 1}"#);
        assert_eq!(get(json).await.unwrap(), json!({"a": 1}));
        assert_eq!(get(answer("200 OK", "[1]")).await.unwrap(), json!([1]));
        assert_eq!(get(answer("200 OK", "hello\n")).await.unwrap(), json!("hello\n"));
        let empty = answer("204 No Content\r\ncontent-type: application/json", "");
        assert_eq!(get(empty).await.unwrap(), json!(""));
        let latin = answer("200 OK\r\ncontent-type: text/plain; Charset=\"ISO-8859-1\"", b"caf\xe9");
        assert_eq!(get(latin).await.unwrap(), json!("café"));
    }

    #[tokio::test]
    async fn a_body_that_would_be_changed_is_refused() {
        for (body, why) in [
            (answer("200 OK", "[18446744073709551616]"), "would not be kept exactly"),
            (answer("200 OK", b"\xff\xfe\xfd"), "is not text in `utf-8`"),
            (answer("200 OK\r\ncontent-type: application/problem+json", "<html>"), "is said to be JSON"),
        ] {
            let error = get(body).await.unwrap_err();
            assert!(error.message().contains(why), "{error}");
            assert!(!error.is_retryable());
        }
    }

    #[tokio::test]
    async fn a_request_carries_what_the_node_says() {
        let mut server = Server::answering([answer("200 OK", "")]).await;
        let attempt = Attempt::new(Node::new(NodeKind::Http(Http {
            method: Method::Post,
            headers: [("Authorization".to_owned(), "Bearer ${{ secrets.TOKEN }}".to_owned())].into(),
            query: [("q".to_owned(), "a b&${{ 1 + 1 }}".to_owned())].into(),
            json: Some(json!({"n": "${{ [1, 2] }}"})),
            ..Http::new(format!("{}/path?first=1", server.url))
        })));
        attempt.make(HttpHandler::within(local())).await.unwrap();
        let received = server.received().await;
        assert!(received.head.starts_with("post /path?first=1&q=a+b%262 http/1.1\r\n"), "{}", received.head);
        for header in
            ["authorization: bearer t0p-secret", "idempotency-key: key-1", "content-type: application/json"]
        {
            assert!(received.head.lines().any(|line| line == header), "{header} in {}", received.head);
        }
        assert_eq!(received.body, r#"{"n":[1,2]}"#);
        let metrics = attempt.metrics();
        assert_eq!((metrics.api_calls, metrics.bytes_transferred), (1, 11));
        assert_eq!(metrics.custom["status"], json!(200));
    }

    #[tokio::test]
    async fn a_key_that_the_node_sets_is_kept_and_a_get_carries_none() {
        let mut server = Server::answering([answer("200 OK", ""), answer("200 OK", "")]).await;
        let headers = [("Idempotency-Key".to_owned(), "mine".to_owned())].into();
        send(Http { method: Method::Put, headers, ..Http::new(&server.url) }).await.unwrap();
        assert!(server.received().await.head.contains("\r\nidempotency-key: mine"));
        send(Http::new(&server.url)).await.unwrap();
        assert!(!server.received().await.head.contains("idempotency-key"));
    }

    #[tokio::test]
    async fn a_status_that_may_pass_is_retryable_and_says_when() {
        let busy =
            answer("429 Too Many Requests\r\nretry-after: 7", r#"{"error": {"message": "slow down"}}"#);
        let error = get(busy).await.unwrap_err();
        assert!(error.message().ends_with("answered 429 Too Many Requests: slow down"), "{error}");
        assert_eq!((error.is_retryable(), error.wait()), (true, Some(Duration::from_secs(7))));
        let long = get(answer("503 Service Unavailable\r\nretry-after: 99999999", "")).await.unwrap_err();
        assert_eq!(long.wait(), Some(Duration::from_secs(3600)));
        let dated = answer("500 Internal Server Error\r\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT", "");
        let dated = get(dated).await.unwrap_err();
        assert_eq!((dated.is_retryable(), dated.wait()), (true, None));
    }

    #[tokio::test]
    async fn a_status_that_stays_is_permanent_and_shows_the_body_in_short() {
        let error = get(answer("404 Not Found", "x".repeat(100_000))).await.unwrap_err();
        assert!(error.message().contains("answered 404 Not Found: xxx"), "{error}");
        assert!(error.message().len() < 600);
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn the_statuses_that_are_expected_are_the_only_ones() {
        let server = Server::answering([answer("404 Not Found", "none"), answer("200 OK", "")]).await;
        let http = Http { expect: [404].into(), ..Http::new(&server.url) };
        assert_eq!(send(http.clone()).await.unwrap(), json!("none"));
        assert!(send(http).await.unwrap_err().message().contains("answered 200 OK"));
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_not_taken_in() {
        let error = get(answer("200 OK", vec![b'x'; OUTPUT_BYTES_MAX + 1])).await.unwrap_err();
        assert!(error.message().contains("is larger than 16777216 bytes"), "{error}");
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_may_come_whole_the_next_time() {
        let error = get(answer("200 OK\r\ncontent-length: 10", "short")).await.unwrap_err();
        assert!(error.message().contains("broke off"), "{error}");
        assert!(error.is_retryable());
    }

    #[tokio::test]
    async fn a_failed_connection_is_retryable_and_shows_neither_user_nor_query() {
        // Nobody listens on a port that was just given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = send(Http::new(format!("http://me:pass@127.0.0.1:{port}/p?key=hush"))).await.unwrap_err();
        assert!(error.message().contains(&format!("http://127.0.0.1:{port}/p")), "{error}");
        assert!(!error.message().contains("pass") && !error.message().contains("hush"), "{error}");
        assert!(error.is_retryable());
    }

    #[tokio::test]
    async fn only_http_is_spoken_and_redirects_end() {
        let error = send(Http::new("file:///etc/passwd")).await.unwrap_err();
        assert_eq!(error.message(), "`file` addresses are not supported: use http or https");
        let round = (0..20).map(|_| answer("302 Found\r\nlocation: /", ""));
        let server = Server::answering(round).await;
        let error = send(Http::new(&server.url)).await.unwrap_err();
        assert!(error.message().contains("too many redirects"), "{error}");
        assert!(!error.is_retryable());
    }
}
