//! Shows a run while it goes: as NDJSON, as lines, or as lines above what runs now where a person looks.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use owo_colors::OwoColorize;
use retake::engine::Event;
use retake::workflow::{NodeKind, Workflow};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};

use crate::output::{Output, printable};

/// How long the line of a finished node waits for the checkpoint that records it, so as to name it.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(100);

/// How many running nodes are shown at once.
const SPINNERS_MAX: usize = 32;

/// How often a spinner turns.
const SPINNER_TURN: Duration = Duration::from_millis(100);

/// How many characters of what a node says, or fails with, stand in a line.
const SAID_CHARS_MAX: usize = 200;

/// Where a run is shown. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    output: Output,
    /// What runs now, drawn below the lines; `None` where nobody looks.
    spinners: Option<MultiProgress>,
    running: Arc<AtomicUsize>,
}

impl Screen {
    pub(crate) fn new(output: &Output) -> Self {
        let is_plain = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_watched = !output.json && !is_plain && std::io::stderr().is_terminal();
        Self {
            output: output.clone(),
            spinners: is_watched.then(MultiProgress::new),
            running: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Returns how many nodes run now.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Prints a line for a person.
    pub(crate) fn note(&self, line: &str) {
        match &self.spinners {
            Some(spinners) => spinners.suspend(|| self.output.note(line)),
            None if self.output.json => {}
            None => self.output.note(line),
        }
    }

    /// Shows events until there are no more.
    pub(crate) async fn follow(self, workflow: Workflow, mut events: mpsc::Receiver<Event>) {
        if self.output.json {
            while let Some(event) = events.recv().await {
                self.count(&event);
                self.output.event(&event);
            }
            return;
        }
        let mut lines = Lines::new(self, &workflow);
        loop {
            let event = match &mut lines.patience {
                None => events.recv().await,
                Some(patience) => tokio::select! {
                    event = events.recv() => event,
                    () = patience => {
                        lines.print_held();
                        continue;
                    }
                },
            };
            let Some(event) = event else { break };
            lines.screen.count(&event);
            lines.show(event);
        }
        lines.print_held();
    }

    fn count(&self, event: &Event) {
        match event {
            Event::NodeStarted { attempt: 1, .. } | Event::CompensationStarted { attempt: 1, .. } => {
                self.running.fetch_add(1, Ordering::Relaxed);
            }
            // A node that never started, as one that is skipped, ends too.
            Event::NodeFinished { .. } | Event::CompensationFinished { .. } => {
                let less = |running: usize| Some(running.saturating_sub(1));
                let _updated = self.running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            }
            Event::Started { .. }
            | Event::NodeStarted { .. }
            | Event::CompensationStarted { .. }
            | Event::CompensationRetry { .. }
            | Event::NodeProgress { .. }
            | Event::NodeRetry { .. }
            | Event::Waiting { .. }
            | Event::Checkpoint { .. }
            | _ => {}
        }
    }
}

/// Turns events into lines.
struct Lines {
    screen: Screen,
    /// The nodes whose progress comes in pieces of one text.
    streaming: HashSet<String>,
    spinners: HashMap<String, Spinner>,
    /// Lines of finished nodes that wait for their checkpoint.
    held: Vec<(String, String)>,
    /// Ends when they have waited long enough.
    patience: Option<Pin<Box<Sleep>>>,
}

struct Spinner {
    bar: ProgressBar,
    said: String,
}

impl Lines {
    fn new(screen: Screen, workflow: &Workflow) -> Self {
        let nodes = workflow.definition().nodes.iter();
        let streaming = nodes.filter(|(_, node)| matches!(node.kind, NodeKind::Llm(_)));
        let streaming = streaming.map(|(name, _)| name.clone()).collect();
        Self { screen, streaming, spinners: HashMap::new(), held: Vec::new(), patience: None }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Started { name, head, nodes, reused, .. } => {
                let how = match (head, reused) {
                    (1, 0) => plural(nodes, "node"),
                    _ if reused == nodes => "every node is done already".to_owned(),
                    _ => format!("goes on from @{head}, {reused} of {} done", plural(nodes, "node")),
                };
                self.print(&format!("{}: {how}", name.bold()));
            }
            Event::NodeStarted { node, .. } | Event::CompensationStarted { node, .. } => self.spin(node),
            Event::NodeProgress { node, text } => self.say(&node, &text),
            Event::NodeRetry { node, attempt, error, delay_ms } => {
                let wait = duration(delay_ms);
                self.print(&format!(
                    "  {node}: attempt {attempt} failed: {}; again in {wait}",
                    brief(&error)
                ));
            }
            Event::NodeFinished { node, status, duration_ms, tokens, cost_usd, error } => {
                if let Some(spinner) = self.spinners.remove(&node) {
                    spinner.bar.finish_and_clear();
                }
                let mut line = format!("  {node}: {}", ended(status, duration_ms));
                if let Some(tokens) = tokens {
                    line.push_str(&format!(", {} tokens", tokens.total_tokens));
                }
                if let Some(cost) = cost_usd {
                    line.push_str(&format!(", ${cost}"));
                }
                if let Some(error) = error {
                    line.push_str(&format!(": {}", brief(&error)));
                }
                self.held.push((node, line));
                self.patience.get_or_insert_with(|| Box::pin(sleep(CHECKPOINT_WAIT)));
            }
            Event::NodeSpared { node } => {
                let line = format!("  {node}: {}", "spared, it would see what it saw".dimmed());
                self.held.push((node, line));
                self.patience.get_or_insert_with(|| Box::pin(sleep(CHECKPOINT_WAIT)));
            }
            Event::CompensationRetry { node, attempt, error, delay_ms } => self.print(&format!(
                "  {node}: attempt {attempt} at compensating it failed: {}; again in {}",
                brief(&error),
                duration(delay_ms)
            )),
            Event::CompensationFinished { node, duration_ms, error, .. } => {
                if let Some(spinner) = self.spinners.remove(&node) {
                    spinner.bar.finish_and_clear();
                }
                let time = duration(duration_ms);
                self.print(&match error {
                    None => format!("  {node}: {} in {time}", "compensated".green()),
                    Some(error) => {
                        format!("  {node}: {} after {time}: {}", "not compensated".red(), brief(&error))
                    }
                });
            }
            Event::Waiting { node, message } => {
                self.print(&format!("  {node}: {} {}", "waits for approval:".yellow(), brief(&message)));
            }
            Event::Checkpoint { seq, cause, nodes } => self.checkpoint(seq, cause, &nodes),
            _ => {}
        }
    }

    /// Prints the lines that waited for a checkpoint with its number, or says that there is one.
    fn checkpoint(&mut self, seq: u64, cause: &str, nodes: &[String]) {
        let (recorded, waiting) = std::mem::take(&mut self.held)
            .into_iter()
            .partition::<Vec<_>, _>(|(node, _)| nodes.contains(node));
        self.held = waiting;
        if self.held.is_empty() {
            self.patience = None;
        }
        let at = format!("@{seq}");
        for (_, line) in &recorded {
            self.print(&format!("{line}, {}", at.dimmed()));
        }
        let is_told_otherwise =
            matches!(cause, "started" | "before" | "pause" | "finish" | "cancel" | "compensate");
        if recorded.is_empty() && (!nodes.is_empty() || !is_told_otherwise) {
            let of = if nodes.is_empty() { cause.to_owned() } else { nodes.join(", ") };
            self.print(&format!("  checkpoint {at}: {of}"));
        }
    }

    fn print_held(&mut self) {
        self.patience = None;
        for (_, line) in std::mem::take(&mut self.held) {
            self.print(&line);
        }
    }

    fn print(&self, line: &str) {
        self.screen.note(line);
    }

    fn spin(&mut self, node: String) {
        let Some(spinners) = &self.screen.spinners else { return };
        if self.spinners.contains_key(&node) || self.spinners.len() >= SPINNERS_MAX {
            return;
        }
        let style = ProgressStyle::with_template("  {spinner} {prefix}  {elapsed}  {wide_msg}")
            .expect("the template is one");
        let bar = spinners.add(ProgressBar::new_spinner().with_style(style).with_prefix(node.clone()));
        bar.enable_steady_tick(SPINNER_TURN);
        self.spinners.insert(node, Spinner { bar, said: String::new() });
    }

    fn say(&mut self, node: &str, text: &str) {
        let Some(spinner) = self.spinners.get_mut(node) else { return };
        if !self.streaming.contains(node) {
            spinner.said.clear();
        }
        spinner.said.push_str(text);
        // Of a text that comes in pieces, the newest are shown.
        let letters = spinner.said.chars().count();
        if letters > SAID_CHARS_MAX {
            spinner.said = spinner.said.chars().skip(letters - SAID_CHARS_MAX).collect();
        }
        spinner.bar.set_message(one_line(&spinner.said));
    }
}

fn ended(status: &str, duration_ms: u64) -> String {
    match status {
        "success" => format!("{} in {}", "done".green(), duration(duration_ms)),
        "failure" => format!("{} after {}", "failed".red(), duration(duration_ms)),
        other => other.to_owned(),
    }
}

/// Returns the beginning of a text, on one line.
fn brief(text: &str) -> String {
    let line = one_line(text);
    if line.chars().count() <= SAID_CHARS_MAX {
        return line;
    }
    let beginning: String = line.chars().take(SAID_CHARS_MAX).collect();
    format!("{beginning}…")
}

fn one_line(text: &str) -> String {
    printable(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns a time in the unit that a person would choose.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => humantime::format_duration(Duration::from_secs(ms / 1_000)).to_string(),
    }
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        assert_eq!(duration(12), "12 ms");
        assert_eq!(duration(1_250), "1.2 s");
        assert_eq!(duration(125_000), "2m 5s");
    }

    #[test]
    fn what_a_node_says_takes_one_line_and_steers_no_terminal() {
        assert_eq!(brief("exit 1:\n\u{1b}[31mboom\u{1b}[0m\tagain"), "exit 1: boom again");
        assert_eq!(brief(&"a".repeat(300)).chars().count(), SAID_CHARS_MAX + 1);
    }
}
