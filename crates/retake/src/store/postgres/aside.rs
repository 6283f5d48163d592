//! Work that keeps a processor busy for long, on threads beside those of the runtime: what is small, and the renewal of
//! leases, does not wait for it.

use std::sync::LazyLock;

use tokio::sync::Semaphore;

use crate::store::StoreError;

/// So many bytes are encoded, compressed or read back in a few tenths of a millisecond, which others can wait.
const INLINE_MAX: u64 = 64 * 1024;

/// As much is done at once as there are processors, or the runtime's own threads would hardly have one.
static ROOM: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new(processors)
});

/// Does some work on so many bytes, on another thread where they are many.
///
/// # Errors
/// Those of the work, and [`StoreError::Closed`] where the runtime ends before it begins.
pub(super) async fn aside<T: Send + 'static>(
    location: &str,
    bytes: u64,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match bytes > INLINE_MAX {
        true => apart(location, work).await,
        false => work(),
    }
}

/// Does some work on another thread, when there is room.
///
/// # Errors
/// As in [`aside`].
pub(super) async fn apart<T: Send + 'static>(
    location: &str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let closed = || StoreError::Closed { location: location.to_owned() };
    let room = ROOM.acquire().await.map_err(|_| closed())?;
    // The work cannot be ended by who waits for it, and has its room until it ends by itself.
    let working = tokio::task::spawn_blocking(move || {
        let _room = room;
        work()
    });
    match working.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(closed()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::{self, ThreadId};

    use super::*;

    async fn thread_for(bytes: u64) -> ThreadId {
        aside("a store", bytes, || Ok(thread::current().id())).await.unwrap()
    }

    #[tokio::test]
    async fn only_much_work_is_done_on_another_thread() {
        let here = thread::current().id();
        assert_eq!(thread_for(INLINE_MAX).await, here);
        assert_ne!(thread_for(INLINE_MAX + 1).await, here);
    }

    #[tokio::test]
    async fn what_the_work_fails_with_is_what_this_does() {
        for bytes in [0, INLINE_MAX + 1] {
            let why = || Err::<(), _>(StoreError::NoExecution(uuid::Uuid::nil()));
            let error = aside("a store", bytes, why).await.unwrap_err();
            assert!(matches!(error, StoreError::NoExecution(_)), "{error:?}");
        }
    }

    #[tokio::test]
    async fn there_is_never_more_at_once_than_there_are_processors() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let works = (0..64).map(|_| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            apart("a store", move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                (0..100).for_each(|_| thread::yield_now());
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
        });
        futures_util::future::try_join_all(works).await.unwrap();
        let processors = thread::available_parallelism().unwrap().get();
        assert!((1..=processors).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }
}
