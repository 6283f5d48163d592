//! Persistent ordered maps: a copy is a pointer, a difference costs as much as the maps differ.

use std::borrow::Borrow;
use std::fmt::{self, Debug};
use std::ops::Index;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{NodeExecutionResult, NodeId, Variable};

/// The variables of an execution, by name.
pub type Variables = Map<String, Variable>;

/// The node results of an execution, by node.
pub type NodeResults = Map<NodeId, Shared<NodeExecutionResult>>;

/// How a [`Map`] keeps one value, so that copying it is cheap.
pub trait Cell: Clone + PartialEq {
    /// What the map's users see.
    type Value: Clone;

    /// Wraps a value.
    fn new(value: Self::Value) -> Self;
    /// Looks at the value.
    fn value(&self) -> &Self::Value;
    /// Takes the value out, copying it if it is shared.
    fn into_value(self) -> Self::Value;
}

/// A value behind a shared pointer.
#[derive(Debug, Clone)]
pub struct Shared<T>(Arc<T>);

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl<T: Clone + PartialEq> Cell for Shared<T> {
    type Value = T;

    fn new(value: T) -> Self {
        Self(Arc::new(value))
    }

    fn value(&self) -> &T {
        &self.0
    }

    fn into_value(self) -> T {
        Arc::unwrap_or_clone(self.0)
    }
}

impl Cell for Variable {
    type Value = Value;

    fn new(value: Value) -> Self {
        value.into()
    }

    fn value(&self) -> &Value {
        Variable::value(self)
    }

    fn into_value(self) -> Value {
        Variable::into_value(self)
    }
}

/// A persistent map, ordered by key.
///
/// Cloning costs a pointer copy at any size; changing one entry costs the logarithm of the size; comparing two maps
/// that came from one another costs as much as they differ.
#[derive(Clone)]
pub struct Map<K, C>(imbl::OrdMap<K, C>);

/// One difference between two maps.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<'a, K, C> {
    /// Only the newer map has the key.
    Added(&'a K, &'a C),
    /// Only the older map has the key.
    Removed(&'a K, &'a C),
    /// Both have the key, with different values.
    Changed {
        /// The key.
        key: &'a K,
        /// The value in the older map.
        before: &'a C,
        /// The value in the newer map.
        after: &'a C,
    },
}

impl<K: Ord + Clone, C: Cell> Map<K, C> {
    /// Returns an empty map.
    pub fn new() -> Self {
        Self(imbl::OrdMap::new())
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether there is an entry for the key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Returns the key's value.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&C::Value>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(Cell::value)
    }

    /// Returns the key's value as the map keeps it: cheap to copy into another map.
    pub fn cell<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&C>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    /// Sets the key's value and returns the one before.
    ///
    /// The one before is copied if another state still shares it; [`set`](Map::set) does not look at it.
    pub fn insert(&mut self, key: K, value: C::Value) -> Option<C::Value> {
        self.0.insert(key, C::new(value)).map(Cell::into_value)
    }

    /// Sets the key's value, as a plain value or as another map's [`cell`](Map::cell).
    pub fn set(&mut self, key: K, cell: C) {
        self.0.insert(key, cell);
    }

    /// Removes the key and returns its value, copied if another state still shares it.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<C::Value>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key).map(Cell::into_value)
    }

    /// Removes the key, without a look at its value.
    pub(crate) fn unset<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove(key);
    }

    /// Removes every entry.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the entries in order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &C::Value)> {
        self.0.iter().map(|(key, cell)| (key, cell.value()))
    }

    /// Returns the entries as the map keeps them, in order of their keys.
    pub fn cells(&self) -> impl DoubleEndedIterator<Item = (&K, &C)> {
        self.0.iter()
    }

    /// Returns the keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.0.keys()
    }

    /// Returns the values in order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &C::Value> {
        self.0.values().map(Cell::value)
    }

    /// Returns what changed from this map to `newer`, in order of the keys.
    ///
    /// Costs as much as the two maps differ where one came from the other.
    pub fn changes_to<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = Change<'a, K, C>> {
        // Two copies of one map are told apart from two maps without a look inside.
        let items = (!self.0.ptr_eq(&newer.0)).then(|| self.0.diff(&newer.0));
        items.into_iter().flatten().map(|item| match item {
            DiffItem::Add(key, cell) => Change::Added(key, cell),
            DiffItem::Remove(key, cell) => Change::Removed(key, cell),
            DiffItem::Update { old: (key, before), new: (_, after) } => {
                Change::Changed { key, before, after }
            }
        })
    }

    pub(super) fn cell_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut C>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }
}

impl<K: Ord + Clone, C: Cell> Default for Map<K, C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, C: Cell> PartialEq for Map<K, C> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0) || self.0 == other.0
    }
}

impl<K: Debug, C: Cell> Debug for Map<K, C>
where
    K: Ord + Clone,
    C::Value: Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, C: Cell> FromIterator<(K, C::Value)> for Map<K, C> {
    fn from_iter<I: IntoIterator<Item = (K, C::Value)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(key, value)| (key, C::new(value))).collect())
    }
}

impl<K: Ord + Clone, C: Cell> Extend<(K, C::Value)> for Map<K, C> {
    fn extend<I: IntoIterator<Item = (K, C::Value)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.set(key, C::new(value));
        }
    }
}

impl<'a, K: Ord + Clone, C: Cell> IntoIterator for &'a Map<K, C> {
    type Item = (&'a K, &'a C::Value);
    type IntoIter = std::iter::Map<
        imbl::ordmap::Iter<'a, K, C, imbl::shared_ptr::DefaultSharedPtr>,
        fn((&'a K, &'a C)) -> Self::Item,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, cell)| (key, cell.value()))
    }
}

impl<K: Ord + Clone + Borrow<Q>, Q: Ord + ?Sized, C: Cell> Index<&Q> for Map<K, C> {
    type Output = C::Value;

    /// Returns the key's value; like every map's index, it panics where there is none.
    fn index(&self, key: &Q) -> &C::Value {
        self.get(key).expect("no entry for the key")
    }
}

impl<K: Ord + Clone + Serialize, C: Cell> Serialize for Map<K, C>
where
    C::Value: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, C: Cell> Deserialize<'de> for Map<K, C>
where
    C::Value: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::collections::BTreeMap::deserialize(deserializer).map(|entries| entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut variables: Variables = [("a".to_owned(), json!(1))].into_iter().collect();
        let copy = variables.clone();
        assert_eq!(variables.insert("a".to_owned(), json!(2)), Some(json!(1)));
        assert_eq!(variables.remove("b"), None);
        assert_eq!(copy["a"], json!(1));
        assert_eq!(variables["a"], json!(2));
    }

    #[test]
    fn changes_name_what_was_added_removed_and_changed() {
        let before: Variables =
            [("a".to_owned(), json!(1)), ("b".to_owned(), json!(2))].into_iter().collect();
        let mut after = before.clone();
        after.remove("a");
        after.insert("b".to_owned(), json!(3));
        after.insert("c".to_owned(), json!(4));
        let changes: Vec<String> = before
            .changes_to(&after)
            .map(|change| match change {
                Change::Added(key, cell) => format!("+{key}={}", cell.value()),
                Change::Removed(key, cell) => format!("-{key}={}", cell.value()),
                Change::Changed { key, before, after } => {
                    format!("{key}:{}>{}", before.value(), after.value())
                }
            })
            .collect();
        assert_eq!(changes, ["-a=1", "b:2>3", "+c=4"]);
    }

    #[test]
    fn a_map_survives_json() {
        let variables: Variables = [("a".to_owned(), json!([1, "x"]))].into_iter().collect();
        let text = serde_json::to_string(&variables).unwrap();
        assert_eq!(text, r#"{"a":[1,"x"]}"#);
        assert_eq!(serde_json::from_str::<Variables>(&text).unwrap(), variables);
    }
}
