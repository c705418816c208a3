//! The client of larder's daemon, with nothing but the standard library.
//!
//! `larder-init` is made of it, and the `larder` command line speaks to the daemon through it.
//! From the bottom up: [`json`] reads and writes values, [`http`] speaks HTTP/1.1 over a unix
//! socket, [`client`] knows the daemon's protocol, [`ensure`] asks until there is an answer, and
//! [`place`] leaves a model where a pod expects it. Nothing here prints.
//!
//! ```no_run
//! use larder_init::client::{Client, Lease, SOCKET, Wish};
//! use larder_init::ensure::{Ensure, News};
//!
//! # fn main() -> Result<(), larder_init::Failure> {
//! let client = Client::new(SOCKET);
//! let models = client.call("GET", "/v1/models", None)?.json()?;
//! let wish = Wish {
//!     source: "s3://models/llama/".to_owned(),
//!     include: Vec::new(),
//!     exclude: Vec::new(),
//!     fresh: false,
//!     lazy: false,
//!     lease: Lease::Connection,
//! };
//! let granted = Ensure::new(client, wish, std::time::Duration::from_secs(30)).run(&mut |news| match news {
//!     News::Event { line, .. } => println!("{line}"),
//!     News::Waiting { why } => eprintln!("{why}"),
//! })?;
//! let directory = &granted.ready.path; // leased for as long as `granted` lives
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs, clippy::print_stderr, clippy::print_stdout)]

pub mod client;
pub mod ensure;
pub mod failure;
pub mod http;
pub mod json;
pub mod place;
mod sys;

pub use client::Client;
pub use ensure::Ensure;
pub use failure::Failure;
