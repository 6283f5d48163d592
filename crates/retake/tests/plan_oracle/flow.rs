//! Random workflows: what their nodes read, write and give, and what they must wait for so that every order in which
//! they may run gives the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use retake::checkpoint::{CheckpointConfig, CheckpointFrequency};
use retake::workflow::{Node, OnError, Workflow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Variables that hold a number. The last of them may be removed, and is never mentioned in an expression.
pub(crate) const NUMBERS: usize = 3;
/// All variables: after the numbers, lists.
pub(crate) const VARIABLES: usize = 5;
/// How far apart the keys of the first nodes are, so that others can be added between.
const GAP: u16 = 10;

pub(crate) fn variable(index: usize) -> String {
    format!("v{index}")
}

pub(crate) fn node(key: u16) -> String {
    format!("n{key:03}")
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Source {
    Variable(usize),
    Node(u16),
}

impl Source {
    fn expression(self) -> String {
        match self {
            Self::Variable(index) => format!("${{{{ vars.{} }}}}", variable(index)),
            Self::Node(key) => format!("${{{{ nodes.{}.output }}}}", node(key)),
        }
    }
}

/// What a node does to a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Deed {
    Set(usize),
    Remove,
    Append(usize),
    /// Appends, and looks at the whole list then.
    Extend(usize),
}

impl Deed {
    pub(crate) fn variable(self) -> usize {
        match self {
            Self::Set(index) | Self::Append(index) | Self::Extend(index) => index,
            Self::Remove => NUMBERS - 1,
        }
    }
}

/// When a node is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Condition {
    /// A variable is not 0.
    Variable(usize),
    /// An output is not 0.
    Output(u16),
    /// A node was not skipped: this one is not skipped because of it.
    Status(u16),
}

impl Condition {
    pub(crate) fn source(self) -> Source {
        match self {
            Self::Variable(index) => Source::Variable(index),
            Self::Output(key) | Self::Status(key) => Source::Node(key),
        }
    }

    fn expression(self) -> String {
        match self {
            Self::Variable(index) => format!("vars.{} != 0", variable(index)),
            Self::Output(key) => format!("nodes.{}.output != 0", node(key)),
            Self::Status(key) => format!("nodes.{}.status != 'skipped'", node(key)),
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Read by expressions.
    pub(crate) mentions: Vec<Source>,
    /// Read through the context.
    pub(crate) looks: Vec<Source>,
    pub(crate) needs: BTreeSet<u16>,
    pub(crate) condition: Option<Condition>,
    pub(crate) deeds: Vec<Deed>,
    /// The variable that its output is also written to.
    pub(crate) into: Option<usize>,
    /// How many outputs it can give: few, so that it often gives the same again.
    pub(crate) grain: u64,
    /// Which of four of what it read make it fail.
    pub(crate) fails_at: Option<u64>,
    pub(crate) is_tolerated: bool,
    pub(crate) salt: u64,
    /// Whether it may see what others wrote without saying that it waits for them.
    pub(crate) is_loose: bool,
}

/// What a node does once it has looked.
pub(crate) struct Act {
    pub(crate) fails: bool,
    /// What it writes by each deed.
    pub(crate) value: u64,
}

fn digest(seed: u64, seen: &[Value]) -> u64 {
    let text = serde_json::to_string(seen).unwrap();
    text.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    })
}

impl Step {
    pub(crate) fn act(&self, seen: &[Value]) -> Act {
        let digest = digest(self.salt, seen);
        Act {
            fails: self.fails_at.is_some_and(|at| digest % 4 == at),
            // No output is as large: what a node sets is not its output by chance.
            value: 100 + (digest >> 8) % (self.grain + 1),
        }
    }

    /// Returns the output, made of what was seen before and after the node wrote.
    pub(crate) fn output(&self, seen: &[Value]) -> u64 {
        digest(self.salt + 1, seen) % self.grain
    }

    pub(crate) fn writes(&self, index: usize) -> bool {
        self.into == Some(index) || self.deeds.iter().any(|deed| deed.variable() == index)
    }

    fn reads(&self, index: usize) -> bool {
        let source = Source::Variable(index);
        self.mentions.contains(&source)
            || self.looks.contains(&source)
            || self.deeds.contains(&Deed::Extend(index))
            || self.condition == Some(Condition::Variable(index))
    }

    fn definition(&self) -> Node {
        let seen: Vec<String> = self.mentions.iter().map(|source| source.expression()).collect();
        let mut definition = Node::call("step").with(json!({"step": self, "seen": seen}));
        definition = definition.needs(self.needs.iter().map(|key| node(*key)));
        if let Some(condition) = self.condition {
            definition = definition.when(condition.expression());
        }
        if let Some(into) = self.into {
            definition = definition.into(variable(into));
        }
        definition.on_error(if self.is_tolerated { OnError::Continue } else { OnError::Fail })
    }
}

/// A workflow.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Flow {
    pub(crate) steps: BTreeMap<u16, Step>,
    pub(crate) first: Vec<Value>,
}

impl Flow {
    pub(crate) fn new(steps: Vec<Step>, numbers: [u64; NUMBERS]) -> Self {
        let steps = (1..).map(|at: u16| at * GAP).zip(steps).collect();
        let mut first: Vec<Value> = numbers.iter().map(|number| json!(number)).collect();
        first.resize(VARIABLES, json!([]));
        let mut flow = Self { steps, first };
        flow.declare();
        flow
    }

    /// Drops what names no earlier node, and declares every order that matters: between two that write a variable, and
    /// between one that writes and one that reads it. Only a loose reader of what is always written is left undeclared.
    pub(crate) fn declare(&mut self) {
        let keys: Vec<u16> = self.steps.keys().copied().collect();
        for key in &keys {
            let earlier: Vec<u16> = keys.iter().copied().filter(|other| other < key).collect();
            // A key is any number at first: it means one of those before.
            let resolve = |wanted: u16| match earlier.binary_search(&wanted) {
                Ok(_) => Some(wanted),
                Err(_) if earlier.is_empty() => None,
                Err(_) => Some(earlier[usize::from(wanted) % earlier.len()]),
            };
            let writes_later =
                |index: usize| self.steps.iter().any(|(other, step)| other > key && step.into == Some(index));
            let late: Vec<bool> = (0..VARIABLES).map(writes_later).collect();
            let step = self.steps.get_mut(key).unwrap();
            let source = |source: &Source| match source {
                Source::Variable(index) => Some(Source::Variable(*index)),
                Source::Node(wanted) => resolve(*wanted).map(Source::Node),
            };
            step.mentions = step.mentions.iter().filter_map(source).collect();
            step.looks = step.looks.iter().filter_map(source).collect();
            step.needs = step.needs.iter().filter_map(|wanted| resolve(*wanted)).collect();
            step.condition = match step.condition {
                Some(Condition::Output(wanted)) => resolve(wanted).map(Condition::Output),
                Some(Condition::Status(wanted)) => resolve(wanted).map(Condition::Status),
                Some(Condition::Variable(index)) if late[index] => None,
                condition => condition,
            };
            // An expression would wait for those that write the variable later.
            let (dynamic, mentions) = step.mentions.iter().partition(|source| match source {
                Source::Variable(index) => late[*index] || *index == NUMBERS - 1,
                Source::Node(_) => false,
            });
            let dynamic: Vec<Source> = dynamic;
            step.mentions = mentions;
            step.looks.extend(dynamic);
            if !step.is_loose {
                let nodes = step.looks.iter().filter_map(|source| match source {
                    Source::Node(key) => Some(*key),
                    Source::Variable(_) => None,
                });
                step.needs.extend(nodes);
            }
        }
        for index in 0..VARIABLES {
            let (mut writer, mut readers, mut is_firm) = (None, Vec::new(), true);
            for key in &keys {
                let (writes, reads) = (self.steps[key].writes(index), self.steps[key].reads(index));
                let may_be_loose = self.steps[key].is_loose && is_firm;
                let step = self.steps.get_mut(key).unwrap();
                if writes {
                    step.needs.extend(readers.drain(..).chain(writer));
                    writer = Some(*key);
                    is_firm &= self.is_firm(*key);
                } else if reads {
                    if !may_be_loose {
                        step.needs.extend(writer);
                    }
                    readers.push(*key);
                }
            }
        }
    }

    /// Tells whether a node always runs and never fails, once what it waits for has run.
    fn is_firm(&self, key: u16) -> bool {
        let step = &self.steps[&key];
        step.fails_at.is_none()
            && step.condition.is_none()
            && self.dependencies(key).iter().all(|dependency| self.is_firm(*dependency))
    }

    /// Returns the nodes that one waits for.
    pub(crate) fn dependencies(&self, key: u16) -> BTreeSet<u16> {
        let step = &self.steps[&key];
        let mut dependencies = step.needs.clone();
        for source in step.mentions.iter().copied().chain(step.condition.map(Condition::source)) {
            match source {
                Source::Node(other) => drop(dependencies.insert(other)),
                Source::Variable(index) => {
                    let into = |(other, step): (&u16, &Step)| {
                        (step.into == Some(index) && *other != key).then_some(*other)
                    };
                    dependencies.extend(self.steps.iter().filter_map(into));
                }
            }
        }
        dependencies
    }

    pub(crate) fn workflow(&self) -> Workflow {
        let checkpoints = CheckpointConfig {
            frequency: CheckpointFrequency::Always,
            max_checkpoints: 100_000,
            ..CheckpointConfig::default()
        };
        let mut builder = Workflow::builder("flow").checkpoints(checkpoints).max_parallel(1);
        for (index, value) in self.first.iter().enumerate() {
            builder = builder.var(variable(index), value.clone());
        }
        for (key, step) in &self.steps {
            builder = builder.node(node(*key), step.definition());
        }
        builder.build().unwrap()
    }
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        2 => (0..VARIABLES).prop_map(Source::Variable),
        1 => any::<u16>().prop_map(|key| Source::Node(key | 1 << 12)),
    ]
}

fn key() -> impl Strategy<Value = u16> {
    // No node has such a key: it is resolved to one that is there.
    any::<u16>().prop_map(|key| key | 1 << 12)
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0..NUMBERS).prop_map(Deed::Set),
        1 => Just(Deed::Remove),
        3 => (NUMBERS..VARIABLES).prop_map(Deed::Append),
        2 => (NUMBERS..VARIABLES).prop_map(Deed::Extend),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        (0..NUMBERS - 1).prop_map(Condition::Variable),
        key().prop_map(Condition::Output),
        key().prop_map(Condition::Status),
    ]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let reading = (
        prop::collection::vec(source(), 0..3),
        prop::collection::vec(source(), 0..3),
        prop::collection::btree_set(key(), 0..2),
        prop::option::weighted(0.15, condition()),
        any::<bool>(),
    );
    let writing = (
        prop::collection::vec(deed(), 0..3),
        prop::option::weighted(0.3, 0..NUMBERS),
        1..4u64,
        prop::option::weighted(0.1, 0..4u64),
        prop::bool::weighted(0.7),
        0..1_000u64,
    );
    (reading, writing).prop_map(|((mentions, looks, needs, condition, is_loose), writing)| {
        let (deeds, into, grain, fails_at, is_tolerated, salt) = writing;
        Step { mentions, looks, needs, condition, deeds, into, grain, fails_at, is_tolerated, salt, is_loose }
    })
}

/// Workflows of few nodes, and some of many.
pub(crate) fn flow() -> impl Strategy<Value = Flow> {
    let steps = prop_oneof![
        20 => prop::collection::vec(step(), 1..7),
        4 => prop::collection::vec(step(), 7..13),
        1 => prop::collection::vec(step(), 13..=40),
    ];
    (steps, prop::array::uniform3(0..3u64)).prop_map(|(steps, first)| Flow::new(steps, first))
}

/// Workflows of few nodes.
pub(crate) fn small() -> impl Strategy<Value = Flow> {
    (prop::collection::vec(step(), 1..6), prop::array::uniform3(0..3u64))
        .prop_map(|(steps, first)| Flow::new(steps, first))
}
