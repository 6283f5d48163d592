//! Stands in for the world outside in the tests of node kinds: a node's context, and a server with prepared answers.

use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::network::Network;
use crate::engine::context::{Action, NodeContext, Notes, Task};
use crate::engine::event::{Event, Events};
use crate::engine::{FileSecrets, Handler, NodeError};
use crate::execution::{ExecutionContext, NodeMetrics};
use crate::workflow::{Node, Workflow};

/// The second attempt at a node that is the only one of its workflow.
pub(super) struct Attempt {
    pub(super) ctx: NodeContext,
    events: mpsc::Receiver<Event>,
}

impl Attempt {
    pub(super) fn new(node: Node) -> Self {
        let workflow = Workflow::builder("stand-in").node("it", node).build().unwrap();
        let (events, receiver) = Events::watched();
        let task = Task {
            state: ExecutionContext::new(workflow.id()),
            workflow: Arc::new(workflow),
            node: 0,
            action: Action::Work,
            execution_name: "brave-otter".into(),
            idempotency_key: "key-1".to_owned(),
            secrets: Arc::new(FileSecrets::parse("OPENAI_API_KEY=sk-stand-in\nTOKEN=t0p-secret").unwrap()),
            masks: Arc::default(),
            events,
            trace_context: None,
        };
        Self { ctx: NodeContext::new(task, 2, Notes::default()), events: receiver }
    }

    pub(super) async fn make(&self, handler: impl Handler) -> Result<Value, NodeError> {
        handler.handle(self.ctx.clone()).await
    }

    pub(super) fn metrics(&self) -> NodeMetrics {
        self.ctx.take_notes().metrics
    }

    /// Returns what the node said of its progress.
    pub(super) fn progress(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if let Event::NodeProgress { text, .. } = event {
                said.push(text);
            }
        }
        said
    }
}

/// A server that gives each connection the next of its answers.
pub(super) struct Server {
    pub(super) url: String,
    requests: mpsc::UnboundedReceiver<Received>,
}

/// A request as the server received it.
pub(super) struct Received {
    /// The request line and the headers, in lower case.
    pub(super) head: String,
    pub(super) body: String,
}

impl Server {
    pub(super) async fn answering(answers: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    pub(super) fn at(listener: TcpListener, answers: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::unbounded_channel();
        let answers: Vec<Vec<u8>> = answers.into_iter().collect();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let received = receive(&mut stream).await;
                // Nobody reads on where an answer is longer than the client wants it.
                let _left = stream.write_all(&answer).await;
                let _left = stream.shutdown().await;
                sender.send(received).ok();
            }
        });
        Self { url, requests }
    }

    pub(super) async fn received(&mut self) -> Received {
        self.requests.recv().await.unwrap()
    }
}

async fn receive(stream: &mut TcpStream) -> Received {
    let mut bytes = Vec::new();
    loop {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "the request ended early");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Received { body: body.to_owned(), head };
        }
    }
}

/// Returns the network that servers like this are in.
pub(super) fn local() -> Network {
    Network::public().allowing("127.0.0.0/8").unwrap()
}

/// Returns an answer that ends with its connection. `head` is its status and headers.
pub(super) fn answer(head: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").into_bytes();
    answer.extend_from_slice(body.as_ref());
    answer
}
