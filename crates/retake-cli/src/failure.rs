//! What went wrong, as the user is told: a message, its causes, a hint, and the exit code.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use retake::engine::EngineError;
use retake::engine::address::AddressError;
use retake::execution::ExecutionId;
use retake::store::{Conflict, StoreError};
use retake::workflow::{Problem, WorkflowError};
use serde_json::{Value, json};

/// Why the command ends; each has its exit code, which scripts rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The run failed.
    RunFailed,
    /// The command line or the workflow is wrong.
    Usage,
    /// What was named is not there.
    NotFound,
    /// Somebody else holds the lease, or the head moved.
    Conflict,
    /// The run waits for somebody's approval.
    Waiting,
    /// The store cannot be read or written.
    Store,
    /// It could not be undone.
    Irreversible,
    /// The run was interrupted and can be resumed.
    Interrupted,
}

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) causes: Vec<String>,
    pub(crate) hint: Option<String>,
    /// What there is to hint at beside that, which depends on the store.
    pub(crate) matter: Option<Matter>,
    /// A file's problems with their places, to be drawn.
    pub(crate) report: Option<Box<WorkflowError>>,
}

/// What to do about it depends on the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matter {
    /// Something is damaged.
    Damage,
    /// Somebody else advances a run, and holds the lease until then.
    Lease { run: ExecutionId, until: DateTime<Utc> },
}

impl Code {
    /// Returns the exit code.
    pub(crate) fn exit(self) -> ExitCode {
        ExitCode::from(match self {
            Self::RunFailed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Waiting => 5,
            Self::Store => 6,
            Self::Irreversible => 7,
            Self::Interrupted => 130,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::RunFailed => "run_failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Waiting => "waiting",
            Self::Store => "store",
            Self::Irreversible => "irreversible",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None, matter: None, report: None }
    }

    /// Returns a failure of the operating system, or of what stands between it and the store.
    pub(crate) fn system(message: impl Into<String>, cause: impl Error) -> Self {
        Self::caused(Code::Store, message, &cause)
    }

    pub(crate) fn caused(code: Code, message: impl Into<String>, cause: &dyn Error) -> Self {
        let mut failure = Self::new(code, message);
        failure.causes = chain(Some(cause));
        failure
    }

    /// Returns the failure to read what the command line names.
    pub(crate) fn unreadable(what: impl Display, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::Usage };
        Self::caused(code, format!("cannot read {what}"), error)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn of(code: Code, error: &dyn Error) -> Self {
        let mut failure = Self::new(code, error.to_string());
        failure.causes = chain(error.source());
        failure
    }

    /// Returns the message with its causes.
    pub(crate) fn in_a_line(&self) -> String {
        std::iter::once(&self.message).chain(&self.causes).cloned().collect::<Vec<_>>().join(": ")
    }

    /// Returns the document that `--json` prints on stderr.
    pub(crate) fn to_json(&self) -> Value {
        let mut document =
            json!({"error": {"code": self.code.name(), "message": self.in_a_line(), "hint": self.hint}});
        if let Some(report) = &self.report {
            let first = report.problems().next();
            document["error"]["hint"] = json!(first.and_then(Problem::hint).or(self.hint.as_deref()));
            document["error"]["line"] = json!(report.line());
            document["error"]["column"] = json!(report.column());
        }
        document
    }
}

/// Returns what each error of a chain adds to the one before.
fn chain(first: Option<&dyn Error>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut next = first;
    while let Some(error) = next {
        let cause = error.to_string();
        let is_said = |above: &String| above.contains(&cause) || cause.contains(above.as_str());
        if !causes.last().is_some_and(is_said) {
            causes.push(cause);
        }
        next = error.source();
    }
    causes
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let (code, hint) = match &error {
            StoreError::NoExecution(_) => (Code::NotFound, Some("`retake ls` lists the runs")),
            StoreError::NoPoint { .. } | StoreError::Pruned { .. } => {
                (Code::NotFound, Some("`retake log RUN` lists the points that are there"))
            }
            StoreError::ForeignPosition { .. } => {
                (Code::Usage, Some("`retake watch --from-start` begins with the oldest checkpoint there is"))
            }
            StoreError::Conflict(Conflict::NameTaken(_)) => (
                Code::Conflict,
                Some("choose another with `--name`, or go on with that run: `retake resume RUN`"),
            ),
            StoreError::Conflict(Conflict::IdTaken(_)) => (Code::Conflict, None),
            StoreError::Conflict(Conflict::Leased { .. }) => (Code::Conflict, None),
            StoreError::Conflict(Conflict::InUse { .. }) => {
                (Code::Conflict, Some("end the other retake processes, then try again"))
            }
            StoreError::Conflict(_) => (Code::Conflict, Some("look at `retake log RUN`, then try again")),
            StoreError::Corrupt { .. } => (Code::Store, None),
            StoreError::Key { .. } => (
                Code::Store,
                Some("`--key` or RETAKE_KEY names the place of the key; without either there is none"),
            ),
            StoreError::Absent { .. } => (Code::NotFound, Some("`retake run FILE` makes one")),
            StoreError::Full { .. } => (Code::Store, Some("free some space; what was acknowledged is safe")),
            StoreError::Unstorable { .. }
            | StoreError::NewerFormat { .. }
            | StoreError::NotAStore { .. }
            | StoreError::Refused { .. }
            | StoreError::Io { .. }
            | StoreError::Closed { .. }
            | _ => (Code::Store, None),
        };
        let mut failure = Self::of(code, &error);
        failure.hint = hint.map(str::to_owned);
        failure.matter = if let StoreError::Corrupt { .. } = error {
            Some(Matter::Damage)
        } else if let StoreError::Conflict(Conflict::Leased { execution, until, .. }) = error {
            Some(Matter::Lease { run: execution, until })
        } else {
            None
        };
        failure
    }
}

impl From<WorkflowError> for Failure {
    fn from(error: WorkflowError) -> Self {
        let mut failure = Self::new(Code::Usage, error.to_string());
        failure.report = Some(Box::new(error));
        failure
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::Workflow(error) => error.into(),
            EngineError::Interrupted { ref nodes } => {
                let again: Vec<String> = nodes.iter().map(|(name, _)| format!("--again {name}")).collect();
                Self::of(Code::Irreversible, &error).hint(format!(
                    "look outside whether it happened; to run it again under the same key: {}",
                    again.join(" ")
                ))
            }
            EngineError::Irreversible { .. } => Self::of(Code::Irreversible, &error).hint(
                "`--skip-effects` keeps their results, `--again` lets them happen once more, `--compensate` runs the \
                 counter-actions of those that have one",
            ),
            EngineError::Compensated { .. } => Self::of(Code::Irreversible, &error).hint(
                "`--again` lets them happen once more, `--skip-effects` takes their results as if they stood",
            ),
            EngineError::InterruptedCompensation { ref nodes } => {
                let flags = |flag: &str| {
                    nodes.iter().map(|(name, _)| format!("{flag} {name}")).collect::<Vec<_>>().join(" ")
                };
                Self::of(Code::Irreversible, &error).hint(format!(
                    "look outside whether it happened; to run it again under the same key: {}; to leave it: {}",
                    flags("--again"),
                    flags("--skip-compensation")
                ))
            }
            EngineError::NothingToCompensateFrom { ref node, .. } => Self::of(Code::Irreversible, &error)
                .hint(format!("undo it by hand, then `retake resume RUN --skip-compensation {node}`")),
            EngineError::NothingToCompensate { .. } => Self::of(Code::NotFound, &error)
                .hint("`retake show RUN` lists the compensations"),
            EngineError::NoNode { .. } | EngineError::NothingThere { .. } => Self::of(Code::NotFound, &error),
            EngineError::HasOutput { ref node } => {
                let hint = format!("leave `--done {node}` out: `--output {node}=VALUE` replaces its output");
                Self::of(Code::Conflict, &error).hint(hint)
            }
            EngineError::HasNoOutput { ref node, .. } => {
                let hint = format!("`--done {node}` marks it as done, with that output");
                Self::of(Code::Conflict, &error).hint(hint)
            }
            EngineError::Misfit { .. } => Self::of(Code::Conflict, &error)
                .hint("`retake rollback RUN@POINT --linear` goes back to a point as it was"),
            EngineError::NotWaiting { .. } | EngineError::NothingTo { .. } => {
                Self::of(Code::Conflict, &error)
            }
            EngineError::Ended { ref name, found } => {
                let failure = Self::of(Code::Conflict, &error);
                match found {
                    "cancelled" => failure.hint(format!("`retake undo {name}` takes the cancellation back")),
                    "failed" => failure.hint(format!("`retake resume {name}` runs what failed again")),
                    _ => failure,
                }
            }
            EngineError::NoAnswer { .. } | EngineError::StillRunning { .. } => {
                Self::of(Code::Conflict, &error)
            }
            EngineError::Silent { .. } => Self::of(Code::Conflict, &error)
                .hint("nothing was changed; if it has died, the same command does it then"),
            EngineError::Rejected { .. } => {
                Self::of(Code::RunFailed, &error).hint("`retake undo RUN` takes the rejection back")
            }
            EngineError::Cancelled { .. } => {
                Self::of(Code::Conflict, &error).hint("`retake undo RUN` takes the cancellation back")
            }
            EngineError::StoredDefinition(_) => Self::of(Code::Store, &error),
            EngineError::Secret { ref name, .. } => {
                let hint = format!("mention `secrets.{name}` where it is used, or take another value");
                Self::of(Code::Usage, &error).hint(hint)
            }
            EngineError::NoQueue
            | EngineError::Config(_)
            | EngineError::Input(_)
            | EngineError::Variable { .. }
            | EngineError::NoHandler { .. }
            | EngineError::NoDefinition { .. }
            | _ => Self::of(Code::Usage, &error),
        }
    }
}

impl From<AddressError> for Failure {
    fn from(error: AddressError) -> Self {
        let (code, hint) = match &error {
            AddressError::UnknownRun { near: Some(near), .. } => {
                (Code::NotFound, format!("did you mean `{near}`? `retake ls` lists the runs"))
            }
            AddressError::UnknownRun { near: None, .. } => {
                (Code::NotFound, "`retake ls` lists the runs".to_owned())
            }
            AddressError::Ambiguous { .. } => (Code::Usage, "write more of the id, or the name".to_owned()),
            AddressError::NoLabel { name, known, .. } if known.is_empty() => (
                Code::NotFound,
                format!("it has no labels: `retake checkpoint {name} --label LABEL` sets one"),
            ),
            AddressError::NoLabel { known, .. } => {
                let known: Vec<String> = known.iter().map(|label| format!("`{label}`")).collect();
                (Code::NotFound, format!("its labels are {}", known.join(", ")))
            }
            AddressError::NeverRecorded { name, .. }
            | AddressError::TooFarBack { name, .. }
            | AddressError::NothingThatLongAgo { name, .. } => {
                (Code::NotFound, format!("`retake log {name}` lists the points that are there"))
            }
            AddressError::Store(error) => return error.clone().into(),
            AddressError::Syntax { .. } | _ => (
                Code::Usage,
                "RUN, RUN@12, RUN@LABEL, RUN@node:ID, RUN@-1 and RUN@{5m} are addresses".to_owned(),
            ),
        };
        Self::of(code, &error).hint(hint)
    }
}
