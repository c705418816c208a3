//! Which copies of blobs are known to be wrong.
//!
//! A mark is a small file named by the digest, which says which copy it means: one fetched later is
//! another inode, and not meant. Every look-up of a blob asks here, so what is marked is found by
//! nobody, in no process. A mark stays until a right copy is here and every tree shows it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::AtPath as _;
use super::{Error, Layout, fsx, record, sealed};
use crate::domain::Digest;

/// Longer than any mark.
const MARK_LEN_MAX: u64 = 1 << 10;
/// Where marks are in the spill.
const SPILLED: &str = "damaged";
/// Marks that are read: beyond it the disk is past mending.
const MARK_COUNT_MAX: usize = 100_000;

/// One copy of a blob, told from a copy fetched before or after it. Hard links, renames and changed
/// times leave it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopyId {
    inode: u64,
    /// When its file was created, in nanoseconds since 1970: a file system gives the number of a
    /// file that is gone to the next one. 0 where it does not say.
    born: u64,
}

impl CopyId {
    /// The copy with this metadata.
    #[must_use]
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        let since = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0);
        Self { inode: metadata.ino(), born }
    }

    /// Its inode.
    pub(super) const fn inode(&self) -> u64 {
        self.inode
    }

    /// As bytes, for a hash.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.inode.to_le_bytes());
        bytes[8..].copy_from_slice(&self.born.to_le_bytes());
        bytes
    }
}

/// What is known of a blob that models lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The copy that is wrong; none where the blob was missing.
    pub copy: Option<CopyId>,
    /// Seconds since 1970 when that was found.
    pub since: u64,
}

/// Marks that the disk did not take. The next process finds them in the spill, where that takes them:
/// else the damage has to be found anew.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    marks: RwLock<HashMap<Digest, Mark>>,
    /// One change at a time: a mark that is cleared must not be another by then.
    turn: Mutex<()>,
}

impl Unwritten {
    fn marks(&self) -> RwLockReadGuard<'_, HashMap<Digest, Mark>> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, digest: &Digest) -> Option<Mark> {
        self.marks().get(digest).copied()
    }

    fn all(&self) -> Vec<(Digest, Mark)> {
        self.marks().iter().map(|(digest, mark)| (*digest, *mark)).collect()
    }

    fn put(&self, digest: &Digest, mark: Mark) {
        self.marks.write().unwrap_or_else(PoisonError::into_inner).insert(*digest, mark);
    }

    fn remove(&self, digest: &Digest) {
        // Hardly ever there: readers are not to wait for this.
        if self.get(digest).is_some() {
            self.marks.write().unwrap_or_else(PoisonError::into_inner).remove(digest);
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What reading a file said, where that proves the file damaged: the device cannot give these bytes,
/// or the file system's own checksums are wrong. Anything else may pass.
pub(super) fn is_proof(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const PROOFS: [Errno; 5] = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::ILSEQ];
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error().is_some_and(|code| PROOFS.iter().any(|errno| errno.raw_os_error() == code))
}

/// Whether this copy of a blob is known to be wrong.
pub(super) fn is_marked(layout: &Layout, digest: &Digest, metadata: &std::fs::Metadata) -> bool {
    let means = |mark: Mark| mark.copy == Some(CopyId::of(metadata));
    if layout.unwritten_marks().get(digest).is_some_and(means) {
        return true;
    }
    match read(&layout.mark(digest)) {
        Ok(None) => false,
        Ok(Some(mark)) => means(mark),
        // What is torn, or cannot be read, was a mark.
        Err(_) => true,
    }
}

/// The mark of a blob, if there is one that can be read.
fn read(path: &Path) -> io::Result<Option<Mark>> {
    let text = match fsx::read_bounded(path, MARK_LEN_MAX) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other?,
    };
    decode(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn decode(text: &[u8]) -> Option<Mark> {
    record::decode(text.strip_suffix(b"\n").unwrap_or(text))
}

/// Marks a copy, or that there is none. It counts from here on in this process, whatever the disk
/// says.
///
/// # Errors
/// [`Error::Io`]: other processes, and the next one, do not know it.
pub(super) fn mark(layout: &Layout, digest: &Digest, copy: Option<CopyId>) -> Result<(), Error> {
    let _turn = layout.unwritten_marks().turn();
    let path = layout.mark(digest);
    if read(&path).is_ok_and(|known| known.is_some_and(|known| known.copy == copy)) {
        forget_unwritten(layout, digest);
        return Ok(());
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let before = layout.unwritten_marks().get(digest).filter(|before| before.copy == copy);
    let mark = before.unwrap_or(Mark { copy, since });
    layout.unwritten_marks().put(digest, mark);
    let bytes = record::encode(&mark);
    let Err(error) = write(layout, &path, &bytes) else {
        forget_unwritten(layout, digest);
        return Ok(());
    };
    layout.spill().write(SPILLED, &digest.to_string(), &bytes).map_err(|why| {
        tracing::debug!(%digest, %why, "nor is there another place for the mark of a damaged blob");
        error
    })
}

fn write(layout: &Layout, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        fsx::create_directories(parent).at("create", parent)?;
    }
    fsx::replace(&layout.scratch(), path, bytes).at("write", path)
}

/// Forgets that the disk did not take a mark, now that it says the same.
fn forget_unwritten(layout: &Layout, digest: &Digest) {
    if layout.unwritten_marks().get(digest).is_some() && layout.spill().remove(SPILLED, &digest.to_string()).is_ok() {
        layout.unwritten_marks().remove(digest);
    }
}

/// Takes up the marks that earlier processes, and others, have kept in the spill.
pub(super) fn take_up(layout: &Layout) {
    let _turn = layout.unwritten_marks().turn();
    for (name, bytes) in layout.spill().all(SPILLED, MARK_LEN_MAX) {
        let Ok(digest) = name.parse::<Digest>() else { continue };
        if layout.unwritten_marks().get(&digest).is_none() {
            // One that cannot be read means whatever copy is here.
            let any = || Mark { copy: sealed::any(layout, &digest).map(|(_, copy)| CopyId::of(&copy)), since: 0 };
            layout.unwritten_marks().put(&digest, decode(&bytes).unwrap_or_else(any));
        }
    }
}

/// Every mark. One that cannot be read has no copy.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn all(layout: &Layout) -> Result<Vec<(Digest, Mark)>, Error> {
    let directory = layout.marks();
    let mut marks = BTreeMap::new();
    for name in fsx::names(&directory).at("list", &directory)?.into_iter().take(MARK_COUNT_MAX) {
        let Ok(digest) = name.parse::<Digest>() else { continue };
        let mark = read(&layout.mark(&digest)).ok().flatten().unwrap_or(Mark { copy: None, since: 0 });
        marks.insert(name, (digest, mark));
    }
    marks.extend(layout.unwritten_marks().all().into_iter().map(|(digest, mark)| (digest.to_string(), (digest, mark))));
    Ok(marks.into_values().collect())
}

/// Writes down what the disk did not take before; whatever it does not take now stays in memory.
pub(super) fn write_down(layout: &Layout) {
    for (digest, Mark { copy, .. }) in layout.unwritten_marks().all() {
        let _ = mark(layout, &digest, copy);
    }
}

/// Forgets a mark of this copy. One that was made meanwhile, of a copy fetched since, stays.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn clear(layout: &Layout, digest: &Digest, copy: Option<CopyId>) -> Result<(), Error> {
    let _turn = layout.unwritten_marks().turn();
    let path = layout.mark(digest);
    let is_another = |mark: Option<Mark>| mark.is_some_and(|mark| mark.copy != copy);
    let written = read(&path);
    let is_absent = matches!(written, Ok(None));
    if is_another(layout.unwritten_marks().get(digest)) || is_another(written.ok().flatten()) {
        return Ok(());
    }
    if !is_absent {
        fsx::remove_if_there(&path).at("remove", &path)?;
    }
    if layout.unwritten_marks().get(digest).is_some() {
        layout.spill().remove(SPILLED, &digest.to_string()).at("remove what is unwritten of", &path)?;
        layout.unwritten_marks().remove(digest);
    }
    Ok(())
}

/// Something that is another as soon as there is another mark, in whichever process; `None` where
/// that cannot be seen. Costs one look at a directory that is nearly always empty.
pub(super) fn stamp(layout: &Layout) -> Option<u64> {
    take_up(layout);
    let mut marks: Vec<(std::ffi::OsString, u64)> = Vec::new();
    match std::fs::read_dir(layout.marks()) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.ok()?;
                marks.push((entry.file_name(), entry.ino()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return None,
    }
    let mut unwritten: Vec<_> = layout.unwritten_marks().all();
    if marks.is_empty() && unwritten.is_empty() {
        return Some(0);
    }
    marks.sort_unstable();
    unwritten.sort_unstable_by_key(|(digest, _)| *digest.as_bytes());
    let mut hasher = DefaultHasher::new();
    marks.hash(&mut hasher);
    unwritten.iter().for_each(|(digest, mark)| (digest.as_bytes(), mark.copy).hash(&mut hasher));
    Some(hasher.finish() | 1)
}
