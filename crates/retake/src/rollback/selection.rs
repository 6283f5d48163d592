//! Which part of a context a rollback touches.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::ExecutionSnapshot;
use crate::execution::{Cell, ExecutionContext, Map, NodeId};

/// The part of a context that a selective rollback touches; the default is none of it.
///
/// What is picked gets the snapshot's value, or is removed where the snapshot has none. Everything else is left alone.
///
/// ```
/// use retake::rollback::Selection;
/// # let draft = uuid::Uuid::new_v4();
/// let the_draft = Selection::default().with_variables(["draft", "tone"]).with_nodes([draft]);
/// let only_the_state = Selection::default().with_state();
/// # assert_ne!(the_draft, only_the_state);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Selection {
    /// The variables to take back.
    pub variables: Pick<String>,
    /// The nodes whose results to take back.
    #[cfg_attr(feature = "openapi", schema(value_type = Pick<uuid::Uuid>))]
    pub nodes: Pick<NodeId>,
    /// Whether to take back how the execution stands, and when it ended.
    pub state: bool,
}

/// Which entries of a map are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Pick<K> {
    /// None of them.
    #[default]
    None,
    /// All of them.
    All,
    /// Those with these keys.
    Named(Vec<K>),
}

impl Selection {
    /// Picks these variables, besides those picked before.
    pub fn with_variables<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.variables.add(names.into_iter().map(Into::into));
        self
    }

    /// Picks the results of these nodes, besides those picked before.
    pub fn with_nodes(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        self.nodes.add(nodes);
        self
    }

    /// Picks how the execution stands, and when it ended.
    pub fn with_state(mut self) -> Self {
        self.state = true;
        self
    }

    /// Says why the selection cannot be taken back to a snapshot: it picks nothing, or what neither side knows.
    pub(super) fn check(&self, snapshot: &ExecutionSnapshot, ctx: &ExecutionContext) -> Result<(), String> {
        if self.variables.is_nothing() && self.nodes.is_nothing() && !self.state {
            return Err("nothing is selected: pick variables, nodes or the state".to_owned());
        }
        let mut unknown = self.variables.unknown("variable", &snapshot.variables, &ctx.variables);
        unknown.extend(self.nodes.unknown("node", &snapshot.node_results, &ctx.node_results));
        if unknown.is_empty() {
            return Ok(());
        }
        Err(format!("neither the snapshot nor the execution has {}", unknown.join(", ")))
    }

    /// Takes the selected part of a context back to a snapshot. Costs what is named; all of a map costs nothing.
    pub(super) fn apply(&self, snapshot: &ExecutionSnapshot, ctx: &mut ExecutionContext) {
        self.variables.apply(&snapshot.variables, &mut ctx.variables);
        self.nodes.apply(&snapshot.node_results, &mut ctx.node_results);
        if self.state {
            snapshot.apply_state_to(ctx);
        }
    }
}

impl<K> Pick<K> {
    fn add(&mut self, keys: impl IntoIterator<Item = K>) {
        match self {
            Self::None => *self = Self::Named(keys.into_iter().collect()),
            Self::All => {}
            Self::Named(named) => named.extend(keys),
        }
    }

    fn is_nothing(&self) -> bool {
        match self {
            Self::None => true,
            Self::All => false,
            Self::Named(keys) => keys.is_empty(),
        }
    }
}

impl<K: Ord + Clone + Display> Pick<K> {
    fn unknown<C: Cell>(&self, what: &str, snapshot: &Map<K, C>, current: &Map<K, C>) -> Vec<String> {
        match self {
            Self::None | Self::All => Vec::new(),
            Self::Named(keys) => keys
                .iter()
                .filter(|key| !snapshot.contains_key(*key) && !current.contains_key(*key))
                .map(|key| format!("{what} `{key}`"))
                .collect(),
        }
    }

    fn apply<C: Cell>(&self, snapshot: &Map<K, C>, current: &mut Map<K, C>) {
        match self {
            Self::None => {}
            Self::All => *current = snapshot.clone(),
            Self::Named(keys) => {
                for key in keys {
                    match snapshot.cell(key) {
                        Some(cell) => current.set(key.clone(), cell.clone()),
                        None => current.unset(key),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_add_up() {
        let selection = Selection::default().with_variables(["a"]).with_variables(["b"]);
        assert_eq!(selection.variables, Pick::Named(vec!["a".to_owned(), "b".to_owned()]));
        let all = Selection { variables: Pick::All, ..Selection::default() }.with_variables(["a"]);
        assert_eq!(all.variables, Pick::All);
    }

    #[test]
    fn a_selection_survives_json_and_what_is_left_out_is_not_picked() {
        let read: Selection = serde_json::from_str(r#"{"variables":{"named":["a"]},"state":true}"#).unwrap();
        assert_eq!(read, Selection::default().with_variables(["a"]).with_state());
        let text = serde_json::to_string(&read).unwrap();
        assert_eq!(text, r#"{"variables":{"named":["a"]},"nodes":"none","state":true}"#);
        assert_eq!(serde_json::from_str::<Selection>(&text).unwrap(), read);
    }
}
