//! Room for what is to come: promised before the first byte, and counted once however many pulls
//! want the same object.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Error;
use crate::store::{self, ObjectId, Store};

/// Who decides whether there is room.
pub trait Room: Send + Sync + fmt::Debug {
    /// Blocking: may have to make room first. Promises room for each of `wants`, with the bytes it
    /// still takes from the file system.
    ///
    /// # Errors
    /// [`Error::NoRoom`] says what is missing; [`Error::Store`].
    fn reserve(&self, store: &Store, wants: Vec<(ObjectId, u64)>) -> Result<Reservation, Error>;
}

/// What is promised and not yet taken.
#[derive(Debug, Default)]
pub struct Ledger {
    promised: Mutex<HashMap<ObjectId, Promise>>,
}

#[derive(Debug)]
struct Promise {
    bytes: u64,
    holders: u32,
}

impl Ledger {
    fn promised(&self) -> MutexGuard<'_, HashMap<ObjectId, Promise>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes promised and not taken from the file system yet.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.promised().values().map(|promise| promise.bytes).fold(0, u64::saturating_add)
    }

    /// Bytes of `wants` that nobody was promised yet.
    #[must_use]
    pub fn additional(&self, wants: &[(ObjectId, u64)]) -> u64 {
        let promised = self.promised();
        let new = wants.iter().filter(|(id, _)| !promised.contains_key(id));
        new.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
    }

    /// The file names of the objects that room was promised for.
    #[must_use]
    pub fn file_ids(&self) -> Vec<String> {
        self.promised().keys().map(ObjectId::file_id).collect()
    }

    /// Writes the promises down.
    #[must_use]
    pub fn promise(self: &Arc<Self>, wants: Vec<(ObjectId, u64)>) -> Reservation {
        let mut promised = self.promised();
        let mut ids = Vec::with_capacity(wants.len());
        for (id, bytes) in wants {
            promised.entry(id.clone()).or_insert(Promise { bytes, holders: 0 }).holders += 1;
            ids.push(id);
        }
        Reservation { ledger: Arc::clone(self), ids }
    }
}

/// Room for the objects of one pull; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    ledger: Arc<Ledger>,
    ids: Vec<ObjectId>,
}

impl Reservation {
    /// The object's bytes are allocated: the file system counts them from now on.
    pub fn taken(&self, id: &ObjectId) {
        if let Some(promise) = self.ledger.promised().get_mut(id) {
            promise.bytes = 0;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut promised = self.ledger.promised();
        for id in &self.ids {
            if let Some(promise) = promised.get_mut(id) {
                promise.holders -= 1;
                if promise.holders == 0 {
                    promised.remove(id);
                }
            }
        }
    }
}

/// Why there is no room, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The store's directory.
    pub path: PathBuf,
    /// What the pull would still write.
    pub needed: u64,
    /// What may be written now, by the rules of whoever decides.
    pub free: u64,
    /// The percentage of the file system in use beyond which no pull begins, where there is one.
    pub high_watermark: Option<u8>,
    /// What could be evicted on top of that; `None` where nothing is ever evicted.
    pub evictable: Option<u64>,
    /// Bytes kept because somebody pinned them.
    pub pinned: u64,
    /// Bytes kept because somebody uses them.
    pub leased: u64,
}

/// All the room that the file system has, and no eviction: the rule of the command line.
#[derive(Debug, Default)]
pub struct FreeSpace {
    ledger: Arc<Ledger>,
}

impl Room for FreeSpace {
    fn reserve(&self, store: &Store, wants: Vec<(ObjectId, u64)>) -> Result<Reservation, Error> {
        let needed = self.ledger.additional(&wants);
        let free = || Ok::<u64, Error>(store.available()?.saturating_sub(self.ledger.bytes()));
        let mut free_now = free()?;
        if needed > free_now && store.forget(&[], &[])? > 0 {
            // Copies that are known to be damaged, and what nothing names, have made room.
            free_now = free()?;
        }
        let free = free_now;
        if needed > free {
            let path = store.view().directory().to_owned();
            return Err(store::Error::Full { path, needed, free }.into());
        }
        Ok(self.ledger.promise(wants))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    fn want(uri: &str, bytes: u64) -> (ObjectId, u64) {
        (ObjectId { origin: "o".into(), uri: uri.into(), version: Version::Generation(1), size: bytes }, bytes)
    }

    #[test]
    fn an_object_wanted_twice_counts_once() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.promise(vec![want("a", 10), want("b", 5)]);
        assert_eq!(ledger.additional(&[want("a", 10), want("c", 7)]), 7);
        let second = ledger.promise(vec![want("a", 10), want("c", 7)]);
        assert_eq!(ledger.bytes(), 22);
        first.taken(&want("a", 10).0);
        assert_eq!(ledger.bytes(), 12);
        drop(first);
        assert_eq!(ledger.bytes(), 7, "a is taken, b is given back");
        drop(second);
        assert_eq!(ledger.bytes(), 0);
    }
}
