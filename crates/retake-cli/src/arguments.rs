//! The command line, as clap reads it.

use clap::{Parser, Subcommand};

use crate::command;

/// Where histories are kept unless the command line or the environment says otherwise.
pub(crate) const STORE_DEFAULT: &str = ".retake/store.db";

/// Checkpoints, resumes and rolls back workflow executions.
///
/// RUN is a run's name, or any unique prefix of its id. RUN@12 is checkpoint 12 of it, RUN@LABEL a labelled one,
/// RUN@node:ID the one that recorded a node, RUN@-1 the one before the head, and RUN@{5m} the state five minutes ago.
#[derive(Debug, Parser)]
#[command(name = "retake", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Where histories are kept: a path, `sqlite:PATH`, `postgres://USER@HOST/DATABASE` or `memory:`
    #[arg(long, global = true, env = "RETAKE_STORE", value_name = "URL", hide_env_values = true)]
    #[arg(default_value = STORE_DEFAULT)]
    pub(crate) store: String,

    /// Print one JSON document (for `run`, `resume` and `watch`: one a line)
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// A file of NAME=value lines that secrets are read from, before the environment
    #[arg(long, global = true, env = "RETAKE_SECRETS", value_name = "FILE")]
    pub(crate) secrets: Option<std::path::PathBuf>,

    /// A JSON file of what models cost, in place of the list that comes with this version
    #[arg(long, global = true, env = "RETAKE_PRICES", value_name = "FILE")]
    pub(crate) prices: Option<std::path::PathBuf>,

    /// Where the master key of an encrypted store is: `env:NAME`, `file:PATH` or `command:COMMAND`; several with commas
    ///
    /// A key is 64 hexadecimal digits; `retake key new` draws one. A new store is encrypted if there is a key. The first
    /// key seals a new store, the others only open. Only stores in files are encrypted: one on a PostgreSQL server takes no
    /// key.
    #[arg(long, global = true, env = "RETAKE_KEY", value_name = "SOURCE", value_delimiter = ',')]
    pub(crate) key: Vec<String>,

    /// Hosts, addresses and ranges beside the public internet that `http` and `llm` nodes may reach, with commas
    /// between them, as `127.0.0.0/8,build.internal`
    #[arg(long, global = true, env = "RETAKE_ALLOW_NETWORK", value_name = "LIST")]
    pub(crate) allow_network: Option<String>,

    /// A proxy for `http` and `llm` nodes, except for what --allow-network names; it resolves names by itself
    #[arg(long, global = true, env = "RETAKE_PROXY", value_name = "URL", hide_env_values = true)]
    pub(crate) proxy: Option<String>,

    /// Say on stderr what the command does: `info`, or what to say of what, as `retake::store=debug,warn`
    #[arg(long, global = true, env = "RETAKE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// Serve metrics for Prometheus at a port of this machine, or at HOST:PORT, while the command runs
    #[arg(long, global = true, env = "RETAKE_METRICS", value_name = "PORT")]
    pub(crate) metrics: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do. The struct of each command stands in the file that does it.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a workflow from its start
    Run(command::run::Run),
    /// Go on with a run from its newest checkpoint
    Resume(command::resume::Resume),
    /// Check a workflow file
    Validate(command::validate::Validate),
    /// Print the JSON Schema of workflow files
    Schema(command::schema::Schema),
    /// Write a workflow to begin with
    Init(command::init::Init),
    /// Watch a run being killed, resumed and rolled back, and count what that saves
    Demo(command::demo::Demo),
    /// Print what a shell needs to complete this command
    Completions(command::completions::Completions),
    /// List runs, newest first
    Ls(command::ls::Ls),
    /// Show a run's history, newest first
    Log(command::log::Log),
    /// Show the state of a run at a point, or one node of it
    Show(command::show::Show),
    /// Show the checkpoints of all runs, or of one, as they are made
    ///
    /// A checkpoint is shown once it is durable, whichever machine made it, in the order in which they became so. Each has
    /// a position in the store, which `--after` goes on from: nothing that came later is left out, and nothing shown twice.
    /// A store that cannot be read for a while is waited for.
    ///
    /// Watching one run ends with it. Watching all runs ends with Ctrl-C, and so does watching one that is paused or
    /// stalled, as it may go on.
    ///
    /// With `--json`: one document a line. The first is `watching`, with the position where it begins, then `point` for
    /// each checkpoint, and `finished` when the run that is watched has ended.
    ///
    /// Exit codes: 0 the run completed, or all was shown with --once; 1 it failed or was cancelled; 2 a position of
    /// another store; 3 no such run, or it was removed; 6 the store cannot be read; 130 Ctrl-C.
    Watch(command::watch::Watch),
    /// Say why a node ran or was reused, and what would make it run again
    Explain(command::explain::Explain),
    /// Show what differs between two points, of one run or of two
    ///
    /// What results say is compared, not when and how they were made: a node that ran again and gave the same is no
    /// difference. With `--json`, `patch` is a JSON Patch (RFC 6902): it turns the `status`, `error`, `inputs`, `variables`
    /// and `nodes` (of each its `status`, `output` and `error`) that `show --json` gives of the one point into those of the
    /// other.
    Diff(command::diff::Diff),
    /// Make a checkpoint now
    Checkpoint(command::checkpoint::Checkpoint),
    /// Go back to a point of a run
    ///
    /// The nodes that the point recorded stand as they did then, and what depends on them goes. Other branches keep what
    /// they gave, also later, unless `--linear` says otherwise; variables that somebody set later go back. A point that
    /// recorded no node, and one that a rollback or an edit made or left behind, is gone back to as a whole. Nothing is
    /// lost: what came after stays in the history, and `retake undo` takes the rollback back.
    Rollback(command::rollback::Rollback),
    /// Change the state of a run by hand
    Edit(command::edit::Edit),
    /// Begin a new run at a point of another
    Fork(command::fork::Fork),
    /// Take back a run's last operation
    ///
    /// That is a rollback, an edit, an approval or a cancellation; a resume, a pause or a checkpoint is not taken back by
    /// itself. What ran since stays in the history.
    Undo(command::undo::Undo),
    /// Do again what was taken back last
    Redo(command::redo::Redo),
    /// Show what people did to a run
    Op(command::op::Op),
    /// Approve or reject what a run waits for
    Approve(command::approve::Approve),
    /// Pause a run
    Pause(command::pause::Pause),
    /// End a run
    Cancel(command::cancel::Cancel),
    /// Remove old checkpoints
    Prune(command::prune::Prune),
    /// Remove a run with its history
    Rm(command::rm::Rm),
    /// Write a run's whole history to a file that `retake import` reads
    ///
    /// The file is lines of JSON: the run, its workflows, each checkpoint with what changed, and what people did. Secrets
    /// are not in it, since they are never saved; what nodes read and gave is.
    Export(command::export::Export),
    /// Take in a run from a file that `retake export` wrote
    ///
    /// It comes with its id, its checkpoints under their numbers and labels, and what people did. All of the file is
    /// checked before any of it is stored. Whoever wrote the file chose what the run will do: look at its workflow before
    /// you resume it.
    Import(command::import::Import),
    /// Copy runs with their whole histories to another store
    ///
    /// Runs keep ids, names, checkpoints under their numbers, labels, times and operations. Each is copied in one step,
    /// read back from the other store and compared, by a checksum of all that its history says. What is there already and
    /// is the same is left alone, so that a copy that was stopped goes on when it is started again; what is there and is
    /// another is never touched. A run that somebody advances is copied as it stands; leases, and what was asked of
    /// whoever runs it, stay behind.
    ///
    /// An encrypted store is opened with --key, as is a new one that is to be encrypted; --from-key and --to-key name the
    /// keys of each. What is encrypted here and would be in plain text there, as on any server, is copied after a question,
    /// or with --yes. There are no secrets in either, since they are never saved.
    ///
    /// Exit codes: 0 all of it is there; 3 no such run or store; 4 a run was refused, as its name or another history of it
    /// is there; 6 a store cannot be read or written, or what was read back is not the same. The other runs are copied.
    Copy(command::copy::Copy),
    /// Draw a master key, or give an encrypted store another
    Key(command::key::Key),
    /// Show the queues that workers serve, and limit what they take
    Queue(command::queue::Queue),
    /// Run executions for others
    Worker(command::worker::Worker),
    /// Read and verify every record of the store
    Doctor(command::doctor::Doctor),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }
}
