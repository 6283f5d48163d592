//! Kills running executions with SIGKILL at random moments, resumes them, and checks every acknowledged result against
//! a journal that the nodes themselves keep outside the store.
//!
//! `RETAKE_KILLS` says how many kills (50), `RETAKE_SEED` repeats a test.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and says its figures"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Layers of nodes, each of which depends on the layer before it.
const LAYERS: usize = 5;
const NODES_PER_LAYER: usize = 4;

/// How often one execution is killed before it is left to finish.
const KILLS_PER_RUN_MAX: usize = 4;

/// How long the nodes of a workflow take, and how long is waited for a kill at most: about as long as a run takes.
struct Pace {
    node_s: &'static str,
    kill_after_ms_max: u64,
}

const QUICK: Pace = Pace { node_s: "0.01", kill_after_ms_max: 400 };

/// Slow enough for an interval of a second to pass while nodes run.
const SLOW: Pace = Pace { node_s: "0.2", kill_after_ms_max: 2_500 };

#[test]
fn always_loses_no_acknowledged_result_and_repeats_none() {
    crash("frequency: always", QUICK);
}

#[test]
fn every_three_nodes_loses_no_acknowledged_result_and_repeats_none() {
    crash("every: 3", QUICK);
}

#[test]
fn an_interval_loses_no_acknowledged_result_and_repeats_none() {
    crash("interval: 1s", SLOW);
}

#[test]
fn before_a_kind_of_node_loses_no_acknowledged_result_and_repeats_none() {
    crash("before: [set]", QUICK);
}

#[test]
fn manual_loses_no_acknowledged_result_and_repeats_none() {
    crash("frequency: manual", QUICK);
}

fn crash(checkpoints: &str, pace: Pace) {
    let kills = from_environment("RETAKE_KILLS").unwrap_or(50).div_ceil(5);
    let seed = from_environment("RETAKE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    eprintln!("{checkpoints}: seed {seed}");
    let mut place = Place::new(checkpoints, pace);
    let mut tally = Tally::default();
    while tally.kills < kills {
        place.one_execution(&mut random, kills, &mut tally);
    }
    eprintln!(
        "{checkpoints}: {} kills in {} executions; {} results were durable at a kill, 0 of them lost, 0 run again; \
         {} nodes in flight ran twice",
        tally.kills, tally.executions, tally.durable, tally.repeated_in_flight
    );
}

/// The figures of a test.
#[derive(Default)]
struct Tally {
    kills: u64,
    executions: u64,
    durable: usize,
    repeated_in_flight: usize,
}

/// What is known to be durable: the output of each node, and how often the node had run by then.
type Durable = BTreeMap<String, (Value, usize)>;

/// A directory with a workflow, a store and a journal.
struct Place {
    directory: tempfile::TempDir,
    pace: Pace,
    executions: usize,
}

impl Place {
    fn new(checkpoints: &str, pace: Pace) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("workflow.yaml"), workflow(checkpoints, pace.node_s)).unwrap();
        Self { directory, pace, executions: 0 }
    }

    /// Starts an execution, kills it some times, lets it finish, and checks that all that was durable stayed so.
    fn one_execution(&mut self, random: &mut fastrand::Rng, kills: u64, tally: &mut Tally) {
        self.executions += 1;
        tally.executions += 1;
        let name = format!("run{}", self.executions);
        let _none_yet = std::fs::remove_file(self.journal());
        let mut durable = Durable::new();
        let mut exists = false;
        for _ in 0..random.usize(1..=KILLS_PER_RUN_MAX) {
            if tally.kills >= kills {
                break;
            }
            let wait = Duration::from_millis(random.u64(0..self.pace.kill_after_ms_max));
            let (status, events) = self.advance(&name, exists, Some(wait));
            if status.code().is_some() {
                assert!(status.success(), "the run failed by itself: {events:?}");
                exists = true;
                break;
            }
            tally.kills += 1;
            self.assert_sound();
            let Some(state) = self.state(&name) else {
                assert!(!exists && events.is_empty(), "an acknowledged execution is gone");
                continue;
            };
            exists = true;
            self.assert_kept(&durable, &state);
            let succeeded = succeeded(&state);
            for node in acknowledged(&events) {
                assert!(succeeded.contains_key(&node), "the acknowledged result of {node} is lost");
            }
            for (node, output) in succeeded {
                let ran = self.times_run(&node);
                durable.entry(node).or_insert((output, ran));
            }
            tally.durable += durable.len();
        }
        let (status, events) = self.advance(&name, exists, None);
        assert!(status.success(), "the last resume failed: {events:?}");
        let state = self.state(&name).unwrap();
        assert_eq!(state["status"], "completed");
        self.assert_kept(&durable, &state);
        assert_eq!(succeeded(&state).len(), LAYERS * (NODES_PER_LAYER + 1));
        tally.repeated_in_flight += nodes().map(|node| self.times_run(&node) - 1).sum::<usize>();
        self.assert_sound();
    }

    /// What was durable must be there, as it was, and must not have run since.
    fn assert_kept(&self, durable: &Durable, state: &Value) {
        let now = succeeded(state);
        for (node, (output, ran)) in durable {
            assert_eq!(now.get(node), Some(output), "the durable result of {node} changed");
            assert_eq!(self.times_run(node), *ran, "{node} ran again after its result was durable");
        }
        let journal = self.journal_lines();
        for (node, output) in now.iter().filter(|(node, _)| node.starts_with('n')) {
            let line = format!("{node} {}", output.as_str().unwrap());
            assert!(journal.contains(&line), "{node} has an output that it never gave: {output}");
        }
    }

    fn assert_sound(&self) {
        let output = self.retake(&["doctor", "--json"]);
        let is_without_store = output.status.code() == Some(3);
        assert!(
            output.status.success() || is_without_store,
            "doctor: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs or resumes, and kills after a while if told so. Returns how the process ended and the events that it told.
    fn advance(&self, name: &str, exists: bool, kill_after: Option<Duration>) -> (ExitStatus, Vec<Value>) {
        let arguments: &[&str] = match exists {
            true => &["resume", name, "--json"],
            false => &["run", "workflow.yaml", "--name", name, "--json"],
        };
        let mut child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut told = String::new();
            stdout.read_to_string(&mut told).unwrap();
            told
        });
        if let Some(wait) = kill_after {
            // The moment of the kill is what the test draws.
            std::thread::sleep(wait);
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        let told = reader.join().unwrap();
        // The last line may be torn.
        (status, told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Returns what `show` says of the run, or `None` where there is no such run.
    fn state(&self, name: &str) -> Option<Value> {
        let output = self.retake(&["show", name, "--json"]);
        match output.status.code() {
            Some(0) => Some(serde_json::from_slice(&output.stdout).unwrap()),
            Some(3) => None,
            code => panic!("show ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    fn retake(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retake"));
        command.current_dir(self.directory.path()).args(arguments).stdin(Stdio::null());
        command.env_remove("RETAKE_STORE");
        command
    }

    fn journal(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    fn journal_lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.journal()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn times_run(&self, node: &str) -> usize {
        let begin = format!("{node} ");
        self.journal_lines().iter().filter(|line| line.starts_with(&begin)).count()
    }
}

/// Each `nL_P` writes its name and a word of its own into the journal before it gives the word as its output; each layer
/// ends with a `set` node.
fn workflow(checkpoints: &str, node_s: &str) -> String {
    let mut text = format!(
        "name: crash\ncheckpoints: {{ {checkpoints}, max: 100 }}\nmax_parallel: 3\nvars: {{ done: 0 }}\nnodes:\n"
    );
    for layer in 0..LAYERS {
        let before = if layer == 0 { String::new() } else { format!("s{}", layer - 1) };
        for place in 0..NODES_PER_LAYER {
            let node = format!("n{layer}_{place}");
            writeln!(
                text,
                "  {node}:\n    needs: [{before}]\n    run: |\n      \
                 word=r$(od -An -N8 -tx1 /dev/urandom | tr -d ' \\n')\n      \
                 echo \"{node} $word\" >> journal\n      sleep {node_s}\n      echo $word"
            )
            .unwrap();
        }
        let needs: Vec<String> = (0..NODES_PER_LAYER).map(|place| format!("n{layer}_{place}")).collect();
        writeln!(text, "  s{layer}: {{ needs: [{}], set: {{ done_{layer}: true }} }}", needs.join(", "))
            .unwrap();
    }
    text
}

fn nodes() -> impl Iterator<Item = String> {
    (0..LAYERS).flat_map(|layer| (0..NODES_PER_LAYER).map(move |place| format!("n{layer}_{place}")))
}

/// Returns the nodes whose results were acknowledged: those of every checkpoint that was reported.
fn acknowledged(events: &[Value]) -> Vec<String> {
    let checkpoints = events.iter().filter(|event| event["event"] == "checkpoint");
    let nodes = checkpoints.filter_map(|event| event["nodes"].as_array()).flatten();
    nodes.filter_map(|node| node.as_str().map(str::to_owned)).collect()
}

fn succeeded(state: &Value) -> BTreeMap<String, Value> {
    let nodes = state["nodes"].as_object().unwrap().iter();
    nodes
        .filter(|(_, node)| node["status"] == "success")
        .map(|(name, node)| (name.clone(), node["output"].clone()))
        .collect()
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}
