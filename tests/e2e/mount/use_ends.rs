//! Use that ends, under whatever name it has by then.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use larder_origins::{Front, Noise, Origin, safetensors};
use serde_json::{Value, json};

use super::{Kept, slow_origin};
use crate::node::Node;
use crate::small_disk::{Kind, SmallDisk, put, source};

fn leases(status: &Value) -> usize {
    status["leases"].as_array().map_or(0, Vec::len)
}

/// A lease on what arrives is one on the model as well, once that is here; its owner knows only the first.
#[test]
fn a_lease_that_moved_ends_with_its_owner_and_by_its_id() {
    let whole = safetensors("w", 5, 3 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let Some(kept) = Kept::started(&origin) else { return };
    let wish = |lease: &str| json!({"source": "s3://models/m/", "lazy": true, "lease": lease});
    let mut connection = kept.node.ensuring(&wish("connection"));
    let ready = connection.find(|event| event["event"] == "ready").expect("an answer");
    assert_eq!(ready["arriving"], true, "{ready}");
    let process = kept.node.ready(&wish(&format!("process:{}", std::process::id())));
    assert_eq!(process["arriving"], true, "{process}");
    kept.node.until("both have the model as well", |status| leases(status) == 4);
    drop(connection);
    kept.node.until("the connection's have ended", |status| leases(status) == 2);
    let (status, released) = kept.node.ask_admin("POST", "/v1/release", Some(&json!({"lease": process["lease"]})));
    assert_eq!((status, released), (200, json!({"released": true, "leases": 2})));
    assert_eq!(leases(&kept.node.status()), 0);
}

/// Four clients, and a disk for half of what they ask for.
#[test]
fn room_that_is_about_to_be_free_is_waited_for() {
    const MODELS: u64 = 12;
    let origin = Origin::start(Front::S3).expect("an origin");
    (0..MODELS).for_each(|number| put(&origin, number, 4));
    let node = Node::at(&origin);
    let Some(_disk) = SmallDisk::at_store(&node, Kind::Tmpfs, 40, "room_that_is_about_to_be_free") else { return };
    let Some(mut kept) = Kept::of(node) else { return };
    kept.node.start();
    let (asked, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (node, asked, refused) = (&kept.node, &asked, &refused);
            scope.spawn(move || {
                let mut random = Noise::new(70 + client);
                for _ in 0..25 {
                    let lazy = random.below(10) < 3;
                    let wish = json!({"source": source(random.below(MODELS)), "lease": "connection", "lazy": lazy});
                    // The connection ends with the answer.
                    let mut events = node.ensuring(&wish);
                    let last = events.find(|event| event["event"] == "ready" || event["event"] == "error");
                    let last = last.expect("an answer");
                    asked.fetch_add(1, Relaxed);
                    if last["event"] == "error" {
                        eprintln!("{last}");
                        refused.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let status = kept.node.until("no lease is left", |status| leases(status) == 0);
    let evictions = &status["totals"]["evictions"];
    eprintln!("{refused:?} of {asked:?} asks were refused, {evictions} models evicted");
    assert!(evictions.as_u64().is_some_and(|count| count > 0), "{status}");
    assert_eq!(refused.into_inner(), 0, "{}", kept.logs());
}
