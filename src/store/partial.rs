//! A blob being filled: its bytes, and the journal that says which chunks are there.
//!
//! Presence lives in the journal, never in the file's length: the file is allocated whole before
//! the first byte. A chunk's record is appended after its bytes were written, so within one boot
//! (where the page cache is the truth) a record proves its bytes. After another boot every
//! recorded chunk is hashed again before it counts.
//!
//! Of a chunk that is being filled, the journal says how far it is: whoever goes on with it in the
//! same boot reads that prefix back and asks for the rest. After another boot prefixes are dropped.
//!
//! Dropping a partial leaves its files: that is the resumable state.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::boot::BootId;
use super::catalog::ObjectId;
use super::error::AtPath as _;
use super::{Error, Hold, Layout, fsx, record};
use crate::domain::{ChunkHasher, ChunkIndex, ChunkSet, ChunkValue, CrcKind, Digest, Grid, Text, root_digest};

/// First line of a journal.
#[derive(Serialize, Deserialize)]
struct Header {
    larder_partial: u32,
    boot: BootId,
    /// Which CRC the records hold.
    crc: Option<CrcKind>,
    id: ObjectId,
}

const JOURNAL_FORM: u32 = 1;
/// index (4) + CRC of the chunk, or length of the prefix (8) + value (32) + check (8).
const RECORD_LEN: usize = 52;
const CHECK_AT: usize = 44;
/// Set in the index of a record of a prefix. No grid has that many chunks.
const PREFIX_FLAG: u32 = 1 << 31;
/// A prefix is recorded when it has grown by this part of a chunk: the journal's length has a
/// bound, however small the steps in which bytes arrive.
const PREFIX_STEPS: u64 = 16;

/// What a chunk left behind when it was complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChunkRecord {
    /// BLAKE3 subtree value.
    pub value: ChunkValue,
    /// The chunk's CRC of the partial's kind (0 where it has none).
    pub crc: u64,
}

/// The first bytes of a chunk, while the rest is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// How many; fewer than the chunk has.
    pub len: u64,
    /// What a [`ChunkHasher`] makes of them alone.
    pub value: ChunkValue,
}

/// What is there of a blob.
#[derive(Debug)]
struct Here {
    grid: Grid,
    present: ChunkSet,
    records: Vec<ChunkRecord>,
    /// Of chunks that are missing.
    prefixes: BTreeMap<ChunkIndex, Prefix>,
}

impl Here {
    fn nothing(grid: Grid) -> Self {
        let records = vec![ChunkRecord::default(); grid.chunk_count() as usize];
        Self { grid, present: ChunkSet::empty(&grid), records, prefixes: BTreeMap::new() }
    }

    fn add(&mut self, index: ChunkIndex, chunk: ChunkRecord) {
        if let Some(slot) = self.records.get_mut(index.0 as usize) {
            *slot = chunk;
            self.present.insert(index);
            self.prefixes.remove(&index);
        }
    }

    fn begin(&mut self, index: ChunkIndex, prefix: Prefix) {
        let range = self.grid.chunk_range(index);
        if prefix.len > 0 && prefix.len < range.end - range.start && !self.present.contains(index) {
            self.prefixes.insert(index, prefix);
        }
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Chunk(index, chunk) => self.add(index, chunk),
            Record::Prefix(index, prefix) => self.begin(index, prefix),
        }
    }

    /// Whether these bytes are there, those of prefixes among them.
    fn has(&self, range: &Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            let index = self.grid.chunk_at(at);
            let chunk = self.grid.chunk_range(index);
            let there = if self.present.contains(index) {
                chunk.end
            } else {
                chunk.start + self.prefixes.get(&index).map_or(0, |prefix| prefix.len)
            };
            if there <= at {
                return false;
            }
            at = there;
        }
        true
    }

    /// Whether a prefix is worth a record: long enough beyond the one that has it.
    fn is_news(&self, index: ChunkIndex, prefix: Prefix) -> bool {
        let known = self.prefixes.get(&index).map_or(0, |known| known.len);
        !self.present.contains(index) && prefix.len >= known + self.grid.chunk_len() / PREFIX_STEPS
    }

    fn bytes(&self) -> u64 {
        let missing = self.present.missing_runs().map(|run| self.grid.byte_range(run));
        let missing: u64 = missing.map(|range| range.end - range.start).sum();
        self.grid.size() - missing + self.prefixes.values().map(|prefix| prefix.len).sum::<u64>()
    }

    /// The runs of absent chunks; one that has a prefix begins a run.
    fn missing_runs(&self) -> Vec<Range<u32>> {
        let mut runs = Vec::new();
        for run in self.present.missing_runs() {
            let mut start = run.start;
            for (begun, _) in self.prefixes.range(ChunkIndex(start + 1)..ChunkIndex(run.end)) {
                runs.push(start..begun.0);
                start = begun.0;
            }
            runs.push(start..run.end);
        }
        runs
    }
}

#[derive(Debug)]
struct State {
    here: Here,
    journal: File,
}

/// A blob being filled.
#[derive(Debug)]
pub struct Partial {
    id: ObjectId,
    file_id: String,
    grid: Grid,
    crc: Option<CrcKind>,
    bytes: File,
    layout: Layout,
    state: Mutex<State>,
    resumed: u64,
}

impl Partial {
    /// Opens what an earlier pull left of this object, or starts anew with records that hold
    /// `crc`. Blocking: allocates, and after another boot hashes what is there.
    ///
    /// # Errors
    /// [`Error::Io`] on any failing call; a journal that proves nothing is no error.
    pub(super) fn open(layout: &Layout, id: ObjectId, crc: Option<CrcKind>) -> Result<Self, Error> {
        let grid = Grid::of_size(id.size);
        let file_id = id.file_id();
        if let Some((bytes, crc, state)) = resume(layout, &id, &file_id, grid)? {
            let (layout, state) = (layout.clone(), Mutex::new(state));
            let partial = Self { id, file_id, grid, crc, bytes, layout, state, resumed: 0 };
            let resumed = partial.bytes_present();
            return Ok(Self { resumed, ..partial });
        }
        let (bytes_path, journal_path) = (layout.partial_bytes(&file_id), layout.partial_journal(&file_id));
        // Journal first: bytes without a journal are forgotten, a journal without bytes too.
        fsx::remove_if_there(&journal_path).at("remove", &journal_path)?;
        fsx::remove_if_there(&bytes_path).at("remove", &bytes_path)?;
        let bytes = fsx::create_new(&bytes_path).at("create", &bytes_path)?;
        let started = fsx::allocate(&bytes, grid.size()).at("allocate", &bytes_path);
        let started = started.and_then(|()| start_journal(layout, &id, crc, &journal_path));
        if started.is_err() {
            // On a full disk, what there was room for would only be in the way.
            let _ = fsx::remove_if_there(&bytes_path);
        }
        let journal = started?;
        let state = State { here: Here::nothing(grid), journal };
        let (layout, state) = (layout.clone(), Mutex::new(state));
        Ok(Self { id, file_id, grid, crc, bytes, layout, state, resumed: 0 })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock is held can only lose a record, never invent one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object this is a copy of.
    #[must_use]
    pub const fn id(&self) -> &ObjectId {
        &self.id
    }

    /// How the blob is cut.
    #[must_use]
    pub const fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The CRC that records hold: what an earlier pull began with, else what this one asked for.
    #[must_use]
    pub const fn crc_kind(&self) -> Option<CrcKind> {
        self.crc
    }

    /// Bytes that were already there when it was opened.
    #[must_use]
    pub const fn bytes_resumed(&self) -> u64 {
        self.resumed
    }

    /// Bytes of the chunks that are there now, and of the prefixes.
    #[must_use]
    pub fn bytes_present(&self) -> u64 {
        self.state().here.bytes()
    }

    /// A copy of the set of chunks that are there.
    #[must_use]
    pub fn present(&self) -> ChunkSet {
        self.state().here.present.clone()
    }

    /// What to ask for: the runs of absent chunks, cut so that a chunk with a prefix begins one.
    #[must_use]
    pub fn missing_runs(&self) -> Vec<Range<u32>> {
        self.state().here.missing_runs()
    }

    /// How far an absent chunk is written. Bytes that were read back count once they have the
    /// prefix's value.
    #[must_use]
    pub fn prefix(&self, index: ChunkIndex) -> Option<Prefix> {
        self.state().here.prefixes.get(&index).copied()
    }

    /// Forgets a prefix whose bytes are not what they were: the chunk starts anew.
    pub fn drop_prefix(&self, index: ChunkIndex) {
        self.state().here.prefixes.remove(&index);
    }

    /// The records of all chunks, once every chunk is there.
    #[must_use]
    pub fn records(&self) -> Option<Vec<ChunkRecord>> {
        let state = self.state();
        state.here.present.is_complete().then(|| state.here.records.clone())
    }

    /// Writes slices at a byte offset. They do not count until [`Partial::record`].
    ///
    /// # Errors
    /// [`Error::Io`], with disk-full among them.
    pub fn write_at(&self, offset: u64, slices: &[Bytes]) -> Result<(), Error> {
        fsx::write_slices_at(&self.bytes, offset, slices).at("write", self.layout.partial_bytes(&self.file_id))
    }

    /// Reads bytes back, from the page cache when they were written a moment ago.
    ///
    /// # Errors
    /// [`Error::Io`]; reading beyond the end is one.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.bytes.read_exact_at(buffer, offset).at("read", self.layout.partial_bytes(&self.file_id))
    }

    /// Whether all bytes of a range are there.
    #[must_use]
    pub fn has(&self, range: &Range<u64>) -> bool {
        self.state().here.has(range)
    }

    /// Reads bytes if all of them are there; false, and nothing read, when some are missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_if_there(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Error> {
        if !self.has(&(offset..offset + buffer.len() as u64)) {
            return Ok(false);
        }
        self.read_at(offset, buffer).map(|()| true)
    }

    /// Records that the bytes of whole chunks, and of the beginning of one more, are written, and
    /// what they hash to: at most one system call. True when no chunk is missing any more.
    ///
    /// # Errors
    /// [`Error::Io`] when the journal cannot be appended to.
    pub fn record(
        &self,
        whole: &[(ChunkIndex, ChunkRecord)],
        begun: Option<(ChunkIndex, Prefix)>,
    ) -> Result<bool, Error> {
        let mut guard = self.state();
        let State { here, journal } = &mut *guard;
        let whole = whole.iter().filter(|(index, _)| !here.present.contains(*index));
        let begun = begun.filter(|&(index, prefix)| here.is_news(index, prefix));
        let records: Vec<Record> = whole
            .map(|&(index, chunk)| Record::Chunk(index, chunk))
            .chain(begun.map(|(index, prefix)| Record::Prefix(index, prefix)))
            .collect();
        if !records.is_empty() {
            let lines: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            journal.write_all(&lines).at("append to", self.layout.partial_journal(&self.file_id))?;
            records.into_iter().for_each(|record| here.apply(record));
        }
        Ok(here.present.is_complete())
    }

    /// Tells the kernel to start writing a byte range to the disk, and waits for it where `wait`.
    ///
    /// # Errors
    /// [`Error::Io`] when an earlier write failed on the device.
    pub fn flush(&self, offset: u64, len: u64, wait: bool) -> Result<(), Error> {
        super::writeback::flush(&self.bytes, offset, len, wait).at("flush", self.layout.partial_bytes(&self.file_id))
    }

    /// Gives the complete blob its name. The digest is merged from the chunk values; no byte is
    /// read again. The journal stays until [`Partial::forget`]: killed in between, it still says
    /// which blob the object is.
    ///
    /// # Errors
    /// [`Error::Io`]. Chunks missing is [`Error::Absent`].
    pub(super) fn seal(&self, hold: &Hold) -> Result<Digest, Error> {
        let records = self.records();
        let values: Option<Vec<ChunkValue>> = records.map(|records| records.iter().map(|r| r.value).collect());
        let digest = values.as_deref().and_then(|values| root_digest(&self.grid, values));
        let (Some(values), Some(digest)) = (values, digest) else {
            return Err(Error::Absent(format!("a part of `{}`", self.id.uri)));
        };
        hold.add(digest);
        let from = self.layout.partial_bytes(&self.file_id);
        super::sealed::seal(&self.layout, &from, &digest, &values)?;
        Ok(digest)
    }

    /// Removes the journal: of a partial that was sealed, or that nobody believes any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn forget(&self) -> Result<(), Error> {
        forget(&self.layout, &self.file_id)
    }

    /// Forgets everything that was written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self) -> Result<(), Error> {
        remove(&self.layout, &self.file_id)
    }
}

/// What an earlier process left of a blob, for reading: it does not grow any more.
#[derive(Debug)]
pub struct Left {
    bytes: File,
    here: Here,
    path: PathBuf,
}

impl Left {
    /// Only of this boot: after another, nothing counts before it is hashed.
    pub(super) fn open(layout: &Layout, id: &ObjectId) -> Option<Self> {
        let (file_id, grid) = (id.file_id(), Grid::of_size(id.size));
        let (header, here) = read_journal(layout, &file_id, grid)?;
        if header.id != *id || header.boot != *layout.boot() {
            return None;
        }
        let path = layout.partial_bytes(&file_id);
        let bytes = fsx::open(&path).ok()?;
        (bytes.metadata().ok()?.len() == id.size).then_some(Self { bytes, here, path })
    }

    /// Reads bytes if all of them are there; false, and nothing read, when some are missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_if_there(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, Error> {
        if !self.here.has(&(offset..offset + buffer.len() as u64)) {
            return Ok(false);
        }
        self.bytes.read_exact_at(buffer, offset).at("read", &self.path).map(|()| true)
    }
}

/// Removes a partial's files: bytes without a journal are forgotten, a journal without bytes too.
pub(super) fn remove(layout: &Layout, file_id: &str) -> Result<(), Error> {
    forget(layout, file_id)?;
    let bytes = layout.partial_bytes(file_id);
    fsx::remove_if_there(&bytes).at("remove", &bytes)
}

fn forget(layout: &Layout, file_id: &str) -> Result<(), Error> {
    let journal = layout.partial_journal(file_id);
    fsx::remove_if_there(&journal).at("remove", &journal)
}

/// The blob that a partial became when its process died between sealing it and saying so. The
/// journal goes: the caller records what it said.
pub(super) fn sealed_before(layout: &Layout, id: &ObjectId) -> Result<Option<Digest>, Error> {
    let (file_id, grid) = (id.file_id(), Grid::of_size(id.size));
    if layout.partial_bytes(&file_id).exists() {
        return Ok(None);
    }
    let Some((header, here)) = read_journal(layout, &file_id, grid).filter(|(header, _)| header.id == *id) else {
        return Ok(None);
    };
    let values: Vec<ChunkValue> = here.records.iter().map(|record| record.value).collect();
    let digest = here.present.is_complete().then(|| root_digest(&grid, &values)).flatten();
    // In another boot, recovery has proven or dropped what this boot's directory holds.
    let digest = digest.filter(|digest| super::sealed::sized(layout, digest, id.size).is_some());
    tracing::debug!(uri = %header.id.uri, ?digest, "found a journal without its bytes");
    forget(layout, &file_id)?;
    Ok(digest)
}

fn start_journal(layout: &Layout, id: &ObjectId, crc: Option<CrcKind>, path: &std::path::Path) -> Result<File, Error> {
    let header = Header { larder_partial: JOURNAL_FORM, boot: layout.boot().clone(), crc, id: id.clone() };
    let mut journal = OpenOptions::new().create_new(true).append(true).open(path).at("create", path)?;
    let written = journal.write_all(&record::encode(&header)).at("write", path);
    if written.is_err() {
        let _ = fsx::remove_if_there(path);
    }
    written.map(|()| journal)
}

/// One entry of a journal.
#[derive(Clone, Copy)]
enum Record {
    Chunk(ChunkIndex, ChunkRecord),
    Prefix(ChunkIndex, Prefix),
}

impl Record {
    fn encode(&self) -> [u8; RECORD_LEN] {
        let (index, number, value) = match self {
            Self::Chunk(index, chunk) => (index.0, chunk.crc, chunk.value),
            Self::Prefix(index, prefix) => (index.0 | PREFIX_FLAG, prefix.len, prefix.value),
        };
        let mut bytes = [0; RECORD_LEN];
        bytes[..4].copy_from_slice(&index.to_le_bytes());
        bytes[4..12].copy_from_slice(&number.to_le_bytes());
        bytes[12..CHECK_AT].copy_from_slice(&value);
        let check = blake3::hash(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..].copy_from_slice(&check.as_bytes()[..RECORD_LEN - CHECK_AT]);
        bytes
    }

    fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let check = blake3::hash(&bytes[..CHECK_AT]);
        if bytes[CHECK_AT..] != check.as_bytes()[..RECORD_LEN - CHECK_AT] {
            return None;
        }
        let index = u32::from_le_bytes(bytes[..4].try_into().ok()?);
        let number = u64::from_le_bytes(bytes[4..12].try_into().ok()?);
        let value: ChunkValue = bytes[12..CHECK_AT].try_into().ok()?;
        Some(if index & PREFIX_FLAG == 0 {
            Self::Chunk(ChunkIndex(index), ChunkRecord { value, crc: number })
        } else {
            Self::Prefix(ChunkIndex(index & !PREFIX_FLAG), Prefix { len: number, value })
        })
    }
}

/// Reads a journal and opens the bytes; `None` when there is nothing that can be trusted.
fn resume(layout: &Layout, id: &ObjectId, file_id: &str, grid: Grid) -> Result<Option<Resumed>, Error> {
    let (bytes_path, journal_path) = (layout.partial_bytes(file_id), layout.partial_journal(file_id));
    let Some((header, mut here)) = read_journal(layout, file_id, grid) else { return Ok(None) };
    if header.id != *id {
        return Ok(None);
    }
    // Killed while it was sealed, the file may be read-only already.
    let _ = std::fs::set_permissions(&bytes_path, std::fs::Permissions::from_mode(0o600));
    let Ok(bytes) = fsx::open_with(OpenOptions::new().read(true).write(true), &bytes_path) else { return Ok(None) };
    if bytes.metadata().at("read", &bytes_path)?.len() != grid.size() {
        return Ok(None);
    }
    let all = (0..grid.chunk_count()).map(ChunkIndex);
    if header.boot != *layout.boot() {
        here.prefixes.clear();
        for index in all.clone() {
            if here.present.contains(index) && !chunk_is(&bytes, &grid, index, &here.records[index.0 as usize].value) {
                here.present.remove(index);
            }
        }
    }
    // The journal is written anew: it drops torn and superseded records and carries this boot's id.
    let scratch = fsx::scratch_name(&layout.scratch());
    let mut journal = start_journal(layout, id, header.crc, &scratch)?;
    let chunks = all.filter(|&index| here.present.contains(index));
    let chunks = chunks.map(|index| Record::Chunk(index, here.records[index.0 as usize]));
    let prefixes = here.prefixes.iter().map(|(&index, &prefix)| Record::Prefix(index, prefix));
    let lines: Vec<u8> = chunks.chain(prefixes).flat_map(|record| record.encode()).collect();
    let written = journal.write_all(&lines).at("write", &scratch);
    let replaced = written.and_then(|()| std::fs::rename(&scratch, &journal_path).at("replace", &journal_path));
    if replaced.is_err() {
        let _ = fsx::remove_if_there(&scratch);
    }
    replaced?;
    Ok(Some((bytes, header.crc, State { here, journal })))
}

type Resumed = (File, Option<CrcKind>, State);

/// Bytes that the journal of a partial promises, without opening it for filling.
pub(super) fn peek(layout: &Layout, id: &ObjectId) -> u64 {
    let Some((header, mut here)) = read_journal(layout, &id.file_id(), Grid::of_size(id.size)) else { return 0 };
    if header.id != *id {
        return 0;
    }
    if header.boot != *layout.boot() {
        here.prefixes.clear();
    }
    here.bytes()
}

/// The URI of the object a partial is a copy of.
pub(super) fn uri_of(layout: &Layout, file_id: &str) -> Option<Text> {
    read_journal(layout, file_id, Grid::of_size(0)).map(|(header, _)| header.id.uri)
}

/// What a journal says, as far as its checks are right.
fn read_journal(layout: &Layout, file_id: &str, grid: Grid) -> Option<(Header, Here)> {
    // Header of at most 64 KiB. A chunk has its record, and less than `PREFIX_STEPS` before it;
    // twice that where its prefix was dropped. What a longer journal has beyond is not read.
    let len_max = (64 << 10) + 2 * PREFIX_STEPS * RECORD_LEN as u64 * u64::from(grid.chunk_count());
    let mut text = Vec::new();
    fsx::open(&layout.partial_journal(file_id)).ok()?.take(len_max).read_to_end(&mut text).ok()?;
    let end = text.iter().position(|&byte| byte == b'\n')?;
    let header = record::decode::<Header>(&text[..end]).filter(|header| header.larder_partial == JOURNAL_FORM)?;
    let mut here = Here::nothing(grid);
    let (records, _torn) = text[end + 1..].as_chunks::<RECORD_LEN>();
    records.iter().filter_map(Record::decode).for_each(|record| here.apply(record));
    Some((header, here))
}

/// Whether the bytes on disk still hash to the recorded value.
fn chunk_is(file: &File, grid: &Grid, index: ChunkIndex, value: &ChunkValue) -> bool {
    let range = grid.chunk_range(index);
    let mut hasher = ChunkHasher::new(grid, index);
    let mut buffer = vec![0; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from((range.end - at).min(buffer.len() as u64)).expect("at most the buffer");
        if file.read_exact_at(&mut buffer[..len], at).is_err() {
            return false;
        }
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    hasher.finish() == *value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    fn id(size: u64) -> ObjectId {
        ObjectId { origin: "test".into(), uri: "s3://b/k".into(), version: Version::Etag("\"1\"".into()), size }
    }

    fn layout(directory: &std::path::Path, boot: &str) -> Layout {
        let layout = Layout::new(directory, BootId::named(boot));
        for directory in layout.directories() {
            fsx::create_directories(&directory).expect("directory");
        }
        layout
    }

    fn fill(partial: &Partial, bytes: &[u8], index: u32) -> bool {
        let range = partial.grid().chunk_range(ChunkIndex(index));
        let slice = &bytes[range.start as usize..range.end as usize];
        partial.write_at(range.start, &[Bytes::copy_from_slice(slice)]).expect("write");
        let mut hasher = ChunkHasher::new(partial.grid(), ChunkIndex(index));
        hasher.update(slice);
        let record = ChunkRecord { value: hasher.finish(), crc: 7 };
        partial.record(&[(ChunkIndex(index), record)], None).expect("record")
    }

    const KIB: u64 = 1 << 10;

    /// Says that so many bytes of a chunk are written.
    fn begin(partial: &Partial, index: u32, len: u64) {
        let prefix = Prefix { len, value: [9; 32] };
        assert!(!partial.record(&[], Some((ChunkIndex(index), prefix))).expect("record"));
    }

    fn prefix_len(partial: &Partial, index: u32) -> u64 {
        partial.prefix(ChunkIndex(index)).map_or(0, |prefix| prefix.len)
    }

    fn records_in(layout: &Layout, partial: &Partial) -> usize {
        let text = fsx::read_bounded(&layout.partial_journal(&partial.file_id), 1 << 20).expect("a journal");
        (text.len() - text.iter().position(|&byte| byte == b'\n').expect("a line") - 1) / RECORD_LEN
    }

    fn hold() -> Hold {
        Hold::new(&std::sync::Arc::default())
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 % 253) as u8).collect()
    }

    #[test]
    fn resumes_what_was_recorded_and_seals_to_the_plain_digest() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let bytes = content((3 << 20) + 5);
        let partial = Partial::open(&layout, id(bytes.len() as u64), None).expect("open");
        assert!(!fill(&partial, &bytes, 3));
        assert!(!fill(&partial, &bytes, 1));
        drop(partial);
        let partial = Partial::open(&layout, id(bytes.len() as u64), None).expect("open");
        assert_eq!(partial.bytes_resumed(), (1 << 20) + 5);
        assert!(!fill(&partial, &bytes, 0));
        assert!(fill(&partial, &bytes, 2));
        assert_eq!(partial.records().expect("complete")[1].crc, 7);
        assert_eq!(partial.seal(&hold()).expect("seal"), Digest::of(&bytes));
        partial.forget().expect("forgotten");
        assert!(fsx::names(&layout.partials()).expect("names").is_empty());
    }

    #[test]
    fn killed_between_sealing_and_recording_the_blob_is_still_known() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let (bytes, id) = (content((2 << 20) + 9), id((2 << 20) + 9));
        let partial = Partial::open(&layout, id.clone(), None).expect("open");
        (0..3).for_each(|index| assert_eq!(fill(&partial, &bytes, index), index == 2));
        assert_eq!(sealed_before(&layout, &id).expect("reads"), None, "not while it is a partial");
        let digest = partial.seal(&hold()).expect("seal");
        drop(partial);
        assert_eq!(sealed_before(&layout, &id).expect("reads"), Some(digest));
        assert!(fsx::names(&layout.partials()).expect("names").is_empty());
        assert_eq!(sealed_before(&layout, &id).expect("reads"), None, "said once");
    }

    #[test]
    fn a_file_made_read_only_and_not_yet_renamed_is_gone_on_with() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let (bytes, id) = (content(2 << 20), id(2 << 20));
        let partial = Partial::open(&layout, id.clone(), Some(CrcKind::Crc32c)).expect("open");
        fill(&partial, &bytes, 1);
        let path = layout.partial_bytes(&partial.file_id);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).expect("chmod");
        drop(partial);
        let partial = Partial::open(&layout, id, Some(CrcKind::Crc64Nvme)).expect("open");
        assert_eq!(partial.bytes_resumed(), 1 << 20);
        assert_eq!(partial.crc_kind(), Some(CrcKind::Crc32c), "what the records hold");
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn after_another_boot_only_chunks_that_hash_right_count() {
        let directory = tempfile::tempdir().expect("tempdir");
        let bytes = content(4 << 20);
        let before = layout(directory.path(), "one");
        let partial = Partial::open(&before, id(4 << 20), None).expect("open");
        fill(&partial, &bytes, 0);
        fill(&partial, &bytes, 2);
        // What a power cut may leave: the record of chunk 2, not its bytes.
        partial.write_at(2 << 20, &[Bytes::from(vec![0; 4096])]).expect("write");
        drop(partial);
        let partial = Partial::open(&layout(directory.path(), "two"), id(4 << 20), None).expect("open");
        assert_eq!(partial.present().missing_runs().collect::<Vec<_>>(), vec![1..4]);
    }

    #[test]
    fn a_torn_journal_loses_its_last_record_only() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let bytes = content(4 << 20);
        let partial = Partial::open(&layout, id(4 << 20), None).expect("open");
        fill(&partial, &bytes, 0);
        fill(&partial, &bytes, 1);
        let journal = layout.partial_journal(&partial.file_id);
        drop(partial);
        let len = std::fs::metadata(&journal).expect("stat").len();
        OpenOptions::new().write(true).open(&journal).expect("open").set_len(len - 3).expect("truncate");
        let partial = Partial::open(&layout, id(4 << 20), None).expect("open");
        assert_eq!(partial.bytes_resumed(), 1 << 20);
    }

    #[test]
    fn another_version_of_the_object_starts_anew() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let bytes = content(2 << 20);
        fill(&Partial::open(&layout, id(2 << 20), None).expect("open"), &bytes, 0);
        let other = ObjectId { version: Version::Etag("\"2\"".into()), ..id(2 << 20) };
        assert_eq!(Partial::open(&layout, other, None).expect("open").bytes_resumed(), 0);
    }

    #[test]
    fn a_prefix_counts_within_its_boot_and_begins_a_run() {
        let directory = tempfile::tempdir().expect("tempdir");
        let one = layout(directory.path(), "one");
        let bytes = content(8 << 20);
        let partial = Partial::open(&one, id(8 << 20), None).expect("open");
        fill(&partial, &bytes, 2);
        [(4, 100), (4, 300), (0, 64), (6, 1023)].into_iter().for_each(|(index, len)| begin(&partial, index, len * KIB));
        let expected = (1024 + 300 + 64 + 1023) * KIB;
        assert_eq!(partial.bytes_present(), expected);
        drop(partial);
        for _ in 0..2 {
            assert_eq!(peek(&one, &id(8 << 20)), expected);
            let partial = Partial::open(&one, id(8 << 20), None).expect("open");
            assert_eq!(partial.bytes_resumed(), expected);
            assert_eq!(partial.missing_runs(), [0..2, 3..4, 4..6, 6..8]);
            assert_eq!(partial.prefix(ChunkIndex(4)), Some(Prefix { len: 300 * KIB, value: [9; 32] }));
            assert_eq!(records_in(&one, &partial), 4, "what is superseded is not kept");
        }
        let two = layout(directory.path(), "two");
        assert_eq!(peek(&two, &id(8 << 20)), 1 << 20);
        let partial = Partial::open(&two, id(8 << 20), None).expect("open");
        assert_eq!((partial.bytes_resumed(), partial.prefix(ChunkIndex(4))), (1 << 20, None));
        assert_eq!(partial.missing_runs(), [0..2, 3..8]);
        assert_eq!(records_in(&two, &partial), 1);
    }

    #[test]
    fn a_whole_chunk_takes_the_place_of_its_prefix() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let bytes = content(2 << 20);
        let partial = Partial::open(&layout, id(2 << 20), None).expect("open");
        begin(&partial, 0, 512 * KIB);
        assert!(!fill(&partial, &bytes, 0));
        begin(&partial, 0, 700 * KIB);
        assert_eq!((partial.bytes_present(), partial.prefix(ChunkIndex(0))), (1 << 20, None));
        drop(partial);
        let partial = Partial::open(&layout, id(2 << 20), None).expect("open");
        assert_eq!((partial.bytes_resumed(), partial.prefix(ChunkIndex(0))), (1 << 20, None));
        begin(&partial, 1, 512 * KIB);
        assert!(fill(&partial, &bytes, 1));
        assert_eq!(partial.seal(&hold()).expect("seal"), Digest::of(&bytes));
    }

    #[test]
    fn a_torn_record_of_a_prefix_leaves_the_one_before_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let partial = Partial::open(&layout, id(2 << 20), None).expect("open");
        begin(&partial, 1, 200 * KIB);
        begin(&partial, 1, 400 * KIB);
        let journal = layout.partial_journal(&partial.file_id);
        drop(partial);
        let len = std::fs::metadata(&journal).expect("stat").len();
        OpenOptions::new().write(true).open(&journal).expect("open").set_len(len - 3).expect("truncate");
        let partial = Partial::open(&layout, id(2 << 20), None).expect("open");
        assert_eq!(prefix_len(&partial, 1), 200 * KIB);
    }

    #[test]
    fn prefixes_that_no_chunk_can_have_are_ignored() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let id = id((2 << 20) + 5);
        let partial = Partial::open(&layout, id.clone(), None).expect("open");
        let mut journal =
            OpenOptions::new().append(true).open(layout.partial_journal(&partial.file_id)).expect("a journal");
        for (index, len) in [(0, 0), (0, 1 << 20), (1, u64::MAX), (2, 5), (2, 6), (3, 1), (!PREFIX_FLAG, 1)] {
            let record = Record::Prefix(ChunkIndex(index), Prefix { len, value: [0; 32] });
            journal.write_all(&record.encode()).expect("written");
        }
        drop(partial);
        assert_eq!(peek(&layout, &id), 0);
        let partial = Partial::open(&layout, id, None).expect("open");
        assert_eq!((partial.bytes_resumed(), partial.missing_runs().len()), (0, 1));
    }

    #[test]
    fn the_journal_stays_short_however_small_the_steps() {
        let directory = tempfile::tempdir().expect("tempdir");
        let layout = layout(directory.path(), "boot");
        let bytes = content(2 << 20);
        let partial = Partial::open(&layout, id(2 << 20), None).expect("open");
        (1..1024).for_each(|len| begin(&partial, 0, len * KIB));
        assert_eq!(prefix_len(&partial, 0), 960 * KIB);
        partial.drop_prefix(ChunkIndex(0));
        (1..1024).for_each(|len| begin(&partial, 0, len * KIB));
        fill(&partial, &bytes, 0);
        assert!(records_in(&layout, &partial) < 2 * usize::try_from(PREFIX_STEPS).expect("few"));
    }
}
