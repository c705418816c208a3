//! The daemon's side of `larder-keeper`, and what both sides agree on.
//!
//! `larder-keeper` makes the FUSE mount and holds it while the unprivileged daemon that answers
//! it comes and goes. From the bottom up: [`protocol`] is the messages between the two, [`fuse`]
//! the few bytes of FUSE that neither side leaves to a library, [`client`] what a daemon calls.
//! The privileged code is not here but in the binary beside it. Nothing here prints.
//!
//! ```no_run
//! use std::time::Duration;
//! use larder_keeper::{Keeper, init_request, protocol};
//!
//! # fn main() -> std::io::Result<()> {
//! let (keeper, hello) = Keeper::connect(protocol::SOCKET, Duration::from_secs(30))?;
//! let id = keeper.back(hello.fuse.epoch, 1, std::fs::File::open("/var/lib/larder/blob")?)?;
//! let request = init_request(&hello.fuse.agreed); // for a FUSE library that insists on its handshake
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::print_stderr, clippy::print_stdout)]

pub mod client;
pub mod fuse;
pub mod protocol;

pub use client::{Errands, FuseConnection, Hello, Keeper, Mounted, What};
pub use fuse::{RESEND, init_request};
pub use protocol::Refusal;
