//! Kills runs and resumes, under each checkpoint policy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::lying::{Copy, Disk};
use super::{Tally, ensure, ensure_sound, kill_after, state, was_killed};
use crate::Outcome;
use crate::workplace::{self, Workplace, succeeded};

/// Layers of nodes, each of which depends on the layer before it.
const LAYERS: usize = 5;
const NODES_PER_LAYER: usize = 4;

/// How often one execution is killed before it is left to finish.
const KILLS_PER_RUN_MAX: usize = 4;

/// How often to try until a kill befalls a run that was told of something.
const LIES_MAX: usize = 50;

/// How long the nodes of a workflow take, and how long is waited for a kill at most: about as long as a run takes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    node_s: &'static str,
    kill_after_ms_max: u64,
}

const QUICK: Pace = Pace { node_s: "0.01", kill_after_ms_max: 400 };

/// Slow enough for an interval of a second to pass while nodes run.
const SLOW: Pace = Pace { node_s: "0.2", kill_after_ms_max: 2_500 };

const ALWAYS: (&str, Pace) = ("frequency: always", QUICK);

const POLICIES: [(&str, Pace); 5] = [
    ALWAYS,
    ("every: 3", QUICK),
    ("interval: 1s", SLOW),
    ("before: [set]", QUICK),
    ("frequency: manual", QUICK),
];

/// What is known to be durable: the output of each node, and how often the node had run by then.
type Durable = BTreeMap<String, (Value, usize)>;

/// Kills that often, each policy in turn.
pub(super) fn kill(random: &mut fastrand::Rng, kills: usize, tally: &mut Tally) -> Outcome<()> {
    for (turn, policy) in (1..).zip(POLICIES) {
        let place = Workplace::new(&workflow(policy), None)?;
        while tally.kills < kills * turn / POLICIES.len() {
            one_execution(&place, policy, random, Disk::Honest, tally)
                .map_err(|wrong| format!("{}: {wrong}", policy.0))?;
        }
    }
    Ok(())
}

/// Kills, and takes back what was acknowledged last: a control.
pub(super) fn lie(random: &mut fastrand::Rng, tally: &mut Tally) -> Outcome<()> {
    let place = Workplace::new(&workflow(ALWAYS), None)?;
    for _ in 0..LIES_MAX {
        one_execution(&place, ALWAYS, random, Disk::Lying, tally)?;
    }
    Ok(())
}

/// Starts an execution, kills it some times, lets it finish, and checks that all that was durable stayed so.
fn one_execution(
    place: &Workplace,
    (_, pace): (&str, Pace),
    random: &mut fastrand::Rng,
    disk: Disk,
    tally: &mut Tally,
) -> Outcome<()> {
    tally.executions += 1;
    let name = format!("run{}", tally.executions);
    // There is none before the first run.
    drop(std::fs::remove_file(place.path().join("journal")));
    let mut durable = Durable::new();
    let mut exists = false;
    for _ in 0..random.usize(1..=KILLS_PER_RUN_MAX) {
        let wait = Duration::from_millis(random.u64(0..pace.kill_after_ms_max));
        let copy = Copy::for_a(disk, place)?;
        let output = kill_after(place, &arguments(&name, exists), wait)?;
        let events = workplace::events(&output);
        if !was_killed(&output) {
            ensure(output.status.success(), || format!("the run failed by itself: {events:?}"))?;
            exists = true;
            break;
        }
        tally.kills += 1;
        copy.put_back(place)?;
        ensure_sound(place)?;
        let Some(state) = state(place, &name)? else {
            ensure(!exists && events.is_empty(), || "an acknowledged execution is gone".to_owned())?;
            continue;
        };
        exists = true;
        ensure_kept(place, &durable, &state)?;
        let succeeded = succeeded(&state);
        for node in workplace::acknowledged(&events) {
            ensure(succeeded.contains_key(&node), || format!("the acknowledged result of {node} is lost"))?;
        }
        for (node, output) in succeeded {
            let ran = times_run(place, &node);
            durable.entry(node).or_insert((output, ran));
        }
        tally.durable += durable.len();
    }
    let output = place.retake(&arguments(&name, exists))?;
    ensure(output.status.success(), || workplace::told(&arguments(&name, exists), &output))?;
    let state = state(place, &name)?.ok_or("a completed run is gone")?;
    ensure(state["status"] == "completed", || format!("the run is {}", state["status"]))?;
    ensure_kept(place, &durable, &state)?;
    let found = succeeded(&state).len();
    ensure(found == LAYERS * (NODES_PER_LAYER + 1), || format!("{found} nodes succeeded"))?;
    tally.again += nodes().map(|node| times_run(place, &node).saturating_sub(1)).sum::<usize>();
    ensure_sound(place)
}

fn arguments(name: &str, exists: bool) -> Vec<&str> {
    match exists {
        true => vec!["resume", name, "--json"],
        false => vec!["run", "workflow.yaml", "--name", name, "--json"],
    }
}

/// What was durable must be there, as it was, and must not have run since.
fn ensure_kept(place: &Workplace, durable: &Durable, state: &Value) -> Outcome<()> {
    let now = succeeded(state);
    for (node, (output, ran)) in durable {
        ensure(now.get(node) == Some(output), || format!("the durable result of {node} changed"))?;
        let times = times_run(place, node);
        ensure(times == *ran, || format!("{node} ran again after its result was durable"))?;
    }
    let journal = place.journal();
    for (node, output) in now.iter().filter(|(node, _)| node.starts_with('n')) {
        let line = format!("{node} {}", output.as_str().unwrap_or_default());
        ensure(journal.contains(&line), || format!("{node} has an output that it never gave: {output}"))?;
    }
    Ok(())
}

fn times_run(place: &Workplace, node: &str) -> usize {
    let begin = format!("{node} ");
    place.journal().iter().filter(|line| line.starts_with(&begin)).count()
}

/// Each `nL_P` writes its name and a word of its own into the journal before it gives the word as its output; each layer
/// ends with a `set` node.
fn workflow((checkpoints, pace): (&str, Pace)) -> String {
    let Pace { node_s, .. } = pace;
    let mut text = format!(
        "name: crash\ncheckpoints: {{ {checkpoints}, max: 100 }}\nmax_parallel: 3\nvars: {{ done: 0 }}\nnodes:\n"
    );
    for layer in 0..LAYERS {
        let before = if layer == 0 { String::new() } else { format!("s{}", layer - 1) };
        for place in 0..NODES_PER_LAYER {
            let node = format!("n{layer}_{place}");
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "  {node}:\n    needs: [{before}]\n    run: |\n      \
                 word=r$(od -An -N8 -tx1 /dev/urandom | tr -d ' \\n')\n      \
                 echo \"{node} $word\" >> journal\n      sleep {node_s}\n      echo $word\n"
            );
        }
        let needs: Vec<String> = (0..NODES_PER_LAYER).map(|place| format!("n{layer}_{place}")).collect();
        let _ =
            writeln!(text, "  s{layer}: {{ needs: [{}], set: {{ done_{layer}: true }} }}", needs.join(", "));
    }
    text
}

fn nodes() -> impl Iterator<Item = String> {
    (0..LAYERS).flat_map(|layer| (0..NODES_PER_LAYER).map(move |place| format!("n{layer}_{place}")))
}
