//! What a scrape and a probe see.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use larder_origins::{Checksums, Fault, Front, Noise, Origin};
use serde_json::json;

use super::{Node, http};
use crate::mount::{assert_reads, mount_status, mounting};
use crate::support::origin_with_model;

/// Series by name and labels, as they stand in the text, with their values in whole numbers.
fn scrape(address: &str) -> BTreeMap<String, u64> {
    let answer = http::ask_tcp(address, "GET", "/metrics").expect("an answer");
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "it is whole");
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let value: f64 = value.parse().expect("a number");
        (series.to_owned(), format!("{value:.0}").parse().expect("not below 0"))
    };
    text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

/// A node whose metrics are looked at again and again.
struct Scrapes {
    address: String,
    last: BTreeMap<String, u64>,
}

impl Scrapes {
    /// Looks, and asserts that since the last look these series have grown by that much, and no
    /// other; but for times, for the disk, which others change too, and for what is measured in
    /// its blocks and inodes.
    #[track_caller]
    fn grew(&mut self, what: &str, expected: &[(&str, u64)]) {
        let left_out = [
            "_seconds_sum",
            "_seconds_bucket",
            "control_requests",
            "connections",
            "tasks",
            "_scrubbed_",
            "disk_",
            "store_",
            "_inodes",
        ];
        let blocks = ["larder_pinned_bytes", "larder_leased_bytes", "larder_evictable_bytes", "larder_reserved_bytes"];
        let now = scrape(&self.address);
        let before = std::mem::replace(&mut self.last, now.clone());
        let counts = |name: &str| !left_out.iter().any(|part| name.contains(part)) && !blocks.contains(&name);
        let grown = now.into_iter().filter_map(|(name, value)| {
            let growth = value.saturating_sub(before.get(&name).copied().unwrap_or(0));
            (growth > 0 && counts(&name)).then_some((name, growth))
        });
        let expected = expected.iter().map(|(name, growth)| (format!("larder_{name}"), *growth));
        assert_eq!(grown.collect::<BTreeMap<_, _>>(), expected.collect(), "{what}");
    }

    /// Asserts what the store's bytes are there for, in whole blocks of the disk: pinned, in use,
    /// evictable, promised to pulls.
    #[track_caller]
    fn shares(&self, expected: [u64; 4]) {
        for (share, bytes) in ["pinned", "leased", "evictable", "reserved"].iter().zip(expected) {
            let is = self.last[&format!("larder_{share}_bytes")];
            assert!((bytes..=bytes + bytes / 10).contains(&is), "{share}: {is}, and not {bytes}");
        }
    }
}

#[test]
fn the_metrics_move_as_models_do() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let len = model.len();
    let mut node = Node::at(&origin);
    let address = node.listen();
    node.start();
    let mut scrapes = Scrapes { last: scrape(&address), address };
    assert_eq!(scrapes.last[&format!("larder_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))], 1);

    let wrong = AtomicBool::new(true);
    origin.misbehave_on_reads(move |number, request| match number {
        0 => Some(Fault::slow_down()),
        _ if request.path.ends_with("00002-of-00003.safetensors") && wrong.swap(false, Relaxed) => Some(Fault::Flip(9)),
        _ => None,
    });
    node.begin_pod("p");
    let wish = json!({"source": "s3://models/m/", "lease": "pod:p"});
    let twice = model.files["model-00002-of-00003.safetensors"].len() as u64;
    assert_eq!(node.ready(&wish)["bytes_moved"], len + twice);
    let pull = [
        ("ensures_total{outcome=\"pull\"}", 1),
        ("ensure_seconds_count{outcome=\"pull\"}", 1),
        ("pull_seconds_count", 1),
        ("origin_bytes_total", len + twice),
        ("retries_total{cause=\"throttled\"}", 1),
        ("retries_total{cause=\"mismatch\"}", 1),
        ("verification_failures_total{where=\"transfer\"}", 1),
        ("models", 1),
        ("leases", 1),
    ];
    scrapes.grew("a pull with one answer throttled and one file wrong", &pull);
    scrapes.shares([0, len, 0, 0]);

    node.ready(&wish);
    let hit = [
        ("ensures_total{outcome=\"hit\"}", 1),
        ("ensure_seconds_count{outcome=\"hit\"}", 1),
        ("cache_bytes_total", len),
    ];
    scrapes.grew("a hit", &hit);

    node.ensure(&json!({"source": "s3://models/absent/"}));
    node.ask_admin("POST", "/v1/pin", Some(&json!({"model": "s3://models/m/"})));
    let error = [("ensures_total{outcome=\"error\"}", 1), ("ensure_seconds_count{outcome=\"error\"}", 1), ("pins", 1)];
    scrapes.grew("an error, and a pin", &error);
    // It stays for that reason now.
    scrapes.shares([len, 0, 0, 0]);
}

#[test]
fn one_who_pulls_and_one_who_joins_are_told_apart() {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.bucket().put("n/weights.bin", Noise::new(5).bytes(1 << 20), Checksums::none());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let mut node = Node::at(&origin);
    let address = node.listen();
    node.start();
    let mut scrapes = Scrapes { last: scrape(&address), address };
    let wish = json!({"source": "s3://models/n/"});
    std::thread::scope(|scope| {
        scope.spawn(|| node.ready(&wish));
        node.until("one waits", |status| status["moving"][0]["waiters"] == 1);
        scope.spawn(|| node.ready(&wish));
        node.until("two wait", |status| status["moving"][0]["waiters"] == 2);
        let now = scrape(&scrapes.address);
        assert_eq!((now["larder_pulls_in_flight"], now["larder_callers_waiting"]), (1, 2));
    });
    let both = [
        ("ensures_total{outcome=\"pull\"}", 1),
        ("ensures_total{outcome=\"join\"}", 1),
        ("ensure_seconds_count{outcome=\"pull\"}", 1),
        ("ensure_seconds_count{outcome=\"join\"}", 1),
        ("pull_seconds_count", 1),
        ("origin_bytes_total", 1 << 20),
        ("models", 1),
    ];
    scrapes.grew("a pull and a join", &both);
    scrapes.shares([0, 0, 1 << 20, 0]);

    // The status counts the same things.
    let (now, totals) = (scrape(&scrapes.address), node.status()["totals"].clone());
    for (series, total) in [
        ("larder_origin_bytes_total", "bytes_from_origin"),
        ("larder_cache_bytes_total", "bytes_from_cache"),
        ("larder_ensures_total{outcome=\"hit\"}", "hits"),
        ("larder_ensures_total{outcome=\"join\"}", "joins"),
        ("larder_ensures_total{outcome=\"pull\"}", "pulls"),
        ("larder_ensures_total{outcome=\"lazy\"}", "lazy"),
        ("larder_ensures_total{outcome=\"stale\"}", "stale"),
        ("larder_ensures_total{outcome=\"error\"}", "errors"),
        ("larder_evictions_total", "evictions"),
        ("larder_verification_failures_total{where=\"transfer\"}", "verification_failures"),
    ] {
        assert_eq!(now[series], totals[total], "{series}");
    }
    assert!(now["larder_control_requests_total{socket=\"use\",code=\"2xx\"}"] >= 4);
    assert_eq!(now["larder_control_requests_total{socket=\"admin\",code=\"2xx\"}"], 0);
    node.ask("POST", "/v1/pin", None);
    node.ask_admin("GET", "/v1/models", None);
    scrapes.last = scrape(&scrapes.address);
    assert_eq!(scrapes.last["larder_control_requests_total{socket=\"use\",code=\"4xx\"}"], 1);
    assert_eq!(scrapes.last["larder_control_requests_total{socket=\"admin\",code=\"2xx\"}"], 1);
}

#[test]
fn what_pods_do_in_the_mount_is_counted() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.bucket().put("late/model.safetensors", Noise::new(6).bytes(1 << 20), Checksums::none());
    origin.bucket().put("late/config.json", b"{}".to_vec(), Checksums::none());
    origin.misbehave_on_reads(|_, request| request.path.contains("late/model").then_some(Fault::Stall(0)));
    let Some(mut node) = mounting(&origin) else { return };
    node.set("read_timeout", "\"2s\"");
    let address = node.listen();
    node.start();
    let mut scrapes = Scrapes { last: scrape(&address), address };
    let passes = mount_status(&node)["sealed"] == "passthrough";
    let ups = [scrapes.last["larder_mount_up"], scrapes.last["larder_mount_passthrough"]];
    assert_eq!(ups, [1, u64::from(passes)]);
    assert_eq!(http::ask_tcp(&scrapes.address, "GET", "/readyz").expect("an answer").status, 200);

    let ready = node.ready(&json!({"source": "s3://models/m/"}));
    scrapes.last = scrape(&scrapes.address);
    assert_reads(Path::new(ready["path"].as_str().expect("a path")), &model);
    let (files, len) = (model.files.len() as u64, model.len());
    if passes {
        scrapes.grew("what the kernel reads", &[("mount_opens_total{how=\"passthrough\"}", files)]);
    } else {
        let reads = [("mount_opens_total{how=\"cached\"}", files), ("mount_read_bytes_total", len)];
        scrapes.grew("what the daemon reads", &reads);
    }

    let lazily = node.ready(&json!({"source": "s3://models/late/", "lazy": true, "lease": "process:1"}));
    assert_eq!(lazily["arriving"], true, "{lazily}");
    let late = Path::new(lazily["path"].as_str().expect("a path")).join("model.safetensors");
    let reader = std::thread::spawn(move || fs::read(late));
    node.until("it waits", |status| status["mount"]["reads_waiting"].as_u64() > Some(0));
    assert!(scrape(&scrapes.address)["larder_mount_waiting_reads"] > 0);
    reader.join().expect("a reader").expect_err("nothing comes");
    let mount = node.until("nobody waits", |status| status["mount"]["reads_waiting"] == 0)["mount"].clone();
    scrapes.last = scrape(&scrapes.address);
    for (series, of_status) in [
        ("opens_total{how=\"passthrough\"}", "opens_passed"),
        ("opens_total{how=\"cached\"}", "opens_cached"),
        ("opens_total{how=\"arriving\"}", "opens_arriving"),
        ("waiting_reads", "reads_waiting"),
        ("failed_reads_total", "reads_failed"),
        ("read_bytes_total", "bytes_read"),
    ] {
        assert_eq!(scrapes.last[&format!("larder_mount_{series}")], mount[of_status], "{series}: {mount}");
    }
    assert!(mount["reads_failed"].as_u64() > Some(0), "{mount}");
    assert_eq!((&mount["opens_arriving"], &node.status()["totals"]["lazy"]), (&json!(1), &json!(1)), "{mount}");
}

#[test]
fn a_node_without_its_mount_is_not_ready() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.set("mount", "\"keeper:/nonexistent/sock\"");
    let address = node.listen();
    node.start();
    let answer = http::ask_tcp(&address, "GET", "/readyz").expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (503, "the mount is not up yet\n"));
    assert_eq!(http::ask_tcp(&address, "GET", "/healthz").expect("an answer").status, 200);
    assert_eq!(node.status()["mount"]["directory"], json!(null));
    let mut mount = scrape(&address);
    mount.retain(|name, _| name.starts_with("larder_mount_"));
    assert!(mount.len() == 8 && mount.values().all(|value| *value == 0), "{mount:?}");
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
