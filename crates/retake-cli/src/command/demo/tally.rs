//! What the demo saw, put together: whether the server's count fits the history, and what it amounts to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use retake::execution::TokenUsage;
use retake::workflow::Price;
use rust_decimal::Decimal;
use serde::Serialize;

use super::model_server::{Call, Process, Progress};

/// What the server and the histories said.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) calls: Vec<Call>,
    /// The nodes that the history held after the kill and that had asked the model.
    pub(super) recorded_at_kill: BTreeSet<String>,
    /// What each node that asked the model took, in the history of the run when it had been resumed.
    pub(super) resumed: BTreeMap<String, TokenUsage>,
    /// The same when it had been rolled back and run again.
    pub(super) rolled_back: BTreeMap<String, TokenUsage>,
    /// The same when it had been edited and run again.
    pub(super) edited: BTreeMap<String, TokenUsage>,
    /// The nodes that the plan of the rollback sent back.
    pub(super) sent_back: BTreeSet<String>,
    /// The nodes that the plan of the edit sent back.
    pub(super) sent_back_by_edit: BTreeSet<String>,
    /// The nodes that the history recorded after the edit, whether they ask the model or not.
    pub(super) recorded_after_edit: BTreeSet<String>,
    pub(super) prices: BTreeMap<String, Price>,
}

/// What it amounts to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Numbers {
    pub(super) calls_made: usize,
    pub(super) calls_before_kill: usize,
    /// Those of them that were on their way at the kill.
    pub(super) calls_cut_off: usize,
    pub(super) calls_after_resume: usize,
    /// Calls of nodes that had been called before the kill, and whose answer had not been recorded.
    pub(super) calls_repeated: usize,
    pub(super) calls_after_rollback: usize,
    pub(super) calls_after_edit: usize,
    /// Nodes that ran after the edit, whether they ask the model or not.
    pub(super) nodes_run_after_edit: usize,
    /// Calls that the workflow needs from its start to its end.
    pub(super) calls_of_a_whole_run: usize,
    /// Calls where the kill and each change are followed by a start from zero.
    pub(super) calls_from_zero: usize,
    pub(super) tokens_made: u64,
    pub(super) tokens_from_zero: u64,
    pub(super) cost_made_usd: Option<String>,
    pub(super) cost_from_zero_usd: Option<String>,
}

/// Tokens that a node's call took, of the prompt and of the answer.
struct Taken<'n> {
    node: &'n str,
    input: u32,
    output: u32,
}

impl Seen {
    /// Returns what does not fit: each a whole sentence without its full stop. Empty where all of it does.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for process in [Process::Killed, Process::Resumed, Process::RolledBack, Process::Edited] {
            let mut called = BTreeSet::new();
            for call in self.of(process).filter(|call| !called.insert(&call.node)) {
                found.push(format!("one process ({process:?}) called `{}` twice", call.node));
            }
        }
        let answered = self.of(Process::Killed).filter(|call| call.progress == Progress::Answered);
        let answered: BTreeSet<String> = answered.map(|call| call.node.clone()).collect();
        for node in self.recorded_at_kill.difference(&answered) {
            found.push(format!("the history holds an answer for `{node}` that the server did not give"));
        }
        let open = self.resumed.keys().filter(|node| !self.recorded_at_kill.contains(*node));
        found.extend(differing("resumed run", open.cloned().collect(), self.nodes_of(Process::Resumed)));
        let again = self.rolled_back.keys().filter(|node| self.sent_back.contains(*node));
        let called = self.nodes_of(Process::RolledBack);
        found.extend(differing("run that was rolled back", again.cloned().collect(), called));
        let again = self.edited.keys().filter(|node| self.sent_back_by_edit.contains(*node));
        let called = self.nodes_of(Process::Edited);
        found.extend(differing("run that was edited", again.cloned().collect(), called));
        if self.recorded_after_edit != self.sent_back_by_edit {
            let (recorded, planned) = (list(&self.recorded_after_edit), list(&self.sent_back_by_edit));
            found
                .push(format!("the history records {recorded} after the edit, and the plan named {planned}"));
        }
        found.extend(self.wrong_keys());
        let until = |last| self.calls.iter().filter(move |call| call.process <= last);
        found.extend(miscounted(&self.resumed, until(Process::Resumed)));
        found.extend(miscounted(&self.rolled_back, until(Process::RolledBack)));
        found.extend(miscounted(&self.edited, until(Process::Edited)));
        found
    }

    /// Returns the numbers.
    pub(super) fn numbers(&self) -> Numbers {
        let count = |process| self.of(process).count();
        let before_kill = count(Process::Killed);
        let called_before: BTreeSet<&String> = self.of(Process::Killed).map(|call| &call.node).collect();
        let repeated = self.of(Process::Resumed).filter(|call| called_before.contains(&call.node));
        let made = || self.calls.iter().map(Taken::by);
        let whole_runs =
            || [&self.resumed, &self.rolled_back, &self.edited].into_iter().flatten().map(Taken::recorded);
        let from_zero = || self.of(Process::Killed).map(Taken::by).chain(whole_runs());
        Numbers {
            calls_made: self.calls.len(),
            calls_before_kill: before_kill,
            calls_cut_off: self
                .of(Process::Killed)
                .filter(|call| call.progress != Progress::Answered)
                .count(),
            calls_after_resume: count(Process::Resumed),
            calls_repeated: repeated.count(),
            calls_after_rollback: count(Process::RolledBack),
            calls_after_edit: count(Process::Edited),
            nodes_run_after_edit: self.recorded_after_edit.len(),
            calls_of_a_whole_run: self.resumed.len(),
            calls_from_zero: before_kill + whole_runs().count(),
            tokens_made: made().map(|taken| taken.tokens()).sum(),
            tokens_from_zero: from_zero().map(|taken| taken.tokens()).sum(),
            cost_made_usd: self.cost_usd(made()),
            cost_from_zero_usd: self.cost_usd(from_zero()),
        }
    }

    fn of(&self, process: Process) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.process == process)
    }

    fn nodes_of(&self, process: Process) -> BTreeSet<String> {
        self.of(process).map(|call| call.node.clone()).collect()
    }

    /// A call that is made again after a crash carries the key that it had; one that was sent back, a new one.
    fn wrong_keys(&self) -> Vec<String> {
        let mut found = Vec::new();
        for call in &self.calls {
            let mut earlier = self.calls.iter().filter(|other| other.process < call.process);
            let Some(before) = earlier.rfind(|other| other.node == call.node) else { continue };
            let is_same = before.idempotency_key == call.idempotency_key;
            match call.process {
                Process::Killed | Process::Resumed if !is_same => {
                    found.push(format!("`{}` was repeated under another idempotency key", call.node));
                }
                Process::RolledBack | Process::Edited if is_same => {
                    found.push(format!("`{}` was run anew under its old idempotency key", call.node));
                }
                Process::Killed | Process::Resumed | Process::RolledBack | Process::Edited => {}
            }
        }
        found
    }

    /// Returns what calls cost together, as a decimal; `None` where the price of one is not known.
    fn cost_usd<'n>(&self, mut taken: impl Iterator<Item = Taken<'n>>) -> Option<String> {
        let of = |rate: &str, tokens: u32| Decimal::from_str_exact(rate).ok()?.checked_mul(tokens.into());
        let millionths = taken.try_fold(Decimal::ZERO, |sum, taken| {
            let price = self.prices.get(taken.node)?;
            sum.checked_add(of(&price.input, taken.input)?)?.checked_add(of(&price.output, taken.output)?)
        })?;
        Some(millionths.checked_div(Decimal::from(1_000_000))?.normalize().to_string())
    }
}

impl<'n> Taken<'n> {
    fn by(call: &'n Call) -> Self {
        Self { node: &call.node, input: call.input_tokens, output: call.output_tokens }
    }

    fn recorded((node, usage): (&'n String, &TokenUsage)) -> Self {
        Self { node, input: usage.input_tokens, output: usage.output_tokens }
    }

    fn tokens(&self) -> u64 {
        u64::from(self.input) + u64::from(self.output)
    }
}

fn differing(whose: &str, expected: BTreeSet<String>, called: BTreeSet<String>) -> Option<String> {
    (expected != called)
        .then(|| format!("the {whose} called {}, and had to call {}", list(&called), list(&expected)))
}

fn list(nodes: &BTreeSet<String>) -> String {
    nodes.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// Compares what the history says that each node took with the last call of it.
fn miscounted<'c>(
    recorded: &BTreeMap<String, TokenUsage>,
    calls: impl Iterator<Item = &'c Call>,
) -> Vec<String> {
    let last: BTreeMap<&String, &Call> = calls.map(|call| (&call.node, call)).collect();
    let counted = |node| last.get(node).map(|call| (call.input_tokens, call.output_tokens));
    recorded
        .iter()
        .filter(|(node, usage)| counted(*node) != Some((usage.input_tokens, usage.output_tokens)))
        .map(|(node, _)| {
            format!("the tokens that the history holds for `{node}` are not those of its last call")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(process: Process, node: &str, key: &str, progress: Progress) -> Call {
        let output_tokens = if progress == Progress::Answered { 40 } else { 20 };
        let (node, idempotency_key) = (node.to_owned(), key.to_owned());
        Call { process, node, idempotency_key, input_tokens: 10, output_tokens, progress }
    }

    fn names(nodes: &[&str]) -> BTreeSet<String> {
        nodes.iter().map(|node| (*node).to_owned()).collect()
    }

    /// `a` is recorded, `b` in flight at the kill; `c` is sent back by the rollback, and once more by the edit.
    fn seen() -> Seen {
        let all = ["a", "b", "c"];
        let price = Price { input: "3.00".to_owned(), output: "15.00".to_owned(), cached_input: None };
        let usage = || all.iter().map(|node| ((*node).to_owned(), TokenUsage::new(10, 40))).collect();
        Seen {
            calls: vec![
                call(Process::Killed, "a", "a1", Progress::Answered),
                call(Process::Killed, "b", "b1", Progress::Halfway),
                call(Process::Resumed, "b", "b1", Progress::Answered),
                call(Process::Resumed, "c", "c1", Progress::Answered),
                call(Process::RolledBack, "c", "c2", Progress::Answered),
                call(Process::Edited, "c", "c3", Progress::Answered),
            ],
            recorded_at_kill: names(&["a"]),
            resumed: usage(),
            rolled_back: usage(),
            edited: usage(),
            sent_back: names(&["c", "not_of_the_model"]),
            sent_back_by_edit: names(&["c", "not_of_the_model"]),
            recorded_after_edit: names(&["c", "not_of_the_model"]),
            prices: all.iter().map(|node| ((*node).to_owned(), price.clone())).collect(),
        }
    }

    #[test]
    fn a_story_that_fits_is_counted() {
        let seen = seen();
        assert_eq!(seen.contradictions(), Vec::<String>::new());
        let numbers = seen.numbers();
        assert_eq!(numbers.calls_made, 6);
        assert_eq!((numbers.calls_before_kill, numbers.calls_cut_off, numbers.calls_repeated), (2, 1, 1));
        assert_eq!((numbers.calls_of_a_whole_run, numbers.calls_from_zero), (3, 2 + 3 + 3 + 3));
        assert_eq!((numbers.calls_after_edit, numbers.nodes_run_after_edit), (1, 2));
        assert_eq!(numbers.tokens_made, 5 * 50 + 30);
        assert_eq!(numbers.tokens_from_zero, 50 + 30 + 9 * 50);
        // 60 × 3.00 + 220 × 15.00, for a million.
        assert_eq!(numbers.cost_made_usd.unwrap(), "0.00348");
    }

    #[test]
    fn without_a_price_the_cost_is_unknown_and_not_less() {
        let mut seen = seen();
        seen.prices.remove("c");
        assert_eq!(seen.numbers().cost_made_usd, None);
    }

    #[test]
    fn a_recorded_node_that_is_called_again_is_found() {
        let mut seen = seen();
        seen.calls.push(call(Process::Resumed, "a", "a1", Progress::Answered));
        assert_eq!(seen.contradictions(), ["the resumed run called a, b, c, and had to call b, c"]);
    }

    #[test]
    fn a_node_that_was_sent_back_and_not_called_is_found() {
        let mut seen = seen();
        seen.calls.remove(4);
        assert_eq!(seen.contradictions(), ["the run that was rolled back called , and had to call c"]);
    }

    #[test]
    fn a_node_that_is_called_twice_by_one_process_is_found() {
        let mut seen = seen();
        seen.calls.push(call(Process::RolledBack, "c", "c2", Progress::Answered));
        assert_eq!(seen.contradictions(), ["one process (RolledBack) called `c` twice"]);
    }

    #[test]
    fn what_runs_after_an_edit_beside_its_plan_is_found() {
        let mut seen = seen();
        seen.calls.push(call(Process::Edited, "a", "a2", Progress::Answered));
        seen.recorded_after_edit.insert("a".to_owned());
        assert_eq!(
            seen.contradictions(),
            [
                "the run that was edited called a, c, and had to call c",
                "the history records a, c, not_of_the_model after the edit, and the plan named c, not_of_the_model",
            ]
        );
    }

    #[test]
    fn an_answer_that_the_server_did_not_give_is_found() {
        let mut seen = seen();
        seen.recorded_at_kill = names(&["a", "b"]);
        seen.calls.remove(2);
        let found = seen.contradictions();
        assert_eq!(found[0], "the history holds an answer for `b` that the server did not give");
    }

    #[test]
    fn wrong_keys_and_tokens_are_found() {
        let mut seen = seen();
        seen.calls[2].idempotency_key = "b2".to_owned();
        seen.calls[4].idempotency_key = "c1".to_owned();
        seen.calls[5].idempotency_key = "c1".to_owned();
        seen.rolled_back.insert("c".to_owned(), TokenUsage::new(10, 41));
        assert_eq!(
            seen.contradictions(),
            [
                "`b` was repeated under another idempotency key",
                "`c` was run anew under its old idempotency key",
                "`c` was run anew under its old idempotency key",
                "the tokens that the history holds for `c` are not those of its last call",
            ]
        );
    }
}
