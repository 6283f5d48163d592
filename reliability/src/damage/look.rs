//! Everything that a store can be asked, and whether what it says is true.

use std::path::Path;

use retake::execution::ExecutionId;
use retake::store::{
    CheckpointRecord, ExecutionFilter, ExecutionRecord, HistoryPage, Image, OperationRecord, Request, Seq,
    SqliteStore, Store, StoreError,
};
use uuid::Uuid;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Question {
    Executions,
    Execution(ExecutionId),
    History(ExecutionId),
    State(ExecutionId, Seq),
    Operations(ExecutionId),
    Requests(ExecutionId),
    Workflow(Uuid),
    Checkpoint(Uuid),
}

/// One thing that a store says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Execution(ExecutionRecord),
    Point(CheckpointRecord),
    State(Image),
    Operation(OperationRecord),
    Request(Request),
    Definition(Vec<u8>),
}

/// What is true at one moment: an answer to each question, in order of the questions.
pub(super) type Truth = Vec<Vec<Item>>;

/// What a store that may be damaged says.
#[derive(Debug)]
pub(super) struct Reading {
    answers: Vec<Result<Vec<Item>, StoreError>>,
    /// What `check` found.
    problems: Result<Vec<String>, StoreError>,
}

/// What a reading is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not opened, with an error that names it.
    Refused,
    /// All is as it was, and nothing is reported.
    Unharmed,
    /// All that is said is true, and what cannot be said is reported.
    Found,
    /// All is as it was some commits ago, and nothing is reported.
    Older(usize),
    /// Something is said that was never true.
    Wrong(String),
    /// Something is not said, and nothing reports that.
    Silent(String),
    /// The same, of nothing but what was done or asked, which no point depends on.
    LogSilent,
    /// An error does not name what is damaged.
    Unnamed(String),
}

/// Opens a store as these trials do.
pub(super) fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open_existing(path)
}

/// Asks one question.
pub(super) async fn ask(store: &SqliteStore, question: Question) -> Result<Vec<Item>, StoreError> {
    let page = HistoryPage::default();
    let answer = match question {
        Question::Executions => {
            let executions = store.executions(&ExecutionFilter::default()).await;
            executions.map(|all| all.into_iter().map(Item::Execution).collect())
        }
        Question::Execution(id) => {
            store.execution(id).await.map(|one| one.map(Item::Execution).into_iter().collect())
        }
        Question::History(id) => {
            store.history(id, page).await.map(|all| all.into_iter().map(Item::Point).collect())
        }
        Question::State(id, seq) => store.state(id, seq).await.map(|state| vec![Item::State(state)]),
        Question::Operations(id) => {
            store.operations(id).await.map(|all| all.into_iter().map(Item::Operation).collect())
        }
        Question::Requests(id) => {
            store.requests(id).await.map(|all| all.into_iter().map(Item::Request).collect())
        }
        Question::Workflow(id) => {
            store.workflow(id).await.map(|one| one.map(Item::Definition).into_iter().collect())
        }
        Question::Checkpoint(id) => {
            store.checkpoint(id).await.map(|one| one.map(Item::Point).into_iter().collect())
        }
    };
    match answer {
        // It says that there is no such thing.
        Err(StoreError::NoExecution(_) | StoreError::NoPoint { .. } | StoreError::Pruned { .. }) => {
            Ok(Vec::new())
        }
        answer => answer,
    }
}

/// Asks everything.
pub(super) async fn read(store: &SqliteStore, questions: &[Question]) -> Reading {
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        answers.push(ask(store, *question).await);
    }
    let problems = store.check().await.map(|report| report.problems);
    Reading { answers, problems }
}

/// How an answer stands to what is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    Equal,
    /// True as far as it goes.
    Incomplete,
    Untrue,
}

impl Match {
    fn of(answer: &[Item], truth: &[Item]) -> Self {
        if answer == truth {
            return Self::Equal;
        }
        // In the same order, with gaps.
        let mut rest = truth.iter();
        match answer.iter().all(|item| rest.any(|other| other == item)) {
            true => Self::Incomplete,
            false => Self::Untrue,
        }
    }
}

impl Reading {
    /// Judges by what was true at one moment after another, the newest of which is the last.
    pub(super) fn verdict(&self, questions: &[Question], moments: &[Truth]) -> Verdict {
        let errors = self
            .answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .chain(self.problems.as_ref().err());
        if let Some(error) = errors.clone().find(|error| !is_named(error)) {
            return Verdict::Unnamed(format!("{error:?}"));
        }
        let is_reported =
            errors.count() > 0 || self.problems.as_ref().is_ok_and(|problems| !problems.is_empty());
        let best = moments
            .iter()
            .enumerate()
            .rev()
            .map(|(moment, truth)| (self.fit(truth), moment))
            .min_by_key(|(fit, _)| *fit);
        let back = best.map_or(0, |(_, moment)| moments.len() - 1 - moment);
        match best {
            Some((Match::Equal, _)) if is_reported => Verdict::Found,
            Some((Match::Equal, _)) if back == 0 => Verdict::Unharmed,
            Some((Match::Equal, _)) => Verdict::Older(back),
            Some((Match::Incomplete, _)) if is_reported => Verdict::Found,
            Some((Match::Incomplete, moment)) if self.lacks_logs_only(questions, &moments[moment]) => {
                Verdict::LogSilent
            }
            Some((Match::Incomplete, moment)) => {
                Verdict::Silent(self.first_that(questions, &moments[moment], Match::Incomplete))
            }
            Some((Match::Untrue, moment)) => {
                Verdict::Wrong(self.first_that(questions, &moments[moment], Match::Untrue))
            }
            None => Verdict::Wrong("nothing is known to be true".to_owned()),
        }
    }

    /// Returns the worst of all answers. Errors say nothing untrue.
    fn fit(&self, truth: &Truth) -> Match {
        let answers = self.answers.iter().zip(truth);
        let known = answers.filter_map(|(answer, truth)| Some(Match::of(answer.as_ref().ok()?, truth)));
        known.max().unwrap_or(Match::Equal)
    }

    /// Tells whether nothing but entries of operation logs and requests is missing.
    fn lacks_logs_only(&self, questions: &[Question], truth: &Truth) -> bool {
        let is_log =
            |question: &Question| matches!(question, Question::Operations(_) | Question::Requests(_));
        let others =
            questions.iter().zip(&self.answers).zip(truth).filter(|((question, _), _)| !is_log(question));
        others
            .filter_map(|((_, answer), truth)| Some(answer.as_ref().ok()? == truth))
            .all(|is_equal| is_equal)
    }

    fn first_that(&self, questions: &[Question], truth: &Truth, is: Match) -> String {
        let all = questions.iter().zip(&self.answers).zip(truth);
        let found =
            all.filter_map(|((question, answer), truth)| Some((question, answer.as_ref().ok()?, truth)));
        let mut found = found.filter(|(_, answer, truth)| Match::of(answer, truth) == is);
        found.next().map_or_else(String::new, |(question, answer, truth)| {
            format!(
                "{question:?}: {} of {} are there; check says {:?}",
                answer.len(),
                truth.len(),
                self.problems
            )
        })
    }
}

/// Tells whether an error is one of damage, and says of what.
pub(super) fn is_named(error: &StoreError) -> bool {
    let name = if let StoreError::Corrupt { record, .. } = error {
        record
    } else if let StoreError::NotAStore { location, .. } | StoreError::NewerFormat { location, .. } = error {
        location
    } else {
        return false;
    };
    !name.is_empty()
}
