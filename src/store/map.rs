//! The only place that maps files into memory.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process could truncate it")]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a file of the store read-only.
///
/// Used for the catalog alone: it is read once, from front to back, in one pass, and is small.
/// Blobs are never mapped by larder: a bad sector under a map is SIGBUS, under read(2) it is EIO.
pub(super) fn read_only(file: &File) -> io::Result<Mmap> {
    // SAFETY: the file lies in the store, whose lock this process holds; larder only ever appends
    // to it or replaces it by rename, and neither shortens the mapped inode.
    unsafe { Mmap::map(file) }
}
