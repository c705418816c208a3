//! Takes the slices of one part, in order: hash while hot, write, record whole chunks, forget.

use std::sync::Arc;

use bytes::Bytes;

use super::check::{Check, chunk_crc};
use super::flights::Claimed;
use super::progress::{FileProgress, Progress};
use crate::domain::{ChunkHasher, ChunkIndex};
use crate::store::{self, ChunkRecord, Partial, WriteBack};

/// What all connections of one file share.
#[derive(Debug)]
pub struct FileSink {
    /// Bytes and journal.
    pub partial: Arc<Partial>,
    /// The origin's claim.
    pub check: Check,
    /// Shown to the user.
    pub progress: Arc<FileProgress>,
    /// The right to fill it: ends with the last connection that writes to the file.
    pub _claimed: Claimed,
}

/// One connection's place in a file. Moves between the runtime and the blocking pool.
pub struct PartSink {
    file: Arc<FileSink>,
    write_back: Arc<WriteBack>,
    total: Arc<Progress>,
    position: u64,
    chunk: ChunkIndex,
    hasher: ChunkHasher,
    crc: Option<crc_fast::Digest>,
    /// Bytes of the current chunk that are written and not recorded: lost if the part ends here.
    unrecorded: u64,
}

impl std::fmt::Debug for PartSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartSink").field("position", &self.position).finish_non_exhaustive()
    }
}

impl PartSink {
    /// A sink that starts at the first byte of `chunk`.
    #[must_use]
    pub fn new(file: Arc<FileSink>, write_back: Arc<WriteBack>, total: Arc<Progress>, chunk: ChunkIndex) -> Self {
        let grid = *file.partial.grid();
        Self {
            position: grid.chunk_range(chunk).start,
            hasher: ChunkHasher::new(&grid, chunk),
            crc: chunk_crc(file.partial.crc_kind()),
            chunk,
            file,
            write_back,
            total,
            unrecorded: 0,
        }
    }

    /// The next byte that is wanted.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Blocking. Takes the bytes that follow; true when the file became complete with them.
    ///
    /// # Errors
    /// [`store::Error::Io`]. What was recorded before stays.
    pub fn take(&mut self, slices: &[Bytes]) -> Result<bool, store::Error> {
        let start = self.position;
        let mut whole: Vec<(ChunkIndex, ChunkRecord)> = Vec::new();
        for slice in slices {
            self.hash(slice, &mut whole);
        }
        let len = self.position - start;
        self.file.partial.write_at(start, slices)?;
        let mut complete = false;
        for (index, record) in whole {
            complete = self.file.partial.record(index, record)?;
        }
        self.file.check.follow(&self.file.partial)?;
        self.total.moved(len);
        self.file.progress.add(len);
        self.write_back.wrote(&self.file.partial, start, len)?;
        Ok(complete)
    }

    fn hash(&mut self, mut slice: &[u8], whole: &mut Vec<(ChunkIndex, ChunkRecord)>) {
        let grid = *self.file.partial.grid();
        while !slice.is_empty() {
            let end = grid.chunk_range(self.chunk).end;
            let len = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(slice.len());
            let (now, later) = slice.split_at(len);
            self.hasher.update(now);
            if let Some(crc) = &mut self.crc {
                crc.update(now);
            }
            self.position += len as u64;
            self.unrecorded += len as u64;
            slice = later;
            if self.position == end {
                let crc = self.crc.take().map_or(0, |crc| crc.finalize());
                whole.push((self.chunk, ChunkRecord { value: self.hasher.finish(), crc }));
                self.chunk = ChunkIndex(self.chunk.0 + 1);
                self.unrecorded = 0;
                if self.position == grid.size() {
                    return;
                }
                self.hasher = ChunkHasher::new(&grid, self.chunk);
                self.crc = chunk_crc(self.file.partial.crc_kind());
            }
        }
    }
}
