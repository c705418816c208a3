//! Takes the slices of one part, in order: hash while hot, write, record whole chunks and how far
//! the next one is, forget.

use std::sync::Arc;

use bytes::Bytes;

use super::arrivals::Arrival;
use super::check::{Check, chunk_crc, read_back};
use super::flights::Claimed;
use super::progress::{FileProgress, Progress};
use crate::domain::{ChunkHasher, ChunkIndex};
use crate::store::{self, ChunkRecord, Partial, Prefix, WriteBack};

/// What all connections of one file share.
#[derive(Debug)]
pub struct FileSink {
    /// Bytes and journal.
    pub partial: Arc<Partial>,
    /// The origin's claim.
    pub check: Check,
    /// Shown to the user.
    pub progress: Arc<FileProgress>,
    /// Who reads it meanwhile.
    pub arrival: Arc<Arrival>,
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
}

impl FileSink {
    /// Forgets a version that nobody will ask for again. What was read of it stays as it was.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn abandon(&self) -> Result<(), store::Error> {
        self.arrival.abandoned();
        self.partial.discard()
    }

    /// Forgets everything that was written, because it is wrong, also for those who read it.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn discard(&self) -> Result<(), store::Error> {
        self.arrival.discarded();
        self.partial.discard()
    }
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
        }
    }

    /// The file it fills.
    #[must_use]
    pub const fn file(&self) -> &Arc<FileSink> {
        &self.file
    }

    /// The next byte that is wanted.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Whether an earlier life wrote the beginning of its chunk.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.file.partial.prefix(self.chunk).is_some()
    }

    /// Blocking. Takes in what an earlier life wrote of its chunk, and goes on behind it. Bytes
    /// that are not what was written then, or cannot be read, are not taken.
    #[must_use]
    pub fn go_on(mut self) -> Self {
        let (file, chunk) = (Arc::clone(&self.file), self.chunk);
        let Some(prefix) = file.partial.prefix(chunk) else { return self };
        let range = self.position..self.position + prefix.len;
        // Shorter than the chunk, so no chunk becomes whole.
        let read = read_back(&file.partial, range, &mut |bytes| self.hash(bytes, &mut Vec::new()));
        if read.is_ok() && self.hasher.finish() == prefix.value {
            return self;
        }
        let uri = &file.partial.id().uri;
        tracing::warn!(%uri, chunk = chunk.0, error = ?read.err(), "the beginning of a chunk is not what was written: fetching it again");
        file.partial.drop_prefix(chunk);
        self.total.lost(&file.progress, prefix.len);
        Self::new(file, self.write_back, self.total, chunk)
    }

    /// How far the chunk is that it stands in.
    fn begun(&self) -> Option<(ChunkIndex, Prefix)> {
        let len = self.position - self.file.partial.grid().chunk_range(self.chunk).start;
        (len > 0).then(|| (self.chunk, Prefix { len, value: self.hasher.finish() }))
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
        let complete = self.file.partial.record(&whole, self.begun())?;
        self.file.arrival.recorded(&self.file.partial);
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
            slice = later;
            if self.position == end {
                let crc = self.crc.take().map_or(0, |crc| crc.finalize());
                whole.push((self.chunk, ChunkRecord { value: self.hasher.finish(), crc }));
                self.chunk = ChunkIndex(self.chunk.0 + 1);
                if self.position == grid.size() {
                    return;
                }
                self.hasher = ChunkHasher::new(&grid, self.chunk);
                self.crc = chunk_crc(self.file.partial.crc_kind());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arrivals::Arrivals;
    use super::super::flights::{Claim, Flights};
    use super::*;
    use crate::domain::{Checksum, Digest, Version};
    use crate::store::{ObjectId, Store};

    const LEN: usize = (3 << 20) + 77;
    /// Inside the second chunk.
    const CUT: usize = (1 << 20) + (700 << 10);

    struct Pull {
        store: Store,
        bytes: Vec<u8>,
        _directory: tempfile::TempDir,
    }

    impl Pull {
        /// What a pull leaves that is killed behind `CUT`.
        fn killed() -> Self {
            let directory = tempfile::tempdir().expect("tempdir");
            let store = Store::open(directory.path()).expect("a store");
            let bytes = (0..LEN).map(|i| (i * 31 % 251) as u8).collect();
            let pull = Self { store, bytes, _directory: directory };
            let (mut sink, _) = pull.life(0);
            assert!(!sink.is_begun());
            for range in [0..300 << 10, 300 << 10..CUT] {
                assert!(!sink.take(&pull.slices(range)).expect("written"));
            }
            pull
        }

        fn slices(&self, range: std::ops::Range<usize>) -> Vec<Bytes> {
            self.bytes[range].chunks(100_001).map(Bytes::copy_from_slice).collect()
        }

        /// What a new process has: a sink at a chunk, and its counters.
        fn life(&self, chunk: u32) -> (PartSink, Arc<Progress>) {
            let id = ObjectId {
                origin: "o".into(),
                uri: "s3://b/k".into(),
                version: Version::Generation(1),
                size: LEN as u64,
            };
            let Claim::Mine(claimed) = Arc::new(Flights::default()).claim(&id) else { panic!("nobody has it") };
            let claim = Some(Checksum::Crc64Nvme(0));
            let partial = self.store.partial(id.clone(), claim.and_then(|claim| claim.crc_kind())).expect("a partial");
            let total = Arc::new(Progress::default());
            total.bytes_here.store(partial.bytes_resumed(), std::sync::atomic::Ordering::Relaxed);
            let progress = total.begin("k", LEN as u64, partial.bytes_resumed());
            let arrival = Arc::new(Arrivals::default()).of(&id);
            let check = Check::new(claim);
            let file = FileSink { partial: Arc::new(partial), check, progress, arrival, _claimed: claimed };
            let sink =
                PartSink::new(Arc::new(file), Arc::new(WriteBack::new(0)), Arc::clone(&total), ChunkIndex(chunk));
            (sink, total)
        }

        /// Takes everything from the sink's place on and looks at what came out.
        fn finish(&self, mut sink: PartSink, total: &Progress, from: usize) {
            assert_eq!(sink.position(), from as u64);
            assert_eq!((total.bytes_done(), sink.file.progress.done()), (from as u64, from as u64));
            assert!(sink.take(&self.slices(from..LEN)).expect("written"), "complete");
            let moved = total.bytes_moved.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!((moved, total.bytes_done()), ((LEN - from) as u64, LEN as u64));
            let file = &sink.file;
            let whole = file.check.of_slices(&self.slices(0..LEN));
            assert_eq!(file.check.of_partial(&file.partial).expect("read"), whole);
            let (hold, claims) = (self.store.hold(), crate::domain::Claims::default());
            assert_eq!(self.store.seal(&file.partial, whole, &claims, &hold).expect("sealed"), Digest::of(&self.bytes));
        }
    }

    #[test]
    fn goes_on_inside_a_chunk() {
        let pull = Pull::killed();
        let (sink, total) = pull.life(1);
        assert!(sink.is_begun());
        pull.finish(sink.go_on(), &total, CUT);
    }

    #[test]
    fn starts_a_chunk_anew_whose_beginning_is_not_what_was_written() {
        let pull = Pull::killed();
        let (sink, total) = pull.life(1);
        sink.file.partial.write_at(CUT as u64 - 9, &[Bytes::from_static(b"!")]).expect("written");
        assert_eq!(total.bytes_done(), CUT as u64);
        let sink = sink.go_on();
        assert!(!sink.is_begun());
        pull.finish(sink, &total, 1 << 20);
    }
}
