//! Commits: one execution alone, and many at once, in turns with `pgbench`.

use std::sync::Arc;
use std::time::Duration;

use retake::store::Store;
use tokio::runtime::Runtime;

use super::load::{self, Saving, VARIABLES};
use super::peer::Peer;
use super::server::{Server, Spent, own_processor};
use crate::sample::{self, Saved};
use crate::table::{Better, Found, Row, shown};
use crate::timing::{middle, percentile};
use crate::{Effort, Outcome};

/// Executions that save at the same time.
const EXECUTIONS: usize = 64;

/// How many clients of `pgbench` there are at once where the best of them is wanted.
const CLIENTS: [usize; 3] = [4, 16, 64];

/// What was measured of one way to write, round by round.
#[derive(Debug, Default)]
struct Measured {
    /// Writes per second.
    rates: Vec<f64>,
    latencies: Vec<Duration>,
    /// Bytes of the server's log for one write.
    log_bytes: Vec<f64>,
    /// Writes for one transaction.
    batches: Vec<f64>,
    /// Time of the server's processes for one write.
    server: Vec<f64>,
    /// Time of this process for one write.
    client: Vec<f64>,
}

impl Measured {
    fn add(&mut self, rate: f64, count: f64, spent: Spent) {
        self.rates.push(rate);
        self.log_bytes.push(spent.log_bytes / count);
        self.batches.push(count / spent.transactions);
        self.server.push(spent.processor.as_secs_f64() / count);
    }
}

pub(crate) fn rows(effort: Effort) -> Outcome<Vec<Row>> {
    let server = Server::connect()?;
    let schema = server.schema("saving");
    let runtime = sample::single_threaded()?;
    let store = super::open(&runtime, &schema)?;
    let mut bench = Bench::new(&server, &runtime, store)?;
    // The peer takes a whole number of seconds, and at least one.
    let (rounds, seconds, clients) = (effort.pick(15, 1), 1, effort.pick(CLIENTS.len(), 1));
    let time = Duration::from_millis(effort.pick(1_000, 200) as u64);
    bench.warm_up(time)?;
    for _ in 0..rounds {
        bench.round(time, seconds, &CLIENTS[..clients])?;
    }
    let theirs = bench.peer.latencies(seconds)?;
    Ok(bench.rows(&theirs))
}

struct Bench<'a> {
    server: &'a Server,
    runtime: &'a Runtime,
    store: Arc<dyn Store>,
    peer: Peer<'a>,
    executions: Vec<Saved>,
    alone: Measured,
    together: Measured,
    one_client: Measured,
    many_clients: [Vec<f64>; CLIENTS.len()],
}

impl<'a> Bench<'a> {
    fn new(server: &'a Server, runtime: &'a Runtime, store: Arc<dyn Store>) -> Outcome<Self> {
        let mut executions = Vec::new();
        for _ in 0..EXECUTIONS {
            executions.push(runtime.block_on(Saved::create(&*store, VARIABLES, false))?);
        }
        let peer = Peer::new(server, change(&mut executions[0])?)?;
        Ok(Self {
            server,
            runtime,
            store,
            peer,
            executions,
            alone: Measured::default(),
            together: Measured::default(),
            one_client: Measured::default(),
            many_clients: Default::default(),
        })
    }

    /// Saves until statements are prepared and pages that were read are in memory.
    fn warm_up(&mut self, time: Duration) -> Outcome<()> {
        self.save(EXECUTIONS, time)?;
        // A page that is changed for the first time after a checkpoint is logged whole: on both sides alike.
        self.server.run("CHECKPOINT")
    }

    fn save(&mut self, executions: usize, time: Duration) -> Outcome<Saving> {
        let mut some = self.executions.split_off(EXECUTIONS - executions);
        let saving = self.runtime.block_on(load::save_for(&self.store, &mut some, time))?;
        self.executions.append(&mut some);
        Ok(saving)
    }

    fn round(&mut self, time: Duration, seconds: usize, clients: &[usize]) -> Outcome<()> {
        for executions in [1, EXECUTIONS] {
            let (mark, before) = (self.server.mark()?, own_processor()?);
            let saving = self.save(executions, time)?;
            let client = (own_processor()?.saturating_sub(before)).as_secs_f64() / saving.count();
            let spent = self.server.since(mark)?;
            let measured = if executions == 1 { &mut self.alone } else { &mut self.together };
            measured.add(saving.rate(), saving.count(), spent);
            measured.client.push(client);
            measured.latencies.extend(saving.latencies);
            if executions == 1 {
                let mark = self.server.mark()?;
                let rate = self.peer.rate(1, seconds)?;
                let spent = self.server.since(mark)?;
                // Its own transactions, to a few that the server makes by itself.
                self.one_client.add(rate, spent.transactions, spent);
            }
        }
        for (rates, clients) in self.many_clients.iter_mut().zip(clients) {
            rates.push(self.peer.rate(*clients, seconds)?);
        }
        Ok(())
    }

    fn rows(&self, theirs: &[Duration]) -> Vec<Row> {
        let (alone, together) = (&self.alone, &self.together);
        let one = middle(&self.one_client.rates);
        let measured = self.many_clients.iter().filter(|rates| !rates.is_empty());
        let rates = measured.map(|rates| middle(rates)).zip(CLIENTS);
        let (best, clients) = rates.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((one, 1));
        let single = format!("pgbench, one client: {one:.0}/s");
        let many = format!("pgbench, {clients} clients, its best: {best:.0}/s");
        let alone_rate = middle(&alone.rates);
        let rate = middle(&together.rates);
        let alone_what = "PostgreSQL: commits of a 1 KB change per second, one execution";
        let what = "PostgreSQL: the same, 64 executions at once";
        let in_turns = |ours: &Measured| quotients(&ours.rates, &self.one_client.rates);
        let mut rows = vec![
            rates_row(alone_what, alone_rate, single.clone(), in_turns(alone), Some(0.8)),
            rates_row(what, rate, single, in_turns(together), Some(3.0)),
            rates_row(what, rate, many, rate / best, None),
        ];
        for (which, at) in [("half of them", 50), ("99 in 100", 99)] {
            let peer = format!("pgbench, one client: {}", shown(percentile(theirs, at)));
            for (who, measured, beside) in
                [("one execution", alone, peer), ("64 executions at once", together, "-".to_owned())]
            {
                let latency = percentile(&measured.latencies, at);
                rows.push(Row {
                    what: format!("PostgreSQL: {which} are durable within, {who}"),
                    ours: shown(latency),
                    theirs: beside,
                    found: Found::Time(latency),
                    goal: None,
                    better: Better::Less,
                });
            }
        }
        rows.push(Row {
            what: "PostgreSQL: commits that share a transaction, 64 executions at once".to_owned(),
            ours: format!("{:.1}", middle(&together.batches)),
            theirs: format!("one execution: {:.1}", middle(&alone.batches)),
            found: Found::Ratio(middle(&together.batches)),
            goal: None,
            better: Better::More,
        });
        for (who, measured) in [("one execution", alone), ("64 executions at once", together)] {
            rows.push(costs_row(
                &format!("PostgreSQL: bytes of the server's log for one commit, {who}"),
                middle(&measured.log_bytes),
                middle(&self.one_client.log_bytes),
                |bytes| format!("{bytes:.0} B"),
            ));
            rows.push(costs_row(
                &format!("PostgreSQL: the server's processor for one commit, {who}"),
                middle(&measured.server),
                middle(&self.one_client.server),
                micros,
            ));
            let client = middle(&measured.client);
            rows.push(Row {
                what: format!("PostgreSQL: our processor for one commit, {who}"),
                ours: micros(client),
                theirs: "-".to_owned(),
                found: Found::Time(Duration::from_secs_f64(client)),
                goal: None,
                better: Better::Less,
            });
        }
        rows
    }
}

/// Returns how many bytes one change has, which is made but not saved.
fn change(saved: &mut Saved) -> Outcome<usize> {
    let text = sample::prose(&mut sample::Draw::new(3));
    saved.ctx.set_variable(sample::variable(0), text.into());
    Ok(saved.checkpoint()?.delta.encode().len())
}

/// Returns the middle one of what was found in each round: one is slower than another, for both alike.
fn quotients(ours: &[f64], theirs: &[f64]) -> f64 {
    middle(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
}

fn rates_row(what: &str, ours: f64, peer: String, found: f64, goal: Option<f64>) -> Row {
    Row {
        what: what.to_owned(),
        ours: format!("{ours:.0}/s"),
        theirs: peer,
        found: Found::Ratio(found),
        goal: goal.map(Found::Ratio),
        better: Better::More,
    }
}

fn costs_row(what: &str, ours: f64, theirs: f64, shown: impl Fn(f64) -> String) -> Row {
    Row {
        what: what.to_owned(),
        ours: shown(ours),
        theirs: format!("pgbench, one client: {}", shown(theirs)),
        found: Found::Ratio(ours / theirs),
        goal: None,
        better: Better::Less,
    }
}

fn micros(seconds: f64) -> String {
    shown(Duration::from_secs_f64(seconds))
}
