//! Directories that are being read: each reader sees one state of its directory to the end.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::node::Node;
use super::tree::Lasts;

/// Names, what is there, and for how long.
pub type Entries = Vec<(Arc<str>, Node, Lasts)>;

/// Directories whose entries are kept at once; others are read anew for each request.
const KEPT_MAX: usize = 1024;

/// Open directories.
#[derive(Debug)]
pub struct Directories {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    kept: HashMap<u64, Arc<Entries>>,
}

impl Default for Directories {
    fn default() -> Self {
        // Far from what an earlier process gave out: its handles come back too.
        let next = RandomState::new().hash_one(std::process::id()) >> 1;
        Self { state: Mutex::new(State { next, kept: HashMap::new() }) }
    }
}

impl Directories {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for a reader.
    pub fn open(&self) -> u64 {
        let mut state = self.state();
        state.next = state.next.wrapping_add(1);
        state.next
    }

    /// What the reader began with.
    pub fn entries(&self, handle: u64) -> Option<Arc<Entries>> {
        self.state().kept.get(&handle).cloned()
    }

    /// Remembers what the reader begins with.
    pub fn keep(&self, handle: u64, entries: &Arc<Entries>) {
        let mut state = self.state();
        if state.kept.len() < KEPT_MAX {
            state.kept.insert(handle, Arc::clone(entries));
        }
    }

    /// The reader has gone.
    pub fn close(&self, handle: u64) {
        self.state().kept.remove(&handle);
    }
}
