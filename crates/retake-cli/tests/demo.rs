//! `retake demo`: the numbers that it measures fit each other, and the history that it leaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

fn retake(directory: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::cargo_bin("retake").unwrap();
    let run =
        command.current_dir(directory).env_remove("RETAKE_STORE").args(arguments).arg("--json").assert();
    serde_json::from_slice(&run.success().get_output().stdout).unwrap()
}

#[test]
fn the_demo_calls_the_model_less_often_than_restarts_from_zero_and_leaves_its_history() {
    let directory = tempfile::tempdir().unwrap();
    let seen = retake(directory.path(), &["demo", "--delay", "30ms"]);
    let number = |name: &str| seen[name].as_u64().unwrap_or_else(|| panic!("{name} in {seen}"));
    let (killed, resumed) = (number("calls_before_kill"), number("calls_after_resume"));
    let (whole, again) = (number("calls_of_a_whole_run"), number("calls_after_rollback"));
    let recorded = seen["recorded_at_kill"].as_array().unwrap().len() as u64;
    let edited = number("calls_after_edit");
    assert_eq!(number("calls_made"), killed + resumed + again + edited);
    assert_eq!(number("calls_from_zero"), killed + whole + whole + whole);
    assert_eq!(resumed, whole - recorded);
    assert_eq!(number("calls_repeated"), killed - recorded);
    assert!(0 < recorded && recorded < whole, "{seen}");
    assert!(0 < again && again < whole / 2, "{seen}");
    let rerun = seen["rerun_by_edit"].as_array().unwrap().iter().map(|rerun| rerun["node"].as_str().unwrap());
    let mut rerun: Vec<&str> = rerun.collect();
    rerun.sort_unstable();
    assert_eq!(rerun, ["publish", "summarize", "title"]);
    // `publish` puts together what the model said, and asks it nothing.
    assert_eq!((number("nodes_run_after_edit"), edited), (3, 2));
    assert!(number("calls_made") < number("calls_from_zero"), "{seen}");
    assert!(number("tokens_made") < number("tokens_from_zero"), "{seen}");
    assert!(seen["cost_made_usd"].is_string() && seen["cost_from_zero_usd"].is_string(), "{seen}");

    let log = retake(directory.path(), &["--store", seen["store"].as_str().unwrap(), "log", "demo"]);
    let causes: Vec<&str> =
        log.as_array().unwrap().iter().map(|point| point["cause"]["kind"].as_str().unwrap()).collect();
    let count = |kind: &str| causes.iter().filter(|cause| **cause == kind).count();
    assert_eq!(count("finish"), 3, "{causes:?}");
    assert_eq!(count("rollback"), 1, "{causes:?}");
    assert_eq!(count("edit"), 1, "{causes:?}");
    assert!(count("resume") >= 1, "{causes:?}");
}

#[test]
fn the_next_demo_takes_the_place_of_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let calls = |_| retake(directory.path(), &["demo", "--delay", "30ms"])["calls_from_zero"].clone();
    let [first, second] = [0, 1].map(calls);
    assert!(first.is_u64() && second.is_u64());
}

#[test]
fn an_answer_that_takes_no_time_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("retake").unwrap();
    let refused = command.current_dir(directory.path()).args(["demo", "--delay", "0s"]).assert().code(2);
    let told = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
    assert!(told.contains("an answer takes at least 10ms"), "{told}");
}
