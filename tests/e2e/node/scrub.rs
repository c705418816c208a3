//! What the disk damages is found and mended before anybody reads it.

use std::path::Path;

use larder_origins::Checksums;
use serde_json::json;

use super::{Node, damage, http};
use crate::support::{origin_with_model, read_tree};

/// The scrub begins half a minute after the start.
#[test]
fn a_file_that_was_damaged_on_disk_is_found_and_fetched_again() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.set("scrub_rate", "\"1GiB\"");
    let listen = node.listen();
    node.start();
    let ready = node.ready(&json!({"source": "s3://models/m/"}));
    let path = Path::new(ready["path"].as_str().expect("a path"));
    damage(&path.join("model-00001-of-00003.safetensors"));
    damage(&path.join("tokenizer.json"));
    assert!(read_tree(path) != model.files, "damaged");

    let status = node.until("a whole pass", |status| !status["scrub"]["last_finished"].is_null());
    let scrub = &status["scrub"];
    assert_eq!((&scrub["damaged"], &scrub["repaired"]), (&json!(2), &json!(2)), "{scrub}\n{}", node.log());
    assert!(scrub["bytes"].as_u64() >= Some(model.len()), "{scrub}");
    assert!(read_tree(path) == model.files, "whole again");
    assert_eq!(node.log().matches("damaged on disk: it is fetched again").count(), 2, "{}", node.log());
    let metrics = http::ask_tcp(&listen, "GET", "/metrics").expect("an answer").text();
    for series in ["larder_verification_failures_total{where=\"scrub\"} 2", "larder_repaired_blobs_total 2"] {
        assert!(metrics.contains(series), "{series}: {metrics}");
    }
}
