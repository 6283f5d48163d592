//! What became of all that a crew did: what the store has, beside what the workers were told and what the nodes wrote.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use retake::execution::{ExecutionResult, node_id};
use retake::store::{HistoryPage, StoreExt};
use serde_json::Value;
use uuid::Uuid;

use super::{Crew, Told};
use crate::Outcome;

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// `began`, `ended` or `stopped`.
    pub(crate) happened: String,
    pub(crate) execution: Uuid,
    pub(crate) node: String,
    pub(crate) worker: usize,
    pub(crate) word: String,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Points that were acknowledged, and those of them that the store does not have.
    pub(crate) acknowledged: usize,
    pub(crate) lost: usize,
    /// Results in the store.
    pub(crate) results: usize,
    /// Nodes that began again after what is recorded of them: the execution, the worker, and the line of the journal.
    pub(crate) again: Vec<(Uuid, usize, usize)>,
    /// Results that stand in two points.
    pub(crate) twice: usize,
    /// Results that no node gave.
    pub(crate) foreign: usize,
    /// How often a node began that had begun before.
    pub(crate) repeated: usize,
    /// What is wrong with the first of what is wrong.
    pub(crate) first: Option<String>,
    /// The words that are recorded, by execution.
    pub(crate) words: HashMap<Uuid, BTreeSet<String>>,
}

impl Audit {
    /// Tells whether nothing is lost, recorded twice or invented.
    pub(crate) fn is_whole(&self) -> bool {
        self.lost + self.twice + self.foreign == 0
    }

    /// Tells whether nothing was run again either.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_whole() && self.again.is_empty()
    }

    pub(crate) fn figure(&self) -> String {
        let Self { acknowledged, lost, results, again, twice, foreign, repeated, first, .. } = self;
        let first = first.as_ref().map_or_else(String::new, |first| format!("; {first}"));
        format!(
            "{lost} of {acknowledged} acknowledged points lost, {} of {results} recorded nodes run again \
             ({repeated} in flight ran again), {twice} recorded twice, {foreign} by no node{first}",
            again.len()
        )
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        self.first.get_or_insert_with(what);
    }
}

impl Crew {
    /// Returns what the nodes wrote, in order.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(self.journal()).unwrap_or_default();
        text.lines().filter_map(Line::of).collect()
    }

    /// Returns the words that an execution has recorded.
    pub(crate) fn recorded(&self, execution: Uuid) -> Outcome<BTreeMap<String, String>> {
        let store = self.engine.store();
        let ctx = self.runtime.block_on(async {
            let head = store.require(execution).await?.head;
            store.context(execution, head).await
        })?;
        let nodes = (0..=*super::NODES.end()).map(super::node);
        let word = |node: String| match &ctx.get_node_result(&node_id(&node))?.result {
            ExecutionResult::Success(Value::String(word)) => Some((node, word.clone())),
            ExecutionResult::Success(_)
            | ExecutionResult::Failure(_)
            | ExecutionResult::Pending
            | ExecutionResult::Skipped => None,
        };
        Ok(nodes.filter_map(word).collect())
    }

    /// Compares everything, once the workers rest.
    pub(crate) fn audit(&self) -> Outcome<Audit> {
        let mut audit = Audit::default();
        let mut began: HashMap<(Uuid, String), Vec<(usize, Line)>> = HashMap::new();
        for (place, line) in self.lines().into_iter().enumerate() {
            if line.happened == "began" {
                began.entry((line.execution, line.node.clone())).or_default().push((place, line));
            }
        }
        audit.repeated = began.values().map(|words| words.len() - 1).sum();
        let mut points = BTreeSet::new();
        for execution in &self.executions {
            let history =
                self.runtime.block_on(self.engine.store().history(*execution, HistoryPage::default()))?;
            let mut recorded = BTreeSet::new();
            for point in history {
                points.insert((*execution, point.seq, point.id));
                for node in point.nodes {
                    if !recorded.insert(node.clone()) {
                        audit.twice += 1;
                        audit.note(|| format!("{node} of {execution} is recorded twice"));
                    }
                }
            }
            for (node, word) in self.recorded(*execution)? {
                audit.results += 1;
                let gave = began.get(&(*execution, node.clone())).map_or(&[][..], Vec::as_slice);
                let Some(at) = gave.iter().position(|(_, line)| line.word == word) else {
                    audit.foreign += 1;
                    audit.note(|| format!("{node} of {execution} has an output that it never gave"));
                    continue;
                };
                for (place, line) in &gave[at + 1..] {
                    audit.again.push((*execution, line.worker, *place));
                    audit.note(|| format!("{node} of {execution} began again after its result"));
                }
                audit.words.entry(*execution).or_default().insert(word);
            }
        }
        for heard in self.heard().iter() {
            let Told::Acknowledged { execution, seq, id } = &heard.told else { continue };
            audit.acknowledged += 1;
            if !points.contains(&(*execution, *seq, *id)) {
                audit.lost += 1;
                audit.note(|| format!("@{seq} of {execution} was acknowledged to worker {}", heard.worker));
            }
        }
        Ok(audit)
    }
}

impl Line {
    fn of(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [happened, execution, node, worker, word] = words[..] else { return None };
        Some(Self {
            happened: happened.to_owned(),
            execution: execution.parse().ok()?,
            node: node.to_owned(),
            worker: worker.parse().ok()?,
            word: word.to_owned(),
        })
    }
}
