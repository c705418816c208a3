//! What a directory holds, as relative paths.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files and directories of a tree: ten times the largest model known.
const ENTRIES_MAX: usize = 1_000_000;
/// An object key has at most 1024 bytes, of which every other may be a slash; nobody does that.
const DEPTH_MAX: usize = 64;

/// Everything below a directory, a directory always before what is in it.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub directories: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
    /// Symbolic links, where they are not followed.
    pub links: Vec<PathBuf>,
}

/// Why a tree could not be listed.
pub(super) enum Error {
    Io { path: PathBuf, source: io::Error },
    TooLarge,
}

/// Lists a tree. Entries at the top for which `skips` is true are left out, links are followed
/// only where told.
pub(super) fn list(root: &Path, follows: bool, skips: &dyn Fn(&std::ffi::OsStr) -> bool) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let path = root.join(&directory);
        let io = |source| Error::Io { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(io)? {
            let entry = entry.map_err(io)?;
            if directory.as_os_str().is_empty() && skips(&entry.file_name()) {
                continue;
            }
            let relative = directory.join(entry.file_name());
            let kind = entry.file_type().map_err(io)?;
            let is_directory = if kind.is_symlink() && follows {
                fs::metadata(entry.path()).map_err(|source| Error::Io { path: entry.path(), source })?.is_dir()
            } else {
                kind.is_dir()
            };
            if is_directory {
                if relative.components().count() > DEPTH_MAX {
                    return Err(Error::TooLarge);
                }
                pending.push(relative.clone());
                tree.directories.push(relative);
            } else if kind.is_symlink() && !follows {
                tree.links.push(relative);
            } else {
                tree.files.push(relative);
            }
            if tree.files.len() + tree.directories.len() + tree.links.len() > ENTRIES_MAX {
                return Err(Error::TooLarge);
            }
        }
    }
    Ok(tree)
}
