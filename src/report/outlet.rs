//! A standard stream of a command, whose reader may have stopped reading.
//!
//! Nothing here waits for a reader without a bound: a command that waits would go on to own what it
//! has finished with.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::io::{Errno, write};

use super::output::{PIECE_LEN, has_room};

/// How long a reader may take nothing before what waits for it is lost.
const READER_PATIENCE: Duration = Duration::from_secs(10);
/// The same for a process that was told to end.
const HURRIED_PATIENCE: Duration = Duration::from_millis(200);
/// Bytes that wait for a reader while the work goes on; beyond them the work waits, too.
const WAITING_LEN_MAX: usize = 1 << 20;
/// How often it is looked whether the process was told to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

static HURRIED: AtomicBool = AtomicBool::new(false);

/// From now on the process ends: no reader is waited for any longer.
pub fn hurry() {
    HURRIED.store(true, Relaxed);
}

/// What a stream is still to take.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    waiting: Vec<u8>,
    /// A reader was waited for, and took nothing.
    gave_up: bool,
}

impl Outlet {
    pub(super) const fn new() -> Self {
        Self { waiting: Vec::new(), gave_up: false }
    }

    /// Writes what is of use only now, if there is room within `patience`; otherwise it is lost. Whether
    /// it was written.
    pub(super) fn pass(&mut self, to: &impl AsFd, bytes: &[u8], patience: Duration) -> io::Result<bool> {
        if !self.pump(to, patience)? {
            return Ok(false);
        }
        self.waiting.extend_from_slice(bytes);
        let is_whole = self.pump(to, patience)?;
        if self.waiting.len() == bytes.len() {
            self.waiting.clear();
            return Ok(is_whole);
        }
        // Half a line is followed by its other half.
        Ok(true)
    }

    /// Writes what must not be lost, or keeps it until there is room.
    pub(super) fn keep(&mut self, to: &impl AsFd, bytes: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(bytes);
        if !self.pump(to, Duration::ZERO)? && self.waiting.len() > WAITING_LEN_MAX {
            self.flush(to, Instant::now() + READER_PATIENCE)?;
        }
        Ok(())
    }

    /// Writes what waits. What is not taken until then is lost.
    pub(super) fn flush(&mut self, to: &impl AsFd, until: Instant) -> io::Result<()> {
        if self.pump(to, until.saturating_duration_since(Instant::now()))? {
            return Ok(());
        }
        self.waiting.clear();
        let message = if HURRIED.load(Relaxed) {
            "its reader takes nothing".to_owned()
        } else {
            format!("its reader took nothing for {} s", READER_PATIENCE.as_secs())
        };
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    }

    /// Writes as long as the reader takes something within `patience`; whether that was all.
    fn pump(&mut self, to: &impl AsFd, patience: Duration) -> io::Result<bool> {
        let mut taken = 0;
        let pumped = self.write_from(to, patience, &mut taken);
        self.waiting.drain(..taken);
        if pumped.is_err() {
            self.waiting.clear();
        }
        pumped
    }

    fn write_from(&mut self, to: &impl AsFd, patience: Duration, taken: &mut usize) -> io::Result<bool> {
        let mut since = Instant::now();
        while *taken < self.waiting.len() {
            let most = match (self.gave_up, HURRIED.load(Relaxed)) {
                (true, _) => Duration::ZERO,
                (false, true) => HURRIED_PATIENCE.min(patience),
                (false, false) => patience,
            };
            let left = most.saturating_sub(since.elapsed());
            let is_ready = has_room(to, Some(left.min(LOOK_INTERVAL)))?;
            let piece = &self.waiting[*taken..self.waiting.len().min(*taken + PIECE_LEN)];
            match if is_ready { write(to, piece) } else { Err(Errno::AGAIN) } {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    *taken += written;
                    since = Instant::now();
                    self.gave_up = false;
                }
                Err(Errno::AGAIN) if left.is_zero() => {
                    self.gave_up |= !patience.is_zero();
                    return Ok(false);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }
}

/// The patience with a reader at the end of the work, for all streams together.
#[must_use]
pub fn until() -> Instant {
    Instant::now() + READER_PATIENCE
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_is_kept_waits_for_room_in_order_and_what_passes_is_lost() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut outlet = Outlet::new();
        let mut passed = 0;
        while outlet.pass(&writer, &[b'p'; 1000], Duration::ZERO).expect("a pipe") {
            passed += 1000;
        }
        let half = outlet.waiting.len();
        outlet.keep(&writer, b"first\n").expect("kept");
        assert!(!outlet.pass(&writer, b"lost\n", Duration::ZERO).expect("a pipe"));
        outlet.keep(&writer, b"second\n").expect("kept");
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        outlet.flush(&writer, until()).expect("taken");
        drop(writer);
        let all = reading.join().expect("a reader").expect("read");
        assert!(half < 1000 && all.len() == passed + b"first\nsecond\n".len(), "{} {passed} {half}", all.len());
        assert!(all.ends_with(b"pfirst\nsecond\n"));
    }

    #[test]
    fn what_is_never_taken_is_lost_once_its_time_is_over() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let mut outlet = Outlet::new();
        outlet.keep(&writer, &vec![b'x'; 200_000]).expect("kept");
        let until = Instant::now() + Duration::from_millis(100);
        assert_eq!(outlet.flush(&writer, until).expect_err("not taken").kind(), io::ErrorKind::TimedOut);
        assert!(outlet.waiting.is_empty() && outlet.gave_up);
        let began = Instant::now();
        for _ in 0..100 {
            let _ = outlet.keep(&writer, &vec![b'x'; 1 << 16]);
        }
        assert!(began.elapsed() < READER_PATIENCE, "it was waited for once");
    }
}
