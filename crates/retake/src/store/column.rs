//! What lies in the columns of a database, whichever it is.

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use super::StoreError;

/// Why a row is not what was written.
pub(super) type Damage = String;

/// Returns a time as it is stored: nanoseconds since 1970.
pub(super) fn nanoseconds(path: &str, time: DateTime<Utc>) -> Result<i64, StoreError> {
    time.timestamp_nanos_opt().ok_or_else(|| StoreError::Unstorable {
        path: path.to_owned(),
        why: format!("{time} lies outside of the years 1678 to 2261"),
    })
}

/// Returns a number as it is stored.
pub(super) fn stored(path: &str, number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Unstorable {
        path: path.to_owned(),
        why: format!("{number} is larger than {}", i64::MAX),
    })
}

/// Reads what [`to_json`] made.
pub(super) fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Damage> {
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

/// Reads what [`to_packed`] made.
pub(super) fn packed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
}

/// Returns a small record as it is stored, without the names of its fields.
pub(super) fn to_packed(path: &str, value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec(value)
        .map_err(|error| StoreError::Unstorable { path: path.to_owned(), why: error.to_string() })
}

/// Returns a record as it is stored.
pub(super) fn to_json(path: &str, value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Unstorable { path: path.to_owned(), why: error.to_string() })
}
