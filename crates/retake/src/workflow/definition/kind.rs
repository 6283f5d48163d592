//! The kinds of node, and what each is told. Every text may hold `${{ … }}`.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Effect;

/// What a node does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Runs a command. Its output is the command's stdout: parsed if it is JSON, else text.
    Run(Run),
    /// Sends an HTTP request. Its output is the body: parsed if it is JSON, else text.
    Http(Http),
    /// Asks a language model. Its output is the answer's text.
    Llm(Box<Llm>),
    /// Writes variables. Its output is an object of them.
    Set(BTreeMap<String, Value>),
    /// Waits for somebody's approval. Its output is what they gave with it.
    Approval(Approval),
    /// Waits for some time. Its output is null.
    Wait(Wait),
    /// Calls a Rust closure that was registered with the engine.
    Call(Call),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What the shell is given.
    pub command: String,
    /// The directory it runs in; without it, the one that `retake` runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment variables beside those it inherits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The shell, called as `SHELL -c COMMAND`; without it, `sh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The address.
    pub url: String,
    /// The method.
    #[serde(default, skip_serializing_if = "Method::is_default")]
    pub method: Method,
    /// Headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Query parameters, added to those of the address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// The body as text. Not together with `json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body as JSON. Not together with `body`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::execution::present"
    )]
    pub json: Option<Value>,
    /// The statuses that count as success; without any, 200 to 299.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub expect: BTreeSet<u16>,
}

/// An HTTP method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// `GET`
    #[default]
    Get,
    /// `HEAD`
    Head,
    /// `OPTIONS`
    Options,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
}

/// A question to a language model behind an API of OpenAI's shape (`POST BASE_URL/chat/completions`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Llm {
    /// The model; without it, the engine's own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The question, sent as the user's last message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The system message, sent first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The conversation so far: a list of `{role, content}`, or an expression that gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Value>,
    /// How random the answer is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The longest answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Where the API is; without it, the engine's own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The key, as `${{ secrets.NAME }}`; without it, the engine's own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// What tokens cost, for models whose price the engine does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Further fields of the request, sent as they are.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Value>,
}

/// US dollars for a million tokens, as decimals in quotes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For tokens of the prompt.
    pub input: String,
    /// For tokens of the answer.
    pub output: String,
    /// For tokens of the prompt that were cached; without it, the price of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<String>,
}

/// A request for somebody's approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// What is asked.
    pub message: String,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// A duration such as `90s` or `1h 30m`, or an expression that gives one.
    For(String),
    /// A moment such as `2026-01-31T12:00:00Z`, or an expression that gives one.
    Until(String),
}

/// A call of a registered closure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The name it was registered by.
    pub name: String,
    /// What it is given.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub with: Value,
}

impl NodeKind {
    /// The name of every kind, in the order in which they are explained.
    pub const NAMES: [&'static str; 7] = ["run", "http", "llm", "set", "approval", "wait", "call"];

    /// Returns the kind's name, as a workflow file writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Http(_) => "http",
            Self::Llm(_) => "llm",
            Self::Set(_) => "set",
            Self::Approval(_) => "approval",
            Self::Wait(_) => "wait",
            Self::Call(_) => "call",
        }
    }

    /// Returns the effect of a node that does not name one.
    pub fn default_effect(&self) -> Effect {
        match self {
            Self::Llm(_) | Self::Set(_) | Self::Approval(_) | Self::Wait(_) => Effect::Pure,
            Self::Http(http) => match http.method {
                Method::Get | Method::Head | Method::Options => Effect::Pure,
                Method::Post | Method::Put | Method::Patch | Method::Delete => Effect::Idempotent,
            },
            Self::Run(_) | Self::Call(_) => Effect::Idempotent,
        }
    }
}

impl Run {
    /// Returns a command for the default shell, in the default directory.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), cwd: None, env: BTreeMap::new(), shell: None }
    }
}

impl Http {
    /// Returns a `GET` request: the others begin with it, as in `Http { method: Method::Post, ..Http::new(url) }`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            method: Method::Get,
            headers: BTreeMap::new(),
            query: BTreeMap::new(),
            body: None,
            json: None,
            expect: BTreeSet::new(),
        }
    }
}

impl Method {
    /// Returns the method as it is sent.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
