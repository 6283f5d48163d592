//! The lines of an export file as data. A field that is not known is refused: it would be lost without a word.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{HISTORY_FILE_VERSION, HistoryFileError};
use crate::checkpoint::CheckpointId;
use crate::execution::{ExecutionId, ExecutionState, NodeId, Spend, WorkflowId, parse_exact};
use crate::store::history::{HistoryPoint, KeptWorkflow};
use crate::store::state::{header_from_json, header_to_json};
use crate::store::{
    Cause, CheckpointRecord, Delta, ExecutionRecord, Key, KeyChange, MESSAGE_PACK, Op, OperationRecord,
    Origin, Piece, Seq, value,
};

/// What a file is said to be, in its first line and its last.
const HISTORY: &str = "history";

/// Why a file is none of ours.
pub(super) const NOT_OURS: &str = "it does not begin as one";

/// How much of a path is shown in an error.
const PATH_CHARS_MAX: usize = 200;

/// A line as it stands in the file.
pub(super) trait HistoryLine: Serialize + DeserializeOwned + PartialEq {}

impl<T: Serialize + DeserializeOwned + PartialEq> HistoryLine for T {}

/// Returns what a line says it is: its first key.
pub(super) fn tag(value: &Value) -> Option<&str> {
    value.as_object()?.keys().next().map(String::as_str)
}

/// Returns a line as its kind has it.
pub(super) fn typed<L: DeserializeOwned>(value: Value) -> Result<L, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path: String = error.path().to_string().chars().take(PATH_CHARS_MAX).collect();
        if path == "." { error.inner().to_string() } else { format!("{path}: {}", error.inner()) }
    })
}

/// Tells whether the first line is that of a history of a version that can be read.
pub(super) fn check_version(first: &Value) -> Result<(), HistoryFileError> {
    if first.get("retake").and_then(Value::as_str) != Some(HISTORY) {
        return Err(HistoryFileError::NotAHistory { why: NOT_OURS.to_owned() });
    }
    match first.get("version").and_then(Value::as_u64) {
        Some(found) if found > u64::from(HISTORY_FILE_VERSION) => {
            Err(HistoryFileError::NewerVersion { found, supported: HISTORY_FILE_VERSION })
        }
        Some(1..) => Ok(()),
        Some(0) | None => Err(HistoryFileError::NotAHistory { why: "it has no version".to_owned() }),
    }
}

/// The first line.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FirstLine {
    retake: String,
    version: u32,
    execution: ExecutionPart,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecutionPart {
    id: ExecutionId,
    name: String,
    workflow: WorkflowId,
    workflow_name: String,
    state: ExecutionState,
    head: Seq,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    spend: Spend,
    origin: Option<Origin>,
}

impl FirstLine {
    pub(super) fn of(execution: &ExecutionRecord) -> Self {
        let execution = execution.clone();
        Self {
            retake: HISTORY.to_owned(),
            version: HISTORY_FILE_VERSION,
            execution: ExecutionPart {
                id: execution.id,
                name: execution.name,
                workflow: execution.workflow_id,
                workflow_name: execution.workflow_name,
                state: execution.state,
                head: execution.head,
                created_at: execution.created_at,
                updated_at: execution.updated_at,
                spend: execution.spend,
                origin: execution.origin,
            },
        }
    }

    pub(super) fn into_execution(self) -> ExecutionRecord {
        let execution = self.execution;
        ExecutionRecord {
            id: execution.id,
            name: execution.name,
            workflow_id: execution.workflow,
            workflow_name: execution.workflow_name,
            state: execution.state,
            head: execution.head,
            created_at: execution.created_at,
            updated_at: execution.updated_at,
            spend: execution.spend,
            origin: execution.origin,
            leased_by: None,
        }
    }
}

/// A workflow with its definition.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkflowLine {
    workflow: WorkflowId,
    definition: DefinitionPart,
}

/// A definition as it is best read: JSON where it is JSON to the byte, text, or bytes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DefinitionPart {
    Json(Value),
    Text(String),
    Base64(String),
}

impl WorkflowLine {
    pub(super) fn of(workflow: &KeptWorkflow) -> Self {
        let bytes = &workflow.definition;
        let definition = match std::str::from_utf8(bytes) {
            Ok(text) => match parse_exact(text) {
                Ok(value) if serde_json::to_vec(&value).is_ok_and(|again| again == *bytes) => {
                    DefinitionPart::Json(value)
                }
                Ok(_) | Err(_) => DefinitionPart::Text(text.to_owned()),
            },
            Err(_) => DefinitionPart::Base64(BASE64.encode(bytes)),
        };
        Self { workflow: workflow.id, definition }
    }

    pub(super) fn into_workflow(self) -> Result<KeptWorkflow, String> {
        let definition = match self.definition {
            DefinitionPart::Json(value) => value.to_string().into_bytes(),
            DefinitionPart::Text(text) => text.into_bytes(),
            DefinitionPart::Base64(text) => unpacked("definition", &text)?,
        };
        Ok(KeptWorkflow { id: self.workflow, definition })
    }
}

/// A point, and what changed since the older one that it builds on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PointLine {
    point: Seq,
    id: CheckpointId,
    parent: Option<Seq>,
    created_at: DateTime<Utc>,
    cause: Cause,
    nodes: Vec<String>,
    label: Option<String>,
    state: ExecutionState,
    workflow: WorkflowId,
    completed_node_count: u64,
    spend: Spend,
    size_bytes: u64,
    compressed: bool,
    base: Option<Seq>,
    changes: Vec<ChangePart>,
}

/// One key's change.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangePart {
    key: KeyPart,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer: Option<NodeId>,
    op: OpPart,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyPart {
    Header,
    Input(String),
    Variable(String),
    Node(NodeId),
    Tally,
    Base(String),
    TakenBack(NodeId),
    Compensation(u64),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum OpPart {
    Set { pieces: Vec<PiecePart>, length: u64 },
    Append { from: u64, pieces: Vec<PiecePart>, length: u64 },
    Remove,
}

/// A piece as it is best read.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PiecePart {
    /// What MessagePack says, where that is JSON to the byte.
    Value(Value),
    /// How the execution stands: its ids are bytes in MessagePack.
    Header(Value),
    /// Anything else.
    Bytes { codec: u8, base64: String },
}

impl PointLine {
    pub(super) fn of(point: &HistoryPoint) -> Self {
        let record = point.record.clone();
        Self {
            point: record.seq,
            id: record.id,
            parent: record.parent,
            created_at: record.created_at,
            cause: record.cause,
            nodes: record.nodes,
            label: record.label,
            state: record.state,
            workflow: record.workflow_id,
            completed_node_count: record.completed_node_count,
            spend: record.spend,
            size_bytes: record.size_bytes,
            compressed: record.compressed,
            base: point.base,
            changes: point.delta.changes().iter().map(ChangePart::of).collect(),
        }
    }

    pub(super) fn into_point(self, execution_id: ExecutionId) -> Result<HistoryPoint, String> {
        let record = CheckpointRecord {
            execution_id,
            workflow_id: self.workflow,
            seq: self.point,
            id: self.id,
            parent: self.parent,
            created_at: self.created_at,
            cause: self.cause,
            nodes: self.nodes,
            label: self.label,
            state: self.state,
            completed_node_count: self.completed_node_count,
            spend: self.spend,
            size_bytes: self.size_bytes,
            compressed: self.compressed,
        };
        let changes = self.changes.into_iter().map(ChangePart::into_change).collect::<Result<Vec<_>, _>>()?;
        if let Some(pair) = changes.windows(2).find(|pair| pair[0].key >= pair[1].key) {
            return Err(format!("the change of {} is not in the order of the keys", named(&pair[1].key)));
        }
        Ok(HistoryPoint { record, base: self.base, delta: Delta::new(changes) })
    }
}

impl ChangePart {
    fn of(change: &KeyChange) -> Self {
        let parts = |pieces: &[Piece]| pieces.iter().map(|piece| PiecePart::of(&change.key, piece)).collect();
        let key = match change.key.clone() {
            Key::Header => KeyPart::Header,
            Key::Input(name) => KeyPart::Input(name),
            Key::Variable(name) => KeyPart::Variable(name),
            Key::Node(id) => KeyPart::Node(id),
            Key::Tally => KeyPart::Tally,
            Key::Base(name) => KeyPart::Base(name),
            Key::TakenBack(id) => KeyPart::TakenBack(id),
            Key::Compensation(turn) => KeyPart::Compensation(turn),
        };
        let op = match &change.op {
            Op::Set { pieces, len } => OpPart::Set { pieces: parts(pieces), length: *len },
            Op::Append { start, pieces, len } => {
                OpPart::Append { from: *start, pieces: parts(pieces), length: *len }
            }
            Op::Remove => OpPart::Remove,
        };
        Self { key, writer: change.writer, op }
    }

    fn into_change(self) -> Result<KeyChange, String> {
        let key = match self.key {
            KeyPart::Header => Key::Header,
            KeyPart::Input(name) => Key::Input(name),
            KeyPart::Variable(name) => Key::Variable(name),
            KeyPart::Node(id) => Key::Node(id),
            KeyPart::Tally => Key::Tally,
            KeyPart::Base(name) => Key::Base(name),
            KeyPart::TakenBack(id) => Key::TakenBack(id),
            KeyPart::Compensation(turn) => Key::Compensation(turn),
        };
        let whole = |parts: Vec<PiecePart>| {
            parts.into_iter().map(|part| part.into_piece(&key)).collect::<Result<Vec<_>, _>>()
        };
        let op = match self.op {
            OpPart::Set { pieces, length } => Op::Set { pieces: whole(pieces)?, len: length },
            OpPart::Append { from, pieces, length } => {
                Op::Append { start: from, pieces: whole(pieces)?, len: length }
            }
            OpPart::Remove => Op::Remove,
        };
        Ok(KeyChange { key, writer: self.writer, op })
    }
}

impl PiecePart {
    fn of(key: &Key, piece: &Piece) -> Self {
        let Piece { codec, bytes } = piece;
        if *codec == MESSAGE_PACK {
            // What the bytes say beside a JSON value, as in which of its forms a number stands, must not be lost.
            let again = |value: &Value| value::encode("a piece", value).is_ok_and(|again| again == *bytes);
            if let Some(value) = value::decode("a piece", bytes).ok().filter(again) {
                return Self::Value(value);
            }
            if *key == Key::Header
                && let Some(header) = header_to_json(bytes)
            {
                return Self::Header(header);
            }
        }
        Self::Bytes { codec: *codec, base64: BASE64.encode(bytes) }
    }

    fn into_piece(self, key: &Key) -> Result<Piece, String> {
        let (codec, bytes) = match self {
            Self::Value(value) => {
                let bytes = value::encode(&named(key), &value).map_err(|error| error.to_string())?;
                (MESSAGE_PACK, bytes)
            }
            Self::Header(header) => (MESSAGE_PACK, header_from_json(header)?),
            Self::Bytes { codec, base64 } => (codec, unpacked(&named(key), &base64)?),
        };
        Ok(Piece { codec, bytes: Bytes::from(bytes) })
    }
}

/// Returns how a key is called in errors.
fn named(key: &Key) -> String {
    key.to_string().chars().take(PATH_CHARS_MAX).collect()
}

fn unpacked(place: &str, base64: &str) -> Result<Vec<u8>, String> {
    BASE64.decode(base64).map_err(|error| format!("{place}: {error}"))
}

/// An entry of the operation log.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OperationLine {
    operation: u64,
    at: DateTime<Utc>,
    who: String,
    command: String,
    cause: Cause,
    before: Seq,
    after: Seq,
}

impl OperationLine {
    pub(super) fn of(operation: &OperationRecord) -> Self {
        let OperationRecord { number, at, who, command, cause, before, after } = operation.clone();
        Self { operation: number, at, who, command, cause, before, after }
    }

    pub(super) fn into_operation(self) -> OperationRecord {
        let Self { operation, at, who, command, cause, before, after } = self;
        OperationRecord { number: operation, at, who, command, cause, before, after }
    }
}

/// The last line.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndLine {
    end: String,
    lines: u64,
    blake3: String,
}

impl EndLine {
    pub(super) fn new(lines: u64, hash: blake3::Hash) -> Self {
        Self { end: HISTORY.to_owned(), lines, blake3: hash.to_hex().to_string() }
    }

    /// Tells whether this is the end of so many lines with this hash.
    pub(super) fn is_of(&self, lines: u64, hash: blake3::Hash) -> bool {
        *self == Self::new(lines, hash)
    }
}
