//! BLAKE3 as a tree: chunks are hashed apart, in any order, and merge to the standard root.
//!
//! Rules of the tree: section 2.1 of the BLAKE3 paper; `blake3::hazmat` exposes the subtree
//! chaining values. A chunk of ours is a complete subtree because its length is a power of two
//! of 1 KiB blocks, and only the last one may be shorter.

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use super::{ChunkIndex, Digest, Grid};

/// The value of one chunk: its subtree chaining value, or, in a blob of a single chunk, the root.
pub type ChunkValue = [u8; 32];

/// Hashes one chunk, slice by slice, from its first byte to its last.
#[derive(Clone)]
pub struct ChunkHasher {
    hasher: blake3::Hasher,
    only_chunk: bool,
}

impl ChunkHasher {
    /// Starts chunk `index` of a blob with this grid.
    #[must_use]
    pub fn new(grid: &Grid, index: ChunkIndex) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(grid.chunk_range(index).start);
        Self { hasher, only_chunk: grid.chunk_count() <= 1 }
    }

    /// Adds the next bytes of the chunk. The caller never passes more than the chunk's length.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The chunk's value. Before its last byte it is the value of the bytes so far, which merges
    /// with nothing, but tells whether they are the same.
    #[must_use]
    pub fn finish(&self) -> ChunkValue {
        // No tree has an empty subtree, and BLAKE3 panics over one.
        if self.hasher.count() == 0 && !self.only_chunk {
            return ChunkValue::default();
        }
        if self.only_chunk { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// Merges all chunk values of a blob to its digest, the one `b3sum` prints for the file.
///
/// Returns `None` when the number of values is not the grid's number of chunks.
#[must_use]
pub fn root_digest(grid: &Grid, values: &[ChunkValue]) -> Option<Digest> {
    if values.len() != usize::try_from(grid.chunk_count()).ok()? {
        return None;
    }
    match values {
        [] => Some(Digest::of(b"")),
        [only] => Some(Digest::from_bytes(*only)),
        _ => {
            let (left, right) = halves(grid.size(), grid.chunk_len(), values);
            Some(Digest::from_bytes(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()))
        }
    }
}

fn halves(len: u64, chunk_len: u64, values: &[ChunkValue]) -> (ChunkValue, ChunkValue) {
    let left_len = left_subtree_len(len);
    let split = usize::try_from(left_len / chunk_len).expect("at most 16384 chunks");
    let (left, right) = values.split_at(split);
    (subtree(left_len, chunk_len, left), subtree(len - left_len, chunk_len, right))
}

fn subtree(len: u64, chunk_len: u64, values: &[ChunkValue]) -> ChunkValue {
    // Depth is at most log2(16384): recursion is bounded.
    if let [only] = values {
        return *only;
    }
    let (left, right) = halves(len, chunk_len, values);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_by_chunks(bytes: &[u8]) -> Digest {
        let grid = Grid::of_size(bytes.len() as u64);
        let values: Vec<ChunkValue> = (0..grid.chunk_count())
            .rev() // order must not matter
            .map(|index| {
                let range = grid.chunk_range(ChunkIndex(index));
                let mut hasher = ChunkHasher::new(&grid, ChunkIndex(index));
                for slice in bytes[range.start as usize..range.end as usize].chunks(70_001) {
                    hasher.update(slice);
                }
                hasher.finish()
            })
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        root_digest(&grid, &values).expect("one value per chunk")
    }

    #[test]
    fn of_nothing_there_is_a_value_that_is_no_chunks() {
        let grid = Grid::of_size(3 << 20);
        for index in (0..grid.chunk_count()).map(ChunkIndex) {
            assert_eq!(ChunkHasher::new(&grid, index).finish(), ChunkValue::default());
        }
        assert_eq!(ChunkHasher::new(&Grid::of_size(0), ChunkIndex(0)).finish(), *Digest::of(b"").as_bytes());
    }

    #[test]
    fn root_equals_plain_blake3_at_every_interesting_size() {
        const MIB: usize = 1 << 20;
        let sizes =
            [0, 1, 1024, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 3 * MIB, 4 * MIB - 1, 5 * MIB + 17, 7 * MIB];
        let bytes: Vec<u8> = (0..8 * MIB).map(|i| (i % 251) as u8).collect();
        for size in sizes {
            assert_eq!(digest_by_chunks(&bytes[..size]), Digest::of(&bytes[..size]), "size {size}");
        }
    }

    #[test]
    fn wrong_number_of_values_has_no_digest() {
        assert_eq!(root_digest(&Grid::of_size(3 << 20), &[[0; 32]; 2]), None);
    }
}
