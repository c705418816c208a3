//! Who is told outside this node's cache of what changes in it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::Cache;

/// Hears of models before they go.
pub trait Herald: Send + Sync + fmt::Debug {
    /// The models of these records are about to be evicted or removed, and are still here. Called on
    /// a blocking thread, with a decision about room waiting for the answer: it may take a moment to
    /// say so elsewhere, and must come back whether or not that worked.
    fn leaving(&self, record_ids: &[String]);
}

impl Cache {
    /// Says who is to hear of models before they go. The first answer stays.
    pub fn set_herald(&self, herald: Arc<dyn Herald>) {
        self.residency.set_herald(herald);
    }

    /// Wakes whenever an entry of a list stands otherwise, or a model has gone.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.residency.changes()
    }

    /// Waits until everything of it can be given out: what another boot left is proven, and where
    /// there is to be a mount it is up.
    pub async fn up(&self) {
        self.proven().await;
        self.mount_settled().await;
    }

    /// Whether everything of it can be given out.
    pub(super) fn is_up(&self) -> bool {
        *self.proven.borrow() && self.is_mount_settled()
    }
}
