//! Every decoder, given any bytes: it may refuse them, and what it takes it must keep.
//!
//! Each function panics where a decoder breaks that. `cargo xtask fuzz` runs them on bytes that were grown to reach every
//! branch; the tests run them on the seeds of that, and on what it once found.

use serde_json::Value;

use crate::checkpoint::CheckpointStorage;
use crate::checkpoint::InMemoryCheckpointStorage;
use crate::execution::{ExecutionCheckpoint, ExecutionContext, check_checkpoint, parse_exact};
use crate::store::{self, Delta, History, Image, StoreError, body};

/// A decoder under its name, which is that of its fuzz target and of the directory of its seeds.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// The name.
    pub name: &'static str,
    /// Gives it bytes.
    pub run: fn(&[u8]),
}

/// All decoders.
pub const DECODERS: &[Decoder] = &[
    Decoder { name: "stored_value", run: stored_value },
    Decoder { name: "json_value", run: json_value },
    Decoder { name: "checkpoint", run: checkpoint },
    Decoder { name: "export_file", run: export_file },
    #[cfg(feature = "engine")]
    Decoder { name: "workflow_file", run: workflow_file },
    #[cfg(feature = "engine")]
    Decoder { name: "address", run: address },
];

/// Largest body that [`checkpoint`] unpacks: every byte of it can become a value that takes many.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// The record that errors name.
const RECORD: &str = "the bytes";

/// Decodes a stored value, and stores it again.
pub fn stored_value(bytes: &[u8]) {
    let Some(value) = taken(store::decode(RECORD, bytes)) else { return };
    let again = store::encode("vars.x", &value).expect("what was read can be stored");
    let back = store::decode(RECORD, &again).expect("what was stored can be read");
    assert_same(&value, &back);
    assert_eq!(store::hash(&value), store::hash(&back));
}

/// Reads JSON exactly, and what is written of it again.
pub fn json_value(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(value) = parse_exact(text) else { return };
    let stored = store::encode("vars.x", &value).expect("what was read can be stored");
    assert_same(&value, &store::decode(RECORD, &stored).expect("what was stored can be read"));
    let back = parse_exact(&value.to_string()).expect("what was written can be read");
    assert_same(&value, &back);
    // Nothing that another reader of the same text sees is missing.
    let plain: Value = serde_json::from_str(text).expect("JSON that was read exactly is JSON");
    assert_same(&value, &plain);
}

/// Decodes a checkpoint: as JSON where the bytes begin as JSON does, else as the body of a row, its delta, and the state
/// that this makes.
pub fn checkpoint(bytes: &[u8]) {
    match bytes.first() {
        Some(b'{') => checkpoint_of_json(bytes),
        Some(_) | None => checkpoint_of_body(bytes),
    }
}

fn checkpoint_of_json(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<ExecutionCheckpoint>(bytes) else { return };
    let text = serde_json::to_string(&read).expect("a checkpoint is JSON");
    let kept = InMemoryCheckpointStorage::new();
    match kept.save_checkpoint(read.execution_id, &read) {
        Ok(id) => {
            let back = kept.load_checkpoint(id).expect("a look").expect("it was just saved");
            assert_eq!(serde_json::to_string(&back).expect("a checkpoint is JSON"), text);
            let again: ExecutionCheckpoint = serde_json::from_str(&text).expect("what was saved can be read");
            assert_eq!(serde_json::to_string(&again).expect("a checkpoint is JSON"), text);
        }
        Err(_) => assert!(check_checkpoint(&read).is_err(), "only what cannot be kept is refused"),
    }
    survives(&ExecutionContext::from(read));
}

fn checkpoint_of_body(bytes: &[u8]) {
    let Some(raw) = taken(body::unpack_at_most(BODY_BYTES_MAX, RECORD, bytes)) else { return };
    let Some(delta) = taken(Delta::decode(RECORD, &raw)) else { return };
    assert_eq!(Delta::decode(RECORD, &delta.encode()).expect("what was encoded can be decoded"), delta);
    let mut image = Image::default();
    if taken(image.apply(RECORD, &delta)).is_none() {
        return;
    }
    let mut copy = Image::default();
    copy.apply(RECORD, &image.to_delta()).expect("a whole state can be applied");
    assert_eq!(copy, image);
    if let Some(ctx) = taken(store::context(uuid::Uuid::nil(), &image)) {
        survives(&ctx);
    }
}

/// Stores a state and reads it back, unless it is refused.
fn survives(ctx: &ExecutionContext) {
    let delta = match store::delta(None, ctx, |_| None) {
        Ok(delta) => delta,
        Err(StoreError::Unstorable { path, .. }) => return assert!(!path.is_empty()),
        Err(error) => panic!("{error}"),
    };
    let mut image = Image::default();
    image.apply(RECORD, &delta).expect("a whole state can be applied");
    let back = store::context(ctx.execution_id, &image).expect("what was stored can be read");
    let text = |ctx: &ExecutionContext| serde_json::to_string(ctx).expect("a context is JSON");
    assert_eq!(text(&back), text(ctx));
}

/// Reads an export file: as it is, and with an end that fits, without which nothing that was changed gets past its hash.
pub fn export_file(bytes: &[u8]) {
    exported(bytes);
    let mut whole = bytes.to_vec();
    if let Some(end) = bytes.windows(END.len()).rposition(|window| window == END) {
        whole.truncate(end);
    }
    if whole.last() != Some(&b'\n') {
        whole.push(b'\n');
    }
    let lines = whole.iter().filter(|&&byte| byte == b'\n').count();
    let hash = blake3::hash(&whole).to_hex();
    let end = format!("{{\"end\":\"history\",\"lines\":{lines},\"blake3\":\"{hash}\"}}\n");
    whole.extend_from_slice(end.as_bytes());
    exported(&whole);
}

/// How the last line of an export file begins.
const END: &[u8] = b"{\"end\":";

fn exported(bytes: &[u8]) {
    match History::read_from(bytes) {
        Ok(history) => {
            let states = history.states().expect("what was read has states");
            assert_eq!(states.len(), history.points.len());
            let mut written = Vec::new();
            history.write_to(&mut written).expect("what was read can be written");
            let back = History::read_from(&written[..]).expect("what was written can be read");
            let mut again = Vec::new();
            back.write_to(&mut again).expect("what was read can be written");
            assert!(written == again, "what was read is written as the same");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Reads a workflow file, YAML or JSON; checks it, orders its nodes, and stores it.
#[cfg(feature = "engine")]
pub fn workflow_file(bytes: &[u8]) {
    use crate::workflow::{Definition, Workflow};

    match Workflow::from_bytes("the bytes", bytes) {
        Ok(workflow) => {
            let graph = workflow.graph();
            assert_eq!(graph.len(), workflow.definition().nodes.len());
            for node in graph.nodes() {
                assert_eq!(graph.index_of(graph.name(node)), Some(node));
                assert!(
                    graph.dependencies(node).iter().all(|before| graph.dependents(*before).contains(&node))
                );
            }
            let stored = workflow.definition().to_json();
            let definition = Definition::from_json(&stored).expect("what was stored can be read");
            let back = Workflow::from_definition(definition).expect("what was valid is valid");
            assert_eq!(back.id(), workflow.id());
            assert_eq!(back.definition().to_json(), stored);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Reads the address of a point.
#[cfg(feature = "engine")]
pub fn address(bytes: &[u8]) {
    use crate::engine::address::Address;

    let Ok(text) = str::from_utf8(bytes) else { return };
    match text.parse::<Address>() {
        Ok(address) => {
            let back = address.to_string().parse::<Address>().expect("what was written can be read");
            assert_eq!(back, address);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Returns what was decoded; what was refused says so by the record's name.
fn taken<T>(decoded: Result<T, StoreError>) -> Option<T> {
    match decoded {
        Ok(value) => Some(value),
        Err(StoreError::Corrupt { record, .. }) => {
            assert!(record.contains(RECORD) || record.contains("of execution"), "{record}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn assert_same(one: &Value, other: &Value) {
    // Compared as texts too: that is where the order of keys and the sign of zero show.
    assert_eq!(one, other);
    assert_eq!(one.to_string(), other.to_string());
}
