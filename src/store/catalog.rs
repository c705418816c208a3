//! Which object, at which version, has which digest: an append-only log of checked lines.
//!
//! Owns `catalog.log`. A record is appended after the blob it names is sealed, so a record never
//! promises bytes that were not there; the blob may be gone later, which the reader of a record
//! checks. Records are not synced one by one: losing the last of them costs a transfer, no truth.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};

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
    /// The origin's checksum that the bytes themselves were compared with, if it had one.
    pub checked: Option<Checksum>,
    /// An MD5 that the origin's own API states and that nobody here compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated_md5: Option<Checksum>,
}

impl Known {
    /// What is known of an object whose bytes were compared with `checked`, one of its claims.
    #[must_use]
    pub fn new(id: ObjectId, digest: Digest, checked: Option<Checksum>, claims: &Claims) -> Self {
        let stated = |sum: &&Checksum| matches!(sum, Checksum::Md5(_)) && !claims.md5_is_etag && checked != Some(**sum);
        Self { id, digest, checked, stated_md5: claims.checksums.iter().find(stated).copied() }
    }
}

/// A blob that an object is proven equal to, without having been fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Equal {
    /// The blob.
    pub digest: Digest,
    /// The claim of the object that was compared with these very bytes when they came.
    pub checked: Checksum,
    /// The proof, in words.
    pub proof: &'static str,
}

/// Records beyond this many are not read: a catalog of a million objects is no cache of models.
const RECORD_COUNT_MAX: usize = 1_000_000;
/// Rewrite the log when it has this many superseded lines and they outnumber the live ones.
const GARBAGE_MIN: usize = 1_000;
/// A record is a few hundred bytes; a URI of 2 KiB makes the longest.
const LINE_LEN_MAX: u64 = 16 << 10;

/// What the log knows, without owning the store; nothing where it cannot be read.
pub(super) fn read(layout: &Layout) -> HashMap<ObjectId, Known> {
    let path = layout.catalog();
    File::open(&path).ok().and_then(|file| load(&file, &path).ok()).map_or_else(HashMap::new, |(known, ..)| known)
}

/// The log with its index.
#[derive(Debug)]
pub(super) struct Catalog {
    file: File,
    known: HashMap<ObjectId, Known>,
    /// SHA-256 and size -> digest, whichever origin says it.
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
        let (known, lines, dropped) = load(&file, &path)?;
        let garbage = lines - known.len();
        // A torn last line goes too, so that the next record starts on a line of its own.
        if dropped > 0 || (garbage > GARBAGE_MIN && garbage > known.len()) {
            let text: Vec<u8> = known.values().flat_map(record::encode).collect();
            match fsx::replace_synced(&layout.scratch(), &path, &text) {
                Ok(()) => file = OpenOptions::new().read(true).append(true).open(&path).at("open", &path)?,
                // On a full disk the store must open, or nothing could ever be removed from it.
                Err(error) => tracing::warn!(path = %path.display(), %error, "the catalog stays as it is"),
            }
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

    /// A blob whose bytes are proven equal to `object`'s by the origin's own words.
    ///
    /// Two kinds of proof. A SHA-256 that we compared with the blob's bytes ourselves and that any
    /// origin now claims for the object. Or, within one bucket, what we compared with the bytes
    /// (a CRC or an MD5) together with the same ETag of content form or the same stated MD5: the
    /// server made all of them by the same rule. Whoever makes both files can make them collide in
    /// MD5 and CRC, so across buckets, which may belong to different people, these prove nothing.
    pub(super) fn find_equal(&self, id: &ObjectId, object: &Object) -> Option<Equal> {
        let claims = &object.claims.checksums;
        for claim in claims.iter().filter(|claim| claim.is_proof()) {
            if let Some(digest) = self.proofs.get(&(*claim, object.size)) {
                return Some(Equal { digest: *digest, checked: *claim, proof: claim.algorithm() });
            }
        }
        let content_etag = matches!(&object.version, Version::Etag(etag) if is_content_etag(etag));
        let proof = |known: &Known| {
            let checked = known.checked.filter(|checked| claims.contains(checked))?;
            let is_md5 = matches!(checked, Checksum::Md5(_));
            let proof = if is_md5 {
                "MD5"
            } else if content_etag && known.id.version == object.version {
                "ETag and CRC"
            } else if known.stated_md5.is_some_and(|md5| claims.contains(&md5)) {
                "MD5 and CRC"
            } else {
                return None;
            };
            Some(Equal { digest: known.digest, checked, proof })
        };
        let of_size = self.by_size.get(&object.size).into_iter().flatten();
        of_size.filter(|other| same_bucket(other, id)).filter_map(|other| self.known.get(other)).find_map(proof)
    }

    /// Whether some pulled object has this size: only then is asking for checksums worth a call.
    pub(super) fn has_size(&self, size: u64) -> bool {
        self.by_size.contains_key(&size)
    }
}

/// Whether two objects lie in one bucket (or on one host) of one origin.
fn same_bucket(a: &ObjectId, b: &ObjectId) -> bool {
    let bucket = |uri: &str| {
        let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
        format!("{scheme}://{}", rest.split('/').next().unwrap_or_default())
    };
    a.origin == b.origin && bucket(&a.uri) == bucket(&b.uri)
}

/// 32 hex digits, perhaps with `-N` behind: MD5 of the content or of its parts' MD5s.
fn is_content_etag(etag: &str) -> bool {
    let etag = etag.trim_matches('"');
    let (hex, parts) = etag.split_once('-').map_or((etag, None), |(hex, parts)| (hex, Some(parts)));
    hex.len() == 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && parts.is_none_or(|parts| !parts.is_empty() && parts.bytes().all(|b| b.is_ascii_digit()))
}

/// Records, readable lines, and lines that failed their check.
type Loaded = (HashMap<ObjectId, Known>, usize, usize);

fn load(file: &File, path: &std::path::Path) -> Result<Loaded, Error> {
    let mut known = HashMap::new();
    let (mut lines, mut dropped) = (0, 0);
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut line = Vec::new();
    while lines < RECORD_COUNT_MAX {
        line.clear();
        if reader.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line).at("read", path)? == 0 {
            break;
        }
        let record = line.strip_suffix(b"\n").and_then(record::decode::<Known>);
        match record {
            Some(entry) => {
                lines += 1;
                known.insert(entry.id.clone(), entry);
            }
            None => dropped += 1,
        }
    }
    Ok((known, lines, dropped))
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
