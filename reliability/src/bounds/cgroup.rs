//! A control group of processes that may take so much memory, of either version.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Outcome;

/// Where the first version keeps its groups of memory.
const FIRST: &str = "/sys/fs/cgroup/memory";

/// Where the second version keeps its groups.
const SECOND: &str = "/sys/fs/cgroup";

/// A group; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// The file that counts who was killed for want of memory.
    events: &'static str,
}

impl Cgroup {
    /// Makes a group whose processes may take so many bytes in all, and no swap.
    pub(crate) fn new(bytes_max: u64) -> Outcome<Self> {
        // Trials that run at the same time have groups of their own.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("retake-reliability-{}-{number}", std::process::id());
        let made = if Path::new(FIRST).is_dir() {
            Self::make(FIRST, &name, "memory.oom_control", |path| {
                fs::write(path.join("memory.limit_in_bytes"), bytes_max.to_string())?;
                // Not there where swap is not accounted for.
                let all = path.join("memory.memsw.limit_in_bytes");
                if all.exists() { fs::write(all, bytes_max.to_string()) } else { Ok(()) }
            })
        } else {
            Self::make(SECOND, &name, "memory.events", |path| {
                fs::write(path.join("memory.max"), bytes_max.to_string())?;
                let swap = path.join("memory.swap.max");
                if swap.exists() { fs::write(swap, "0") } else { Ok(()) }
            })
        };
        made.map_err(|error| {
            format!(
                "no memory cgroup can be made: {error}; run as root, where /sys/fs/cgroup may be written to"
            )
            .into()
        })
    }

    fn make(
        root: &str,
        name: &str,
        events: &'static str,
        bound: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> std::io::Result<Self> {
        let path = Path::new(root).join(name);
        fs::create_dir(&path)?;
        let group = Self { path, events };
        bound(&group.path)?;
        Ok(group)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how many of its processes were killed for want of memory.
    pub(crate) fn killed(&self) -> Outcome<u64> {
        let events = fs::read_to_string(self.path.join(self.events))?;
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.ok_or("this system does not count who was killed for want of memory")?.trim().parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that is not quite gone holds it; nothing depends on it.
        drop(fs::remove_dir(&self.path));
    }
}

/// Puts this process, and what it starts, into a group.
pub(crate) fn join(path: &Path) -> Outcome<()> {
    Ok(fs::write(path.join("cgroup.procs"), std::process::id().to_string())?)
}
