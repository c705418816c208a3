//! The store as it lies on the disk, read without any of its code but the form of a digest.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use larder::domain::Digest;

use crate::world::{content, number_of};

/// A sealed blob.
#[derive(Debug, Clone)]
pub struct Blob {
    pub path: PathBuf,
    /// As of [`identity`].
    pub inode: u64,
    pub len: u64,
    /// Bytes of the file system.
    pub allocated: u64,
    pub is_settled: bool,
}

/// Everything below a store's directory.
#[derive(Debug, Default)]
pub struct Walk {
    pub blobs: BTreeMap<Digest, Blob>,
    pub values: BTreeSet<Digest>,
    /// Of which a copy is known to be wrong, or which are missing.
    pub marked: BTreeSet<Digest>,
    /// Bytes of the file system in copies that others have taken the place of.
    pub replaced: u64,
    pub manifests: BTreeSet<Digest>,
    /// Files of each tree, by path, with their identity.
    pub trees: BTreeMap<Digest, BTreeMap<String, u64>>,
    pub sources: BTreeSet<String>,
    pub leases: BTreeSet<String>,
    pub pins: BTreeSet<String>,
    /// Bytes of the file system in partials.
    pub partials: BTreeMap<String, u64>,
    pub scratch: Vec<String>,
}

/// Tells a file from one that was given the inode of a file that is gone.
pub fn identity(metadata: &fs::Metadata) -> u64 {
    let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    metadata.ino() ^ (born.as_secs() << 32) ^ (u64::from(born.subsec_nanos()) << 24)
}

pub fn names(directory: &Path) -> Vec<String> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", directory.display()),
    }
}

impl Walk {
    pub fn of(store: &Path) -> Self {
        let root = store.join("v1");
        let mut walk = Self::default();
        for (directory, is_settled) in blob_directories(&root) {
            for name in names(&directory) {
                let path = directory.join(&name);
                let (Ok(digest), Ok(metadata)) = (name.parse::<Digest>(), path.metadata()) else { continue };
                let (inode, len, allocated) = (identity(&metadata), metadata.len(), metadata.blocks() * 512);
                let blob = Blob { path, inode, len, allocated, is_settled };
                // Synced or not: of two, the one that is not synced has come later.
                if let Entry::Vacant(vacant) = walk.blobs.entry(digest) {
                    vacant.insert(blob);
                } else {
                    walk.replaced += allocated;
                }
            }
        }
        for prefix in names(&root.join("values")) {
            walk.values
                .extend(names(&root.join("values").join(prefix)).iter().filter_map(|name| name.parse::<Digest>().ok()));
        }
        let stems = |directory: &str| {
            names(&root.join(directory))
                .into_iter()
                .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
                .collect::<Vec<_>>()
        };
        walk.manifests = stems("manifests").iter().filter_map(|name| name.parse().ok()).collect();
        walk.sources = stems("sources").into_iter().collect();
        walk.leases = names(&root.join("leases")).into_iter().collect();
        walk.pins = names(&root.join("pins")).into_iter().collect();
        walk.marked = names(&root.join("damaged")).iter().filter_map(|name| name.parse().ok()).collect();
        walk.scratch = names(&root.join("scratch"));
        for name in names(&root.join("models")) {
            let Ok(digest) = name.parse() else { continue };
            let mut files = BTreeMap::new();
            tree(&root.join("models").join(&name), "", &mut files);
            walk.trees.insert(digest, files);
        }
        for name in names(&root.join("partial")) {
            let bytes = root.join("partial").join(&name).metadata().map_or(0, |metadata| metadata.blocks() * 512);
            if let Some(id) = name.strip_suffix(".bytes") {
                walk.partials.insert(id.to_owned(), bytes);
            }
        }
        walk
    }

    /// Bytes of the file system that blobs and partials take.
    pub fn bytes(&self) -> u64 {
        let blobs: u64 = self.blobs.values().map(|blob| blob.allocated).sum();
        blobs + self.replaced + self.partials.values().sum::<u64>()
    }

    /// Blobs that are not what their name says, but for those whose inode the test has spoiled.
    pub fn wrong_blobs(&self, spoiled: &HashMap<u64, Digest>) -> Vec<Digest> {
        let is_wrong = |digest: &Digest, blob: &Blob| {
            let Some(number) = number_of(digest) else { return true };
            !spoiled.contains_key(&blob.inode) && fs::read(&blob.path).ok().as_ref() != Some(&content(number).bytes)
        };
        self.blobs.iter().filter(|(digest, blob)| is_wrong(digest, blob)).map(|(digest, _)| *digest).collect()
    }
}

/// Where sealed blobs are, and whether they are synced there.
fn blob_directories(root: &Path) -> Vec<(PathBuf, bool)> {
    let fresh = root.join("fresh");
    let mut all: Vec<(PathBuf, bool)> = names(&fresh).iter().map(|boot| (fresh.join(boot), false)).collect();
    let blobs = root.join("blobs");
    all.extend(names(&blobs).iter().map(|prefix| (blobs.join(prefix), true)));
    all
}

fn tree(directory: &Path, prefix: &str, files: &mut BTreeMap<String, u64>) {
    for name in names(directory) {
        let path = directory.join(&name);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            tree(&path, &format!("{prefix}{name}/"), files);
        } else {
            files.insert(format!("{prefix}{name}"), identity(&metadata));
        }
    }
}
