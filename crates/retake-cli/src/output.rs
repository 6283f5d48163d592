//! The one place that prints: data on stdout, all else on stderr.

use std::borrow::Cow;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use owo_colors::OwoColorize;
use retake::workflow::WorkflowError;
use serde::Serialize;

use crate::failure::{Code, Failure};
use crate::wording;

/// How long a line of a file may be that is shown with what is wrong in it. Room for colours included.
const DRAWN_LINE_BYTES_MAX: usize = 1_000;

/// Where and how to print.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) json: bool,
    data: Arc<Mutex<Data>>,
}

/// How stdout stands.
#[derive(Debug)]
enum Data {
    Open,
    /// Its reader has left, like `head`. That is no error: what follows is not wanted.
    Left,
    /// Something could not be written.
    Lost(std::io::Error),
}

/// Stdout as somewhere to write to. A reader that has left is no error.
struct Stream<'a> {
    data: &'a mut Data,
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Data::Open = self.data else { return Ok(bytes.len()) };
        match std::io::stdout().lock().write_all(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                *self.data = Data::Left;
                Ok(bytes.len())
            }
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match std::io::stdout().lock().flush() {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, data: Arc::new(Mutex::new(Data::Open)) }
    }

    /// Prints a line of data.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let Data::Open = *data else { return };
        let mut stdout = anstream::stdout().lock();
        if let Err(error) = writeln!(stdout, "{}", coloured(text.as_ref())).and_then(|()| stdout.flush()) {
            *data = if error.kind() == ErrorKind::BrokenPipe { Data::Left } else { Data::Lost(error) };
        }
    }

    /// Prints what `write` writes, as it is.
    pub(crate) fn stream<E>(&self, write: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> Result<(), E> {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = BufWriter::new(Stream { data: &mut data });
        write(&mut out)
    }

    /// Tells whether anybody may still read what is printed on stdout.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(*self.data.lock().unwrap_or_else(PoisonError::into_inner), Data::Open)
    }

    /// Prints a line about what happens.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        // Where not even stderr takes a word, there is nobody to tell.
        let _unheard = writeln!(anstream::stderr(), "{}", coloured(text.as_ref()));
    }

    /// Prints a JSON document: on one line for a script, indented for a person.
    pub(crate) fn document(&self, document: &impl Serialize) {
        let text = if std::io::stdout().is_terminal() {
            serde_json::to_string_pretty(document)
        } else {
            serde_json::to_string(document)
        };
        self.line(wording::plain_json(text.expect("a document has text keys")));
    }

    /// Prints one JSON document of a stream.
    pub(crate) fn event(&self, event: &impl Serialize) {
        let text = serde_json::to_string(event).expect("an event has text keys");
        self.line(wording::plain_json(text));
    }

    /// Prints why a command failed, and returns its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        if self.json {
            self.note(wording::plain_json(failure.to_json().to_string()));
            return failure.code.exit();
        }
        match &failure.report {
            Some(report) => self.note(draw(report)),
            None => {
                let mark = match failure.code {
                    Code::Waiting => "waiting:".yellow().bold().to_string(),
                    Code::Interrupted => "interrupted:".yellow().bold().to_string(),
                    Code::RunFailed
                    | Code::Usage
                    | Code::NotFound
                    | Code::Conflict
                    | Code::Store
                    | Code::Irreversible => "error:".red().bold().to_string(),
                };
                self.note(format!("{mark} {}", printable(&failure.message)));
            }
        }
        for cause in &failure.causes {
            self.note(format!("  {} {}", "because:".dimmed(), printable(cause)));
        }
        if let Some(hint) = &failure.hint {
            self.note(format!("  {} {hint}", "hint:".cyan()));
        }
        failure.code.exit()
    }

    /// Ends the output. Returns another exit code than the command's own where data was lost.
    pub(crate) fn close(&self) -> Option<ExitCode> {
        let state =
            std::mem::replace(&mut *self.data.lock().unwrap_or_else(PoisonError::into_inner), Data::Left);
        match state {
            Data::Open | Data::Left => None,
            Data::Lost(error) => {
                Some(self.fail(&Failure::system("not all of the output could be written", error)))
            }
        }
    }
}

/// Returns what is wrong with a file: drawn below its lines, or listed where those are too long to look at.
fn draw(error: &WorkflowError) -> String {
    let mut drawn = String::new();
    let is_drawn = miette::GraphicalReportHandler::new().render_report(&mut drawn, error).is_ok();
    if is_drawn && drawn.lines().all(|line| line.len() <= DRAWN_LINE_BYTES_MAX) {
        return drawn.trim_end().to_owned();
    }
    let listed = error.problems().map(|problem| {
        let place = problem.line().zip(problem.column());
        let place = place.map_or_else(String::new, |(line, column)| format!("{line}:{column}: "));
        let help = problem.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("\n  {place}{}{}", printable(problem.message()), printable(&help))
    });
    let head = format!("{} {}", "error:".red().bold(), printable(&error.to_string()));
    // One that stands alone, and needs no help, is all in the head.
    let is_all = error.problems().all(|problem| problem.hint().is_none()) && error.problems().count() == 1;
    if is_all { head } else { head + &listed.collect::<String>() }
}

/// Returns a text without what would steer a terminal: nodes, models and servers wrote it.
pub(crate) fn printable(text: &str) -> String {
    let text = anstream::adapter::strip_str(text).to_string();
    text.chars().filter(|letter| !wording::misleads(*letter) || matches!(letter, '\n' | '\t')).collect()
}

/// Returns a text that is about to be printed with nothing in it that steers a terminal but line ends and colours. What
/// others wrote was made plain where it was put into the text; this is for what was forgotten.
fn coloured(text: &str) -> Cow<'_, str> {
    let is_fine = |letter: char| !wording::misleads(letter) || matches!(letter, '\n' | '\t');
    if text.chars().all(is_fine) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let colour = colour_length(rest);
        let (taken, left) = rest.split_at(colour.unwrap_or(letter.len_utf8()));
        match colour.is_some() || is_fine(letter) {
            true => plain.push_str(taken),
            false => plain.push_str(&wording::plain(taken)),
        }
        rest = left;
    }
    Cow::Owned(plain)
}

/// Returns how long the sequence is that sets a colour, if the text begins with one.
fn colour_length(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|letter: char| !letter.is_ascii_digit() && letter != ';')?;
    numbers[end..].starts_with('m').then_some("\u{1b}[".len() + end + 1)
}

/// Prints clap's word on a command line: help on stdout, errors on stderr.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _reader_left = error.print();
        return ExitCode::SUCCESS;
    }
    // The command line could not be read, so that it is asked directly.
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let text = text.trim().strip_prefix("error: ").unwrap_or(&text);
        let (message, _usage) = text.split_once("\n\n").unwrap_or((text, ""));
        return Output::new(true).fail(&Failure::new(Code::Usage, message));
    }
    let _unheard = error.print();
    Code::Usage.exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_not_printed() {
        assert_eq!(printable("a\u{1b}[31mred\u{1b}[0m\r\u{7}b\n\tc\u{202e}\u{2028}"), "aredb\n\tc");
    }

    #[test]
    fn of_what_is_printed_only_colours_and_line_ends_reach_a_terminal() {
        assert_eq!(coloured("\u{1b}[1;31mred\u{1b}[0m\n\tplain"), "\u{1b}[1;31mred\u{1b}[0m\n\tplain");
        for (text, shown) in [
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{1b}[31", "\\u{1b}[31"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\rb", "a\\rb"),
            ("\u{1b}[32m\u{202e}x\u{1b}[0m", "\u{1b}[32m\\u{202e}x\u{1b}[0m"),
        ] {
            assert_eq!(coloured(text), shown);
        }
    }
}
