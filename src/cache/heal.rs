//! What is known to be damaged is brought again, without being asked for.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::repair::Damage;
use super::verify::VerifyEvent;
use super::{Cache, blocking};
use crate::domain::Digest;
use crate::report::Failure;

/// How often it is looked for what other processes have found: `larder export`, for one.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after a repair that did not bring everything, doubling from the first to the last.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a repair that somebody waits for is left alone: all may have to be hashed before it.
const ASKING_PATIENCE: Duration = Duration::from_mins(1);

/// The repair that goes on by itself.
#[derive(Debug, Default)]
pub(super) struct Healing {
    /// There is something new to repair.
    pub wake: Notify,
    /// Blobs that are being repaired.
    pub lacking: Mutex<HashSet<Digest>>,
    /// People who wait for a repair, and are told how it goes.
    asking: AtomicUsize,
}

/// Somebody who waits for a repair.
#[derive(Debug)]
pub(super) struct Asking<'a>(&'a Healing);

impl Healing {
    pub fn ask(&self) -> Asking<'_> {
        self.asking.fetch_add(1, Relaxed);
        Asking(self)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Relaxed);
        self.0.wake.notify_one();
    }
}

impl Cache {
    /// Says that a read of a blob has failed. Where that proves it damaged, nobody is given it any
    /// more, and it is brought again. Blocking.
    pub fn read_failed(&self, digest: &Digest, error: &std::io::Error) -> bool {
        let is_damage = crate::store::View::is_damage(error);
        if is_damage {
            tracing::error!(%digest, %error, "a blob cannot be read: it is fetched again");
            self.metrics.verification_failure(crate::telemetry::Where::Scrub);
            if let Err(error) = self.store().condemn(digest) {
                tracing::error!(%digest, %error, "a damaged blob could not be taken out of every model's directory");
            }
            self.healing.wake.notify_one();
        }
        is_damage
    }

    /// Brings what is damaged again, for as long as it is polled.
    pub async fn heal(self: Arc<Self>) {
        self.proven().await;
        let cache = Arc::clone(&self);
        // A disk that took no mark before it crashed is asked what it has.
        let missing = blocking(move || Ok(cache.store().mark_missing()?)).await;
        if let Err(failure) = missing {
            tracing::warn!(error = %failure.message, "it could not be looked for what models lack");
        }
        let (mut pause, mut stamp, mut told) = (PAUSE_MIN, Some(0), HashSet::new());
        let (mut is_news, mut found) = (false, Instant::now());
        loop {
            let lacking = match self.lacking(&mut stamp).await {
                Ok(lacking) => lacking,
                Err(failure) => {
                    tracing::warn!(error = %failure.message, "what is damaged cannot be looked at: it is tried again");
                    tokio::time::sleep(pause).await;
                    continue;
                }
            };
            if self.stopping.load(Relaxed) {
                return;
            }
            if lacking.is_empty() {
                pause = PAUSE_MIN;
                told.clear();
                self.news(LOOK_INTERVAL).await;
                continue;
            }
            if lacking.iter().filter(|digest| told.insert(**digest)).count() > 0 {
                (pause, is_news, found) = (PAUSE_MIN, true, Instant::now());
            }
            if self.healing.asking.load(Relaxed) > 0 && found.elapsed() < ASKING_PATIENCE {
                // It comes there, for all to see.
                self.news(LOOK_INTERVAL).await;
                continue;
            }
            if !self.bring_again(lacking, std::mem::take(&mut is_news)).await {
                self.news(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Waits until there is something new to repair, at most so long.
    async fn news(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.healing.wake.notified()).await;
    }

    /// The blobs that models lack. Nothing is read while there are no marks.
    async fn lacking(self: &Arc<Self>, stamp: &mut Option<u64>) -> Result<HashSet<Digest>, Failure> {
        let cache = Arc::clone(self);
        let (lacking, now) = blocking(move || {
            let now = cache.store().view().damage_stamp();
            let lacking = if now == Some(0) { Vec::new() } else { cache.store().heed()? };
            Ok((lacking, now))
        })
        .await?;
        if std::mem::replace(stamp, now) != now {
            // What is here is another than it was, for those who follow it.
            self.residency.changed();
        }
        Ok(lacking.into_iter().collect())
    }

    /// Whether everything came.
    async fn bring_again(self: &Arc<Self>, blobs: HashSet<Digest>, is_news: bool) -> bool {
        let damage = Damage { blobs, ..Damage::default() };
        let mut failed = Vec::new();
        let mut tell = |event| match event {
            VerifyEvent::Error { message, .. } => failed.push(message),
            VerifyEvent::Done(ready) => tracing::info!(source = ready.source, "a damaged model was repaired"),
            VerifyEvent::NotRepairable { digest, files } if is_news => {
                tracing::error!(model = %digest.short(), files, "files of a model are damaged, and no source names it any more: they cannot be fetched again");
            }
            _ => {}
        };
        if let Err(failure) = self.mend(&damage, &mut tell).await {
            failed.push(failure.message);
        }
        if is_news {
            for error in &failed {
                tracing::error!(error, "a damaged model is not repaired yet: it is tried again");
            }
        }
        let (cache, blobs) = (Arc::clone(self), damage.blobs);
        let whole = blocking(move || Ok(blobs.iter().all(|digest| cache.store().view().has_blob(digest)))).await;
        whole.unwrap_or(false)
    }
}
