//! Who holds a lease, or works, as people are told.

use std::sync::LazyLock;

/// Returns what this process is called: its number, and its machine where that has a name.
pub(crate) fn name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let process = std::process::id();
        match host() {
            Some(host) => format!("process {process} on {host}"),
            None => format!("process {process}"),
        }
    });
    &NAME
}

#[cfg(feature = "postgres")]
fn host() -> Option<String> {
    whoami::hostname().ok()
}

/// Without the crate that asks every system, where a store is of one machine only.
#[cfg(not(feature = "postgres"))]
fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
