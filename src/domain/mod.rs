//! Pure values: no I/O, no clock, no async. Everything above speaks in these words.
//!
//! | word | meaning |
//! | --- | --- |
//! | source | a URI a person wrote; pinned to object versions once listed |
//! | model | a manifest under a source |
//! | manifest | list of path, size and digest, in load order |
//! | blob | a file's bytes, named by their BLAKE3 digest |
//! | chunk | power-of-two unit of verification inside a blob |
//! | part | one ranged GET: a whole number of chunks |
//! | version | what the origin calls one state of an object: ETag or generation |
//! | claim | a checksum the origin says an object has |
//! | partial / sealed | a blob being filled / complete and immutable |

mod checksum;
mod chunk_set;
mod digest;
pub mod endpoint;
mod grid;
mod load_order;
mod manifest;
mod object;
mod path;
mod source;
mod text;
mod tree;

pub use checksum::{Checksum, Claims, CrcKind};
pub use chunk_set::ChunkSet;
pub use digest::{Digest, DigestError};
pub use grid::{ChunkIndex, Grid};
pub use load_order::{INDEX_FILE_NAMES, load_order};
pub use manifest::{DIRECTORY_MODE, FILE_MODE, FILE_TIME, Manifest, ManifestEntry, ManifestError};
pub use object::{Object, Version};
pub use path::{ModelPath, PathError, check_paths};
pub use source::{Scheme, Source, SourceError};
pub use text::Text;
pub use tree::{ChunkHasher, ChunkValue, root_digest};
