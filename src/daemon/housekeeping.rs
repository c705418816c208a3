//! What has to be looked at again and again: the disk, the leases, and what is not synced yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Pressure};
use crate::store::{self, Store, Turn};

const INTERVAL: Duration = Duration::from_secs(2);
/// How often a disk that stays too full is complained of.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);
/// Nothing has moved for this long: now a sync stalls nobody, as it would a pull on ext4.
const QUIET_BEFORE_SYNC: Duration = Duration::from_mins(1);
/// Blobs of a node that never rests are synced after this long nevertheless.
const SYNC_AT_LAST: Duration = Duration::from_mins(15);

/// Looks after things for as long as it is polled.
pub async fn run(cache: Arc<Cache>) {
    // What pods have mounted is asked for at once: nothing is evicted before that is known.
    cache.residency().see_pods_again();
    // Whoever knows of the owners may take long to say: room is not kept waiting for that.
    tokio::join!(leases(&cache), disk(&cache));
}

async fn leases(cache: &Cache) {
    let mut complained: Option<Instant> = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        match cache.residency().end_leases().await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(leases = ended, "ended: their owners are gone"),
            Err(failure) => {
                if complained.is_none_or(|at| at.elapsed() > COMPLAINT_INTERVAL) {
                    complained = Some(Instant::now());
                    tracing::error!(error = %failure.message, "leases of owners that are gone cannot be ended");
                }
            }
        }
    }
}

async fn disk(cache: &Arc<Cache>) {
    let mut complained: Option<Instant> = None;
    let mut synced = Instant::now();
    // What an earlier life left is not synced either.
    let (mut quiet_since, mut unsynced) = (Instant::now(), true);
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !cache.is_idle() {
            (quiet_since, unsynced) = (Instant::now(), true);
        }
        let looked = Arc::clone(cache);
        let looked = tokio::task::spawn_blocking(move || {
            look_again(looked.store())?;
            // What cannot be removed yet is passed over meanwhile.
            if let Err(error) = looked.store().drop_unreadable() {
                tracing::debug!(%error, "a damaged document stays");
            }
            let tidied = looked.residency().tidy();
            let pressure = looked.residency().keep_below();
            if let Err(error) = looked.expire_records() {
                tracing::debug!(%error, "records that name nothing stay");
            }
            tidied.and(pressure)
        });
        match looked.await {
            Ok(Ok(Pressure::None)) => complained = None,
            Ok(Ok(Pressure::Stuck { over })) => {
                if complained.is_none_or(|at| at.elapsed() > COMPLAINT_INTERVAL) {
                    complained = Some(Instant::now());
                    tracing::warn!(
                        bytes = over.bytes,
                        inodes = over.inodes,
                        "the file system is beyond the high watermark, and nothing may be evicted"
                    );
                }
            }
            Ok(Err(error)) => {
                if complained.is_none_or(|at| at.elapsed() > COMPLAINT_INTERVAL) {
                    complained = Some(Instant::now());
                    tracing::error!(%error, "the store cannot be looked after");
                }
            }
            Err(panic) => tracing::error!(%panic, "looking after the store failed"),
        }
        let quiet = quiet_since.elapsed() > QUIET_BEFORE_SYNC;
        if unsynced && cache.store().unwritable().is_none() && (quiet || synced.elapsed() > SYNC_AT_LAST) {
            // While pulls run, only what the kernel has written by itself.
            match cache.settle(quiet).await {
                Ok(_) => unsynced = !quiet,
                Err(failure) => tracing::warn!(error = %failure.message, "syncing the store failed: it is tried again"),
            }
            synced = Instant::now();
        }
    }
}

/// Tells when the store cannot be written any more, and takes it up where it can be again.
fn look_again(store: &Store) -> Result<(), store::Error> {
    match store.look_again() {
        Some(Turn::Unwritable(why)) => {
            tracing::error!(
                "the store is read-only now, {why}: what is here is given out, and nothing is pulled or evicted"
            );
        }
        Some(Turn::Writable(recovered)) => {
            tracing::info!("the store can be written again");
            super::tell_recovered(&recovered);
            super::tell_recovered(&store.prove()?);
        }
        None => {}
    }
    Ok(())
}
