//! `retake worker`: advances the runs that others left to workers.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use owo_colors::OwoColorize;
use retake::engine::{
    CONCURRENCY_DEFAULT, EngineError, LEASE_TTL_MAX, LEASE_TTL_MIN, Worked, WorkerEvent, WorkerOptions,
    WorkerUntil,
};
use retake::store::Queue;
use retake::telemetry::show_depths;
use serde_json::json;
use tokio::sync::mpsc;

use crate::app::{App, Opened};
use crate::arrival::{self, Arrival};
use crate::command::queue::name;
use crate::detach::duration;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::signals::Wishes;
use crate::wording;

/// How often the depths of the queues are read for whoever asks for metrics. It costs the store what is in the queues.
const DEPTHS_EVERY: Duration = Duration::from_secs(5);

/// Run executions for others: those that `run --detach` and `resume --detach` left to workers.
///
/// Any number of workers may share a store, on any number of machines. What only waits, for its time, for a person or
/// for the next attempt at a node, holds no worker.
///
/// Ctrl-C, or a signal to end, lets the nodes that run finish, for as long as --grace says, and hands their runs to other
/// workers; a second one ends the nodes at once.
///
/// Where there is no store yet, a worker makes it; with --drain, it says so and ends.
///
/// Exit codes: 0 ended as it was told, 2 the store hands out no runs, 3 --drain and there is no store, 6 the store cannot be
/// used.
#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// A queue to serve; may be given several times. Without it, all are
    #[arg(long, value_name = "QUEUE", value_parser = name)]
    queue: Vec<String>,

    /// How many runs to advance at the same time
    #[arg(long, value_name = "N", default_value_t = CONCURRENCY_DEFAULT, value_parser = places)]
    concurrency: usize,

    /// End when the queues are empty: nothing is due, delayed or in the hands of a worker. What waits for a person, and
    /// what is stuck, does not count
    #[arg(long)]
    drain: bool,

    /// How long a run rests whose worker has died or is cut off, before another goes on
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = lease)]
    lease: Duration,

    /// How long nodes may take to finish when the worker is to end
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    grace: Duration,
}

impl Worker {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        app.require_queue("a worker")?;
        let mut wishes = Wishes::listen()?;
        let away = |why| tell(&app.output, &WorkerEvent::StoreLost { why });
        if arrival::reach(app, &mut wishes, away).await? == Arrival::Stopped {
            return end(app, Worked::default());
        }
        // A worker that is there first makes the store; one that ends when nothing is left has nothing to wait for.
        let opened = if self.drain { app.open().await? } else { app.make().await? };
        let measured = match &opened {
            Opened::Queue(queue) if app.is_measured() => Some(Arc::clone(queue)),
            Opened::Queue(_) | Opened::Plain(_) => None,
        };
        let engine = app.engine_on(opened)?.with_lease_ttl(self.lease);
        let options = WorkerOptions {
            queues: self.queue,
            concurrency: self.concurrency,
            grace: self.grace,
            until: if self.drain { WorkerUntil::Empty } else { WorkerUntil::Told },
            ..WorkerOptions::default()
        };
        let mut worker = retake::engine::Worker::new(engine, options)?;
        let (handle, events) = (worker.handle(), worker.watch());
        let shown = tokio::spawn(show(app.output.clone(), events));
        let measuring = measured.map(|queue| tokio::spawn(measure(queue)));
        let mut working = tokio::spawn(worker.work());
        let mut is_draining = false;
        let worked = loop {
            tokio::select! {
                worked = &mut working => break worked,
                _ = wishes.next() => {
                    if is_draining { handle.stop() } else { handle.drain() }
                    is_draining = true;
                }
            }
        };
        if let Some(measuring) = measuring {
            measuring.abort();
        }
        if let Err(error) = shown.await {
            std::panic::resume_unwind(error.into_panic());
        }
        let worked: Result<Worked, EngineError> = match worked {
            Ok(worked) => worked,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        end(app, worked?)
    }
}

/// Says what a worker did that has ended.
fn end(app: &App, Worked { ended, abandoned }: Worked) -> Result<ExitCode, Failure> {
    if app.output.json {
        app.output.event(&json!({"event": "ended", "runs": ended, "abandoned": abandoned}));
    } else {
        app.output.line(format!("{} ended here", wording::count(ended, "run")));
    }
    match abandoned {
        0 => Ok(ExitCode::SUCCESS),
        runs => {
            let runs = wording::count(runs, "run");
            Err(Failure::new(Code::Store, format!("{runs} could not be handed over"))
                .hint("others go on from the last checkpoints when the leases have run out; `ls` names them until then"))
        }
    }
}

/// Shows what a worker tells, until it ends.
async fn show(output: Output, mut events: mpsc::Receiver<WorkerEvent>) {
    while let Some(event) = events.recv().await {
        tell(&output, &event);
    }
}

fn tell(output: &Output, event: &WorkerEvent) {
    if output.json {
        output.event(event);
    } else if let Some(line) = line(event) {
        output.note(line);
    }
}

/// Measures how deep the queues are, again and again.
async fn measure(queue: Arc<dyn Queue>) {
    let mut shown = BTreeSet::new();
    loop {
        // The worker tells when the store does not answer. Until it does again, the last that was known stands.
        if let Ok(depths) = queue.depths().await {
            show_depths(&depths, &mut shown);
        }
        tokio::time::sleep(DEPTHS_EVERY).await;
    }
}

fn line(event: &WorkerEvent) -> Option<String> {
    let plain = |text: &str| wording::plain(text);
    Some(match event {
        WorkerEvent::Ready { name, queues, concurrency, .. } => {
            let queues = if queues.is_empty() { "all queues".to_owned() } else { queues.join(", ") };
            format!("{} takes runs from {}, {concurrency} at a time", plain(name).bold(), plain(&queues))
        }
        WorkerEvent::Taken { name, head, claims, .. } => match claims {
            1 => format!("{}: taken at @{head}", plain(name)),
            claims => format!("{}: taken at @{head}, which {} could not end", plain(name), others(*claims)),
        },
        WorkerEvent::Finished { name, status, head, nodes_run, cost_usd, error, .. } => {
            let mut line = format!("{}: {}", plain(name), status.style(wording::colour(status)));
            line.push_str(&format!(", {} run, @{head}", wording::count(*nodes_run as u64, "node")));
            if let Some(cost) = cost_usd {
                line.push_str(&format!(", ${cost}"));
            }
            if let Some(error) = error {
                line.push_str(&format!(": {}", wording::shortened(error, 200)));
            }
            line
        }
        WorkerEvent::Parked { name, until, .. } => {
            format!("{}: waits until {}", plain(name), wording::moment(*until))
        }
        WorkerEvent::Held { name, why, .. } => {
            format!("{}: {} {}", plain(name), "waits:".yellow(), plain(why))
        }
        WorkerEvent::Abandoned { name, .. } => {
            let what = "others go on from its last checkpoint when its lease has run out";
            format!("{}: {} {what}", plain(name), "not handed over:".red())
        }
        WorkerEvent::HandedOver { name, head, .. } => format!("{}: handed over at @{head}", plain(name)),
        WorkerEvent::Left { name, why, .. } => format!("{}: left to others: {}", plain(name), plain(why)),
        WorkerEvent::Lost { name, why, .. } => format!("{}: {} {}", plain(name), "lost:".red(), plain(why)),
        WorkerEvent::HeldBack { queue, due, limit } => held_back(queue, *due, *limit),
        WorkerEvent::StoreLost { why } => {
            format!("{} {}; it is tried again", "the store does not answer:".red(), plain(why))
        }
        WorkerEvent::StoreBack => "the store answers again".to_owned(),
        WorkerEvent::Draining { running: 0 } => "ending".to_owned(),
        WorkerEvent::Draining { running } => {
            let runs = wording::count(*running as u64, "run");
            format!("ending: the nodes of {runs} finish; a second signal ends them at once")
        }
        _ => return None,
    })
}

fn held_back(queue: &str, due: u64, limit: Option<u32>) -> String {
    let (queue, runs, waiting) =
        (wording::plain(queue), wording::count(due, "run"), "this waits for that".dimmed());
    match limit {
        Some(0) => format!(
            "queue {queue} stands still with {runs} in it: its limit is 0; {waiting}, and `retake queue limit {queue} none` \
             lifts it"
        ),
        Some(_) | None => format!(
            "queue {queue} has {runs} due that this worker does not get: a rate holds back what would begin, or it cannot do \
             what they need; {waiting}"
        ),
    }
}

fn others(claims: u32) -> String {
    wording::count(u64::from(claims - 1), "worker")
}

fn places(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("a worker advances at least one run".to_owned()),
        Ok(places @ 1..=1_000) => Ok(places),
        Ok(_) => Err("1000 at the same time are the most".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn lease(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if (LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&ttl) {
        return Ok(ttl);
    }
    let [least, most] = [LEASE_TTL_MIN, LEASE_TTL_MAX].map(humantime::format_duration);
    Err(format!("a lease holds for {least} to {most}"))
}
