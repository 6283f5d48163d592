//! A disk whose power can be cut: a file system of its own, in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// What the disk holds: room for the stores of a trial, and cheap to make.
const DISK_BYTES: u64 = 128 * 1024 * 1024;

/// Where Linux keeps files in memory.
pub(crate) const MEMORY: &str = "/dev/shm";

/// Stops ext4 at once and loses what it has not written, its journal included: `EXT4_IOC_SHUTDOWN` with the flag
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`. Through Perl, which Debian cannot be without, as this workspace has no unsafe code.
const CUT: &str = r#"open(my $disk, "<", $ARGV[0]) or die $!; my $flag = pack("L", 2); ioctl($disk, 0x8004587D, $flag) or die $!"#;

/// An ext4 file system on a loop device. Dropping it takes all of it away.
#[derive(Debug)]
pub(crate) struct Disk {
    directory: tempfile::TempDir,
    is_mounted: bool,
}

impl Disk {
    pub(crate) fn new() -> Outcome<Self> {
        Self::with_bytes(DISK_BYTES)
    }

    /// Makes a disk of that size, which is then mounted.
    pub(crate) fn with_bytes(bytes: u64) -> Outcome<Self> {
        require_root()?;
        // In memory where that is possible: the flushes of the machine itself are not what is tried.
        let directory = tempfile::tempdir_in(MEMORY).or_else(|_| tempfile::tempdir())?;
        let mut disk = Self { directory, is_mounted: false };
        File::create(disk.image())?.set_len(bytes)?;
        // Blocks as large as those of any larger disk, and none of them reserved for root: a full disk is full.
        succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-m", "0"]).arg(disk.image()))?;
        std::fs::create_dir(disk.path())?;
        disk.mount()?;
        Ok(disk)
    }

    /// Returns where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Cuts the power: from now on nothing reaches the disk. Whoever writes must be stopped before, as what it hears
    /// of a write after is no promise of this disk any more.
    pub(crate) fn cut(&self) -> Outcome<()> {
        succeed(Command::new("perl").args(["-e", CUT]).arg(self.path()))
    }

    /// Starts the machine again: what has reached the disk is there, and nothing else.
    pub(crate) fn restart(&mut self) -> Outcome<()> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&mut self) -> Outcome<()> {
        succeed(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Outcome<()> {
        succeed(Command::new("umount").arg(self.path()))?;
        self.is_mounted = false;
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // Somebody still has a file open: the loop device goes with the last of them.
            drop(succeed(Command::new("umount").arg("--lazy").arg(self.path())));
        }
    }
}

/// Fails where this process is not root, and says so.
pub(crate) fn require_root() -> Outcome<()> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => {
            Err("this trial needs root: it mounts file systems or starts servers, and nothing of it ran"
                .into())
        }
    }
}

/// Runs a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> Outcome<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}
