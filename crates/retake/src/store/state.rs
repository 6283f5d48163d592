//! From an execution's context to the deltas that stores keep, and back.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::delta::MESSAGE_PACK;
use super::{Delta, Entry, Image, Key, KeyChange, Op, Piece, StoreError, value};
use crate::execution::{
    Addition, Base, Cell, Change, Compensation, ExecutionContext, ExecutionId, ExecutionState, Ledger, Map,
    NodeExecutionResult, NodeId, Spend, Step, TakenBack, Variable, Variables, WorkflowId, check_appended,
    check_base, check_compensation, check_result, check_spend, check_taken_back,
};

/// The part of a state that is neither variable nor result.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    workflow_id: WorkflowId,
    started_at: DateTime<Utc>,
    completed_at: Option<DateTime<Utc>>,
    state: ExecutionState,
    generation: u64,
    /// The execution that the state was made by, where that is not the one whose history it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_by: Option<ExecutionId>,
}

/// What changes with every node, kept apart from the header because it is small.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tally {
    turn: u64,
    spend: Spend,
    #[serde(default, skip_serializing_if = "is_zero")]
    inherited: u64,
}

fn is_zero(turn: &u64) -> bool {
    *turn == 0
}

impl Tally {
    fn of(ledger: &Ledger) -> Self {
        Self { turn: ledger.turn, spend: ledger.spend, inherited: ledger.inherited }
    }
}

impl Header {
    fn of(ctx: &ExecutionContext, history: ExecutionId) -> Self {
        Self {
            workflow_id: ctx.workflow_id,
            started_at: ctx.started_at,
            completed_at: ctx.completed_at,
            state: ctx.state.clone(),
            generation: ctx.generation,
            made_by: (ctx.execution_id != history).then_some(ctx.execution_id),
        }
    }
}

/// Returns what changed from one state to another; from nothing, the whole state.
///
/// Costs as much as the two differ: what was appended to a list or text is stored as an append. `writer_of` says which
/// node wrote a variable.
///
/// # Errors
/// [`StoreError::Unstorable`] with the path of a value that could not be read back.
pub fn delta(
    before: Option<&ExecutionContext>,
    after: &ExecutionContext,
    writer_of: impl Fn(&str) -> Option<NodeId>,
) -> Result<Delta, StoreError> {
    // No id is part of what is stored, so that a fork's first delta can start from its origin's state.
    let header_before = before.map(|ctx| Header::of(ctx, ctx.execution_id));
    changes_between(before, header_before, after, Header::of(after, after.execution_id), writer_of)
}

/// Returns what changed between two states in the history of an execution that need not have made them; each is given
/// back with the id of the one that did, by [`context_as_made`].
pub(super) fn delta_in(
    history: ExecutionId,
    before: Option<&ExecutionContext>,
    after: &ExecutionContext,
) -> Result<Delta, StoreError> {
    let header_before = before.map(|ctx| Header::of(ctx, history));
    changes_between(before, header_before, after, Header::of(after, history), |_| None)
}

fn changes_between(
    before: Option<&ExecutionContext>,
    header_before: Option<Header>,
    after: &ExecutionContext,
    header: Header,
    writer_of: impl Fn(&str) -> Option<NodeId>,
) -> Result<Delta, StoreError> {
    let mut changes = Vec::new();
    if header_before.as_ref() != Some(&header) {
        changes.push(set(Key::Header, None, record_piece("the header", &header)?));
    }
    let nothing = Variables::new();
    let inputs = before.map_or(&nothing, |ctx| &ctx.inputs);
    variables(&mut changes, "inputs", inputs, &after.inputs, Key::Input, |_| None)?;
    let variables_before = before.map_or(&nothing, |ctx| &ctx.variables);
    variables(&mut changes, "vars", variables_before, &after.variables, Key::Variable, writer_of)?;
    let no_results = crate::execution::NodeResults::new();
    let results = before.map_or(&no_results, |ctx| &ctx.node_results);
    records(&mut changes, results, &after.node_results, |id| (Key::Node(*id), Some(*id)), node_piece)?;
    ledger(&mut changes, before.map(|ctx| &ctx.ledger), &after.ledger)?;
    Ok(Delta::new(changes))
}

fn ledger(changes: &mut Vec<KeyChange>, before: Option<&Ledger>, after: &Ledger) -> Result<(), StoreError> {
    let nothing = Ledger::default();
    let before = before.unwrap_or(&nothing);
    if Tally::of(before) != Tally::of(after) {
        changes.push(set(Key::Tally, None, tally_piece(&Tally::of(after))?));
    }
    check_spend(after)?;
    let base = |name: &String, base: &Base| {
        check_base(name, base)?;
        record_piece(&format!("bases.{name}"), base)
    };
    records(changes, &before.bases, &after.bases, |name| (Key::Base(name.clone()), None), base)?;
    let taken_back = |id: &NodeId, taken_back: &TakenBack| {
        check_taken_back(id, taken_back)?;
        record_piece(&format!("taken_back.{id}"), taken_back)
    };
    let key = |id: &NodeId| (Key::TakenBack(*id), Some(*id));
    records(changes, &before.taken_back, &after.taken_back, key, taken_back)?;
    let compensation = |_: &u64, compensation: &Compensation| {
        check_compensation(compensation)?;
        record_piece(&format!("compensations.{}", compensation.node), compensation)
    };
    let key = |turn: &u64| (Key::Compensation(*turn), None);
    records(changes, &before.compensations, &after.compensations, key, compensation)
}

/// Adds what changed between two maps of records, each of which is stored whole.
fn records<K: Ord + Clone, C: Cell>(
    changes: &mut Vec<KeyChange>,
    before: &Map<K, C>,
    after: &Map<K, C>,
    key: impl Fn(&K) -> (Key, Option<NodeId>),
    piece: impl Fn(&K, &C::Value) -> Result<Piece, StoreError>,
) -> Result<(), StoreError> {
    for change in before.changes_to(after) {
        let (name, op) = match change {
            Change::Added(name, cell) | Change::Changed { key: name, after: cell, .. } => {
                (name, Op::Set { pieces: vec![piece(name, cell.value())?], len: 0 })
            }
            Change::Removed(name, _) => (name, Op::Remove),
        };
        let (key, writer) = key(name);
        changes.push(KeyChange { key, writer, op });
    }
    Ok(())
}

/// Returns the context that an image holds.
///
/// # Errors
/// [`StoreError::Corrupt`] that names the entry.
pub fn context(execution_id: ExecutionId, image: &Image) -> Result<ExecutionContext, StoreError> {
    let header = header(execution_id, image)?;
    let mut ctx = ExecutionContext::with_id(execution_id, header.workflow_id, header.started_at);
    ctx.completed_at = header.completed_at;
    ctx.state = header.state;
    ctx.generation = header.generation;
    for (key, entry) in image.entries() {
        match key {
            Key::Header => {}
            Key::Input(name) => ctx.inputs.set(name.clone(), variable(execution_id, key, entry)?),
            Key::Variable(name) => ctx.variables.set(name.clone(), variable(execution_id, key, entry)?),
            Key::Node(id) => {
                let node: NodeExecutionResult = record(&entry_name(execution_id, key), entry)?;
                ctx.record_node_result(*id, node);
            }
            Key::Tally => {
                let Tally { turn, spend, inherited } = record(&entry_name(execution_id, key), entry)?;
                (ctx.ledger.turn, ctx.ledger.spend, ctx.ledger.inherited) = (turn, spend, inherited);
            }
            Key::Base(name) => {
                let base: Base = record(&entry_name(execution_id, key), entry)?;
                ctx.ledger.bases.set(name.clone(), Cell::new(base));
            }
            Key::TakenBack(id) => {
                let taken_back: TakenBack = record(&entry_name(execution_id, key), entry)?;
                ctx.ledger.taken_back.set(*id, Cell::new(taken_back));
            }
            Key::Compensation(turn) => {
                let compensation: Compensation = record(&entry_name(execution_id, key), entry)?;
                ctx.ledger.compensations.set(*turn, Cell::new(compensation));
            }
        }
    }
    Ok(ctx)
}

/// Returns the context that an image holds, with the id of the execution that made it.
pub(super) fn context_as_made(history: ExecutionId, image: &Image) -> Result<ExecutionContext, StoreError> {
    let mut ctx = context(history, image)?;
    ctx.execution_id = header(history, image)?.made_by.unwrap_or(history);
    Ok(ctx)
}

/// Returns an encoded header as JSON, where that says all that it says.
pub(super) fn header_to_json(bytes: &[u8]) -> Option<Value> {
    let header: Header = value::decode_as("the header", bytes).ok()?;
    let json = serde_json::to_value(&header).ok()?;
    (header_from_json(json.clone()).ok()? == bytes).then_some(json)
}

/// Returns the encoded header that JSON says.
pub(super) fn header_from_json(json: Value) -> Result<Vec<u8>, String> {
    let header: Header = serde_json::from_value(json).map_err(|error| error.to_string())?;
    rmp_serde::to_vec_named(&header).map_err(|error| error.to_string())
}

fn header(execution_id: ExecutionId, image: &Image) -> Result<Header, StoreError> {
    match image.get(&Key::Header) {
        Some(entry) => record(&entry_name(execution_id, &Key::Header), entry),
        None => {
            let record = format!("the state of execution {execution_id}");
            Err(StoreError::Corrupt { record, why: "it has no header".to_owned() })
        }
    }
}

fn variables(
    changes: &mut Vec<KeyChange>,
    prefix: &str,
    before: &Variables,
    after: &Variables,
    key: impl Fn(String) -> Key,
    writer_of: impl Fn(&str) -> Option<NodeId>,
) -> Result<(), StoreError> {
    for change in before.changes_to(after) {
        let (name, op) = match change {
            Change::Added(name, variable) => (name, whole(prefix, name, variable)?),
            Change::Removed(name, _) => (name, Op::Remove),
            Change::Changed { key: name, before, after } => match after.appended_since(before) {
                Some(additions) => (name, appended(prefix, name, before, after, additions)?),
                None => (name, whole(prefix, name, after)?),
            },
        };
        changes.push(KeyChange { key: key(name.clone()), writer: writer_of(name), op });
    }
    Ok(())
}

fn whole(prefix: &str, name: &str, variable: &Variable) -> Result<Op, StoreError> {
    let path = format!("{prefix}{}", Step::Key(name));
    let piece = value_piece(&path, 0, variable.value())?;
    Ok(Op::Set { pieces: vec![piece], len: length(variable) })
}

fn appended(
    prefix: &str,
    name: &str,
    before: &Variable,
    after: &Variable,
    additions: Vec<Addition>,
) -> Result<Op, StoreError> {
    let path = format!("{prefix}{}", Step::Key(name));
    let mut start = before.len().unwrap_or(0);
    let mut pieces = Vec::with_capacity(additions.len());
    for added in additions {
        let len = added.len();
        pieces.push(value_piece(&path, start, &added.into_value())?);
        start += len;
    }
    Ok(Op::Append { start: length(before), pieces, len: length(after) })
}

fn length(variable: &Variable) -> u64 {
    variable.len().unwrap_or(0) as u64
}

fn set(key: Key, writer: Option<NodeId>, piece: Piece) -> KeyChange {
    KeyChange { key, writer, op: Op::Set { pieces: vec![piece], len: 0 } }
}

/// Encodes a value, or the items from `start` on of one.
fn value_piece(path: &str, start: usize, value: &Value) -> Result<Piece, StoreError> {
    let len = check_appended(path, start, value)?;
    Ok(Piece { codec: MESSAGE_PACK, bytes: Bytes::from(value::encode_checked(path, value, len)?) })
}

fn node_piece(id: &NodeId, node: &NodeExecutionResult) -> Result<Piece, StoreError> {
    let path = format!("nodes.{id}");
    check_result(&path, node)?;
    record_piece(&path, node)
}

/// Without the names of its fields, as it is stored with every node.
fn tally_piece(tally: &Tally) -> Result<Piece, StoreError> {
    let bytes = rmp_serde::to_vec(tally)
        .map_err(|source| StoreError::Unstorable { path: "the tally".to_owned(), why: source.to_string() })?;
    Ok(Piece { codec: MESSAGE_PACK, bytes: Bytes::from(bytes) })
}

fn record_piece(path: &str, record: &impl Serialize) -> Result<Piece, StoreError> {
    let bytes = value::bounded(path, |bytes| rmp_serde::encode::write_named(bytes, record))?;
    Ok(Piece { codec: MESSAGE_PACK, bytes: Bytes::from(bytes) })
}

fn record<T: serde::de::DeserializeOwned>(name: &str, entry: &Entry) -> Result<T, StoreError> {
    match entry.pieces.iter().next() {
        Some(piece) if entry.pieces.len() == 1 => value::decode_as(name, known(name, piece)?),
        Some(_) | None => Err(StoreError::Corrupt {
            record: name.to_owned(),
            why: format!("it has {} pieces where one belongs", entry.pieces.len()),
        }),
    }
}

fn variable(execution_id: ExecutionId, key: &Key, entry: &Entry) -> Result<Variable, StoreError> {
    let name = entry_name(execution_id, key);
    let mut pieces = entry.pieces.iter();
    let mut whole = match pieces.next() {
        Some(first) => value::decode(&name, known(&name, first)?)?,
        None => return Err(StoreError::Corrupt { record: name, why: "it is empty".to_owned() }),
    };
    for piece in pieces {
        match (&mut whole, value::decode(&name, known(&name, piece)?)?) {
            (Value::Array(items), Value::Array(more)) => items.extend(more),
            (Value::String(text), Value::String(more)) => text.push_str(&more),
            (Value::Array(_) | Value::String(_), _)
            | (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_), _) => {
                let why = "an append does not fit what it was appended to".to_owned();
                return Err(StoreError::Corrupt { record: name, why });
            }
        }
    }
    Ok(Variable::from(whole))
}

fn known<'a>(name: &str, piece: &'a Piece) -> Result<&'a [u8], StoreError> {
    if piece.codec == MESSAGE_PACK {
        return Ok(&piece.bytes);
    }
    let why = format!("its codec {} is not one that this version reads", piece.codec);
    Err(StoreError::Corrupt { record: name.to_owned(), why })
}

fn entry_name(execution_id: ExecutionId, key: &Key) -> String {
    format!("{key} of execution {execution_id}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::execution::{CompensationStage, ExecutionResult};

    fn saved(contexts: &[&ExecutionContext]) -> Image {
        let mut image = Image::default();
        let mut before = None;
        for ctx in contexts {
            image.apply("a test", &delta(before, ctx, |_| None).unwrap()).unwrap();
            before = Some(ctx);
        }
        image
    }

    fn start() -> ExecutionContext {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
        ctx.inputs.insert("topic".into(), json!("otters"));
        ctx.set_variable("messages".into(), json!(["hello"]));
        ctx.set_variable("log".into(), json!("a"));
        ctx
    }

    #[test]
    fn a_state_comes_back_from_its_deltas_exactly() {
        let first = start();
        let mut second = first.clone();
        second.append("messages", json!({"n": 1})).unwrap();
        second.append("log", json!("ñ")).unwrap();
        second.record_node_result(
            Uuid::from_u128(5),
            NodeExecutionResult::new().complete(ExecutionResult::Success(json!({"a": [1.5]}))),
        );
        let mut third = second.clone();
        third.append("messages", json!(3)).unwrap();
        third.append("log", json!("c")).unwrap();
        third.variables.remove("nothing");
        let compensation = Compensation {
            node: "send".into(),
            result: second.node_results[&Uuid::from_u128(5)].clone(),
            from: 2,
            stage: CompensationStage::Failed("no".into()),
            idempotency_key: "key".into(),
        };
        third.ledger.compensations.insert(7, compensation);
        third.ledger.inherited = 3;
        third.pause();
        let back = context(first.execution_id, &saved(&[&first, &second, &third])).unwrap();
        assert_eq!(back, third);
        assert_eq!(back.get_variable("log"), Some(&json!("añc")));
    }

    #[test]
    fn an_append_stores_the_appended_bytes_and_nothing_else() {
        let mut first = start();
        first.set_variable("messages".into(), json!(vec!["x".repeat(1_000); 100]));
        let mut second = first.clone();
        second.append("messages", json!("one more")).unwrap();
        let delta = delta(Some(&first), &second, |_| None).unwrap();
        assert!(delta.encode().len() < 60, "{} bytes", delta.encode().len());
    }

    #[test]
    fn a_removed_and_a_changed_variable_are_named_with_their_writer() {
        let first = start();
        let mut second = first.clone();
        second.variables.remove("log");
        second.set_variable("messages".into(), json!([]));
        let node = Uuid::from_u128(5);
        let delta = delta(Some(&first), &second, |name| (name == "messages").then_some(node)).unwrap();
        let summary: Vec<_> =
            delta.changes().iter().map(|c| (c.key.clone(), c.writer, c.op == Op::Remove)).collect();
        assert_eq!(
            summary,
            [
                (Key::Variable("log".into()), None, true),
                (Key::Variable("messages".into()), Some(node), false)
            ]
        );
    }

    #[test]
    fn a_value_that_is_too_deep_is_refused_with_its_path() {
        let first = start();
        let mut second = first.clone();
        second.set_variable("deep".into(), (0..200).fold(json!(1), |inner, _| json!([inner])));
        let error = delta(Some(&first), &second, |_| None).unwrap_err();
        let path = format!("vars.deep{}", "[0]".repeat(100));
        assert_eq!(error.to_string(), format!("cannot store {path}: it is nested deeper than 100 levels"));
        let mut third = first.clone();
        third.append("messages", json!({"y": second.get_variable("deep")})).unwrap();
        let error = delta(Some(&first), &third, |_| None).unwrap_err();
        assert!(error.to_string().starts_with("cannot store vars.messages[1].y[0]"), "{error}");
    }

    #[test]
    fn an_unknown_codec_is_named_and_not_guessed() {
        let mut image = saved(&[&start()]);
        let piece = Piece { codec: 9, bytes: Bytes::from_static(b"?") };
        let change = KeyChange {
            key: Key::Variable("odd".into()),
            writer: None,
            op: Op::Set { pieces: vec![piece], len: 0 },
        };
        image.apply("a test", &Delta::new(vec![change])).unwrap();
        let error = context(Uuid::from_u128(2), &image).unwrap_err().to_string();
        assert!(error.contains("vars.odd") && error.contains("codec 9"), "{error}");
    }
}
