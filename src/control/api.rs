//! What the routes answer from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::connection::Tables;
use super::looks::Looks;
use super::shared::Shared;
use crate::cache::Cache;
use crate::domain::Source;
use crate::net::Slots;
use crate::telemetry::Metrics;

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serving, while what another boot left unproven is hashed.
    Recovering,
    /// Serving.
    Serving,
    /// Going: nothing new begins.
    Stopping,
}

impl Phase {
    /// As `status` says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recovering => "recovering",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
        }
    }
}

/// What may be done at a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Ask for models, and look.
    Use,
    /// Everything.
    Admin,
}

/// Whether a source may be asked for at a socket.
pub type Allows = Box<dyn Fn(Rights, &Source) -> bool + Send + Sync>;

/// The daemon, for the routes.
pub struct Api {
    /// The models.
    pub cache: Arc<Cache>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// Whether a source may be asked for at a socket.
    pub allows: Allows,
    /// Where it is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Seconds since 1970 when it started.
    pub started: u64,
    /// Where pods ask.
    pub socket: PathBuf,
    /// Where the store is looked at.
    pub looks: Looks,
    /// Answers that cost a look at all of it.
    pub shared: SharedAnswers,
    /// Who is connected here.
    pub tables: Tables,
    /// Connections of kubelet: without a place for one more, no volume starts or ends.
    pub kubelet: Vec<Arc<Slots>>,
}

/// Answers that cost a look at the whole store, by call.
#[derive(Debug, Default)]
pub struct SharedAnswers {
    /// What is kept.
    pub models: Arc<Shared>,
    /// The node.
    pub status: Arc<Shared>,
    /// The metrics.
    pub metrics: Arc<Shared>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Api {
    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }
}
