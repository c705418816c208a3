//! The bucket side: list a source, ask for checksums, get byte ranges.
//!
//! Async; knows no disk and no store. A request for bytes is made once: a failed call says whether
//! another try may help ([`Error::is_retryable`]) and `fetch` decides, because only `fetch`
//! knows how far a body came and what else is in flight. The small calls that the AWS SDK makes
//! for S3 (listings, stored checksums) are tried three times by the SDK before they fail here.

mod endpoints;
mod error;
mod file;
mod gcs;
mod keys;
mod objects;
mod s3;
mod transport;
mod web;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

use crate::domain::{Claims, Object, Scheme, Source};

pub use endpoints::Endpoints;
pub use error::Error;
pub use keys::Keys;

/// The slices of one answer, in order. An error ends it; bytes before the error are good.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// What a listing skipped on purpose, to be told to the user.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Files of the model. Order is the origin's.
    pub objects: Vec<Object>,
    /// Keys of directory markers: objects of zero bytes whose key ends in `/`.
    pub markers: u64,
}

/// One source at one origin. Held as `Arc<dyn Remote>`.
#[async_trait]
pub trait Remote: Send + Sync + std::fmt::Debug {
    /// Everything under the source, with versions, and checksums as far as a listing has them.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing matches; keys that no file system can hold are
    /// [`Error::BadKey`].
    async fn list(&self) -> Result<Listing, Error>;

    /// Asks for the checksums of one object that the listing did not carry.
    ///
    /// # Errors
    /// As for [`Remote::get`]. A server that does not know checksums is no error: no claims.
    async fn claims(&self, object: &Object) -> Result<Claims, Error>;

    /// One ranged GET, pinned to the object's version. The body has exactly the bytes of
    /// `range`, or ends in an error. `range` is not empty and lies within the object.
    ///
    /// # Errors
    /// [`Error::Changed`] when the object is not at that version any more.
    async fn get(&self, object: &Object, range: Range<u64>) -> Result<Body, Error>;

    /// What it was opened for.
    fn source(&self) -> &Source;

    /// Where the bytes come from, in one word per trust domain: two sources with the same answer
    /// are served by the same origin, so its ETags mean the same thing in both.
    fn origin(&self) -> String;
}

/// What the environment does not say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Send no credentials.
    pub anonymous: bool,
    /// Agree to pay for requests and traffic (S3 requester pays).
    pub requester_pays: bool,
    /// Region, in place of what the environment or profile says.
    pub region: Option<String>,
    /// The servers of buckets.
    pub endpoints: Endpoints,
    /// Credentials, likewise.
    pub keys: Option<Keys>,
}

/// Prepares a source. Credentials and settings are read here; the bucket is not asked yet.
///
/// # Errors
/// [`Error::Settings`] for settings that cannot work.
pub async fn open(source: &Source, options: &Options) -> Result<Arc<dyn Remote>, Error> {
    Ok(match source.scheme() {
        Scheme::S3 => Arc::new(s3::S3::open(source, options).await?),
        Scheme::Gs => Arc::new(gcs::Gcs::open(source, options).await?),
        Scheme::File => Arc::new(file::Files::open(source)),
        Scheme::Https | Scheme::Http => Arc::new(web::Web::open(source)?),
    })
}
