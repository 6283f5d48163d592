use chrono::DateTime;
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::execution::{
    Base, Cell, Compensation, CompensationStage, Cost, ExecutionResult, ExecutionState, NodeExecutionResult,
    Spare, Spend, TakenBack, Write as NodeWrite, WriteOp, node_id,
};
use crate::store::{
    Cause, CheckpointRecord, DEPTH_MAX, Delta, ExecutionRecord, KeptWorkflow, KeyChange, MESSAGE_PACK, Op,
    OperationRecord, Piece, delta, encode,
};

const ID: Uuid = Uuid::from_u128(1);
const WORKFLOW: Uuid = Uuid::from_u128(7);

/// Returns a history of these states, one after the other.
fn history(states: &[ExecutionContext]) -> History {
    let mut before = None;
    let mut points = Vec::new();
    for (seq, state) in (1..).zip(states) {
        points.push(point(seq, delta(before, state, |_| None).unwrap()));
        before = Some(state);
    }
    around(points)
}

fn point(seq: u64, delta: Delta) -> HistoryPoint {
    let record = CheckpointRecord {
        execution_id: ID,
        workflow_id: WORKFLOW,
        seq,
        id: Uuid::from_u128(100 + u128::from(seq)),
        parent: (seq > 1).then(|| seq - 1),
        created_at: DateTime::from_timestamp_nanos(1_767_225_600_123_456_789),
        cause: if seq == 1 { Cause::Start } else { Cause::Before { node: "a \"b\"".to_owned() } },
        nodes: vec!["plan".to_owned()],
        label: (seq == 2).then(|| "good".to_owned()),
        state: ExecutionState::Failed("no \u{0} otter \u{1f9a6}".to_owned()),
        completed_node_count: seq,
        spend: Spend::default(),
        size_bytes: 9,
        compressed: seq == 2,
    };
    HistoryPoint { record, base: (seq > 1).then(|| seq - 1), delta }
}

fn around(points: Vec<HistoryPoint>) -> History {
    let head = points.last().unwrap().record.clone();
    let operation = OperationRecord {
        number: 1,
        at: head.created_at,
        who: "ann".to_owned(),
        command: "retake undo otter".to_owned(),
        cause: Cause::Undo { operation: 1 },
        before: 1,
        after: head.seq,
    };
    History {
        execution: ExecutionRecord {
            id: ID,
            name: "brave-otter".to_owned(),
            workflow_id: WORKFLOW,
            workflow_name: "article".to_owned(),
            state: head.state,
            head: head.seq,
            created_at: head.created_at,
            updated_at: head.created_at,
            spend: head.spend,
            origin: None,
            leased_by: None,
        },
        workflows: vec![KeptWorkflow {
            id: WORKFLOW,
            definition: br#"{"name":"article","nodes":{}}"#.to_vec(),
        }],
        points,
        operations: vec![operation],
    }
}

fn start() -> ExecutionContext {
    let mut ctx =
        ExecutionContext::with_id(ID, WORKFLOW, DateTime::from_timestamp_nanos(1_767_225_600_000_000_001));
    ctx.set_variable("messages".into(), json!(["hello"]));
    ctx
}

/// Returns a history with everything that a state can hold.
fn full() -> History {
    let first = start();
    let mut second = first.clone();
    second.append("messages", json!({"z": 1, "a": [0.1, -0.0, u64::MAX, i64::MIN, 1e300, 5e-324]})).unwrap();
    second.set_variable("text".into(), json!("nul \u{0} and \u{1f9a6} \\u0000"));
    let result = NodeExecutionResult {
        writes: vec![NodeWrite { variable: "x".to_owned(), op: WriteOp::Set(deepest()) }],
        ..NodeExecutionResult::started(first.started_at)
            .completed(ExecutionResult::Success(deepest()), first.started_at)
    };
    second.record_node_result(node_id("plan"), result.clone());
    second.ledger.turn = 3;
    second.ledger.bases.set("text".into(), Cell::new(Base { turn: 1, value: Some(deepest()) }));
    let spare = Some(Spare { result: result.clone(), upstream: "u".to_owned() });
    second.ledger.taken_back.set(node_id("send"), Cell::new(TakenBack { because: "it".to_owned(), spare }));
    let compensation = Compensation {
        node: "send".to_owned(),
        result,
        from: 1,
        stage: CompensationStage::Failed("no".to_owned()),
        idempotency_key: "key".to_owned(),
    };
    second.ledger.compensations.insert(2, compensation);
    let mut third = second.clone();
    third.variables.remove("text");
    history(&[first, second, third])
}

/// Returns a value as deep as a store keeps them.
fn deepest() -> Value {
    (1..DEPTH_MAX)
        .fold(json!(1), |inner, depth| if depth % 2 == 0 { json!({"k": inner}) } else { json!([inner]) })
}

fn written(history: &History) -> Vec<u8> {
    let mut file = Vec::new();
    history.write_to(&mut file).unwrap();
    file
}

/// Returns the lines of a file but the last.
fn lines(history: &History) -> Vec<String> {
    let text = String::from_utf8(written(history)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.pop();
    lines
}

/// Returns a file of these lines with the end that they should have.
fn sealed(lines: &[String]) -> Vec<u8> {
    let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let end = EndLine::new(lines.len() as u64, blake3::hash(text.as_bytes()));
    text.push_str(&serde_json::to_string(&end).unwrap());
    text.push('\n');
    text.into_bytes()
}

fn refusal(lines: &[String]) -> String {
    told(&History::read_from(&sealed(lines)[..]).unwrap_err())
}

fn told(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[test]
fn a_history_comes_back_from_its_file_as_it_was() {
    let whole = full();
    assert_eq!(History::read_from(&written(&whole)[..]).unwrap(), whole);
    let states =
        (whole.states().unwrap(), History::read_from(&written(&whole)[..]).unwrap().states().unwrap());
    assert_eq!(states.0, states.1);
}

#[test]
fn the_lines_can_be_read_by_a_person() {
    let first = start();
    let mut second = first.clone();
    second.append("messages", json!("otters")).unwrap();
    let lines = lines(&history(&[first, second]));
    assert!(lines[0].starts_with(
        r#"{"retake":"history","version":1,"execution":{"id":"00000000-0000-0000-0000-000000000001","name":"brave-otter","#
    ));
    assert_eq!(
        lines[1],
        r#"{"workflow":"00000000-0000-0000-0000-000000000007","definition":{"json":{"name":"article","nodes":{}}}}"#
    );
    assert!(
        lines[2].contains(r#"{"key":"header","op":{"set":{"pieces":[{"header":{"workflow_id":"00000000-"#)
    );
    assert!(lines[3].starts_with(r#"{"point":2,"id":"00000000-0000-0000-0000-000000000066","parent":1,"#));
    assert!(lines[3].ends_with(
        r#""base":1,"changes":[{"key":{"variable":"messages"},"op":{"append":{"from":1,"pieces":[{"value":["otters"]}],"length":2}}}]}"#
    ));
    assert!(lines[4].starts_with(r#"{"operation":1,"at":"2026-01-01T00:00:00.123456789Z","who":"ann","#));
}

#[test]
fn what_json_cannot_say_stands_there_as_bytes_and_comes_back() {
    // Twice the same key, a number that is none, a number in a longer form, and another library's codec.
    let odd: [(u8, &[u8]); 5] = [
        (MESSAGE_PACK, b"\x82\xa1a\x01\xa1a\x02"),
        (MESSAGE_PACK, b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"),
        (MESSAGE_PACK, b"\xcd\x00\x01"),
        (MESSAGE_PACK, b"\xc1"),
        (9, b"\x00\xff"),
    ];
    let pieces = odd.map(|(codec, bytes)| Piece { codec, bytes: bytes.into() }).to_vec();
    let change = KeyChange { key: Key::Variable("odd".into()), writer: None, op: Op::Set { pieces, len: 0 } };
    let mut whole = around(vec![point(1, Delta::new(vec![change]))]);
    whole.operations.clear();
    whole.workflows[0].definition = b"\xff not text".to_vec();
    let lines = lines(&whole);
    assert!(lines[2].contains(r#"{"bytes":{"codec":1,"base64":"gqFhAaFhAg=="}}"#), "{}", lines[2]);
    assert_eq!(History::read_from(&sealed(&lines)[..]).unwrap(), whole);
    whole.workflows[0].definition = b"{\"a\": 1}".to_vec();
    assert_eq!(History::read_from(&written(&whole)[..]).unwrap(), whole);
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let file = written(&history(&[start()]));
    for keep in 0..file.len() {
        let error = History::read_from(&file[..keep]).unwrap_err();
        assert!(matches!(error, HistoryFileError::Cut { .. }), "{keep} bytes: {error}");
    }
    let without_end = file[..file.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let error = History::read_from(&file[..without_end]).unwrap_err();
    assert_eq!(error.to_string(), "the file is cut short in line 5: export it again, or copy it again");
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let file = written(&history(&[start()]));
    for place in 0..file.len() {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[place] ^= 1 << bit;
            assert!(History::read_from(&flipped[..]).is_err(), "bit {bit} of byte {place}");
        }
    }
    let mut lines = lines(&history(&[start()]));
    let sealed = sealed(&lines);
    lines[2] = lines[2].replace("hello", "hullo");
    let end = sealed.split(|byte| *byte == b'\n').rev().nth(1).unwrap();
    let forged = format!("{}\n{}\n", lines.join("\n"), std::str::from_utf8(end).unwrap());
    assert_eq!(
        History::read_from(forged.as_bytes()).unwrap_err().to_string(),
        "the 4 lines of the file are not those that were written: the last line has another hash"
    );
}

#[test]
fn what_is_no_export_file_is_refused_as_such() {
    for other in [&b"hello"[..], b"hello\n", b"{}\n", b"SQLite format 3\0", b"\xff\xfe\n", b"[1]\n", b"\n"] {
        let error = History::read_from(other).unwrap_err();
        assert!(matches!(error, HistoryFileError::NotAHistory { .. }), "{error}");
    }
    let mut lines = lines(&full());
    lines[0] = lines[0].replace("\"version\":1", "\"version\":2");
    assert_eq!(refusal(&lines), "the file has version 2, and this version reads up to 1: use a newer retake");
}

#[test]
fn what_a_line_says_wrongly_is_refused_by_line_and_path() {
    let lines = lines(&full());
    let with = |line: usize, from: &str, to: &str| {
        let mut lines = lines.clone();
        assert!(lines[line - 1].contains(from), "{from}: {}", lines[line - 1]);
        lines[line - 1] = lines[line - 1].replacen(from, to, 1);
        refusal(&lines)
    };
    for (line, from, to, expected) in [
        (4, "\"base\":1", "\"base\":1,\"more\":1", "line 4: more: unknown field `more`"),
        (
            4,
            "18446744073709551615",
            "18446744073709551616",
            "line 4: at `changes[0].op.append.pieces[0].value[0].a[2]`, the number 18446744073709551616 would not",
        ),
        (
            4,
            "{\"z\":1,",
            "{\"z\":1,\"z\":1,",
            "line 4: `changes[0].op.append.pieces[0].value[0].z` stands there twice",
        ),
        (4, "\"point\":2", "\"point\":\"2\"", "line 4: point: invalid type: string \"2\", expected u64"),
        (
            4,
            "\"base\":1",
            "\"base\":2",
            "the file holds no whole history: cannot store point @2: it builds on @2",
        ),
        (
            4,
            "\"from\":1",
            "\"from\":9",
            "the file holds no whole history: cannot store point @2: its change of",
        ),
        (4, "\"point\":2", "\"paint\":2", "line 4: it is no workflow, point, operation or end"),
        (4, "{\"point\":2", "{\"operation\":2", "line 4: "),
        (3, "\"header\":{", "\"value\":{", "line 3: the header of execution 00000000"),
        (4, "\"value\":[3,", "\"value\":[\"3\",", "line 4: the tally of execution 00000000"),
        (3, "\"kind\":\"start\"", "\"kind\":\"stop\"", "line 3: cause"),
        (2, "\"json\"", "\"base64\"", "line 2: definition"),
        (1, "\"head\":3", "\"head\":4", "the file holds no whole history: cannot store the head: it is @4"),
        (1, "\"execution\"", "\"executions\"", "this is no export file of retake: executions: unknown field"),
    ] {
        let refusal = with(line, from, to);
        assert!(refusal.starts_with(expected), "{to}: {refusal}");
    }
    let mut swapped = lines.clone();
    swapped.swap(1, 2);
    assert_eq!(refusal(&swapped), "line 3: workflows come first, then points, then operations");
    let too_deep = format!("{}1{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
    let refusal = with(3, "[\"hello\"]", &too_deep);
    assert!(
        refusal.starts_with("line 3: cannot store vars.messages") && refusal.contains("it is nested deeper"),
        "{refusal}"
    );
    let bomb = with(3, "[\"hello\"]", &"[".repeat(1_000_000));
    assert!(bomb.starts_with("line 3: this is not JSON"), "{bomb}");
    let file = [sealed(&lines), b"{}\n".to_vec()].concat();
    let error = History::read_from(&file[..]).unwrap_err();
    assert_eq!(error.to_string(), format!("line {}: the file goes on behind its end", lines.len() + 2));
}

#[test]
fn no_more_is_read_than_may_be() {
    let limits = Limits { line_bytes: 1_000, file_bytes: 10_000 };
    let endless = std::io::BufReader::new(std::io::repeat(b' '));
    let error = read(endless, limits).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1: the line is longer than 1000 bytes, the most that is read and written"
    );
    let first = format!("{}\n", lines(&history(&[start()]))[0]);
    let many =
        first.into_bytes().into_iter().chain(b"{\"workflow\":1}\n".iter().copied().cycle().take(1 << 20));
    let many: Vec<u8> = many.collect();
    assert!(matches!(read(&many[..], limits).unwrap_err(), HistoryFileError::Line { line: 2, .. }));

    let mut out = Lines::new(Vec::new(), Limits { line_bytes: 1_000, file_bytes: 1_500 });
    out.put("one", EndLine::new(1, blake3::hash(b""))).unwrap();
    let mut refused = None;
    for _ in 0..20 {
        refused = refused.or(out.put("one", EndLine::new(1, blake3::hash(b""))).err());
    }
    assert!(matches!(refused, Some(HistoryFileError::TooLarge { what: "the file", max: 1_500, .. })));
    assert!(out.out.len() <= 1_500);
}

#[test]
fn what_the_file_cannot_say_is_refused_before_it_is_written() {
    let mut odd = full();
    odd.points[0].record.spend =
        Spend { paid: Cost { known_usd: f64::NAN, ..Cost::default() }, reused: Cost::default() };
    let error = odd.write_to(&mut Vec::new()).unwrap_err();
    let told = told(&error);
    assert!(told.starts_with("the history cannot be written to a file: cannot store point @1: "), "{told}");
    let mut torn = full();
    torn.points.pop();
    let mut file = Vec::new();
    assert!(matches!(torn.write_to(&mut file).unwrap_err(), HistoryFileError::Unwritable(_)));
    assert_eq!(file, b"");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_in_any_codec_come_back(
        pieces in proptest::collection::vec((0_u8..4, proptest::collection::vec(any::<u8>(), 0..40)), 1..6)
    ) {
        let pieces = pieces.into_iter().map(|(codec, bytes)| Piece { codec, bytes: bytes.into() }).collect();
        let change = KeyChange { key: Key::Input("x".into()), writer: None, op: Op::Set { pieces, len: 3 } };
        let mut whole = around(vec![point(1, Delta::new(vec![change]))]);
        whole.operations.clear();
        prop_assert_eq!(History::read_from(&written(&whole)[..]).unwrap(), whole);
    }

    #[test]
    fn any_text_and_any_number_come_back(text in any::<String>(), number in any::<f64>(), name in any::<String>()) {
        let mut ctx = start();
        ctx.set_variable(name, json!({text.clone(): [text.clone(), number]}));
        let whole = History { operations: Vec::new(), ..history(&[ctx]) };
        prop_assert_eq!(History::read_from(&written(&whole)[..]).unwrap(), whole);
        prop_assert!(encode("x", &json!(text)).is_ok());
    }

    #[test]
    fn no_damage_is_a_panic_or_another_history(place in any::<prop::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
        let whole = history(&[start()]);
        let mut file = written(&whole);
        let place = place.index(file.len());
        let end = (place + bytes.len()).min(file.len());
        file.splice(place..end, bytes);
        if let Ok(read) = History::read_from(&file[..]) {
            prop_assert_eq!(read, whole);
        }
    }
}
