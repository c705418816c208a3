//! Looking at a store without owning it.
//!
//! Safe beside an owner: every document and every tree appears and goes by rename.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::boot::BootId;
use super::catalog::Catalog;
use super::error::AtPath as _;
use super::index::Index;
use super::unreadable::{Met, Unreadable};
use super::{
    CopyId, Error, Exported, Layout, Mark, ObjectId, Shelf, SourceRecord, Store, catalog, damage, export, fsx, lock,
    models, recovery, sealed, trees,
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
    met: Met,
    /// The owner's catalog, where this process owns the store.
    catalog: Option<Arc<Mutex<Catalog>>>,
}

impl View {
    pub(super) const fn new(layout: Layout, met: Met, catalog: Arc<Mutex<Catalog>>) -> Self {
        Self { layout, met, catalog: Some(catalog) }
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
        let mut met = Met::default();
        let socket = lock::last_socket(&layout);
        if recovery::is_needed(&layout) {
            match Store::open(directory) {
                Ok(store) => met = store.view.met.clone(),
                // Whoever owns it recovers it before doing anything else; what is not proven yet
                // lies in another boot's directory, where no look-up finds it.
                Err(Error::Busy { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { layout: layout.beside(socket), met, catalog: None })
    }

    pub(super) const fn met(&self) -> &Met {
        &self.met
    }

    /// Documents that could not be read by any look through this view or its clones: each was passed
    /// over.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.met.all()
    }

    /// Hears every record of a source with the time it was last used, one at a time: all together
    /// may be more than fits in memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn each_source(&self, each: &mut dyn FnMut(SourceRecord, SystemTime)) -> Result<(), Error> {
        models::each_source(&self.layout, &self.met, each)
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
        self.kept_where(|_| true)
    }

    /// Those of them that are wanted: all together may be more than fits in memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kept_where(&self, is_wanted: impl Fn(&Kept) -> bool) -> Result<Vec<Kept>, Error> {
        let mut kept: Vec<Kept> = Vec::new();
        self.each_kept(&mut |one| kept.extend(Some(one).filter(&is_wanted)))?;
        let source = |kept: &Kept| kept.record.as_ref().map(|record| record.source.clone());
        kept.sort_by_cached_key(|kept| (kept.record.is_none(), source(kept)));
        Ok(kept)
    }

    /// Hears everything that is kept, one at a time: sources in no order, then models no source names
    /// any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn each_kept(&self, each: &mut dyn FnMut(Kept)) -> Result<(), Error> {
        let mut named: HashSet<Digest> = HashSet::new();
        self.each_source(&mut |record, used| {
            named.extend(record.manifest);
            each(Kept { manifest: record.manifest, record: Some(record), last_used: Some(used) });
        })?;
        let unnamed = models::all_manifests(&self.layout)?.into_iter().filter(|digest| !named.contains(digest));
        unnamed.for_each(|digest| each(Kept { record: None, manifest: Some(digest), last_used: None }));
        Ok(())
    }

    /// How many records of sources there are, readable or not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn source_count(&self) -> Result<usize, Error> {
        let directory = self.layout.sources();
        fsx::names(&directory).at("list", &directory).map(|names| names.len())
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
        Ok(models::find_source(&self.layout, &self.met, record_id))
    }

    /// What a source named when a reader was let in before it had arrived.
    ///
    /// # Errors
    /// [`Error::Io`]; a document that proves nothing is `None`.
    pub fn listing(&self, id: &Digest) -> Result<Option<SourceRecord>, Error> {
        Ok(models::read_listing(&self.layout, &self.met, id))
    }

    /// The names of all listings that are kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn listings(&self) -> Result<Vec<Digest>, Error> {
        models::all_listings(&self.layout)
    }

    /// The bytes of a sealed blob, `size` of them: a copy of another length is wrong, and known to be
    /// from here on.
    ///
    /// # Errors
    /// [`Error::Absent`]; [`Error::Io`].
    pub fn open_blob(&self, digest: &Digest, size: u64) -> Result<File, Error> {
        sealed::with_path(&self.layout, digest, size, digest, |path| fsx::open(path).at("open", path))
    }

    /// The metadata of a sealed blob of this size. [`CopyId`] tells it from another copy, fetched later.
    ///
    /// # Errors
    /// [`Error::Absent`].
    pub fn blob_metadata(&self, digest: &Digest, size: u64) -> Result<Metadata, Error> {
        let found = sealed::sized(&self.layout, digest, size).map(|(_, metadata)| metadata);
        found.ok_or_else(|| Error::Absent(format!("blob {digest}")))
    }

    /// The metadata of a sealed blob that is handed out, whatever its length.
    #[must_use]
    pub fn copy_of_blob(&self, digest: &Digest) -> Option<Metadata> {
        sealed::metadata(&self.layout, digest)
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

    /// Whether the blob is sealed here with all of its bytes. A copy of another length is wrong, and
    /// known to be from here on.
    #[must_use]
    pub fn has_sized_blob(&self, digest: &Digest, size: u64) -> bool {
        sealed::sized(&self.layout, digest, size).is_some()
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
        match fsx::read_bounded(&sealed::find(&self.layout, digest)?, len_max) {
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
        self.touch_id(&record.id());
    }

    /// The same, by the id of its record.
    pub fn touch_id(&self, record_id: &str) {
        models::touch_source(&self.layout, record_id);
    }

    /// What of unfinished sources is here already: for any number of questions.
    #[must_use]
    pub const fn presence(&self) -> Presence<'_> {
        Presence { view: self, index: OnceCell::new() }
    }

    /// Bytes of an unfinished source that are here already.
    #[must_use]
    pub fn bytes_present(&self, record: &SourceRecord) -> u64 {
        self.presence().bytes(record)
    }

    /// Writes a model's files into a directory of the caller's own.
    ///
    /// # Errors
    /// [`Error::Foreign`] when the directory is not empty; [`Error::Io`].
    pub fn export(&self, manifest: &Manifest, directory: &Path, hard_links: bool) -> Result<Exported, Error> {
        export::export(&self.layout, manifest, directory, hard_links)
    }
}

/// What of unfinished sources is here. Reads the catalog once, where it is not at hand.
#[derive(Debug)]
pub struct Presence<'a> {
    view: &'a View,
    index: OnceCell<Index>,
}

impl Presence<'_> {
    /// Bytes of a source that are here.
    #[must_use]
    pub fn bytes(&self, record: &SourceRecord) -> u64 {
        record.files.iter().map(|file| self.of(&record.object(file))).fold(0, u64::saturating_add)
    }

    /// The same, file by file, in the record's order.
    #[must_use]
    pub fn files(&self, record: &SourceRecord) -> Vec<u64> {
        record.files.iter().map(|file| self.of(&record.object(file))).collect()
    }

    /// Bytes of an object. Opens its journal where it is not sealed.
    fn of(&self, id: &ObjectId) -> u64 {
        match self.digest(id) {
            Some(digest) if self.view.has_sized_blob(&digest, id.size) => id.size,
            _ => super::partial::peek(&self.view.layout, id),
        }
    }

    fn digest(&self, id: &ObjectId) -> Option<Digest> {
        let known = match &self.view.catalog {
            Some(catalog) => catalog.lock().unwrap_or_else(PoisonError::into_inner).index().find(id).copied(),
            None => self.index.get_or_init(|| catalog::read(&self.view.layout)).find(id).copied(),
        };
        known.map(|known| known.digest)
    }
}
