//! The slow look at everything that is kept: reads each blob past the page cache, and brings what
//! is damaged again.
//!
//! Where it was is written down, so that a daemon that restarts every day comes to the end of a
//! large store too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::repair::Damage;
use super::status::{ScrubStatus, now};
use super::{Cache, blocking};
use crate::domain::Digest;
use crate::report::Failure;
use crate::store::Shelf;
use crate::telemetry::Where;

/// Serving comes first: the scrub begins this long after the start.
const START_AFTER: Duration = Duration::from_secs(30);
/// From the end of one pass to the next.
const PASS_INTERVAL: Duration = Duration::from_hours(24);
/// How long the scrub waits for what is damaged to come again; it is brought without it, too.
const MEND_PATIENCE: Duration = Duration::from_mins(1);
/// The name of the note that says where it is.
const NOTE: &str = "scrub";

/// Where the scrub is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Place {
    /// The last blob that was hashed.
    after: Option<Digest>,
    /// Seconds since 1970 when the last pass ended.
    finished: Option<u64>,
}

/// Counts since the daemon started.
#[derive(Debug, Default)]
pub(super) struct Scrubbed {
    bytes: AtomicU64,
    damaged: AtomicU64,
    repaired: AtomicU64,
    finished: AtomicU64,
}

impl Cache {
    pub(super) fn scrub_status(&self) -> ScrubStatus {
        let Scrubbed { bytes, damaged, repaired, finished } = &self.scrubbed;
        ScrubStatus {
            bytes: bytes.load(Relaxed),
            damaged: damaged.load(Relaxed),
            repaired: repaired.load(Relaxed),
            last_finished: Some(finished.load(Relaxed)).filter(|at| *at > 0),
        }
    }

    /// Scrubs for ever at `rate` bytes per second; `stop` ends it within a chunk. Does nothing at
    /// rate 0.
    pub async fn scrub(self: Arc<Self>, rate: u64, stop: Arc<AtomicBool>) {
        if rate == 0 {
            return;
        }
        tokio::time::sleep(START_AFTER).await;
        loop {
            let place = self.place().await;
            self.scrubbed.finished.store(place.finished.unwrap_or(0), Relaxed);
            let since = place.finished.map_or(u64::MAX, |at| now().saturating_sub(at));
            if place.after.is_none() && since < PASS_INTERVAL.as_secs() {
                tokio::time::sleep(Duration::from_secs(PASS_INTERVAL.as_secs() - since)).await;
            }
            if let Err(failure) = self.pass(place, rate, &stop).await {
                tracing::warn!(error = %failure.message, "the scrub stopped: it goes on later");
                tokio::time::sleep(START_AFTER).await;
            }
            if stop.load(Relaxed) {
                return;
            }
        }
    }

    async fn place(self: &Arc<Self>) -> Place {
        let cache = Arc::clone(self);
        let read = blocking(move || Ok(cache.store().notes::<Place>(Shelf::State)?)).await;
        read.unwrap_or_default().into_iter().find(|(name, _)| name == NOTE).map(|(_, place)| place).unwrap_or_default()
    }

    async fn keep_place(self: &Arc<Self>, place: Place) -> Result<(), Failure> {
        let cache = Arc::clone(self);
        // Where nothing can be written, the next start looks at some once more.
        if cache.store().unwritable().is_some() {
            return Ok(());
        }
        blocking(move || Ok(cache.store().note(Shelf::State, NOTE, &place)?)).await
    }

    async fn pass(self: &Arc<Self>, mut place: Place, rate: u64, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        let cache = Arc::clone(self);
        let mut blobs: Vec<Digest> = blocking(move || Ok(cache.store().census()?.blobs.into_keys().collect())).await?;
        blobs.sort_unstable_by_key(|digest| *digest.as_bytes());
        blobs.retain(|digest| place.after.is_none_or(|after| digest.as_bytes() > after.as_bytes()));
        for digest in blobs {
            if !self.look(digest, rate, stop).await? {
                return Ok(());
            }
            place.after = Some(digest);
            self.keep_place(place.clone()).await?;
        }
        let finished = now();
        self.scrubbed.finished.store(finished, Relaxed);
        self.keep_place(Place { after: None, finished: Some(finished) }).await
    }

    /// Hashes one blob, no faster than `rate`. False when it was stopped.
    async fn look(self: &Arc<Self>, digest: Digest, rate: u64, stop: &Arc<AtomicBool>) -> Result<bool, Failure> {
        let (cache, stop) = (Arc::clone(self), Arc::clone(stop));
        let bad = blocking(move || {
            let (started, mut before) = (Instant::now(), 0);
            let each = &mut |bytes: u64| {
                cache.scrubbed.bytes.fetch_add(bytes - before, Relaxed);
                cache.metrics.scrubbed(bytes - before);
                before = bytes;
                let due = Duration::from_millis(bytes.saturating_mul(1000) / rate);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
                !stop.load(Relaxed)
            };
            match cache.store().scrub(&digest, each) {
                // Evicted since the list was made.
                Err(crate::store::Error::Absent(_)) => Ok(Some(Vec::new())),
                other => Ok(other?),
            }
        })
        .await?;
        let Some(bad) = bad else { return Ok(false) };
        if !bad.is_empty() {
            self.scrubbed.damaged.fetch_add(1, Relaxed);
            self.metrics.verification_failure(Where::Scrub);
            tracing::error!(%digest, chunks = bad.len(), "a blob is damaged on disk: it is fetched again");
            let damage = Damage { blobs: [digest].into(), ..Damage::default() };
            // An origin that is away does not keep the rest from being looked at.
            let _ = tokio::time::timeout(MEND_PATIENCE, self.mend(&damage, &mut |_| {})).await;
            self.healing.wake.notify_one();
            if self.store().view().has_blob(&digest) {
                self.scrubbed.repaired.fetch_add(1, Relaxed);
                tracing::info!(%digest, "the damaged blob was repaired");
            }
        }
        Ok(true)
    }
}
