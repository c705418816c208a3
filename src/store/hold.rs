//! Blobs that a pull needs and that no published manifest names yet.
//!
//! A blob is held before it is looked for or sealed, and whoever removes blobs asks here in the
//! same breath: so what a pull has found cannot be evicted before it is published.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::Digest;

/// How many pulls hold each blob.
#[derive(Debug, Default)]
pub(super) struct Holds {
    counts: Mutex<HashMap<Digest, u32>>,
}

impl Holds {
    fn counts(&self) -> MutexGuard<'_, HashMap<Digest, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody holds the blob now.
    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.counts().contains_key(digest)
    }

    /// Runs `remove` unless somebody holds the blob; nobody can begin to hold it meanwhile.
    pub(super) fn unless_held<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let counts = self.counts();
        if counts.contains_key(digest) { None } else { Some(remove()) }
    }
}

/// What one pull holds, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<Holds>,
    mine: Mutex<HashSet<Digest>>,
}

impl Hold {
    pub(super) fn new(holds: &Arc<Holds>) -> Self {
        Self { holds: Arc::clone(holds), mine: Mutex::default() }
    }

    /// Keeps the blob from being removed; it need not be there yet.
    pub fn add(&self, digest: Digest) {
        if self.mine.lock().unwrap_or_else(PoisonError::into_inner).insert(digest) {
            *self.holds.counts().entry(digest).or_default() += 1;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mine = std::mem::take(self.mine.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut counts = self.holds.counts();
        for digest in mine {
            if let Some(count) = counts.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_free_when_its_last_holder_is_gone() {
        let holds = Arc::new(Holds::default());
        let digest = Digest::of(b"x");
        let (one, two) = (Hold::new(&holds), Hold::new(&holds));
        one.add(digest);
        one.add(digest);
        two.add(digest);
        assert_eq!(holds.unless_held(&digest, || ()), None);
        drop(one);
        assert_eq!(holds.unless_held(&digest, || ()), None);
        drop(two);
        assert_eq!(holds.unless_held(&digest, || ()), Some(()));
    }
}
