//! Every decoder on the seeds of its fuzz target, and on what the fuzzer once found: those are kept among the seeds.
//!
//! `RETAKE_SEEDS=write cargo test -p retake --all-features --test decoders` writes the seeds that are encodings.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use retake::execution::{ExecutionContext, ExecutionResult, NodeExecutionResult, NodeMetrics, TokenUsage};
use retake::store::{self, Cause, Commit, MemoryStore, NewCheckpoint, NewExecution, Store};
use retake::testkit::decoders::DECODERS;
use serde_json::{Value, json};
use uuid::Uuid;

fn seeds(decoder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(decoder)
}

fn values() -> Vec<(&'static str, Value)> {
    vec![
        ("null", json!(null)),
        ("numbers", json!([0, -1, 127, 128, u64::MAX, i64::MIN, 0.1, -0.0, 1e300, 5e-324])),
        ("texts", json!(["", "nul \u{0}", "\u{2028}\u{2029}\u{feff}", "🦦", "x".repeat(300)])),
        ("object", json!({"z": 1, "a": {"": null}, "dots.and\"quotes": [true, {}], "messages": [[], [[]]]})),
        ("deepest", (0..99).fold(json!(1), |inner, _| json!([inner]))),
        ("too_deep", (0..100).fold(json!(1), |inner, _| json!({ "k": inner }))),
    ]
}

fn context() -> ExecutionContext {
    let at = chrono::DateTime::from_timestamp(1_790_000_000, 5).unwrap();
    let mut ctx = ExecutionContext::with_id(Uuid::from_u128(1), Uuid::from_u128(2), at);
    ctx.inputs.insert("topic".into(), json!("otters"));
    ctx.set_variable("messages".into(), json!(["hello"]));
    ctx.append("messages", json!({"n": [1.5, -7]})).unwrap();
    let metrics = NodeMetrics {
        token_usage: Some(TokenUsage::new(3, 4)),
        cost_usd: Some(0.25),
        custom: [("hops".to_owned(), json!(2))].into(),
        ..NodeMetrics::default()
    };
    let node = NodeExecutionResult::started(at).with_metrics(metrics);
    ctx.conclude(Uuid::from_u128(5), node.completed(ExecutionResult::Success(json!({"a": [1]})), at))
        .unwrap();
    ctx.pause();
    ctx
}

/// Returns an export file of two points, or of three.
fn exported(is_longer: bool) -> Vec<u8> {
    let states = [context(), {
        let mut ctx = context();
        ctx.append("messages", json!("more")).unwrap();
        ctx
    }];
    let new = NewExecution {
        id: states[0].execution_id,
        name: "brave-otter".to_owned(),
        workflow_id: states[0].workflow_id,
        workflow_name: "article".to_owned(),
        definition: Vec::new(),
        origin: None,
    };
    let point = |seq: u64, delta| {
        let at = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let (id, state) = (Uuid::from_u128(100 + u128::from(seq)), states[0].state.clone());
        NewCheckpoint { delta, ..NewCheckpoint::new(id, at, state, Cause::Manual) }
    };
    let mut commits = vec![(1, store::delta(Some(&states[0]), &states[1], |_| None).unwrap())];
    if is_longer {
        commits.push((2, store::delta(Some(&states[1]), &states[0], |_| None).unwrap()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let kept = MemoryStore::new();
        let first = point(1, store::delta(None, &states[0], |_| None).unwrap());
        kept.create(new, first).await.unwrap();
        for (expected_head, delta) in commits {
            let checkpoint = point(expected_head + 1, delta);
            let execution_id = states[0].execution_id;
            kept.commit(Commit { execution_id, expected_head, fence: None, checkpoint }).await.unwrap();
        }
        let mut bytes = Vec::new();
        kept.export(states[0].execution_id).await.unwrap().write_to(&mut bytes).unwrap();
        bytes
    })
}

fn encodings() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, value) in values() {
        if let Ok(bytes) = store::encode("x", &value) {
            seeds.push(("stored_value", name.to_owned(), bytes));
        }
        seeds.push(("json_value", format!("{name}.json"), value.to_string().into_bytes()));
    }
    let delta = store::delta(None, &context(), |_| None).unwrap().encode();
    seeds.push(("checkpoint", "raw".to_owned(), [&[0], &delta[..]].concat()));
    let packed = zstd::bulk::compress(&delta, 3).unwrap();
    let length = (delta.len() as u64).to_le_bytes();
    seeds.push(("checkpoint", "zstd".to_owned(), [&[1], &length[..], &packed].concat()));
    seeds.push(("export_file", "two_points".to_owned(), exported(false)));
    seeds.push(("export_file", "three_points".to_owned(), exported(true)));
    let at = chrono::DateTime::from_timestamp(1_790_000_001, 0).unwrap();
    let checkpoint = serde_json::to_vec(&context().checkpoint_at(at)).unwrap();
    seeds.push(("checkpoint", "checkpoint.json".to_owned(), checkpoint));
    seeds
}

#[test]
fn every_decoder_takes_its_seeds_or_refuses_them() {
    if std::env::var_os("RETAKE_SEEDS").is_some() {
        for (decoder, name, bytes) in encodings() {
            fs::create_dir_all(seeds(decoder)).unwrap();
            fs::write(seeds(decoder).join(name), bytes).unwrap();
        }
    }
    for decoder in DECODERS {
        let files: Vec<PathBuf> =
            fs::read_dir(seeds(decoder.name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 2, "{} has seeds", decoder.name);
        for file in files {
            (decoder.run)(&fs::read(file).unwrap());
        }
    }
}

#[test]
fn every_decoder_takes_its_own_encodings_cut_off_anywhere_or_changed_anywhere() {
    for (decoder, name, bytes) in encodings() {
        let run = DECODERS.iter().find(|known| known.name == decoder).unwrap().run;
        run(&bytes);
        for at in 0..bytes.len().min(2_000) {
            run(&bytes[..at]);
            let mut changed = bytes.clone();
            for bit in [0x01, 0x10, 0x80] {
                changed[at] = bytes[at] ^ bit;
                run(&changed);
            }
        }
        assert!(bytes.len() > 1 || name == "null", "{decoder}/{name} is more than a byte");
    }
}
