//! Growing histories on the server: what their tables come to, and whether late steps cost more than early ones.

use retake::store::Store;
use tokio::runtime::Runtime;

use super::server::Server;
use crate::growth::{EARLY, Growing, LATE, Windows, append, described, kilobytes, quotient};
use crate::sample::{self, Content};
use crate::table::{Better, Found, Row};
use crate::{Effort, Outcome};

/// Bytes over the final state, at most.
const SIZE_GOAL: f64 = 2.0;

/// Late steps over early ones, at most.
const COST_GOAL: f64 = 1.2;

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let server = Server::connect()?;
    let steps = effort.pick(1_000, 60);
    let mut rows = Vec::new();
    for (content, compress) in
        [(Content::Prose, true), (Content::Prose, false), (Content::Noise, true), (Content::Noise, false)]
    {
        rows.push(size(&server, steps, content, compress)?);
    }
    let mut windows = Windows::default();
    for history in 0..effort.pick(5, 1) {
        let schema = server.schema(&format!("steps_{history}"));
        let runtime = sample::single_threaded()?;
        let store = super::open(&runtime, &schema)?;
        compare(&runtime, &*store, steps, &mut windows)?;
    }
    let what = format!("PostgreSQL: durable step {steps} over step 10, in turns");
    rows.push(windows.row(what, Some(Found::Ratio(COST_GOAL))));
    Ok(rows)
}

/// Makes the last steps of a long history in turns with the first ones of short ones: how long the disk takes changes from
/// second to second, for both alike.
fn compare(runtime: &Runtime, store: &dyn Store, steps: usize, windows: &mut Windows) -> Outcome<()> {
    let create = || Growing::create(runtime, store, Content::Prose, false);
    let mut old = create()?;
    for _ in LATE.min(steps)..steps {
        old.step(runtime, store)?;
    }
    let mut left = LATE;
    while left > 0 {
        let mut young = create()?;
        young.step(runtime, store)?;
        for _ in 1..EARLY.min(left + 1) {
            let (early, _) = young.step(runtime, store)?;
            let (late, _) = old.step(runtime, store)?;
            windows.add_pair(early, late);
            left -= 1;
        }
    }
    Ok(())
}

fn size(server: &Server, steps: usize, content: Content, compress: bool) -> Outcome<Row> {
    let schema = server.schema("growing");
    let runtime = sample::single_threaded()?;
    let store = super::open(&runtime, &schema)?;
    // One execution, so that every table that this one needs has its pages.
    append(&runtime, &*store, 2, content, compress)?;
    schema.vacuum()?;
    let empty = schema.bytes()?;
    let grown = append(&runtime, &*store, steps, content, compress)?;
    drop(store);
    let before = schema.bytes()?;
    schema.vacuum()?;
    let after = schema.bytes()?;
    let bytes = after.saturating_sub(empty);
    Ok(Row {
        what: format!(
            "PostgreSQL: {}: bytes added to tables and indexes",
            described(steps, content, compress)
        ),
        ours: format!(
            "{} (with empty tables {}, before a vacuum {})",
            kilobytes(bytes),
            kilobytes(after),
            kilobytes(before)
        ),
        theirs: format!("the final state: {}", kilobytes(grown.state_bytes)),
        found: Found::Ratio(quotient(bytes, grown.state_bytes)),
        goal: Some(Found::Ratio(SIZE_GOAL)),
        better: Better::Less,
    })
}
