//! Compensations: which effects outside are to be undone, in which order, and how far each is. Pure.
//!
//! An effect is known by its idempotency key. What became of its counter-action is remembered whatever the state goes
//! back to, and a counter-action is due as long as it has not ended and the state does not say that the effect stands.

use crate::execution::{
    Cell, Compensation, CompensationStage, ExecutionContext, NodeExecutionResult, node_id,
};
use crate::store::Seq;

/// Returns a counter-action to come, against the effect of `turn`.
pub(super) fn open(
    node: &str,
    turn: u64,
    result: &NodeExecutionResult,
    from: &ExecutionContext,
    seq: u64,
) -> Compensation {
    Compensation {
        node: node.to_owned(),
        result: result.clone(),
        from: seq,
        stage: CompensationStage::Open,
        idempotency_key: key(node, turn, result, from),
    }
}

/// Returns the key of a counter-action. It follows from the effect alone, so that whoever is asked to undo the same
/// effect again can know it.
fn key(node: &str, turn: u64, result: &NodeExecutionResult, from: &ExecutionContext) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"compensation").update(from.execution_id.as_bytes()).update(node_id(node).as_bytes());
    match &result.idempotency_key {
        Some(effect) => hasher.update(effect.as_bytes()),
        None => hasher.update(&turn.to_le_bytes()),
    };
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Tells whether two results of a node are about the same effect.
pub(super) fn is_same_effect(a: &NodeExecutionResult, b: &NodeExecutionResult) -> bool {
    match (&a.idempotency_key, &b.idempotency_key) {
        (Some(a), Some(b)) => a == b,
        (None, None) => a.ended == b.ended,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Returns the compensation of an effect, with its turn.
pub(super) fn of<'c>(
    ctx: &'c ExecutionContext,
    node: &str,
    effect: &NodeExecutionResult,
) -> Option<(u64, &'c Compensation)> {
    let of_node = ctx.ledger.compensations.iter().filter(|(_, compensation)| compensation.node == node);
    let mut found = of_node.filter(|(_, compensation)| is_same_effect(&compensation.result, effect));
    found.next().map(|(turn, compensation)| (*turn, compensation))
}

/// Tells whether a state that has this effect would say that something stands which does not, or may not: its
/// counter-action has run, or may have.
pub(super) fn may_be_undone(ctx: &ExecutionContext, node: &str, effect: &NodeExecutionResult) -> bool {
    of(ctx, node, effect).is_some_and(|(_, compensation)| match compensation.stage {
        CompensationStage::Started | CompensationStage::Done | CompensationStage::Failed(_) => true,
        CompensationStage::Open | CompensationStage::Skipped => false,
    })
}

/// Tells whether the state says that the effect stands.
pub(super) fn stands(ctx: &ExecutionContext, compensation: &Compensation) -> bool {
    ctx.get_node_result(&node_id(&compensation.node))
        .is_some_and(|result| is_same_effect(result, &compensation.result))
}

/// Returns the counter-actions that are to run, each with the turn of its effect: the last effect first.
pub(super) fn due(ctx: &ExecutionContext) -> impl Iterator<Item = (u64, &Compensation)> {
    let open = ctx.ledger.compensations.iter().rev().filter(|(_, compensation)| match compensation.stage {
        CompensationStage::Open | CompensationStage::Started | CompensationStage::Failed(_) => true,
        CompensationStage::Done | CompensationStage::Skipped => false,
    });
    open.filter(|(_, compensation)| !stands(ctx, compensation))
        .map(|(turn, compensation)| (*turn, compensation))
}

/// Returns the oldest point whose state a counter-action that is to run needs. Who prunes before it has run keeps it.
pub fn needed_to_compensate(ctx: &ExecutionContext) -> Option<Seq> {
    due(ctx).map(|(_, compensation)| compensation.from).min()
}

/// Tells whether any counter-action is to run.
pub(super) fn is_any_due(ctx: &ExecutionContext) -> bool {
    due(ctx).next().is_some()
}

/// Notes how far a compensation is.
pub(super) fn reach(ctx: &mut ExecutionContext, turn: u64, stage: CompensationStage) {
    if let Some(compensation) = ctx.ledger.compensations.get(&turn) {
        let compensation = Compensation { stage, ..compensation.clone() };
        ctx.ledger.compensations.set(turn, Cell::new(compensation));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::execution::ExecutionResult;

    fn gave(key: &str, ended: u64) -> NodeExecutionResult {
        let mut result = NodeExecutionResult::new().complete(ExecutionResult::Success(json!(key)));
        result.idempotency_key = Some(key.to_owned());
        result.ended = ended;
        result
    }

    fn with(effects: &[(&str, u64, CompensationStage)]) -> ExecutionContext {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
        for (node, turn, stage) in effects {
            let compensation = open(node, *turn, &gave(node, *turn), &ctx.clone(), 9);
            ctx.ledger.compensations.insert(*turn, Compensation { stage: stage.clone(), ..compensation });
        }
        ctx
    }

    fn names(ctx: &ExecutionContext) -> Vec<&str> {
        due(ctx).map(|(_, compensation)| compensation.node.as_str()).collect()
    }

    #[test]
    fn the_last_effect_is_undone_first_and_what_has_ended_not_at_all() {
        let ctx = with(&[
            ("first", 2, CompensationStage::Open),
            ("done", 3, CompensationStage::Done),
            ("failed", 5, CompensationStage::Failed("no".into())),
            ("left", 7, CompensationStage::Skipped),
            ("last", 11, CompensationStage::Started),
        ]);
        assert_eq!(names(&ctx), ["last", "failed", "first"]);
    }

    #[test]
    fn an_effect_that_stands_again_is_not_undone_and_another_of_its_node_does_not_matter() {
        let mut ctx = with(&[("send", 2, CompensationStage::Started)]);
        ctx.record_node_result(node_id("send"), gave("another", 6));
        assert_eq!(names(&ctx), ["send"]);
        ctx.record_node_result(node_id("send"), gave("send", 2));
        assert_eq!(names(&ctx), Vec::<&str>::new());
        assert!(may_be_undone(&ctx, "send", &gave("send", 2)));
        assert!(!may_be_undone(&ctx, "send", &gave("another", 6)));
    }

    #[test]
    fn the_key_follows_from_the_effect_and_not_from_when_it_is_undone() {
        let ctx = with(&[]);
        let key =
            |effect: &str, turn, seq| open("send", turn, &gave(effect, turn), &ctx, seq).idempotency_key;
        assert_eq!(key("a", 2, 9), key("a", 3, 20));
        assert_ne!(key("a", 2, 9), key("b", 2, 9));
        assert_ne!(key("a", 2, 9), "a");
    }
}
