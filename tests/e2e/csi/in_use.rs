//! What a pod has mounted is in use, whatever was written down of it, and whoever is away.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use larder_origins::{Front, Origin};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::kubelet::Volume;
use super::{begun, owners, until, volume};
use crate::mount::Kept;
use crate::node::Node;
use crate::small_disk::{Kind, MIB, SmallDisk, has, is_right, put, source};

const MODEL: u64 = 8;

/// A node whose store is a file system of 64 MiB, with models 0 and 1 here and model 0 in a volume.
fn full_node(origin: &Origin, kind: Kind, test: &str) -> Option<(SmallDisk, Kept, Volume)> {
    (0..2).for_each(|number| put(origin, number, MODEL));
    let node = Node::at(origin);
    let disk = SmallDisk::at_store(&node, kind, 64, test)?;
    let kept = begun(Kept::of(node)?, &[]);
    (0..2).for_each(|number| drop(kept.node.ready(&json!({"source": source(number)}))));
    let volume = volume(&kept, "p1", &[("source", &source(0))]);
    Some((disk, kept, volume))
}

/// Notes of leases, and of volumes that have not ended: those stay until nothing is mounted.
fn notes(kept: &Kept) -> usize {
    let on = |shelf: &str| fs::read_dir(kept.node.store().join("v1").join(shelf)).expect("a directory");
    let read = |note: fs::DirEntry| fs::read_to_string(note.path()).unwrap_or_default();
    let volumes = on("volumes").flatten().map(read);
    on("leases").count() + volumes.filter(|note| !note.contains("\"ended\":true")).count()
}

/// The model of the volume is here, and it is what the pod reads.
#[track_caller]
fn is_there(kept: &Kept, volume: &Volume) {
    assert!(has(&kept.node, 0), "the model of a running pod was evicted\n{}", kept.logs());
    is_right(&json!({"path": volume.target()}), 0, MODEL);
}

#[test]
fn what_is_mounted_stays_though_nothing_is_noted() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let Some((disk, mut kept, volume)) = full_node(&origin, Kind::Tmpfs, "what_is_mounted_stays") else { return };
    volume.publish().expect("published");
    kept.node.kill();
    for shelf in ["leases", "volumes"] {
        let notes = fs::read_dir(kept.node.store().join("v1").join(shelf)).expect("a directory");
        notes.for_each(|note| fs::remove_file(note.expect("a note").path()).expect("removed"));
    }
    // Model 0 is the one that was not used for longest.
    disk.fill(40 * MIB);
    kept.node.start();
    until(&kept, "the other one goes", |kept| !has(&kept.node, 1));
    assert_eq!(owners(&kept), [""; 0]);
    is_there(&kept, &volume);
    let (status, told) = kept.node.ask_admin("POST", "/v1/remove", Some(&json!({"models": [source(0)]})));
    let told = told.to_string();
    assert!(status == 409 && told.contains(volume.target().to_str().expect("text")), "{told}");
    // Its end is seen, too.
    volume.unpublish().expect("taken away");
    disk.fill(55 * MIB);
    until(&kept, "it goes as well", |kept| !has(&kept.node, 0));
}

#[test]
fn nothing_goes_while_nobody_says_what_is_mounted() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let Some((disk, mut kept, volume)) = full_node(&origin, Kind::Tmpfs, "nothing_goes_while_nobody_says") else {
        return;
    };
    volume.publish().expect("published");
    kept.node.kill();
    kept.kill_keeper();
    fs::remove_dir_all(kept.node.store().join("v1/leases")).expect("removed");
    disk.fill(40 * MIB);
    kept.node.start();
    let status = kept.node.until("a look at the disk", |status| status["held_back"].is_string());
    assert!(status["held_back"].as_str().is_some_and(|why| why.contains("larder-keeper")), "{status}");
    let shown = kept.node.larder(&["status"]).stdout;
    assert!(shown.contains("nothing is evicted until larder-keeper has said what is mounted"), "{shown}");
    std::thread::sleep(Duration::from_secs(3));
    assert!(has(&kept.node, 0) && has(&kept.node, 1));
    kept.start_keeper();
    until(&kept, "the other one goes", |kept| !has(&kept.node, 1));
    is_there(&kept, &volume);
    kept.node.until("nothing is held back", |status| status["held_back"].is_null());
}

/// There is room for what says who uses what, though others have filled the disk.
#[test]
fn a_full_disk_takes_the_notes_of_a_pod() {
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let origin = Origin::start(Front::S3).expect("an origin");
        let Some((disk, mut kept, volume)) = full_node(&origin, kind, "a_full_disk_takes_the_notes") else { continue };
        until(&kept, "room is kept", |kept| {
            fs::read_dir(kept.node.store().join("v1/reserve")).is_ok_and(|reserve| reserve.count() > 100)
        });
        // Nothing else keeps the model from going meanwhile.
        let mut held = kept.node.ensuring(&json!({"source": source(0), "lease": "connection"}));
        assert!(held.any(|event| event["event"] == "ready"));
        disk.fill(1 << 30);
        volume.publish().expect("published");
        drop(held);
        assert_eq!(notes(&kept), 2, "{kind:?}: a lease and a volume\n{}", kept.logs());
        kept.node.restart();
        until(&kept, "the other one goes", |kept| !has(&kept.node, 1));
        assert!(owners(&kept).iter().any(|owner| owner.ends_with(":p1")), "{kind:?}: {:?}", owners(&kept));
        is_there(&kept, &volume);
        disk.fill(0);
        until(&kept, "room is kept again", |kept| {
            fs::read_dir(kept.node.store().join("v1/reserve")).is_ok_and(|reserve| reserve.count() > 100)
        });
        volume.unpublish().expect("taken away");
    }
}

/// Once the room that is kept is gone too, they are written when there is room again.
#[test]
fn notes_that_could_not_be_written_are_tried_again() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let Some((disk, kept, volume)) = full_node(&origin, Kind::Tmpfs, "notes_that_could_not_be_written") else { return };
    let reserve = kept.node.store().join("v1/reserve");
    until(&kept, "room is kept", |_| reserve.is_dir());
    // It is being filled meanwhile.
    until(&kept, "a file in its place", |_| {
        let _ = fs::remove_dir_all(&reserve);
        fs::write(&reserve, "").is_ok()
    });
    let mut held = kept.node.ensuring(&json!({"source": source(0), "lease": "connection"}));
    assert!(held.any(|event| event["event"] == "ready"));
    disk.fill(1 << 30);
    volume.publish().expect("published");
    drop(held);
    assert_eq!(notes(&kept), 0, "{}", kept.logs());
    disk.fill(0);
    until(&kept, "they are written", |kept| notes(kept) == 2);
    volume.unpublish().expect("taken away");
    assert_eq!(notes(&kept), 0);
}

/// Owners of leases are asked for one after the other, each for seconds: nobody may wait for that who
/// makes room.
#[test]
fn a_keeper_that_hangs_holds_up_no_eviction() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let Some((disk, kept, volume)) = full_node(&origin, Kind::Tmpfs, "a_keeper_that_hangs") else { return };
    volume.publish().expect("published");
    for pod in 0..8 {
        let uid = format!("pod-{pod}");
        kept.node.begin_pod(&uid);
        kept.node.ready(&json!({"source": source(0), "lease": format!("pod:{uid}")}));
    }
    // It has been asked since the volume was there.
    disk.fill(40 * MIB);
    until(&kept, "the other one goes", |kept| !has(&kept.node, 1));
    disk.fill(0);
    drop(kept.node.ready(&json!({"source": source(1)})));
    let keeper = Pid::from_raw(kept.keeper_pid().cast_signed()).expect("a process");
    kill_process(keeper, Signal::STOP).expect("stopped");
    std::thread::sleep(Duration::from_secs(3));
    disk.fill(40 * MIB);
    let began = Instant::now();
    let gone = (0..150).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        !has(&kept.node, 1)
    });
    kill_process(keeper, Signal::CONT).expect("continued");
    assert!(gone, "nothing went within {:?}\n{}", began.elapsed(), kept.logs());
    is_there(&kept, &volume);
    volume.unpublish().expect("taken away");
    assert!(Path::new(&kept.node.store()).exists());
}
