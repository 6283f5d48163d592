//! Workers in one network, the server in another: packets are dropped, connections reset, and packets lost at random. Every
//! call must come back within its bound, and everything must go on when the network heals.

use std::process::Command;
use std::time::Duration;

use uuid::Uuid;

use crate::cluster::{self, Cluster, Site};
use crate::crew::{Audit, Crew, Habit, Terms, Told};
use crate::disk::{require_root, succeed};
use crate::report::Report;
use crate::{Outcome, Settings, child};

const WORKERS: usize = 3;

/// How many executions there are to be done before each fault: more than are done until it comes.
const EXECUTIONS_AT_ONCE: usize = 60;

/// Longer than it takes to notice that the server is gone.
const LEASE: Duration = Duration::from_secs(10);

/// How long it may take until a fault is noticed, and how long a call may wait for that.
const NOTICED_MAX: Duration = Duration::from_secs(10);

/// How long a fault lasts that nobody needs to notice, and how long the network is whole between two.
const LOSS: Duration = Duration::from_secs(4);
const WHOLE: Duration = Duration::from_millis(700);

/// How long the workers may take to acknowledge something again once the network has healed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long all executions may take to end after the last fault.
const ENDED_MAX: Duration = Duration::from_secs(60);

/// How long packets are dropped for a client without bounds, which should have noticed by then.
const UNBOUNDED_MAX: Duration = Duration::from_secs(12);

/// The child that is such a client.
pub(crate) const UNBOUNDED_CHILD: &str = "unbounded";

/// How often it asks.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// What a call takes beside what it waits for, on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// The table that faults are put into.
const TABLE: &str = "inet fault";

/// What becomes of packets between workers and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// None arrives, in either direction.
    Drop,
    /// Every connection that says something is reset.
    Reset,
    /// So many of a hundred are lost.
    Loss(u8),
}

/// Two networks with a cable between them. Dropping it takes them away, with what is in them.
#[derive(Debug)]
struct Networks {
    workers: String,
    server: String,
}

/// The address of the server in its network, and that of the workers.
const SERVER: &str = "10.77.0.1";
const WORKER: &str = "10.77.0.2";

/// What was done, and what became of it.
#[derive(Debug, Default)]
struct Seen {
    drops: usize,
    resets: usize,
    losses: usize,
    /// How long it took at most until each worker had noticed a drop, or the store answered one again.
    noticed: Duration,
    /// Drops that some worker did not notice in time.
    unnoticed: usize,
    /// The longest that a call waited for an answer that did not come, and calls that waited longer than they may.
    waited: Duration,
    hung: usize,
    ended_after: Option<Duration>,
    audit: Audit,
}

pub(crate) fn run(settings: Settings) -> Outcome<Report> {
    require_root()?;
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let mut report = Report::default();
    let networks = Networks::new()?;
    let site = Site { prefix: networks.within(&networks.server), host: SERVER.to_owned() };
    let cluster = Cluster::new(site)?;
    let rounds = settings.pick(1, 10);
    let seen = trial(&networks, &cluster, rounds, Habit::Honest, &mut random)?;
    let held = seen.unnoticed + seen.hung == 0 && seen.ended_after.is_some() && seen.audit.is_clean();
    report.promise("a network that fails", seen.figure(), held);
    let (answers, ended) = unbounded(&networks, &cluster)?;
    let figure = format!(
        "{answers} calls answered before; {} s after, the call is {}",
        UNBOUNDED_MAX.as_secs(),
        if ended { "given up" } else { "still waited for" }
    );
    report.control("a client of the same server without bounds", figure, answers > 0 && !ended);
    Ok(report)
}

/// Drops all packets of a client that asks again and again. Returns how many answers it had, and whether it gave up.
fn unbounded(networks: &Networks, cluster: &Cluster) -> Outcome<(usize, bool)> {
    let url = cluster.url("");
    let server = url.split("&schema").next().unwrap_or_default();
    let own = child::command(UNBOUNDED_CHILD, &[server])?;
    let prefix = networks.within(&networks.workers);
    let mut words = prefix.iter().map(AsRef::as_ref).chain([own.get_program()]).chain(own.get_args());
    let words: Vec<String> = words.by_ref().map(|word| word.to_string_lossy().into_owned()).collect();
    let asking = child::Running::start(&words)?;
    asking.wait_for_a_word();
    std::thread::sleep(WHOLE);
    networks.fail(Fault::Drop)?;
    std::thread::sleep(UNBOUNDED_MAX);
    let told = asking.kill();
    networks.heal()?;
    let told = told?;
    let ended = told.iter().any(|told| matches!(told, child::Told::Refused { .. }));
    Ok((told.len(), ended))
}

/// Asks a server again and again, as `tokio-postgres` does by itself.
pub(crate) fn unbounded_child(arguments: &[String]) -> Outcome<()> {
    let [server] = arguments else { return Err("a client wants a server".into()) };
    cluster::runtime()?.block_on(async {
        let client = cluster::connect(server).await?;
        for seq in 1.. {
            cluster::rows(&client, "SELECT 1").await?;
            child::tell(&child::Told::Acknowledged { execution: 0, seq });
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
    })
}

impl Seen {
    fn figure(&self) -> String {
        let Self { drops, resets, losses, noticed, unnoticed, waited, hung, ended_after, audit } = self;
        let ended = ended_after.map_or_else(
            || "not all ended".to_owned(),
            |after| format!("all ended {:.0} s after the last", after.as_secs_f64()),
        );
        format!(
            "all packets dropped {drops} times, noticed by all workers after {:.1} s at most ({unnoticed} times not in time), \
             connections reset {resets} times, packets lost at random {losses} times; {hung} calls hung, the longest \
             without an answer came back after {:.1} s; {ended}; {}",
            noticed.as_secs_f64(),
            waited.as_secs_f64(),
            audit.figure()
        )
    }
}

fn trial(
    networks: &Networks,
    cluster: &Cluster,
    rounds: usize,
    habit: Habit,
    random: &mut fastrand::Rng,
) -> Outcome<Seen> {
    let terms = Terms { prefix: networks.within(&networks.workers), lease: LEASE, habit };
    let mut crew = Crew::new(cluster, terms)?;
    for _ in 0..WORKERS {
        crew.hire()?;
    }
    let mut seen = Seen::default();
    for _ in 0..rounds {
        let loss = Fault::Loss(random.u8(10..=30));
        for fault in [Fault::Reset, Fault::Drop, Fault::Reset, loss, Fault::Reset, Fault::Drop] {
            crew.supply(EXECUTIONS_AT_ONCE, cluster, random)?;
            goes_on(&crew)?;
            std::thread::sleep(WHOLE);
            let began = crew.now();
            networks.fail(fault)?;
            match fault {
                Fault::Drop => {
                    seen.drops += 1;
                    let noticed = crew.wait(NOTICED_MAX, |crew| Ok(have_noticed(crew, began)))?;
                    seen.unnoticed += usize::from(!noticed);
                    seen.noticed = seen.noticed.max(crew.now().saturating_sub(began));
                }
                Fault::Reset => {
                    seen.resets += 1;
                    std::thread::sleep(WHOLE);
                }
                Fault::Loss(_) => {
                    seen.losses += 1;
                    std::thread::sleep(LOSS);
                }
            }
            networks.heal()?;
        }
    }
    let last = crew.now();
    let ended = crew.wait(ENDED_MAX, |crew| Ok(crew.unfinished(cluster)? == 0))?;
    seen.ended_after = ended.then(|| crew.now().saturating_sub(last));
    for worker in crew.workers() {
        crew.dismiss(worker)?;
    }
    for heard in crew.heard().iter() {
        if let Told::Unanswered { after } = heard.told {
            seen.waited = seen.waited.max(after);
            seen.hung += usize::from(after > NOTICED_MAX + SLACK);
        }
    }
    seen.audit = crew.audit()?;
    Ok(seen)
}

/// Waits until something is acknowledged that was not before.
fn goes_on(crew: &Crew) -> Outcome<()> {
    let told = crew.acknowledged();
    match crew.wait(PATIENCE, |crew| Ok(crew.acknowledged() > told))? {
        true => Ok(()),
        false => Err("nothing is acknowledged any more".into()),
    }
}

/// Tells whether every worker has said since then that a call was not answered.
fn have_noticed(crew: &Crew, since: Duration) -> bool {
    let heard = crew.heard();
    let has_said = |worker: &usize| {
        let mut said = heard.iter().filter(|heard| heard.worker == *worker && heard.at >= since);
        said.any(|heard| matches!(heard.told, Told::Unanswered { .. } | Told::Lost { .. }))
    };
    crew.workers().iter().all(has_said)
}

impl Networks {
    fn new() -> Outcome<Self> {
        let id = Uuid::from_u128(fastrand::u128(..)).simple().to_string();
        let name = |what: &str| format!("retake-{what}-{}", &id[..8]);
        // From here on, dropping it cleans up.
        let networks = Self { workers: name("workers"), server: name("server") };
        let (workers, server) = (networks.workers.as_str(), networks.server.as_str());
        ip(&["netns", "add", workers])?;
        ip(&["netns", "add", server])?;
        ip(&[
            "link", "add", "cable", "netns", workers, "type", "veth", "peer", "name", "cable", "netns",
            server,
        ])?;
        for (network, address) in [(workers, WORKER), (server, SERVER)] {
            ip(&["-n", network, "address", "add", &format!("{address}/24"), "dev", "cable"])?;
            ip(&["-n", network, "link", "set", "cable", "up"])?;
            ip(&["-n", network, "link", "set", "lo", "up"])?;
        }
        Ok(networks)
    }

    /// Returns what a command begins with that lives in a network.
    fn within(&self, network: &str) -> Vec<String> {
        // `ip netns exec` would give it mounts of its own too, copies of all that there are: a file system that another
        // trial takes away at that moment would go on under them.
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{network}")]
    }

    /// Lets packets between workers and server fail, from now on.
    fn fail(&self, fault: Fault) -> Outcome<()> {
        let verdict = match fault {
            Fault::Drop => "drop".to_owned(),
            Fault::Reset => "meta l4proto tcp reject with tcp reset".to_owned(),
            Fault::Loss(percent) => format!("numgen random mod 100 < {percent} drop"),
        };
        // Both directions, for as long as nobody heals them.
        let rules = format!(
            "table {TABLE} {{\n\
             chain in {{ type filter hook input priority 0; iifname cable {verdict}; }}\n\
             chain out {{ type filter hook output priority 0; oifname cable {verdict}; }}\n}}"
        );
        self.filter(&rules)
    }

    /// Changes what the server's network lets through.
    fn filter(&self, rules: &str) -> Outcome<()> {
        let within = self.within(&self.server);
        succeed(Command::new(&within[0]).args(&within[1..]).args(["nft", rules]))
    }

    /// Lets all packets through.
    fn heal(&self) -> Outcome<()> {
        self.filter(&format!("delete table {TABLE}"))
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for network in [&self.workers, &self.server] {
            // It may never have been made.
            drop(ip(&["netns", "delete", network]));
        }
    }
}

fn ip(arguments: &[&str]) -> Outcome<()> {
    succeed(Command::new("ip").args(arguments))
}
