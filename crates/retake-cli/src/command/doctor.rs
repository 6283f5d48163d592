//! `retake doctor`: looks at every record of the store, and repairs it where that is asked for.

mod fix;

use std::process::ExitCode;

use clap::Args;
use retake::store::{
    ExecutionFilter, FORMAT, Queue, QueueDepth, StaleLease, Store, StoreError, TicketStand, WorkerRecord,
    WorkerStand,
};
use serde_json::{Value, json};

use crate::app::{App, Opened};
use crate::failure::{Code, Failure};
use crate::wording;

/// Read and verify every record of the store.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Put a sound store with all that can be read in the place of a damaged one, which is kept beside it
    ///
    /// A run whose newest checkpoint is damaged falls back to the newest intact one, and what ran since runs again. Nobody
    /// else may have the store open. A sound store is left as it is.
    #[arg(long)]
    fix: bool,

    /// With --fix: show what would be kept and lost, and write nothing
    #[arg(long, requires = "fix")]
    dry_run: bool,
}

impl Doctor {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if self.fix {
            return fix::execute(app, self.dry_run);
        }
        let path = app.store_file()?;
        let bytes = app.stored_bytes()?;
        let mut queue = None;
        let (report, is_encrypted) = match &path {
            Some(path) => {
                let store = app.sqlite_store(path)?;
                (store.check().await?, store.is_encrypted())
            }
            None => {
                let opened = app.open().await?;
                let report = opened.store().check().await?;
                queue = Queueing::look(&opened).await?;
                (report, false)
            }
        };
        let place = match &path {
            Some(path) => Some(path.display().to_string()),
            None => app.is_on_a_server()?.then(|| app.shown_store()),
        };
        let is_sound = report.problems.is_empty();
        // Opening a store brings it up to date, so its format is the newest.
        let format = path.is_some().then_some(FORMAT);
        if app.output.json {
            app.output.document(&json!({
                "sound": is_sound,
                "store": place,
                "format": format,
                "encrypted": is_encrypted,
                "file_bytes": bytes,
                "executions": report.executions,
                "checkpoints": report.checkpoints,
                "bytes": report.bytes,
                "problems": report.problems,
                "queue": queue.as_ref().map(Queueing::document),
            }));
        } else {
            if let (Some(path), Some(format), Some(bytes)) = (&path, format, bytes) {
                let encrypted = if is_encrypted { ", encrypted" } else { "" };
                let bytes = wording::bytes(bytes);
                app.output.line(format!("{}: format {format}, {bytes}{encrypted}", path.display()));
            } else if let Some(place) = &place {
                app.output.line(place);
            }
            app.output.line(format!(
                "{}, {} and {} of records were read",
                wording::count(report.executions, "run"),
                wording::count(report.checkpoints, "checkpoint"),
                wording::bytes(report.bytes),
            ));
            if let Some(queue) = &queue {
                queue.print(app);
            }
            report.problems.iter().for_each(|problem| app.output.line(wording::plain(problem)));
            app.output.line(if is_sound { "the store is sound" } else { "the store is damaged" });
            if !is_sound && path.is_some() {
                let look = app.command_line("doctor --fix --dry-run");
                app.output.note(format!("`{look}` shows what can be kept, and without `--dry-run` keeps it"));
            } else if !is_sound {
                app.output.note(app.advice_on_a_damaged_server());
            }
        }
        Ok(if is_sound { ExitCode::SUCCESS } else { Code::Store.exit() })
    }
}

/// What there is to say of a store's queue.
struct Queueing {
    /// Queues with runs that nobody takes any more.
    stuck: Vec<QueueDepth>,
    /// Those runs: their names, and queues. They are not known where a record cannot be read.
    stuck_runs: Vec<(String, String)>,
    stale: Vec<StaleLease>,
    lost: Vec<WorkerRecord>,
}

impl Queueing {
    async fn look(opened: &Opened) -> Result<Option<Self>, Failure> {
        let Opened::Queue(queue) = opened else { return Ok(None) };
        let mut stuck = queue.depths().await?;
        stuck.retain(|depth| depth.stuck > 0);
        let stuck_runs = if stuck.is_empty() { Vec::new() } else { stuck_runs(&**queue).await? };
        let mut lost = queue.workers().await?;
        lost.retain(|worker| worker.stands == WorkerStand::Lost);
        Ok(Some(Self { stuck, stuck_runs, stale: queue.stale_leases().await?, lost }))
    }

    fn document(&self) -> Value {
        let runs = self.stuck_runs.iter().map(|(name, queue)| json!({"name": name, "queue": queue}));
        json!({
            "stuck": self.stuck,
            "stuck_runs": runs.collect::<Vec<_>>(),
            "stale_leases": self.stale,
            "lost_workers": self.lost,
        })
    }

    fn print(&self, app: &App) {
        let now = app.clock.now();
        for StaleLease { name, owner, until, .. } in &self.stale {
            let (name, owner) = (wording::plain(name), wording::plain(owner));
            let age = wording::age(now, *until);
            app.output.line(format!("the lease of {owner} on {name} ran out {age}, and nobody goes on"));
        }
        for QueueDepth { queue, stuck, .. } in &self.stuck {
            let (runs, queue) = (wording::count(*stuck, "run"), wording::plain(queue));
            app.output.line(format!("{runs} in queue {queue} ended every worker that took it"));
        }
        for (name, queue) in &self.stuck_runs {
            let (name, queue) = (wording::plain(name), wording::plain(queue));
            let resume = app.command_line(format_args!("resume {name} --detach"));
            app.output.line(format!("{name} is stuck in queue {queue}: `{resume}` tries again"));
        }
        for WorkerRecord { report, seen_at, .. } in &self.lost {
            let (name, age) = (wording::plain(&report.name), wording::age(now, *seen_at));
            app.output.line(format!("worker {name} is lost: it was last seen {age}"));
        }
    }
}

/// Returns the names and the queues of the runs that nobody takes any more. A doctor goes on where a record is damaged, which
/// the problems name.
async fn stuck_runs(queue: &dyn Queue) -> Result<Vec<(String, String)>, Failure> {
    let runs = match queue.executions(&ExecutionFilter::default()).await {
        Ok(runs) => runs,
        Err(StoreError::Corrupt { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let ids: Vec<_> = runs.iter().map(|run| run.id).collect();
    let tickets = queue.tickets(&ids).await?;
    let stuck = tickets.into_iter().filter(|ticket| ticket.stands == TicketStand::Stuck);
    let named = stuck.filter_map(|ticket| {
        let run = runs.iter().find(|run| run.id == ticket.execution_id)?;
        Some((run.name.clone(), ticket.queue))
    });
    Ok(named.collect())
}
