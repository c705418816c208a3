//! A node whose disk went read-only: what is here is served, and volumes end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use larder_origins::{Checksums, SampleModel};
use serde_json::json;

use super::{begun, mounted, sockets, until, volume};
use crate::mount::{Kept, assert_reads};
use crate::node::{Node, damage, http};
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

fn bind(at: &Path, how: &str) {
    assert!(ran(Command::new("mount").args(["-o", how]).arg(at).arg(at)), "mount -o {how} {}", at.display());
}

fn unbind(at: &Path) {
    assert!(ran(Command::new("umount").arg(at)), "umount {}", at.display());
}

/// What the store's disk does not take is kept beside the daemon's socket.
fn unwritten(kept: &Kept) -> Vec<String> {
    let beside = kept.node.admin_socket();
    let names = fs::read_dir(beside.parent().expect("a directory")).expect("a directory").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("unwritten-")).collect()
}

fn ended_notes(kept: &Kept) -> usize {
    let notes = fs::read_dir(kept.node.store().join("v1/volumes")).expect("notes").flatten();
    notes.filter(|note| fs::read_to_string(note.path()).is_ok_and(|text| text.contains("\"ended\":true"))).count()
}

/// The store keeps the note that a volume has ended, and takes no other: the volume is the pod's again
/// all the same, whoever restarts.
#[test]
fn a_volume_that_is_mounted_again_stays_where_that_cannot_be_written_down() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    let Some(disk) = Disk::of(&node) else { return skipped("read_only", "nothing can be mounted here") };
    node.set("recheck", "\"1h\"");
    let Some(kept) = Kept::of(node) else { return };
    let mut kept = begun(kept, &[]);
    let volume = volume(&kept, "p1", &[("source", "s3://models/m/")]);
    let notes = kept.node.store().join("v1/volumes");
    volume.publish().expect("published");
    volume.unpublish().expect("taken away");
    assert_eq!(ended_notes(&kept), 1);

    // The whole store, as ext4 does by itself at an error; then that directory alone.
    for is_whole in [true, false] {
        kept.node.kill();
        if is_whole {
            disk.remount("ro");
        } else {
            bind(&notes, "bind");
            bind(&notes, "remount,bind,ro");
        }
        kept.node.start();
        for _ in 0..2 {
            until(&kept, "published", |_| volume.publish().is_ok());
            assert_eq!((mounted(&volume.target()).len(), ended_notes(&kept)), (1, 1));
            kept.node.kill();
            kept.node.start();
            until(&kept, "kubelet may call", |_| volume.publish().is_ok());
            assert_reads(&volume.target(), &model);
            assert_eq!((mounted(&volume.target()).len(), unwritten(&kept).len()), (1, 1), "{}", kept.logs());
        }
        // What ends there has ended for the next daemon, too.
        volume.unpublish().expect("taken away");
        kept.node.kill();
        kept.node.start();
        until(&kept, "published", |_| volume.publish().is_ok());

        // What is kept elsewhere goes to the store as soon as that can be written.
        if is_whole {
            disk.remount("rw");
        } else {
            unbind(&notes);
        }
        until(&kept, "written down", |kept| unwritten(kept).is_empty());
        assert_eq!(ended_notes(&kept), 0);
        kept.node.restart();
        until(&kept, "kubelet may call", |_| volume.publish().is_ok());
        assert_eq!(mounted(&volume.target()).len(), 1);
        volume.unpublish().expect("taken away");
        assert_eq!(ended_notes(&kept), 1);
    }
    kept.end();
    drop(disk);
}

/// Where nothing takes a note, what would be taken away again is not given.
#[test]
fn a_volume_is_refused_that_the_next_daemon_would_take_away() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(kept) = Kept::at(&origin) else { return };
    let mut kept = begun(kept, &[]);
    let (first, second) =
        (volume(&kept, "p1", &[("source", "s3://models/m/")]), volume(&kept, "p2", &[("source", "s3://models/m/")]));
    first.publish().expect("published");
    first.unpublish().expect("taken away");
    let notes = kept.node.store().join("v1/volumes");
    let beside = kept.node.admin_socket().parent().expect("a directory").to_owned();
    for at in [&notes, &beside] {
        bind(at, "bind");
        bind(at, "remount,bind,ro");
    }
    let refused = first.publish().expect_err("refused");
    assert!(refused.code == super::ABORTED && refused.message.contains("cannot be written down"), "{refused:?}");
    assert!(mounted(&first.target()).is_empty());
    // What the store says nothing of stays mounted.
    second.publish().expect("published");
    for at in [&notes, &beside] {
        unbind(at);
    }
    first.publish().expect("published");
    kept.node.restart();
    until(&kept, "kubelet may call", |_| first.publish().is_ok());
    assert_eq!((mounted(&first.target()).len(), mounted(&second.target()).len()), (1, 1));
    for volume in [first, second] {
        volume.unpublish().expect("taken away");
    }
    kept.end();
}

/// What is found to be wrong where no mark can be written is given out by nobody, the next daemon among
/// them, and is brought again once it can be.
#[test]
fn damage_that_a_read_only_store_does_not_take_is_known_to_everybody() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let node = Node::at(&origin);
    let Some(disk) = Disk::of(&node) else { return skipped("read_only", "nothing can be mounted here") };
    let Some(kept) = Kept::of(node) else { return };
    let mut kept = begun(kept, &[]);
    let source = "s3://models/m/";
    let ready = kept.node.ready(&json!({"source": source}));
    let tree = kept.node.store().join("v1/models").join(ready["digest"].as_str().expect("a digest"));
    let name = model.files.iter().max_by_key(|(_, bytes)| bytes.len()).expect("a file").0;
    kept.node.kill();
    damage(&tree.join(name));
    disk.remount("ro");
    kept.node.start();
    assert_eq!(kept.node.larder(&["verify", source]).code, Some(65));

    let volume = volume(&kept, "p1", &[("source", source)]);
    let is_refused = |kept: &Kept| {
        assert_eq!(kept.node.larder(&["path", source]).code, Some(65));
        let shown = kept.node.larder(&["ls"]);
        assert!(shown.stdout.contains(&format!("damaged: {name}")), "{shown:?}");
        let to = kept.node.path("given");
        let ran = kept.node.larder(&["export", source, to.to_str().expect("text")]);
        assert!(ran.code == Some(65) && !to.join(name).exists(), "{ran:?}");
        let _ = fs::remove_dir_all(to);
    };
    for _ in 0..2 {
        is_refused(&kept);
        volume.publish().expect_err("not what is wrong");
        assert_eq!(kept.node.status()["damaged_blobs"], 1);
        kept.node.kill();
        is_refused(&kept);
        kept.node.start();
        until(&kept, "the driver's socket", |kept| sockets(kept).iter().all(|socket| socket.exists()));
    }
    disk.remount("rw");
    kept.node.until("brought again", |status| status["damaged_blobs"] == 0);
    until(&kept, "forgotten", |kept| unwritten(kept).is_empty());
    assert_eq!(kept.node.larder(&["path", source]).code, Some(0));
    volume.publish().expect("published");
    assert_reads(&volume.target(), &model);
    volume.unpublish().expect("taken away");
    kept.end();
    drop(disk);
}
