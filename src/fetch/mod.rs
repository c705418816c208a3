//! Where remote meets store: resolve a source, find what is missing, move it, verify it.
//!
//! The only layer that knows both sides. Deciding is pure and apart: [`queue`] says what to ask
//! for, [`concurrency`] how much at once, [`pace`] when an answer is too slow, [`retry`] when to
//! stop asking. `worker` and `transfer` are the shell around them.

mod cancel;
mod check;
pub mod concurrency;
mod error;
mod known;
pub mod pace;
mod progress;
mod pull;
pub mod queue;
pub mod retry;
mod selection;
mod sink;
mod transfer;
mod worker;

pub use cancel::Cancel;
pub use error::Error;
pub use progress::{FileProgress, Progress};
pub use pull::{Outcome, Pull};
pub use selection::Selection;
