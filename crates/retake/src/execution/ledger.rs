//! What an execution remembers beside its state, so that a part of the state can be taken back: in which order nodes
//! and people changed it, what variables were before nodes wrote them, results that may be used again, and money.
//!
//! A variable is what its *base* becomes by the writes of nodes, one after the other. Every result keeps its own
//! writes, so the value without those of some nodes can always be worked out, from the state alone.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    AppendError, Cell, ExecutionContext, Map, NodeExecutionResult, NodeId, Shared, Spend, Write, WriteOp,
    present,
};

/// The order of changes, what lies below them, and what they cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ledger {
    /// The number of the last change. It never goes back, not even in a rollback.
    #[serde(default)]
    pub turn: u64,
    /// What the execution has cost.
    #[serde(default)]
    pub spend: Spend,
    /// What variables are before any node writes them, where that is not simply their value.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, Base>))]
    pub bases: Map<String, Shared<Base>>,
    /// Nodes that were taken back and have not run since.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, TakenBack>))]
    pub taken_back: Map<NodeId, Shared<TakenBack>>,
    /// Effects outside that are to be undone by counter-actions, or were, by the turn in which each was recorded. They
    /// are about the world and not about the state: no rollback and no undo takes them back.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<u64, Compensation>))]
    pub compensations: Map<u64, Shared<Compensation>>,
    /// The last turn of the execution that this one was forked from: what had its effect by then is not this one's to
    /// compensate. 0 where it is no fork.
    #[serde(default)]
    pub inherited: u64,
}

/// What a variable was made by somebody who is not a node: the workflow at the start, or a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Base {
    /// The turn: 0 for the start. What nodes wrote before it is gone.
    pub turn: u64,
    /// The value, or `None` where there is no such variable.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub value: Option<Value>,
}

/// A node whose result was taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TakenBack {
    /// Why.
    pub because: String,
    /// The result, where it may stand again: it went because of something before it, which may turn out to be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<Spare>,
}

/// A result that may stand again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Spare {
    /// The result.
    pub result: NodeExecutionResult,
    /// The hash of what the nodes that it waits for had given.
    pub upstream: String,
}

/// The counter-action against one effect outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Compensation {
    /// The node that had the effect, as the workflow calls it.
    pub node: String,
    /// What the node gave then.
    pub result: NodeExecutionResult,
    /// The point whose state had the effect, and whose state the counter-action sees.
    pub from: u64,
    /// How far it is.
    pub stage: CompensationStage,
    /// The key under which the counter-action is known outside: the same for every attempt at it.
    pub idempotency_key: String,
}

/// How far a compensation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CompensationStage {
    /// Nothing has happened yet.
    Open,
    /// The counter-action was about to start: it may have happened.
    Started,
    /// The counter-action succeeded. It never runs again.
    Done,
    /// The counter-action failed with this message; it may have happened all the same.
    Failed(String),
    /// A person said to leave the effect as it is.
    Skipped,
}

impl CompensationStage {
    /// Returns the stage as one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Started => "started",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl ExecutionContext {
    /// Records what a node gave and applies what it wrote, in one turn.
    ///
    /// # Errors
    /// [`AppendError`] where a write does not fit its variable. Nothing has changed then.
    pub fn conclude(&mut self, node: NodeId, mut result: NodeExecutionResult) -> Result<(), AppendError> {
        let mut after = self.clone();
        after.ledger.turn = after.ledger.turn.saturating_add(1);
        result.ended = after.ledger.turn;
        for write in &result.writes {
            after.bury(&write.variable);
            after.apply_write(write, &result)?;
        }
        after.ledger.taken_back.remove(&node);
        after.record_node_result(node, result);
        *self = after;
        Ok(())
    }

    /// Sets a variable on behalf of a person, or removes it, in a turn of its own.
    pub fn set_by_hand(&mut self, name: &str, value: Option<Value>) {
        self.ledger.turn = self.ledger.turn.saturating_add(1);
        let base = Base { turn: self.ledger.turn, value };
        match &base.value {
            Some(value) => self.set_variable(name.to_owned(), value.clone()),
            None => {
                self.variables.remove(name);
            }
        }
        self.ledger.bases.set(name.to_owned(), Cell::new(base));
    }

    /// Keeps the value that no node has written before the first one does.
    pub(crate) fn bury(&mut self, name: &str) {
        if !self.ledger.bases.contains_key(name) {
            let base = Base { turn: 0, value: self.get_variable(name).cloned() };
            self.ledger.bases.set(name.to_owned(), Cell::new(base));
        }
    }

    /// Applies one write of a node that gave `result`.
    ///
    /// # Errors
    /// [`AppendError`] where it does not fit the variable, which stays as it was.
    pub(crate) fn apply_write(
        &mut self,
        write: &Write,
        result: &NodeExecutionResult,
    ) -> Result<(), AppendError> {
        let name = &write.variable;
        match &write.op {
            WriteOp::Set(value) => self.set_variable(name.clone(), value.clone()),
            WriteOp::Output => self.set_variable(name.clone(), result.output().cloned().unwrap_or_default()),
            WriteOp::Field(field) => {
                let value = result.output().and_then(|output| output.get(field)).cloned();
                self.set_variable(name.clone(), value.unwrap_or_default());
            }
            WriteOp::Append(value) => self.append(name, value.clone())?,
            WriteOp::Remove => {
                self.variables.remove(name);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::execution::ExecutionResult;

    fn gave(output: Value, writes: Vec<Write>) -> NodeExecutionResult {
        let mut result = NodeExecutionResult::new().complete(ExecutionResult::Success(output));
        result.writes = writes;
        result
    }

    fn write(variable: &str, op: WriteOp) -> Write {
        Write { variable: variable.to_owned(), op }
    }

    #[test]
    fn a_result_is_recorded_with_its_writes_in_one_turn_and_what_lay_below_is_kept() {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
        ctx.set_variable("log".into(), json!(["start"]));
        let writes = vec![
            write("log", WriteOp::Append(json!("a"))),
            write("draft", WriteOp::Output),
            write("title", WriteOp::Field("title".into())),
        ];
        ctx.conclude(Uuid::from_u128(5), gave(json!({"title": "Otters"}), writes)).unwrap();
        assert_eq!(ctx.get_variable("log"), Some(&json!(["start", "a"])));
        assert_eq!(ctx.get_variable("draft"), Some(&json!({"title": "Otters"})));
        assert_eq!(ctx.get_variable("title"), Some(&json!("Otters")));
        assert_eq!((ctx.ledger.turn, ctx.node_results[&Uuid::from_u128(5)].ended), (1, 1));
        let base = |name: &str| ctx.ledger.bases.get(name).cloned();
        assert_eq!(base("log"), Some(Base { turn: 0, value: Some(json!(["start"])) }));
        assert_eq!(base("draft"), Some(Base { turn: 0, value: None }));
    }

    #[test]
    fn a_result_whose_writes_do_not_fit_changes_nothing() {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
        ctx.set_variable("count".into(), json!(1));
        let before = ctx.clone();
        let writes = vec![write("other", WriteOp::Remove), write("count", WriteOp::Append(json!(2)))];
        assert!(ctx.conclude(Uuid::from_u128(5), gave(json!(null), writes)).is_err());
        assert_eq!(ctx, before);
    }

    #[test]
    fn what_a_person_sets_is_the_base_for_what_follows() {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
        ctx.set_by_hand("tone", Some(json!(null)));
        ctx.set_by_hand("gone", None);
        assert_eq!(ctx.ledger.bases["tone"], Base { turn: 1, value: Some(json!(null)) });
        let compensation = Compensation {
            node: "send".into(),
            result: gave(json!(null), vec![]),
            from: 2,
            stage: CompensationStage::Open,
            idempotency_key: "key".into(),
        };
        ctx.ledger.compensations.insert(1, compensation);
        let text = serde_json::to_string(&ctx.ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ctx.ledger);
    }
}
