//! Claiming among nothing else, and among a million executions that ended and a hundred thousand that wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use retake::clock::{Clock, SystemClock};
use retake::store::{Claim, PostgresStore, Queue, Settlement, Ticket};
use tokio::runtime::Runtime;

use super::server::{Schema, Server};
use crate::sample::{self, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{Stopwatch, median, ratio, timed};
use crate::{Effort, Outcome};

/// "Flat" leaves room for the levels that larger trees have, and for noise.
const GOAL: f64 = 1.5;

/// Executions that are claimed at the same time, beside one.
const SOME: usize = 8;

/// Where the keys of rows begin that are filled in: far above those that a store draws.
const KEYS: i64 = 1 << 40;

/// Rows that one statement fills in.
const AT_ONCE: usize = 100_000;

/// How many executions stand how.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    ended: usize,
    ready: usize,
    delayed: usize,
    held: usize,
}

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let server = Server::connect()?;
    let runtime = sample::single_threaded()?;
    let claims = effort.pick(500, 5);
    let (small, large) = (server.schema("claiming_few"), server.schema("claiming_many"));
    // Each claim takes some, and each way to claim is measured; none may run out.
    let needed = (SOME + 1) * claims;
    let few = Crowd { ended: 0, ready: needed, delayed: 0, held: 0 };
    let ended = effort.pick(1_000_000, 1_000);
    let waiting = effort.pick(100_000, 4 * needed);
    let many = Crowd { ended, ready: waiting / 2, delayed: waiting / 4, held: waiting / 4 };
    let few = crowded(&server, &runtime, &small, few)?;
    let watch = Stopwatch::start();
    let many = crowded(&server, &runtime, &large, many)?;
    let filled = watch.read();
    let mut rows = Vec::new();
    for most in [1, SOME] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..claims {
            ours.push(claim_and_settle(&runtime, &*many, most)?);
            theirs.push(claim_and_settle(&runtime, &*few, most)?);
        }
        let (ours, theirs) = (median(&ours), median(&theirs));
        let what = if most == 1 { "one execution".to_owned() } else { format!("{most} executions at once") };
        rows.push(Row {
            what: format!(
                "PostgreSQL: claim and settle {what}, among {ended} that ended and {waiting} that wait \
                 (filled in {})",
                shown(filled)
            ),
            ours: shown(ours),
            theirs: format!("among those that are claimed: {}", shown(theirs)),
            found: Found::Ratio(ratio(ours, theirs)),
            goal: Some(Found::Ratio(GOAL)),
            better: Better::Less,
        });
    }
    Ok(rows)
}

/// Makes a store with a real execution, and as many copies of its rows as there are to be others.
fn crowded(server: &Server, runtime: &Runtime, schema: &Schema<'_>, crowd: Crowd) -> Outcome<Arc<dyn Queue>> {
    let store: Arc<dyn Queue> = Arc::new(runtime.block_on(PostgresStore::connect(&schema.url()))?);
    let (_, new, first) = Saved::begin(0, false)?;
    runtime.block_on(store.submit(new, first, Ticket::default(), None))?;
    let Crowd { ended, ready, delayed, held } = crowd;
    let mut from = 0;
    let mut fill = |many: usize, stand: Option<(&str, &str)>, name: &str| -> Outcome<()> {
        let until = from + many;
        while from < until {
            let now = AT_ONCE.min(until - from);
            copies(server, schema, from, now, stand, name)?;
            from += now;
        }
        Ok(())
    };
    fill(ended, None, "completed")?;
    fill(ready, Some(("ready", "moment() - interval '1 hour' + n * interval '1 millisecond'")), "created")?;
    fill(delayed, Some(("delayed", "moment() + interval '1 day'")), "created")?;
    fill(held, Some(("held", "moment()")), "paused")?;
    schema.vacuum()?;
    server.run("CHECKPOINT")?;
    Ok(store)
}

/// Copies the rows of the one real execution: what tells rows apart, and how they stand, is set anew. Checksums are those
/// of the copied rows, and what is copied is never read as a history.
fn copies(
    server: &Server,
    schema: &Schema<'_>,
    from: usize,
    many: usize,
    stand: Option<(&str, &str)>,
    state: &str,
) -> Outcome<()> {
    let key = format!("{KEYS} + n");
    let state = format!("'{state}'");
    let mut tables: Vec<(&str, Vec<(&str, &str)>)> = vec![
        (
            "executions",
            vec![
                ("key", &key),
                ("id", "gen_random_uuid()"),
                ("name", "t.name || convert_to(n::text, 'UTF8')"),
                ("created_at", "t.created_at + n"),
                ("state_name", &state),
            ],
        ),
        ("execution_workflows", vec![("execution", &key)]),
        ("deltas", vec![("key", &key)]),
        ("checkpoints", vec![("execution", &key), ("delta", &key), ("id", "gen_random_uuid()")]),
    ];
    let quoted = stand.map(|(stand, due)| (format!("'{stand}'"), due));
    if let Some((stand, due)) = &quoted {
        tables.push(("tickets", vec![("execution", &key), ("stand", stand), ("due", due)]));
    }
    for (table, set) in tables {
        let first = set[0].0;
        let column = set.iter().fold("quote_ident(attname)".to_owned(), |rest, (name, value)| {
            let value = value.replace('\'', "''");
            format!("CASE attname WHEN '{name}' THEN '{value}' ELSE {rest} END")
        });
        let columns = server.text(&format!(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) || ') SELECT ' || \
             string_agg({column}, ', ' ORDER BY attnum) FROM pg_attribute \
             WHERE attrelid = '{schema}.{table}'::regclass AND attnum > 0 AND NOT attisdropped",
            schema = schema.name
        ))?;
        server.run(&format!(
            "SET search_path = {schema}; INSERT INTO {table} ({columns} \
             FROM (SELECT * FROM {table} WHERE {first} < {KEYS} ORDER BY {first} LIMIT 1) t, \
             generate_series({from}, {until}) n; RESET search_path",
            schema = schema.name,
            until = from + many - 1
        ))?;
    }
    Ok(())
}

/// Returns how long it took to claim at most so many, and to settle each, as a worker does it.
fn claim_and_settle(runtime: &Runtime, store: &dyn Queue, most: usize) -> Outcome<Duration> {
    let claim = Claim {
        worker: SystemClock::default().new_id(),
        queues: Vec::new(),
        able: BTreeSet::new(),
        most,
        ttl: Duration::from_secs(30),
    };
    let (took, claimed) = timed(|| {
        runtime.block_on(async {
            let claimed = store.claim(&claim).await?;
            for one in &claimed {
                store.settle(&one.lease, Settlement::Done).await?;
            }
            Ok::<_, retake::store::StoreError>(claimed.len())
        })
    });
    match claimed? {
        found if found == most => Ok(took),
        found => Err(format!("{found} were claimed where {most} were to be had").into()),
    }
}
