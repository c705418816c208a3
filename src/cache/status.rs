//! What a person or a scrape wants to know of the node, in one look.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Cache;
use super::event::Moving;
use super::mounted::MountStatus;
use super::wanted::{Progressing, WantedState};
use crate::domain::Digest;
use crate::report::output;
use crate::report::text::unix;
use crate::store::{self, Census};
use crate::telemetry::{self, Gauges, Totals};

/// The disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Of the file system, as far as an unprivileged user may write.
    pub total: u64,
    /// Free on it.
    pub free: u64,
    /// In use at the high watermark.
    pub high: u64,
    /// In use at the low watermark.
    pub low: u64,
    /// What the store holds.
    pub store: u64,
    /// Of that, because somebody wants it kept.
    pub pinned: u64,
    /// Of that, because somebody uses it or waits for it.
    pub leased: u64,
    /// Of that, what may go.
    pub evictable: u64,
    /// Promised to pulls and not yet written.
    pub reserved: u64,
    /// The same in inodes; none where the file system makes them as they are wanted.
    #[serde(default)]
    pub inodes: Option<DiskInodes>,
}

/// The inodes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInodes {
    /// Of the file system, as far as an unprivileged user may make them.
    pub total: u64,
    /// Free on it.
    pub free: u64,
    /// In use at the high watermark.
    pub high: u64,
    /// In use at the low watermark.
    pub low: u64,
    /// What the store has.
    pub store: u64,
    /// Of that, because somebody wants it kept.
    pub pinned: u64,
    /// Of that, because somebody uses it or waits for it.
    pub leased: u64,
    /// Of that, what may go.
    pub evictable: u64,
    /// Promised to pulls and not yet made.
    pub reserved: u64,
}

/// A lease, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Its id.
    pub id: String,
    /// Who has it.
    pub owner: String,
    /// Namespace and name of the pod, where kubelet said them.
    #[serde(default)]
    pub pod: Option<String>,
    /// On which model.
    pub digest: String,
    /// A source that names it.
    pub source: Option<String>,
    /// Seconds since 1970.
    pub since: u64,
}

/// What the background scrub did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Bytes hashed since the daemon started.
    pub bytes: u64,
    /// Damaged blobs found.
    pub damaged: u64,
    /// Of those, repaired.
    pub repaired: u64,
    /// Seconds since 1970 when it last came to the end of the store.
    pub last_finished: Option<u64>,
}

/// A blob that is damaged or missing, and has not been fetched again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageStatus {
    /// The blob.
    pub digest: String,
    /// `source: path` of files that it is, the first of them.
    pub files: Vec<String>,
    /// Seconds since 1970 when it was found.
    pub since: Option<u64>,
}

/// Damaged blobs, and files of one, that are named.
const DAMAGE_TOLD_MAX: usize = 64;

/// A document of the store that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableStatus {
    /// The document.
    pub path: String,
    /// Why it could not be read.
    pub why: String,
    /// Whether it is gone, because its bytes were wrong.
    pub removed: bool,
}

/// What the cache knows of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The disk.
    pub disk: Disk,
    /// Why nothing can be written to the store; null where it can.
    #[serde(default)]
    pub read_only: Option<String>,
    /// Complete models.
    pub models: u64,
    /// Pinned sources and models.
    pub pins: u64,
    /// The mount, where there should be one.
    #[serde(default)]
    pub mount: Option<MountStatus>,
    /// What moves now.
    pub moving: Vec<Moving>,
    /// Who uses what.
    pub leases: Vec<LeaseStatus>,
    /// Why nothing, or less than might, is evicted now.
    #[serde(default)]
    pub held_back: Option<String>,
    /// The list of what to have.
    pub prefetch: Vec<WantedState>,
    /// Since the daemon started.
    pub totals: TotalsStatus,
    /// Since the daemon started.
    pub scrub: ScrubStatus,
    /// How many blobs are damaged or missing now.
    #[serde(default)]
    pub damaged_blobs: u64,
    /// The first of them.
    #[serde(default)]
    pub damaged: Vec<DamageStatus>,
    /// Documents that could not be read since the daemon started.
    #[serde(default)]
    pub unreadable: Vec<UnreadableStatus>,
}

/// Counts since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of the metrics, which say what they are")]
pub struct TotalsStatus {
    pub bytes_from_origin: u64,
    pub bytes_from_cache: u64,
    pub hits: u64,
    pub joins: u64,
    pub pulls: u64,
    #[serde(default)]
    pub lazy: u64,
    pub stale: u64,
    pub errors: u64,
    pub evictions: u64,
    pub bytes_evicted: u64,
    pub verification_failures: u64,
}

impl From<Totals> for TotalsStatus {
    fn from(totals: Totals) -> Self {
        let Totals {
            bytes_from_origin,
            bytes_from_cache,
            hits,
            joins,
            pulls,
            lazy,
            stale,
            errors,
            evictions,
            bytes_evicted,
            verification_failures,
        } = totals;
        Self {
            bytes_from_origin,
            bytes_from_cache,
            hits,
            joins,
            pulls,
            lazy,
            stale,
            errors,
            evictions,
            bytes_evicted,
            verification_failures,
        }
    }
}

impl From<DiskInodes> for telemetry::Inodes {
    fn from(of: DiskInodes) -> Self {
        let DiskInodes { total, free, store, reserved, evictable, high, .. } = of;
        Self { total, free, store, reserved, evictable, high }
    }
}

impl Cache {
    /// Everything at once. Blocking: reads the whole store.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn status(self: &Arc<Self>) -> Result<Status, store::Error> {
        let (shares, census) = self.residency.shares()?;
        let space = self.store().space()?;
        let marks = self.residency.watermarks;
        let (high, low) = (marks.high(&space), marks.low(&space));
        let (kept, reserved) = (census.amount(), self.residency.ledger.amount());
        let inodes = space.inodes.map(|inodes| DiskInodes {
            total: inodes.total,
            free: inodes.free,
            high: high.inodes,
            low: low.inodes,
            store: kept.inodes,
            pinned: shares.pinned.inodes,
            leased: shares.leased.inodes,
            evictable: shares.evictable.inodes,
            reserved: reserved.inodes,
        });
        let disk = Disk {
            total: space.total,
            free: space.free,
            high: high.bytes,
            low: low.bytes,
            store: kept.bytes,
            pinned: shares.pinned.bytes,
            leased: shares.leased.bytes,
            evictable: shares.evictable.bytes,
            reserved: reserved.bytes,
            inodes,
        };
        let source_of = |digest: &Digest| {
            let entry = census.entries.iter().find(|entry| entry.manifest == Some(*digest));
            entry.and_then(|entry| entry.sources.first()).map(|(_, source, _)| source.clone())
        };
        let (mut leases, pins, held_back): (Vec<LeaseStatus>, u64, Option<String>) = {
            let book = self.residency.book();
            let shown = book.leases().map(|(id, lease)| LeaseStatus {
                id: id.clone(),
                owner: lease.owner.to_string(),
                pod: lease.owner.name().map(str::to_owned),
                digest: lease.digest.to_string(),
                source: source_of(&lease.digest),
                since: lease.since,
            });
            (shown.collect(), book.pin_count() as u64, book.in_pods.unseen())
        };
        let damaged_blobs = census.lacking();
        leases.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        Ok(Status {
            disk,
            read_only: self.store().unwritable(),
            models: census.entries.iter().filter(|entry| entry.manifest.is_some()).count() as u64,
            pins,
            mount: self.mount_status(),
            moving: self.board.flights().iter().map(|flight| flight.moving()).collect(),
            leases,
            held_back,
            prefetch: self.wanted_states()?,
            totals: self.metrics.totals().into(),
            scrub: self.scrub_status(),
            damaged_blobs: damaged_blobs.len() as u64,
            damaged: self.damage_status(&census, &damaged_blobs)?,
            unreadable: self.store().view().unreadable().into_iter().map(shown).collect(),
        })
    }

    fn damage_status(&self, census: &Census, lacking: &BTreeSet<Digest>) -> Result<Vec<DamageStatus>, store::Error> {
        if lacking.is_empty() {
            return Ok(Vec::new());
        }
        let view = self.store().view();
        let since: HashMap<Digest, u64> =
            view.marks()?.into_iter().map(|(digest, mark)| (digest, mark.since)).collect();
        let mut damaged: BTreeMap<Digest, DamageStatus> = BTreeMap::new();
        for digest in lacking.iter().take(DAMAGE_TOLD_MAX) {
            let status =
                DamageStatus { digest: digest.to_string(), files: Vec::new(), since: since.get(digest).copied() };
            damaged.insert(*digest, status);
        }
        for entry in census.entries.iter().filter(|entry| !entry.lacking.is_empty()) {
            let Some(manifest) = entry.manifest.and_then(|digest| view.manifest(&digest).ok()) else { continue };
            let name = entry.sources.first().map(|(_, source, _)| source.clone());
            let name = name.or_else(|| entry.manifest.map(|digest| digest.short())).unwrap_or_default();
            for file in manifest.files() {
                if let Some(status) = damaged.get_mut(&file.digest).filter(|it| it.files.len() < DAMAGE_TOLD_MAX) {
                    status.files.push(format!("{name}: {}", file.path));
                }
            }
        }
        Ok(damaged.into_values().collect())
    }

    /// The metrics as a scrape reads them. Blocking: reads the whole store.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn scrape(self: &Arc<Self>) -> Result<String, store::Error> {
        let status = self.status()?;
        let flights = self.board.flights();
        Ok(self.metrics.render(&Gauges {
            pulls_in_flight: flights.len() as u64,
            callers_waiting: flights.iter().map(|flight| u64::from(flight.waiters())).sum(),
            disk_bytes: status.disk.total,
            disk_free_bytes: status.disk.free,
            store_bytes: status.disk.store,
            pinned_bytes: status.disk.pinned,
            leased_bytes: status.disk.leased,
            reserved_bytes: status.disk.reserved,
            evictable_bytes: status.disk.evictable,
            high_watermark_bytes: status.disk.high,
            inodes: status.disk.inodes.map(Into::into).unwrap_or_default(),
            leases: status.leases.len() as u64,
            pins: status.pins,
            models: status.models,
            damaged_blobs: status.damaged_blobs,
            failed_prefetches: status.prefetch.iter().filter(|entry| entry.state == Progressing::Failed).count() as u64,
            is_read_only: status.read_only.is_some(),
            lost_log_lines: output::lines_lost(),
            mount: status.mount.as_ref().map(Into::into).unwrap_or_default(),
        }))
    }
}

fn shown(found: store::Unreadable) -> UnreadableStatus {
    UnreadableStatus { path: found.path.display().to_string(), why: found.why, removed: found.is_removed }
}

/// Seconds since 1970, now.
pub(super) fn now() -> u64 {
    unix(std::time::SystemTime::now())
}
