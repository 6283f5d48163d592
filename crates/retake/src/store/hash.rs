//! A hash over what a row holds, in which no two lists of values are alike.

/// A hash that grows value by value.
#[derive(Debug)]
pub(super) struct Hash(blake3::Hasher);

impl Hash {
    /// Begins the hash of a table's row, or of something else with a name.
    pub(super) fn of(name: &str) -> Self {
        let mut hash = Self(blake3::Hasher::new());
        hash.feed(b'#', name.as_bytes());
        hash
    }

    /// Begins one that only a holder of the key can make.
    #[cfg(feature = "sqlite")]
    pub(super) fn keyed(key: &[u8; 32], name: &str) -> Self {
        let mut hash = Self(blake3::Hasher::new_keyed(key));
        hash.feed(b'#', name.as_bytes());
        hash
    }

    pub(super) fn null(&mut self) {
        self.feed(b'n', &[]);
    }

    pub(super) fn integer(&mut self, number: i64) {
        self.feed(b'i', &number.to_le_bytes());
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn real(&mut self, number: f64) {
        self.feed(b'r', &number.to_le_bytes());
    }

    pub(super) fn text(&mut self, text: &[u8]) {
        self.feed(b't', text);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.feed(b'b', bytes);
    }

    pub(super) fn finish(&self) -> [u8; 32] {
        self.0.finalize().into()
    }

    fn feed(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update(&[tag]);
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// Returns the first bytes of a hash, which are one themselves.
pub(super) fn first_bytes<const N: usize>(hash: &[u8; 32]) -> [u8; N] {
    let mut first = [0; N];
    first.copy_from_slice(&hash[..N]);
    first
}
