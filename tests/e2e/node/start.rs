//! A daemon serves as soon as it runs, whatever lies in its store.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder_origins::Checksums;
use serde_json::json;

use super::Node;
use crate::support::origin_with_model;

const BLOBS: usize = 10_000;
/// Of those, what the machine had not synced when it went down.
const UNSYNCED: usize = 500;
/// What is promised of a release build, and what a debug build on a busy machine may take.
const START_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 1 });

const STOP_MAX: Duration = Duration::from_secs(2);

/// A node with a model of so many tiny files in its store, brought by the command line; its source.
fn with_many_blobs(node: &mut Node) -> String {
    let directory = node.path("many");
    for file in 0..BLOBS {
        let path = directory.join(format!("{:02}", file % 100)).join(format!("{file}.json"));
        if file < 100 {
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        }
        fs::write(path, format!("{{\"n\":{file}}}")).expect("a file");
    }
    let source = format!("file://{}", directory.display());
    let ran = node.larder(&["prefetch", "-q", &source]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    node.set("sources", &format!("[\"s3://\", \"{source}\"]"));
    source
}

/// The directory of what this boot has not synced yet.
fn fresh(node: &Node) -> PathBuf {
    let boots =
        fs::read_dir(node.store().join("v1/fresh")).expect("boots").map(|entry| entry.expect("an entry").path());
    let boots: Vec<PathBuf> = boots.collect();
    assert_eq!(boots.len(), 1, "{boots:?}");
    boots[0].clone()
}

#[test]
fn a_store_of_ten_thousand_blobs_is_served_within_a_second() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    let begun = Instant::now();
    let source = with_many_blobs(&mut node);
    eprintln!("{BLOBS} blobs brought in {:?}", begun.elapsed());
    let first = node.start();
    let again = node.restart();
    eprintln!("{BLOBS} blobs: served {first:?} after the start, {again:?} after a crash");
    assert!(first < START_MAX && again < START_MAX, "{first:?} {again:?}\n{}", node.log());
    let ready = node.ready(&json!({"source": source}));
    assert_eq!((&ready["files"], &ready["bytes_moved"]), (&json!(BLOBS), &json!(0)));

    // As after a reboot: what was not synced is not believed, and is hashed first.
    node.kill();
    let fresh = fresh(&node);
    let before = fresh.with_file_name("00000000-0000-4000-8000-000000000000");
    fs::create_dir(&before).expect("another boot");
    for blob in fs::read_dir(&fresh).expect("blobs").take(UNSYNCED) {
        let blob = blob.expect("a blob");
        fs::rename(blob.path(), before.join(blob.file_name())).expect("a rename");
    }
    let rebooted = node.start();
    let status = node.status();
    eprintln!("served {rebooted:?} after a reboot, {} then", status["state"]);
    assert!(rebooted < START_MAX, "{rebooted:?}\n{}", node.log());
    assert_eq!(status["state"], "recovering");
    // Told to stop over it, it goes at once, and the next one goes on from there.
    let (code, elapsed) = node.terminate();
    assert!(code == Some(0) && elapsed < STOP_MAX, "{code:?} {elapsed:?}\n{}", node.log());
    node.start();
    // Others are served meanwhile.
    let begun = Instant::now();
    assert_eq!(node.ready(&json!({"source": "s3://models/m/config.json"}))["files"], 1);
    eprintln!("another model pulled in {:?}, {} then", begun.elapsed(), node.status()["state"]);
    // Who asks for what is being hashed waits for that, and nothing moves.
    let ready = node.ready(&json!({"source": source}));
    assert_eq!((&ready["files"], &ready["bytes_moved"]), (&json!(BLOBS), &json!(0)));
    eprintln!("{UNSYNCED} blobs proven {:?} after the start", begun.elapsed());
    node.until("it has recovered", |status| status["state"] == "serving");
}

/// Something of the store is in the way, or gone: what is right is served all the same, and it is said
/// why nothing is pulled, until that has been put right.
#[test]
fn a_store_with_something_in_its_way_is_served_as_it_is() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::started(&origin);
    let source = "s3://models/m/";
    let path = PathBuf::from(node.ready(&json!({"source": source}))["path"].as_str().expect("a path"));
    for name in ["state", "pins", "damaged", "scratch"] {
        let (there, aside) = (node.store().join("v1").join(name), node.path(name));
        node.kill();
        fs::rename(&there, &aside).expect("put aside");
        std::os::unix::fs::symlink("/nowhere/at/all", &there).expect("a link");
        node.start();
        let status = node.status();
        let why = status["read_only"].as_str().unwrap_or_default();
        assert!(why.contains(name), "{name}: {status}");
        assert!(crate::support::read_tree(&path) == model.files, "{name}");
        assert_eq!(node.larder(&["path", source]).code, Some(0), "{name}");
        fs::remove_file(&there).expect("a link");
        fs::rename(&aside, &there).expect("put back");
        node.until("writable", |status| status["read_only"].is_null());
        node.ready(&json!({"source": source}));
    }
}

/// What only remembers begins anew, and what waits for nothing is waited for by nobody.
#[test]
fn a_book_that_is_no_file_begins_anew() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::started(&origin);
    let source = "s3://models/m/";
    let path = PathBuf::from(node.ready(&json!({"source": source}))["path"].as_str().expect("a path"));
    let catalog = node.store().join("v1/catalog.log");
    for kind in ["directory", "pipe", "link"] {
        node.kill();
        fs::remove_file(&catalog).expect("removed");
        let pipe = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        match kind {
            "directory" => fs::create_dir(&catalog).expect("a directory"),
            "pipe" => rustix::fs::mknodat(rustix::fs::CWD, &catalog, pipe.0, pipe.1, 0).expect("a pipe"),
            _ => std::os::unix::fs::symlink("/dev/zero", &catalog).expect("a link"),
        }
        assert_eq!(node.larder(&["ls"]).code, Some(0), "{kind}");
        node.start();
        assert_eq!(node.ready(&json!({"source": source}))["path"], path.to_str().expect("text"), "{kind}");
        assert!(crate::support::read_tree(&path) == model.files && catalog.is_file(), "{kind}");
    }
    // A record that is a directory: its source is listed and written anew.
    let sources = node.store().join("v1/sources");
    let record = fs::read_dir(&sources).expect("records").next().expect("one").expect("an entry").path();
    node.kill();
    fs::remove_file(&record).expect("removed");
    fs::create_dir(&record).expect("a directory");
    node.start();
    node.ready(&json!({"source": source}));
    assert!(record.is_file());
}
