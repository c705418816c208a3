//! A model as files of the pod's own, sharing their extents with the node's where the file system
//! can. No file has its name before it is whole, and none gets one before all are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::tree::{self, Tree};
use super::{
    At as _, Claim, Error, LOST_AND_FOUND, Standing, clean, is_ours, is_temporary, look, remove_temporary, temporary,
};
use crate::sys;

/// Bytes copied between two words to the caller: half a second of a slow disk.
const SLICE_LEN: u64 = 64 << 20;

/// How far a copy is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Files that are whole.
    pub files: u64,
    /// Those of them that share their extents with the node's.
    pub reflinked: u64,
    /// Bytes, whichever way.
    pub bytes: u64,
}

/// Copies the model at `model` into the directory `place`, which is made where it is absent.
/// `files` and `bytes` are what the model has. A copy or links of an earlier call are replaced.
///
/// # Errors
/// [`Error::Occupied`] where there is anything that is neither in the model nor a link of ours,
/// before anything is changed. After any error nothing of what this call wrote is left, unless
/// the kernel refused one of the last renames.
pub fn copy(model: &Path, place: &Path, files: u64, bytes: u64, tell: &mut dyn FnMut(Copied)) -> Result<Copied, Error> {
    let place = &clean(place);
    super::check_visible(model)?;
    let was_there = match look(place)? {
        Standing::Directory => true,
        Standing::Absent => false,
        Standing::Link { target } if is_ours(&target, model) => {
            fs::remove_file(place).of_place("remove", place)?;
            false
        }
        Standing::Link { .. } => return Err(Error::Occupied { path: place.clone() }),
    };
    fs::create_dir_all(place).of_place("create", place)?;
    let result = fill(model, place, files, bytes, tell);
    if result.is_err() && !was_there {
        let _ = fs::remove_dir(place);
    }
    result
}

fn fill(model: &Path, place: &Path, files: u64, bytes: u64, tell: &mut dyn FnMut(Copied)) -> Result<Copied, Error> {
    let _claim = Claim::of(place)?;
    let tree = tree::list(model, true, &|_| false).map_err(|error| match error {
        tree::Error::Io { path, source } => Error::Model { doing: "list", path, source },
        tree::Error::TooLarge => Error::TooLarge { path: model.to_owned() },
    })?;
    for path in make_room(model, place, &tree)? {
        fs::remove_file(&path).of_place("remove", &path)?;
    }
    let staging = temporary(place);
    fs::create_dir(&staging).of_place("create", &staging)?;
    let result = stage(model, place, &staging, &tree, tell).and_then(|copied| {
        if (copied.files, copied.bytes) != (files, bytes) {
            let (files, bytes) = ((copied.files, files), (copied.bytes, bytes));
            return Err(Error::Incomplete { model: model.to_owned(), files, bytes });
        }
        land(&staging, place, &tree)?;
        Ok(copied)
    });
    remove_temporary(&staging);
    result
}

/// What of an earlier call must go: its links, and the files that come anew. Those go first, for a
/// volume often has no room for two copies.
fn make_room(model: &Path, place: &Path, tree: &Tree) -> Result<Vec<PathBuf>, Error> {
    let there =
        tree::list(place, false, &|name| name == LOST_AND_FOUND || is_temporary(name)).map_err(
            |error| match error {
                tree::Error::Io { path, source } => Error::Place { doing: "list", path, source },
                tree::Error::TooLarge => Error::TooLarge { path: place.to_owned() },
            },
        )?;
    let directories: BTreeSet<&PathBuf> = tree.directories.iter().collect();
    let files: BTreeSet<&PathBuf> = tree.files.iter().collect();
    let strange = there.directories.iter().find(|path| !directories.contains(path));
    if let Some(path) = strange.or_else(|| there.files.iter().find(|path| !files.contains(path))) {
        return Err(Error::Occupied { path: place.join(path) });
    }
    let links: Vec<PathBuf> = there.links.iter().map(|path| place.join(path)).collect();
    for path in &links {
        if !is_ours(&fs::read_link(path).of_place("read", path)?, model) {
            return Err(Error::Occupied { path: path.clone() });
        }
    }
    Ok(links.into_iter().chain(there.files.iter().map(|path| place.join(path))).collect())
}

/// Copies every file under its number. Errors name the place it is for.
fn stage(
    model: &Path,
    place: &Path,
    staging: &Path,
    tree: &Tree,
    tell: &mut dyn FnMut(Copied),
) -> Result<Copied, Error> {
    let mut copied = Copied::default();
    for (index, relative) in tree.files.iter().enumerate() {
        let (from, to) = (model.join(relative), place.join(relative));
        let source = File::open(&from).of_model("open", &from)?;
        let size = source.metadata().of_model("read", &from)?.len();
        let target = File::create_new(staging.join(index.to_string())).of_place("create", &to)?;
        if size == 0 || sys::reflink(&source, &target).is_ok() {
            copied.reflinked += u64::from(size > 0);
            copied.bytes += size;
        } else {
            let mut left = size;
            while left > 0 {
                // copy_file_range where the kernel can, or a buffer of this process.
                let result = io::copy(&mut (&source).take(SLICE_LEN.min(left)), &mut &target);
                let count = result.map_err(|error| blame(error, &from, &to))?;
                if count == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).of_model("read", &from);
                }
                left -= count;
                copied.bytes += count;
                tell(copied);
            }
        }
        copied.files += 1;
        tell(copied);
    }
    Ok(copied)
}

/// One call reads and writes: only a few errors say which of them failed.
fn blame(source: io::Error, from: &Path, to: &Path) -> Error {
    use io::ErrorKind as Kind;
    let is_of_place = matches!(
        source.kind(),
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge | Kind::ReadOnlyFilesystem | Kind::WriteZero
    );
    if is_of_place {
        Error::Place { doing: "write", path: to.to_owned(), source }
    } else {
        Error::Model { doing: "copy", path: from.to_owned(), source }
    }
}

/// Gives every file its name.
fn land(staging: &Path, place: &Path, tree: &Tree) -> Result<(), Error> {
    for relative in &tree.directories {
        let directory = place.join(relative);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).of_place("create", &directory);
            }
            _ => {}
        }
    }
    for (index, relative) in tree.files.iter().enumerate() {
        let path = place.join(relative);
        fs::rename(staging.join(index.to_string()), &path).of_place("put a file at", &path)?;
    }
    Ok(())
}
