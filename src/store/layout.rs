//! Every path of the store is built here and nowhere else. FORMAT.md draws the tree.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::boot::BootId;
use super::damage::{self, Unwritten};
use super::spill::Spill;
use crate::domain::Digest;

/// The directory of this format. A change of format is a new name, never a migration in place.
const FORMAT_DIRECTORY: &str = "v1";

/// Builds paths below one store directory.
#[derive(Debug, Clone)]
pub struct Layout {
    base: PathBuf,
    root: PathBuf,
    boot: BootId,
    /// Part of what is below, but for a disk that does not take it: so it goes where the paths go.
    unwritten_marks: Arc<Unwritten>,
    /// What of it survives this process.
    spill: Arc<Spill>,
}

impl Layout {
    /// The layout below `base` during boot `boot`.
    pub(super) fn new(base: &Path, boot: BootId) -> Self {
        let (unwritten_marks, spill) = (Arc::default(), Arc::default());
        Self { base: base.to_owned(), root: base.join(FORMAT_DIRECTORY), boot, unwritten_marks, spill }
    }

    /// The same with what the disk did not take, which is beside one of these sockets. The lock is there.
    pub(super) fn beside(self, sockets: impl IntoIterator<Item = PathBuf>) -> Self {
        let spill = Arc::new(Spill::beside(&self.lock(), sockets));
        let layout = Self { spill, ..self };
        damage::take_up(&layout);
        layout
    }

    /// The directory the user named.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// This boot.
    pub(super) const fn boot(&self) -> &BootId {
        &self.boot
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Room that is kept for notes.
    pub(super) fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// Sealed blobs whose bytes were synced before they got their name.
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.blobs().join(&name[..2]).join(name)
    }

    /// Chunk values of sealed blobs that have more than one chunk.
    pub(super) fn values(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.all_values().join(&name[..2]).join(name)
    }

    pub(super) fn all_values(&self) -> PathBuf {
        self.root.join("values")
    }

    /// Blobs sealed and not yet synced: one directory per boot.
    pub(super) fn fresh_of_all_boots(&self) -> PathBuf {
        self.root.join("fresh")
    }

    pub(super) fn fresh(&self) -> PathBuf {
        self.fresh_of_all_boots().join(self.boot.as_str())
    }

    pub(super) fn fresh_blob(&self, digest: &Digest) -> PathBuf {
        self.fresh().join(digest.to_string())
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn partial_bytes(&self, id: &str) -> PathBuf {
        self.partials().join(format!("{id}.bytes"))
    }

    pub(super) fn partial_journal(&self, id: &str) -> PathBuf {
        self.partials().join(format!("{id}.journal"))
    }

    /// Where files and trees are made before they get their name by rename.
    pub(super) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    pub(super) fn catalog(&self) -> PathBuf {
        self.root.join("catalog.log")
    }

    pub(super) fn manifest(&self, digest: &Digest) -> PathBuf {
        self.root.join("manifests").join(format!("{digest}.json"))
    }

    pub(super) fn sources(&self) -> PathBuf {
        self.root.join("sources")
    }

    pub(super) fn source(&self, id: &str) -> PathBuf {
        self.sources().join(format!("{id}.json"))
    }

    /// What sources named at one look, for readers of a model that is still arriving.
    pub(super) fn listings(&self) -> PathBuf {
        self.root.join("listings")
    }

    pub(super) fn listing(&self, id: &Digest) -> PathBuf {
        self.listings().join(format!("{id}.json"))
    }

    /// What a mount remembers across restarts of the daemon.
    pub(super) fn mount(&self) -> PathBuf {
        self.root.join("mount")
    }

    /// Which copies of blobs are known to be wrong.
    pub(super) fn marks(&self) -> PathBuf {
        self.root.join("damaged")
    }

    pub(super) fn mark(&self, digest: &Digest) -> PathBuf {
        self.marks().join(digest.to_string())
    }

    pub(super) fn unwritten_marks(&self) -> &Unwritten {
        &self.unwritten_marks
    }

    /// Where what the disk does not take is kept.
    pub(super) fn spill(&self) -> &Spill {
        &self.spill
    }

    /// Notes of one kind.
    pub(super) fn shelf(&self, directory: &str) -> PathBuf {
        self.root.join(directory)
    }

    pub(super) fn note(&self, directory: &str, name: &str) -> PathBuf {
        self.shelf(directory).join(name)
    }

    /// Trees of ordinary files, hard links to blobs: what `larder path` prints.
    pub(super) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub(super) fn model(&self, digest: &Digest) -> PathBuf {
        self.models().join(digest.to_string())
    }

    /// All directories of a store, parents first.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let mut all = vec![self.base.clone(), self.root.clone()];
        all.extend(
            [
                "blobs",
                "values",
                "fresh",
                "partial",
                "scratch",
                "manifests",
                "sources",
                "listings",
                "mount",
                "models",
                "damaged",
                "leases",
                "pins",
                "state",
                "volumes",
            ]
            .map(|d| self.root.join(d)),
        );
        all.push(self.fresh());
        all
    }
}
