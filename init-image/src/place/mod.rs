//! Leaving a model where a pod expects it: as links into the node's directory, or as files of the
//! pod's own. Everything appears by rename, and what a killed run left behind is swept up.

mod copy;
mod link;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use copy::{Copied, copy};
pub use link::link;

use crate::client::is_digest;
use crate::failure::{self, Failure};

/// What is being made has a name that starts so; what is found under such a name is swept up.
const TEMPORARY_PREFIX: &str = ".larder-tmp-";
/// How long to wait for another process that writes to the same directory: a copy takes minutes.
const LOCK_WAIT_MAX: Duration = Duration::from_mins(10);
const LOCK_POLL: Duration = Duration::from_millis(50);
/// mke2fs puts it in the root of every volume; it is no content.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a model could not be placed.
#[derive(Debug)]
pub enum Error {
    /// Something about the model's own directory: it is not there, or it went away meanwhile.
    /// With a daemon that restarts, asking again may help.
    Model {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The copy has not as many files or bytes as the daemon said.
    Incomplete {
        /// The model's directory.
        model: PathBuf,
        /// Files copied, and promised.
        files: (u64, u64),
        /// Bytes copied, and promised.
        bytes: (u64, u64),
    },
    /// Something about the place it should go to.
    Place {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The place has something that larder did not put there.
    Occupied {
        /// What.
        path: PathBuf,
    },
    /// A tree larger or deeper than any model.
    TooLarge {
        /// Its root.
        path: PathBuf,
    },
    /// Another process writes to the place.
    Busy {
        /// The place.
        path: PathBuf,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model { doing, path, source } | Self::Place { doing, path, source } => {
                write!(f, "cannot {doing} `{}`: {source}", path.display())
            }
            Self::Incomplete { model, files, bytes } => write!(
                f,
                "the model at `{}` went away while it was copied: {} of {} files and {} of {} bytes came",
                model.display(),
                files.0,
                files.1,
                bytes.0,
                bytes.1
            ),
            Self::Occupied { path } => write!(f, "`{}` was not put there by larder-init", path.display()),
            Self::TooLarge { path } => write!(f, "`{}` has too many files or levels for a model", path.display()),
            Self::Busy { path } => write!(f, "another larder-init writes to `{}`", path.display()),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// True where the model's own directory is what failed, not the place it should go to.
    #[must_use]
    pub const fn is_of_the_model(&self) -> bool {
        matches!(self, Self::Model { .. } | Self::Incomplete { .. })
    }

    /// True where the model is not to be seen from here at all.
    #[must_use]
    pub fn is_unseen(&self) -> bool {
        let Self::Model { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let is_unseen = error.is_unseen();
        match error {
            Error::Model { source, path, .. } if is_unseen => Self::new(
                failure::USAGE,
                format!("the model is on the node, but not in this container at `{}`: {source}", path.display()),
            ),
            Error::Model { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(failure::USAGE, message).hint("run this container as a user that may read the node's models")
            }
            Error::Place { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(failure::USAGE, message)
                    .hint("this container's user needs to write there (securityContext, fsGroup)")
            }
            Error::Place { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::new(failure::DISK, message)
                    .hint("give that volume room for the whole model, or link to the node's copy (without --copy)")
            }
            Error::Place { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => Self::new(
                failure::DISK,
                message,
            )
            .hint("raise the limit on the length of a file (`ulimit -f`), or link to the node's copy (without --copy)"),
            Error::Model { .. } | Error::Incomplete { .. } | Error::Place { .. } => Self::new(failure::DISK, message),
            Error::Occupied { .. } => Self::new(failure::USAGE, message).hint("name an empty or absent directory"),
            Error::TooLarge { .. } => Self::new(failure::USAGE, message),
            Error::Busy { .. } => Self::new(failure::BUSY, message),
        }
    }
}

/// Says where an I/O error happened, and on whose side.
trait At<T> {
    fn of_model(self, doing: &'static str, path: &Path) -> Result<T, Error>;
    fn of_place(self, doing: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn of_model(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Model { doing, path: path.to_owned(), source })
    }

    fn of_place(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Place { doing, path: path.to_owned(), source })
    }
}

/// Where a directory of the node is mounted in this container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRoot {
    /// The directory on the node.
    pub node: PathBuf,
    /// The same directory here.
    pub here: PathBuf,
}

impl ModelRoot {
    /// Reads `FROM=TO`, both absolute. `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (node, here) = text.split_once('=')?;
        let (node, here) = (Path::new(node), Path::new(here));
        (node.is_absolute() && here.is_absolute()).then(|| Self { node: clean(node), here: clean(here) })
    }

    /// The path here of a path on the node; the same path where it is not below this root.
    #[must_use]
    pub fn rewrite(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.node) {
            Ok(rest) => clean(&self.here.join(rest)),
            Err(_) => path.to_owned(),
        }
    }
}

/// The path without the slashes and dots that name nothing: `/a/b/` would follow a link `/a/b`.
fn clean(path: &Path) -> PathBuf {
    let clean: PathBuf = path.components().collect();
    if clean.as_os_str().is_empty() { PathBuf::from(".") } else { clean }
}

/// Checks that a model can be seen from here.
///
/// # Errors
/// [`Error::Model`].
pub fn check_visible(model: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(model).of_model("see", model)?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(io::Error::from(io::ErrorKind::NotADirectory)).of_model("see", model)
}

/// What is at the place.
enum Standing {
    Absent,
    Link { target: PathBuf },
    Directory,
}

fn look(place: &Path) -> Result<Standing, Error> {
    match fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_dir() => Ok(Standing::Directory),
        Ok(metadata) if metadata.is_symlink() => {
            Ok(Standing::Link { target: fs::read_link(place).of_place("read", place)? })
        }
        Ok(_) => Err(Error::Occupied { path: place.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Standing::Absent),
        Err(error) => Err(error).of_place("look at", place),
    }
}

/// Whether a link was made by larder-init: it points to a model, which has a digest for a name,
/// or into the directory where this model is.
fn is_ours(target: &Path, model: &Path) -> bool {
    let names_a_model = target.components().any(|name| name.as_os_str().to_str().is_some_and(is_digest));
    let is_beside = model.parent().is_some_and(|parent| parent != Path::new("/") && target.starts_with(parent));
    target.is_absolute() && (names_a_model || is_beside)
}

/// A name that no other process and no other call has.
fn temporary(directory: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Process 1 of one container may share a volume with process 1 of another: the clock tells
    // them apart.
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    let (process, call) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    directory.join(format!("{TEMPORARY_PREFIX}{process}-{nanos}-{call}"))
}

fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// The directory above a place, for what is made beside it.
fn parent_of(place: &Path) -> &Path {
    match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes `place` a link to `target`, in one step whatever was there.
fn put_link(target: &Path, place: &Path) -> Result<(), Error> {
    let temporary = temporary(parent_of(place));
    std::os::unix::fs::symlink(target, &temporary).of_place("make a link beside", place)?;
    let renamed = fs::rename(&temporary, place);
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed.of_place("put a link at", place)
}

/// Keeps other larder-inits out of a directory while it lives, and sweeps up what a killed one
/// left in it. A file system without locks is used without, and not swept.
struct Claim {
    _lock: Option<File>,
}

impl Claim {
    fn of(directory: &Path) -> Result<Self, Error> {
        let file = File::open(directory).of_place("open", directory)?;
        let began = Instant::now();
        let lock = loop {
            match file.try_lock() {
                Ok(()) => break Some(file),
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT_MAX => std::thread::sleep(LOCK_POLL),
                Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: directory.to_owned() }),
                Err(TryLockError::Error(_)) => break None,
            }
        };
        if lock.is_some() {
            for entry in fs::read_dir(directory).of_place("list", directory)? {
                let entry = entry.of_place("list", directory)?;
                if is_temporary(&entry.file_name()) {
                    remove_temporary(&entry.path());
                }
            }
        }
        Ok(Self { _lock: lock })
    }
}

/// Removes a temporary link or a directory of plain files. What cannot go is left: the next run
/// tries again.
fn remove_temporary(path: &Path) {
    if fs::remove_file(path).is_ok() {
        return;
    }
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
