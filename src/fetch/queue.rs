//! What to ask for next. Pure: files and runs of chunks go in, work comes out.

use std::collections::VecDeque;
use std::ops::Range;

use crate::domain::Grid;

/// Position of a file in the pull's list.
pub type FileIndex = usize;

/// One unit of work for one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Fetch a whole small file into memory.
    Small(FileIndex),
    /// Open a large file's partial; its missing runs come back through [`Queue::opened`].
    Open(FileIndex),
    /// Fetch a run of chunks.
    Part(FileIndex, Range<u32>),
}

/// The shortest and longest part in bytes: long enough that a request's latency is small beside
/// it, short enough that many connections share a file and a lost one costs little.
const PART_LEN_MIN: u64 = 8 << 20;
const PART_LEN_MAX: u64 = 64 << 20;

/// What came of a wish for a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urged {
    /// It is next, or what leads to it is.
    Next,
    /// It is not in the plan: on its way, or here.
    Elsewhere,
}

#[derive(Debug)]
struct Large {
    file: FileIndex,
    grid: Grid,
    runs: VecDeque<Range<u32>>,
}

/// The plan of a pull.
#[derive(Debug, Default)]
pub struct Queue {
    urgent: VecDeque<Work>,
    small: VecDeque<FileIndex>,
    unopened: VecDeque<(FileIndex, u64)>,
    large: VecDeque<Large>,
    opening: usize,
    small_in_flight: u32,
    bytes_unassigned: u64,
}

impl Queue {
    /// Adds a file that is fetched whole.
    pub fn add_small(&mut self, file: FileIndex) {
        self.small.push_back(file);
    }

    /// Adds a file that is fetched in parts.
    pub fn add_large(&mut self, file: FileIndex, size: u64) {
        self.unopened.push_back((file, size));
        self.bytes_unassigned += size;
    }

    /// A partial is open: these chunks are missing.
    pub fn opened(&mut self, file: FileIndex, grid: Grid, missing: impl Iterator<Item = Range<u32>>) {
        self.opening = self.opening.saturating_sub(1);
        let runs: VecDeque<Range<u32>> = missing.collect();
        let missing_len: u64 = runs.iter().map(|run| len_of(&grid, run)).sum();
        self.bytes_unassigned = self.bytes_unassigned.saturating_sub(grid.size() - missing_len);
        if !runs.is_empty() {
            self.large.push_back(Large { file, grid, runs });
        }
    }

    /// Opening failed, or the file is given up: its chunks are not wanted any more.
    pub fn drop_file(&mut self, file: FileIndex) {
        self.large.retain(|large| large.file != file);
        self.urgent.retain(|work| !matches!(work, Work::Part(urgent, _) if *urgent == file));
    }

    /// A small file is here, or given up.
    pub fn small_done(&mut self) {
        self.small_in_flight = self.small_in_flight.saturating_sub(1);
    }

    /// Sorts what has not started: `rank` gives each file its place.
    pub fn reorder(&mut self, rank: impl Fn(FileIndex) -> usize) {
        self.small.make_contiguous().sort_by_key(|&file| rank(file));
        self.unopened.make_contiguous().sort_by_key(|&(file, _)| rank(file));
    }

    /// The next work under a limit of `limit` connections, of which `running` are in use.
    ///
    /// Small files never wait behind shards: a quarter of the connections is theirs while there
    /// are any, and all of them when nothing else is left. A file is opened only when the open
    /// ones have no chunk left to give, so few are open at once, and no more than two are being
    /// opened.
    pub fn next(&mut self, limit: u32) -> Option<Work> {
        let small_share = (limit / 4).max(1);
        let large_waits = !self.large.is_empty() || !self.unopened.is_empty() || self.opening > 0;
        if !self.small.is_empty() && (self.small_in_flight < small_share || !large_waits) {
            self.small_in_flight += 1;
            return self.small.pop_front().map(Work::Small);
        }
        if let Some(part) = self.next_part(limit) {
            return Some(part);
        }
        if self.opening < 2
            && let Some((file, _)) = self.unopened.pop_front()
        {
            self.opening += 1;
            return Some(Work::Open(file));
        }
        None
    }

    /// Somebody waits for a chunk of a file: what leads to it comes from [`Queue::next_urgent`].
    ///
    /// What is cut out is a part of the usual least length, because a reader goes on from there.
    pub fn urge(&mut self, file: FileIndex, chunk: u32) -> Urged {
        if let Some(at) = self.small.iter().position(|&small| small == file) {
            self.small.remove(at);
            self.small_in_flight += 1;
            self.urgent.push_back(Work::Small(file));
            return Urged::Next;
        }
        if let Some(at) = self.unopened.iter().position(|&(unopened, _)| unopened == file) {
            self.unopened.remove(at);
            self.opening += 1;
            self.urgent.push_back(Work::Open(file));
            return Urged::Next;
        }
        let Some(at) = self.large.iter().position(|large| large.file == file) else { return Urged::Elsewhere };
        let large = &mut self.large[at];
        let Some(which) = large.runs.iter().position(|run| run.contains(&chunk)) else { return Urged::Elsewhere };
        let run = large.runs[which].clone();
        let part = chunk..run.end.min(chunk.saturating_add(large.grid.chunks_in(PART_LEN_MIN)));
        large.runs.remove(which);
        let rest = [part.end..run.end, run.start..part.start].into_iter().filter(|run| !run.is_empty());
        rest.for_each(|run| large.runs.insert(which, run));
        self.bytes_unassigned = self.bytes_unassigned.saturating_sub(len_of(&large.grid, &part));
        if large.runs.is_empty() {
            self.large.remove(at);
        }
        self.urgent.push_back(Work::Part(file, part));
        Urged::Next
    }

    /// Chunks that were taken away from a part on its way are missing again.
    pub fn give_back(&mut self, file: FileIndex, grid: Grid, run: Range<u32>) {
        self.bytes_unassigned += len_of(&grid, &run);
        match self.large.iter_mut().find(|large| large.file == file) {
            Some(large) => large.runs.push_front(run),
            None => self.large.push_front(Large { file, grid, runs: VecDeque::from([run]) }),
        }
    }

    /// Work that somebody waits for.
    pub fn next_urgent(&mut self) -> Option<Work> {
        self.urgent.pop_front()
    }

    fn next_part(&mut self, limit: u32) -> Option<Work> {
        let large = self.large.front_mut()?;
        // Four rounds for everybody, so that the last parts end close together.
        let even = self.bytes_unassigned / u64::from(limit.max(1)) / 4;
        let chunks = large.grid.chunks_in(even.clamp(PART_LEN_MIN, PART_LEN_MAX));
        let run = large.runs.front_mut()?;
        let part = run.start..run.end.min(run.start.saturating_add(chunks));
        run.start = part.end;
        if run.start >= run.end {
            large.runs.pop_front();
        }
        let file = large.file;
        self.bytes_unassigned = self.bytes_unassigned.saturating_sub(len_of(&large.grid, &part));
        if large.runs.is_empty() {
            self.large.pop_front();
        }
        Some(Work::Part(file, part))
    }
}

fn len_of(grid: &Grid, run: &Range<u32>) -> u64 {
    let range = grid.byte_range(run.clone());
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn drain(queue: &mut Queue, grid: Grid, limit: u32) -> Vec<Work> {
        let mut all = Vec::new();
        while let Some(work) = queue.next(limit) {
            if let Work::Open(file) = work {
                queue.opened(file, grid, std::iter::once(0..grid.chunk_count()));
            }
            all.push(work);
        }
        all
    }

    #[test]
    fn every_missing_chunk_is_asked_for_once() {
        let grid = Grid::of_size(100 * MIB + 5);
        let mut queue = Queue::default();
        queue.add_large(0, grid.size());
        assert_eq!(queue.next(4), Some(Work::Open(0)));
        queue.opened(0, grid, [3..40, 90..101].into_iter());
        let mut asked = Vec::new();
        while let Some(Work::Part(0, chunks)) = queue.next(4) {
            assert!(chunks.len() <= 64);
            asked.extend(chunks);
        }
        assert_eq!(asked, (3..40).chain(90..101).collect::<Vec<u32>>());
    }

    #[test]
    fn small_files_do_not_wait_behind_shards() {
        let grid = Grid::of_size(400 * MIB);
        let mut queue = Queue::default();
        queue.add_large(9, grid.size());
        (0..3).for_each(|file| queue.add_small(file));
        let first: Vec<Work> = (0..2).filter_map(|_| queue.next(8)).collect();
        assert_eq!(first, [Work::Small(0), Work::Small(1)]);
        assert_eq!(queue.next(8), Some(Work::Open(9)), "nor shards behind small files");
        queue.small_done();
        assert_eq!(queue.next(8), Some(Work::Small(2)));
        queue.opened(9, grid, std::iter::once(0..400));
        let rest = drain(&mut queue, grid, 8);
        assert!(rest.iter().all(|work| matches!(work, Work::Part(9, _))));
    }

    #[test]
    fn parts_shrink_towards_the_end() {
        let grid = Grid::of_size(1024 * MIB);
        let mut queue = Queue::default();
        queue.add_large(0, grid.size());
        let lens: Vec<usize> = drain(&mut queue, grid, 8)
            .iter()
            .filter_map(|work| if let Work::Part(_, run) = work { Some(run.len()) } else { None })
            .collect();
        assert!(lens.first() > lens.last());
        assert_eq!(lens.iter().sum::<usize>(), 1024);
    }

    #[test]
    fn what_somebody_waits_for_is_next_and_everything_is_still_asked_for_once() {
        let grid = Grid::of_size(100 * MIB);
        let mut queue = Queue::default();
        queue.add_small(0);
        queue.add_large(1, grid.size());
        queue.add_large(2, grid.size());
        assert_eq!(queue.urge(2, 50), Urged::Next);
        assert_eq!(queue.urge(0, 0), Urged::Next);
        assert_eq!(queue.next_urgent(), Some(Work::Open(2)));
        assert_eq!(queue.next_urgent(), Some(Work::Small(0)));
        assert_eq!((queue.urge(2, 50), queue.next_urgent()), (Urged::Elsewhere, None), "it is being opened");
        queue.opened(2, grid, [0..60, 70..100].into_iter());
        assert_eq!((queue.urge(2, 65), queue.next_urgent()), (Urged::Elsewhere, None), "it is here");
        let mut asked = Vec::new();
        for (chunk, part) in [(50, 50..58), (0, 0..8), (99, 99..100), (58, 58..60)] {
            assert_eq!((queue.urge(2, chunk), queue.next_urgent()), (Urged::Next, Some(Work::Part(2, part.clone()))));
            asked.extend(part);
        }
        assert_eq!(queue.urge(2, 52), Urged::Elsewhere, "it is on its way");
        for work in drain(&mut queue, grid, 4) {
            if let Work::Part(2, run) = work {
                asked.extend(run);
            }
        }
        queue.give_back(2, grid, 20..40);
        assert_eq!((queue.urge(2, 30), queue.next_urgent()), (Urged::Next, Some(Work::Part(2, 30..38))));
        assert_eq!(queue.next(4), Some(Work::Part(2, 20..28)));
        asked.sort_unstable();
        assert_eq!(asked, (0..60).chain(70..100).collect::<Vec<u32>>());
    }

    #[test]
    fn a_file_that_is_complete_already_gives_no_part() {
        let grid = Grid::of_size(9 * MIB);
        let mut queue = Queue::default();
        queue.add_large(0, grid.size());
        assert_eq!(queue.next(4), Some(Work::Open(0)));
        queue.opened(0, grid, std::iter::empty());
        assert_eq!(queue.next(4), None);
    }
}
