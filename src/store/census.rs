//! Everything in the store with its size: what a decision about eviction looks at.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::AtPath as _;
use super::{Amount, Error, Layout, SourceRecord, Store, damage, fsx, models, partial, sealed};
use crate::domain::{Digest, Grid};

/// What a model or an unfinished source keeps alive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The model; `None` while its first pull is unfinished.
    pub manifest: Option<Digest>,
    /// Source records that name it: id, source, and when each was last used. None for what only a
    /// kept listing names.
    pub sources: Vec<(String, String, SystemTime)>,
    /// Its blobs that are here.
    pub blobs: Vec<Digest>,
    /// Of a model, those that are damaged or missing.
    pub lacking: Vec<Digest>,
    /// What those records name, as listings.
    pub listings: Vec<Digest>,
    /// Partials that it waits for and that are begun.
    pub partials: Vec<String>,
    /// Its documents and the directories of its tree.
    pub inodes: u64,
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
    /// What every blob that an entry has or somebody holds takes on disk.
    pub blobs: HashMap<Digest, Amount>,
    /// Blobs that a pull holds: they stay, whatever else has them.
    pub held: Vec<Digest>,
    /// Blobs being filled, or left half-way.
    pub partials: Vec<PartialEntry>,
    /// What blobs take that nothing names and nobody holds, and copies that are known to be wrong: the
    /// next removal takes them along.
    pub strays: Amount,
}

impl Census {
    /// Blobs that models name and that are damaged or missing.
    #[must_use]
    pub fn lacking(&self) -> BTreeSet<Digest> {
        self.entries.iter().flat_map(|entry| &entry.lacking).copied().collect()
    }

    /// What all of it takes.
    #[must_use]
    pub fn amount(&self) -> Amount {
        let partials = self.partials.iter().map(PartialEntry::amount);
        let entries = self.entries.iter().map(|entry| Amount::new(0, entry.inodes));
        self.blobs.values().copied().chain(partials).chain(entries).chain([self.strays]).sum()
    }
}

impl PartialEntry {
    /// What it takes: its bytes, and its journal.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        Amount::new(self.bytes, 2)
    }
}

/// What a sealed blob takes: its bytes, and their values where it has more than one chunk.
fn amount(metadata: &std::fs::Metadata) -> Amount {
    let has_values = Grid::of_size(metadata.len()).chunk_count() > 1;
    Amount::new(metadata.blocks() * 512, 1 + u64::from(has_values))
}

/// The records that name a model, as in [`Entry`], their listings, and the blobs that a removal
/// keeps for their sake: a damaged manifest says nothing of those.
type Named = (Vec<(String, String, SystemTime)>, Vec<Digest>, HashSet<Digest>);

pub(super) fn take(store: &Store) -> Result<Census, Error> {
    let layout = store.layout();
    let mut census = Census { partials: partials(layout)?, ..Census::default() };
    let mut of_manifest: HashMap<Digest, Named> = HashMap::new();
    let mut unfinished: Vec<Entry> = Vec::new();
    let begun: HashSet<String> = census.partials.iter().map(|partial| partial.file_id.clone()).collect();
    store.view().each_source(&mut |record, used| {
        if let Some(digest) = record.manifest {
            let (sources, listings, blobs) = of_manifest.entry(digest).or_default();
            listings.push(record.listing());
            blobs.extend(record.files.iter().filter_map(|file| file.digest));
            sources.push((record.id(), record.source, used));
        } else {
            let sources = vec![(record.id(), record.source.clone(), used)];
            unfinished.push(incomplete(store, &begun, &record, record.listing(), sources));
        }
    })?;
    let all: HashSet<Digest> = models::all_manifests(layout)?.into_iter().chain(of_manifest.keys().copied()).collect();
    for digest in all {
        // One that cannot be read keeps what its records name; what shows that is `verify`.
        let manifest = models::read_manifest(layout, &digest).ok();
        let files = manifest.as_ref().map_or(&[][..], |manifest| manifest.files());
        let (sources, listings, mut blobs) = of_manifest.remove(&digest).unwrap_or_default();
        blobs.extend(files.iter().map(|file| file.digest));
        let blobs = blobs.into_iter().collect();
        let directories = models::directory_count(files.iter().map(|file| &file.path));
        let inodes = 1 + sources.len() as u64 + directories;
        let (lacking, partials) = (Vec::new(), Vec::new());
        census.add(layout, Entry { manifest: Some(digest), sources, blobs, lacking, listings, partials, inodes });
    }
    for entry in unfinished {
        census.add(layout, entry);
    }
    for listing in models::all_listings(layout)? {
        // What a source does not name any more, and somebody may still read.
        if census.entries.iter().any(|entry| entry.listings.contains(&listing)) {
            continue;
        }
        let Some(record) = store.view().listing(&listing)? else { continue };
        census.add(layout, incomplete(store, &begun, &record, listing, Vec::new()));
    }
    for (digest, _) in damage::all(layout)? {
        let condemned = sealed::condemned(layout, &digest);
        census.strays += condemned.iter().map(|(_, metadata)| amount(metadata)).sum();
    }
    for digest in sealed::all(layout)? {
        let taken = || sealed::metadata(layout, &digest).as_ref().map(amount).unwrap_or_default();
        if store.holds.is_held(&digest) {
            census.held.push(digest);
            census.blobs.entry(digest).or_insert_with(taken);
        } else if !census.blobs.contains_key(&digest) {
            census.strays += taken();
        }
    }
    Ok(census)
}

/// What a record keeps alive that is no model yet: what has come of it, and what is on its way.
fn incomplete(
    store: &Store,
    begun: &HashSet<String>,
    record: &SourceRecord,
    listing: Digest,
    sources: Vec<(String, String, SystemTime)>,
) -> Entry {
    let mut partials = Vec::new();
    if !begun.is_empty() {
        partials.extend(record.files.iter().map(|file| record.object(file).file_id()).filter(|id| begun.contains(id)));
    }
    Entry {
        manifest: None,
        sources,
        blobs: store.blobs_known(record).into_iter().collect(),
        lacking: Vec::new(),
        listings: vec![listing],
        partials,
        inodes: 1,
    }
}

impl Census {
    fn add(&mut self, layout: &Layout, mut entry: Entry) {
        let is_here = |digest: &Digest| {
            if self.blobs.contains_key(digest) {
                return true;
            }
            sealed::metadata(layout, digest).is_some_and(|metadata| {
                self.blobs.insert(*digest, amount(&metadata));
                true
            })
        };
        let lacking;
        (entry.blobs, lacking) = std::mem::take(&mut entry.blobs).into_iter().partition(is_here);
        if entry.manifest.is_some() {
            entry.lacking = lacking;
        }
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

#[cfg(test)]
mod tests {
    use crate::domain::{Claims, ModelPath, Version};
    use crate::store::{Amount, ObjectId, SourceFile, SourceRecord, Store};

    /// Counted as strays, they were evicted again and again: a removal keeps them.
    #[test]
    fn what_an_unfinished_source_has_by_a_proof_is_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let id = ObjectId { origin: "o".into(), uri: "s3://b/a".into(), version: Version::Generation(1), size: 5 };
        let hold = store.hold();
        let digest = store
            .seal_bytes(id, &[bytes::Bytes::from_static(b"bytes")], None, &Claims::default(), &hold)
            .expect("sealed");
        drop(hold);
        let mut record = SourceRecord::new("s3://b/other/".into(), "o".into(), Vec::new(), Vec::new());
        record.files.push(SourceFile {
            path: ModelPath::new("a").expect("a path"),
            uri: "s3://b/other/a".into(),
            version: Version::Generation(2),
            size: 5,
            digest: Some(digest),
            checked: None,
        });
        store.announce(&record).expect("announced");
        assert_eq!(store.forget(&[], &[]).expect("nothing to forget"), 0);
        let census = store.census().expect("counted");
        assert_eq!(census.strays, Amount::default());
        assert_eq!(census.entries[0].blobs, [digest]);
    }
}
