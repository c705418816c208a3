//! Models that are here start without the bucket.

use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Origin, SampleModel};
use serde_json::{Value, json};

use super::Node;
use crate::support::{read_tree, upload, wait};

const SOURCE: &str = "s3://models/m/";

fn origin() -> (Origin, SampleModel) {
    let origin = Origin::start(Front::S3).expect("an origin");
    let model = SampleModel::new(8, 1, 1 << 18);
    upload(origin.bucket(), "m/", &model, Checksums::single_part());
    (origin, model)
}

fn dest(node: &Node, name: &str) -> String {
    node.path(name).to_str().expect("text").to_owned()
}

fn set_pinned(node: &Node, call: &str) {
    let (status, told) = node.ask_admin("POST", call, Some(&json!({"model": SOURCE})));
    assert_eq!((status, &told["models"]), (200, &json!([SOURCE])), "{told}");
}

fn is_pinned(node: &Node) -> bool {
    node.ask("GET", "/v1/models", None).1["models"][0]["pinned"].as_bool().expect("known")
}

#[test]
fn a_pinned_model_asks_the_origin_nothing_and_starts_without_it() {
    let (origin, model) = origin();
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    node.start();
    node.ready(&json!({"source": SOURCE}));
    set_pinned(&node, "/v1/pin");
    let asked = origin.seen().len();
    node.ready(&json!({"source": SOURCE}));
    assert_eq!(origin.seen().len(), asked, "a pinned model is given out as it is");
    assert_eq!(node.status()["pins"], 1);

    drop(origin);
    node.restart();
    assert!(is_pinned(&node), "a pin survives kill -9");
    node.begin_pod("p");
    let ran = node.init(&[SOURCE, &dest(&node, "a"), "--pod-uid", "p"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!ran.stderr.contains("warning"), "nothing is amiss: {ran:?}");
    assert!(read_tree(&node.path("a").canonicalize().expect("a link")) == model.files);
    assert_eq!(node.terminate().0, Some(0));
    node.start();
    assert!(is_pinned(&node), "a pin survives an orderly end");
    let (status, told) = node.ask_admin("POST", "/v1/remove", Some(&json!({"models": [SOURCE]})));
    assert_eq!(status, 409, "{told}");

    node.end_pod("p");
    set_pinned(&node, "/v1/unpin");
    node.restart();
    assert!(!is_pinned(&node), "nor does a pin come back that was taken back");
}

#[test]
fn within_recheck_a_model_asks_the_origin_nothing() {
    let (origin, model) = origin();
    let mut node = Node::at(&origin);
    node.set("recheck", "\"1h\"");
    node.start();
    node.ready(&json!({"source": SOURCE}));
    let asked = origin.seen().len();
    for _ in 0..3 {
        node.ready(&json!({"source": SOURCE}));
    }
    assert_eq!(origin.seen().len(), asked);
    drop(origin);
    let events = node.ensure(&json!({"source": SOURCE}));
    assert_eq!(events.len(), 1, "no warning: the answer is young enough: {events:?}");
    assert!(read_tree(events[0]["path"].as_str().expect("a path").as_ref()) == model.files);
}

#[test]
fn after_recheck_one_listing_serves_all_who_come_at_once() {
    let (origin, _) = origin();
    let mut node = Node::at(&origin);
    node.set("recheck", "\"1h\"");
    node.start();
    node.ready(&json!({"source": SOURCE}));
    // What was answered in another life does not count.
    node.restart();
    origin.forget_seen();
    std::thread::scope(|scope| {
        (0..16).for_each(|_| {
            scope.spawn(|| node.ready(&json!({"source": SOURCE})));
        });
    });
    let listings = origin.seen().iter().filter(|seen| seen.request.query("list-type").is_some()).count();
    assert_eq!((listings, origin.reads()), (1, 0));
}

#[test]
fn without_the_bucket_a_cached_model_starts_with_a_warning_and_fresh_refuses() {
    let (origin, model) = origin();
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    node.start();
    node.ready(&json!({"source": SOURCE}));
    drop(origin);
    node.begin_pod("p");
    let ran = node.init(&[SOURCE, &dest(&node, "a"), "--pod-uid", "p"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stderr.contains("warning") && ran.stderr.contains("as it was when its origin last answered"),
        "{ran:?}"
    );
    assert!(read_tree(&node.path("a").canonicalize().expect("a link")) == model.files);
    assert!(node.log().contains("as it was when its origin last answered"), "the node's log has it too");

    // Both are tried for a while, so both at once.
    let fresh = node.spawn_init(&[SOURCE, &dest(&node, "b"), "--pod-uid", "p", "--fresh"]);
    let other = node.spawn_init(&["s3://models/other/", &dest(&node, "c")]);
    let ran = wait(fresh);
    assert_eq!(ran.code, Some(69), "{ran:?}");
    assert!(ran.stderr.contains("a complete copy is here: without `fresh` it is given out"), "{ran:?}");
    let ran = wait(other);
    assert_eq!(ran.code, Some(69), "{ran:?}");
    assert!(ran.stderr.contains("s3://models/other/"), "{ran:?}");
    assert!(!node.path("b").exists() && !node.path("c").exists());
    let totals = node.status()["totals"].clone();
    assert_eq!((&totals["stale"], &totals["errors"]), (&json!(1), &json!(2)), "{totals}");
}

/// "Forbidden" and "not found" are answers, and no reason to give out an old copy in silence.
#[test]
fn an_origin_that_says_no_is_believed() {
    let (origin, _) = origin();
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    node.start();
    node.ready(&json!({"source": SOURCE}));
    origin.misbehave(|_| Some(Fault::Refuse(403, "AccessDenied", None)));
    let ran = node.init(&[SOURCE, &dest(&node, "a")]);
    assert_eq!(ran.code, Some(77), "{ran:?}");
    origin.behave();
    for (path, _) in origin.bucket().list("m/") {
        origin.bucket().remove(&path);
    }
    let ran = node.init(&[SOURCE, &dest(&node, "a")]);
    assert_eq!(ran.code, Some(66), "{ran:?}");
}

#[test]
fn a_source_that_has_changed_is_given_out_as_it_is_now() {
    let (origin, _) = origin();
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    node.start();
    let before = node.ready(&json!({"source": SOURCE}));
    origin.bucket().put("m/config.json", b"{\"new\":1}".to_vec(), Checksums::single_part());
    let after = node.ready(&json!({"source": SOURCE}));
    assert_ne!(before["digest"], after["digest"]);
    assert_eq!(after["bytes_moved"], 9);
    let read = |ready: &Value| read_tree(ready["path"].as_str().expect("a path").as_ref());
    assert_eq!(read(&after)["config.json"], b"{\"new\":1}");
    assert_ne!(read(&before)["config.json"], b"{\"new\":1}", "who has the old one keeps the old one");
}

/// Not down, but so slow that a pod would wait for nothing: it starts, and the news comes later.
#[test]
fn an_origin_that_takes_its_time_keeps_nobody_waiting_for_what_is_here() {
    const LATE: Duration = Duration::from_secs(5);
    let (origin, _) = origin();
    let mut node = Node::started(&origin);
    node.ready(&json!({"source": SOURCE}));
    // What was answered in another life does not count.
    node.restart();
    origin.bucket().put("m/config.json", b"{\"new\":1}".to_vec(), Checksums::single_part());
    origin.misbehave(|request| request.query("list-type").map(|_| Fault::Late(LATE)));
    let asked = || {
        let begun = Instant::now();
        let events = node.ensure(&json!({"source": SOURCE}));
        let is_warned = events.iter().any(|event| event["event"] == "warning");
        assert_eq!(events.last().expect("events")["event"], "ready", "{events:?}");
        (begun.elapsed(), is_warned)
    };
    let (first, second) = (asked(), asked());
    assert!(first.1 && first.0 + Duration::from_secs(1) < LATE, "{first:?}");
    assert!(second.1 && second.0 < Duration::from_secs(1), "nobody waits twice: {second:?}");
    node.until("the news has come", |status| status["totals"]["bytes_from_origin"] == 9);
    node.until("nothing moves", |status| status["moving"] == json!([]));
    let events = node.ensure(&json!({"source": SOURCE}));
    let path = events.last().expect("events")["path"].as_str().expect("a path");
    assert_eq!((events.len(), read_tree(path.as_ref())["config.json"].as_slice()), (1, b"{\"new\":1}".as_slice()));
}
