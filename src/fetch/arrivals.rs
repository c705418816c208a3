//! Objects that somebody reads while they arrive.
//!
//! A reader takes an [`Arrival`], reads what is there, says what it waits for ([`Arrival::want`])
//! and hears of every step. Transfers look at what is wanted and move that first.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{broadcast, watch};

use crate::domain::{ChunkIndex, Grid};
use crate::store::{self, Left, ObjectId, Partial, Store};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Bytes,
    /// How many wait for each chunk.
    wanted: BTreeMap<ChunkIndex, u32>,
}

/// Where the bytes are, as far as they are here.
#[derive(Debug, Default)]
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
        let (open, left) = {
            let mut state = lock(&self.state);
            if matches!(state.bytes, Bytes::Unknown) {
                state.bytes = store.left(&self.id).map_or(Bytes::None, |left| Bytes::Left(Arc::new(left)));
            }
            match &state.bytes {
                Bytes::Unknown | Bytes::None => return Ok(false),
                Bytes::Left(left) => (None, Some(Arc::clone(left))),
                Bytes::Open(partial) => (Some(Arc::clone(partial)), None),
            }
        };
        match (open, left) {
            (Some(partial), _) => partial.read_if_there(offset, buffer),
            (None, Some(left)) => left.read_if_there(offset, buffer),
            (None, None) => Ok(false),
        }
    }

    /// Hears of every step: subscribe, look, then wait.
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
        {
            let mut state = lock(&self.state);
            for chunk in chunks.clone() {
                *state.wanted.entry(ChunkIndex(chunk)).or_default() += 1;
            }
            self.waits.store(count_of(&state), Relaxed);
        }
        self.arrivals.calls.send_modify(|calls| *calls += 1);
        Want { arrival: Arc::clone(self), chunks }
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

    /// What was here is not what it should be.
    pub(super) fn discarded(&self) {
        lock(&self.state).bytes = Bytes::None;
        // Nobody may be listening.
        let _ = self.arrivals.discards.send(self.id.clone());
    }
}

/// Somebody waits for some chunks.
#[derive(Debug)]
pub struct Want {
    arrival: Arc<Arrival>,
    chunks: Range<u32>,
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
        self.arrival.waits.store(count_of(&state), Relaxed);
    }
}

fn count_of(state: &State) -> u32 {
    u32::try_from(state.wanted.len()).unwrap_or(u32::MAX)
}
