//! What guards the rows of a store: a checksum, or keys that authenticate rows and seal what people wrote.
//!
//! A store is encrypted from its first execution on, or not at all. Its own keys lie in the table `keyring`, wrapped by a
//! master key; the newest seals, and the others open what they sealed. Giving the store another master key wraps them
//! all anew and adds one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rusqlite::types::ValueRef;
use rusqlite::{Row, params};
use uuid::Uuid;

use super::db::{self, Damage, Db};
use crate::store::StoreError;
use crate::store::encryption::{self, KeyError, MasterKey, Place, StoreKey};
use crate::store::hash::{Hash, first_bytes};

/// Bytes of a checksum without a key.
const CHECKSUM_BYTES: usize = 8;

/// Bytes of one with a key, behind the key's number.
const AUTHENTICATION_BYTES: usize = 16;

/// Guards the rows of a store. Shared by all its connections.
#[derive(Debug)]
pub(super) enum Guard {
    /// Rows are as they are, and damage shows.
    Checksums,
    /// Rows show nothing of what people wrote, and only whoever has a key can make one.
    Keys(Keyring),
}

/// The keys of an encrypted store.
#[derive(Debug)]
pub(super) struct Keyring {
    tenant: Uuid,
    /// Those that were given, and those that the store was given since.
    masters: RwLock<Vec<MasterKey>>,
    keys: RwLock<BTreeMap<u32, Arc<StoreKey>>>,
}

/// A row of the table `keyring`.
struct Wrapped {
    number: u32,
    tenant: Uuid,
    /// The id of the master key.
    master: String,
    wrapped: Vec<u8>,
    /// Whether its checksum is right. A key that can be unwrapped is right without.
    is_whole: bool,
}

/// Where a value of a row stands: as [`Place`], but for the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) table: &'static str,
    pub(super) owner: Uuid,
    pub(super) number: u64,
}

/// A value as it is written.
#[derive(Debug)]
pub(super) enum Cell<'a> {
    Bare(ValueRef<'a>),
    Sealed(Vec<u8>),
}

impl Cell<'_> {
    pub(super) fn value(&self) -> ValueRef<'_> {
        match self {
            Self::Bare(value) => *value,
            Self::Sealed(bytes) => ValueRef::Blob(bytes),
        }
    }
}

impl Guard {
    /// Returns a row's checksum, by which its damage shows, and with keys also that somebody else made it.
    pub(super) fn checksum<'a>(
        &self,
        table: &str,
        values: impl Iterator<Item = ValueRef<'a>>,
    ) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Checksums => Ok(checksum(table, values).to_vec()),
            Self::Keys(keyring) => {
                let key = keyring.newest();
                Ok([&key.number().to_le_bytes()[..], &authentication(&key, table, values)].concat())
            }
        }
    }

    /// Returns a column's value as it is written: sealed, if there are keys. Nothing stays nothing.
    pub(super) fn hide<'a>(
        &self,
        spot: Spot,
        column: &'static str,
        value: impl Into<ValueRef<'a>>,
    ) -> Result<Cell<'a>, StoreError> {
        match (self, value.into()) {
            (Self::Checksums, value) => Ok(Cell::Bare(value)),
            (Self::Keys(_), ValueRef::Null) => Ok(Cell::Bare(ValueRef::Null)),
            (Self::Keys(keyring), ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => {
                let sealed = keyring.newest().seal(keyring.place(spot, column), bytes);
                sealed.map(Cell::Sealed).map_err(|error| unsealable(&spot, error))
            }
            (Self::Keys(_), ValueRef::Integer(_) | ValueRef::Real(_)) => {
                unreachable!("only texts and bytes are hidden")
            }
        }
    }

    /// Returns a body as it is written. Its row does not tell whose it is, so the body does, before what is sealed.
    pub(super) fn hide_body(&self, spot: Spot, body: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Checksums => Ok(body),
            Self::Keys(keyring) => {
                let sealed = keyring.newest().seal(keyring.place(spot, "body"), &body);
                let sealed = sealed.map_err(|error| unsealable(&spot, error))?;
                Ok([spot.owner.as_bytes(), &spot.number.to_le_bytes()[..], &sealed].concat())
            }
        }
    }

    /// Returns a text as it is written, the same each time: what is looked up, or is not written with all of its row.
    pub(super) fn hide_alike<'a>(
        &self,
        spot: Spot,
        column: &'static str,
        text: &'a str,
    ) -> Result<Cell<'a>, StoreError> {
        match self {
            Self::Checksums => Ok(Cell::Bare(ValueRef::from(text))),
            Self::Keys(keyring) => {
                // The first key, for it stays the first whatever is added.
                let sealed = keyring.first().seal_alike(keyring.place(spot, column), text.as_bytes());
                sealed.map(Cell::Sealed).map_err(|error| unsealable(&spot, error))
            }
        }
    }

    /// Returns an execution's name as it is written and looked up.
    pub(super) fn name<'a>(&self, name: &'a str) -> Result<Cell<'a>, StoreError> {
        self.hide_alike(Self::NAMES, "name", name)
    }

    /// Where names stand: all in one, so that they can be looked up.
    pub(super) const NAMES: Spot = Spot { table: "executions", owner: Uuid::nil(), number: 0 };
}

impl Keyring {
    fn place(&self, Spot { table, owner, number }: Spot, column: &'static str) -> Place {
        Place { tenant: self.tenant, table, column, owner, number }
    }

    fn newest(&self) -> Arc<StoreKey> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(keys.last_key_value().expect("a keyring holds a key").1)
    }

    fn first(&self) -> Arc<StoreKey> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(keys.first_key_value().expect("a keyring holds a key").1)
    }

    /// Returns a key, which another process may have added since the others were read.
    fn key(&self, db: &Db, number: u32) -> Result<Arc<StoreKey>, Damage> {
        let known = |keys: &BTreeMap<u32, Arc<StoreKey>>| keys.get(&number).cloned();
        if let Some(key) = known(&self.keys.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(key);
        }
        let rows = wrapped_keys(db).map_err(|error| error.to_string())?;
        let Some(row) = rows.iter().find(|row| row.number == number) else {
            return Err(format!("it was sealed with key {number}, which the store does not have"));
        };
        let Some(key) = self.unwrap(row) else {
            return Err(format!(
                "it was sealed with key {number}, which only the master key {} opens: give that as well",
                row.master
            ));
        };
        let key = Arc::new(key);
        self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&key));
        Ok(key)
    }

    fn unwrap(&self, row: &Wrapped) -> Option<StoreKey> {
        let masters = self.masters.read().unwrap_or_else(PoisonError::into_inner);
        masters.iter().find_map(|master| StoreKey::unwrap(row.tenant, row.number, &row.wrapped, master))
    }

    /// Opens what was sealed for a place.
    fn open(&self, db: &Db, place: Place, sealed: &[u8]) -> Result<Vec<u8>, Damage> {
        let number = encryption::key_number(sealed).ok_or("it is not sealed, and the store is encrypted")?;
        let key = self.key(db, number)?;
        key.open(place, sealed).ok_or_else(|| format!("its {} is not what was sealed for it", place.column))
    }
}

impl Db {
    /// Verifies a row whose last column is the checksum of the `columns` before it.
    pub(super) fn verify(&self, table: &str, row: &Row<'_>, columns: usize) -> Result<(), Damage> {
        let values = db::columns(row, columns)?.into_iter();
        let found = db::blob(row, columns)?;
        let is_right = match &**self.guard() {
            Guard::Checksums => found == checksum(table, values),
            Guard::Keys(keyring) => {
                let (number, code) =
                    found.split_first_chunk().ok_or("its checksum is cut off, or was made without a key")?;
                let key = keyring.key(self, u32::from_le_bytes(*number))?;
                code == authentication(&key, table, values)
            }
        };
        if is_right { Ok(()) } else { Err("its checksum does not match".to_owned()) }
    }

    /// Reads a column that [`Guard::hide`] wrote.
    pub(super) fn seen(
        &self,
        spot: Spot,
        name: &'static str,
        row: &Row<'_>,
        column: usize,
    ) -> Result<Vec<u8>, Damage> {
        let value = row.get_ref(column).map_err(|error| error.to_string())?;
        match &**self.guard() {
            Guard::Checksums => value.as_bytes().map(<[u8]>::to_vec).map_err(|error| error.to_string()),
            Guard::Keys(keyring) => {
                let sealed = value.as_blob().map_err(|_| format!("its {name} is not sealed"))?;
                keyring.open(self, keyring.place(spot, name), sealed)
            }
        }
    }

    /// Reads a hidden text.
    pub(super) fn seen_text(
        &self,
        spot: Spot,
        name: &'static str,
        row: &Row<'_>,
        column: usize,
    ) -> Result<String, Damage> {
        String::from_utf8(self.seen(spot, name, row, column)?).map_err(|error| error.to_string())
    }

    /// Reads a hidden text that may be missing.
    pub(super) fn seen_optional_text(
        &self,
        spot: Spot,
        name: &'static str,
        row: &Row<'_>,
        column: usize,
    ) -> Result<Option<String>, Damage> {
        match row.get_ref(column).map_err(|error| error.to_string())? {
            ValueRef::Null => Ok(None),
            ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => {
                self.seen_text(spot, name, row, column).map(Some)
            }
        }
    }

    /// Opens a body that [`Guard::hide_body`] wrote.
    pub(super) fn seen_body<'a>(&self, table: &'static str, body: &'a [u8]) -> Result<Cow<'a, [u8]>, Damage> {
        match &**self.guard() {
            Guard::Checksums => Ok(Cow::Borrowed(body)),
            Guard::Keys(keyring) => {
                let (owner, rest) = body.split_first_chunk().ok_or("it is not sealed")?;
                let (number, sealed) = rest.split_first_chunk().ok_or("it is not sealed")?;
                let (owner, number) = (Uuid::from_bytes(*owner), u64::from_le_bytes(*number));
                let place = keyring.place(Spot { table, owner, number }, "body");
                keyring.open(self, place, sealed).map(Cow::Owned)
            }
        }
    }
}

/// Returns what guards an open store, whose keyring is made if this is its beginning and there is a key to make it with.
pub(super) fn found_or_made(db: &Db, masters: &[MasterKey]) -> Result<Guard, StoreError> {
    if !masters.is_empty() && db.number("SELECT 1 FROM keyring LIMIT 1", [])?.is_none() {
        begin(db, masters)?;
    }
    find(db, masters)
}

/// Returns what guards an open store. Only reads.
pub(super) fn find(db: &Db, masters: &[MasterKey]) -> Result<Guard, StoreError> {
    let rows = wrapped_keys(db)?;
    let Some(newest) = rows.last() else {
        if !masters.is_empty() {
            return Err(no_key(db.path(), "there is no key in it: open it without one".to_owned()));
        }
        return Ok(Guard::Checksums);
    };
    if masters.is_empty() {
        return Err(no_key(db.path(), format!("it is encrypted: give the master key {}", newest.master)));
    }
    let keyring =
        Keyring { tenant: newest.tenant, masters: RwLock::new(masters.to_vec()), keys: RwLock::default() };
    for row in &rows {
        match keyring.unwrap(row) {
            Some(key) => drop(
                keyring
                    .keys
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(row.number, Arc::new(key)),
            ),
            None if !row.is_whole => {
                let why = "neither it nor its checksum is what was written".to_owned();
                return Err(StoreError::Corrupt { record: format!("key {}", row.number), why });
            }
            None => {
                let given: Vec<String> = masters.iter().map(MasterKey::id).collect();
                let why = format!(
                    "it is encrypted, and needs the master key {}: given was {}",
                    row.master,
                    given.join(", ")
                );
                return Err(no_key(db.path(), why));
            }
        }
    }
    Ok(Guard::Keys(keyring))
}

/// Returns master keys in another order: first the one that wraps the newest of a store's keys.
pub(super) fn newest_first(db: &Db, masters: &[MasterKey]) -> Result<Vec<MasterKey>, StoreError> {
    let mut masters = masters.to_vec();
    if let Some(newest) = wrapped_keys(db)?.last() {
        let opens = |master: &MasterKey| {
            StoreKey::unwrap(newest.tenant, newest.number, &newest.wrapped, master).is_some()
        };
        masters.sort_by_key(|master| !opens(master));
    }
    Ok(masters)
}

/// Tells whether rows are sealed, whatever the keyring says.
pub(super) fn is_sealed(db: &Db) -> Result<bool, StoreError> {
    let sealed = "SELECT 1 FROM executions WHERE typeof(name) = 'blob' UNION ALL \
                  SELECT 1 FROM checkpoints WHERE typeof(cause) = 'blob' LIMIT 1";
    Ok(db.number(sealed, [])?.is_some())
}

/// Makes the keyring of a store that nothing was ever written to.
fn begin(db: &Db, masters: &[MasterKey]) -> Result<(), StoreError> {
    db.script("BEGIN IMMEDIATE")?;
    let made = || -> Result<(), StoreError> {
        // Another process may have been here first.
        if db.number("SELECT 1 FROM keyring LIMIT 1", [])?.is_some() {
            return Ok(());
        }
        // What was removed may still stand in pages that are free.
        let is_used = db.number(
            "SELECT 1 FROM executions UNION ALL SELECT 1 FROM workflows UNION ALL SELECT 1 FROM checkpoints UNION ALL \
             SELECT 1 FROM deltas UNION ALL SELECT 1 FROM operations LIMIT 1",
            [],
        )?;
        if is_used.is_some() || db.pragma("freelist_count")? > 0 {
            let why = "it was made without a key, and cannot be given one: export its runs without a key, and import them \
                       into a new store";
            return Err(no_key(db.path(), why.to_owned()));
        }
        let unable = |error: KeyError| no_key(db.path(), error.to_string());
        let tenant = encryption::random_id().map_err(unable)?;
        let key = StoreKey::random(1).map_err(unable)?;
        put(db, tenant, &key, &masters[0])
    };
    match made().and_then(|()| db.script("COMMIT")) {
        Ok(()) => Ok(()),
        Err(error) => {
            db.abandon();
            Err(error)
        }
    }
}

/// Refuses a row without keys where another process has given the store a keyring since it was opened.
pub(super) fn check_current(db: &Db) -> Result<(), StoreError> {
    match &**db.guard() {
        Guard::Keys(_) => Ok(()),
        Guard::Checksums => match db.number("SELECT 1 FROM keyring LIMIT 1", [])? {
            None => Ok(()),
            Some(_) => Err(no_key(db.path(), "it has been encrypted since it was opened".to_owned())),
        },
    }
}

/// Wraps all keys for another master key, and adds one for what is written from now on.
pub(super) fn rotate(db: &Db, to: &MasterKey) -> Result<(), StoreError> {
    let Guard::Keys(keyring) = &**db.guard() else {
        return Err(no_key(db.path(), "it is not encrypted".to_owned()));
    };
    let rows = wrapped_keys(db)?;
    let last = rows.last().map_or(0, |row| row.number);
    for row in &rows {
        let Some(key) = keyring.unwrap(row) else {
            let why = format!("its key {} needs the master key {}", row.number, row.master);
            return Err(no_key(db.path(), why));
        };
        put(db, keyring.tenant, &key, to)?;
    }
    let key = StoreKey::random(last + 1).map_err(|error| no_key(db.path(), error.to_string()))?;
    put(db, keyring.tenant, &key, to)
}

/// Takes up a master key that the store was given, and the key that it came with.
pub(super) fn rotated(db: &Db, to: &MasterKey) -> Result<(), StoreError> {
    let Guard::Keys(keyring) = &**db.guard() else { return Ok(()) };
    keyring.masters.write().unwrap_or_else(PoisonError::into_inner).insert(0, to.clone());
    for row in wrapped_keys(db)? {
        keyring.key(db, row.number).map_err(|why| no_key(db.path(), why))?;
    }
    Ok(())
}

fn put(db: &Db, tenant: Uuid, key: &StoreKey, master: &MasterKey) -> Result<(), StoreError> {
    let wrapped = key.wrap(tenant, master).map_err(|error| no_key(db.path(), error.to_string()))?;
    let master = master.id();
    let number = i64::from(key.number());
    let values = [
        ValueRef::Integer(number),
        ValueRef::Blob(tenant.as_bytes()),
        ValueRef::from(master.as_str()),
        ValueRef::Blob(&wrapped),
    ];
    // Not by the guard: this row is what there is a guard from.
    let checksum = checksum("keyring", values.into_iter());
    db.run(
        "INSERT OR REPLACE INTO keyring (number, tenant, master, wrapped, checksum) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![number, tenant.as_bytes(), master, wrapped, checksum],
    )
    .map(|_| ())
}

fn wrapped_keys(db: &Db) -> Result<Vec<Wrapped>, StoreError> {
    db.all(
        "SELECT number, tenant, master, wrapped, checksum FROM keyring ORDER BY number",
        [],
        |row| format!("key {}", db::shown(row, 0)),
        |row| {
            let is_whole = db::blob(row, 4)? == checksum("keyring", db::columns(row, 4)?.into_iter());
            let number = u32::try_from(db::integer(row, 0)?).map_err(|error| error.to_string())?;
            let (tenant, master, wrapped) = (db::id(row, 1)?, db::text(row, 2)?, db::blob(row, 3)?.to_vec());
            Ok(Wrapped { number, tenant, master, wrapped, is_whole })
        },
    )
}

/// Returns the checksum of a row: the first 8 bytes of BLAKE3 over the table's name and every value.
///
/// The keys are among the values, so that rows which have changed places are found.
pub(super) fn checksum<'a>(table: &str, values: impl Iterator<Item = ValueRef<'a>>) -> [u8; CHECKSUM_BYTES] {
    let mut hash = Hash::of(table);
    values.for_each(|value| db::feed(&mut hash, value));
    first_bytes(&hash.finish())
}

/// Returns what only a holder of the key can make for a row.
fn authentication<'a>(
    key: &StoreKey,
    table: &str,
    values: impl Iterator<Item = ValueRef<'a>>,
) -> [u8; AUTHENTICATION_BYTES] {
    let mut hash = Hash::keyed(&key.authentication(), table);
    values.for_each(|value| db::feed(&mut hash, value));
    first_bytes(&hash.finish())
}

fn unsealable(spot: &Spot, error: KeyError) -> StoreError {
    StoreError::Unstorable { path: format!("a row of {}", spot.table), why: error.to_string() }
}

fn no_key(path: &Path, why: String) -> StoreError {
    StoreError::Key { location: path.display().to_string(), why }
}
