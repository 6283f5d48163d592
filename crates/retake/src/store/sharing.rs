//! Contexts that share what is the same in both, although the store gave them as two images.
//!
//! Two images that were read apart share no memory, and neither would their contexts: comparing those would cost as
//! much as they hold. Encoded pieces are compared fast, so the second context is made of the first one and of what
//! differs.

use serde_json::Value;

use super::delta::ImageChange;
use super::{Delta, Entry, Image, Key, KeyChange, Op, StoreError, context};
use crate::execution::{Cell, ExecutionContext, ExecutionId, Map};

/// Returns the context that an image holds, which shares with the context of another image the inputs, variables and
/// results that are the same in both.
///
/// Costs a comparison of the encoded bytes, the ledger, and the decoding of what differs: of a list or text that goes on where the
/// other's ends, only of what was appended. The context equals the one that [`context`] gives.
///
/// # Errors
/// [`StoreError::Corrupt`] that names the entry.
pub fn context_sharing(
    (other, other_image): (&ExecutionContext, &Image),
    execution_id: ExecutionId,
    image: &Image,
) -> Result<ExecutionContext, StoreError> {
    let mut parts: Vec<KeyChange> =
        image.entries().filter(|(key, _)| !is_shared(key)).map(|(key, entry)| part(key, entry, 0)).collect();
    let (mut grown, mut removed) = (Vec::new(), Vec::new());
    for change in other_image.changes_to(image) {
        match change {
            ImageChange::Set { key, .. } if !is_shared(key) => {}
            // Who wrote it is not part of a context.
            ImageChange::Set { before: Some(before), after, .. } if before.pieces == after.pieces => {}
            ImageChange::Set { key: key @ Key::Variable(name), before: Some(before), after }
                if goes_on(before, after) =>
            {
                parts.push(part(key, after, before.pieces.len()));
                grown.push(name);
            }
            ImageChange::Set { key, after, .. } => parts.push(part(key, after, 0)),
            ImageChange::Removed(key) => removed.push(key),
        }
    }
    let mut differing = Image::default();
    differing.apply("a part of a state", &Delta::new(parts))?;
    let differing = context(execution_id, &differing)?;

    let mut ctx = ExecutionContext {
        inputs: other.inputs.clone(),
        variables: other.variables.clone(),
        node_results: other.node_results.clone(),
        ..differing.clone()
    };
    for key in removed {
        match key {
            Key::Input(name) => ctx.inputs.unset(name),
            Key::Variable(name) => ctx.variables.unset(name),
            Key::Node(id) => ctx.node_results.unset(id),
            Key::Header | Key::Tally | Key::Base(_) | Key::TakenBack(_) | Key::Compensation(_) => {}
        }
    }
    overlay(&mut ctx.inputs, &differing.inputs);
    overlay(&mut ctx.node_results, &differing.node_results);
    for (name, cell) in differing.variables.cells() {
        if grown.binary_search(&name).is_err() {
            ctx.variables.set(name.clone(), cell.clone());
        } else if grow(&mut ctx, name, cell.value()).is_none() {
            // What was appended does not fit, and whoever decodes all of it can say so.
            return context(execution_id, image);
        }
    }
    Ok(ctx)
}

/// Tells whether entries of this kind are shared; all of the others is decoded anew.
fn is_shared(key: &Key) -> bool {
    match key {
        Key::Input(_) | Key::Variable(_) | Key::Node(_) => true,
        Key::Header | Key::Tally | Key::Base(_) | Key::TakenBack(_) | Key::Compensation(_) => false,
    }
}

/// Sets in one map all that another holds.
fn overlay<K: Ord + Clone, C: Cell>(map: &mut Map<K, C>, with: &Map<K, C>) {
    with.cells().for_each(|(key, cell)| map.set(key.clone(), cell.clone()));
}

/// Tells whether an entry goes on where another ends.
fn goes_on(before: &Entry, after: &Entry) -> bool {
    let count = before.pieces.len();
    count > 0
        && after.pieces.len() > count
        && before.pieces.iter().zip(&after.pieces).all(|(before, after)| before == after)
}

/// Returns a change that sets an entry to its pieces behind those that are known.
fn part(key: &Key, entry: &Entry, known: usize) -> KeyChange {
    let pieces = entry.pieces.iter().skip(known).cloned().collect();
    KeyChange { key: key.clone(), writer: entry.writer, op: Op::Set { pieces, len: entry.len } }
}

/// Appends to a variable. Returns `None` where that is not possible.
fn grow(ctx: &mut ExecutionContext, name: &str, tail: &Value) -> Option<()> {
    match (ctx.get_variable(name)?, tail) {
        (Value::Array(_), Value::Array(items)) => {
            items.iter().try_for_each(|item| ctx.append(name, item.clone()).ok())
        }
        (Value::String(_), Value::String(_)) => ctx.append(name, tail.clone()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::execution::{ExecutionResult, NodeExecutionResult, node_id};
    use crate::store::{Piece, delta};

    /// Returns the images of states that came one from the other, each read apart from those before.
    fn images(states: &[ExecutionContext]) -> Vec<Image> {
        let mut image = Image::default();
        let mut before = None;
        let mut images = Vec::new();
        for state in states {
            image.apply("a test", &delta(before, state, |_| None).unwrap()).unwrap();
            let encoded = image.to_delta().encode();
            let mut apart = Image::default();
            apart.apply("a test", &Delta::decode("a test", &encoded).unwrap()).unwrap();
            images.push(apart);
            before = Some(state);
        }
        images
    }

    fn start() -> ExecutionContext {
        let mut ctx = ExecutionContext::new(Uuid::from_u128(1));
        ctx.inputs.insert("topic".into(), json!("otters"));
        for (name, value) in [("list", json!([1])), ("text", json!("a")), ("same", json!({"n": u64::MAX}))] {
            ctx.set_variable(name.into(), value);
        }
        ctx.record_node_result(node_id("a"), NodeExecutionResult::new());
        ctx
    }

    #[test]
    fn a_shared_context_is_the_one_that_would_be_read_alone_in_either_direction() {
        let first = start();
        let mut second = first.clone();
        second.append("list", json!({"b": 2})).unwrap();
        second.append("list", json!([])).unwrap();
        second.append("text", json!("ñ")).unwrap();
        second.variables.remove("same");
        second.set_variable("new".into(), json!(null));
        let done = NodeExecutionResult::new().complete(ExecutionResult::Success(json!([1])));
        second.record_node_result(node_id("a"), done.clone());
        second.record_node_result(node_id("b"), done);
        second.pause();
        second.set_by_hand("text", Some(json!("by hand")));
        let states = [first, second];
        let images = images(&states);
        for (one, other) in [(0, 1), (1, 0), (0, 0)] {
            let ctx = context(states[one].execution_id, &images[one]).unwrap();
            let id = Uuid::from_u128(9);
            let shared = context_sharing((&ctx, &images[one]), id, &images[other]).unwrap();
            assert_eq!(shared, context(id, &images[other]).unwrap());
            assert_eq!(shared.variables, states[other].variables);
            assert_eq!(shared.node_results, states[other].node_results);
            assert_eq!(shared.ledger, states[other].ledger);
        }
    }

    #[test]
    fn what_is_the_same_is_held_once() {
        let first = start();
        let mut second = first.clone();
        second.set_variable("text".into(), json!("another"));
        let images = images(&[first.clone(), second]);
        let ctx = context(first.execution_id, &images[0]).unwrap();
        let shared = context_sharing((&ctx, &images[0]), first.execution_id, &images[1]).unwrap();
        let address = |ctx: &ExecutionContext| std::ptr::from_ref(&ctx.variables["same"]);
        assert_eq!(address(&ctx), address(&shared));
        assert_eq!(shared.variables["text"], json!("another"));
    }

    #[test]
    fn what_was_there_before_an_append_is_not_decoded_again() {
        let first = start();
        let mut image = images(std::slice::from_ref(&first)).remove(0);
        // Nobody can decode this one, so that whoever tries is found out.
        let unknown = Piece { codec: 9, bytes: Bytes::from_static(b"?") };
        let key = Key::Variable("list".into());
        let change = |op| Delta::new(vec![KeyChange { key: key.clone(), writer: None, op }]);
        image.apply("a test", &change(Op::Set { pieces: vec![unknown], len: 1 })).unwrap();
        let mut longer = image.clone();
        let bytes = Bytes::from(crate::store::encode("x", &json!([2, 3])).unwrap());
        let pieces = vec![Piece { codec: 1, bytes }];
        longer.apply("a test", &change(Op::Append { start: 1, pieces, len: 3 })).unwrap();
        let shared = context_sharing((&first, &image), first.execution_id, &longer).unwrap();
        assert_eq!(shared.variables["list"], json!([1, 2, 3]));
        let [older, newer] = [&first, &shared].map(|ctx| ctx.variables.cell("list").unwrap());
        assert_eq!(newer.appended_since(older).unwrap()[0].clone().into_value(), json!([2, 3]));
    }

    #[test]
    fn an_append_that_does_not_fit_is_found_as_it_would_be_alone() {
        let first = start();
        let image = images(std::slice::from_ref(&first)).remove(0);
        let mut damaged = image.clone();
        let start = image.get(&Key::Variable("list".into())).unwrap().len;
        let piece =
            Piece { codec: 1, bytes: Bytes::from(crate::store::encode("x", &json!("text")).unwrap()) };
        let change = KeyChange {
            key: Key::Variable("list".into()),
            writer: None,
            op: Op::Append { start, pieces: vec![piece], len: start + 4 },
        };
        damaged.apply("a test", &Delta::new(vec![change])).unwrap();
        let ctx = context(first.execution_id, &image).unwrap();
        let error = context_sharing((&ctx, &image), first.execution_id, &damaged).unwrap_err().to_string();
        assert_eq!(error, context(first.execution_id, &damaged).unwrap_err().to_string());
        assert!(error.contains("vars.list"), "{error}");
    }
}
