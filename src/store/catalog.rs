//! Which object, at which version, has which digest: an append-only log of checked lines.
//!
//! Owns `catalog.log`. A record is appended after the blob it names is sealed, so a record never
//! promises bytes that were not there; the blob may be gone later, which the reader of a record
//! checks. Records are not synced one by one: losing the last of them costs a transfer, no truth.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::AtPath as _;
use super::index::Index;
use super::{Error, Layout, fsx, record, sealed};
use crate::domain::{Checksum, Claims, Digest, Text, Version};

/// An object at one version: the key under which its digest is known.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectId {
    /// The trust domain (see `remote::Remote::origin`).
    pub origin: Text,
    /// The object's URI.
    pub uri: Text,
    /// ETag or generation.
    pub version: Version,
    /// Bytes.
    pub size: u64,
}

impl ObjectId {
    /// The hash of all of it: what it is found by in memory.
    pub(super) fn key(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for part in [self.origin.as_str(), &self.uri] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.update(&self.size.to_le_bytes()).update(self.version.to_string().as_bytes());
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// A file name for this object's partial: 32 hex digits.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "strings and numbers always encode")]
    pub fn file_id(&self) -> String {
        let text = serde_json::to_vec(self).expect("strings and numbers always encode");
        blake3::hash(&text).to_hex()[..32].to_owned()
    }
}

/// What is known of an object that was pulled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// The object.
    pub id: ObjectId,
    /// Its content.
    pub digest: Digest,
    /// The origin's checksum that the bytes themselves were compared with, if it had one.
    pub checked: Option<Checksum>,
    /// An MD5 that the origin's own API states and that nobody here compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated_md5: Option<Checksum>,
}

impl Known {
    /// What is known of an object whose bytes were compared with `checked`, one of its claims.
    #[must_use]
    pub fn new(id: ObjectId, digest: Digest, checked: Option<Checksum>, claims: &Claims) -> Self {
        let stated = |sum: &&Checksum| matches!(sum, Checksum::Md5(_)) && !claims.md5_is_etag && checked != Some(**sum);
        Self { id, digest, checked, stated_md5: claims.checksums.iter().find(stated).copied() }
    }
}

/// A blob that an object is proven equal to, without having been fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Equal {
    /// The blob.
    pub digest: Digest,
    /// The claim of the object that was compared with these very bytes when they came.
    pub checked: Checksum,
    /// The proof, in words.
    pub proof: &'static str,
}

/// Lines beyond this many are not read, nor written: a catalog of a million objects is no cache of
/// models.
const LINE_COUNT_MAX: usize = 1_000_000;
/// Superseded lines up to here are not worth rewriting the log.
const GARBAGE_MIN: usize = 1_000;
/// A line is a few hundred bytes; a URI of 2 KiB makes the longest.
const LINE_LEN_MAX: u64 = 16 << 10;

/// What the log knows, without owning the store; nothing where it cannot be read.
pub(super) fn read(layout: &Layout) -> Index {
    let path = layout.catalog();
    fsx::open(&path).ok().and_then(|file| load(&file, &path).ok()).map_or_else(Index::default, |loaded| loaded.index)
}

/// The log with its index.
#[derive(Debug)]
pub(super) struct Catalog {
    file: File,
    index: Index,
    lines: usize,
    dropped: usize,
}

impl Catalog {
    /// Opens the log for reading and appending; lines that fail their check are dropped, and what
    /// leads to no blob that is here is forgotten.
    pub(super) fn open(layout: &Layout) -> Result<Self, Error> {
        let path = layout.catalog();
        if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            tracing::warn!(path = %path.display(), "the catalog is no regular file: it begins anew");
            fsx::remove_if_there(&path).at("remove", &path)?;
        }
        let file = fsx::open_with(OpenOptions::new().read(true).append(true).create(true), &path).at("open", &path)?;
        let Loaded { mut index, lines, dropped } = load(&file, &path)?;
        let here: HashSet<Digest> = sealed::all_of_all_boots(layout)?.into_iter().collect();
        index.keep(|digest| here.contains(digest));
        let mut catalog = Self { file, index, lines, dropped };
        let garbage = lines.saturating_sub(catalog.index.len());
        // A torn last line goes too, so that the next record starts on a line of its own.
        if dropped > 0 || (garbage > GARBAGE_MIN && garbage > catalog.index.len()) {
            // On a full disk the store must open, or nothing could ever be removed from it.
            if let Err(error) = catalog.rewrite(layout) {
                tracing::warn!(path = %path.display(), %error, "the catalog stays as it is");
            }
        }
        Ok(catalog)
    }

    /// The same where nothing can be written: nothing is mended, and nothing can be appended. Where it
    /// cannot be read either it is empty, which costs no model.
    pub(super) fn open_unwritten(layout: &Layout) -> Result<Self, Error> {
        let path = layout.catalog();
        let opened = fsx::open(&path).and_then(|file| Ok((load(&file, &path).map_err(io::Error::other)?, file)));
        let (Loaded { index, lines, dropped }, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the catalog cannot be read: what was pulled before is not known by it");
                let nothing = Path::new("/dev/null");
                (Loaded::default(), File::open(nothing).at("open", nothing)?)
            }
        };
        Ok(Self { file, index, lines, dropped })
    }

    /// Writes the log anew with what the index has, line by line.
    fn rewrite(&mut self, layout: &Layout) -> Result<(), Error> {
        let path = layout.catalog();
        let mut lines = 0;
        let index = &self.index;
        let old = fsx::open(&path).at("open", &path)?;
        // The last of several for one object: the others say something else.
        fsx::replace_by(&layout.scratch(), &path, true, |file| {
            let mut writer = BufWriter::with_capacity(256 << 10, file);
            let mut written = HashSet::new();
            each_line(&old, |line, known| {
                if let Some(known) = known.filter(|known| index.has(known))
                    && written.insert(known.id.key())
                {
                    writer.write_all(line)?;
                    lines += 1;
                }
                Ok(())
            })?;
            writer.flush()
        })
        .at("write", &path)?;
        self.file = fsx::open_with(OpenOptions::new().read(true).append(true), &path).at("open", &path)?;
        self.lines = lines;
        Ok(())
    }

    /// Lines that were dropped at open because their check failed.
    pub(super) const fn dropped(&self) -> usize {
        self.dropped
    }

    /// Appends a record, in one write. One that would not be read back is kept in memory alone: it
    /// saves a transfer for as long as this process lives.
    pub(super) fn append(&mut self, layout: &Layout, known: &Known) -> Result<(), Error> {
        if self.index.has(known) {
            return Ok(());
        }
        let line = record::encode(known);
        if self.lines >= LINE_COUNT_MAX && self.index.len() < LINE_COUNT_MAX - GARBAGE_MIN {
            self.rewrite(layout)?;
        }
        if self.lines < LINE_COUNT_MAX && line.len() as u64 <= LINE_LEN_MAX {
            self.file.write_all(&line).at("append to", layout.catalog())?;
            self.lines += 1;
        }
        self.index.add(known);
        Ok(())
    }

    /// What it knows.
    pub(super) const fn index(&self) -> &Index {
        &self.index
    }

    /// Forgets what leads to blobs that went. Their lines go when the log is next rewritten.
    pub(super) fn forget(&mut self, gone: &HashSet<Digest>) {
        self.index.forget(gone);
    }
}

#[derive(Default)]
struct Loaded {
    index: Index,
    lines: usize,
    dropped: usize,
}

fn load(file: &File, path: &Path) -> Result<Loaded, Error> {
    let mut loaded = Loaded::default();
    let read = each_line(file, |_, known| {
        match known {
            Some(known) => {
                loaded.lines += 1;
                loaded.index.add(&known);
            }
            None => loaded.dropped += 1,
        }
        Ok(())
    });
    read.at("read", path).map(|()| loaded)
}

/// Hears every line with what it says; nothing where its check is wrong.
fn each_line(file: &File, mut each: impl FnMut(&[u8], Option<Known>) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let (mut line, mut count) = (Vec::new(), 0);
    while count < LINE_COUNT_MAX {
        line.clear();
        if reader.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let known = line.strip_suffix(b"\n").and_then(record::decode::<Known>);
        count += usize::from(known.is_some());
        each(&line, known)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(number: u32, len: usize) -> Known {
        let uri = format!("s3://b/{number}{}", "x".repeat(len)).into();
        let id = ObjectId { origin: "o".into(), uri, version: Version::Generation(1), size: 0 };
        Known::new(id, Digest::of(b""), None, &Claims::default())
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let directory = tempfile::tempdir().expect("tempdir");
        let store = super::super::Store::open(directory.path()).expect("a store");
        let hold = store.hold();
        let empty = ObjectId { uri: "s3://b/empty".into(), ..known(0, 0).id };
        store.seal_bytes(empty, &[], None, &Claims::default(), &hold).expect("sealed");
        store.learn(&known(1, 0)).expect("learnt");
        store.learn(&known(2, 20_000)).expect("learnt");
        store.learn(&known(3, 0)).expect("learnt");
        assert!(store.known(&known(2, 20_000).id).is_some(), "as long as this process lives");
        drop(hold);
        drop(store);
        let store = super::super::Store::open(directory.path()).expect("a store");
        assert_eq!(store.recovered().catalog_lines_dropped, 0);
        let is_known = |number, len| store.known(&known(number, len).id).is_some();
        assert!(is_known(1, 0) && !is_known(2, 20_000) && is_known(3, 0));
    }
}
