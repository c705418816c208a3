//! A directory this machine can read: NFS, a mounted bucket, somebody's Hugging Face cache.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::objects::Bounds;
use super::{Body, Error, Listing, Remote};
use crate::domain::{Claims, ModelPath, Object, Source, Version, check_paths};
use crate::lanes::Lane;

const READ_LEN: u64 = 512 << 10;
/// Directories nest no deeper than this: a loop of links must end.
const DEPTH_MAX: usize = 64;
/// Reads of one source at once, and those that wait. A server that is gone has them hang for ever.
const READS_MAX: usize = 16;
const WAITING_MAX: usize = 4_096;
/// How long one read may take, and the listing of a directory tree.
const READ_PATIENCE: Duration = Duration::from_secs(30);
const LIST_PATIENCE: Duration = Duration::from_mins(5);

/// A directory or one file.
#[derive(Debug)]
pub(super) struct Files {
    source: Source,
    root: PathBuf,
    /// Threads that may hang: those of others stay theirs.
    reads: Lane,
}

impl Files {
    pub(super) fn open(source: &Source) -> Self {
        let reads = Lane::new("file-origin", READS_MAX, WAITING_MAX);
        Self { source: source.clone(), root: Path::new("/").join(source.path()), reads }
    }

    fn walk(&self) -> Result<Listing, Error> {
        let metadata = std::fs::metadata(&self.root).map_err(|e| error(&self.root, &e))?;
        let mut listing = Listing::default();
        if metadata.is_file() {
            let name = self.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
            listing.objects.push(self.object(&self.root, &name, &metadata)?);
            return Ok(listing);
        }
        self.directory(&self.root, "", 0, &mut listing, &mut Bounds::default())?;
        if listing.objects.is_empty() {
            return Err(Error::NotFound { uri: self.source.to_string(), detail: "the directory holds no file".into() });
        }
        check_paths(listing.objects.iter().map(|object| &object.path))
            .map_err(|source| Error::BadKey { uri: self.source.to_string(), source })?;
        Ok(listing)
    }

    /// Links to files are followed (Hugging Face caches are made of them), links to directories
    /// are not: they could lead out of the tree or in circles.
    fn directory(
        &self,
        directory: &Path,
        prefix: &str,
        depth: usize,
        listing: &mut Listing,
        bounds: &mut Bounds,
    ) -> Result<(), Error> {
        let too_much = |detail: &str| Error::Settings { uri: self.source.to_string(), detail: detail.to_owned() };
        if depth > DEPTH_MAX {
            return Err(too_much("directories are nested too deeply"));
        }
        let entries: Result<Vec<_>, io::Error> = match std::fs::read_dir(directory) {
            // Removed since the directory above it was read.
            Err(absent) if absent.kind() == io::ErrorKind::NotFound && depth > 0 => return Ok(()),
            entries => entries.map_err(|e| error(directory, &e))?.collect(),
        };
        let mut entries = entries.map_err(|e| error(directory, &e))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(too_much("a file name is not UTF-8"));
            };
            let relative = format!("{prefix}{name}");
            let kind = entry.file_type().map_err(|e| error(&path, &e))?;
            if kind.is_dir() {
                self.directory(&path, &format!("{relative}/"), depth + 1, listing, bounds)?;
                continue;
            }
            let Some(metadata) = metadata_if_there(&path)? else { continue };
            if metadata.is_file() {
                let object = self.object(&path, &relative, &metadata)?;
                bounds.add(&self.source, &object.key, &object.version)?;
                listing.objects.push(object);
            }
        }
        Ok(())
    }

    fn object(&self, path: &Path, relative: &str, metadata: &Metadata) -> Result<Object, Error> {
        let path_in_model =
            ModelPath::new(relative).map_err(|source| Error::BadKey { uri: self.source.to_string(), source })?;
        Ok(Object {
            key: path.to_string_lossy().trim_start_matches('/').to_owned(),
            path: path_in_model,
            size: metadata.len(),
            version: version(metadata),
            claims: Claims::default(),
            more_claims: false,
        })
    }
}

/// What a name leads to; nothing where it was removed since its directory was read. A link that
/// leads nowhere is an error: somebody lacks a file.
fn metadata_if_there(path: &Path) -> Result<Option<Metadata>, Error> {
    match std::fs::metadata(path) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound && !path.is_symlink() => Ok(None),
        metadata => metadata.map(Some).map_err(|e| error(path, &e)),
    }
}

/// A file has no ETag; inode, change of content and size together do.
fn version(metadata: &Metadata) -> Version {
    let (inode, seconds, nanoseconds) = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
    Version::Etag(format!("\"{inode:x}-{seconds:x}.{nanoseconds:x}-{:x}\"", metadata.len()).into())
}

fn error(path: &Path, error: &io::Error) -> Error {
    let uri = format!("file://{}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { uri, detail: "no such file or directory".into() },
        io::ErrorKind::PermissionDenied => Error::Denied { uri, detail: "permission denied".into() },
        _ => Error::Unavailable { uri, detail: error.to_string() },
    }
}

#[async_trait]
impl Remote for Files {
    async fn list(&self) -> Result<Listing, Error> {
        let files = Self { source: self.source.clone(), root: self.root.clone(), reads: self.reads.clone() };
        let listing = self.reads.look(LIST_PATIENCE, move || files.walk()).await;
        listing.map_err(|missed| error(&self.root, &io::Error::other(missed)))?
    }

    async fn claims(&self, object: &Object) -> Result<Claims, Error> {
        Ok(object.claims.clone())
    }

    async fn get(&self, object: &Object, range: Range<u64>) -> Result<Body, Error> {
        let path = Path::new("/").join(&object.key);
        let wanted = object.version.clone();
        let first = Reading { file: None, path, wanted, at: range.start, end: range.end };
        let reads = self.reads.clone();
        Ok(Box::pin(futures::stream::unfold(Some(first), move |reading| {
            let reads = reads.clone();
            async move {
                let mut reading = reading.filter(|reading| reading.at < reading.end)?;
                let path = reading.path.clone();
                let read = reads.look(READ_PATIENCE, move || reading.next().map(|slice| (slice, reading))).await;
                match read {
                    Ok(Ok((slice, reading))) => Some((Ok(slice), Some(reading))),
                    Ok(Err(error)) => Some((Err(error), None)),
                    Err(missed) => Some((Err(error(&path, &io::Error::other(missed))), None)),
                }
            }
        })))
    }

    fn source(&self) -> &Source {
        &self.source
    }

    fn origin(&self) -> String {
        "file".to_owned()
    }
}

struct Reading {
    file: Option<File>,
    path: PathBuf,
    wanted: Version,
    at: u64,
    end: u64,
}

impl Reading {
    /// The next slice. The version is looked at after the read: bytes read before a change that
    /// is visible now are not handed on.
    fn next(&mut self) -> Result<Bytes, Error> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::open(&self.path).map_err(|e| error(&self.path, &e))?,
        };
        let len = usize::try_from((self.end - self.at).min(READ_LEN)).unwrap_or(0);
        let mut buffer = vec![0; len];
        let read = file.read_exact_at(&mut buffer, self.at);
        let now = file.metadata().map_err(|e| error(&self.path, &e))?;
        if version(&now) != self.wanted {
            return Err(Error::Changed { uri: format!("file://{}", self.path.display()) });
        }
        read.map_err(|e| error(&self.path, &e))?;
        self.at += len as u64;
        self.file = Some(file);
        Ok(buffer.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_while_listing_is_left_out_and_a_broken_link_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let source = Source::parse(&format!("file://{}/", directory.path().display())).expect("a source");
        let files = Files { root: directory.path().to_owned(), ..Files::open(&source) };
        let (mut listing, mut bounds) = (Listing::default(), Bounds::default());
        let gone = directory.path().join("gone");
        assert!(metadata_if_there(&gone).expect("no error").is_none());
        files.directory(&gone, "gone/", 1, &mut listing, &mut bounds).expect("removed meanwhile");
        assert!(files.directory(&gone, "", 0, &mut listing, &mut bounds).is_err(), "the source itself");
        assert!(listing.objects.is_empty());
        std::os::unix::fs::symlink("nowhere", &gone).expect("a link");
        assert!(matches!(files.walk(), Err(Error::NotFound { .. })));
    }
}
