//! A model's answer: put together from the events of a stream, or read from one document.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::engine::NodeError;
use crate::engine::kinds::client::message_in;
use crate::execution::TokenUsage;

/// Longest event of a stream.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What marks the end of a stream.
const DONE: &str = "[DONE]";

/// What a model answered so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    text: String,
    refusal: String,
    tool_calls: BTreeMap<u64, Map<String, Value>>,
    finish_reason: Option<String>,
    model: Option<String>,
    usage: Option<TokenUsage>,
    ended: bool,
}

impl Answer {
    /// Takes in one event of a stream, and returns the text that it adds.
    pub(super) fn take_event(&mut self, data: &str) -> Result<String, NodeError> {
        if data.trim() == DONE {
            self.ended = true;
            return Ok(String::new());
        }
        let event = read(data.as_bytes())?;
        Ok(self.take(&event, "delta"))
    }

    /// Takes in a whole answer.
    pub(super) fn take_document(&mut self, document: &[u8]) -> Result<(), NodeError> {
        let document = read(document)?;
        if document["choices"][0]["message"].is_null() {
            return Err(NodeError::new("the answer holds no message"));
        }
        self.take(&document, "message");
        self.ended = true;
        Ok(())
    }

    fn take(&mut self, document: &Value, part: &str) -> String {
        if let Some(model) = document["model"].as_str().filter(|model| !model.is_empty()) {
            self.model = Some(model.to_owned());
        }
        if let Some(usage) = usage(&document["usage"]) {
            self.usage = Some(usage);
        }
        let mut said = String::new();
        // Of several answers to one question, the first is the node's.
        let choices = document["choices"].as_array().into_iter().flatten();
        for choice in choices.filter(|choice| choice["index"].as_u64().unwrap_or(0) == 0) {
            let message = &choice[part];
            said.push_str(&text_of(&message["content"]));
            self.refusal.push_str(message["refusal"].as_str().unwrap_or_default());
            for (position, call) in (0_u64..).zip(message["tool_calls"].as_array().into_iter().flatten()) {
                let calls = self.tool_calls.entry(call["index"].as_u64().unwrap_or(position)).or_default();
                extend_call(calls, call);
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                self.finish_reason = Some(reason.to_owned());
            }
        }
        self.text.push_str(&said);
        said
    }

    /// Tells whether nothing more comes.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Tells whether the answer is all there; the count of its tokens may still come.
    pub(super) fn is_whole(&self) -> bool {
        self.ended || self.finish_reason.is_some()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the model that answered, as the server names it.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Returns why the model stopped, as the server says it.
    pub(super) fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }

    /// Returns the tokens that the server counted.
    pub(super) fn usage(&self) -> Option<&TokenUsage> {
        self.usage.as_ref()
    }

    /// Returns the node's output: the text, or the whole message where it calls tools.
    pub(super) fn into_output(self) -> Result<Value, NodeError> {
        if !self.tool_calls.is_empty() {
            let content = if self.text.is_empty() { Value::Null } else { Value::String(self.text) };
            let tool_calls: Vec<Value> = self.tool_calls.into_values().map(Value::Object).collect();
            return Ok(json!({"role": "assistant", "content": content, "tool_calls": tool_calls}));
        }
        if self.text.is_empty() && !self.refusal.is_empty() {
            return Err(NodeError::permanent(format!("the model refused to answer: {}", self.refusal)));
        }
        Ok(Value::String(self.text))
    }
}

/// Reads a document or an event, which may be an error.
fn read(bytes: &[u8]) -> Result<Value, NodeError> {
    let document: Value = serde_json::from_slice(bytes)
        .map_err(|error| NodeError::new(format!("the answer cannot be read: {error}")))?;
    if document["error"].is_null() {
        return Ok(document);
    }
    let said = message_in(&document).unwrap_or_else(|| document["error"].to_string());
    Err(NodeError::new(format!("the model's server failed: {said}")))
}

/// Returns the text of a message's content: a text, or a list of parts.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

/// Adds to a tool call what an event says of it: its arguments come in pieces, all else at once.
fn extend_call(call: &mut Map<String, Value>, more: &Value) {
    for (name, value) in more.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("index", _) | (_, Value::Null) => {}
            ("function", Value::Object(_)) => {
                let function = call.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(function) = function {
                    extend_call(function, value);
                }
            }
            ("arguments", Value::String(piece)) => match call.get_mut(name) {
                Some(Value::String(arguments)) => arguments.push_str(piece),
                Some(_) | None => {
                    call.insert(name.clone(), value.clone());
                }
            },
            _ => {
                call.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Reads what the server counted, or `None` where it did not count.
fn usage(usage: &Value) -> Option<TokenUsage> {
    let tokens = |count: &Value| count.as_u64().map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let counted = TokenUsage::new(tokens(&usage["prompt_tokens"])?, tokens(&usage["completion_tokens"])?);
    Some(TokenUsage {
        total_tokens: tokens(&usage["total_tokens"]).unwrap_or(counted.total_tokens),
        cached_tokens: tokens(&usage["prompt_tokens_details"]["cached_tokens"]),
        ..counted
    })
}

/// Splits a stream of server-sent events into their data.
///
/// Names, ids and comments of events are passed over. Bytes may be cut anywhere, inside a character too.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    line: Vec<u8>,
    data: Vec<u8>,
}

impl EventStream {
    /// Takes in bytes, and returns the data of every event that they complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<String>, NodeError> {
        let mut complete = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                let message = format!("the answer holds an event of more than {EVENT_BYTES_MAX} bytes");
                return Err(NodeError::permanent(message));
            }
            if piece.ends_with(b"\n") {
                complete.extend(self.end_line());
            }
        }
        Ok(complete)
    }

    /// Returns the data of an event that no empty line follows, at the end of the stream.
    pub(super) fn end(&mut self) -> Vec<String> {
        let last_line = self.end_line();
        last_line.into_iter().chain(self.end_event()).collect()
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = line.trim_ascii_end();
        if line.is_empty() {
            return self.end_event();
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
        None
    }

    fn end_event(&mut self) -> Option<String> {
        let data = std::mem::take(&mut self.data);
        (!data.is_empty()).then(|| String::from_utf8_lossy(&data).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &str) -> Vec<String> {
        // Byte by byte: every cut there is.
        let mut events = EventStream::default();
        let mut all: Vec<String> = stream
            .as_bytes()
            .iter()
            .flat_map(|byte| events.take(std::slice::from_ref(byte)).unwrap())
            .collect();
        all.extend(events.end());
        all
    }

    #[test]
    fn events_are_found_however_the_stream_is_cut() {
        let stream = ": keep-alive\n\nevent: message\nid: 1\ndata: é\r\n\r\ndata:a\ndata: b\n\n\ndata: last";
        assert_eq!(events(stream), ["é", "a\nb", "last"]);
        assert!(events("\n\n: nothing\n\n").is_empty());
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let error = EventStream::default().take(&vec![b'x'; EVENT_BYTES_MAX + 1]).unwrap_err();
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_tool_call_is_put_together_from_its_pieces() {
        let mut answer = Answer::default();
        for call in [
            json!({"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": "{\"at\":"}}),
            json!({"index": 1, "id": "c2", "type": "function", "function": {"name": "go", "arguments": "{}"}}),
            json!({"index": 0, "id": null, "function": {"name": null, "arguments": "1}"}}),
        ] {
            let event = json!({"choices": [{"delta": {"content": null, "tool_calls": [call]}}]});
            assert_eq!(answer.take_event(&event.to_string()).unwrap(), "");
        }
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        assert_eq!(
            answer.into_output().unwrap(),
            json!({
                "role": "assistant",
                "content": null,
                "tool_calls": [call("c1", "look", "{\"at\":1}"), call("c2", "go", "{}")],
            })
        );
    }

    #[test]
    fn a_refusal_is_an_error_and_a_list_of_parts_is_text() {
        let mut answer = Answer::default();
        answer.take_document(br#"{"choices": [{"message": {"content": null, "refusal": "no"}}]}"#).unwrap();
        assert_eq!(answer.into_output().unwrap_err().message(), "the model refused to answer: no");
        let mut answer = Answer::default();
        let parts =
            json!({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]});
        answer.take_document(parts.to_string().as_bytes()).unwrap();
        assert_eq!(answer.into_output().unwrap(), json!("ab"));
    }

    #[test]
    fn an_error_inside_the_stream_may_pass() {
        let error = Answer::default().take_event(r#"{"error": {"message": "overloaded"}}"#).unwrap_err();
        assert_eq!(error.message(), "the model's server failed: overloaded");
        assert!(error.is_retryable());
    }

    #[test]
    fn of_several_answers_the_first_is_taken_and_the_last_count_holds() {
        let mut answer = Answer::default();
        answer
            .take_event(
                &json!({
                    "choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
                })
                .to_string(),
            )
            .unwrap();
        answer
            .take_event(
                &json!({"usage": {"prompt_tokens": 3, "completion_tokens": 9_999_999_999_u64}}).to_string(),
            )
            .unwrap();
        assert_eq!(answer.text(), "a");
        assert_eq!(answer.usage(), Some(&TokenUsage::new(3, u32::MAX)));
    }
}
