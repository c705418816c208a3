//! Objects in memory, with the versions and checksums that the clouds keep beside them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use sha2::Sha256;

/// Which checksums an origin keeps of an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksums {
    pub crc64nvme: bool,
    pub crc32c: bool,
    pub sha256: bool,
    /// The ETag is the MD5, as for a single-part upload.
    pub md5_etag: bool,
    /// The listing has no ETag.
    pub no_etag: bool,
}

impl Checksums {
    /// What S3 keeps of an object uploaded in one piece by a recent SDK.
    #[must_use]
    pub const fn single_part() -> Self {
        Self { crc64nvme: true, crc32c: false, sha256: false, md5_etag: true, no_etag: false }
    }

    /// Uploaded in parts by a recent SDK: a whole-object CRC64NVME and an ETag that is no MD5.
    #[must_use]
    pub const fn multipart() -> Self {
        Self { crc64nvme: true, crc32c: false, sha256: false, md5_etag: false, no_etag: false }
    }

    /// Uploaded in parts by an old client: nothing to compare with.
    #[must_use]
    pub const fn none() -> Self {
        Self { crc64nvme: false, crc32c: false, sha256: false, md5_etag: false, no_etag: false }
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Stored {
    pub bytes: Arc<Vec<u8>>,
    /// With its quotes, or empty.
    pub etag: String,
    pub generation: i64,
    /// Base64, as S3 sends it.
    pub crc64nvme: Option<String>,
    pub crc32c: Option<String>,
    pub sha256: Option<String>,
    pub md5: [u8; 16],
}

/// A bucket that many connections read and a test writes.
#[derive(Debug, Default)]
pub struct Bucket {
    objects: Mutex<BTreeMap<String, Stored>>,
    generations: AtomicI64,
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores an object as one upload with those checksums.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>, checksums: Checksums) {
        let bytes = bytes.into();
        let md5: [u8; 16] = Md5::digest(&bytes).into();
        let generation = 1_700_000_000_000_000 + self.generations.fetch_add(1, Relaxed);
        let etag = match checksums {
            Checksums { no_etag: true, .. } => String::new(),
            Checksums { md5_etag: true, .. } => format!("\"{}\"", hex(&md5)),
            // The form of a multipart ETag: a hash of hashes and the number of parts.
            _ => format!("\"{}-3\"", hex(&Md5::digest(md5))),
        };
        let crc = |algorithm| crc_fast::checksum(algorithm, &bytes);
        let crc64 = || STANDARD.encode(crc(crc_fast::CrcAlgorithm::Crc64Nvme).to_be_bytes());
        let crc32 =
            || STANDARD.encode(u32::try_from(crc(crc_fast::CrcAlgorithm::Crc32Iscsi)).unwrap_or(0).to_be_bytes());
        let stored = Stored {
            crc64nvme: checksums.crc64nvme.then(crc64),
            crc32c: checksums.crc32c.then(crc32),
            sha256: checksums.sha256.then(|| STANDARD.encode(Sha256::digest(&bytes))),
            etag,
            generation,
            md5,
            bytes: Arc::new(bytes),
        };
        self.lock().insert(key.to_owned(), stored);
    }

    /// Changes an object after it was stored, for instance its claims.
    pub fn edit(&self, key: &str, change: impl FnOnce(&mut Stored)) {
        if let Some(stored) = self.lock().get_mut(key) {
            change(stored);
        }
    }

    /// Stores under another key what is under this one, as an upload of the same bytes would.
    pub fn copy(&self, from: &str, to: &str) {
        let mut objects = self.lock();
        if let Some(stored) = objects.get(from).cloned() {
            let generation = 1_700_000_000_000_000 + self.generations.fetch_add(1, Relaxed);
            objects.insert(to.to_owned(), Stored { generation, ..stored });
        }
    }

    pub fn remove(&self, key: &str) {
        self.lock().remove(key);
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<Stored> {
        self.lock().get(key).cloned()
    }

    /// Objects under a prefix, in the order of their keys.
    #[must_use]
    pub fn list(&self, prefix: &str) -> Vec<(String, Stored)> {
        let objects = self.lock();
        objects.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

impl Bucket {
    /// The same behind one of them, `count` at most.
    #[must_use]
    pub fn page(&self, prefix: &str, after: Option<&str>, count: usize) -> Vec<(String, Stored)> {
        let objects = self.lock();
        let start = after.map_or(Bound::Included(prefix), |after| Bound::Excluded(after.max(prefix)));
        let below = objects.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        below.take(count).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
