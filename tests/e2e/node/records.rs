//! Records of what is kept: one that cannot be read costs nobody else anything, and none is written
//! that could not be read back.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

use larder_origins::{Checksums, Front, Origin};
use serde_json::json;

use super::{Node, PATIENCE};

fn source(number: usize) -> String {
    format!("s3://models/m{number}/")
}

fn put(origin: &Origin, number: usize) {
    origin.bucket().put(&format!("m{number}/config.json"), format!("{{\"n\":{number}}}"), Checksums::single_part());
}

fn records(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.store().join("v1/sources")).expect("records");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn one_bad_record_costs_nobody_else_anything() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::started(&origin);
    (0..2).for_each(|number| put(&origin, number));
    node.ready(&json!({"source": source(0)}));
    let good = records(&node);
    node.ready(&json!({"source": source(1)}));
    let torn = records(&node).into_iter().find(|path| !good.contains(path)).expect("a record");
    let plant = |name: &str| node.store().join("v1/sources").join(name);
    let (long, garbled, late) = (plant("long.json"), plant("garbled.json"), plant("late.json"));
    node.kill();

    // As an earlier build wrote it, as a power cut left it, and as nobody wrote it.
    File::create(&long).and_then(|file| file.set_len(173 << 20)).expect("a file");
    File::options().write(true).open(&torn).and_then(|file| file.set_len(100)).expect("a file");
    fs::write(&garbled, "nothing that was ever a record").expect("a file");
    let ran = node.larder(&["ls"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains(&source(0)), "{ran:?}");
    for bad in [&long, &torn, &garbled] {
        assert!(ran.stderr.contains(&format!("`{}` cannot be read", bad.display())), "{ran:?}");
    }
    node.start();
    let unreadable = node.status()["unreadable"].as_array().expect("a list").clone();
    assert_eq!(unreadable.len(), 3, "{unreadable:?}");
    assert!(unreadable.iter().all(|document| document["removed"] == true), "{unreadable:?}");
    let here = node.ready(&json!({"source": source(0)}));
    assert_eq!(here["bytes_moved"], 0, "{here}");
    // What it said is found again, and nothing moves for it.
    let again = node.ready(&json!({"source": source(1)}));
    assert_eq!(again["bytes_moved"], 0, "{again}");

    // One that goes bad under a daemon.
    fs::write(&late, vec![b'x'; 300]).expect("a file");
    let (status, models) = node.ask("GET", "/v1/models", None);
    assert_eq!((status, models["models"].as_array().map(Vec::len)), (200, Some(2)), "{models}");
    put(&origin, 2);
    node.ready(&json!({"source": source(2)}));
    let named = |document: &serde_json::Value| document["path"] == late.display().to_string();
    let unreadable = node.status()["unreadable"].as_array().expect("a list").clone();
    assert!(unreadable.iter().any(named), "{unreadable:?}");
    let planted = Instant::now();
    while late.exists() {
        assert!(planted.elapsed() < PATIENCE, "it stays\n{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(node.log().contains("late.json"), "{}", node.log());
}

#[test]
fn a_listing_whose_record_could_not_be_read_back_is_refused_before_anything_is_written() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let node = Node::started(&origin);
    let name = "x".repeat(240);
    for file in 0..38_000 {
        origin.bucket().put(&format!("m0/{name}/{name}/{name}/{name}/{file}"), "", Checksums::none());
    }
    let events = node.ensure(&json!({"source": source(0)}));
    let told = events.last().expect("an event");
    assert_eq!((&told["event"], &told["exit_code"]), (&json!("error"), &json!(64)), "{told}");
    let message = told["message"].as_str().expect("a message");
    assert!(message.contains(&source(0)) && message.contains("MiB of keys"), "{told}");
    assert_eq!(records(&node), Vec::<PathBuf>::new());
    put(&origin, 1);
    node.ready(&json!({"source": source(1)}));
}
