//! `retake init`: a workflow to begin with.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::app::App;
use crate::failure::{Code, Failure};

/// The workflow. It runs without network and keys.
const STARTER: &str = include_str!("init/starter.yaml");

/// Write a workflow to begin with.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to write it
    #[arg(default_value = "workflow.yaml")]
    file: PathBuf,

    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

impl Init {
    pub(crate) fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let shown = self.file.display();
        write(&self.file, self.force).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Failure::new(Code::Usage, format!("{shown} is there already"))
                    .hint("`--force` writes over it");
            }
            Failure::system(format!("cannot write {shown}"), error)
        })?;
        if app.output.json {
            app.output.document(&json!({"file": self.file}));
        } else {
            app.output.line(format!("wrote {shown}"));
            app.output.note(format!("run it: `{}`", app.command_line(format_args!("run {shown}"))));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write(file: &Path, is_forced: bool) -> io::Result<()> {
    let mut file = if is_forced { File::create(file)? } else { File::create_new(file)? };
    file.write_all(STARTER.as_bytes())
}
