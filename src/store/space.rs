//! How much room the file system has.

use std::path::Path;

use super::Error;
use super::error::AtPath as _;

/// Left to others on the same file system: 1 % of it, at most 1 GiB.
const RESERVE_DIVISOR: u64 = 100;
const RESERVE_MAX: u64 = 1 << 30;

/// What a file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes an unprivileged user could ever write there.
    pub total: u64,
    /// Bytes such a user may still write.
    pub free: u64,
}

impl Space {
    /// Bytes that somebody, not only larder, has written.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}

/// Asks the file system that holds `path`.
pub(super) fn measure(path: &Path) -> Result<Space, Error> {
    let stat = rustix::fs::statvfs(path).at("ask for the free space of", path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    // What only root may write is nobody's: neither free nor in use.
    let reserved = stat.f_bfree.saturating_sub(stat.f_bavail);
    Ok(Space { total: bytes(stat.f_blocks.saturating_sub(reserved)), free: bytes(stat.f_bavail) })
}

/// Bytes larder may still write below `path`.
pub(super) fn available(path: &Path) -> Result<u64, Error> {
    let space = measure(path)?;
    Ok(space.free.saturating_sub((space.total / RESERVE_DIVISOR).min(RESERVE_MAX)))
}
