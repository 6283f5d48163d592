//! `retake copy`: runs, whole, from one store to another.

use std::process::ExitCode;

use clap::Args;
use owo_colors::{OwoColorize, Style};
use retake::engine::address;
use retake::store::{
    Conflict, ExecutionFilter, ExecutionRecord, StoreError, TransferError, TransferFate, TransferMode,
    Transferred, transfer,
};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::{Code, Failure};
use crate::{question, wording};

/// Columns of what became of a run, and of its name.
const FATE_WIDTH: usize = 8;
const NAME_WIDTH: usize = 16;

/// Digits of a checksum that a person is shown.
const CHECKSUM_DIGITS: usize = 16;

/// Copy runs with their whole histories to another store.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// The runs; without any, all of them
    #[arg(value_name = "RUN")]
    runs: Vec<String>,

    /// The store to copy from; without it, that of --store
    #[arg(long, value_name = "URL")]
    from: Option<String>,

    /// The store to copy to, made where there is none
    #[arg(long, value_name = "URL")]
    to: String,

    /// Where the master key of the store to copy from is, as with --key, which then opens neither store
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    from_key: Vec<String>,

    /// Where the master key of the store to copy to is, as with --key, which then opens neither store
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    to_key: Vec<String>,

    /// Say what would be copied, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Do not ask whether what is encrypted here is to be in plain text there
    #[arg(short, long)]
    yes: bool,
}

/// Whether somebody wants what is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consent {
    Given,
    Withheld,
}

/// What became of one run.
struct Copied {
    run: ExecutionRecord,
    /// Whether it waits for a worker, or one has it: that is no part of its history.
    is_queued: bool,
    outcome: Result<Transferred, Failure>,
}

/// How a run ended up, for people and for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Copied,
    Same,
    Ahead,
    Refused,
    Failed,
}

impl Copy {
    pub(crate) async fn execute(self, app: &App) -> Result<ExitCode, Failure> {
        let (source, target) = self.places(app)?;
        let opened = source.open().await?;
        let from = opened.store();
        let runs = if self.runs.is_empty() {
            let mut runs = from.executions(&ExecutionFilter::default()).await?;
            // Origins before their forks.
            runs.reverse();
            runs
        } else {
            let mut runs: Vec<ExecutionRecord> = Vec::new();
            for run in &self.runs {
                let run = address::resolve_run(&*from, run).await?;
                if !runs.iter().any(|named| named.id == run.id) {
                    runs.push(run);
                }
            }
            runs
        };
        if self.consent(app, &source, &target)? == Consent::Withheld {
            return Ok(ExitCode::SUCCESS);
        }
        let mode = if self.dry_run { TransferMode::Look } else { TransferMode::Write };
        // A look must not leave a store behind where there is none.
        let to = match mode {
            TransferMode::Look => target.store_if_any().await?,
            TransferMode::Write => Some(target.make_store().await?),
        };
        let ids: Vec<_> = runs.iter().map(|run| run.id).collect();
        let queued = opened.tickets(&ids).await?;
        let mut done = Vec::with_capacity(runs.len());
        let count = runs.len();
        for (index, run) in runs.into_iter().enumerate() {
            let nowhere = retake::store::MemoryStore::new();
            let to = to.as_deref().unwrap_or(&nowhere);
            let outcome = match transfer(&*from, to, run.id, mode).await {
                Ok(transferred) => Ok(transferred),
                // Somebody removed it meanwhile.
                Err(TransferError::Source(StoreError::NoExecution(_))) => continue,
                Err(error) if is_of_one(&error) => Err(failure(&run, &error)),
                Err(error) => {
                    let left = wording::count((count - index) as u64, "run");
                    let hint = format!("{left} left; the same command goes on with those");
                    return Err(failure(&run, &error).hint(hint));
                }
            };
            let is_queued = queued.contains_key(&run.id);
            let copied = Copied { run, is_queued, outcome };
            if !app.output.json {
                copied.print(app, (index + 1, count), self.dry_run);
            }
            done.push(copied);
        }
        finish(app, &done, self.dry_run)
    }

    /// Makes sure that somebody wants what is encrypted in one store to be in plain text in the other.
    fn consent(&self, app: &App, source: &App, target: &App) -> Result<Consent, Failure> {
        if self.yes || !source.is_encrypted()? || target.is_encrypted()? {
            return Ok(Consent::Given);
        }
        let (from, to) = (source.shown_store(), target.shown_store());
        let what = format!("{from} is encrypted, and {to} is not: all values will be there in plain text");
        if self.dry_run {
            if !app.output.json {
                app.output.note(what);
            }
            return Ok(Consent::Given);
        }
        match question::confirm(app, &format!("{what}; copy them?")) {
            Ok(true) => Ok(Consent::Given),
            Ok(false) => Ok(Consent::Withheld),
            Err(failure) => Err(Failure { message: what, ..failure }),
        }
    }

    /// Returns the surroundings of both stores.
    fn places(&self, app: &App) -> Result<(App, App), Failure> {
        let source = app.elsewhere(self.from.clone(), None);
        let target = app.elsewhere(Some(self.to.clone()), None);
        let (from_key, to_key) = match self.from_key.is_empty() && self.to_key.is_empty() {
            // What opens the file is nothing that a server was asked to take.
            true => match (source.is_on_a_server()?, target.is_on_a_server()?) {
                (true, false) => (Some(Vec::new()), None),
                (false, true) => (None, Some(Vec::new())),
                (true, true) | (false, false) => (None, None),
            },
            false => (Some(self.from_key.clone()), Some(self.to_key.clone())),
        };
        let (source, target) = (source.elsewhere(None, from_key), target.elsewhere(None, to_key));
        for place in [&source, &target] {
            if place.is_in_memory()? {
                let message = "a store in memory ends with this command, and holds nothing before";
                return Err(Failure::new(Code::Usage, message));
            }
        }
        Ok((source, target))
    }
}

/// Tells whether the other runs can be copied nevertheless.
fn is_of_one(error: &TransferError) -> bool {
    matches!(
        error,
        TransferError::Source(StoreError::Corrupt { .. } | StoreError::Unstorable { .. })
            | TransferError::Target(StoreError::Unstorable { .. })
    )
}

fn failure(run: &ExecutionRecord, error: &TransferError) -> Failure {
    let mut failure = Failure::of(Code::Store, error);
    failure.message = format!("{}: {}", wording::plain(&run.name), failure.message);
    failure
}

impl Copied {
    fn word(&self) -> Word {
        match self.outcome.as_ref().map(|transferred| &transferred.fate) {
            Ok(TransferFate::Copied) => Word::Copied,
            Ok(TransferFate::Same) => Word::Same,
            Ok(TransferFate::Ahead { .. }) => Word::Ahead,
            Ok(TransferFate::Behind { .. } | TransferFate::Differs { .. } | TransferFate::Taken(_)) => {
                Word::Refused
            }
            Err(_) => Word::Failed,
        }
    }

    /// Returns what a person is told beside the word.
    fn why(&self) -> Option<String> {
        let transferred = match &self.outcome {
            Ok(transferred) => transferred,
            Err(failure) => return Some(failure.in_a_line()),
        };
        match &transferred.fate {
            TransferFate::Copied if self.run.leased_by.is_some() => {
                Some(format!("it is being advanced: this is its history up to @{}", transferred.execution.head))
            }
            TransferFate::Copied if self.is_queued => Some(
                "it keeps its place in the queue here, and has none there: take care that it goes on in one store only"
                    .to_owned(),
            ),
            TransferFate::Copied | TransferFate::Same => None,
            TransferFate::Ahead { head } => Some(format!("it stands at @{head} there, with all of this")),
            TransferFate::Behind { head } => {
                Some(format!("it stands at @{head} there: remove it there, and it is copied as it is now"))
            }
            TransferFate::Differs { head } => {
                Some(format!("it stands at @{head} there, with another history, which is not touched"))
            }
            TransferFate::Taken(Conflict::NameTaken(_)) => Some(
                "a run of that name is there: `retake export` and `retake import --name` give this one another"
                    .to_owned(),
            ),
            TransferFate::Taken(conflict) => Some(format!("{conflict} there")),
        }
    }

    fn print(&self, app: &App, (number, count): (usize, usize), is_dry: bool) {
        let word = self.word();
        let shown = if is_dry && word == Word::Copied { "would be copied" } else { word.name() };
        let width = count.to_string().len();
        let mut line = format!(
            "[{number:>width$}/{count}] {}  {:NAME_WIDTH$}",
            format!("{shown:FATE_WIDTH$}").style(word.style()),
            wording::plain(&self.run.name),
        );
        if let Ok(transferred) = &self.outcome {
            line.push_str(&format!(
                "  @{}, {}, {}  {}",
                transferred.execution.head,
                wording::count(transferred.points, "checkpoint"),
                wording::count(transferred.operations, "operation"),
                (&hexadecimal(&transferred.checksum)[..CHECKSUM_DIGITS]).dimmed(),
            ));
        }
        app.output.line(line);
        if let Some(why) = self.why() {
            app.output.line(format!("  {}", wording::plain(&why)));
        }
    }

    fn document(&self) -> Value {
        let mut document = json!({
            "execution": self.run.id,
            "name": self.run.name,
            "outcome": self.word().name(),
            "why": self.why(),
        });
        if let Ok(transferred) = &self.outcome {
            document["head"] = json!(transferred.execution.head);
            document["checkpoints"] = json!(transferred.points);
            document["operations"] = json!(transferred.operations);
            document["running_in"] = json!(self.run.leased_by);
            document["checksum"] = json!(hexadecimal(&transferred.checksum));
        }
        document
    }
}

impl Word {
    const ALL: [Self; 5] = [Self::Copied, Self::Same, Self::Ahead, Self::Refused, Self::Failed];

    fn name(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Same => "same",
            Self::Ahead => "ahead",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    fn style(self) -> Style {
        let style = Style::new();
        match self {
            Self::Copied => style.green(),
            Self::Same | Self::Ahead => style.dimmed(),
            Self::Refused => style.yellow(),
            Self::Failed => style.red(),
        }
    }
}

/// Says how it ended, and returns the exit code.
fn finish(app: &App, done: &[Copied], is_dry: bool) -> Result<ExitCode, Failure> {
    let count = |word| done.iter().filter(|copied| copied.word() == word).count();
    if app.output.json {
        let mut document = json!({
            "dry_run": is_dry,
            "runs": done.iter().map(Copied::document).collect::<Vec<_>>(),
        });
        Word::ALL.into_iter().for_each(|word| document[word.name()] = json!(count(word)));
        app.output.document(&document);
    } else if done.is_empty() {
        app.output.note("no runs");
    } else {
        let counts = Word::ALL.map(|word| (count(word), word.name()));
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: Vec<_> = counts.map(|(count, word)| format!("{count} {word}")).collect();
        let left = if is_dry { "; nothing was written" } else { "" };
        app.output.line(format!("{}{left}", counts.join(", ")));
    }
    let (refused, failed) = (count(Word::Refused), count(Word::Failed));
    if failed > 0 {
        let message = format!("{} could not be copied", wording::count(failed as u64, "run"));
        return Err(Failure::new(Code::Store, message).hint("`retake doctor` reads every record of a store"));
    }
    if refused > 0 {
        let message = format!("{} could not be copied", wording::count(refused as u64, "run"));
        return Err(Failure::new(Code::Conflict, message));
    }
    Ok(ExitCode::SUCCESS)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
