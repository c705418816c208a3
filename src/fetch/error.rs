//! Why a pull ended without a model.

use std::time::Duration;

use crate::{remote, store};

/// An error of a pull.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The origin's answer, final.
    #[error(transparent)]
    Remote(#[from] remote::Error),
    /// The disk's answer.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Whoever decides about room has none for this model, and says why.
    #[error("not enough room in `{path}`: {needed} needed, {free} free", path = .0.path.display(), needed = .0.needed, free = .0.free)]
    NoRoom(Box<super::room::Shortage>),
    /// Tried again until the budget was gone.
    #[error("{last} (gave up after {attempts} attempts in {seconds:.0} s without a byte of progress)", seconds = elapsed.as_secs_f64())]
    GaveUp {
        /// Attempts in a row that brought nothing.
        attempts: u32,
        /// Time since the first of them.
        elapsed: Duration,
        /// What the last one said.
        last: remote::Error,
    },
    /// The bytes are not what the origin says they are.
    #[error("`{uri}`: the bytes do not match the origin's own {expected} (got {got}), in {attempts} full transfers")]
    Integrity {
        /// The object.
        uri: String,
        /// The origin's claim.
        expected: String,
        /// What the bytes have.
        got: String,
        /// How often the whole object was fetched.
        attempts: u32,
    },
    /// The object or the listing changed each time it was pulled.
    #[error("`{uri}` changed {times} times while it was being pulled")]
    KeepsChanging {
        /// The object.
        uri: String,
        /// How often.
        times: u32,
    },
    /// The globs leave nothing.
    #[error("`{source_uri}` has {listed} files, and the include and exclude globs leave none of them")]
    NothingSelected {
        /// The source.
        source_uri: String,
        /// Files before selection.
        listed: usize,
    },
    /// A glob that is no glob.
    #[error("`{glob}` is not a glob: {detail}")]
    BadGlob {
        /// As the user wrote it.
        glob: String,
        /// What is wrong.
        detail: String,
    },
    /// Ctrl-C, SIGTERM, or nobody waits any more.
    #[error("interrupted: what has arrived stays, the next call goes on from there")]
    Interrupted,
    /// A task of ours panicked; a defect, reported rather than hidden.
    #[error("internal error: {0}")]
    Defect(String),
}
