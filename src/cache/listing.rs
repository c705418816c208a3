//! What is kept, as it is listed: for `larder ls` and `larder inspect`, and for whoever asks the
//! daemon.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::named::{Name, chosen, pin_key};
use crate::domain::{Checksum, Digest, Manifest, ManifestEntry, Version};
use crate::report::{Failure, text};
use crate::store::{Kept, Presence, Shelf, SourceFile, SourceRecord, View};

/// Above this, a model that is here only in part is told of as a whole: asking file by file opens
/// a journal each time.
const FILES_ASKED_MAX: usize = 256;

/// Damaged files of one model that are named.
const DAMAGED_TOLD_MAX: usize = 64;

/// How much of a model is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All of it.
    Complete,
    /// All of it, and its source has moved on to another model.
    Superseded,
    /// Its first pull is unfinished.
    Partial,
    /// It was all here, and something is missing or wrong now.
    Damaged,
}

impl State {
    /// As it is listed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Superseded => "superseded",
            Self::Partial => "partial",
            Self::Damaged => "damaged",
        }
    }

    /// Whether every file is here.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Complete | Self::Superseded)
    }
}

/// A source and what is here of it, or a model that no source names any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The source; none for a model whose source has moved on.
    pub source: Option<String>,
    /// Its `--include` globs.
    pub include: Option<Vec<String>>,
    /// Its `--exclude` globs.
    pub exclude: Option<Vec<String>>,
    /// The server of its bucket; none where it is in none.
    #[serde(default)]
    pub endpoint_url: Option<String>,
    /// The model, once its first pull is finished.
    pub digest: Option<Digest>,
    /// Files; 0 where nothing that can be read says how many.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Of these, bytes that are here; 0 of a damaged model.
    pub bytes_here: u64,
    /// How much of it is here.
    pub state: State,
    /// Seconds since 1970 when it was last asked for.
    pub last_used: Option<u64>,
    /// Whether it is pinned, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
    /// Its files that are damaged or missing, the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// How many use it now, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases: Option<u32>,
}

impl Listed {
    /// Looks at what is kept. Leases are for the daemon to fill in.
    #[must_use]
    pub fn of(view: &View, kept: &Kept) -> Self {
        Self::among(view, &view.presence(), kept)
    }

    /// The same, one of many.
    fn among(view: &View, presence: &Presence<'_>, kept: &Kept) -> Self {
        let manifest = kept.manifest.and_then(|digest| view.manifest(&digest).ok());
        Self::with(view, presence, kept, manifest.as_ref())
    }

    fn with(view: &View, presence: &Presence<'_>, kept: &Kept, manifest: Option<&Manifest>) -> Self {
        let record = kept.record.as_ref();
        let (files, bytes) = match (manifest, record) {
            (Some(manifest), _) => (manifest.files().len(), manifest.size()),
            (None, Some(record)) => (record.files.len(), record.size()),
            (None, None) => (0, 0),
        };
        let lacking = kept.manifest.zip(manifest).map(|(digest, manifest)| -> Vec<String> {
            view.lacking(manifest, &digest).map(|file| file.path.to_string()).collect()
        });
        let complete = lacking.as_ref().is_some_and(Vec::is_empty);
        let (state, bytes_here) = match (complete, kept.manifest.is_some(), record) {
            (true, _, Some(_)) => (State::Complete, bytes),
            (true, _, None) => (State::Superseded, bytes),
            (false, true, _) => (State::Damaged, 0),
            (false, false, record) => (State::Partial, record.map_or(0, |record| presence.bytes(record))),
        };
        let is_noted = |key: String| view.is_noted(Shelf::Pins, &key);
        Self {
            source: record.map(|record| record.source.clone()),
            include: record.map(|record| record.include.clone()),
            exclude: record.map(|record| record.exclude.clone()),
            endpoint_url: record.and_then(SourceRecord::endpoint_url),
            digest: kept.manifest,
            files,
            bytes,
            bytes_here,
            state,
            last_used: kept.last_used.map(text::unix),
            pinned: Some(pin_key(kept).is_some_and(is_noted)),
            damaged: lacking.unwrap_or_default().into_iter().take(DAMAGED_TOLD_MAX).collect(),
            leases: None,
        }
    }
}

/// Everything that is kept: sources first, in their order, then models that no source names any
/// more. Reads every manifest.
///
/// # Errors
/// The disk's.
pub fn list(view: &View) -> Result<Vec<Listed>, Failure> {
    let (presence, mut listed) = (view.presence(), Vec::new());
    // Their files one at a time: all of them may be more than fits in memory.
    view.each_kept(&mut |kept| listed.push(Listed::among(view, &presence, &kept)))?;
    listed.sort_by_cached_key(|listed| (listed.source.is_none(), listed.source.clone()));
    Ok(listed)
}

/// One file of a model, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Path inside the model.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of these, bytes that are here; none where asking costs too much.
    pub bytes_here: Option<u64>,
    /// Its content, once it was here.
    pub digest: Option<Digest>,
    /// The object at the origin.
    pub uri: Option<String>,
    /// The object's version.
    pub version: Option<String>,
    /// The origin's checksum that it was compared with.
    pub checked: Option<Checked>,
}

/// A checksum by name and value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Such as `CRC64NVME`.
    pub algorithm: String,
    /// As the origin writes it.
    pub value: String,
}

impl From<Checksum> for Checked {
    fn from(sum: Checksum) -> Self {
        Self { algorithm: sum.algorithm().to_owned(), value: sum.value() }
    }
}

/// A model with its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detailed {
    /// The model.
    #[serde(flatten)]
    pub listed: Listed,
    /// The directory with its files, absolute; none where it is not whole.
    pub path: Option<PathBuf>,
    /// Its files, in load order once it is complete; empty where neither its manifest nor a source
    /// says what they are.
    pub file_list: Vec<ListedFile>,
}

impl Detailed {
    /// Looks at what is kept, file by file.
    #[must_use]
    pub fn of(view: &View, kept: &Kept) -> Self {
        let manifest = kept.manifest.and_then(|digest| view.manifest(&digest).ok());
        let mut listed = Listed::with(view, &view.presence(), kept, manifest.as_ref());
        let file_list = match (&manifest, &kept.record) {
            (Some(manifest), _) => files_of_manifest(view, kept, manifest),
            (None, Some(record)) => files_of_record(view, record),
            (None, None) => Vec::new(),
        };
        if let Some(here) = file_list.iter().map(|file| file.bytes_here).sum::<Option<u64>>() {
            listed.bytes_here = here;
        }
        let path = kept.manifest.filter(|_| listed.state.is_whole()).map(|digest| {
            let tree = view.tree(&digest);
            std::path::absolute(&tree).unwrap_or(tree)
        });
        Self { listed, path, file_list }
    }

    /// The one that is meant by a name.
    ///
    /// # Errors
    /// As [`chosen`].
    pub fn named(view: &View, name: &Name) -> Result<Self, Failure> {
        Ok(Self::of(view, &chosen(view, name)?))
    }
}

fn files_of_manifest(view: &View, kept: &Kept, manifest: &Manifest) -> Vec<ListedFile> {
    let files = kept.record.iter().flat_map(|record| &record.files);
    let origins: HashMap<&str, &SourceFile> = files.map(|file| (file.path.as_str(), file)).collect();
    let listed = |file: &ManifestEntry| {
        let origin = origins.get(file.path.as_str());
        ListedFile {
            path: file.path.to_string(),
            size: file.size,
            bytes_here: Some(blob_here(view, &file.digest, file.size)),
            digest: Some(file.digest),
            uri: origin.map(|origin| origin.uri.to_string()),
            version: origin.map(|origin| origin.version.to_string()),
            checked: origin.and_then(|origin| origin.checked).map(Checked::from),
        }
    };
    manifest.files().iter().map(listed).collect()
}

/// What a source says of a model that is not finished, or whose manifest is damaged.
fn files_of_record(view: &View, record: &SourceRecord) -> Vec<ListedFile> {
    let ask = record.files.len() <= FILES_ASKED_MAX;
    let present = if ask { view.presence().files(record) } else { Vec::new() };
    let here = |at: usize, file: &SourceFile| match file.digest {
        Some(digest) if record.manifest.is_some() => Some(blob_here(view, &digest, file.size)),
        _ => present.get(at).copied(),
    };
    let listed = |(at, file): (usize, &SourceFile)| ListedFile {
        path: file.path.to_string(),
        size: file.size,
        bytes_here: here(at, file),
        digest: file.digest,
        uri: Some(file.uri.to_string()),
        version: Some(Version::to_string(&file.version)),
        checked: file.checked.map(Checked::from),
    };
    record.files.iter().enumerate().map(listed).collect()
}

/// Bytes of a blob that are here: all or none, because only the whole has a name.
fn blob_here(view: &View, digest: &Digest, size: u64) -> u64 {
    if view.has_sized_blob(digest, size) { size } else { 0 }
}
