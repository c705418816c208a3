//! The log, on stderr. A line that nobody takes is lost: no thread of the keeper waits for a reader.

use std::io;
use std::panic::{self, PanicHookInfo};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, write};

/// How long a line waits for a reader that has stopped reading. The lines behind it do not wait at
/// all, until there is room again.
const READER_PATIENCE: Duration = Duration::from_millis(100);
/// A pipe that has room for a byte has room for so many (`PIPE_BUF`); a longer line is cut.
const LINE_LEN_MAX: usize = 4096;

/// Whether the reader has stopped reading. Held while a line is written, so that no other takes the
/// room that was seen.
static STUCK: Mutex<bool> = Mutex::new(false);

/// A line of the log, in one write, so that the lines of containers do not mix, and one only,
/// whatever is in a path.
pub fn say(sentence: &str) {
    let mut line = format!("larder-keeper: {}", sentence.replace(char::is_control, "?")).into_bytes();
    line.truncate(LINE_LEN_MAX - 1);
    line.push(b'\n');
    let mut stuck = STUCK.lock().unwrap_or_else(PoisonError::into_inner);
    let patience = if *stuck { Duration::ZERO } else { READER_PATIENCE };
    let stderr = io::stderr();
    *stuck = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Timespec::try_from(patience).ok().as_ref()) == Ok(0);
    if !*stuck {
        // With no room on the disk or nobody to read it, it is of no use to fail.
        while write(&stderr, &line) == Err(Errno::INTR) {}
    }
}

/// From now on a panic is a line of the log.
pub fn tell_panics() {
    panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        let (payload, place) = (info.payload(), info.location().map(ToString::to_string).unwrap_or_default());
        let message = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        say(&format!(
            "a defect: panic in thread `{}` at {place}: {}",
            thread.name().unwrap_or("of a connection"),
            message.unwrap_or("no message")
        ));
    }));
}
