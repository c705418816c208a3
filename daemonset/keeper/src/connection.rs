//! FUSE connections: the one of this keeper's mount, and those that keepers before this one made and
//! that pods still have. The daemon holds those while keepers change, and hands them over.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_keeper::fuse::{Agreed, PASSTHROUGH};
use larder_keeper::protocol::Refusal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::Errno;

use crate::backing::Backing;

/// Each is of a keeper of its own, and ends with the last pod that has its mount.
const ADOPTED_MAX: usize = 16;
/// `/dev/fuse` (`MISC_MAJOR`, `FUSE_MINOR` of linux/miscdevice.h).
const DEVICE: (u32, u32) = (10, 229);

/// Where the kernel asks about one mount.
#[derive(Debug)]
pub struct Connection {
    /// No other one has it.
    pub epoch: u64,
    /// As negotiated.
    pub agreed: Agreed,
    /// `/dev/fuse`, connected. No second descriptor of it is made in this process, or a thread
    /// could be left with one (`sys::keep_only`).
    pub device: Arc<OwnedFd>,
    backing: Backing,
}

impl Connection {
    /// Nothing is registered with it yet.
    pub fn new(epoch: u64, agreed: Agreed, device: OwnedFd) -> Self {
        Self { epoch, agreed, device: Arc::new(device), backing: Backing::default() }
    }

    /// One that the daemon hands over, if that is what it is.
    pub fn handed_over(epoch: u64, agreed: Agreed, device: OwnedFd) -> Result<Self, Refusal> {
        let refuse = |errno| Refusal::kernel(errno, "look at a handed over connection");
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(&device, "", flags, StatxFlags::TYPE).map_err(refuse)?;
        let is_character_device = FileType::from_raw_mode(found.stx_mode.into()) == FileType::CharacterDevice;
        if !is_character_device || (found.stx_rdev_major, found.stx_rdev_minor) != DEVICE {
            return Err(Refusal::new(Errno::INVAL, "what was handed over is not /dev/fuse"));
        }
        let connection = Self::new(epoch, agreed, device);
        if connection.is_aborted() {
            return Err(Refusal::new(Errno::NOTCONN, format!("nobody has the mount of connection {epoch} any more")));
        }
        Ok(connection)
    }

    /// Whether it is over: somebody ended it (`umount -f`, fusectl), or nobody has the mount any
    /// more. Asked when a daemon comes: to wait for the event would wake this process at every
    /// request.
    pub fn is_aborted(&self) -> bool {
        let mut polled = [PollFd::new(&self.device, PollFlags::empty())];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1)) && polled[0].revents().contains(PollFlags::ERR)
    }

    /// The backing id of a key, of `file` if it has none yet.
    pub fn back(&self, key: u64, file: &OwnedFd) -> Result<u32, Refusal> {
        if self.agreed.flags & PASSTHROUGH == 0 {
            return Err(Refusal::new(Errno::OPNOTSUPP, "this kernel has no passthrough: Linux 6.9 is needed"));
        }
        self.backing.back(&self.device, key, file)
    }

    /// Forgets a key. Says whether it was known.
    pub fn unback(&self, key: u64) -> Result<bool, Refusal> {
        self.backing.unback(&self.device, key)
    }

    /// Which files are registered.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// As fields of a message.
    pub fn fields(&self) -> Vec<String> {
        let mut fields = vec![self.epoch.to_string()];
        fields.extend(self.agreed.fields());
        fields
    }
}

/// Those of keepers before, by epoch.
#[derive(Debug, Default)]
pub struct Adopted(Mutex<BTreeMap<u64, Arc<Connection>>>);

impl Adopted {
    /// Takes one in. Says whether that is news.
    pub fn take(&self, connection: Connection) -> Result<bool, Refusal> {
        let mut all = self.living();
        if all.contains_key(&connection.epoch) {
            return Ok(false);
        }
        if all.len() >= ADOPTED_MAX {
            let sentence = format!("pods have the mounts of {ADOPTED_MAX} keepers before this one already");
            return Err(Refusal::new(Errno::NOSPC, sentence));
        }
        all.insert(connection.epoch, Arc::new(connection));
        Ok(true)
    }

    /// The first one above `after`.
    pub fn next(&self, after: Option<u64>) -> Option<Arc<Connection>> {
        let above = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        self.living().range(above).next().map(|(_, connection)| Arc::clone(connection))
    }

    /// The one with this epoch.
    pub fn with(&self, epoch: u64) -> Option<Arc<Connection>> {
        self.living().get(&epoch).cloned()
    }

    /// Without those that are over.
    fn living(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, connection| !connection.is_aborted());
        all
    }
}
