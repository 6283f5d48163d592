//! Kills what changes a run: each operation must have happened wholly, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::lying::{Copy, Disk};
use super::{Tally, ensure, ensure_sound, kill_after, state, was_killed};
use crate::Outcome;
use crate::workplace::{self, Workplace};

/// Operations on one run before another is begun.
const OPERATIONS_PER_RUN: usize = 8;

/// How often a run is resumed until it has ended, some of them killed.
const RESUMES_MAX: usize = 12;

/// How often the first of them are killed.
const KILLED_RESUMES_MAX: usize = 2;

/// How many points pruning leaves.
const KEPT: &str = "3";

/// An operation takes about as long.
const OPERATION_MS: u64 = 50;

/// An operation and what runs after it take about as long.
const RUN_MS: u64 = 200;

/// Each node writes its name, its key and a word of its own into the journal, and gives the word; each counter-action
/// writes the name, its own key and that of the effect.
const WORKFLOW: &str = r#"
name: operations
checkpoints: { frequency: always, max: 1000 }
max_parallel: 2
vars: { tone: dry }
nodes:
  a: { run: './do.sh' }
  b: { run: './do.sh ${{ vars.tone }}', needs: [a] }
  c: { run: './do.sh', needs: [b] }
  d: { run: './do.sh', needs: [c] }
  e: { run: './do.sh', needs: [a], effect: external, compensate: { run: './undo.sh' } }
  f: { run: './do.sh', needs: [e], effect: external, compensate: { run: './undo.sh' } }
"#;

const DO: &str = "#!/bin/sh
word=r$(od -An -N8 -tx1 /dev/urandom | tr -d ' \\n')
echo \"do $RETAKE_NODE $RETAKE_IDEMPOTENCY_KEY $word\" >> journal
sleep 0.01
echo $word
";

const UNDO: &str = "#!/bin/sh
echo \"undo $RETAKE_NODE $RETAKE_IDEMPOTENCY_KEY $RETAKE_COMPENSATED_KEY\" >> journal
sleep 0.01
";

/// What is done to a run, and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Rollback,
    Compensate,
    Edit,
    Fork,
    Undo,
    Redo,
    Prune,
}

impl Operation {
    const ALL: [Self; 7] =
        [Self::Rollback, Self::Compensate, Self::Edit, Self::Fork, Self::Undo, Self::Redo, Self::Prune];

    fn name(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Compensate => "rollback --compensate",
            Self::Edit => "edit",
            Self::Fork => "fork",
            Self::Undo => "undo",
            Self::Redo => "redo",
            Self::Prune => "prune",
        }
    }

    /// Returns the kind of the checkpoint that it makes.
    fn cause(self) -> Option<&'static str> {
        match self {
            Self::Rollback | Self::Compensate => Some("rollback"),
            Self::Edit => Some("edit"),
            Self::Undo => Some("undo"),
            Self::Redo => Some("redo"),
            Self::Fork | Self::Prune => None,
        }
    }
}

/// A node's result: its key and its output.
type Results = BTreeMap<String, (String, Value)>;

/// A place, and what must stay as it is in it.
struct Trial<'a> {
    place: Workplace,
    disk: Disk,
    random: &'a mut fastrand::Rng,
    tally: &'a mut Tally,
    /// How often each key had run when its result was found to be durable.
    durable: BTreeMap<String, usize>,
    /// The keys of the effects that were to be compensated, by plans that were carried out.
    due: BTreeSet<String>,
    /// How often a process was asked to run a counter-action again, as it died while it ran.
    asked: BTreeMap<String, usize>,
    runs: usize,
}

/// What is known of a run at its head.
struct Before {
    head: u64,
    operations: usize,
    results: Results,
    variables: Value,
}

/// Kills that often.
pub(super) fn kill(random: &mut fastrand::Rng, kills: usize, disk: Disk, tally: &mut Tally) -> Outcome<()> {
    let place = Workplace::new(WORKFLOW, None)?;
    for (name, script) in [("do.sh", DO), ("undo.sh", UNDO)] {
        let path = place.path().join(name);
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let mut trial = Trial {
        place,
        disk,
        random,
        tally,
        durable: BTreeMap::new(),
        due: BTreeSet::new(),
        asked: BTreeMap::new(),
        runs: 0,
    };
    while trial.tally.kills < kills {
        trial.one_run()?;
    }
    trial.ensure_compensated()
}

impl Trial<'_> {
    /// Runs to the end, then kills operations on it, and at last pruning.
    fn one_run(&mut self) -> Outcome<()> {
        let name = self.new_name();
        let run = ["run", "workflow.yaml", "--name", &name, "--json"];
        let output = self.place.retake(&run)?;
        ensure(output.status.success(), || workplace::told(&run, &output))?;
        for _ in 0..OPERATIONS_PER_RUN {
            let operation = Operation::ALL[self.random.usize(0..Operation::ALL.len() - 1)];
            self.operate(&name, operation)
                .map_err(|wrong| format!("{} {name}: {wrong}", operation.name()))?;
        }
        self.prune(&name).map_err(|wrong| format!("prune {name}: {wrong}").into())
    }

    fn new_name(&mut self) -> String {
        self.runs += 1;
        self.tally.executions += 1;
        format!("run{}", self.runs)
    }

    /// Kills one operation, looks at what became of it, and lets the run finish.
    fn operate(&mut self, name: &str, operation: Operation) -> Outcome<()> {
        if operation == Operation::Redo {
            // There may be nothing to take back, and then nothing to do again.
            self.place.retake(&["undo", name, "--skip-effects"])?;
        }
        let before = self.before(name)?;
        let fork = self.new_name();
        let tone = format!("tone=t{}", self.random.u32(..));
        let (at_a, at_b) = (format!("{name}@node:a"), format!("{name}@node:b"));
        let words: Vec<&str> = match operation {
            Operation::Rollback => vec!["rollback", &at_b, "--skip-effects"],
            Operation::Compensate => vec!["rollback", &at_a, "--compensate"],
            Operation::Edit => vec!["edit", name, "--var", &tone],
            Operation::Fork => vec!["fork", &at_b, "--name", &fork, "--set", &tone],
            Operation::Undo => vec!["undo", name, "--skip-effects"],
            Operation::Redo => vec!["redo", name, "--skip-effects"],
            Operation::Prune => return Err("pruning is killed at the end".into()),
        };
        let (is_planned, flags): (bool, &[&str]) = match operation {
            Operation::Rollback | Operation::Compensate | Operation::Edit => {
                (true, &["--yes", "--run", "--json"])
            }
            Operation::Fork => (true, &["--run", "--json"]),
            Operation::Undo | Operation::Redo | Operation::Prune => (false, &["--json"]),
        };
        let plan = if is_planned {
            let dry = [&words[..], &["--dry-run", "--json"]].concat();
            let output = self.place.retake(&dry)?;
            match output.status.code() {
                Some(0) => serde_json::from_slice(&output.stdout)?,
                // It conflicts with what was done before, as what is compensated already.
                Some(4 | 7) => return Ok(()),
                Some(_) | None => return Err(workplace::told(&dry, &output).into()),
            }
        } else {
            Value::Null
        };
        let wait = self.wait(operation);
        let copy = Copy::for_a(self.disk, &self.place)?;
        let output = kill_after(&self.place, &[&words, flags].concat(), wait)?;
        copy.put_back(&self.place)?;
        let subject = if operation == Operation::Fork { fork.as_str() } else { name };
        let happened = match operation {
            Operation::Fork => self.look_at_fork(&fork, &at_b, &plan)?,
            Operation::Rollback
            | Operation::Compensate
            | Operation::Edit
            | Operation::Undo
            | Operation::Redo
            | Operation::Prune => self.look(name, operation, &before, &plan)?,
        };
        let is_acknowledged = workplace::events(&output).iter().any(|event| !event["event"].is_null())
            || output.status.success();
        ensure(happened || !is_acknowledged, || "it was acknowledged, and did not happen".to_owned())?;
        if operation == Operation::Fork {
            // The run that it was made from is as it was.
            ensure(!self.look(name, operation, &before, &plan)?, || "it changed its origin".to_owned())?;
        }
        if was_killed(&output) {
            self.tally.kills += 1;
            let (early, late) = self.tally.operations.entry(operation.name()).or_default();
            *(if happened { late } else { early }) += 1;
        }
        self.look_at_results(subject, &output)?;
        if !happened {
            return Ok(());
        }
        for node in names(&plan["compensate"]) {
            let (key, _) = before.results.get(&node).ok_or("what had no result is compensated")?;
            self.due.insert(key.clone());
        }
        self.finish(subject)?;
        let after = results(&state(&self.place, subject)?.ok_or("it is gone")?);
        let kept = if operation == Operation::Fork { self.results_at(&at_b)? } else { before.results };
        for node in names(&plan["keep"]) {
            ensure(after.get(&node) == kept.get(&node), || format!("{node} was to stay, and is another"))?;
        }
        self.ensure_compensated()
    }

    /// Draws how long an operation lives: some die while they write, some while what follows runs.
    fn wait(&mut self, operation: Operation) -> Duration {
        let is_short = matches!(operation, Operation::Undo | Operation::Redo | Operation::Prune);
        let most = if is_short || self.random.bool() { OPERATION_MS } else { RUN_MS };
        Duration::from_micros(self.random.u64(0..most * 1_000))
    }

    /// Looks whether an operation happened, and that it did so wholly or not at all.
    fn look(&self, name: &str, operation: Operation, before: &Before, plan: &Value) -> Outcome<bool> {
        ensure_sound(&self.place)?;
        let log = self.operations(name)?;
        let now = state(&self.place, name)?.ok_or("the run is gone")?;
        let Some(entry) = log.iter().find(|entry| entry["number"] == before.operations + 1) else {
            ensure(now["head"] == before.head, || {
                format!("the head moved from @{} by nothing", before.head)
            })?;
            let is_same = results(&now) == before.results && now["variables"] == before.variables;
            ensure(is_same, || "the state changed by nothing".to_owned())?;
            return Ok(false);
        };
        ensure(Some(entry["kind"].as_str().unwrap_or_default()) == operation.cause(), || {
            format!("the log says {entry}")
        })?;
        let (from, to) = (entry["before"].as_u64(), entry["after"].as_u64());
        ensure(from == Some(before.head) && to == Some(before.head + 1), || format!("the log says {entry}"))?;
        let made =
            state(&self.place, &format!("{name}@{}", before.head + 1))?.ok_or("its point is not there")?;
        ensure(made["cause"]["kind"] == entry["kind"], || format!("its point is made by {}", made["cause"]))?;
        let made = results(&made);
        for node in names(&plan["keep"]) {
            ensure(made.get(&node) == before.results.get(&node), || format!("it did not keep {node}"))?;
        }
        for step in plan["rerun"].as_array().into_iter().flatten() {
            let node = step["node"].as_str().unwrap_or_default();
            ensure(!made.contains_key(node), || format!("{node} was to run again, and has a result"))?;
        }
        Ok(true)
    }

    /// Looks whether a fork is there: if it is, it begins with what it was to keep.
    fn look_at_fork(&self, fork: &str, origin: &str, plan: &Value) -> Outcome<bool> {
        ensure_sound(&self.place)?;
        let Some(first) = state(&self.place, &format!("{fork}@1"))? else { return Ok(false) };
        let (made, origin) = (results(&first), self.results_at(origin)?);
        for node in names(&plan["keep"]) {
            ensure(made.get(&node) == origin.get(&node), || format!("it did not keep {node}"))?;
        }
        Ok(true)
    }

    /// Looks at the results of a run: what was acknowledged is there, what was durable did not run again, and every
    /// output was given by a node.
    fn look_at_results(&mut self, name: &str, output: &Output) -> Outcome<()> {
        let Some(now) = state(&self.place, name)? else { return Ok(()) };
        let now = results(&now);
        for node in workplace::acknowledged(&workplace::events(output)) {
            ensure(now.contains_key(&node), || format!("the acknowledged result of {node} is lost"))?;
        }
        let journal = self.place.journal();
        let times = |key: &str| journal.iter().filter(|line| is_done_under(line, key)).count();
        for (key, ran) in &self.durable {
            ensure(times(key) == *ran, || format!("what has the key {key} ran again, and was durable"))?;
        }
        for (node, (key, output)) in now {
            let line = format!("do {node} {key} {}", output.as_str().unwrap_or_default());
            ensure(journal.contains(&line), || format!("{node} has an output that it never gave"))?;
            self.durable.entry(key.clone()).or_insert(times(&key));
        }
        self.tally.durable = self.durable.len();
        self.tally.again = self.durable.values().map(|ran| ran - 1).sum();
        Ok(())
    }

    /// Resumes a run until it has ended. Some of the resumes are killed.
    fn finish(&mut self, name: &str) -> Outcome<()> {
        let mut again: Vec<String> = Vec::new();
        for attempt in 0..RESUMES_MAX {
            let mut words = vec!["resume", name, "--json"];
            again.iter().for_each(|node| words.extend(["--again", node]));
            let output = if attempt < KILLED_RESUMES_MAX && self.random.bool() {
                let wait = Duration::from_millis(self.random.u64(0..RUN_MS));
                kill_after(&self.place, &words, wait)?
            } else {
                self.place.retake(&words)?
            };
            if was_killed(&output) {
                self.tally.kills += 1;
                let (_, late) = self.tally.operations.entry("resume").or_default();
                *late += 1;
            }
            ensure_sound(&self.place)?;
            self.look_at_results(name, &output)?;
            match output.status.code() {
                Some(0) => return Ok(()),
                // Whether an effect happened that was in flight is asked; here it may happen again, under the same key.
                Some(7) => {
                    let asked = asked_again(&output);
                    ensure(!asked.is_empty(), || workplace::told(&words, &output))?;
                    again = asked;
                    again.iter().for_each(|node| *self.asked.entry(node.clone()).or_default() += 1);
                }
                None => again.clear(),
                Some(_) => return Err(workplace::told(&words, &output).into()),
            }
        }
        Err("it does not come to an end".into())
    }

    /// Every effect that was to be compensated was, under one key, and no other was.
    fn ensure_compensated(&self) -> Outcome<()> {
        let mut undone: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        for line in self.place.journal() {
            if let ["undo", node, key, effect] = line.split(' ').collect::<Vec<_>>()[..] {
                undone.entry(effect.to_owned()).or_default().insert(key.to_owned());
                *times.entry(node.to_owned()).or_default() += 1;
            }
        }
        for effect in &self.due {
            ensure(undone.contains_key(effect), || format!("the effect {effect} is forgotten"))?;
        }
        for (effect, keys) in &undone {
            ensure(self.due.contains(effect), || format!("the effect {effect} was to stay, and is undone"))?;
            ensure(keys.len() == 1, || format!("the effect {effect} is undone under the keys {keys:?}"))?;
        }
        for (node, times) in times {
            let due = undone.len() + self.asked.get(&node).copied().unwrap_or_default();
            ensure(times <= due, || {
                format!("{node} is undone {times} times, and {due} times at most were due")
            })?;
        }
        Ok(())
    }

    /// Kills pruning: the head stays, and either all goes that is to go, or nothing.
    fn prune(&mut self, name: &str) -> Outcome<()> {
        let before = self.before(name)?;
        let length = |place: &Workplace| -> Outcome<usize> {
            Ok(place.json(&["log", name])?.as_array().map_or(0, Vec::len))
        };
        let whole = length(&self.place)?;
        let wait = self.wait(Operation::Prune);
        let prune = ["prune", name, "--keep", KEPT];
        let output = kill_after(&self.place, &prune, wait)?;
        ensure_sound(&self.place)?;
        let left = length(&self.place)?;
        let now = state(&self.place, name)?.ok_or("the run is gone")?;
        ensure(results(&now) == before.results && now["head"] == before.head, || {
            "the head changed".to_owned()
        })?;
        ensure(self.place.retake(&prune)?.status.success(), || "it cannot be pruned after".to_owned())?;
        ensure_sound(&self.place)?;
        let least = length(&self.place)?;
        ensure(left == whole || left == least, || {
            format!("{left} points are left of {whole}, and not {least}")
        })?;
        if was_killed(&output) {
            self.tally.kills += 1;
            let (early, late) = self.tally.operations.entry(Operation::Prune.name()).or_default();
            *(if left == whole { early } else { late }) += 1;
        }
        Ok(())
    }

    fn before(&self, name: &str) -> Outcome<Before> {
        let now = state(&self.place, name)?.ok_or("the run is gone")?;
        let head = now["head"].as_u64().ok_or("it has no head")?;
        let operations = self.operations(name)?.len();
        Ok(Before { head, operations, results: results(&now), variables: now["variables"].clone() })
    }

    fn operations(&self, name: &str) -> Outcome<Vec<Value>> {
        Ok(self.place.json(&["op", "log", name])?.as_array().cloned().unwrap_or_default())
    }

    fn results_at(&self, address: &str) -> Outcome<Results> {
        Ok(results(&state(&self.place, address)?.ok_or("the point is gone")?))
    }
}

/// Returns the results of the nodes of a state that succeeded.
fn results(state: &Value) -> Results {
    let nodes = state["nodes"].as_object().into_iter().flatten();
    let succeeded = nodes.filter(|(_, node)| node["status"] == "success");
    let key = |node: &Value| node["idempotency_key"].as_str().unwrap_or_default().to_owned();
    succeeded.map(|(name, node)| (name.clone(), (key(node), node["output"].clone()))).collect()
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn is_done_under(line: &str, key: &str) -> bool {
    matches!(line.split(' ').collect::<Vec<_>>()[..], ["do", _, found, _] if found == key)
}

/// Returns the nodes that a hint says may be run again.
fn asked_again(output: &Output) -> Vec<String> {
    let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
    let hint = error["error"]["hint"].as_str().unwrap_or_default().to_owned();
    let words: Vec<&str> = hint.split_whitespace().collect();
    let flags = words.windows(2).filter(|pair| pair[0] == "--again");
    flags.map(|pair| pair[1].trim_end_matches([';', ',']).to_owned()).collect()
}
