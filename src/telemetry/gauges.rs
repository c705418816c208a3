//! What is true at the moment of a scrape.

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::labels::How;
use super::split::Split;
use super::table::{self, Metric};

/// The values of all gauges, read in one go right before a scrape: kept up to date at every change
/// they would drift from what they describe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Pulls that run.
    pub pulls_in_flight: u64,
    /// Callers that wait for one of them.
    pub callers_waiting: u64,
    /// Size of the store's file system, in bytes.
    pub disk_bytes: u64,
    /// Bytes free there.
    pub disk_free_bytes: u64,
    /// Bytes that the store takes.
    pub store_bytes: u64,
    /// Bytes of pinned models.
    pub pinned_bytes: u64,
    /// Bytes of models in use.
    pub leased_bytes: u64,
    /// Bytes that pulls in flight have yet to write.
    pub reserved_bytes: u64,
    /// Bytes that eviction could free.
    pub evictable_bytes: u64,
    /// Bytes in use on the file system above which models are evicted.
    pub high_watermark_bytes: u64,
    /// The same in inodes; zeros where the file system has no number of them.
    pub inodes: Inodes,
    /// Leases that are held.
    pub leases: u64,
    /// Pinned models.
    pub pins: u64,
    /// Complete models.
    pub models: u64,
    /// Blobs that models lack.
    pub damaged_blobs: u64,
    /// Entries of the lists of what to have that failed.
    pub failed_prefetches: u64,
    /// Whether nothing can be written to the store.
    pub is_read_only: bool,
    /// Lines of the log that were lost since the start of the process.
    pub lost_log_lines: u64,
    /// The mount, or zeros where there is none.
    pub mount: Mount,
}

/// Inodes of the store's file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inodes {
    /// In all.
    pub total: u64,
    /// Free.
    pub free: u64,
    /// Of the store.
    pub store: u64,
    /// Promised to pulls in flight.
    pub reserved: u64,
    /// Eviction could free them.
    pub evictable: u64,
    /// In use on the file system above which models are evicted.
    pub high: u64,
}

/// What the mount says of itself. It counts where it answers the kernel, so its counters are read at
/// a scrape too; they are since the start of the process, over all mounts that it had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mount {
    /// Whether it is up.
    pub is_up: bool,
    /// Whether the kernel reads complete files by itself.
    pub passes: bool,
    /// Opens of files that the kernel reads by itself.
    pub opens_passed: u64,
    /// Opens of complete files that the daemon reads.
    pub opens_cached: u64,
    /// Opens of files that were still arriving.
    pub opens_arriving: u64,
    /// Reads that wait now.
    pub reads_waiting: u64,
    /// Opens and reads that failed.
    pub reads_failed: u64,
    /// Bytes that the daemon read for the kernel.
    pub bytes_read: u64,
}

impl Mount {
    fn register(&self, registry: &mut Registry) {
        let opens = Split::new(&table::MOUNT_OPENS, Counter::<u64>::default);
        opens.at(How::Passthrough as usize).inc_by(self.opens_passed);
        opens.at(How::Cached as usize).inc_by(self.opens_cached);
        opens.at(How::Arriving as usize).inc_by(self.opens_arriving);
        table::MOUNT_OPENS.register(registry, opens);
        table::MOUNT_FAILED_READS.register(registry, ConstCounter::new(self.reads_failed));
        table::MOUNT_READ_BYTES.register(registry, ConstCounter::new(self.bytes_read));
    }
}

impl Gauges {
    /// A registry of these values alone; one for each scrape, so that two at once do not mix.
    pub(super) fn registry(&self) -> Registry {
        let rows: [(Metric, u64); 25] = [
            (table::PULLS_IN_FLIGHT, self.pulls_in_flight),
            (table::CALLERS_WAITING, self.callers_waiting),
            (table::DISK_BYTES, self.disk_bytes),
            (table::DISK_FREE_BYTES, self.disk_free_bytes),
            (table::STORE_BYTES, self.store_bytes),
            (table::PINNED_BYTES, self.pinned_bytes),
            (table::LEASED_BYTES, self.leased_bytes),
            (table::RESERVED_BYTES, self.reserved_bytes),
            (table::EVICTABLE_BYTES, self.evictable_bytes),
            (table::HIGH_WATERMARK_BYTES, self.high_watermark_bytes),
            (table::DISK_INODES, self.inodes.total),
            (table::DISK_FREE_INODES, self.inodes.free),
            (table::STORE_INODES, self.inodes.store),
            (table::RESERVED_INODES, self.inodes.reserved),
            (table::EVICTABLE_INODES, self.inodes.evictable),
            (table::HIGH_WATERMARK_INODES, self.inodes.high),
            (table::LEASES, self.leases),
            (table::PINS, self.pins),
            (table::MODELS, self.models),
            (table::DAMAGED_BLOBS, self.damaged_blobs),
            (table::FAILED_PREFETCHES, self.failed_prefetches),
            (table::STORE_READ_ONLY, self.is_read_only.into()),
            (table::MOUNT_UP, self.mount.is_up.into()),
            (table::MOUNT_PASSTHROUGH, self.mount.passes.into()),
            (table::MOUNT_WAITING_READS, self.mount.reads_waiting),
        ];
        let mut registry = Registry::default();
        self.mount.register(&mut registry);
        table::LOST_LOG_LINES.register(&mut registry, ConstCounter::new(self.lost_log_lines));
        for (metric, value) in rows {
            // The encoder fails beyond i64.
            metric.register(&mut registry, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
        }
        registry
    }
}
