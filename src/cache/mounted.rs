//! What the cache knows of the mount above it: where it is, and how it says that it is.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use tokio::sync::watch;

use super::Cache;
use crate::report::{Exit, Failure};
use crate::telemetry;

/// The directory of the mount where models are that are still arriving, by the name of their listing.
pub const ARRIVING: &str = "arriving";

/// How the mount is, for people and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where it is; none while it is not up.
    pub directory: Option<String>,
    /// `passthrough` or `cached`.
    pub sealed: String,
    /// Why sealed files are not passed through, where they are not.
    pub why_not: Option<String>,
    /// Whether a keeper has it.
    pub kept: bool,
    /// Opens of sealed files that the kernel serves by itself.
    pub opens_passed: u64,
    /// Opens of sealed files whose reads come to the daemon.
    pub opens_cached: u64,
    /// Opens of files that were still arriving.
    pub opens_arriving: u64,
    /// Reads that wait for bytes now.
    pub reads_waiting: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// Bytes that the daemon read for the kernel.
    pub bytes_read: u64,
}

impl MountStatus {
    /// Whether models can be read there.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.directory.is_some()
    }

    /// Whether the kernel reads sealed files by itself.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.is_up() && self.sealed == "passthrough"
    }
}

impl From<&MountStatus> for telemetry::Mount {
    fn from(status: &MountStatus) -> Self {
        Self {
            is_up: status.is_up(),
            passes: status.passes(),
            opens_passed: status.opens_passed,
            opens_cached: status.opens_cached,
            opens_arriving: status.opens_arriving,
            reads_waiting: status.reads_waiting,
            reads_failed: status.reads_failed,
            bytes_read: status.bytes_read,
        }
    }
}

/// How long a request for a model waits for a mount that is to come.
const MOUNT_PATIENCE: Duration = Duration::from_secs(20);

type Report = Box<dyn Fn() -> MountStatus + Send + Sync>;

/// The mount, once there is one.
pub(super) struct Mounted {
    directory: OnceLock<PathBuf>,
    /// Whether a request need not wait for it.
    settled: watch::Sender<bool>,
    report: OnceLock<Report>,
}

impl Default for Mounted {
    fn default() -> Self {
        Self { directory: OnceLock::new(), settled: watch::Sender::new(true), report: OnceLock::new() }
    }
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mounted").field(&self.directory).finish()
    }
}

impl Cache {
    /// Where models are mounted.
    #[must_use]
    pub fn mount(&self) -> Option<&Path> {
        self.mounted.directory.get().map(PathBuf::as_path)
    }

    /// Says where models are mounted from now on. The first answer stays.
    pub fn set_mount(&self, directory: PathBuf) {
        let _ = self.mounted.directory.set(directory);
        self.mounted.settled.send_replace(true);
    }

    /// Says that there will be a mount, and who knows how it is. The first answer stays.
    pub fn expect_mount(&self, report: Report) {
        let _ = self.mounted.report.set(report);
        self.mounted.settled.send_replace(self.mount().is_some());
    }

    /// Waits for a mount that is to come: what is given out is a path in it.
    pub(super) async fn mounted(&self) -> Result<(), Failure> {
        let mut settled = self.mounted.settled.subscribe();
        if tokio::time::timeout(MOUNT_PATIENCE, settled.wait_for(|settled| *settled)).await.is_ok() {
            return Ok(());
        }
        Err(Failure::hinted(
            Exit::Busy,
            "the mount of this node is not there yet",
            "the daemon's log says what larder-keeper does",
        ))
    }

    /// Waits for a mount that is to come, for as long as it takes.
    pub(super) async fn mount_settled(&self) {
        // The sender lives as long as this cache.
        let _ = self.mounted.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Whether there is no mount to wait for.
    pub(super) fn is_mount_settled(&self) -> bool {
        *self.mounted.settled.borrow()
    }

    /// How the mount is, where there should be one.
    #[must_use]
    pub fn mount_status(&self) -> Option<MountStatus> {
        self.mounted.report.get().map(|report| report())
    }
}
