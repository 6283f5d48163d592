//! One variable's value, with appends that share everything that was there before.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{copied, dismantle, is_too_deep, read_exact};

/// A JSON value that is cheap to copy and cheap to append to.
///
/// A list or a text that grew by [`append`](super::ExecutionContext::append) is kept as a chain: what was there, and
/// what was added. Appending costs the added bytes even while older states share the value. The whole value is put
/// together when somebody first reads it, and kept.
#[derive(Clone)]
pub struct Variable(Arc<Shape>);

enum Shape {
    Whole(Value),
    Grown(Growth),
}

struct Growth {
    /// What was there before. `None` only while the chain is being taken apart.
    before: Option<Variable>,
    added: Addition,
    /// Items of the list, or bytes of the text, after the addition.
    len: usize,
    whole: OnceLock<Value>,
}

/// What an append added.
#[derive(Debug, Clone, PartialEq)]
pub enum Addition {
    /// Items at the end of a list.
    Items(Vec<Value>),
    /// Text at the end of a text.
    Text(String),
}

/// An append to something that is neither a list nor a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot append to `{name}`: it is {found}, and only a list takes any value and a text takes text")]
pub struct AppendError {
    /// The variable.
    pub name: String,
    /// What it holds, as a word with its article.
    pub found: &'static str,
}

impl Variable {
    /// Returns the value. The first read after an append costs the size of the value, the next ones nothing.
    pub fn value(&self) -> &Value {
        match &*self.0 {
            Shape::Whole(value) => value,
            Shape::Grown(growth) => growth.whole.get_or_init(|| self.assemble()),
        }
    }

    /// Returns the value, copying it only if somebody else holds it too.
    pub fn into_value(self) -> Value {
        match Arc::try_unwrap(self.0) {
            Ok(Shape::Whole(ref mut value)) => std::mem::take(value),
            Ok(grown @ Shape::Grown(_)) => copied(Self(Arc::new(grown)).value()),
            Err(shared) => copied(Self(shared).value()),
        }
    }

    /// Returns the number of items of a list, or of bytes of a text.
    pub fn len(&self) -> Option<usize> {
        match &*self.0 {
            Shape::Whole(Value::Array(items)) => Some(items.len()),
            Shape::Whole(Value::String(text)) => Some(text.len()),
            Shape::Whole(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
            Shape::Grown(growth) => Some(growth.len),
        }
    }

    /// Tells whether this is an empty list or text.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Adds `value` at the end: any value to a list, a text to a text.
    ///
    /// Costs the added value. Hands the value back with what was found where it cannot be appended.
    pub(super) fn append(&mut self, value: Value) -> Result<(), &'static str> {
        let added = match (self.kind(), value) {
            // It cannot be saved, and no chain is to hold what the usual ways of copying and dropping recurse over.
            (Kind::List, value) if is_too_deep(&value) => {
                let mut whole = std::mem::replace(self, Self::from(Value::Null)).into_value();
                Addition::Items(vec![value]).push_onto(&mut whole);
                *self = Self::from(whole);
                return Ok(());
            }
            (Kind::List, value) => Addition::Items(vec![value]),
            (Kind::Text, Value::String(text)) => Addition::Text(text),
            (Kind::Text, _) => return Err("a text"),
            (Kind::Other(found), _) => return Err(found),
        };
        let len = self.len().unwrap_or(0) + added.len();
        if let Some(shape) = Arc::get_mut(&mut self.0) {
            shape.push(added, len);
        } else {
            let before = Some(self.clone());
            *self = Self(Arc::new(Shape::Grown(Growth { before, added, len, whole: OnceLock::new() })));
        }
        Ok(())
    }

    /// Returns what was appended to `older` to make this value, oldest first, or `None` if it was not made so.
    ///
    /// Looks at the chain first, which costs the number of appends; two values that share no chain are compared.
    pub fn appended_since(&self, older: &Variable) -> Option<Vec<Addition>> {
        let start = older.len()?;
        if self.len()? <= start {
            return None;
        }
        self.chain_since(older, start).or_else(|| self.suffix_after(older, start))
    }

    fn chain_since(&self, older: &Variable, start: usize) -> Option<Vec<Addition>> {
        let mut additions = Vec::new();
        let mut at = self;
        while !Arc::ptr_eq(&at.0, &older.0) {
            let Shape::Grown(growth) = &*at.0 else { return None };
            if growth.len <= start {
                return None;
            }
            additions.push(growth.added.clone());
            at = growth.before.as_ref()?;
        }
        additions.reverse();
        Some(additions)
    }

    fn suffix_after(&self, older: &Variable, start: usize) -> Option<Vec<Addition>> {
        match (older.value(), self.value()) {
            (_, new) if is_too_deep(new) => None,
            (Value::Array(old), Value::Array(new)) if !old.is_empty() && new.starts_with(old) => {
                Some(vec![Addition::Items(new[start..].to_vec())])
            }
            (Value::String(old), Value::String(new)) if !old.is_empty() && new.starts_with(old.as_str()) => {
                Some(vec![Addition::Text(new[start..].to_owned())])
            }
            _ => None,
        }
    }

    fn assemble(&self) -> Value {
        let mut additions = Vec::new();
        let mut at = self;
        let mut whole = loop {
            match &*at.0 {
                Shape::Whole(value) => break copied(value),
                Shape::Grown(growth) => {
                    if let Some(known) = growth.whole.get() {
                        break copied(known);
                    }
                    additions.push(&growth.added);
                    at = growth.before.as_ref().expect("only a chain being dropped has no past");
                }
            }
        };
        for added in additions.into_iter().rev() {
            added.clone().push_onto(&mut whole);
        }
        whole
    }

    fn kind(&self) -> Kind {
        match &*self.0 {
            Shape::Whole(value) => match value {
                Value::Array(_) => Kind::List,
                Value::String(_) => Kind::Text,
                Value::Null => Kind::Other("null"),
                Value::Bool(_) => Kind::Other("a boolean"),
                Value::Number(_) => Kind::Other("a number"),
                Value::Object(_) => Kind::Other("an object"),
            },
            Shape::Grown(growth) => match growth.added {
                Addition::Items(_) => Kind::List,
                Addition::Text(_) => Kind::Text,
            },
        }
    }
}

enum Kind {
    List,
    Text,
    Other(&'static str),
}

impl Shape {
    /// Grows in place; only for a shape that nobody else holds.
    fn push(&mut self, added: Addition, len_after: usize) {
        match self {
            Shape::Whole(value) => added.push_onto(value),
            Shape::Grown(growth) => {
                if let Some(whole) = growth.whole.get_mut() {
                    added.clone().push_onto(whole);
                }
                match (&mut growth.added, added) {
                    (Addition::Items(items), Addition::Items(more)) => items.extend(more),
                    (Addition::Text(text), Addition::Text(more)) => text.push_str(&more),
                    (Addition::Items(_), Addition::Text(_)) | (Addition::Text(_), Addition::Items(_)) => {
                        unreachable!("a list grows by items and a text by text")
                    }
                }
                growth.len = len_after;
            }
        }
    }
}

impl Addition {
    pub(crate) fn len(&self) -> usize {
        match self {
            Addition::Items(items) => items.len(),
            Addition::Text(text) => text.len(),
        }
    }

    /// Returns the addition as a value of its own: a list of the items, or the text.
    pub fn into_value(self) -> Value {
        match self {
            Addition::Items(items) => Value::Array(items),
            Addition::Text(text) => Value::String(text),
        }
    }

    fn push_onto(self, whole: &mut Value) {
        match (whole, self) {
            (Value::Array(items), Addition::Items(more)) => items.extend(more),
            (Value::String(text), Addition::Text(more)) => text.push_str(&more),
            _ => unreachable!("a list grows by items and a text by text"),
        }
    }
}

/// Takes a long chain apart in a loop: the derived drop would use a stack frame for each link.
impl Drop for Growth {
    fn drop(&mut self) {
        drop_flat(self.whole.take().unwrap_or_default());
        if let Addition::Items(items) = &mut self.added {
            drop_flat(Value::Array(std::mem::take(items)));
        }
        let mut next = self.before.take();
        while let Some(variable) = next {
            next = Arc::into_inner(variable.0).and_then(|mut shape| match &mut shape {
                Shape::Grown(growth) => growth.before.take(),
                Shape::Whole(_) => None,
            });
        }
    }
}

/// What is nested too deep to be stored may be nested too deep for the derived drop, which recurses.
impl Drop for Shape {
    fn drop(&mut self) {
        if let Shape::Whole(value) = self {
            drop_flat(std::mem::take(value));
        }
    }
}

fn drop_flat(value: Value) {
    if is_too_deep(&value) {
        dismantle(value);
    }
}

impl From<Value> for Variable {
    fn from(value: Value) -> Self {
        Self(Arc::new(Shape::Whole(value)))
    }
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value().fmt(f)
    }
}

impl PartialEq for Variable {
    fn eq(&self, other: &Self) -> bool {
        // Lengths first: they tell an appended value from its past without putting it together.
        Arc::ptr_eq(&self.0, &other.0) || (self.len() == other.len() && self.value() == other.value())
    }
}

impl Serialize for Variable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Variable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_exact(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grown(start: Value, items: impl IntoIterator<Item = Value>) -> Variable {
        let mut variable = Variable::from(start);
        for item in items {
            let _shared = variable.clone();
            variable.append(item).unwrap();
        }
        variable
    }

    #[test]
    fn an_appended_list_reads_as_the_whole_list() {
        assert_eq!(grown(json!([1]), [json!(2), json!([3])]).value(), &json!([1, 2, [3]]));
        assert_eq!(grown(json!("a"), [json!("b"), json!("c")]).value(), &json!("abc"));
    }

    #[test]
    fn an_append_leaves_older_copies_alone() {
        let mut variable = Variable::from(json!([1]));
        let older = variable.clone();
        variable.append(json!(2)).unwrap();
        variable.append(json!(3)).unwrap();
        assert_eq!(older.value(), &json!([1]));
        assert_eq!(variable.value(), &json!([1, 2, 3]));
    }

    #[test]
    fn an_append_in_place_also_updates_a_value_already_read() {
        let older = Variable::from(json!(["a"]));
        let mut variable = older.clone();
        variable.append(json!("b")).unwrap();
        assert_eq!(variable.value(), &json!(["a", "b"]));
        variable.append(json!("c")).unwrap();
        assert_eq!(variable.value(), &json!(["a", "b", "c"]));
        assert_eq!(variable.len(), Some(3));
    }

    #[test]
    fn what_was_appended_is_found_through_the_chain() {
        let older = Variable::from(json!([]));
        let mut newer = older.clone();
        newer.append(json!(1)).unwrap();
        let middle = newer.clone();
        newer.append(json!(2)).unwrap();
        assert_eq!(
            newer.appended_since(&older),
            Some(vec![Addition::Items(vec![json!(1)]), Addition::Items(vec![json!(2)])])
        );
        assert_eq!(newer.appended_since(&middle), Some(vec![Addition::Items(vec![json!(2)])]));
        assert_eq!(older.appended_since(&newer), None);
    }

    #[test]
    fn what_was_appended_is_found_by_comparing_when_there_is_no_chain() {
        let newer = Variable::from(json!([1, 2, 3]));
        assert_eq!(
            newer.appended_since(&json!([1]).into()),
            Some(vec![Addition::Items(vec![json!(2), json!(3)])])
        );
        assert_eq!(newer.appended_since(&json!([2]).into()), None);
        assert_eq!(
            Variable::from(json!("añb")).appended_since(&json!("a").into()),
            Some(vec![Addition::Text("ñb".into())])
        );
    }

    #[test]
    fn two_branches_that_grew_from_one_list_are_not_taken_for_each_other() {
        let root = Variable::from(json!([0]));
        let mut left = root.clone();
        left.append(json!("left")).unwrap();
        let mut right = root.clone();
        right.append(json!("right")).unwrap();
        let shorter = right.clone();
        right.append(json!("more")).unwrap();
        assert_ne!(left, shorter);
        assert_eq!(right.appended_since(&left), None);
    }

    #[test]
    fn only_lists_and_texts_grow() {
        assert_eq!(Variable::from(json!(1)).append(json!(2)), Err("a number"));
        assert_eq!(Variable::from(json!("text")).append(json!(2)), Err("a text"));
        assert_eq!(Variable::from(json!({})).append(json!(2)), Err("an object"));
    }

    #[test]
    fn a_chain_of_a_million_appends_is_dropped_without_a_deep_stack() {
        let mut variable = Variable::from(json!([]));
        let mut shared = Vec::new();
        for i in 0..1_000_000 {
            shared.push(variable.clone());
            variable.append(json!(i)).unwrap();
        }
        drop(shared);
        assert_eq!(variable.len(), Some(1_000_000));
        drop(variable);
    }

    #[test]
    fn a_value_that_is_nested_a_million_deep_is_dropped_without_a_deep_stack() {
        let deep = || (0..1_000_000).fold(json!(1), |inner, _| Value::Array(vec![inner]));
        drop(Variable::from(deep()));
        let mut grown = Variable::from(json!([]));
        let older = grown.clone();
        grown.append(deep()).unwrap();
        assert_eq!(older.len(), Some(0));
        assert_eq!(grown.appended_since(&older), None);
        let shared = grown.clone();
        grown.append(json!(1)).unwrap();
        assert_eq!(grown.value().as_array().unwrap().len(), 2);
        drop(shared);
        drop_flat(grown.into_value());
        let mut longer = Value::Array(vec![json!("a"), deep()]);
        assert_eq!(Variable::from(longer.take()).appended_since(&json!(["a"]).into()), None);
    }
}
