//! What `retake` exports: traces to a stand-in for a collector, metrics as Prometheus reads them, a log; each of them without
//! a value or a secret, and each as docs/telemetry.md says.

#![cfg(all(feature = "telemetry", unix))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as AnyValue};
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use place::Place;
use prost::Message;
use retake::clock::{Clock, SystemClock};
use retake::telemetry::{INSTRUMENTS, InstrumentKind};

/// What is in every value and every secret, and in nothing that is exported.
const CANARY: &str = "c4nary5f1e9d";

/// A trace that the command is started in.
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Does every kind of thing: sets, asks a server, runs a command, asks a model, fails once, fails for good, is skipped.
const WORKFLOW: &str = r#"
name: otters
vars: { canary: "VALUE CANARY" }
checkpoints: { frequency: always, max: 100 }
max_parallel: 1
nodes:
  plan: { set: { topic: "otters of ${{ vars.canary }}" } }
  call:
    http:
      url: "http://127.0.0.1:PORT/echo/"
      query: { q: "${{ vars.canary }}" }
      headers: { X-Key: "${{ secrets.TOKEN }}" }
    needs: [plan]
  shell: { run: { command: 'echo "$K" >&2; printf %s "$TRACEPARENT"', env: { K: "${{ secrets.TOKEN }}" } }, needs: [call] }
  ask: { llm: { model: m, prompt: "Say ${{ vars.canary }}", base_url: "http://127.0.0.1:PORT/v1", api_key: "${{ secrets.TOKEN }}" }, needs: [shell] }
  stumble: { run: '[ "$RETAKE_ATTEMPT" = 2 ] || { echo "no ${{ vars.canary }}" >&2; exit 3; }', retry: { max: 1, base: 1ms }, needs: [ask] }
  fail: { run: 'echo "no ${{ vars.canary }} $TOKEN" >&2; exit 4', on_error: continue, needs: [stumble] }
  never: { set: { a: b }, if: "false", needs: [plan] }
"#;

/// A server that is a collector, a web service and a language model, and remembers what it was sent.
#[derive(Debug, Clone, Default)]
struct Server {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
}

#[derive(Debug, Clone)]
struct Received {
    head: String,
    body: Vec<u8>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        let answering = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answering = answering.clone();
                std::thread::spawn(move || answering.answer(stream.unwrap()));
            }
        });
        server
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let (content_type, answer) = match head.split(' ').nth(1).unwrap() {
                "/v1/chat/completions" => ("application/json", COMPLETION),
                "/v1/traces" => ("application/x-protobuf", ""),
                _ => ("text/plain", "echo"),
            };
            self.received.lock().unwrap().push(Received { head, body });
            let length = answer.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}");
            write!(stream, "{head}\r\n\r\n{answer}").unwrap();
        }
    }

    /// Returns what was sent to a path.
    fn sent_to(&self, path: &str) -> Vec<Received> {
        let received = self.received.lock().unwrap();
        received.iter().filter(|received| received.head.contains(path)).cloned().collect()
    }

    /// Returns the spans that were exported, and who exported them.
    fn spans(&self) -> (Vec<Span>, BTreeMap<String, String>) {
        let (mut spans, mut resource) = (Vec::new(), BTreeMap::new());
        for Received { head, body } in self.sent_to("POST /v1/traces ") {
            assert_eq!(header(&head, "content-type").as_deref(), Some("application/x-protobuf"));
            let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            for of_resource in request.resource_spans {
                resource.extend(attributes(&of_resource.resource.unwrap().attributes));
                spans.extend(of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans));
            }
        }
        (spans, resource)
    }
}

const COMPLETION: &str = r#"{"model": "house-model",
    "choices": [{"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 12}}"#;

fn header(head: &str, name: &str) -> Option<String> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match value {
        AnyValue::StringValue(text) => text.clone(),
        AnyValue::IntValue(number) => number.to_string(),
        AnyValue::BoolValue(is_so) => is_so.to_string(),
        AnyValue::DoubleValue(_)
        | AnyValue::ArrayValue(_)
        | AnyValue::KvlistValue(_)
        | AnyValue::BytesValue(_)
        | AnyValue::StringValueStrindex(_) => panic!("{value:?} is no attribute of ours"),
    };
    let one = |one: &KeyValue| {
        let value = one.value.as_ref().and_then(|value| value.value.as_ref()).map(text);
        (one.key.clone(), value.unwrap_or_default())
    };
    attributes.iter().map(one).collect()
}

/// Returns a command without what the environment of the tests says of telemetry.
fn command(place: &Place, arguments: &[&str]) -> Command {
    let mut command = place.command(arguments);
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("OTEL_") || name.starts_with("TRACE"))
    {
        command.env_remove(name);
    }
    command
}

/// Returns the workflow's run, ready to be started, with traces.
fn run(place: &Place, server: &Server) -> Command {
    let port = server.port.to_string();
    place.write("otters.yaml", &WORKFLOW.replace("PORT", &port).replace("CANARY", CANARY));
    let mut command = command(place, &["--json", "--allow-network", "127.0.0.0/8", "run", "otters.yaml"]);
    command
        .args(["--name", "brave-otter"])
        .env("TOKEN", format!("secret-{CANARY}"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"));
    command
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Returns a table of docs/telemetry.md whose heading has these columns, without the back quotes.
fn table(columns: &[&str]) -> Vec<Vec<String>> {
    let page = std::fs::read_to_string("../../docs/telemetry.md").unwrap();
    let heading = format!("| {} |", columns.join(" | "));
    let rows =
        page.lines().skip_while(|line| *line != heading).skip(2).take_while(|line| line.starts_with('|'));
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    let table: Vec<Vec<String>> = rows.map(cells).collect();
    assert!(!table.is_empty(), "there is no table with {heading}");
    table
}

#[test]
fn a_run_is_one_trace_below_its_caller_and_above_its_nodes_and_commits() {
    let (place, server) = (Place::empty(), Server::start());
    succeeds(run(&place, &server).env("TRACEPARENT", CALLER).env("OTEL_SERVICE_NAME", "otter-works"));
    let (spans, resource) = server.spans();
    assert_eq!(resource["service.name"], "otter-works");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == CALLER[3..35]), "{spans:?}");
    let execution = spans.iter().find(|span| span.name == "execution otters").unwrap();
    assert_eq!(hex(&execution.parent_span_id), CALLER[36..52]);
    let told = attributes(&execution.attributes);
    assert_eq!(told["retake.execution.name"], "brave-otter");
    assert_eq!(told["retake.execution.status"], "completed");

    let below: Vec<_> = spans.iter().filter(|span| span.parent_span_id == execution.span_id).collect();
    assert_eq!(below.len(), spans.len() - 1, "all else is right below it");
    let mut nodes: Vec<_> = below.iter().filter(|span| span.name.starts_with("node ")).collect();
    nodes.sort_by_key(|span| span.start_time_unix_nano);
    let names: Vec<_> = nodes.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["node plan", "node call", "node shell", "node ask", "node stumble", "node fail"]);
    let commits: BTreeSet<u64> = below
        .iter()
        .filter(|span| span.name == "commit")
        .map(|span| attributes(&span.attributes)["retake.checkpoint.seq"].parse().unwrap())
        .collect();
    let head: u64 = told["retake.execution.head"].parse().unwrap();
    assert_eq!(commits, (1..=head).collect());
    let node = |name: &str| *nodes.iter().find(|span| span.name == format!("node {name}")).unwrap();
    let of = |name: &str| attributes(&node(name).attributes);
    assert_eq!(of("stumble")["retake.node.attempts"], "2");
    assert_eq!(node("stumble").events.len(), 1);
    assert_eq!(of("ask")["gen_ai.usage.input_tokens"], "30");
    assert_eq!(of("ask")["gen_ai.response.model"], "house-model");
    assert_eq!(of("fail")["error.type"], "transient");
    assert_eq!(node("fail").status.as_ref().unwrap().code(), StatusCode::Error);

    // What a node calls can join the trace.
    let called = &server.sent_to("/echo/")[0];
    let handed_on = |span: &Span| format!("{}-{}-01", &CALLER[..35], hex(&span.span_id));
    assert_eq!(header(&called.head, "traceparent"), Some(handed_on(node("call"))));
    let shown = place.json(&["show", "brave-otter", "shell"]);
    assert_eq!(shown["output"], handed_on(node("shell")));
}

#[test]
fn every_attribute_of_a_span_is_in_the_table_and_is_exported() {
    let (place, server) = (Place::empty(), Server::start());
    succeeds(&mut run(&place, &server));
    place.write("failing.yaml", "name: failing\nnodes: { it: { run: exit 1 } }\n");
    let mut failing = command(&place, &["run", "failing.yaml"]);
    failing.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://127.0.0.1:{}/v1/traces", server.port));
    assert_eq!(failing.output().unwrap().status.code(), Some(1));
    let exported: BTreeSet<(String, String)> = server
        .spans()
        .0
        .iter()
        .flat_map(|span| {
            let kind = span.name.split(' ').next().unwrap().to_owned();
            attributes(&span.attributes).into_keys().map(move |name| (kind.clone(), name))
        })
        // No commit of these was refused; tests/telemetry.rs of the library has one that was.
        .chain([("commit".to_owned(), "error.type".to_owned())])
        .collect();
    let rows = table(&["span", "attribute", "source", "what it says"]);
    let said: BTreeSet<(String, String)> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(exported, said);
}

#[test]
fn every_metric_is_in_the_table() {
    let said: BTreeSet<Vec<String>> =
        table(&["metric", "in Prometheus", "kind", "unit", "attributes", "what it says"])
            .into_iter()
            .map(|mut row| {
                row.truncate(5);
                row
            })
            .collect();
    let there = INSTRUMENTS.iter().map(|instrument| {
        let kind = match instrument.kind {
            InstrumentKind::Counter => "counter",
            InstrumentKind::Gauge => "gauge",
            InstrumentKind::Histogram => "histogram",
        };
        let unit = if instrument.unit == "s" { "_seconds" } else { "" };
        let total = if instrument.kind == InstrumentKind::Counter { "_total" } else { "" };
        let name = format!("{}{unit}{total}", instrument.name.replace('.', "_"));
        let attributes = instrument.attributes.join(", ");
        [instrument.name, &name, kind, instrument.unit, &attributes].map(str::to_owned).to_vec()
    });
    assert_eq!(there.collect::<BTreeSet<_>>(), said);
}

/// A run that serves metrics, and goes on when it is told to.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(place: &Place, server: &Server) -> Self {
        let mut command = run(place, server);
        command.stdout(Stdio::null());
        let gate = "  gate: { run: 'while [ ! -e go ]; do sleep 0.02; done', needs: [fail] }\n";
        let file = place.path().join("otters.yaml");
        place.write("otters.yaml", &(std::fs::read_to_string(file).unwrap() + gate));
        Self::command(command)
    }

    /// Starts a command that serves what it measures.
    fn command(mut command: Command) -> Self {
        command.args(["--metrics", "0"]).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.as_mut().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let url =
            line.trim().strip_prefix("metrics at http://").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, url }
    }

    /// Returns the body of an answer.
    fn metrics(&self) -> String {
        let (address, path) = self.url.split_once('/').unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /{path} HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        body.to_owned()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A test that failed leaves no process behind; of one that ended there is nothing left.
        let _ended = self.child.kill();
    }
}

/// Reads the text format: samples by name and labels. What is no sample has to be a comment.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with("# "));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn prometheus_reads_what_was_run() {
    let (place, server) = (Place::empty(), Server::start());
    let mut serving = Serving::start(&place, &server);
    let active = r#"retake_node_active{retake_node_kind="run"}"#;
    // Three `run` nodes have ended when the gate is reached.
    let ended = |text: &BTreeMap<String, f64>| {
        let of = |status| {
            let name =
                format!(r#"retake_nodes_total{{retake_node_kind="run",retake_node_status="{status}"}}"#);
            text.get(&name).copied().unwrap_or_default()
        };
        (of("success"), of("failure"))
    };
    let text = std::iter::repeat_with(|| serving.metrics())
        .take(3_000)
        .find(|text| {
            let text = samples(text);
            ended(&text) == (2.0, 1.0) && text.get(active) == Some(&1.0)
        })
        .unwrap();
    let samples = samples(&text);
    let head = place.json(&["log", "brave-otter"])[0]["seq"].as_f64().unwrap();
    for (sample, value) in [
        (r#"retake_commits_total{db_system_name="sqlite",retake_commit_outcome="durable"}"#, head),
        (r#"retake_commit_duration_seconds_count{db_system_name="sqlite"}"#, head),
        (r#"retake_nodes_total{retake_node_kind="set",retake_node_status="success"}"#, 1.0),
        (r#"retake_nodes_total{retake_node_kind="set",retake_node_status="skipped"}"#, 1.0),
        (r#"retake_nodes_total{retake_node_kind="llm",retake_node_status="success"}"#, 1.0),
        (r#"retake_node_retries_total{error_type="transient",retake_node_kind="run"}"#, 1.0),
        ("retake_execution_active", 1.0),
        (
            r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_response_model="house-model",gen_ai_token_type="input"}"#,
            30.0,
        ),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample} in\n{text}");
    }
    // Writes that are no commits, as those of leases, are in batches too.
    let batches = samples[r#"retake_commit_batch_size_sum{db_system_name="sqlite"}"#];
    assert!(batches >= head, "{batches} writes for {head} commits");
    let names: BTreeSet<String> =
        table(&["metric", "in Prometheus", "kind", "unit", "attributes", "what it says"])
            .into_iter()
            .map(|row| row[1].clone())
            .chain(["target_info".to_owned()])
            .collect();
    let typed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert!(typed.len() > 8 && typed.is_subset(&names), "{typed:?}");
    assert!(!text.contains(CANARY), "{text}");
    place.write("go", "");
    assert!(serving.child.wait().unwrap().success());
}

#[test]
fn prometheus_reads_from_a_worker_how_deep_the_queues_are_and_what_it_took() {
    let server = std::env::var("RETAKE_TEST_POSTGRES")
        .expect("RETAKE_TEST_POSTGRES names a server: run `cargo xtask postgres -- COMMAND`");
    let mark = if server.contains('?') { '&' } else { '?' };
    let store = format!("{server}{mark}schema=cli_metrics_{}", std::process::id());
    let place = Place::empty();
    place.write("short.yaml", "name: short\nnodes: { it: { set: { a: 1 } } }\n");
    let submit = ["--store", store.as_str(), "run", "short.yaml", "--detach"];
    place.json(&[&submit[..], &["--delay", "1h", "--queue", "later"]].concat());
    place.json(&submit);
    let mut worker = command(&place, &["--store", store.as_str(), "--json", "worker"]);
    worker.stdout(Stdio::piped());
    let mut serving = Serving::command(worker);
    let events = BufReader::new(serving.child.stdout.take().unwrap()).lines();
    let finished = events.map(Result::unwrap).find(|line| line.contains(r#""event":"finished""#));
    assert!(finished.is_some(), "the worker ended the run that was due");
    let depth = |state: &str| {
        format!(r#"retake_queue_depth{{retake_queue_name="later",retake_ticket_state="{state}"}}"#)
    };
    let samples = std::iter::repeat_with(|| samples(&serving.metrics()))
        .take(3_000)
        .find(|samples| samples.contains_key(&depth("stuck")))
        .unwrap();
    assert_eq!((samples[&depth("delayed")], samples[&depth("due")]), (1.0, 0.0));
    assert_eq!(samples.get(r#"retake_claims_total{retake_queue_name="default"}"#), Some(&1.0));
}

#[test]
fn nothing_that_a_run_works_on_is_exported_or_logged() {
    let (place, server) = (Place::empty(), Server::start());
    let output = succeeds(run(&place, &server).env("RETAKE_LOG", "trace"));
    let told: String = server.sent_to("POST /v1/traces ").iter().fold(String::new(), |told, received| {
        told + &received.head + &String::from_utf8_lossy(&received.body)
    });
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("brave-otter") && told.contains("house-model"), "{told}");
    assert!(log.contains("an attempt failed, and another follows"), "{log}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(CANARY), "it is there to be found");
    assert!(!told.contains(CANARY), "{told}");
    assert!(!log.contains(CANARY), "{log}");
}

#[test]
fn the_log_tells_what_begins_what_becomes_durable_and_where_it_ends() {
    let place = Place::empty();
    place.write("short.yaml", "name: short\ncheckpoints: always\nnodes: { it: { set: { a: 1 } } }\n");
    let log = |level: &str, arguments: &[&str]| {
        let output = succeeds(&mut command(&place, &[&["--log", level], arguments].concat()));
        let said = String::from_utf8(output.stderr).unwrap();
        let lines = said.lines().filter(|line| line.contains(" retake::"));
        // Without the moment.
        lines.map(|line| line.split_once('Z').unwrap().1.trim().to_owned()).collect::<Vec<_>>()
    };
    let run = log("info", &["run", "short.yaml", "--name", "otter"]);
    let what: Vec<&str> = run.iter().map(|line| line.split_once(": ").unwrap().1).collect();
    assert_eq!(what.len(), 3, "{run:?}");
    assert!(what[0].starts_with("the store is opened db.system.name=\"sqlite\""), "{run:?}");
    assert!(what[1].starts_with("an execution begins or goes on retake.execution.id="), "{run:?}");
    assert!(what[2].starts_with("an execution stands still "), "{run:?}");
    assert!(
        what[2].contains(r#"retake.execution.name="otter" retake.execution.status="completed""#),
        "{run:?}"
    );
    let durable =
        |lines: &[String]| lines.iter().filter(|line| line.contains("a checkpoint is durable")).count();
    assert_eq!(durable(&run), 0);
    assert_eq!(durable(&log("debug", &["run", "short.yaml", "--name", "heron"])), 2);
    assert_eq!(log("info", &["ls"]).len(), 1);
    assert_eq!(log("warn", &["ls"]).len(), 0);
}

#[test]
fn a_collector_that_is_gone_or_silent_changes_neither_the_end_nor_its_time_by_much() {
    let place = Place::empty();
    place.write("short.yaml", "name: short\nnodes: { it: { set: { a: 1 } } }\n");
    // Nobody listens on a port that was just given back; nobody answers on the other.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [gone, silent.local_addr().unwrap().port()] {
        let clock = SystemClock::default();
        let output = succeeds(
            command(&place, &["run", "short.yaml"])
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
                .env("OTEL_EXPORTER_OTLP_TIMEOUT", "300000")
                .stdin(Stdio::null()),
        );
        // Two seconds, and what a busy machine adds; without a bound it would be five minutes.
        assert!(clock.elapsed() < Duration::from_secs(30), "{:?}", clock.elapsed());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.to_lowercase().contains("otlp") && !said.contains("trace"), "{said}");
    }
}

#[test]
fn what_is_not_supported_is_said_and_the_run_goes_on() {
    let place = Place::empty();
    place.write("short.yaml", "name: short\nnodes: { it: { set: { a: 1 } } }\n");
    let (server, endpoint) = (Server::start(), "OTEL_EXPORTER_OTLP_ENDPOINT");
    let url = format!("http://127.0.0.1:{}", server.port);
    let run = |name: &str, value: &str| {
        let output = succeeds(command(&place, &["run", "short.yaml"]).env(endpoint, &url).env(name, value));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    assert!(said.contains("traces are not exported: OTEL_EXPORTER_OTLP_PROTOCOL is `grpc`"), "{said}");
    assert!(run("OTEL_TRACES_EXPORTER", "zipkin").contains("`otlp` and `none` are supported"));
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ] {
        assert!(!run(name, value).contains("traces"), "{name}");
    }
    assert_eq!(server.spans().0, []);
    assert!(!run("OTEL_TRACES_SAMPLER", "always_on").contains("traces"));
    assert_ne!(server.spans().0, []);
}

#[test]
fn a_filter_and_an_address_that_cannot_be_are_refused_before_anything_runs() {
    let place = Place::empty();
    place.write("short.yaml", "name: short\nnodes: { it: { set: { a: 1 } } }\n");
    place.refused(&["--log", "retake=loud", "run", "short.yaml"], 2, "is no filter of the log");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    place.refused(&["--metrics", &port, "run", "short.yaml"], 2, "metrics cannot be served at");
    assert!(!place.path().join(".retake").exists());
}
