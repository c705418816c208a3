//! The calls that neither the standard library nor rustix has, and nothing else that is unsafe:
//! two ioctls of /dev/fuse, who a peer is, signals as a descriptor, a thread with descriptors of its
//! own, and what a mount may do before it is anywhere.

#![expect(unsafe_code, reason = "neither std nor rustix has these calls")]

use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl, opcode};

/// Of every ioctl of /dev/fuse (`FUSE_DEV_IOC_MAGIC` of linux/fuse.h).
const MAGIC: u8 = 229;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
/// As on every architecture but mips and parisc.
const SIGXFSZ: c_int = 25;
const SIG_BLOCK: c_int = 0;
const SFD_CLOEXEC: c_int = 0o2_000_000;
/// As on every architecture but mips, powerpc and sparc.
const SOL_SOCKET: c_int = 1;
const SO_PEERCRED: c_int = 17;
/// Linux 5.9, the same number on every architecture but alpha.
const SYS_CLOSE_RANGE: c_long = 436;
const CLOSE_RANGE_UNSHARE: c_uint = 1 << 1;
/// Linux 5.12, the same number on every architecture but alpha.
const SYS_MOUNT_SETATTR: c_long = 442;
const AT_EMPTY_PATH: c_uint = 0x1000;
/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NODEV` and `_NOEXEC`.
const RESTRICTED: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3;
const MS_PRIVATE: u64 = 1 << 18;

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

// SAFETY: FUSE_DEV_IOC_BACKING_OPEN reads a `struct fuse_backing_map`, which is what `as_ptr`
// points to, writes nothing, and returns the id.
unsafe impl Ioctl for BackingMap {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<Self>(MAGIC, 1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(id: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        Ok(id.cast_unsigned())
    }
}

/// Registers a file with the connection (`FUSE_DEV_IOC_BACKING_OPEN`). The id lives as long as
/// the connection, whoever closes the file.
pub fn backing_open(device: &OwnedFd, file: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the descriptor is open for as long as the call lasts; see the impl for the rest.
    unsafe { ioctl(device, map) }
}

/// Takes that back (`FUSE_DEV_IOC_BACKING_CLOSE`).
pub fn backing_close(device: &OwnedFd, id: u32) -> rustix::io::Result<()> {
    // SAFETY: this ioctl reads one u32, which is what the setter points to.
    unsafe { ioctl(device, Setter::<{ opcode::write::<u32>(MAGIC, 2) }, u32>::new(id)) }
}

/// `sigset_t` of glibc and musl: 1,024 bits.
type SignalSet = [c_ulong; 128 / size_of::<c_ulong>()];

unsafe extern "C" {
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, number: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut c_uint) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

/// `struct ucred`.
#[repr(C)]
#[derive(Default)]
struct Credentials {
    /// 0 if the process is in a container of its own, where rustix's type for it has no value.
    pid: i32,
    uid: u32,
    gid: u32,
}

/// The user who made a connection, as of then.
pub fn peer_uid(socket: &OwnedFd) -> io::Result<u32> {
    let mut found = Credentials::default();
    let mut len = size_of::<Credentials>() as c_uint;
    // SAFETY: both pointers are to values that outlive the call, and the kernel writes no more
    // than `len` bytes, for which any value is one.
    let result =
        unsafe { getsockopt(socket.as_raw_fd(), SOL_SOCKET, SO_PEERCRED, (&raw mut found).cast(), &raw mut len) };
    match result {
        0 if len as usize == size_of::<Credentials>() => Ok(found.uid),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor that becomes readable when the process is told to end (SIGTERM, SIGINT), which
/// from now on does not end it: not this thread, nor those it starts. Process 1 of a container
/// gets no signal that is neither handled nor blocked.
///
/// Nor does a log that may not grow (`ulimit -f`) end it.
pub fn told_to_end() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<SignalSet>::uninit();
    // SAFETY: the set is large enough for either C library, initialised by the first call before
    // it is read, and outlives all of them; no old set is asked for.
    let fd = unsafe {
        sigemptyset(set.as_mut_ptr());
        sigaddset(set.as_mut_ptr(), SIGINT);
        sigaddset(set.as_mut_ptr(), SIGTERM);
        let error = pthread_sigmask(SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let fd = signalfd(-1, set.as_ptr(), SFD_CLOEXEC);
        sigaddset(set.as_mut_ptr(), SIGXFSZ);
        pthread_sigmask(SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        fd
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives this thread descriptors of its own: 0 to 2, and `fd`.
///
/// Who waits in the kernel for an answer that a daemon has begun cannot be killed, and keeps its
/// descriptors. With /dev/fuse among them, a keeper that is killed while no daemon lives would
/// wait for good: only the last close of /dev/fuse ends the wait.
///
/// Afterwards the thread must neither use nor drop any other descriptor made before.
pub fn keep_only(fd: &OwnedFd) -> io::Result<()> {
    let kept = fd.as_raw_fd().cast_unsigned();
    for (first, last) in [(kept + 1, c_uint::MAX), (3, kept - 1)] {
        // SAFETY: no pointer is passed; other threads keep their descriptors, and this one is
        // told above what not to touch. The table that was unshared first is not shared again.
        let result = unsafe { syscall(SYS_CLOSE_RANGE, first, last, CLOSE_RANGE_UNSHARE) };
        if result != 0 && first <= last {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes a tree of one mount, which is not attached yet, read-only, nosuid, nodev and noexec, and
/// private: what is mounted where it was taken from stays there.
pub fn restrict(tree: &OwnedFd) -> io::Result<()> {
    let attributes = MountAttributes { set: RESTRICTED, clear: 0, propagation: MS_PRIVATE, user_namespace: 0 };
    let len = size_of::<MountAttributes>();
    // SAFETY: the path is empty and ends with NUL, the kernel reads `len` bytes of the attributes and
    // writes nothing, and all of them outlive the call.
    let result = unsafe {
        syscall(SYS_MOUNT_SETATTR, tree.as_raw_fd(), c"".as_ptr(), AT_EMPTY_PATH, &raw const attributes, len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
