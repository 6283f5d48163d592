//! Growing histories on the server: what their tables come to, and whether late steps cost more than early ones.

use super::server::Server;
use crate::growth::{Windows, append, described, kilobytes, quotient, run_chain};
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
    let (mut durable, mut engine) = (Windows::default(), Windows::default());
    for history in 0..effort.pick(7, 1) {
        let schema = server.schema(&format!("steps_{history}"));
        let runtime = sample::single_threaded()?;
        let store = super::open(&runtime, &schema)?;
        durable.add(&append(&runtime, &*store, steps, Content::Prose, false)?.steps);
        engine.add(&run_chain(&runtime, store, steps)?);
    }
    let goal = Some(Found::Ratio(COST_GOAL));
    rows.push(durable.row(format!("PostgreSQL: durable step {steps} over step 10"), goal));
    rows.push(engine.row(
        format!(
            "PostgreSQL: the same through the engine, a chain of {steps} nodes: node {steps} over node 10"
        ),
        goal,
    ));
    Ok(rows)
}

fn size(server: &Server, steps: usize, content: Content, compress: bool) -> Outcome<Row> {
    let schema = server.schema("growing");
    let runtime = sample::single_threaded()?;
    let store = super::open(&runtime, &schema)?;
    let empty = schema.bytes()?;
    let grown = append(&runtime, &*store, steps, content, compress)?;
    drop(store);
    let before = schema.bytes()?;
    schema.vacuum()?;
    let bytes = schema.bytes()?;
    Ok(Row {
        what: format!("PostgreSQL: {}: bytes of all tables and indexes", described(steps, content, compress)),
        ours: format!(
            "{} (empty tables {}, before a vacuum {})",
            kilobytes(bytes),
            kilobytes(empty),
            kilobytes(before)
        ),
        theirs: format!("the final state: {}", kilobytes(grown.state_bytes)),
        found: Found::Ratio(quotient(bytes, grown.state_bytes)),
        goal: Some(Found::Ratio(SIZE_GOAL)),
        better: Better::Less,
    })
}
