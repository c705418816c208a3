//! Who uses and who wants which model: leases and pins, and what is leaving.
//!
//! One lock around all of it, so that a model is either leased or evicted, never both. What is
//! written down survives the daemon; a lease whose owner has gone ends at the next look.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::owner::{Life, Owner};
use crate::domain::Digest;
use crate::report::text::unix;
use crate::store::{self, Shelf, Store};

/// More leases than pods of many nodes: beyond this somebody makes them up.
const LEASE_COUNT_MAX: usize = 10_000;
/// How long the lease of a pod lasts that nobody here can see.
const UNSEEN_MAX: Duration = Duration::from_hours(24);

/// Somebody uses a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who.
    pub owner: Owner,
    /// Which model.
    pub digest: Digest,
    /// Seconds since 1970 when it was last asked for.
    pub since: u64,
    /// Whether the owner was ever seen: only then does its absence say that it is gone.
    pub seen: bool,
}

/// Somebody wants a source kept, or a model whatever names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pin {
    holders: BTreeSet<String>,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is being evicted, or was: pull it again.
    #[error("the model is being evicted")]
    Leaving,
    /// There are absurdly many.
    #[error("there are {LEASE_COUNT_MAX} leases already")]
    TooMany,
}

/// Leases and pins of a store. Calls block: they write small files.
#[derive(Debug, Default)]
pub struct Book {
    leases: HashMap<String, Lease>,
    /// Of these, those that a full or failing disk did not take yet.
    unwritten: HashSet<String>,
    pins: HashMap<String, Pin>,
    leaving: HashSet<Digest>,
    /// How often each blob, or what is still arriving of a listing, is open in the mount.
    open: HashMap<Digest, u32>,
}

impl Lease {
    /// Whether its owner, of whom that is seen now, is gone, or was never seen for too long. Who was
    /// seen before and cannot be looked for now is there: whoever looks may be away.
    #[must_use]
    pub fn has_ended(&self, life: Life, now: SystemTime) -> bool {
        match life {
            Life::Alive => false,
            Life::Gone if self.seen => true,
            Life::Unseen if self.seen => false,
            Life::Gone | Life::Unseen => unix(now).saturating_sub(self.since) > UNSEEN_MAX.as_secs(),
        }
    }
}

impl Book {
    /// Reads what an earlier life wrote down.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn open(store: &Store) -> Result<Self, store::Error> {
        Ok(Self {
            leases: store.notes(Shelf::Leases)?.into_iter().take(LEASE_COUNT_MAX).collect(),
            unwritten: HashSet::new(),
            pins: store.notes(Shelf::Pins)?.into_iter().collect(),
            leaving: HashSet::new(),
            open: HashMap::new(),
        })
    }

    /// Grants a lease and writes it down; asked for again, it is the same one. Its id. `seen` says
    /// whether the owner is seen now: to look may take long, and this is under a lock.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn lease(&mut self, store: &Store, seen: bool, owner: Owner, digest: Digest) -> Result<String, Refused> {
        if self.leaving.contains(&digest) {
            return Err(Refused::Leaving);
        }
        let id = id_of(&owner, &digest);
        let lease = Lease { seen, owner, digest, since: unix(SystemTime::now()) };
        if self.leases.get(&id).is_some_and(|known| known.seen == seen && known.seen) {
            return Ok(id);
        }
        if self.leases.len() >= LEASE_COUNT_MAX && !self.leases.contains_key(&id) {
            return Err(Refused::TooMany);
        }
        if !matches!(lease.owner, Owner::Connection(_)) {
            match store.note(Shelf::Leases, &id, &lease) {
                Ok(()) => drop(self.unwritten.remove(&id)),
                Err(error) => {
                    // A full disk is no reason to keep a model from a pod when the model is here.
                    // The lease holds for as long as this process lives.
                    tracing::warn!(owner = %lease.owner, %error, "a lease could not be written down: it is tried again");
                    self.unwritten.insert(id.clone());
                }
            }
        }
        self.leases.insert(id.clone(), lease);
        Ok(id)
    }

    /// Writes down the leases that the disk did not take before.
    ///
    /// # Errors
    /// [`store::Error::Io`]: it still does not.
    pub fn write_down(&mut self, store: &Store) -> Result<(), store::Error> {
        let (leases, unwritten) = (&self.leases, &mut self.unwritten);
        while let Some(id) = unwritten.iter().next().cloned() {
            if let Some(lease) = leases.get(&id) {
                store.note(Shelf::Leases, &id, lease)?;
            }
            unwritten.remove(&id);
        }
        Ok(())
    }

    /// Ends a lease; the model it was of.
    ///
    /// # Errors
    /// [`store::Error::Io`]: it has ended, and comes back with the next start.
    pub fn release(&mut self, store: &Store, id: &str) -> Result<Option<Digest>, store::Error> {
        let Some(lease) = self.leases.remove(id) else { return Ok(None) };
        self.unwritten.remove(id);
        if !matches!(lease.owner, Owner::Connection(_)) {
            store.remove_note(Shelf::Leases, id)?;
        }
        Ok(Some(lease.digest))
    }

    /// Ends a lease that is still as it was found, as [`Self::release`] does; nothing where it has been
    /// asked for again.
    ///
    /// # Errors
    /// Those of [`Self::release`].
    pub fn end(&mut self, store: &Store, id: &str, found: &Lease) -> Result<Option<Digest>, store::Error> {
        if self.leases.get(id) == Some(found) { self.release(store, id) } else { Ok(None) }
    }

    /// All leases with their ids.
    pub fn leases(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.leases.iter()
    }

    /// Who uses the model.
    #[must_use]
    pub fn users(&self, digest: &Digest) -> Vec<String> {
        let of_model = self.leases.values().filter(|lease| lease.digest == *digest);
        let mut users: Vec<String> = of_model.map(|lease| lease.owner.told()).collect();
        users.sort();
        users
    }

    /// Pins a source (by its record's id) or a model (by its digest) for `holder`.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn pin(&mut self, store: &Store, key: &str, holder: &str) -> Result<(), store::Error> {
        let mut pin = self.pins.get(key).cloned().unwrap_or_default();
        if pin.holders.insert(holder.to_owned()) {
            store.note(Shelf::Pins, key, &pin)?;
            self.pins.insert(key.to_owned(), pin);
        }
        Ok(())
    }

    /// Takes back the pin of one holder, or of all where `holder` is `None`; whether there was one.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn unpin(&mut self, store: &Store, key: &str, holder: Option<&str>) -> Result<bool, store::Error> {
        let Some(mut pin) = self.pins.get(key).cloned() else { return Ok(false) };
        let before = pin.holders.len();
        pin.holders.retain(|other| holder.is_some_and(|holder| holder != other));
        let changed = pin.holders.len() < before;
        if pin.holders.is_empty() {
            store.remove_note(Shelf::Pins, key)?;
            self.pins.remove(key);
        } else if changed {
            store.note(Shelf::Pins, key, &pin)?;
            self.pins.insert(key.to_owned(), pin);
        }
        Ok(changed)
    }

    /// What `holder` has pinned.
    #[must_use]
    pub fn pinned_by(&self, holder: &str) -> Vec<String> {
        self.pins.iter().filter(|(_, pin)| pin.holders.contains(holder)).map(|(key, _)| key.clone()).collect()
    }

    /// Whether a source or model is pinned.
    #[must_use]
    pub fn is_pinned(&self, key: &str) -> bool {
        self.pins.contains_key(key)
    }

    /// Pins in all.
    #[must_use]
    pub fn pin_count(&self) -> usize {
        self.pins.len()
    }

    /// Begins to evict a model: from now on nobody gets a lease of it, nor opens what is among its
    /// `parts`: its blobs, and the listings that it came of. False when somebody has, or wants it
    /// kept under one of `keys`.
    pub fn begin_leaving(&mut self, digest: Digest, keys: &[String], parts: &[Digest]) -> bool {
        let wanted = keys.iter().any(|key| self.is_pinned(key)) || self.is_pinned(&digest.to_string());
        if wanted
            || self.is_used(&digest)
            || parts.iter().any(|part| self.is_used(part))
            || self.leaving.contains(&digest)
        {
            return false;
        }
        self.leaving.insert(digest)
    }

    /// The model is gone, or stays after all.
    pub fn end_leaving(&mut self, digest: &Digest) {
        self.leaving.remove(digest);
    }

    /// Whether it is being evicted.
    #[must_use]
    pub fn is_leaving(&self, digest: &Digest) -> bool {
        self.leaving.contains(digest)
    }

    /// Whether somebody has a lease of a model or a listing.
    #[must_use]
    pub fn is_leased(&self, digest: &Digest) -> bool {
        self.leases.values().any(|lease| lease.digest == *digest)
    }

    /// Whether somebody has a lease of it or has it open.
    #[must_use]
    pub fn is_used(&self, digest: &Digest) -> bool {
        self.open.contains_key(digest) || self.is_leased(digest)
    }

    /// A blob, or a file that is still arriving for a listing, was opened in the mount. Whether it is
    /// the only one of that part that is open.
    pub fn opened(&mut self, part: Digest) -> bool {
        let count = self.open.entry(part).or_default();
        *count += 1;
        *count == 1
    }

    /// It was closed.
    pub fn closed(&mut self, part: &Digest) {
        if let Some(count) = self.open.get_mut(part) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(part);
            }
        }
    }

    /// What is open, by how often.
    #[must_use]
    pub const fn open_parts(&self) -> &HashMap<Digest, u32> {
        &self.open
    }

    /// Gives everybody who waits for a listing a lease of the model that it has become, but for
    /// those of whom `left` has the lease: who has gone meanwhile would not be seen again, and a
    /// lease of somebody never seen lasts for a day.
    ///
    /// # Errors
    /// [`Refused`] of any of them.
    pub fn lease_also(
        &mut self,
        store: &Store,
        left: &HashSet<String>,
        listing: &Digest,
        model: Digest,
    ) -> Result<(), Refused> {
        let waiting = self.leases.iter().filter(|(id, lease)| lease.digest == *listing && !left.contains(*id));
        let owners: Vec<(bool, Owner)> = waiting.map(|(_, lease)| (lease.seen, lease.owner.clone())).collect();
        owners.into_iter().try_for_each(|(seen, owner)| self.lease(store, seen, owner, model).map(drop))
    }
}

/// The same owner and model give the same lease, so that asking twice takes one.
fn id_of(owner: &Owner, digest: &Digest) -> String {
    let hash = blake3::hash(format!("{owner} {digest}").as_bytes());
    hash.to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_again_while_it_is_looked_for_keeps_its_lease() {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Store::open(directory.path()).expect("a store");
        let mut book = Book::default();
        let (owner, model) = (Owner::Pod("5d0c".into()), Digest::of(b"x"));
        let id = book.lease(&store, true, owner.clone(), model).expect("a lease");
        let found = book.leases[&id].clone();
        assert_eq!(book.lease(&store, false, owner, model).expect("a lease"), id);
        assert_eq!(book.end(&store, &id, &found).expect("a disk"), None);
        let again = book.leases[&id].clone();
        assert_eq!(store.notes::<Lease>(Shelf::Leases).expect("a disk"), [(id.clone(), again.clone())]);
        assert_eq!(book.end(&store, &id, &again).expect("a disk"), Some(model));
        assert!(!book.is_leased(&model) && store.notes::<Lease>(Shelf::Leases).expect("a disk").is_empty());
    }

    #[test]
    fn who_cannot_be_looked_for_is_not_taken_for_gone() {
        let lease = |seen, hours: u64| Lease {
            owner: Owner::Pod("5d0c".into()),
            digest: Digest::of(b"x"),
            since: unix(SystemTime::now()) - hours * 3600,
            seen,
        };
        let ended = |lease: Lease, life| lease.has_ended(life, SystemTime::now());
        for hours in [1, 1000] {
            assert!(!ended(lease(true, hours), Life::Alive) && !ended(lease(false, hours), Life::Alive));
            assert!(ended(lease(true, hours), Life::Gone) && !ended(lease(true, hours), Life::Unseen));
            for life in [Life::Gone, Life::Unseen] {
                assert_eq!(ended(lease(false, hours), life), hours > 24, "{life:?} {hours}");
            }
        }
    }
}
