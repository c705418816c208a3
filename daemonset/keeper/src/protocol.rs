//! The messages between the keeper and its peer: fields separated by NUL bytes, one message a
//! packet of a SEQPACKET unix socket, one answer to each request, in order.
//!
//! | request | answer | |
//! | --- | --- | --- |
//! | `hello` version | version, package version, mount, epoch and terms; and `/dev/fuse` | this connection is the daemon's from now on, instead of any other |
//! | `back` epoch key; and a file | id | registers the file, unless the key has one already |
//! | `unback` epoch key | `1`, or `0` for an unknown key | forgets it |
//! | `keys` epoch key, or nothing for the key | keys above it, ascending, and the id of each, some at a time | |
//! | `adopt` epoch terms; and `/dev/fuse` | `1`, or `0` if it was there | keeps what a keeper before had |
//! | `adopted` epoch, or nothing | epoch and terms of the one above it, or nothing; and `/dev/fuse` | |
//! | `remember` epoch key id | | the id that a keeper before gave a key |
//! | `bind` source target | | mounts a directory of the file system somewhere else |
//! | `publish` name target | | mounts a directory of the store of complete models somewhere else |
//! | `there` path | `1` or `0` | whether it is a directory |
//! | `mounts` id, or nothing | id, `bind` or `publish`, what, and target of each above it, ascending, some at a time | what is mounted for pods, as those would be asked for |
//! | `unbind` target | `1`, or `0` if nothing was there | takes that back, and removes the directory |
//! | `listen` path | ; and a socket | makes a listening stream socket, unless it is there |
//! | `unlisten` path | | forgets it and removes its name |
//!
//! An epoch is the number of a FUSE connection; terms are what was agreed with the kernel about it:
//! ABI major, ABI minor, flags (hexadecimal), `max_readahead`, `max_write`.
//!
//! An answer begins with `ok`, or it is `error`, an errno and a sentence. Fields are bytes, since
//! paths are; none holds a NUL, so neither side escapes anything. Every request has a fixed number
//! of fields and of descriptors. What is no request is answered with `EPROTO`, and the connection
//! is closed.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// What `hello` asks for. Another number is another protocol.
pub const VERSION: u32 = 3;
/// Where the keeper listens.
pub const SOCKET: &str = "/run/larder-keeper/keeper.sock";
/// Bytes of a message: two paths of 4,095 bytes, the longest that Linux takes, do not fit, and
/// no path of kubelet comes near.
pub const MESSAGE_LEN_MAX: usize = 8 * 1024;
/// Keys in one answer to `keys`: 240 numbers of 20 digits, and as many of 10, fit a message.
pub const KEYS_PER_ANSWER: usize = 240;

/// Puts fields into a message.
#[must_use]
pub fn join(fields: &[&[u8]]) -> Vec<u8> {
    fields.join(&0)
}

/// A number in decimal digits, and nothing else that `parse` of std would take.
#[must_use]
pub fn number<T: FromStr>(field: &[u8]) -> Option<T> {
    let digits = std::str::from_utf8(field).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// A field as a path.
#[must_use]
pub fn path(field: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(field))
}

/// Why something was not done, as it crosses the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As in errno(3).
    pub errno: i32,
    /// For whoever reads the log.
    pub sentence: String,
}

impl Refusal {
    /// A refusal of the keeper's own.
    pub fn new(errno: Errno, sentence: impl Into<String>) -> Self {
        Self { errno: errno.raw_os_error(), sentence: sentence.into() }
    }

    /// A refusal of the kernel: what was being done, and its word for what is wrong.
    pub fn kernel(errno: Errno, doing: impl fmt::Display) -> Self {
        Self::new(errno, format!("cannot {doing}: {errno}"))
    }

    /// As an answer.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let mut message = join(&[b"error", self.errno.to_string().as_bytes(), self.sentence.as_bytes()]);
        message.truncate(MESSAGE_LEN_MAX);
        message
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(Self::from_raw_os_error(refusal.errno).kind(), refusal)
    }
}

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// What came with it; more than one is never asked for.
    pub descriptors: Vec<OwnedFd>,
    /// Bytes or descriptors beyond the bounds were dropped.
    pub is_cut: bool,
}

/// Sends one message.
///
/// # Errors
/// Whatever the socket says; a peer that is gone is `EPIPE`.
pub fn send(socket: impl AsFd, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        // There is room for one: that is what `space` is made for.
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
    }
    let parts = [IoSlice::new(message)];
    retry_on_intr(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives one message. `None` when the other side has closed the connection.
///
/// # Errors
/// Whatever the socket says; a time limit that ran out is `EAGAIN`.
pub fn receive(socket: impl AsFd) -> rustix::io::Result<Option<Packet>> {
    let mut bytes = vec![0; MESSAGE_LEN_MAX];
    // The kernel closes the descriptors that do not fit, and says so.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got =
        retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    if got.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    let is_cut = got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Some(Packet { bytes, descriptors, is_cut }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_only() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"007"), Some(7_u32));
        for field in [&b""[..], b"-1", b"+1", b" 1", b"1\n", b"1_0", b"0x1", b"\xff", b"4294967296"] {
            assert_eq!(number::<u32>(field), None, "{field:?}");
        }
    }

    #[test]
    fn a_refusal_is_an_error_of_its_kind() {
        let error = io::Error::from(Refusal::kernel(Errno::NOENT, "open it"));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(error.to_string(), "cannot open it: No such file or directory (os error 2)");
        let refusal = Refusal::new(Errno::PROTO, "x".repeat(2 * MESSAGE_LEN_MAX));
        assert_eq!(refusal.message().len(), MESSAGE_LEN_MAX);
    }
}
