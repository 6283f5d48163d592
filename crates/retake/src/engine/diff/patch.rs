//! Differences as a JSON Patch, and the documents that it turns into one another.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

use super::edit::child;
use super::{Diff, NodeDiff, Side, Status, ValueChange, ValueEdit};
use crate::engine::standing;

impl Side<'_> {
    /// Returns the state as the document that patches are about:
    /// `{"status", "error", "inputs": {…}, "variables": {…}, "nodes": {ID: {"status", "output", "error"}}}`. It has
    /// every node of the workflow, and what else has a result.
    pub fn document(&self) -> Value {
        let Status { status, error } = Status::of(&self.ctx.state);
        let results = self.ctx.node_results.keys().copied();
        let nodes: Map<String, Value> = self
            .known()
            .chain(results)
            .filter_map(|id| {
                let (status, output, error) = standing(self.node(&id)?.map(|result| &result.result));
                Some((self.name(&id), json!({"status": status, "output": output, "error": error})))
            })
            .collect();
        json!({
            "status": status,
            "error": error,
            "inputs": self.ctx.inputs,
            "variables": self.ctx.variables,
            "nodes": nodes,
        })
    }
}

impl Diff {
    /// Returns the JSON Patch (RFC 6902) that turns the [`document`](Side::document) of the older state into that of
    /// the newer one, which is `after`. Of a diff that was [narrowed](Diff::narrow), only those parts of it.
    ///
    /// A text that grew costs all of it: a patch has no word for an append to a text.
    pub fn patch(&self, after: &Side<'_>) -> Patch {
        let mut patch = Patching::default();
        if let Some(change) = &self.status {
            patch.replace("/status", json!(change.to.status));
            patch.replace("/error", json!(change.to.error));
        }
        for (part, edits, values) in [
            ("/inputs", &self.inputs, &after.ctx.inputs),
            ("/variables", &self.variables, &after.ctx.variables),
        ] {
            for (name, edits) in edits {
                let value = values.get(name).unwrap_or(&Value::Null);
                edits.iter().for_each(|edit| patch.edit(&child(part, name), edit, value));
            }
        }
        self.nodes.iter().for_each(|diff| patch.node(diff, after));
        patch.0
    }
}

/// A patch that is being made.
#[derive(Default)]
struct Patching(Patch);

impl Patching {
    fn node(&mut self, diff: &NodeDiff, after: &Side<'_>) {
        let place = child("/nodes", &diff.node);
        let Some(to) = &diff.to else { return self.remove(&place) };
        let output = after.output(&diff.node).unwrap_or(&Value::Null);
        let Some(from) = &diff.from else {
            return self.add(&place, json!({"status": to.status, "output": output, "error": to.error}));
        };
        if from.status != to.status {
            self.replace(&child(&place, "status"), json!(to.status));
        }
        for edit in &diff.output {
            let place = child(&place, "output");
            match edit.change {
                // The document has null where there is no output.
                ValueChange::Added { .. } | ValueChange::Removed { .. } if edit.place.is_empty() => {
                    self.replace(&place, output.clone());
                }
                ValueChange::Added { .. }
                | ValueChange::Removed { .. }
                | ValueChange::Replaced { .. }
                | ValueChange::AppendedItems { .. }
                | ValueChange::AppendedText { .. } => self.edit(&place, edit, output),
            }
        }
        if from.error != to.error {
            self.replace(&child(&place, "error"), json!(to.error));
        }
    }

    /// Adds what an edit does to the value at `root`, which is `after` in the newer document.
    fn edit(&mut self, root: &str, edit: &ValueEdit, after: &Value) {
        let place = format!("{root}{}", edit.place);
        match &edit.change {
            ValueChange::Added { to } => self.add(&place, to.clone()),
            ValueChange::Removed { .. } => self.remove(&place),
            ValueChange::Replaced { to, .. } => self.replace(&place, to.clone()),
            ValueChange::AppendedItems { items, .. } => {
                let end = child(&place, "-");
                items.iter().for_each(|item| self.add(&end, item.clone()));
            }
            ValueChange::AppendedText { .. } => {
                self.replace(&place, after.pointer(&edit.path).cloned().unwrap_or_default());
            }
        }
    }

    fn add(&mut self, place: &str, value: Value) {
        self.push(PatchOperation::Add(AddOperation { path: pointer(place), value }));
    }

    fn replace(&mut self, place: &str, value: Value) {
        self.push(PatchOperation::Replace(ReplaceOperation { path: pointer(place), value }));
    }

    fn remove(&mut self, place: &str) {
        self.push(PatchOperation::Remove(RemoveOperation { path: pointer(place) }));
    }

    fn push(&mut self, operation: PatchOperation) {
        self.0.0.push(operation);
    }
}

fn pointer(place: &str) -> PointerBuf {
    PointerBuf::parse(place).expect("every token was escaped")
}
