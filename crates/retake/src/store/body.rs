//! How the bytes of a delta lie in a row: as they are, or compressed.

use std::io::Read;

use crate::store::{StoreError, VALUE_BYTES_MAX};

/// Compression of what a caller wants small.
pub(super) const SMALL: i32 = 3;

/// Compression of what is written again now and then.
pub(super) const FAST: i32 = 1;

/// Largest body before compression, of one that is written and of one that is read: a damaged length must not fill the
/// memory, nor must what a few bytes unpack to. Some of the largest values fit, as where several nodes end before one
/// save.
pub(super) const BODY_BYTES_MAX: u64 = 4 * VALUE_BYTES_MAX as u64;

/// What is reserved before the first byte is unpacked.
const RESERVED_MAX: usize = 1 << 20;

const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// A tag, for compressed bytes their length before, and the bytes.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) compressed: bool,
}

/// Packs bytes, compressed where that is asked for and makes them smaller.
pub(super) fn pack(mut raw: Vec<u8>, level: Option<i32>) -> Result<Body, StoreError> {
    let raw_len = raw.len() as u64;
    check_length(raw_len)?;
    // Without memory for the compressor, the bytes are stored as they are.
    if let Some(small) = level.and_then(|level| zstd::bulk::compress(&raw, level).ok())
        && small.len() + 8 < raw.len()
    {
        let bytes = [&[ZSTD], &raw_len.to_le_bytes()[..], &small].concat();
        return Ok(Body { bytes, compressed: true });
    }
    // In place: a large body is not held twice.
    raw.insert(0, RAW);
    Ok(Body { bytes: raw, compressed: false })
}

/// Refuses what takes so many bytes, where that is too many for a body.
pub(super) fn check_length(length: u64) -> Result<(), StoreError> {
    if length <= BODY_BYTES_MAX {
        return Ok(());
    }
    let why = format!("its change takes {length} bytes, and {BODY_BYTES_MAX} is the most");
    Err(StoreError::Unstorable { path: "the checkpoint".to_owned(), why })
}

/// Unpacks what [`pack`] made. `record` names it in an error.
#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    expect(dead_code, reason = "the test-kit has a limit of its own")
)]
pub(super) fn unpack(record: &str, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    unpack_at_most(BODY_BYTES_MAX, record, bytes)
}

/// Unpacks to at most so many bytes.
pub(crate) fn unpack_at_most(bytes_max: u64, record: &str, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    let torn = |why: String| StoreError::Corrupt { record: record.to_owned(), why };
    match bytes.split_first() {
        Some((&RAW, raw)) => Ok(raw.to_vec()),
        Some((&ZSTD, rest)) => {
            let (length, packed) =
                rest.split_first_chunk().ok_or_else(|| torn("its length is cut off".to_owned()))?;
            let length = u64::from_le_bytes(*length);
            if length > bytes_max {
                return Err(torn(format!("its length {length} is past {bytes_max}")));
            }
            let reserved = usize::try_from(length).unwrap_or(RESERVED_MAX).min(RESERVED_MAX);
            let mut raw = Vec::with_capacity(reserved);
            zstd::stream::read::Decoder::new(packed)
                .and_then(|decoder| decoder.take(length + 1).read_to_end(&mut raw))
                .map_err(|error| torn(error.to_string()))?;
            if raw.len() as u64 == length {
                Ok(raw)
            } else {
                Err(torn(format!("it unpacks to {} bytes, not to {length}", raw.len())))
            }
        }
        Some((tag, _)) => Err(torn(format!("its tag {tag} is not one that this version reads"))),
        None => Err(torn("it is empty".to_owned())),
    }
}

/// Returns how many bytes a body unpacks to, as it says itself.
#[cfg(feature = "postgres")]
pub(super) fn unpacked_length(bytes: &[u8]) -> u64 {
    match bytes.split_first() {
        Some((&ZSTD, rest)) => rest.first_chunk().map_or(0, |length| u64::from_le_bytes(*length)),
        Some((_, raw)) => raw.len() as u64,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_are_compressed_only_where_that_makes_them_smaller() {
        let long = b"otter ".repeat(1_000);
        for (raw, level, compressed) in
            [(&long[..], Some(SMALL), true), (&long[..], None, false), (&b"otter"[..], Some(SMALL), false)]
        {
            let body = pack(raw.to_vec(), level).unwrap();
            assert_eq!((body.compressed, unpack("a test", &body.bytes).unwrap()), (compressed, raw.to_vec()));
            #[cfg(feature = "postgres")]
            assert_eq!(unpacked_length(&body.bytes), raw.len() as u64);
        }
    }

    #[test]
    fn a_wrong_length_is_found_and_a_huge_one_reserves_nothing() {
        let mut bytes = pack(b"otter ".repeat(1_000), Some(FAST)).unwrap().bytes;
        bytes[1] = bytes[1].wrapping_add(1);
        assert!(unpack("delta 7", &bytes).unwrap_err().to_string().starts_with("delta 7 is damaged: "));
        bytes[1..9].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(unpack("delta 7", &bytes).unwrap_err().to_string().contains("is past"));
        bytes[1..9].copy_from_slice(&(BODY_BYTES_MAX + 1).to_le_bytes());
        assert!(unpack("delta 7", &bytes).unwrap_err().to_string().contains("is past 268435456"));
        assert!(unpack("delta 7", &[ZSTD, 1, 2]).is_err());
        assert!(unpack("delta 7", &[]).is_err());
        assert!(unpack("delta 7", &[9]).is_err());
    }

    #[test]
    fn a_gibibyte_in_a_few_bytes_is_unpacked_no_further_than_its_length_says() {
        let mut packer = zstd::stream::write::Encoder::new(Vec::new(), FAST).unwrap();
        std::io::copy(&mut std::io::repeat(0).take(1 << 30), &mut packer).unwrap();
        let small = packer.finish().unwrap();
        assert!(small.len() < 200_000, "{}", small.len());
        let claiming = |length: u64| [&[ZSTD][..], &length.to_le_bytes(), &small].concat();
        let error = unpack("delta 7", &claiming(1 << 30)).unwrap_err();
        assert_eq!(error.to_string(), "delta 7 is damaged: its length 1073741824 is past 268435456");
        let error = unpack("delta 7", &claiming(1_000)).unwrap_err();
        assert_eq!(error.to_string(), "delta 7 is damaged: it unpacks to 1001 bytes, not to 1000");
    }
}
