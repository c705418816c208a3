//! How much room the file system has.

use std::path::Path;

use super::Error;
use super::error::AtPath as _;

/// Left to others on the same file system: 1 % of it, at most 1 GiB.
const RESERVE_DIVISOR: u64 = 100;
const RESERVE_MAX: u64 = 1 << 30;

/// Bytes larder may still write below `path`.
pub(super) fn available(path: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(path).at("ask for the free space of", path)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    Ok(free.saturating_sub((total / RESERVE_DIVISOR).min(RESERVE_MAX)))
}
