//! The table, the text of a scrape and the dashboard say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::promql::{self, Selector};
use super::table::BUCKETS;
use super::{
    Cause, Cut, Gauges, Inodes, Kind, Listener, Metrics, Mount, Outcome, Socket, TABLE, Totals, Where, Write, Written,
};

/// Copied beside the manifests of the daemonset, for people to import.
const DASHBOARD: &str = include_str!("../../daemonset/grafana/larder.json");

/// Labels that Prometheus puts on whatever it scrapes.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

/// A scrape, taken apart: name of each series, and of each label the values that occur.
#[derive(Default)]
struct Scrape {
    series: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// Name and labels as they stand there, and the value.
    samples: BTreeMap<String, String>,
    /// `# TYPE`, `# HELP` and `# UNIT` lines, by keyword and name.
    comments: BTreeMap<(String, String), String>,
}

impl Scrape {
    fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        assert_eq!(text.lines().last(), Some("# EOF"));
        for line in text.lines().take_while(|line| *line != "# EOF") {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ').map(str::to_owned);
                let mut word = || words.next().expect("a keyword, a name and a text");
                let old = scrape.comments.insert((word(), word()), word());
                assert_eq!(old, None, "`{line}` is said once");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let old = scrape.samples.insert(series.to_owned(), value.to_owned());
            assert_eq!(old, None, "`{series}` is there once");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let known = scrape.series.entry(name.to_owned()).or_default();
            for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once('=').expect("a label's value");
                known.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
            }
        }
        scrape
    }

    fn fresh() -> Self {
        Self::read(&Metrics::new("1.2.3").render(&Gauges::default()))
    }

    fn value(&self, series: &str) -> &str {
        self.samples.get(series).unwrap_or_else(|| panic!("no `{series}`"))
    }
}

/// What is put behind a metric's name to make those of its series.
fn suffixes(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Counter => &["_total"],
        Kind::Gauge => &[""],
        Kind::Histogram => &["_bucket", "_sum", "_count"],
    }
}

#[test]
fn the_scrape_is_the_table() {
    let scrape = Scrape::fresh();
    let mut expected = BTreeSet::new();
    for metric in TABLE {
        let comment = |keyword: &str| scrape.comments.get(&(keyword.to_owned(), metric.name.to_owned()));
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!(comment("TYPE").map(String::as_str), Some(kind), "{}", metric.name);
        assert_eq!(comment("HELP"), Some(&format!("{}.", metric.help)), "{}", metric.name);
        assert_eq!(comment("UNIT").map(String::as_str), metric.unit.map(super::Unit::word), "{}", metric.name);
        for suffix in suffixes(metric.kind) {
            let name = format!("{}{suffix}", metric.name);
            let series = scrape.series.get(&name).unwrap_or_else(|| panic!("no `{name}`"));
            for label in metric.labels {
                let values: BTreeSet<String> = label.values.iter().map(|value| (*value).to_owned()).collect();
                assert!(values.is_empty() || series[label.name] == values, "{name}: {series:?}");
            }
            let bucket = usize::from(*suffix == "_bucket");
            assert_eq!(series.len(), metric.labels.len() + bucket, "{name}: {series:?}");
            let combinations: usize = metric.labels.iter().map(|label| label.values.len().max(1)).product();
            let expected = combinations * if bucket == 1 { BUCKETS.len() + 1 } else { 1 };
            let prefix = format!("{name}{{");
            let count = scrape.samples.keys().filter(|key| **key == name || key.starts_with(&prefix)).count();
            assert_eq!(count, expected, "every series of {name} is there from the first scrape");
        }
        expected.extend(suffixes(metric.kind).iter().map(|suffix| format!("{}{suffix}", metric.name)));
    }
    assert_eq!(scrape.series.keys().cloned().collect::<BTreeSet<_>>(), expected, "nothing but the table");
    for (series, value) in &scrape.samples {
        let zero = if series.contains("build_info") { "1" } else { "0" };
        assert!(value == zero || value == "0.0", "{series} {value}");
    }
    assert_eq!(scrape.value("larder_build_info{version=\"1.2.3\"}"), "1");
}

#[test]
fn names_are_as_prometheus_wants_them() {
    let mut names = BTreeSet::new();
    for metric in TABLE {
        let name = metric.name;
        assert!(names.insert(name), "{name} is there once");
        assert!(name.strip_prefix("larder_").is_some_and(|rest| !rest.is_empty()), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        // The encoder adds these.
        assert!(!["_total", "_bucket", "_sum", "_count"].iter().any(|suffix| name.ends_with(suffix)), "{name}");
        for unit in ["bytes", "seconds"] {
            let said = metric.unit.is_some_and(|own| own.word() == unit);
            assert_eq!(name.ends_with(&format!("_{unit}")), said, "{name}: base unit at the end");
        }
        assert!(!name.contains("_milli") && !name.contains("_percent") && !name.contains("_mib"), "{name}: base units");
        assert!(metric.kind != Kind::Histogram || metric.unit.is_some(), "{name}");
        assert!(metric.help.starts_with(char::is_uppercase) && !metric.help.ends_with('.'), "{name}: {}", metric.help);
        for label in metric.labels {
            assert!(label.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{name}: {}", label.name);
            assert!(!TARGET_LABELS.contains(&label.name) && label.name != "le", "{name}: {}", label.name);
        }
    }
    assert!(BUCKETS.is_sorted_by(|a, b| a < b));
}

#[test]
fn each_event_is_counted_where_it_belongs() {
    let metrics = Metrics::new("1");
    metrics.ensured(Outcome::Hit, Duration::from_millis(3));
    metrics.ensured(Outcome::Hit, Duration::from_millis(3));
    metrics.ensured(Outcome::Join, Duration::from_secs(7));
    metrics.ensured(Outcome::Pull, Duration::from_secs(8));
    metrics.ensured(Outcome::Lazy, Duration::from_secs(1));
    metrics.ensured(Outcome::Stale, Duration::from_secs(1));
    metrics.ensured(Outcome::Error, Duration::from_hours(3));
    metrics.pulled(Duration::from_secs(8));
    metrics.origin_bytes(1000);
    metrics.origin_bytes(24);
    metrics.served_from_cache(2048);
    metrics.evicted(512);
    metrics.evicted(256);
    metrics.verification_failure(Where::Transfer);
    metrics.verification_failure(Where::Scrub);
    metrics.verification_failure(Where::Scrub);
    metrics.retried(Cause::Throttled, 4);
    metrics.retried(Cause::Stalled, 3);
    metrics.retried(Cause::Mismatch, 2);
    metrics.retried(Cause::Other, 1);
    metrics.scrubbed(4096);
    metrics.repaired();
    for status in [200, 204, 404, 409, 429, 503] {
        metrics.control_request(Socket::Use, status);
    }
    metrics.control_request(Socket::Admin, 500);
    metrics.connections_max(Listener::Csi, 256);
    metrics.connection_opened(Listener::Csi);
    metrics.connection_opened(Listener::Csi);
    metrics.connection_closed(Listener::Csi);
    metrics.connection_cut(Listener::Admin, Cut::Silent);
    metrics.tasks(11);
    metrics.cluster_write(Write::Labels, Written::Done);
    metrics.cluster_write(Write::Taint, Written::Refused);
    metrics.cluster_write(Write::Status, Written::Failed);
    metrics.cluster_write(Write::Status, Written::Failed);
    metrics.cluster_up(true);
    let scrape = Scrape::read(&metrics.render(&Gauges::default()));
    for (series, value) in [
        ("larder_ensures_total{outcome=\"hit\"}", "2"),
        ("larder_ensures_total{outcome=\"join\"}", "1"),
        ("larder_ensures_total{outcome=\"pull\"}", "1"),
        ("larder_ensures_total{outcome=\"lazy\"}", "1"),
        ("larder_ensures_total{outcome=\"stale\"}", "1"),
        ("larder_ensures_total{outcome=\"error\"}", "1"),
        ("larder_ensure_seconds_bucket{le=\"0.001\",outcome=\"hit\"}", "0"),
        ("larder_ensure_seconds_bucket{le=\"0.005\",outcome=\"hit\"}", "2"),
        ("larder_ensure_seconds_bucket{le=\"7200.0\",outcome=\"error\"}", "0"),
        ("larder_ensure_seconds_bucket{le=\"+Inf\",outcome=\"error\"}", "1"),
        ("larder_ensure_seconds_sum{outcome=\"join\"}", "7.0"),
        ("larder_pull_seconds_count", "1"),
        ("larder_pull_seconds_sum", "8.0"),
        ("larder_origin_bytes_total", "1024"),
        ("larder_cache_bytes_total", "2048"),
        ("larder_evictions_total", "2"),
        ("larder_evicted_bytes_total", "768"),
        ("larder_verification_failures_total{where=\"transfer\"}", "1"),
        ("larder_verification_failures_total{where=\"scrub\"}", "2"),
        ("larder_retries_total{cause=\"throttled\"}", "4"),
        ("larder_retries_total{cause=\"stalled\"}", "3"),
        ("larder_retries_total{cause=\"mismatch\"}", "2"),
        ("larder_retries_total{cause=\"other\"}", "1"),
        ("larder_scrubbed_bytes_total", "4096"),
        ("larder_repaired_blobs_total", "1"),
        ("larder_control_requests_total{socket=\"use\",code=\"2xx\"}", "2"),
        ("larder_control_requests_total{socket=\"use\",code=\"4xx\"}", "3"),
        ("larder_control_requests_total{socket=\"use\",code=\"5xx\"}", "1"),
        ("larder_control_requests_total{socket=\"admin\",code=\"2xx\"}", "0"),
        ("larder_connections{listener=\"csi\"}", "1"),
        ("larder_connections_max{listener=\"csi\"}", "256"),
        ("larder_connections_cut_total{listener=\"admin\",why=\"silent\"}", "1"),
        ("larder_connections_cut_total{listener=\"csi\",why=\"silent\"}", "0"),
        ("larder_tasks", "11"),
        ("larder_control_requests_total{socket=\"admin\",code=\"5xx\"}", "1"),
        ("larder_cluster_writes_total{kind=\"labels\",outcome=\"done\"}", "1"),
        ("larder_cluster_writes_total{kind=\"labels\",outcome=\"failed\"}", "0"),
        ("larder_cluster_writes_total{kind=\"taint\",outcome=\"refused\"}", "1"),
        ("larder_cluster_writes_total{kind=\"status\",outcome=\"failed\"}", "2"),
        ("larder_cluster_up", "1"),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    let totals = Totals {
        bytes_from_origin: 1024,
        bytes_from_cache: 2048,
        hits: 2,
        joins: 1,
        pulls: 1,
        lazy: 1,
        stale: 1,
        errors: 1,
        evictions: 2,
        bytes_evicted: 768,
        verification_failures: 3,
    };
    assert_eq!(metrics.totals(), totals);
}

#[test]
fn each_value_read_at_a_scrape_is_shown_as_its_own() {
    let gauges = Gauges {
        pulls_in_flight: 1,
        callers_waiting: 2,
        disk_bytes: 3,
        disk_free_bytes: 4,
        store_bytes: 5,
        pinned_bytes: 6,
        leased_bytes: 7,
        reserved_bytes: 8,
        evictable_bytes: 9,
        high_watermark_bytes: u64::MAX,
        inodes: Inodes { total: 19, free: 20, store: 21, reserved: 22, evictable: 23, high: 24 },
        leases: 11,
        pins: 12,
        models: 13,
        damaged_blobs: 19,
        lost_log_lines: 21,
        failed_prefetches: 20,
        is_read_only: true,
        mount: Mount {
            is_up: true,
            passes: true,
            opens_passed: 14,
            opens_cached: 15,
            opens_arriving: 16,
            reads_waiting: 17,
            reads_failed: 18,
            bytes_read: u64::MAX,
        },
    };
    let scrape = Scrape::read(&Metrics::new("1").render(&gauges));
    for (series, value) in [
        ("larder_pulls_in_flight", "1"),
        ("larder_callers_waiting", "2"),
        ("larder_disk_bytes", "3"),
        ("larder_disk_free_bytes", "4"),
        ("larder_store_bytes", "5"),
        ("larder_pinned_bytes", "6"),
        ("larder_leased_bytes", "7"),
        ("larder_disk_inodes", "19"),
        ("larder_disk_free_inodes", "20"),
        ("larder_store_inodes", "21"),
        ("larder_reserved_inodes", "22"),
        ("larder_evictable_inodes", "23"),
        ("larder_high_watermark_inodes", "24"),
        ("larder_reserved_bytes", "8"),
        ("larder_evictable_bytes", "9"),
        ("larder_lost_log_lines_total", "21"),
        ("larder_failed_prefetches", "20"),
        ("larder_store_read_only", "1"),
        // As much as the encoder takes.
        ("larder_high_watermark_bytes", "9223372036854775807"),
        ("larder_leases", "11"),
        ("larder_pins", "12"),
        ("larder_models", "13"),
        ("larder_damaged_blobs", "19"),
        ("larder_mount_up", "1"),
        ("larder_mount_passthrough", "1"),
        ("larder_mount_opens_total{how=\"passthrough\"}", "14"),
        ("larder_mount_opens_total{how=\"cached\"}", "15"),
        ("larder_mount_opens_total{how=\"arriving\"}", "16"),
        ("larder_mount_waiting_reads", "17"),
        ("larder_mount_failed_reads_total", "18"),
        ("larder_mount_read_bytes_total", "18446744073709551615"),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
}

/// All panels, those of folded rows too.
fn panels(of: &Value) -> Vec<&Value> {
    let own = of["panels"].as_array().into_iter().flatten();
    own.flat_map(|panel| std::iter::once(panel).chain(panels(panel))).collect()
}

/// The labels between `{{` and `}}` of a legend.
fn legend_labels(legend: &str) -> Vec<&str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(label, _)| label.trim()).collect()
}

/// What is wrong with one selector, if anything.
fn wrong(scrape: &Scrape, selector: &Selector) -> Option<String> {
    let name = &selector.metric;
    let Some(labels) = scrape.series.get(name) else { return Some(format!("no series is called `{name}`")) };
    for label in selector.matched.keys().chain(&selector.grouped) {
        if !labels.contains_key(label) && !TARGET_LABELS.contains(&label.as_str()) {
            return Some(format!("`{name}` has no label `{label}`"));
        }
    }
    for (label, words) in &selector.matched {
        let Some(known) = labels.get(label) else { continue };
        if let Some(word) = words.iter().find(|word| !known.contains(*word)) {
            return Some(format!("`{label}` of `{name}` is never `{word}`"));
        }
    }
    let gauge = TABLE.iter().any(|metric| metric.kind == Kind::Gauge && metric.name == name);
    (selector.ranged == gauge).then(|| format!("`{name}`: counters are read over a range, and gauges are not"))
}

#[test]
fn the_dashboard_asks_only_for_what_is_there_and_for_all_of_it() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let scrape = Scrape::fresh();
    let mut complaints = Vec::new();
    let mut shown = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().expect("an expression");
            let selectors = match promql::selectors(text) {
                Ok(selectors) if selectors.is_empty() => {
                    complaints.push(format!("{title}: `{text}` reads nothing"));
                    continue;
                }
                Ok(selectors) => selectors,
                Err(problem) => {
                    complaints.push(format!("{title}: {problem}"));
                    continue;
                }
            };
            for selector in &selectors {
                complaints.extend(wrong(&scrape, selector).map(|problem| format!("{title}: {problem}")));
                if !selector.matched.contains_key("instance") {
                    complaints.push(format!("{title}: `{}` ignores the chosen nodes", selector.metric));
                }
                shown.insert(selector.metric.clone());
            }
            for label in legend_labels(target["legendFormat"].as_str().unwrap_or_default()) {
                if !selectors.iter().all(|selector| selector.grouped.contains(label)) {
                    complaints.push(format!("{title}: the legend's `{label}` does not reach it in `{text}`"));
                }
            }
        }
    }
    for metric in TABLE {
        let names: Vec<String> =
            suffixes(metric.kind).iter().map(|suffix| format!("{}{suffix}", metric.name)).collect();
        if !names.iter().any(|name| shown.contains(name)) {
            complaints.push(format!("no panel shows {}", metric.name));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_dashboard_can_be_imported_and_read() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    assert_eq!(dashboard["id"], Value::Null, "an id is another installation's");
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| (36..=41).contains(&version)));
    let mut ids = BTreeSet::new();
    let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is there twice");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("{title}: gridPos.{name}"));
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24, "{title} is beside the grid");
                assert_eq!(taken.insert((x, y), title), None, "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(description.len() > 60, "{title}: say what it shows and what to do");
        let sources = panel["targets"].as_array().into_iter().flatten().chain([panel]);
        for source in sources {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variable = |name: &str| variables.iter().find(|variable| variable["name"] == name).expect("a variable");
    assert_eq!(variable("datasource")["query"], "prometheus");
    let query = variable("node")["query"]["query"].as_str().expect("a query");
    let (metric, label) = query
        .strip_prefix("label_values(")
        .and_then(|rest| rest.strip_suffix(')')?.split_once(", "))
        .expect("label_values(METRIC, LABEL)");
    assert!(Scrape::fresh().series.contains_key(metric), "{metric}");
    assert!(TARGET_LABELS.contains(&label), "{label}");
}

#[test]
fn expressions_are_taken_apart() {
    let read = |text: &str| -> Vec<String> {
        promql::selectors(text)
            .expect("an expression")
            .into_iter()
            .map(|selector| {
                let matched: Vec<_> = selector.matched.keys().map(String::as_str).collect();
                let grouped: Vec<_> = selector.grouped.iter().map(String::as_str).collect();
                let range = if selector.ranged { "[]" } else { "" };
                format!("{}{{{}}}{range} by {}", selector.metric, matched.join(","), grouped.join(","))
            })
            .collect()
    };
    assert_eq!(read("up"), ["up{} by "]);
    assert_eq!(
        read(r#"histogram_quantile(0.99, sum by (le, x) (rate(a_bucket{i=~"$n", y!="b(}\""}[5m] offset 1h)))"#),
        ["a_bucket{i,y}[] by le,x"]
    );
    assert_eq!(
        read("sum(a{}) by (x) / (sum without(y) (b) + 1e3) > bool c and d"),
        ["a{} by x", "b{} by y", "c{} by ", "d{} by "]
    );
    for bad in ["sum(a", "a)", "a{x=1}", "a{", "a[5m", "{x=\"1\"}", "a * on (x) b", "a # b", "a{x=\"1"] {
        assert!(promql::selectors(bad).is_err(), "{bad}");
    }
}
