//! Objects that somebody reads while they arrive.
//!
//! A reader takes an [`Arrival`], reads what is there, says what it waits for ([`Arrival::want`])
//! and hears of every step. Transfers look at what is wanted and move that first.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Notify, broadcast, watch};

use super::lock;
use crate::domain::{ChunkIndex, Grid};
use crate::store::{self, Left, ObjectId, Partial, Store};

/// All objects of a process that somebody fills or reads.
#[derive(Debug)]
pub struct Arrivals {
    known: Mutex<HashMap<ObjectId, Weak<Arrival>>>,
    /// Moves whenever somebody wants something.
    calls: watch::Sender<u64>,
    /// Objects whose bytes were not what they should be.
    discards: broadcast::Sender<ObjectId>,
}

/// Discards that a slow listener may be behind.
const DISCARDS_MAX: usize = 256;

impl Default for Arrivals {
    fn default() -> Self {
        let discards = broadcast::Sender::new(DISCARDS_MAX);
        Self { known: Mutex::default(), calls: watch::Sender::new(0), discards }
    }
}

/// One object, while it arrives.
#[derive(Debug)]
pub struct Arrival {
    arrivals: Arc<Arrivals>,
    id: ObjectId,
    state: Mutex<State>,
    /// Chunks that are waited for: looked at for every slice that comes, so without the lock.
    waits: AtomicU32,
    /// Whether readers are being told that what they were given was wrong.
    taken_back: AtomicBool,
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Bytes,
    /// How many wait for each chunk.
    wanted: BTreeMap<ChunkIndex, u32>,
    waiting: HashMap<u64, Waiting>,
    next: u64,
}

/// Somebody who waits, and for which bytes.
#[derive(Debug)]
struct Waiting {
    range: Range<u64>,
    arrived: Arc<Notify>,
}

/// Where the bytes are, as far as they are here.
#[derive(Debug, Clone, Default)]
enum Bytes {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// Nothing is here.
    None,
    /// An earlier process left them, and nobody in this one has gone on with them yet.
    Left(Arc<Left>),
    /// This process has them, whether it fills them now or not.
    Open(Arc<Partial>),
}

impl Arrivals {
    /// The arrival of an object, the same for all who ask while somebody has it.
    #[must_use]
    pub fn of(self: &Arc<Self>, id: &ObjectId) -> Arc<Arrival> {
        let mut known = lock(&self.known);
        if let Some(arrival) = known.get(id).and_then(Weak::upgrade) {
            return arrival;
        }
        let arrival = Arc::new(Arrival {
            arrivals: Arc::clone(self),
            id: id.clone(),
            state: Mutex::default(),
            waits: AtomicU32::new(0),
            taken_back: AtomicBool::new(false),
            news: watch::Sender::new(0),
        });
        known.insert(id.clone(), Arc::downgrade(&arrival));
        arrival
    }

    /// Hears of objects whose bytes were not what they should be, and come again.
    #[must_use]
    pub fn discards(&self) -> broadcast::Receiver<ObjectId> {
        self.discards.subscribe()
    }

    /// Hears when somebody wants something.
    pub(super) fn calls(&self) -> watch::Receiver<u64> {
        self.calls.subscribe()
    }

    /// What is waited for now.
    pub(super) fn wanted(&self) -> Vec<(ObjectId, Vec<ChunkIndex>)> {
        let arrivals: Vec<Arc<Arrival>> = lock(&self.known).values().filter_map(Weak::upgrade).collect();
        let wanted = |arrival: Arc<Arrival>| {
            let chunks: Vec<ChunkIndex> = lock(&arrival.state).wanted.keys().copied().collect();
            (!chunks.is_empty()).then(|| (arrival.id.clone(), chunks))
        };
        arrivals.into_iter().filter_map(wanted).collect()
    }

    /// Tells those who wait for the object to look again.
    pub(super) fn tell(&self, id: &ObjectId) {
        let arrival = lock(&self.known).get(id).and_then(Weak::upgrade);
        if let Some(arrival) = arrival {
            arrival.tell();
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut known = lock(&self.arrivals.known);
        // A younger one of the same object may stand in its place.
        if known.get(&self.id).is_some_and(|weak| weak.strong_count() == 0) {
            known.remove(&self.id);
        }
    }
}

impl Arrival {
    /// Reads bytes if all of them are here. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn read(&self, store: &Store, offset: u64, buffer: &mut [u8]) -> Result<bool, store::Error> {
        let bytes = {
            let mut state = lock(&self.state);
            if matches!(state.bytes, Bytes::Unknown) {
                state.bytes = store.left(&self.id).map_or(Bytes::None, |left| Bytes::Left(Arc::new(left)));
            }
            state.bytes.clone()
        };
        match bytes {
            Bytes::Unknown | Bytes::None => Ok(false),
            Bytes::Left(left) => left.read_if_there(offset, buffer),
            Bytes::Open(partial) => partial.read_if_there(offset, buffer),
        }
    }

    /// Hears of changes of the whole: somebody fills it now, it is complete, it was discarded.
    /// Subscribe, look, then wait. Of single bytes a [`Want`] hears.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Moves the chunks of a byte range to the head of whatever transfer has the object, until the
    /// value is dropped.
    #[must_use]
    pub fn want(self: &Arc<Self>, range: Range<u64>) -> Want {
        let grid = Grid::of_size(self.id.size);
        let chunks = if range.start < range.end {
            grid.chunk_at(range.start).0..grid.chunk_at(range.end - 1).0 + 1
        } else {
            0..0
        };
        let arrived = Arc::new(Notify::new());
        let id = {
            let mut state = lock(&self.state);
            for chunk in chunks.clone() {
                *state.wanted.entry(ChunkIndex(chunk)).or_default() += 1;
            }
            state.next += 1;
            let id = state.next;
            state.waiting.insert(id, Waiting { range, arrived: Arc::clone(&arrived) });
            self.waits.store(count_of(&state), Relaxed);
            id
        };
        self.arrivals.calls.send_modify(|calls| *calls += 1);
        Want { arrival: Arc::clone(self), id, chunks, arrived }
    }

    /// Some bytes were written and recorded: wakes those who waited for them, and nobody else. With
    /// hundreds of readers most of them wait for something else.
    pub(super) fn recorded(&self, partial: &Partial) {
        if self.waits.load(Relaxed) > 0 {
            let state = lock(&self.state);
            state.waiting.values().filter(|one| partial.has(&one.range)).for_each(|one| one.arrived.notify_one());
        }
    }

    /// Lets no read wait until the value is dropped: each of them keeps a page of the kernel's
    /// locked, and whoever takes wrong bytes out of the kernel waits for those pages.
    #[must_use]
    pub fn take_back(self: &Arc<Self>) -> TakeBack {
        self.taken_back.store(true, Relaxed);
        self.tell();
        TakeBack(Arc::clone(self))
    }

    /// Whether reads must not wait.
    #[must_use]
    pub fn is_taken_back(&self) -> bool {
        self.taken_back.load(Relaxed)
    }

    /// Whether somebody waits for the chunk that holds this byte.
    pub(super) fn is_wanted_at(&self, grid: &Grid, offset: u64) -> bool {
        self.waits.load(Relaxed) > 0 && lock(&self.state).wanted.contains_key(&grid.chunk_at(offset))
    }

    /// Tells those who wait to look again.
    pub(super) fn tell(&self) {
        self.news.send_modify(|news| *news += 1);
    }

    /// This process fills it from now on.
    pub(super) fn opened(&self, partial: &Arc<Partial>) {
        lock(&self.state).bytes = Bytes::Open(Arc::clone(partial));
        self.tell();
    }

    /// What was here goes, and is right all the same.
    pub(super) fn abandoned(&self) {
        lock(&self.state).bytes = Bytes::None;
    }

    /// What was here is not what it should be.
    pub(super) fn discarded(&self) {
        self.abandoned();
        // Nobody may be listening.
        let _ = self.arrivals.discards.send(self.id.clone());
    }
}

/// Wrong bytes are being taken out of the kernel.
#[derive(Debug)]
pub struct TakeBack(Arc<Arrival>);

impl Drop for TakeBack {
    fn drop(&mut self) {
        self.0.taken_back.store(false, Relaxed);
    }
}

/// Somebody waits for some chunks.
#[derive(Debug)]
pub struct Want {
    arrival: Arc<Arrival>,
    id: u64,
    chunks: Range<u32>,
    arrived: Arc<Notify>,
}

impl Want {
    /// Waits until its bytes were recorded after it was made, or last waited.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let mut state = lock(&self.arrival.state);
        for chunk in self.chunks.clone().map(ChunkIndex) {
            if let Some(count) = state.wanted.get_mut(&chunk) {
                *count -= 1;
                if *count == 0 {
                    state.wanted.remove(&chunk);
                }
            }
        }
        state.waiting.remove(&self.id);
        self.arrival.waits.store(count_of(&state), Relaxed);
    }
}

fn count_of(state: &State) -> u32 {
    u32::try_from(state.wanted.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;
    use crate::store::ChunkRecord;
    use futures::FutureExt as _;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_waits_is_woken_by_its_own_bytes_and_says_so_until_it_goes() {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Store::open(directory.path()).expect("a store");
        let id =
            ObjectId { origin: "o".into(), uri: "s3://b/k".into(), version: Version::Generation(1), size: 4 * MIB };
        let arrivals = Arc::new(Arrivals::default());
        let calls = arrivals.calls();
        let arrival = arrivals.of(&id);
        assert!(Arc::ptr_eq(&arrival, &arrivals.of(&id)), "one for all");
        let (near, far) = (arrival.want(10..20), arrival.want(2 * MIB..3 * MIB + 1));
        assert!(calls.has_changed().expect("a sender"));
        assert_eq!(arrivals.wanted(), [(id.clone(), vec![ChunkIndex(0), ChunkIndex(2), ChunkIndex(3)])]);
        let partial = Arc::new(store.partial(id.clone(), None).expect("a partial"));
        arrival.opened(&partial);
        let mut buffer = vec![0; 10];
        assert!(!arrival.read(&store, 10, &mut buffer).expect("a read"));
        let write = |chunk: u32| {
            partial.write_at(u64::from(chunk) * MIB, &[vec![chunk as u8 + 1; MIB as usize].into()]).expect("written");
            partial.record(&[(ChunkIndex(chunk), ChunkRecord::default())], None).expect("recorded");
            arrival.recorded(&partial);
        };
        let woken = |want: &Want| want.arrived().now_or_never().is_some();
        assert!(!woken(&near) && !woken(&far));
        write(2);
        assert!(!woken(&near) && !woken(&far), "half of it is not enough");
        write(0);
        assert!(woken(&near) && !woken(&far));
        assert!(arrival.read(&store, 10, &mut buffer).expect("a read") && buffer == [1; 10]);
        write(3);
        assert!(woken(&far));
        drop((near, far));
        assert_eq!(arrivals.wanted(), []);
        // What an earlier process left can be read before anybody goes on with it.
        drop((arrival, partial));
        let again = arrivals.of(&id);
        assert!(again.read(&store, 3 * MIB, &mut buffer).expect("a read") && buffer == [4; 10]);
        assert!(!again.read(&store, 2 * MIB - 1, &mut buffer).expect("a read"));
        again.discarded();
        assert!(!again.read(&store, 10, &mut buffer).expect("a read"), "nobody believes it any more");
    }
}
