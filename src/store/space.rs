//! How much room the file system has: bytes and inodes.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::path::Path;

use super::Error;
use super::error::AtPath as _;

/// Left to others on the same file system: 1 % of it, at most 1 GiB; and 1 % of its inodes.
const RESERVE_DIVISOR: u64 = 100;
const RESERVE_MAX: u64 = 1 << 30;

/// What something takes from a file system, or frees on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Inodes: files and directories.
    pub inodes: u64,
}

impl Amount {
    /// More than any file system has.
    pub const ALL: Self = Self { bytes: u64::MAX, inodes: u64::MAX };

    /// So many bytes and inodes.
    #[must_use]
    pub const fn new(bytes: u64, inodes: u64) -> Self {
        Self { bytes, inodes }
    }

    /// What is left of it, nothing where more is taken than there is.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self::new(self.bytes.saturating_sub(other.bytes), self.inodes.saturating_sub(other.inodes))
    }

    /// Whether there is as much of both as in `other`.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.inodes >= other.inodes
    }

    /// The same, but nothing of what nothing is wanted of.
    #[must_use]
    pub const fn of_those(self, wanted: Self) -> Self {
        Self::new(if wanted.bytes > 0 { self.bytes } else { 0 }, if wanted.inodes > 0 { self.inodes } else { 0 })
    }

    /// Whether it has something of what is wanted.
    #[must_use]
    pub const fn helps(self, wanted: Self) -> bool {
        (self.bytes > 0 && wanted.bytes > 0) || (self.inodes > 0 && wanted.inodes > 0)
    }

    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self::new(self.bytes.min(other.bytes), self.inodes.min(other.inodes))
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self::new(self.bytes.max(other.bytes), self.inodes.max(other.inodes))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes and {} inodes", self.bytes, self.inodes)
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::new(self.bytes.saturating_add(other.bytes), self.inodes.saturating_add(other.inodes))
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Add::add)
    }
}

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes an unprivileged user could ever write there.
    pub total: u64,
    /// Bytes such a user may still write.
    pub free: u64,
    /// Its inodes; none where it makes them as they are wanted (btrfs, some tmpfs), so that they
    /// cannot run out.
    pub inodes: Option<Inodes>,
}

/// What a file system has of inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// Inodes an unprivileged user could ever have there.
    pub total: u64,
    /// Inodes such a user may still make.
    pub free: u64,
}

impl Space {
    /// What somebody, not only larder, has taken. Where inodes cannot run out, none counts.
    #[must_use]
    pub fn used(&self) -> Amount {
        let inodes = self.inodes.map_or(0, |inodes| inodes.total.saturating_sub(inodes.free));
        Amount::new(self.total.saturating_sub(self.free), inodes)
    }

    /// What may still be taken.
    #[must_use]
    pub fn free(&self) -> Amount {
        Amount::new(self.free, self.inodes.map_or(u64::MAX, |inodes| inodes.free))
    }

    /// Shares of all bytes and of all inodes, in percent.
    #[must_use]
    pub fn percent(&self, bytes: u8, inodes: u8) -> Amount {
        let share = |total: u64, percent: u8| total / 100 * u64::from(percent) + total % 100 * u64::from(percent) / 100;
        Amount::new(share(self.total, bytes), self.inodes.map_or(u64::MAX, |of| share(of.total, inodes)))
    }

    /// What larder may still take.
    #[must_use]
    pub fn available(&self) -> Amount {
        let inodes = self.inodes.map_or(0, |inodes| inodes.total / RESERVE_DIVISOR);
        self.free().less(Amount::new((self.total / RESERVE_DIVISOR).min(RESERVE_MAX), inodes))
    }
}

/// Asks the file system that holds `path`.
pub(super) fn measure(path: &Path) -> Result<Space, Error> {
    let stat = rustix::fs::statvfs(path).at("ask for the free space of", path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    // What only root may write is nobody's: neither free nor in use.
    let reserved = stat.f_bfree.saturating_sub(stat.f_bavail);
    let reserved_inodes = stat.f_ffree.saturating_sub(stat.f_favail);
    let inodes =
        (stat.f_files > 0).then(|| Inodes { total: stat.f_files.saturating_sub(reserved_inodes), free: stat.f_favail });
    Ok(Space { total: bytes(stat.f_blocks.saturating_sub(reserved)), free: bytes(stat.f_bavail), inodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_counts_no_inodes_never_lacks_them() {
        let space = Space { total: 1000, free: 400, inodes: None };
        assert_eq!((space.used(), space.free()), (Amount::new(600, 0), Amount::new(400, u64::MAX)));
        assert_eq!(space.percent(80, 90), Amount::new(800, u64::MAX));
        assert!(space.available().covers(Amount::new(390, 1 << 40)));
        let space = Space { inodes: Some(Inodes { total: 200, free: 3 }), ..space };
        assert_eq!((space.used(), space.available()), (Amount::new(600, 197), Amount::new(390, 1)));
        assert_eq!(space.percent(80, 90), Amount::new(800, 180));
    }
}
