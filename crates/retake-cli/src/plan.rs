//! Plans for a person: what stays, what runs again and why, what changes, and what that costs.

use std::fmt::Display;

use owo_colors::OwoColorize;
use retake::engine::{Effects, Plan, VariableChange};
use retake::execution::Cost;
use serde_json::Value;

use crate::output::Output;
use crate::wording;

/// How many nodes, or variables, are named one by one. The others are counted.
const NAMED_MAX: usize = 12;

/// How long nodes must have taken together for the time to be worth a word.
const DURATION_MS_MIN: u64 = 1_000;

/// A plan as it is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// What changes, and from where to where.
    pub(crate) heading: &'a str,
    pub(crate) plan: &'a Plan,
    /// What is done about what cannot be undone.
    pub(crate) effects: Effects,
    /// What is said where nothing changes, if that is worth a word.
    pub(crate) unchanged: Option<&'a str>,
}

impl Shown<'_> {
    pub(crate) fn print(self, output: &Output) {
        self.lines().iter().for_each(|line| output.line(line));
    }

    fn lines(self) -> Vec<String> {
        let Self { heading, plan, effects, unchanged } = self;
        let mut lines = vec![heading.to_owned()];
        let mut list = |mark: String, what: &str, nodes: &[String], end: &str| {
            if !nodes.is_empty() {
                lines.push(format!("  {mark} {what} {}{end}", named(nodes)));
            }
        };
        list("=".to_owned(), "keeps", &plan.keep, "");
        list("x".red().to_string(), "drops", &plan.removed, ", which the workflow has no more");
        let again = plan.rerun.iter();
        let again = again.map(|it| format!("{} {} runs again: {}", "~".yellow(), it.node, it.because));
        lines.extend(bounded(again, "run again"));
        let pending = format!("  {} then runs {}", ">".dimmed(), named(&plan.pending));
        lines.extend((!plan.pending.is_empty()).then_some(pending));
        let left = plan.inconsistent.iter();
        let left = left.map(|it| format!("{} {} stays, although {}", "?".yellow(), it.node, it.because));
        lines.extend(bounded(left, "stay as well"));
        let fate = match effects {
            Effects::Refuse => ", and needs a choice: --skip-effects, --again or --compensate",
            Effects::Again => ", and happens once more",
            Effects::Keep => ", so its result stays",
            Effects::Compensate => ", and there is no counter-action against it",
        };
        let compensated = plan.compensate.iter().map(|it| format!("  {} {it} is compensated", "<".yellow()));
        lines.extend(compensated);
        lines.extend(
            plan.compensated
                .iter()
                .map(|it| format!("  {} {it} was compensated, and its result would stand again", "!".red())),
        );
        lines.extend(
            plan.irreversible.iter().map(|it| format!("  {} {it} cannot be undone{fate}", "!".red())),
        );
        let variables = plan.variables.iter().map(|(name, change)| (wording::plain(name), change));
        let outputs = plan.outputs.iter().map(|(node, change)| (format!("nodes.{node}.output"), change));
        lines.extend(bounded(variables.map(|(name, it)| changed(&name, it)), "variables change"));
        lines.extend(bounded(outputs.map(|(name, it)| changed(&name, it)), "outputs change"));
        lines.extend(unchanged.filter(|_| changes_nothing(plan)).map(|unchanged| format!("  {unchanged}")));
        for (what, cost) in [("keeps", plan.kept), ("spends again about", plan.again)] {
            lines.extend(spent(cost).map(|spent| format!("  {what} {spent}")));
        }
        lines
    }
}

/// Tells whether the state would be what it is. What failed runs again in any case.
pub(crate) fn changes_nothing(plan: &Plan) -> bool {
    let Plan { forgotten, irreversible, compensate, compensated, removed, variables, outputs, .. } = plan;
    let nodes = [forgotten, irreversible, compensate, compensated, removed];
    nodes.iter().all(|nodes| nodes.is_empty()) && variables.is_empty() && outputs.is_empty()
}

/// Returns the names, or the first of many and how many more there are.
pub(crate) fn named(names: &[String]) -> String {
    match names.len().saturating_sub(NAMED_MAX) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..NAMED_MAX].join(", ")),
    }
}

/// Returns the lines, or the first of many and how many more there are.
fn bounded(lines: impl ExactSizeIterator<Item = impl Display>, what: &str) -> Vec<String> {
    let more = lines.len().saturating_sub(NAMED_MAX);
    let mut shown: Vec<String> = lines.take(NAMED_MAX).map(|line| format!("  {line}")).collect();
    shown.extend((more > 0).then(|| format!("  … and {more} more {what}")));
    shown
}

fn changed(name: &str, change: &VariableChange) -> String {
    let line = |mark: char, value: &Value| format!("{mark} {name} = {}", wording::value(value));
    let from = change.from.as_ref().map(|from| line('-', from).red().to_string());
    let to = change.to.as_ref().map(|to| line('+', to).green().to_string());
    from.into_iter().chain(to).collect::<Vec<_>>().join("\n  ")
}

/// Returns money, tokens and time, as far as there are any.
fn spent(cost: Cost) -> Option<String> {
    let usd = cost.usd();
    let money = usd.as_ref().map(|usd| wording::money(Some(usd)));
    let tokens = (cost.tokens > 0).then(|| wording::count(cost.tokens, "token"));
    let time = (cost.duration_ms >= DURATION_MS_MIN).then(|| wording::duration(cost.duration_ms));
    let unknown = (usd.is_none() && cost.unpriced > 0).then(|| "cost unknown".to_owned());
    let spent: Vec<String> = [money, tokens, time, unknown].into_iter().flatten().collect();
    (!spent.is_empty()).then(|| spent.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_many_is_counted() {
        let names: Vec<String> = (1..=200).map(|number| format!("n{number}")).collect();
        assert_eq!(named(&names[..2]), "n1, n2");
        assert_eq!(named(&names), "n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12 and 188 more");
        let lines = bounded(names.iter(), "run again");
        assert_eq!((lines.len(), lines[12].as_str()), (13, "  … and 188 more run again"));
        assert_eq!(bounded(names[..12].iter(), "run again").len(), 12);
    }

    #[test]
    fn a_cost_has_money_tokens_and_time_as_far_as_there_are_any() {
        let cost = |known_usd, unpriced, tokens, duration_ms| Cost {
            known_usd,
            priced: u64::from(known_usd > 0.0),
            unpriced,
            tokens,
            duration_ms,
        };
        for (cost, text) in [
            (cost(0.0, 0, 0, 999), None),
            (cost(0.25, 0, 0, 0), Some("$0.25")),
            (cost(0.25, 0, 1_200, 65_000), Some("$0.25, 1200 tokens, 1m 05s")),
            (cost(0.25, 1, 1_200, 0), Some("1200 tokens, cost unknown")),
            (cost(0.0, 0, 0, 1_500), Some("1.5s")),
        ] {
            assert_eq!(spent(cost).as_deref(), text);
        }
    }
}
