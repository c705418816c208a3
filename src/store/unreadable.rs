//! Documents that could not be read: each is passed over and named, and costs nothing else.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of more documents than this the names are not kept: the log has them.
const NAMED_MAX: usize = 64;

/// A document that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The document.
    pub path: PathBuf,
    /// Why it could not be read.
    pub why: String,
    /// Whether its bytes are wrong, which no other look will change. Else the disk did not give
    /// them, and may do so later.
    pub is_wrong: bool,
    /// Whether it was removed.
    pub is_removed: bool,
}

impl Unreadable {
    pub(super) fn new(path: &Path, error: &io::Error) -> Self {
        let is_wrong = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge);
        Self { path: path.to_owned(), why: error.to_string(), is_wrong, is_removed: false }
    }
}

/// What was met, over all looks through clones of one view.
#[derive(Debug, Clone, Default)]
pub(super) struct Met(Arc<Mutex<BTreeMap<PathBuf, Unreadable>>>);

impl Met {
    fn met(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Unreadable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one, and logs it the first time.
    pub fn note(&self, found: Unreadable) {
        let mut met = self.met();
        let is_known = met.get(&found.path).is_some_and(|known| !known.is_removed || found.is_removed);
        if is_known {
            return;
        }
        tracing::warn!(path = %found.path.display(), why = %found.why, "a document of the store cannot be read: it is passed over");
        if met.len() < NAMED_MAX || met.contains_key(&found.path) {
            met.insert(found.path.clone(), found);
        }
    }

    /// All of them, by path.
    pub fn all(&self) -> Vec<Unreadable> {
        self.met().values().cloned().collect()
    }

    /// Those whose bytes are wrong and that are still there.
    pub fn to_remove(&self) -> Vec<PathBuf> {
        let met = self.met();
        met.values().filter(|found| found.is_wrong && !found.is_removed).map(|found| found.path.clone()).collect()
    }

    pub fn removed(&self, path: &Path) {
        if let Some(found) = self.met().get_mut(path) {
            found.is_removed = true;
        }
    }
}
