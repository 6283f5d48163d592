//! What a request changes, before it is known what that concerns: what goes back, what is put in its place.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::affected::{Changes, Rebased};
use super::lineage::Lineage;
use super::{BY_HAND, Edit, Effects, Known};
use crate::engine::{EngineError, attempt, standing};
use crate::execution::{
    Base, Cell, ExecutionContext, ExecutionResult, NodeExecutionResult, NodeId, Subject, Write, WriteOp,
    check_value, node_id,
};
use crate::store::{Cause, Seq, StoreError, hash};
use crate::workflow::{NodeKind, Workflow};

/// A plan in the making.
pub(super) struct Draft<'a> {
    pub(super) known: Known<'a>,
    pub(super) cause: Cause,
    pub(super) effects: Effects,
    /// The state that is judged and changed: the head's, or the target's.
    pub(super) from: ExecutionContext,
    pub(super) changes: Changes,
    /// The point that precedes the new one on the time line.
    pub(super) parent: Seq,
    /// The point whose state the new one is nearest to.
    pub(super) base: Seq,
    /// What was named to go back, where everything else stays.
    pub(super) named: Option<Changes>,
    /// Why results go that nothing else explains.
    pub(super) going: String,
    /// Bases of variables at the target, which are theirs again. What is judged had seen others.
    pub(super) bases: BTreeMap<String, Base>,
    /// Results that nodes had at the target, and that stand again.
    pub(super) restored: BTreeMap<NodeId, NodeExecutionResult>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(known: Known<'a>, cause: Cause, effects: Effects) -> Self {
        Self {
            known,
            cause,
            effects,
            from: known.head.ctx.clone(),
            changes: Changes::default(),
            parent: known.head.record.seq,
            base: known.head.record.seq,
            named: None,
            going: format!("its result is newer than @{}", known.target.record.seq),
            bases: BTreeMap::new(),
            restored: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, set: &BTreeMap<String, Value>) {
        self.changes.set.extend(set.iter().map(|(name, value)| (name.clone(), Some(value.clone()))));
    }

    /// Everything after the target goes.
    pub(super) fn go_back_wholly(&mut self) {
        let Known { head, target, .. } = self.known;
        self.from = target.ctx.clone();
        self.from.ledger.turn = head.ctx.ledger.turn;
        self.from.ledger.spend = head.ctx.ledger.spend;
        self.parent = target.record.seq;
        self.base = target.record.seq;
    }

    /// What the target recorded stands again, and what depends on it goes. Returns false where the target recorded
    /// nothing to follow.
    pub(super) fn follow(&mut self, named: Option<&str>) -> Result<bool, EngineError> {
        let Known { workflow, head, target, .. } = self.known;
        let graph = workflow.graph();
        let seq = target.record.seq;
        let (at, before) = match (&target.record.cause, named) {
            (_, Some(name)) => (vec![name], None),
            (Cause::Before { node } | Cause::Started { node }, None) => (Vec::new(), Some(node)),
            // These are states as a whole.
            (
                Cause::Rollback { .. }
                | Cause::Undo { .. }
                | Cause::Redo { .. }
                | Cause::Edit
                | Cause::Repair { .. }
                | Cause::Fork { .. },
                None,
            ) => return Ok(false),
            (_, None) => (target.record.nodes.iter().map(String::as_str).collect(), None),
        };
        if let Some(node) = before.and_then(|node| graph.index_of(node)) {
            if !self.is_as_at_target(&graph.id(node)) {
                self.changes.forced.insert(node, format!("@{seq} is just before it"));
            }
        } else if at.is_empty() {
            return Ok(false);
        }
        let lineage = Lineage::of(&head.ctx);
        for name in at {
            let Some(node) = graph.index_of(name) else {
                return Err(EngineError::NothingThere { what: "node", name: name.to_owned(), target: seq });
            };
            self.stand_again(node);
            for dependent in graph.nodes() {
                if !self.is_as_at_target(&graph.id(dependent))
                    && (graph.dependencies(dependent).contains(&node)
                        || self.has_read(&lineage, dependent, node))
                {
                    let why = format!("it depends on `{name}`, and its result is newer than @{seq}");
                    self.changes.forced.entry(dependent).or_insert(why);
                }
            }
        }
        self.take_back_what_was_edited_since();
        let replaced = &self.changes.replaced;
        self.changes.forced.retain(|node, _| !replaced.contains_key(&graph.id(*node)));
        self.unset_what_was_set_since();
        self.parent = seq;
        Ok(true)
    }

    /// What a node gave at the target stands again, with what it had been made from.
    pub(super) fn stand_again(&mut self, node: usize) {
        let Known { workflow, head, target, .. } = self.known;
        if target.record.seq == head.record.seq {
            return;
        }
        let graph = workflow.graph();
        let lineage = Lineage::of(&target.ctx);
        let mut left = vec![node];
        let mut met = BTreeSet::new();
        while let Some(node) = left.pop() {
            let id = graph.id(node);
            let Some(result) = target.ctx.get_node_result(&id).filter(|_| met.insert(node)) else { continue };
            self.changes.replaced.insert(id, result.clone());
            left.extend(graph.dependencies(node));
            for read in &result.reads {
                match &read.subject {
                    Subject::Node(name) => left.extend(graph.index_of(name)),
                    Subject::Variable(name) => {
                        let writers = lineage.seen(name, result.began).iter().filter_map(|event| event.node);
                        left.extend(writers.filter_map(|writer| graph.index_of_id(&writer)));
                    }
                    Subject::Input(_) | Subject::Secret(_) => {}
                }
            }
        }
    }

    /// Outputs that a person put in place of others after the target are what they were before that.
    pub(super) fn take_back_what_was_edited_since(&mut self) {
        let Known { workflow, head, target, .. } = self.known;
        for (id, now) in head.ctx.node_results.iter() {
            let then = target.ctx.get_node_result(id).filter(|then| then.ended == now.ended);
            if then.is_some_and(|then| then.result != now.result) {
                workflow.graph().index_of_id(id).into_iter().for_each(|node| self.stand_again(node));
            }
        }
    }

    /// Tells whether a node stands as it did at the target, or has not run.
    pub(super) fn is_as_at_target(&self, id: &NodeId) -> bool {
        let Known { head, target, .. } = self.known;
        let now = head.ctx.get_node_result(id);
        // An output that a person put in place keeps the turn.
        let standing = |result: &'a NodeExecutionResult| (result.ended, &result.result);
        now.is_none() || now.map(standing) == target.ctx.get_node_result(id).map(standing)
    }

    /// Tells whether a node had read what another gave or wrote, as far as was recorded.
    pub(super) fn has_read(&self, lineage: &Lineage, reader: usize, node: usize) -> bool {
        let graph = self.known.workflow.graph();
        let id = graph.id(node);
        let Some(result) = self.from.get_node_result(&graph.id(reader)) else { return false };
        result.reads.iter().any(|read| match &read.subject {
            Subject::Node(name) => {
                name == graph.name(node)
                    && self.from.get_node_result(&id).is_some_and(|record| record.ended <= result.began)
            }
            Subject::Variable(name) => {
                lineage.seen(name, result.began).iter().any(|event| event.node == Some(id))
            }
            Subject::Input(_) | Subject::Secret(_) => false,
        })
    }

    /// Variables that a person set after the target are what they were before that.
    pub(super) fn unset_what_was_set_since(&mut self) {
        let then = &self.known.target.ctx;
        let since = then.ledger.turn;
        for (name, base) in self.from.ledger.bases.iter().filter(|(_, base)| base.turn > since) {
            let value = then.get_variable(name);
            let before = match then.ledger.bases.get(name) {
                Some(before) => before.clone(),
                None => Base { turn: 0, value: value.cloned() },
            };
            self.bases.insert(name.clone(), before);
            let rebased = Rebased { turn: base.turn, since, then: value.map(hash) };
            self.changes.rebased.insert(name.clone(), rebased);
        }
    }

    /// Only what is named goes back.
    pub(super) fn narrow(&mut self, variables: &[String], nodes: &[String]) -> Result<(), EngineError> {
        let Known { workflow, head, target, .. } = self.known;
        let nothing = |what, name: &String| EngineError::NothingThere {
            what,
            name: name.clone(),
            target: target.record.seq,
        };
        let mut named = Changes::default();
        self.going = "its result was taken back".to_owned();
        for name in variables {
            let then = target.ctx.get_variable(name);
            if then.is_none() && !head.ctx.variables.contains_key(name) {
                return Err(nothing("variable", name));
            }
            if then != head.ctx.get_variable(name) {
                named.set.insert(name.clone(), then.cloned());
                self.from.set_by_hand(name, then.cloned());
            }
        }
        for name in nodes {
            let Some(node) = workflow.graph().index_of(name) else { return Err(nothing("node", name)) };
            let id = node_id(name);
            match (target.ctx.get_node_result(&id), head.ctx.get_node_result(&id)) {
                (Some(then), _) => {
                    self.from.record_node_result(id, then.clone());
                    named.replaced.insert(id, then.clone());
                }
                (None, Some(_)) => {
                    self.from.node_results.remove(&id);
                    named.forced.insert(node, self.going.clone());
                }
                (None, None) => return Err(nothing("node", name)),
            }
            self.from.ledger.taken_back.remove(&id);
        }
        self.hold_what_was_written(nodes);
        self.named = Some(named);
        Ok(())
    }

    /// Variables stay as they are though they are not what the results that are left make of them.
    pub(super) fn hold_what_was_written(&mut self, nodes: &[String]) {
        let results = nodes.iter().map(|name| node_id(name)).flat_map(|id| {
            let Known { head, target, .. } = self.known;
            head.ctx.get_node_result(&id).into_iter().chain(target.ctx.get_node_result(&id))
        });
        let written: BTreeSet<&String> =
            results.flat_map(|result| &result.writes).map(|write| &write.variable).collect();
        for name in written {
            self.from.bury(name);
            let mut replayed = self.from.clone();
            let fits = Lineage::of(&self.from).replay(&mut replayed, name).is_ok();
            if !fits || replayed.get_variable(name) != self.from.get_variable(name) {
                let value = self.from.get_variable(name).cloned();
                self.from.set_by_hand(name, value);
            }
        }
    }

    /// Puts another output in place of what a node gave.
    pub(super) fn replace(&mut self, name: &str, request: &Edit) -> Result<(), EngineError> {
        let Known { workflow, head, .. } = self.known;
        let Some(node) = workflow.graph().index_of(name) else {
            return Err(EngineError::NoNode { name: self.known.name.to_owned(), node: name.to_owned() });
        };
        let id = node_id(name);
        let before = head.ctx.get_node_result(&id);
        let has_output = before.is_some_and(|before| before.output().is_some());
        match (request.done.contains(name), has_output) {
            (true, true) => return Err(EngineError::HasOutput { node: name.to_owned() }),
            (false, false) => {
                let found = standing(before.map(|before| &before.result)).0;
                return Err(EngineError::HasNoOutput { node: name.to_owned(), found });
            }
            (true, false) | (false, true) => {}
        }
        let output = request.outputs.get(name).cloned().unwrap_or_default();
        check_value(&format!("nodes.{name}.output"), &output).map_err(StoreError::from)?;
        let definition = workflow.node(node);
        if let NodeKind::Set(variables) = &definition.kind
            && let Some(missing) = variables.keys().find(|variable| output.get(variable).is_none())
        {
            return Err(EngineError::LacksVariable { node: name.to_owned(), variable: missing.clone() });
        }
        let now = before.and_then(|before| before.completed_at).unwrap_or(self.known.head.record.created_at);
        let mut result = before.cloned().unwrap_or_else(|| NodeExecutionResult::started(now));
        result.completed_at = Some(now);
        result.result = ExecutionResult::Success(output);
        result.because = Some(BY_HAND.to_owned());
        if !has_output {
            let mut writes = definition.into.clone().map(attempt::into).into_iter().collect::<Vec<_>>();
            if let NodeKind::Set(variables) = &definition.kind {
                let field = |variable: &String| Write {
                    variable: variable.clone(),
                    op: WriteOp::Field(variable.clone()),
                };
                writes.extend(variables.keys().map(field));
            }
            result.writes = writes;
        }
        self.changes.replaced.insert(id, result);
        Ok(())
    }

    /// Nodes whose definition is another run again, and those that are no more leave.
    pub(super) fn redefine(&mut self, old: &Workflow, vars: BTreeMap<String, Option<Value>>) {
        let new = self.known.workflow;
        self.changes.waits_anew = true;
        for (name, before) in &old.definition().nodes {
            match (new.definition().nodes.get(name), new.graph().index_of(name)) {
                (Some(after), Some(node)) => {
                    if !before.gives_the_same_as(after) {
                        self.changes.forced.insert(node, "its definition changes".to_owned());
                        self.from.ledger.taken_back.remove(&node_id(name));
                    }
                }
                (None, _) | (_, None) => {
                    self.changes.gone.insert(node_id(name), name.clone());
                    self.from.ledger.taken_back.remove(&node_id(name));
                }
            }
        }
        // A result that outlived its node, because its effect could not be undone, is not that of a node that comes now.
        let is_new = |name: &&String| !old.definition().nodes.contains_key(*name);
        for node in new.definition().nodes.keys().filter(is_new).filter_map(|name| new.graph().index_of(name))
        {
            self.changes.forced.insert(node, "its definition changes".to_owned());
        }
        self.changes.forced.retain(|node, _| self.from.get_node_result(&new.graph().id(*node)).is_some());
        self.changes.gone.retain(|id, _| self.from.get_node_result(id).is_some());
        for (name, value) in vars {
            // What a person set since stays.
            if self.from.ledger.bases.get(&name).is_some_and(|base| base.turn > 0) {
                continue;
            }
            self.from.ledger.bases.set(name.clone(), Cell::new(Base { turn: 0, value }));
            self.changes.rebased.insert(name, Rebased { turn: 0, since: 0, then: None });
        }
        self.from.workflow_id = new.id();
    }
}
