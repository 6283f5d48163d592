//! What can go wrong with a checkpoint, with its causes kept.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The most causes that are written down with an error: a chain that runs in a circle still ends.
const SOURCES_MAX: usize = 32;

/// A checkpoint that could not be saved, read or removed.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub enum CheckpointError {
    /// No such checkpoint is kept. List the execution's checkpoints to see those that are.
    #[error("no checkpoint {0} is kept: it never was, or it has been pruned or deleted")]
    NotFound(uuid::Uuid),
    /// What holds the checkpoints could not be used. Nothing was changed; the call can be repeated.
    #[error("the checkpoint storage could not be used")]
    StorageError(#[source] Source),
    /// The checkpoint holds something that cannot be written down. The call fails again until that is gone.
    #[error("the checkpoint could not be encoded")]
    SerializationError(#[source] Source),
    /// What was stored does not decompress. Fall back on an older checkpoint.
    #[error("the stored checkpoint could not be decompressed")]
    DecompressionError(#[source] Source),
    /// What was stored is not the checkpoint that was saved. Fall back on an older checkpoint.
    #[error("the stored checkpoint is damaged")]
    InvalidData(#[source] Source),
}

impl CheckpointError {
    /// Tells whether the same call can succeed later, with nothing else changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::StorageError(_) => true,
            Self::NotFound(_)
            | Self::SerializationError(_)
            | Self::DecompressionError(_)
            | Self::InvalidData(_) => false,
        }
    }
}

/// The cause of a [`CheckpointError`]: any error, cheap to copy.
///
/// It is written down as the list of its messages, outermost first; what is read back says the same but is no longer of
/// the same type. Made of a text, or with [`new`](Source::new) of any error.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = Vec<String>))]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Source(Arc<dyn Error + Send + Sync>);

impl Source {
    /// Returns a cause that is `error`, with everything that caused it.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// Returns the error itself, to be downcast.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Source {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl From<String> for Source {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Source {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<Source> for Vec<String> {
    fn from(source: Source) -> Self {
        let outermost: &(dyn Error + 'static) = &source;
        std::iter::successors(Some(outermost), |error| (*error).source())
            .take(SOURCES_MAX)
            .map(ToString::to_string)
            .collect()
    }
}

impl TryFrom<Vec<String>> for Source {
    type Error = &'static str;

    fn try_from(mut messages: Vec<String>) -> Result<Self, Self::Error> {
        messages.truncate(SOURCES_MAX);
        let chain = messages.into_iter().rfold(None, |cause, text| Some(Box::new(Recorded { text, cause })));
        chain.map(|outermost| Self(Arc::new(*outermost))).ok_or("an error's cause needs at least one message")
    }
}

/// A cause that was written down and read back.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Recorded {
    text: String,
    #[source]
    cause: Option<Box<Recorded>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not open the file")]
    struct Outer(#[source] std::io::Error);

    fn nested() -> CheckpointError {
        CheckpointError::StorageError(Source::new(Outer(std::io::Error::other("the disk is full"))))
    }

    fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
        std::iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect()
    }

    #[test]
    fn an_error_keeps_its_causes_and_repeats_none_of_them() {
        assert_eq!(
            chain(&nested()),
            ["the checkpoint storage could not be used", "could not open the file", "the disk is full"]
        );
    }

    #[test]
    fn a_cause_can_be_downcast() {
        let CheckpointError::StorageError(source) = nested() else { panic!("another variant") };
        assert!(source.error().downcast_ref::<Outer>().is_some());
    }

    #[test]
    fn an_error_that_was_written_down_says_the_same_when_read_back() {
        let text = serde_json::to_string(&nested()).unwrap();
        assert_eq!(text, r#"{"StorageError":["could not open the file","the disk is full"]}"#);
        let read: CheckpointError = serde_json::from_str(&text).unwrap();
        assert_eq!(chain(&read), chain(&nested()));
    }

    #[test]
    fn a_cause_without_a_message_is_refused() {
        let error = serde_json::from_str::<CheckpointError>(r#"{"InvalidData":[]}"#).unwrap_err();
        assert!(error.to_string().starts_with("an error's cause needs at least one message"));
    }

    #[test]
    fn only_a_storage_that_could_not_be_used_is_worth_another_try() {
        assert!(CheckpointError::StorageError("busy".into()).is_retryable());
        assert!(!CheckpointError::NotFound(uuid::Uuid::nil()).is_retryable());
        assert!(!CheckpointError::SerializationError("x".into()).is_retryable());
        assert!(!CheckpointError::DecompressionError("x".into()).is_retryable());
        assert!(!CheckpointError::InvalidData(String::from("x").into()).is_retryable());
    }
}
