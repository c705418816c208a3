//! The standard streams, whose readers may have stopped reading.

#![expect(unsafe_code, reason = "std has no poll, and takes a descriptor for one that can be waited for")]

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const POLLOUT: i16 = 4;
/// A pipe that has room for a byte has room for so many (`PIPE_BUF`).
const PIECE_LEN: usize = 4096;

/// `struct pollfd`.
#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn poll(fds: *mut PollFd, count: c_ulong, milliseconds: c_int) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize;
}

/// Where text goes.
#[derive(Debug, Clone, Copy)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Whether the reader of each has stopped reading.
static STUCK: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// Writes it, or loses it where its reader takes nothing for so long.
pub fn say(stream: Stream, bytes: &[u8], patience: Duration) {
    let (fd, stuck) = (stream as c_int, &STUCK[stream as usize - 1]);
    for mut piece in bytes.chunks(PIECE_LEN) {
        while !piece.is_empty() {
            let patience = if stuck.load(Relaxed) { Duration::ZERO } else { patience };
            let mut asked = PollFd { fd, events: POLLOUT, revents: 0 };
            // SAFETY: one `struct pollfd`, which outlives the call.
            let is_ready = unsafe { poll(&raw mut asked, 1, patience.as_millis() as c_int) } == 1;
            stuck.store(!is_ready, Relaxed);
            if !is_ready {
                return;
            }
            // SAFETY: the bytes are readable for their length.
            let written = unsafe { write(fd, piece.as_ptr().cast(), piece.len()) };
            match usize::try_from(written) {
                Ok(written @ 1..) => piece = &piece[written..],
                _ => return,
            }
        }
    }
}
