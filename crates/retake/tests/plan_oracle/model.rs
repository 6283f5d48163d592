//! What an execution should be: a plain interpreter of random workflows, which knows nothing of plans.
//!
//! Time is a count of what happened. A variable is what the last of these made of it: a value that it was given by the
//! workflow or a person, and the writes of results, in the order of their times. *A value that a person sets is there
//! from that moment on*: who had read the variable's value of the moment before must see the new one; who had read an
//! earlier value, before another node overwrote it, saw what it should, and stays.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::flow::{Condition, Deed, Flow, NUMBERS, Source, Step, VARIABLES};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    Failure,
    Skipped,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    Set(Value),
    Output,
    Append(Value),
    Remove,
}

/// What a node gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gave {
    pub(crate) status: Status,
    pub(crate) output: Value,
    /// What it looked at, and saw.
    pub(crate) seen: BTreeMap<Source, Value>,
    pub(crate) writes: Vec<(usize, Write)>,
    pub(crate) at: u64,
    /// Whether a person put the output in place of another.
    pub(crate) is_edited: bool,
}

/// A result that may stand again: what those it waits for had given, and what it gave.
#[derive(Debug, Clone, PartialEq)]
struct Spare {
    upstream: Vec<(u16, Value)>,
    gave: Gave,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) flow: Flow,
    pub(crate) gave: BTreeMap<u16, Gave>,
    spares: BTreeMap<u16, Spare>,
    /// For each variable, what it was given when.
    pub(crate) given: Vec<Vec<(u64, Option<Value>)>>,
    pub(crate) now: u64,
}

impl Model {
    pub(crate) fn new(flow: Flow) -> Self {
        let given = flow.first.iter().map(|value| vec![(0, Some(value.clone()))]).collect();
        Self { flow, gave: BTreeMap::new(), spares: BTreeMap::new(), given, now: 0 }
    }

    /// Returns a variable as it is once `at` is over.
    pub(crate) fn variable(&self, index: usize, at: u64) -> Option<Value> {
        let given = self.given[index].iter().map(|(at, value)| (*at, 0, value.clone().map(Write::Set), None));
        let written = self.gave.values().flat_map(|gave| {
            let writes = gave.writes.iter().enumerate().filter(move |(_, (of, _))| *of == index);
            writes.map(move |(place, (_, write))| (gave.at, place, Some(write.clone()), Some(&gave.output)))
        });
        let mut events: Vec<_> = given.chain(written).filter(|event| event.0 <= at).collect();
        events.sort_by_key(|event| (event.0, event.1));
        let mut value = None;
        for (_, _, write, output) in events {
            match write {
                Some(Write::Set(to)) => value = Some(to),
                Some(Write::Output) => value = output.cloned(),
                Some(Write::Append(item)) => {
                    let list = value.get_or_insert_with(|| json!([]));
                    list.as_array_mut().expect("only lists are appended to").push(item);
                }
                Some(Write::Remove) | None => value = None,
            }
        }
        value
    }

    /// Returns what is seen of a node at a time: its status and its output.
    fn node(&self, key: u16, at: u64) -> Value {
        match self.gave.get(&key).filter(|gave| gave.at <= at) {
            Some(gave) => json!([format!("{:?}", gave.status), gave.output]),
            None => json!(["Pending", null]),
        }
    }

    fn look(&self, source: Source, at: u64) -> Value {
        match source {
            Source::Variable(index) => self.variable(index, at).unwrap_or_default(),
            Source::Node(key) => self.node(key, at),
        }
    }

    /// Interprets a node at a time: what it would give.
    fn interpret(&self, key: u16, at: u64) -> Gave {
        let step = &self.flow.steps[&key];
        let mut seen = BTreeMap::new();
        let nothing = |status, seen| Gave {
            status,
            output: Value::Null,
            seen,
            writes: Vec::new(),
            at: at + 1,
            is_edited: false,
        };
        let is_passed_on = |dependency: &u16| {
            let is_skipped = self.gave.get(dependency).is_some_and(|gave| gave.status == Status::Skipped);
            is_skipped && step.condition != Some(Condition::Status(*dependency))
        };
        if self.flow.dependencies(key).iter().any(is_passed_on) {
            return nothing(Status::Skipped, seen);
        }
        let mut look = |source: Source| {
            let value = self.look(source, at);
            seen.insert(source, value.clone());
            match source {
                Source::Variable(_) => value,
                Source::Node(_) => value[1].clone(),
            }
        };
        let is_wanted = match step.condition {
            None => true,
            Some(Condition::Variable(index)) => look(Source::Variable(index)) != json!(0),
            Some(Condition::Output(other)) => look(Source::Node(other)) != json!(0),
            Some(Condition::Status(other)) => {
                look(Source::Node(other));
                self.node(other, at)[0] != "Skipped"
            }
        };
        if !is_wanted {
            return nothing(Status::Skipped, seen);
        }
        let mut values: Vec<Value> =
            step.mentions.iter().chain(&step.looks).map(|source| look(*source)).collect();
        let act = step.act(&values);
        let mut writes = Vec::new();
        for deed in &step.deeds {
            match deed {
                Deed::Set(index) => writes.push((*index, Write::Set(json!(act.value)))),
                Deed::Remove => writes.push((NUMBERS - 1, Write::Remove)),
                Deed::Append(index) => writes.push((*index, Write::Append(json!(act.value)))),
                Deed::Extend(index) => {
                    let mut list = look(Source::Variable(*index));
                    let own = writes.iter().filter(|(of, _)| of == index);
                    let own: Vec<Value> = own
                        .filter_map(|(_, write)| match write {
                            Write::Append(item) => Some(item.clone()),
                            Write::Set(_) | Write::Output | Write::Remove => None,
                        })
                        .chain([json!(act.value)])
                        .collect();
                    if list.is_null() {
                        list = json!([]);
                    }
                    list.as_array_mut().unwrap().extend(own);
                    writes.push((*index, Write::Append(json!(act.value))));
                    values.push(list);
                }
            }
        }
        if act.fails {
            return nothing(Status::Failure, seen);
        }
        writes.extend(step.into.map(|index| (index, Write::Output)));
        let output = json!(step.output(&values));
        Gave { status: Status::Success, output, seen, writes, at: at + 1, is_edited: false }
    }

    fn upstream(&self, key: u16) -> Vec<(u16, Value)> {
        let dependencies = self.flow.dependencies(key);
        dependencies.into_iter().map(|other| (other, self.node(other, u64::MAX))).collect()
    }

    /// Sends nodes back to run again.
    pub(crate) fn send_back(&mut self, nodes: &BTreeSet<u16>) {
        let spares: Vec<(u16, Spare)> = nodes
            .iter()
            .filter_map(|key| {
                let gave = self.gave.get(key).filter(|gave| gave.status == Status::Success)?.clone();
                Some((*key, Spare { upstream: self.upstream(*key), gave }))
            })
            .collect();
        self.spares.extend(spares);
        self.gave.retain(|key, _| !nodes.contains(key));
    }

    /// Gives a variable a value by hand.
    pub(crate) fn set(&mut self, index: usize, value: Value) {
        self.now += 1;
        self.given[index].push((self.now, Some(value)));
    }

    /// Puts another output in place of what a node gave.
    pub(crate) fn edit(&mut self, key: u16, output: Value) {
        let gave = self.gave.get_mut(&key).unwrap();
        (gave.output, gave.is_edited) = (output, true);
    }

    /// Goes on with another workflow.
    pub(crate) fn redefine(&mut self, flow: Flow) {
        for (key, step) in &self.flow.steps {
            if flow.steps.get(key) != Some(step) {
                self.spares.remove(key);
            }
        }
        self.gave.retain(|key, _| flow.steps.contains_key(key));
        for index in 0..VARIABLES {
            if flow.first[index] != self.flow.first[index] && self.given[index].len() == 1 {
                self.given[index] = vec![(0, Some(flow.first[index].clone()))];
            }
        }
        self.flow = flow;
    }

    /// Runs what is left, in order, to the end or to the first failure that nobody tolerates. Returns which nodes were
    /// interpreted, and not spared.
    pub(crate) fn run(&mut self) -> Vec<u16> {
        let steps: Vec<(u16, Step)> = self.flow.steps.clone().into_iter().collect();
        let is_fatal = |step: &Step, gave: &Gave| gave.status == Status::Failure && !step.is_tolerated;
        for (key, step) in &steps {
            if self.gave.get(key).is_some_and(|gave| is_fatal(step, gave)) {
                self.gave.remove(key);
            }
        }
        let mut ran = Vec::new();
        for (key, step) in &steps {
            if self.gave.contains_key(key) {
                continue;
            }
            let mut gave = self.interpret(*key, self.now);
            let spare = self.spares.remove(key);
            let stands = |spare: &Spare| {
                gave.status != Status::Skipped
                    && spare.upstream == self.upstream(*key)
                    && spare.gave.seen.iter().all(|(source, seen)| self.look(*source, self.now) == *seen)
            };
            match spare.filter(stands) {
                Some(spare) => gave = Gave { at: self.now + 1, ..spare.gave },
                None if gave.status != Status::Skipped => ran.push(*key),
                None => {}
            }
            self.now += 1;
            let ends = is_fatal(step, &gave);
            self.gave.insert(*key, gave);
            if ends {
                break;
            }
        }
        ran
    }

    /// Says which result is not what its node would have given at its time, if there is one: then something stayed that
    /// should have run again.
    pub(crate) fn flaw(&self) -> Option<String> {
        // What a person gave stands whatever its node reads.
        for (key, gave) in self.gave.iter().filter(|(_, gave)| !gave.is_edited) {
            let should = self.interpret(*key, gave.at - 1);
            if should != *gave {
                return Some(format!("{key} gave {gave:?}, and should give {should:?}"));
            }
        }
        None
    }
}

impl Model {
    /// Forgets what runs again in every resume.
    pub(crate) fn forget_failures(&mut self) {
        let steps = &self.flow.steps;
        self.gave.retain(|key, gave| gave.status != Status::Failure || steps[key].is_tolerated);
    }

    /// Takes over what a node gave in a later model of the same execution.
    pub(crate) fn take_over(&mut self, key: u16, later: &Self) {
        let gave = later.gave[&key].clone();
        self.now = self.now.max(gave.at);
        self.spares.remove(&key);
        self.gave.insert(key, gave);
    }

    /// Returns the nodes that gave an output.
    pub(crate) fn successes(&self) -> Vec<u16> {
        let successes = self.gave.iter().filter(|(_, gave)| gave.status == Status::Success);
        successes.map(|(key, _)| *key).collect()
    }

    /// Tells whether a person put an output in place of one that was not there yet: going back keeps it beside what
    /// it has nothing to do with, and no run from zero gives it.
    pub(crate) fn has_edited_since(&self, then: &Self) -> bool {
        let is_newer = |(key, gave): (&u16, &Gave)| {
            gave.is_edited && then.gave.get(key).is_none_or(|then| then.at != gave.at)
        };
        self.gave.iter().any(is_newer) || self.spares.values().any(|spare| spare.gave.is_edited)
    }

    /// Returns when a variable last changed.
    pub(crate) fn last_change(&self, index: usize) -> u64 {
        let written = self.gave.values().filter(|gave| gave.writes.iter().any(|(of, _)| *of == index));
        let given = self.given[index].iter().map(|(at, _)| *at);
        written.map(|gave| gave.at).chain(given).max().unwrap_or(0)
    }

    /// Returns the writes that made a variable what it is once `at` is over: the last that left nothing of the value
    /// before, and those that were appended since.
    pub(crate) fn made_of(&self, index: usize, at: u64) -> Vec<(u16, Write)> {
        let given =
            self.given[index].iter().map(|(at, _)| *at).filter(|given| *given <= at).max().unwrap_or(0);
        let mut writes: Vec<(u64, usize, u16, &Write)> = Vec::new();
        for (key, gave) in self.gave.iter().filter(|(_, gave)| gave.at <= at && gave.at > given) {
            let own = gave.writes.iter().enumerate().filter(|(_, (of, _))| *of == index);
            writes.extend(own.map(|(place, (_, write))| (gave.at, place, *key, write)));
        }
        writes.sort_by_key(|(at, place, ..)| (*at, *place));
        let is_whole = |write: &Write| !matches!(write, Write::Append(_));
        let first = writes.iter().rposition(|(.., write)| is_whole(write)).unwrap_or(0);
        writes[first..].iter().map(|(_, _, key, write)| (*key, (*write).clone())).collect()
    }
}
