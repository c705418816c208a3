//! Room for what is to come: promised before the first byte, and counted once however many pulls
//! want the same object.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Error;
use crate::store::{self, Amount, ObjectId, Store};

/// What a pull will take from the file system.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// Each object that is to come, with what it still takes.
    pub objects: Vec<(ObjectId, Amount)>,
    /// What the model takes beside its objects.
    pub beside: Amount,
}

/// Who decides whether there is room.
pub trait Room: Send + Sync + fmt::Debug {
    /// Blocking: may have to make room first. Promises room for all of `wants`.
    ///
    /// # Errors
    /// [`Error::NoRoom`] says what is missing; [`Error::Store`].
    fn reserve(&self, store: &Store, wants: Wants) -> Result<Reservation, Error>;

    /// Hears when some use of what is kept ends, where that may make room that was refused.
    fn endings(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// What is promised and not yet taken.
#[derive(Debug, Default)]
pub struct Ledger {
    promised: Mutex<Promised>,
}

#[derive(Debug, Default)]
struct Promised {
    objects: HashMap<ObjectId, Promise>,
    beside: Amount,
}

#[derive(Debug)]
struct Promise {
    amount: Amount,
    holders: u32,
}

impl Ledger {
    fn promised(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was promised and is not taken from the file system yet.
    #[must_use]
    pub fn amount(&self) -> Amount {
        let promised = self.promised();
        promised.beside + promised.objects.values().map(|promise| promise.amount).sum()
    }

    /// What of `wants` nobody was promised yet.
    #[must_use]
    pub fn additional(&self, wants: &Wants) -> Amount {
        let promised = self.promised();
        let new = wants.objects.iter().filter(|(id, _)| !promised.objects.contains_key(id));
        wants.beside + new.map(|(_, amount)| *amount).sum()
    }

    /// The file names of the objects that room was promised for.
    #[must_use]
    pub fn file_ids(&self) -> Vec<String> {
        self.promised().objects.keys().map(ObjectId::file_id).collect()
    }

    /// Writes the promises down.
    #[must_use]
    pub fn promise(self: &Arc<Self>, wants: Wants) -> Reservation {
        let mut promised = self.promised();
        let mut ids = Vec::with_capacity(wants.objects.len());
        for (id, amount) in wants.objects {
            promised.objects.entry(id.clone()).or_insert(Promise { amount, holders: 0 }).holders += 1;
            ids.push(id);
        }
        promised.beside += wants.beside;
        Reservation { ledger: Arc::clone(self), ids, beside: wants.beside }
    }
}

/// Room for the objects of one pull; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    ledger: Arc<Ledger>,
    ids: Vec<ObjectId>,
    beside: Amount,
}

impl Reservation {
    /// The object's bytes are allocated: the file system counts them from now on.
    pub fn taken(&self, id: &ObjectId) {
        if let Some(promise) = self.ledger.promised().objects.get_mut(id) {
            promise.amount = Amount::default();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut promised = self.ledger.promised();
        promised.beside = promised.beside.less(self.beside);
        for id in &self.ids {
            if let Some(promise) = promised.objects.get_mut(id) {
                promise.holders -= 1;
                if promise.holders == 0 {
                    promised.objects.remove(id);
                }
            }
        }
    }
}

/// Why there is no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The store's directory.
    pub path: PathBuf,
    /// What the pull would still take.
    pub needed: Amount,
    /// What may be taken now, by the rules of whoever decides.
    pub free: Amount,
    /// The percentages of bytes and of inodes in use beyond which no pull begins, where there are such.
    pub high_watermarks: Option<(u8, u8)>,
    /// What could be evicted on top of that; `None` where nothing is ever evicted.
    pub evictable: Option<Amount>,
    /// What is kept because somebody pinned it.
    pub pinned: Amount,
    /// What is kept because somebody uses it.
    pub leased: Amount,
}

impl Shortage {
    /// Whether there would be room if nobody used anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        (self.free + self.evictable.unwrap_or_default() + self.leased).covers(self.needed)
    }
}

/// All the room that the file system has, and no eviction: the rule of the command line.
#[derive(Debug, Default)]
pub struct FreeSpace {
    ledger: Arc<Ledger>,
}

impl Room for FreeSpace {
    fn reserve(&self, store: &Store, wants: Wants) -> Result<Reservation, Error> {
        let needed = self.ledger.additional(&wants);
        let free = || Ok::<_, Error>(store.space()?.available().less(self.ledger.amount()));
        let mut free_now = free()?;
        if !free_now.covers(needed) && store.forget(&[], &[])? > 0 {
            // Copies that are known to be damaged, and what nothing names, have made room.
            free_now = free()?;
        }
        let (free, path) = (free_now, || store.view().directory().to_owned());
        if needed.bytes > free.bytes {
            return Err(store::Error::Full { path: path(), needed: needed.bytes, free: free.bytes }.into());
        }
        if needed.inodes > free.inodes {
            return Err(store::Error::NoInodes { path: path(), needed: needed.inodes, free: free.inodes }.into());
        }
        Ok(self.ledger.promise(wants))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    fn want(uri: &str, bytes: u64) -> (ObjectId, Amount) {
        let id = ObjectId { origin: "o".into(), uri: uri.into(), version: Version::Generation(1), size: bytes };
        (id, Amount::new(bytes, 1))
    }

    fn wants(objects: &[(&str, u64)]) -> Wants {
        let objects = objects.iter().map(|(uri, bytes)| want(uri, *bytes)).collect();
        Wants { objects, beside: Amount::new(0, 3) }
    }

    #[test]
    fn an_object_wanted_twice_counts_once() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.promise(wants(&[("a", 10), ("b", 5)]));
        let others = wants(&[("a", 10), ("c", 7)]);
        assert_eq!(ledger.additional(&others), Amount::new(7, 4));
        let second = ledger.promise(others);
        assert_eq!(ledger.amount(), Amount::new(22, 9));
        first.taken(&want("a", 10).0);
        assert_eq!(ledger.amount(), Amount::new(12, 8));
        drop(first);
        assert_eq!(ledger.amount(), Amount::new(7, 4), "a is taken, b is given back");
        drop(second);
        assert_eq!(ledger.amount(), Amount::default());
    }
}
