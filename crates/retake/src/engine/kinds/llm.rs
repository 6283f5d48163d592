//! `llm`: a question to a language model behind an API of OpenAI's shape, its answer as it is written, and its price.

mod answer;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde_json::{Map, Value, json};

use self::answer::{Answer, EventStream};
use super::client::{self, Client};
use super::http::{IDEMPOTENCY_KEY, content_type, header_value, says_json};
use super::network::Network;
use super::price::{self, Prices, Rates};
use super::{OUTPUT_BYTES_MAX, not_for};
use crate::engine::{Handler, NodeContext, NodeError};
use crate::workflow::{Llm, NodeKind};

/// Where the API of OpenAI is.
const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";

/// The secret that holds the key, unless another is named.
const OPENAI_API_KEY: &str = "OPENAI_API_KEY";

/// Most bytes of an answer that comes as a stream: each token is wrapped in some hundred bytes.
const STREAM_BYTES_MAX: usize = 16 * OUTPUT_BYTES_MAX;

/// What `llm` nodes use that do not say it themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlmDefaults {
    /// Where the API is: the address to which `/chat/completions` is added.
    pub base_url: String,
    /// The name of the secret that holds the key. It is looked up for each question, and only ever sent to the server of
    /// this `base_url`: a node that names another server names its key too. Where there is no such secret, none is sent.
    pub api_key_secret: String,
    /// The model.
    pub model: Option<String>,
    /// What models cost, for nodes that do not say it.
    pub prices: Prices,
}

impl LlmDefaults {
    /// Returns what the environment says: `OPENAI_BASE_URL` and `RETAKE_LLM_MODEL`. The key is the secret
    /// `OPENAI_API_KEY`.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let base_url = variable("OPENAI_BASE_URL").unwrap_or_else(|| OPENAI_BASE_URL.to_owned());
        Self { base_url, model: variable("RETAKE_LLM_MODEL"), ..Self::default() }
    }
}

impl Default for LlmDefaults {
    fn default() -> Self {
        Self {
            base_url: OPENAI_BASE_URL.to_owned(),
            api_key_secret: OPENAI_API_KEY.to_owned(),
            model: None,
            prices: Prices::listed().clone(),
        }
    }
}

/// Asks the questions of `llm` nodes: `POST BASE_URL/chat/completions`.
///
/// The answer is streamed, and each piece is the node's progress; a server that does not stream is understood too. The
/// output is the answer's text. Where the model calls tools, it is the whole message: `role`, `content` and `tool_calls`.
/// A stream that ends too early is an error that may be tried again.
///
/// Tokens are noted as the server counts them. Their price is the node's `price`, else a list of well-known models, else
/// unknown.
///
/// The server by default is that of whoever runs this, so that it may be anywhere; another server, which a node names,
/// is reached as by `http` nodes.
#[derive(Debug, Clone)]
pub struct LlmHandler {
    /// For servers that nodes name.
    client: Client,
    /// For the server by default.
    own: Client,
    defaults: LlmDefaults,
}

/// A node's question, with every expression evaluated.
struct Question {
    url: Url,
    is_by_default: bool,
    api_key: Option<String>,
    model: String,
    body: Map<String, Value>,
    rates: Option<Rates>,
}

impl LlmHandler {
    /// Returns a handler. Its clones share their connections.
    pub fn new(defaults: LlmDefaults) -> Self {
        Self::within(Network::public(), defaults)
    }

    /// Returns a handler that reaches what this network allows, and the server by default.
    pub fn within(network: Network, defaults: LlmDefaults) -> Self {
        let own = Client::within(network.clone().allowing_host_of(&defaults.base_url));
        Self { client: Client::within(network), own, defaults }
    }

    fn question(&self, llm: &Llm, ctx: &NodeContext) -> Result<Question, NodeError> {
        let text = |text: &Option<String>| text.as_deref().map(|text| ctx.evaluate_text(text)).transpose();
        let model = text(&llm.model)?.or_else(|| self.defaults.model.clone()).ok_or_else(|| {
            NodeError::permanent("no model is named: give the node a `model`, or set RETAKE_LLM_MODEL")
        })?;
        let default_base = client::address(&self.defaults.base_url)?;
        let mut url = text(&llm.base_url)?.map_or(Ok(default_base.clone()), |url| client::address(&url))?;
        let is_by_default = url.origin() == default_base.origin();
        let api_key = match text(&llm.api_key)? {
            None if is_by_default => ctx.secret(&self.defaults.api_key_secret),
            key => key,
        };
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["chat", "completions"]);
        }
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(model));
        body.insert("messages".to_owned(), messages(llm, ctx)?);
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        body.extend(llm.temperature.map(|temperature| ("temperature".to_owned(), json!(temperature))));
        body.extend(llm.max_tokens.map(|max_tokens| ("max_tokens".to_owned(), json!(max_tokens))));
        for (name, value) in &llm.extra {
            body.insert(name.clone(), ctx.evaluate_json(value)?);
        }
        if body["stream"] == false {
            body.remove("stream_options");
        }
        let rates = llm.price.as_ref().map(Rates::new).transpose()?;
        Ok(Question { url, is_by_default, api_key, model, body, rates })
    }
}

#[async_trait::async_trait]
impl Handler for LlmHandler {
    async fn handle(&self, ctx: NodeContext) -> Result<Value, NodeError> {
        let NodeKind::Llm(llm) = ctx.kind() else { return Err(not_for("llm", ctx.kind())) };
        let question = self.question(llm, &ctx)?;
        let client = if question.is_by_default { &self.own } else { &self.client };
        let response = client.send(&ctx, request(&question, &ctx)?).await?;
        if !response.status().is_success() {
            let advice = advice(response.status(), &question, &self.defaults);
            return Err(client::refused(&ctx, response, &advice).await);
        }
        let mut answer = Answer::default();
        let received = receive(&ctx, response, &mut answer).await;
        // What was counted was spent, whether the rest arrived or not.
        note(&ctx, &question, &answer, &self.defaults.prices);
        received?;
        answer.into_output()
    }
}

fn messages(llm: &Llm, ctx: &NodeContext) -> Result<Value, NodeError> {
    let mut messages = Vec::new();
    if let Some(system) = &llm.system {
        messages.push(json!({"role": "system", "content": ctx.evaluate_text(system)?}));
    }
    match llm.messages.as_ref().map(|messages| ctx.evaluate_json(messages)).transpose()? {
        None => {}
        Some(Value::Array(given)) if given.iter().all(Value::is_object) => messages.extend(given),
        Some(_) => return Err(NodeError::permanent("`messages` is not a list of `{role, content}`")),
    }
    if let Some(prompt) = &llm.prompt {
        messages.push(json!({"role": "user", "content": ctx.evaluate_text(prompt)?}));
    }
    Ok(Value::Array(messages))
}

fn request(question: &Question, ctx: &NodeContext) -> Result<Request, NodeError> {
    let mut request = Request::new(Method::POST, question.url.clone());
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(IDEMPOTENCY_KEY, header_value("Idempotency-Key", ctx.idempotency_key())?);
    if let Some(api_key) = &question.api_key {
        headers.insert(AUTHORIZATION, header_value("Authorization", &format!("Bearer {}", api_key.trim()))?);
    }
    *request.body_mut() = Some(serde_json::to_vec(&question.body).map_err(unwritable)?.into());
    Ok(request)
}

fn unwritable(error: serde_json::Error) -> NodeError {
    NodeError::permanent(format!("the question cannot be written as JSON: {error}"))
}

/// Returns what to do about a refusal, where that is known.
fn advice(status: StatusCode, question: &Question, defaults: &LlmDefaults) -> String {
    match (status, &question.api_key) {
        (StatusCode::UNAUTHORIZED, None) => {
            let name = &defaults.api_key_secret;
            format!(
                "no key was sent; set the secret `{name}` for {}, or the node's `api_key`",
                defaults.base_url
            )
        }
        _ => String::new(),
    }
}

/// Reads the answer, whichever way it comes.
async fn receive(ctx: &NodeContext, mut response: Response, answer: &mut Answer) -> Result<(), NodeError> {
    if says_json(&content_type(&response)) {
        let (body, whole) = client::read_body(ctx, &mut response, OUTPUT_BYTES_MAX).await?;
        if !whole {
            return Err(too_long(OUTPUT_BYTES_MAX));
        }
        answer.take_document(&body)?;
        ctx.progress(answer.text());
        return Ok(());
    }
    let mut said = Said { ctx, held: String::new() };
    let mut events = EventStream::default();
    let mut room = STREAM_BYTES_MAX;
    while !answer.is_ended() {
        let chunk = match client::next_chunk(ctx, &mut response).await {
            // The answer was complete; only the count of its tokens may be missing.
            Err(_) if answer.is_whole() => break,
            chunk => chunk?,
        };
        let data = match &chunk {
            Some(bytes) => {
                room = room.checked_sub(bytes.len()).ok_or_else(|| too_long(STREAM_BYTES_MAX))?;
                events.take(bytes)?
            }
            None => events.end(),
        };
        for data in data {
            said.take(&answer.take_event(&data)?);
        }
        if chunk.is_none() {
            break;
        }
    }
    said.end();
    if answer.is_whole() { Ok(()) } else { Err(NodeError::new("the answer was cut off before its end")) }
}

/// Tells of an answer as it comes, and holds back what may be a secret that has not come whole.
struct Said<'a> {
    ctx: &'a NodeContext,
    held: String,
}

impl Said<'_> {
    fn take(&mut self, piece: &str) {
        self.held.push_str(piece);
        let rest = self.held.split_off(self.ctx.settled(&self.held));
        self.end();
        self.held = rest;
    }

    fn end(&mut self) {
        let settled = std::mem::take(&mut self.held);
        if !settled.is_empty() {
            self.ctx.progress(settled);
        }
    }
}

fn too_long(bytes_max: usize) -> NodeError {
    NodeError::permanent(format!("the answer is longer than {bytes_max} bytes: set `max_tokens`"))
}

/// Notes what the answer cost and how it ended.
fn note(ctx: &NodeContext, question: &Question, answer: &Answer, prices: &Prices) {
    let model = answer.model().unwrap_or(&question.model);
    ctx.measured("model", json!(model));
    if let Some(reason) = answer.finish_reason() {
        ctx.measured("finish_reason", json!(reason));
    }
    let Some(usage) = answer.usage() else { return };
    let rates = question.rates.clone().or_else(|| {
        let priced = [model, &question.model].into_iter().find_map(|name| Some((name, prices.rates(name)?)));
        let (name, rates) = priced?;
        ctx.measured("price_as_of", json!(prices.as_of(name)));
        Some(rates)
    });
    let cost_usd = rates.and_then(|rates| rates.cost_usd(usage)).and_then(price::nearest);
    ctx.spent(usage.clone(), cost_usd);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stand_in::{Attempt, Server, answer, local};
    use super::*;
    use crate::execution::TokenUsage;
    use crate::workflow::{Node, Price};

    fn node(llm: Llm) -> Attempt {
        Attempt::new(Node::new(NodeKind::Llm(Box::new(llm))))
    }

    fn handler(server: &Server) -> LlmHandler {
        let base_url = format!("{}/v1/", server.url);
        LlmHandler::new(defaults(base_url))
    }

    fn defaults(base_url: String) -> LlmDefaults {
        LlmDefaults { base_url, model: Some("gpt-4o-mini".to_owned()), ..LlmDefaults::default() }
    }

    /// Returns a streamed answer of these events.
    fn stream(events: &[Value], end: &str) -> Vec<u8> {
        let events: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        answer("200 OK\r\ncontent-type: text/event-stream", format!("{events}{end}"))
    }

    fn piece(text: &str) -> Value {
        json!({"model": "gpt-4o-mini-2024-07-18", "choices": [{"index": 0, "delta": {"content": text}}], "usage": null})
    }

    fn stop() -> Value {
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    }

    fn counted() -> Value {
        json!({"choices": [], "usage": {
            "prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007,
            "prompt_tokens_details": {"cached_tokens": 600},
        }})
    }

    #[tokio::test]
    async fn a_streamed_answer_is_shown_as_it_comes_and_its_tokens_are_counted_and_paid() {
        let whole = stream(&[piece("Otters "), piece("hold hands."), stop(), counted()], "data: [DONE]\n\n");
        let server = Server::answering([whole]).await;
        let mut attempt = node(Llm { prompt: Some("Why?".to_owned()), ..Llm::default() });
        let output = attempt.make(handler(&server)).await.unwrap();
        assert_eq!(output, json!("Otters hold hands."));
        assert_eq!(attempt.progress(), ["Otters ", "hold hands."]);
        let metrics = attempt.metrics();
        let usage = TokenUsage { cached_tokens: Some(600), ..TokenUsage::new(1000, 7) };
        assert_eq!(metrics.token_usage, Some(usage));
        // 400 × 0.15 + 600 × 0.075 + 7 × 0.60, for a million.
        assert_eq!(metrics.cost_usd.unwrap().to_string(), "0.0001092");
        assert_eq!(metrics.custom["finish_reason"], json!("stop"));
        assert_eq!(metrics.custom["model"], json!("gpt-4o-mini-2024-07-18"));
        assert_eq!(metrics.api_calls, 1);
    }

    #[tokio::test]
    async fn a_question_carries_what_the_node_says() {
        let mut server = Server::answering([stream(&[piece("ok"), stop()], "")]).await;
        let attempt = node(Llm {
            model: Some("m-${{ 1 + 1 }}".to_owned()),
            system: Some("Be dry.".to_owned()),
            messages: Some(json!([{"role": "assistant", "content": "${{ 'hi' }}"}])),
            prompt: Some("And now?".to_owned()),
            temperature: Some(0.5),
            max_tokens: Some(9),
            extra: [("seed".to_owned(), json!("${{ 7 }}"))].into(),
            ..Llm::default()
        });
        attempt.make(handler(&server)).await.unwrap();
        let received = server.received().await;
        assert!(received.head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{}", received.head);
        assert!(received.head.contains("\r\nauthorization: bearer sk-stand-in\r\n"), "{}", received.head);
        assert!(received.head.contains("\r\nidempotency-key: key-1"), "{}", received.head);
        assert_eq!(
            serde_json::from_str::<Value>(&received.body).unwrap(),
            json!({
                "model": "m-2",
                "messages": [
                    {"role": "system", "content": "Be dry."},
                    {"role": "assistant", "content": "hi"},
                    {"role": "user", "content": "And now?"},
                ],
                "stream": true,
                "stream_options": {"include_usage": true},
                "temperature": 0.5,
                "max_tokens": 9,
                "seed": 7,
            })
        );
        let metrics = attempt.metrics();
        assert_eq!((metrics.token_usage, metrics.cost_usd), (None, None));
    }

    #[tokio::test]
    async fn an_answer_that_is_not_streamed_is_understood() {
        let document = json!({
            "model": "house-model",
            "choices": [{"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        });
        let head = "200 OK\r\ncontent-type: application/json; charset=utf-8";
        let server = Server::answering([answer(head, document.to_string())]).await;
        let price = Price { input: "1.1".to_owned(), output: "2.2".to_owned(), cached_input: None };
        let mut attempt = node(Llm { prompt: Some("?".to_owned()), price: Some(price), ..Llm::default() });
        assert_eq!(attempt.make(handler(&server)).await.unwrap(), json!("42"));
        assert_eq!(attempt.progress(), ["42"]);
        assert_eq!(attempt.metrics().cost_usd.unwrap().to_string(), "0.0000077");
    }

    #[tokio::test]
    async fn the_price_of_an_unknown_model_is_unknown_and_not_zero() {
        let mut known = piece("x");
        known["model"] = json!("house-model");
        let server = Server::answering([stream(&[known, stop(), counted()], "data: [DONE]\n\n")]).await;
        let attempt = node(Llm {
            prompt: Some("?".to_owned()),
            model: Some("house-model".to_owned()),
            ..Llm::default()
        });
        attempt.make(handler(&server)).await.unwrap();
        let metrics = attempt.metrics();
        assert_eq!((metrics.token_usage.unwrap().total_tokens, metrics.cost_usd), (1007, None));
    }

    #[tokio::test]
    async fn a_price_of_ones_own_is_the_price_of_a_model() {
        let mut known = piece("x");
        known["model"] = json!("house-model");
        let server = Server::answering([stream(&[known, stop(), counted()], "data: [DONE]\n\n")]).await;
        let ours = r#"{"as_of": "2026-11", "models": {"house-model": {"input": "1000", "output": "1000"}}}"#;
        let mut handler = handler(&server);
        handler.defaults.prices = handler.defaults.prices.overridden_by(Prices::parse(ours).unwrap());
        let attempt = node(Llm {
            prompt: Some("?".to_owned()),
            model: Some("house-model".to_owned()),
            ..Llm::default()
        });
        attempt.make(handler).await.unwrap();
        let metrics = attempt.metrics();
        assert_eq!(metrics.cost_usd, Some(1.007));
        assert_eq!(metrics.custom["price_as_of"], "2026-11");
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_is_no_answer_and_what_was_counted_is_noted() {
        let server = Server::answering([stream(&[piece("Ott"), counted()], "data: {\"choi")]).await;
        let attempt = node(Llm { prompt: Some("?".to_owned()), ..Llm::default() });
        let error = attempt.make(handler(&server)).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!(attempt.metrics().token_usage.unwrap().total_tokens, 1007);
        let server = Server::answering([stream(&[piece("Ott")], "")]).await;
        let error = node(Llm { prompt: Some("?".to_owned()), ..Llm::default() }).make(handler(&server)).await;
        assert_eq!(error.unwrap_err().message(), "the answer was cut off before its end");
    }

    #[tokio::test]
    async fn a_refused_question_tells_what_the_server_says_and_what_to_do() {
        let ask = async |head: &str, body: &str| {
            let server = Server::answering([answer(head, body)]).await;
            node(Llm { prompt: Some("?".to_owned()), ..Llm::default() })
                .make(handler(&server))
                .await
                .unwrap_err()
        };
        let busy =
            ask("429 Too Many Requests\r\nretry-after: 2", r#"{"error": {"message": "slow down"}}"#).await;
        assert!(busy.message().ends_with("429 Too Many Requests: slow down"), "{busy}");
        assert_eq!((busy.is_retryable(), busy.wait()), (true, Some(Duration::from_secs(2))));
        let broke = r#"{"error": {"message": "no money left", "code": "insufficient_quota"}}"#;
        assert!(!ask("429 Too Many Requests", broke).await.is_retryable());
        let leaked = ask("400 Bad Request", r#"{"error": "bad key sk-stand-in"}"#).await;
        assert!(leaked.message().ends_with("bad key ***"), "{leaked}");
    }

    #[tokio::test]
    async fn the_default_key_is_sent_to_the_default_server_only() {
        let default = Server::answering([]).await;
        let mut other =
            Server::answering([answer("401 Unauthorized", ""), stream(&[piece("ok"), stop()], "")]).await;
        let ask = |api_key: Option<&str>| {
            node(Llm {
                prompt: Some("?".to_owned()),
                base_url: Some(other.url.clone()),
                api_key: api_key.map(str::to_owned),
                ..Llm::default()
            })
        };
        let (without, with) = (ask(None), ask(Some("${{ secrets.TOKEN }}")));
        let handler = || LlmHandler::within(local(), defaults(default.url.clone()));
        let error = without.make(handler()).await.unwrap_err();
        assert!(error.message().contains("no key was sent; set the secret `OPENAI_API_KEY`"), "{error}");
        assert!(!other.received().await.head.contains("authorization"));
        with.make(handler()).await.unwrap();
        assert!(other.received().await.head.contains("\r\nauthorization: bearer t0p-secret\r\n"));
    }

    #[tokio::test]
    async fn a_node_without_a_model_is_told_where_to_name_one() {
        let attempt = node(Llm { prompt: Some("?".to_owned()), ..Llm::default() });
        let error = attempt.make(LlmHandler::new(LlmDefaults::default())).await.unwrap_err();
        assert_eq!(error.message(), "no model is named: give the node a `model`, or set RETAKE_LLM_MODEL");
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn only_the_server_by_default_may_be_a_private_one() {
        let default = Server::answering([stream(&[piece("ok"), stop()], "")]).await;
        let other = Server::answering([]).await;
        let ask = async |base_url: Option<String>| {
            let attempt = node(Llm { prompt: Some("?".to_owned()), base_url, ..Llm::default() });
            attempt.make(handler(&default)).await
        };
        let error = ask(Some(other.url.clone())).await.unwrap_err();
        assert!(error.message().starts_with("no request is sent to `127.0.0.1`: "), "{error}");
        assert!(!error.is_retryable());
        assert_eq!(ask(None).await.unwrap(), json!("ok"));
    }
}
