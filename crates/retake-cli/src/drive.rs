//! Drives a run to its end: shows what happens, heeds signals, says how it ended and how to go on.

use std::process::ExitCode;

use retake::engine::{Control, EngineError, Outcome, Run};
use retake::execution::{Cost, ExecutionState};
use serde_json::json;

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::progress::Screen;
use crate::signals::{Wish, Wishes};
use crate::wording;

/// Drives a run. `wishes` was listened to since before the run was created, so that none is missed.
pub(crate) async fn drive(app: &App, mut run: Run, mut wishes: Wishes) -> Result<ExitCode, Failure> {
    let name = run.name().to_owned();
    let control = run.control();
    let screen = Screen::new(&app.output);
    let shown = tokio::spawn(screen.clone().follow(run.workflow().clone(), run.watch()));
    // A task of its own: this one waits for signals, and a task wakes others faster than the main thread does.
    let mut driven = tokio::spawn(run.drive());
    let mut stopped = None;
    let outcome = loop {
        tokio::select! {
            outcome = &mut driven => break outcome,
            wish = wishes.next() => stopped = Some(stop(app, &control, &screen, stopped, wish)),
        }
    };
    if let Err(error) = shown.await {
        std::panic::resume_unwind(error.into_panic());
    }
    let outcome = match outcome {
        Ok(outcome) => outcome.map_err(|error| stopped_by(app, &name, error))?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    if app.output.json {
        app.output.event(&finished(&outcome));
    } else {
        app.output.line(summary(&outcome));
    }
    verdict(app, &outcome, stopped.is_some())
}

/// Stops a run as urgently as was wished. Returns how urgently it stops now.
fn stop(app: &App, control: &Control, screen: &Screen, before: Option<Wish>, wish: Wish) -> Wish {
    let operation = Some(app.operation_by(match wish {
        Wish::Stop => "Ctrl-C",
        Wish::StopNow => "a signal to end",
    }));
    match (before, wish) {
        (None, Wish::Stop) => {
            control.pause(operation);
            match screen.running() {
                0 => {}
                1 => screen.note("finishing 1 node; press Ctrl-C again to stop now"),
                nodes => screen.note(&format!("finishing {nodes} nodes; press Ctrl-C again to stop now")),
            }
            Wish::Stop
        }
        (Some(_), _) | (None, Wish::StopNow) => {
            control.interrupt(operation);
            screen.note("stopping; nodes that have not finished run again on resume");
            Wish::StopNow
        }
    }
}

/// Returns why a run could not go on to an end of its own.
fn stopped_by(app: &App, name: &str, error: EngineError) -> Failure {
    let mut failure = Failure::from(error);
    if failure.code == Code::Store {
        let resume = app.command_line(format_args!("resume {name}"));
        let first = failure.hint.map(|hint| format!("{hint}; then ")).unwrap_or_default();
        failure.hint = Some(format!("{first}`{resume}` goes on from the last checkpoint"));
    }
    failure
}

fn finished(outcome: &Outcome) -> serde_json::Value {
    let failures: Vec<_> =
        outcome.failures.iter().map(|(node, error)| json!({"node": node, "error": error})).collect();
    let mut document = json!({
        "event": "finished",
        "execution": outcome.execution,
        "name": outcome.name,
        "status": outcome.state.name(),
        "head": outcome.head,
        "nodes_run": outcome.nodes_run,
        "nodes_reused": outcome.nodes_reused,
        "nodes_spared": outcome.nodes_spared,
        "cost_usd": outcome.cost_usd,
        "waiting": outcome.waiting,
        "failures": failures,
    });
    wording::spend_keys(&outcome.spend).into_iter().for_each(|(key, value)| document[key] = value);
    if let Some((node, _)) = &outcome.uncompensated {
        document["uncompensated"] = json!(node);
    }
    document
}

fn summary(outcome: &Outcome) -> String {
    let nodes = if outcome.nodes_run == 1 { "node" } else { "nodes" };
    let mut line = format!(
        "{} {}: {} {nodes} run, {} reused",
        outcome.name,
        outcome.state.name(),
        outcome.nodes_run,
        outcome.nodes_reused
    );
    if outcome.nodes_spared > 0 {
        line.push_str(&format!(", {} spared", outcome.nodes_spared));
    }
    if let Some(cost) = &outcome.cost_usd {
        line.push_str(&format!(", ${cost}"));
    }
    line.push_str(&format!(", @{}", outcome.head));
    // What the line says already is not said twice.
    if outcome.spend.reused != Cost::default()
        && let Some(spend) = wording::spend(&outcome.spend)
    {
        line.push_str(&format!("; {spend}"));
    }
    line
}

/// Returns the exit code of a run that ended, or why it is no success and how to go on.
fn verdict(app: &App, outcome: &Outcome, is_stopped: bool) -> Result<ExitCode, Failure> {
    let name = &outcome.name;
    let resume = app.command_line(format_args!("resume {name}"));
    match &outcome.state {
        ExecutionState::Completed => Ok(ExitCode::SUCCESS),
        ExecutionState::Failed(why) if let Some((node, _)) = &outcome.uncompensated => {
            let hint = format!(
                "`{resume}` tries it again, `{resume} --skip-compensation {node}` leaves the effect as it is"
            );
            Err(Failure::new(Code::RunFailed, why).hint(hint))
        }
        ExecutionState::Failed(why) => {
            let hint = format!("`{resume}` runs what failed again, and nothing that is done");
            Err(failed(outcome, why).hint(hint))
        }
        ExecutionState::Cancelled => {
            let undo = app.command_line(format_args!("undo {name}"));
            Err(Failure::new(Code::RunFailed, format!("{name} was cancelled"))
                .hint(format!("`{undo}` takes that back")))
        }
        ExecutionState::Paused if !is_stopped && !outcome.waiting.is_empty() => {
            let nodes = outcome.waiting.iter().map(|node| format!("`{node}`")).collect::<Vec<_>>().join(", ");
            let approve = outcome
                .waiting
                .iter()
                .map(|node| format!("`{}`", app.command_line(format_args!("approve {name} {node}"))))
                .collect::<Vec<_>>()
                .join(", ");
            Err(Failure::new(Code::Waiting, format!("somebody must approve {nodes}"))
                .hint(format!("{approve}, then `{resume}`")))
        }
        ExecutionState::Paused | ExecutionState::Running => {
            Err(Failure::new(Code::Interrupted, format!("{name} stopped at @{}", outcome.head))
                .hint(format!("`{resume}` goes on")))
        }
    }
}

fn failed(outcome: &Outcome, why: &str) -> Failure {
    match outcome.failures.as_slice() {
        [] | [_] => Failure::new(Code::RunFailed, why),
        many => {
            let mut failure = Failure::new(Code::RunFailed, format!("{} nodes failed", many.len()));
            failure.causes = many.iter().map(|(node, error)| format!("node `{node}`: {error}")).collect();
            failure
        }
    }
}
