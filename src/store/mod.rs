//! The disk side: what is kept, under which name, and why that name can be trusted.
//!
//! Blocking; knows no network. One process owns a store for writing ([`Store`], by its lock);
//! any number may look ([`View`]). The format is written down in `FORMAT.md` beside this file.

#![doc = include_str!("FORMAT.md")]

mod boot;
mod catalog;
mod census;
mod damage;
mod direct;
mod document;
mod error;
mod export;
mod fsx;
mod hold;
mod index;
mod layout;
mod lock;
mod models;
mod notes;
mod observer;
mod partial;
mod record;
mod recovery;
mod reserve;
mod sealed;
mod space;
mod spill;
mod trees;
mod unreadable;
mod view;
mod writable;
mod writeback;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{Checksum, ChunkIndex, Claims, CrcKind, Digest, Grid, Manifest, ManifestEntry, Object, Text};

use boot::BootId;
pub use catalog::{Equal, Known, ObjectId};
pub use census::{Census, Entry, PartialEntry};
pub use damage::{CopyId, Mark};
use error::AtPath as _;
pub use error::Error;
pub use export::Exported;
pub use hold::Hold;
pub use layout::Layout;
pub use models::{SourceFile, SourceRecord};
pub use notes::Shelf;
pub use observer::Observer;
pub use partial::{ChunkRecord, Left, Partial, Prefix};
pub use recovery::Recovered;
pub use space::{Amount, Inodes, Space};
pub use unreadable::Unreadable;
pub use view::{Kept, Presence, View};
pub use writable::Turn;
pub use writeback::{WriteBack, dirty_budget};

/// Blobs older than this are on the disk by the kernel's own flusher (`dirty_expire_centisecs`
/// is 30 s by default), so settling them costs little.
const SETTLE_AGE: Duration = Duration::from_mins(1);

/// Documents beside a model's blobs and directories: source, listing, manifest, the note of a volume
/// and of a lease, and whichever of them is being replaced.
const DOCUMENT_COUNT: u64 = 6;

/// A store, owned.
#[derive(Debug)]
pub struct Store {
    view: View,
    lock: lock::Lock,
    catalog: Arc<Mutex<catalog::Catalog>>,
    holds: Arc<hold::Holds>,
    /// Taken to change which manifests there are: publishing and forgetting exclude each other,
    /// because what one names the other must not remove.
    names: Mutex<()>,
    unwritten: notes::Unwritten,
    observer: OnceLock<Arc<dyn Observer>>,
    recovered: Recovered,
    /// Marks whose blobs are out of every tree, as far as this process has seen to it.
    heeded: Mutex<HashMap<Digest, Option<CopyId>>>,
    writable: writable::Writable,
}

impl Store {
    /// Opens the store below `directory`, making it where there is none, and recovers it.
    ///
    /// # Errors
    /// [`Error::Busy`] when another process owns it; [`Error::Foreign`] when the directory holds
    /// something else; [`Error::Io`].
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let mut store = Self::open_unproven(directory, None)?;
        let mut recovered = std::mem::take(&mut store.recovered);
        store.prove_into(&mut recovered)?;
        store.recovered = recovered;
        Ok(store)
    }

    /// The same for a daemon that takes requests at `socket`, where others who want the store find
    /// it. What another boot left unproven stays unseen until [`Store::prove`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_unproven(directory: &Path, socket: Option<&Path>) -> Result<Self, Error> {
        let layout = Layout::new(directory, BootId::current());
        refuse_foreign(&layout)?;
        fsx::create_directories(layout.root()).at("create", layout.root())?;
        let last = lock::last_socket(&layout);
        let lock = lock::Lock::take(&layout, socket)?;
        // What the disk did not take before: the lock names this socket by now.
        let layout = layout.beside(socket.map(Path::to_owned).into_iter().chain(last));
        let met = unreadable::Met::default();
        let mut recovered = writable::prepare(&layout, &met)?;
        let catalog = catalog::Catalog::open(&layout)?;
        recovered.catalog_lines_dropped = catalog.dropped();
        let store = Self::of(layout, lock, catalog, met, recovered);
        // What is still not taken is tried again.
        let _ = store.unwritten.write_all(store.layout());
        Ok(store)
    }

    fn of(
        layout: Layout,
        lock: lock::Lock,
        catalog: catalog::Catalog,
        met: unreadable::Met,
        recovered: Recovered,
    ) -> Self {
        let (catalog, holds, names) = (Arc::new(Mutex::new(catalog)), Arc::default(), Mutex::default());
        let unwritten = notes::Unwritten::open(&layout);
        let view = View::new(layout, met, Arc::clone(&catalog));
        let (observer, heeded, writable) = (OnceLock::new(), Mutex::default(), writable::Writable::default());
        let store = Self { view, lock, catalog, holds, names, unwritten, observer, recovered, heeded, writable };
        if let Err(error) = store.heed() {
            tracing::warn!(%error, "what is known to be damaged could not be taken out of every model's directory");
        }
        store
    }

    /// Hashes what another boot left unproven, and mends or removes what shows it. Takes as long
    /// as reading those blobs does.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is lost, the next call goes on.
    pub fn prove(&self) -> Result<Recovered, Error> {
        let mut recovered = Recovered::default();
        self.prove_into(&mut recovered)?;
        Ok(recovered)
    }

    fn prove_into(&self, recovered: &mut Recovered) -> Result<(), Error> {
        if recovery::is_needed(self.layout()) {
            recovery::prove_fresh_of_other_boots(self.layout(), recovered)?;
            let _names = self.lock_names();
            recovery::rebuild_trees(self.layout(), recovered)?;
        }
        Ok(())
    }

    /// Whether any blob waits to be proven.
    #[must_use]
    pub fn has_unproven(&self) -> bool {
        recovery::is_needed(self.layout())
    }

    /// Whether a blob that this source names waits to be proven.
    #[must_use]
    pub fn is_unproven(&self, record: &SourceRecord) -> bool {
        recovery::is_needed(self.layout())
            && record.files.iter().filter_map(|file| file.digest).any(|d| recovery::is_unproven(self.layout(), &d))
    }

    /// Where the last owner of a store took requests, if it did: it may be gone.
    #[must_use]
    pub fn last_socket(directory: &Path) -> Option<PathBuf> {
        lock::last_socket(&Layout::new(directory, BootId::current()))
    }

    fn lock_names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps blobs from being removed for as long as it lives.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold::new(&self.holds)
    }

    /// Tells `observer` what goes from now on. The first one stays.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    fn tell(&self, what: impl FnOnce(&dyn Observer)) {
        if let Some(observer) = self.observer.get() {
            what(observer.as_ref());
        }
    }

    /// Everything in the store with its size. Reads every manifest and source document.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn census(&self) -> Result<Census, Error> {
        census::take(self)
    }

    /// Removes a partial that nobody fills.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_partial(&self, file_id: &str) -> Result<(), Error> {
        census::drop_partial(self.layout(), file_id)
    }

    /// Writes a note in place of an older one of that name: letters, digits, `-` or `_`. One of who
    /// uses what takes the room that is kept for those, and is tried again by [`Self::write_notes`]
    /// where the disk does not take it.
    ///
    /// # Errors
    /// [`Error::Io`], with disk-full among them.
    pub fn note<T: serde::Serialize>(&self, shelf: Shelf, name: &str, note: &T) -> Result<(), Error> {
        self.unwritten.write(self.layout(), shelf, name, record::encode(note))
    }

    /// Writes, and removes, the notes of who uses what that the disk did not take before, and keeps
    /// room for those to come.
    ///
    /// # Errors
    /// [`Error::Io`]: it still does not.
    pub fn write_notes(&self) -> Result<(), Error> {
        self.unwritten.write_all(self.layout())?;
        reserve::keep(self.layout())
    }

    /// Every note of that kind, with its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn notes<T: serde::de::DeserializeOwned>(&self, shelf: Shelf) -> Result<Vec<(String, T)>, Error> {
        self.unwritten.read_all(self.layout(), shelf)
    }

    /// Removes a note, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_note(&self, shelf: Shelf, name: &str) -> Result<(), Error> {
        self.unwritten.remove(self.layout(), shelf, name)
    }

    /// Keeps a listing, so that readers of it find it whatever the source names later. Its name.
    ///
    /// # Errors
    /// [`Error::Io`], with disk-full among them.
    pub fn keep_listing(&self, record: &SourceRecord) -> Result<Digest, Error> {
        models::write_listing(self.layout(), self.view.met(), record)
    }

    /// Forgets a listing, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_listing(&self, id: &Digest) -> Result<(), Error> {
        let path = self.layout().listing(id);
        fsx::remove_if_there(&path).at("remove", &path)
    }

    /// What an earlier process of this boot left of an object, for reading.
    #[must_use]
    pub fn left(&self, id: &ObjectId) -> Option<Left> {
        Left::open(self.layout(), id)
    }

    /// What is kept, for looking.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// What recovery did when the store was opened.
    #[must_use]
    pub const fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    fn layout(&self) -> &Layout {
        self.view.layout()
    }

    fn catalog(&self) -> MutexGuard<'_, catalog::Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of an object whose bytes are here, at exactly this version.
    #[must_use]
    pub fn known(&self, id: &ObjectId) -> Option<Known> {
        let known = *self.catalog().index().find(id)?;
        let index::Recorded { digest, checked, .. } = known;
        self.view.has_sized_blob(&digest, id.size).then(|| Known { id: id.clone(), digest, checked, stated_md5: None })
    }

    /// A blob that the origin's own checksums prove equal to `object`.
    #[must_use]
    pub fn equal(&self, id: &ObjectId, object: &Object) -> Option<Equal> {
        let found = self.catalog().index().find_equal(id, object)?;
        self.view.has_sized_blob(&found.digest, id.size).then_some(found)
    }

    /// Whether something of this size was ever pulled.
    #[must_use]
    pub fn has_size(&self, size: u64) -> bool {
        self.catalog().index().has_size(size)
    }

    /// What the objects of a record are, as far as they were ever pulled.
    fn blobs_known(&self, record: &SourceRecord) -> HashSet<Digest> {
        let catalog = self.catalog();
        let known = record.files.iter().filter_map(|file| Some(catalog.index().find(&record.object(file))?.digest));
        // Bytes found here by a proof are in the catalog under another object only.
        known.chain(record.files.iter().filter_map(|file| file.digest)).collect()
    }

    /// Records what an object's bytes are.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn learn(&self, known: &Known) -> Result<(), Error> {
        self.catalog().append(self.layout(), known)
    }

    /// Opens, or starts, the partial of an object; new records hold CRCs of that kind.
    ///
    /// # Errors
    /// [`Error::Io`], with disk-full among them.
    pub fn partial(&self, id: ObjectId, crc: Option<CrcKind>) -> Result<Partial, Error> {
        Partial::open(self.layout(), id, crc)
    }

    /// The blob of an object whose pull was killed after sealing it and before recording it. It is
    /// recorded now, by its BLAKE3 digest alone: what it was compared with died with the process.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sealed_before(&self, id: &ObjectId, hold: &Hold) -> Result<Option<Digest>, Error> {
        let Some(digest) = partial::sealed_before(self.layout(), id)? else { return Ok(None) };
        hold.add(digest);
        if !self.view.has_sized_blob(&digest, id.size) {
            return Ok(None);
        }
        self.learn(&Known::new(id.clone(), digest, None, &Claims::default()))?;
        Ok(Some(digest))
    }

    /// Seals a complete partial and records its object, whose bytes were compared with `checked`.
    /// The blob is held from before it has its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Absent`] when chunks are missing.
    pub fn seal(
        &self,
        partial: &Partial,
        checked: Option<Checksum>,
        claims: &Claims,
        hold: &Hold,
    ) -> Result<Digest, Error> {
        let digest = partial.seal(hold)?;
        self.learn(&Known::new(partial.id().clone(), digest, checked, claims))?;
        partial.forget()?;
        Ok(digest)
    }

    /// Seals a small file that is in memory, without a partial.
    ///
    /// # Errors
    /// [`Error::Io`], with disk-full among them.
    pub fn seal_bytes(
        &self,
        id: ObjectId,
        slices: &[Bytes],
        checked: Option<Checksum>,
        claims: &Claims,
        hold: &Hold,
    ) -> Result<Digest, Error> {
        let digest = sealed::seal_bytes(self.layout(), slices, hold)?;
        self.learn(&Known::new(id, digest, checked, claims))?;
        Ok(digest)
    }

    /// The file system the store is on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn space(&self) -> Result<Space, Error> {
        space::measure(self.layout().root())
    }

    /// What pulling this object would still take from the file system: its size, less what an earlier
    /// pull has allocated, and the files that it is made of meanwhile.
    #[must_use]
    pub fn room_needed(&self, id: &ObjectId) -> Amount {
        use std::os::unix::fs::MetadataExt as _;
        if Grid::of_size(id.size).chunk_count() <= 1 {
            // In memory until it is sealed.
            return Amount::new(id.size, 1);
        }
        let file_id = id.file_id();
        let bytes = self.layout().partial_bytes(&file_id).metadata().ok();
        let allocated = bytes.as_ref().map_or(0, |m| m.blocks() * 512);
        let journal = self.layout().partial_journal(&file_id).exists();
        // Beside bytes and journal, the values once it is sealed.
        let inodes = 1 + u64::from(bytes.is_none()) + u64::from(!journal);
        Amount::new(id.size.saturating_sub(allocated), inodes)
    }

    /// What a model takes beside its blobs, of which `missing` are to come: directories and documents.
    #[must_use]
    pub fn room_needed_beside(&self, record: &SourceRecord, missing: u64) -> Amount {
        // Blobs are spread over so many directories, which stay once they are made.
        let spread = |directory: PathBuf| {
            missing.min(256_u64.saturating_sub(fsx::names(&directory).map_or(0, |names| names.len() as u64)))
        };
        let made = spread(self.layout().blobs()) + spread(self.layout().all_values());
        let directories = models::directory_count(record.files.iter().map(|file| &file.path));
        Amount::new(0, directories + made + DOCUMENT_COUNT)
    }

    /// Refuses what could not be read back once it is written down whole.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn check_len(&self, source: &SourceRecord) -> Result<(), Error> {
        models::check_len(source)
    }

    /// Removes documents whose bytes are wrong, and that some look has met. What they said is found
    /// again: the source is listed anew, and what is here is known by its objects.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_unreadable(&self) -> Result<(), Error> {
        for path in self.view.met().to_remove() {
            let _names = self.lock_names();
            // Written anew since, if it can be read now.
            if !models::is_readable(&path) {
                fsx::remove_if_there(&path).at("remove", &path)?;
                tracing::warn!(path = %path.display(), "removed: its bytes were wrong, and it is made again when its source is asked for");
            }
            self.view.met().removed(&path);
        }
        Ok(())
    }

    /// Whether what a source names is complete, by its record's id; nothing where no record says.
    #[must_use]
    pub fn is_announced_complete(&self, record_id: &str) -> Option<bool> {
        models::is_announced_complete(self.layout(), record_id)
    }

    /// Writes down what a source names while it is still being pulled. A complete record of the
    /// same source stays.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn announce(&self, source: &SourceRecord) -> Result<(), Error> {
        if self.is_announced_complete(&source.id()) == Some(true) {
            return Ok(());
        }
        models::write_source(self.layout(), source)
    }

    /// Publishes a complete model: manifest, tree, and the source that names it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Absent`] when a blob of the manifest is not here.
    pub fn publish(&self, mut source: SourceRecord, manifest: &Manifest) -> Result<Digest, Error> {
        let names = self.lock_names();
        let (digest, _) = models::write_manifest(self.layout(), manifest)?;
        if !trees::is_complete(self.layout(), manifest, &digest) {
            let mended = trees::mend(self.layout(), manifest, &digest, None)?;
            if mended.changed {
                self.tell(|observer| observer.model_changed(&digest));
            }
            if mended.lacking > 0 {
                // Removed, or found to be wrong, since this pull looked for it.
                return Err(Error::Absent(format!("{} of the files of model {digest}", mended.lacking)));
            }
        }
        source.manifest = Some(digest);
        models::write_source(self.layout(), &source)?;
        drop(names);
        // What came may be what other models lack.
        self.heed()?;
        Ok(digest)
    }

    /// Syncs blobs that were sealed in this boot and moves them to their durable place. `all`
    /// also takes those that are so young that the disk may have to be waited for.
    ///
    /// # Errors
    /// [`Error::Io`]: a device that failed to write says so here.
    pub fn settle(&self, all: bool) -> Result<u64, Error> {
        let fresh = self.layout().fresh();
        let mut settled = 0;
        for name in fsx::names(&fresh).at("list", &fresh)? {
            let Ok(digest) = name.parse::<Digest>() else { continue };
            if !self.view.has_blob(&digest) {
                // Known to be wrong.
                continue;
            }
            if all || fsx::unchanged_for(&fresh.join(&name)).is_none_or(|age| age > SETTLE_AGE) {
                self.settle_one(&digest)?;
                settled += 1;
            }
        }
        if all {
            let (catalog, sources) = (self.layout().catalog(), self.layout().sources());
            fsx::sync_file(&catalog).at("sync", &catalog)?;
            // What is removed meanwhile needs no sync.
            for name in fsx::names(&sources).at("list", &sources)? {
                fsx::sync_if_there(&sources.join(name)).at("sync", &sources)?;
            }
            for digest in models::all_manifests(self.layout())? {
                let path = self.layout().manifest(&digest);
                fsx::sync_if_there(&path).at("sync", &path)?;
                if let Ok(manifest) = models::read_manifest(self.layout(), &digest) {
                    trees::sync(self.layout(), &manifest, &digest)?;
                }
            }
            for directory in self.layout().directories() {
                fsx::sync_directory(&directory).at("sync", &directory)?;
            }
        }
        Ok(settled)
    }

    fn settle_one(&self, digest: &Digest) -> Result<(), Error> {
        if let Err(error) = sealed::sync(self.layout(), digest) {
            if !self.view.has_blob(digest) {
                // Removed meanwhile.
                return Ok(());
            }
            tracing::error!(%digest, %error, "the disk failed to write a blob: it is fetched again");
            // Whatever memory says of it, the disk may say something else.
            self.condemn(digest)?;
            return Err(error);
        }
        match sealed::settle(self.layout(), digest) {
            Err(_) if !self.view.has_blob(digest) => Ok(()),
            settled => settled,
        }
    }

    /// Hashes a blob on disk; the chunks that are wrong, none when it is right. `each` hears the
    /// bytes read so far and returns false to stop, and then the answer is `None`. What is found is
    /// written down: a copy that is wrong is handed out by nobody from here on.
    ///
    /// # Errors
    /// [`Error::Absent`]; [`Error::Io`].
    pub fn scrub(&self, digest: &Digest, each: &mut dyn FnMut(u64) -> bool) -> Result<Option<Vec<ChunkIndex>>, Error> {
        let any = sealed::any(self.layout(), digest);
        let (path, metadata) = any.ok_or_else(|| Error::Absent(format!("blob {digest}")))?;
        if !sealed::is_readable(&path, &metadata) {
            let _ = self.condemn_copy(digest, Some(CopyId::of(&metadata)));
            let grid = Grid::of_size(metadata.len());
            return Ok(Some((0..grid.chunk_count().max(1)).map(ChunkIndex).collect()));
        }
        let Some((copy, bad)) = sealed::scrub(self.layout(), &path, digest, each)? else { return Ok(None) };
        if !bad.is_empty() {
            // What the disk does not take is complained of there; damage it is nevertheless.
            let _ = self.condemn_copy(digest, Some(copy));
        } else if !self.view.has_blob(digest) {
            // A device that could not be read then can be read now.
            damage::clear(self.layout(), digest, Some(copy))?;
            self.heeded().remove(digest);
            self.mend_trees_of(digest, None)?;
        }
        Ok(Some(bad))
    }

    /// The length of whatever has a blob's name, right or wrong.
    #[must_use]
    pub fn blob_len_of_any(&self, digest: &Digest) -> Option<u64> {
        sealed::any(self.layout(), digest).map(|(_, metadata)| metadata.len())
    }

    /// Says that a blob is wrong, or missing: from here on nobody finds the copy that is here, and
    /// the name of its file goes from every tree; all others stay. Readers that have it open keep
    /// what they have. Its bytes stay until a right copy takes its place, or room is wanted.
    ///
    /// # Errors
    /// [`Error::Io`]; nevertheless this process hands it out no more.
    pub fn condemn(&self, digest: &Digest) -> Result<(), Error> {
        let copy = sealed::metadata(self.layout(), digest).map(|metadata| CopyId::of(&metadata));
        if copy.is_none() && !sealed::condemned(self.layout(), digest).is_empty() {
            // It was, before.
            return self.heed().map(drop);
        }
        self.condemn_copy(digest, copy)
    }

    fn condemn_copy(&self, digest: &Digest, copy: Option<CopyId>) -> Result<(), Error> {
        let marked = damage::mark(self.layout(), digest, copy);
        if let Err(error) = &marked {
            tracing::warn!(%digest, %error, "a damaged blob could not be marked: other processes, and the next one, do not know it");
        }
        // A full disk takes no mark, and gives what is taken out.
        if marked.as_ref().is_err_and(|error| !error.is_disk_full()) {
            return marked;
        }
        self.mend_trees_of(digest, copy)?;
        self.heeded().insert(*digest, copy);
        damage::write_down(self.layout());
        Ok(())
    }

    fn heeded(&self) -> MutexGuard<'_, HashMap<Digest, Option<CopyId>>> {
        self.heeded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to every mark, whoever made it: what is wrong goes out of the trees, and what is here
    /// again comes back into them, and then the mark goes. The blobs that models still lack.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn heed(&self) -> Result<Vec<Digest>, Error> {
        let mut lacking = Vec::new();
        for (digest, Mark { copy, .. }) in damage::all(self.layout())? {
            if self.view.has_blob(&digest) {
                self.mend_trees_of(&digest, None)?;
                let (_, unnamed) = sealed::unname_condemned(self.layout(), &digest)?;
                damage::clear(self.layout(), &digest, copy)?;
                self.heeded().remove(&digest);
                for path in unnamed {
                    fsx::remove_if_there(&path).at("remove", &path)?;
                }
                continue;
            }
            if self.heeded().get(&digest) != Some(&copy) {
                self.mend_trees_of(&digest, copy)?;
                self.heeded().insert(digest, copy);
            }
            lacking.push(digest);
        }
        damage::write_down(self.layout());
        Ok(lacking)
    }

    /// Marks every blob that a model names and that is not here, or has another length, as after a crash
    /// on a full disk.
    /// Reads every manifest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mark_missing(&self) -> Result<(), Error> {
        let mut missing = HashSet::new();
        for digest in models::all_manifests(self.layout())? {
            let Ok(manifest) = models::read_manifest(self.layout(), &digest) else { continue };
            let lacks = |file: &&ManifestEntry| !self.view.has_sized_blob(&file.digest, file.size);
            missing.extend(manifest.files().iter().filter(lacks).map(|file| file.digest));
        }
        missing.iter().try_for_each(|digest| self.condemn(digest))
    }

    /// Puts a blob into every tree that names it, or takes it out. `copy` is the one that is wrong.
    fn mend_trees_of(&self, digest: &Digest, copy: Option<CopyId>) -> Result<(), Error> {
        let _names = self.lock_names();
        let all = self.layout().models();
        let mut result = Ok(());
        for name in fsx::names(&all).at("list", &all)? {
            let Ok(model) = name.parse::<Digest>() else { continue };
            let changed = match models::read_manifest(self.layout(), &model) {
                Ok(manifest) => {
                    trees::mend(self.layout(), &manifest, &model, Some(digest)).map(|mended| mended.changed)
                }
                // It may name it too.
                Err(_) => copy.map_or(Ok(false), |copy| trees::take_out(&all.join(&name), copy.inode())),
            };
            // Where the name cannot go, who has the model open hears of it nevertheless.
            if !matches!(changed, Ok(false)) {
                self.tell(|observer| observer.model_changed(&model));
            }
            result = result.and(changed.map(drop));
        }
        if copy.is_some() {
            self.tell(|observer| observer.blob_went(digest));
        }
        result
    }

    /// Directories of models that nothing names: their manifests were damaged, and they have not been
    /// pulled again. Somebody may have them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stray_trees(&self) -> Result<Vec<Digest>, Error> {
        let all = self.layout().models();
        let trees = fsx::names(&all).at("list", &all)?.into_iter().filter_map(|name| name.parse::<Digest>().ok());
        let mut strays: Vec<Digest> = trees.filter(|digest| !self.layout().manifest(digest).exists()).collect();
        if !strays.is_empty() {
            let named: HashSet<Digest> = self.view.kept()?.into_iter().filter_map(|kept| kept.manifest).collect();
            strays.retain(|digest| !named.contains(digest));
        }
        Ok(strays)
    }

    /// Removes the directory of a model that nothing names, and nobody uses.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_stray_tree(&self, digest: &Digest) -> Result<(), Error> {
        let _names = self.lock_names();
        if self.layout().manifest(digest).exists() {
            return Ok(());
        }
        trees::remove(self.layout(), digest)?;
        self.tell(|observer| observer.model_went(digest));
        Ok(())
    }

    /// Makes every tree what its manifest says, as far as its files are here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rebuild_trees(&self) -> Result<(), Error> {
        let _names = self.lock_names();
        for digest in models::all_manifests(self.layout())? {
            let Ok(manifest) = models::read_manifest(self.layout(), &digest) else { continue };
            if !trees::is_complete(self.layout(), &manifest, &digest)
                && trees::mend(self.layout(), &manifest, &digest, None)?.changed
            {
                self.tell(|observer| observer.model_changed(&digest));
            }
        }
        Ok(())
    }

    /// Forgets sources (by record id) and, where nothing else names them, their manifest, tree,
    /// partials and blobs. Bytes freed. A source that alone names a model which is not among
    /// `manifests` has moved on to it since the caller looked, and stays: somebody may use that by now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(&self, record_ids: &[String], manifests: &[Digest]) -> Result<u64, Error> {
        let names = self.lock_names();
        let mut uris = HashSet::new();
        let candidates: HashSet<Digest> = manifests.iter().copied().collect();
        let (mut named, mut theirs): (HashSet<Digest>, Vec<_>) = (HashSet::new(), Vec::new());
        self.view.each_source(&mut |record, _| {
            let id = record.id();
            if record_ids.contains(&id) {
                let uris: Vec<_> = record.files.into_iter().map(|file| file.uri).collect();
                theirs.push((id, record.manifest, uris));
            } else {
                named.extend(record.manifest);
            }
        })?;
        let mut moved_on = HashSet::new();
        for (id, manifest, of_record) in theirs {
            if manifest.is_some_and(|digest| !candidates.contains(&digest) && !named.contains(&digest)) {
                moved_on.insert(id);
            } else {
                uris.extend(of_record);
            }
        }
        for id in record_ids.iter().filter(|id| !moved_on.contains(*id)) {
            let path = self.layout().source(id);
            fsx::remove_if_there(&path).at("remove", &path)?;
        }
        for digest in candidates.difference(&named) {
            trees::remove(self.layout(), digest)?;
            let path = self.layout().manifest(digest);
            fsx::remove_if_there(&path).at("remove", &path)?;
            self.tell(|observer| observer.model_went(digest));
        }
        self.remove_partials_of(uris)?;
        let (freed, unnamed) = self.sweep()?;
        drop(names);
        // Deleting many gigabytes takes a while, and nobody has to wait for it.
        for path in unnamed {
            fsx::remove_if_there(&path).at("remove", &path)?;
        }
        Ok(freed)
    }

    fn remove_partials_of(&self, mut uris: HashSet<Text>) -> Result<(), Error> {
        let partials = self.layout().partials();
        // What another source still waits for stays.
        self.view.each_source(&mut |record, _| {
            for file in &record.files {
                uris.remove(&file.uri);
            }
        })?;
        for name in fsx::names(&partials).at("list", &partials)? {
            let Some(file_id) = name.strip_suffix(".journal") else { continue };
            let uri = partial::uri_of(self.layout(), file_id);
            if uri.is_some_and(|uri| uris.contains(&uri)) {
                for path in [self.layout().partial_journal(file_id), self.layout().partial_bytes(file_id)] {
                    fsx::remove_if_there(&path).at("remove", &path)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the names of blobs that no manifest names, no unfinished source waits for and no pull
    /// holds, and those of copies that are known to be wrong. Their bytes, and the files that are left to be deleted.
    fn sweep(&self) -> Result<(u64, Vec<PathBuf>), Error> {
        let mut named = HashSet::new();
        let mut unknown = HashMap::new();
        for digest in models::all_manifests(self.layout())? {
            match models::read_manifest(self.layout(), &digest) {
                Ok(manifest) => named.extend(manifest.files().iter().map(|file| file.digest)),
                Err(error @ Error::Io { .. }) => drop(unknown.insert(digest, error)),
                Err(_) => {}
            }
        }
        self.view.each_source(&mut |record, _| {
            if let Some(digest) = record.manifest {
                unknown.remove(&digest);
            }
            // What a damaged manifest named, its source's record still does.
            named.extend(record.files.iter().filter_map(|file| file.digest));
            if record.manifest.is_none() {
                named.extend(self.blobs_known(&record));
            }
        })?;
        for listing in models::all_listings(self.layout())? {
            if let Some(record) = self.view.listing(&listing)? {
                named.extend(self.blobs_known(&record));
            }
        }
        // What it names is not known now and may be wanted later: nothing goes.
        if let Some(error) = unknown.into_values().next() {
            return Err(error);
        }
        let (mut freed, mut unnamed, mut gone) = (0, Vec::new(), HashSet::new());
        for (digest, Mark { copy, .. }) in damage::all(self.layout())? {
            let (bytes, files) = sealed::unname_condemned(self.layout(), &digest)?;
            freed += bytes;
            unnamed.extend(files);
            if sealed::any(self.layout(), &digest).is_none() {
                let values = self.layout().values(&digest);
                fsx::remove_if_there(&values).at("remove", &values)?;
            }
            if !named.contains(&digest) {
                damage::clear(self.layout(), &digest, copy)?;
                self.heeded().remove(&digest);
            }
        }
        for digest in sealed::all(self.layout())? {
            if named.contains(&digest) {
                continue;
            }
            let len = self.view.blob_len(&digest);
            if let Some(files) = self.holds.unless_held(&digest, || sealed::unname(self.layout(), &digest)) {
                unnamed.extend(files?);
                freed += len;
                gone.insert(digest);
                self.tell(|observer| observer.blob_went(&digest));
            }
        }
        self.catalog().forget(&gone);
        Ok((freed, unnamed))
    }
}

/// Refuses a directory that holds something which is no store: nobody wants their home directory
/// turned into one, or swept.
fn refuse_foreign(layout: &Layout) -> Result<(), Error> {
    let base = layout.base();
    let names = fsx::names(base).at("list", base)?;
    let ours = |name: &String| name == "v1" || name == "lost+found";
    if names.is_empty() || names.iter().all(ours) {
        return Ok(());
    }
    let other: Vec<_> = names.into_iter().filter(|name| !ours(name)).take(3).collect();
    Err(Error::Foreign { path: base.to_owned(), detail: format!("it holds {}", other.join(", ")) })
}
