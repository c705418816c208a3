//! Small checked documents that the layers above keep here: one file each, replaced by rename.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::AtPath as _;
use super::{Error, Layout, fsx, record};

/// Longer than any note: an owner's name and a URI.
const NOTE_LEN_MAX: u64 = 16 << 10;
/// Notes read from one shelf.
const NOTE_COUNT_MAX: usize = 100_000;

/// A kind of note, and its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// Writes a note in place of an older one of that name: 1 to 64 letters, digits, `-` or `_`.
pub(super) fn write<T: Serialize>(layout: &Layout, shelf: Shelf, name: &str, note: &T) -> Result<(), Error> {
    let path = layout.note(shelf.directory(), name);
    fsx::replace(&layout.scratch(), &path, &record::encode(note)).at("write", &path)
}

/// Every note that can be read, with its name. One that cannot is removed: it proves nothing.
pub(super) fn read_all<T: DeserializeOwned>(layout: &Layout, shelf: Shelf) -> Result<Vec<(String, T)>, Error> {
    let directory = layout.shelf(shelf.directory());
    let mut notes = Vec::new();
    for name in fsx::names(&directory).at("list", &directory)?.into_iter().take(NOTE_COUNT_MAX) {
        let path = directory.join(&name);
        let text = match fsx::read_bounded(&path, NOTE_LEN_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => Vec::new(),
            other => other.at("read", &path)?,
        };
        if let Some(note) = record::decode(text.strip_suffix(b"\n").unwrap_or(&text)) {
            notes.push((name, note));
        } else {
            tracing::warn!(path = %path.display(), "a damaged note was removed");
            fsx::remove_if_there(&path).at("remove", &path)?;
        }
    }
    Ok(notes)
}

/// Removes a note, if it is there.
pub(super) fn remove(layout: &Layout, shelf: Shelf, name: &str) -> Result<(), Error> {
    let path = layout.note(shelf.directory(), name);
    fsx::remove_if_there(&path).at("remove", &path)
}
