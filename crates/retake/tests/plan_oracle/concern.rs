//! Whom a change concerns, by brute force.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::flow::{NUMBERS, Source};
use crate::model::{Gave, Model, Write};

/// What changes at the head.
pub(crate) struct Concern {
    pub(crate) set: BTreeMap<usize, u64>,
    pub(crate) output: Option<(u16, Value)>,
}

/// Returns the nodes that would see something else than they saw, and those after them.
pub(crate) fn concerned(model: &Model, concern: &Concern) -> BTreeSet<u16> {
    let mut concerned = BTreeSet::new();
    let edited = concern.output.as_ref();
    loop {
        let known = concerned.len();
        for (key, gave) in &model.gave {
            let is_edited = edited.is_some_and(|(edited, _)| edited == key);
            let waits = model.flow.dependencies(*key).iter().any(|other| concerned.contains(other));
            let sees = || {
                gave.seen
                    .iter()
                    .any(|(source, seen)| sees_other(model, concern, gave, (*source, seen), &concerned))
            };
            if !is_edited && (waits || sees()) {
                concerned.insert(*key);
            }
        }
        if concerned.len() == known {
            return concerned;
        }
    }
}

fn sees_other(
    model: &Model,
    concern: &Concern,
    gave: &Gave,
    (source, seen): (Source, &Value),
    concerned: &BTreeSet<u16>,
) -> bool {
    match source {
        Source::Node(other) => {
            let was_there = model.gave.get(&other).is_some_and(|other| other.at < gave.at);
            let is_edited = matches!(&concern.output, Some((key, to)) if *key == other && seen[1] != *to);
            was_there && (is_edited || concerned.contains(&other))
        }
        Source::Variable(index) => {
            let to = concern.set.get(&index);
            let to = to.map(|number| if index < NUMBERS { json!(number) } else { json!([number]) });
            if to.is_some_and(|to| model.last_change(index) < gave.at && to != *seen) {
                return true;
            }
            model.made_of(index, gave.at - 1).into_iter().any(|(writer, write)| {
                let edits = |(key, to): &(u16, Value)| {
                    *key == writer && write == Write::Output && model.gave[&writer].output != *to
                };
                concerned.contains(&writer) || concern.output.as_ref().is_some_and(edits)
            })
        }
    }
}
