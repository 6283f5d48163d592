//! The commands, one file each.

pub(crate) mod approve;
pub(crate) mod cancel;
pub(crate) mod checkpoint;
pub(crate) mod completions;
pub(crate) mod copy;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod fork;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod ls;
pub(crate) mod op;
pub(crate) mod pause;
pub(crate) mod prune;
pub(crate) mod queue;
pub(crate) mod redo;
pub(crate) mod resume;
pub(crate) mod rm;
pub(crate) mod rollback;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod show;
pub(crate) mod undo;
pub(crate) mod validate;
pub(crate) mod watch;
pub(crate) mod worker;

use std::process::ExitCode;

use crate::app::App;
use crate::arguments::Command;
use crate::failure::Failure;

/// Does what the command line says.
pub(crate) async fn execute(app: &App, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(run) => run.execute(app).await,
        Command::Resume(resume) => resume.execute(app).await,
        Command::Validate(validate) => validate.execute(app),
        Command::Schema(schema) => schema.execute(app),
        Command::Init(init) => init.execute(app),
        Command::Demo(demo) => demo.execute(app).await,
        Command::Completions(completions) => completions.execute(app),
        Command::Ls(ls) => ls.execute(app).await,
        Command::Log(log) => log.execute(app).await,
        Command::Show(show) => show.execute(app).await,
        Command::Watch(watch) => watch.execute(app).await,
        Command::Explain(explain) => explain.execute(app).await,
        Command::Diff(diff) => diff.execute(app).await,
        Command::Checkpoint(checkpoint) => checkpoint.execute(app).await,
        Command::Rollback(rollback) => rollback.execute(app).await,
        Command::Edit(edit) => edit.execute(app).await,
        Command::Fork(fork) => fork.execute(app).await,
        Command::Undo(undo) => undo.execute(app).await,
        Command::Redo(redo) => redo.execute(app).await,
        Command::Op(op) => op.execute(app).await,
        Command::Approve(approve) => approve.execute(app).await,
        Command::Pause(pause) => pause.execute(app).await,
        Command::Cancel(cancel) => cancel.execute(app).await,
        Command::Prune(prune) => prune.execute(app).await,
        Command::Rm(rm) => rm.execute(app).await,
        Command::Export(export) => export.execute(app).await,
        Command::Import(import) => import.execute(app).await,
        Command::Copy(copy) => copy.execute(app).await,
        Command::Key(key) => key.execute(app).await,
        Command::Queue(queue) => queue.execute(app).await,
        Command::Worker(worker) => worker.execute(app).await,
        Command::Doctor(doctor) => doctor.execute(app).await,
    }
}
