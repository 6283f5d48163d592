//! Workers as processes, on a PostgreSQL server: what they share, hand over, and take from each other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![cfg(unix)]

mod place;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Stdio};

use retake::store::{CLAIMS_MAX, Claim, PostgresStore, Queue};
use serde_json::{Value, json};

use crate::place::{Done, Place};

/// A place whose store is a schema of its own.
struct Office {
    place: Place,
    store: String,
}

/// A worker process, whose events come out.
struct Hired {
    process: Child,
    events: Lines<BufReader<ChildStdout>>,
}

impl Office {
    fn new() -> Self {
        let server = std::env::var("RETAKE_TEST_POSTGRES").unwrap_or_else(|_| {
            panic!("RETAKE_TEST_POSTGRES must name a server: run `cargo xtask postgres -- COMMAND`")
        });
        let mark = if server.contains('?') { '&' } else { '?' };
        let schema = format!("cli_{}_{}", std::process::id(), fastrand::u32(..));
        Self { place: Place::empty(), store: format!("{server}{mark}schema={schema}") }
    }

    fn with(&self, arguments: &[&str]) -> Vec<String> {
        let store = ["--store", self.store.as_str(), "--json"];
        store.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect()
    }

    fn retake(&self, arguments: &[&str]) -> Done {
        let arguments = self.with(arguments);
        self.place.retake(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Returns the document that a command prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let done = self.retake(arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        serde_json::from_str(&done.stdout).unwrap()
    }

    fn submit(&self, file: &str, name: &str) -> Value {
        self.json(&["run", file, "--detach", "--name", name])
    }

    /// Lets a worker do all that there is. Returns what it told.
    fn work(&self) -> Vec<Value> {
        let done = self.retake(&["worker", "--drain", "--lease", "2s"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts a worker that works until it is told to end.
    fn hire(&self, arguments: &[&str]) -> Hired {
        let arguments = self.with(&[&["worker", "--lease", "2s"], arguments].concat());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = self.place.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let events = BufReader::new(process.stdout.take().unwrap()).lines();
        Hired { process, events }
    }

    /// Lets as many workers as it takes die with what is due.
    #[tokio::main(flavor = "current_thread")]
    async fn wear_out(&self) {
        let store = PostgresStore::connect(&self.store).await.unwrap();
        let (worker, able) = (uuid::Uuid::from_u128(9), ["workflow:1", "kind:run"].map(str::to_owned).into());
        let ttl = std::time::Duration::from_millis(1);
        let claim = Claim { worker, queues: Vec::new(), able, most: 1, ttl };
        let mut claims = 0;
        while claims < CLAIMS_MAX {
            claims += u32::try_from(store.claim(&claim).await.unwrap().len()).unwrap();
        }
        // The last lease has ended when this finds it.
        while store.depths().await.unwrap()[0].stuck == 0 {}
    }

    /// Returns the lines that nodes wrote into a file.
    fn written(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.place.path().join(file)).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Makes a pipe that nodes wait at until it is closed.
    fn gate(&self) {
        let gate = self.place.path().join("gate");
        assert!(std::process::Command::new("mkfifo").arg(gate).status().unwrap().success());
    }

    /// Waits until a node is at the gate, which opens when what is returned is dropped. What comes before it is durable
    /// by then.
    fn reached_gate(&self) -> std::fs::File {
        std::fs::OpenOptions::new().write(true).open(self.place.path().join("gate")).unwrap()
    }
}

impl Drop for Hired {
    fn drop(&mut self) {
        // A test that failed leaves no worker behind; of one that ended there is nothing left.
        let _ended = self.process.kill();
    }
}

impl Hired {
    fn until(&mut self, event: &str) -> Value {
        loop {
            let line = self.events.next().expect("the worker still runs").unwrap();
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == event {
                return value;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).unwrap();
    }

    fn ended(mut self) -> i32 {
        self.process.wait().unwrap().code().unwrap()
    }
}

const CHAIN: &str = r#"
name: chain
checkpoints: { frequency: always }
nodes:
  a: { run: "echo $RETAKE_EXECUTION a >> ran; echo 1" }
  b: { run: "echo $RETAKE_EXECUTION b >> ran; echo ${{ nodes.a.output + 1 }}" }
  c: { run: "echo $RETAKE_EXECUTION c >> ran; echo ${{ nodes.b.output + 1 }}" }
"#;

const GATED: &str = r#"
name: gated
checkpoints: { frequency: always }
nodes:
  a: { run: "echo a >> ran" }
  b: { run: "echo b >> ran; test -e open || cat gate >/dev/null", needs: [a] }
  c: { run: "echo c >> ran", needs: [b] }
"#;

#[test]
fn two_workers_share_runs_and_every_node_runs_once() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    for run in 0..20 {
        assert_eq!(office.submit("chain.yaml", &format!("r{run}"))["event"], "submitted");
    }
    let queued = office.json(&["ls"]);
    assert_eq!((&queued[0]["status"], &queued[0]["ticket"]["stands"]), (&json!("running"), &json!("due")));
    let ended = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(|| office.work())).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    let runs = ended.iter().map(|events| events.last().unwrap()["runs"].as_u64().unwrap());
    assert_eq!(runs.sum::<u64>(), 20);
    let mut ran = BTreeMap::<String, u32>::new();
    office.written("ran").into_iter().for_each(|line| *ran.entry(line).or_default() += 1);
    assert_eq!((ran.len(), ran.values().max()), (60, Some(&1)), "each node of each run once");
    let runs = office.json(&["ls", "--status", "completed"]);
    assert_eq!(runs.as_array().unwrap().len(), 20);
    assert_eq!(office.json(&["show", "r7"])["nodes"]["c"]["output"], 3);
    assert_eq!(office.json(&["ls", "--workers"]), json!([]));
}

#[test]
fn a_worker_that_is_told_to_end_finishes_its_nodes_and_hands_over() {
    let office = Office::new();
    office.place.write("gated.yaml", GATED);
    office.gate();
    office.submit("gated.yaml", "otter");
    let mut worker = office.hire(&[]);
    worker.until("taken");
    let workers = office.json(&["ls", "--workers"]);
    let stand: Vec<&Value> = workers.as_array().unwrap().iter().map(|worker| &worker["stands"]).collect();
    assert_eq!(stand, ["alive"]);
    assert_eq!(office.json(&["ls"])[0]["running_in"], workers[0]["name"], "one name for one process");
    let gate = office.reached_gate();
    worker.signal(rustix::process::Signal::TERM);
    worker.until("draining");
    drop(gate);
    let handed = worker.until("handed_over");
    assert_eq!((&handed["name"], worker.ended()), (&json!("otter"), 0));
    let run = &office.json(&["ls"])[0];
    assert_eq!((&run["status"], &run["ticket"]["stands"]), (&json!("running"), &json!("due")));
    office.work();
    assert_eq!(office.written("ran"), ["a", "b", "c"]);
    let log = office.json(&["log", "otter"]);
    let causes: Vec<&str> =
        log.as_array().unwrap().iter().map(|entry| entry["cause"]["kind"].as_str().unwrap()).collect();
    assert_eq!(causes, ["finish", "nodes", "nodes", "start"], "the hand-over cost no checkpoint");
}

#[test]
fn another_worker_goes_on_where_one_was_killed() {
    let office = Office::new();
    office.place.write("gated.yaml", GATED);
    office.gate();
    office.submit("gated.yaml", "otter");
    let mut worker = office.hire(&[]);
    worker.until("taken");
    let gate = office.reached_gate();
    worker.signal(rustix::process::Signal::KILL);
    let _killed = worker.process.wait().unwrap();
    drop(gate);
    office.place.write("open", "");
    let told = office.work();
    let taken = told.iter().find(|event| event["event"] == "taken").unwrap();
    assert_eq!(taken["claims"], 2);
    assert_eq!(office.written("ran"), ["a", "b", "b", "c"], "what was recorded did not run again");
    assert_eq!(office.json(&["show", "otter"])["status"], "completed");
}

#[test]
fn an_approval_wakes_a_worker_and_a_delay_is_waited_for() {
    let office = Office::new();
    let asks = "name: asks\nnodes:\n  ok: { approval: \"go?\" }\n  go: { run: echo gone, needs: [ok] }\n";
    office.place.write("asks.yaml", asks);
    let submitted = office.json(&["run", "asks.yaml", "--detach", "--delay", "1s", "--name", "otter"]);
    assert_eq!(office.json(&["ls"])[0]["ticket"]["stands"], "delayed");
    let mut worker = office.hire(&[]);
    assert_eq!(worker.until("held")["why"], "somebody must approve `ok`");
    let run = &office.json(&["ls"])[0];
    assert_eq!((&run["status"], &run["ticket"]["stands"]), (&json!("paused"), &json!("held")));
    office.json(&["approve", "otter", "ok"]);
    let finished = worker.until("finished");
    assert_eq!((&finished["status"], &finished["execution"]), (&json!("completed"), &submitted["execution"]));
    worker.signal(rustix::process::Signal::INT);
    assert_eq!(worker.ended(), 0);
}

#[test]
fn the_log_of_a_worker_tells_what_it_takes_and_where_that_stands() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    office.submit("chain.yaml", "otter");
    let log = office.retake(&["--log", "info", "worker", "--drain"]).stderr;
    let mut lines = log.lines();
    for told in ["the worker takes executions", "an execution was taken", "an execution stands still"] {
        assert!(lines.any(|line| line.contains(told)), "{told} does not follow in {log}");
    }
    assert!(log.contains(r#"retake.execution.name="otter""#), "{log}");
}

#[test]
fn a_deduplication_key_submits_once_and_names_the_first() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    let first = office.json(&["run", "chain.yaml", "--detach", "--dedup", "order 7"]);
    let second = office.json(&["run", "chain.yaml", "--detach", "--dedup", "order 7"]);
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!((&first["execution"], &first["name"]), (&second["execution"], &second["name"]));
    office.place.write("gated.yaml", GATED);
    let other = office.retake(&["run", "gated.yaml", "--detach", "--dedup", "order 7"]);
    assert_eq!(other.code, 4, "{}", other.stderr);
    assert!(other.stderr.contains("a run of chain"), "{}", other.stderr);
    assert_eq!(office.retake(&["run", "chain.yaml", "--detach", "--dedup", ""]).code, 2);
    assert_eq!(office.json(&["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn what_is_stopped_while_it_waits_leaves_the_queue_and_resumes_there() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    for name in ["paused", "cancelled", "removed"] {
        office.submit("chain.yaml", name);
    }
    office.json(&["pause", "paused"]);
    office.json(&["cancel", "cancelled"]);
    office.json(&["rm", "removed", "--yes"]);
    assert_eq!(office.work().last().unwrap()["runs"], 0);
    let enqueued = office.json(&["resume", "paused", "--detach"]);
    assert_eq!((&enqueued["status"], &enqueued["event"]), (&json!("running"), &json!("submitted")));
    assert_eq!(office.work().last().unwrap()["runs"], 1);
    assert_eq!(office.json(&["show", "paused"])["status"], "completed");
}

#[test]
fn a_run_that_is_resumed_keeps_its_place_but_for_what_is_named() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    let urgent = ["--queue", "mail", "--priority", "7", "--delay", "1h"];
    office.json(&[&["run", "chain.yaml", "--detach", "--name", "otter"], &urgent[..]].concat());
    let place = || {
        let ticket = &office.json(&["ls"])[0]["ticket"];
        let is_later = ticket["due_at"].is_string();
        (ticket["queue"].clone(), ticket["priority"].clone(), is_later)
    };
    assert_eq!(office.json(&["resume", "otter", "--detach"])["queue"], "mail");
    assert_eq!(place(), (json!("mail"), json!(7), true));
    office.json(&["resume", "otter", "--detach", "--priority", "-1"]);
    assert_eq!(place(), (json!("mail"), json!(-1), true));
    office.json(&["resume", "otter", "--detach", "--queue", "slow", "--delay", "0s"]);
    assert_eq!(place(), (json!("slow"), json!(-1), false));
    // Another definition is not delayed by what the one before waited for, and waits where that did.
    office.json(&["resume", "otter", "--detach", "--delay", "1h"]);
    office.place.write("longer.yaml", &format!("{CHAIN}  d: {{ run: echo d }}\n"));
    let redefined = office.retake(&["resume", "otter", "--detach", "--def", "longer.yaml", "--yes"]);
    assert_eq!(redefined.code, 0, "{}", redefined.stderr);
    assert_eq!(place(), (json!("slow"), json!(-1), false));
    // Who pauses a run takes it out of its queue.
    office.json(&["pause", "otter"]);
    office.json(&["resume", "otter", "--detach"]);
    assert_eq!(place(), (json!("default"), json!(0), false));
}

#[test]
fn a_place_in_a_queue_that_cannot_be_is_a_wrong_command_line() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    let long = "q".repeat(256);
    for (arguments, why) in [
        (&["--queue", ""][..], "at least one character"),
        (&["--queue", &long], "at most 255 bytes"),
        (&["--delay", "101years"], "100 years are the most"),
        (&["--at", "2199-01-01T00:00:00Z"], "100 years are the most"),
    ] {
        let done = office.retake(&[&["run", "chain.yaml", "--detach"], arguments].concat());
        assert_eq!(done.code, 2, "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(why), "{arguments:?}: {}", done.stderr);
    }
    assert_eq!(office.retake(&["worker", "--queue", &long]).code, 2);
}

#[test]
fn a_limit_of_a_queue_is_kept_by_all_workers_until_it_is_lifted() {
    let office = Office::new();
    office.place.write("gated.yaml", GATED);
    office.gate();
    let first = office.submit("gated.yaml", "first");
    office.submit("gated.yaml", "second");
    let limited = office.json(&["queue", "limit", "default", "1"]);
    assert_eq!(limited, json!({"queue": "default", "limit": 1}));
    let mut worker = office.hire(&[]);
    assert_eq!(worker.until("taken")["execution"], first["execution"]);
    let gate = office.reached_gate();
    let standing = json!({
        "queue": "default", "due": 1, "delayed": 0, "held": 0, "claimed": 1, "stuck": 0, "limit": 1,
    });
    // It asked for eight, and got one.
    assert_eq!(office.json(&["queue", "ls"]), json!({"queues": [standing], "rates": []}));
    office.place.write("open", "");
    let lifted = office.json(&["queue", "limit", "default", "none"]);
    assert_eq!(lifted, json!({"queue": "default", "limit": null}));
    assert_eq!(worker.until("taken")["name"], "second");
    drop(gate);
    worker.signal(rustix::process::Signal::TERM);
    assert_eq!(worker.ended(), 0);
}

#[test]
fn a_run_says_what_holds_it_back_and_what_lets_it_go_on() {
    let office = Office::new();
    let effect =
        "name: pays\nnodes:\n  ask: { approval: go? }\n  pay: { run: \"cat gate\", effect: external }\n";
    office.place.write("pays.yaml", effect);
    office.gate();
    office.submit("pays.yaml", "otter");
    let text = |arguments: &[&str]| {
        let done = office.place.retake(&[&["--store", office.store.as_str()], arguments].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    office.json(&["queue", "limit", "default", "0"]);
    assert!(text(&["ls"]).contains("for queue default, which stands still"));
    assert!(text(&["show", "otter"]).contains("\nwaits for queue default, which stands still\n"));
    office.json(&["queue", "limit", "default", "none"]);
    office.json(&["queue", "rate", "pays", "3/1h"]);
    assert!(text(&["ls"]).contains("for a worker, and the rate of pays: 3/1h"));

    // The worker dies with the effect in flight; who comes after it does not know whether it happened.
    let mut worker = office.hire(&[]);
    let gate = office.reached_gate();
    worker.signal(rustix::process::Signal::KILL);
    let _killed = worker.process.wait().unwrap();
    drop(gate);
    let held = office.work().into_iter().find(|event| event["event"] == "held").unwrap();
    assert!(held["why"].as_str().unwrap().contains("`pay` (idempotency key "), "{held}");
    let key = office.json(&["show", "otter", "pay"])["idempotency_key"].as_str().unwrap().to_owned();
    let shown = text(&["show", "otter"]);
    for way in [
        "\nwaits for somebody\n".to_owned(),
        " approve otter ask`, or with `--reject`, decides what `ask` asks\n".to_owned(),
        format!("  `pay` may have taken effect (idempotency key {key}): look outside by that key, and `"),
        " resume otter --detach --again pay` runs it again under the same key\n".to_owned(),
    ] {
        assert!(shown.contains(&way), "{way} is not in {shown}");
    }
    assert!(text(&["show", "otter", "pay"]).contains(&format!("\nidempotency key {key}\n")));
}

#[test]
fn a_run_that_ends_its_workers_is_named_with_what_to_do() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    office.submit("chain.yaml", "otter");
    office.submit("chain.yaml", "heron");
    office.json(&["pause", "heron"]);
    office.wear_out();
    let doctor = &office.json(&["doctor"])["queue"];
    assert_eq!(doctor["stuck_runs"], json!([{"name": "otter", "queue": "default"}]));
    for command in [&["doctor"][..], &["show", "otter"]] {
        let done = office.place.retake(&[&["--store", office.store.as_str()], command].concat());
        assert!(done.stdout.contains(" resume otter --detach` "), "{}", done.stdout);
    }
    office.json(&["resume", "otter", "--detach"]);
    assert_eq!(office.work().last().unwrap()["runs"], 1);
}

#[test]
fn a_run_in_the_hands_of_a_worker_is_named_to_who_would_take_it() {
    let office = Office::new();
    office.place.write("gated.yaml", GATED);
    office.gate();
    office.submit("gated.yaml", "otter");
    let mut worker = office.hire(&[]);
    worker.until("taken");
    let gate = office.reached_gate();
    let done = office.retake(&["resume", "otter"]);
    let error: Value = serde_json::from_str(&done.stderr).unwrap();
    let hint = error["error"]["hint"].as_str().unwrap();
    assert!(hint.contains(" pause otter`; if it has died, its lease ends "), "{hint}");
    assert_eq!(done.code, 4);
    drop(gate);
}

#[test]
fn a_rate_of_a_workflow_is_kept_until_it_is_lifted() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    for name in ["first", "second"] {
        office.submit("chain.yaml", name);
    }
    let rate = json!({"workflow": "chain", "rate": {"most": 1, "per_ms": 3_600_000}});
    assert_eq!(office.json(&["queue", "rate", "chain", "1/1h"]), rate);
    let mut worker = office.hire(&[]);
    assert_eq!(worker.until("finished")["name"], "first");
    let stands = office.json(&["queue", "ls"]);
    assert_eq!((&stands["queues"][0]["due"], &stands["rates"]), (&json!(1), &json!([rate])));
    let lifted = office.json(&["queue", "rate", "chain", "none"]);
    assert_eq!(lifted, json!({"workflow": "chain", "rate": null}));
    assert_eq!(worker.until("finished")["name"], "second");
    assert_eq!(office.json(&["queue", "ls"]), json!({"queues": [], "rates": []}));
}

#[test]
fn queues_are_shown_to_a_person_with_their_limits() {
    let office = Office::new();
    office.place.write("chain.yaml", CHAIN);
    office.submit("chain.yaml", "otter");
    let said = |arguments: &[&str]| {
        let done = office.place.retake(&[&["--store", office.store.as_str(), "queue"], arguments].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    assert_eq!(said(&["limit", "mail", "0"]), "queue mail stands still\n");
    assert_eq!(said(&["limit", "mail", "2"]), "of queue mail at most 2 runs at a time\n");
    assert_eq!(said(&["rate", "chain", "10/1m"]), "of chain at most 10 runs in 1m\n");
    assert_eq!(
        said(&["ls"]),
        "QUEUE    QUEUED  WAITING  HELD  RUNNING  STUCK  LIMIT\n\
         default  1       0        0     0        0\n\
         mail     0       0        0     0        0      2\n\
         \n\
         WORKFLOW  RATE\n\
         chain     10/1m\n"
    );
    assert_eq!(said(&["limit", "nobody", "none"]), "queue nobody has no limit\n");
    for refused in [
        &["limit", "mail", "some"][..],
        &["limit", "", "1"],
        &["limit", "mail"],
        &["rate", "chain", "10"],
        &["rate", "chain", "10/soon"],
        &["rate", "chain", "10/0s"],
    ] {
        assert_eq!(office.retake(&[&["queue"], refused].concat()).code, 2, "{refused:?}");
    }
}

#[test]
fn a_store_of_one_machine_has_no_workers() {
    let place = Place::empty();
    place.write("chain.yaml", CHAIN);
    for arguments in [
        vec!["worker"],
        vec!["run", "chain.yaml", "--detach"],
        vec!["resume", "otter", "--detach"],
        vec!["ls", "--workers"],
        vec!["queue", "ls"],
        vec!["queue", "limit", "mail", "1"],
        vec!["--store", "memory:", "queue", "ls"],
        vec!["--store", "memory:", "worker"],
    ] {
        let error = place.refused(&arguments, 2, "needs a store that machines share");
        assert!(error["hint"].as_str().unwrap().contains("postgres://"), "{error}");
    }
}

/// Lets everything that comes to a listener pass to the server of tests.
fn relay(listener: TcpListener, server: SocketAddr) {
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
            {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
}

#[test]
fn a_worker_waits_for_a_server_that_is_not_there_yet_and_may_be_told_to_stop_waiting() {
    let mut office = Office::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap();
    drop(listener);
    let start = office.store.find("127.0.0.1:").unwrap();
    let end = start + office.store[start..].find('/').unwrap();
    let server: SocketAddr = office.store[start..end].parse().unwrap();
    office.store.replace_range(start..end, &here.to_string());

    let mut impatient = office.hire(&[]);
    let why = impatient.until("store_lost");
    assert!(why["why"].as_str().unwrap().contains("refused"), "{why}");
    impatient.signal(rustix::process::Signal::TERM);
    assert_eq!(impatient.ended(), 0);

    let mut worker = office.hire(&[]);
    worker.until("store_lost");
    relay(TcpListener::bind(here).unwrap(), server);
    worker.until("ready");
    worker.signal(rustix::process::Signal::TERM);
    assert_eq!(worker.ended(), 0);
}
