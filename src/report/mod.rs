//! How things are said to people: sentences, numbers, and the table of exit codes.
//!
//! Above `fetch`, because every error of the layers below gets its words here, whether the command
//! line prints them or the daemon sends them.

mod exit;
mod outlet;
pub mod output;
mod panics;
pub mod rlimits;
pub mod text;

pub use exit::{Exit, Failure, TABLE};
pub use panics::{named, no_thread, tell_panics};
