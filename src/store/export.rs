//! A copy of a model that the caller owns.

use std::fs::File;
use std::io;
use std::path::Path;

use super::error::AtPath as _;
use super::{Error, Layout, fsx, sealed};
use crate::domain::Manifest;

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
/// by rename once it is whole; `hard_links` allows names of the store's own read-only files.
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
        sealed::with_path(layout, &file.digest, &file.path, |from| {
            if hard_links && std::fs::hard_link(from, &to).is_ok() {
                exported.linked += 1;
            } else if copy_whole(from, &to).at("write", &to)? {
                exported.reflinked += 1;
            } else {
                exported.copied += 1;
            }
            Ok(())
        })?;
    }
    Ok(exported)
}

/// True when the copy is a reflink.
fn copy_whole(from: &Path, to: &Path) -> io::Result<bool> {
    let temporary = fsx::scratch_name(to.parent().unwrap_or(to));
    let result = (|| {
        let mut source = File::open(from)?;
        let mut target = File::options().write(true).create_new(true).open(&temporary)?;
        let reflinked = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
        if !reflinked {
            io::copy(&mut source, &mut target)?;
        }
        std::fs::rename(&temporary, to)?;
        Ok(reflinked)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}
