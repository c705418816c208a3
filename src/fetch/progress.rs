//! What a pull has done so far, for anybody who wants to look.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Silence of an origin that is worth a word.
const WAITING_TOLD_AFTER: Duration = Duration::from_secs(1);

/// One file in flight.
#[derive(Debug)]
pub struct FileProgress {
    /// Path inside the model.
    pub path: String,
    /// Bytes in all.
    pub size: u64,
    done: AtomicU64,
}

impl FileProgress {
    /// Bytes that are here.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed).min(self.size)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }
}

/// A pull that gets nothing from its origin, and asks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What the last attempt said.
    pub why: String,
    /// Since when nothing comes.
    pub since: Instant,
    /// Until when it is tried again.
    pub until: Instant,
}

/// Counters of one pull. All monotonic but for restarts of a file that changed at the origin.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all files; 0 until the source is listed.
    pub bytes_total: AtomicU64,
    /// Bytes that were here before, by any of the ways in [`super::Outcome`].
    pub bytes_here: AtomicU64,
    /// Bytes that came over the network and are written.
    pub bytes_moved: AtomicU64,
    /// Files of the model.
    pub files_total: AtomicU32,
    /// Files complete.
    pub files_done: AtomicU32,
    /// Requests that were answered, well or badly.
    pub requests: AtomicU32,
    /// Requests that were tried again.
    pub retries: AtomicU32,
    /// Of those, because the origin asked to slow down.
    pub throttled: AtomicU32,
    /// Of those, because the answer stalled.
    pub stalls: AtomicU32,
    /// Files whose bytes did not match the origin's checksum and were fetched again.
    pub mismatches: AtomicU32,
    /// Requests allowed in flight now.
    pub connections: AtomicU32,
    waiting: Mutex<Option<Waiting>>,
    is_waiting: AtomicBool,
    active: Mutex<Vec<Arc<FileProgress>>>,
    /// Files that another pull of this process moves.
    borrowed: Mutex<Vec<Arc<FileProgress>>>,
}

impl Progress {
    /// The files in flight, oldest first.
    #[must_use]
    pub fn active(&self) -> Vec<Arc<FileProgress>> {
        let mut files = self.active.lock().unwrap_or_else(PoisonError::into_inner).clone();
        files.extend(self.borrowed.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        files
    }

    /// Counts what another pull has of a file, until [`Progress::give_back`].
    pub(super) fn borrow(&self, file: &Arc<FileProgress>) {
        self.borrowed.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(file));
    }

    pub(super) fn give_back(&self, file: &Arc<FileProgress>) {
        self.borrowed.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, file));
    }

    pub(super) fn begin(&self, path: &str, size: u64, done: u64) -> Arc<FileProgress> {
        let file = Arc::new(FileProgress { path: path.to_owned(), size, done: AtomicU64::new(done) });
        self.active.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&file));
        file
    }

    pub(super) fn end(&self, file: &Arc<FileProgress>) {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, file));
    }

    /// Bytes of a file that were counted as here before are not: they are fetched again.
    pub(super) fn lost(&self, file: &FileProgress, bytes: u64) {
        self.bytes_here.fetch_sub(bytes, Relaxed);
        file.done.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn moved(&self, bytes: u64) {
        self.bytes_moved.fetch_add(bytes, Relaxed);
    }

    /// A request failed, and is sent again for so long, if nothing comes meanwhile.
    pub(super) fn waits(&self, why: String, now: Instant, left: Duration) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let since = waiting.as_ref().map_or(now, |waiting| waiting.since);
        *waiting = Some(Waiting { why, since, until: now + left });
        self.is_waiting.store(true, Relaxed);
    }

    /// Something came.
    pub(super) fn goes_on(&self) {
        if self.is_waiting.load(Relaxed) && self.is_waiting.swap(false, Relaxed) {
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// What the pull waits for, where nothing has come for a while: a request that fails among others
    /// that do not is no news.
    #[must_use]
    pub fn waiting(&self) -> Option<Waiting> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waiting.filter(|waiting| waiting.since.elapsed() >= WAITING_TOLD_AFTER)
    }

    /// Bytes of the model that are here now.
    #[must_use]
    pub fn bytes_done(&self) -> u64 {
        let borrowed = self.borrowed.lock().unwrap_or_else(PoisonError::into_inner);
        let elsewhere: u64 = borrowed.iter().map(|file| file.done()).sum();
        self.bytes_here.load(Relaxed) + self.bytes_moved.load(Relaxed) + elsewhere
    }
}
