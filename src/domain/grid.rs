//! How a blob is cut into chunks: a function of its size alone, so every node cuts alike.

use std::ops::Range;

/// Position of a chunk within a blob, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ChunkIndex(pub u32);

/// The smallest chunk: 1 MiB. Smaller chunks would cost more journal than they save on resume.
const CHUNK_LEN_MIN: u64 = 1 << 20;

/// No blob has more chunks than this: 16384 x 32 bytes keeps one blob's chunk values at 512 KiB
/// in memory and on disk, whatever its size (a 5 TiB object gets chunks of 512 MiB).
const CHUNK_COUNT_MAX: u64 = 1 << 14;

/// The chunk grid of a blob of a given size. All ranges are half-open byte ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    size: u64,
    chunk_len: u64,
}

impl Grid {
    /// The grid of a blob of `size` bytes. Any size is valid; an empty blob has no chunk.
    #[must_use]
    pub fn of_size(size: u64) -> Self {
        let wanted = size.div_ceil(CHUNK_COUNT_MAX).max(1);
        // Sizes read from an origin are at most 2^63; saturate rather than overflow beyond.
        let chunk_len = wanted.checked_next_power_of_two().unwrap_or(1 << 63);
        Self { size, chunk_len: chunk_len.max(CHUNK_LEN_MIN) }
    }

    /// Bytes in the whole blob.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in every chunk but the last; a power of two, at least 1 MiB.
    #[must_use]
    pub const fn chunk_len(&self) -> u64 {
        self.chunk_len
    }

    /// How many chunks there are: 0 for an empty blob, at most 16384.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        // The constructor caps the count at 16384.
        u32::try_from(self.size.div_ceil(self.chunk_len)).unwrap_or(u32::MAX)
    }

    /// The bytes of chunk `index`, cut at the end of the blob.
    #[must_use]
    pub fn chunk_range(&self, index: ChunkIndex) -> Range<u64> {
        // An index may be anything that a journal says.
        let start = u64::from(index.0).saturating_mul(self.chunk_len).min(self.size);
        start..start.saturating_add(self.chunk_len).min(self.size)
    }

    /// The bytes of a run of chunks, cut at the end of the blob.
    #[must_use]
    pub fn byte_range(&self, chunks: Range<u32>) -> Range<u64> {
        let start = self.chunk_range(ChunkIndex(chunks.start)).start;
        let end = u64::from(chunks.end).saturating_mul(self.chunk_len).min(self.size);
        start..end.max(start)
    }

    /// The chunk that holds byte `offset`.
    #[must_use]
    pub fn chunk_at(&self, offset: u64) -> ChunkIndex {
        ChunkIndex(u32::try_from(offset / self.chunk_len).unwrap_or(u32::MAX))
    }

    /// How many whole chunks fit into `bytes`, at least one: the length of a part in chunks.
    #[must_use]
    pub fn chunks_in(&self, bytes: u64) -> u32 {
        u32::try_from((bytes / self.chunk_len).max(1)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_blob_exactly_once() {
        const MIB: u64 = 1 << 20;
        for size in [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB, (16384 * MIB) + 1, 5 << 40, u64::MAX >> 1, u64::MAX] {
            let grid = Grid::of_size(size);
            assert!(grid.chunk_len().is_power_of_two());
            assert!(
                grid.chunk_range(ChunkIndex(u32::MAX)).is_empty() && grid.byte_range(u32::MAX - 1..u32::MAX).is_empty()
            );
            assert!(u64::from(grid.chunk_count()) <= CHUNK_COUNT_MAX);
            let mut end = 0;
            for index in 0..grid.chunk_count() {
                let range = grid.chunk_range(ChunkIndex(index));
                assert_eq!(range.start, end, "size {size} chunk {index}");
                assert!(range.end > range.start);
                end = range.end;
            }
            assert_eq!(end, size);
            assert_eq!(grid.byte_range(0..grid.chunk_count()), 0..size);
        }
    }

    #[test]
    fn a_part_is_a_whole_number_of_chunks() {
        let grid = Grid::of_size(10 << 20);
        assert_eq!(grid.chunks_in(1), 1);
        assert_eq!(grid.chunks_in(3 << 20), 3);
        assert_eq!(grid.byte_range(9..12), 9 << 20..10 << 20);
    }
}
