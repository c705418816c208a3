//! What can go wrong at the origin.

use std::time::Duration;

use crate::domain::PathError;

/// An error of the remote side. Each names the object (or source) by URI; none carries a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing there: no such bucket, no such key, or a prefix that matches nothing.
    #[error("`{uri}`: {detail}")]
    NotFound {
        /// What was asked for.
        uri: String,
        /// What the origin said, in words.
        detail: String,
    },
    /// The origin knows us (or not) and says no.
    #[error("`{uri}`: {detail}")]
    Denied {
        /// What was asked for.
        uri: String,
        /// What the origin said, in words.
        detail: String,
    },
    /// No credential could be had, or the chain that gives them failed.
    #[error("`{uri}`: no usable credentials: {detail}")]
    Credentials {
        /// What was asked for.
        uri: String,
        /// What each member of the chain said.
        detail: String,
    },
    /// A setting that cannot work: endpoint, region, proxy, CA bundle.
    #[error("`{uri}`: {detail}")]
    Settings {
        /// What was asked for.
        uri: String,
        /// Which setting, and what is wrong with it.
        detail: String,
    },
    /// A key that cannot be a file of a model.
    #[error("`{uri}`: {source}")]
    BadKey {
        /// The source that was listed.
        uri: String,
        /// What is wrong with the key.
        source: PathError,
    },
    /// 503 SlowDown, 429: the origin asks for less.
    #[error("`{uri}`: the origin asks to slow down ({detail})")]
    Throttled {
        /// What was asked for.
        uri: String,
        /// Status and code.
        detail: String,
        /// What `Retry-After` said, if anything.
        retry_after: Option<Duration>,
    },
    /// 5xx, reset, timeout, DNS: may be better in a moment.
    #[error("`{uri}`: {detail}")]
    Unavailable {
        /// What was asked for.
        uri: String,
        /// What happened, in words.
        detail: String,
    },
    /// An answer that is not what was asked for: wrong range, short body, wrong length.
    #[error("`{uri}`: the origin's answer is wrong: {detail}")]
    BadAnswer {
        /// What was asked for.
        uri: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The object is not at the version that was asked for.
    #[error("`{uri}` changed at the origin")]
    Changed {
        /// What was asked for.
        uri: String,
    },
}

impl Error {
    /// Whether the same call may succeed a moment later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. } | Self::BadAnswer { .. })
    }

    /// How long the origin asked us to wait.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
