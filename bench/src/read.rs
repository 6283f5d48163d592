//! Reading states back, at the head and in the middle of a history.

use std::path::Path;

use retake::execution::ExecutionContext;
use retake::store::{SqliteStore, StoreExt, decode, encode};
use serde_json::Value;

use crate::sample::{self, Content, Draw, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{median, ratio, timed};
use crate::{Effort, Outcome};

/// Points in the middle that are looked at.
const MIDDLE: u64 = 9;

/// What happens in a history.
#[derive(Debug, Clone, Copy)]
enum History {
    /// Each step appends 1 KB to one list.
    Appends,
    /// Each step sets one of 100 variables of 1 KB.
    Sets,
}

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let steps = effort.pick(1_000, 60);
    let mut rows = Vec::new();
    for history in [History::Appends, History::Sets] {
        rows.extend(read(history, steps, effort.pick(101, 3))?);
    }
    Ok(rows)
}

fn read(history: History, steps: usize, times: usize) -> Outcome<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("retake.db");
    let runtime = sample::single_threaded()?;
    let store = SqliteStore::open(&path)?;
    let (variables, what) = match history {
        History::Appends => (0, "a list that grew by 1 KB a step"),
        History::Sets => (100, "100 variables of 1 KB, one set a step"),
    };
    let mut saved = runtime.block_on(Saved::create(&store, variables, false))?;
    let mut draw = Draw::new(6);
    for step in 0..steps {
        match history {
            History::Appends => saved.ctx.append("messages", sample::message(&mut draw, Content::Prose))?,
            History::Sets => {
                let value = Value::String(sample::prose(&mut draw));
                saved.ctx.set_variable(sample::variable(step % variables), value);
            }
        }
        runtime.block_on(saved.save(&store))?;
    }
    drop(store);

    let store = SqliteStore::open(&path)?;
    let floor = directory.path().join("floor");
    let measure = |seq| -> Outcome<(std::time::Duration, std::time::Duration)> {
        let expected = runtime.block_on(store.context(saved.id(), seq))?;
        std::fs::write(&floor, encode("the state", &plain(&expected))?)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..times {
            let (took, ctx) = timed(|| runtime.block_on(store.context(saved.id(), seq)));
            if ctx? != expected {
                return Err("a state was read otherwise than before".into());
            }
            ours.push(took);
            let (took, value) = timed(|| read_plainly(&floor));
            value?;
            theirs.push(took);
        }
        Ok((median(&ours), median(&theirs)))
    };
    let row = |point: &str, (ours, theirs)| Row {
        what: format!("read {point} of {steps} steps ({what})"),
        ours: shown(ours),
        theirs: format!("the same from a file of MessagePack: {}", shown(theirs)),
        found: Found::Ratio(ratio(ours, theirs)),
        goal: Some(Found::Ratio(3.0)),
        better: Better::Less,
    };
    let head = measure(saved.head)?;
    let mut worst = measure(saved.head / (MIDDLE + 1))?;
    for part in 2..=MIDDLE {
        let point = measure(saved.head * part / (MIDDLE + 1))?;
        if ratio(point.0, point.1) > ratio(worst.0, worst.1) {
            worst = point;
        }
    }
    Ok(vec![row("the head", head), row(&format!("the worst of {MIDDLE} points in the middle"), worst)])
}

/// Returns a state's variables as one plain value.
fn plain(ctx: &ExecutionContext) -> Value {
    Value::Object(ctx.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn read_plainly(path: &Path) -> Outcome<Value> {
    Ok(decode("the floor", &std::fs::read(path)?)?)
}
