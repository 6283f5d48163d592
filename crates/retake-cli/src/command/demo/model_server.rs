//! A mock model behind an API of OpenAI's shape: it answers slowly, the same to the same prompt, and counts its calls.
//! It knows nothing of histories.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How many pieces an answer comes in.
const PIECES: u32 = 20;

/// What the mock model knows about otters.
const FACTS: [&str; 12] = [
    "Otters hold hands while they sleep.",
    "A sea otter keeps a favourite stone in a pouch under its arm.",
    "River otters slide down snowy banks for fun.",
    "Their fur is the densest of any animal.",
    "Where otters return, kelp forests grow back.",
    "Giant otters of the Amazon hunt in families.",
    "Otters were hunted for their fur until few were left.",
    "A group of otters on the water is called a raft.",
    "Otters close their ears and nostrils when they dive.",
    "Pups must be taught how to swim.",
    "They eat a quarter of their weight in a day.",
    "Clean rivers brought them back to many cities.",
];

/// How many of these an answer tells.
const FACTS_TOLD: usize = 4;

/// Which process asks, in the order in which they run: each has an address of its own, so that no call is counted for
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Process {
    /// The one that is killed.
    Killed,
    /// The one that goes on where it stopped.
    Resumed,
    /// The one that runs what the rollback sent back.
    RolledBack,
    /// The one that runs what the edit concerns.
    Edited,
}

/// One call, as the server saw it.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) process: Process,
    pub(super) node: String,
    pub(super) idempotency_key: String,
    pub(super) input_tokens: u32,
    /// What was sent of the answer so far.
    pub(super) output_tokens: u32,
    pub(super) progress: Progress,
}

/// How much of an answer was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Less than half.
    Begun,
    /// At least half.
    Halfway,
    /// All of it.
    Answered,
}

/// The server, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct ModelServer {
    address: SocketAddr,
    calls: Arc<watch::Sender<Vec<Call>>>,
    serving: AbortHandle,
}

#[derive(Debug, Clone)]
struct Model {
    calls: Arc<watch::Sender<Vec<Call>>>,
    delay: Duration,
}

#[derive(Debug, Deserialize)]
struct Question {
    model: String,
    user: String,
    messages: Vec<Message>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: String,
}

/// An answer on its way.
struct Answer {
    model: Model,
    name: String,
    /// Its place among the calls.
    call: usize,
    words: Vec<String>,
    next: Next,
}

/// What is sent next of an answer.
enum Next {
    Piece(u32),
    Stop,
    Usage,
    Done,
    Nothing,
}

impl ModelServer {
    /// Starts a server that takes `delay` for each answer.
    pub(super) async fn start(delay: Duration) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let calls = Arc::new(watch::Sender::new(Vec::new()));
        let model = Model { calls: Arc::clone(&calls), delay };
        let router = Router::new().route("/{process}/v1/chat/completions", post(complete)).with_state(model);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Ok(Self { address, calls, serving })
    }

    /// Returns the address of the API for a process.
    pub(super) fn base_url(&self, process: Process) -> String {
        let process = match process {
            Process::Killed => "killed",
            Process::Resumed => "resumed",
            Process::RolledBack => "rolled_back",
            Process::Edited => "edited",
        };
        format!("http://{}/{process}/v1", self.address)
    }

    /// Returns the calls so far, in the order in which they came.
    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// Waits until so many calls were answered and another one is at least half answered.
    pub(super) async fn answered_and_a_half(&self, answered: usize) {
        let count = |calls: &[Call], progress| calls.iter().filter(|call| call.progress == progress).count();
        let is_there = |calls: &Vec<Call>| {
            count(calls, Progress::Answered) >= answered && count(calls, Progress::Halfway) > 0
        };
        let mut calls = self.calls.subscribe();
        // Cannot fail: the sender lives as long as the server.
        let _there = calls.wait_for(is_there).await;
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn complete(
    State(model): State<Model>,
    Path(process): Path<Process>,
    headers: HeaderMap,
    Json(question): Json<Question>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let prompt = question.messages.into_iter().map(|message| message.content).collect::<Vec<_>>().join("\n");
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let call = Call {
        process,
        node: question.user,
        idempotency_key: key.to_owned(),
        input_tokens: count_tokens(prompt.split_whitespace().count()),
        output_tokens: 0,
        progress: Progress::Begun,
    };
    let mut place = 0;
    model.calls.send_modify(|calls| {
        place = calls.len();
        calls.push(call);
    });
    let words = answer_to(&prompt).split_inclusive(' ').map(str::to_owned).collect();
    let answer = Answer { model, name: question.model, call: place, words, next: Next::Piece(0) };
    Sse::new(unfold(answer, async |mut answer| {
        let data = answer.send_next().await?;
        Some((Ok(Event::default().data(data)), answer))
    }))
}

impl Answer {
    /// Returns what the client is sent next, when it is time to; `None` at the end.
    async fn send_next(&mut self) -> Option<String> {
        let data = match self.next {
            Next::Piece(piece) => {
                tokio::time::sleep(self.model.delay / PIECES).await;
                self.next = if piece + 1 < PIECES { Next::Piece(piece + 1) } else { Next::Stop };
                self.chunk(json!({"content": self.send_piece(piece)}), Value::Null)
            }
            Next::Stop => {
                self.next = Next::Usage;
                self.chunk(json!({}), json!("stop"))
            }
            Next::Usage => {
                self.next = Next::Done;
                self.usage()
            }
            Next::Done => {
                self.next = Next::Nothing;
                "[DONE]".to_owned()
            }
            Next::Nothing => return None,
        };
        Some(data)
    }

    fn send_piece(&self, piece: u32) -> String {
        let (piece, pieces) = (piece as usize, PIECES as usize);
        let words = &self.words[piece * self.words.len() / pieces..(piece + 1) * self.words.len() / pieces];
        self.note(|call| {
            call.output_tokens += count_tokens(words.len());
            if piece + 1 >= pieces / 2 {
                call.progress = Progress::Halfway;
            }
        });
        words.concat()
    }

    fn chunk(&self, delta: Value, finish_reason: Value) -> String {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
        json!({"object": "chat.completion.chunk", "model": self.name, "choices": [choice]}).to_string()
    }

    fn usage(&self) -> String {
        let mut counted = (0, 0);
        self.note(|call| {
            call.progress = Progress::Answered;
            counted = (call.input_tokens, call.output_tokens);
        });
        let (input, output) = counted;
        let usage =
            json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output});
        json!({"object": "chat.completion.chunk", "model": self.name, "choices": [], "usage": usage})
            .to_string()
    }

    fn note(&self, change: impl FnOnce(&mut Call)) {
        self.model.calls.send_modify(|calls| change(&mut calls[self.call]));
    }
}

/// Returns the answer to a prompt: always the same to the same, and most likely another to another.
fn answer_to(prompt: &str) -> String {
    let mut hash = fnv(prompt.as_bytes());
    let mut facts = FACTS.to_vec();
    let mut told = vec![format!("({})", prompt.split(['.', '\n']).next().unwrap_or_default())];
    for _ in 0..FACTS_TOLD {
        let left = facts.len() as u64;
        told.push(facts.remove(usize::try_from(hash % left).unwrap_or(0)).to_owned());
        hash /= left;
    }
    told.join(" ")
}

/// Returns the FNV-1a hash, which is the same on every machine.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns a count of tokens: this model takes a word for one.
fn count_tokens(words: usize) -> u32 {
    u32::try_from(words).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_depends_on_the_prompt_alone() {
        let dry = answer_to("Revise the draft in a dry tone. Draft: otters.");
        assert_eq!(dry, answer_to("Revise the draft in a dry tone. Draft: otters."));
        assert_ne!(dry, answer_to("Revise the draft in a dry tone. Draft: seals."));
        assert!(dry.starts_with("(Revise the draft in a dry tone) "), "{dry}");
        assert_eq!(FACTS.iter().filter(|fact| dry.contains(**fact)).count(), FACTS_TOLD);
    }
}
