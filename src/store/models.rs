//! Which source names which manifest. What a manifest becomes is in `trees`.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::AtPath as _;
use super::unreadable::{Met, Unreadable};
use super::{Error, Layout, ObjectId, Shelf, document, fsx};
use crate::domain::endpoint::{canonical_origin, endpoint_of};
use crate::domain::{Checksum, Digest, Manifest, ModelPath, Text, Version};

const FORM: u32 = 1;
/// What the digest and the checksum of a file add to a record in which they are still `null`.
const LATER_LEN: u64 = 256;

/// One file of a source, pinned to the version that was pulled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceFile {
    /// Where it goes in the model.
    pub path: ModelPath,
    /// The object.
    pub uri: Text,
    /// Its version.
    pub version: Version,
    /// Bytes.
    pub size: u64,
    /// Its content, once known.
    pub digest: Option<Digest>,
    /// The origin's checksum it was compared with, where it had one.
    pub checked: Option<Checksum>,
}

/// What a source named when it was last listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceRecord {
    larder_source: u32,
    /// The URI as the user gave it, canonical.
    pub source: String,
    /// Trust domain of the origin.
    pub origin: Text,
    /// `--include` globs, in order.
    pub include: Vec<String>,
    /// `--exclude` globs, in order.
    pub exclude: Vec<String>,
    /// The model, once complete.
    pub manifest: Option<Digest>,
    /// Seconds since 1970 when it was listed and first found like this.
    pub listed_at: u64,
    /// The files, in load order once complete.
    pub files: Vec<SourceFile>,
}

impl SourceRecord {
    /// A record of a source just listed.
    #[must_use]
    pub fn new(source: String, origin: Text, include: Vec<String>, exclude: Vec<String>) -> Self {
        let listed_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Self { larder_source: FORM, source, origin, include, exclude, manifest: None, listed_at, files: Vec::new() }
    }

    /// The file name of this record: one for each source at an origin, and each selection of its files.
    #[must_use]
    pub fn id(&self) -> String {
        Self::id_of(&self.source, &self.origin, &self.include, &self.exclude)
    }

    /// The id of the record that a source has, or would have.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "strings always encode")]
    pub fn id_of(source: &str, origin: &str, include: &[String], exclude: &[String]) -> String {
        // The order of globs means nothing.
        let set = |globs: &[String]| globs.iter().cloned().collect::<BTreeSet<String>>();
        let key = (name_of_source(source), canonical_origin(origin), set(include), set(exclude));
        let text = serde_json::to_vec(&key).expect("strings always encode");
        blake3::hash(&text).to_hex()[..32].to_owned()
    }

    /// Whether it came from that origin: earlier builds wrote endpoints as they were given.
    #[must_use]
    pub fn is_from(&self, origin: &str) -> bool {
        canonical_origin(&self.origin) == origin
    }

    /// The server of its bucket; none of what is in no bucket.
    #[must_use]
    pub fn endpoint_url(&self) -> Option<String> {
        endpoint_of(&self.origin)
    }

    /// Whether it is the record of that source, at whichever origin, and that selection.
    #[must_use]
    pub fn is_of(&self, source: &str, include: &[String], exclude: &[String]) -> bool {
        let same = |a: &[String], b: &[String]| a == b || a.iter().collect::<BTreeSet<_>>() == b.iter().collect();
        name_of_source(&self.source) == name_of_source(source)
            && same(&self.include, include)
            && same(&self.exclude, exclude)
    }

    /// The name of what the source named at this look: its files at their versions, whatever their
    /// order and whether they have arrived.
    #[must_use]
    pub fn listing(&self) -> Digest {
        let mut files: Vec<(&ModelPath, String)> =
            self.files.iter().map(|file| (&file.path, self.object(file).file_id())).collect();
        files.sort();
        let mut hasher = blake3::Hasher::new_derive_key("larder listing 1");
        for (path, file_id) in files {
            for part in [path.as_str(), &file_id] {
                hasher.update(part.as_bytes()).update(b"\0");
            }
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// The object that a file of it is a copy of.
    #[must_use]
    pub fn object(&self, file: &SourceFile) -> ObjectId {
        let (origin, uri, version) = (self.origin.clone(), file.uri.clone(), file.version.clone());
        ObjectId { origin, uri, version, size: file.size }
    }

    /// Bytes of all files.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }
}

/// A record without its files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Head {
    larder_source: u32,
    source: String,
    origin: String,
    include: Vec<String>,
    exclude: Vec<String>,
    manifest: Option<Digest>,
    listed_at: u64,
}

/// A record that says it was listed at another time. Its fields are [`SourceRecord`]'s, in order.
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the form on disk")]
struct ListedAt<'a> {
    larder_source: u32,
    source: &'a str,
    origin: &'a str,
    include: &'a [String],
    exclude: &'a [String],
    manifest: Option<Digest>,
    listed_at: u64,
    files: &'a [SourceFile],
}

/// Refuses a record that would be longer, once its files are here, than what is read back.
pub(super) fn check_len(source: &SourceRecord) -> Result<(), Error> {
    // Escaped, text is at most six times as long; nearly always that is short enough by far.
    let text = |file: &SourceFile| {
        let etag = if let Version::Etag(etag) = &file.version { etag.len() } else { 0 };
        file.path.as_str().len() + file.uri.len() + etag
    };
    let text: u64 = source.files.iter().map(|file| 6 * text(file) as u64).sum();
    if text + source.files.len() as u64 * 2 * LATER_LEN < document::LEN_MAX {
        return Ok(());
    }
    let missing = source.files.iter().filter(|file| file.digest.is_none()).count() as u64;
    let len = document::measure(source).map_or(u64::MAX, |form| form.len);
    if len.saturating_add(missing * LATER_LEN) <= document::LEN_MAX {
        return Ok(());
    }
    Err(Error::TooLong { source_uri: source.source.clone(), files: source.files.len(), len_max: document::LEN_MAX })
}

/// Writes a record in place of an older one of the same source. One that says the same is only
/// touched: a warm hit writes nothing.
pub(super) fn write_source(layout: &Layout, source: &SourceRecord) -> Result<(), Error> {
    let path = layout.source(&source.id());
    if let Ok((old, form)) = document::read::<Head>(&path) {
        let SourceRecord { larder_source, source: uri, origin, include, exclude, manifest, files, .. } = source;
        let (larder_source, manifest, listed_at) = (*larder_source, *manifest, old.listed_at);
        let same = ListedAt { larder_source, source: uri, origin, include, exclude, manifest, listed_at, files };
        if document::measure(&same).is_ok_and(|same| same == form) {
            touch_source(layout, &source.id());
            return Ok(());
        }
    }
    document::replace(&layout.scratch(), &path, source).at("write", &path)
}

/// Hears every readable record, one at a time, with the time it was last used. One that cannot be
/// read is noted in `met`, and passed over.
pub(super) fn each_source(
    layout: &Layout,
    met: &Met,
    each: &mut dyn FnMut(SourceRecord, SystemTime),
) -> Result<(), Error> {
    let directory = layout.sources();
    for name in fsx::names(&directory).at("list", &directory)? {
        let path = directory.join(&name);
        match read_source(&path) {
            Ok(source) => {
                let used = std::fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(UNIX_EPOCH);
                each(source, used);
            }
            // Removed between the listing and the read: by `larder rm` in another process.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => met.note(Unreadable::new(&path, &error)),
        }
    }
    Ok(())
}

/// The record of that id, if there is one that can be read.
pub(super) fn find_source(layout: &Layout, met: &Met, id: &str) -> Option<SourceRecord> {
    source_at(&layout.source(id), met)
}

/// Whether what a record names is complete, where there is one that can be read.
pub(super) fn is_announced_complete(layout: &Layout, id: &str) -> Option<bool> {
    document::read::<Head>(&layout.source(id)).ok().map(|(head, _)| head.manifest.is_some())
}

/// The record in a document, if there is one that can be read.
fn source_at(path: &Path, met: &Met) -> Option<SourceRecord> {
    match read_source(path) {
        Ok(source) => Some(source),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                met.note(Unreadable::new(path, &error));
            }
            None
        }
    }
}

/// Whether a document is a record that can be read.
pub(super) fn is_readable(path: &Path) -> bool {
    read_source(path).is_ok()
}

/// A directory is one however it is written; `s3://b/m` may be an object beside the prefix `s3://b/m/`.
fn name_of_source(source: &str) -> &str {
    if source.starts_with("file://") { source.trim_end_matches('/') } else { source }
}

/// Gives records that an earlier build named otherwise the name of today, and their pins with them.
pub(super) fn rename_sources(layout: &Layout) -> Result<(), Error> {
    let directory = layout.sources();
    for name in fsx::names(&directory).at("list", &directory)? {
        let path = directory.join(&name);
        let (Some(old), Ok(source)) = (name.strip_suffix(".json"), read_source(&path)) else { continue };
        let new = source.id();
        if new == old {
            continue;
        }
        // Of two, the one that was used last is what the source named last.
        let used = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let target = layout.source(&new);
        let is_newer = used(&path) > used(&target);
        let pins = Shelf::Pins.directory();
        // The pin first: cut off between the two, this begins anew.
        for (from, to) in [(layout.note(pins, old), layout.note(pins, &new)), (path, target)] {
            if is_newer && from.exists() {
                std::fs::rename(&from, &to).at("rename", &from)?;
            } else {
                fsx::remove_if_there(&from).at("remove", &from)?;
            }
        }
    }
    Ok(())
}

fn read_source(path: &Path) -> io::Result<SourceRecord> {
    let (source, _) = document::read::<SourceRecord>(path)?;
    if source.larder_source == FORM {
        return Ok(source);
    }
    let why = format!("its form {} is not known to this build", source.larder_source);
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Notes that a source was used now: the record's modification time.
pub(super) fn touch_source(layout: &Layout, id: &str) {
    let times = std::fs::FileTimes::new().set_modified(SystemTime::now());
    // Best effort: on a store this user may only read, the time stays as it is.
    let _ = std::fs::File::options().append(true).open(layout.source(id)).and_then(|file| file.set_times(times));
}

/// Writes down a listing, if it is not there.
pub(super) fn write_listing(layout: &Layout, met: &Met, record: &SourceRecord) -> Result<Digest, Error> {
    let id = record.listing();
    let path = layout.listing(&id);
    if read_listing(layout, met, &id).is_none() {
        document::replace(&layout.scratch(), &path, record).at("write", &path)?;
    }
    Ok(id)
}

/// The listing of that name, if it is there and is what its name says.
pub(super) fn read_listing(layout: &Layout, met: &Met, id: &Digest) -> Option<SourceRecord> {
    source_at(&layout.listing(id), met).filter(|record| record.listing() == *id)
}

/// The names of all listings.
pub(super) fn all_listings(layout: &Layout) -> Result<Vec<Digest>, Error> {
    digests_in(&layout.listings())
}

/// Writes a manifest under its digest; true when it was not there, or not what its name says.
pub(super) fn write_manifest(layout: &Layout, manifest: &Manifest) -> Result<(Digest, bool), Error> {
    let bytes = manifest.encode();
    let digest = Digest::of(&bytes);
    let path = layout.manifest(&digest);
    // A manifest that rotted under its name is written anew.
    let missing = fsx::read_bounded(&path, document::LEN_MAX).ok().as_ref() != Some(&bytes);
    if missing {
        if bytes.len() as u64 > document::LEN_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge)).at("write", &path);
        }
        fsx::replace(&layout.scratch(), &path, &bytes).at("write", &path)?;
    }
    Ok((digest, missing))
}

/// Reads a manifest and proves that it is the one its name says.
pub(super) fn read_manifest(layout: &Layout, digest: &Digest) -> Result<Manifest, Error> {
    let path = layout.manifest(digest);
    let bytes = match fsx::read_bounded(&path, document::LEN_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Absent(format!("model {digest}"))),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(Error::Damaged { digest: *digest, detail: "its manifest is longer than any".into() });
        }
        other => other.at("read", &path)?,
    };
    if Digest::of(&bytes) != *digest {
        return Err(Error::Damaged {
            digest: *digest,
            detail: "its manifest has other bytes than its name says".into(),
        });
    }
    Manifest::decode(&bytes).map_err(|error| Error::Damaged { digest: *digest, detail: error.to_string() })
}

/// Digests of all manifests in the store.
pub(super) fn all_manifests(layout: &Layout) -> Result<Vec<Digest>, Error> {
    digests_in(&layout.root().join("manifests"))
}

/// The digests that documents in a directory are named by.
fn digests_in(directory: &Path) -> Result<Vec<Digest>, Error> {
    let names = fsx::names(directory).at("list", directory)?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect())
}

/// How many directories the tree of these files has, its own among them.
pub(super) fn directory_count<'a>(paths: impl Iterator<Item = &'a ModelPath>) -> u64 {
    let mut below: HashSet<&str> = HashSet::new();
    for path in paths {
        let mut parent = path.as_str();
        while let Some((above, _)) = parent.rsplit_once('/') {
            if !below.insert(above) {
                break;
            }
            parent = above;
        }
    }
    below.len() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_directory_counts_once() {
        let paths = ["a", "b/c/d", "b/c/e", "b/f", "g/h"].map(|path| ModelPath::new(path).expect("a path"));
        assert_eq!(directory_count(paths.iter()), 4);
        assert_eq!(directory_count(paths[..1].iter()), 1);
    }

    fn record(source: &str, origin: &str, exclude: &[&str]) -> SourceRecord {
        let exclude = exclude.iter().map(|glob| (*glob).to_owned()).collect();
        SourceRecord::new(source.to_owned(), origin.into(), Vec::new(), exclude)
    }

    #[test]
    fn an_id_is_of_one_source_at_one_origin_and_one_selection() {
        let (amazon, own) = ("s3 https://s3.amazonaws.com", "s3 http://127.0.0.1:9000");
        let ids: BTreeSet<String> = [
            record("s3://b/m", amazon, &[]),
            record("s3://b/m/", amazon, &[]),
            record("s3://b/m/", own, &[]),
            record("s3://b/m/", own, &["a"]),
            record("s3://b/m/", own, &["a", "b"]),
            record("file:///m", "file", &[]),
        ]
        .map(|record| record.id())
        .into();
        assert_eq!(ids.len(), 6);
        assert_eq!(record("file:///m/", "file", &[]).id(), record("file:///m", "file", &[]).id());
        // The order of globs means nothing.
        let (one, other) = (record("s3://b/m/", own, &["a", "b"]), record("s3://b/m/", own, &["b", "a", "b"]));
        assert_eq!(one.id(), other.id());
        assert!(one.is_of(&other.source, &other.include, &other.exclude) && !one.is_of("s3://b/m", &[], &one.exclude));
    }

    #[test]
    fn an_origin_of_an_earlier_build_is_known_again() {
        let old = record("s3://b/m/", "s3 HTTP://us3r:p4ss@Minio:80/", &[]);
        assert_eq!(old.id(), record("s3://b/m/", "s3 http://minio", &[]).id());
        assert!(old.is_from("s3 http://minio") && !old.is_from("s3 http://minio:9000"));
        assert_eq!(old.endpoint_url().as_deref(), Some("http://minio"));
        for (source, origin) in [("file:///m", "file"), ("https://h:1/f", "https h:1")] {
            assert_eq!(record(source, origin, &[]).endpoint_url(), None);
        }
    }

    #[test]
    fn records_of_an_earlier_build_keep_their_pins() {
        let directory = tempfile::tempdir().expect("a directory");
        let source = record("s3://b/m/", "s3 http://127.0.0.1:9000", &[]);
        let layout = {
            let store = super::super::Store::open(directory.path()).expect("a store");
            store.announce(&source).expect("written");
            store.note(Shelf::Pins, "0123", &"x").expect("written");
            store.layout().clone()
        };
        let pin = |name: &str| layout.note(Shelf::Pins.directory(), name);
        std::fs::rename(layout.source(&source.id()), layout.source("0123")).expect("renamed");
        for _ in 0..2 {
            super::super::Store::open(directory.path()).expect("a store");
            assert_eq!(read_source(&layout.source(&source.id())).expect("read"), source);
            assert!(pin(&source.id()).exists() && !pin("0123").exists() && !layout.source("0123").exists());
        }
    }
}
