//! One pull, from a source's name to a published model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Error;
use super::cancel::Cancel;
use super::engine::{Engine, listing_permits};
use super::known::{self, Wanted};
use super::progress::Progress;
use super::room::{Reservation, Wants};
use super::selection::Selection;
use super::transfer::{INDEX_LEN_MAX, Tools, Transfer, blocking};
use super::worker::Wire;
use crate::domain::{Digest, INDEX_FILE_NAMES, Manifest, ManifestEntry, ModelPath, Object, Source, load_order};
use crate::remote::{self, Remote};
use crate::store::{self, Amount, ObjectId, SourceFile, SourceRecord, Store};

/// How often a source is listed anew because objects changed under the pull.
const LISTINGS_MAX: u32 = 4;
/// While there is no room: how long in all, and for how long at a time, the end of some use is waited for,
/// and how long after it, as uses often end together.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
const ROOM_QUIET: Duration = Duration::from_secs(3);
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// What to pull, and where to.
#[derive(Debug)]
pub struct Pull {
    /// The store that keeps it, and what this pull shares with others.
    pub engine: Arc<Engine>,
    /// The source's origin.
    pub remote: Arc<dyn Remote>,
    /// The source.
    pub source: Source,
    /// Which of its files.
    pub selection: Selection,
    /// Counters, for whoever looks.
    pub progress: Arc<Progress>,
    /// Ends the pull.
    pub cancel: Cancel,
    /// Hears what the source names, once there is room for it and before the first byte moves.
    pub listed: Listed,
}

/// Where a pull says what its source names.
pub type Listed = watch::Sender<Option<Arc<SourceRecord>>>;

/// What a pull did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The model.
    pub manifest: Digest,
    /// Its directory of ordinary files.
    pub tree: PathBuf,
    /// Number of files.
    pub files: usize,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Bytes that crossed the network.
    pub bytes_moved: u64,
    /// Files that were here under this URI and version, or under another proven equal, by proof.
    pub equal_by: BTreeMap<&'static str, usize>,
    /// Files by the origin's checksum they were compared with; `BLAKE3 only` where it has none.
    pub verified: BTreeMap<&'static str, usize>,
    /// Directory markers that the listing had and that are no files.
    pub markers: u64,
    /// Wall time.
    pub elapsed: Duration,
}

/// What a listing takes in memory while it is pulled: its names in some forms, and what is known of
/// each file.
fn memory_of(objects: &[Object]) -> u64 {
    const OF_FILE: u64 = 700;
    objects.iter().map(|object| OF_FILE + 4 * object.key.len() as u64).sum()
}

impl Pull {
    /// Runs to the end.
    ///
    /// # Errors
    /// Every [`Error`]; what arrived before stays and the next pull goes on from there.
    pub async fn run(&self) -> Result<Outcome, Error> {
        let started = Instant::now();
        let stop = Cancel::default();
        let (remote, progress) = (Arc::clone(&self.remote), Arc::clone(&self.progress));
        let wire = Arc::new(Wire::new(&self.engine, remote, progress, stop.clone()));
        let mut tools = Tools::new(wire, &self.engine);
        let hold = Arc::clone(&tools.hold);
        let mut round = 1;
        let outcome = loop {
            let work = self.resolve_and_transfer(&mut tools);
            // The user's switch ends our own: tasks then flush what they hold and stop.
            let (files, markers) = tokio::select! {
                biased;
                result = async { tokio::pin!(work); tokio::select! {
                    biased;
                    _ = self.cancel.guard(std::future::pending::<()>()) => { stop.cancel(); work.await }
                    result = &mut work => result,
                } } => result.map_err(|error| self.explained(error))?,
            };
            match self.publish(files, markers, started).await {
                // What was here when it was looked up has been found damaged since: it comes again.
                Err(Error::Store(store::Error::Absent(_))) if round < LISTINGS_MAX => round += 1,
                outcome => break outcome.map_err(|error| self.explained(error)),
            }
        };
        // From here on the manifest names what was held.
        drop(hold);
        outcome
    }

    /// A disk that others fill meanwhile says "no space" of both: which it was is seen there.
    fn explained(&self, error: Error) -> Error {
        let is_full = matches!(&error, Error::Store(error @ store::Error::Io { .. }) if error.is_disk_full());
        match self.store().space() {
            Ok(store::Space { inodes: Some(store::Inodes { free: 0, .. }), .. }) if is_full => {
                let path = self.store().view().directory().to_owned();
                store::Error::NoInodes { path, needed: 1, free: 0 }.into()
            }
            _ => error,
        }
    }

    fn store(&self) -> &Arc<Store> {
        self.engine.store()
    }

    async fn resolve_and_transfer(&self, tools: &mut Tools) -> Result<(Vec<Wanted>, u64), Error> {
        let mut changed = String::new();
        for _ in 0..LISTINGS_MAX {
            let listing_now = tools.wire.cancel.guard(self.engine.listings.acquire()).await?;
            let listing = self.list(&tools.wire).await?;
            let permits = listing_permits(memory_of(&listing.objects));
            let _memory = tools.wire.cancel.guard(self.engine.listing_memory.acquire_many(permits)).await?;
            let mut files = known::look_up(tools, &self.source, listing.objects).await?;
            drop(listing_now);
            // With nothing missing there is no turn to wait for.
            let _turn = if files.iter().any(|file| file.have.is_none()) {
                Some(tools.wire.cancel.guard(self.engine.pulls.acquire()).await?)
            } else {
                None
            };
            // What an earlier listing reserved may not be wanted any more.
            tools.reserved = None;
            tools.reserved = Some(Arc::new(self.find_room(&files).await?));
            self.count(&files);
            let moved_on = Transfer::new(tools.clone(), &mut files).run().await?;
            match moved_on.first() {
                None => return Ok((files, listing.markers)),
                Some(&at) => changed = files[at].id.uri.to_string(),
            }
            tracing::warn!(uri = %changed, "the object changed at the origin: listing the source again");
        }
        Err(Error::KeepsChanging { uri: changed, times: LISTINGS_MAX })
    }

    async fn list(&self, wire: &Wire) -> Result<remote::Listing, Error> {
        let mut patience = wire.patience(u64::from(std::process::id()));
        let mut listing = loop {
            match wire.cancel.guard(self.remote.list()).await? {
                Ok(listing) => break listing,
                Err(error) => wire.pause(&mut patience, error).await?,
            }
        };
        wire.note_answer();
        let listed = listing.objects.len();
        listing.objects.retain(|object: &Object| self.selection.takes(&object.path));
        if listing.objects.is_empty() {
            return Err(Error::NothingSelected { source_uri: self.source.to_string(), listed });
        }
        Ok(listing)
    }

    fn record(&self, files: &[Wanted]) -> SourceRecord {
        let mut record = SourceRecord::new(
            self.source.to_string(),
            self.remote.origin().into(),
            self.selection.include().to_vec(),
            self.selection.exclude().to_vec(),
        );
        record.files = files
            .iter()
            .map(|file| SourceFile {
                path: file.object.path.clone(),
                uri: file.id.uri.clone(),
                version: file.object.version.clone(),
                size: file.object.size,
                digest: file.have.as_ref().map(|have| have.digest),
                checked: file.have.as_ref().and_then(|have| have.checked),
            })
            .collect();
        record
    }

    /// Finds room, and where there is none waits a moment while others are ending their use of it.
    async fn find_room(&self, files: &[Wanted]) -> Result<Reservation, Error> {
        let deadline = Instant::now() + ROOM_PATIENCE;
        loop {
            // Before the look: what ends after it is waited for.
            let endings = self.engine.room.endings();
            let refused = match self.reserve_and_announce(files).await {
                Err(Error::NoRoom(shortage)) if shortage.may_pass() => Error::NoRoom(shortage),
                result => return result,
            };
            let Some(mut endings) = endings else { return Err(refused) };
            let quiet = deadline.saturating_duration_since(Instant::now()).min(ROOM_QUIET);
            match self.cancel.guard(tokio::time::timeout(quiet, endings.changed())).await? {
                Ok(Ok(())) => self.cancel.sleep(ROOM_PAUSE).await?,
                // What housekeeping has let go of meanwhile counts, too.
                _ => return self.reserve_and_announce(files).await,
            }
        }
    }

    /// Refuses before the first byte when it cannot fit, and writes down what the source names.
    async fn reserve_and_announce(&self, files: &[Wanted]) -> Result<Reservation, Error> {
        let record = self.record(files);
        let missing: Vec<ObjectId> = files.iter().filter(|f| f.have.is_none()).map(|f| f.id.clone()).collect();
        let (engine, listed) = (Arc::clone(&self.engine), self.listed.clone());
        blocking(move || {
            let store = engine.store();
            store.check_len(&record)?;
            let is_complete = store.is_announced_complete(&record.id());
            let beside = match is_complete {
                // Most often all of it is here. Where it is not, it is a few links and one document.
                Some(true) if missing.is_empty() => Amount::default(),
                _ => store.room_needed_beside(&record, missing.len() as u64),
            };
            let objects = missing.into_iter().map(|id| (id.clone(), store.room_needed(&id))).collect();
            if is_complete == Some(false) {
                // What came for an older listing of it may go. A full disk leaves it as it was.
                let _ = store.announce(&record);
            }
            // Room first: on a full disk there is none for the record either until something went.
            let reserved = engine.room.reserve(store, Wants { objects, beside })?;
            if is_complete != Some(true) {
                store.announce(&record)?;
            }
            listed.send_replace(Some(Arc::new(record)));
            Ok(reserved)
        })
        .await
    }

    fn count(&self, files: &[Wanted]) {
        let sum = |here: bool| {
            files.iter().filter(|f| !here || f.have.is_some()).map(|f| f.object.size).fold(0, u64::saturating_add)
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.progress.files_total.store(number(files.len()), Relaxed);
        self.progress.files_done.store(number(files.iter().filter(|f| f.have.is_some()).count()), Relaxed);
        self.progress.bytes_here.store(sum(true), Relaxed);
        // Bytes moved for files that changed meanwhile count as traffic, not as the model's.
        self.progress.bytes_total.store(sum(false).max(self.progress.bytes_done()), Relaxed);
    }

    async fn publish(&self, files: Vec<Wanted>, markers: u64, started: Instant) -> Result<Outcome, Error> {
        let files = self.in_load_order(files);
        let record = self.record(&files);
        let mut outcome = Outcome {
            manifest: Digest::of(b""),
            tree: PathBuf::new(),
            files: files.len(),
            bytes_total: record.size(),
            bytes_moved: self.progress.bytes_moved.load(Relaxed),
            equal_by: BTreeMap::new(),
            verified: BTreeMap::new(),
            markers,
            elapsed: Duration::ZERO,
        };
        let mut entries = Vec::with_capacity(files.len());
        for file in files {
            let have = file
                .have
                .ok_or_else(|| Error::Defect(format!("`{}` has no digest at the end of its pull", file.id.uri)))?;
            let by = have.checked.map_or("BLAKE3 only", |checked| checked.algorithm());
            *outcome.verified.entry(by).or_default() += 1;
            if let Some(proof) = have.equal_by {
                *outcome.equal_by.entry(proof).or_default() += 1;
                self.store().learn(&store::Known::new(file.id, have.digest, have.checked, &file.object.claims))?;
            }
            entries.push(ManifestEntry { path: file.object.path, size: file.object.size, digest: have.digest });
        }
        let manifest =
            Manifest::new(entries).map_err(|source| remote::Error::BadKey { uri: self.source.to_string(), source })?;
        let store = Arc::clone(self.store());
        let digest = blocking(move || Ok(store.publish(record, &manifest)?)).await?;
        outcome.manifest = digest;
        outcome.tree = self.store().view().tree(&digest);
        outcome.elapsed = started.elapsed();
        Ok(outcome)
    }

    fn in_load_order(&self, mut files: Vec<Wanted>) -> Vec<Wanted> {
        let index = INDEX_FILE_NAMES.iter().find_map(|name| {
            let file = files.iter().find(|file| file.object.path.as_str() == *name)?;
            self.store().view().read_small_blob(&file.have.as_ref()?.digest, INDEX_LEN_MAX)
        });
        let paths: Vec<&ModelPath> = files.iter().map(|file| &file.object.path).collect();
        let order = load_order(&paths, index.as_deref());
        arrange(&mut files, &order);
        files
    }
}

/// Puts the item at `order[n]` at place `n`, without a second copy of them all.
fn arrange<T>(items: &mut [T], order: &[usize]) {
    let mut place_of = vec![usize::MAX; items.len()];
    for (place, at) in order.iter().enumerate().take(items.len()) {
        if let Some(slot) = place_of.get_mut(*at) {
            *slot = place;
        }
    }
    if place_of.contains(&usize::MAX) {
        // Not an order of all of them.
        return;
    }
    for at in 0..items.len() {
        while place_of[at] != at {
            let place = place_of[at];
            items.swap(at, place);
            place_of.swap(at, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_followed_and_what_is_none_changes_nothing() {
        let arranged = |order: &[usize]| {
            let mut items = ['a', 'b', 'c', 'd'];
            arrange(&mut items, order);
            items.iter().collect::<String>()
        };
        assert_eq!(arranged(&[3, 0, 2, 1]), "dacb");
        assert_eq!(arranged(&[1, 2, 3, 0]), "bcda");
        for wrong in [&[0, 1, 2][..], &[0, 0, 1, 2], &[0, 1, 2, 9]] {
            assert_eq!(arranged(wrong), "abcd");
        }
    }
}
