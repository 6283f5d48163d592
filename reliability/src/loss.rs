//! What was acknowledged, and what of that is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use retake::store::{ExecutionFilter, HistoryPage, Seq, SqliteStore, Store, StoreError, StoreExt};

use crate::child::Told;
use crate::history::EXECUTIONS;
use crate::{Outcome, history};

/// What was acknowledged, of each execution.
pub(crate) type Acknowledged = BTreeMap<u64, RangeInclusive<Seq>>;

/// Returns what a child was told is durable.
pub(crate) fn acknowledged(told: &[Told]) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    for told in told {
        match told {
            Told::Acknowledged { execution, seq } => {
                let known = acknowledged.entry(*execution).or_insert(*seq..=*seq);
                *known = *known.start()..=*seq;
            }
            Told::Refused { .. } => {}
        }
    }
    acknowledged
}

pub(crate) fn count(acknowledged: &Acknowledged) -> usize {
    acknowledged.values().cloned().map(Iterator::count).sum()
}

/// The figures of many injections.
#[derive(Debug, Default)]
pub(crate) struct Loss {
    /// Those that provably happened.
    pub(crate) injections: usize,
    pub(crate) acknowledged: usize,
    pub(crate) lost: usize,
    /// Stores that could not be opened, or were not sound.
    damaged: usize,
    /// What was found first.
    example: Option<String>,
}

impl Loss {
    pub(crate) fn lose(&mut self, lost: usize, example: impl FnOnce() -> String) {
        self.lost += lost;
        if lost > 0 {
            self.example.get_or_insert_with(example);
        }
    }

    fn damage(&mut self, example: String) {
        self.damaged += 1;
        self.example.get_or_insert(example);
    }

    pub(crate) fn is_none(&self) -> bool {
        self.injections > 0 && self.acknowledged > 0 && self.lost == 0 && self.damaged == 0
    }

    pub(crate) fn figure(&self, injections_are: &str) -> String {
        let Self { injections, acknowledged, lost, damaged, example } = self;
        let mut text = format!(
            "{injections} {injections_are}, {lost} of {acknowledged} acknowledged lost, {damaged} damaged"
        );
        if let Some(example) = example {
            text.push_str(&format!(" (first: {example})"));
        }
        text
    }
}

/// Looks for every acknowledged point in a store, with its state where it is new, and at every record. A point that
/// nobody acknowledged may be there, and then wholly.
pub(crate) fn look_in_store(
    path: &Path,
    acknowledged: &Acknowledged,
    past: &Acknowledged,
    loss: &mut Loss,
) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let store = match SqliteStore::open(path) {
            Ok(store) => store,
            Err(error) => {
                loss.damage(error.to_string());
                loss.lose(count(acknowledged), || error.to_string());
                return Ok(());
            }
        };
        match store.check().await {
            Ok(found) if found.problems.is_empty() => {}
            Ok(found) => loss.damage(found.problems.join(", ")),
            Err(error) => loss.damage(error.to_string()),
        }
        for execution in 0..EXECUTIONS {
            if let Err(error) = look_at(&store, execution, acknowledged, past, loss).await {
                loss.damage(error.to_string());
            }
        }
        Ok(())
    })
}

async fn look_at(
    store: &SqliteStore,
    execution: u64,
    acknowledged: &Acknowledged,
    past: &Acknowledged,
    loss: &mut Loss,
) -> Result<(), StoreError> {
    let name = history::name(execution);
    let filter = ExecutionFilter { address: Some(name.clone()), ..ExecutionFilter::default() };
    let record = store.executions(&filter).await?.into_iter().next();
    let points: BTreeSet<Seq> = match &record {
        Some(record) => {
            let page = store.history(record.id, HistoryPage::default()).await?;
            page.into_iter().map(|point| point.seq).collect()
        }
        None => BTreeSet::new(),
    };
    if let Some(known) = past.get(&execution) {
        let lost = known.clone().filter(|seq| !points.contains(seq)).count();
        loss.lose(lost, || format!("{lost} of {known:?} of {name}, later"));
    }
    let known = acknowledged.get(&execution);
    if let Some(known) = known {
        let mut lost = 0;
        for seq in known.clone() {
            let is_there = match &record {
                Some(record) if points.contains(&seq) => {
                    let state = store.context(record.id, seq).await;
                    state.is_ok_and(|ctx| history::is_state(&ctx, execution, seq))
                }
                Some(_) | None => false,
            };
            lost += usize::from(!is_there);
        }
        loss.lose(lost, || format!("{lost} of {known:?} of {name}"));
    }
    let last = known.or(past.get(&execution)).map_or(0, |known| *known.end());
    if let Some(record) = record {
        for seq in points.range(last + 1..) {
            if !history::is_state(&store.context(record.id, *seq).await?, execution, *seq) {
                loss.damage(format!("{name}@{seq} is there in part"));
            }
        }
    }
    Ok(())
}
