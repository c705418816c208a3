//! A sealed blob: complete, immutable, named by its digest.
//!
//! Two places, and the place is the state. `fresh/<boot>/` holds blobs whose bytes were never
//! synced: true for as long as that boot lives. `blobs/` holds blobs that were synced before
//! they got their name there: true for as long as the disk is. Settling moves the first to the
//! second; recovery after another boot hashes what was fresh and settles or drops it.

use std::fs::{Metadata, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::damage::{self, CopyId};
use super::error::AtPath as _;
use super::{Error, Hold, Layout, fsx};
use crate::domain::{ChunkHasher, ChunkIndex, ChunkValue, Digest, FILE_MODE, Grid, root_digest};

/// Gives complete bytes their digest as name. `from` is renamed away.
pub(super) fn seal(layout: &Layout, from: &Path, digest: &Digest, values: &[ChunkValue]) -> Result<(), Error> {
    let size = from.metadata().at("look at", from)?.len();
    if sized(layout, digest, size).is_none() {
        if values.len() > 1 {
            write_values(layout, digest, values)?;
        }
        finish(from).at("seal", from)?;
        let to = layout.fresh_blob(digest);
        // Another object of the same bytes may have been sealed meanwhile, and a tree may show it. A
        // copy that is known to be wrong is no copy: this one takes its place.
        if fsx::rename_unless(from, &to, || sized(layout, digest, size).is_some()).at("rename", &to)? {
            return Ok(());
        }
    }
    tracing::debug!(%digest, "sealed twice: kept the first copy");
    fsx::remove_if_there(from).at("remove", from)
}

/// Gives a file the mode and the time that all files of models have, wherever they are handed out.
pub(super) fn finish(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(FILE_MODE.into()))?;
    fsx::set_time(path)
}

/// Seals bytes that are in memory, for files of at most one chunk.
pub(super) fn seal_bytes(layout: &Layout, slices: &[bytes::Bytes], hold: &Hold) -> Result<Digest, Error> {
    let mut hasher = blake3::Hasher::new();
    for slice in slices {
        hasher.update(slice);
    }
    let digest = Digest::from_bytes(*hasher.finalize().as_bytes());
    hold.add(digest);
    if sized(layout, &digest, slices.iter().map(|slice| slice.len() as u64).sum()).is_some() {
        return Ok(digest);
    }
    let scratch = fsx::scratch_name(&layout.scratch());
    let result = (|| {
        let file = fsx::create_new(&scratch).at("create", &scratch)?;
        fsx::write_slices_at(&file, 0, slices).at("write", &scratch)?;
        drop(file);
        seal(layout, &scratch, &digest, &[])
    })();
    if result.is_err() {
        let _ = fsx::remove_if_there(&scratch);
    }
    result.map(|()| digest)
}

/// Where the blob's bytes are, if they are there, may be trusted in this boot and are not known to
/// be wrong: the one place that says what is handed out.
///
/// Settling moves blobs from the first place to the second, so that a look in this order finds
/// them; whoever goes on to use the path calls [`with_path`].
pub(super) fn find(layout: &Layout, digest: &Digest) -> Option<PathBuf> {
    found(layout, digest).map(|(path, _)| path)
}

/// The same of a blob that is so long. A copy of another length is wrong, whatever made it so, and one
/// that cannot be read is of no use: both are known to be from here on.
pub(super) fn sized(layout: &Layout, digest: &Digest, size: u64) -> Option<(PathBuf, Metadata)> {
    copies(layout, digest).find(|(path, metadata)| {
        if damage::is_marked(layout, digest, metadata) {
            return false;
        }
        if metadata.len() != size || !is_readable(path, metadata) {
            let (path, len, mode) = (path.display(), metadata.len(), format!("{:o}", metadata.mode()));
            tracing::error!(%path, len, size, mode, "a blob has the wrong length or mode on disk: it is fetched again");
            if let Err(error) = damage::mark(layout, digest, Some(CopyId::of(metadata))) {
                tracing::warn!(%error, "the damage cannot be written down, so others do not know it: `larder verify` finds it too");
            }
            return false;
        }
        true
    })
}

/// Whether a blob can be read: by everybody, as when it was sealed, or by this process at least, where
/// the file system has modes of its own.
pub(super) fn is_readable(path: &Path, metadata: &Metadata) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let mode = metadata.mode() & 0o444;
    mode & 0o004 != 0 || (mode != 0 && accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS).is_ok())
}

/// What the disk says of a blob, in one look at each of its two places.
pub(super) fn metadata(layout: &Layout, digest: &Digest) -> Option<Metadata> {
    found(layout, digest).map(|(_, metadata)| metadata)
}

fn found(layout: &Layout, digest: &Digest) -> Option<(PathBuf, Metadata)> {
    copies(layout, digest).find(|(_, metadata)| !damage::is_marked(layout, digest, metadata))
}

/// Whatever is under the blob's names, right or wrong.
fn copies(layout: &Layout, digest: &Digest) -> impl Iterator<Item = (PathBuf, Metadata)> + use<> {
    [layout.fresh_blob(digest), layout.blob(digest)].into_iter().filter_map(|path| {
        let metadata = path.symlink_metadata().ok().filter(Metadata::is_file)?;
        Some((path, metadata))
    })
}

/// The copy to hash again: one that is handed out, else one that is known to be wrong.
pub(super) fn any(layout: &Layout, digest: &Digest) -> Option<(PathBuf, Metadata)> {
    found(layout, digest).or_else(|| copies(layout, digest).next())
}

/// The copies that are known to be wrong.
pub(super) fn condemned(layout: &Layout, digest: &Digest) -> Vec<(PathBuf, Metadata)> {
    copies(layout, digest).filter(|(_, metadata)| damage::is_marked(layout, digest, metadata)).collect()
}

/// Does something with the path of a blob of this size, once more where it was settled meanwhile.
///
/// # Errors
/// [`Error::Absent`] in words of `what`; what `work` says.
pub(super) fn with_path<T>(
    layout: &Layout,
    digest: &Digest,
    size: u64,
    what: &dyn std::fmt::Display,
    mut work: impl FnMut(&Path) -> Result<T, Error>,
) -> Result<T, Error> {
    let absent = || Error::Absent(format!("blob {digest} of `{what}`"));
    let (first, _) = sized(layout, digest, size).ok_or_else(absent)?;
    match work(&first) {
        Err(error) if !first.exists() => work(&sized(layout, digest, size).ok_or(error)?.0),
        other => other,
    }
}

/// Syncs a fresh blob's bytes and chunk values.
///
/// A device that could not write says so once, to the first who syncs; what memory holds may then
/// differ from the disk for good. So after an error the caller gives the blob up.
pub(super) fn sync(layout: &Layout, digest: &Digest) -> Result<(), Error> {
    let (bytes, values) = (layout.fresh_blob(digest), layout.values(digest));
    fsx::sync_file(&bytes).at("sync", &bytes)?;
    if values.exists() {
        fsx::sync_file(&values).at("sync", &values)?;
        for directory in values.ancestors().skip(1).take(2) {
            fsx::sync_directory(directory).at("sync", directory)?;
        }
    }
    Ok(())
}

/// Moves a synced fresh blob to its durable place, and syncs the directories.
pub(super) fn settle(layout: &Layout, digest: &Digest) -> Result<(), Error> {
    let (from, to) = (layout.fresh_blob(digest), layout.blob(digest));
    if let Some(parent) = to.parent().filter(|parent| !parent.is_dir()) {
        fsx::create_directories(parent).at("create", parent)?;
        fsx::sync_directory(&layout.blobs()).at("sync", layout.blobs())?;
    }
    fsx::rename_durably(&from, &to).at("settle", &to)
}

/// Hashes a blob on disk and compares every chunk with its recorded value.
///
/// Reads past the page cache where the file system can (`O_DIRECT`), because a scrub that reads
/// memory says nothing about the disk. `each` is told the bytes read so far and may stop the
/// scrub by returning false; then the answer is `Ok(None)`. With the chunks comes the copy that was
/// read.
pub(super) fn scrub(
    layout: &Layout,
    path: &Path,
    digest: &Digest,
    each: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<(CopyId, Vec<ChunkIndex>)>, Error> {
    let mut reader = super::direct::Reader::open(path).at("open", path)?;
    let copy = reader.copy().at("look at", path)?;
    let grid = Grid::of_size(reader.size());
    let recorded = read_values(layout, digest, &grid);
    let mut values = Vec::with_capacity(grid.chunk_count() as usize);
    let mut bad = Vec::new();
    for index in (0..grid.chunk_count()).map(ChunkIndex) {
        let range = grid.chunk_range(index);
        let mut hasher = ChunkHasher::new(&grid, index);
        let mut at = range.start;
        let mut readable = true;
        while at < range.end {
            match reader.read_at(at, range.end - at) {
                Ok(bytes) => {
                    hasher.update(bytes);
                    at += bytes.len() as u64;
                }
                Err(error) if damage::is_proof(&error) => {
                    tracing::warn!(path = %path.display(), offset = at, %error, "cannot read a sealed blob");
                    readable = false;
                    break;
                }
                // Says nothing of these bytes.
                Err(error) => return Err(error).at("read", path),
            }
        }
        let value = hasher.finish();
        if !readable || recorded.as_ref().is_some_and(|recorded| recorded[index.0 as usize] != value) {
            bad.push(index);
        }
        values.push(value);
        if !each(range.end) {
            return Ok(None);
        }
    }
    if bad.is_empty() && root_digest(&grid, &values) != Some(*digest) {
        // Wrong size, a single-chunk blob, or recorded values that are damaged themselves.
        bad = (0..grid.chunk_count().max(1)).map(ChunkIndex).collect();
    }
    Ok(Some((copy, bad)))
}

/// Takes a blob's names away and returns the files, which only their scratch names keep now:
/// deleting the bytes of a large file takes a while, this does not.
pub(super) fn unname(layout: &Layout, digest: &Digest) -> Result<Vec<PathBuf>, Error> {
    let mut unnamed = Vec::new();
    // Fresh first: settling moves the other way.
    for path in [layout.fresh_blob(digest), layout.blob(digest), layout.values(digest)] {
        let scratch = fsx::scratch_name(&layout.scratch());
        match std::fs::rename(&path, &scratch) {
            Ok(()) => unnamed.push(scratch),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("remove", &path),
        }
    }
    Ok(unnamed)
}

/// The same for the copies that are known to be wrong; bytes of the disk that they take.
pub(super) fn unname_condemned(layout: &Layout, digest: &Digest) -> Result<(u64, Vec<PathBuf>), Error> {
    let (mut bytes, mut unnamed) = (0, Vec::new());
    for (path, metadata) in condemned(layout, digest) {
        let scratch = fsx::scratch_name(&layout.scratch());
        match std::fs::rename(&path, &scratch) {
            Ok(()) => unnamed.push(scratch),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).at("remove", &path),
        }
        bytes += metadata.blocks() * 512;
    }
    Ok((bytes, unnamed))
}

const VALUES_MAGIC: &[u8; 16] = b"larder values 1\n";

/// Writes the chunk values of a blob: magic, values, BLAKE3 of all before.
fn write_values(layout: &Layout, digest: &Digest, values: &[ChunkValue]) -> Result<(), Error> {
    let mut bytes = Vec::with_capacity(16 + values.len() * 32 + 32);
    bytes.extend_from_slice(VALUES_MAGIC);
    bytes.extend(values.iter().flatten());
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    let path = layout.values(digest);
    if let Some(parent) = path.parent() {
        fsx::create_directories(parent).at("create", parent)?;
    }
    fsx::replace(&layout.scratch(), &path, &bytes).at("write", &path)
}

/// Reads them back; `None` where they are absent, damaged, or merge to another digest.
pub(super) fn read_values(layout: &Layout, digest: &Digest, grid: &Grid) -> Option<Vec<ChunkValue>> {
    let count = grid.chunk_count() as usize;
    let bytes = fsx::read_bounded(&layout.values(digest), 16 + 32 * (count as u64 + 1)).ok()?;
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if blake3::hash(body).as_bytes() != check {
        return None;
    }
    let values: Vec<ChunkValue> = body.strip_prefix(VALUES_MAGIC)?.as_chunks::<32>().0.to_vec();
    (root_digest(grid, &values) == Some(*digest)).then_some(values)
}

/// Digests of all blobs below `blobs/` and `fresh/<this boot>/`.
pub(super) fn all(layout: &Layout) -> Result<Vec<Digest>, Error> {
    let mut found = Vec::new();
    let blobs = layout.blobs();
    let mut directories = vec![layout.fresh()];
    directories.extend(fsx::names(&blobs).at("list", &blobs)?.into_iter().map(|name| blobs.join(name)));
    for directory in directories {
        let names = fsx::names(&directory).at("list", &directory)?;
        found.extend(names.iter().filter_map(|name| name.parse::<Digest>().ok()));
    }
    Ok(found)
}

/// The same, with what other boots left and nobody has proven yet.
pub(super) fn all_of_all_boots(layout: &Layout) -> Result<Vec<Digest>, Error> {
    let mut found = all(layout)?;
    let boots = layout.fresh_of_all_boots();
    for boot in fsx::names(&boots).at("list", &boots)? {
        let names = fsx::names(&boots.join(boot)).at("list", &boots)?;
        found.extend(names.iter().filter_map(|name| name.parse::<Digest>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Barrier;

    use crate::store::Store;

    #[test]
    fn whoever_seals_the_same_bytes_at_once_keeps_the_first_copy() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        for round in 0..100_u32 {
            let bytes = [bytes::Bytes::from(round.to_le_bytes().to_vec())];
            let start = Barrier::new(4);
            let seal = || {
                start.wait();
                let digest = super::seal_bytes(store.layout(), &bytes, &store.hold()).expect("sealed");
                super::find(store.layout(), &digest).expect("here").metadata().expect("a file").ino()
            };
            let inodes: Vec<u64> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(seal)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?} in round {round}");
        }
    }
}
