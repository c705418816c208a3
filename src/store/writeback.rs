//! Keeps the bytes that wait for the disk below a limit.
//!
//! The kernel lets dirty pages grow to a fifth of the machine's memory and then makes every
//! writer wait, and inside a small memory cgroup (version 1 above all, which has no dirty limit of
//! its own) a fast writer meets reclaim instead: stalls, or the OOM killer. So larder counts what
//! it wrote, and once the count passes its budget pushes the oldest ranges out and waits for them.
//! Pages stay in the cache afterwards, clean: the first reader finds them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Error, Partial};

/// Bytes handed to the disk at once.
const WINDOW_LEN: u64 = 8 << 20;
const BUDGET_MIN: u64 = 24 << 20;
const BUDGET_MAX: u64 = 4 << 30;

/// Starts writing a range to the device; with `wait`, returns when it is there
/// (`sync_file_range(2)`: neither metadata nor the device's own cache are flushed).
#[expect(unsafe_code, reason = "rustix has no sync_file_range")]
pub(super) fn flush(file: &File, offset: u64, len: u64, wait: bool) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (offset, len) = (i64::try_from(offset).map_err(too_far)?, i64::try_from(len).map_err(too_far)?);
    let flags = if wait {
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER
    } else {
        libc::SYNC_FILE_RANGE_WRITE
    };
    // SAFETY: no memory is passed, and the descriptor is open for as long as `file` is borrowed.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // A file system without it (some FUSE, NFS) writes back by its own rules.
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::ESPIPE | libc::EINVAL)) => Ok(()),
        error => Err(error),
    }
}

struct Written {
    /// Whoever fills it keeps it. Once a pull has given it up, its file must be closed: deleted, it
    /// would keep its space.
    partial: Weak<Partial>,
    offset: u64,
    len: u64,
}

/// Counts written bytes in order of writing.
pub struct WriteBack {
    budget: u64,
    queue: Mutex<(VecDeque<Written>, u64)>,
}

impl std::fmt::Debug for WriteBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteBack").field("budget", &self.budget).finish_non_exhaustive()
    }
}

impl WriteBack {
    /// With a budget in bytes, brought between 24 MiB and 4 GiB.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Self { budget: budget.clamp(BUDGET_MIN, BUDGET_MAX), queue: Mutex::new((VecDeque::new(), 0)) }
    }

    /// Notes bytes just written and, over budget, blocks until the oldest are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] when the device failed.
    pub fn wrote(&self, partial: &Arc<Partial>, offset: u64, len: u64) -> Result<(), Error> {
        let oldest = {
            let mut guard = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let (queue, pending) = &mut *guard;
            match queue.back_mut() {
                Some(last)
                    if std::ptr::eq(last.partial.as_ptr(), Arc::as_ptr(partial))
                        && last.offset + last.len == offset
                        && last.len < WINDOW_LEN =>
                {
                    last.len += len;
                }
                _ => queue.push_back(Written { partial: Arc::downgrade(partial), offset, len }),
            }
            *pending += len;
            while let Some(given_up) = queue.pop_front_if(|range| range.partial.strong_count() == 0) {
                *pending -= given_up.len;
            }
            if *pending <= self.budget {
                return Ok(());
            }
            // Take a window's worth from the front; write outside the lock.
            let mut taken = Vec::new();
            let mut bytes = 0;
            while bytes < WINDOW_LEN {
                let Some(front) = queue.pop_front() else { break };
                bytes += front.len;
                taken.extend(front.partial.upgrade().map(|partial| (partial, front.offset, front.len)));
            }
            *pending -= bytes;
            taken
        };
        for wait in [false, true] {
            for (partial, offset, len) in &oldest {
                if let Err(error) = partial.flush(*offset, *len, wait) {
                    // The device says this once. Memory and disk may differ from now on, so what
                    // the journal promises of this file cannot be believed any more.
                    partial.discard()?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Forgets a partial that was sealed or given up.
    pub fn forget(&self, partial: &Arc<Partial>) {
        let mut guard = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (queue, pending) = &mut *guard;
        queue.retain(|range| !std::ptr::eq(range.partial.as_ptr(), Arc::as_ptr(partial)));
        *pending = queue.iter().map(|range| range.len).sum();
    }
}

/// An eighth of the memory this process may use: its cgroup's limit (version 2 or 1) or the
/// machine's memory, whichever is less.
#[must_use]
pub fn dirty_budget() -> u64 {
    let number =
        |path: &str| super::fsx::read_to_string_bounded(Path::new(path), 4096).ok()?.trim().parse::<u64>().ok();
    let limits = [
        number("/sys/fs/cgroup/memory.max"),
        number("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        own_cgroup_limit(),
        machine_memory(),
    ];
    limits.into_iter().flatten().min().unwrap_or(1 << 30) / 8
}

fn machine_memory() -> Option<u64> {
    let text = super::fsx::read_to_string_bounded(Path::new("/proc/meminfo"), 64 << 10).ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of the cgroup that `/proc/self/cgroup` names, outside of a cgroup namespace.
fn own_cgroup_limit() -> Option<u64> {
    let text = super::fsx::read_to_string_bounded(Path::new("/proc/self/cgroup"), 64 << 10).ok()?;
    let limit = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let file = match controllers {
            "" => format!("/sys/fs/cgroup{path}/memory.max"),
            "memory" => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
            _ => return None,
        };
        super::fsx::read_to_string_bounded(Path::new(&file), 64).ok()?.trim().parse::<u64>().ok()
    };
    text.lines().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_bounded_on_any_machine() {
        assert_eq!(WriteBack::new(0).budget, BUDGET_MIN);
        assert_eq!(WriteBack::new(u64::MAX).budget, BUDGET_MAX);
        assert!(dirty_budget() > 0);
    }
}
