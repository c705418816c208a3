//! One object of a source, pinned to one version.

use serde::{Deserialize, Serialize};

use super::{Claims, ModelPath, Text};

/// What the origin calls one state of an object. Compared for equality only.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// An HTTP entity tag, quotes included (RFC 9110, section 8.8.3). Sent back as If-Match.
    Etag(Text),
    /// A GCS generation number.
    Generation(i64),
    /// The origin has neither; size and modification time stand in (seconds since 1970).
    Modified(i64),
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Etag(etag) => write!(f, "etag:{}", etag.trim_matches('"')),
            Self::Generation(generation) => write!(f, "generation:{generation}"),
            Self::Modified(seconds) => write!(f, "modified:{seconds}"),
        }
    }
}

/// One object, as listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// The whole key within the bucket (or the URL path, or the file path).
    pub key: String,
    /// Where the file goes inside the model.
    pub path: ModelPath,
    /// Bytes.
    pub size: u64,
    /// The state that every ranged GET is pinned to.
    pub version: Version,
    /// What the listing itself says of the object's checksums.
    pub claims: Claims,
    /// Whether asking the origin about this one object may bring more claims.
    pub more_claims: bool,
}
