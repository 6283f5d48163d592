//! What a value must be so that it is read back as it was: how deep it may be nested, how large it may be, and which
//! numbers it may hold.
//!
//! Everything is told before a byte is written, and nothing recurses: a value that is nested too deep for the stack is
//! refused like any other.

use std::fmt::{self, Write as _};
use std::sync::LazyLock;

use serde_json::{Map, Number, Value};

use super::{Base, Compensation, Cost, ExecutionCheckpoint, Ledger, NodeExecutionResult, TakenBack, WriteOp};

/// Deepest nesting of a value that is kept. `serde_json` reads back 127 levels at most; what is kept wraps values in a
/// few more.
pub const DEPTH_MAX: usize = 100;

/// Largest value that is kept, in bytes of its MessagePack form: four times what a node's output may be, and little enough
/// that a process with 256 MiB of memory can save such a value and load it, which takes up to three copies of it.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much of a key a path shows, in bytes.
const KEY_SHOWN_MAX: usize = 60;

/// A value that would not come back as it is. Nothing was saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot store {path}: {why}")]
pub struct Unstorable {
    /// Where the value stands, such as `vars.x[3].y`.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

/// Returns how many bytes the value takes in MessagePack, or what of it cannot be kept. `path` says where the value
/// stands.
///
/// Costs a look at the value and no copy of it.
///
/// # Errors
/// [`Unstorable`] with the path of the first value that is nested too deep or is a number of a kind that is not kept, or
/// with `path` where the whole is too large.
///
/// ```
/// use retake::execution::check_value;
/// use serde_json::{Value, json};
///
/// assert_eq!(check_value("vars.x", &json!(["otter"])), Ok(7));
/// let deep = (0..100).fold(json!(1), |inner, _| json!({ "in": [inner] }));
/// let error = check_value("vars.x", &deep).unwrap_err();
/// assert!(error.path.starts_with("vars.x.in[0].in[0]"));
/// ```
pub fn check_value(path: &str, value: &Value) -> Result<usize, Unstorable> {
    Walk::new(0).over(path, value, VALUE_BYTES_MAX)
}

/// Checks what is appended behind `start` items or bytes.
#[cfg(feature = "store")]
pub(crate) fn check_appended(path: &str, start: usize, value: &Value) -> Result<usize, Unstorable> {
    Walk::new(start).over(path, value, VALUE_BYTES_MAX)
}

/// Checks every value that a node's result holds. `path` says where the result stands, such as `nodes.draft`.
pub(crate) fn check_result(path: &str, node: &NodeExecutionResult) -> Result<(), Unstorable> {
    if let Some(output) = node.output() {
        check_value(&format!("{path}.output"), output)?;
    }
    for write in &node.writes {
        match &write.op {
            WriteOp::Set(value) | WriteOp::Append(value) => {
                check_value(&format!("{path}.writes{}", Step::Key(&write.variable)), value)?;
            }
            WriteOp::Output | WriteOp::Field(_) | WriteOp::Remove => {}
        }
    }
    let Some(metrics) = &node.metrics else { return Ok(()) };
    if let Some(cost_usd) = metrics.cost_usd {
        check_float(&format!("{path}.metrics.cost_usd"), cost_usd)?;
    }
    for (name, value) in &metrics.custom {
        check_value(&format!("{path}.metrics{}", Step::Key(name)), value)?;
    }
    Ok(())
}

/// Checks what an execution has cost.
pub(crate) fn check_spend(ledger: &Ledger) -> Result<(), Unstorable> {
    let float = |name: &str, cost: Cost| check_float(&format!("spend.{name}.known_usd"), cost.known_usd);
    float("paid", ledger.spend.paid).and_then(|()| float("reused", ledger.spend.reused))
}

/// Checks what a variable is before nodes write it.
pub(crate) fn check_base(name: &str, base: &Base) -> Result<(), Unstorable> {
    match &base.value {
        Some(value) => check_value(&format!("bases{}", Step::Key(name)), value).map(drop),
        None => Ok(()),
    }
}

/// Checks a result that was taken back.
pub(crate) fn check_taken_back(node: impl fmt::Display, taken_back: &TakenBack) -> Result<(), Unstorable> {
    match &taken_back.spare {
        Some(spare) => check_result(&format!("taken_back.{node}"), &spare.result),
        None => Ok(()),
    }
}

/// Checks a counter-action.
pub(crate) fn check_compensation(compensation: &Compensation) -> Result<(), Unstorable> {
    check_result(&format!("compensations.{}", compensation.node), &compensation.result)
}

/// Checks every value of a checkpoint.
///
/// # Errors
/// As [`check_value`].
pub fn check_checkpoint(checkpoint: &ExecutionCheckpoint) -> Result<(), Unstorable> {
    for (root, variables) in [("inputs", &checkpoint.inputs), ("vars", &checkpoint.variables)] {
        for (name, value) in variables.iter() {
            check_value(&format!("{root}{}", Step::Key(name)), value)?;
        }
    }
    for (id, node) in checkpoint.node_results.iter() {
        check_result(&format!("nodes.{id}"), node)?;
    }
    let ledger = &checkpoint.ledger;
    check_spend(ledger)?;
    ledger.bases.iter().try_for_each(|(name, base)| check_base(name, base))?;
    ledger.taken_back.iter().try_for_each(|(id, taken_back)| check_taken_back(id, taken_back))?;
    ledger.compensations.values().try_for_each(check_compensation)
}

fn check_float(path: &str, float: f64) -> Result<(), Unstorable> {
    if float.is_finite() {
        return Ok(());
    }
    Err(Unstorable { path: path.to_owned(), why: format!("{float} is no number that JSON can hold") })
}

/// Drops a value without recursion, however deep it is nested.
pub(crate) fn dismantle(value: Value) {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let is_nested = |inner: &Value| inner.is_array() || inner.is_object();
        match value {
            Value::Array(items) => open.extend(items.into_iter().filter(is_nested)),
            Value::Object(entries) => {
                open.extend(entries.into_iter().map(|(_, inner)| inner).filter(is_nested))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// Copies a value without recursion where it is nested deeper than what is kept.
pub(crate) fn copied(value: &Value) -> Value {
    if !is_too_deep(value) {
        return value.clone();
    }
    let mut open: Vec<(Level<'_>, Value)> = Vec::new();
    let mut at = value;
    loop {
        let mut done = match Level::of(at, 0) {
            Some(level) => {
                let empty = if at.is_array() { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
                open.push((level, empty));
                None
            }
            None => Some(at.clone()),
        };
        at = loop {
            let Some((level, copy)) = open.last_mut() else { return done.unwrap_or_default() };
            if let Some(part) = done.take() {
                match (&mut *copy, &*level) {
                    (Value::Object(entries), Level::Object { key: Some(key), .. }) => {
                        entries.insert((*key).to_owned(), part);
                    }
                    (Value::Array(items), _) => items.push(part),
                    _ => unreachable!("only lists and objects are open, and a part of an object has a key"),
                }
            }
            match level.next() {
                Some(inner) => break inner,
                None => done = open.pop().map(|(_, copy)| copy),
            }
        };
    }
}

/// Tells whether a value is nested deeper than what is kept.
pub(crate) fn is_too_deep(value: &Value) -> bool {
    let mut open: Vec<Level<'_>> = Vec::new();
    open.extend(Level::of(value, 0));
    while let Some(level) = open.last_mut() {
        match level.next() {
            Some(_) if open.len() >= DEPTH_MAX => return true,
            Some(inner) => open.extend(Level::of(inner, 0)),
            None => {
                open.pop();
            }
        }
    }
    false
}

/// A look at every part of a value, in order, that knows where it is.
struct Walk<'a> {
    open: Vec<Level<'a>>,
    /// Where the items of the outermost list begin to count.
    start: usize,
    bytes: usize,
}

impl<'a> Walk<'a> {
    fn new(start: usize) -> Self {
        Self { open: Vec::new(), start, bytes: 0 }
    }

    fn over(mut self, path: &str, value: &'a Value, bytes_max: usize) -> Result<usize, Unstorable> {
        let mut at = value;
        loop {
            if self.open.len() >= DEPTH_MAX {
                return Err(self.refused(path, format!("it is nested deeper than {DEPTH_MAX} levels")));
            }
            if let Value::Number(number) = at
                && let Err(why) = check_number(number)
            {
                return Err(self.refused(path, why));
            }
            self.bytes = self.bytes.saturating_add(own_bytes(at));
            if self.bytes > bytes_max {
                let why = format!("it takes more than {bytes_max} bytes");
                return Err(Unstorable { path: path.to_owned(), why });
            }
            let start = if self.open.is_empty() { self.start } else { 0 };
            self.open.extend(Level::of(at, start));
            at = loop {
                let Some(level) = self.open.last_mut() else { return Ok(self.bytes) };
                match level.next() {
                    Some(inner) => break inner,
                    None => {
                        self.open.pop();
                    }
                }
            };
            if let Some(Level::Object { key: Some(key), .. }) = self.open.last() {
                self.bytes = self.bytes.saturating_add(text_bytes(key));
            }
        }
    }

    fn refused(&self, root: &str, why: String) -> Unstorable {
        let mut path = root.to_owned();
        for level in &self.open {
            level.step().write(&mut path);
        }
        Unstorable { path, why }
    }
}

/// A list or an object that is being looked at.
enum Level<'a> {
    List { items: std::slice::Iter<'a, Value>, next: usize },
    Object { entries: serde_json::map::Iter<'a>, key: Option<&'a str> },
}

impl<'a> Level<'a> {
    fn of(value: &'a Value, start: usize) -> Option<Self> {
        match value {
            Value::Array(items) => Some(Self::List { items: items.iter(), next: start }),
            Value::Object(entries) => Some(Self::Object { entries: entries.iter(), key: None }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        }
    }

    fn next(&mut self) -> Option<&'a Value> {
        match self {
            Self::List { items, next } => {
                let item = items.next()?;
                *next += 1;
                Some(item)
            }
            Self::Object { entries, key } => {
                let (name, value) = entries.next()?;
                *key = Some(name);
                Some(value)
            }
        }
    }

    /// Returns the step to what was looked at last.
    fn step(&self) -> Step<'a> {
        match self {
            Self::List { next, .. } => Step::Index(next.saturating_sub(1)),
            Self::Object { key, .. } => Step::Key(key.unwrap_or_default()),
        }
    }
}

/// One step of a path: `.key`, `["any key"]` or `[3]`.
#[derive(Clone, Copy)]
pub(crate) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Step<'_> {
    fn write(&self, path: &mut String) {
        write!(path, "{self}").expect("a text takes any text");
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self {
            Self::Index(index) => return write!(f, "[{index}]"),
            Self::Key(key) => *key,
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !key.is_empty() && key.len() <= KEY_SHOWN_MAX && key.bytes().all(is_plain) {
            return write!(f, ".{key}");
        }
        // Escaped, so that a key cannot move a terminal's cursor.
        let shown = key[..key.floor_char_boundary(KEY_SHOWN_MAX)].escape_debug();
        let cut = if key.len() > KEY_SHOWN_MAX { "…" } else { "" };
        write!(f, "[\"{shown}{cut}\"]")
    }
}

/// Says why a number would not come back as it is.
fn check_number(number: &Number) -> Result<(), String> {
    if *WRITTEN_AS_TEXT {
        return Err(
            "`serde_json` is built with its feature `arbitrary_precision`, with which numbers do not \
                    come back as they were: see `cargo tree -e features -i serde_json`"
                .to_owned(),
        );
    }
    let is_kept = number.is_i64() || number.is_u64() || number.as_f64().is_some_and(f64::is_finite);
    if is_kept { Ok(()) } else { Err(format!("{number} is no number of 64 bits")) }
}

/// Whether another crate has switched on the feature of `serde_json` that makes numbers texts.
static WRITTEN_AS_TEXT: LazyLock<bool> = LazyLock::new(|| {
    serde_json::from_str::<Number>("123456789012345678901234567890").is_ok_and(|n| !n.is_f64())
});

/// Returns what a value takes in MessagePack without what lies in it.
fn own_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 1,
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => unsigned_bytes(number),
            (None, Some(number)) => negative_bytes(number),
            (None, None) => 9,
        },
        Value::String(text) => text_bytes(text),
        Value::Array(items) => container_bytes(items.len()),
        Value::Object(entries) => container_bytes(entries.len()),
    }
}

fn unsigned_bytes(number: u64) -> usize {
    match number {
        0..=0x7f => 1,
        0x80..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        0x1_0000_0000.. => 9,
    }
}

fn negative_bytes(number: i64) -> usize {
    match number {
        -0x20.. => 1,
        -0x80..-0x20 => 2,
        -0x8000..-0x80 => 3,
        -0x8000_0000..-0x8000 => 5,
        ..-0x8000_0000 => 9,
    }
}

fn text_bytes(text: &str) -> usize {
    let head = match text.len() {
        0..=31 => 1,
        32..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000.. => 5,
    };
    text.len().saturating_add(head)
}

fn container_bytes(len: usize) -> usize {
    match len {
        0..=15 => 1,
        16..=0xffff => 3,
        0x1_0000.. => 5,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::execution::{ExecutionContext, ExecutionResult, NodeMetrics};

    fn nested(depth: usize) -> Value {
        (0..depth).fold(json!(1), |inner, _| json!([inner]))
    }

    #[test]
    fn a_value_at_the_depth_limit_is_kept_and_one_below_it_is_named() {
        assert!(check_value("vars.x", &nested(DEPTH_MAX - 1)).is_ok());
        let value = json!({"a": [1, {"list of": nested(DEPTH_MAX)}], "b": 1});
        let error = check_value("vars.x", &value).unwrap_err();
        let below = "[0]".repeat(DEPTH_MAX - 3);
        assert_eq!(
            error.to_string(),
            format!("cannot store vars.x.a[1][\"list of\"]{below}: it is nested deeper than 100 levels")
        );
        assert!(is_too_deep(&nested(DEPTH_MAX)) && !is_too_deep(&nested(DEPTH_MAX - 1)));
    }

    #[test]
    fn a_value_that_no_stack_could_hold_is_refused_and_dropped() {
        let mut value = json!(1);
        for _ in 0..1_000_000 {
            value = Value::Array(vec![value]);
        }
        assert!(check_value("vars.x", &value).unwrap_err().path.starts_with("vars.x[0][0]"));
        dismantle(copied(&value));
        dismantle(value);
        let mut deep = json!({"a": [1, {"b": null}], "c": nested(DEPTH_MAX), "d": {}});
        assert_eq!(copied(&deep), deep);
        deep["c"] = json!(1);
        assert_eq!(copied(&deep), deep);
    }

    #[test]
    fn a_value_is_measured_before_it_is_encoded() {
        let text = "x".repeat(1_000);
        let value = json!([text, text]);
        assert_eq!(Walk::new(0).over("vars.x", &value, 2_007), Ok(2_007));
        let error = Walk::new(0).over("vars.x", &value, 2_006).unwrap_err();
        assert_eq!(error.to_string(), "cannot store vars.x: it takes more than 2006 bytes");
    }

    #[cfg(feature = "store")]
    #[test]
    fn the_measure_is_the_length_of_the_encoding() {
        let long = |len: usize| "x".repeat(len);
        for value in [
            json!([null, true, 0, 127, 128, 255, 256, 65_535, 65_536, u32::MAX, 1_u64 << 32, u64::MAX]),
            json!([-1, -32, -33, -128, -129, -32_768, -32_769, i32::MIN, i64::from(i32::MIN) - 1, i64::MIN]),
            json!([0.5, -0.0, 1e300, long(31), long(32), long(255), long(256), long(65_535), long(65_536)]),
            json!(vec![1; 15]),
            json!(vec![1; 16]),
            json!(vec![1; 65_535]),
            json!(vec![1; 65_536]),
            json!({"": {}, "a": [], (long(40)): [[{"b": 1}]]}),
            Value::Object((0..16).map(|n| (n.to_string(), json!(n))).collect()),
        ] {
            assert_eq!(check_value("x", &value).unwrap(), rmp_serde::to_vec(&value).unwrap().len());
        }
    }

    #[test]
    fn an_odd_key_is_escaped_and_shortened_in_a_path() {
        for (key, shown) in [
            ("plain-key_1", "vars.plain-key_1".to_owned()),
            ("", "vars[\"\"]".to_owned()),
            ("a.b\u{1b}[2J\"", "vars[\"a.b\\u{1b}[2J\\\"\"]".to_owned()),
            (&"é".repeat(1_000), format!("vars[\"{}…\"]", "é".repeat(30))),
        ] {
            assert_eq!(format!("vars{}", Step::Key(key)), shown);
        }
    }

    #[test]
    fn the_items_of_an_append_count_from_where_it_starts() {
        let refused = Walk::new(7).over("vars.x", &json!([1, nested(DEPTH_MAX)]), 1_000).unwrap_err();
        assert!(refused.path.starts_with("vars.x[8][0]"), "{refused}");
    }

    #[test]
    fn no_crate_of_this_workspace_makes_numbers_texts() {
        assert!(!*WRITTEN_AS_TEXT);
        assert_eq!(json!(1.5), serde_json::from_str::<Value>("1.50").unwrap());
    }

    #[test]
    fn a_checkpoint_names_the_value_that_it_cannot_keep() {
        let mut ctx = ExecutionContext::new(uuid::Uuid::from_u128(1));
        let id = uuid::Uuid::from_u128(5);
        assert_eq!(check_checkpoint(&ctx.create_checkpoint()), Ok(()));
        let metrics = NodeMetrics { cost_usd: Some(f64::NAN), ..NodeMetrics::default() };
        let node =
            NodeExecutionResult::new().complete(ExecutionResult::Success(json!(1))).with_metrics(metrics);
        ctx.record_node_result(id, node);
        let error = check_checkpoint(&ctx.create_checkpoint()).unwrap_err();
        assert_eq!(error.path, format!("nodes.{id}.metrics.cost_usd"));
        assert_eq!(error.why, "NaN is no number that JSON can hold");
        ctx.set_variable("deep".into(), json!({"y": nested(DEPTH_MAX)}));
        let error = check_checkpoint(&ctx.create_checkpoint()).unwrap_err();
        assert!(error.path.starts_with("vars.deep.y[0]"), "{error}");
    }
}
