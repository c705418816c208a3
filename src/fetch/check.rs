//! Compares the bytes of a file with the checksum its origin keeps, while they arrive.
//!
//! CRCs are taken per chunk, in any order, and combined. SHA-256 and MD5 know one order only:
//! they follow the front of what has arrived, reading it back from the page cache.

use std::ops::Range;
use std::sync::{Mutex, PoisonError, TryLockError};

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::domain::{Checksum, ChunkIndex, CrcKind, Grid};
use crate::store::{self, ChunkRecord, Partial};

/// Read back at once, from the page cache.
const READ_LEN: u64 = 256 << 10;

/// What to compute over one file.
#[derive(Debug)]
pub struct Check {
    claim: Option<Checksum>,
    front: Mutex<Front>,
}

#[derive(Debug)]
struct Front {
    hasher: Option<Sequential>,
    next: u32,
}

#[derive(Debug)]
enum Sequential {
    Sha256(Sha256),
    Md5(Md5),
}

impl Sequential {
    fn of(claim: Option<Checksum>) -> Option<Self> {
        match claim? {
            Checksum::Sha256(_) => Some(Self::Sha256(Sha256::new())),
            Checksum::Md5(_) => Some(Self::Md5(Md5::new())),
            Checksum::Crc64Nvme(_) | Checksum::Crc32c(_) => None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Md5(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum::Sha256(hasher.finalize().into()),
            Self::Md5(hasher) => Checksum::Md5(hasher.finalize().into()),
        }
    }
}

const fn algorithm_of(kind: CrcKind) -> CrcAlgorithm {
    match kind {
        CrcKind::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
        CrcKind::Crc32c => CrcAlgorithm::Crc32Iscsi,
    }
}

fn checksum_of(kind: CrcKind, crc: u64) -> Checksum {
    match kind {
        CrcKind::Crc64Nvme => Checksum::Crc64Nvme(crc),
        // A 32-bit CRC comes in the low half.
        CrcKind::Crc32c => Checksum::Crc32c((crc & 0xffff_ffff) as u32),
    }
}

/// A running CRC of one chunk.
#[must_use]
pub fn chunk_crc(kind: Option<CrcKind>) -> Option<crc_fast::Digest> {
    kind.map(|kind| crc_fast::Digest::new(algorithm_of(kind)))
}

impl Check {
    /// A check of `claim`, or none at all.
    #[must_use]
    pub fn new(claim: Option<Checksum>) -> Self {
        Self { claim, front: Mutex::new(Front { hasher: Sequential::of(claim), next: 0 }) }
    }

    /// What the origin claims.
    #[must_use]
    pub const fn claim(&self) -> Option<Checksum> {
        self.claim
    }

    /// Takes the chunks that have become contiguous into a sequential hash. Returns at once when
    /// another thread is at it.
    ///
    /// # Errors
    /// [`store::Error::Io`] when the bytes cannot be read back.
    pub fn follow(&self, partial: &Partial) -> Result<(), store::Error> {
        match self.front.try_lock() {
            Ok(mut front) => front.advance(partial),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().advance(partial),
            Err(TryLockError::WouldBlock) => Ok(()),
        }
    }

    /// What the bytes of the complete partial have. `None` where there is no claim to compare.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn of_partial(&self, partial: &Partial) -> Result<Option<Checksum>, store::Error> {
        if let Some(kind) = self.claim.and_then(|claim| claim.crc_kind()) {
            let Some(records) = partial.records() else { return Ok(None) };
            let crc = if partial.crc_kind() == Some(kind) {
                combine(algorithm_of(kind), partial.grid(), &records)
            } else {
                // An earlier pull that was told another checksum, or none, began this file.
                reread(algorithm_of(kind), partial)?
            };
            return Ok(Some(checksum_of(kind, crc)));
        }
        let mut front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        front.advance(partial)?;
        Ok(front.hasher.take().map(Sequential::finish))
    }

    /// What bytes in memory have.
    #[must_use]
    pub fn of_slices(&self, slices: &[Bytes]) -> Option<Checksum> {
        if let Some(kind) = self.claim.and_then(|claim| claim.crc_kind()) {
            let mut crc = crc_fast::Digest::new(algorithm_of(kind));
            slices.iter().for_each(|slice| crc.update(slice));
            return Some(checksum_of(kind, crc.finalize()));
        }
        let mut hasher = Sequential::of(self.claim)?;
        slices.iter().for_each(|slice| hasher.update(slice));
        Some(hasher.finish())
    }
}

impl Front {
    fn advance(&mut self, partial: &Partial) -> Result<(), store::Error> {
        let Some(hasher) = &mut self.hasher else { return Ok(()) };
        let present = partial.present();
        while self.next < partial.grid().chunk_count() && present.contains(ChunkIndex(self.next)) {
            let chunk = partial.grid().chunk_range(ChunkIndex(self.next));
            read_back(partial, chunk, &mut |bytes| hasher.update(bytes))?;
            self.next += 1;
        }
        Ok(())
    }
}

/// Reads bytes that are there.
pub fn read_back(partial: &Partial, range: Range<u64>, take: &mut dyn FnMut(&[u8])) -> Result<(), store::Error> {
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(READ_LEN);
        buffer.resize(usize::try_from(len).unwrap_or(0), 0);
        partial.read_at(at, &mut buffer)?;
        take(&buffer);
        at += len;
    }
    Ok(())
}

fn reread(algorithm: CrcAlgorithm, partial: &Partial) -> Result<u64, store::Error> {
    let mut crc = crc_fast::Digest::new(algorithm);
    for index in 0..partial.grid().chunk_count() {
        read_back(partial, partial.grid().chunk_range(ChunkIndex(index)), &mut |bytes| crc.update(bytes))?;
    }
    Ok(crc.finalize())
}

fn combine(algorithm: CrcAlgorithm, grid: &Grid, records: &[ChunkRecord]) -> u64 {
    let empty = crc_fast::Digest::new(algorithm).finalize();
    let lens = (0..grid.chunk_count()).map(|index| {
        let range = grid.chunk_range(ChunkIndex(index));
        range.end - range.start
    });
    records
        .iter()
        .zip(lens)
        .fold(empty, |crc, (record, len)| crc_fast::checksum_combine(algorithm, crc, record.crc, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crcs_of_chunks_combine_to_the_crc_of_the_file() {
        let bytes: Vec<u8> = (0..(3 << 20) + 77_u32).map(|i| (i * 31 % 251) as u8).collect();
        let grid = Grid::of_size(bytes.len() as u64);
        for claim in [Checksum::Crc64Nvme(0), Checksum::Crc32c(0)] {
            let check = Check::new(Some(claim));
            let kind = claim.crc_kind();
            let algorithm = kind.map(algorithm_of).expect("a CRC");
            let records: Vec<ChunkRecord> = (0..grid.chunk_count())
                .map(|index| {
                    let range = grid.chunk_range(ChunkIndex(index));
                    let mut crc = chunk_crc(kind).expect("a CRC");
                    crc.update(&bytes[range.start as usize..range.end as usize]);
                    ChunkRecord { value: [0; 32], crc: crc.finalize() }
                })
                .collect();
            let whole = check.of_slices(&[Bytes::from(bytes.clone())]);
            assert_eq!(kind.map(|kind| checksum_of(kind, combine(algorithm, &grid, &records))), whole);
        }
    }

    #[test]
    fn known_answers() {
        // "123456789": the check value of the CRC catalogue, RFC 1321 and FIPS 180-2 for the rest.
        let slices = [Bytes::from_static(b"1234"), Bytes::from_static(b"56789")];
        let of = |claim| Check::new(Some(claim)).of_slices(&slices).expect("computed");
        assert_eq!(of(Checksum::Crc32c(0)), Checksum::Crc32c(0xe306_9283));
        assert_eq!(of(Checksum::Crc64Nvme(0)), Checksum::Crc64Nvme(0xae8b_1486_0a79_9888));
        assert_eq!(of(Checksum::Md5([0; 16])).value(), "25f9e794323b453885f5181f1b624d0b");
        assert_eq!(of(Checksum::Sha256([0; 32])).value(), "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=");
        assert_eq!(Check::new(None).of_slices(&slices), None);
    }
}
