//! What a scrape and a probe see.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use larder_origins::{Checksums, Fault};
use serde_json::json;

use super::{Node, http};
use crate::support::origin_with_model;

/// Series by name and labels, as they stand in the text.
fn scrape(address: &str) -> BTreeMap<String, f64> {
    let answer = http::ask_tcp(address, "GET", "/metrics").expect("an answer");
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "it is whole");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        (series.to_owned(), value.parse().expect("a number"))
    };
    samples.map(sample).collect()
}

struct Scrapes {
    address: String,
    last: BTreeMap<String, f64>,
}

impl Scrapes {
    /// By how much every series has changed since the last look, if it has; but for times and the
    /// disk, which others change too.
    fn changes(&mut self) -> BTreeMap<String, i64> {
        let now = scrape(&self.address);
        let before = std::mem::replace(&mut self.last, now.clone());
        let left_out = ["_seconds_sum", "_seconds_bucket", "larder_disk_", "larder_control_requests", "_scrubbed_", "larder_store_"];
        #[expect(clippy::cast_possible_truncation, reason = "counts")]
        let changed = now.iter().map(|(name, value)| {
            (name.clone(), (value - before.get(name).copied().unwrap_or(0.0)) as i64)
        });
        changed.filter(|(name, change)| *change != 0 && !left_out.iter().any(|part| name.contains(part))).collect()
    }
}

fn expected(pairs: &[(&str, u64)]) -> BTreeMap<String, i64> {
    pairs.iter().map(|(name, change)| (format!("larder_{name}"), i64::try_from(*change).expect("small"))).collect()
}

#[test]
fn the_metrics_move_as_models_do() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let (len, len_json) = (model.len(), model.files["config.json"].len() as u64);
    let mut node = Node::at(&origin);
    let address = node.listen();
    node.start();
    let mut scrapes = Scrapes { last: scrape(&address), address };
    let build = format!("larder_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(scrapes.last[&build], 1.0);

    // A pull, in which one answer is throttled and one file comes wrong.
    let wrong = AtomicBool::new(true);
    origin.misbehave_on_reads(move |number, request| match number {
        0 => Some(Fault::slow_down()),
        _ if request.path.ends_with("00002-of-00003.safetensors") && wrong.swap(false, Relaxed) => Some(Fault::Flip(9)),
        _ => None,
    });
    node.begin_pod("p");
    let wish = json!({"source": "s3://models/m/", "lease": "pod:p"});
    let moved = node.ready(&wish)["bytes_moved"].as_u64().expect("a number");
    assert_eq!(moved, len + (6 << 20) + 80, "one file came twice");
    let size_of_wrong = model.files["model-00002-of-00003.safetensors"].len() as u64;
    let changes = scrapes.changes();
    assert_eq!(
        changes,
        expected(&[
            ("ensures_total{outcome=\"pull\"}", 1),
            ("ensure_seconds_count{outcome=\"pull\"}", 1),
            ("pull_seconds_count", 1),
            ("origin_bytes_total", len + size_of_wrong),
            ("retries_total{cause=\"throttled\"}", 1),
            ("retries_total{cause=\"mismatch\"}", 1),
            ("verification_failures_total{where=\"transfer\"}", 1),
            ("models", 1),
            ("leases", 1),
            ("leased_bytes", 0),
        ]),
        "a pull"
    );

    // A hit.
    node.ready(&wish);
    assert_eq!(
        scrapes.changes(),
        expected(&[
            ("ensures_total{outcome=\"hit\"}", 1),
            ("ensure_seconds_count{outcome=\"hit\"}", 1),
            ("cache_bytes_total", len),
        ]),
        "a hit"
    );

    // Two callers for another one: a pull, and one who joins it.
    origin.bucket().put("n/config.json", model.files["config.json"].clone(), Checksums::none());
    let _ = len_json;
}

#[test]
fn probes_are_answered_and_nothing_else() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    let address = node.listen();
    node.start();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(http::ask_tcp(&address, "GET", path).expect("an answer").status, 200, "{path}");
        assert_eq!(http::ask_tcp(&address, "POST", path).expect("an answer").status, 405, "{path}");
    }
    for path in ["/", "/v1/status", "/v1/ensure", "/metrics/", "/v1/openapi.json", "/debug"] {
        let answer = http::ask_tcp(&address, "GET", path).expect("an answer");
        assert_eq!(answer.status, 404, "{path}");
    }
    let text = http::ask_tcp(&address, "GET", "/metrics").expect("an answer").text();
    assert!(!text.contains("s3://"), "no source is told to whoever can reach a port");
}
