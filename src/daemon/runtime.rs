//! The runtime of tokio, or why there is none.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::report::{Exit, Failure, no_thread};

/// Of sockets: more descriptors than a runtime needs to start.
const PAIRS: usize = 8;
/// Threads for calls that wait, from the start: where a later one cannot be started, tokio goes on with
/// those that it has, and with none it would wait for good.
const WAITING_THREADS: usize = 2;
const THREAD_PATIENCE: Duration = Duration::from_secs(10);
/// They stay while an origin is away.
const KEEP_ALIVE: Duration = Duration::from_hours(1);

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
    let runtime = builder
        .thread_name(name)
        .worker_threads(async_threads)
        .max_blocking_threads(blocking_threads)
        .thread_keep_alive(KEEP_ALIVE)
        .enable_all()
        .build()
        .map_err(cannot)?;
    if has_waiting_threads(&runtime, blocking_threads.min(WAITING_THREADS)) {
        return Ok(runtime);
    }
    runtime.shutdown_background();
    Err(Failure::new(Exit::Defect, no_thread(io::Error::from(io::ErrorKind::WouldBlock))))
}

/// Starts them, and keeps each busy until all have started.
fn has_waiting_threads(runtime: &Runtime, count: usize) -> bool {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let (sender, started) = mpsc::channel();
    for _ in 0..count {
        let (sender, gate) = (sender.clone(), Arc::clone(&gate));
        runtime.spawn_blocking(move || {
            let _ = sender.send(());
            drop(gate.lock());
        });
    }
    let all = (0..count).all(|_| started.recv_timeout(THREAD_PATIENCE).is_ok());
    drop(closed);
    all
}
