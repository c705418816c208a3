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
use larder_keeper::{Keeper, client};

use super::lock;

/// Who registers backing files.
#[derive(Debug)]
pub enum Backing {
    /// This process, which may.
    Own(Mutex<HashMap<u64, Arc<BackingId>>>),
    /// The keeper, for us.
    Kept {
        /// The FUSE connection.
        epoch: u64,
        /// The newest keeper that has that.
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

    /// Ids that the keeper holds, of a FUSE connection.
    pub fn kept(epoch: u64, keeper: Arc<Keeper>) -> Self {
        Self::Kept { epoch, keeper: Mutex::new(keeper), known: Mutex::default() }
    }

    /// Another keeper, or another way to the same one, takes the place of one that is over. Where
    /// that does not know the ids, it is told.
    ///
    /// # Errors
    /// The keeper's.
    pub fn follow(&self, newest: &Arc<Keeper>, is_told: bool) -> io::Result<()> {
        let Self::Kept { epoch, keeper, known } = self else { return Ok(()) };
        if is_told {
            let known = lock(known).clone();
            known.into_iter().try_for_each(|(number, id)| newest.remember(*epoch, number, id))?;
        }
        *lock(keeper) = Arc::clone(newest);
        Ok(())
    }

    /// The id that an inode has.
    pub fn known(&self, number: u64) -> Option<Backed> {
        match self {
            Self::Own(ids) => lock(ids).get(&number).map(|id| Backed::Own(Arc::clone(id))),
            Self::Kept { known, .. } => lock(known).get(&number).map(|&id| Backed::Kept(id)),
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
            Self::Kept { epoch, keeper, known } => {
                if let Some(id) = lock(known).get(&number) {
                    return Ok(Backed::Kept(*id));
                }
                let keeper = Arc::clone(&lock(keeper));
                let back = keeper.back(*epoch, number, open()?.as_fd());
                // Somebody else may have asked, just before the keeper went.
                let id = back.or_else(|error| lock(known).get(&number).copied().ok_or(error))?;
                lock(known).insert(number, id);
                Ok(Backed::Kept(id))
            }
        }
    }

    /// Whether an error of [`Self::back`] says what is so, rather than that nobody could be asked.
    pub fn is_answer(&self, error: &io::Error) -> bool {
        matches!(self, Self::Own(_)) || client::refusal(error).is_some()
    }

    /// Gives an inode's id back: the blob is gone. What has it open keeps it.
    pub fn drop_id(&self, number: u64) {
        match self {
            Self::Own(ids) => drop(lock(ids).remove(&number)),
            Self::Kept { epoch, keeper, known } => {
                let keeper = Arc::clone(&lock(keeper));
                match keeper.unback(*epoch, number) {
                    Ok(_) => drop(lock(known).remove(&number)),
                    // It stays known, so that the next keeper can be asked: no other file has this number.
                    Err(error) => {
                        tracing::warn!(%error, "the keeper keeps the space of a file that is gone, until it is asked again");
                    }
                }
            }
        }
    }

    /// Inodes that have an id, those from an earlier life among them.
    ///
    /// # Errors
    /// The keeper's.
    pub fn numbers(&self) -> io::Result<Vec<u64>> {
        match self {
            Self::Own(ids) => Ok(lock(ids).keys().copied().collect()),
            Self::Kept { epoch, keeper, known } => {
                let keeper = Arc::clone(&lock(keeper));
                let mut last = None;
                loop {
                    let more = keeper.keys(*epoch, last)?;
                    let Some((number, _)) = more.last() else { break };
                    last = Some(*number);
                    lock(known).extend(more);
                }
                Ok(lock(known).keys().copied().collect())
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
