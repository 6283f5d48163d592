//! Fuzzing: every decoder on bytes that are grown to reach every branch, and a control with a planted bug.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use xshell::{Shell, cmd};

/// Every target of `fuzz/fuzz_targets` but the control.
const TARGETS: &[&str] =
    &["stored_value", "json_value", "checkpoint", "export_file", "workflow_file", "address"];

/// The target with a bug that was put there to be found.
const CONTROL: &str = "planted";

/// The target that the control is like, whose seeds it begins with.
const CONTROL_SEEDS: &str = "stored_value";

/// How long each target runs unless it is told.
pub(crate) const SECONDS: u64 = 60;

/// How long each runs beside the tests, which are not to wait for it.
pub(crate) const SECONDS_IN_TESTS: u64 = 15;

/// How long the control may take to find its bug.
const CONTROL_SECONDS: u64 = 60;

/// How many targets run at once. They let everybody else go first, and fill what is left.
const AT_ONCE: usize = 3;

/// What a target may take in all, and in one piece, in MiB.
const MEMORY_MIB_MAX: u64 = 256;
const PIECE_MIB_MAX: u64 = 64;

/// Longest input, in bytes.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

/// What became of a target.
struct Found {
    executions: u64,
    took: Duration,
    crash: Option<PathBuf>,
}

/// Builds the targets, and the tool that builds them where it is missing. Warnings are that tool's.
pub(crate) fn build(shell: &Shell) -> xshell::Result<()> {
    if cmd!(shell, "cargo fuzz --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        cmd!(shell, "cargo install cargo-fuzz --locked").run()?;
    }
    // The library forbids unsafe code, so that the address sanitizer, which wants a nightly compiler, has little to find.
    let built = cmd!(shell, "nice -n 19 cargo fuzz build --sanitizer none --target-dir fuzz/target")
        .quiet()
        .ignore_status()
        .output()?;
    if !built.status.success() {
        // Others build at the same time: what this one said is told in one piece.
        crate::say(&String::from_utf8_lossy(&built.stderr));
        return cmd!(shell, "false").quiet().run();
    }
    Ok(())
}

/// Runs every target, and prints what it found. Returns whether that is as it must be.
pub(crate) fn run(root: &Path, seconds: u64, seed: Option<u32>) -> bool {
    let seed = seed.unwrap_or_else(drawn);
    let waiting = Mutex::new(TARGETS.iter().copied().chain([CONTROL]).collect::<Vec<_>>());
    let told = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(target) = waiting.lock().expect("no thread panics").pop() {
                    let limit = if target == CONTROL { CONTROL_SECONDS } else { seconds };
                    let verdict = judge(target, fuzz(root, target, limit, seed));
                    told.lock().expect("no thread panics").push(verdict);
                }
            });
        }
    });
    let told = told.into_inner().expect("no thread panics");
    let lines: Vec<&str> = told.iter().map(|(_, line)| line.as_str()).collect();
    crate::say(&format!("fuzz (seed {seed})\n{}", lines.join("\n")));
    told.iter().all(|(held, _)| *held)
}

fn judge(target: &str, found: std::io::Result<Found>) -> (bool, String) {
    let Found { executions, took, crash } = match found {
        Ok(found) => found,
        Err(error) => return (false, format!("  {target}: cannot be run: {error}")),
    };
    let figure = format!("{executions} executions in {:.0} s", took.as_secs_f64());
    match (target == CONTROL, crash) {
        // An input that ends a target before it has run is no search.
        (false, None) => (executions > 0, format!("  {target}: {figure}, 0 crashes [held]")),
        (false, Some(input)) => {
            (false, format!("  {target}: {figure}, crash on {} [BROKEN]", input.display()))
        }
        (true, Some(_)) => (true, format!("  {target}: {figure}, bug found [control, fails as it must]")),
        (true, None) => (false, format!("  {target}: {figure}, bug not found [CONTROL PASSED]")),
    }
}

/// Runs one target until the time is up or it crashes.
#[expect(clippy::disallowed_methods, reason = "how long a program took is told, and decides nothing")]
fn fuzz(root: &Path, target: &str, seconds: u64, seed: u32) -> std::io::Result<Found> {
    let fuzz = root.join("fuzz");
    let artifacts = fuzz.join("artifacts").join(target);
    let corpus = fuzz.join("corpus").join(target);
    // The control has to find its bug anew, and a target's crash of another day is not today's.
    for stale in [Some(&artifacts), (target == CONTROL).then_some(&corpus)].into_iter().flatten() {
        if stale.exists() {
            std::fs::remove_dir_all(stale)?;
        }
    }
    for directory in [&artifacts, &corpus] {
        std::fs::create_dir_all(directory)?;
    }
    let mut command = Command::new("nice");
    command
        .args(["-n", "19"])
        .arg(binary(&fuzz, target)?)
        .arg(&corpus)
        .arg(fuzz.join("seeds").join(if target == CONTROL { CONTROL_SEEDS } else { target }))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-seed={seed}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-malloc_limit_mb={PIECE_MIB_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .args(["-timeout=10", "-print_final_stats=1", "-verbosity=0"])
        .stdin(Stdio::null());
    let began = Instant::now();
    let output = command.output()?;
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    let executions = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
        .unwrap_or(0);
    let kept = std::fs::read_dir(&artifacts)?.next().transpose()?.map(|entry| entry.path());
    let crash = if output.status.success() { kept } else { Some(kept.unwrap_or(artifacts)) };
    if crash.is_some() && target != CONTROL {
        crate::say(&said);
    }
    Ok(Found { executions, took, crash })
}

/// Returns the program of a target, wherever its compiler's triple has put it.
fn binary(fuzz: &Path, target: &str) -> std::io::Result<PathBuf> {
    for triple in std::fs::read_dir(fuzz.join("target"))? {
        let program = triple?.path().join("release").join(target);
        if program.is_file() {
            return Ok(program);
        }
    }
    Err(std::io::Error::other("it was not built"))
}

fn drawn() -> u32 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    // Zero asks libFuzzer for a seed that it would not tell.
    now.subsec_nanos().max(1)
}
