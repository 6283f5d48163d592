//! `retake key`: the master keys of encrypted stores.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use retake::store::MasterKey;
use serde_json::json;

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::key_source;

/// Draw a master key, or give an encrypted store another.
#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Print a new key; whoever has it can read the store, and without it nobody can
    New,
    /// Give the store another key, and seal what is written from now on with a new one of its own
    ///
    /// What was written before is not written again: it is opened through the store's own keys, which are wrapped anew.
    /// Processes that have the store open go on if they were given both keys. Old copies of the file still open with the
    /// old key.
    Rotate {
        /// Where the new key is, as for `--key`
        #[arg(long, value_name = "SOURCE")]
        to: String,
    },
}

impl Key {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        match self.command {
            KeyCommand::New => {
                let key = MasterKey::random().map_err(|error| Failure::system("no key", error))?;
                match app.output.json {
                    true => app.output.document(&json!({ "key": *key.to_hex(), "id": key.id() })),
                    false => app.output.line(&*key.to_hex()),
                }
            }
            KeyCommand::Rotate { to } => {
                let key = key_source::read(&to)?;
                let Some(path) = app.store_file()? else {
                    let what = if app.is_on_a_server()? { "on a PostgreSQL server" } else { "in memory" };
                    return Err(Failure::new(Code::Usage, format!("a store {what} has no key")));
                };
                app.sqlite_store(&path)?.rotate_key(&key).await?;
                match app.output.json {
                    true => app.output.document(&json!({ "master": key.id() })),
                    false => {
                        app.output.line(format!("the store has the master key {} now", key.id()));
                        app.output
                            .note(format!("from now on it is opened with `--key {to}`, or RETAKE_KEY={to}"));
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
