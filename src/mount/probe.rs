//! Whether the mount answers, found out as its readers do: through the kernel.
//!
//! The kernel answers a stat or a listing of a dead mount from what it remembers; `statfs` it always
//! passes on.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::lock;

/// Between two questions.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Without an answer for so long, the mount is not up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was heard last.
#[derive(Debug, Default)]
pub struct Probe {
    /// When the question was asked that has no answer yet, or had a wrong one.
    silent: Mutex<Option<Instant>>,
}

impl Probe {
    /// Asks once. Blocks while nobody answers.
    pub fn ask(&self, directory: &Path) {
        lock(&self.silent).get_or_insert_with(Instant::now);
        let answers = match rustix::fs::statfs(directory) {
            // Where another file system is, the mount is in another namespace, and says nothing here.
            Ok(_) => true,
            Err(errno) => matches!(errno, Errno::NOENT | Errno::ACCESS),
        };
        if answers {
            *lock(&self.silent) = None;
        }
    }

    /// Whether it answers, as far as is known.
    pub fn answers(&self) -> bool {
        lock(&self.silent).is_none_or(|since| since.elapsed() < PATIENCE)
    }
}
