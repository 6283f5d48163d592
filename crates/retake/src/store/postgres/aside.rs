//! Work that keeps a processor busy for long, on a thread beside those of the runtime: nothing else waits for it, neither
//! other commits nor the renewal of a lease.

use crate::store::StoreError;

/// So many bytes are encoded, compressed or read back in a few tenths of a millisecond, which others can wait.
const INLINE_MAX: u64 = 64 * 1024;

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

/// Does some work on another thread.
///
/// # Errors
/// As in [`aside`].
pub(super) async fn apart<T: Send + 'static>(
    location: &str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Closed { location: location.to_owned() }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn thread_for(bytes: u64) -> std::thread::ThreadId {
        aside("a store", bytes, || Ok(std::thread::current().id())).await.unwrap()
    }

    #[tokio::test]
    async fn only_much_work_is_done_on_another_thread() {
        let here = std::thread::current().id();
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
}
