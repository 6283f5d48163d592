//! What the operating system tells the command: to stop, and that a file has grown too large.

use std::io;

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

    /// Wishes to stop, as they come.
    #[derive(Debug)]
    pub(crate) struct Wishes {
        interrupt: Signal,
        terminate: Signal,
        hang_up: Signal,
    }

    impl Wishes {
        /// Takes the signals over; until then, and from no other place, they end the process.
        pub(crate) fn listen() -> io::Result<Self> {
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hang_up: signal(SignalKind::hangup())?,
            })
        }

        /// Waits for the next wish.
        pub(crate) async fn next(&mut self) -> Wish {
            tokio::select! {
                Some(()) = self.interrupt.recv() => Wish::Stop,
                Some(()) = self.terminate.recv() => Wish::StopNow,
                Some(()) = self.hang_up.recv() => Wish::StopNow,
                else => std::future::pending().await,
            }
        }
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
        /// Takes Ctrl-C over at the first wait.
        pub(crate) fn listen() -> io::Result<Self> {
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
