//! Which object, at which version, has which digest: an append-only log of checked lines.
//!
//! Owns `catalog.log`. A record is appended after the blob it names is sealed, so a record never
//! promises bytes that were not there; the blob may be gone later, which the reader of a record
//! checks. Records are not synced one by one: losing the last of them costs a transfer, no truth.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;

use serde::{Deserialize, Serialize};

use super::error::AtPath as _;
use super::{Error, Layout, fsx, record};
use crate::domain::{Checksum, Claims, Digest, Object, Version};

/// An object at one version: the key under which its digest is known.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectId {
    /// The trust domain (see `remote::Remote::origin`).
    pub origin: String,
    /// The object's URI.
    pub uri: String,
    /// ETag or generation.
    pub version: Version,
    /// Bytes.
    pub size: u64,
}

impl ObjectId {
    /// A file name for this object's partial: 32 hex digits.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "strings and numbers always encode")]
    pub fn file_id(&self) -> String {
        let text = serde_json::to_vec(self).expect("strings and numbers always encode");
        blake3::hash(&text).to_hex()[..32].to_owned()
    }
}

/// What is known of an object that was pulled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// The object.
    pub id: ObjectId,
    /// Its content.
    pub digest: Digest,
    /// The origin's checksum that the bytes were compared with while they came, if it had one.
    pub checked: Option<Checksum>,
    /// An MD5 that the origin's own API states and that nobody here compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated_md5: Option<Checksum>,
}

impl Known {
    /// What is known once bytes agree with what the origin claims of them.
    #[must_use]
    pub fn new(id: ObjectId, digest: Digest, claims: &Claims) -> Self {
        let checked = claims.to_check();
        let stated = |sum: &&Checksum| matches!(sum, Checksum::Md5(_)) && !claims.md5_is_etag && checked != Some(**sum);
        Self { id, digest, checked, stated_md5: claims.checksums.iter().find(stated).copied() }
    }
}

/// Records beyond this many are not read: a catalog of a million objects is no cache of models.
const RECORD_COUNT_MAX: usize = 1_000_000;
/// Rewrite the log when it has this many superseded lines and they outnumber the live ones.
const GARBAGE_MIN: usize = 1_000;

/// The log with its index.
#[derive(Debug)]
pub(super) struct Catalog {
    file: File,
    known: HashMap<ObjectId, Known>,
    /// Checksums that prove equality -> digest, whichever origin says them.
    proofs: HashMap<(Checksum, u64), Digest>,
    /// Objects by size: what a look-up by checksum goes through.
    by_size: HashMap<u64, Vec<ObjectId>>,
    dropped: usize,
}

impl Catalog {
    /// Opens the log for reading and appending; lines that fail their check are dropped.
    pub(super) fn open(layout: &Layout) -> Result<Self, Error> {
        let path = layout.catalog();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).at("open", &path)?;
        let (known, lines, dropped, torn) = load(&file, &path)?;
        if torn {
            // Closes a torn last line, so that the next record starts on a line of its own.
            file.write_all(b"\n").at("append to", &path)?;
        }
        let garbage = lines - known.len();
        if garbage > GARBAGE_MIN && garbage > known.len() {
            let text: Vec<u8> = known.values().flat_map(record::encode).collect();
            fsx::replace(&layout.scratch(), &path, &text).at("rewrite", &path)?;
            file = OpenOptions::new().read(true).append(true).open(&path).at("open", &path)?;
        }
        let mut catalog = Self {
            file,
            known: HashMap::with_capacity(known.len()),
            proofs: HashMap::new(),
            by_size: HashMap::new(),
            dropped,
        };
        for entry in known.into_values() {
            catalog.index(entry);
        }
        Ok(catalog)
    }

    fn index(&mut self, known: Known) {
        if let Some(checked) = known.checked.filter(Checksum::is_proof) {
            self.proofs.insert((checked, known.id.size), known.digest);
        }
        let (id, size) = (known.id.clone(), known.id.size);
        if self.known.insert(id.clone(), known).is_none() {
            self.by_size.entry(size).or_default().push(id);
        }
    }

    /// Lines that were dropped at open because their check failed.
    pub(super) const fn dropped(&self) -> usize {
        self.dropped
    }

    /// Appends a record, in one write.
    pub(super) fn append(&mut self, layout: &Layout, known: Known) -> Result<(), Error> {
        if self.known.get(&known.id) == Some(&known) {
            return Ok(());
        }
        self.file.write_all(&record::encode(&known)).at("append to", layout.catalog())?;
        self.index(known);
        Ok(())
    }

    /// What is known of exactly this object at this version.
    pub(super) fn find(&self, id: &ObjectId) -> Option<&Known> {
        self.known.get(id)
    }

    /// A digest whose bytes are proven equal to `object`'s by the origin's own words.
    ///
    /// Two kinds of proof. A cryptographic checksum that we computed ourselves over the blob and
    /// that the origin now claims for the object. Or, within one origin only and at the same size,
    /// the CRC that we checked together with the same ETag of content form (32 hex digits, perhaps
    /// `-N`) or the same stated MD5: there the server made both by the same rule, and an uploader
    /// cannot choose them.
    pub(super) fn find_equal(&self, origin: &str, object: &Object) -> Option<(Digest, &'static str)> {
        for claim in object.claims.checksums.iter().filter(|claim| claim.is_proof()) {
            if let Some(digest) = self.proofs.get(&(*claim, object.size)) {
                return Some((*digest, claim.algorithm()));
            }
        }
        let claims = &object.claims.checksums;
        let etag = matches!(&object.version, Version::Etag(etag) if is_content_etag(etag));
        let same = |known: &&Known| {
            known.id.origin == origin && known.checked.is_some_and(|checked| claims.contains(&checked))
        };
        let proof = |known: &Known| {
            if etag && known.id.version == object.version {
                return Some((known.digest, "ETag and CRC"));
            }
            known.stated_md5.filter(|md5| claims.contains(md5)).map(|_| (known.digest, "MD5 and CRC"))
        };
        let of_size = self.by_size.get(&object.size).into_iter().flatten();
        of_size.filter_map(|id| self.known.get(id)).filter(same).find_map(proof)
    }

    /// Whether some pulled object has this size: only then is asking for checksums worth a call.
    pub(super) fn has_size(&self, size: u64) -> bool {
        self.by_size.contains_key(&size)
    }

    /// Every record.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }
}

/// 32 hex digits, perhaps with `-N` behind: MD5 of the content or of its parts' MD5s.
fn is_content_etag(etag: &str) -> bool {
    let etag = etag.trim_matches('"');
    let (hex, parts) = etag.split_once('-').map_or((etag, None), |(hex, parts)| (hex, Some(parts)));
    hex.len() == 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && parts.is_none_or(|parts| !parts.is_empty() && parts.bytes().all(|b| b.is_ascii_digit()))
}

type Loaded = (HashMap<ObjectId, Known>, usize, usize, bool);

fn load(file: &File, path: &std::path::Path) -> Result<Loaded, Error> {
    let mut known = HashMap::new();
    let (mut lines, mut dropped) = (0, 0);
    if file.metadata().at("read", path)?.len() == 0 {
        return Ok((known, 0, 0, false));
    }
    let text = super::map::read_only(file).at("map", path)?;
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).take(RECORD_COUNT_MAX) {
        match record::decode::<Known>(line) {
            Some(entry) => {
                lines += 1;
                known.insert(entry.id.clone(), entry);
            }
            None => dropped += 1,
        }
    }
    Ok((known, lines, dropped, text.last() != Some(&b'\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_etags_count() {
        assert!(is_content_etag("\"d41d8cd98f00b204e9800998ecf8427e\""));
        assert!(is_content_etag("\"d41d8cd98f00b204e9800998ecf8427e-12\""));
        for etag in
            ["\"65f1-1000\"", "\"\"", "\"d41d8cd98f00b204e9800998ecf8427e-\"", "W/\"d41d8cd98f00b204e9800998ecf8427e\""]
        {
            assert!(!is_content_etag(etag), "{etag}");
        }
    }
}
