//! The one table of metrics.

use prometheus_client::registry::{self, Registry};

use super::labels::{Cause, Code, Cut, How, Label, Listener, Outcome, Socket, VERSION, Where, Write, Written};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives. Its series is called `NAME_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many took how long. Its series are called `NAME_bucket`, `NAME_sum` and `NAME_count`.
    Histogram,
}

/// What a metric is measured in; the last word of its name. Prometheus wants base units only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// The word at the end of a metric's name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with the unit and without the suffix of its kind.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it is measured in; `None` for a plain number of things.
    pub unit: Option<Unit>,
    /// One sentence for people, without the full stop, which the encoder adds.
    pub help: &'static str,
    /// Its labels; there is one series for each combination of their values.
    pub labels: &'static [Label],
}

impl Metric {
    /// Adds the metric to a registry, under the row's name, help and unit.
    pub(super) fn register(&self, registry: &mut Registry, values: impl registry::Metric) {
        let Some(unit) = self.unit else {
            registry.register(self.name, self.help, values);
            return;
        };
        // The registry puts the unit at the end itself.
        let base = self.name.strip_suffix(unit.word()).and_then(|name| name.strip_suffix('_')).unwrap_or(self.name);
        let unit = match unit {
            Unit::Bytes => registry::Unit::Bytes,
            Unit::Seconds => registry::Unit::Seconds,
        };
        registry.register_with_unit(base, self.help, unit, values);
    }
}

/// Rows with a name each, for the code that counts, and all of them in a list.
macro_rules! table {
    ($($row:ident = $kind:ident $name:literal $unit:expr, [$($label:expr),*], $help:literal;)+) => {
        $(pub(super) const $row: Metric =
            Metric { name: $name, kind: Kind::$kind, unit: $unit, help: $help, labels: &[$($label),*] };)+

        /// All metrics.
        pub const TABLE: &[Metric] = &[$($row),+];
    };
}

const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);

table! {
    ORIGIN_BYTES = Counter "larder_origin_bytes" BYTES, [],
        "Bytes of models that came from the origin";
    CACHE_BYTES = Counter "larder_cache_bytes" BYTES, [],
        "Bytes of models that were served without crossing the network";
    ENSURES = Counter "larder_ensures" None, [Outcome::LABEL],
        "Requests for a model, by how they were answered";
    EVICTIONS = Counter "larder_evictions" None, [],
        "Models deleted to make room";
    EVICTED_BYTES = Counter "larder_evicted_bytes" BYTES, [],
        "Bytes of disk that deleting models to make room has freed";
    VERIFICATION_FAILURES = Counter "larder_verification_failures" None, [Where::LABEL],
        "Files whose bytes did not match their checksum or digest, by where that was found";
    RETRIES = Counter "larder_retries" None, [Cause::LABEL],
        "Requests to the origin that were sent again, by why";
    SCRUBBED_BYTES = Counter "larder_scrubbed_bytes" BYTES, [],
        "Bytes on disk that were read again and compared with their digest";
    REPAIRED_BLOBS = Counter "larder_repaired_blobs" None, [],
        "Damaged files on disk that were fetched again";
    CONTROL_REQUESTS = Counter "larder_control_requests" None, [Socket::LABEL, Code::LABEL],
        "Requests on the daemon's sockets, by socket and class of status";
    CONNECTIONS = Gauge "larder_connections" None, [Listener::LABEL],
        "Connections that are open, by who connects";
    CONNECTIONS_MAX = Gauge "larder_connections_max" None, [Listener::LABEL],
        "Connections that may be open, by who connects";
    CONNECTIONS_CUT = Counter "larder_connections_cut" None, [Listener::LABEL, Cut::LABEL],
        "Connections that the daemon ended by itself, by who had connected and why";
    TASKS = Gauge "larder_tasks" None, [],
        "Tasks in the daemon that have not ended";
    MOUNT_OPENS = Counter "larder_mount_opens" None, [How::LABEL],
        "Files of the mount that were opened, by how they are read";
    MOUNT_FAILED_READS = Counter "larder_mount_failed_reads" None, [],
        "Opens and reads in the mount that ended in an I/O error";
    MOUNT_READ_BYTES = Counter "larder_mount_read_bytes" BYTES, [],
        "Bytes that the daemon read for the kernel; what the kernel reads by itself is not among them";
    CLUSTER_WRITES = Counter "larder_cluster_writes" None, [Write::LABEL, Written::LABEL],
        "Writes to the cluster's API server, by what was written and what came of it";
    CLUSTER_UP = Gauge "larder_cluster_up" None, [],
        "Whether the cluster is followed: 1, or 0 where the last list or watch failed, or none is wanted";
    LOST_LOG_LINES = Counter "larder_lost_log_lines" None, [],
        "Lines of the daemon's log that could not be written";
    PULLS_IN_FLIGHT = Gauge "larder_pulls_in_flight" None, [],
        "Pulls that run now";
    CALLERS_WAITING = Gauge "larder_callers_waiting" None, [],
        "Callers that wait for a pull now";
    DISK_BYTES = Gauge "larder_disk_bytes" BYTES, [],
        "Size of the file system that the store is on";
    DISK_FREE_BYTES = Gauge "larder_disk_free_bytes" BYTES, [],
        "Bytes free on that file system";
    STORE_BYTES = Gauge "larder_store_bytes" BYTES, [],
        "Bytes of that file system that the store takes";
    PINNED_BYTES = Gauge "larder_pinned_bytes" BYTES, [],
        "Bytes of models that are pinned";
    LEASED_BYTES = Gauge "larder_leased_bytes" BYTES, [],
        "Bytes of models that somebody uses";
    RESERVED_BYTES = Gauge "larder_reserved_bytes" BYTES, [],
        "Bytes that pulls in flight have yet to write";
    EVICTABLE_BYTES = Gauge "larder_evictable_bytes" BYTES, [],
        "Bytes that deleting every model that is neither pinned nor used would free";
    HIGH_WATERMARK_BYTES = Gauge "larder_high_watermark_bytes" BYTES, [],
        "Bytes in use on the file system, by anybody, above which models are deleted";
    DISK_INODES = Gauge "larder_disk_inodes" None, [],
        "Inodes of the file system that the store is on; 0 where it makes them as they are wanted";
    DISK_FREE_INODES = Gauge "larder_disk_free_inodes" None, [],
        "Inodes free on that file system";
    STORE_INODES = Gauge "larder_store_inodes" None, [],
        "Inodes of that file system that the store has";
    RESERVED_INODES = Gauge "larder_reserved_inodes" None, [],
        "Files and directories that pulls in flight have yet to make";
    EVICTABLE_INODES = Gauge "larder_evictable_inodes" None, [],
        "Inodes that deleting every model that is neither pinned nor used would free";
    HIGH_WATERMARK_INODES = Gauge "larder_high_watermark_inodes" None, [],
        "Inodes in use on the file system, by anybody, above which models are deleted";
    LEASES = Gauge "larder_leases" None, [],
        "Leases that are held";
    PINS = Gauge "larder_pins" None, [],
        "Models that are pinned";
    MODELS = Gauge "larder_models" None, [],
        "Models that are here and complete";
    DAMAGED_BLOBS = Gauge "larder_damaged_blobs" None, [],
        "Files that are damaged or missing on disk and have not been fetched again";
    FAILED_PREFETCHES = Gauge "larder_failed_prefetches" None, [],
        "Models on a list of what to have that are wrong or could not be brought";
    STORE_READ_ONLY = Gauge "larder_store_read_only" None, [],
        "Whether nothing can be written to the store: 1, or 0 where it can";
    MOUNT_UP = Gauge "larder_mount_up" None, [],
        "Whether the mount is up: 1, or 0 where it is not, not yet, or not wanted";
    MOUNT_PASSTHROUGH = Gauge "larder_mount_passthrough" None, [],
        "Whether the kernel reads complete files of the mount by itself: 1, or 0 where the daemon does";
    MOUNT_WAITING_READS = Gauge "larder_mount_waiting_reads" None, [],
        "Reads in the mount that wait for bytes now";
    BUILD_INFO = Gauge "larder_build_info" None, [VERSION],
        "Always 1; the label is what counts";
    ENSURE_SECONDS = Histogram "larder_ensure_seconds" SECONDS, [Outcome::LABEL],
        "Time from a request for a model to its answer, by how it was answered";
    PULL_SECONDS = Histogram "larder_pull_seconds" SECONDS, [],
        "Time from the start of a pull to the model being ready";
}

/// Upper bounds of the histograms' buckets in seconds: from a hit to a large model over a slow line.
pub(super) const BUCKETS: [f64; 17] =
    [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];
