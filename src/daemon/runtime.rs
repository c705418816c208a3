//! The runtime of tokio, or why there is none.

use std::io;
use std::os::unix::net::UnixStream;

use tokio::runtime::{Builder, Runtime};

use crate::report::{Exit, Failure};

/// Of sockets: more descriptors than a runtime needs to start.
const PAIRS: usize = 8;

/// Starts one with that many threads of that name.
///
/// # Errors
/// No descriptor or no thread is to be had.
pub fn start(name: &str, async_threads: usize, blocking_threads: usize) -> Result<Runtime, Failure> {
    let cannot = |error: io::Error| {
        let hint = "raise the limit on open files and threads, or end some processes";
        Failure::hinted(Exit::Defect, format!("cannot start the runtime: {error}"), hint)
    };
    // It hears of signals through such a pair, and panics where none is left for it.
    let pairs: Result<Vec<_>, _> = (0..PAIRS).map(|_| UnixStream::pair()).collect();
    drop(pairs.map_err(cannot)?);
    let mut builder = Builder::new_multi_thread();
    builder
        .thread_name(name)
        .worker_threads(async_threads)
        .max_blocking_threads(blocking_threads)
        .enable_all()
        .build()
        .map_err(cannot)
}
