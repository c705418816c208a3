//! The volumes of this node: what is noted of each, and whose turn it is to change it.
//!
//! Whoever mounts a volume, or takes it away, has its turn from the look at what is noted to the last
//! change. The notes are in memory and in the store; no lock on them is held while the disk is waited
//! for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use super::volume::{Asked, Pod};
use crate::domain::Digest;
use crate::lanes::Lane;
use crate::report::text;
use crate::store::{self, Shelf, Store};

/// More volumes than the pods of a node have.
const VOLUMES_MAX: usize = 4096;
/// Volumes that have ended and are still noted.
const ENDED_MAX: usize = 1_024;
/// Notes are written one after another, so that the last word on a volume is the last one written.
const WRITES_MAX: usize = 1;
const WAITING_MAX: usize = 1_024;
/// How long the disk may take over a note. After that it is as if it were full.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);

/// A volume that is mounted, or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    pub target: PathBuf,
    pub pod: Pod,
    pub source: String,
    /// Include and exclude globs; nothing in notes of earlier versions.
    #[serde(default)]
    pub selection: Option<(Vec<String>, Vec<String>)>,
    /// The model; of one that was read while it arrived, its listing.
    pub digest: Digest,
    pub arriving: bool,
    /// Seconds since 1970.
    pub since: u64,
    /// Its end has begun: it is not mounted again, and what is mounted there nevertheless is taken away.
    /// What has ended stays noted until it was seen that nothing is mounted there.
    #[serde(default)]
    pub ended: bool,
}

impl Volume {
    /// Whether it is what is asked for: of the same pod, and of the same source and selection.
    pub fn is(&self, asked: &Asked) -> bool {
        let same = |(include, exclude): &(Vec<String>, Vec<String>)| {
            include == asked.selection.include() && exclude == asked.selection.exclude()
        };
        self.pod == asked.pod
            && self.source == asked.source.to_string()
            && self.selection.as_ref().is_none_or(same)
            && self.target == asked.target
    }
}

/// What is noted under a name.
#[derive(Debug, Clone)]
pub(super) struct Noted {
    /// Of the note, and in the owner of the lease.
    pub id: String,
    pub volume: Volume,
}

/// All volumes of this node by their targets, as they are noted in the store.
#[derive(Debug)]
pub(super) struct Notes {
    store: Arc<Store>,
    known: Mutex<HashMap<PathBuf, Noted>>,
    disk: Lane,
    turns: Turns,
}

impl Notes {
    /// Those of an earlier life. Blocking.
    pub fn open(store: &Arc<Store>) -> Result<Self, store::Error> {
        let mut notes = store.notes::<Volume>(Shelf::Volumes)?;
        // Those that have ended are the first to be too many.
        notes.sort_by_key(|(_, volume)| (volume.ended, std::cmp::Reverse(volume.since)));
        Ok(Self {
            store: Arc::clone(store),
            known: Mutex::new(by_target(notes.into_iter().take(VOLUMES_MAX))),
            disk: Lane::new("csi-notes", WRITES_MAX, WAITING_MAX),
            turns: Turns::default(),
        })
    }

    /// Waits until nobody else decides on what is at a target.
    pub async fn turn(&self, target: &Path) -> Turn<'_> {
        self.turns.take(target).await
    }

    /// What is noted of a target now, unless it has ended.
    pub fn at(&self, target: &Path) -> Option<Noted> {
        lock(&self.known).get(target).filter(|noted| !noted.volume.ended).cloned()
    }

    /// All there are now.
    pub fn all(&self) -> Vec<Noted> {
        lock(&self.known).values().filter(|noted| !noted.volume.ended).cloned().collect()
    }

    /// Those that have ended, the oldest first.
    pub fn ended(&self) -> Vec<Noted> {
        let known = lock(&self.known);
        let mut ended: Vec<Noted> = known.values().filter(|noted| noted.volume.ended).cloned().collect();
        drop(known);
        ended.sort_by_key(|noted| noted.volume.since);
        ended
    }

    /// Notes a volume. A disk that is full or hangs is no reason to keep a model that is here from a
    /// pod: then the store writes it down as soon as the disk takes it.
    ///
    /// # Errors
    /// Why it could not be written down, where what is written says that a volume there has ended: the
    /// next daemon would take it from its pod.
    pub async fn note(&self, _turn: &Turn<'_>, id: String, volume: Volume) -> Result<(), String> {
        let noted = Noted { id: id.clone(), volume: volume.clone() };
        let before = lock(&self.known).insert(volume.target.clone(), noted);
        let (pod, target) = (volume.pod.name.clone(), volume.target.clone());
        let (store, ended) = (Arc::clone(&self.store), before.clone().filter(|before| before.volume.ended));
        let write = move || {
            store.note(Shelf::Volumes, &id, &volume)?;
            match before.filter(|before| before.id != id) {
                Some(before) => store.remove_note(Shelf::Volumes, &before.id),
                None => Ok(()),
            }
        };
        let Err(why) = self.write(write).await else { return Ok(()) };
        if let Some(ended) = ended {
            lock(&self.known).insert(target, ended);
            return Err(why);
        }
        tracing::warn!(pod, why, "a volume could not be written down: it is tried again");
        Ok(())
    }

    /// Notes that a volume ends, before anything of it is taken away; what was noted until now.
    pub async fn end(&self, _turn: &Turn<'_>, target: &Path) -> Option<Noted> {
        let noted = self.at(target)?;
        let ended = Volume { ended: true, since: text::unix(SystemTime::now()), ..noted.volume.clone() };
        let kept = Noted { id: noted.id.clone(), volume: ended.clone() };
        lock(&self.known).insert(target.to_owned(), kept.clone());
        let (store, id) = (Arc::clone(&self.store), noted.id.clone());
        if let Err(why) = self.write(move || store.note(Shelf::Volumes, &id, &ended)).await {
            tracing::debug!(why, "that a volume has ended could not be written down");
            // A disk that takes nothing may still forget. If not, it says that the volume is there.
            self.remove(&kept).await;
        }
        for old in self.ended().iter().rev().skip(ENDED_MAX) {
            self.remove(old).await;
        }
        Some(noted)
    }

    /// Forgets what is noted of a target.
    pub async fn forget(&self, _turn: &Turn<'_>, target: &Path) {
        let noted = lock(&self.known).get(target).cloned();
        let Some(noted) = noted else { return };
        if !self.remove(&noted).await && noted.volume.ended {
            // The next daemon would read that: whoever mounts it again has to know.
            let mut known = lock(&self.known);
            if known.len() < VOLUMES_MAX {
                known.entry(target.to_owned()).or_insert(noted);
            }
        }
    }

    /// Whether it is gone.
    async fn remove(&self, noted: &Noted) -> bool {
        let (store, id) = (Arc::clone(&self.store), noted.id.clone());
        {
            let mut known = lock(&self.known);
            if known.get(&noted.volume.target).is_some_and(|now| now.volume == noted.volume) {
                known.remove(&noted.volume.target);
            }
        }
        let removed = self.write(move || store.remove_note(Shelf::Volumes, &id)).await;
        if let Err(why) = &removed {
            tracing::warn!(why, "what is noted of a volume could not be removed");
        }
        removed.is_ok()
    }

    async fn write(&self, write: impl FnOnce() -> Result<(), store::Error> + Send + 'static) -> Result<(), String> {
        match self.disk.look(WRITE_PATIENCE, write).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(missed) => Err(format!("the disk of the store: {missed}")),
        }
    }
}

/// One for each target: the first of several. What has ended under an older name does not stand for
/// what is there.
fn by_target(notes: impl Iterator<Item = (String, Volume)>) -> HashMap<PathBuf, Noted> {
    let mut known = HashMap::new();
    for (id, volume) in notes {
        known.entry(volume.target.clone()).or_insert(Noted { id, volume });
    }
    known
}

/// Whose turn it is, by target.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>);

/// Nobody else changes what is at a target meanwhile.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a Turns,
    target: PathBuf,
    taken: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    async fn take(&self, target: &Path) -> Turn<'_> {
        let one = Arc::clone(lock(&self.0).entry(target.to_owned()).or_default());
        // Before the wait, so that whoever loses patience tidies up too.
        let mut turn = Turn { of: self, target: target.to_owned(), taken: None };
        turn.taken = Some(one.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.taken.take());
        let mut all = lock(&self.of.0);
        if all.get(&self.target).is_some_and(|one| Arc::strong_count(one) == 1) {
            all.remove(&self.target);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what `tokio::test` makes of a test enters a runtime")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_follow_each_other_and_leave_nothing() {
        let turns = Turns::default();
        let (one, other) = (Path::new("/a"), Path::new("/b"));
        let first = turns.take(one).await;
        drop(turns.take(other).await);
        let moment = Duration::from_millis(5);
        assert!(tokio::time::timeout(moment, turns.take(one)).await.is_err());
        assert_eq!(lock(&turns.0).len(), 1);
        let second = async { drop(turns.take(one).await) };
        let end = async { drop(first) };
        tokio::join!(second, end);
        assert!(lock(&turns.0).is_empty());
    }
}
