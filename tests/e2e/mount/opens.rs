//! What is open stays, what is closed gives its space back, whoever serves the mount by then.

use std::fs::{self, File, FileTimes};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Front, Origin};
use serde_json::{Value, json};

use super::kept::{Kept, own};
use super::{assert_reads, mount_status, until_removed};
use crate::node::{Node, damage, http};
use crate::small_disk::{Kind, MIB, SMALL_CHANGE, SmallDisk, has, is_right, put, source};
use crate::support::origin_with_model;

/// Mebibytes of a model.
const MODEL: u64 = 16;
/// What the kernel does after a close or a removal it does at once, but not before it returns.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A node with a small disk of its own, for the unprivileged daemon.
fn small(origin: &Origin, mebibytes: u64, test: &str) -> Option<(SmallDisk, Kept)> {
    let mut kept = Kept::at(origin)?;
    let disk = SmallDisk::of(&mut kept.node, Kind::Tmpfs, mebibytes, test)?;
    own(&kept.node.path("disk"));
    kept.node.start();
    Some((disk, kept))
}

fn first_file(ready: &Value) -> PathBuf {
    Path::new(ready["path"].as_str().expect("a path")).join("w-0.safetensors")
}

#[track_caller]
fn is_busy(node: &Node, number: u64) {
    let (status, body) = node.ask_admin("POST", "/v1/remove", Some(&json!({"models": [source(number)]})));
    assert_eq!(status, 409, "{body}\n{}", node.log());
    assert!(body.to_string().contains("a file of it is open"), "{body}");
}

#[test]
fn a_model_with_an_open_file_stays_also_when_the_daemon_was_killed() {
    let origin = Origin::start(Front::S3).expect("an origin");
    (0..5).for_each(|number| put(&origin, number, MODEL));
    let Some((_disk, mut kept)) = small(&origin, 80, "a_model_with_an_open_file_stays") else { return };
    let ready = kept.node.ready(&json!({"source": source(0)}));
    let mut open = File::open(first_file(&ready)).expect("a file");
    is_busy(&kept.node, 0);
    kept.node.restart();
    is_busy(&kept.node, 0);
    // Room is made of the others, in that life and the next.
    for number in 1..5 {
        kept.node.ready(&json!({"source": source(number)}));
        assert!(has(&kept.node, 0), "model {number} pushed out what is open");
        if number == 2 {
            kept.node.restart();
        }
    }
    assert!(kept.node.status()["totals"]["evictions"].as_u64() >= Some(1), "{}", kept.node.status());
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).expect("the file");
    assert!(bytes == larder_origins::Noise::new(0).bytes(bytes.len()) && bytes.len() as u64 == MODEL * MIB / 2);
    is_busy(&kept.node, 0);
    drop(open);
    until_removed(&kept.node, &source(0));
    assert!(!has(&kept.node, 0));
}

#[test]
fn what_was_read_gives_its_space_back_at_once_also_after_another_life() {
    let origin = Origin::start(Front::S3).expect("an origin");
    (0..10).for_each(|number| put(&origin, number, MODEL));
    let Some((disk, mut kept)) = small(&origin, 100, "what_was_read_gives_its_space_back_at_once") else { return };
    for (number, restarts) in [(0, false), (1, true)] {
        is_right(&kept.node.ready(&json!({"source": source(number)})), number, MODEL);
        assert_eq!(mount_status(&kept.node)["opens_passed"], 2, "{}", mount_status(&kept.node));
        if restarts {
            kept.node.restart();
        }
        let before = disk.used().0;
        until_removed(&kept.node, &source(number));
        let removed = Instant::now();
        while before - disk.used().0 < MODEL * MIB - SMALL_CHANGE {
            let used = disk.used().0;
            assert!(removed.elapsed() < AT_ONCE, "{used} of {before} bytes are still in use\n{}", kept.logs());
            std::thread::sleep(Duration::from_millis(1));
        }
        eprintln!("restarted: {restarts}, free {:?} after the answer", removed.elapsed());
        kept.node.restart();
    }
    // Evicted, it is no different: the disk never fills, though all of it was read.
    for number in 2..10 {
        is_right(&kept.node.ready(&json!({"source": source(number)})), number, MODEL);
        let high = disk.used().1 * 80 / 100;
        assert!(disk.used().0 <= high + SMALL_CHANGE, "{:?} after model {number}\n{}", disk.used(), kept.logs());
        if number % 3 == 0 {
            kept.node.restart();
        }
    }
    // What is counted is what is there.
    let (status, (used, total)) = (kept.node.status(), disk.used());
    assert_eq!(status["disk"]["free"], total - used, "{status}");
    assert!(!has(&kept.node, 2) && has(&kept.node, 9), "{status}");
}

#[test]
fn a_file_that_was_damaged_and_fetched_again_opens_right_beside_an_old_descriptor() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut kept) = Kept::started(&origin) else { return };
    let ready = kept.node.ready(&json!({"source": "s3://models/m/"}));
    let directory = PathBuf::from(ready["path"].as_str().expect("a path"));
    let name = "model-00001-of-00003.safetensors";
    let right = &model.files[name];
    let blob = kept.node.store().join("v1/models").join(ready["digest"].as_str().expect("a digest")).join(name);
    let mut olds = Vec::new();
    for round in 0..3 {
        let old = File::open(directory.join(name)).expect("a file");
        let mut begin = vec![0; 4096];
        old.read_exact_at(&mut begin, 0).expect("bytes");
        assert!(begin == right[..4096], "in round {round}");
        // A bad disk leaves the times as they are.
        let time = fs::metadata(&blob).expect("a blob").modified().expect("a time");
        damage(&blob);
        File::open(&blob).and_then(|file| file.set_times(FileTimes::new().set_modified(time))).expect("a time");
        let damaged = fs::read(directory.join(name)).expect("the file");
        assert!(damaged != *right, "in round {round}");
        olds.push((old, damaged));
        if round == 1 {
            kept.node.restart();
        }
        let body = json!({"repair": true}).to_string();
        let repairing = http::ask(&kept.node.admin_socket(), "POST", "/v1/verify", Some(body.as_bytes()));
        let repaired = repairing.expect("an answer").events().last().expect("an event");
        let told = (&repaired["event"], &repaired["damaged"], &repaired["exit_code"]);
        assert_eq!(told, (&json!("repaired"), &json!(1), &json!(0)), "{repaired}\n{}", kept.logs());
        assert_reads(&directory, &model);
        for (old, damaged) in &olds {
            let mut bytes = vec![0; damaged.len()];
            old.read_exact_at(&mut bytes, 0).expect("an old descriptor reads on");
            assert!(bytes == *damaged, "in round {round}: an old descriptor shows another copy");
        }
    }
    kept.node.restart();
    assert_reads(&directory, &model);
    drop(olds);
    assert_reads(&directory, &model);
    until_removed(&kept.node, "s3://models/m/");
}
