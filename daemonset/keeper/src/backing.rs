//! The files that the kernel reads by itself, under the names that the daemon gives them.
//!
//! The ids belong to the connection, so they outlive the daemon: the next one must use the same
//! id for a file that is still open somewhere (another one is refused by the kernel with EIO).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use larder_keeper::protocol::{KEYS_PER_ANSWER, Refusal};
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, statx};
use rustix::io::Errno;

use crate::sys;

/// Each pins an open file in the kernel, where no limit on descriptors counts it.
const KEYS_MAX: usize = 65_536;

/// Which id each key has.
#[derive(Debug, Default)]
pub struct Backing(Mutex<BTreeMap<u64, u32>>);

impl Backing {
    /// The id of a key, of `file` if it has none yet.
    pub fn back(&self, device: &OwnedFd, key: u64, file: &OwnedFd) -> Result<u32, Refusal> {
        let mut ids = self.ids();
        if let Some(id) = ids.get(&key) {
            return Ok(*id);
        }
        has_room(&ids)?;
        let refuse = |errno| Refusal::kernel(errno, format_args!("register the backing file of {key}"));
        // Without a word to the file's own file system, which might never answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let kind = statx(file, "", flags, StatxFlags::TYPE).map_err(refuse)?.stx_mode;
        let open = fcntl_getfl(file).map_err(refuse)?;
        if FileType::from_raw_mode(kind.into()) != FileType::RegularFile
            || open & OFlags::RWMODE != OFlags::RDONLY
            || open.contains(OFlags::PATH)
        {
            return Err(Refusal::new(Errno::INVAL, "a backing file is a regular file, opened for reading only"));
        }
        let id = sys::backing_open(device, file.as_fd()).map_err(refuse)?;
        ids.insert(key, id);
        Ok(id)
    }

    /// Forgets a key. Says whether it was known.
    pub fn unback(&self, device: &OwnedFd, key: u64) -> Result<bool, Refusal> {
        let mut ids = self.ids();
        let Some(id) = ids.get(&key) else { return Ok(false) };
        match sys::backing_close(device, *id) {
            // The daemon, who has the same descriptor, may have been root and closed it itself.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Refusal::kernel(errno, format_args!("close the backing file of {key}"))),
        }
        ids.remove(&key);
        Ok(true)
    }

    /// Takes the daemon's word for the id of a key, unless it has one.
    pub fn remember(&self, key: u64, id: u32) -> Result<(), Refusal> {
        let mut ids = self.ids();
        if !ids.contains_key(&key) {
            has_room(&ids)?;
            ids.insert(key, id);
        }
        Ok(())
    }

    /// Keys above `after`, ascending, each followed by its id, as many as fit an answer.
    pub fn keys(&self, after: Option<u64>) -> Vec<String> {
        let above = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let ids = self.ids();
        ids.range(above).take(KEYS_PER_ANSWER).flat_map(|(key, id)| [key.to_string(), id.to_string()]).collect()
    }

    fn ids(&self) -> MutexGuard<'_, BTreeMap<u64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_room(ids: &BTreeMap<u64, u32>) -> Result<(), Refusal> {
    if ids.len() < KEYS_MAX {
        return Ok(());
    }
    Err(Refusal::new(Errno::NOSPC, format!("there are {KEYS_MAX} backing files already")))
}
