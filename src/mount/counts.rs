//! What the mount has done, for `status` and the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one process, over all its mounts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Opens that the kernel serves by itself.
    pub passed: AtomicU64,
    /// Opens of sealed files whose reads come here.
    pub cached: AtomicU64,
    /// Opens of files that were still arriving.
    pub arriving: AtomicU64,
    /// Reads that wait for bytes now.
    pub waiting: AtomicU64,
    /// Reads that failed.
    pub failed: AtomicU64,
    /// Bytes that were read here.
    pub bytes: AtomicU64,
}

/// Counts a read for as long as it waits.
pub struct Waits<'a>(&'a AtomicU64);

impl Counts {
    /// One more read waits.
    pub fn wait(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waits(&self.waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
