//! Encryption at rest: keys, and what they seal.
//!
//! A *master key* is the user's, and never stored. It wraps a store's own keys, which lie beside what they seal; so
//! giving a store another master key costs a few bytes. Of a store's key come a key for every execution, which seals, and
//! one that authenticates rows. What is sealed is bound to its place: it opens nowhere else.
//!
//! The cipher is XChaCha20-Poly1305 ([draft-irtf-cfrg-xchacha](https://datatracker.ietf.org/doc/draft-irtf-cfrg-xchacha/)),
//! whose nonces of 24 bytes may be drawn at random however much is sealed; keys are derived with BLAKE3's keyed mode.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The version of what [`StoreKey::seal`] makes.
const VERSION: u8 = 1;

const NONCE_BYTES: usize = 24;
const NUMBER_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + NUMBER_BYTES + NONCE_BYTES;

/// A key of 32 random bytes that opens a store, and that no store holds.
///
/// It is wiped from memory when it is dropped, and never shown: its `Debug` form is its [`id`](Self::id).
///
/// ```
/// use retake::store::MasterKey;
///
/// let key = MasterKey::random()?;
/// assert_eq!(MasterKey::parse(&key.to_hex())?.id(), key.id());
/// assert!(MasterKey::parse("hunter2").is_err());
/// # Ok::<(), retake::store::KeyError>(())
/// ```
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is not a key.
    #[error("a key is 64 hexadecimal digits, and this text of {0} characters is none")]
    Malformed(usize),
    /// The system gave no random bytes.
    #[error("the system has no random bytes to give")]
    Random(#[source] getrandom::Error),
}

impl MasterKey {
    /// Takes 32 bytes for a key. They must be random: a password is none.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Draws a new key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).map_err(KeyError::Random)?;
        Ok(Self(bytes))
    }

    /// Reads a key of 64 hexadecimal digits; white space around them is nothing.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], which does not hold the text.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let malformed = || KeyError::Malformed(text.chars().count());
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(malformed());
        }
        let mut bytes = Zeroizing::new([0; 32]);
        for (byte, place) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[place..place + 2], 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }

    /// Returns the key as [`parse`](Self::parse) reads it. Whoever sees it can open the store.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns what tells keys apart and does not help to find them: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        derived(&self.0, "retake master key id", &[])[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MasterKey").field(&self.id()).finish()
    }
}

/// Where something sealed stands. It opens only there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The store.
    pub(super) tenant: Uuid,
    pub(super) table: &'static str,
    pub(super) column: &'static str,
    /// The execution whose key seals it, or what else it belongs to.
    pub(super) owner: Uuid,
    /// Its number in a sequence: a checkpoint's, an operation's; 0 where there is none.
    pub(super) number: u64,
}

impl Place {
    /// Returns what is authenticated with the text: every part, and the versions of key and form.
    fn associated(&self, header: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        for part in [self.table.as_bytes(), self.column.as_bytes(), header] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(self.tenant.as_bytes());
        bytes.extend_from_slice(self.owner.as_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes
    }
}

/// One of a store's own keys.
pub(super) struct StoreKey {
    number: u32,
    secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreKey").field("number", &self.number).finish_non_exhaustive()
    }
}

impl StoreKey {
    pub(super) fn random(number: u32) -> Result<Self, KeyError> {
        Ok(Self { number, secret: MasterKey::random()?.0 })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Wraps the key, so that only the master key opens it.
    pub(super) fn wrap(&self, tenant: Uuid, master: &MasterKey) -> Result<Vec<u8>, KeyError> {
        sealed(&wrapping(master), self.number, random_nonce()?, keyring(tenant, self.number), &*self.secret)
    }

    /// Opens what [`wrap`](Self::wrap) made; `None` where it was another master key, or is damaged.
    pub(super) fn unwrap(tenant: Uuid, number: u32, wrapped: &[u8], master: &MasterKey) -> Option<Self> {
        let secret = Zeroizing::new(opened(&wrapping(master), keyring(tenant, number), wrapped)?);
        let secret = Zeroizing::new(<[u8; 32]>::try_from(secret.as_slice()).ok()?);
        Some(Self { number, secret })
    }

    /// Seals some bytes for a place: version, number of the key, nonce, and the sealed bytes with their tag; 45 bytes
    /// more than there were.
    pub(super) fn seal(&self, place: Place, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        sealed(&self.key_of(place.owner), self.number, random_nonce()?, place, bytes)
    }

    /// Seals some bytes so that equal ones give equal results: for what is looked up. That they are equal is all that
    /// shows, for the nonce is a keyed hash of them.
    pub(super) fn seal_alike(&self, place: Place, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        let hash = derived(&self.secret, "retake nonce of an equal seal", bytes);
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&hash[..NONCE_BYTES]);
        sealed(&self.key_of(place.owner), self.number, nonce, place, bytes)
    }

    /// Opens what was sealed for a place; `None` where it was not, or is not whole.
    pub(super) fn open(&self, place: Place, sealed: &[u8]) -> Option<Vec<u8>> {
        opened(&self.key_of(place.owner), place, sealed)
    }

    /// Returns the key that authenticates rows.
    pub(super) fn authentication(&self) -> Zeroizing<[u8; 32]> {
        derived(&self.secret, "retake row authentication", &[])
    }

    fn key_of(&self, owner: Uuid) -> Zeroizing<[u8; 32]> {
        derived(&self.secret, "retake execution key", owner.as_bytes())
    }
}

/// Returns the number of the key that sealed some bytes.
pub(super) fn key_number(sealed: &[u8]) -> Option<u32> {
    let (version, rest) = sealed.split_first()?;
    let number = rest.first_chunk()?;
    (*version == VERSION).then(|| u32::from_le_bytes(*number))
}

/// Draws an id that nobody can foresee.
pub(super) fn random_id() -> Result<Uuid, KeyError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

fn wrapping(master: &MasterKey) -> Zeroizing<[u8; 32]> {
    derived(&master.0, "retake wrapping key", &[])
}

fn keyring(tenant: Uuid, number: u32) -> Place {
    Place { tenant, table: "keyring", column: "wrapped", owner: tenant, number: number.into() }
}

fn derived(secret: &[u8; 32], purpose: &str, of: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(&(purpose.len() as u64).to_le_bytes());
    hasher.update(purpose.as_bytes());
    hasher.update(of);
    Zeroizing::new(hasher.finalize().into())
}

fn random_nonce() -> Result<[u8; NONCE_BYTES], KeyError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(KeyError::Random)?;
    Ok(nonce)
}

fn sealed(
    key: &[u8; 32],
    number: u32,
    nonce: [u8; NONCE_BYTES],
    place: Place,
    bytes: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let mut sealed = Vec::with_capacity(HEADER_BYTES + bytes.len() + 16);
    sealed.push(VERSION);
    sealed.extend_from_slice(&number.to_le_bytes());
    let associated = place.associated(&sealed);
    sealed.extend_from_slice(&nonce);
    let payload = Payload { msg: bytes, aad: &associated };
    let text = XChaCha20Poly1305::new(&Key::from(*key)).encrypt(&XNonce::from(nonce), payload);
    // The cipher takes 256 GiB in one piece, and a value is smaller by far.
    sealed.extend_from_slice(&text.expect("what is sealed fits the cipher"));
    Ok(sealed)
}

fn opened(key: &[u8; 32], place: Place, sealed: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = sealed.split_at_checked(1 + NUMBER_BYTES)?;
    let (nonce, text) = rest.split_first_chunk::<NONCE_BYTES>()?;
    let payload = Payload { msg: text, aad: &place.associated(header) };
    XChaCha20Poly1305::new(&Key::from(*key)).decrypt(&XNonce::from(*nonce), payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let (tenant, owner) = (Uuid::from_u128(1), Uuid::from_u128(2));
        Place { tenant, table: "checkpoints", column: "label", owner, number: 3 }
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_nowhere_else() {
        let key = StoreKey::random(7).unwrap();
        let sealed = key.seal(place(), b"before the send").unwrap();
        assert_eq!(key_number(&sealed), Some(7));
        assert_eq!(key.open(place(), &sealed).as_deref(), Some(&b"before the send"[..]));
        let elsewhere = [
            Place { tenant: Uuid::from_u128(9), ..place() },
            Place { table: "operations", ..place() },
            Place { column: "cause", ..place() },
            Place { owner: Uuid::from_u128(9), ..place() },
            Place { number: 4, ..place() },
        ];
        for place in elsewhere {
            assert_eq!(key.open(place, &sealed), None, "{place:?}");
        }
        assert_eq!(StoreKey::random(7).unwrap().open(place(), &sealed), None);
    }

    #[test]
    fn any_changed_bit_of_what_is_sealed_is_found() {
        let key = StoreKey::random(7).unwrap();
        let sealed = key.seal(place(), b"otter").unwrap();
        assert_eq!(sealed.len(), 5 + 45);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(place(), &changed), None, "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(key.open(place(), &sealed[..length]), None);
        }
    }

    #[test]
    fn equal_texts_look_alike_only_where_that_is_asked_for() {
        let key = StoreKey::random(1).unwrap();
        assert_ne!(key.seal(place(), b"x").unwrap(), key.seal(place(), b"x").unwrap());
        assert_eq!(key.seal_alike(place(), b"x").unwrap(), key.seal_alike(place(), b"x").unwrap());
        assert_ne!(key.seal_alike(place(), b"x").unwrap(), key.seal_alike(place(), b"y").unwrap());
    }

    #[test]
    fn a_wrapped_key_opens_with_its_master_key_only() {
        let (master, other) = (MasterKey::random().unwrap(), MasterKey::random().unwrap());
        let (key, tenant) = (StoreKey::random(2).unwrap(), Uuid::from_u128(1));
        let wrapped = key.wrap(tenant, &master).unwrap();
        let back = StoreKey::unwrap(tenant, 2, &wrapped, &master).unwrap();
        assert_eq!(back.secret, key.secret);
        assert!(StoreKey::unwrap(tenant, 2, &wrapped, &other).is_none());
        assert!(StoreKey::unwrap(tenant, 3, &wrapped, &master).is_none());
        assert!(StoreKey::unwrap(Uuid::from_u128(2), 2, &wrapped, &master).is_none());
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = MasterKey::from_bytes([0x11; 32]);
        assert!(!format!("{key:?} {:?}", StoreKey::random(1).unwrap()).contains("1111"), "{key:?}");
        let error = MasterKey::parse(&"g".repeat(64)).unwrap_err();
        assert!(!error.to_string().contains("gg"), "{error}");
    }
}
