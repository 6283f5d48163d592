//! What the numbers were measured on.

use std::path::Path;
use std::process::Command;

use retake::clock::{Clock, SystemClock};

/// The lock file says what the measured program is built of.
const LOCK: &str = include_str!("../../Cargo.lock");

/// Packages whose version matters to a number.
const PACKAGES: [&str; 6] =
    ["retake", "oxify-model", "rusqlite", "libsqlite3-sys", "tokio-postgres", "tokio"];

/// Returns the facts that a number needs to be compared with another.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let packages = PACKAGES.iter().filter_map(|name| Some(format!("{name} {}", version(name)?)));
    vec![
        ("date", SystemClock::default().now().format("%Y-%m-%d").to_string()),
        ("processor", processor()),
        ("memory", line("/proc/meminfo", "MemTotal:").unwrap_or_else(unknown)),
        ("kernel", first_line("/proc/sys/kernel/osrelease")),
        ("file system of the stores", file_system(&std::env::temp_dir())),
        ("compiler", compiler()),
        ("versions", packages.collect::<Vec<_>>().join(", ")),
    ]
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn processor() -> String {
    let threads = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let model = line("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
    format!("{}, {threads} threads", model.trim_start_matches([':', ' ']))
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| Some(text.lines().next()?.to_owned()))
        .unwrap_or_else(unknown)
}

/// Returns what follows the first mention of `key` at the beginning of a line.
fn line(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
}

fn file_system(directory: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(point, _)| directory.starts_with(point))
        .max_by_key(|(point, _)| point.len());
    match mount {
        Some((_, "tmpfs")) => {
            "tmpfs, where nothing is durable: set TMPDIR to a directory on a disk".to_owned()
        }
        Some((_, kind)) => kind.to_owned(),
        None => unknown(),
    }
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().ok();
    output
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(unknown, |text| text.trim().to_owned())
}

fn version(package: &str) -> Option<&'static str> {
    let entry = LOCK.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{package}\"\n")))?;
    entry.split("version = \"").nth(1)?.split('"').next()
}
