//! How use ends: leases that are given back, and those whose owners are gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;

use super::book::Lease;
use super::owner::{Life, Owner};
use super::residency::{Residency, Resident};
use super::{blocking, lock};
use crate::domain::Digest;
use crate::report::Failure;
use crate::store;

/// Owners that are looked for at once, and those that wait for it.
pub(super) const LOOKS_AT_ONCE: usize = 4;
pub(super) const LOOKS_WAITING_MAX: usize = 4_096;
/// How long one look may take, and all those of a round.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
const ROUND_PATIENCE: Duration = Duration::from_secs(10);

/// Connections that have leases, for as long as they are there.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<HashSet<u64>>);

/// A connection that is there.
#[derive(Debug)]
pub(super) struct Connected {
    residency: Arc<Residency>,
    number: u64,
}

impl Connected {
    pub fn owner(&self) -> Owner {
        Owner::Connection(self.number)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        lock(&self.residency.connections.0).remove(&self.number);
        let owner = self.owner();
        if let Err(error) = self.residency.release_all(|of| *of == owner) {
            tracing::warn!(%error, "the leases of a connection could not be ended");
        }
    }
}

impl Residency {
    /// Counts a connection among those that are there, until the value is dropped. All its leases end
    /// with it, whatever they are on by then.
    pub(super) fn connected(self: &Arc<Self>, number: u64) -> Connected {
        lock(&self.connections.0).insert(number);
        Connected { residency: Arc::clone(self), number }
    }

    /// Whether an owner is there, as far as can be seen in a few seconds.
    pub(super) async fn life(&self, owner: &Owner) -> Life {
        if let Owner::Connection(number) = owner {
            return if lock(&self.connections.0).contains(number) { Life::Alive } else { Life::Gone };
        }
        let (pods, owner) = (Arc::clone(&self.pods), owner.clone());
        self.looks.call(LOOK_PATIENCE, move |left| owner.life(&pods, left)).await.unwrap_or(Life::Unseen)
    }

    /// Which of some owners are there. Those that were not looked at in time are not seen.
    pub(super) async fn lives(&self, owners: impl IntoIterator<Item = Owner>) -> HashMap<Owner, Life> {
        let owners: HashSet<Owner> = owners.into_iter().collect();
        let looked = futures::stream::iter(owners).map(|owner| async {
            let life = self.life(&owner).await;
            (owner, life)
        });
        let looked = looked.buffer_unordered(LOOKS_AT_ONCE);
        let lives = looked.take_until(tokio::time::sleep(ROUND_PATIENCE));
        lives.collect().await
    }

    /// Ends leases whose owner is gone, and notes their models as used until now.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end_leases(self: &Arc<Self>) -> Result<usize, Failure> {
        let residency = Arc::clone(self);
        let leases: Vec<Lease> =
            blocking(move || Ok(residency.book().leases().map(|(_, lease)| lease.clone()).collect())).await?;
        let lives = self.lives(leases.iter().map(|lease| lease.owner.clone())).await;
        let residency = Arc::clone(self);
        blocking(move || Ok(residency.end_leases_of(&leases, &lives)?)).await
    }

    /// Ends those of some leases that are over and still as they were found: to look took a while, and
    /// who has asked again meanwhile keeps theirs.
    fn end_leases_of(&self, leases: &[Lease], lives: &HashMap<Owner, Life>) -> Result<usize, store::Error> {
        let now = SystemTime::now();
        let life = |lease: &Lease| lives.get(&lease.owner).copied().unwrap_or(Life::Unseen);
        let over: Vec<&Lease> = leases.iter().filter(|lease| lease.has_ended(life(lease), now)).collect();
        if over.is_empty() { Ok(0) } else { self.release(|_, lease| over.contains(&lease)) }
    }

    /// Forgets listings that nobody reads any more and trees that nobody has, writes down who uses what
    /// where the disk did not take it before, and has it looked again what pods have. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn tidy(&self) -> Result<(), store::Error> {
        self.see_pods_again();
        if let Err(error) = self.store.write_notes() {
            // It was complained of when it was tried first.
            tracing::debug!(%error, "who uses what is not written down yet");
        }
        for listing in self.store.view().listings()? {
            // Under the lock: a lease of it could be taken otherwise before it is gone.
            let book = self.book();
            if !book.is_used(&listing) {
                self.store.drop_listing(&listing)?;
            }
        }
        for tree in self.store.stray_trees()? {
            let book = self.book();
            if !book.is_used(&tree) {
                self.store.drop_stray_tree(&tree)?;
            }
        }
        Ok(())
    }

    /// Ends every lease of some owners. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`]: they have ended, and what is written of them is removed later.
    pub fn release_all(&self, of: impl Fn(&Owner) -> bool) -> Result<usize, store::Error> {
        self.release(|_, lease| of(&lease.owner))
    }

    /// Ends those leases that `is_over` says, and what their owners were given with them; how many that
    /// were. Blocking.
    ///
    /// # Errors
    /// As [`Self::release_all`].
    pub(super) fn release(&self, is_over: impl Fn(&str, &Lease) -> bool) -> Result<usize, store::Error> {
        let digests = self.book().release(&self.store, is_over)?;
        digests.iter().for_each(|digest| self.touch(digest));
        Ok(digests.len())
    }

    /// It was used until now.
    fn touch(&self, model: &Digest) {
        let known: Vec<Arc<Resident>> = self.known_of(model);
        known.iter().for_each(|resident| self.store.view().touch_id(&resident.record_id));
    }
}
