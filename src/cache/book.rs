//! Who uses and who wants which model: leases and pins, and what is leaving.
//!
//! One lock around all of it, so that a model is either leased or evicted, never both. What is
//! written down survives the daemon; a lease whose owner has gone ends at the next look.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::in_pods::InPods;
use super::owner::{Life, Owner, Pods};
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
    /// Of a model that came of a listing: the lease that its owner was given on that listing, with
    /// which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
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
    /// What is mounted for pods.
    pub(super) in_pods: InPods,
    /// How often some use has ended, for who waits for that.
    ended: watch::Sender<u64>,
    leases: HashMap<String, Lease>,
    pins: HashMap<String, Pin>,
    leaving: HashSet<Digest>,
    /// How often each blob, or what is still arriving of a listing, is open in the mount.
    open: HashMap<Digest, u32>,
}

impl Lease {
    /// Whether people mean this lease, of that id, by a name: the id, its owner, or the owner's pod.
    #[must_use]
    pub fn is_called(&self, id: &str, name: &str) -> bool {
        let of_pod = name.strip_prefix("pod:").is_some_and(|uid| self.owner.pod() == Some(uid));
        id == name || of_pod || self.owner.name() == Some(name) || self.owner.to_string() == name
    }

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
            pins: store.notes(Shelf::Pins)?.into_iter().collect(),
            ..Self::default()
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
        let lease = Lease { seen, owner, digest, since: unix(SystemTime::now()), with: None };
        let known = self.leases.get(&id_of(&lease.owner, &digest));
        if known.is_some_and(|known| known.seen == seen && known.seen && known.with.is_none()) {
            return Ok(id_of(&lease.owner, &digest));
        }
        self.take(store, lease)
    }

    /// Takes a lease in place of an older one of the same owner and model; its id.
    fn take(&mut self, store: &Store, lease: Lease) -> Result<String, Refused> {
        let id = id_of(&lease.owner, &lease.digest);
        if self.leases.len() >= LEASE_COUNT_MAX && !self.leases.contains_key(&id) {
            return Err(Refused::TooMany);
        }
        if !matches!(lease.owner, Owner::Connection(_)) {
            // A full disk is no reason to keep a model from a pod when the model is here. The lease
            // holds for as long as this process lives, and is written down as soon as the disk takes it.
            if let Err(error) = store.note(Shelf::Leases, &id, &lease) {
                tracing::warn!(owner = %lease.owner, %error, "a lease could not be written down: it is tried again");
            }
        }
        self.leases.insert(id.clone(), lease);
        Ok(id)
    }

    /// Ends those leases that `is_over` says, and those that end with them; the models they were of.
    ///
    /// # Errors
    /// [`store::Error::Io`]: they have ended, and what is written of them is removed later.
    pub fn release(
        &mut self,
        store: &Store,
        is_over: impl Fn(&str, &Lease) -> bool,
    ) -> Result<Vec<Digest>, store::Error> {
        let over: HashSet<String> =
            self.leases.iter().filter(|(id, lease)| is_over(id, lease)).map(|(id, _)| id.clone()).collect();
        if over.is_empty() {
            return Ok(Vec::new());
        }
        let (mut digests, mut result) = (Vec::new(), Ok(()));
        let is_with = |lease: &Lease| lease.with.as_ref().is_some_and(|with| over.contains(with));
        for (id, lease) in self.leases.extract_if(|id, lease| over.contains(id) || is_with(lease)) {
            digests.push(lease.digest);
            if !matches!(lease.owner, Owner::Connection(_)) {
                result = result.and(store.remove_note(Shelf::Leases, &id));
            }
        }
        self.tell_ended();
        result.map(|()| digests)
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
        users.dedup();
        users
    }

    /// Somebody who has a lease that a daemon left behind, and has not ended as far as anybody can see.
    #[must_use]
    pub fn left_user(&self, digest: &Digest) -> Option<String> {
        // Of pods, a process that is no daemon sees nothing.
        let unseen = Pods::Directory(PathBuf::from("/dev/null"));
        let is_left = |lease: &&Lease| {
            lease.digest == *digest && !lease.has_ended(lease.owner.life(&unseen, Duration::ZERO), SystemTime::now())
        };
        self.leases.values().find(is_left).map(|lease| lease.owner.to_string())
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

    /// Whether somebody has a lease of it or has it open, or a pod may have it mounted.
    #[must_use]
    pub fn is_used(&self, digest: &Digest) -> bool {
        self.open.contains_key(digest) || self.in_pods.may_have(digest) || self.is_leased(digest)
    }

    /// Some use has ended: room that was not there may be now.
    pub(super) fn tell_ended(&self) {
        self.ended.send_modify(|count| *count += 1);
    }

    /// Hears whenever some use ends.
    pub(super) fn endings(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
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
                self.tell_ended();
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
        if self.leaving.contains(&model) {
            return Err(Refused::Leaving);
        }
        let waiting = self.leases.iter().filter(|(id, lease)| lease.digest == *listing && !left.contains(*id));
        let theirs: Vec<Lease> = waiting
            .map(|(id, lease)| Lease { digest: model, with: Some(id.clone()), ..lease.clone() })
            // What somebody asked for by itself ends by itself.
            .filter(|lease| !self.leases.contains_key(&id_of(&lease.owner, &model)))
            .collect();
        theirs.into_iter().try_for_each(|lease| self.take(store, lease).map(drop))
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
        assert_eq!(book.release(&store, |_, lease| *lease == found).expect("a disk"), []);
        let again = book.leases[&id].clone();
        assert_eq!(store.notes::<Lease>(Shelf::Leases).expect("a disk"), [(id.clone(), again.clone())]);
        assert_eq!(book.release(&store, |_, lease| *lease == again).expect("a disk"), [model]);
        assert!(!book.is_leased(&model) && store.notes::<Lease>(Shelf::Leases).expect("a disk").is_empty());
    }

    #[test]
    fn what_a_listing_became_ends_with_the_lease_that_was_given() {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Store::open(directory.path()).expect("a store");
        let mut book = Book::default();
        let (listing, model) = (Digest::of(b"listing"), Digest::of(b"model"));
        let owners = [Owner::Connection(1), Owner::Pod("5d0c".into()), Owner::Pod("6e1d".into())];
        let ids = owners.clone().map(|owner| book.lease(&store, true, owner, listing).expect("a lease"));
        let own = book.lease(&store, true, owners[2].clone(), model).expect("a lease");
        book.lease_also(&store, &HashSet::new(), &listing, model).expect("leases");
        assert_eq!(book.leases().count(), 6);
        for id in &ids {
            book.release(&store, |known, _| known == id).expect("a disk");
        }
        assert_eq!(book.leases().map(|(id, _)| id).collect::<Vec<_>>(), [&own], "asked for by itself");
        // Asked for by itself after it came that way.
        let id = book.lease(&store, true, owners[1].clone(), listing).expect("a lease");
        book.lease_also(&store, &HashSet::new(), &listing, model).expect("leases");
        let kept = book.lease(&store, true, owners[1].clone(), model).expect("a lease");
        assert_eq!(book.release(&store, |known, _| known == id).expect("a disk"), [listing]);
        assert!(book.leases.contains_key(&kept));
        assert_eq!(book.release(&store, |_, _| true).expect("a disk").len(), 2);
        assert!(store.notes::<Lease>(Shelf::Leases).expect("a disk").is_empty());
    }

    #[test]
    fn who_cannot_be_looked_for_is_not_taken_for_gone() {
        let lease = |seen, hours: u64| Lease {
            owner: Owner::Pod("5d0c".into()),
            digest: Digest::of(b"x"),
            since: unix(SystemTime::now()) - hours * 3600,
            seen,
            with: None,
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
