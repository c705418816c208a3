//! The mount, with the real kernel: what a pod reads there, before, during and after a file arrives.

mod arriving;
mod keeper_dies;
mod kept;
mod loaders;
mod opens;
mod privileges;
mod readers;
mod restart;
mod sealed;
mod use_ends;
mod user;

pub use kept::Kept;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Origin, SampleModel};
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE};
use crate::support::skipped;

/// Whether anything can be mounted here; says so if not.
pub fn mountable() -> bool {
    let mountable = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !mountable {
        skipped("mount", "mounting needs root and /dev/fuse");
    }
    mountable
}

/// A node whose daemon mounts by itself, as root. `None`, with the reason printed, where that
/// cannot be.
pub fn mounting(origin: &Origin) -> Option<Node> {
    if !mountable() {
        return None;
    }
    let mut node = Node::at(origin);
    node.set("mount", &format!("\"{}\"", node.path("mnt/models").display()));
    Some(node)
}

/// Where the node's models are mounted.
pub fn root(node: &Node) -> PathBuf {
    node.path("mnt/models")
}

/// An origin with one large file, `m/model.safetensors`, that sends that many bytes per second on
/// each connection.
pub fn slow_origin(file: &[u8], per_second: u64) -> Origin {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.bucket().put("m/config.json", br#"{"model_type":"none"}"#.to_vec(), Checksums::none());
    origin.bucket().put("m/model.safetensors", file.to_vec(), Checksums::none());
    origin.misbehave_on_reads(move |_, _| Some(Fault::Slow(per_second)));
    origin
}

/// Asks for `s3://models/m/` and does not wait for its bytes; its directory in the mount.
#[track_caller]
pub fn lazily(node: &Node) -> PathBuf {
    let ready = node.ready(&json!({"source": "s3://models/m/", "lazy": true, "lease": "process:1"}));
    assert_eq!(ready["arriving"], true, "{ready}");
    PathBuf::from(ready["path"].as_str().expect("a path"))
}

/// Removes a model whose last file was closed a moment ago: the kernel tells of it a little later.
#[track_caller]
pub fn until_removed(node: &Node, source: &str) {
    let began = Instant::now();
    loop {
        let (status, body) = node.ask_admin("POST", "/v1/remove", Some(&json!({"models": [source]})));
        if status == 200 {
            return;
        }
        assert!(status == 409 && began.elapsed() < PATIENCE, "{status} {body}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What `status` says of the mount.
#[track_caller]
pub fn mount_status(node: &Node) -> Value {
    node.status()["mount"].clone()
}

/// Everything in the model is as it was at the origin.
#[track_caller]
pub fn assert_reads(directory: &Path, model: &SampleModel) {
    for (path, bytes) in &model.files {
        let read = std::fs::read(directory.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(read == *bytes, "{path} is wrong");
    }
}
