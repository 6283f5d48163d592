//! Names, labels, keys and filters that would be something else to a store which built its statements of them: the
//! SQLite store answers as the one in memory does.

use retake::engine::address;
use retake::store::{ExecutionFilter, HistoryPage, MemoryStore};

use super::*;

/// How many answers are compared.
const CASES: usize = 10_000;

const SEED: u64 = 0x5eed;

/// How many executions and how many points there are at most, so that it takes seconds.
const EXECUTIONS_MAX: usize = 150;

const PIECES: [&str; 44] = [
    "%",
    "_",
    "'",
    "''",
    "\"",
    "`",
    ";--",
    "; DROP TABLE execution;",
    "/*",
    "*/",
    "\\",
    "\0",
    "\n",
    "\r\n",
    "\t",
    "*",
    "?",
    "[a-z]",
    "{}",
    "${{ 1 }}",
    "RUN@",
    "@1",
    "@-1",
    "@{5m}",
    "@node:a",
    "../",
    "NULL",
    "x'00'",
    "0",
    "1e3",
    "-1",
    "a",
    "A",
    "é",
    "e\u{301}",
    "\u{430}",
    "\u{131}",
    "\u{17f}",
    "\u{212a}",
    "ß",
    "🦦",
    "\u{202e}",
    "\u{feff}",
    "\u{ffff}",
];

/// Draws what is asked next.
struct Draw {
    random: fastrand::Rng,
    drawn: Vec<String>,
}

impl Draw {
    /// Returns a text: a new one, or one that was drawn before, or something like it.
    fn text(&mut self) -> String {
        let pieces = self.random.usize(0..6);
        let new: String = (0..pieces).map(|_| PIECES[self.random.usize(0..PIECES.len())]).collect();
        let before = match self.drawn.len() {
            0 => new.clone(),
            drawn => self.drawn[self.random.usize(0..drawn)].clone(),
        };
        let text = match self.random.u8(0..12) {
            0..5 => new,
            5..8 => before,
            8 => before.to_uppercase(),
            9 => before.to_lowercase(),
            10 => before.chars().take(before.chars().count() / 2).collect(),
            _ => new.repeat(200),
        };
        self.drawn.push(text.clone());
        text
    }
}

/// What a store answers, in words that are the same for every store that keeps the contract.
async fn ask(store: &dyn Store, asked: &Asked) -> String {
    match asked {
        Asked::Create(new, first) => {
            told(store.create(new.clone(), first.clone()).await.map(|record| record.label))
        }
        Asked::Commit(commit) => {
            let done = told(store.commit(commit.clone()).await.map(|record| record.label));
            let page = HistoryPage { limit: Some(3), ..HistoryPage::default() };
            let labels = store.history(commit.execution_id, page).await.map(|records| {
                records.into_iter().map(|record| (record.seq, record.label)).collect::<Vec<_>>()
            });
            let state = store.state(commit.execution_id, commit.expected_head + 1).await;
            format!("{done} {} {}", told(labels), told(state))
        }
        Asked::List(filter) => {
            let found = store.executions(filter).await;
            told(
                found.map(|found| {
                    found.into_iter().map(|record| (record.id, record.name)).collect::<Vec<_>>()
                }),
            )
        }
        Asked::Resolve(run) => match address::resolve_run(store, run).await {
            Ok(record) => format!("{} {}", record.id, record.name),
            Err(error) => format!("{error:?}"),
        },
    }
}

fn told(answer: Result<impl std::fmt::Debug, store::StoreError>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(error) => format!("refused: {error}"),
    }
}

#[derive(Debug)]
enum Asked {
    Create(NewExecution, NewCheckpoint),
    Commit(Commit),
    List(ExecutionFilter),
    Resolve(String),
}

#[tokio::test]
async fn hostile_names_labels_keys_and_filters_are_to_sqlite_what_they_are_to_memory() {
    let (_directory, path) = place();
    let (sqlite, memory) = (SqliteStore::open(path).unwrap(), MemoryStore::new());
    let mut draw = Draw { random: fastrand::Rng::with_seed(SEED), drawn: Vec::new() };
    let mut heads: Vec<(ExecutionId, Seq)> = Vec::new();
    let (mut hits, mut refusals) = (0, 0);
    for case in 0..CASES {
        let what = draw.random.u8(0..20);
        let asked = match what {
            0..3 if heads.len() < EXECUTIONS_MAX => {
                let mut new = execution(&draw.text(), None);
                new.workflow_name = draw.text();
                Asked::Create(new, checkpoint(set(&draw.text(), &draw.text())))
            }
            3..5 if !heads.is_empty() => {
                let (id, head) = heads[draw.random.usize(0..heads.len())];
                let mut commit = commit(id, head, set(&draw.text(), &draw.text()));
                commit.checkpoint.label = Some(draw.text());
                commit.checkpoint.nodes = vec![draw.text()];
                Asked::Commit(commit)
            }
            5..8 => Asked::List(ExecutionFilter {
                state: Some(draw.text()),
                address: draw.random.bool().then(|| draw.text()),
                limit: Some(3),
                ..ExecutionFilter::default()
            }),
            8 => Asked::Resolve(draw.text()),
            _ => Asked::List(ExecutionFilter {
                address: Some(draw.text()),
                limit: Some(3),
                ..ExecutionFilter::default()
            }),
        };
        let (ours, model) = (ask(&sqlite, &asked).await, ask(&memory, &asked).await);
        assert_eq!(ours, model, "seed {SEED:#x}, case {case}: {asked:?}");
        let is_refused = ours.starts_with("refused");
        refusals += usize::from(is_refused);
        match &asked {
            Asked::Create(new, _) if !is_refused => heads.push((new.id, 1)),
            Asked::Commit(commit) if !is_refused => {
                let known = heads.iter_mut().find(|(id, _)| *id == commit.execution_id).unwrap();
                known.1 += 1;
            }
            Asked::List(_) => hits += usize::from(ours != "[]"),
            Asked::Create(..) | Asked::Commit(_) | Asked::Resolve(_) => {}
        }
    }
    // Filters found what they were to find, and names were taken.
    assert!(hits > CASES / 20, "{hits} of {CASES} found something");
    assert!(refusals > 50, "{refusals} of {CASES} were refused");
    assert_eq!(sqlite.check().await.unwrap().problems, Vec::<String>::new());
}
