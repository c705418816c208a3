//! What is kept on this node, and what must give way when room is wanted.
//!
//! The only place that evicts. Reservations take turns, so that two pulls are never promised the
//! same bytes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::watch;

use super::book::Book;
use super::ending::{Connections, LOOKS_AT_ONCE, LOOKS_WAITING_MAX};
use super::eviction::{Candidate, Choice, Shares, Snapshot, Stays, Victim};
use super::herald::Herald;
use super::in_pods::{self, Asker, InPods};
use super::lock;
use super::owner::Pods;
use crate::domain::Digest;
use crate::fetch::{self, Ledger, Reservation, Room, Shortage, Wants};
use crate::lanes::Lane;
use crate::store::{self, Amount, Census, Entry, Space, Store};
use crate::telemetry::Metrics;

/// Evictions for one reservation: files that readers have open free nothing, and then the next
/// model has to go.
const ROUNDS_MAX: u32 = 4;

/// For so long it is believed that the files of a complete model are what they were, unless some of
/// them are known to be damaged: others may take files away, or cut them short.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Inodes have marks of their own where those of bytes are lower: kubelet evicts pods at 95 % of them,
/// and there is nothing to be had from a disk that others fill with small files.
const INODES_HIGH: u8 = 90;
const INODES_LOW: u8 = 85;

/// How full the file system may be, in percent of what an unprivileged user can write.
#[derive(Debug, Clone, Copy)]
pub struct Watermarks {
    /// Beyond this, models are evicted, and no pull begins.
    pub high: u8,
    /// Eviction goes on down to here.
    pub low: u8,
}

impl Watermarks {
    /// What is in use at the high mark.
    #[must_use]
    pub fn high(&self, space: &Space) -> Amount {
        space.percent(self.high, self.high_of_inodes())
    }

    /// What is in use at the low mark.
    #[must_use]
    pub fn low(&self, space: &Space) -> Amount {
        space.percent(self.low, self.low.max(INODES_LOW))
    }

    /// The high mark of inodes.
    #[must_use]
    pub fn high_of_inodes(&self) -> u8 {
        self.high.max(INODES_HIGH)
    }
}

/// A complete model as it was last found.
#[derive(Debug, Clone)]
pub struct Resident {
    /// The id of its source's record.
    pub record_id: String,
    /// The name of what the source named.
    pub listing: Digest,
    /// The model.
    pub digest: Digest,
    /// Its directory.
    pub tree: PathBuf,
    /// Files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// What was known to be damaged when it was found complete.
    damage: Option<u64>,
    /// When every file of it was looked at.
    looked: Instant,
}

/// Complete models by their source's record id: a warm hit reads no manifest.
#[derive(Debug, Default)]
struct Known {
    models: HashMap<String, Arc<Resident>>,
    /// How often something was forgotten: what was looked up before that is not noted after it.
    forgotten: u64,
}

/// What is kept, and the rules for it.
#[derive(Debug)]
pub struct Residency {
    pub(super) store: Arc<Store>,
    pub(super) watermarks: Watermarks,
    pub(super) pods: Arc<Pods>,
    /// Where it is looked whether owners are there.
    pub(super) looks: Lane,
    pub(super) ledger: Arc<Ledger>,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) asker: Asker,
    pub(super) connections: Connections,
    known: Mutex<Known>,
    /// Record ids of sources that somebody waits for.
    moving: Mutex<HashMap<String, u32>>,
    /// One decision about room at a time.
    turn: Mutex<()>,
    waits_for_room: bool,
    metrics: Arc<Metrics>,
    herald: OnceLock<Arc<dyn Herald>>,
    /// Something has come or gone, or stands otherwise.
    changes: watch::Sender<()>,
}

impl Residency {
    /// Reads leases and pins of an earlier life.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn open(
        store: Arc<Store>,
        watermarks: Watermarks,
        pods: Pods,
        waits_for_room: bool,
        metrics: Arc<Metrics>,
    ) -> Result<Self, store::Error> {
        let mut book = Book::open(&store)?;
        if pods.have_mounts() {
            book.in_pods = InPods::unasked();
        }
        Ok(Self {
            store,
            watermarks,
            pods: Arc::new(pods),
            looks: Lane::new("pods", LOOKS_AT_ONCE, LOOKS_WAITING_MAX),
            ledger: Arc::default(),
            book: Arc::new(Mutex::new(book)),
            asker: Asker::default(),
            connections: Connections::default(),
            known: Mutex::default(),
            moving: Mutex::default(),
            turn: Mutex::default(),
            waits_for_room,
            metrics,
            herald: OnceLock::new(),
            changes: watch::Sender::new(()),
        })
    }

    pub(super) fn set_herald(&self, herald: Arc<dyn Herald>) {
        let _ = self.herald.set(herald);
    }

    /// Says outside that models are about to go: they are marked as leaving, and still here. Not
    /// under the lock of the book, which is asked meanwhile.
    pub(super) fn herald(&self, record_ids: &[String]) {
        if let Some(herald) = self.herald.get().filter(|_| !record_ids.is_empty()) {
            herald.leaving(record_ids);
        }
    }

    /// Tells those who follow that something has changed.
    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Leases and pins.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// Marks a source as wanted until the value is dropped.
    pub(super) fn moving(self: &Arc<Self>, record_id: &str) -> Marked {
        *lock(&self.moving).entry(record_id.to_owned()).or_default() += 1;
        Marked { residency: Arc::clone(self), record_id: record_id.to_owned() }
    }

    /// Ends the marks of models that are leaving with the value, whatever came of it: what is marked for
    /// ever could never be leased again.
    pub(super) const fn leaving<'a>(&'a self, digests: &'a [Digest]) -> Leaving<'a> {
        Leaving { residency: self, digests }
    }

    /// Whether somebody waits for a source.
    pub(super) fn is_moving(&self, record_id: &str) -> bool {
        lock(&self.moving).contains_key(record_id)
    }

    /// The complete model of a source, if it is here. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn resident(&self, record_id: &str) -> Result<Option<Arc<Resident>>, store::Error> {
        let (known, forgotten) = {
            let known = lock(&self.known);
            (known.models.get(record_id).cloned(), known.forgotten)
        };
        if let Some(known) = known
            && known.looked.elapsed() < LOOK_AGAIN
            && self.is_still(&known)
        {
            return Ok(Some(known));
        }
        let view = self.store.view();
        // Before the look: what is found to be damaged meanwhile counts.
        let looked = Instant::now();
        let damage = view.damage_stamp();
        let Some(record) = view.source(record_id)? else { return Ok(None) };
        let Some(digest) = record.manifest else { return Ok(None) };
        let manifest = match view.manifest(&digest) {
            Err(store::Error::Absent(_) | store::Error::Damaged { .. }) => return Ok(None),
            other => other?,
        };
        if !view.is_complete(&manifest, &digest) {
            return Ok(None);
        }
        let resident = Arc::new(Resident {
            record_id: record_id.to_owned(),
            listing: record.listing(),
            digest,
            tree: view.tree(&digest),
            files: manifest.files().len() as u64,
            bytes: manifest.size(),
            damage,
            looked,
        });
        let mut known = lock(&self.known);
        if known.forgotten == forgotten {
            known.models.insert(record_id.to_owned(), Arc::clone(&resident));
        }
        drop(known);
        Ok(Some(resident))
    }

    /// Whether a model that was found complete still is: it has not been evicted, and nothing else is
    /// known to be damaged than was then, by whichever process. Blocking.
    pub(super) fn is_still(&self, resident: &Resident) -> bool {
        let damage = self.store.view().damage_stamp();
        damage.is_some() && damage == resident.damage && resident.tree.is_dir()
    }

    /// What was known of a source is looked up anew.
    pub(super) fn forget_known_of(&self, record_id: &str) {
        let mut known = lock(&self.known);
        known.models.remove(record_id);
        known.forgotten += 1;
    }

    /// What was known of models is looked up anew.
    pub fn forget_known(&self) {
        let mut known = lock(&self.known);
        known.models.clear();
        known.forgotten += 1;
    }

    /// Counts the store, as the choice sees it. Objects of `wanted` are on their way.
    fn look(&self, wanted: &HashSet<String>) -> Result<(Snapshot, Census), store::Error> {
        // What moves while it is counted may be another model by the time it has been.
        let moving: HashSet<String> = lock(&self.moving).keys().cloned().collect();
        let census = self.store.census()?;
        Ok((self.snapshot(&census, wanted, &moving), census))
    }

    fn snapshot(&self, census: &Census, wanted: &HashSet<String>, moved: &HashSet<String>) -> Snapshot {
        let book = self.book();
        let moving = lock(&self.moving);
        let leased: HashSet<Digest> = book.leases().map(|(_, lease)| lease.digest).collect();
        let is_used = |entry: &Entry| {
            let mut whole = entry.manifest.iter().chain(&entry.listings);
            whole.any(|digest| leased.contains(digest) || book.in_pods.may_have(digest))
                || entry.blobs.iter().chain(&entry.listings).any(|part| book.open_parts().contains_key(part))
        };
        let mut kept_partials: HashSet<String> = HashSet::new();
        let mut snapshot = Snapshot { candidates: Vec::new(), blobs: census.blobs.clone() };
        for entry in &census.entries {
            let pinned = entry.sources.iter().any(|(id, ..)| book.is_pinned(id))
                || entry.manifest.is_some_and(|digest| book.is_pinned(&digest.to_string()));
            let stays = if pinned {
                Some(Stays::Pinned)
            } else if is_used(entry) {
                kept_partials.extend(entry.partials.iter().cloned());
                Some(Stays::Leased)
            } else if entry.manifest.is_none() && entry.sources.is_empty() {
                // A kept listing goes when nobody reads it any more, and then what it has are strays.
                Some(Stays::Leased)
            } else if entry.sources.iter().any(|(id, ..)| moving.contains_key(id) || moved.contains(id)) {
                Some(Stays::Moving)
            } else {
                None
            };
            let victim = match (entry.manifest, entry.sources.first()) {
                (Some(digest), _) => Victim::Model(digest),
                (None, Some((id, ..))) => Victim::Unfinished(id.clone()),
                (None, None) => Victim::Strays,
            };
            let own = Amount::new(0, entry.inodes);
            // A model that no source names any more was last used before all others.
            let last_used = entry.sources.iter().map(|(.., used)| *used).max().unwrap_or(UNIX_EPOCH);
            snapshot.candidates.push(Candidate { victim, blobs: entry.blobs.clone(), own, last_used, stays });
        }
        // What a pull has found here frees nothing, whichever model goes.
        snapshot.candidates.push(Candidate {
            victim: Victim::Strays,
            blobs: census.held.clone(),
            own: Amount::default(),
            last_used: UNIX_EPOCH,
            stays: Some(Stays::Moving),
        });
        if census.strays != Amount::default() {
            snapshot.candidates.push(Candidate {
                victim: Victim::Strays,
                blobs: Vec::new(),
                own: census.strays,
                last_used: UNIX_EPOCH,
                stays: None,
            });
        }
        for partial in &census.partials {
            snapshot.candidates.push(Candidate {
                victim: Victim::Partial(partial.file_id.clone()),
                blobs: Vec::new(),
                own: partial.amount(),
                last_used: partial.modified,
                stays: (wanted.contains(&partial.file_id) || kept_partials.contains(&partial.file_id))
                    .then_some(Stays::Moving),
            });
        }
        snapshot
    }

    /// What is here by what can be done with it, and what the store holds in all. Reads the whole store.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn shares(&self) -> Result<(Shares, Census), store::Error> {
        let (snapshot, census) = self.look(&self.ledger.file_ids().into_iter().collect())?;
        Ok((snapshot.shares(), census))
    }

    /// Evicts what a choice names, as far as it may still go. Blocking.
    fn evict(&self, census: &Census, choice: &Choice) -> Result<(), store::Error> {
        let (mut records, mut manifests, mut partials) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut book = self.book();
            for victim in &choice.victims {
                match victim {
                    Victim::Model(digest) => {
                        let (mut ids, mut parts): (Vec<String>, Vec<Digest>) = (Vec::new(), Vec::new());
                        for entry in census.entries.iter().filter(|entry| entry.manifest == Some(*digest)) {
                            ids.extend(entry.sources.iter().map(|(id, ..)| id.clone()));
                            parts.extend(entry.blobs.iter().chain(&entry.listings));
                        }
                        let moving = ids.iter().any(|id| lock(&self.moving).contains_key(id));
                        // Leased, opened, pinned or asked for since the census was taken.
                        if moving || !book.begin_leaving(*digest, &ids, &parts) {
                            continue;
                        }
                        manifests.push(*digest);
                        records.extend(ids);
                    }
                    Victim::Unfinished(id) => {
                        let entries =
                            census.entries.iter().filter(|entry| entry.sources.iter().any(|(of, ..)| of == id));
                        let mut listings = entries.flat_map(|entry| &entry.listings);
                        let is_used = listings.any(|listing| book.is_used(listing));
                        if !lock(&self.moving).contains_key(id) && !book.is_pinned(id) && !is_used {
                            records.push(id.clone());
                        }
                    }
                    Victim::Partial(file_id) => partials.push(file_id),
                    // Whatever is forgotten, these go along.
                    Victim::Strays => {}
                }
            }
        }
        let leaving = self.leaving(&manifests);
        self.herald(&records);
        self.forget_known();
        let gone = self.let_go(&records, &manifests, &partials);
        drop(leaving);
        self.changed();
        let (named, freed) = gone?;
        for digest in &manifests {
            tracing::info!(model = %digest.short(), "evicted");
        }
        tracing::info!(models = manifests.len(), bytes_named = named, bytes_freed = freed, "made room");
        let each = freed / (manifests.len() as u64).max(1);
        manifests.iter().for_each(|_| self.metrics.evicted(each));
        Ok(())
    }

    /// Takes the names away; bytes that they named, and bytes that came free.
    fn let_go(
        &self,
        records: &[String],
        manifests: &[Digest],
        partials: &[&String],
    ) -> Result<(u64, u64), store::Error> {
        let before = self.store.space()?.free;
        for file_id in partials {
            self.store.drop_partial(file_id)?;
        }
        let named = self.store.forget(records, manifests)?;
        Ok((named, self.store.space()?.free.saturating_sub(before)))
    }

    /// Evicts down to the low mark if the file system is beyond the high one. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn keep_below(&self) -> Result<Pressure, store::Error> {
        let _turn = lock(&self.turn);
        if self.store.unwritable().is_some() {
            return Ok(Pressure::None);
        }
        let mut rounds = 0;
        loop {
            let space = self.store.space()?;
            let used = space.used() + self.ledger.amount();
            let over = used.less(self.watermarks.high(&space));
            if over == Amount::default() {
                return Ok(Pressure::None);
            }
            let enough = used.less(self.watermarks.low(&space)).of_those(over);
            // Large models are no price for the few inodes they free, unless that is enough.
            let least = if over.bytes > 0 { Amount::default() } else { over };
            self.see_pods(in_pods::PATIENCE);
            let (snapshot, census) = self.look(&self.ledger.file_ids().into_iter().collect())?;
            let choice = snapshot.choose(least, enough).unwrap_or_default();
            // What readers have open frees nothing, however much is named.
            if !choice.frees.helps(over) || rounds == ROUNDS_MAX {
                return Ok(Pressure::Stuck { over });
            }
            self.evict(&census, &choice)?;
            rounds += 1;
        }
    }

    /// What is known of the sources of a model.
    pub(super) fn known_of(&self, model: &Digest) -> Vec<Arc<Resident>> {
        lock(&self.known).models.values().filter(|resident| resident.digest == *model).cloned().collect()
    }
}

/// How the file system stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Below the high mark.
    None,
    /// Beyond it, and nothing may go, or what went has freed too little.
    Stuck {
        /// By so much.
        over: Amount,
    },
}

/// Models that are leaving.
#[derive(Debug)]
pub(super) struct Leaving<'a> {
    residency: &'a Residency,
    digests: &'a [Digest],
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut book = self.residency.book();
        self.digests.iter().for_each(|digest| book.end_leaving(digest));
    }
}

/// A source that somebody waits for.
#[derive(Debug)]
pub(super) struct Marked {
    residency: Arc<Residency>,
    record_id: String,
}

impl Drop for Marked {
    fn drop(&mut self) {
        let mut moving = lock(&self.residency.moving);
        let count = moving.get_mut(&self.record_id).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if count > 0 {
            return;
        }
        moving.remove(&self.record_id);
        // Who holds the lock of the book takes this one.
        drop(moving);
        self.residency.book().tell_ended();
    }
}

impl Room for Residency {
    fn endings(&self) -> Option<watch::Receiver<u64>> {
        self.waits_for_room.then(|| self.book().endings())
    }

    fn reserve(&self, store: &Store, wants: Wants) -> Result<Reservation, fetch::Error> {
        store.check_writable()?;
        let _turn = lock(&self.turn);
        let needed = self.ledger.additional(&wants);
        let mut wanted: HashSet<String> = wants.objects.iter().map(|(id, _)| id.file_id()).collect();
        for round in 0..=ROUNDS_MAX {
            let space = store.space()?;
            let promised = self.ledger.amount();
            let below_mark = self.watermarks.high(&space).less(space.used() + promised);
            let free = below_mark.min(space.available().less(promised));
            if free.covers(needed) {
                return Ok(self.ledger.promise(wants));
            }
            wanted.extend(self.ledger.file_ids());
            self.see_pods(in_pods::PATIENCE);
            let (snapshot, census) = self.look(&wanted)?;
            let short = needed.less(free);
            let after = (space.used() + promised + needed).of_those(short);
            // Beyond the mark already, `free` is 0, and what is beyond must go too.
            let least = short.max(after.less(self.watermarks.high(&space)));
            // Once something has to go, enough goes that the next pull need not evict again.
            let enough = after.less(self.watermarks.low(&space)).max(least);
            match snapshot.choose(least, enough) {
                Some(choice) if round < ROUNDS_MAX => self.evict(&census, &choice)?,
                _ => {
                    let shares = snapshot.shares();
                    return Err(fetch::Error::NoRoom(Box::new(Shortage {
                        path: store.view().directory().to_owned(),
                        needed,
                        free,
                        high_watermarks: Some((self.watermarks.high, self.watermarks.high_of_inodes())),
                        evictable: Some(shares.evictable),
                        pinned: shares.pinned,
                        leased: shares.leased,
                    })));
                }
            }
        }
        Err(fetch::Error::Defect("a decision about room did not end".to_owned()))
    }
}
