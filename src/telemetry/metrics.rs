//! The counters and histograms, and the text of a scrape.

use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::gauges::Gauges;
use super::labels::{Cause, Code, Cut, Listener, Outcome, Socket, VERSION, Where, Write, Written};
use super::split::Split;
use super::table::{self, BUCKETS, Metric};

/// The `Content-Type` of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is counted while the process lives. One is made at the start and shared.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    origin_bytes: Counter,
    cache_bytes: Counter,
    ensures: Split<Counter>,
    evictions: Counter,
    evicted_bytes: Counter,
    verification_failures: Split<Counter>,
    retries: Split<Counter>,
    scrubbed_bytes: Counter,
    repaired_blobs: Counter,
    control_requests: Split<Counter>,
    connections: Split<Gauge>,
    connections_max: Split<Gauge>,
    connections_cut: Split<Counter>,
    tasks: Gauge,
    cluster_writes: Split<Counter>,
    cluster_up: Gauge,
    ensure_seconds: Split<Histogram>,
    pull_seconds: Histogram,
}

/// The counters that `status` shows, since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Bytes that came over the network.
    pub bytes_from_origin: u64,
    /// Bytes that were served without that.
    pub bytes_from_cache: u64,
    /// Requests whose model was here.
    pub hits: u64,
    /// Requests that waited for a pull of another.
    pub joins: u64,
    /// Requests that started a pull.
    pub pulls: u64,
    /// Requests let in while the model arrives.
    pub lazy: u64,
    /// Requests answered with what was here because the origin could not be asked.
    pub stale: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Models deleted to make room.
    pub evictions: u64,
    /// Bytes that this freed.
    pub bytes_evicted: u64,
    /// Files whose bytes did not match, in transfer and on disk.
    pub verification_failures: u64,
}

fn counter(registry: &mut Registry, metric: &Metric) -> Counter {
    let counter = Counter::default();
    metric.register(registry, counter.clone());
    counter
}

fn counters(registry: &mut Registry, metric: &Metric) -> Split<Counter> {
    let counters = Split::new(metric, Counter::default);
    metric.register(registry, counters.clone());
    counters
}

/// The encoder has no larger numbers.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn gauge(registry: &mut Registry, metric: &Metric) -> Gauge {
    let gauge = Gauge::default();
    metric.register(registry, gauge.clone());
    gauge
}

fn gauges(registry: &mut Registry, metric: &Metric) -> Split<Gauge> {
    let gauges = Split::new(metric, Gauge::default);
    metric.register(registry, gauges.clone());
    gauges
}

impl Metrics {
    /// All at zero, for this version of larder.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::default();
        let build_info = Split::one(VERSION.name, version, ConstGauge::new(1_i64));
        table::BUILD_INFO.register(&mut registry, build_info);
        let ensure_seconds = Split::new(&table::ENSURE_SECONDS, || Histogram::new(BUCKETS));
        table::ENSURE_SECONDS.register(&mut registry, ensure_seconds.clone());
        let pull_seconds = Histogram::new(BUCKETS);
        table::PULL_SECONDS.register(&mut registry, pull_seconds.clone());
        Self {
            origin_bytes: counter(&mut registry, &table::ORIGIN_BYTES),
            cache_bytes: counter(&mut registry, &table::CACHE_BYTES),
            ensures: counters(&mut registry, &table::ENSURES),
            evictions: counter(&mut registry, &table::EVICTIONS),
            evicted_bytes: counter(&mut registry, &table::EVICTED_BYTES),
            verification_failures: counters(&mut registry, &table::VERIFICATION_FAILURES),
            retries: counters(&mut registry, &table::RETRIES),
            scrubbed_bytes: counter(&mut registry, &table::SCRUBBED_BYTES),
            repaired_blobs: counter(&mut registry, &table::REPAIRED_BLOBS),
            control_requests: counters(&mut registry, &table::CONTROL_REQUESTS),
            connections: gauges(&mut registry, &table::CONNECTIONS),
            connections_max: gauges(&mut registry, &table::CONNECTIONS_MAX),
            connections_cut: counters(&mut registry, &table::CONNECTIONS_CUT),
            tasks: gauge(&mut registry, &table::TASKS),
            cluster_writes: counters(&mut registry, &table::CLUSTER_WRITES),
            cluster_up: gauge(&mut registry, &table::CLUSTER_UP),
            ensure_seconds,
            pull_seconds,
            registry,
        }
    }

    /// A request for a model was answered, this long after it came.
    pub fn ensured(&self, outcome: Outcome, took: Duration) {
        self.ensures.at(outcome as usize).inc();
        self.ensure_seconds.at(outcome as usize).observe(took.as_secs_f64());
    }

    /// A pull brought its model, this long after its start. One that failed is not counted here.
    pub fn pulled(&self, took: Duration) {
        self.pull_seconds.observe(took.as_secs_f64());
    }

    /// So many more bytes came from the origin. Call it while they come, or rates are spikes at the end of a pull.
    pub fn origin_bytes(&self, bytes: u64) {
        self.origin_bytes.inc_by(bytes);
    }

    /// So many more bytes were served that did not cross the network for it.
    pub fn served_from_cache(&self, bytes: u64) {
        self.cache_bytes.inc_by(bytes);
    }

    /// One model was deleted to make room, which freed so many bytes.
    pub fn evicted(&self, bytes: u64) {
        self.evictions.inc();
        self.evicted_bytes.inc_by(bytes);
    }

    /// The bytes of one file did not match.
    pub fn verification_failure(&self, place: Where) {
        self.verification_failures.at(place as usize).inc();
    }

    /// So many more requests to the origin were sent again.
    pub fn retried(&self, cause: Cause, times: u64) {
        self.retries.at(cause as usize).inc_by(times);
    }

    /// So many more bytes on disk were read again and compared.
    pub fn scrubbed(&self, bytes: u64) {
        self.scrubbed_bytes.inc_by(bytes);
    }

    /// One damaged blob was fetched again.
    pub fn repaired(&self) {
        self.repaired_blobs.inc();
    }

    /// A request on a socket was answered with this HTTP status.
    pub fn control_request(&self, socket: Socket, status: u16) {
        let codes = Code::LABEL.values.len();
        self.control_requests.at(socket as usize * codes + Code::of(status) as usize).inc();
    }

    /// How many connections a listener may have.
    pub fn connections_max(&self, listener: Listener, most: usize) {
        self.connections_max.at(listener as usize).set(whole(most));
    }

    /// A connection has its place at a listener.
    pub fn connection_opened(&self, listener: Listener) {
        self.connections.at(listener as usize).inc();
    }

    /// That connection has ended.
    pub fn connection_closed(&self, listener: Listener) {
        self.connections.at(listener as usize).dec();
    }

    /// A connection is ended here, or not even taken.
    pub fn connection_cut(&self, listener: Listener, why: Cut) {
        let reasons = Cut::LABEL.values.len();
        self.connections_cut.at(listener as usize * reasons + why as usize).inc();
    }

    /// So many tasks have not ended.
    pub fn tasks(&self, alive: usize) {
        self.tasks.set(whole(alive));
    }

    /// Something was written to the cluster, or not.
    pub fn cluster_write(&self, what: Write, written: Written) {
        let outcomes = Written::LABEL.values.len();
        self.cluster_writes.at(what as usize * outcomes + written as usize).inc();
    }

    /// Whether the cluster is followed: whether what was last asked of each list and watch worked.
    pub fn cluster_up(&self, is_up: bool) {
        self.cluster_up.set(is_up.into());
    }

    /// The counters that `status` shows. Each is exact; together they may be some events apart.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let ensures = |outcome: Outcome| self.ensures.at(outcome as usize).get();
        Totals {
            bytes_from_origin: self.origin_bytes.get(),
            bytes_from_cache: self.cache_bytes.get(),
            hits: ensures(Outcome::Hit),
            joins: ensures(Outcome::Join),
            pulls: ensures(Outcome::Pull),
            lazy: ensures(Outcome::Lazy),
            stale: ensures(Outcome::Stale),
            errors: ensures(Outcome::Error),
            evictions: self.evictions.get(),
            bytes_evicted: self.evicted_bytes.get(),
            verification_failures: self.verification_failures.iter().map(Counter::get).sum(),
        }
    }

    /// What a scrape reads, in the `OpenMetrics` text format: every metric of the table.
    #[must_use]
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut scrape = String::new();
        let written = text::encode_registry(&mut scrape, &self.registry)
            .and_then(|()| text::encode_registry(&mut scrape, &gauges.registry()))
            .and_then(|()| text::encode_eof(&mut scrape));
        // A string takes everything, and no value here is out of the encoder's range.
        debug_assert!(written.is_ok(), "a scrape is encoded");
        scrape
    }
}
