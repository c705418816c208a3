//! Where remote meets store: resolve a source, find what is missing, move it, verify it.
//!
//! The only layer that knows both sides. Deciding is pure and apart: [`queue`] says what to ask
//! for, [`concurrency`] how much at once, [`pace`] when an answer is too slow, [`retry`] when to
//! stop asking. `worker` and `transfer` are the shell around them.

mod arrivals;
mod cancel;
mod check;
pub mod concurrency;
mod engine;
mod error;
mod flights;
mod known;
pub mod pace;
mod progress;
mod pull;
pub mod queue;
pub mod retry;
mod room;
mod selection;
mod sink;
mod span;
mod transfer;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use arrivals::{Arrival, Arrivals, TakeBack, Want};
pub use cancel::Cancel;
pub use engine::Engine;
pub use error::Error;
pub use progress::{FileProgress, Progress, Waiting};
pub use pull::{Listed, Outcome, Pull};
pub use retry::RETRY_FOR;
pub use room::{FreeSpace, Ledger, Reservation, Room, Shortage, Wants};
pub use selection::Selection;

/// A panic of whoever held the lock is no reason to stop: what is behind these locks stays right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
