//! Small checked documents that the layers above keep here: one file each, replaced by rename.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;

use super::error::AtPath as _;
use super::{Error, Layout, fsx, record, reserve};

/// Longer than any note: the names of a pod, where its volume is, and a URI. A longer one is neither
/// written nor read.
const NOTE_LEN_MAX: u64 = 64 << 10;
/// Notes read from one shelf.
const NOTE_COUNT_MAX: usize = 100_000;

/// A kind of note, and its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// Who uses which model.
    Leases,
    /// Who wants which model kept.
    Pins,
    /// Where work that takes days is.
    State,
    /// What is mounted for which pod.
    Volumes,
}

impl Shelf {
    pub(super) const fn directory(self) -> &'static str {
        match self {
            Self::Leases => "leases",
            Self::Pins => "pins",
            Self::State => "state",
            Self::Volumes => "volumes",
        }
    }

    /// Whether a model could be taken from who uses it if such a note was lost.
    const fn is_of_use(self) -> bool {
        matches!(self, Self::Leases | Self::Volumes)
    }
}

/// Notes of who uses what that the disk did not take, or did not let go of, by what is to be there.
/// What is true is in memory then, and in the spill for the next process.
#[derive(Debug, Default)]
pub(super) struct Unwritten(Mutex<Waiting>);

/// What each note is to be, or that it is to be gone.
type Waiting = HashMap<(Shelf, String), Option<Vec<u8>>>;

impl Unwritten {
    /// What an earlier process could not write down.
    pub(super) fn open(layout: &Layout) -> Self {
        let mut waiting = Waiting::new();
        for shelf in [Shelf::Leases, Shelf::Volumes] {
            for (name, bytes) in layout.spill().all(shelf.directory(), NOTE_LEN_MAX) {
                if let Some(note) = decode::<serde_json::Value>(&bytes) {
                    waiting.entry((shelf, name)).or_insert((!note.is_null()).then_some(bytes));
                } else {
                    tracing::warn!(shelf = shelf.directory(), name, "a damaged note is passed over");
                }
            }
        }
        Self(Mutex::new(waiting))
    }

    /// Writes a note in place of an older one of that name: 1 to 64 letters, digits, `-` or `_`.
    pub(super) fn write(&self, layout: &Layout, shelf: Shelf, name: &str, note: Vec<u8>) -> Result<(), Error> {
        if note.len() as u64 > NOTE_LEN_MAX {
            return Err(std::io::Error::from(ErrorKind::FileTooLarge))
                .at("write", layout.note(shelf.directory(), name));
        }
        self.settle(layout, shelf, name, Some(note))
    }

    /// Removes a note, if it is there.
    pub(super) fn remove(&self, layout: &Layout, shelf: Shelf, name: &str) -> Result<(), Error> {
        self.settle(layout, shelf, name, None)
    }

    /// Tries again what failed. One that fails again holds up no other.
    pub(super) fn write_all(&self, layout: &Layout) -> Result<(), Error> {
        let mut unwritten = self.lock();
        let (count, mut result) = (unwritten.len(), Ok(()));
        unwritten.retain(|(shelf, name), note| {
            let written = put(layout, *shelf, name, note.as_deref());
            let is_there = written.is_err() || layout.spill().remove(shelf.directory(), name).is_err();
            if let (Ok(()), Err(error)) = (&result, written) {
                result = Err(error);
            }
            is_there
        });
        if unwritten.len() < count {
            tracing::info!(notes = count - unwritten.len(), "written down at last");
        }
        result
    }

    /// Under the lock from the first try on: an older note must not come after a newer one.
    fn settle(&self, layout: &Layout, shelf: Shelf, name: &str, note: Option<Vec<u8>>) -> Result<(), Error> {
        if !shelf.is_of_use() {
            return put(layout, shelf, name, note.as_deref());
        }
        let (mut unwritten, key) = (self.lock(), (shelf, name.to_owned()));
        let spill = |note: &Option<Vec<u8>>| {
            // What is to be gone is said, too: the disk says something else.
            let gone = || record::encode(&());
            layout.spill().write(shelf.directory(), name, &note.clone().unwrap_or_else(gone))
        };
        let was_spilled = unwritten.contains_key(&key);
        if was_spilled {
            // First of all: what is there overrules the disk, and a kill must not leave an older word there.
            let _ = spill(&note);
        }
        let Err(error) = put(layout, shelf, name, note.as_deref()) else {
            if !was_spilled || layout.spill().remove(shelf.directory(), name).is_ok() {
                unwritten.remove(&key);
            } else {
                unwritten.insert(key, note);
            }
            return Ok(());
        };
        let spilled = spill(&note);
        if unwritten.is_empty() {
            tracing::warn!(%error, "the store does not take a note of who uses what: it is kept elsewhere, and tried again");
        }
        unwritten.insert(key, note);
        spilled.map_err(|why| {
            tracing::debug!(%why, "nor is there another place for the note");
            error
        })
    }

    /// Every note that can be read, with its name, as it is to be. One that says nothing right is removed:
    /// it proves nothing. One that the disk does not give is passed over.
    pub(super) fn read_all<T: DeserializeOwned>(
        &self,
        layout: &Layout,
        shelf: Shelf,
    ) -> Result<Vec<(String, T)>, Error> {
        let mut notes = read_written(layout, shelf)?;
        let unwritten = self.lock();
        notes.retain(|(name, _)| !unwritten.contains_key(&(shelf, name.clone())));
        let of_shelf = unwritten.iter().filter(|((of, _), _)| *of == shelf);
        notes.extend(of_shelf.filter_map(|((_, name), note)| Some((name.clone(), decode(note.as_deref()?)?))));
        Ok(notes)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the note of that name what it is to be: there, or not.
fn put(layout: &Layout, shelf: Shelf, name: &str, note: Option<&[u8]>) -> Result<(), Error> {
    let path = layout.note(shelf.directory(), name);
    let Some(bytes) = note else { return fsx::remove_if_there(&path).at("remove", &path) };
    let mut written = fsx::replace(&layout.scratch(), &path, bytes);
    while shelf.is_of_use()
        && let Err(error) = &written
        && matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        && let Some(in_reserve) = reserve::replace(layout, &path, bytes)
    {
        written = in_reserve;
    }
    written.at("write", &path)
}

fn decode<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    record::decode(text.strip_suffix(b"\n").unwrap_or(text))
}

/// What the disk says.
fn read_written<T: DeserializeOwned>(layout: &Layout, shelf: Shelf) -> Result<Vec<(String, T)>, Error> {
    let directory = layout.shelf(shelf.directory());
    let mut notes = Vec::new();
    for name in fsx::names(&directory).at("list", &directory)?.into_iter().take(NOTE_COUNT_MAX) {
        let path = directory.join(&name);
        let text = match fsx::read_bounded(&path, NOTE_LEN_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::FileTooLarge => Vec::new(),
            // Removed since the listing.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a note cannot be read: it is passed over");
                continue;
            }
        };
        if let Some(note) = decode(&text) {
            notes.push((name, note));
        } else {
            tracing::warn!(path = %path.display(), "a damaged note is removed");
            if let Err(error) = fsx::remove_if_there(&path) {
                tracing::warn!(path = %path.display(), %error, "it stays, and is passed over");
            }
        }
    }
    Ok(notes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests read and write what they made")]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn one_bad_note_costs_no_other_and_none_is_written_that_would_not_be_read() {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = Store::open(directory.path()).expect("a store");
        store.note(Shelf::Pins, "a", &"good").expect("written");
        store.note(Shelf::Pins, "b", &"x".repeat(60 << 10)).expect("written");
        store.note(Shelf::Pins, "c", &"x".repeat(65 << 10)).expect_err("too long to be read");
        let shelf = directory.path().join("v1/pins");
        std::fs::create_dir(shelf.join("d")).expect("something that is no note");
        std::fs::write(shelf.join("e"), vec![b'x'; 1 << 20]).expect("too long");
        let names: Vec<String> =
            store.notes::<String>(Shelf::Pins).expect("read").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(!shelf.join("e").exists() && shelf.join("d").exists());
    }
}
