//! A model that is mended is mended in the directories that pods have.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use larder_origins::{Checksums, Fault, Front, Origin, SampleModel};
use serde_json::json;

use super::{mounted, started, until, volume};
use crate::mount::{Kept, assert_reads};
use crate::node::damage;
use crate::support::upload;

const SHARED: &str = "shared/tokenizer.json";

/// Two models that share a file of 5 kB.
fn origin() -> (Origin, [SampleModel; 2]) {
    let origin = Origin::start(Front::S3).expect("an origin");
    let shared = larder_origins::Noise::new(7).bytes(5000);
    let models = ["a/", "b/"].map(|prefix| {
        let mut model = SampleModel::new(u64::from(prefix.as_bytes()[0]), 1, 1 << 18);
        model.files.insert(SHARED.to_owned(), shared.clone());
        upload(origin.bucket(), prefix, &model, Checksums::multipart());
        model
    });
    (origin, models)
}

/// Asks for a repair, as `larder verify --repair` does.
fn repair(kept: &Kept) -> serde_json::Value {
    let body = json!({"repair": true}).to_string();
    let socket = kept.node.admin_socket();
    let answer = crate::node::http::ask(&socket, "POST", "/v1/verify", Some(body.as_bytes())).expect("an answer");
    answer.events().last().expect("an event")
}

fn inode(path: &Path) -> u64 {
    path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).ino()
}

fn names(directory: &Path) -> usize {
    fs::read_dir(directory).expect("a directory").count()
}

/// A file of a model in the store.
fn blob(kept: &Kept, model: usize) -> PathBuf {
    let source = ["s3://models/a/", "s3://models/b/"][model];
    let ready = kept.node.ready(&json!({"source": source}));
    kept.node.store().join("v1/models").join(ready["digest"].as_str().expect("a digest")).join(SHARED)
}

#[test]
fn a_repair_leaves_running_pods_what_they_have() {
    let (origin, models) = origin();
    let Some(mut kept) = started(&origin, &[("recheck", "\"1h\"")]) else { return };
    let volumes = ["a/", "b/"].map(|prefix| {
        let volume = volume(&kept, prefix.trim_end_matches('/'), &[("source", &format!("s3://models/{prefix}"))]);
        volume.publish().expect("published");
        volume
    });
    // A container that has a directory of the volume, as a subPath is mounted.
    let below = kept.node.path("subpath");
    fs::create_dir_all(&below).expect("a directory");
    rustix::mount::mount_bind(volumes[0].target().join("shared"), &below).expect("a bind");
    let shown = blob(&kept, 0);
    let all = || -> Vec<u64> {
        let inodes = volumes.iter().zip(&models).flat_map(|(volume, model)| {
            let others = model.files.keys().filter(|path| *path != SHARED);
            others.map(|path| inode(&volume.target().join(path))).collect::<Vec<_>>()
        });
        inodes.chain(volumes.iter().map(|volume| inode(&volume.target().join("shared")))).collect()
    };
    let before = all();
    for round in 0..2 {
        damage(&shown);
        assert_eq!(repair(&kept)["exit_code"], 0, "{}", kept.logs());
        for (volume, model) in volumes.iter().zip(&models) {
            assert_reads(&volume.target(), model);
        }
        assert!(fs::read(below.join("tokenizer.json")).expect("a file") == models[0].files[SHARED], "round {round}");
        assert_eq!(all(), before, "all others are where they were");
    }

    // With the origin away: what is right stays, and what is wrong is not there until it is right.
    origin.misbehave(|_| Some(Fault::Refuse(403, "AccessDenied", None)));
    damage(&shown);
    assert_ne!(repair(&kept)["exit_code"], 0);
    let others = || {
        for (volume, model) in volumes.iter().zip(&models) {
            assert!(!volume.target().join(SHARED).exists(), "known to be wrong");
            for (path, bytes) in model.files.iter().filter(|(path, _)| *path != SHARED) {
                assert!(fs::read(volume.target().join(path)).expect("a file") == *bytes, "{path}");
            }
        }
        assert_eq!(names(&below), 0);
    };
    others();
    // Nor does a second pod, kubelet's question or another life of the daemon make it less.
    let second = volume(&kept, "c", &[("source", "s3://models/a/")]);
    let refused = second.publish_within(std::time::Duration::from_secs(20)).expect_err("damaged");
    assert!(refused.message.contains(SHARED), "{refused:?}");
    others();
    volumes[0].publish().expect("it has it");
    others();
    kept.node.restart();
    others();
    assert_eq!(all(), before);
    origin.behave();
    until(&kept, "both volumes are whole", |_| {
        volumes.iter().all(|volume| volume.target().join(SHARED).exists()) && names(&below) == 1
    });
    for (volume, model) in volumes.iter().zip(&models) {
        assert_reads(&volume.target(), model);
        assert_eq!(mounted(&volume.target()).len(), 1);
    }
    assert_eq!(all(), before);
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
}

/// Publishing over a directory that lost a name took all the others from the first pod.
#[test]
fn a_second_pod_brings_back_what_the_first_one_lost() {
    let (origin, [model, _]) = origin();
    let Some(kept) = started(&origin, &[("recheck", "\"0s\"")]) else { return };
    let first = volume(&kept, "a", &[("source", "s3://models/a/")]);
    first.publish().expect("published");
    let shown = blob(&kept, 0);
    let before = inode(&first.target());
    fs::remove_file(&shown).expect("a lost name");
    let second = volume(&kept, "b", &[("source", "s3://models/a/")]);
    // As after a restart: nothing of it is remembered.
    let removed = kept.node.ready(&json!({"source": "s3://models/a/", "fresh": true}));
    assert_eq!(removed["bytes_moved"], 0, "its bytes are here: {removed}");
    second.publish().expect("published");
    for volume in [&first, &second] {
        assert_reads(&volume.target(), &model);
        assert_eq!(inode(&volume.target()), before);
    }
}

/// Whoever packs a model gets the same out of every way to it, in every time zone.
#[test]
fn a_model_has_one_time_and_its_modes_wherever_it_is_handed_out() {
    let (origin, models) = origin();
    let Some(kept) = started(&origin, &[("recheck", "\"1h\"")]) else { return };
    let pod = volume(&kept, "a", &[("source", "s3://models/a/")]);
    pod.publish().expect("published");
    let ready = kept.node.ready(&json!({"source": "s3://models/a/"}));
    let tree = kept.node.store().join("v1/models").join(ready["digest"].as_str().expect("a digest"));
    let mount = PathBuf::from(ready["path"].as_str().expect("a path"));
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 16)));
    let arriving = kept.node.ready(&json!({"source": "s3://models/b/", "lazy": true, "lease": "process:1"}));
    let arriving = PathBuf::from(arriving["path"].as_str().expect("a path"));
    let seen = |root: &Path, path: &str| {
        let metadata = root.join(path).metadata().unwrap_or_else(|error| panic!("{path}: {error}"));
        (metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec())
    };
    for root in [&tree, &mount, &pod.target(), &arriving] {
        assert_eq!(seen(root, ""), (0o755, 315_619_200, 0), "{}", root.display());
        assert_eq!(seen(root, "shared"), (0o755, 315_619_200, 0), "{}", root.display());
        for path in models[0].files.keys() {
            assert_eq!(seen(root, path), (0o444, 315_619_200, 0), "{}: {path}", root.display());
        }
    }
    origin.behave();
    // Where it is 1979 the longest: zip refuses what is older than 1980.
    let packed = std::process::Command::new("python3")
        .args(["-c", "import sys, zipfile; z = zipfile.ZipFile('/dev/null', 'w'); [z.write(p) for p in sys.argv[1:]]"])
        .args([tree.join(SHARED), mount.join(SHARED)])
        .env("TZ", "Etc/GMT+12")
        .output();
    if let Ok(packed) = packed {
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    }
}
