//! What is said while a model is being had, as it goes over the socket and to `--json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::fetch::{self, FileProgress, Outcome, Progress};

/// Files of one pull that are named in an event. A screen has no room for more.
const FILES_NAMED_MAX: usize = 8;

/// One line of an answer that takes time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How far it is.
    Progress(Moving),
    /// Something the caller should know, and that does not stop anything.
    Warning {
        /// One sentence.
        message: String,
    },
    /// The model is here.
    Ready(Ready),
    /// It cannot be had.
    Error {
        /// What happened.
        message: String,
        /// What to do next.
        hint: Option<String>,
        /// As a process would exit.
        exit_code: u8,
    },
}

/// How far a model is. Bytes unless the name says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Moving {
    /// The source.
    pub source: String,
    /// Here now.
    pub bytes_done: u64,
    /// Of all files; 0 until the origin has listed them.
    pub bytes_total: u64,
    /// Came over the network.
    pub bytes_moved: u64,
    /// Over the last few seconds.
    pub bytes_per_second: u64,
    /// At that rate.
    pub seconds_left: Option<u64>,
    /// Files complete.
    pub files_done: u32,
    /// Files in all.
    pub files_total: u32,
    /// Requests allowed in flight.
    pub connections: u32,
    /// Requests that were tried again.
    pub retries: u32,
    /// Of those, because the origin asked to slow down.
    #[serde(default)]
    pub throttled: u32,
    /// Of those, because the answer stalled.
    #[serde(default)]
    pub stalls: u32,
    /// Files whose bytes were wrong and came again.
    #[serde(default)]
    pub mismatches: u32,
    /// Why nothing comes, where nothing does and the origin is asked again.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// Callers that wait for it.
    pub waiters: u32,
    /// Since it began.
    pub seconds: f64,
    /// Files on their way, the oldest first.
    #[serde(default)]
    pub files: Vec<MovingFile>,
}

impl Moving {
    /// A look at the counters of a pull that began `since` ago. `rate` is in bytes per second.
    #[must_use]
    pub fn of(source: &str, progress: &Progress, rate: u64, waiters: u32, since: Duration) -> Self {
        let (done, total) = (progress.bytes_done(), progress.bytes_total.load(Relaxed));
        let named =
            |file: &Arc<FileProgress>| MovingFile { path: file.path.clone(), bytes: file.done(), size: file.size };
        Self {
            source: source.to_owned(),
            bytes_done: done.min(total),
            bytes_total: total,
            bytes_moved: progress.bytes_moved.load(Relaxed),
            bytes_per_second: rate,
            seconds_left: (rate > 0 && total > 0).then(|| total.saturating_sub(done).div_ceil(rate.max(1))),
            files_done: progress.files_done.load(Relaxed),
            files_total: progress.files_total.load(Relaxed),
            connections: progress.connections.load(Relaxed),
            retries: progress.retries.load(Relaxed),
            throttled: progress.throttled.load(Relaxed),
            stalls: progress.stalls.load(Relaxed),
            mismatches: progress.mismatches.load(Relaxed),
            waiting: progress.waiting().map(Waiting::from),
            waiters,
            seconds: since.as_secs_f64(),
            files: progress.active().iter().take(FILES_NAMED_MAX).map(named).collect(),
        }
    }
}

/// An origin that gives nothing, and is asked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What it said last, or what happened.
    pub why: String,
    /// Seconds since something came.
    pub seconds: u64,
    /// Seconds for which it is asked again from now on.
    pub seconds_left: u64,
}

impl From<fetch::Waiting> for Waiting {
    fn from(waiting: fetch::Waiting) -> Self {
        let left = waiting.until.saturating_duration_since(Instant::now());
        // Rounded up: what is left is never said to be nothing while it goes on.
        let seconds_left = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Self { why: waiting.why, seconds: waiting.since.elapsed().as_secs(), seconds_left }
    }
}

/// How far a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingFile {
    /// Path inside the model.
    pub path: String,
    /// Bytes here.
    pub bytes: u64,
    /// Bytes in all.
    pub size: u64,
}

/// A model that may be read now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// The source.
    pub source: String,
    /// The model's digest; where it is still arriving, the name of its listing.
    pub digest: String,
    /// Whether it may be read although some of it is still missing: reads wait.
    #[serde(default)]
    pub arriving: bool,
    /// Its directory of ordinary files.
    pub path: String,
    /// The directory that holds the directories of all models.
    pub root: String,
    /// Files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Bytes that crossed the network for this call, or for the flight it joined.
    pub bytes_moved: u64,
    /// Bytes that did not have to.
    pub bytes_here: u64,
    /// Seconds from the call to here.
    pub seconds: f64,
    /// The lease that keeps it, where one was asked for.
    pub lease: Option<String>,
    /// Files by the origin's checksum they were compared with.
    #[serde(default)]
    pub verified: BTreeMap<String, u64>,
    /// Files that another one was proven equal to, by proof.
    #[serde(default)]
    pub equal_by: BTreeMap<String, u64>,
    /// Requests that were tried again.
    #[serde(default)]
    pub retries: u32,
    /// Of those, because the origin asked to slow down.
    #[serde(default)]
    pub throttled: u32,
    /// Of those, because the answer stalled.
    #[serde(default)]
    pub stalls: u32,
    /// Files whose bytes were wrong and came again.
    #[serde(default)]
    pub mismatches: u32,
}

impl Ready {
    /// What a pull brought of a source, without a lease.
    #[must_use]
    pub fn of(source: &str, outcome: &Outcome, progress: &Progress) -> Self {
        let named = |counts: &BTreeMap<&'static str, usize>| {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count as u64)).collect()
        };
        let tree = absolute(&outcome.tree);
        Self {
            source: source.to_owned(),
            digest: outcome.manifest.to_string(),
            arriving: false,
            root: tree.parent().unwrap_or(&tree).display().to_string(),
            path: tree.display().to_string(),
            files: outcome.files as u64,
            bytes_total: outcome.bytes_total,
            bytes_moved: outcome.bytes_moved,
            bytes_here: outcome.bytes_total.saturating_sub(outcome.bytes_moved),
            seconds: outcome.elapsed.as_secs_f64(),
            lease: None,
            verified: named(&outcome.verified),
            equal_by: named(&outcome.equal_by),
            retries: progress.retries.load(Relaxed),
            throttled: progress.throttled.load(Relaxed),
            stalls: progress.stalls.load(Relaxed),
            mismatches: progress.mismatches.load(Relaxed),
        }
    }
}

/// A path that is right in any directory.
pub(super) fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
