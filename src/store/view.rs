//! Looking at a store without owning it.
//!
//! Safe beside an owner: every document and every tree appears and goes by rename.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::boot::BootId;
use super::error::AtPath as _;
use super::{
    CopyId, Error, Exported, Layout, Mark, Shelf, SourceFile, SourceRecord, Store, catalog, damage, export, models,
    recovery, sealed, trees,
};
use crate::domain::{Digest, Manifest, ManifestEntry};

/// One line of `larder ls`.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The source that names it; `None` for a model whose source has moved on.
    pub record: Option<SourceRecord>,
    /// The model; `None` while its first pull is unfinished.
    pub manifest: Option<Digest>,
    /// When it was last asked for.
    pub last_used: Option<SystemTime>,
}

/// A store, to look at.
#[derive(Debug, Clone)]
pub struct View {
    layout: Layout,
}

impl View {
    pub(super) const fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Opens a store for looking. After a reboot, the first to come takes the lock and recovers.
    ///
    /// # Errors
    /// [`Error::Absent`] where there is no store; whatever recovery meets.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let layout = Layout::new(directory, BootId::current());
        if !layout.root().is_dir() {
            return Err(Error::Absent(format!("`{}` holds no store: nothing", directory.display())));
        }
        if recovery::is_needed(&layout) {
            match Store::open(directory) {
                // Whoever owns it recovers it before doing anything else; what is not proven yet
                // lies in another boot's directory, where no look-up finds it.
                Ok(_) | Err(Error::Busy { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { layout })
    }

    pub(super) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The directory the user named.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.layout.base()
    }

    /// Everything that is kept: sources first, then models no source names any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kept(&self) -> Result<Vec<Kept>, Error> {
        let mut kept: Vec<Kept> = models::read_sources(&self.layout, &mut Vec::new())?
            .into_iter()
            .map(|(record, used)| Kept { manifest: record.manifest, record: Some(record), last_used: Some(used) })
            .collect();
        kept.sort_by(|a, b| a.record.as_ref().map(|r| &r.source).cmp(&b.record.as_ref().map(|r| &r.source)));
        let named: HashSet<Digest> = kept.iter().filter_map(|kept| kept.manifest).collect();
        let unnamed = models::all_manifests(&self.layout)?.into_iter().filter(|digest| !named.contains(digest));
        kept.extend(unnamed.map(|digest| Kept { record: None, manifest: Some(digest), last_used: None }));
        Ok(kept)
    }

    /// A directory for what a mount remembers across restarts of its daemon: the store does not
    /// look into it.
    #[must_use]
    pub fn mount_directory(&self) -> PathBuf {
        self.layout.mount()
    }

    /// What a source names, by its record's id.
    ///
    /// # Errors
    /// [`Error::Io`]; a document that proves nothing is `None`.
    pub fn source(&self, record_id: &str) -> Result<Option<SourceRecord>, Error> {
        models::find_source(&self.layout, record_id)
    }

    /// What a source named when a reader was let in before it had arrived.
    ///
    /// # Errors
    /// [`Error::Io`]; a document that proves nothing is `None`.
    pub fn listing(&self, id: &Digest) -> Result<Option<SourceRecord>, Error> {
        models::read_listing(&self.layout, id)
    }

    /// The names of all listings that are kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn listings(&self) -> Result<Vec<Digest>, Error> {
        models::all_listings(&self.layout)
    }

    /// The bytes of a sealed blob.
    ///
    /// # Errors
    /// [`Error::Absent`]; [`Error::Io`].
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        sealed::with_path(&self.layout, digest, digest, |path| File::open(path).at("open", path))
    }

    /// The metadata of a sealed blob. [`CopyId`] tells it from another copy, fetched later.
    ///
    /// # Errors
    /// [`Error::Absent`].
    pub fn blob_metadata(&self, digest: &Digest) -> Result<Metadata, Error> {
        sealed::metadata(&self.layout, digest).ok_or_else(|| Error::Absent(format!("blob {digest}")))
    }

    /// A manifest, proven by its digest.
    ///
    /// # Errors
    /// [`Error::Absent`]; [`Error::Damaged`].
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, Error> {
        models::read_manifest(&self.layout, digest)
    }

    /// Whether every file of the model is here.
    #[must_use]
    pub fn is_complete(&self, manifest: &Manifest, digest: &Digest) -> bool {
        trees::is_complete(&self.layout, manifest, digest)
    }

    /// The files of a model that are damaged or missing.
    pub fn lacking<'a>(&self, manifest: &'a Manifest, digest: &Digest) -> impl Iterator<Item = &'a ManifestEntry> {
        let tree = self.tree(digest);
        manifest.files().iter().filter(move |file| !trees::shows(&self.layout, file, &tree))
    }

    /// Something that is another as soon as any blob is known to be damaged, or is so no more, in
    /// whichever process; `None` where that cannot be seen.
    #[must_use]
    pub fn damage_stamp(&self) -> Option<u64> {
        damage::stamp(&self.layout)
    }

    /// Blobs that are known to be damaged or missing, by the marks.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn marks(&self) -> Result<Vec<(Digest, Mark)>, Error> {
        damage::all(&self.layout)
    }

    /// What a failed read of a blob proves: whether the error says that its bytes are not to be had.
    #[must_use]
    pub fn is_damage(error: &std::io::Error) -> bool {
        damage::is_proof(error)
    }

    /// Says of a copy of a blob that it is wrong: no process hands it out from here on. Whoever owns
    /// the store takes it out of the models' directories.
    ///
    /// # Errors
    /// [`Error::Io`]: only this process knows it.
    pub fn condemn(&self, digest: &Digest, copy: CopyId) -> Result<(), Error> {
        damage::mark(&self.layout, digest, Some(copy))
    }

    /// The directory with the model's files. One that is there may lack a file that is damaged:
    /// [`View::is_complete`] says so.
    #[must_use]
    pub fn tree(&self, digest: &Digest) -> PathBuf {
        self.layout.model(digest)
    }

    /// Whether the blob is sealed here.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        sealed::find(&self.layout, digest).is_some()
    }

    /// The length of a sealed blob in bytes; 0 when it is not here.
    #[must_use]
    pub fn blob_len(&self, digest: &Digest) -> u64 {
        sealed::metadata(&self.layout, digest).map_or(0, |metadata| metadata.len())
    }

    /// The bytes of a sealed blob, for files that are read whole (at most `len_max` bytes). Hashed,
    /// because decisions hang on them.
    #[must_use]
    pub fn read_small_blob(&self, digest: &Digest, len_max: u64) -> Option<Vec<u8>> {
        let metadata = sealed::metadata(&self.layout, digest)?;
        match super::fsx::read_bounded(&sealed::find(&self.layout, digest)?, len_max) {
            Ok(bytes) if Digest::of(&bytes) == *digest => return Some(bytes),
            Err(error) if !damage::is_proof(&error) => return None,
            _ => {}
        }
        tracing::error!(%digest, "a blob is damaged on disk: it is fetched again");
        let _ = self.condemn(digest, CopyId::of(&metadata));
        None
    }

    /// Whether there is a note of that kind and name.
    #[must_use]
    pub fn is_noted(&self, shelf: Shelf, name: &str) -> bool {
        self.layout.note(shelf.directory(), name).is_file()
    }

    /// Notes that a source was used now.
    pub fn touch(&self, record: &SourceRecord) {
        models::touch_source(&self.layout, &record.id());
    }

    /// Bytes of an unfinished source that are here already.
    #[must_use]
    pub fn bytes_present(&self, record: &SourceRecord) -> u64 {
        self.files_present(record).into_iter().fold(0, u64::saturating_add)
    }

    /// The same, file by file, in the record's order. Opens a journal for each file that is not sealed.
    #[must_use]
    pub fn files_present(&self, record: &SourceRecord) -> Vec<u64> {
        let known = catalog::read(&self.layout);
        let present = |file: &SourceFile| {
            let id = record.object(file);
            match known.get(&id) {
                Some(known) if self.has_blob(&known.digest) => file.size,
                _ => super::partial::peek(&self.layout, &id),
            }
        };
        record.files.iter().map(present).collect()
    }

    /// Writes a model's files into a directory of the caller's own.
    ///
    /// # Errors
    /// [`Error::Foreign`] when the directory is not empty; [`Error::Io`].
    pub fn export(&self, manifest: &Manifest, directory: &Path, hard_links: bool) -> Result<Exported, Error> {
        export::export(&self.layout, manifest, directory, hard_links)
    }
}
