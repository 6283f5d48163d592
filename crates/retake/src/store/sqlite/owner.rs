//! Who holds leases: an opened store, and whether another one is still open.
//!
//! While a store holds leases, the operating system holds a lock for it on a file beside it, `STORE-owner-ID`. The lock
//! goes with the process, however it ends, so that its leases can be taken at once.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::store::{StoreError, process};

/// One opened store, as a holder of leases.
#[derive(Debug)]
pub(super) struct Owner {
    id: Uuid,
    name: String,
    store: Arc<Path>,
    /// Locked from the first lease on.
    file: Mutex<Option<File>>,
}

impl Owner {
    pub(super) fn new(id: Uuid, store: &Arc<Path>) -> Self {
        Self { id, name: process::name().to_owned(), store: Arc::clone(store), file: Mutex::default() }
    }

    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// Returns how people are told of it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes others see that this store is open, from now until it is closed.
    pub(super) fn show(&self) -> Result<(), StoreError> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(());
        }
        let path = self.path(self.id);
        let locked = File::create(&path).and_then(|file| {
            file.try_lock()?;
            Ok(file)
        });
        let file = locked.map_err(|error| StoreError::Io {
            location: path.display().to_string(),
            action: "locking",
            source: Arc::new(error),
        })?;
        *held = Some(file);
        Ok(())
    }

    /// Tells whether the store with this owner's id is open. In doubt it is.
    pub(super) fn is_open(&self, owner: Uuid) -> bool {
        if owner == self.id {
            return true;
        }
        let file = match File::open(self.path(owner)) {
            Ok(file) => file,
            Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
        };
        // A shared lock, so that two who ask at once do not take each other for the owner.
        match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => true,
        }
    }

    /// Removes what an owner left that is not open.
    pub(super) fn sweep(&self, owner: Uuid) {
        if !self.is_open(owner) {
            // It may be gone already.
            drop(std::fs::remove_file(self.path(owner)));
        }
    }

    fn path(&self, owner: Uuid) -> PathBuf {
        let mut path = self.store.as_os_str().to_owned();
        path.push(format!("-owner-{}", owner.simple()));
        PathBuf::from(path)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let held = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        if held.take().is_some() {
            drop(std::fs::remove_file(self.path(self.id)));
        }
    }
}
