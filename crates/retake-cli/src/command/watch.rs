//! `retake watch`: what happens to runs, wherever they run.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use owo_colors::{OwoColorize, Style};
use retake::engine::{Watch as Follower, address};
use retake::execution::{ExecutionId, ExecutionState};
use retake::store::{ExecutionRecord, FeedPage, FeedPoint, Position, Seq, Since, Store, StoreError};
use serde_json::{Value, json};

use crate::app::App;
use crate::arrival::{self, Arrival};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::signals::Wishes;
use crate::wording;

/// How long to leave a store alone that could not be read.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Columns of a run's name, of a cause and of a status; longer ones push the rest of their line.
const NAME_WIDTH: usize = 16;
const CAUSE_WIDTH: usize = 18;
const STATUS_WIDTH: usize = 9;

/// Show the checkpoints of all runs, or of one, as they are made.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The run; without it, all of them
    run: Option<String>,

    /// Begin behind this position, which an earlier watch has shown
    #[arg(long, value_name = "POSITION", conflicts_with = "from_start")]
    after: Option<Position>,

    /// Begin with the oldest checkpoint there is, and not with what comes from now on
    #[arg(long)]
    from_start: bool,

    /// End when all that is there has been shown; without --after, from the oldest checkpoint on
    #[arg(long)]
    once: bool,
}

/// What is followed, and how far it has been shown.
struct View<'app> {
    app: &'app App,
    run: Option<ExecutionId>,
    /// The newest point of the run that has been shown, or need not be.
    shown: Option<Seq>,
    /// Behind all that has been shown.
    position: Position,
    is_lost: bool,
}

impl Watch {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let mut wishes = Wishes::listen()?;
        let away = |why: String| app.output.note(format!("{}; waiting for it", wording::plain(&why)));
        if arrival::reach(app, &mut wishes, away).await? == Arrival::Stopped {
            return Err(Failure::new(Code::Interrupted, "the watch was stopped before it began"));
        }
        let store = app.store().await?;
        let since = match self.after {
            Some(position) => Since::After(position),
            None if self.from_start || self.once => Since::Start,
            None => Since::Now,
        };
        let position = begin(&*store, since).await?;
        // After the position: what the run does meanwhile is shown.
        let run = match &self.run {
            Some(run) => Some(address::resolve_run(&*store, run).await?),
            None => None,
        };
        let shown = match since {
            Since::Start => Some(0),
            Since::Now => run.as_ref().map(|run| run.head),
            Since::After(_) => None,
        };
        let id = run.map(|run| run.id);
        let mut follower = Follower::new(store.clone(), Since::After(position));
        if let Some(id) = id {
            follower = follower.of(id);
        }
        let mut view = View { app, run: id, shown, position, is_lost: false };
        if app.output.json {
            app.output.event(&json!({"event": "watching", "position": position}));
        }
        let ended = tokio::select! {
            ended = view.follow(&*store, &mut follower, self.once) => Some(ended?),
            _ = wishes.next() => None,
        };
        match ended {
            Some(Some(run)) => verdict(app, &run),
            Some(None) => Ok(ExitCode::SUCCESS),
            None => {
                let run = self.run.map(|run| format!(" {run}")).unwrap_or_default();
                let again = app.command_line(format_args!("watch{run} --after {}", view.position));
                Err(Failure::new(Code::Interrupted, "the watch was stopped")
                    .hint(format!("`{again}` goes on from here")))
            }
        }
    }
}

/// Returns the position that a watch begins at. Refuses one of another store.
async fn begin(store: &dyn Store, since: Since) -> Result<Position, Failure> {
    match since {
        Since::After(position) => {
            store.feed(FeedPage { since, execution: None, limit: 1 }).await?;
            Ok(position)
        }
        Since::Now => Ok(store.feed(FeedPage { since, execution: None, limit: 1 }).await?.next),
        // Nothing is known by that name.
        Since::Start => {
            let nobody = Some(ExecutionId::nil());
            Ok(store.feed(FeedPage { since, execution: nobody, limit: 1 }).await?.next)
        }
    }
}

impl View<'_> {
    /// Shows points until the run that is watched has ended, which is returned then, or until all has been shown, where
    /// that is enough.
    async fn follow(
        &mut self,
        store: &dyn Store,
        follower: &mut Follower,
        once: bool,
    ) -> Result<Option<ExecutionRecord>, Failure> {
        loop {
            // Before the points are read: what has ended then has all of its points there.
            let run = match self.run {
                Some(id) => match self.heard(store.execution(id).await)? {
                    None => {
                        tokio::time::sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    Some(None) => return Err(Failure::new(Code::NotFound, "the run was removed")),
                    Some(run) => run,
                },
                None => None,
            };
            let mut is_all = false;
            while !is_all {
                match self.heard(follower.next_now().await)? {
                    None => tokio::time::sleep(RETRY_PAUSE).await,
                    Some(Some(point)) => self.show(&point),
                    Some(None) => is_all = true,
                }
            }
            let ended = run.filter(|run| self.has_ended(run));
            if ended.is_some() || once || !self.app.output.is_wanted() {
                return Ok(ended);
            }
            follower.pause().await;
        }
    }

    fn has_ended(&self, run: &ExecutionRecord) -> bool {
        is_end(&run.state) && self.shown.is_none_or(|shown| shown >= run.head)
    }

    /// Returns what a store said; `None` where it cannot say it now.
    fn heard<T>(&mut self, said: Result<T, StoreError>) -> Result<Option<T>, Failure> {
        let output = &self.app.output;
        match said {
            Ok(said) => {
                if std::mem::take(&mut self.is_lost) {
                    output.note("the store is back");
                }
                Ok(Some(said))
            }
            Err(error) if error.is_retryable() => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    let why = Failure::from(error).in_a_line();
                    output.note(format!("{}; waiting for it", wording::plain(&why)));
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn show(&mut self, point: &FeedPoint) {
        let output = &self.app.output;
        if output.json {
            output.event(&document(point));
        } else {
            line(output, point);
        }
        self.position = point.position;
        self.shown = Some(point.record.seq);
    }
}

fn document(FeedPoint { position, name, record }: &FeedPoint) -> Value {
    let mut document = json!({
        "event": "point",
        "position": position,
        "execution": record.execution_id,
        "name": name,
        "seq": record.seq,
        "id": record.id,
        "parent": record.parent,
        "cause": record.cause,
        "nodes": record.nodes,
        "label": record.label,
        "status": record.state.name(),
        "completed_node_count": record.completed_node_count,
        "created_at": record.created_at,
    });
    wording::spend_keys(&record.spend).into_iter().for_each(|(key, value)| document[key] = value);
    document
}

fn line(output: &Output, FeedPoint { name, record, .. }: &FeedPoint) {
    let padded = |text: &str, width| format!("{:width$}", wording::plain(text));
    let status = record.state.name();
    let mut text = format!(
        "{}  {}  {:>5}  {}  {}",
        record.created_at.format("%Y-%m-%dT%H:%M:%SZ").style(Style::new().dimmed()),
        padded(name, NAME_WIDTH),
        format!("@{}", record.seq),
        padded(&wording::cause(&record.cause), CAUSE_WIDTH),
        status.style(wording::colour(status)),
    );
    let label = record.label.as_ref().map(|label| format!("[{label}]"));
    let rest: Vec<&str> = record.nodes.iter().map(String::as_str).chain(label.as_deref()).collect();
    if !rest.is_empty() {
        let gap = STATUS_WIDTH.saturating_sub(status.len());
        text.push_str(&format!("{:gap$}  {}", "", wording::plain(&rest.join(", "))));
    }
    output.line(text);
}

fn is_end(state: &ExecutionState) -> bool {
    match state {
        ExecutionState::Completed | ExecutionState::Failed(_) | ExecutionState::Cancelled => true,
        ExecutionState::Running | ExecutionState::Paused => false,
    }
}

/// Returns the exit code of a run that has ended, as `run` does, or why it is no success.
fn verdict(app: &App, run: &ExecutionRecord) -> Result<ExitCode, Failure> {
    if app.output.json {
        let mut document = json!({
            "event": "finished",
            "execution": run.id,
            "name": run.name,
            "status": run.state.name(),
            "head": run.head,
        });
        wording::spend_keys(&run.spend).into_iter().for_each(|(key, value)| document[key] = value);
        app.output.event(&document);
    }
    let name = wording::plain(&run.name);
    match &run.state {
        ExecutionState::Completed | ExecutionState::Running | ExecutionState::Paused => Ok(ExitCode::SUCCESS),
        ExecutionState::Failed(why) => Err(Failure::new(Code::RunFailed, why)
            .hint(format!("`{}`", app.command_line(format_args!("resume {name}"))))),
        ExecutionState::Cancelled => Err(Failure::new(Code::RunFailed, format!("{name} was cancelled"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use retake::store::MemoryStore;

    use super::*;
    use crate::arguments::Arguments;

    #[tokio::test]
    async fn a_store_that_cannot_be_read_is_waited_for_and_any_other_failure_is_told() {
        let app = App::new(&Arguments::parse_from(["retake", "watch"]), Output::new(true), None);
        let position = begin(&MemoryStore::new(), Since::Start).await.unwrap();
        let mut view = View { app: &app, run: None, shown: None, position, is_lost: false };
        let gone = || StoreError::Io {
            location: "the store".to_owned(),
            action: "reading",
            source: Arc::new(std::io::Error::other("away")),
        };
        assert_eq!(view.heard(Ok(1)).unwrap(), Some(1));
        for _ in 0..3 {
            assert_eq!(view.heard::<u8>(Err(gone())).unwrap(), None);
            assert!(view.is_lost);
        }
        assert_eq!(view.heard(Ok(2)).unwrap(), Some(2));
        assert!(!view.is_lost);
        let closed = StoreError::Closed { location: "the store".to_owned() };
        assert_eq!(view.heard::<u8>(Err(closed)).unwrap_err().code, Code::Store);
    }
}
