//! Origins that larder's tests, benches and quickstart pull from.
//!
//! [`S3Server`] is a real S3 server with signatures on. [`Origin`] is our own HTTP server with
//! S3-shaped and GCS-shaped fronts that misbehaves on command. [`Issuer`] hands out credentials
//! over the protocols of the clouds' metadata services. [`Moto`] and [`Nginx`] are processes of
//! other people's software. All of them listen on loopback and end with the value.

#![expect(
    clippy::missing_errors_doc,
    clippy::struct_excessive_bools,
    reason = "for tests: an error is one of the machine's"
)]

mod bucket;
mod fault;
mod gcs;
mod http;
mod issuer;
mod model;
mod origin;
mod process;
mod s3_server;

pub use bucket::{Bucket, Checksums, Stored};
pub use fault::Fault;
pub use http::{Answer, Link, Request};
pub use issuer::Issuer;
pub use model::{Noise, SampleModel, safetensors};
pub use origin::{Front, Origin, Seen};
pub use process::{Moto, Nginx, which};
pub use s3_server::S3Server;
