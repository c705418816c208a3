//! Looks at the store for those who ask how it is. Its disk may hang, and then that is the answer.

use std::time::Duration;

use crate::lanes::{Lane, Missed};
use crate::report::{Exit, Failure};

/// Looks at once, and those that wait.
const STATUS_MAX: usize = 2;
const HEALTH_MAX: usize = 1;
const WAITING_MAX: usize = 64;
/// How long the disk has for a look at all of the store, and for one question.
const STATUS_PATIENCE: Duration = Duration::from_secs(15);
const HEALTH_PATIENCE: Duration = Duration::from_secs(4);

/// Threads for nothing else, so that what fills the others keeps no answer back.
#[derive(Debug)]
pub struct Looks {
    status: Lane,
    health: Lane,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            status: Lane::new("status", STATUS_MAX, WAITING_MAX),
            health: Lane::new("health", HEALTH_MAX, WAITING_MAX),
        }
    }
}

impl Looks {
    /// Reads the whole store.
    pub(super) async fn status<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.status.look(STATUS_PATIENCE, look).await.map_err(|missed| silent(missed, STATUS_PATIENCE))
    }

    /// Asks the file system one question.
    pub(super) async fn health<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.health.look(HEALTH_PATIENCE, look).await.map_err(|missed| silent(missed, HEALTH_PATIENCE))
    }
}

fn silent(missed: Missed, patience: Duration) -> Failure {
    match missed {
        Missed::Lost => Failure::new(Exit::Defect, format!("the look at the store: {missed}")),
        Missed::Late | Missed::Full => Failure::hinted(
            Exit::Disk,
            format!("the disk of the store has not answered for {} s", patience.as_secs()),
            "the kernel's log of this node may say what is wrong with it",
        ),
    }
}
