//! The standard streams, whose failures stop nothing and change nothing that is done.
//!
//! `println!` and `eprintln!` panic where there is no room or no reader, and std takes a descriptor
//! that cannot be written for a success.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, write};

use super::outlet::Outlet;
pub use super::outlet::{hurry, until};

/// How long a line of a daemon's log waits for a reader that has stopped reading. The lines behind
/// it do not wait at all, until there is room again.
const READER_PATIENCE: Duration = Duration::from_millis(100);
/// A pipe that has room for a byte has room for so many (`PIPE_BUF`).
pub(super) const PIECE_LEN: usize = 4096;

static LOST: AtomicU64 = AtomicU64::new(0);
/// Whether the reader of the log has stopped reading. Held while a line is written, so that no other
/// takes the room that was seen.
static STUCK: Mutex<bool> = Mutex::new(false);

static STDOUT: Mutex<Outlet> = Mutex::new(Outlet::new());
static STDERR: Mutex<Outlet> = Mutex::new(Outlet::new());

fn locked(outlet: &Mutex<Outlet>) -> MutexGuard<'_, Outlet> {
    outlet.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes all of a listing to stdout, however long its reader takes: it may be a pager.
///
/// # Errors
/// Whatever the kernel says of it.
pub fn stdout(bytes: &[u8]) -> io::Result<()> {
    write_all(&io::stdout(), bytes)
}

/// Writes an event to stdout. Where its reader is slow it waits there, and nobody for it.
///
/// # Errors
/// Whatever the kernel says of it; a reader that takes nothing for too long.
pub fn event(bytes: &[u8]) -> io::Result<()> {
    locked(&STDOUT).keep(&unblocked_stdout(), bytes)
}

/// The same for one that is of use only now: where there is no room it is lost.
///
/// # Errors
/// Whatever the kernel says of it.
pub fn passing_event(bytes: &[u8]) -> io::Result<()> {
    locked(&STDOUT).pass(&unblocked_stdout(), bytes, Duration::ZERO).map(drop)
}

/// Waits until stdout has taken everything.
///
/// # Errors
/// As [`event`].
pub fn flush_stdout(until: Instant) -> io::Result<()> {
    locked(&STDOUT).flush(&unblocked_stdout(), until)
}

/// Writes to stderr as far as that goes: with no room or nobody to read it, it is of no use to fail.
/// Where its reader is slow it waits there, and nobody for it.
pub fn stderr(bytes: &[u8]) {
    count_lost(locked(&STDERR).keep(&unblocked_stderr(), bytes).is_ok());
}

/// The same for what is of use only now: where there is no room it is lost.
pub fn passing(bytes: &[u8]) {
    pass(bytes, Duration::ZERO);
}

/// The same for a line of a command's log, for which a slow reader gets a moment.
pub fn command_log_line(line: &[u8]) {
    pass(line, READER_PATIENCE);
}

fn pass(bytes: &[u8], patience: Duration) {
    // Somebody who cannot wait draws bars, too: a signal comes while others write.
    let Ok(mut outlet) = STDERR.try_lock() else { return };
    count_lost(outlet.pass(&unblocked_stderr(), bytes, patience).unwrap_or(false));
}

/// Waits until stderr has taken everything, or until then.
pub fn flush_stderr(until: Instant) {
    count_lost(locked(&STDERR).flush(&unblocked_stderr(), until).is_ok());
}

fn count_lost(is_written: bool) {
    if !is_written {
        LOST.fetch_add(1, Relaxed);
    }
}

fn unblocked_stdout() -> BorrowedFd<'static> {
    static STREAM: OnceLock<(io::Stdout, Option<OwnedFd>)> = OnceLock::new();
    let (stream, again) = STREAM.get_or_init(|| (io::stdout(), opened_again(&io::stdout())));
    again.as_ref().map_or(stream.as_fd(), AsFd::as_fd)
}

fn unblocked_stderr() -> BorrowedFd<'static> {
    static STREAM: OnceLock<(io::Stderr, Option<OwnedFd>)> = OnceLock::new();
    let (stream, again) = STREAM.get_or_init(|| (io::stderr(), opened_again(&io::stderr())));
    again.as_ref().map_or(stream.as_fd(), AsFd::as_fd)
}

/// A terminal has room for a byte and then waits for room for more: it is opened once more, for writes
/// that do not wait. The descriptor itself is the shell's, too, and stays as it is.
fn opened_again(stream: &impl AsFd) -> Option<OwnedFd> {
    let fd = stream.as_fd();
    if !rustix::termios::isatty(fd) {
        return None;
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty()).ok()
}

/// Writes a line of a daemon's log to stderr, or loses it: neither a full disk nor a reader that has
/// stopped reading holds up whoever says something.
pub fn log_line(line: &[u8]) {
    let mut stuck = STUCK.lock().unwrap_or_else(PoisonError::into_inner);
    if !log_to(&io::stderr(), line, &mut stuck) {
        LOST.fetch_add(1, Relaxed);
    }
}

/// Lines for stderr that this process has lost.
#[must_use]
pub fn lines_lost() -> u64 {
    LOST.load(Relaxed)
}

fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Another process has made the descriptor that it shares with us non-blocking.
            Err(Errno::AGAIN) => drop(has_room(to, None)?),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether the line was written.
fn log_to(to: &impl AsFd, line: &[u8], stuck: &mut bool) -> bool {
    for mut piece in line.chunks(PIECE_LEN) {
        while !piece.is_empty() {
            let patience = if *stuck { Duration::ZERO } else { READER_PATIENCE };
            *stuck = !has_room(to, Some(patience)).unwrap_or(true);
            if *stuck {
                return false;
            }
            match write(to, piece) {
                Ok(written) if written > 0 => piece = &piece[written..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(_) | Err(_) => return false,
            }
        }
    }
    true
}

/// Whether something can be written within a time; an error of the descriptor is for `write` to tell.
/// A signal ends the wait: what comes next may wait for good where there is no room.
pub(super) fn has_room(to: &impl AsFd, within: Option<Duration>) -> io::Result<bool> {
    let limit = within.and_then(|within| Timespec::try_from(within).ok());
    match poll(&mut [PollFd::new(to, PollFlags::OUT)], limit.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(poll(&mut [PollFd::new(to, PollFlags::OUT)], Some(&Timespec::default())) == Ok(1)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_log_whose_reader_has_stopped_reading_waits_once_and_goes_on_when_it_reads() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (line, mut stuck) = ([b'x'; 1000], false);
        let began = Instant::now();
        let mut written = 0;
        while log_to(&writer, &line, &mut stuck) {
            written += 1;
        }
        assert!(stuck && written > 10, "{written} lines fit in a pipe");
        for _ in 0..1000 {
            assert!(!log_to(&writer, &line, &mut stuck));
        }
        assert!(began.elapsed() < READER_PATIENCE * 50, "a thousand lines do not wait one after another");
        let mut read = vec![0; 16 << 10];
        reader.read_exact(&mut read).expect("read");
        assert!(log_to(&writer, &line, &mut stuck) && !stuck);
        drop(reader);
        assert!(!log_to(&writer, &line, &mut stuck) && !stuck, "nobody reads it any more");
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_descriptor_that_would_block_is_waited_for() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let error = write_all(&full, b"x").expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!log_to(&full, b"x", &mut false));
        let (mut reader, writer) = io::pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("non-blocking");
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all.len())
        });
        write_all(&writer, &vec![b'x'; 1 << 20]).expect("written");
        drop(writer);
        assert_eq!(reading.join().expect("a reader").expect("read"), 1 << 20);
    }
}
