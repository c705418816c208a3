//! Reads a file past the page cache, into page-aligned memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use memmap2::MmapMut;

use super::damage::CopyId;
use super::fsx;

/// One read: large enough for a disk to stream, small enough to stay in a core's cache.
const READ_LEN: usize = 1 << 20;

/// Reads a file front to back without leaving it in the page cache.
pub(super) struct Reader {
    file: File,
    size: u64,
    /// An anonymous map is page-aligned, which `O_DIRECT` needs and `Vec` does not promise.
    buffer: MmapMut,
}

impl Reader {
    /// Opens with `O_DIRECT`, or plainly where the file system has none (tmpfs before 6.6, FUSE).
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = match fsx::open_flagged(OpenOptions::new().read(true), path, rustix::fs::OFlags::DIRECT) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => fsx::open(path)?,
            other => other?,
        };
        let size = file.metadata()?.len();
        Ok(Self { file, size, buffer: MmapMut::map_anon(READ_LEN)? })
    }

    /// Which copy is read.
    pub(super) fn copy(&self) -> io::Result<CopyId> {
        self.file.metadata().map(|metadata| CopyId::of(&metadata))
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The bytes at `offset`, at most `len` of them and at least one. `offset` is a multiple of
    /// the read length or the end of an earlier read.
    pub(super) fn read_at(&mut self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let read = loop {
            match rustix::io::pread(&self.file, &mut self.buffer[..], offset) {
                Err(rustix::io::Errno::INTR) => {}
                // Some file systems take the flag and refuse the read: go on without it.
                Err(rustix::io::Errno::INVAL) => {
                    let flags = rustix::fs::fcntl_getfl(&self.file)?;
                    if !flags.contains(rustix::fs::OFlags::DIRECT) {
                        return Err(io::ErrorKind::InvalidInput.into());
                    }
                    rustix::fs::fcntl_setfl(&self.file, flags - rustix::fs::OFlags::DIRECT)?;
                }
                other => break other?,
            }
        };
        let want = usize::try_from(len).unwrap_or(usize::MAX).min(read);
        if want == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&self.buffer[..want])
    }
}
