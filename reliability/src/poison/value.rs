//! Values that were made to be lost, changed or fatal, and what must become of each.

use serde_json::{Map, Number, Value, json};

/// Levels that a value may have.
const DEPTH_MAX: usize = 100;

/// Depths that no stack is enough for.
const BOTTOMLESS: [usize; 2] = [20_000, 200_000];

/// Numbers at the edges of what 64 bits hold, exactly.
const INTEGERS: [i64; 8] =
    [0, -1, i64::MIN, i64::MAX, (1 << 53) - 1, (1 << 53) + 1, -(1 << 53) - 1, u32::MAX as i64];
const FLOATS: [f64; 9] =
    [0.1, -0.0, 5e-324, -5e-324, f64::MAX, f64::MIN, f64::EPSILON, 9_007_199_254_740_993.0, 1e22];

/// Texts that some reader or other changes, cuts or takes for something else.
const TEXTS: [&str; 16] = [
    "",
    "\u{0}",
    "a\u{0}b",
    "\u{2028}\u{2029}\u{85}",
    "\u{feff}begins with a mark",
    "\u{fffe}\u{ffff}\u{10ffff}",
    "e\u{301} \u{e9}",
    "\u{202e}right to left",
    "\u{1b}[2J\u{7}\r\n\t\u{7f}",
    "🦦👩\u{200d}🚀",
    "\\ud800 is no escape here",
    "${{ secrets.TOKEN }}{% raw %}{{",
    "'; DROP TABLE checkpoints; --",
    "$serde_json::private::Number",
    "null",
    "18446744073709551616",
];

/// A value, and the way down into it.
pub(super) struct Hostile {
    pub(super) value: Value,
    /// The outermost first; no more than are looked at.
    steps: Vec<Step>,
    depth: usize,
}

/// The way into a list or an object.
struct Step {
    /// To what is nested on.
    inner: String,
    /// To what stands before everything else.
    first: String,
}

impl Hostile {
    /// Returns the steps to the first part that lies too deep, if one does where the value stands `above` levels down.
    pub(super) fn too_deep(&self, above: usize) -> Option<String> {
        let last = self.steps.get(DEPTH_MAX - above - 1)?;
        let steps = self.steps[..DEPTH_MAX - above - 1].iter().map(|step| step.inner.as_str());
        Some(steps.chain([last.first.as_str()]).collect())
    }

    /// Tells whether reading, copying or dropping it in the usual way ends a process.
    pub(super) fn is_bottomless(&self) -> bool {
        self.depth >= BOTTOMLESS[0]
    }
}

/// Draws a value.
pub(super) fn hostile(draw: &mut fastrand::Rng) -> Hostile {
    let depth = match draw.u16(..1_000) {
        0..=399 => draw.usize(0..=8),
        400..=949 => draw.usize(DEPTH_MAX - 3..=DEPTH_MAX + 2),
        // `serde_json` writes these, and does not read them.
        950..=994 => draw.usize(120..1_000),
        995..=998 => BOTTOMLESS[0],
        _ => BOTTOMLESS[1],
    };
    let mut value = match depth {
        // A list or an object at the bottom would be one level more.
        DEPTH_MAX.. | 97.. => scalar(draw),
        _ => wide(draw),
    };
    let mut steps = Vec::new();
    for level in 0..depth {
        let before = if draw.u8(..8) == 0 { draw.usize(1..4) } else { 0 };
        let step;
        (value, step) = wrapped(value, before, draw);
        if depth - level <= DEPTH_MAX {
            steps.push(step);
        }
    }
    steps.reverse();
    Hostile { value, steps, depth }
}

/// Puts a value behind some others into a list or an object. Returns that, and the way back to the value.
fn wrapped(value: Value, before: usize, draw: &mut fastrand::Rng) -> (Value, Step) {
    if draw.bool() {
        let mut items: Vec<Value> = (0..before).map(|_| scalar(draw)).collect();
        items.push(value);
        return (Value::Array(items), Step { inner: format!("[{before}]"), first: "[0]".to_owned() });
    }
    let key = |n: usize, draw: &mut fastrand::Rng| match n {
        0 => "first".to_owned(),
        _ => format!("{n} {}", text(draw)),
    };
    let mut entries: Map<String, Value> = (0..before).map(|n| (key(n, draw), scalar(draw))).collect();
    entries.insert("in".to_owned(), value);
    let first = if before == 0 { ".in" } else { ".first" };
    (Value::Object(entries), Step { inner: ".in".to_owned(), first: first.to_owned() })
}

fn wide(draw: &mut fastrand::Rng) -> Value {
    match draw.u8(..12) {
        0 => Value::Array((0..draw.usize(..3_000)).map(|_| number(draw)).collect()),
        1 => Value::Object(
            (0..draw.usize(..700)).rev().map(|n| (format!("{}{n}", text(draw)), scalar(draw))).collect(),
        ),
        2 => json!(text(draw).repeat(draw.usize(..3_000))),
        3 => Value::Object(Map::from_iter([(text(draw).repeat(draw.usize(..2_000)), scalar(draw))])),
        4 => json!([[], {}, [[]], [{}], {"": {}}, "", null]),
        5 => json!("x".repeat([31, 32, 255, 256, 65_535, 65_536, 1 << 20][draw.usize(..7)])),
        6 => Value::Array(vec![Value::Null; [15, 16, 65_535, 65_536][draw.usize(..4)]]),
        _ => Value::Array((0..draw.usize(..6)).map(|_| scalar(draw)).collect()),
    }
}

fn scalar(draw: &mut fastrand::Rng) -> Value {
    match draw.u8(..5) {
        0 => json!(draw.bool()),
        1 => Value::Null,
        2 => json!(text(draw)),
        _ => number(draw),
    }
}

fn number(draw: &mut fastrand::Rng) -> Value {
    match draw.u8(..6) {
        0 => json!(INTEGERS[draw.usize(..INTEGERS.len())]),
        1 => json!(u64::MAX - draw.u64(..3)),
        2 => json!(FLOATS[draw.usize(..FLOATS.len())]),
        3 => json!(draw.i64(..)),
        4 => json!(draw.u64(..) >> draw.u32(..64)),
        // Any float there is, but those that JSON has not.
        _ => Number::from_f64(f64::from_bits(draw.u64(..))).map_or(json!(0.5), Value::Number),
    }
}

/// Draws a text.
pub(super) fn text(draw: &mut fastrand::Rng) -> String {
    match draw.u8(..3) {
        0 => (0..draw.usize(..12)).map(|_| draw.char('\0'..=char::MAX)).collect(),
        _ => TEXTS[draw.usize(..TEXTS.len())].to_owned(),
    }
}

/// Draws JSON as a text, and tells whether a reader that keeps everything can take it.
pub(super) fn json_text(draw: &mut fastrand::Rng) -> (String, bool) {
    let (part, is_kept) = match draw.u8(..10) {
        0 => (format!("{}{}", u64::MAX, draw.u8(..)), false),
        1 => (format!("-{}", 1_u128 << draw.u32(64..127)), false),
        2 => (format!("{}e{}", draw.u8(1..), draw.u32(310..999)), false),
        3 => (format!("{}e-{}", draw.u8(1..), draw.u32(330..999)), false),
        4 => (format!(r#"{{"k":1,"j":{},"\u006b":2}}"#, draw.u8(..)), false),
        5 => (format!(r#""\ud8{:02x}""#, draw.u8(..)), false),
        6 => (format!(r#"{{"\udc{:02x}":0}}"#, draw.u8(..)), false),
        7 => (format!("{}1{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX)), false),
        8 => (format!(r#"{{"z":{},"a":{}}}"#, u64::MAX, i64::MIN), true),
        _ => (wide(draw).to_string(), true),
    };
    (format!(r#"{{"a":[0,{part}]}}"#), is_kept)
}

/// Drops a value of any depth.
pub(super) fn dismantle(value: Value) {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(entries) => open.extend(entries.into_iter().map(|(_, inner)| inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
