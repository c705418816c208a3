//! What can go wrong on the disk side.

use std::io;
use std::path::PathBuf;

use crate::domain::Digest;

/// An error of the store. Each names the file or directory it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file of the store failed.
    #[error("cannot {action} `{path}`: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Another process owns the store.
    #[error("the store `{path}` is in use by {owner}", path = path.display())]
    Busy {
        /// The store's directory.
        path: PathBuf,
        /// Pid and command of the owner as it wrote them into the lock file.
        owner: String,
        /// Where the owner takes requests, if it does.
        socket: Option<PathBuf>,
    },
    /// The directory holds something, but no larder store, or one of another format.
    #[error("`{path}` is not a larder store this build can use: {detail}", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What was found there.
        detail: String,
    },
    /// There is not enough room for what is to come.
    #[error("not enough room in `{path}`: {needed} bytes needed, {free} free", path = path.display())]
    Full {
        /// The store's directory.
        path: PathBuf,
        /// Bytes that would have to be written.
        needed: u64,
        /// Bytes an unprivileged user may still write there, less what larder leaves to others.
        free: u64,
    },
    /// There are not enough inodes for what is to come.
    #[error("not enough inodes in `{path}`: {needed} needed, {free} free", path = path.display())]
    NoInodes {
        /// The store's directory.
        path: PathBuf,
        /// Files and directories that would have to be made.
        needed: u64,
        /// Of these, how many an unprivileged user may still make, less what larder leaves to others.
        free: u64,
    },
    /// What a source names is too much to be written down.
    #[error(
        "`{source_uri}` names {files} files: what has to be written down of them would be longer than {len_max} bytes, and could not be read back"
    )]
    TooLong {
        /// The source.
        source_uri: String,
        /// How many files it names.
        files: usize,
        /// Bytes that are read back.
        len_max: u64,
    },
    /// Nothing can be written there.
    #[error("the store `{path}` is read-only: {why}", path = path.display())]
    Unwritable {
        /// The store's directory.
        path: PathBuf,
        /// What keeps it from being written.
        why: String,
    },
    /// Bytes on disk are not what their name says.
    #[error("blob {digest} is damaged on disk: {detail}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// What does not match.
        detail: String,
    },
    /// Nothing under this name.
    #[error("{0} is not in the store")]
    Absent(String),
}

impl Error {
    /// Whether the disk itself is at fault (full, read-only, I/O error).
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Full { .. } | Self::NoInodes { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Adds the action and the path to an I/O result.
pub(super) trait AtPath<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.into(), source })
    }
}

impl<T> AtPath<T> for Result<T, rustix::io::Errno> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|errno| Error::Io { action, path: path.into(), source: errno.into() })
    }
}
