//! A node whose disk went read-only: what is here is served, and volumes end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use larder_origins::{Checksums, SampleModel};
use serde_json::json;

use super::{begun, mounted, until, volume};
use crate::mount::{Kept, assert_reads};
use crate::node::{Node, http};
use crate::support::{origin_with_model, skipped, upload};

/// A file system of its own for a node's store, unmounted with the value.
struct Disk(PathBuf);

impl Disk {
    /// ext4 on a loop device, or else a tmpfs.
    fn of(node: &Node) -> Option<Self> {
        let (at, image) = (node.store(), node.path("image"));
        fs::create_dir_all(&at).expect("a directory");
        File::create(&image).and_then(|file| file.set_len(96 << 20)).expect("a file");
        let is_mounted = ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))
            || ran(Command::new("mount").args(["-t", "tmpfs", "-o", "size=96m", "larder"]).arg(&at));
        is_mounted.then(|| Self(at))
    }

    #[track_caller]
    fn remount(&self, how: &str) {
        assert!(ran(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0)), "remount {how}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        ran(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn ran(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn health(address: &str) -> String {
    let answer = http::ask_tcp(address, "GET", "/healthz").expect("an answer");
    assert_eq!(answer.status, 200);
    answer.text()
}

#[test]
fn a_store_that_went_read_only_serves_what_is_here_and_lets_volumes_end() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let other = SampleModel::new(7, 1, 1 << 20);
    upload(origin.bucket(), "other/", &other, Checksums::multipart());
    let mut node = Node::at(&origin);
    let Some(disk) = Disk::of(&node) else { return skipped("read_only", "nothing can be mounted here") };
    let address = node.listen();
    node.set("recheck", "\"0s\"");
    let Some(kept) = Kept::of(node) else { return };
    let mut kept = begun(kept, &[]);
    let (first, second) =
        (volume(&kept, "p1", &[("source", "s3://models/m/")]), volume(&kept, "p2", &[("source", "s3://models/m/")]));
    first.publish().expect("published");

    // As ext4 does by itself at an error, but for a daemon that runs: the kernel refuses that here.
    kept.node.kill();
    disk.remount("ro");
    kept.node.set_list("[[prefetch]]\nsource = \"s3://models/other/\"\n");
    kept.node.start();
    let status = kept.node.status();
    let why = status["read_only"].as_str().unwrap_or_else(|| panic!("{status}"));
    assert!(why.contains("read-only"), "{why}");
    assert!(health(&address).starts_with("read-only: "), "{}", health(&address));
    let shown = kept.node.larder(&["status"]);
    assert!(shown.stdout.contains("the store is read-only"), "{shown:?}");
    assert_reads(&first.target(), &model);
    until(&kept, "the mount", |kept| kept.node.status()["mount"]["directory"].is_string());

    // What is here is given out, also to who comes new; what is not is refused.
    let events = kept.node.ensure(&json!({"source": "s3://models/m/"}));
    let (warning, ready) = (&events[0], events.last().expect("an event"));
    assert_eq!((&warning["event"], &ready["event"]), (&json!("warning"), &json!("ready")), "{events:?}");
    assert_reads(Path::new(ready["path"].as_str().expect("a path")), &model);
    second.publish().expect("published");
    assert_reads(&second.target(), &model);
    for wish in [json!({"source": "s3://models/other/"}), json!({"source": "s3://models/m/", "fresh": true})] {
        let last = kept.node.ensure(&wish).pop().expect("an event");
        assert_eq!((&last["event"], &last["exit_code"]), (&json!("error"), &json!(74)), "{last}");
        assert!(last["message"].as_str().is_some_and(|message| message.contains("is read-only")), "{last}");
    }
    kept.node.until("the list's model has failed", |status| status["prefetch"][0]["state"] == "failed");
    for volume in [&first, &second] {
        volume.unpublish().expect("taken away");
        assert!(mounted(&volume.target()).is_empty() && !volume.target().exists());
    }

    // Mounted writable, it is as before, without a start.
    disk.remount("rw");
    kept.node.until("it can be written", |status| status["read_only"].is_null());
    assert_eq!(health(&address), "healthy\n");
    assert_eq!(kept.node.ready(&json!({"source": "s3://models/other/"}))["files"], other.files.len());
    kept.end();
    drop(disk);
}
