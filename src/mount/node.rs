//! What there is at an inode, and the numbers that it has in every life of the daemon.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo};

use crate::domain::{DIRECTORY_MODE, Digest, FILE_MODE, FILE_TIME};
use crate::store::{CopyId, ObjectId};

const BLOCK_LEN: u32 = 4096;

/// Which model a directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// A complete model, by its manifest.
    Whole(Digest),
    /// One that is still arriving, or was when somebody was let in, by its listing.
    Arriving(Digest),
}

/// A sealed blob: this very copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// What it is.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Another copy, fetched after an eviction or in place of a damaged one, has another number,
    /// because the kernel binds an inode that is still open to the backing file that it was opened
    /// with.
    pub copy: [u8; 16],
}

impl Sealed {
    /// A blob with this metadata.
    pub fn new(digest: Digest, metadata: &std::fs::Metadata) -> Self {
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        // A file that an earlier version sealed has the time of its last byte, and keeps its number.
        let is_ours = i128::try_from(FILE_TIME.as_nanos()) == Ok(modified);
        let copy = if is_ours { CopyId::of(metadata).to_bytes() } else { modified.to_le_bytes() };
        Self { digest, size: metadata.len(), copy }
    }
}

/// What is at an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// The root.
    Root,
    /// The directory of models that are still arriving.
    Arriving,
    /// A directory of links, by its path below `sources`.
    Sources(Arc<str>),
    /// A link to a model.
    Link {
        /// Its path below `sources`.
        path: Arc<str>,
        /// Where it leads.
        target: Arc<str>,
    },
    /// A directory of a model, by its path inside.
    Directory {
        /// The model.
        key: Key,
        /// The path, empty for the model itself.
        path: Arc<str>,
    },
    /// A complete file.
    Sealed(Sealed),
    /// A file that is still arriving.
    Partial {
        /// For whom it arrives.
        listing: Digest,
        /// Which object it is.
        file: Arc<ObjectId>,
    },
}

impl Node {
    /// Its number: the same for the same content in the same state, whoever asks and whenever.
    /// Partial and sealed are two inodes, because the kernel lets no inode be both cached and
    /// passed through (`fs/fuse/iomode.c`).
    pub fn number(&self) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("larder inode 1");
        match self {
            Self::Root => return INodeNo::ROOT.0,
            Self::Arriving => hasher.update(b"arriving"),
            Self::Sources(path) => hasher.update(b"sources\0").update(path.as_bytes()),
            Self::Link { path, target } => {
                hasher.update(b"link\0").update(path.as_bytes()).update(b"\0").update(target.as_bytes())
            }
            Self::Directory { key: Key::Whole(digest), path } => {
                hasher.update(b"whole\0").update(digest.as_bytes()).update(path.as_bytes())
            }
            Self::Directory { key: Key::Arriving(listing), path } => {
                hasher.update(b"listed\0").update(listing.as_bytes()).update(path.as_bytes())
            }
            Self::Sealed(sealed) => hasher.update(b"sealed\0").update(sealed.digest.as_bytes()).update(&sealed.copy),
            Self::Partial { file, .. } => hasher.update(b"partial\0").update(file.file_id().as_bytes()),
        };
        let mut number = [0; 8];
        number.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // Small numbers mean something to the kernel; the sign bit confuses old programs.
        (u64::from_le_bytes(number) >> 1) | (1 << 32)
    }

    /// What `stat` says.
    pub fn attributes(&self) -> FileAttr {
        let (kind, perm, size) = match self {
            Self::Root | Self::Arriving | Self::Sources(_) | Self::Directory { .. } => {
                (FileType::Directory, DIRECTORY_MODE, 0)
            }
            Self::Link { target, .. } => (FileType::Symlink, 0o777, target.len() as u64),
            Self::Sealed(sealed) => (FileType::RegularFile, FILE_MODE, sealed.size),
            Self::Partial { file, .. } => (FileType::RegularFile, FILE_MODE, file.size),
        };
        let time = UNIX_EPOCH + FILE_TIME;
        FileAttr {
            ino: INodeNo(self.number()),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_LEN,
            flags: 0,
        }
    }
}

/// What is said of a name that is not there, where that may be remembered.
pub fn nothing() -> FileAttr {
    FileAttr { ino: INodeNo(0), ..Node::Root.attributes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    #[test]
    fn numbers_differ_by_content_state_and_copy_and_by_nothing_else() {
        let digest = Digest::of(b"a");
        let sealed = |copy| Node::Sealed(Sealed { digest, size: 1, copy: [copy; 16] });
        let object = |uri: &str| {
            Arc::new(ObjectId { origin: "o".into(), uri: uri.into(), version: Version::Generation(1), size: 1 })
        };
        let partial = |listing: &[u8], uri| Node::Partial { listing: Digest::of(listing), file: object(uri) };
        let directory = |key, path: &str| Node::Directory { key, path: path.into() };
        let link = |target: &str| Node::Link { path: "s3/b@".into(), target: target.into() };
        let different = [
            Node::Root,
            Node::Arriving,
            Node::Sources("".into()),
            Node::Sources("s3".into()),
            link("../x"),
            link("../y"),
            directory(Key::Whole(digest), ""),
            directory(Key::Arriving(digest), ""),
            directory(Key::Whole(digest), "a"),
            sealed(1),
            sealed(2),
            partial(b"1", "s3://b/a"),
            partial(b"1", "s3://b/b"),
        ];
        let numbers: std::collections::HashSet<u64> = different.iter().map(Node::number).collect();
        assert_eq!(numbers.len(), different.len());
        assert!(numbers.iter().all(|number| i64::try_from(*number).is_ok()));
        assert_eq!(partial(b"1", "s3://b/a").number(), partial(b"2", "s3://b/a").number(), "one object, one inode");
        assert_eq!(sealed(7).attributes(), sealed(7).attributes());
        assert_eq!(sealed(7).attributes().mtime, partial(b"1", "s3://b/a").attributes().mtime);
    }
}
