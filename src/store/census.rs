//! Everything in the store with its size: what a decision about eviction looks at.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::AtPath as _;
use super::{Error, Layout, SourceRecord, Store, fsx, models, partial, sealed};
use crate::domain::Digest;

/// What a model or an unfinished source keeps alive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The model; `None` while its first pull is unfinished.
    pub manifest: Option<Digest>,
    /// Source records that name it: id, source, and when each was last used.
    pub sources: Vec<(String, String, SystemTime)>,
    /// Its blobs that are here.
    pub blobs: Vec<Digest>,
}

/// A blob being filled, or left half-way.
#[derive(Debug, Clone)]
pub struct PartialEntry {
    /// Its file name.
    pub file_id: String,
    /// Bytes it has allocated.
    pub bytes: u64,
    /// When it was last written to.
    pub modified: SystemTime,
}

/// A store, counted.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Models and unfinished sources.
    pub entries: Vec<Entry>,
    /// Bytes on disk of every blob that an entry has or somebody holds.
    pub blobs: HashMap<Digest, u64>,
    /// Blobs that a pull holds: they stay, whatever else has them.
    pub held: Vec<Digest>,
    /// Blobs being filled, or left half-way.
    pub partials: Vec<PartialEntry>,
    /// Bytes of blobs that nothing names and nobody holds: the next removal takes them along.
    pub strays: u64,
}

impl Census {
    /// Bytes of blobs and partials.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let partials = self.partials.iter().map(|partial| partial.bytes);
        self.blobs.values().copied().chain(partials).chain([self.strays]).fold(0, u64::saturating_add)
    }
}

pub(super) fn take(store: &Store) -> Result<Census, Error> {
    let layout = store.layout();
    let mut census = Census { partials: partials(layout)?, ..Census::default() };
    let mut of_manifest: HashMap<Digest, Vec<(String, String, SystemTime)>> = HashMap::new();
    let mut unfinished: Vec<(SourceRecord, SystemTime)> = Vec::new();
    for (record, used) in models::read_sources(layout, &mut Vec::new())? {
        match record.manifest {
            Some(digest) => of_manifest.entry(digest).or_default().push((record.id(), record.source, used)),
            None => unfinished.push((record, used)),
        }
    }
    let all: HashSet<Digest> = models::all_manifests(layout)?.into_iter().chain(of_manifest.keys().copied()).collect();
    for digest in all {
        // One that cannot be read keeps nothing we know of; what shows that is `verify`.
        let files =
            models::read_manifest(layout, &digest).map(|manifest| manifest.files().to_vec()).unwrap_or_default();
        let sources = of_manifest.remove(&digest).unwrap_or_default();
        let blobs = files.into_iter().map(|file| file.digest).collect();
        census.add(layout, Entry { manifest: Some(digest), sources, blobs });
    }
    for (record, used) in unfinished {
        let catalog = store.catalog();
        let known = record.files.iter().filter_map(|file| catalog.find(&record.object(file)));
        let blobs: HashSet<Digest> = known.map(|known| known.digest).collect();
        drop(catalog);
        let sources = vec![(record.id(), record.source, used)];
        census.add(layout, Entry { manifest: None, sources, blobs: blobs.into_iter().collect() });
    }
    for digest in sealed::all(layout)? {
        let on_disk = || sealed::find(layout, &digest).and_then(|path| path.metadata().ok());
        let bytes = || on_disk().map_or(0, |metadata| metadata.blocks() * 512);
        if store.holds.is_held(&digest) {
            census.held.push(digest);
            census.blobs.entry(digest).or_insert_with(bytes);
        } else if !census.blobs.contains_key(&digest) {
            census.strays += bytes();
        }
    }
    Ok(census)
}

impl Census {
    fn add(&mut self, layout: &Layout, mut entry: Entry) {
        entry.blobs.retain(|digest| {
            if self.blobs.contains_key(digest) {
                return true;
            }
            let on_disk = sealed::find(layout, digest).and_then(|path| path.metadata().ok());
            on_disk.is_some_and(|metadata| {
                self.blobs.insert(*digest, metadata.blocks() * 512);
                true
            })
        });
        self.entries.push(entry);
    }
}

fn partials(layout: &Layout) -> Result<Vec<PartialEntry>, Error> {
    let directory = layout.partials();
    let mut found = Vec::new();
    for name in fsx::names(&directory).at("list", &directory)? {
        let Some(file_id) = name.strip_suffix(".bytes") else { continue };
        // Sealed since the listing, or discarded.
        let Ok(metadata) = directory.join(&name).metadata() else { continue };
        found.push(PartialEntry {
            file_id: file_id.to_owned(),
            bytes: metadata.blocks() * 512,
            modified: metadata.modified().unwrap_or(UNIX_EPOCH),
        });
    }
    Ok(found)
}

/// Removes a partial that nobody fills.
pub(super) fn drop_partial(layout: &Layout, file_id: &str) -> Result<(), Error> {
    partial::remove(layout, file_id)
}
