//! `retake prune`: removes old checkpoints.

use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use retake::engine::{address, needed_to_compensate};
use retake::execution::{ExecutionId, ExecutionState};
use retake::store::{
    Cause, CheckpointRecord, ExecutionFilter, ExecutionRecord, HistoryPage, Note, Seq, Store, StoreExt,
};
use retake::workflow::parse_duration;
use serde_json::json;

use crate::app::App;
use crate::failure::Failure;
use crate::table::Table;
use crate::wording;

/// Remove old checkpoints, and give their space back. The head and labelled checkpoints stay.
///
/// With both --keep and --older-than, what either keeps stays, and so does what a counter-action needs that is still to
/// run.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rule").args(["keep", "older_than"]).multiple(true).required(true))]
pub(crate) struct Prune {
    /// The run; all runs without it
    run: Option<String>,

    /// Keep so many of the newest checkpoints of a run
    #[arg(long, value_name = "N")]
    keep: Option<usize>,

    /// Keep what is younger, such as 30d or 12h
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    older_than: Option<Duration>,

    /// Say what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What pruning does to one run.
struct Cut {
    id: ExecutionId,
    name: String,
    keep: usize,
    total: usize,
    removed: usize,
}

impl Prune {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let bytes_before = app.stored_bytes()?;
        let store = app.store().await?;
        let runs = match &self.run {
            Some(run) => vec![address::resolve_run(&*store, run).await?],
            None => store.executions(&ExecutionFilter::default()).await?,
        };
        let mut cuts = Vec::new();
        for run in runs {
            let history = store.history(run.id, HistoryPage::default()).await?;
            let needed = needed(&*store, &run).await?;
            let is_needed = |point: &CheckpointRecord| needed.is_some_and(|seq| point.seq >= seq);
            let needed = history.iter().rposition(is_needed).map_or(0, |last| last + 1);
            let keep = self.keep(&history, app.clock.now()).max(needed);
            let removed = history.iter().skip(keep).filter(|point| point.label.is_none()).count();
            cuts.push(Cut { id: run.id, name: run.name, keep, total: history.len(), removed });
        }
        if !self.dry_run {
            cut(app, &*store, &mut cuts).await?;
        }
        // What a store still holds back is written when it is closed.
        drop(store);
        let bytes_after = app.stored_bytes()?;
        self.report(app, &cuts, bytes_before.zip(bytes_after));
        Ok(ExitCode::SUCCESS)
    }

    /// Returns how many of the newest points stay: all up to the last that is young enough, or as many as are to be kept.
    fn keep(&self, history: &[CheckpointRecord], now: DateTime<Utc>) -> usize {
        let oldest = |age: Duration| {
            let cutoff = TimeDelta::from_std(age).ok().and_then(|age| now.checked_sub_signed(age));
            // An age from before all dates: everything is younger.
            let Some(cutoff) = cutoff else { return history.len() };
            history.iter().rposition(|point| point.created_at >= cutoff).map_or(0, |last| last + 1)
        };
        self.keep.unwrap_or(0).max(self.older_than.map_or(0, oldest)).max(1)
    }

    fn report(&self, app: &App, cuts: &[Cut], bytes: Option<(u64, u64)>) {
        let removed: usize = cuts.iter().map(|cut| cut.removed).sum();
        if app.output.json {
            let runs: Vec<_> = cuts
                .iter()
                .map(|cut| {
                    let kept = cut.total.saturating_sub(cut.removed);
                    json!({"execution": cut.id, "name": cut.name, "removed": cut.removed, "kept": kept})
                })
                .collect();
            app.output.document(&json!({
                "dry_run": self.dry_run,
                "removed": removed,
                "runs": runs,
                "bytes_before": bytes.map(|(before, _)| before),
                "bytes_after": bytes.map(|(_, after)| after),
            }));
            return;
        }
        let mut table = Table::new(["RUN", "GOES", "STAYS"]);
        for cut in cuts.iter().filter(|cut| cut.removed > 0) {
            let stays = cut.total.saturating_sub(cut.removed);
            table.row([(&cut.name).into(), cut.removed.to_string().into(), stays.to_string().into()]);
        }
        table.print(&app.output);
        let points = wording::count(removed as u64, "checkpoint");
        if self.dry_run {
            app.output.line(format!("{points} would go"));
            return;
        }
        let size = bytes.map(|(before, after)| {
            format!("; the store went from {} to {}", wording::bytes(before), wording::bytes(after))
        });
        app.output.line(format!("{points} went{}", size.unwrap_or_default()));
    }
}

/// Returns the oldest point that a counter-action needs which is still to run. A run that is over has none.
async fn needed(store: &dyn Store, run: &ExecutionRecord) -> Result<Option<Seq>, Failure> {
    match run.state {
        ExecutionState::Completed => Ok(None),
        ExecutionState::Running
        | ExecutionState::Paused
        | ExecutionState::Failed(_)
        | ExecutionState::Cancelled => Ok(needed_to_compensate(&store.context(run.id, run.head).await?)),
    }
}

async fn cut(app: &App, store: &dyn Store, cuts: &mut [Cut]) -> Result<(), Failure> {
    for cut in cuts.iter_mut().filter(|cut| cut.removed > 0) {
        cut.removed = store.prune(cut.id, cut.keep).await?;
        let cause = Cause::Prune { removed: cut.removed as u64 };
        store.note(cut.id, Note { at: app.clock.now(), cause, operation: app.operation() }).await?;
    }
    store.compact().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        prune: Prune,
    }

    fn history(ages_in_hours: &[i64], now: DateTime<Utc>) -> Vec<CheckpointRecord> {
        let point = |hours: &i64| CheckpointRecord {
            execution_id: ExecutionId::nil(),
            workflow_id: ExecutionId::nil(),
            seq: 1,
            id: ExecutionId::nil(),
            parent: None,
            created_at: now - TimeDelta::hours(*hours),
            cause: retake::store::Cause::Nodes,
            nodes: Vec::new(),
            label: None,
            state: retake::execution::ExecutionState::Paused,
            completed_node_count: 0,
            spend: retake::execution::Spend::default(),
            size_bytes: 0,
            compressed: false,
        };
        ages_in_hours.iter().map(point).collect()
    }

    fn kept(flags: &[&str], ages_in_hours: &[i64]) -> usize {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let line = Line::try_parse_from(std::iter::once(&"prune").chain(flags)).ok().unwrap();
        line.prune.keep(&history(ages_in_hours, now), now)
    }

    #[test]
    fn what_is_younger_stays_and_so_do_the_newest() {
        let ages = [1, 2, 30, 50];
        assert_eq!(kept(&["--keep", "3"], &ages), 3);
        assert_eq!(kept(&["--keep", "0"], &ages), 1);
        assert_eq!(kept(&["--older-than", "1d"], &ages), 2);
        assert_eq!(kept(&["--older-than", "1m"], &ages), 1);
        assert_eq!(kept(&["--older-than", "300000000y"], &ages), 4);
        assert_eq!(kept(&["--older-than", "1d", "--keep", "3"], &ages), 3);
        assert_eq!(kept(&["--older-than", "2d", "--keep", "1"], &ages), 3);
        // A clock that stepped back does not take a younger point behind an older one.
        assert_eq!(kept(&["--older-than", "1d"], &[1, 30, 2, 50]), 3);
    }
}
