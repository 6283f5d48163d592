//! What changed within one value, by path.

use serde::Serialize;
use serde_json::{Map, Value};
use similar::{Algorithm, DiffOp, TextDiff, capture_diff_slices};

/// One change within a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueEdit {
    /// Where: a JSON pointer (RFC 6901) within the value, empty for all of it. It points into the newer value, or for
    /// what was removed into the older one: they number the items of a list each in its own way.
    pub path: String,
    /// What.
    #[serde(flatten)]
    pub change: ValueChange,
    /// Where a patch does it, once it has done all edits before this one.
    #[serde(skip)]
    pub(super) place: String,
}

/// What happened to a value or a part of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum ValueChange {
    /// It is new. In a list, what follows moves.
    Added {
        /// The newer value.
        to: Value,
    },
    /// It is gone. In a list, what follows moves.
    Removed {
        /// The older value.
        from: Value,
    },
    /// It is another.
    Replaced {
        /// The older value.
        from: Value,
        /// The newer value.
        to: Value,
        /// The hunks of a unified diff, where both are texts and one has several lines.
        #[serde(skip_serializing_if = "Option::is_none")]
        lines: Option<String>,
    },
    /// A list goes on behind its old end.
    AppendedItems {
        /// How many items stand before.
        start: usize,
        /// What was appended.
        items: Vec<Value>,
    },
    /// A text goes on behind its old end.
    AppendedText {
        /// How many bytes stand before.
        start: usize,
        /// What was appended.
        text: String,
    },
}

impl ValueEdit {
    pub(super) fn at_root(change: ValueChange) -> Self {
        Self { path: String::new(), change, place: String::new() }
    }

    pub(super) fn added(to: Value) -> Self {
        Self::at_root(ValueChange::Added { to })
    }

    pub(super) fn removed(from: Value) -> Self {
        Self::at_root(ValueChange::Removed { from })
    }
}

/// Returns what changed from one value to another; nothing where they are equal.
///
/// Values are equal as the maps of a state compare them: numbers exactly, objects whatever the order of their keys.
/// Applied one after the other, each at its place, the edits turn the one into the other.
pub(super) fn compare(before: &Value, after: &Value) -> Vec<ValueEdit> {
    let mut walk = Walk::default();
    walk.value(before, after);
    walk.edits
}

/// Returns a pointer to an entry of what a pointer names.
pub(super) fn child(parent: &str, token: &str) -> String {
    let mut pointer = parent.to_owned();
    enter(&mut pointer, token);
    pointer
}

/// A walk through two values at once.
#[derive(Default)]
struct Walk {
    /// Where it is in the older value.
    from: String,
    /// Where it is in the newer value, which is also where a patch finds it: all before it is as in the newer already.
    to: String,
    edits: Vec<ValueEdit>,
}

impl Walk {
    fn value(&mut self, before: &Value, after: &Value) {
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => self.objects(before, after),
            (Value::Array(before), Value::Array(after)) => self.lists(before, after),
            (Value::String(before), Value::String(after)) => self.texts(before, after),
            (before, after) if before == after => {}
            (before, after) => self.replace(before.clone(), after.clone(), None),
        }
    }

    fn objects(&mut self, before: &Map<String, Value>, after: &Map<String, Value>) {
        for (key, was) in before {
            self.within(key, key, |walk| match after.get(key) {
                Some(is) => walk.value(was, is),
                None => walk.remove(was),
            });
        }
        for (key, is) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
            self.within(key, key, |walk| walk.add(is));
        }
    }

    fn lists(&mut self, before: &[Value], after: &[Value]) {
        // What lists do most needs no search.
        if after.starts_with(before) {
            return self.append(after, before.len());
        }
        // The search gives up on the shortest answer where it would take long, so that its cost is bounded.
        for operation in capture_diff_slices(Algorithm::Myers, before, after) {
            if matches!(operation, DiffOp::Equal { .. }) {
                continue;
            }
            let (old, new) = (operation.old_range(), operation.new_range());
            let both = old.len().min(new.len());
            // Items that stand where others stood are compared with those, however much they differ.
            for (then, now) in old.clone().zip(new.clone()) {
                self.item(then, now, |walk| walk.value(&before[then], &after[now]));
            }
            for then in old.skip(both) {
                self.item(then, new.start + both, |walk| walk.remove(&before[then]));
            }
            if new.end == after.len() {
                self.append(after, new.start + both);
                continue;
            }
            for now in new.skip(both) {
                self.item(now, now, |walk| walk.add(&after[now]));
            }
        }
    }

    fn texts(&mut self, before: &str, after: &str) {
        if before == after {
            return;
        }
        if !before.is_empty() && after.starts_with(before) {
            let (start, text) = (before.len(), after[before.len()..].to_owned());
            return self.push(ValueChange::AppendedText { start, text });
        }
        let has_lines = |text: &str| text.trim_end_matches('\n').contains('\n');
        let lines = (has_lines(before) || has_lines(after)).then(|| line_diff(before, after));
        self.replace(before.into(), after.into(), lines);
    }

    fn add(&mut self, is: &Value) {
        self.push(ValueChange::Added { to: is.clone() });
    }

    fn remove(&mut self, was: &Value) {
        let (path, place) = (self.from.clone(), self.to.clone());
        self.edits.push(ValueEdit { path, change: ValueChange::Removed { from: was.clone() }, place });
    }

    fn replace(&mut self, from: Value, to: Value, lines: Option<String>) {
        self.push(ValueChange::Replaced { from, to, lines });
    }

    fn append(&mut self, after: &[Value], start: usize) {
        if start < after.len() {
            self.push(ValueChange::AppendedItems { start, items: after[start..].to_vec() });
        }
    }

    fn push(&mut self, change: ValueChange) {
        self.edits.push(ValueEdit { path: self.to.clone(), change, place: self.to.clone() });
    }

    fn item(&mut self, from: usize, to: usize, work: impl FnOnce(&mut Self)) {
        self.within(&from.to_string(), &to.to_string(), work);
    }

    /// Works one level deeper.
    fn within(&mut self, from: &str, to: &str, work: impl FnOnce(&mut Self)) {
        let (from_len, to_len) = (self.from.len(), self.to.len());
        enter(&mut self.from, from);
        enter(&mut self.to, to);
        work(self);
        self.from.truncate(from_len);
        self.to.truncate(to_len);
    }
}

/// Returns the hunks of a unified diff. A line ends with a line feed and nothing else: what a progress bar writes over
/// itself is one line.
fn line_diff(before: &str, after: &str) -> String {
    let lines = |text| str::split_inclusive(text, '\n').collect::<Vec<_>>();
    let (before, after) = (lines(before), lines(after));
    TextDiff::configure().newline_terminated(true).diff_slices(&before, &after).unified_diff().to_string()
}

/// Lengthens a pointer by a token.
fn enter(pointer: &mut String, token: &str) {
    pointer.push('/');
    for letter in token.chars() {
        match letter {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            letter => pointer.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the edits as people write them: a sign, a path, and what there was or is.
    fn edits(before: Value, after: Value) -> Vec<String> {
        let told = |edit: ValueEdit| match edit.change {
            ValueChange::Added { to } => format!("+{} {to}", edit.path),
            ValueChange::Removed { from } => format!("-{} {from}", edit.path),
            ValueChange::Replaced { from, to, .. } => format!("~{} {from} {to}", edit.path),
            ValueChange::AppendedItems { start, items } => {
                format!(">{} {start} {}", edit.path, json!(items))
            }
            ValueChange::AppendedText { start, text } => format!(">{} {start} {text:?}", edit.path),
        };
        compare(&before, &after).into_iter().map(told).collect()
    }

    #[test]
    fn an_entry_is_named_by_its_path() {
        let before = json!({"keep": {"deep": [1, {"x": null}]}, "gone": 1, "a/b~c": "old"});
        let after = json!({"a/b~c": "new", "keep": {"deep": [1, {"x": false}]}, "": 2});
        assert_eq!(
            edits(before, after),
            ["~/keep/deep/1/x null false", "-/gone 1", "~/a~1b~0c \"old\" \"new\"", "+/ 2"]
        );
    }

    #[test]
    fn equal_values_have_no_edits_whatever_the_order_of_their_keys() {
        let text = r#"{"b": [1, "x"], "a": {"c": null}}"#;
        let other = r#"{"a": {"c": null}, "b": [1, "x"]}"#;
        let [one, two] = [text, other].map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(compare(&one, &two), []);
    }

    #[test]
    fn numbers_are_compared_to_their_last_digit_and_by_their_kind() {
        assert_eq!(edits(json!(u64::MAX), json!(u64::MAX - 1)).len(), 1);
        assert_eq!(edits(json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64)).len(), 1);
        assert_eq!(edits(json!(1), json!(1.0)), ["~ 1 1.0"]);
    }

    #[test]
    fn the_tail_that_a_list_or_text_grew_by_is_an_append() {
        assert_eq!(edits(json!([1, 2]), json!([1, 2, 3, 4])), ["> 2 [3,4]"]);
        assert_eq!(edits(json!([]), json!([1])), ["> 0 [1]"]);
        assert_eq!(edits(json!([1, 1]), json!([1, 1, 1])), ["> 2 [1]"]);
        assert_eq!(edits(json!({"log": "añ"}), json!({"log": "añb\n"})), [">/log 3 \"b\\n\""]);
        assert_eq!(edits(json!(""), json!("x")), ["~ \"\" \"x\""]);
    }

    #[test]
    fn an_item_in_the_middle_moves_the_others_and_rewrites_none() {
        assert_eq!(edits(json!([1, 2, 3]), json!([0, 1, 2, 3])), ["+/0 0"]);
        assert_eq!(edits(json!([1, 2, 3]), json!([1, 3])), ["-/1 2"]);
        assert_eq!(edits(json!(["a", "b", "c"]), json!(["b", "c", "d"])), ["-/0 \"a\"", "> 2 [\"d\"]"]);
    }

    #[test]
    fn a_removed_item_is_numbered_as_it_was_and_a_new_one_as_it_is() {
        let before = json!([0, {"k": 1, "x": 1}, 2, 3, 4]);
        let after = json!([{"k": 1}, 2, 5, 3]);
        assert_eq!(edits(before, after), ["~/0 0 {\"k\":1}", "-/1 {\"k\":1,\"x\":1}", "+/2 5", "-/4 4"]);
    }

    #[test]
    fn a_text_of_several_lines_is_also_told_line_by_line() {
        let before = "title\none\ntwo\nthree\nfour\nfive\nend\n";
        let edits = compare(&json!(before), &json!(before.replace("three", "3")));
        let ValueChange::Replaced { lines: Some(lines), .. } = &edits[0].change else { panic!("{edits:?}") };
        assert_eq!(lines, "@@ -1,7 +1,7 @@\n title\n one\n two\n-three\n+3\n four\n five\n end\n");
        let torn = compare(&json!("1%\r2%\rdone\nx"), &json!("1%\rdone\nx\n"));
        let ValueChange::Replaced { lines: Some(lines), .. } = &torn[0].change else { panic!("{torn:?}") };
        let expected = "@@ -1,2 +1,2 @@\n-1%\r2%\rdone\n-x\n\\ No newline at end of file\n+1%\rdone\n+x\n";
        assert_eq!(lines, expected);
        let short = compare(&json!("one\n"), &json!("two\n"));
        assert!(matches!(&short[0].change, ValueChange::Replaced { lines: None, .. }));
    }

    #[test]
    fn a_change_is_told_flat_as_json() {
        let edits = compare(&json!({"n": u64::MAX}), &json!({"n": 1}));
        assert_eq!(json!(edits), json!([{"path": "/n", "change": "replaced", "from": u64::MAX, "to": 1}]));
    }
}
