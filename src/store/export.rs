//! A copy of a model that the caller owns.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::damage::{self, CopyId};
use super::error::AtPath as _;
use super::{Error, Layout, fsx, sealed};
use crate::domain::{Digest, Manifest, ManifestEntry};

/// One read and one write: large enough for a disk to stream, small enough to stay in a core's cache.
const COPY_LEN: usize = 1 << 20;

/// How the files of an export came to be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Files that share their extents with the store (reflinks).
    pub reflinked: u64,
    /// Files that are the store's own inode (hard links).
    pub linked: u64,
    /// Files that were copied byte by byte.
    pub copied: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Writes a model's files below `directory`, which is absent or empty. Each file gets its name
/// by rename once it is whole and every byte of it was hashed, however it came there;
/// `hard_links` allows names of the store's own read-only files.
pub(super) fn export(
    layout: &Layout,
    manifest: &Manifest,
    directory: &Path,
    hard_links: bool,
) -> Result<Exported, Error> {
    if !fsx::names(directory).at("list", directory)?.is_empty() {
        return Err(Error::Foreign { path: directory.to_owned(), detail: "the directory is not empty".into() });
    }
    fsx::create_directories(directory).at("create", directory)?;
    let mut exported = Exported::default();
    for file in manifest.files() {
        let to = directory.join(file.path.as_str());
        let parent = to.parent().unwrap_or(directory);
        fsx::create_directories(parent).at("create", parent)?;
        exported.bytes += file.size;
        let how = sealed::with_path(layout, &file.digest, file.size, &file.path, |from| {
            give(layout, file, from, &to, hard_links)
        })?;
        *match how {
            How::Linked => &mut exported.linked,
            How::Reflinked => &mut exported.reflinked,
            How::Copied => &mut exported.copied,
        } += 1;
    }
    Ok(exported)
}

#[derive(Debug, Clone, Copy)]
enum How {
    Linked,
    Reflinked,
    Copied,
}

/// Gives out one file, if it is right. One that is not is known from here on.
fn give(layout: &Layout, file: &ManifestEntry, from: &Path, to: &Path, hard_links: bool) -> Result<How, Error> {
    let temporary = fsx::scratch_name(to.parent().unwrap_or(to));
    let given = (|| {
        let mut source = fsx::open(from).at("open", from)?;
        let copy = CopyId::of(&source.metadata().at("look at", from)?);
        let (how, digest) = written(from, &mut source, &temporary, hard_links)?;
        if digest != Some(file.digest) {
            if let Err(error) = damage::mark(layout, &file.digest, Some(copy)) {
                tracing::warn!(%error, "the damage cannot be written down, so others do not know it: `larder verify` finds it too");
            }
            let detail = format!("`{}` has other bytes than were pulled, or cannot be read", file.path);
            return Err(Error::Damaged { digest: file.digest, detail });
        }
        if !matches!(how, How::Linked) {
            fsx::set_time(&temporary).at("finish", &temporary)?;
        }
        std::fs::rename(&temporary, to).at("write", to)?;
        Ok(how)
    })();
    if given.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    given
}

/// Makes the file, and hashes what is in it now: `None` where the disk does not give its bytes.
fn written(from: &Path, source: &mut File, to: &Path, hard_links: bool) -> Result<(How, Option<Digest>), Error> {
    if hard_links && std::fs::hard_link(from, to).is_ok() {
        return Ok((How::Linked, hashed(&mut File::open(to).at("open", to)?, None, to)?));
    }
    let target = File::options().read(true).write(true).create_new(true).open(to);
    let mut target = target.at("create", to)?;
    if rustix::fs::ioctl_ficlone(&target, &*source).is_ok() {
        return Ok((How::Reflinked, hashed(&mut target, None, to)?));
    }
    Ok((How::Copied, hashed(source, Some(&mut target), to)?))
}

/// Reads a file to its end, and writes what is read to `copy`, where there is to be one.
fn hashed(source: &mut File, mut copy: Option<&mut File>, to: &Path) -> Result<Option<Digest>, Error> {
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; COPY_LEN]);
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return Ok(Some(Digest::from_bytes(*hasher.finalize().as_bytes()))),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if damage::is_proof(&error) => return Ok(None),
            Err(error) => return Err(error).at("read what becomes", to),
        };
        hasher.update(&buffer[..read]);
        if let Some(copy) = &mut copy {
            copy.write_all(&buffer[..read]).at("write", to)?;
        }
    }
}
