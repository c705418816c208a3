//! A model's files, by content. Two models with the same files have the same manifest digest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Digest, ModelPath, PathError, check_paths};

/// The time of every file and directory of a model, since 1970: 1980-01-02 00:00 UTC, which is 1980
/// in every time zone, and zip archives can say no year before. What came from an origin has no time
/// that is the same on all nodes, and the time of its arrival would differ too.
pub const FILE_TIME: Duration = Duration::from_hours(87_672);
/// The mode of every directory of a model.
pub const DIRECTORY_MODE: u16 = 0o755;
/// The mode of every file of a model.
pub const FILE_MODE: u16 = 0o444;

/// One file of a model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// Where the file goes.
    pub path: ModelPath,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
}

/// The files of a model, in load order (see [`super::load_order()`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    files: Vec<ManifestEntry>,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected form.
    #[error("not a manifest: {0}")]
    Form(#[from] serde_json::Error),
    /// A form this build does not know.
    #[error("manifest form {0} is not known to this build")]
    Version(u32),
    /// Paths that cannot live in one tree.
    #[error(transparent)]
    Paths(#[from] PathError),
}

const FORM: u32 = 1;

#[derive(Deserialize)]
struct Wire {
    larder_manifest: u32,
    files: Vec<ManifestEntry>,
}

#[derive(Serialize)]
struct Written<'a> {
    larder_manifest: u32,
    files: &'a [ManifestEntry],
}

impl Manifest {
    /// Makes a manifest of files in load order.
    ///
    /// # Errors
    /// When a path occurs twice or is a file and a directory at once.
    pub fn new(files: Vec<ManifestEntry>) -> Result<Self, PathError> {
        check_paths(files.iter().map(|file| &file.path))?;
        Ok(Self { files })
    }

    /// The files, in load order.
    #[must_use]
    pub fn files(&self) -> &[ManifestEntry] {
        &self.files
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }

    /// The canonical bytes: what is stored, and what [`Manifest::digest`] hashes.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "a manifest holds strings and numbers only")]
    pub fn encode(&self) -> Vec<u8> {
        let wire = Written { larder_manifest: FORM, files: &self.files };
        let mut bytes = serde_json::to_vec(&wire).expect("strings and numbers always encode");
        bytes.push(b'\n');
        bytes
    }

    /// The model's digest: `b3sum` of the stored manifest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// Reads canonical bytes back.
    ///
    /// # Errors
    /// Anything that [`Manifest::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let wire: Wire = serde_json::from_slice(bytes)?;
        if wire.larder_manifest != FORM {
            return Err(ManifestError::Version(wire.larder_manifest));
        }
        Ok(Self::new(wire.files)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_is_the_inverse_of_encode() {
        let entry = |path: &str| ManifestEntry {
            path: ModelPath::new(path).expect("valid"),
            size: 3,
            digest: Digest::of(path.as_bytes()),
        };
        let manifest = Manifest::new(vec![entry("config.json"), entry("sub/a \"q\".bin")]).expect("valid");
        assert_eq!(Manifest::decode(&manifest.encode()).expect("decodes"), manifest);
        assert_eq!(manifest.size(), 6);
    }

    #[test]
    fn a_path_that_leaves_the_model_does_not_decode() {
        let digest = "0".repeat(64);
        let text = format!(r#"{{"larder_manifest":1,"files":[{{"path":"../x","size":1,"digest":"{digest}"}}]}}"#);
        assert!(Manifest::decode(text.as_bytes()).is_err());
        assert!(matches!(Manifest::decode(br#"{"larder_manifest":2,"files":[]}"#), Err(ManifestError::Version(2))));
    }
}
