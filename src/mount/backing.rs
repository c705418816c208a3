//! Backing ids: the kernel reads a sealed file by itself, once it has been handed the blob.
//!
//! An id belongs to the connection, not to the process: with a keeper it outlives the daemon, and
//! an inode that is still open must get the same one again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use larder_keeper::Keeper;

use super::lock;

/// Who registers backing files.
#[derive(Debug)]
pub enum Backing {
    /// This process, which may.
    Own(Mutex<HashMap<u64, Arc<BackingId>>>),
    /// The keeper, for us.
    Kept {
        /// The connection to it, the newest one.
        keeper: Mutex<Arc<Keeper>>,
        /// What it said.
        known: Mutex<HashMap<u64, u32>>,
    },
}

/// An id for one inode.
#[derive(Debug)]
pub enum Backed {
    Own(Arc<BackingId>),
    Kept(u32),
}

impl Backing {
    /// Ids of this process.
    pub fn own() -> Self {
        Self::Own(Mutex::default())
    }

    /// Ids that the keeper holds.
    pub fn kept(keeper: Arc<Keeper>) -> Self {
        Self::Kept { keeper: Mutex::new(keeper), known: Mutex::default() }
    }

    /// Another connection to the same keeper takes the place of one that is over.
    pub fn follow(&self, newest: Arc<Keeper>) {
        if let Self::Kept { keeper, .. } = self {
            *lock(keeper) = newest;
        }
    }

    /// The id of an inode; where it has none, `open` brings its file and it gets one.
    ///
    /// # Errors
    /// The kernel's, or the keeper's.
    pub fn back(&self, number: u64, reply: &ReplyOpen, open: impl FnOnce() -> io::Result<File>) -> io::Result<Backed> {
        match self {
            Self::Own(ids) => {
                let mut ids = lock(ids);
                if let Some(id) = ids.get(&number) {
                    return Ok(Backed::Own(Arc::clone(id)));
                }
                let id = Arc::new(reply.open_backing(open()?)?);
                ids.insert(number, Arc::clone(&id));
                Ok(Backed::Own(id))
            }
            Self::Kept { keeper, known } => {
                if let Some(id) = lock(known).get(&number) {
                    return Ok(Backed::Kept(*id));
                }
                let keeper = Arc::clone(&lock(keeper));
                let id = keeper.back(number, open()?.as_fd())?;
                lock(known).insert(number, id);
                Ok(Backed::Kept(id))
            }
        }
    }

    /// Gives an inode's id back: the blob is gone. What has it open keeps it.
    pub fn drop_id(&self, number: u64) {
        match self {
            Self::Own(ids) => drop(lock(ids).remove(&number)),
            Self::Kept { keeper, known } => {
                lock(known).remove(&number);
                let keeper = Arc::clone(&lock(keeper));
                if let Err(error) = keeper.unback(number) {
                    tracing::warn!(%error, "the keeper keeps the space of a file that is gone, until it is asked again");
                }
            }
        }
    }

    /// Inodes that have an id from an earlier life.
    ///
    /// # Errors
    /// The keeper's.
    pub fn numbers(&self) -> io::Result<Vec<u64>> {
        match self {
            Self::Own(ids) => Ok(lock(ids).keys().copied().collect()),
            Self::Kept { keeper, .. } => {
                let keeper = Arc::clone(&lock(keeper));
                let mut all: Vec<u64> = Vec::new();
                loop {
                    let more = keeper.keys(all.last().copied())?;
                    if more.is_empty() {
                        return Ok(all);
                    }
                    all.extend(more);
                }
            }
        }
    }
}

impl Backed {
    /// Answers an open: the kernel does the rest.
    pub fn answer(&self, reply: ReplyOpen, handle: u64) {
        // Nothing is ever written, so there is nothing to flush.
        let flags = FopenFlags::FOPEN_NOFLUSH;
        match self {
            Self::Own(id) => reply.opened_passthrough(FileHandle(handle), flags, id),
            Self::Kept(id) => {
                #[expect(unsafe_code, reason = "fuser takes the id of another process no other way")]
                // SAFETY: the keeper registered the id on this connection, and closes it only when
                // asked to by `drop_id`, which is not called for an inode while it is opened: its
                // blob would have to be gone first.
                let id = unsafe { reply.wrap_backing(*id) };
                reply.opened_passthrough(FileHandle(handle), flags, &id);
                // Dropped, it would be closed.
                let _ = id.into_raw();
            }
        }
    }
}
