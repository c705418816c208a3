//! Many pods, one transfer.

use larder_origins::Checksums;
use serde_json::json;

use super::Node;
use crate::support::{origin_with_model, read_tree};

#[test]
fn the_second_of_two_pods_moves_nothing() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    node.begin_pod("a");
    node.begin_pod("b");
    let first = node.init(&["s3://models/m/", node.path("a").to_str().expect("text"), "--pod-uid", "a"]);
    assert_eq!(first.code, Some(0), "{first:?}");
    let reads = origin.reads();
    let second = node.init(&["s3://models/m/", node.path("b").to_str().expect("text"), "--pod-uid", "b"]);
    assert_eq!(second.code, Some(0), "{second:?}");
    assert_eq!(origin.reads(), reads, "the second moved something");
    assert!(read_tree(&node.path("a")) == model.files && read_tree(&node.path("b")) == model.files);
    let totals = node.status()["totals"].clone();
    assert_eq!((&totals["pulls"], &totals["hits"]), (&json!(1), &json!(1)), "{totals}");
}
