//! One value: what can be stored, its bytes, and its hash.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::StoreError;
use crate::execution::{check_value, read_exact};

pub use crate::execution::{DEPTH_MAX, VALUE_BYTES_MAX};

/// Encodes a value as MessagePack.
///
/// # Errors
/// [`StoreError::Unstorable`] with the path of what could not be read back, before anything is allocated for it.
pub fn encode(path: &str, value: &Value) -> Result<Vec<u8>, StoreError> {
    let len = check_value(path, value)?;
    encode_checked(path, value, len)
}

/// Encodes a value that was checked and takes `len` bytes.
pub(super) fn encode_checked(path: &str, value: &Value, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::with_capacity(len);
    rmp_serde::encode::write(&mut bytes, value)
        .map_err(|source| StoreError::Unstorable { path: path.to_owned(), why: source.to_string() })?;
    Ok(bytes)
}

/// Returns what `write` writes, unless that is more than a value may take: then it ends there, and the rest is never
/// encoded.
pub(super) fn bounded(
    path: &str,
    write: impl FnOnce(&mut Bounded) -> Result<(), rmp_serde::encode::Error>,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Bounded::default();
    let written = write(&mut bytes);
    let unstorable = |why| StoreError::Unstorable { path: path.to_owned(), why };
    if bytes.is_full {
        return Err(unstorable(format!("it takes more than {VALUE_BYTES_MAX} bytes")));
    }
    written.map_err(|error| unstorable(error.to_string()))?;
    Ok(bytes.bytes)
}

/// Takes as many bytes as a value may have.
#[derive(Debug, Default)]
pub(super) struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + more.len() > VALUE_BYTES_MAX {
            self.is_full = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// [`StoreError::Corrupt`] that names `record`, also for what [`encode`] never makes: a key that stands in one object
/// twice, NaN, or a nesting that is too deep.
pub fn decode(record: &str, bytes: &[u8]) -> Result<Value, StoreError> {
    decode_by(record, bytes, |decoder| read_exact(decoder))
}

/// Decodes a MessagePack record, within the depth limit.
pub(crate) fn decode_as<T: DeserializeOwned>(record: &str, bytes: &[u8]) -> Result<T, StoreError> {
    decode_by(record, bytes, |decoder| T::deserialize(decoder))
}

type Decoder<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>;

fn decode_by<T>(
    record: &str,
    bytes: &[u8],
    read: impl FnOnce(&mut Decoder<'_>) -> Result<T, rmp_serde::decode::Error>,
) -> Result<T, StoreError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    // A record holds a value a few levels down.
    decoder.set_max_depth(DEPTH_MAX + 16);
    read(&mut decoder)
        .map_err(|source| StoreError::Corrupt { record: record.to_owned(), why: source.to_string() })
}

/// Returns a value's hash, 32 hexadecimal digits: equal values have equal hashes, whatever the order of their keys.
///
/// The hash is the first half of BLAKE3 over a canonical form: MessagePack with the keys of every object sorted.
pub fn hash(value: &Value) -> String {
    let mut hasher = blake3::Hasher::new();
    feed(&mut hasher, value, 0);
    let digest = hasher.finalize();
    digest.to_hex()[..32].to_owned()
}

fn feed(hasher: &mut blake3::Hasher, value: &Value, depth: usize) {
    // Deeper values cannot be stored, so no stored hash depends on what lies below.
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::Null => {
            hasher.update(b"z");
        }
        Value::Bool(flag) => {
            hasher.update(if *flag { b"t" } else { b"f" });
        }
        Value::Number(number) => feed_text(hasher, b'n', &number.to_string()),
        Value::String(text) => feed_text(hasher, b's', text),
        Value::Array(items) => {
            hasher.update(b"a");
            hasher.update(&(items.len() as u64).to_le_bytes());
            for item in items {
                feed(hasher, item, depth + 1);
            }
        }
        Value::Object(entries) => {
            hasher.update(b"o");
            hasher.update(&(entries.len() as u64).to_le_bytes());
            let mut keys: Vec<&String> = entries.keys().collect();
            keys.sort_unstable();
            for key in keys {
                feed_text(hasher, b'k', key);
                feed(hasher, &entries[key], depth + 1);
            }
        }
    }
}

fn feed_text(hasher: &mut blake3::Hasher, tag: u8, text: &str) {
    hasher.update(&[tag]);
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(depth: usize) -> Value {
        (0..depth).fold(json!(1), |inner, _| json!([inner]))
    }

    #[test]
    fn numbers_and_odd_text_come_back_exactly() {
        for value in [
            json!(u64::MAX),
            json!(i64::MIN),
            json!(0.1),
            json!(-0.0),
            json!(1e300),
            json!("nul \u{0} and 🦦"),
            json!({"z": 1, "a": {"": null}, "dots.and\"quotes": [true]}),
        ] {
            let back = decode("a test", &encode("x", &value).unwrap()).unwrap();
            assert_eq!(back.to_string(), value.to_string());
        }
    }

    #[test]
    fn a_value_nested_too_deep_is_refused_with_its_path_and_the_deepest_allowed_comes_back() {
        let deepest = nested(DEPTH_MAX - 1);
        assert_eq!(decode("a test", &encode("x", &deepest).unwrap()).unwrap(), deepest);
        let error = encode("vars.x", &nested(DEPTH_MAX)).unwrap_err();
        let path = format!("vars.x{}", "[0]".repeat(DEPTH_MAX));
        assert_eq!(error.to_string(), format!("cannot store {path}: it is nested deeper than 100 levels"));
    }

    #[test]
    fn the_largest_value_comes_back_and_a_larger_one_is_refused_with_its_path() {
        let largest = json!("x".repeat(VALUE_BYTES_MAX - 5));
        assert!(decode("a test", &encode("x", &largest).unwrap()).unwrap() == largest);
        let error = encode("vars.x", &json!(["x", largest])).unwrap_err();
        assert_eq!(error.to_string(), "cannot store vars.x: it takes more than 67108864 bytes");
    }

    #[test]
    fn a_length_that_is_not_there_reserves_nothing() {
        for (tag, what) in [(0xdb_u8, "a text"), (0xdd, "a list"), (0xdf, "an object"), (0xc6, "bytes")] {
            let claim = [&[tag][..], &u32::MAX.to_be_bytes(), b"x"].concat();
            let error = decode("delta 7", &claim).unwrap_err();
            assert!(error.to_string().starts_with("delta 7 is damaged: "), "{what}: {error}");
        }
    }

    #[test]
    fn a_hash_does_not_depend_on_the_order_of_keys_but_on_everything_else() {
        assert_eq!(hash(&json!({"a": 1, "b": 2})), hash(&json!({"b": 2, "a": 1})));
        let different =
            [json!([]), json!({}), json!(""), json!(null), json!(0), json!("0"), json!([[]]), json!(0.0)];
        let hashes: std::collections::BTreeSet<String> = different.iter().map(hash).collect();
        assert_eq!(hashes.len(), different.len());
        assert_ne!(hash(&json!(["ab", "c"])), hash(&json!(["a", "bc"])));
    }

    #[test]
    fn torn_bytes_are_reported_with_the_record() {
        let bytes = encode("x", &json!(["a", "b"])).unwrap();
        let error = decode("delta 7", &bytes[..bytes.len() - 1]).unwrap_err();
        assert!(error.to_string().starts_with("delta 7 is damaged: "), "{error}");
    }

    #[test]
    fn bytes_that_no_value_makes_are_damaged_and_nothing_is_made_of_them() {
        let nan = [&[0x91, 0xcb][..], &f64::NAN.to_be_bytes()].concat();
        let twice = [0x82, 0xa1, b'k', 1, 0xa1, b'k', 2];
        let deep = [0x91].repeat(DEPTH_MAX);
        for (bytes, why) in [
            (&nan[..], "NaN is no number that JSON can hold, at `[0]`"),
            (&twice, "a key stands there twice, at `k`"),
            (&deep, "nested too deep"),
            // A list of four billion items that are not there.
            (&[0xdd, 0xff, 0xff, 0xff, 0xff], "delta 7 is damaged: "),
        ] {
            let error = decode("delta 7", bytes).unwrap_err().to_string();
            assert!(error.starts_with("delta 7 is damaged: ") && error.contains(why), "{error}");
        }
    }
}
