//! The floors: what the same bytes cost with nothing around them.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

/// A file that records are appended to, each one durable before the next.
#[derive(Debug)]
pub(crate) struct Appender(File);

impl Appender {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(Self)
    }

    /// Appends bytes and waits until the disk has them.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.sync_data()
    }
}

/// A record on its way, and who waits for it.
type Waiting = (Arc<[u8]>, oneshot::Sender<()>);

/// A file that many append to: whatever waits is written at once, and shares one flush.
#[derive(Debug)]
pub(crate) struct GroupAppender {
    queue: mpsc::UnboundedSender<Waiting>,
    thread: JoinHandle<io::Result<()>>,
}

impl GroupAppender {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut file = Appender::create(path)?;
        let (queue, mut waiting) = mpsc::unbounded_channel::<Waiting>();
        let thread = std::thread::spawn(move || {
            while let Some(first) = waiting.blocking_recv() {
                let mut batch = vec![first];
                while let Ok(next) = waiting.try_recv() {
                    batch.push(next);
                }
                let bytes: Vec<u8> = batch.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
                file.append(&bytes)?;
                for (_, reply) in batch {
                    // Whoever waited may have gone.
                    let _gone = reply.send(());
                }
            }
            Ok(())
        });
        Ok(Self { queue, thread })
    }

    /// Appends a record, together with those that wait at the same time.
    pub(crate) async fn append(&self, bytes: Arc<[u8]>) -> io::Result<()> {
        let (reply, durable) = oneshot::channel();
        let gone = || io::Error::other("the appending thread has ended");
        self.queue.send((bytes, reply)).map_err(|_| gone())?;
        durable.await.map_err(|_| gone())
    }

    /// Waits for the thread, and returns what went wrong in it.
    pub(crate) fn close(self) -> io::Result<()> {
        drop(self.queue);
        self.thread.join().map_err(|_| io::Error::other("the appending thread panicked"))?
    }
}
