//! What the operating system tells the command: to stop, and that a file has grown too large.

use std::io;

use crate::failure::Failure;

/// How urgently a run is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Ctrl-C: a person waits, and can say it again.
    Stop,
    /// The machine, a supervisor or a closed terminal: there is no time.
    StopNow,
}

#[cfg(unix)]
mod platform {
    use super::{Wish, io};
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// SIGXFSZ, which Linux, macOS and the BSDs number alike.
    const FILE_SIZE_EXCEEDED: i32 = 25;

    /// Where Linux shows SIGHUP, signal 1, in a mask of signals.
    const HANG_UP_BIT: u64 = 1;

    /// Wishes to stop, as they come.
    #[derive(Debug)]
    pub(crate) struct Wishes {
        interrupt: Signal,
        terminate: Signal,
        /// `None` where whoever started the command wants it to outlive its terminal, as `nohup` does.
        hang_up: Option<Signal>,
    }

    impl Wishes {
        pub(super) fn begin() -> io::Result<Self> {
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hang_up: if may_take_hang_up() { Some(signal(SignalKind::hangup())?) } else { None },
            })
        }

        /// Waits for the next wish.
        pub(crate) async fn next(&mut self) -> Wish {
            tokio::select! {
                Some(()) = self.interrupt.recv() => Wish::Stop,
                Some(()) = self.terminate.recv() => Wish::StopNow,
                Some(()) = hung_up(&mut self.hang_up) => Wish::StopNow,
                else => std::future::pending().await,
            }
        }
    }

    async fn hung_up(hang_up: &mut Option<Signal>) -> Option<()> {
        match hang_up {
            Some(hang_up) => hang_up.recv().await,
            None => None,
        }
    }

    /// Tells whether a hang-up is known not to be ignored. Where that cannot be known, it stays as it is.
    fn may_take_hang_up() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        ignored.is_some_and(|mask| mask & HANG_UP_BIT == 0)
    }

    /// Makes a write beyond a file size limit an error that is reported, and not the end of the process.
    pub(crate) fn survive_file_size_limits() {
        // Once taken over, a signal stays so for the life of the process. Where it cannot be, the system's way stays.
        let _taken_over = signal(SignalKind::from_raw(FILE_SIZE_EXCEEDED));
    }
}

#[cfg(not(unix))]
mod platform {
    use super::{Wish, io};

    /// Wishes to stop, as they come.
    #[derive(Debug)]
    pub(crate) struct Wishes;

    impl Wishes {
        /// Takes Ctrl-C over at the first wait only.
        pub(super) fn begin() -> io::Result<Self> {
            Ok(Self)
        }

        /// Waits for the next wish.
        pub(crate) async fn next(&mut self) -> Wish {
            match tokio::signal::ctrl_c().await {
                Ok(()) => Wish::Stop,
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Does nothing: there are no such limits.
    pub(crate) fn survive_file_size_limits() {}
}

pub(crate) use platform::{Wishes, survive_file_size_limits};

impl Wishes {
    /// Takes the signals over; until then, and from no other place, they end the process.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Self::begin().map_err(|error| Failure::system("signals cannot be taken over", error))
    }
}
