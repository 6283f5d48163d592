//! The benchmark runs to its end and prints every row. How fast anything is, is not asked here.

use std::process::Command;

#[test]
fn a_quick_run_prints_a_row_for_every_number() {
    let run = Command::new(env!("CARGO_BIN_EXE_retake-bench")).arg("--quick").output().unwrap();
    let (table, complaints) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{complaints}");
    for (what, rows) in [
        ("| durable save of a 1 KB change", 1),
        ("| 64 executions saving at once", 2),
        ("bytes on disk |", 4),
        ("| the same: durable step", 1),
        ("| the same: append and delta alone", 1),
        ("| the same through the engine", 1),
        ("| read the head", 2),
        ("| read the worst", 2),
        ("| snapshot in memory", 3),
        ("| rollback in memory", 6),
        ("| engine overhead per node", 5),
        ("| list 20 checkpoints", 2),
        ("| tell the difference of two loaded states", 1),
        ("| load two states", 1),
        ("| plan an edit", 1),
        ("| plan a rollback", 1),
        ("| fork a state", 1),
        ("| the same: bytes on disk that a fork adds", 1),
    ] {
        assert_eq!(table.matches(what).count(), rows, "{what}\n{table}");
    }
    for fact in ["- processor: ", "- kernel: ", "- file system of the stores: ", "- versions: retake "] {
        assert!(table.contains(fact), "{fact}\n{table}");
    }
}

/// Asks for a server, as the tests of the store do.
#[test]
fn a_quick_run_of_the_parts_on_postgres_prints_a_row_for_every_number() {
    assert!(
        std::env::var_os("RETAKE_TEST_POSTGRES").is_some(),
        "run it with `cargo xtask postgres -- COMMAND`"
    );
    let run =
        Command::new(env!("CARGO_BIN_EXE_retake-bench")).args(["--quick", "postgres"]).output().unwrap();
    let (table, complaints) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{complaints}");
    for (what, rows) in [
        ("| PostgreSQL: commits of a 1 KB change per second, one execution", 1),
        ("| PostgreSQL: the same, 64 executions at once", 2),
        ("| PostgreSQL: half of them are durable within", 2),
        ("| PostgreSQL: 99 in 100 are durable within", 2),
        ("| PostgreSQL: commits that share a transaction", 1),
        ("| PostgreSQL: bytes of the server's log for one commit", 2),
        ("| PostgreSQL: the server's processor for one commit", 2),
        ("| PostgreSQL: our processor for one commit", 2),
        ("bytes added to tables and indexes", 4),
        ("| PostgreSQL: durable step 60 over step 10", 1),
        ("| PostgreSQL: claim and settle", 2),
        ("| PostgreSQL: executions of one node that does nothing", 2),
        ("| PostgreSQL: nodes that do nothing, in chains of 10", 2),
    ] {
        assert_eq!(table.matches(what).count(), rows, "{what}\n{table}");
    }
}

#[test]
fn the_parts_on_postgres_say_what_they_miss() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_retake-bench"));
    let run = bench.arg("postgres-saving").env_remove("RETAKE_TEST_POSTGRES").output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let complaint = String::from_utf8(run.stderr).unwrap();
    assert!(complaint.contains("`cargo xtask bench postgres` starts a server"), "{complaint}");
}

#[test]
fn a_part_can_be_measured_alone_and_an_unknown_one_is_refused() {
    let bench = |argument| {
        Command::new(env!("CARGO_BIN_EXE_retake-bench")).args(["--quick", argument]).output().unwrap()
    };
    let alone = String::from_utf8(bench("overhead").stdout).unwrap();
    assert_eq!(alone.matches("\n| engine overhead").count(), 5);
    assert!(!alone.contains("| list "));
    let refused = bench("everything");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("unknown argument `everything`"));
}
