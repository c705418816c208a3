//! What the catalog says, in memory: which object has which digest, and what is proven equal.
//!
//! A node may know a hundred thousand objects with keys of a kilobyte, so none of their names is
//! kept: an object is found by the hash of what names it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::catalog::{Equal, Known, ObjectId};
use crate::domain::{Checksum, Digest, Object, Version};

/// What is known of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Recorded {
    pub digest: Digest,
    /// The origin's checksum that the bytes were compared with.
    pub checked: Option<Checksum>,
    stated_md5: Option<Checksum>,
    size: u64,
    /// The bucket's number in the index.
    bucket: u32,
    version: Digest,
}

/// The objects of one catalog.
#[derive(Debug, Default)]
pub(super) struct Index {
    known: BTreeMap<Digest, Recorded>,
    /// SHA-256 and size -> digest, whichever origin says it.
    proofs: HashMap<(Checksum, u64), Digest>,
    /// Objects by size: what a look-up by checksum goes through.
    by_size: BTreeSet<(u64, Digest)>,
    buckets: HashMap<String, u32>,
}

impl Index {
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether exactly this is known already.
    pub fn has(&self, known: &Known) -> bool {
        let same = |recorded: &Recorded| {
            (recorded.digest, recorded.checked, recorded.stated_md5) == (known.digest, known.checked, known.stated_md5)
        };
        self.find(&known.id).is_some_and(same)
    }

    /// Adds a record, in place of an older one of the same object.
    pub fn add(&mut self, known: &Known) {
        let Known { id, digest, checked, stated_md5 } = known;
        if let Some(checked) = checked.filter(Checksum::is_proof) {
            self.proofs.insert((checked, id.size), *digest);
        }
        let next = u32::try_from(self.buckets.len()).unwrap_or(u32::MAX);
        let recorded = Recorded {
            digest: *digest,
            checked: *checked,
            stated_md5: *stated_md5,
            size: id.size,
            bucket: *self.buckets.entry(bucket_of(id)).or_insert(next),
            version: hash_of(&id.version),
        };
        let key = id.key();
        self.known.insert(key, recorded);
        self.by_size.insert((id.size, key));
    }

    /// Forgets what leads to none of the blobs that are left.
    pub fn keep(&mut self, is_left: impl Fn(&Digest) -> bool) {
        let Self { known, by_size, .. } = self;
        known.retain(|key, recorded| {
            let stays = is_left(&recorded.digest);
            if !stays {
                by_size.remove(&(recorded.size, *key));
            }
            stays
        });
        self.proofs.retain(|_, digest| is_left(digest));
        if self.known.is_empty() {
            self.buckets.clear();
        }
    }

    /// Forgets what leads to blobs that went.
    pub fn forget(&mut self, gone: &HashSet<Digest>) {
        if !gone.is_empty() {
            self.keep(|digest| !gone.contains(digest));
        }
    }

    /// What is known of exactly this object at this version.
    pub fn find(&self, id: &ObjectId) -> Option<&Recorded> {
        self.known.get(&id.key())
    }

    /// A blob whose bytes are proven equal to `object`'s by the origin's own words.
    ///
    /// Two kinds of proof. A SHA-256 that we compared with the blob's bytes ourselves and that any
    /// origin now claims for the object. Or, within one bucket, what we compared with the bytes
    /// (a CRC or an MD5) together with the same ETag of content form or the same stated MD5: the
    /// server made all of them by the same rule. Whoever makes both files can make them collide in
    /// MD5 and CRC, so across buckets, which may belong to different people, these prove nothing.
    pub fn find_equal(&self, id: &ObjectId, object: &Object) -> Option<Equal> {
        let claims = &object.claims.checksums;
        for claim in claims.iter().filter(|claim| claim.is_proof()) {
            if let Some(digest) = self.proofs.get(&(*claim, object.size)) {
                return Some(Equal { digest: *digest, checked: *claim, proof: claim.algorithm() });
            }
        }
        let bucket = self.buckets.get(&bucket_of(id))?;
        let content_etag = matches!(&object.version, Version::Etag(etag) if is_content_etag(etag));
        let version = hash_of(&object.version);
        let proof = |known: &Recorded| {
            let checked = known.checked.filter(|checked| claims.contains(checked))?;
            let is_md5 = matches!(checked, Checksum::Md5(_));
            let proof = if is_md5 {
                "MD5"
            } else if content_etag && known.version == version {
                "ETag and CRC"
            } else if known.stated_md5.is_some_and(|md5| claims.contains(&md5)) {
                "MD5 and CRC"
            } else {
                return None;
            };
            Some(Equal { digest: known.digest, checked, proof })
        };
        let of_size = self.of_size(object.size).filter_map(|key| self.known.get(key));
        of_size.filter(|other| other.bucket == *bucket).find_map(proof)
    }

    /// Whether some pulled object has this size: only then is asking for checksums worth a call.
    pub fn has_size(&self, size: u64) -> bool {
        self.of_size(size).next().is_some()
    }

    fn of_size(&self, size: u64) -> impl Iterator<Item = &Digest> {
        let bound = |byte| (size, Digest::from_bytes([byte; 32]));
        self.by_size.range(bound(0)..=bound(u8::MAX)).map(|(_, key)| key)
    }
}

fn hash_of(version: &Version) -> Digest {
    Digest::of(version.to_string().as_bytes())
}

/// The bucket (or host) of one origin that an object lies in.
fn bucket_of(id: &ObjectId) -> String {
    let (scheme, rest) = id.uri.split_once("://").unwrap_or(("", &id.uri));
    format!("{} {scheme}://{}", id.origin, rest.split('/').next().unwrap_or_default())
}

/// 32 hex digits, perhaps with `-N` behind: MD5 of the content or of its parts' MD5s.
fn is_content_etag(etag: &str) -> bool {
    let etag = etag.trim_matches('"');
    let (hex, parts) = etag.split_once('-').map_or((etag, None), |(hex, parts)| (hex, Some(parts)));
    hex.len() == 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && parts.is_none_or(|parts| !parts.is_empty() && parts.bytes().all(|b| b.is_ascii_digit()))
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

    #[test]
    fn what_went_is_found_no_more_and_costs_no_memory() {
        let mut index = Index::default();
        let known = |number: u64, size: u64| {
            let (uri, version) = (format!("s3://b/{number}").into(), Version::Generation(1));
            let digest = Digest::of(&number.to_le_bytes());
            Known { id: ObjectId { origin: "o".into(), uri, version, size }, digest, checked: None, stated_md5: None }
        };
        (0..10).for_each(|number| index.add(&known(number, 5 + number % 2)));
        assert!(index.has(&known(3, 6)) && !index.has(&known(3, 7)));
        let gone = (0..10).filter(|number| number % 2 == 0).map(|number| known(number, 5).digest).collect();
        index.forget(&gone);
        assert_eq!((index.len(), index.by_size.len()), (5, 5));
        assert!(!index.has_size(5) && index.has_size(6));
        assert!(index.find(&known(2, 5).id).is_none() && index.find(&known(3, 6).id).is_some());
    }
}
