//! The two system calls that the standard library does not have, and nothing else that is unsafe.

#![expect(unsafe_code, reason = "std has neither FICLONE nor a connect that does not wait")]

use std::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// `_IOW(0x94, 9, int)` (linux/fs.h), the same on every architecture but mips, powerpc and sparc.
const FICLONE: c_ulong = 0x4004_9409;
const AF_UNIX: u16 = 1;
const SOCK_STREAM: c_int = 1;
const SOCK_NONBLOCK: c_int = 0o4000;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
/// Bytes of a socket's path, its NUL included (unix(7)).
const PATH_LEN_MAX: usize = 108;

/// `struct sockaddr_un`.
#[repr(C)]
struct Address {
    family: u16,
    path: [u8; PATH_LEN_MAX],
}

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const Address, len: u32) -> c_int;
}

/// Lets `target` share the extents of `source`. Works within one file system that can.
pub(crate) fn reflink(source: &File, target: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open for as long as the call lasts, and FICLONE takes the
    // second as an int.
    let result = unsafe { ioctl(target.as_raw_fd(), FICLONE, source.as_raw_fd()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects without ever waiting: a daemon that hangs with a full queue of connections answers
/// [`io::ErrorKind::WouldBlock`], where the connect of std would wait for good.
pub(crate) fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= PATH_LEN_MAX || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of a socket has at most 107 bytes"));
    }
    let mut address = Address { family: AF_UNIX, path: [0; PATH_LEN_MAX] };
    address.path[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: no pointer is passed.
    let fd = unsafe { socket(c_int::from(AF_UNIX), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = size_of::<Address>() as u32;
    // SAFETY: the address is a whole `struct sockaddr_un` that outlives the call.
    if unsafe { connect(fd.as_raw_fd(), &raw const address, len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
