//! The FUSE mount: made once, its handshake answered once, and both kept.
//!
//! Nothing here looks a path up inside the mount. Until a daemon answers, that would wait for one.

use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use larder_keeper::fuse::{Offer, PASSTHROUGH};
use larder_keeper::protocol::Refusal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use crate::connection::Connection;
use crate::mountinfo::{self, TYPE};
use crate::place::WALK;
use crate::say;

/// The kernel sends INIT while it mounts; this is for a kernel that will not.
const INIT_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// The least that a read of /dev/fuse may offer (`FUSE_MIN_READ_BUFFER`).
const INIT_LEN_MAX: usize = 8192;
/// More mounts than that on one directory are not left by keepers that came before.
pub const STACK_LEN_MAX: usize = 64;
/// So that a sequential read is one request for each 1 MiB; INIT can only lower the 128 KiB that
/// the kernel starts from.
const READ_AHEAD_KIB: &str = "1024";

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    /// Where the kernel asks about it.
    pub fuse: Arc<Connection>,
    /// Its root, opened without asking anyone.
    pub root: OwnedFd,
    /// As in the third column of mountinfo.
    pub device_number: String,
}

/// Detaches whatever is mounted at a directory. What is open stays open.
pub fn detach(directory: &Path) -> Result<(), Refusal> {
    for _ in 0..STACK_LEN_MAX {
        match unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => say(&format!("detached what was mounted at `{}`", directory.display())),
            // Not a mount point, or not there at all.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(Refusal::kernel(errno, format_args!("detach `{}`", directory.display()))),
        }
    }
    Err(Refusal::new(Errno::BUSY, format!("`{}` has more than {STACK_LEN_MAX} mounts", directory.display())))
}

/// Mounts at a directory and answers INIT.
pub fn mount(directory: &Path) -> Result<Mount, Refusal> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| Refusal::new(Errno::IO, format!("cannot make `{}`: {error}", directory.display())))?;
    let device = openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Refusal::kernel(errno, "open /dev/fuse"))?;
    // rootmode is octal: a directory. Without allow_other only root could read; with
    // default_permissions the kernel checks modes, so that the daemon need not.
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576",
        device.as_raw_fd()
    );
    let data = std::ffi::CString::new(data).map_err(|_| Refusal::new(Errno::INVAL, "no NUL in it"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount("larder", directory, TYPE, flags, data.as_c_str())
        .map_err(|errno| Refusal::kernel(errno, format_args!("mount at `{}`", directory.display())))?;
    let finished = finish(device, directory);
    if finished.is_err() {
        let _ = unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    finished
}

fn finish(device: OwnedFd, directory: &Path) -> Result<Mount, Refusal> {
    let offer = handshake(&device)?;
    let agreed = offer.agree();
    let root = openat2(CWD, directory, WALK, Mode::empty(), ResolveFlags::empty()).map_err(|errno| match errno {
        Errno::NOSYS => Refusal::new(errno, "the kernel has no openat2(2): Linux 5.9 is needed"),
        errno => Refusal::kernel(errno, format_args!("open `{}`", directory.display())),
    })?;
    let entry = mountinfo::entry(mountinfo::mount_id(&root)?)?;
    if entry.kind != TYPE {
        return Err(Refusal::new(Errno::BUSY, format!("`{}` was mounted over by something else", directory.display())));
    }
    let passthrough =
        if agreed.flags & PASSTHROUGH == 0 { "without passthrough (needs Linux 6.9)" } else { "passthrough" };
    say(&format!(
        "mounted at `{}` as {}, FUSE {}.{}, {passthrough}",
        directory.display(),
        entry.device_number,
        agreed.abi_major,
        agreed.abi_minor
    ));
    let read_ahead = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device_number);
    if let Err(error) = fs::write(&read_ahead, READ_AHEAD_KIB) {
        say(&format!("readahead stays at the kernel's 128 KiB: cannot write {read_ahead}: {error}"));
    }
    // The seeds of std's hash tables come from getrandom(2), and change with each table.
    let epoch = RandomState::new().hash_one(directory);
    let fuse = Arc::new(Connection::new(epoch, agreed, device));
    Ok(Mount { fuse, root, device_number: entry.device_number })
}

fn handshake(device: &OwnedFd) -> Result<Offer, Refusal> {
    let ready = retry_on_intr(|| poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&INIT_TIMEOUT)));
    if ready.map_err(|errno| Refusal::kernel(errno, "wait for FUSE_INIT"))? == 0 {
        return Err(Refusal::new(Errno::TIMEDOUT, "the kernel sent no FUSE_INIT"));
    }
    let mut request = [0; INIT_LEN_MAX];
    let len = retry_on_intr(|| rustix::io::read(device, &mut request))
        .map_err(|errno| Refusal::kernel(errno, "read FUSE_INIT"))?;
    let offer = Offer::parse(&request[..len]).filter(|offer| offer.abi_major == 7);
    let offer = offer.ok_or_else(|| Refusal::new(Errno::PROTO, "the kernel sent no FUSE_INIT of version 7"))?;
    retry_on_intr(|| rustix::io::write(device, &offer.answer()))
        .map_err(|errno| Refusal::kernel(errno, "answer FUSE_INIT"))?;
    Ok(offer)
}
