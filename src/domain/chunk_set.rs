//! Which chunks of a blob are there.

use std::ops::Range;

use super::{ChunkIndex, Grid};

/// A set of chunk indices of one grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSet {
    words: Vec<u64>,
    chunk_count: u32,
    present: u32,
}

impl ChunkSet {
    /// The empty set over `grid`.
    #[must_use]
    pub fn empty(grid: &Grid) -> Self {
        let chunk_count = grid.chunk_count();
        Self { words: vec![0; chunk_count.div_ceil(64) as usize], chunk_count, present: 0 }
    }

    /// Adds a chunk; false when it was there already or lies outside the grid.
    pub fn insert(&mut self, index: ChunkIndex) -> bool {
        if index.0 >= self.chunk_count || self.contains(index) {
            return false;
        }
        self.words[index.0 as usize / 64] |= 1 << (index.0 % 64);
        self.present += 1;
        true
    }

    /// Takes a chunk out; false when it was not there.
    pub fn remove(&mut self, index: ChunkIndex) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.words[index.0 as usize / 64] &= !(1 << (index.0 % 64));
        self.present -= 1;
        true
    }

    /// Whether the chunk is in the set.
    #[must_use]
    pub fn contains(&self, index: ChunkIndex) -> bool {
        self.words.get(index.0 as usize / 64).is_some_and(|word| word >> (index.0 % 64) & 1 == 1)
    }

    /// How many chunks are in the set.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.present
    }

    /// Whether every chunk of the grid is in the set.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.present == self.chunk_count
    }

    /// The maximal runs of absent chunks, in ascending order.
    pub fn missing_runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = (next..self.chunk_count).find(|&i| !self.contains(ChunkIndex(i)))?;
            let end = (start..self.chunk_count).find(|&i| self.contains(ChunkIndex(i))).unwrap_or(self.chunk_count);
            next = end;
            Some(start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_runs_are_the_complement() {
        let grid = Grid::of_size(200 << 20);
        let mut set = ChunkSet::empty(&grid);
        for index in [0, 1, 63, 64, 65, 199] {
            assert!(set.insert(ChunkIndex(index)));
        }
        assert!(!set.insert(ChunkIndex(64)));
        assert!(!set.insert(ChunkIndex(200)));
        assert_eq!(set.missing_runs().collect::<Vec<_>>(), vec![2..63, 66..199]);
        assert!(set.remove(ChunkIndex(64)));
        assert_eq!(set.count(), 5);
        for index in 0..200 {
            set.insert(ChunkIndex(index));
        }
        assert!(set.is_complete());
        assert_eq!(set.missing_runs().next(), None);
    }

    #[test]
    fn an_empty_blob_is_complete_at_once() {
        assert!(ChunkSet::empty(&Grid::of_size(0)).is_complete());
    }
}
