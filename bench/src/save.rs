//! Durable saves: one writer, and many at once.

use std::sync::Arc;
use std::time::Duration;

use retake::store::SqliteStore;
use serde_json::Value;

use crate::floor::{Appender, GroupAppender};
use crate::sample::{self, Draw, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{Stopwatch, median, ratio, timed};
use crate::{Effort, Outcome};

/// Variables of 1 KB in the state.
const VARIABLES: usize = 100;

/// Executions that save at the same time.
const EXECUTIONS: usize = 64;

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let mut rows = one_writer(effort)?;
    rows.extend(many_writers(effort)?);
    Ok(rows)
}

fn one_writer(effort: Effort) -> Outcome<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path().join("retake.db"))?;
    let mut floor = Appender::create(&directory.path().join("floor"))?;
    let runtime = sample::single_threaded()?;
    let mut saved = runtime.block_on(Saved::create(&store, VARIABLES, false))?;
    let mut draw = Draw::new(2);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for step in 0..effort.pick(1_000, 10) {
        let value = Value::String(sample::prose(&mut draw));
        saved.ctx.set_variable(sample::variable(step % VARIABLES), value);
        let bytes = saved.checkpoint()?.delta.encode();
        let (took, done) = timed(|| runtime.block_on(saved.save(&store)));
        done?;
        ours.push(took);
        let (took, done) = timed(|| floor.append(&bytes));
        done?;
        theirs.push(took);
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    Ok(vec![Row {
        what: "durable save of a 1 KB change in a 100 KB state, one writer".to_owned(),
        ours: shown(ours),
        theirs: format!("raw append + fdatasync: {}", shown(theirs)),
        found: Found::Ratio(ratio(ours, theirs)),
        goal: Some(Found::Ratio(1.5)),
        better: Better::Less,
    }])
}

fn many_writers(effort: Effort) -> Outcome<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let store = Arc::new(SqliteStore::open(directory.path().join("retake.db"))?);
    let floor = Arc::new(GroupAppender::create(&directory.path().join("floor"))?);
    let runtime = sample::single_threaded()?;
    let mut executions = Vec::new();
    for _ in 0..EXECUTIONS {
        executions.push(runtime.block_on(Saved::create(&*store, VARIABLES, false))?);
    }
    let record = record(&mut executions[0])?;
    let saves = effort.pick(40, 2);
    let (mut ours, mut theirs, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.pick(11, 1) {
        let watch = Stopwatch::start();
        executions = runtime.block_on(save_at_once(&store, executions, saves))?;
        ours.push(watch.read());
        let watch = Stopwatch::start();
        runtime.block_on(append_at_once(&floor, &record, saves))?;
        theirs.push(watch.read());
        let one = executions.split_off(EXECUTIONS - 1);
        let watch = Stopwatch::start();
        let one = runtime.block_on(save_at_once(&store, one, saves))?;
        alone.push(watch.read());
        executions.extend(one);
    }
    Arc::into_inner(floor).ok_or("somebody still appends")?.close()?;
    let ours = rate(EXECUTIONS * saves, median(&ours));
    let theirs = rate(EXECUTIONS * saves, median(&theirs));
    let alone = rate(saves, median(&alone));
    let row = |theirs: String, found, goal| Row {
        what: format!("{EXECUTIONS} executions saving at once, saves per second"),
        ours: format!("{ours:.0}/s"),
        theirs,
        found: Found::Ratio(found),
        goal,
        better: Better::More,
    };
    let floor = format!("raw group-committed append: {theirs:.0}/s");
    Ok(vec![
        row(floor, ours / theirs, Some(Found::Ratio(0.5))),
        row(format!("one of them alone: {alone:.0}/s"), ours / alone, None),
    ])
}

/// Returns the bytes of one change, which is made but not saved.
fn record(saved: &mut Saved) -> Outcome<Arc<[u8]>> {
    saved.ctx.set_variable(sample::variable(0), Value::String(sample::prose(&mut Draw::new(3))));
    Ok(saved.checkpoint()?.delta.encode().into())
}

/// Saves each execution so often, all of them at the same time.
async fn save_at_once(store: &Arc<SqliteStore>, executions: Vec<Saved>, saves: usize) -> Outcome<Vec<Saved>> {
    let tasks: Vec<_> = executions
        .into_iter()
        .map(|mut saved| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut draw = Draw::new(saved.head);
                for step in 0..saves {
                    let value = Value::String(sample::prose(&mut draw));
                    saved.ctx.set_variable(sample::variable(step % VARIABLES), value);
                    saved.save(&*store).await?;
                }
                Ok::<_, retake::store::StoreError>(saved)
            })
        })
        .collect();
    let mut saved = Vec::new();
    for task in tasks {
        saved.push(task.await??);
    }
    Ok(saved)
}

/// Appends the record as often as [`save_at_once`] saves, by as many tasks.
async fn append_at_once(floor: &Arc<GroupAppender>, record: &Arc<[u8]>, saves: usize) -> Outcome<()> {
    let tasks: Vec<_> = (0..EXECUTIONS)
        .map(|_| {
            let (floor, record) = (Arc::clone(floor), Arc::clone(record));
            tokio::spawn(async move {
                for _ in 0..saves {
                    floor.append(Arc::clone(&record)).await?;
                }
                Ok::<_, std::io::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn rate(saves: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(saves).unwrap_or(u32::MAX)) / took.as_secs_f64()
}
