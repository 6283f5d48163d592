//! The one place that prints: data on stdout, all else on stderr.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use owo_colors::OwoColorize;
use serde::Serialize;

use crate::failure::{Code, Failure};

/// Where and how to print.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a line of data.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        write_or_leave(anstream::stdout(), text.as_ref());
    }

    /// Prints a line about what happens.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        write_or_leave(anstream::stderr(), text.as_ref());
    }

    /// Prints a JSON document: on one line for a script, indented for a person.
    pub(crate) fn document(&self, document: &impl Serialize) {
        let text = if std::io::stdout().is_terminal() {
            serde_json::to_string_pretty(document)
        } else {
            serde_json::to_string(document)
        };
        self.line(text.expect("a document has text keys"));
    }

    /// Prints why a command failed, and returns its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        if self.json {
            self.note(failure.to_json().to_string());
            return failure.code.exit();
        }
        match &failure.report {
            Some(report) => {
                let mut drawn = String::new();
                let handler = miette::GraphicalReportHandler::new();
                match handler.render_report(&mut drawn, &**report) {
                    Ok(()) => self.note(drawn.trim_end()),
                    Err(_) => self.note(format!("{} {}", "error:".red().bold(), failure.message)),
                }
            }
            None => self.note(format!("{} {}", "error:".red().bold(), failure.message)),
        }
        for cause in &failure.causes {
            self.note(format!("  {} {cause}", "because:".dimmed()));
        }
        if let Some(hint) = &failure.hint {
            self.note(format!("  {} {hint}", "hint:".cyan()));
        }
        failure.code.exit()
    }
}

/// Prints clap's word on a command line: help on stdout, errors on stderr.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _closed = error.print();
    if error.use_stderr() { Code::Usage.exit() } else { ExitCode::SUCCESS }
}

/// Writes a line. A reader that has left, like `head`, is no error: the command ends quietly.
fn write_or_leave(mut stream: impl Write, text: &str) {
    if let Err(error) = writeln!(stream, "{text}") {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
    }
}
