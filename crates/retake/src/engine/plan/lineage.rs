//! How variables came to be what they are: from a base, by the writes of nodes, in the order of turns.

use std::collections::BTreeMap;

use crate::execution::{AppendError, Cell, ExecutionContext, NodeId, WriteOp};

/// One change of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) turn: u64,
    /// The node that made it; `None` for the base.
    pub(super) node: Option<NodeId>,
    /// Whether nothing of the value before is left.
    pub(super) is_whole: bool,
    /// Its place among the node's writes.
    pub(super) place: usize,
}

/// The base of every variable: what it is at the start.
const START: Event = Event { turn: 0, node: None, is_whole: true, place: 0 };

/// The changes of every variable, each in order.
#[derive(Debug)]
pub(super) struct Lineage(BTreeMap<String, Vec<Event>>);

impl Lineage {
    pub(super) fn of(ctx: &ExecutionContext) -> Self {
        let mut events: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        let bases = ctx.ledger.bases.iter();
        for (name, base) in bases {
            events.entry(name.clone()).or_default().push(Event { turn: base.turn, ..START });
        }
        for (id, result) in ctx.node_results.iter() {
            for (place, write) in result.writes.iter().enumerate() {
                let is_whole = !matches!(write.op, WriteOp::Append(_));
                let event = Event { turn: result.ended, node: Some(*id), is_whole, place };
                events.entry(write.variable.clone()).or_default().push(event);
            }
        }
        events.values_mut().for_each(|events| events.sort_by_key(|event| (event.turn, event.place)));
        Self(events)
    }

    /// Returns the changes that make a variable what it is once `turn` is over: the last that replaced it, and what was
    /// appended since.
    pub(super) fn seen(&self, name: &str, turn: u64) -> &[Event] {
        let events = self.0.get(name).map_or(&[][..], Vec::as_slice);
        let seen = &events[..events.partition_point(|event| event.turn <= turn)];
        match seen.iter().rposition(|event| event.is_whole) {
            Some(last) => &seen[last..],
            None if seen.is_empty() => &[START],
            None => seen,
        }
    }

    /// Returns the turn of a variable's last change.
    pub(super) fn last(&self, name: &str) -> u64 {
        self.0.get(name).and_then(|events| events.last()).map_or(0, |event| event.turn)
    }

    /// Works a variable out anew from its base and what nodes wrote. Returns the node that wrote it last.
    ///
    /// # Errors
    /// The node whose write does not fit what is left below it.
    pub(super) fn replay(
        &self,
        ctx: &mut ExecutionContext,
        name: &str,
    ) -> Result<Option<NodeId>, (NodeId, AppendError)> {
        let (since, value) = match ctx.ledger.bases.get(name) {
            Some(base) => (base.turn, base.value.clone()),
            // Nobody has changed it.
            None => return Ok(None),
        };
        match value {
            Some(value) => ctx.set_variable(name.to_owned(), value),
            None => {
                ctx.variables.remove(name);
            }
        }
        let mut writer = None;
        for event in self.0.get(name).into_iter().flatten().filter(|event| event.turn > since) {
            let Some(node) = event.node else { continue };
            let Some(cell) = ctx.node_results.cell(&node).cloned() else { continue };
            let result = Cell::value(&cell);
            let Some(write) = result.writes.get(event.place) else { continue };
            ctx.apply_write(write, result).map_err(|error| (node, error))?;
            writer = Some(node);
        }
        Ok(writer)
    }
}
