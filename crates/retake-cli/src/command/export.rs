//! `retake export`: a run's whole history as one file.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use retake::engine::address;
use retake::store::{History, HistoryFileError};
use serde_json::json;

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::wording;

/// Write a run's whole history to a file that `retake import` reads.
///
/// The file is lines of JSON: the run, its workflows, each checkpoint with what changed, and what people did. Secrets are
/// not in it, since they are never saved; what nodes read and gave is.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The run
    run: String,

    /// The file to write; one that is there is replaced, once the new one is whole. Without it: stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Export {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            let failure = Failure::new(Code::Usage, "the history would be written to the terminal");
            return Err(failure.hint("`-o FILE` writes it to a file"));
        }
        let store = app.store().await?;
        let run = address::resolve_run(&*store, &self.run).await?;
        let history = store.export(run.id).await?;
        let name = wording::plain(&run.name);
        if run.leased_by.is_some() {
            let head = history.execution.head;
            app.output.note(format!("{name} is being advanced: this is its history up to @{head}"));
        }
        let Some(file) = self.output else {
            app.output.stream(|out| history.write_to(out))?;
            return Ok(ExitCode::SUCCESS);
        };
        let bytes = write(&history, &file)?;
        let (points, operations) = (history.points.len() as u64, history.operations.len() as u64);
        if app.output.json {
            app.output.document(&json!({
                "execution": run.id,
                "name": run.name,
                "head": history.execution.head,
                "checkpoints": points,
                "operations": operations,
                "file": file,
                "bytes": bytes,
            }));
        } else {
            app.output.line(format!(
                "exported {name} with {} and {} to {} ({})",
                wording::count(points, "checkpoint"),
                wording::count(operations, "operation"),
                file.display(),
                wording::bytes(bytes),
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a file that takes its place when it is whole and durable. Returns how many bytes it has.
fn write(history: &History, file: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| Failure::system(format!("cannot write {}", file.display()), error);
    // A device or a pipe is written to, not replaced.
    if std::fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        let mut out = Counted { out: File::create(file).map_err(failed)?, bytes: 0 };
        history.write_to(BufWriter::new(&mut out))?;
        return Ok(out.bytes);
    }
    if is_sqlite(file) {
        let message = format!("{} is a SQLite file, and is not replaced", file.display());
        return Err(Failure::new(Code::Usage, message));
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = || -> Result<u64, Failure> {
        let mut out = Counted { out: private(&partial).map_err(failed)?, bytes: 0 };
        history.write_to(BufWriter::new(&mut out))?;
        out.out.sync_all().map_err(failed)?;
        std::fs::rename(&partial, file).map_err(failed)?;
        Ok(out.bytes)
    };
    written().inspect_err(|_| drop(std::fs::remove_file(&partial)))
}

/// Makes a file that nobody else reads: the store may be encrypted, and what is exported is not.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Tells whether there is a store, or another database, where the file is to be.
fn is_sqlite(path: &Path) -> bool {
    let mut magic = [0; 16];
    let read = File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == *b"SQLite format 3\0"
}

struct Counted {
    out: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

impl From<HistoryFileError> for Failure {
    fn from(error: HistoryFileError) -> Self {
        let code = match &error {
            HistoryFileError::Read { .. } | HistoryFileError::Write(_) | HistoryFileError::Unwritable(_) => {
                Code::Store
            }
            HistoryFileError::NotAHistory { .. }
            | HistoryFileError::NewerVersion { .. }
            | HistoryFileError::Line { .. }
            | HistoryFileError::Cut { .. }
            | HistoryFileError::Changed { .. }
            | HistoryFileError::TooLarge { .. }
            | HistoryFileError::NotWhole(_)
            | _ => Code::Usage,
        };
        Self::of(code, &error)
    }
}
