//! The project's own tasks: `cargo xtask test`, `postgres`, `reliability`, `fuzz` and `bench`.

mod fuzz;
mod postgres;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use xshell::{Shell, cmd};

use self::postgres::Cluster;

/// What `cargo xtask` says when it is not told what to do.
const USAGE: &str = "\
usage: cargo xtask TASK

  test          everything that must hold: formatting, lints, all tests with and without features, docs
  reliability [--long] [--seed N] [TRIAL]...
                faults, injected and counted; needs root
  fuzz [--seconds N] [--seed N]
                every decoder on bytes grown to reach every branch, N seconds (60) each
  postgres -- COMMAND...
                a command with a private PostgreSQL server, which the tests of some crates need
  bench [ARGS]  the ratios of docs/benchmarks.md, measured here and now; `bench postgres` starts a server for those that
                need one";

/// Feature sets of the library beside all of them together: each must build without warnings. Each is built with what it
/// needs, so there are as few as show what depends on what.
const FEATURE_SETS: &[&str] = &["", "engine"];

/// Crates that `execution`, `checkpoint` and `rollback` must do without.
const DRIVERS: &[&str] = &["tokio", "rusqlite", "libsqlite3-sys", "tokio-postgres", "reqwest"];

/// What the tests draw their faults from, so that what fails fails again; by themselves, trials and fuzzer draw their own.
const TEST_SEED: u32 = 1_844_954_828;

/// Tests that take a minute and more, most of it waiting for a server.
const SLOWEST: &str = "postgres_store";

/// What the trials call beside Perl, which Debian cannot be without, and the package of each.
const TOOLS: &[(&str, &str)] = &[
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("fallocate", "util-linux"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let done = Shell::new().and_then(|shell| {
        shell.change_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        match task.as_deref() {
            Some("test") if rest.is_empty() => test(&shell),
            Some("bench") => bench(&shell, &rest),
            Some("reliability") => reliability(&shell, &rest),
            Some("postgres") => with_postgres(&shell, &rest),
            Some("fuzz") => fuzz(&shell, &rest),
            Some(_) | None => {
                say(USAGE);
                std::process::exit(2);
            }
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn test(shell: &Shell) -> xshell::Result<()> {
    // It shares nothing with what else is built, and takes only the time that the rest leaves.
    let root = shell.current_dir();
    let fuzzing = std::thread::spawn(move || {
        let shell = Shell::new()?;
        shell.change_dir(&root);
        fuzz::build(&shell)?;
        Ok::<_, xshell::Error>(fuzz::run(&root, fuzz::SECONDS_IN_TESTS, Some(TEST_SEED)))
    });
    let cluster = cluster(shell);
    let _server = cluster.variables().map(|(name, value)| shell.push_env(name, value));
    // Not through RUSTFLAGS: every dependency would be built anew, apart from what a developer has built already.
    let _warnings_are_errors = shell.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(shell, "cargo fmt --all --check").run()?;
    no_driver_below_the_stores(shell)?;
    for features in FEATURE_SETS {
        cmd!(
            shell,
            "cargo clippy -p retake --lib --no-default-features --features {features} -- -D warnings"
        )
        .run()?;
    }
    cmd!(shell, "cargo clippy --workspace --all-features --all-targets -- -D warnings").run()?;
    cmd!(shell, "cargo doc -p retake --all-features --no-deps").run()?;
    // What has neither runtime nor driver is tested without them.
    cmd!(shell, "cargo test -p retake --no-default-features").run()?;
    every_test(shell, &cluster)?;
    trials(shell, &["--seed".to_owned(), TEST_SEED.to_string()])?;
    ends_unless(fuzzing.join().expect("a panic there has been told")?);
    Ok(())
}

/// Runs every test of the workspace. Those that wait for a server for longest run beside the others.
fn every_test(shell: &Shell, cluster: &Cluster) -> xshell::Result<()> {
    build(shell)?;
    let mut slow = Command::new("cargo");
    slow.args(["test", "--workspace", "--all-features", "--test", "store_contract", "--", SLOWEST])
        .envs(cluster.variables())
        .current_dir(shell.current_dir());
    let slow = std::thread::spawn(move || slow.status());
    cmd!(shell, "cargo test --workspace --all-features -- --skip {SLOWEST}").run()?;
    match slow.join().expect("nothing there panics") {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => ends("the contract of stores is not kept on PostgreSQL"),
        Err(error) => ends(&format!("cannot run cargo: {error}")),
    }
}

fn ends(why: &str) -> ! {
    say(&format!("error: {why}"));
    std::process::exit(1);
}

/// Reads `--seconds N` and `--seed N`, and fuzzes.
fn fuzz(shell: &Shell, arguments: &[String]) -> xshell::Result<()> {
    let (mut seconds, mut seed) = (fuzz::SECONDS, None);
    for pair in arguments.chunks(2) {
        match pair {
            [name, number] if name == "--seconds" && number.parse::<u64>().is_ok() => {
                seconds = number.parse().unwrap_or(seconds);
            }
            [name, number] if name == "--seed" && number.parse::<u32>().is_ok() => seed = number.parse().ok(),
            _ => {
                say(USAGE);
                std::process::exit(2);
            }
        }
    }
    fuzz::build(shell)?;
    ends_unless(fuzz::run(&shell.current_dir(), seconds, seed));
    Ok(())
}

fn ends_unless(sound: bool) {
    if !sound {
        std::process::exit(1);
    }
}

/// Starts a server, or says why there is none and ends.
fn cluster(shell: &Shell) -> Cluster {
    Cluster::start(shell).unwrap_or_else(|error| ends(&format!("no PostgreSQL for the tests: {error}")))
}

/// Runs a command while there is a server, and ends as it does.
fn with_postgres(shell: &Shell, arguments: &[String]) -> ! {
    let words = arguments.strip_prefix(&["--".to_owned()]).unwrap_or(arguments);
    let Some((program, arguments)) = words.split_first() else {
        say(USAGE);
        std::process::exit(2);
    };
    let cluster = cluster(shell);
    let status = Command::new(program).args(arguments).envs(cluster.variables()).status();
    drop(cluster);
    match status {
        Ok(status) => std::process::exit(status.code().unwrap_or(1)),
        Err(error) => ends(&format!("cannot run `{program}`: {error}")),
    }
}

fn reliability(shell: &Shell, arguments: &[String]) -> xshell::Result<()> {
    build(shell)?;
    let cluster = cluster(shell);
    let _server = cluster.variables().map(|(name, value)| shell.push_env(name, value));
    trials(shell, arguments)
}

/// Builds the tests, and the programs that trials start: these by themselves would have other features, and all that they
/// need would be built once more.
fn build(shell: &Shell) -> xshell::Result<()> {
    cmd!(shell, "cargo build --workspace --all-features --all-targets").run()
}

/// Measures; what needs a server gets one with the settings that a new cluster has.
fn bench(shell: &Shell, arguments: &[String]) -> xshell::Result<()> {
    // Built before there is a server: it is to have the machine for itself.
    cmd!(shell, "cargo build --release -p retake-bench").run()?;
    let cluster = arguments.iter().any(|argument| argument.starts_with("postgres")).then(|| cluster(shell));
    let variables = cluster.as_ref().map(Cluster::variables);
    let _server = variables.map(|variables| variables.map(|(name, value)| shell.push_env(name, value)));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let program = target.join("release/retake-bench");
    cmd!(shell, "{program} {arguments...}").run()
}

/// Runs trials, with the programs that [`build`] has built.
fn trials(shell: &Shell, arguments: &[String]) -> xshell::Result<()> {
    install_tools(shell)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let program = target.join("debug/retake-reliability");
    cmd!(shell, "{program} {arguments...}").run()
}

/// Installs what the trials need and this machine lacks, where that is possible; else the trials say what they miss.
fn install_tools(shell: &Shell) -> xshell::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| std::env::split_paths(&path).any(|directory| directory.join(tool).exists());
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !has(tool)).map(|(_, package)| *package).collect();
    if missing.is_empty() || !has("apt-get") || cmd!(shell, "id -u").read()? != "0" {
        return Ok(());
    }
    cmd!(shell, "apt-get update -q").run()?;
    cmd!(shell, "apt-get install -y -q --no-install-recommends {missing...}").run()
}

/// Proves that the three modules without I/O build without a runtime and without a driver.
fn no_driver_below_the_stores(shell: &Shell) -> xshell::Result<()> {
    let tree =
        cmd!(shell, "cargo tree -p retake --no-default-features --edges normal --prefix none").read()?;
    for line in tree.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if DRIVERS.contains(&name) {
            say(&format!("error: the library without features depends on {name}"));
            std::process::exit(1);
        }
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a task talks to whoever started it")]
fn say(text: &str) {
    eprintln!("{text}");
}
